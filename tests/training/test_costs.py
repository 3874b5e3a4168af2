"""What networks cost and what their gates leave, beside counts by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import zerogate as zg
from zerogate.training.costs import TicketSize, dense_cost, densities, deployed_cost, remaining, ticket_size

X = torch.randn(2, 6)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 3))


def test_the_dense_cost_is_counted_and_the_model_stays_as_it_is() -> None:
    model = network()
    assert dense_cost(model, X) == {"params": 6 * 10 + 10 + 10 * 3 + 3, "macs": 6 * 10 + 10 * 3}
    assert deployed_cost(model, None, X) == dense_cost(model, X)
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert dense_cost(nn.Sequential(nn.Flatten()), X) == {"params": 0, "macs": None}  # nothing that could be recorded


def test_the_deployed_cost_is_that_of_the_open_channels() -> None:
    model = network()
    sparse = zg.sparsify(model, X, gate=zg.Random(0.4), unit="channel")
    params, macs = 6 * 4 + 4 + 4 * 3 + 3, 6 * 4 + 4 * 3
    assert deployed_cost(model, sparse, X) == {"params": params, "macs": macs}
    assert densities(sparse)["density_params"] == params / 103 and densities(sparse)["density_macs"] == macs / 90
    assert remaining(sparse) == params / 103 and remaining(None) == 1.0


def test_of_single_weights_the_share_of_gated_ones_remains() -> None:
    sparse = zg.sparsify(network(), X, gate=zg.Random(0.3), unit="weight")
    assert remaining(sparse) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("density", "unit", "exclude", "size"),
    [
        (0.5, "weight", None, TicketSize(90, 103 - 90 + 45, 103)),
        (0.5, "weight", ["2"], TicketSize(60, 103 - 60 + 30, 103)),
        (None, "weight", None, TicketSize(90, 103, 103)),
        (0.4, "channel", None, TicketSize(103, 6 * 4 + 4 + 4 * 3 + 3, 103)),
    ],
)
def test_the_size_of_a_ticket(density: float | None, unit: str, exclude: list[str] | None, size: TicketSize) -> None:
    model = network()
    assert ticket_size(model, X, density, unit, exclude) == size  # type: ignore[arg-type]
