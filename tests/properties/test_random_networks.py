"""Properties over networks nobody wrote by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import zerogate as zg
from random_nets import FAMILIES, RandomNetwork, layer_macs
from support import close_randomly, count_macs, randomise, relative

BOTH = ("channel", "head")


def check(family: str, seed: int) -> None:
    """Compacted ≡ gated, and both costs are counts, for two random closings, the second with gates between 0 and 1."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = FAMILIES[family](seed).double()
    randomise(model, generator)
    x = model.inputs(2, generator)
    macs = layer_macs(model, x)
    try:
        sparse = zg.sparsify(model, x, gate=zg.HardConcrete(), unit=BOTH)
    except zg.WatchError as error:  # e.g. a split straight after the stem and nothing else
        assert "no unit that could be removed" in str(error)
        assume(False)
    assert sparse.dense_cost.params == sum(p.numel() for p in model.parameters())
    assert sparse.dense_cost.macs == macs
    fresh = model.inputs(3, generator)
    for fractional in (False, True):
        close_randomly(sparse, generator, fractional=fractional)
        small = sparse.compact().eval()
        model.eval()
        with torch.no_grad():
            whole, left = model(fresh), small(fresh)
        # where all cancels out, what is left is rounding alone
        assert relative(whole, left) <= 1e-10 or max(whole.abs().max(), left.abs().max()) < 1e-14
        cost = sparse.cost(hard=True)
        assert cost.params == sum(p.numel() for p in small.parameters())
        assert cost.macs == layer_macs(small, x)


@settings(max_examples=220, derandomize=True)
@given(st.integers(0, 10**9))
def test_feature_maps(seed: int) -> None:
    check("maps", seed)


@settings(max_examples=160, derandomize=True)
@given(st.integers(0, 10**9))
def test_sequences(seed: int) -> None:
    check("sequences", seed)


@settings(max_examples=120, derandomize=True)
@given(st.integers(0, 10**9))
def test_feature_maps_that_become_sequences(seed: int) -> None:
    check("patches", seed)


@settings(max_examples=80, derandomize=True)
@given(st.integers(0, 10**9))
def test_sums_over_other_dimensions(seed: int) -> None:
    check("mixtures", seed)


def test_the_count_of_layers_agrees_with_that_of_modules() -> None:
    """Where all layers are modules, two ways to count MACs."""
    for seed in range(20):
        model = RandomNetwork(seed)
        x = model.inputs(2, torch.Generator().manual_seed(seed))
        assert layer_macs(model, x) == count_macs(model, x) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_random_networks_are_worth_testing(family: str) -> None:
    """Most of these networks must be removable, also heads of most attentions, or the properties above say little."""
    removable = total = attentions = heads = 0
    for seed in range(30):
        torch.manual_seed(seed)
        model = FAMILIES[family](seed)
        x = model.inputs(2, torch.Generator().manual_seed(seed))
        total += sum(p.numel() for p in model.parameters())
        attentions += sum("Attention" in type(m).__name__ for m in model.modules())
        try:
            sparse = zg.sparsify(model, x, unit=BOTH)
        except zg.WatchError:
            continue
        with torch.no_grad():
            sparse.logits.fill_(-8.0)
        removable += sparse.dense_cost.params - sparse.cost().params
        heads += sum(group.kind == "head" for group in sparse.groups)
    assert removable / total > 0.65
    assert (attentions > 20 and heads > 20) or family in ("maps", "mixtures")
