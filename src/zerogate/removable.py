"""What can be removed from a model: watched, tried on a copy, and settled."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn

from zerogate.groups import (
    KINDS,
    Inputs,
    Observations,
    Structure,
    build,
    follow_written_sizes,
    kept_rng,
    settle,
    twin_of,
)
from zerogate.groups.interpreted import Interpreted
from zerogate.norms import understood
from zerogate.plans import apply_plan, make_plan


def removable(
    model: nn.Module,
    inputs: Inputs,
    seen: Observations,
    exclude: Collection[str] = (),
    include: Collection[str] | None = None,
    kinds: Collection[str] = KINDS,
    graph: Interpreted | None = None,
) -> Structure:
    """The structure of all units that the model's own forward, or that of its graph, can do without.

    Sizes written into a forward (a reshape, a split at fixed places) leave no trace in the labels. So a copy is closed at
    random, compacted, and run beside the record of the whole one; see `groups.replay`.
    """

    def make() -> Structure:
        return build(seen, exclude, include, kinds)

    def cut(twin: nn.Module, structure: Structure, kept: Tensor) -> nn.Module:
        return apply_plan(twin, make_plan(twin, structure, kept))

    with kept_rng(model):
        if graph is not None:
            follow_written_sizes(graph, seen)
        structure = make()
        if structure.norms:
            _settle_norms(model, seen, structure, graph)
            structure = make()
        twin = twin_of(model if graph is None else graph, seen.meta)
        structure = settle(twin, inputs, seen, structure, make, cut)
    return structure


def _settle_norms(model: nn.Module, seen: Observations, structure: Structure, graph: Interpreted | None) -> None:
    """Freezes the channels under norms that cannot be taken over the kept ones."""
    ways = {norm.module: way for norm, way in understood(model, structure, graph)}
    found = []
    for norm in seen.norms:
        if norm.module in ways:
            way = ways[norm.module]
            if way is None:
                seen.labels.freeze(norm.labels, norm.reason)
                continue
            norm = type(norm)(norm.module, norm.dim, norm.shape, norm.labels, norm.reason, way.centred, way.over)
        found.append(norm)
    seen.norms = found
