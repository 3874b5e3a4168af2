"""Checkpoints: read with care, checked against the model that they are for, written whole."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from zerogate.errors import CheckpointError
from zerogate.files import write
from zerogate.training.run_folder import RunFolder

Checkpoint = dict[str, Any]
"""The content of a .ckpt file: tensors and plain values by Lightning's keys."""


def load_checkpoint(path: Path) -> Checkpoint:
    """The content of a checkpoint on the CPU; tensors and plain values only, no pickled code.

    Raises:
        CheckpointError: there is no such file, it is truncated, or it is something else.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path}; give a run folder or a .ckpt file")
    content = path.read_bytes()
    try:
        checkpoint = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path} ({len(content)} bytes) is truncated or no checkpoint of zerogate; give another one"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path} holds a {type(checkpoint).__name__}, not a checkpoint; give another one")
    return checkpoint


def check_state(module: nn.Module, state: Mapping[str, object], path: Path) -> None:
    """Raise `CheckpointError` unless a state has exactly the tensors of a module, in their shapes.

    Args:
        module: the module that the state is for.
        state: tensors by their names.
        path: the file that the state comes from, for messages.
    """
    expected = module.state_dict()
    gates_expected, gates_there = (any(key.startswith("sparse.") for key in keys) for keys in (expected, state))
    if gates_expected and not gates_there:
        raise CheckpointError(f"{path} has no gates but the configuration asks for some; use gate=none or init_from")
    if gates_there and not gates_expected:
        raise CheckpointError(f"{path} has gates but the configuration has gate=none; give the run's own gate")
    for key, value in expected.items():
        if key not in state:
            raise CheckpointError(f"{path} is of another model: it lacks {key!r}; give the model it was trained with")
        if isinstance(value, Tensor) and _shape(value) != _shape(state[key]):
            raise CheckpointError(
                f"{path} is of another model: {key!r} has shape {_shape(state[key])}, the model wants {_shape(value)}; "
                "give the model it was trained with"
            )
    for key in state.keys() - expected.keys():
        raise CheckpointError(f"{path} is of another model: it holds {key!r}; give the model it was trained with")


def _shape(value: object) -> list[int] | None:
    return list(value.shape) if isinstance(value, Tensor) else None


def load_weights(model: nn.Module, source: str | Path) -> Path:
    """Load the weights of a model, and nothing else, from a run folder, a checkpoint of one, or a saved state_dict.

    Returns:
        The file that was read.

    Raises:
        CheckpointError: there is no such file, it is damaged, or belongs to another model.
    """
    path = Path(source)
    path = RunFolder(path).last if path.is_dir() else path
    content = load_checkpoint(path)
    if "state_dict" in content:
        state = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    else:
        state = content
    check_state(model, state, path)
    model.load_state_dict(state)
    return path


def last_checkpoint(run: RunFolder) -> Checkpoint | None:
    """The content of last.ckpt; None if the run ended before it wrote any, so that it can only start from the beginning.

    Raises:
        CheckpointError: the file is missing beside others of the run, damaged, or cannot be resumed from.
    """
    if not run.last.exists() and not run.metrics.exists() and not run.best.exists():
        return None
    checkpoint = load_checkpoint(run.last)
    if not {"state_dict", "loops", "callbacks", "optimizer_states", "global_step"} <= checkpoint.keys():
        raise CheckpointError(f"{run.last} cannot be resumed, it holds weights only; use init_from={run.last}")
    return checkpoint


def restore(module: pl.LightningModule, path: Path) -> Checkpoint:
    """Put a module, and the search that it is a stage of, into the state of a checkpoint.

    Returns:
        The content of the checkpoint.

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


class CheckpointIO(TorchCheckpointIO):
    """Reads and writes Lightning's checkpoints by `load_checkpoint` and `write`."""

    def save_checkpoint(self, checkpoint: Checkpoint, path: str | Path, storage_options: object = None) -> None:
        """Writes a checkpoint, serialised in memory first: torch's own writer reports a full disk as a crash of itself."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write(Path(path), content.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: object = None, weights_only: bool | None = None
    ) -> Checkpoint:
        """The content of a checkpoint on the CPU; see the function of that name."""
        return load_checkpoint(Path(path))
