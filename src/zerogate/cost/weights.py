"""What a network costs where units are single weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from zerogate.cost.model import Cost, CostModel, Expected
from zerogate.modules.device_tables import DeviceTables
from zerogate.modules.internals import foreach_norm, must_stay_traceable
from zerogate.structure import Axis, Structure


class WeightCost(CostModel):
    """Open weights, and the MACs that they take part in; plus every parameter and MAC that has no gate.

    Args:
        structure: whose layer calls are counted.
        slices: which units gate each weight tensor, by the tensor's name.
        shapes: shape of every parameter, by name, each parameter once.
    """

    def __init__(self, structure: Structure, slices: Mapping[str, slice], shapes: Mapping[str, torch.Size]) -> None:
        def size(axis: Axis | None) -> int:
            return 1 if axis is None else structure.size(axis, shapes)

        macs: dict[str, float] = dict.fromkeys(slices, 0.0)  # of one entry of each gated tensor
        self._fixed_macs = 0.0
        for c in structure.calls:
            total = 0.0 if c.training else c.macs * size(c.consumes) * size(c.produces) * size(c.repeats)
            if c.weight in macs:
                macs[c.weight] += total / shapes[c.weight].numel()
            else:
                self._fixed_macs += total
        self._fixed_params = sum(shape.numel() for name, shape in shapes.items() if name not in slices)
        self._sizes = [s.stop - s.start for s in slices.values()]
        self.units = sum(self._sizes)
        self._macs = list(macs.values())
        self._weights: DeviceTables[Tensor] = DeviceTables(latest=True)

    def weighted(self, p: Tensor, over: str, weight: float = 1.0) -> Tensor:
        plain = not self._sizes or p.dtype == torch.float64  # the plain ops copy nothing then
        if plain or must_stay_traceable() or p.is_meta:
            return super().weighted(p, over, weight)

        def weights() -> Tensor:
            each = [1.0] * len(self._sizes) if over == "params" else self._macs
            return torch.tensor([weight * x for x in each], dtype=torch.float64, device=p.device)

        fixed = self._fixed_params if over == "params" else self._fixed_macs
        cost: Tensor = _WeightedSum.apply(
            p, self._sizes, self._weights.get((over, weight, p.device), weights), weight * fixed
        )
        return cost

    def formula(self, p: Tensor) -> Expected:
        parts = p.split(self._sizes) if self._sizes else ()
        sums = torch.stack([p.new_zeros(()), *(part.sum() for part in parts)])[1:]
        return Cost(sums.sum() + self._fixed_params, sums @ sums.new_tensor(self._macs) + self._fixed_macs)

    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        return is_open


class _Context(FunctionCtx):
    dtype: torch.dtype
    lengths: Sequence[int]
    weights: Tensor


class _WeightedSum(torch.autograd.Function):
    """fixed + Σ over the parts of p, of these lengths, of weight · sum of the part: 0-dim of p's type, for p ≥ 0.

    The sums are norms, which torch computes of many tensors in one kernel. ``weights``: float64 [parts]."""

    @staticmethod
    def forward(ctx: _Context, p: Tensor, lengths: Sequence[int], weights: Tensor, fixed: float) -> Tensor:
        ctx.dtype, ctx.lengths, ctx.weights = p.dtype, lengths, weights
        sums = foreach_norm(p.split(lengths), 1, dtype=torch.float64)
        return torch.dot(torch.stack(sums), weights).add_(fixed).to(p.dtype)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_parts = (ctx.weights * grads[0]).to(ctx.dtype).unbind()
        of_p = torch.cat([x.expand(n) for x, n in zip(of_parts, ctx.lengths, strict=True)])
        return of_p, None, None, None
