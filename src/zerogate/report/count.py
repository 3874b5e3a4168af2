"""Counts what remains of a gated network, layer by layer and group by group, and gives a reason where something stays."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zerogate.cost.model import CostModel
from zerogate.cutting.plain_layers import parameters_as_cut
from zerogate.masking.unit import Layout
from zerogate.modules.index import layer_of, tensor_bytes
from zerogate.objectives.target import Target
from zerogate.report.table import GroupRow, Report, Row, TargetRow
from zerogate.storage.encodings import header_bytes, smallest
from zerogate.structure import Axis, LayerCall, Structure


@dataclass(frozen=True)
class GatedNetwork:
    """What a report is about."""

    model: nn.Module
    """Its layers and parameters are counted; it is not changed."""
    layout: Layout
    """Where gates lie, which axes their units occupy, why others have none, and what is counted."""
    is_open: Tensor
    """Units that the deployed mask lets through, bool [units]."""
    kept: Tensor
    """Units that compaction keeps, bool [units]."""
    keep_class: bool
    """Whether compaction returns a module of the model's class, or a graph module."""
    target: TargetRow | None
    """See `target_row`."""

    @property
    def single_weights(self) -> Mapping[str, Tensor] | None:
        """Where gates remove single weights, the units of each gated weight; None where they remove channels or heads."""
        return None if self.layout.unit.changes_shapes else {p.weight: p.units for p in self.layout.placements}


def target_row(objective: nn.Module, is_open: Tensor, cost: CostModel) -> TargetRow | None:
    """What a target asks for and what remains where these units are open, bool [units]; None for other objectives."""
    if not isinstance(objective, Target):
        return None
    budget = objective.budget(cost)
    return TargetRow(objective.over, objective.share, budget.left(is_open) / budget.dense, objective.projected)


def make_report(network: GatedNetwork) -> Report:
    """Counts the layers and groups of a network; see `Sparsified.report`."""
    counts = _Counts(network)
    rows: dict[str, Row] = {}
    for c in counts.structure.calls:
        if c.weight in counts.parameters and not (c.training and c.weight in rows):
            rows[c.weight] = _row_of_call(counts, c)
    others = [_row_of_others(counts, layer, names) for layer, names in _not_called(counts, rows).items()]
    layout = network.layout
    cost, dense = layout.cost.exact(network.is_open), layout.cost.dense
    return Report(
        (*rows.values(), *others),
        (cost.params, dense.params),
        (cost.macs, dense.macs),
        layout.unit.name,
        (int(counts.kept.sum()), len(counts.kept)),
        tuple(_group_rows(counts)),
        network.keep_class,
        network.target,
        None if counts.single_weights is None else _file_bytes(counts, counts.single_weights),
    )


class _Counts:
    """Counts of a network's axes and parameters, as (remaining, dense)."""

    def __init__(self, network: GatedNetwork) -> None:
        self.network = network
        self.structure, self.single_weights = network.layout.structure, network.single_weights
        self.kept = network.kept.cpu()
        self.modules = dict(network.model.named_modules())
        self.parameters = parameters_as_cut(network.model, self.structure.plain)

    def along(self, axis: Axis, size: int) -> tuple[int, int]:
        """Channels along an axis of this size."""
        units = self.structure.axes.get(axis) if self.single_weights is None else None
        return size if units is None else int(((units < 0) | self.kept[units]).sum()), size

    def entries(self, name: str) -> tuple[int, int]:
        """Entries of a parameter."""
        p, gated = self.parameters[name], self.single_weights
        if gated is None:
            return math.prod(self.along((name, dim), size)[0] for dim, size in enumerate(p.shape)), p.numel()
        return int(torch.count_nonzero(self.kept[gated[name]])) if name in gated else p.numel(), p.numel()


