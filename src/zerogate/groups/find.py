"""What can be removed from a model: watched, tried on a copy, and settled."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import Tensor, nn

from zerogate.cutting.cut import cut
from zerogate.cutting.plan import make_plan
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.norms import exact_rules
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.twin import twin_of
from zerogate.groups.trial.confirm import settle
from zerogate.groups.trial.replay import Trial
from zerogate.groups.trial.size_attributes import follow_written_sizes
from zerogate.groups.units import build
from zerogate.modules.run import Inputs, kept_rng
from zerogate.structure import KINDS, Axis, SizeAttribute, Structure


def find_groups(
    model: nn.Module,
    inputs: Inputs,
    seen: Recording,
    exclude: Collection[str] = (),
    include: Collection[str] | None = None,
    kinds: Collection[str] = KINDS,
    step: int = 1,
    graph: GraphModel | None = None,
) -> Structure:
    """The structure of all units that the model's own forward, or that of its graph, can do without.

    Sizes written into a forward (a reshape, a split at fixed places) leave no trace in the labels. So a copy is closed at
    random, to widths that are multiples of ``step``, compacted, and run beside the record of the whole one; see
    `groups.replay`.
    """

    def make() -> Structure:
        return build(seen, exclude, include, kinds)

    with kept_rng(model):
        if graph is not None:
            follow_written_sizes(graph, seen)
        structure = make()
        if structure.norms:
            structure = _settle_norms(model, seen, structure, graph) or make()
        twin = twin_of(model if graph is None else graph, meta=False) if seen.twin is None else seen.twin
        structure = settle(Trial(twin, inputs, seen, _Cut()), structure, make, step)
    return structure


class _Cut:
    """Cuts copies of one model. Those that differ in attributes alone share what is left of their tensors."""

    def __init__(self) -> None:
        self._axes: dict[Axis, Tensor] | None = None
        self._kept: Tensor | None = None
        self._keep: dict[Axis, Tensor] = {}
        self._made: dict[str, Tensor] = {}

    def __call__(self, twin: nn.Module, structure: Structure, kept: Tensor) -> nn.Module:
        same = self._axes is structure.axes and self._kept is kept
        plan = make_plan(twin, structure, kept, self._keep if same else None)
        if not same:
            self._axes, self._kept, self._keep, self._made = structure.axes, kept, plan.keep, {}
        return cut(twin, plan, self._made)


def _settle_norms(
    model: nn.Module, seen: Recording, structure: Structure, graph: GraphModel | None
) -> Structure | None:
    """The structure with the way found for each norm; None where it must be made anew: some channels are frozen, because
    their norm cannot be taken over the kept ones, or attributes follow."""
    known = [*exact_rules(model, structure, graph)]
    ways = {norm.module: way for norm, way in known}
    found = []
    for norm in seen.norms:
        if norm.module in ways:
            way = ways[norm.module]
            if way is None:
                seen.labels.freeze(norm.labels, norm.reason)
                continue
            norm = way.of(norm)
            for attribute, entry in way.sizes:
                key = norm.module, attribute, entry
                seen.size_attributes[key] = SizeAttribute(*key, norm.labels[:, None])
        found.append(norm)
    seen.norms = found
    if any(way is None or way.sizes for _, way in known):
        return None
    return replace(structure, norms=tuple(way.of(norm) for norm, way in known if way is not None))
