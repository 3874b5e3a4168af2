"""Runs beside the record: where a smaller copy leaves it, and why."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import Lambda, close_randomly
from zerogate.groups.recording.record_run import watch
from zerogate.groups.recording.twin import twin_of
from zerogate.groups.trial.trial import Trial
from zerogate.groups.units import UnitFilter


def trial_of(forward: Callable[[nn.Module, Tensor], Tensor]) -> Trial:
    model = Lambda(forward, one=nn.Linear(5, 8), two=nn.Linear(8, 3))
    inputs = torch.randn(4, 5)
    recording = watch(model, inputs)
    return Trial(recording.twin or twin_of(model, meta=False), inputs, recording, UnitFilter())


def test_a_run_that_follows_its_labels_is_followed_to_the_end() -> None:
    trial = trial_of(lambda m, x: m.two(m.one(x).relu().view(x.shape[0], -1)))
    structure = trial.find_units()
    assert trial.run(structure, torch.arange(8) < 5) is None
    assert trial.run(structure, torch.arange(8) < 1) is None


@pytest.mark.parametrize(
    ("between", "step", "reason"),
    [
        (lambda x: x.view(-1, 8), "view", "view to a size that is written down"),
        (lambda x: torch.cat([x[:, 3:], x[:, :3]], 1), "slice", "slice at a fixed place among channels"),
        (lambda x: x * x.shape[1], "mul", "mul with a number that depends on the size"),
        (lambda x: x.relu() if x.shape[1] == 8 else x.tanh(), "relu", "the forward takes another way"),
        (lambda x: x + torch.ones(8), "add", "add of tensors whose sizes no longer agree"),
        (
            lambda x: (y := x.relu()).abs() + (x if x.shape[1] == 8 else y),
            "add",
            "what add reads depends on a size",
        ),
        (lambda x: x * torch.tensor(x.shape[1] ** -0.5), "detach_", "reads depends on a size"),
        (lambda x: x.view(2, 2, -1).transpose(0, int(x.shape[1] == 8)).flatten(0, 1), "transpose", "with a number"),
        (lambda x: x.masked_fill(x > 0, x.shape[1] / 8), "masked_fill", "masked_fill with a number"),
    ],
)
def test_where_and_why_a_run_diverges(between: Callable[[Tensor], Tensor], step: str, reason: str) -> None:
    trial = trial_of(lambda m, x: m.two(between(m.one(x))))
    structure = trial.find_units()
    kept = torch.arange(8) % 2 == 0
    divergence = trial.run(structure, kept)
    assert divergence is not None and reason in divergence.reason
    assert trial.recording.steps[divergence.step].name == step
    assert divergence.call is not None
    assert divergence == trial.run(structure, kept)  # what an op is given can be compared


class Tokens(nn.Module):
    """Looks at its tokens in ways whose shape-only versions know no values."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 16), nn.Linear(16, 4)
        self.body = nn.Linear(16, 16)

    def forward(self, ids: Tensor) -> Tensor:
        if 8 in ids[:, [-1, 0]]:
            raise ValueError("padding")
        steps = torch.zeros(ids.shape[1], dtype=torch.int64, device=ids.device)
        seen = steps.view(-1, 1)
        steps += 1  # what was made of it before changes, too
        if int(seen.sum()) != len(steps) or int((ids >= 0).nonzero()[:, 0].max()) != len(ids) - 1:
            raise ValueError("something else was computed")
        return self.head(self.body(self.table(ids)).relu())


def test_values_of_tokens_are_known_without_data() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert watch(Tokens(), {"ids": ids}).meta
    sparse = zg.sparsify(Tokens(), {"ids": ids})
    close_randomly(sparse, torch.Generator().manual_seed(0))
    sparse.compact()


class Fills(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(9, 16), nn.Linear(16, 4)

    def forward(self, ids: Tensor) -> Tensor:
        ids.clamp_(max=3)
        return self.head(self.table(ids))


def test_inputs_stay_as_they_are() -> None:
    ids = torch.tensor([[1, 7, 3]])
    zg.sparsify(Fills(), ids)
    assert ids.tolist() == [[1, 7, 3]]
