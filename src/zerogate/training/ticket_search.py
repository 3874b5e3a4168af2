"""Searches for a ticket: a run for each stage, one after the other, and what comes of them.

result = search(compose(["experiment=digits_tickets", "ticket=imp", "search.density=0.1"], "tickets"))
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, open_dict

from zerogate.errors import ConfigError
from zerogate.training import build as building
from zerogate.training import provenance
from zerogate.training import train as runs
from zerogate.training.callbacks.files import StoppedError
from zerogate.training.classifier import Classifier, ImageDataModule, seed_of
from zerogate.training.config import compose as settings
from zerogate.training.run_folder import Run, write_json


@dataclass(frozen=True)
class _Part:
    """A stage as a run: the name of its folder, its length."""

    name: str
    steps: int
    epochs: int


def search(config: DictConfig) -> dict[str, Any]:
    """Carry out a search, from the beginning or from where `config.resume` stopped, and return what result.json holds.

    Args:
        config: from `compose(overrides, "tickets")`; its values may have been changed since.

    Raises:
        ZerogateError: the configuration cannot be carried out (then nothing has been written), or the loss diverged.
        OSError: the folder cannot be written.
        StoppedError: SIGTERM or Ctrl-C; the stage's last.ckpt holds the state, `resume` goes on.
    """
    if settings.command_of(config) != "tickets":
        raise ConfigError('this configuration is of another command; compose it with compose(overrides, "tickets")')
    settings.check(config)
    config = settings.renewed(config)
    provenance.commit()  # remembered: the source may change while this goes on
    resumed = bool(config.resume)
    folder, config = _opened(config)
    if resumed and folder.result.is_file():
        print(f"{folder} is finished; zerogate eval {folder} tests its ticket")
        done: dict[str, Any] = json.loads(folder.result.read_text())
        return done
    with runs.quiet():
        device = building.make_trainer(config).strategy.root_device
        batches = building.load_batches(config, building.load_data(config), device)
        module = building.make_classifier(config, batches, device)
        parts = _parts(config, module, batches)
        if not resumed:
            folder.begin(config)
        try:
            results = [_stage(folder, config, module, batches, parts, number) for number in range(len(parts))]
        except StoppedError as stop:
            raise StoppedError(stop.signum, folder) from stop
        return _finish(folder, config, module, batches, results)


def _opened(config: DictConfig) -> tuple[Run, DictConfig]:
    """The folder of a search, and the configuration with which it begins or goes on."""
    if not config.resume:
        folder = Run(config.output or runs.default_folder(config.name))
        folder.check_free(config.overwrite)
        return folder, config
    if config.overwrite:
        raise ConfigError("resume and overwrite=true contradict each other; give one of them")
    folder = Run.of(config.resume)
    stored = settings.load(folder.config)
    if "stage" in stored:
        folder = Run(folder.folder.parent)
        stored = settings.load(folder.config)
    command = settings.command_of(stored)
    if command != "tickets":
        raise ConfigError(f"{folder} is of zerogate {command}; go on with zerogate {command} resume={folder}")
    config = settings.resumed(config, folder.folder, stored)
    if any(folder.folder.glob("*/last.ckpt")):
        config.init_from = None  # its weights are in the checkpoints already
    return folder, config


def _parts(config: DictConfig, module: Classifier, batches: ImageDataModule) -> list[_Part]:
    """The stages; `module` gets the search that they are of, if it has gates."""
    each = building.steps_per_epoch(config, batches)
    wanted = config.search
    if module.sparse is None:
        if wanted.rounds:
            raise ConfigError(f"search.rounds={wanted.rounds}, and there are no gates to search with; give rounds=0")
        steps = settings.time_of(wanted.final_length or wanted.length or config.trainer.max_epochs).steps(each)
        return [_Part("ticket", steps, -(-steps // each))]
    module.search = building.make_search(config, module.sparse, batches)
    module.rewinds_optimizer = wanted.rewind_optimizer
    names = [f"round-{number + 1}" for number in range(wanted.rounds)] + ["ticket"]
    return [_Part(name, n, -(-n // each)) for name, n in zip(names, module.search.lengths, strict=True)]


def _stage(
    folder: Run, config: DictConfig, module: Classifier, batches: ImageDataModule, parts: list[_Part], number: int
) -> dict[str, Any]:
    """What result.json of a stage holds: of one that is finished, as it is; else after carrying it out.

    A stage begins from the files of the one before, whether that was trained just now or long ago.
    """
    part = parts[number]
    run = folder.stage(part.name)
    if run.result.is_file():
        done: dict[str, Any] = json.loads(run.result.read_text())
        return done
    checkpoint = runs.last_checkpoint(run)
    if checkpoint is not None:
        runs.load(module, run.last)
    elif number:
        runs.load(module, folder.stage(parts[number - 1].name).last)
        assert module.search is not None
        module.search.advance()
    config = config.copy()
    with open_dict(config):
        config.stage = part.name
    config.trainer.max_epochs = part.epochs
    if checkpoint is None:
        run.begin(config)
    for group in ("scheduler", "gate_scheduler"):
        setattr(module, f"make_{group}", building.make_scheduler(config, group, part.steps))
    # The first stage is what `zerogate train` would do; the others go through the data in another order.
    module.seed = batches.train.seed = seed_of(config.seed, -number) if number else config.seed
    return runs.carry_out(run, config, module, batches, part.steps, checkpoint)


def _finish(
    folder: Run, config: DictConfig, module: Classifier, batches: ImageDataModule, results: list[dict[str, Any]]
) -> dict[str, Any]:
    """Write the mask, the network without its closed parts, and result.json; a pure function of the stages' files."""
    runs.load(module, folder.stage("ticket").last)
    ticket = {key: value for key, value in results[-1].items() if key not in ("stage", "images_per_second", "epoch")}
    result: dict[str, Any] = {"name": config.name, "kind": config.search.kind, "density": config.search.density}
    result |= ticket | {key: sum(stage[key] for stage in results) for key in ("epochs", "steps")}
    if module.search is not None:
        module.search.advance()
        mask = module.search.mask
        mask.save(folder.mask, overwrite=True)
        result |= {"gated_weights": mask.total, "remaining_weights": mask.remaining}
    elif config.search.density is not None:
        result |= _of_small(config, batches, ticket)
    result["history"] = [stage["remaining"] for stage in results[:-1]] + [result["remaining"]]
    of_stage = ("stage", "epochs", "steps", "remaining", "val_accuracy", "test_accuracy")
    result["stages"] = [{key: stage[key] for key in of_stage} for stage in results]
    result["stages"][-1]["remaining"] = result["remaining"]
    result |= runs.write_compacted(module, folder.compact) | runs.said(config)
    write_json(folder.result, result)
    return result


def _of_small(config: DictConfig, batches: ImageDataModule, ticket: dict[str, Any]) -> dict[str, Any]:
    """How a small dense network compares with the dense one: `remaining` is what a ticket of as many parameters has."""
    model, examples = building.make_model(config, batches.data).to(batches.train.device), batches.examples()
    gated, _, dense_params = building.gated_share(config, model, examples)
    dense = building.dense_cost(model, examples)
    params, macs = ticket["params"] / dense_params, ticket["macs"] / dense["macs"]
    return {
        "remaining": (ticket["params"] - (dense_params - gated)) / gated,
        "dense_params": dense_params,
        "dense_macs": dense["macs"],
        "density_params": params,
        "density_macs": macs,
        "sparsity_params": 1 - params,
        "sparsity_macs": 1 - macs,
    }
