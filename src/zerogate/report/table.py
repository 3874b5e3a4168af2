"""What was found and what is left, layer by layer, as text, Markdown, a dict or a table in the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from zerogate.modules.index import owner_of, tensor_bytes
from zerogate.objectives.target import Target
from zerogate.storage.encodings import header_bytes, smallest

if TYPE_CHECKING:
    from zerogate.sparsified import Sparsified
    from zerogate.structure import Axis, LayerCall, Structure

_COLOURS = {"kept": "default", "shrunk": "green", "refused": "yellow"}


@dataclass(frozen=True)
class Row:
    """One layer. Counts are (left, dense); channels in and out, parameters of its weight."""

    layer: str
    kind: str
    channels_in: tuple[int, int] | None
    """None, as ``channels_out``, where it has parameters but is no convolution, linear layer or the like."""
    channels_out: tuple[int, int] | None
    params: tuple[int, int]
    status: str
    """``kept`` (nothing removed yet), ``shrunk``, or ``refused`` (its output channels stay)."""
    reason: str


@dataclass(frozen=True)
class GroupRow:
    """Units that are removed together with all they touch; counts are (left, dense)."""

    name: str
    kind: str
    """``channel``, ``head``, or ``weight``."""
    units: tuple[int, int]
    producers: tuple[str, ...]
    consumers: tuple[str, ...]


@dataclass(frozen=True)
class TargetRow:
    """What a `Target` asks for and what is left."""

    over: str
    """``params`` or ``macs``."""
    share: float
    """Of the dense cost, as asked for."""
    reached: float
    """Of the dense cost, as deployed."""
    projected: int | None
    """How many gates the last projection changed; None before there was one."""


@dataclass(frozen=True)
class Report:
    """A table of layers with totals, and one of groups; ``str()`` prints the first, rich both."""

    rows: tuple[Row, ...]
    params: tuple[int, int]
    macs: tuple[int, int]
    unit: str
    units: tuple[int, int]
    groups: tuple[GroupRow, ...] = ()
    keep_class: bool = True
    """Whether `Sparsified.compact` returns a module of the model's class, or a graph module."""
    target: TargetRow | None = None
    """None where the objective is no `Target`."""
    file_bytes: tuple[int, int] | None = None
    """With ``unit="weight"``, bytes that all parameters and buffers take in a file: as `zerogate.save` writes what
    compaction returns, and dense. The file's header comes on top of both; zeros that no gate has made do not count.
    None for other units."""

    def as_dict(self) -> dict[str, Any]:
        """All of it as values that JSON has: lists, where the attributes are tuples."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    def _cells(self) -> list[tuple[str, ...]]:
        head = ("layer", "kind", "in", "out", "weights", "status", "reason")
        body = [
            (r.layer, r.kind, _pair(r.channels_in), _pair(r.channels_out), _pair(r.params), r.status, r.reason)
            for r in self.rows
        ]
        return [head, *body]

    def _totals(self) -> str:
        def share(left: int, dense: int) -> str:
            return f"{left:,} of {dense:,} ({left / max(dense, 1):.1%})"

        units = " and ".join(f"{kind}s" for kind in self.unit.split("+"))
        end = "" if self.keep_class else "; compact() gives a graph module"
        if self.target is not None:
            what = {"params": "parameters", "macs": "MACs", "gates": "gates"}[self.target.over]
            end += f"; target {self.target.share:.1%} of {what}"
            if self.target.projected is not None:
                gates = "gate" if self.target.projected == 1 else "gates"
                end += f", {self.target.projected:,} {gates} changed by projection"
        return f"{units} {share(*self.units)}, parameters {share(*self.params)}, MACs {share(*self.macs)}{end}"

    def _last(self) -> list[str]:
        """The totals, and where nothing gets a new shape, what that is good for."""
        if self.file_bytes is None:
            return [self._totals()]
        left, dense = self.file_bytes
        return [
            self._totals(),
            f"unstructured zeros shrink the file, its tensors to {left:,} bytes from {dense:,}, and not the time of "
            "dense kernels",
        ]

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in cells]
        return "\n".join([*lines, *self._last()])

    def markdown(self) -> str:
        head, *body = ([cell.replace("|", "\\|").replace("<", "&lt;") for cell in row] for row in self._cells())
        lines = [f"| {' | '.join(row)} |" for row in body]
        last = [text for line in self._last() for text in ("", line)]
        return "\n".join([f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *lines, *last])

    def __rich__(self) -> Any:
        """For ``rich.print(report)``: both tables, coloured by status."""
        from rich import box
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        def table(head: tuple[str, ...], body: list[tuple[str, ...]], styles: list[str]) -> Table:
            made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for name in head:
                counts = name in ("in", "out", "weights", "units")
                made.add_column(name, justify="right" if counts else "left", no_wrap=counts, overflow="fold")
            for row, style in zip(body, styles, strict=True):
                made.add_row(*(Text(cell, style=style) for cell in row))  # text: brackets in it are no markup
            return made

        head, *body = self._cells()
        parts: list[Any] = [table(head, body, [_COLOURS[row.status] for row in self.rows])]
        if self.unit != "weight":
            cells = [
                (g.name, g.kind, _pair(g.units), ", ".join(g.producers), ", ".join(g.consumers)) for g in self.groups
            ]
            styles = [_COLOURS["shrunk" if g.units[0] < g.units[1] else "kept"] for g in self.groups]
            parts.append(table(("group", "kind", "units", "made by", "read by"), list(cells), styles))
        return Group(*parts, *(Text(line, style="bold") for line in self._last()))


def make_report(sparse: Sparsified) -> Report:
    """See `Sparsified.report`."""
    structure, kept = sparse.structure, sparse.kept().cpu()
    modules = dict(sparse.model.named_modules())
    parameters = dict(sparse.model.named_parameters())
    by_channel = sparse.unit != "weight"
    gated = {placement.weight: placement.units for placement in sparse.placements}

    def count(axis: Axis | None, size: int) -> tuple[int, int]:
        units = structure.axes.get(axis) if axis is not None and by_channel else None
        return (size if units is None else int(((units < 0) | kept[units]).sum()), size)

    def left(name: str) -> tuple[int, int]:
        """Entries of a parameter: (left, dense)."""
        p = parameters[name]
        if not by_channel:
            return (int(torch.count_nonzero(kept[gated[name]])) if name in gated else p.numel(), p.numel())
        number = 1
        for dim, size in enumerate(p.shape):
            number *= count((name, dim), size)[0]
        return number, p.numel()

    rows: dict[str, Row] = {}
    for c in structure.calls:
        if not c.weight:
            continue
        shape = parameters[c.weight].shape
        ins = count(c.consumes, shape[c.consumes[1]]) if c.consumes else None
        outs = count(c.produces, shape[c.produces[1]]) if c.produces else (shape[0], shape[0])
        if by_channel:
            free, reason = c.produces in structure.axes, _why_channels_stay(structure, c)
        else:
            free = c.weight in gated
            reason = "" if free else "excluded"
        status, reason = _status(left(c.weight), free, reason)
        rows[c.weight] = Row(
            c.layer, type(modules[c.layer]).__name__, ins or outs, outs, left(c.weight), status, reason
        )
    others: dict[str, list[str]] = {}  # layer → its parameters that no call has used
    for name, p in parameters.items():
        if p.ndim > 1 and name not in rows:
            owner = owner_of(name)
            others.setdefault(name if any(modules[owner].children()) or not owner else owner, []).append(name)
    for layer, names in others.items():
        axes = [(name, dim) for name in names for dim in range(parameters[name].ndim)]
        counts = [left(name) for name in names]
        total = sum(n for n, _ in counts), sum(n for _, n in counts)
        free = by_channel and any(axis in structure.axes for axis in axes)
        owner = modules[owner_of(names[0])]
        status, reason = _status(total, free, _why_not_followed(structure, layer, names))
        rows[layer] = Row(layer, type(owner).__name__, None, None, total, status, reason)
    cost, dense = sparse.cost(hard=True), sparse.dense_cost
    groups = (
        GroupRow(
            g.name, g.kind if by_channel else "weight", (int(kept[g.slice].sum()), g.units), g.producers, g.consumers
        )
        for g in sparse.groups
    )
    return Report(
        tuple(rows.values()),
        (cost.params, dense.params),
        (cost.macs, dense.macs),
        sparse.unit,
        (int(kept.sum()), len(kept)),
        tuple(groups),
        sparse.keep_class,
        target_row(sparse),
        None if by_channel else _file_bytes(sparse, {name: left(name)[0] for name in gated}),
    )


def _file_bytes(sparse: Sparsified, nonzeros: dict[str, int]) -> tuple[int, int]:
    """See `Report.file_bytes`; ``nonzeros``: of each gated weight."""
    dense = left = tensor_bytes(sparse.model)
    for name, count in nonzeros.items():
        p = sparse.model.get_parameter(name)
        _, size = smallest(p.numel(), count, p.element_size(), header_bytes(name))
        left -= p.numel() * p.element_size() - size
    return left, dense


def target_row(sparse: Sparsified) -> TargetRow | None:
    """The handle's target and what is left, or None where it has no target."""
    target = sparse.objective
    if not isinstance(target, Target):
        return None
    reached = target.left(sparse.is_open(), sparse.cost_model) / target.dense(sparse.cost_model)
    return TargetRow(target.over, target.share, reached, target.projected)


