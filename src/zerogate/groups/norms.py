"""Norms over the channels that are kept.

A norm that runs over all channels of its input would go on counting closed ones. While gates are attached, its input x is
therefore replaced, before it runs, by one whose statistics over all N channels are those of x over the open ones: with
weights w in [0, 1], n = Σw and c = √(N/n),

    RMSNorm:   x' = c·w·x                        mean(x'²) = Σ w x² / n        for w in {0, 1}
    LayerNorm: x' = c·(w·x + (1−w)·μ), μ = Σwx/n mean(x') = c·μ, var(x') = Σ w (x−μ)² / n

and its result is divided by c again, in its weight or, where that is no plain factor, in the result itself. Compaction
then only has to slice the norm.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.cutting.cut import cut
from zerogate.cutting.plan import make_plan
from zerogate.groups.graph.graph_model import ARGUMENTS, GraphModel
from zerogate.groups.trial.size_attributes import holders
from zerogate.modules.copies import deep_copy
from zerogate.modules.index import named_tensors
from zerogate.modules.internals import parameters_of
from zerogate.modules.run import KeepFloat64
from zerogate.structure import Norm, SizeAttribute, Structure


@dataclass
class KeepStatistics:
    """Pre-hook and hook of a norm. ``weights()`` gives w, [channels] or [examples, channels]."""

    norm: Norm
    weights: Callable[[], Tensor]

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        w = self.weights().to(x.dtype)
        scale = (w.shape[-1] / w.sum(-1, keepdim=True).clamp(min=1e-6)).sqrt()
        shape = [1] * x.ndim
        shape[self.norm.dim] = w.shape[-1]
        if w.ndim > 1:
            shape[0] = len(w)
        spread, factor = w.view(shape), scale.view([-1 if w.ndim > 1 and i == 0 else 1 for i in range(x.ndim)])
        x = self._filled(x, spread, factor)
        weight = parameters_of(module).get("weight")
        if weight is not None and w.ndim == 1 and not self.norm.outside:
            module.__dict__["weight"] = weight / scale
        return (x, *args[1:])

    def _filled(self, x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        if not self.norm.centred:
            return x * (w * scale)
        over = self.norm.over
        many = w.expand_as(x)
        mean = (x * w).sum(over, keepdim=True) / many.sum(over, keepdim=True).clamp(min=1e-6)
        return torch.lerp(mean, x, many) * scale


@dataclass
class RestoreScale:
    """Hook of a norm: takes the weight back, or where there is none the scale out of the result."""

    norm: Norm
    weights: Callable[[], Tensor]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor | None) -> Tensor | None:
        if module.__dict__.pop("weight", None) is not None or output is None:  # None: the forward broke off
            return None
        w = self.weights().to(output.dtype)
        scale = (w.sum(-1).clamp(min=1e-6) / w.shape[-1]).sqrt()
        bias = parameters_of(module).get("bias")
        scale = scale.view([-1, *[1] * (output.ndim - 1)]) if w.ndim > 1 else scale
        if bias is None:
            return output * scale
        shape = [1] * output.ndim
        shape[self.norm.dim] = len(bias)
        shift = bias.view(shape)
        return (output - shift) * scale + shift


def attach(module: nn.Module, norm: Norm, weights: Callable[[], Tensor]) -> list[Any]:
    """Hooks a norm, before and after; ``weights`` is asked at every forward."""
    return [
        module.register_forward_pre_hook(KeepStatistics(norm, weights)),
        module.register_forward_hook(RestoreScale(norm, weights), prepend=True, always_call=True),
    ]


def attach_kept(model: nn.Module, structure: Structure, kept: Tensor) -> None:
    """Hooks all norms of a plain copy for a fixed choice of units, bool [units]."""
    for norm in structure.norms:
        w = ((norm.labels < 0) | kept.cpu()[norm.labels]).to(next(model.parameters()).device)
        attach(model.get_submodule(norm.module), norm, _Constant(w))


@dataclass
class _Constant:
    value: Tensor

    def __call__(self) -> Tensor:
        return self.value


@dataclass
class Way:
    """How to take a norm over the kept channels: see `Norm`, and attributes that count them, with a place in a tuple or
    list."""

    centred: bool
    over: tuple[int, ...]
    outside: bool
    sizes: list[tuple[str, int | None]]

    def of(self, norm: Norm) -> Norm:
        """The norm, taken in this way."""
        return replace(norm, centred=self.centred, over=self.over, outside=self.outside)


def exact_rules(
    model: nn.Module, structure: Structure, graph: GraphModel | None = None
) -> Iterator[tuple[Norm, Way | None]]:
    """Every norm with the way to take it over kept channels, found by trying; None where no way is exact. Where there is
    a graph, it is what will be cut, and not the norm itself."""
    known: dict[Any, Way | None] = {}
    for norm in structure.norms:
        module = model.get_submodule(norm.module)
        tensors = [(k, tuple(v.shape)) for k, v in module.state_dict().items()]
        key = type(module), norm.dim, norm.shape, str(tensors), repr(module)
        if graph is not None or key not in known:
            known[key] = _found(module, norm, structure, graph)
        yield norm, known[key]


def _found(module: nn.Module, norm: Norm, structure: Structure, graph: GraphModel | None) -> Way | None:
    own = norm.labels[norm.labels >= 0].unique()
    kept = torch.ones(structure.units, dtype=torch.bool)
    kept[own[1::3] if len(own) > 1 else own] = False
    w = (norm.labels < 0) | kept[norm.labels]
    if not w.any():
        return None
    shape = [min(n, 3) for n in norm.shape]
    shape[norm.dim] = len(norm.labels)
    x = torch.rand(shape, dtype=torch.float64) + torch.linspace(-1, 1, shape[norm.dim], dtype=torch.float64).view(
        [-1 if i == len(shape) + norm.dim else 1 for i in range(len(shape))]
    )
    dense = _double(module)
    whole = dense if graph is None else graph.part(norm.module, deep_copy(dense))
    if whole is None:
        return None
    whole.double()
    inside, held = f"{norm.module}.", dict(named_tensors(whole))
    names = {n: n.removeprefix(inside) for n, _ in structure.axes if n.startswith(inside) or n in held}
    local = Structure(
        {(names[n], d): u for (n, d), u in structure.axes.items() if n in names},
        structure.groups,
        (),
        frozenset(),
        {},
        size_attributes=tuple(_repairs_within(structure, norm, whole)),
    )
    followed = {(r.attribute, r.entry) for r in local.size_attributes}
    counts = [c for c in holders(module, len(norm.labels)) if c not in followed] if graph is None else []
    for sizes in ([], counts, *([c] for c in counts if len(counts) > 1)):
        more = tuple(SizeAttribute("", *c, norm.labels[:, None]) for c in sizes)
        try:
            way = _exact_way(
                dense, whole, norm, replace(local, size_attributes=local.size_attributes + more), kept, x, w
            )
        except Exception:  # whatever the module does with an input of this size
            way = None
        if way is not None:
            return replace(way, sizes=sizes)
        if not counts:
            break
    return None


def _exact_way(
    dense: nn.Module, whole: nn.Module, norm: Norm, local: Structure, kept: Tensor, x: Tensor, w: Tensor
) -> Way | None:
    """The way in which the norm with gates gives for x what ``whole`` gives when it is cut, if there is one."""
    small = cut(deep_copy(whole), make_plan(whole, local, kept))
    chosen = w.nonzero().flatten()
    rest = tuple(range(1 - x.ndim, 0))
    with torch.no_grad(), KeepFloat64():
        wanted = small(x.index_select(norm.dim, chosen))
        for outside, centred, over in itertools.product((False, True), (True, False), ((norm.dim,), rest)):
            twin, way = deep_copy(dense), Way(centred, over, outside, [])
            attach(twin, way.of(norm), _Constant(w))
            got = twin(x).index_select(norm.dim, chosen)
            if got.shape == wanted.shape and (got - wanted).abs().max() <= 1e-12 * wanted.abs().max():
                return way
    return None


def _repairs_within(structure: Structure, norm: Norm, whole: nn.Module) -> Iterator[SizeAttribute]:
    for repair in structure.size_attributes:
        if repair.module == norm.module:
            yield replace(repair, module="")
        elif isinstance(whole, GraphModel) and repair.attribute in vars(whole.get_submodule(ARGUMENTS)):
            yield repair


def _double(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode on the CPU, in float64, with random weights."""
    twin = deep_copy(module)
    on_meta = any(x.is_meta for x in (*twin.parameters(), *twin.buffers()))
    twin = (twin.to_empty(device="cpu") if on_meta else twin.cpu()).double().eval()
    generator = torch.Generator().manual_seed(0)
    for p in twin.parameters():
        p.data = torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.5
    return twin
