"""Latency, as a ratio of two networks measured in turn: these ratios survive a noisy machine, seconds do not."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zerogate.checks import check_whole

WARM_UP = 3
"""Rounds that are not counted: the first runs of a network choose kernels and fill caches."""
SHORTEST = 0.002
"""Seconds that a measurement lasts at least, by repeating the forward; a clock's own cost is nothing beside them."""


@torch.no_grad()
def latency_ratio(small: nn.Module, dense: nn.Module, x: Tensor, rounds: int = 30) -> float:
    """Median over rounds of (time of ``small(x)``) / (time of ``dense(x)``), in turn and in evaluation mode.

    Args:
        small, dense: networks on the device of x.
        x: one batch.
        rounds: pairs of measurements, after `WARM_UP` that are not counted; each lasts at least `SHORTEST` seconds.

    Raises:
        ZerogateError: `rounds` is no whole number of at least 1.
    """
    return statistics.median(a / b for a, b in seconds_in_turn([small, dense], x, rounds))


@torch.no_grad()
def seconds_in_turn(networks: Sequence[nn.Module], x: Tensor, rounds: int = 30) -> list[list[float]]:
    """Seconds of a forward of each network in evaluation mode, measured once in every round.

    The order within a round is random, so that no network always comes after the same one. Where torch computes with one
    thread of a CPU, seconds are those of the process: what other processes do with the core does not count.

    Args:
        networks: on the device of x.
        x: one batch.
        rounds: how many, after `WARM_UP` that are not counted; a measurement lasts at least `SHORTEST` seconds.

    Returns:
        A list for every round, in the order of the networks.

    Raises:
        ZerogateError: `rounds` is no whole number of at least 1.
    """
    check_whole("rounds", rounds)
    modes = [(m, m.training) for net in networks for m in net.modules()]
    for net in networks:
        net.eval()
    for _ in range(WARM_UP):
        once = [_seconds(net, x, 1) for net in networks]
    repeats = max(1, int(SHORTEST / max(min(once), 1e-9)))
    seconds = []
    for number in range(rounds):
        order = list(range(len(networks)))
        random.Random(number).shuffle(order)
        times = {index: _seconds(networks[index], x, repeats) for index in order}
        seconds.append([times[index] for index in range(len(networks))])
    for module, training in modes:
        module.training = training
    return seconds


def _seconds(model: nn.Module, x: Tensor, repeats: int) -> float:
    """Mean seconds of one forward over this many."""
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    clock = time.process_time if x.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        model(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return (clock() - start) / repeats
