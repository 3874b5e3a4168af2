"""A smaller copy computes other numbers; it is run with what the whole model has decided by its own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly


class Experts(nn.Module):
    """Sends each row to the expert that a router prefers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.router, self.head = nn.Linear(4, 16), nn.Linear(16, 2), nn.Linear(16, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 16)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out, choice = torch.zeros_like(x), self.router(x).argmax(-1)
        for number, expert in enumerate(self.experts):
            (rows,) = torch.where(choice == number)
            out.index_add_(0, rows, expert(x[rows]))
        return self.head(x + out)


class Branch(nn.Module):
    """Asks Python for a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.more = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(4):
            if self.more(x).mean().item() > 0:
                x = x + self.inner(x)
        return self.head(x)


@pytest.mark.parametrize("seed", range(6))
def test_routes_to_experts_do_not_keep_channels(seed: int) -> None:
    torch.manual_seed(seed)
    sparse = zg.sparsify(Experts().double(), torch.randn(40, 4, dtype=torch.float64))
    assert sum(g.units for g in sparse.groups) == 16 + 2 * 12
    close_randomly(sparse, torch.Generator().manual_seed(seed), "share")
    sparse.compact()


@pytest.mark.parametrize("seed", range(4))
def test_a_branch_on_a_value_is_followed(seed: int) -> None:
    torch.manual_seed(seed)
    sparse = zg.sparsify(Branch().double(), torch.randn(5, 4, dtype=torch.float64), verify=False)
    assert [g.units for g in sparse.groups] == [16]


def test_an_expert_that_gets_no_row_is_told_in_plain_words() -> None:
    model = Experts()
    nn.init.constant_(model.router.bias[:1], 100.0)
    nn.init.constant_(model.router.bias[1:], -100.0)
    sparse = zg.sparsify(model, torch.randn(6, 4))
    reasons = " ".join(row.reason for row in sparse.report().rows)
    assert "of nothing: the example inputs leave it without entries" in reasons and "Error" not in reasons
