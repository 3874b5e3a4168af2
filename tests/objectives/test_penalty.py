"""`Penalty` against the costs that it is about, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

import zerogate as zg
from support import Residual


@pytest.mark.parametrize(
    ("make", "value"),
    [
        (lambda: zg.Penalty(-0.5), "-0.5"),
        (lambda: zg.Penalty(math.nan), "nan"),
        (lambda: zg.Penalty(over="flops"), "flops"),  # type: ignore[arg-type]
        (lambda: zg.Penalty(reduce="max"), "max"),  # type: ignore[arg-type]
    ],
)
def test_bad_values_are_named(make: Callable[[], object], value: str) -> None:
    with pytest.raises(zg.ZerogateError, match=f"got '?{value}"):
        make()


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
