"""`Mask`: a ticket as a value, which weights are kept and which are exactly zero."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zerogate.errors import CheckpointError, ZerogateError, first_line
from zerogate.files import safetensors, write
from zerogate.storage.encodings import packed, unpacked

_KEY, _VERSION = "zerogate_mask", 1


class HasMask(Protocol):
    """A gated model, which knows its ticket."""

    def mask(self) -> Mask:
        """What the deployed mask lets through now."""


class Mask(Mapping[str, Tensor]):
    """Which entries of which weights are kept: by parameter name, a bool tensor of the parameter's shape.

    A value: it is never changed, and equal to another mask of the same entries. Weights that it does not name are kept
    whole. ``a & b`` keeps what both keep, ``a | b`` what either keeps; so masks of different layers compose by ``&``.

    Args:
        tensors: bool tensors, or tensors of zeros and ones, by the name of the parameter. They are copied to the CPU.

    Raises `ZerogateError` for names that are not strings and for values other than 0 and 1.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise ZerogateError(
                    f"a mask has a tensor of zeros and ones for each name of a parameter, got {type(tensor).__name__} for "
                    f"{name!r}"
                )
            values = tensor.detach().cpu()
            kept = values != 0
            if values.dtype != torch.bool and not torch.equal(kept.to(values.dtype), values):
                raise ZerogateError(f"a mask holds zeros and ones only, and {name} holds other values; pass {name} > 0")
            self._tensors[name] = kept.contiguous()

    @classmethod
    def of(cls, sparse: HasMask) -> Mask:
        """The ticket of a gated model; see `Sparsified.mask`."""
        return sparse.mask()

    @classmethod
    def of_zeros(cls, model: nn.Module) -> Mask:
        """The entries that are not exactly zero, of a plain module's parameters with two or more dimensions."""
        return cls({name: p.detach() != 0 for name, p in model.named_parameters() if p.ndim > 1})

    # a mapping

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].clone()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Mask):
            return NotImplemented
        return self.keys() == other.keys() and all(torch.equal(t, other._tensors[n]) for n, t in self._tensors.items())

    __hash__ = None  # type: ignore[assignment]

    # counting

    @property
    def total(self) -> int:
        """Entries of all weights that the mask names."""
        return sum(t.numel() for t in self._tensors.values())

    @property
    def remaining(self) -> int:
        """How many of them are kept."""
        return sum(int(t.sum()) for t in self._tensors.values())

    @property
    def density(self) -> float:
        """Share of these entries that is kept; 1 for a mask of nothing."""
        return self.remaining / self.total if self.total else 1.0

    def densities(self) -> dict[str, float]:
        """Density of each weight."""
        return {name: int(t.sum()) / max(t.numel(), 1) for name, t in self._tensors.items()}

    def __repr__(self) -> str:
        return f"Mask({self.remaining:,} of {self.total:,} kept in {len(self)} weights, density {self.density:.4f})"

    def __str__(self) -> str:
        width = max((len(name) for name in self), default=0)
        shapes = {name: "×".join(map(str, t.shape)) for name, t in self._tensors.items()}
        wide = max(map(len, shapes.values()), default=0)
        number = len(f"{self.total:,}")
        lines = [
            f"{name:{width}}  {shapes[name]:>{wide}}  {int(t.sum()):>{number},} of {t.numel():>{number},}  {share:7.2%}"
            for (name, t), share in zip(self._tensors.items(), self.densities().values(), strict=True)
        ]
        return "\n".join([*lines, f"{self.remaining:,} of {self.total:,} weights kept, density {self.density:.2%}"])

    # combining

    def __and__(self, other: Mask) -> Mask:
        return self._with(other, {**other._tensors, **self._tensors}, torch.logical_and)

    def __or__(self, other: Mask) -> Mask:
        return self._with(other, {n: t for n, t in self._tensors.items() if n in other._tensors}, torch.logical_or)

    def _with(self, other: Any, tensors: dict[str, Tensor], combine: Any) -> Mask:
        if not isinstance(other, Mask):
            return NotImplemented
        for name in self.keys() & other.keys():
            mine, its = self._tensors[name].shape, other._tensors[name].shape
            if mine != its:
                raise ZerogateError(
                    f"these masks are of different architectures: {name} is {tuple(mine)} in one, {tuple(its)} in the other"
                )
            tensors[name] = combine(self._tensors[name], other._tensors[name])
        return Mask(tensors)

    def shuffled(self, generator: torch.Generator | None = None) -> Mask:
        """A random mask that keeps as many entries of every weight as this one."""
        mixed = {}
        for name, t in self._tensors.items():
            mixed[name] = t.flatten()[torch.randperm(t.numel(), generator=generator)].view(t.shape)
        return Mask(mixed)

    # on a model

    def check(self, model: nn.Module) -> None:
        """Raises `ZerogateError` unless the model has parameters of these names and shapes."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name, t in self._tensors.items():
            if name not in parameters:
                raise ZerogateError(
                    f"this mask is of another architecture: {type(model).__name__} has no parameter {name!r}; it has "
                    f"{', '.join([*parameters][:4])}, …"
                )
            if parameters[name].shape != t.shape:
                raise ZerogateError(
                    f"this mask is of another architecture: {name} is {tuple(t.shape)} in the mask and "
                    f"{tuple(parameters[name].shape)} in this {type(model).__name__}"
                )

    def apply(self, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> Held:
        """Sets what is not kept to zero, in place, and holds it there while the model is trained: its gradients are
        zeroed, and with an optimizer that brings momentum along, its weights again after each step of it.

        It holds these parameters, not those of copies or of a model that is made anew. Returns a handle; after its
        ``remove()`` all weights learn again. Raises `ZerogateError` as `check` does."""
        self.check(model)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        return Held({parameters[name]: ~t for name, t in self._tensors.items()}, optimizer)

    # on disk

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Writes a safetensors file, eight entries to a byte.

        Raises `ZerogateError` for a path that exists (unless ``overwrite``) or cannot be written."""
        path = Path(path)
        if path.exists() and (path.is_dir() or not overwrite):
            raise ZerogateError(f"{path} exists; choose another path or pass overwrite=True")
        header = {"version": _VERSION, "shapes": {name: list(t.shape) for name, t in self._tensors.items()}}
        bits = {name: packed(t.flatten()) for name, t in self._tensors.items()}
        try:
            write(path, safetensors().torch.save(bits, metadata={_KEY: json.dumps(header)}))
        except OSError as error:
            raise ZerogateError(f"cannot write {path}: {error.strerror or error}; give a folder with space") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Mask:
        """The mask that `save` wrote.

        Raises `CheckpointError` where there is no such file, or it is damaged or something else."""
        try:
            with safetensors().safe_open(os.fspath(path), "pt") as file:
                header = json.loads((file.metadata() or {})[_KEY])
                bits = {name: file.get_tensor(name) for name in header["shapes"]}
                shapes = {name: torch.Size(shape) for name, shape in header["shapes"].items()}
        except ZerogateError:
            raise
        except Exception as error:  # whatever a damaged file, or one of something else, makes of it
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise CheckpointError(f"{path} cannot be read as a mask ({reason}); give a file of Mask.save") from error
        if header.get("version") != _VERSION:
            raise CheckpointError(
                f"{path} is a mask of version {header.get('version')}, this zerogate reads {_VERSION}"
            )
        tensors = {}
        for name, shape in shapes.items():
            if bits[name].dtype != torch.uint8 or bits[name].shape != (-(-shape.numel() // 8),):
                raise CheckpointError(f"{path} is damaged: {name} of shape {tuple(shape)} is not whole")
            tensors[name] = unpacked(bits[name])[: shape.numel()].view(shape)
        return cls(tensors)


class Held:
    """Weights that are held at zero; made by `Mask.apply`."""

    def __init__(self, closed: dict[nn.Parameter, Tensor], optimizer: torch.optim.Optimizer | None) -> None:
        self._closed = {p: at.to(p.device) for p, at in closed.items()}
        self.zero()
        self._handles: list[Any] = [
            p.register_hook(lambda grad, at=at: grad.masked_fill(at.to(grad.device), 0))
            for p, at in self._closed.items()
            if p.requires_grad
        ]
        if optimizer is not None:
            self._handles.append(optimizer.register_step_post_hook(lambda *_: self.zero()))

    @torch.no_grad()
    def zero(self) -> None:
        """Sets the weights that are not kept to zero."""
        for p, at in self._closed.items():
            p.masked_fill_(at.to(p.device), 0)

    def remove(self) -> None:
        """Lets all weights learn again."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
