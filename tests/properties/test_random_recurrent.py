"""The properties of random networks, of recurrent ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zerogate as zg
from random_nets import layer_macs
from random_recurrent import RandomRecurrent
from support import close_randomly, randomise, relative

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@settings(max_examples=50, derandomize=True)
@given(st.integers(0, 10**9))
def test_recurrent_networks(seed: int) -> None:
    """Compacted ≡ gated, both costs are counts, and all hidden units can go."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = RandomRecurrent(seed).double()
    randomise(model, generator)
    x = model.inputs(2, generator)
    macs = layer_macs(model, x)
    sparse = zg.sparsify(model, x)
    assert sparse.dense_cost.params == sum(p.numel() for p in model.parameters())
    assert sparse.dense_cost.macs == macs
    refused = {row.layer: row.reason for row in sparse.report().rows if row.status == "refused"}
    assert set(refused) == {"head"}
    for fractional in (False, True):
        close_randomly(sparse, generator, fractional=fractional)
        small, fresh = sparse.compact().eval(), model.inputs(3, generator)
        with torch.no_grad():
            assert relative(model.eval()(fresh), small(fresh)) <= 1e-10
        cost = sparse.cost(hard=True)
        assert cost.params == sum(p.numel() for p in small.parameters())
        assert cost.macs == layer_macs(small, x)
