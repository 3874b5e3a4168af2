"""Plans: which indices of which tensors stay, and what the modules around them must state then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from zerogate.modules.held_numbers import Entry, NewValue, becomes, number_at
from zerogate.modules.index import modules_by_name, owner_of
from zerogate.structure import Axis, Place, PlainLayer, SizeAttribute, Structure


@dataclass(frozen=True)
class Plan:
    """What is left of each tensor of a network. `cut.cut` carries it out; an empty plan leaves all as it is."""

    keep: dict[Axis, Tensor] = field(default_factory=dict)
    """Axis → the indices that stay along it, int64, ascending. An axis that loses nothing is left out."""
    select: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    """Layer → (dim counted from the end, indices of its input that it still takes): for inputs of the network, which
    arrive whether they are of use or not."""
    attributes: dict[tuple[str, str], NewValue] = field(default_factory=dict)
    """(module, attribute) → the sizes that it must state."""
    places: dict[str, list[Place]] = field(default_factory=dict)
    """Tensors that are cut → where modules hold them without having registered them, or besides."""
    attention: dict[str, dict[str, bool]] = field(default_factory=dict)
    """`nn.MultiheadAttention` modules that lose heads → how they are called, see `attention.plain_attention`."""
    plain: dict[str, PlainLayer] = field(default_factory=dict)
    """Modules in whose place plain layers stand, before anything is sliced → these."""


def make_plan(model: nn.Module, structure: Structure, kept: Tensor, keep: dict[Axis, Tensor] | None = None) -> Plan:
    """The plan by which a dense network keeps some of its units.

    Args:
        model: the network, of which the attributes that state sizes are read.
        structure: its units and where they are.
        kept: which units stay, bool [units].
        keep: `Plan.keep` of an earlier plan for the same axes and units, where there is one: it need not be worked out
            again.
    """
    kept = kept.cpu()
    keep = _kept_along(structure, kept) if keep is None else keep
    cut_modules = {owner_of(name) for name, _ in keep}
    cut_modules |= {owner.removesuffix(".out_proj") for owner in cut_modules}
    return Plan(
        keep,
        _selected_inputs(structure, kept, keep),
        _stated_sizes(model, structure.size_attributes, kept),
        {name: structure.places[name] for name, _ in keep if name in structure.places},
        {path: called for path, called in structure.attention.items() if path in cut_modules},
        structure.plain,
    )


def _kept_along(structure: Structure, kept: Tensor) -> dict[Axis, Tensor]:
    """The indices that stay along each axis that loses some."""
    sizes, number, units = structure.in_line
    stays = (units < 0) | kept[units]
    cut = set(number[~stays].unique_consecutive().tolist())
    parts = stays.split(sizes) if sizes else ()
    return {
        axis: here.nonzero().flatten()
        for i, (axis, here) in enumerate(zip(structure.axes, parts, strict=True))
        if i in cut
    }


def _selected_inputs(structure: Structure, kept: Tensor, keep: Mapping[Axis, Tensor]) -> dict[str, tuple[int, Tensor]]:
    """Layers that read inputs of the network and no longer take all of them, see `Plan.select`."""
    if not structure.inputs:
        return {}
    present = kept.clone()
    present[torch.tensor(sorted(structure.inputs), dtype=torch.int64)] = True
    select = {}
    for call in structure.calls:
        if call.consumes is not None and call.consumes in keep:
            units = structure.axes[call.consumes]
            arrives, stays = ((units < 0) | there[units] for there in (present, kept))
            if not torch.equal(arrives, stays):
                select[call.layer] = (call.channel_dim, stays[arrives].nonzero().flatten())
    return select


def _stated_sizes(
    model: nn.Module, size_attributes: tuple[SizeAttribute, ...], kept: Tensor
) -> dict[tuple[str, str], NewValue]:
    """Attributes whose value changes, see `Plan.attributes`."""
    modules = modules_by_name(model, twice=True) if size_attributes else {}
    changed: dict[tuple[str, str], dict[Entry, int]] = {}
    for attribute in size_attributes:
        size = int(((attribute.rows < 0) | kept[attribute.rows]).any(1).sum())
        if size != number_at(getattr(modules[attribute.module], attribute.attribute), attribute.entry):
            changed.setdefault((attribute.module, attribute.attribute), {})[attribute.entry] = size
    return {(path, name): becomes(getattr(modules[path], name), sizes) for (path, name), sizes in changed.items()}
