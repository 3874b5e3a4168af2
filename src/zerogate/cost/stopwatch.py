"""Latency, as a ratio of two networks measured in turn: these ratios survive a noisy machine, seconds do not."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError


@torch.no_grad()
def latency_ratio(small: nn.Module, dense: nn.Module, x: Tensor, rounds: int = 30) -> float:
    """Median over rounds of (time of ``small(x)``) / (time of ``dense(x)``), in turn and in evaluation mode.

    Args:
        small, dense: on the device of x.
        x: one batch.
        rounds: pairs of measurements after three that warm up; a measurement repeats the forward for at least 2 ms.

    Raises `ZerogateError` for fewer than one round.
    """
    return statistics.median(a / b for a, b in seconds_in_turn([small, dense], x, rounds))


@torch.no_grad()
def seconds_in_turn(networks: Sequence[nn.Module], x: Tensor, rounds: int = 30) -> list[list[float]]:
    """Seconds of a forward of each network in evaluation mode, for every round, in each of which all have their turn.

    Every round has an order of its own, so that none always comes after the same one. Where torch computes with one thread
    of a CPU, seconds are those of the process: what others do with the core meanwhile does not count.

    Args:
        networks: on the device of x. x: one batch.
        rounds: after three that warm up; a measurement repeats the forward for at least 2 ms.

    Returns:
        A list for every round, in the order of the networks.

    Raises `ZerogateError` for fewer than one round.
    """
    if rounds < 1:
        raise ZerogateError(f"latency needs at least 1 round, got {rounds}")
    modes = [(m, m.training) for net in networks for m in net.modules()]
    for net in networks:
        net.eval()
    for _ in range(3):
        once = [_seconds(net, x, 1) for net in networks]
    repeats = max(1, int(0.002 / max(min(once), 1e-9)))
    taken = []
    for number in range(rounds):
        order = list(range(len(networks)))
        random.Random(number).shuffle(order)
        times = {index: _seconds(networks[index], x, repeats) for index in order}
        taken.append([times[index] for index in range(len(networks))])
    for module, training in modes:
        module.training = training
    return taken


def _seconds(model: nn.Module, x: Tensor, repeats: int) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    clock = time.process_time if x.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(repeats):
        model(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return (clock() - start) / repeats
