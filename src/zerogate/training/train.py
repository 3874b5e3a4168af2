"""What can be done with a run: train it (anew or on), evaluate it, compact it.

result = train(compose(["experiment=digits", "objective.weight=0.3", "output=outputs/mine"]))
"""

from __future__ import annotations

import json
import logging
import shlex
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig

import zerogate
from zerogate.cutting.plan import Plan
from zerogate.errors import CheckpointError, ConfigError
from zerogate.modules.index import tensor_bytes
from zerogate.report.count import target_row
from zerogate.storage.plan_json import describe_plan
from zerogate.training import build as building
from zerogate.training import provenance
from zerogate.training.callbacks.files import ProgressLine, RunFiles, StopOnSignal, TensorBoardLog
from zerogate.training.classifier import Classifier, DivergedError, ImageDataModule, evaluate
from zerogate.training.config import compose as settings
from zerogate.training.config.compose import compose
from zerogate.training.run_folder import Run, check_state, load_checkpoint, write_json

__all__ = ["Run", "compact", "compose", "evaluate_run", "train"]


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's hints and the warnings that say nothing to somebody who only gave a configuration."""
    loggers = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning_fabric", "hydra")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)  # Hydra reports as an error what it then raises
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torchmetrics|tensorboard)\b")
            warnings.filterwarnings("ignore", category=pl.utilities.warnings.PossibleUserWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def train(config: DictConfig) -> dict[str, Any]:
    """Carry out a run, from the beginning or from where `config.resume` stopped, and return what result.json holds.

    Args:
        config: from `compose`; its values may have been changed since.

    Raises:
        ZerogateError: the configuration cannot be carried out (then nothing has been written), or the loss diverged.
        OSError: the run folder cannot be written.
        StoppedError: SIGTERM or Ctrl-C; last.ckpt holds the state, `resume` goes on.
    """
    settings.check(config)
    config = settings.renewed(config)
    provenance.commit()  # remembered: the source may change while this goes on
    checkpoint = None
    if config.resume:
        if config.overwrite:
            raise ConfigError("resume and overwrite=true contradict each other; give one of them")
        run = Run.of(config.resume)
        stored = settings.load(run.config)
        if settings.command_of(stored) != "train":
            whole = run.folder.parent if "stage" in stored else run.folder
            raise ConfigError(f"{run} is of a search; go on with zerogate {settings.command_of(stored)} resume={whole}")
        config = settings.resumed(config, run.folder, stored)
        checkpoint = last_checkpoint(run)
    else:
        run = Run(config.output or default_folder(config.name))
        run.check_free(config.overwrite)
    with quiet():
        device = building.make_trainer(config).strategy.root_device
        batches = building.load_batches(config, building.load_data(config), device)
        if checkpoint is not None:
            config = config.copy()
            config.init_from = None  # its weights are in the checkpoint already
        module = building.make_classifier(config, batches, device)
        steps = building.total_steps(config, batches)
        for part in () if module.sparse is None else (module.sparse.gate, module.sparse.objective):
            if getattr(part, "steps", 0) is None:
                part.steps = steps
        if checkpoint is not None:
            check_state(module, checkpoint["state_dict"], run.last)
            if checkpoint["global_step"] >= steps and run.result.is_file():
                print(f"{run} is finished ({steps} steps); raise trainer.max_epochs to go on, or zerogate eval {run}")
                return json.loads(run.result.read_text())
            if config.trainer.max_epochs != stored.trainer.max_epochs:
                stored.trainer.max_epochs = config.trainer.max_epochs
                run.save_config(stored)
        elif config.resume is None or not run.config.exists():
            run.begin(config)

        return carry_out(run, config, module, batches, steps, checkpoint)


def carry_out(
    run: Run,
    config: DictConfig,
    module: Classifier,
    batches: ImageDataModule,
    steps: int,
    checkpoint: dict[str, Any] | None,
) -> dict[str, Any]:
    """Train to so many optimizer steps, from `checkpoint`, the content of last.ckpt, where there is one; test what came
    of it and write result.json, which says that the run is finished. Stages of a search are carried out like that, too:
    without a best.ckpt, since they hand on what they end with, and not compacted.

    Returns:
        What result.json holds; `module` is then as last.ckpt has it.
    """
    of_search = settings.command_of(config) == "tickets"
    files = RunFiles(run, steps, keep_best=not of_search)
    if checkpoint is not None:
        files.load_state_dict(checkpoint["callbacks"][RunFiles.state_key])
    progress = ProgressLine(files, steps, config.data.batch_size, config.trainer.progress)
    if checkpoint is None or checkpoint["global_step"] < steps:
        print(f"run folder {run}", flush=True)
        module.train()  # Lightning leaves it in the mode it is in: after the stage before, that of evaluation
        _fit(config, module, batches, files, progress, resume=checkpoint is not None)
    files.write_metrics()
    result = _finish(run, config, module, batches)
    if of_search:
        result |= {"stage": config.stage, "epochs": config.trainer.max_epochs, "remaining": remaining(module)}
    elif module.sparse is not None:
        result |= write_compacted(module, run.compact)
    result |= said(config)
    result["images_per_second"] = progress.images_per_second and round(progress.images_per_second, 1)
    write_json(run.result, result)
    return result


def last_checkpoint(run: Run) -> dict[str, Any] | None:
    """last.ckpt; None where the run was ended before it wrote any, and so can only start again."""
    if not run.last.exists() and not run.metrics.exists() and not run.best.exists():
        return None
    checkpoint = load_checkpoint(run.last)
    if not {"state_dict", "loops", "callbacks", "optimizer_states", "global_step"} <= checkpoint.keys():
        raise CheckpointError(f"{run.last} cannot be resumed, it holds weights only; use init_from={run.last}")
    return checkpoint


def default_folder(name: str) -> Path:
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path("outputs", name, stamp)
    number = 1
    while folder.exists():
        number += 1
        folder = Path("outputs", name, f"{stamp}_{number}")
    return folder


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
    trainer = building.make_trainer(config, callbacks)
    last = str(files.run.last) if resume else None
    try:
        trainer.fit(module, datamodule=batches, ckpt_path=last, weights_only=True)
    except DivergedError as error:
        kept = f"{files.run.last} is as it was" if files.run.last.exists() else "no checkpoint had been written yet"
        raise DivergedError(f"{error}; {kept}") from error
    finally:
        stop.release()
    module.to(trainer.strategy.root_device)


def load(module: Classifier, path: Path) -> dict[str, Any]:
    """Put a module, and the search that it is in, where the checkpoint in a file has them; its content.

    Raises:
        CheckpointError: the file is damaged, or of another model or search.
    """
    checkpoint = load_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise CheckpointError(f"{path} is not a checkpoint of a run; give one of zerogate train")
    module.on_load_checkpoint(checkpoint)
    check_state(module, checkpoint["state_dict"], path)
    module.load_state_dict(checkpoint["state_dict"])
    return checkpoint


def _cost(module: Classifier, batches: ImageDataModule) -> dict[str, Any]:
    """Parameters and MACs of the network that would be deployed."""
    if module.sparse is None:
        return building.dense_cost(module.model, batches.examples())
    cost = module.sparse.cost(hard=True)
    return {"params": cost.params, "macs": cost.macs}


def _finish(run: Run, config: DictConfig, module: Classifier, batches: ImageDataModule) -> dict[str, Any]:
    """Test both checkpoints, compact the last one; a pure function of the files."""
    scores: dict[str, dict[str, Any]] = {}
    steps = 0
    for path in (run.best, run.last) if settings.command_of(config) == "train" else (run.last,):
        checkpoint = load(module, path)
        row, steps = checkpoint["callbacks"][RunFiles.state_key]["rows"][-1], checkpoint["global_step"]
        if "best" in scores and scores["best"]["epoch"] == row["epoch"]:
            scores["last"] = scores["best"]
            continue
        tested = evaluate(module.model, batches.test, batches.data.num_classes)
        scores[path.stem] = {
            "epoch": row["epoch"],
            "val_accuracy": row["val_accuracy"],
            "test_accuracy": tested["accuracy"],
            **_cost(module, batches),
        }
    final = scores["last"]
    sparse = module.sparse
    target = None if sparse is None else target_row(sparse.objective, sparse.is_open(), sparse.cost_model)
    result: dict[str, Any] = {
        "name": config.name,
        "model": config.model._target_,
        "data": batches.data.name,
        "gate": config.gate.get("_target_"),
        "unit": config.sparsify.unit if module.sparse is not None else None,
        "lambda": config.objective.get("weight") if module.sparse is not None and target is None else None,
        "target": None if target is None else asdict(target),
        "seed": config.seed,
        "steps": steps,
        **final,  # test_accuracy and the rest are those of the network at the end of training
        "dense_params": final["params"],
        "dense_macs": final["macs"],
        "density_params": 1.0,
        "density_macs": 1.0,
        "sparsity_params": 0.0,
        "sparsity_macs": 0.0,
    }
    if "best" in scores:
        result["best"] = scores["best"]
    if module.sparse is not None:
        dense = module.sparse.dense_cost
        params, macs = final["params"] / dense.params, final["macs"] / dense.macs
        result |= {"dense_params": dense.params, "dense_macs": dense.macs}
        result |= {"density_params": params, "density_macs": macs}
        result |= {"sparsity_params": 1 - params, "sparsity_macs": 1 - macs}
    return result


def said(config: DictConfig) -> dict[str, Any]:
    """The command, commit, device and versions that a result is due to."""
    command = shlex.join(["zerogate", settings.command_of(config), *config.overrides])
    return {"command": command, **provenance.origin("pytorch-lightning")}


def remaining(module: Classifier) -> float:
    """Share of the gated weights that the deployed mask keeps; where whole channels go, of all parameters."""
    sparse = module.sparse
    if sparse is None:
        return 1.0
    if sparse.unit == "weight":
        return zerogate.Mask.of(sparse).density
    return sparse.cost().params / sparse.dense_cost.params


def write_compacted(module: Classifier, path: Path) -> dict[str, Any]:
    """Compact, check against the gated network, write; the kept units of each group and the errors found. Without gates
    the network is written as it is."""
    sparse = module.sparse
    if sparse is None:
        plain = module.model.eval()
        if getattr(plain, "zerogate_plan", None) is None:
            plain.zerogate_plan = describe_plan(Plan(), plain, plain) | {"difference": 0.0}  # type: ignore[assignment]
        zerogate.save(plain, path, overwrite=True)
        return {"groups": [], "compaction_error": 0.0, **_bytes(path, module)}
    module.model.eval()  # the mode in which the network will be used
    small = sparse.compact()
    kept = sparse.kept()
    zerogate.save(small, path, overwrite=True)
    groups = [{"name": g.name, "kept": int(kept[g.slice].sum()), "units": g.units} for g in sparse.groups]
    return {
        "groups": groups,
        "compaction_error": small.zerogate_plan["difference"],  # in float64, what `compact` has checked
        "compaction_rounding": sparse.difference(small),  # of the file, whose folded weights are rounded
        **_bytes(path, module),
    }


def _bytes(path: Path, module: Classifier) -> dict[str, int]:
    """Of the file that was written, header and all, and of the dense network's parameters and buffers."""
    return {"file_bytes": path.stat().st_size, "dense_bytes": tensor_bytes(module.model)}


def _restore(run: Run, which: str, overrides: Sequence[str]) -> tuple[Classifier, ImageDataModule]:
    """A run's network and data as they were at its `last` or `best` checkpoint."""
    if which not in ("last", "best"):
        raise ConfigError(f"which={which} is no checkpoint of a run; which is last or best")
    config = settings.amend(settings.load(run.config), overrides)
    config.init_from = None
    if settings.command_of(config) == "tickets" and "stage" not in config:
        run = run.stage("ticket")  # what a search is for
    path = run.last if which == "last" else run.best
    if not path.is_file():
        whole = run.folder.parent if "search" in config else run
        raise CheckpointError(
            f"{run} has no {path.name} yet; continue it with zerogate {settings.command_of(config)} resume={whole}"
        )
    load_checkpoint(path)  # before the data, which may take a while
    device = building.make_trainer(config).strategy.root_device
    batches = building.load_batches(config, building.load_data(config), device)
    module = building.make_classifier(config, batches, device)
    load(module, path)
    return module, batches


def evaluate_run(folder: str | Path, which: str = "last", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Validation and test accuracy, parameters and MACs of a run's network with its deployed mask; writes nothing.

    Args:
        folder: the run's. which: `last` or `best`. overrides: values of its configuration, such as data.path=DIR.

    Raises:
        ZerogateError: no such run or checkpoint, a damaged one, or one of another model.
    """
    run = Run.of(folder)
    with quiet():
        module, batches = _restore(run, which, overrides)
        accuracy = {
            f"{split}_accuracy": evaluate(module.model, part, batches.data.num_classes)["accuracy"]
            for split, part in (("val", batches.validation), ("test", batches.test))
        }
        cost = _cost(module, batches)
    density = 1.0 if module.sparse is None else cost["params"] / module.sparse.dense_cost.params
    return {"run": str(run), "which": which, **accuracy, **cost, "density_params": density}


def compact(folder: str | Path, which: str = "last", overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compact a run's network and write it beside its checkpoint; without gates it is written as it is.

    Returns:
        `path`, `groups` (kept of units), `compaction_error`, `file_bytes` and `dense_bytes` (of the file, and of the
        dense network's tensors), `params`, `macs`, and `report`, a `Report` or, without gates, a line of text.

    Raises:
        ZerogateError: as `evaluate_run`.
    """
    run = Run.of(folder)
    with quiet():
        module, batches = _restore(run, which, overrides)
        path = run.compact if which == "last" else run.folder / f"compact-{which}.safetensors"
        written = write_compacted(module, path)
        report: Any = f"{run} was trained without gates: nothing to remove, the network is written as it is"
        if module.sparse is not None:
            report = module.sparse.report()
        cost = _cost(module, batches)
    return {"path": str(path), **written, **cost, "report": report}
