"""What was found and what is left, layer by layer, as text, Markdown or a dict."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from zerogate.groups import Axis, Call, Structure
    from zerogate.masking import Sparsified


@dataclass(frozen=True)
class Row:
    """One layer. Counts are (left, dense); channels in and out, parameters of its weight."""

    layer: str
    kind: str
    channels_in: tuple[int, int]
    channels_out: tuple[int, int]
    params: tuple[int, int]
    status: str
    """``kept`` (nothing removed yet), ``shrunk``, or ``refused`` (its output channels stay)."""
    reason: str


@dataclass(frozen=True)
class Report:
    """A table of layers with totals; ``str()`` prints it."""

    rows: tuple[Row, ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    unit: str
    units: tuple[int, int]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def _cells(self) -> list[tuple[str, ...]]:
        def pair(values: tuple[int, int]) -> str:
            return f"{values[0]:,}/{values[1]:,}"

        head = ("layer", "kind", "in", "out", "weights", "status", "reason")
        body = [
            (r.layer, r.kind, pair(r.channels_in), pair(r.channels_out), pair(r.params), r.status, r.reason)
            for r in self.rows
        ]
        return [head, *body]

    def _totals(self) -> str:
        def share(left: int, dense: int) -> str:
            return f"{left:,} of {dense:,} ({left / max(dense, 1):.1%})"

        return f"{self.unit}s {share(*self.units)}, parameters {share(*self.params)}, MACs {share(*self.macs)}"

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([*lines, self._totals()])

    def markdown(self) -> str:
        head, *body = self._cells()
        lines = [f"| {' | '.join(row)} |" for row in body]
        return "\n".join([f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines, "", self._totals()])


def make_report(sparse: Sparsified) -> Report:
    """See `Sparsified.report`."""
    structure, kept = sparse.structure, sparse.kept().cpu()
    modules = dict(sparse.model.named_modules())
    parameters = dict(sparse.model.named_parameters())
    channel = sparse.unit == "channel"

    def count(axis: Axis | None, size: int) -> tuple[int, int]:
        units = structure.axes.get(axis) if axis is not None and channel else None
        return (size if units is None else int(((units < 0) | kept[units]).sum()), size)

    gated = {mask.weight: mask.units for mask in sparse.masks}
    rows: dict[str, Row] = {}
    for c in structure.calls:
        if not c.weight:
            continue
        shape, numel = parameters[c.weight].shape, parameters[c.weight].numel()
        ins = count(c.consumes, shape[c.consumes[1]]) if c.consumes else None
        outs = count(c.produces, shape[c.produces[1]]) if c.produces else (shape[0], shape[0])
        if channel:
            left_in, dense_in = ins or (1, 1)
            left = numel * left_in * outs[0] // (dense_in * outs[1])
            free, reason = c.produces in structure.axes, _why_channels_stay(structure, c)
        else:
            free = c.weight in gated
            left = int(torch.count_nonzero(kept[gated[c.weight]])) if free else numel
            reason = "" if free else "excluded"
        status = "shrunk" if left < numel else "kept" if free else "refused"
        reason = "" if status == "kept" else reason
        rows[c.weight] = Row(c.layer, type(modules[c.layer]).__name__, ins or outs, outs, (left, numel), status, reason)
    cost, dense = sparse.cost(hard=True), sparse.dense_cost
    return Report(
        tuple(rows.values()),
        (cost.params, dense.params),
        (cost.macs, dense.macs),
        sparse.unit,
        (int(kept.sum()), len(kept)),
    )


def _why_channels_stay(structure: Structure, c: Call) -> str:
    """Why output channels of a layer, or some of them, cannot be removed; nothing where all can."""
    if c.produces is None:
        return "its channels are not followed"
    if c.produces in structure.refused:
        return structure.refused[c.produces]
    if c.produces in structure.axes:
        return ""
    return "its input channels stay" if c.consumes is None else "nothing here can be removed"
