"""The few-kernel versions against the formulas that they replace, and who decides between the two."""

from __future__ import annotations

import copy
import gc
import inspect
import re
import weakref
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

import zerogate as zg
from zerogate.gates import fused, gate, hard_concrete, schedules, soft_mask, surrogate

UNITS = 33
DRAWS = {"once": None, "for one example": 1, "for examples": 5}
GATES: dict[str, Callable[[], zg.Gate]] = {
    "hard concrete": zg.HardConcrete,
    "hard concrete, wide": lambda: zg.HardConcrete(temperature=0.4, low=-0.3, high=1.5),
    "hard concrete, centred": lambda: zg.HardConcrete(low=-1.1, high=1.1),
    "soft mask": lambda: at_temperature(zg.SoftMask(initial_value=0.4), 1.7),
    "hot soft mask": lambda: at_temperature(zg.SoftMask(initial_value=-0.2), 40.0),
}

every_gate = pytest.mark.parametrize("name", GATES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
economical_or_not = pytest.mark.parametrize("economical", [False, True])


def at_temperature(gate: zg.SoftMask, beta: float) -> zg.SoftMask:
    gate.temperature.fill_(beta)
    return gate


def logits_of(dtype: torch.dtype) -> Tensor:
    torch.manual_seed(3)
    return (2 * torch.randn(UNITS, dtype=dtype)).requires_grad_()


def made(name: str, dtype: torch.dtype) -> zg.Gate:
    return GATES[name]().to(dtype)


def assert_same(kernel: Callable[[Tensor], Tensor], formula: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    """Both in value, gradient (in closed form and by the plain ops) and second derivative, for the same seed."""
    found = [derivatives(function, logits_of(dtype)) for function in (kernel, formula)]
    tolerance = {torch.float32: (2e-4, 2e-5), torch.float64: (1e-9, 1e-11)}[dtype]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance[0], atol=tolerance[1])


def derivatives(function: Callable[[Tensor], Tensor], logits: Tensor) -> list[Tensor]:
    torch.manual_seed(11)
    value = function(logits)
    values = value.detach().clone()  # they may lie in a scratch buffer
    weights = torch.randn(value.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(value.dtype)
    (closed_form,) = torch.autograd.grad((value * weights).sum(), logits, retain_graph=True)
    (plain,) = torch.autograd.grad((value * weights).sum(), logits, create_graph=True)
    (second,) = torch.autograd.grad(plain.square().sum(), logits)
    torch.manual_seed(11)
    (of_a_sum,) = torch.autograd.grad(function(logits).sum(), logits)
    return [values, closed_form, plain, second, of_a_sum]


@every_dtype
@pytest.mark.parametrize("examples", DRAWS.values(), ids=DRAWS)
@every_gate
def test_a_draw_is_its_formula(name: str, examples: int | None, dtype: torch.dtype) -> None:
    gate = made(name, dtype)
    assert_same(
        lambda logits: fused.draw(gate, logits, examples=examples).z,
        lambda logits: gate.sample(logits, examples),
        dtype,
    )


@every_dtype
@every_gate
def test_an_economical_draw_is_its_formula(name: str, dtype: torch.dtype) -> None:
    gate = made(name, dtype)
    assert_same(lambda logits: fused.draw(gate, logits, economical=True).z, gate.sample, dtype)


@every_dtype
@economical_or_not
@every_gate
def test_an_open_probability_is_its_formula(name: str, economical: bool, dtype: torch.dtype) -> None:
    gate = made(name, dtype)

    def with_a_draw(logits: Tensor) -> Tensor:
        drawn = fused.draw(gate, logits, economical=economical)
        return fused.open_probability(gate, logits, drawn.p, drawn.recompute, economical=economical)

    assert_same(
        lambda logits: fused.open_probability(gate, logits, economical=economical), gate.open_probability, dtype
    )
    assert_same(with_a_draw, gate.open_probability, dtype)


@every_dtype
@every_gate
def test_a_movable_probability_is_its_formula(name: str, dtype: torch.dtype) -> None:
    gate = made(name, dtype)
    assert_same(lambda logits: fused.movable_probability(gate, logits), gate.movable_probability, dtype)
    assert_same(
        lambda logits: fused.movable_probability(gate, logits, fused.draw(gate, logits).p),
        gate.movable_probability,
        dtype,
    )


@economical_or_not
@every_gate
def test_what_comes_with_a_draw_is_what_the_formulas_say(name: str, economical: bool) -> None:
    gate, logits = made(name, torch.float64), logits_of(torch.float64)
    drawn = fused.draw(gate, logits, economical=economical)
    if drawn.p is not None:
        torch.testing.assert_close(drawn.p, gate.open_probability(logits).detach())
        assert not drawn.p.requires_grad
    if drawn.recompute is not None:
        torch.testing.assert_close(drawn.recompute.p(), gate.open_probability(logits))
        torch.testing.assert_close(drawn.recompute.z(), drawn.z)
    with torch.no_grad():
        assert not fused.draw(gate, logits, economical=economical).z.requires_grad


@pytest.mark.parametrize(("economical", "examples"), [(True, None), (False, None), (False, 1), (False, 5)])
def test_a_draw_takes_the_same_random_numbers_as_its_formula(economical: bool, examples: int | None) -> None:
    gate, logits = zg.HardConcrete(), logits_of(torch.float32)
    torch.manual_seed(5)
    fused.draw(gate, logits, economical=economical, examples=examples)
    after = torch.rand(3)
    torch.manual_seed(5)
    u = torch.rand(UNITS if examples is None else (examples, UNITS))
    assert torch.equal(after, torch.rand(3))
    torch.manual_seed(5)
    z = fused.draw(gate, logits, economical=economical, examples=examples).z
    torch.testing.assert_close(z, gate.quantile(u, logits))


# Who decides.


class Squared(zg.HardConcrete):
    def sample(self, logits: Tensor, examples: int | None = None) -> Tensor:
        return super().sample(logits, examples).square()


class Halved(zg.HardConcrete):
    def quantile(self, u: Tensor, logits: Tensor) -> Tensor:
        return super().quantile(u / 2, logits)


class Rarer(zg.HardConcrete):
    def open_probability(self, logits: Tensor) -> Tensor:
        return super().open_probability(logits) / 2


class Shifted(zg.HardConcrete):
    @property
    def shift(self) -> float:
        return 1.5


class Unclipped(zg.HardConcrete):
    def stretch_and_clip(self, s: Tensor) -> Tensor:
        return s


class Steeper(zg.SoftMask):
    def soft_mask(self, logits: Tensor) -> Tensor:
        return super().soft_mask(3 * logits)


class Pushed(zg.SoftMask):
    def movable_probability(self, logits: Tensor) -> Tensor:
        return super().movable_probability(logits) + logits


class Elsewhere(zg.HardConcrete):
    """Overrides nothing that a kernel replaces."""

    def initial_logits(self, units: int) -> Tensor:
        return super().initial_logits(units) + 1


REPLACED: dict[type[zg.Gate], tuple[bool, bool, bool]] = {
    zg.HardConcrete: (True, True, True),
    zg.SoftMask: (True, True, True),
    Elsewhere: (True, True, True),
    Squared: (False, True, True),
    Halved: (False, True, True),
    Rarer: (False, False, True),
    Shifted: (False, False, False),
    Unclipped: (False, True, True),
    Steeper: (False, False, True),
    Pushed: (True, True, False),
    zg.FixedGate: (False, False, False),
}


@pytest.mark.parametrize(("gates", "replaced"), REPLACED.items())
def test_a_subclass_that_overrides_a_formula_runs_its_own(
    gates: type[zg.Gate], replaced: tuple[bool, bool, bool]
) -> None:
    gate, logits = gates(), logits_of(torch.float64)
    registers = (fused.DRAW, fused.OPEN_PROBABILITY, fused.MOVABLE_PROBABILITY)
    assert tuple(register.choose(gate) is not None for register in registers) == replaced  # type: ignore[attr-defined]
    for examples in DRAWS.values():
        torch.manual_seed(1)
        z = fused.draw(gate, logits, examples=examples).z
        torch.manual_seed(1)
        torch.testing.assert_close(z, gate.sample(logits, examples))
    torch.testing.assert_close(fused.open_probability(gate, logits), gate.open_probability(logits))
    torch.testing.assert_close(fused.movable_probability(gate, logits), gate.movable_probability(logits))


def test_nothing_is_replaced_where_ops_must_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "must_stay_traceable", lambda: True)
    for register in (fused.DRAW, fused.OPEN_PROBABILITY, fused.MOVABLE_PROBABILITY):
        assert register.choose(zg.HardConcrete()) is None  # type: ignore[attr-defined]
        assert register.choose(zg.SoftMask()) is None  # type: ignore[attr-defined]


def test_formulas_run_under_function_transforms() -> None:
    gate, logits = zg.SoftMask(), torch.linspace(-1, 1, 5, dtype=torch.float64)
    by_transform = torch.func.jacrev(lambda x: fused.draw(gate, x).z)(logits)
    torch.testing.assert_close(by_transform, torch.autograd.functional.jacobian(gate.sample, logits))


@pytest.mark.parametrize("module", [gate, hard_concrete, soft_mask, surrogate, schedules])
def test_formulas_know_no_kernel(module: ModuleType) -> None:
    """The decision stands in one place, and each gate's file holds plain ops alone."""
    assert inspect.getsource(fused).count("must_stay_traceable()") == 1
    assert not re.findall(r"autograd|traceable|__mro__|fused|aten|_backward", inspect.getsource(module))


# What is kept from draw to draw.


def test_a_scratch_buffer_is_used_again_while_logits_stay_alike() -> None:
    gate, logits = zg.SoftMask(), logits_of(torch.float32)
    first, second = (fused.draw(gate, logits, economical=True) for _ in range(2))
    assert first.p is not None
    assert second.p is not None
    assert first.p.data_ptr() == second.p.data_ptr()
    other = fused.draw(gate, logits_of(torch.float64), economical=True)
    assert other.p is not None
    assert other.p.dtype == torch.float64


def test_an_earlier_draw_is_computed_once_more() -> None:
    gate, logits = zg.SoftMask(), logits_of(torch.float64)
    first = fused.draw(gate, logits, economical=True)
    p = first.p.clone() if first.p is not None else None
    gate.temperature = gate.temperature.new_tensor(3.0)
    fused.draw(gate, logits, economical=True)
    assert first.recompute is not None
    assert p is not None
    with torch.no_grad():
        torch.testing.assert_close(first.recompute.p(), p)


def test_a_draw_cannot_be_recomputed_from_logits_that_have_changed() -> None:
    gate, logits = zg.SoftMask(), logits_of(torch.float32)
    drawn = fused.draw(gate, logits, economical=True)
    with torch.no_grad():
        logits.add_(1)
    with pytest.raises(RuntimeError, match="changed in place"):
        drawn.z.sum().backward()


def test_what_draws_use_goes_with_the_gate_and_not_with_its_copies() -> None:
    gate, logits = zg.SoftMask(), logits_of(torch.float32)
    fused.draw(gate, logits, economical=True)
    assert gate in fused._scratch
    assert copy.deepcopy(gate) not in fused._scratch
    held = weakref.ref(gate)
    del gate
    gc.collect()
    assert held() is None
