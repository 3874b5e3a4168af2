"""Sums and products over listed entries against loops; tables on another device."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from zerogate.cost.index_tables import Lists, WeightedSums, on_device, padded, products, products_backward


def test_lists_are_padded_to_the_longest() -> None:
    assert padded([[1, 2], [], [3]], 9).tolist() == [[1, 2], [9, 9], [3, 9]]
    assert padded([], 0).shape == (0, 0)


def test_lists_stand_one_after_another() -> None:
    lists = Lists.of([[4, 5], [], [6]])
    assert (lists.entries.tolist(), lists.bounds.tolist()) == ([4, 5, 6], [0, 2, 2, 3])


def test_sums_by_owner_are_those_of_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    owners = torch.randint(6, (40,), generator=generator)  # 4 and 5 have no sum
    entries = torch.randint(10, (40,), generator=generator)
    weights, x = (torch.randn(n, generator=generator, dtype=torch.float64) for n in (40, 10))
    found = WeightedSums.by_owner(owners, 4, entries, weights)(x)
    for owner in range(4):
        chosen = owners == owner
        assert found[owner].item() == pytest.approx((weights * x[entries])[chosen].sum().item(), rel=1e-12)
    plain = WeightedSums.by_owner(torch.tensor([1, 3, 1]), 4)(torch.tensor([2.0, 3.0, 4.0], dtype=torch.float64))
    assert plain.tolist() == [0, 6, 0, 3]


def test_products_and_their_gradient_are_those_of_autograd() -> None:
    x = torch.tensor([2.0, 3.0, 1e-30, 5.0, 1e-30, 1e-30, 7.0], dtype=torch.float64, requires_grad=True)
    bounds = torch.tensor([0, 2, 2, 4, 7])
    segments = [x[a:b].prod() for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)]
    expected, grad = torch.stack(segments), torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    found = products(x.detach(), bounds)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-15, atol=0)
    of_x = products_backward(grad, found, x.detach(), bounds)
    torch.testing.assert_close(of_x, torch.autograd.grad(expected, x, grad)[0], rtol=1e-14, atol=0)


@dataclass(frozen=True)
class Inner:
    x: Tensor
    number: int


@dataclass(frozen=True)
class Outer:
    inner: Inner
    by_name: dict[str, Tensor]
    numbers: tuple[int, ...]


def test_tables_move_with_all_their_tensors() -> None:
    tables = Outer(Inner(torch.ones(2), 3), {"a": torch.zeros(1)}, (1, 2))
    moved = on_device(tables, torch.device("meta"))
    assert moved.inner.x.is_meta and moved.by_name["a"].is_meta
    assert (moved.inner.number, moved.numbers) == (3, (1, 2))
    here = on_device(tables, torch.device("cpu"))
    assert here.inner.x is tables.inner.x and here.by_name["a"] is tables.by_name["a"]
