"""The closed form against the plain ops."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import zerogate as zg
from zerogate.cost.model import CostModel


class Deep(nn.Module):
    """A block in which the longest way between its two ends has four layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))
        self.e, self.f, self.g = nn.Linear(3, 2), nn.Linear(8, 3), nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.a(x).relu()
        y = self.b(x).relu()
        z = self.d(self.c(y).relu() * 2.0).relu()
        return self.g(self.f(torch.cat([self.e(z), x + 0.0, y + 0.0], -1).relu()).relu())


@pytest.mark.parametrize("direct", [200_000, 0], ids=["direct", "in rounds"])
@pytest.mark.parametrize("options", [{}, {"min_channels": 2, "round_to": 2}])
@pytest.mark.parametrize("network", [Deep, zg.models.googlenet, zg.models.lenet300])
def test_the_closed_form_is_the_plain_ops(
    network: type[nn.Module], options: dict[str, int], direct: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values and gradients, also where many groups are closed and where p is in float32."""
    monkeypatch.setattr("zerogate.cost.closed_form.MAX_DIRECT_ENTRIES", direct)
    shape = {Deep: (2, 3), zg.models.googlenet: (2, 3, 32, 32), zg.models.lenet300: (2, 1, 28, 28)}[network]
    sparse = zg.sparsify(network(), torch.randn(shape), **options)  # type: ignore[arg-type]
    cost = sparse.cost_model
    for kind, closes in itertools.product((torch.float64, torch.float32), (False, True)):
        p = torch.rand(cost.units).to(kind)
        for group in sparse.groups if closes else ():
            p[group.slice] = p[group.slice].round() if torch.rand(()) < 0.5 else 0.0
        p.requires_grad_()
        for over in ("params", "macs"):
            closed = cost.weighted(p, over, 0.5)
            plain = CostModel.weighted(cost, p, over, 0.5)
            assert closed.dtype == plain.dtype == kind
            torch.testing.assert_close(closed, plain)
            found, wanted = (torch.autograd.grad(x, p)[0] for x in (closed, plain))
            near = 1e-9 if kind == torch.float64 else 1e-6
            torch.testing.assert_close(found, wanted, rtol=near, atol=near * float(1 + wanted.abs().max()))
