"""`Penalty` against the costs that it is about."""

from __future__ import annotations

import pytest
import torch

import zerogate as zg
from support import Residual


@pytest.mark.parametrize("over", ["gates", "params", "macs"])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_penalty(over: str, reduce: str) -> None:
    model = Residual()
    sparse = zg.sparsify(model, torch.randn(2, 2, 5, 5), objective=zg.Penalty(0.7, over=over, reduce=reduce))  # type: ignore[arg-type]
    p = sparse.open_probability()
    if over == "gates":
        expected = p.mean() if reduce == "mean" else p.sum()
    else:
        expected = getattr(sparse.cost(hard=False), over)
        if reduce == "mean":
            expected = expected / getattr(sparse.dense_cost, over)
    assert sparse.loss().item() == pytest.approx(0.7 * expected.item(), rel=1e-6)
    sparse.loss().backward()
    assert sparse.logits.grad is not None
    assert (sparse.logits.grad > 0).all()
