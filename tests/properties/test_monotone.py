"""Asking for more kinds of unit never finds fewer, in networks nobody wrote by hand."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from random_nets import FAMILIES
from zerogate.groups.find import find_groups
from zerogate.groups.trial.smallest_loss import units_by_kind
from zerogate.groups.units import UnitFilter
from zerogate.structure import KINDS


@settings(max_examples=45, derandomize=True)
@given(st.sampled_from(sorted(FAMILIES)), st.integers(0, 10**9))
def test_more_kinds_of_unit_are_no_fewer_units(family: str, seed: int) -> None:
    torch.manual_seed(seed)
    model = FAMILIES[family](seed)
    x = model.inputs(2, torch.Generator().manual_seed(seed))
    both = units_by_kind(find_groups(model, x, UnitFilter(kinds=frozenset(KINDS))).groups)
    for kind in KINDS:
        alone = units_by_kind(find_groups(model, x, UnitFilter(kinds=frozenset([kind]))).groups)
        assert set(alone) <= {kind}
        assert alone.get(kind, 0) <= both.get(kind, 0)
