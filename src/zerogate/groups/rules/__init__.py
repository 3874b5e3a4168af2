"""What each ATen op does to labels. An op that has no rule here freezes the labels that enter it."""

from zerogate.groups.rules import layers, mixing, moves, pointwise
from zerogate.groups.rules.moves import follow_views
from zerogate.groups.rules.op import RULES, Freeze, Op, UnknownValue, View, rule_of

__all__ = [
    "RULES",
    "Freeze",
    "Op",
    "UnknownValue",
    "View",
    "follow_views",
    "layers",
    "mixing",
    "moves",
    "pointwise",
    "rule_of",
]
