"""Searches for a ticket: a run for each stage, one after the other, and what comes of them.

result = search(compose(["experiment=digits_tickets", "ticket=iterative_magnitude", "search.density=0.1"], "tickets"))
"""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import DictConfig, open_dict

import zerogate
from zerogate.data.seeds import seed_of
from zerogate.errors import ConfigError
from zerogate.sparsified import Sparsified
from zerogate.training import build, provenance
from zerogate.training.build_gates import density, excluded
from zerogate.training.checkpoints import last_checkpoint, restore
from zerogate.training.classifier import Classifier
from zerogate.training.config.checks import check, time_of
from zerogate.training.config.compose import load, renewed
from zerogate.training.config.keys import command_of
from zerogate.training.config.resume import check_resume, resumed
from zerogate.training.costs import dense_cost, ticket_size
from zerogate.training.datamodule import ImageDataModule
from zerogate.training.deploy import write_compacted
from zerogate.training.interruption import StoppedError
from zerogate.training.run_folder import Result, RunFolder, default_folder, read_result, write_json
from zerogate.training.train import run_stage
from zerogate.training.trainer import quiet


@dataclass(frozen=True)
class StagePlan:
    """A stage of a search as a run."""

    name: str
    """round-1, round-2, …, ticket: the name of its folder."""
    steps: int
    """Optimizer steps that it is long."""
    epochs: int
    """Epochs that these steps take, the last of which they may end inside."""


def search(config: DictConfig) -> Result:
    """Carry out a search, from the beginning or from where `config.resume` stopped.

    Args:
        config: from `compose(overrides, "tickets")`; its values may have been changed since.

    Returns:
        What result.json holds.

    Raises:
        ZerogateError: the configuration cannot be carried out (then nothing has been written), or the loss diverged.
        OSError: the folder cannot be written.
        StoppedError: SIGTERM or Ctrl-C; the stage's last.ckpt holds the state, and `resume` continues the search.
    """
    if command_of(config) != "tickets":
        raise ConfigError('this configuration is of another command; compose it with compose(overrides, "tickets")')
    check(config)
    config = renewed(config)
    provenance.commit()  # asked now and remembered: the source may change while the search goes on
    resuming = bool(config.resume)
    folder, config = open_or_resume(config)
    if resuming and folder.result.is_file():
        print(f"{folder} is finished; zerogate eval {folder} tests its ticket")
        return read_result(folder.result)
    with quiet():
        module, batches = build.build_run(config)
        stages = _plan_stages(config, module, batches)
        if not resuming:
            folder.begin(config)
        try:
            results = [_train_stage(folder, config, module, batches, stages, number) for number in range(len(stages))]
        except StoppedError as stop:
            raise StoppedError(stop.signum, folder) from stop
        return _finish(folder, config, module, batches, results)


def open_or_resume(config: DictConfig) -> tuple[RunFolder, DictConfig]:
    """The folder of a search, and the configuration with which it begins or goes on; writes nothing.

    Raises:
        ConfigError: the folder is not free, or holds no search that could go on with this configuration.
    """
    check_resume(config)
    if not config.resume:
        folder = RunFolder(config.output or default_folder(config.name))
        folder.check_free(config.overwrite)
        return folder, config
    folder = RunFolder.of(config.resume)
    stored = load(folder.config)
    if "stage" in stored:
        folder = RunFolder(folder.folder.parent)
        stored = load(folder.config)
    if (command := command_of(stored)) != "tickets":
        raise ConfigError(f"{folder} is of zerogate {command}; go on with zerogate {command} resume={folder}")
    config = resumed(config, folder.folder, stored)
    if any(folder.folder.glob("*/last.ckpt")):
        config.init_from = None  # its weights are in the checkpoints already
    return folder, config


def _plan_stages(config: DictConfig, module: Classifier, batches: ImageDataModule) -> list[StagePlan]:
    """The stages of a search. Gives `module`, if it has gates, the `TicketSearch` that they are stages of."""
    per_epoch = build.steps_per_epoch(config, batches)
    if module.sparse is None:
        options = config.search
        if options.rounds:
            raise ConfigError(f"search.rounds={options.rounds}, and there are no gates to search with; give rounds=0")
        length = options.final_length or options.length or config.trainer.max_epochs
        return [_stage_plan("ticket", time_of(length).steps(per_epoch), per_epoch)]
    module.search = make_search(config, module.sparse, batches)
    module.rewinds_optimizer = config.search.rewind_optimizer
    names = [f"round-{number + 1}" for number in range(config.search.rounds)] + ["ticket"]
    return [_stage_plan(name, steps, per_epoch) for name, steps in zip(names, module.search.lengths, strict=True)]


