"""A run's folder: its files by name, written whole or not at all, and its checkpoints, read with care."""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from zerogate.errors import CheckpointError, ConfigError
from zerogate.files import write


def write_json(path: Path, value: Any) -> None:
    """`value` as indented JSON."""
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def write_csv(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A header and one line per row; numbers in full precision, None as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())


_STAGES = ("round-*", "ticket")


class Run:
    """Paths of a run's files, and the folder's rules: it holds one run, which only resume or overwrite may touch.

    The folder of a search for a ticket holds one of a run's for each stage."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = self.folder / "config.yaml"
        self.last = self.folder / "last.ckpt"
        self.best = self.folder / "best.ckpt"
        self.metrics = self.folder / "metrics.csv"
        self.result = self.folder / "result.json"
        self.compact = self.folder / "compact.safetensors"
        self.mask = self.folder / "mask.safetensors"

    def __str__(self) -> str:
        return str(self.folder)

    @classmethod
    def of(cls, path: str | Path) -> Run:
        """The run in a folder, or the one that a file in it belongs to (RUN and RUN/last.ckpt mean the same)."""
        path = Path(path)
        return cls(path.parent if path.is_file() else path)

    def stage(self, name: str) -> Run:
        """The run of a stage: round-1, round-2, …, ticket."""
        return Run(self.folder / name)

    def files(self) -> list[Path]:
        """Every file of a run that the folder holds, its stages included."""
        named = (
            self.config,
            self.last,
            self.best,
            self.metrics,
            self.result,
            self.mask,
            *self.folder.glob("compact*.safetensors"),
        )
        stages = [self.stage(path.name) for pattern in _STAGES for path in sorted(self.folder.glob(pattern))]
        found = [path for path in named if path.exists()] + sorted(self.folder.glob("events.out.tfevents.*"))
        return found + [path for stage in stages for path in stage.files()]

    def check_free(self, overwrite: bool) -> None:
        """Raise `ConfigError` unless a new run may begin here; changes nothing."""
        if self.folder.exists() and not self.folder.is_dir():
            raise ConfigError(f"output={self} is a file; give a folder")
        if not overwrite and (held := self.files()):
            raise ConfigError(
                f"output={self} already holds a run ({held[0].name}): continue it with resume={self}, "
                "replace it with overwrite=true, or give another output"
            )

    def begin(self, config: DictConfig) -> None:
        """Create the folder, drop the files of the run that it replaces, and write the configuration."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # The new configuration first: where it cannot be written, the old run is still whole.
        old = [path for path in self.files() if path != self.config]
        self.save_config(config)
        for path in old:
            path.unlink()
        for folder in sorted({path.parent for path in old} - {self.folder}, key=lambda f: len(f.parts), reverse=True):
            if not any(folder.iterdir()):
                folder.rmdir()

    def save_config(self, config: DictConfig) -> None:
        """Write config.yaml."""
        write(self.config, OmegaConf.to_yaml(config, resolve=True).encode())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content on the CPU, tensors and plain values only.

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


def check_state(module: nn.Module, state: Mapping[str, Any], path: Path, of: str = "") -> None:
    """Raise `CheckpointError` unless `state` has exactly the tensors of `module`, in their shapes.

    Args:
        module: what the state is meant for; path: where it comes from; of: prefix of the names to look at.
    """
    wanted = {key: value for key, value in module.state_dict().items() if key.startswith(of)}
    found = {key: value for key, value in state.items() if key.startswith(of)}
    if any(key.startswith("sparse.") for key in wanted) and not any(key.startswith("sparse.") for key in found):
        raise CheckpointError(f"{path} has no gates but the configuration asks for some; use gate=none or init_from")
    if any(key.startswith("sparse.") for key in found) and not any(key.startswith("sparse.") for key in wanted):
        raise CheckpointError(f"{path} has gates but the configuration has gate=none; give the run's own gate")
    for key, value in wanted.items():
        if key not in found:
            raise CheckpointError(f"{path} is of another model: it lacks {key!r}; give the model it was trained with")
        if isinstance(value, Tensor) and value.shape != getattr(found[key], "shape", None):
            raise CheckpointError(
                f"{path} is of another model: {key!r} has shape {_shape(found[key])}, the model wants {_shape(value)}; "
                "give the model it was trained with"
            )
    for key in found.keys() - wanted.keys():
        raise CheckpointError(f"{path} is of another model: it holds {key!r}; give the model it was trained with")


def _shape(value: Any) -> list[int] | None:
    return list(value.shape) if isinstance(value, Tensor) else None


def load_weights(model: nn.Module, source: str | Path) -> Path:
    """Load only the model's weights, from a run folder, a checkpoint of one, or a plain saved state_dict.

    Returns:
        The file that was read.

    Raises:
        CheckpointError: there is no such file, it is damaged, or belongs to another model.
    """
    path = Path(source)
    path = Run(path).last if path.is_dir() else path
    content = load_checkpoint(path)
    if "state_dict" in content:
        state = {k.removeprefix("model."): v for k, v in content["state_dict"].items() if k.startswith("model.")}
    else:
        state = content
    check_state(model, state, path)
    model.load_state_dict(state)
    return path


class CheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoints, through `write` and `load_checkpoint`."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Serialised in memory first, since torch's own writer reports a full disk as a crash of itself."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write(Path(path), content.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """See the function of that name."""
        return load_checkpoint(Path(path))
