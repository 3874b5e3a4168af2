"""All gated weights times their gates, in few kernels.

`MaskWeights` computes what ``weight · z[units]`` would for each weight by itself, in one call for all of them and with less
kept for the backward pass, which is in closed form. For a second derivative it runs plain ops; where a compiler or a
transformation must see them, the caller does (see `must_stay_traceable`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zerogate.masking.placement import Placement
from zerogate.modules.device_tables import DeviceTables
from zerogate.modules.internals import foreach_copy_, foreach_mul, foreach_zero_

CHUNK = 16
"""Numbers that are summed side by side, before the chunks of a unit are summed one after the other. A unit whose numbers on
a weight are no multiple of it is filled up with zeros."""


@dataclass(frozen=True)
class WeightSlot:
    """One weight of a batch, and the slot of its products in the buffer that is summed by unit."""

    weight: int
    """The weight's number among all gated ones."""
    view: tuple[int, ...]
    """The shape in which its gates broadcast over it."""
    size: tuple[int, ...]
    """The weight's own shape; of one that its layer computes, that of the gates, which are broadcast over it."""
    stride: tuple[int, ...]
    """Strides of its products in the buffer: those of one channel follow each other."""
    offset: int
    """Where its products begin in the buffer."""


@dataclass(frozen=True)
class BatchTables:
    """The index tensors of a batch, on one device."""

    index: Tensor | None
    """The unit of each gate, in the order in which the weights use them, and ``units`` where there is no gate, int64; None
    where this is simply all units in order."""
    chunks: Tensor | None
    """The buffer's chunks by unit, int64; None where there is one product for each gate, in order."""
    bags: Tensor | None
    """Where the chunks of each unit begin, int64 [units]."""

    def to(self, device: torch.device) -> BatchTables:
        """The same tables on another device."""
        return BatchTables(*(x if x is None else x.to(device) for x in (self.index, self.chunks, self.bags)))


