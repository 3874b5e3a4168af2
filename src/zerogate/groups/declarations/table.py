"""The table of ops: `OPS` holds one declaration for every op that a forward can run.

A declaration states an op's family, which says what happens to the labels of its operands, and the few facts that set it
apart within the family. Rules, tracing, trial runs and exported graphs all ask here. An op that is declared nowhere is
pointwise if torch tags it so; it is followed through the ops that it consists of, where torch itself runs it as these; any
other freezes the labels that enter it.

The other files of this folder declare torch's own ops. Import all of it from `groups.ops`, which has read them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from zerogate.groups.arguments import AtenOp
from zerogate.modules.internals import is_composite


class Family(Enum):
    """What an op does to entries; the value is the law that follows for labels. Families marked * have a rule that holds for
    all their ops; ops of the others each have a rule of their own."""

    POINTWISE = "* an entry of the result depends on the entries at its own place: channels that meet are tied"
    IDENTITY = "* entries stay where they are: labels pass"
    RELAYOUT = "* entries move or are repeated, by shapes: the op runs on the labels"
    SLICE = "* a range, or equal pieces: the op runs on the labels; equal pieces are tied, so that they stay equal"
    INDEX = "* entries are picked by position: the op runs on the labels, and their order must not change"
    SCATTER = "* entries are written at positions: their labels join those of the rest"
    SHAPE_ONLY = "* only a shape or a number is read: no labels come out"
    FACTORY = "* the same value everywhere: no labels come out"
    POOL = "* entries of one channel meet: labels pass, if they do not vary in space"
    REDUCTION = "* some dimensions are summed up: labels are tied along them"
    MIXING = "* all entries along one dimension meet, and stay apart: labels are tied along it"
    ORDER = "* entries are sorted along one dimension: labels must not vary along it"
    CONTRACTION = "labels of the summed dimension are consumed, and a parameter makes new ones"
    NORM = "channels are scaled by statistics and by parameters that are sliced with them"
    REARRANGEMENT = "channels change places in a pattern of their own"
    REFUSED = "known, and not to be followed: labels that enter it stay"
    OTHER = "nothing in common: a rule of its own, or none, and then the labels that enter it stay"


class MetaShape(Enum):
    """What the shape of an op's result follows from on the meta device, without running torch's own shape function."""

    TORCH = "torch's own shape function, or one of `recording.meta_shapes.SHAPES`"
    FIRST = "that of the first operand, the only tensor"
    BROADCAST = "that of two operands, broadcast"


@dataclass(frozen=True)
class OpSpec:
    """What is known of one op."""

    name: str
    """Its name in ATen, without overload: ``conv2d``."""
    family: Family = Family.OTHER
    in_place: bool = False
    """It writes into its first operand, and returns it; its name ends in "_"."""
    pointwise: bool = False
    """Its family is `Family.POINTWISE`, or torch itself tags it so."""
    composite: bool = False
    """It is declared nowhere, and torch runs it as other ops: these are followed in its place."""
    sizes: tuple[str, ...] = ()
    """Arguments that state sizes, or numbers of groups: they must follow the channels that are kept."""
    only_sizes: bool = False
    """All of its integers are sizes; whether they are right shows in the shape of its result."""
    start: str = ""
    """The argument that says where a cut begins."""
    equal_pieces: bool = False
    """It cuts into pieces of one size, but for the last."""
    spreads: bool = False
    """It repeats what is 1 long."""
    shape_of_second: bool = False
    """Of its second operand, only the shape counts."""
    broadcast_safe: bool = False
    """What is the same all along a dimension stays so."""
    layout_only: bool = False
    """It does nothing where a tensor's strides, which depend on sizes, allow it: no step of the record."""
    fill: int | str | None = None
    """What a factory writes: a number, or the name of the argument that gives it. None: nothing that is defined."""
    makes_channels: bool = False
    """Its rule runs even where no labels enter: parameters among its operands make channels."""
    frees_parameters: bool = False
    """Where its rule gives up, parameters among its operands can still be cut along other dimensions."""
    reads_values: bool = False
    """It hands values to Python: a run without data must know them."""
    values: tuple[str, ...] = ()
    """Arguments whose values the shapes of its results depend on: they lie on the CPU, and a run without data must know
    them."""
    one_dtype: bool = False
    """Its operands must be of one dtype, which torch's shape functions do not all check."""
    meta: MetaShape = MetaShape.TORCH
    keeps_format: bool = False
    """Its result has the memory format of its first operand."""

    @property
    def is_move(self) -> bool:
        """Whether it moves entries by sizes that it is given."""
        return self.family in (Family.RELAYOUT, Family.SLICE)


OPS: dict[str, OpSpec] = {}
"""ATen op → what is known of it."""
_BY_OVERLOAD: dict[int, tuple[AtenOp, OpSpec]] = {}
"""Overloads by identity, each held, with their specs: torch computes their hashes in Python, and `spec_of` runs for every
op."""


def declare(names: str, family: Family = Family.OTHER, *, in_place: str = "", **facts: Any) -> None:
    """Enters ops into `OPS`.

    Args:
        names: of the ops, without namespace and overload, separated by spaces.
        family: what they do to labels.
        in_place: ops that write into their first operand, ``relu_``; the same facts hold for them.
        facts: fields of `OpSpec`.
    """
    for name in names.split():
        OPS[name] = OpSpec(name, family, pointwise=family is Family.POINTWISE, **facts)
    for name in in_place.split():
        OPS[name] = OpSpec(name, family, in_place=True, pointwise=family is Family.POINTWISE, **facts)
    _BY_OVERLOAD.clear()


def spec_of(func: AtenOp) -> OpSpec:
    """What is known of an op as it was called, an overload: ``aten.add.Tensor``."""
    known = _BY_OVERLOAD.get(id(func))
    if known is None:
        known = _BY_OVERLOAD[id(func)] = func, _spec_of(func)
    return known[1]


def _spec_of(func: AtenOp) -> OpSpec:
    name = func.overloadpacket.__name__
    spec = OPS.get(name)
    tagged = torch.Tag.pointwise in func.tags
    if spec is None:
        composite = not tagged and is_composite(func)
        return OpSpec(name, Family.POINTWISE if tagged else Family.OTHER, pointwise=tagged, composite=composite)
    return replace(spec, pointwise=True) if tagged else spec
