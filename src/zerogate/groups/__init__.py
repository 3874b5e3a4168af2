"""Which channels can be removed, and which only together, found by watching the model run once."""

from zerogate.groups.copies import plain_copy, shared_twin, twin_of
from zerogate.groups.observed import Axis, Call, Norm, Observations, Repair
from zerogate.groups.repairs import follow_written_sizes, holders
from zerogate.groups.replay import Trial
from zerogate.groups.running import Inputs, call, kept_rng, tensors_of
from zerogate.groups.settle import settle
from zerogate.groups.structure import KINDS, Group, Structure, build
from zerogate.groups.watch import watch

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
    "Trial",
    "build",
    "call",
    "follow_written_sizes",
    "holders",
    "kept_rng",
    "plain_copy",
    "settle",
    "shared_twin",
    "tensors_of",
    "twin_of",
    "watch",
]
