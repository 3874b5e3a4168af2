"""Convolutions whose weight is a buffer, as blurring before a stride: sliced with the channels, counted, never gated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zerogate as zg
from support import close_randomly


class Blur(nn.Module):
    """Blurs each channel by itself."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.ones(channels, 1, 3, 3) / 9)

    def forward(self, x: Tensor) -> Tensor:
        return torch.conv2d(x, self.kernel, stride=2, padding=1, groups=x.shape[1])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), Blur(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).double()


@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_a_buffer_is_counted_reported_and_sliced(unit: str) -> None:
    model, x = network(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    sparse = zg.sparsify(model, x, unit=unit)  # type: ignore[arg-type]
    assert len(sparse.logits) == (8 if unit == "channel" else 216 + 32)
    with FlopCounterMode(display=False) as counter:
        model.eval()(x)
    assert sparse.dense_cost.macs == counter.get_total_flops() // 2 // len(x)
    assert [row.layer for row in sparse.report().rows] == ["0", "3"]
    close_randomly(sparse, torch.Generator().manual_seed(1), "share")
    small = sparse.compact()
    if unit == "channel":
        assert len(small.get_buffer("1.kernel")) == small.get_parameter("0.weight").shape[0] < 8
        with FlopCounterMode(display=False) as counter:
            small.eval()(x)
        assert sparse.cost().macs == counter.get_total_flops() // 2 // len(x)
