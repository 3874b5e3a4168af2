"""Latency ratios."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zerogate as zg
from zerogate.cost.stopwatch import latency_ratio


def test_latency_ratio() -> None:
    big = nn.Sequential(*[nn.Linear(600, 600) for _ in range(4)]).train()
    x = torch.randn(64, 600)
    assert latency_ratio(nn.Linear(600, 2), big, x, rounds=5) < 0.6
    assert big[0].training
    with pytest.raises(zg.ZerogateError, match="got 0"):
        latency_ratio(big, big, x, rounds=0)
