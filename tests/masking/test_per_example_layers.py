"""Per-example gates multiply what a layer is called with: that is right for some layers, and refused for all others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly, relative


class Experts(nn.Module):
    """Holds both of its matrices itself."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.randn(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.up).relu(), self.down)


class WithSkip(nn.Linear):
    """Reads its input a second time."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x.sum(-1, keepdim=True)


@pytest.mark.parametrize("middle", [Experts, lambda: WithSkip(8, 8)])
def test_a_layer_that_may_do_more_with_its_input_is_refused(middle: Any) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), middle(), nn.Linear(8, 3))

    with pytest.raises(zg.ZerogateError, match=r"may read 1\.\w+ with something else; exclude it with exclude=\['1'\]"):
        zg.sparsify(make(), torch.randn(4, 5), per_example=True)
    zg.sparsify(make(), torch.randn(4, 5))


def equals_evaluation(model: nn.Module, x: Tensor) -> int:
    """Trains with gates that are all but hard, which must be the deployed mask; returns the number of gates."""
    sparse = zg.sparsify(model.double(), x, per_example=True)
    for seed in range(3):
        close_randomly(sparse, torch.Generator().manual_seed(seed), "share")
        sparse.logits.data.mul_(4)  # so that no draw is in between
        deployed = model.eval()(x)
        assert relative(deployed, model.train()(x)) < 1e-9
        assert relative(deployed, sparse.compact().eval()(x)) < 1e-9
    model.train()(x).sum().backward()
    assert sparse.logits.grad is not None
    return len(sparse.logits)


@pytest.mark.parametrize(("groups", "width"), [(1, 16), (2, 16), (4, 16), (8, 16), (16, 16), (3, 12)])
@pytest.mark.parametrize("transposed", [False, True])
def test_convolutions_in_groups(groups: int, width: int, transposed: bool) -> None:
    torch.manual_seed(0)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    model = nn.Sequential(
        *(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), kind(width, 4 * width, 3, padding=1, groups=groups)),
        *(nn.ReLU(), nn.Conv2d(4 * width, 4, 1)),
    )
    equals_evaluation(model, torch.randn(2, 3, 6, 6, dtype=torch.float64))


def test_padding_by_reflection() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect"))
    assert equals_evaluation(model, torch.randn(2, 3, 6, 6, dtype=torch.float64)) == 8


def test_a_layer_called_with_keywords_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.last(input=self.first(x).relu())
            return y

    model = Net()
    zg.sparsify(model, torch.randn(2, 5), per_example=True)
    with pytest.raises(zg.ZerogateError, match="called with keywords alone; pass its input by position"):
        model.train()(torch.randn(2, 5))