def _stage_plan(name: str, steps: int, per_epoch: int) -> StagePlan:
    return StagePlan(name, steps, epochs=-(-steps // per_epoch))


def make_search(config: DictConfig, sparse: Sparsified, batches: ImageDataModule) -> zerogate.TicketSearch:
    """The search that the node `search` describes.

    Raises:
        ZerogateError: it cannot be made of these gates, rounds and lengths.
    """
    options = config.search
    return zerogate.TicketSearch(
        sparse,
        rounds=options.rounds,
        length=options.length or config.trainer.max_epochs,
        final_length=options.final_length,
        steps_per_epoch=build.steps_per_epoch(config, batches),
        rewind=options.rewind,
        reset=options.reset,
    )


def _train_stage(
    folder: RunFolder,
    config: DictConfig,
    module: Classifier,
    batches: ImageDataModule,
    stages: list[StagePlan],
    number: int,
) -> Result:
    """What result.json of a stage holds: read if it is finished, else after training it.

    A stage begins from the files of the one before, whether that was trained just now or long ago.
    """
    stage = stages[number]
    run = folder.stage(stage.name)
    if run.result.is_file():
        return read_result(run.result)
    checkpoint = last_checkpoint(run)
    if checkpoint is not None:
        restore(module, run.last)
    elif number and module.search is not None:
        restore(module, folder.stage(stages[number - 1].name).last)
        module.search.advance()
    config = config.copy()
    with open_dict(config):
        config.stage = stage.name
    config.trainer.max_epochs = stage.epochs
    if checkpoint is None:
        run.begin(config)
    module.make_scheduler = build.make_scheduler(config, "scheduler", stage.steps)
    module.make_gate_scheduler = build.make_scheduler(config, "gate_scheduler", stage.steps)
    # The first stage is what `zerogate train` would do; the others go through the data in another order.
    module.seed = batches.train.seed = seed_of(config.seed, -number) if number else config.seed
    return run_stage(run, config, module, batches, stage.steps, checkpoint)


def _finish(
    folder: RunFolder, config: DictConfig, module: Classifier, batches: ImageDataModule, results: list[Result]
) -> Result:
    """Write the mask, the network without its closed parts, and result.json, from the files of the stages alone."""
    restore(module, folder.stage("ticket").last)
    ticket = {key: value for key, value in results[-1].items() if key not in ("stage", "images_per_second", "epoch")}
    result: Result = {"name": config.name, "kind": config.search.kind, "density": config.search.density}
    result |= ticket | {key: sum(stage[key] for stage in results) for key in ("epochs", "steps")}
    if module.search is not None:
        module.search.advance()
        mask = module.search.mask
        mask.save(folder.mask, overwrite=True)
        result |= {"gated_weights": mask.total, "remaining_weights": mask.remaining}
    elif config.search.density is not None:
        result |= _small_beside_dense(config, batches, ticket)
    result["history"] = [stage["remaining"] for stage in results[:-1]] + [result["remaining"]]
    of_stage = ("stage", "epochs", "steps", "remaining", "val_accuracy", "test_accuracy")
    result["stages"] = [{key: stage[key] for key in of_stage} for stage in results]
    result["stages"][-1]["remaining"] = result["remaining"]
    result |= write_compacted(module.model, module.sparse, folder.compact) | provenance.provenance_of(config)
    write_json(folder.result, result)
    return result


def _small_beside_dense(config: DictConfig, batches: ImageDataModule, ticket: Result) -> Result:
    """A small dense network's costs beside the dense one's; `remaining` is that of a ticket with as many parameters."""
    model, examples = build.make_model(config, batches.data).to(batches.train.device), batches.examples()
    size = ticket_size(model, examples, density(config), unit=config.sparsify.unit, exclude=excluded(config))
    dense = dense_cost(model, examples)
    params, macs = ticket["params"] / size.dense, ticket["macs"] / dense["macs"]
    return {
        "remaining": (ticket["params"] - (size.dense - size.gated)) / size.gated,
        "dense_params": size.dense,
        "dense_macs": dense["macs"],
        "density_params": params,
        "density_macs": macs,
        "sparsity_params": 1 - params,
        "sparsity_macs": 1 - macs,
    }
