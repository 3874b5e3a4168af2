"""A report as values: a row for every layer, one for every group, totals; and the forms in which they can be read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from zerogate.report.terminal import StatusTable, renderable
from zerogate.report.text import markdown_table, pair, plain_table, share

HEAD = ("layer", "kind", "in", "out", "weights", "status", "reason")
GROUP_HEAD = ("group", "kind", "units", "made by", "read by")


@dataclass(frozen=True)
class Row:
    """One layer. Every pair of counts is (remaining, dense)."""

    layer: str
    """Its name in the model, or that of a parameter which no layer owns."""
    kind: str
    """The name of its class."""
    channels_in: tuple[int, int] | None
    """Input channels; None, as ``channels_out``, where it has parameters but is no convolution, linear layer or the like."""
    channels_out: tuple[int, int] | None
    """Output channels."""
    params: tuple[int, int]
    """Entries of its weight."""
    status: str
    """``kept`` (nothing removed yet), ``shrunk``, or ``refused`` (its output channels stay)."""
    reason: str
    """Why something of it stays; empty where nothing has to."""
    training_only: bool = False
    """Whether it runs in training mode only, as an auxiliary head does; it then has no MACs among `Report.macs`."""


@dataclass(frozen=True)
class GroupRow:
    """Units that are removed together with all they touch."""

    name: str
    """The group's."""
    kind: str
    """``channel``, ``head``, or ``weight``."""
    units: tuple[int, int]
    """(remaining, dense)."""
    producers: tuple[str, ...]
    """Layers whose outputs they are."""
    consumers: tuple[str, ...]
    """Layers that read them."""


@dataclass(frozen=True)
class TargetRow:
    """What a `Target` asks for, and what remains."""

    over: str
    """``params``, ``macs`` or ``gates``."""
    share: float
    """Share of the dense cost that may remain."""
    reached: float
    """Share of the dense cost that the deployed network has."""
    projected: int | None
    """How many gates the last projection changed; None before there was one."""


@dataclass(frozen=True)
class Report:
    """A table of layers with totals, and one of groups; ``str()`` prints the first, rich both.

    Every pair of counts is (remaining, dense)."""

    rows: tuple[Row, ...]
    """Every layer with a weight of two dimensions or more."""
    params: tuple[int, int]
    """All parameters."""
    macs: tuple[int, int]
    """Multiply-accumulates per example, in evaluation mode."""
    unit: str
    """What gates remove: ``channel``, ``head``, ``channel+head`` or ``weight``."""
    units: tuple[int, int]
    """How many of them there are in all."""
    groups: tuple[GroupRow, ...] = ()
    """Every group of these units."""
    keep_class: bool = True
    """Whether `Sparsified.compact` returns a module of the model's class, or a graph module."""
    target: TargetRow | None = None
    """None where the objective is no `Target`."""
    file_bytes: tuple[int, int] | None = None
    """With ``unit="weight"``, bytes that all parameters and buffers take in a file: as `zerogate.save` writes what
    compaction returns, and dense. The file's header comes on top of both; zeros that come from no gate do not count.
    None for other units."""

    def as_dict(self) -> dict[str, Any]:
        """All of it as values that JSON has: lists, where the attributes are tuples."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    def __str__(self) -> str:
        return "\n".join([*plain_table([HEAD, *self._layers()]), *self._summary()])

    def markdown(self) -> str:
        """The table of layers in Markdown, and the totals below."""
        cells = [[cell.replace("<", "&lt;") for cell in row] for row in self._layers()]
        return "\n\n".join([markdown_table(HEAD, cells), *self._summary()])

    def __rich__(self) -> object:
        """For ``rich.print(report)``: both tables, coloured by status."""
        tables = [StatusTable(HEAD, self._layers(), [row.status for row in self.rows])]
        if self.unit != "weight":  # else the groups are the layers
            cells = [
                (g.name, g.kind, pair(g.units), ", ".join(g.producers), ", ".join(g.consumers)) for g in self.groups
            ]
            statuses = ["shrunk" if g.units[0] < g.units[1] else "kept" for g in self.groups]
            tables.append(StatusTable(GROUP_HEAD, cells, statuses))
        return renderable(tables, self._summary())

    def _layers(self) -> list[tuple[str, ...]]:
        """The cells of the table of layers, below `HEAD`."""
        return [
            (
                row.layer,
                row.kind,
                pair(row.channels_in),
                pair(row.channels_out),
                pair(row.params),
                row.status,
                "; ".join(filter(None, [row.reason, "runs in training mode only" * row.training_only])),
            )
            for row in self.rows
        ]

    def _summary(self) -> list[str]:
        """The totals; and where no tensor changes its shape, what that is good for."""
        units = " and ".join(f"{kind}s" for kind in self.unit.split("+"))
        end = "" if self.keep_class else "; compact() gives a graph module"
        totals = f"{units} {share(self.units)}, parameters {share(self.params)}, MACs {share(self.macs)}{end}"
        lines = [totals + self._target()]
        if self.file_bytes is not None:
            remaining, dense = self.file_bytes
            lines.append(
                f"unstructured zeros shrink the file, its tensors to {remaining:,} bytes from {dense:,}, and not the time "
                "of dense kernels"
            )
        return lines

    def _target(self) -> str:
        """What the totals say of the target."""
        if self.target is None:
            return ""
        what = {"params": "parameters", "macs": "MACs", "gates": "gates"}[self.target.over]
        text = f"; target {self.target.share:.1%} of {what}"
        if self.target.projected is not None:
            gates = "gate" if self.target.projected == 1 else "gates"
            text += f", {self.target.projected:,} {gates} changed by projection"
        return text
