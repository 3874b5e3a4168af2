"""Learning rates over a run: drops at shares of it, and schedules of their own for groups of an optimizer."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from zerogate.errors import ConfigError
from zerogate.training import lr_schedules as rates


def optimizer() -> torch.optim.SGD:
    groups = [{"name": name, "params": [torch.ones(1, requires_grad=True)], "lr": 0.1} for name in ("weights", "gates")]
    return torch.optim.SGD(groups, momentum=0.9)


@pytest.mark.parametrize(("steps", "expected"), [(1408, [930, 1183]), (100, [66, 84]), (3, [2, 3]), (1, [1, 1])])
def test_drops_lie_at_shares_of_the_run(steps: int, expected: list[int]) -> None:
    assert sorted(rates.drops(optimizer(), [0.66, 0.84], steps).milestones.elements()) == expected
    assert [*rates.drops(optimizer(), [0.07], 100).milestones] == [7]  # 0.07 · 100 is 7.000000000000001


def test_the_first_step_after_a_share_has_the_lower_rate() -> None:
    which = optimizer()
    schedule = rates.drops(which, [0.5, 0.75], 8)
    used = []
    for _ in range(8):
        used.append(which.param_groups[0]["lr"])
        which.step()
        schedule.step()
    assert used == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)
    assert rates.interval(schedule) == "step" and rates.interval(MultiStepLR(which, [2])) == "epoch"


@pytest.mark.parametrize("share", [0, 1, -0.5, 66, True, "0.5"])
def test_shares_that_are_none_are_refused(share: Any) -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        rates.drops(optimizer(), [share], 10)


def test_groups_have_schedules_of_their_own_that_resume() -> None:
    def make(which: torch.optim.Optimizer) -> list[rates.GroupSchedule]:
        return [rates.GroupSchedule(which, "weights", lambda o: rates.drops(o, [0.3, 0.6], 6)),
                rates.GroupSchedule(which, "gates", lambda o: CosineAnnealingLR(o, 6))]  # fmt: skip

    def steps(which: torch.optim.Optimizer, schedules: list[rates.GroupSchedule], count: int) -> list[list[float]]:
        found = []
        for _ in range(count):
            which.step()
            for schedule in schedules:
                schedule.step()
            found.append([group["lr"] for group in which.param_groups])
            assert schedules[0].get_last_lr() == schedules[1].get_last_lr() == found[-1]
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
    schedules = make(stopped)
    assert [schedule.interval for schedule in schedules] == ["step", "epoch"]
    assert steps(stopped, schedules, 3) == wanted[:3]
    again = optimizer()
    resumed = make(again)
    again.load_state_dict(stopped.state_dict())
    for new, old in zip(resumed, schedules, strict=True):
        new.load_state_dict(old.state_dict())
    assert steps(again, resumed, 3) == wanted[3:]


def test_schedules_need_torch_alone() -> None:
    code = (
        "import sys, zerogate, torch.optim.lr_scheduler; old = set(sys.modules);"
        "import zerogate.training.lr_schedules; print(*sorted(set(sys.modules) - old))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"zerogate.training", "zerogate.training.lr_schedules", "zerogate.checks"}


def test_a_view_of_one_group_takes_no_steps() -> None:
    seen: list[torch.optim.Optimizer] = []

    def make(view: torch.optim.Optimizer) -> MultiStepLR:
        seen.append(view)
        return MultiStepLR(view, [2])

    rates.GroupSchedule(optimizer(), "gates", make)
    assert [group["name"] for group in seen[0].param_groups] == ["gates"]
    with pytest.raises(NotImplementedError, match="the whole optimizer takes the steps"):
        seen[0].step()
