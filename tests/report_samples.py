"""Reports and gated networks that several test files of reports share."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly
from zerogate.report.table import GroupRow, Report, Row


def closed(model: nn.Module, x: Any, share: bool = True, **options: Any) -> zg.Sparsified:
    torch.manual_seed(0)
    sparse = zg.sparsify(model, x, **options)
    with torch.no_grad():
        sparse.logits.fill_(8.0)
    if share:
        close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    return sparse


class Distances(nn.Module):
    """An op without a rule that reads two matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.centres, self.further = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cdist(torch.cdist(x, self.centres), self.further)


class Unfollowed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.distances, self.hidden, self.out = Distances(), nn.Linear(4, 6), nn.Linear(6, 2)
        self.unused, self.memory = nn.Bilinear(2, 3, 4), nn.Parameter(torch.zeros(4, 4))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(self.distances(x))) * self.scale)


def odd() -> Report:
    reason = "x[:, :32] | y has no rule in <lambda> (a.py:3)"
    row = Row("a|b", "Odd", None, (3, 4), (1234, 5678), "refused", reason)
    group = GroupRow("a[0]", "head", (1, 2), ("a", "b"), ("[red]c",))
    return Report((row,), (1234, 5678), (0, 0), "channel+head", (1, 2), (group,))


def shown(report: Report, width: int = 120) -> str:
    console = pytest.importorskip("rich.console")
    out = io.StringIO()
    console.Console(file=out, width=width, force_terminal=False).print(report)
    return out.getvalue()
