"""What every rule must hold: what it lets go can go, at the cost that is stated, and the gates learn."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import zerogate as zg
from support import close_randomly

BOTH = {"channel", "head"}


class Net(nn.Module):
    """A forward as a function, with what it needs: modules, parameters and numbers."""

    def __init__(self, function: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def parameter(*shape: int) -> nn.Parameter:
    """A parameter with random values."""
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))))


def real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers; any other as it is."""
    return torch.view_as_real(x) if x.is_complex() else x


def outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """All that a model returns, in evaluation mode."""
    with torch.no_grad():
        out = model.eval()(*inputs)
    return [real(x) for x in (out if isinstance(out, (tuple, list)) else [out])]


def flops(model: nn.Module, inputs: tuple[Tensor, ...]) -> float:
    """MACs of one example, as torch counts them: of convolutions and products of matrices."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(*inputs)
    return counter.get_total_flops() / 2 / len(inputs[0])


def precise(x: Any) -> Any:
    """A tensor or module in the precision of float64; complex parameters stay what they are."""
    if isinstance(x, nn.Module):
        return x.double()
    return x.to(torch.complex128) if x.is_complex() else x.double() if x.is_floating_point() else x


def check_rule(
    model: nn.Module,
    *inputs: Tensor,
    units: dict[str, int] | int,
    witness: bool = True,
    closings: int = 4,
    **options: Any,
) -> zg.Sparsified:
    """Sparsifies in float64, closes gates at random and compares outputs, parameters and MACs; then trains a few steps.

    Args:
        units: of each group, or of all.
        witness: whether torch's own counter sees all products of the network.
        options: of `zg.sparsify`.
    """
    model = precise(copy.deepcopy(model))
    doubled = tuple(precise(x) for x in inputs)
    sparse = zg.sparsify(model, doubled, unit=BOTH, **options)
    found = {g.name: g.units for g in sparse.groups}
    assert (found if isinstance(units, dict) else sum(found.values())) == units, (found, sparse.report().markdown())
    generator = torch.Generator().manual_seed(0)
    for number in range(closings):
        close_randomly(sparse, generator, "share" if number < 2 else None)
        small = sparse.compact()
        for a, b in zip(outputs(model, doubled), outputs(small, doubled), strict=True):
            assert a.shape == b.shape
            assert (a - b).abs().max() <= 1e-10 * a.abs().max().clamp(min=1e-3)
        cost = sparse.cost()
        assert cost.params == sum(p.numel() for p in small.parameters())
        if witness:
            assert cost.macs == flops(small, doubled)
    train(sparse, model, doubled)
    return sparse


def train(sparse: zg.Sparsified, model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """A few steps, after which the compacted network still equals the gated one."""
    with torch.no_grad():
        sparse.logits.uniform_(-1, 1)
    optimizer = torch.optim.Adam(sparse.param_groups(lr=1e-3, gate_lr=0.1))
    for _ in range(2):
        out = model.train()(*inputs)
        loss = sum(real(x).square().mean() for x in (out if isinstance(out, (tuple, list)) else [out]))
        (loss + sparse.loss()).backward()
        assert sparse.logits.grad is not None and sparse.logits.grad.isfinite().all() and sparse.logits.grad.any()
        optimizer.step()
        optimizer.zero_grad()
        sparse.step()
    small = sparse.compact()
    for a, b in zip(outputs(model, inputs), outputs(small, inputs), strict=True):
        assert (a - b).abs().max() <= 1e-10 * a.abs().max().clamp(min=1e-3)


def refused(model: nn.Module, *inputs: Tensor) -> dict[str, str]:
    """Layers whose channels all stay → why; of networks without any unit, the message under ''."""
    try:
        rows = zg.sparsify(model, inputs, unit=BOTH).report().rows
    except zg.WatchError as error:
        return {"": str(error)}
    return {row.layer: row.reason for row in rows if row.status == "refused"}