def _row_of_call(counts: _Counts, c: LayerCall) -> Row:
    """The row of a layer that has been called."""
    shape, gated = counts.parameters[c.weight].shape, counts.single_weights
    outs = counts.along(c.produces, shape[c.produces[1]]) if c.produces else (shape[0], shape[0])
    ins = counts.along(c.consumes, shape[c.consumes[1]]) if c.consumes else outs
    if gated is None:
        free, reason = c.produces in counts.structure.axes, _why_channels_stay(counts.structure, c)
    else:
        free = c.weight in gated
        reason = "" if free else "excluded"
    entries = counts.entries(c.weight)
    kind = type(counts.modules[c.layer]).__name__
    return Row(c.layer, kind, ins, outs, entries, *_status(entries, free, reason), c.training)


def _not_called(counts: _Counts, rows: Mapping[str, Row]) -> dict[str, list[str]]:
    """Parameters of two dimensions or more that no layer's call has used: by the layer that owns them, or, where a module
    with children or the model itself does, by their own name."""
    others: dict[str, list[str]] = {}
    for name, p in counts.parameters.items():
        if p.ndim > 1 and name not in rows:
            owner = layer_of(name)
            layer = name if any(counts.modules[owner].children()) or not owner else owner
            others.setdefault(layer, []).append(name)
    return others


def _row_of_others(counts: _Counts, layer: str, names: list[str]) -> Row:
    """The row of such parameters."""
    axes = [(name, dim) for name in names for dim in range(counts.parameters[name].ndim)]
    entries = [counts.entries(name) for name in names]
    total = sum(n for n, _ in entries), sum(n for _, n in entries)
    free = counts.single_weights is None and any(axis in counts.structure.axes for axis in axes)
    status, reason = _status(total, free, _why_not_followed(counts.structure, layer, names))
    return Row(layer, type(counts.modules[layer_of(names[0])]).__name__, None, None, total, status, reason)


def _group_rows(counts: _Counts) -> Iterator[GroupRow]:
    for g in counts.network.layout.groups:
        kind = g.kind if counts.single_weights is None else "weight"
        yield GroupRow(g.name, kind, (int(counts.kept[g.slice].sum()), g.units), g.producers, g.consumers)


def _file_bytes(counts: _Counts, gated: Mapping[str, Tensor]) -> tuple[int, int]:
    """See `Report.file_bytes`."""
    dense = remaining = tensor_bytes(counts.network.model)
    for name in gated:
        p = counts.parameters[name]
        _, size = smallest(p.numel(), counts.entries(name)[0], p.element_size(), header_bytes(name))
        remaining -= p.numel() * p.element_size() - size
    return remaining, dense


def _status(entries: tuple[int, int], free: bool, reason: str) -> tuple[str, str]:
    """(status, reason): the reason is empty where nothing stays. ``free``: whether anything could be removed."""
    status = "shrunk" if entries[0] < entries[1] else "kept" if free else "refused"
    return status, "" if status == "kept" else reason


def _why_not_followed(structure: Structure, layer: str, names: list[str]) -> str:
    """Why parameters that no layer's call has used stay."""
    reasons = [structure.reasons[name] for name in names if name in structure.reasons]
    reasons += [reason for (name, _), reason in structure.refused.items() if name in names]
    if reasons or any(name in names for name, _ in structure.axes):
        return reasons[0] if reasons else ""
    if layer in names:
        return "not read on the example inputs, or not followed"
    read = {*structure.reasons, *(name for name, _ in [*structure.axes, *structure.refused])}
    read |= {c.weight for c in structure.calls}
    if any(layer_of(name) == layer for name in read):
        return "not followed"
    if structure.unseen_training:
        return f"not run on the example inputs in evaluation mode, and {structure.unseen_training}"
    return "not run on the example inputs"


def _why_channels_stay(structure: Structure, c: LayerCall) -> str:
    """Why output channels of a layer, or some of them, cannot be removed; nothing where all can."""
    if c.produces is None:
        return "its channels are not followed"
    if c.produces in structure.refused:
        return structure.refused[c.produces]
    if c.produces in structure.axes:
        return ""
    return "its input channels stay" if c.consumes is None else "nothing here can be removed"
