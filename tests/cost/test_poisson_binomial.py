"""The distribution of a count against one event after another."""

from __future__ import annotations

import pytest
import torch

from event_counts import one_by_one, random_probabilities
from zerogate.cost.poisson_binomial import count_distribution


@pytest.mark.parametrize("width", [0, 1, 2, 3, 7, 64, 100, 2048, 4096])
def test_distribution(width: int) -> None:
    generator = torch.Generator().manual_seed(width)
    p = random_probabilities((3, width), generator)
    p[0] = p[0].round()
    found = count_distribution(p)
    assert found.shape == (3, width + 1)
    assert (found - one_by_one(p)).abs().max() < 1e-13
    assert (found.sum(1) - 1).abs().max() < 1e-13
    assert found[0].round()[int(p[0].sum())] == 1
