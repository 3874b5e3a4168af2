"""Gates in few kernels: the draw, the open probability and all masked weights, with derivatives in closed form.

Each function here computes what a line or two of plain torch would, in fewer calls and with less kept for the backward
pass. Where that line must be seen by something else (`torch.compile`, `torch.func`, forward mode, a second derivative), the
line itself runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zerogate.masking.placement import Placement
from zerogate.modules.internals import foreach_copy_, foreach_mul, foreach_zero_

Backward = Callable[[Tensor], Tensor]

CHUNK = 16  # numbers that are summed side by side


class Elementwise(torch.autograd.Function):
    """A function of the logits, element by element, whose value is known already.

    Called as ``apply(logits, value, saved, backward, plain)``: ``backward(gradient, *saved)`` is its closed form;
    ``plain(logits, *saved)`` computes the value again in differentiable ops, for second derivatives.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, saved: Sequence[Tensor], backward: Any, plain: Any) -> Tensor:
        ctx.save_for_backward(*saved)
        ctx.logits, ctx.formula, ctx.plain = logits, backward, plain
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if torch.is_grad_enabled():
            found = torch.autograd.grad(ctx.plain(ctx.logits, *ctx.saved_tensors), ctx.logits, grad, create_graph=True)
            return found[0], None, None, None, None
        return ctx.formula(grad, *ctx.saved_tensors), None, None, None, None


