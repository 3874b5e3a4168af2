"""torch.jit.trace takes a compacted attention as it takes torch's own, with every kind of mask."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly


class Net(nn.Module):
    def __init__(self, masks: str, **options: Any) -> None:
        super().__init__()
        self.masks = masks
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True, **options)

    def forward(self, x: Tensor) -> Tensor:
        x, n = self.first(x), x.shape[1]
        closed, padded = torch.ones(n, n, dtype=torch.bool).triu(1), torch.arange(n).expand(len(x), n) == n - 1
        masks: dict[str, Tensor] = {}
        if "attn" in self.masks:
            masks["attn_mask"] = closed if "bool" in self.masks else closed * -1e9
        if "pad" in self.masks:
            masks["key_padding_mask"] = padded if "bool" in self.masks else padded * -1e9
        y: Tensor = self.last(self.attention(x, x, x, need_weights="weights" in self.masks, **masks)[0])
        return y


@pytest.mark.parametrize("masks", ["", "attn bool", "pad bool", "attn pad bool", "attn float", "pad float weights"])
@pytest.mark.parametrize("options", [{}, {"add_zero_attn": True}])
def test_traced_with_masks(masks: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 4)
    sparse = zg.sparsify(Net(masks, **options).eval(), x, unit={"channel", "head"})
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing, which torch deprecates, and of sizes that it fixes
        traced = torch.jit.trace(small, (x,), check_trace=False)
    assert torch.equal(traced(x), small(x))