@dataclass(eq=False)
class WeightBatch:
    """Placements on different weights, multiplied at once.

    The gradient of z sums gradient · weight over everything but the gated dimension. The products are written into one
    buffer in which those of one channel of one weight follow each other, filled up with zeros to whole chunks; a bag of
    chunks for each unit then sums them all in one kernel, always in the same order.
    """

    slots: list[WeightSlot]
    lengths: list[int]
    """How many gates each weight has along its gated dimension."""
    units: int
    """How many gates there are in all."""
    ungated: bool
    """Whether some channels have no gate, and are multiplied by 1."""
    total: int
    """Length of the buffer."""
    on_cpu: BatchTables
    _tables: DeviceTables[BatchTables] = field(default_factory=DeviceTables)
    _buffers: DeviceTables[tuple[Tensor, list[Tensor]]] = field(default_factory=DeviceTables)

    def tables(self, device: torch.device) -> BatchTables:
        """The index tensors on a device."""
        return self._tables.get(device, lambda: self.on_cpu.to(device))

    def rows(self, z: Tensor) -> Tensor:
        """Gates z, [units], in the order in which the weights use them."""
        index = self.tables(z.device).index
        if index is None:
            return z
        return (torch.cat([z, z.new_ones(1)]) if self.ungated else z).index_select(0, index)

    def broadcast(self, rows: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """For every weight its gates, in its dtype and in the shape in which they broadcast over it."""
        by_type = {rows.dtype: rows.split(self.lengths)}
        for w in weights:
            if w.dtype not in by_type:
                by_type[w.dtype] = rows.to(w.dtype).split(self.lengths)
        return [by_type[w.dtype][i].view(x.view) for i, (w, x) in enumerate(zip(weights, self.slots, strict=True))]

    def sum_by_unit(self, products: Sequence[Tensor | None], z: Tensor) -> Tensor:
        """Sums the products gradient · weight for each gate, [units] in the dtype of z; None for a weight without any."""
        present = [p for p in products if p is not None]
        dtype = z.dtype
        for other in {p.dtype for p in present} - {dtype}:
            dtype = torch.promote_types(dtype, other)
        tables = self.tables(z.device)
        if tables.chunks is None:
            new = z.new_zeros if len(present) < len(products) else z.new_empty
            buffer, views = self._with_views(new(self.total, dtype=dtype))
        else:  # zeros that fill up chunks stay, so the buffer is kept

            def make() -> tuple[Tensor, list[Tensor]]:
                return self._with_views(torch.zeros(self.total, dtype=dtype, device=z.device))

            buffer, views = self._buffers.get((z.device, dtype), make)
            if len(present) < len(products):
                foreach_zero_([to for to, p in zip(views, products, strict=True) if p is None])
        foreach_copy_([to for to, p in zip(views, products, strict=True) if p is not None], present)
        if tables.chunks is not None and tables.bags is not None:
            buffer = torch.embedding_bag(buffer.view(-1, CHUNK), tables.chunks, tables.bags, mode=0)[0].sum(1)
        return buffer.to(z.dtype)

    def _with_views(self, buffer: Tensor) -> tuple[Tensor, list[Tensor]]:
        return buffer, [buffer.as_strided(x.size, x.stride, x.offset) for x in self.slots]


class MaskWeights(torch.autograd.Function):
    """All weights of a batch times their gates: ``apply(batch, recompute, z, *weights)``.

    ``recompute()``, where given, computes z once more for the backward pass; z is then not kept."""

    @staticmethod
    def forward(
        ctx: Any, batch: WeightBatch, recompute: Callable[[], Tensor] | None, z: Tensor, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        rows = batch.rows(z)
        masked = tuple(foreach_mul(weights, batch.broadcast(rows, weights)))
        ctx.batch, ctx.recompute = batch, recompute
        ctx.save_for_backward(*weights, *(() if recompute is not None else (z,) if rows is z else (z, rows)))
        ctx.set_materialize_grads(False)
        if not ctx.needs_input_grad[2]:
            ctx.mark_non_differentiable(
                *(m for m, needed in zip(masked, ctx.needs_input_grad[3:], strict=True) if not needed)
            )
        return masked

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        batch: WeightBatch = ctx.batch
        n = len(grads)
        saved = ctx.saved_tensors  # asked for once: checkpoints unpack nothing twice
        weights, gates = saved[:n], saved[n:]
        z = gates[0] if gates else ctx.recompute()
        if torch.is_grad_enabled():
            return None, None, *_plain_gradients(batch, z, weights, grads, ctx.needs_input_grad[2:])
        spread = batch.broadcast(gates[-1] if gates else batch.rows(z), weights)
        learns = [g is not None and needed for g, needed in zip(grads, ctx.needs_input_grad[3:], strict=True)]
        reaches_gates = [g is not None and ctx.needs_input_grad[2] for g in grads]
        left = [
            g for which in (learns, reaches_gates) for g, use in zip(grads, which, strict=True) if g is not None and use
        ]
        right = [*(s for s, use in zip(spread, learns, strict=True) if use)]
        right += [_conjugate(w) for w, use in zip(weights, reaches_gates, strict=True) if use]
        products = iter(foreach_mul(left, right) if left else ())
        of_weights = [next(products) if use else None for use in learns]
        of_gates = [_real(next(products)) if use else None for use in reaches_gates]
        return None, None, batch.sum_by_unit(of_gates, z) if ctx.needs_input_grad[2] else None, *of_weights


def _conjugate(x: Tensor) -> Tensor:
    return x.conj().resolve_conj() if x.is_complex() else x


def _real(x: Tensor) -> Tensor:
    """Gates are real: of a complex gradient by one, the real part counts."""
    return x.real if x.is_complex() else x


def _plain_gradients(
    batch: WeightBatch, z: Tensor, weights: Sequence[Tensor], grads: Sequence[Tensor | None], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of z and of every weight, in differentiable ops."""
    spread = batch.broadcast(batch.rows(z), weights)
    of_weights = [None if g is None or not use else g * s for g, s, use in zip(grads, spread, needed[1:], strict=True)]
    if not needed[0]:
        return [None, *of_weights]
    rows = []
    for g, w, s, length in zip(grads, weights, spread, batch.lengths, strict=True):
        rows.append(
            z.new_zeros(length) if g is None else _real(g * _conjugate(w)).sum_to_size(s.shape).flatten().to(z.dtype)
        )
    total, index = torch.cat(rows), batch.tables(z.device).index
    if index is not None:
        total = z.new_zeros(batch.units + batch.ungated).index_add(0, index, total)[: batch.units]
    return [total, *of_weights]


def weight_batches(placements: Sequence[Placement], names: Sequence[str], units: int) -> list[WeightBatch]:
    """Placements in batches on different weights: as many batches as there are placements on one weight at most.

    Args:
        names: of all gated weights, in the order of their numbers.
        units: how many gates there are."""
    waiting, batches = list(placements), []
    while waiting:
        first = {p.weight: p for p in reversed(waiting)}
        now = [p for p in waiting if first[p.weight] is p]
        waiting = [p for p in waiting if first[p.weight] is not p]
        batches.append(_batch(now, names, units))
    return batches


def _batch(placements: Sequence[Placement], names: Sequence[str], units: int) -> WeightBatch:
    slots, owners, firsts, lengths, start = [], [], [], [], 0
    single = all(p.dim is None for p in placements)
    for p in placements:
        shape = p.factor if p.computed else p.shape
        stride, each = _channel_strides(shape, p.dim)
        slots.append(WeightSlot(names.index(p.weight), p.view, shape, stride, start))
        if p.dim is None:
            start += len(p.units)
        else:
            channels = len(p.units)
            owners.append(p.units)
            firsts.append(torch.arange(channels) * each + start // CHUNK)
            lengths.append(torch.full((channels,), each))
            start += channels * each * CHUNK
    index = torch.cat([p.units for p in placements])
    straight = len(index) == units and bool((index == torch.arange(units)).all())
    by_unit = bags = None
    if not single or not straight:
        by_unit, bags = _bags(torch.cat(owners), torch.cat(firsts), torch.cat(lengths), units)
    return WeightBatch(
        slots,
        [len(p.units) for p in placements],
        units,
        ungated=bool((index < 0).any()),
        total=start,
        on_cpu=BatchTables(None if straight else torch.where(index < 0, units, index), by_unit, bags),
    )


def _channel_strides(shape: tuple[int, ...], dim: int | None) -> tuple[tuple[int, ...], int]:
    """Strides that lay a weight's numbers out channel by channel, each channel filled up to whole chunks, and the number of
    its chunks; or one number after the other, where there is no gated dimension."""
    each, stride = 1, [0] * len(shape)
    for d in reversed(range(len(shape))):
        if d != dim:
            stride[d], each = each, each * shape[d]
    if dim is not None:
        each = -(-each // CHUNK)
        stride[dim] = each * CHUNK
    return tuple(stride), each


def _bags(owners: Tensor, firsts: Tensor, lengths: Tensor, units: int) -> tuple[Tensor, Tensor]:
    """Chunks in the order of the units that own them, and where each unit's begin.

    Args:
        owners: the unit of each channel, or −1 where it has none: its chunks are left out.
        firsts: the first chunk of each channel.
        lengths: how many chunks each channel has; they follow each other.
        units: how many units there are.
    """
    order = owners.argsort(stable=True)[int((owners < 0).sum()) :]  # of channels: chunks are many more
    owners, firsts, lengths = owners[order], firsts[order], lengths[order]
    before = lengths.cumsum(0) - lengths
    chunks = (firsts - before).repeat_interleave(lengths) + torch.arange(int(lengths.sum()))
    counts = lengths.new_zeros(units).index_add(0, owners, lengths)
    return chunks, counts.cumsum(0) - counts
