"""Learning rates over a run: drops at shares of it, and schedules of their own for groups of an optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from zerogate import rates
from zerogate.errors import ConfigError


def optimizer() -> torch.optim.SGD:
    groups = [{"name": name, "params": [torch.ones(1, requires_grad=True)], "lr": 0.1} for name in ("weights", "gates")]
    return torch.optim.SGD(groups, momentum=0.9)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(85, [56, 71]), (8, [5, 6]), (4, [2, 3]), (100, [66, 84]), (1, [1, 1])]
)
def test_drops_lie_at_shares_of_the_run(epochs: int, expected: list[int]) -> None:
    assert sorted(rates.drops(optimizer(), [0.66, 0.84], epochs).milestones.elements()) == expected
    assert [*rates.drops(optimizer(), [0.29], 100).milestones] == [29]  # 0.29 · 100 is 28.999999999999996


@pytest.mark.parametrize("share", [0, 1, -0.5, 66, True, "0.5"])
def test_shares_that_are_none_are_refused(share: Any) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        rates.drops(optimizer(), [share], 10)


def test_groups_have_schedules_of_their_own_that_resume() -> None:
    def make(which: torch.optim.Optimizer) -> rates.Apart:
        return rates.Apart(
            which, {"weights": lambda o: MultiStepLR(o, [2, 4]), "gates": lambda o: CosineAnnealingLR(o, 6)}
        )

    def steps(which: torch.optim.Optimizer, schedule: rates.Apart, count: int) -> list[list[float]]:
        found = []
        for _ in range(count):
            which.step()
            schedule.step()
            found.append([group["lr"] for group in which.param_groups])
            assert schedule.get_last_lr() == found[-1]
        return found

    whole = optimizer()
    wanted = steps(whole, make(whole), 6)
    one, two = optimizer(), optimizer()
    alone = [MultiStepLR(one, [2, 4]), CosineAnnealingLR(two, 6)]
    for expected in wanted:
        for each, schedule in zip((one, two), alone, strict=True):
            each.step()
            schedule.step()
        assert expected == [one.param_groups[0]["lr"], two.param_groups[1]["lr"]]
    stopped = optimizer()
    schedule = make(stopped)
    assert steps(stopped, schedule, 3) == wanted[:3]
    again = optimizer()
    resumed = make(again)
    again.load_state_dict(stopped.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    assert steps(again, resumed, 3) == wanted[3:]
