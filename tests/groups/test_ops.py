"""One declaration for each op: what follows from it, and that rules and declarations fit together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import Lambda
from zerogate.groups.arguments import arguments_of
from zerogate.groups.ops import OPS, Family, MetaShape, declare, spec_of
from zerogate.groups.rules.op import RULES, Op, Out, rule
from zerogate.groups.rules.registry import rule_of

ATEN = torch.ops.aten
NEWER = {"_grouped_mm", "rms_norm", "_fused_rms_norm"}  # than the oldest torch


def overloads(name: str) -> list[torch._ops.OpOverload]:
    packet = getattr(ATEN, name)
    return [getattr(packet, overload) for overload in packet.overloads()]


def test_every_declared_op_exists_in_aten() -> None:
    custom = {"scaled_relu"}  # of the guide, where that has run before
    assert {name for name in OPS if not hasattr(ATEN, name)} <= NEWER | custom


def test_every_op_of_a_known_family_has_a_rule() -> None:
    without = {name for name, spec in OPS.items() if rule_of(spec) is None}
    assert without <= {"is_nonzero", "equal"}  # known for their values alone


def test_every_rule_is_of_a_declared_op_or_family() -> None:
    assert all(name in OPS for name in RULES if isinstance(name, str))
    marked = {family for family in Family if family.value.startswith("* ")}
    assert marked == {family for family in RULES if isinstance(family, Family)}


@pytest.mark.parametrize("name", sorted(name for name, spec in OPS.items() if spec.in_place))
def test_in_place_ops_write_into_their_first_operand(name: str) -> None:
    assert name.endswith("_")
    for func in overloads(name) if hasattr(ATEN, name) else []:
        assert name == "requires_grad_" or arguments_of(func)[0].is_written, func


@pytest.mark.parametrize("name", sorted(name for name, spec in OPS.items() if spec.sizes or spec.start))
def test_stated_sizes_are_arguments_of_the_op(name: str) -> None:
    spec = OPS[name]
    for argument in {*spec.sizes, *filter(None, [spec.start])}:
        assert any(argument in [a.name for a in arguments_of(func)] for func in overloads(name)), (name, argument)


def test_ops_whose_shape_is_that_of_operands_are_pointwise_or_pass_on() -> None:
    for spec in OPS.values():
        if spec.meta is not MetaShape.TORCH:
            assert spec.family in (Family.POINTWISE, Family.IDENTITY), spec.name


def test_ops_that_torch_tags_as_pointwise_are() -> None:
    assert spec_of(ATEN.erf.default).family is Family.POINTWISE  # declared nowhere
    assert spec_of(ATEN.masked_fill.Scalar).family is Family.RELAYOUT
    assert spec_of(ATEN.masked_fill.Scalar).pointwise
    assert not spec_of(ATEN.conv2d.default).pointwise


def test_a_rule_for_an_undeclared_op_says_how_to_declare_it() -> None:
    with pytest.raises(ValueError, match=r"'unheard_of', which is no declared op; call declare\('unheard_of', Family"):

        @rule("unheard_of")
        def _unheard_of(op: Op) -> Out:
            return None


@torch.library.custom_op("zerogate_test::halved", mutates_args=())
def halved(x: Tensor) -> Tensor:
    return x / 2


@halved.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


def test_a_declaration_is_enough_where_a_family_has_a_law(monkeypatch: pytest.MonkeyPatch) -> None:
    def net() -> nn.Module:
        return Lambda(
            lambda m, x: m.head(halved(m.conv(x)).mean((2, 3))), conv=nn.Conv2d(3, 8, 3), head=nn.Linear(8, 2)
        )

    with pytest.raises(zg.WatchError, match="halved has no rule"):
        zg.sparsify(net(), torch.randn(2, 3, 6, 6))
    declare("halved", Family.POINTWISE)
    try:
        sparse = zg.sparsify(net(), torch.randn(2, 3, 6, 6))
    finally:
        del OPS["halved"]
        declare("")  # forgets what was looked up
    assert {g.name: g.units for g in sparse.groups} == {"conv": 8}
