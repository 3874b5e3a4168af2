"""Latency, as a ratio of two networks measured in turn: these ratios survive a noisy machine, seconds do not."""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError


@torch.no_grad()
def latency_ratio(small: nn.Module, dense: nn.Module, x: Tensor, rounds: int = 30) -> float:
    """Median over rounds of (time of ``small(x)``) / (time of ``dense(x)``), measured A B A B in evaluation mode.

    Args:
        small, dense: on the device of x.
        x: one batch.
        rounds: pairs of measurements after three that warm up; a measurement repeats the forward for at least 2 ms.

    Raises `ZerogateError` for fewer than one round.
    """
    if rounds < 1:
        raise ZerogateError(f"latency needs at least 1 round, got {rounds}")
    modes = [(m, m.training) for net in (small, dense) for m in net.modules()]
    small.eval()
    dense.eval()
    for _ in range(3):
        once = _seconds(dense, x, 1)
        _seconds(small, x, 1)
    repeats = max(1, int(0.002 / max(once, 1e-9)))
    ratios = [_seconds(small, x, repeats) / _seconds(dense, x, repeats) for _ in range(rounds)]
    for module, training in modes:
        module.training = training
    return statistics.median(ratios)


def _seconds(model: nn.Module, x: Tensor, repeats: int) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    start = time.perf_counter()
    for _ in range(repeats):
        model(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return (time.perf_counter() - start) / repeats
