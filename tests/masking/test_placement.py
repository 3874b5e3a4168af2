"""Where gates lie."""

from __future__ import annotations

import pytest
import torch

from zerogate.masking.placement import Placement, broadcast_along
from zerogate.masking.scores import magnitudes
from zerogate.structure import Group


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_a_vector_lies_along_its_dimension(dim: int) -> None:
    x = torch.randn(2, 3, 4)
    vector = torch.randn(x.shape[dim])
    product = x * vector.view(broadcast_along(dim, x.ndim))
    assert torch.equal(product.movedim(dim, -1), x.movedim(dim, -1) * vector)


def test_rows_are_what_shares_a_unit() -> None:
    w = torch.randn(5, 3, 2, 2)
    channels = Placement("w", torch.arange(3), tuple(w.shape), 1)
    assert channels.view == (1, -1, 1, 1) and torch.equal(channels.rows(w)[2], w[:, 2].flatten())
    entries = Placement("w", torch.arange(w.numel()), tuple(w.shape), None)
    assert entries.view == w.shape and torch.equal(entries.rows(w)[:, 0], w.flatten())


def test_the_score_of_a_unit_is_the_root_mean_square_of_what_reads_it() -> None:
    a, b = torch.tensor([[3.0, 0.0], [4.0, 1.0]]), torch.tensor([[5.0, 7.0, 2.0]])
    placements = [
        Placement("a", torch.tensor([0, 1]), (2, 2), 1),
        Placement("b", torch.tensor([0, -1, 1]), (1, 3), 1),  # the middle one has no gate
    ]
    scores = magnitudes({"a": a, "b": b}, placements, 2)
    assert torch.allclose(scores, torch.tensor([(50 / 3) ** 0.5, (5 / 3) ** 0.5]))
    relative = magnitudes({"a": a, "b": b}, placements, 2, [Group("g", slice(0, 2), (), ())])
    assert torch.allclose(relative, scores / scores.mean())
