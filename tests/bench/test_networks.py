"""Networks that a table compares."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zerogate as zg
from support import close_randomly
from zerogate.bench.networks import built_like, widths
from zerogate.errors import ZerogateError


@pytest.mark.parametrize(
    ("name", "shape"), [("googlenet", (3, 32, 32)), ("resnet20", (3, 32, 32)), ("lenet5", (1, 28, 28))]
)
def test_a_network_built_at_the_widths_of_a_compacted_one(name: str, shape: tuple[int, int, int]) -> None:
    make, x = getattr(zg.models, name), torch.randn(2, *shape)
    model = make(in_channels=shape[0])
    sparse = zg.sparsify(model, x)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact().eval()
    built = built_like(small, make(in_channels=shape[0])).eval()
    assert widths(built) == widths(small) and type(built) is type(small)
    own = {id(p) for p in small.parameters()}
    assert not any(id(p) in own for p in built.parameters())
    assert [type(m) for m in built.modules()] == [type(m) for m in small.modules()]
    built.load_state_dict(small.state_dict())
    assert torch.equal(built(x), small(x))


def test_what_cannot_be_built_layer_by_layer_is_refused() -> None:
    make = lambda: nn.Sequential(nn.Linear(4, 8), nn.Embedding(5, 3), nn.LayerNorm(8))  # noqa: E731
    small = make()
    small[2] = nn.LayerNorm(6)
    with pytest.raises(ZerogateError, match="2 is a LayerNorm"):
        built_like(small, make())
