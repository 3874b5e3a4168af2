"""What networks cost and what their gates leave: dense, deployed, expected, and as a ticket would."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

import zerogate
from zerogate.errors import WatchError
from zerogate.sparsified import Sparsified
from zerogate.sparsify import UnitName


def dense_cost(model: nn.Module, examples: Tensor) -> dict[str, int | None]:
    """`params` and `macs` of a model without gates; MACs are None for a model that cannot be recorded.

    Args:
        model: stays as it is.
        examples: images [B, C, H, W].
    """
    try:
        cost = zerogate.sparsify(copy.deepcopy(model), examples, unit="weight", exclude=[]).dense_cost
    except WatchError:
        return {"params": sum(parameter.numel() for parameter in model.parameters()), "macs": None}
    return {"params": cost.params, "macs": cost.macs}


def deployed_cost(model: nn.Module, sparse: Sparsified | None, examples: Tensor) -> dict[str, int | None]:
    """`params` and `macs` of the network that would be deployed: the compacted one, or the model without gates."""
    if sparse is None:
        return dense_cost(model, examples)
    cost = sparse.cost(hard=True)
    return {"params": cost.params, "macs": cost.macs}


def densities(sparse: Sparsified) -> dict[str, float]:
    """Deployed and expected density of parameters and MACs: what is left, as shares of the dense network's."""
    dense, deployed, expected = sparse.dense_cost, sparse.cost(hard=True), sparse.cost(hard=False)
    return {
        "density_params": deployed.params / dense.params,
        "density_macs": deployed.macs / dense.macs,
        "expected_density_params": float(expected.params.detach()) / dense.params,
        "expected_density_macs": float(expected.macs.detach()) / dense.macs,
    }


def remaining(sparse: Sparsified | None) -> float:
    """The share that the deployed mask keeps: of the gated weights, or of all parameters where whole units go."""
    if sparse is None:
        return 1.0
    if sparse.unit == "weight":
        return zerogate.Mask.of(sparse).density
    return float(sparse.cost().params / sparse.dense_cost.params)


@dataclass(frozen=True)
class TicketSize:
    """Parameters of a network and of a ticket in it."""

    gated: int
    """Parameters that gates of this unit lie on."""
    remaining: int
    """Parameters of the whole network that the ticket leaves."""
    dense: int
    """Parameters of the whole network."""


def ticket_size(
    model: nn.Module, examples: Tensor, density: float | None, unit: UnitName, exclude: Sequence[str] | None
) -> TicketSize:
    """How large a ticket is, that keeps the share `density` of the gates of `unit` (None: all of them).

    Args:
        model: stays as it is.
        examples: images [B, C, H, W].
        exclude: patterns of layer names to leave dense.
    """
    share = density or 1.0
    gate = zerogate.Random(share)
    sparse = zerogate.sparsify(copy.deepcopy(model), examples, gate=gate, unit=unit, exclude=exclude)
    dense = sparse.dense_cost.params
    if sparse.unit != "weight":
        return TicketSize(dense, sparse.cost().params, dense)
    gated = len(sparse.logits)
    return TicketSize(gated, dense - gated + round(share * gated), dense)
