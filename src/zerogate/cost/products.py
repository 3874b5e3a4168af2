"""Products of listed entries of a vector, in plain ops whose derivatives of any order are exact at zeros."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from zerogate.cost.index_tables import padded


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor]


class _Product(torch.autograd.Function):
    """Product over the last dimension whose gradient is exact at zeros and never waits for the device."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.prod(-1)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        one = torch.ones_like(x[..., :1])
        before = torch.cat([one, x[..., :-1]], -1).cumprod(-1)
        after = torch.cat([one, x.flip(-1)[..., :-1]], -1).cumprod(-1).flip(-1)
        return grad[..., None] * before * after


@dataclass(frozen=True)
class EntryProducts:
    """The product of the entries that each row lists, of a vector."""

    entries: Tensor
    """int64 [rows, longest]; short rows are filled up with an entry that is 1."""

    @staticmethod
    def of(rows: Sequence[Sequence[int]], one: int) -> EntryProducts:
        """Products of these entries, of a vector whose entry ``one`` is 1."""
        return EntryProducts(padded(rows, one))

    def __call__(self, x: Tensor) -> Tensor:
        """The products, [rows], of entries of the vector x."""
        product: Tensor = _Product.apply(x[self.entries])
        return product
