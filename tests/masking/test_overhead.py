"""What gates add to a training step: calls, kept tensors and host reads."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from gated_networks import Calls
from zerogate.masking.activations import ScaleChannels

HOST_READS = {"_local_scalar_dense", "is_nonzero", "item", "nonzero", "masked_select", "equal", "tolist"}


def a_step(name: str, **options: Any) -> tuple[int, int, float]:
    """Calls and host reads of a forward and backward, and MiB kept for the latter, of parameters aside."""
    options = copy.deepcopy(options)
    torch.manual_seed(0)
    model, x, y = getattr(zg.models, name)(), torch.randn(2, 3, 32, 32), torch.randint(10, (2,))
    sparse = zg.sparsify(model, x, **options) if options else None
    parameters = [*model.parameters(), *(sparse.parameters() if sparse else ())]
    own = {p.untyped_storage().data_ptr() for p in parameters}

    def loss() -> Tensor:
        found = F.cross_entropy(model(x), y)
        return found if sparse is None else found + sparse.loss()

    loss().backward()
    for p in parameters:
        p.grad = None
    with Calls() as calls:
        loss().backward()
    kept: dict[int, Any] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss()
    reads = sum(name in HOST_READS for name in calls.names)
    return len(calls.names), reads, sum(s.nbytes() for s in kept.values()) / 2**20


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"gate": zg.HardConcrete()}, 1.05),
        ({"gate": zg.SoftMask()}, 1.045),
        ({"gate": zg.HardConcrete(), "unit": "weight"}, 1.06),
        ({"gate": zg.SoftMask(), "unit": "weight"}, 1.045),
        ({"gate": zg.SoftMask(), "unit": "weight", "objective": zg.Penalty(1.0, over="macs")}, 1.055),
        ({"objective": zg.Penalty(1.0, over="params")}, 1.105),
        ({"objective": zg.Penalty(1.0, over="macs")}, 1.105),
        ({"objective": zg.Target(params=0.5, steps=9)}, 1.125),
        ({"gate": zg.SoftMask(), "objective": zg.Target(macs=0.5, steps=9)}, 1.13),
        ({"per_example": True}, 1.20),
    ],
)
def test_calls_of_a_step(options: Any, most: float) -> None:
    dense, _, _ = a_step("googlenet")
    gated, reads, _ = a_step("googlenet", **options)
    assert gated <= most * dense
    assert reads == 0


def test_depth_costs_no_calls() -> None:
    """Expected costs of chains: as many calls for twenty layers as for three."""
    counts = []
    for depth in (3, 20):
        model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(depth)))
        sparse = zg.sparsify(model, torch.randn(2, 6))
        with Calls() as calls:
            sparse.cost(hard=False).params.backward()
        counts.append(len(calls.names))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("gate", [zg.SoftMask(), zg.HardConcrete()])
def test_weight_masks_keep_little(gate: zg.Gate) -> None:
    """The masked weights, which convolutions keep; random gates also the gates."""
    _, _, dense = a_step("resnet20")
    _, _, gated = a_step("resnet20", gate=gate, unit="weight")
    weights = 267_696 * 4 / 2**20
    assert gated - dense <= weights * (1 if isinstance(gate, zg.SoftMask) else 2) + 0.01


def test_a_product_is_two_calls_where_channels_lie_together() -> None:
    for layout, most in ((torch.contiguous_format, 2), (torch.channels_last, 3)):
        x, z = torch.randn(3, 4, 2, 2).contiguous(memory_format=layout).requires_grad_(), torch.rand(3, 4)
        grad, times = torch.ones_like(x), ScaleChannels()
        times(x, z.requires_grad_(), 1)  # makes its constants
        with Calls() as calls:
            torch.autograd.grad(times(x, z, 1), (x, z), grad)
        assert len(calls.names) == most
