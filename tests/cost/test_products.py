"""Products of entries: exact derivatives of any order, also where several entries are zero."""

from __future__ import annotations

import pytest
import torch

from zerogate.cost.products import EntryProducts


@pytest.mark.parametrize("x", [[0.5, 2.0, 3.0], [0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
def test_products_of_entries(x: list[float]) -> None:
    rows = [[0, 1, 2], [1], [], [2, 2]]
    each = EntryProducts.of(rows, 3)

    def of(x: torch.Tensor) -> torch.Tensor:
        return each(torch.cat([x, x.new_ones(1)]))

    p = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    assert of(p).tolist() == [x[0] * x[1] * x[2], x[1], 1, x[2] * x[2]]
    assert torch.autograd.gradcheck(of, p)
    assert torch.autograd.gradgradcheck(of, p)
    assert torch.func.vmap(of)(torch.stack([p, 2 * p])).shape == (2, 4)
