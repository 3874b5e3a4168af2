"""On networks nobody wrote by hand that do more in training mode: compacted ≡ gated in both modes, cost ≡ count."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import zerogate as zg
from random_nets import layer_macs
from random_supervision import RandomSupervision
from support import close_randomly, randomise, relative
from training_mode import difference_in_training


def check(seed: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = RandomSupervision(seed).double()
    randomise(model, generator)
    x = model.inputs(3, generator)
    try:
        sparse = zg.sparsify(model, x, unit=("channel", "head"), verify=False)
    except zg.WatchError as error:
        assert "no unit that could be removed" in str(error)
        assume(False)
    assert not sparse.structure.unseen_training
    for _ in range(2):
        close_randomly(sparse, generator)
        small, fresh = sparse.compact().eval(), model.inputs(4, generator)
        with torch.no_grad():
            assert relative(model.eval()(fresh), small(fresh)) <= 1e-10
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
        assert sparse.cost().macs == layer_macs(small, x)
        assert difference_in_training(sparse, [model.inputs(6, generator) for _ in range(2)]) <= 1e-9


@settings(max_examples=25, derandomize=True)
@given(st.integers(0, 10**9))
def test_auxiliary_heads(seed: int) -> None:
    check(seed)


def test_most_of_these_networks_do_more_in_training_mode() -> None:
    apart = 0
    for seed in range(12):
        torch.manual_seed(seed)
        model = RandomSupervision(seed)
        sparse = zg.sparsify(model, model.inputs(3, torch.Generator().manual_seed(seed)), verify=False)
        apart += sparse.structure.trains_apart
    assert apart >= 8
