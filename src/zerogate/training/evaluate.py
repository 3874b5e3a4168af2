"""The networks of finished runs, restored and tested."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zerogate.errors import CheckpointError, ConfigError
from zerogate.training.build import build_run
from zerogate.training.checkpoints import load_checkpoint, restore
from zerogate.training.classifier import Classifier
from zerogate.training.config.compose import amend, load
from zerogate.training.config.keys import command_of
from zerogate.training.costs import deployed_cost
from zerogate.training.datamodule import ImageDataModule
from zerogate.training.run_folder import Result, RunFolder
from zerogate.training.scores import evaluate
from zerogate.training.trainer import quiet


def restore_run(run: RunFolder, which: str, overrides: Sequence[str]) -> tuple[Classifier, ImageDataModule]:
    """The network and the data of a run as they were at its `last` or `best` checkpoint.

    Raises:
        ZerogateError: as `evaluate_run`.
    """
    if which not in ("last", "best"):
        raise ConfigError(f"which={which} is no checkpoint of a run; which is last or best")
    config = amend(load(run.config), overrides)
    config.init_from = None
    if command_of(config) == "tickets" and "stage" not in config:
        run = run.stage("ticket")  # what a search is for
    path = run.last if which == "last" else run.best
    if not path.is_file():
        whole = run.folder.parent if "search" in config else run
        raise CheckpointError(
            f"{run} has no {path.name} yet; continue it with zerogate {command_of(config)} resume={whole}"
        )
    load_checkpoint(path)  # a damaged file is refused before the data are loaded, which may take a while
    module, batches = build_run(config)
    restore(module, path)
    return module, batches


def evaluate_run(folder: str | Path, which: str = "last", overrides: Sequence[str] = ()) -> Result:
    """Validation and test accuracy, parameters and MACs of a run's network with its deployed mask; writes nothing.

    Args:
        folder: the run's, or that of a search or a stage.
        which: `last` or `best`, the checkpoint.
        overrides: values of the run's configuration, such as data.path=DIR.

    Raises:
        ZerogateError: there is no such run or checkpoint, or it is damaged or of another model.
    """
    run = RunFolder.of(folder)
    with quiet():
        module, batches = restore_run(run, which, overrides)
        accuracy = {
            f"{split}_accuracy": evaluate(module.model, part, batches.data.num_classes)["accuracy"]
            for split, part in (("val", batches.validation), ("test", batches.test))
        }
        cost = deployed_cost(module.model, module.sparse, batches.examples())
    params = cost["params"]
    density = 1.0 if module.sparse is None or params is None else params / module.sparse.dense_cost.params
    return {"run": str(run), "which": which, **accuracy, **cost, "density_params": density}
