"""Which channels can be removed, and which only together, found by watching the model run once."""

from zerogate.groups.observed import Axis, Call, Norm, Observations, Repair
from zerogate.groups.replay import holders, settle
from zerogate.groups.structure import KINDS, Group, Structure, build
from zerogate.groups.watch import Inputs, call, kept_rng, plain_copy, tensors_of, twin_of, watch

__all__ = [
    "KINDS",
    "Axis",
    "Call",
    "Group",
    "Inputs",
    "Norm",
    "Observations",
    "Repair",
    "Structure",
    "build",
    "call",
    "holders",
    "kept_rng",
    "plain_copy",
    "settle",
    "tensors_of",
    "twin_of",
    "watch",
]
