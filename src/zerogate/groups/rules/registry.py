"""All rules: importing this module registers them."""

from __future__ import annotations

from zerogate.groups.ops import OpSpec
from zerogate.groups.rules import (
    attention,
    convolution,
    einsum,
    linear,
    norms,
    pointwise,
    recurrent,
    reductions,
    relayout,
    scatter,
    slicing,
    transforms,
)
from zerogate.groups.rules.op import RULES, Rule

MODULES = (
    attention,
    convolution,
    einsum,
    linear,
    norms,
    pointwise,
    recurrent,
    reductions,
    relayout,
    scatter,
    slicing,
    transforms,
)


def rule_of(spec: OpSpec) -> Rule | None:
    """The rule of an op; None for one that has none."""
    return RULES.get(spec.name) or RULES.get(spec.family)
