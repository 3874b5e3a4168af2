"""One real compaction at random, before anything is trained: a group that cannot be compacted is refused at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from zerogate.compaction.comparison import WholeNetworkFails
from zerogate.compaction.cuttable import Cuttable
from zerogate.compaction.deployed import Deployed
from zerogate.compaction.verify import check_comparable, groups_at_fault, try_plan
from zerogate.errors import CompactionError
from zerogate.masking.placement import gated_products
from zerogate.masking.unit import Layout
from zerogate.modules.run import Inputs, kept_rng, tensors_of
from zerogate.structure import Group


def refused_groups(cuttable: Cuttable, inputs: Inputs, layout: Layout) -> dict[str, str]:
    """Names of the groups that fail in one compaction with random units closed, each with the reason; found by halves.

    Nothing is tried where there is nothing to compare: a model or inputs on the meta device, a model that does not run on
    the inputs with data, and one whose outputs hold NaN.

    Args:
        cuttable: the model, without gates.
        inputs: on which the outputs of the whole and of the cut network are compared.
        layout: where gates will lie on it.
    """
    refused: dict[str, str] = {}
    with kept_rng(cuttable.module):
        few = _first_example(inputs)
        if few is not inputs and _attempt(_closed_at_random(cuttable, few, layout, refused)) == "":
            return refused
        while len(refused) < len(layout.structure.groups):
            deployed = _closed_at_random(cuttable, inputs, layout, refused)
            failure = _attempt(deployed)
            if not failure:
                break
            at_fault = groups_at_fault(deployed)
            refused |= dict.fromkeys([group.name for group in at_fault], _reason(failure, at_fault))
    return refused


def _attempt(deployed: Deployed) -> str | None:
    """How the compaction fails, "" where it does not; None where there is nothing to compare."""
    try:
        check_comparable(deployed)
        return try_plan(deployed, deployed.plan()).failure or ""
    except (CompactionError, WholeNetworkFails):
        return None


def _first_example(inputs: Inputs) -> Inputs:
    """The first of several examples, which takes a CPU a fraction of the time; elsewhere all of them, since an index that is
    too large for them would break off the whole process."""
    tensors = tensors_of(inputs)
    size = len(tensors[0]) if tensors and tensors[0].ndim else 1
    if size == 1 or any(x.device.type != "cpu" or x.layout is not torch.strided for x in tensors):
        return inputs
    first: Inputs = tree_map(lambda x: x[:1] if isinstance(x, Tensor) and x.ndim and len(x) == size else x, inputs)
    return first


def _closed_at_random(cuttable: Cuttable, inputs: Inputs, layout: Layout, whole: Collection[str]) -> Deployed:
    """The model with random units closed, but none of the groups that stay whole: of each other group any number that
    it can lose, so that widths that could be mistaken for one another differ otherwise than in a trial."""
    structure, generator = layout.structure, torch.Generator().manual_seed(1)
    is_open = torch.ones(structure.units, dtype=torch.bool)
    for group in structure.groups:
        if group.units > 1 and group.name not in whole:
            order = torch.randperm(group.units, generator=generator)
            closed = int(torch.randint(1, group.units, (1,), generator=generator))
            is_open[group.slice.start + order[:closed]] = False
    placements, z = layout.placements, torch.cat([is_open, is_open.new_ones(1)])  # the last is that of −1
    return Deployed(
        cuttable,
        inputs,
        structure,
        layout.cost.kept(is_open, is_open.float()),
        unit=layout.unit,
        gated_names=tuple(layout.names),
        mask=lambda weights: gated_products(placements, layout.names, weights, [z[p.units] for p in placements]),
    )


def _reason(failure: str, at_fault: Sequence[Group]) -> str:
    """Why groups are refused that fail together."""
    others = f" together with those of {', '.join(g.name for g in at_fault[1:])}" if len(at_fault) > 1 else ""
    return f"the network {failure}, when channels are removed at random{others}"
