"""Products of listed entries of a vector, in plain ops whose derivatives of any order are exact at zeros."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Product(torch.autograd.Function):
    """Product over the last dimension whose gradient is exact at zeros and never waits for the device."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.prod(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        one = torch.ones_like(x[..., :1])
        before = torch.cat([one, x[..., :-1]], -1).cumprod(-1)
        after = torch.cat([one, x.flip(-1)[..., :-1]], -1).cumprod(-1).flip(-1)
        return grad[..., None] * before * after


class Products:
    """Products of entries of a vector in which entry ``one`` is 1; rows are lists of entries."""

    def __init__(self, rows: list[list[int]], one: int) -> None:
        self._entries = {torch.device("cpu"): padded(rows, one)}

    def __call__(self, x: Tensor) -> Tensor:
        if x.device not in self._entries:
            self._entries[x.device] = self._entries[torch.device("cpu")].to(x.device)
        product: Tensor = _Product.apply(x[self._entries[x.device]])
        return product


def padded(lists: list[list[int]], fill: int) -> Tensor:
    """Index lists as one int64 matrix [lists, longest], short ones filled up."""
    width = max((len(x) for x in lists), default=0)
    rows = [[*x, *[fill] * (width - len(x))] for x in lists]
    return torch.tensor(rows, dtype=torch.int64).view(len(lists), width)
