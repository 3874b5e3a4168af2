"""Training a run, from the beginning or from where it stopped.

result = train(compose(["experiment=digits", "objective.weight=0.3", "output=outputs/mine"]))
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from omegaconf import DictConfig

from zerogate.errors import ConfigError
from zerogate.report.count import target_row
from zerogate.training import build, provenance
from zerogate.training.build_gates import state_steps
from zerogate.training.callbacks.files import RunFiles
from zerogate.training.callbacks.progress import ProgressLine
from zerogate.training.callbacks.signals import StopOnSignal
from zerogate.training.callbacks.tensorboard import TensorBoardLog
from zerogate.training.checkpoints import Checkpoint, check_state, last_checkpoint, restore
from zerogate.training.classifier import Classifier, DivergedError
from zerogate.training.config import compose as settings
from zerogate.training.config.checks import check
from zerogate.training.config.compose import compose
from zerogate.training.config.keys import command_of
from zerogate.training.config.resume import check_resume, resumed
from zerogate.training.costs import deployed_cost, remaining
from zerogate.training.datamodule import ImageDataModule
from zerogate.training.deploy import write_compacted
from zerogate.training.run_folder import Result, RunFolder, default_folder, read_result, write_json
from zerogate.training.scores import evaluate
from zerogate.training.trainer import make_trainer, quiet

__all__ = ["compose", "run_stage", "train"]


@dataclass(frozen=True)
class _Opened:
    """A run before it is trained."""

    run: RunFolder
    config: DictConfig
    """With which it is trained: the stored one where the run goes on, but for what may change."""
    stored: DictConfig | None = None
    """What its config.yaml holds; None for a new run."""
    checkpoint: Checkpoint | None = None
    """The content of last.ckpt; None where training starts from the beginning."""


def train(config: DictConfig) -> Result:
    """Train a run, from the beginning or from where `config.resume` stopped.

    Args:
        config: from `compose`; its values may have been changed since.

    Returns:
        What result.json holds.

    Raises:
        ZerogateError: the configuration cannot be carried out (then nothing has been written), or the loss diverged.
        OSError: the run folder cannot be written.
        StoppedError: SIGTERM or Ctrl-C; last.ckpt holds the state, and `resume` continues the run.
    """
    check(config)
    config = settings.renewed(config)
    provenance.commit()  # asked now and remembered: the source may change while the run goes on
    opened = _open_or_resume(config)
    run, config, checkpoint = opened.run, opened.config, opened.checkpoint
    with quiet():
        module, batches = build.build_run(config)
        steps = build.total_steps(config, batches)
        if module.sparse is not None:
            state_steps(module.sparse, steps)
        if checkpoint is None:
            run.begin(config)
        else:
            check_state(module, checkpoint["state_dict"], run.last)
            if checkpoint["global_step"] >= steps and run.result.is_file():
                print(f"{run} is finished ({steps} steps); raise trainer.max_epochs to go on, or zerogate eval {run}")
                return read_result(run.result)
            _store_length(opened)
        return run_stage(run, config, module, batches, steps, checkpoint)


def _open_or_resume(config: DictConfig) -> _Opened:
    """The folder of a run, and the configuration and checkpoint with which it begins or goes on; writes nothing."""
    check_resume(config)
    if not config.resume:
        run = RunFolder(config.output or default_folder(config.name))
        run.check_free(config.overwrite)
        return _Opened(run, config)
    run = RunFolder.of(config.resume)
    stored = settings.load(run.config)
    if (command := command_of(stored)) != "train":
        search = run.folder.parent if "stage" in stored else run.folder
        raise ConfigError(f"{run} is of a search; go on with zerogate {command} resume={search}")
    config = resumed(config, run.folder, stored)
    checkpoint = last_checkpoint(run)
    if checkpoint is not None:
        config.init_from = None  # its weights are in the checkpoint already
    return _Opened(run, config, stored, checkpoint)


def _store_length(opened: _Opened) -> None:
    """Write a larger `trainer.max_epochs` into config.yaml, and no other key: they are as the run was begun."""
    run, stored, epochs = opened.run, opened.stored, opened.config.trainer.max_epochs
    if stored is not None and epochs != stored.trainer.max_epochs:
        stored.trainer.max_epochs = epochs
        run.save_config(stored)


def run_stage(
    run: RunFolder,
    config: DictConfig,
    module: Classifier,
    batches: ImageDataModule,
    steps: int,
    checkpoint: Checkpoint | None,
) -> Result:
    """Train a run, or one stage of a search; test its networks and write result.json, which says that it is finished.

    A stage of a search has no best.ckpt, since stages hand on what they end with, and is not compacted.

    Args:
        steps: the optimizer step at which training ends.
        checkpoint: the content of last.ckpt, from which to go on; None to start from the beginning.

    Returns:
        What result.json holds; `module` is then in the state of last.ckpt.
    """
    of_search = command_of(config) == "tickets"
    files = RunFiles(run, steps, keep_best=not of_search)
    if checkpoint is not None:
        files.load_state_dict(checkpoint["callbacks"][RunFiles.state_key])
    progress = ProgressLine(files, steps, config.data.batch_size, config.trainer.progress)
    if checkpoint is None or checkpoint["global_step"] < steps:
        print(f"run folder {run}", flush=True)
        module.train()  # Lightning leaves the mode alone, and the stage before ended in that of evaluation
        _fit(config, module, batches, files, progress, resume=checkpoint is not None)
    files.write_metrics()
    result = _tested(run, config, module, batches)
    if of_search:
        result |= {"stage": config.stage, "epochs": config.trainer.max_epochs, "remaining": remaining(module.sparse)}
    elif module.sparse is not None:
        result |= write_compacted(module.model, module.sparse, run.compact)
    result |= provenance.provenance_of(config)
    result["images_per_second"] = progress.images_per_second and round(progress.images_per_second, 1)
    write_json(run.result, result)
    return result


def _fit(
    config: DictConfig,
    module: Classifier,
    batches: ImageDataModule,
    files: RunFiles,
    progress: ProgressLine,
    resume: bool,
) -> None:
    stop = StopOnSignal(files)
    # In this order: the files first, since the others show what they hold; the one that stops the run last.
    callbacks = [files, TensorBoardLog(files, config.trainer.log_every_n_steps), progress, stop]
    trainer = make_trainer(config, callbacks)
    last = str(files.run.last) if resume else None
    try:
        trainer.fit(module, datamodule=batches, ckpt_path=last, weights_only=True)
    except DivergedError as error:
        kept = f"{files.run.last} is as it was" if files.run.last.exists() else "no checkpoint had been written yet"
        raise DivergedError(f"{error}; {kept}") from error
    finally:
        stop.release()
    module.to(trainer.strategy.root_device)


def _tested(run: RunFolder, config: DictConfig, module: Classifier, batches: ImageDataModule) -> Result:
    """Scores and costs of a trained run, from its checkpoints alone; leaves `module` in the state of last.ckpt."""
    scores: dict[str, Result] = {}
    steps = 0
    for path in (run.best, run.last) if command_of(config) == "train" else (run.last,):
        checkpoint = restore(module, path)
        row, steps = checkpoint["callbacks"][RunFiles.state_key]["rows"][-1], checkpoint["global_step"]
        if "best" in scores and scores["best"]["epoch"] == row["epoch"]:
            scores["last"] = scores["best"]
            continue
        scores[path.stem] = {
            "epoch": row["epoch"],
            "val_accuracy": row["val_accuracy"],
            "test_accuracy": evaluate(module.model, batches.test, batches.data.num_classes)["accuracy"],
            **deployed_cost(module.model, module.sparse, batches.examples()),
        }
    result = _described(config, module, batches) | {"steps": steps, **scores["last"]} | _shares(module, scores["last"])
    return result | {"best": scores["best"]} if "best" in scores else result


def _described(config: DictConfig, module: Classifier, batches: ImageDataModule) -> Result:
    """What a result is of: model, data, gates and objective."""
    gated = module.sparse is not None
    sparse = module.sparse
    target = None if sparse is None else target_row(sparse.objective, sparse.is_open(), sparse.cost_model)
    return {
        "name": config.name,
        "model": config.model._target_,
        "data": batches.data.name,
        "gate": config.gate.get("_target_"),
        "unit": config.sparsify.unit if gated else None,
        "lambda": config.objective.get("weight") if gated and target is None else None,
        "target": None if target is None else asdict(target),
        "seed": config.seed,
    }


def _shares(module: Classifier, final: Result) -> Result:
    """Costs of the dense network, and density and sparsity of the one at the end of training."""
    dense_params, dense_macs = final["params"], final["macs"]
    density_params = density_macs = 1.0
    if module.sparse is not None:
        dense_params, dense_macs = module.sparse.dense_cost.params, module.sparse.dense_cost.macs
        density_params, density_macs = final["params"] / dense_params, final["macs"] / dense_macs
    return {
        "dense_params": dense_params,
        "dense_macs": dense_macs,
        "density_params": density_params,
        "density_macs": density_macs,
        "sparsity_params": 1 - density_params,
        "sparsity_macs": 1 - density_macs,
    }
