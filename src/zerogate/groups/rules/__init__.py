"""What each ATen op does to labels. An op that has no rule here freezes the labels that enter it."""

from zerogate.groups.rules import layers, mixing
from zerogate.groups.rules.moves import CUTS, FACTORIES, MOVES, SAME, SHAPE_ONLY, TURNS, follow_views
from zerogate.groups.rules.op import RULES, Freeze, Op, UnknownValue, View
from zerogate.groups.rules.pointwise import is_pointwise, pointwise

LAYERS = {name for name, function in RULES.items() if function.__module__ == layers.__name__} | {"layer_norm"}
"""Ops that can make labels of parameters where none enter them."""

__all__ = [
    "CUTS",
    "FACTORIES",
    "LAYERS",
    "MOVES",
    "RULES",
    "SAME",
    "SHAPE_ONLY",
    "TURNS",
    "Freeze",
    "Op",
    "UnknownValue",
    "View",
    "follow_views",
    "is_pointwise",
    "mixing",
    "pointwise",
]