def _pair(values: tuple[int, int] | None) -> str:
    return "" if values is None else f"{values[0]:,}/{values[1]:,}"


def _status(params: tuple[int, int], free: bool, reason: str) -> tuple[str, str]:
    """(status, reason): a reason is given where something stays."""
    status = "shrunk" if params[0] < params[1] else "kept" if free else "refused"
    return status, "" if status == "kept" else reason


def _why_not_followed(structure: Structure, layer: str, names: list[str]) -> str:
    """Why parameters that no layer's call has used stay."""
    known = [structure.reasons[name] for name in names if name in structure.reasons]
    known += [reason for (name, _), reason in structure.refused.items() if name in names]
    if known or any(name in names for name, _ in structure.axes):
        return known[0] if known else ""
    if layer in names:
        return "not read on the example inputs, or not followed"
    seen = {*structure.reasons, *(name for name, _ in [*structure.axes, *structure.refused])}
    seen |= {c.weight for c in structure.calls}
    return "not followed" if any(owner_of(name) == layer for name in seen) else "not run on the example inputs"


def _why_channels_stay(structure: Structure, c: LayerCall) -> str:
    """Why output channels of a layer, or some of them, cannot be removed; nothing where all can."""
    if c.produces is None:
        return "its channels are not followed"
    if c.produces in structure.refused:
        return structure.refused[c.produces]
    if c.produces in structure.axes:
        return ""
    return "its input channels stay" if c.consumes is None else "nothing here can be removed"