@dataclass
class Layer:
    """Where gates lie on one weight: its number, how z is broadcast on it, and the place of its products in the sum."""

    weight: int
    view: tuple[int, ...]
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(eq=False)
class Round:
    """Placements on different weights, multiplied at once.

    The gradient of z sums gradient · weight over everything but the gated dimension. The products are written into one
    buffer in which those of one channel of one weight follow each other, filled up with zeros to whole chunks; a bag of
    chunks for each unit then sums them all in one kernel, always in the same order.
    """

    layers: list[Layer]
    lengths: list[int]
    units: int
    index: Tensor | None  # None: the gates themselves, in order
    ungated: bool  # some channels have no gate: index `units`
    chunks: Tensor | None  # chunks by unit; None: one product for each gate, in order
    bags: Tensor | None
    total: int
    _places: dict[tuple[torch.device, torch.dtype], tuple[Tensor, list[Tensor]]] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_places": {}}

    def to(self, device: torch.device) -> None:
        self.index, self.chunks, self.bags = (
            x if x is None else x.to(device) for x in (self.index, self.chunks, self.bags)
        )

    def rows(self, z: Tensor) -> Tensor:
        """Gates in the order in which weights use them."""
        if self.index is None:
            return z
        return (torch.cat([z, z.new_ones(1)]) if self.ungated else z).index_select(0, self.index)

    def spread(self, rows: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """For every weight its gates, as they broadcast."""
        by_type = {rows.dtype: rows.split(self.lengths)}
        for w in weights:
            if w.dtype not in by_type:
                by_type[w.dtype] = rows.to(w.dtype).split(self.lengths)
        return [by_type[w.dtype][i].view(x.view) for i, (w, x) in enumerate(zip(weights, self.layers, strict=True))]

    def gathered(self, products: Sequence[Tensor | None], z: Tensor) -> Tensor:
        """Sums the products gradient · weight for each gate, [units]."""
        found = [p for p in products if p is not None]
        kind = z.dtype
        for other in {p.dtype for p in found} - {kind}:
            kind = torch.promote_types(kind, other)
        if self.chunks is None:
            buffer = (
                z.new_zeros(self.total, dtype=kind)
                if len(found) < len(products)
                else z.new_empty(self.total, dtype=kind)
            )
            places = [buffer.as_strided(x.size, x.stride, x.offset) for x in self.layers]
        else:
            key = z.device, kind
            if key not in self._places:
                with torch.inference_mode(False):
                    buffer = torch.zeros(self.total, dtype=kind, device=z.device)
                    self._places[key] = (buffer, [buffer.as_strided(x.size, x.stride, x.offset) for x in self.layers])
            buffer, places = self._places[key]
            if len(found) < len(products):
                foreach_zero_([to for to, p in zip(places, products, strict=True) if p is None])
        foreach_copy_([to for to, p in zip(places, products, strict=True) if p is not None], found)
        if self.chunks is not None and self.bags is not None:
            buffer = torch.embedding_bag(buffer.view(-1, CHUNK), self.chunks, self.bags, mode=0)[0].sum(1)
        return buffer.to(z.dtype)


class MaskWeights(torch.autograd.Function):
    """All weights of a `Round` times their gates: ``apply(round, again, z, *weights)``.

    ``again(z)``, where given, computes z once more, which then is not kept."""

    @staticmethod
    def forward(ctx: Any, lies: Round, again: Callable[[], Tensor] | None, z: Tensor, *weights: Tensor) -> Any:
        rows = lies.rows(z)
        masked = tuple(foreach_mul(weights, lies.spread(rows, weights)))
        ctx.lies, ctx.again = lies, again
        ctx.save_for_backward(*weights, *(() if again is not None else (z,) if rows is z else (z, rows)))
        ctx.set_materialize_grads(False)
        if not ctx.needs_input_grad[2]:
            ctx.mark_non_differentiable(
                *(m for m, needed in zip(masked, ctx.needs_input_grad[3:], strict=True) if not needed)
            )
        return masked

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        lies: Round = ctx.lies
        n = len(grads)
        saved = ctx.saved_tensors  # asked for once: checkpoints unpack nothing twice
        weights, gates = saved[:n], saved[n:]
        z = gates[0] if gates else ctx.again()
        if torch.is_grad_enabled():
            return None, None, *_plain_gradients(lies, z, weights, grads, ctx.needs_input_grad[2:])
        spread = lies.spread(gates[-1] if gates else lies.rows(z), weights)
        learns = [g is not None and needed for g, needed in zip(grads, ctx.needs_input_grad[3:], strict=True)]
        meets = [g is not None and ctx.needs_input_grad[2] for g in grads]
        left: Any = [g for which in (learns, meets) for g, use in zip(grads, which, strict=True) if use]
        right: Any = [*(s for s, use in zip(spread, learns, strict=True) if use)]
        right += [w for w, use in zip(weights, meets, strict=True) if use]
        products = iter(foreach_mul(left, right) if left else ())
        of_weights = [next(products) if use else None for use in learns]
        of_gates = [next(products) if use else None for use in meets]
        return None, None, lies.gathered(of_gates, z) if ctx.needs_input_grad[2] else None, *of_weights


def _plain_gradients(
    lies: Round, z: Tensor, weights: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    spread = lies.spread(lies.rows(z), weights)
    found = [None if g is None or not use else g * s for g, s, use in zip(grads, spread, needed[1:], strict=True)]
    if not needed[0]:
        return [None, *found]
    rows = []
    for g, w, s, length in zip(grads, weights, spread, lies.lengths, strict=True):
        rows.append(z.new_zeros(length) if g is None else (g * w).sum_to_size(s.shape).flatten().to(z.dtype))
    total = torch.cat(rows)
    if lies.index is not None:
        total = z.new_zeros(lies.units + lies.ungated).index_add(0, lies.index, total)[: lies.units]
    return [total, *found]


def rounds(
    placements: Sequence[Placement], names: Sequence[str], shapes: dict[str, torch.Size], units: int
) -> list[Round]:
    """Placements in as few rounds as there are on one weight."""
    left, found = list(placements), []
    while left:
        first = {p.weight: p for p in reversed(left)}
        now = [p for p in left if first[p.weight] is p]
        left = [p for p in left if first[p.weight] is not p]
        found.append(_round(now, names, shapes, units))
    return found


def _round(placements: Sequence[Placement], names: Sequence[str], shapes: dict[str, torch.Size], units: int) -> Round:
    layers, chunks, owners, start = [], [], [], 0
    single = all(-1 not in p.view for p in placements)
    for p in placements:
        shape = tuple(shapes[p.weight])
        along = None if -1 not in p.view else p.view.index(-1)
        each, stride = 1, [0] * len(shape)
        for d in reversed(range(len(shape))):
            if d != along:
                stride[d], each = each, each * shape[d]
        if along is not None:
            each = -(-each // CHUNK)
            stride[along] = each * CHUNK
            owners.append(p.units.repeat_interleave(each))
            chunks.append(torch.arange(len(owners[-1])) + start // CHUNK)
            layers.append(Layer(names.index(p.weight), p.view, shape, tuple(stride), start))
            start += len(owners[-1]) * CHUNK
        else:
            layers.append(Layer(names.index(p.weight), p.view, shape, tuple(stride), start))
            start += len(p.units)
    index = torch.cat([p.units for p in placements])
    ungated = bool((index < 0).any())
    straight = len(index) == units and bool((index == torch.arange(units)).all())
    by_unit = bags = None
    if not single or not straight:
        owner = torch.cat(owners)
        order = owner.argsort(stable=True)[int((owner < 0).sum()) :]
        by_unit = torch.cat(chunks)[order]
        counts = torch.bincount(owner[order], minlength=units)
        bags = torch.cat([counts.new_zeros(1), counts.cumsum(0)[:-1]])
    return Round(
        layers,
        [len(p.units) for p in placements],
        units,
        None if straight else torch.where(index < 0, units, index),
        ungated,
        by_unit,
        bags,
        start,
    )
