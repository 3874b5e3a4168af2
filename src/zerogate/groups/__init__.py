"""Which channels can be removed, and which only together, found by watching the model run once."""

from zerogate.groups.structure import Axis, Call, Group, Structure, build
from zerogate.groups.watch import Inputs, call, kept_rng, plain_copy, watch

__all__ = ["Axis", "Call", "Group", "Inputs", "Structure", "build", "call", "kept_rng", "plain_copy", "watch"]
