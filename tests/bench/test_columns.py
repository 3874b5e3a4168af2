"""Columns of a table."""

from __future__ import annotations

import json

import pytest

import zerogate as zg
from zerogate.bench import columns
from zerogate.bench.networks import widths


def test_sparsity_as_the_seed_repository_counts_it() -> None:
    dense = widths(zg.models.googlenet())
    small = json.loads(json.dumps(dense))
    assert columns.seed_repository_sparsity({"widths": small, "dense_widths": dense}) == 0
    small["stage1.0.branch_pool.conv"][1] = 0  # its own convolution is not counted there, what reads it is
    for name in ("branch1x1", "reduce3x3", "reduce5x5", "branch_pool"):
        small[f"stage1.1.{name}.conv"][0] -= 8
    total = 3 * 64 * 9 + 64 + 128 * 10 + 10
    for block in (*zg.models.googlenet().stage1, *zg.models.googlenet().stage2, *zg.models.googlenet().stage3):
        c, r3, r5 = (m.conv.in_channels for m in (block.branch1x1, block.branch3x3, block.branch5x5))
        o1, o3, o5 = (m.conv.out_channels for m in (block.branch1x1, block.branch3x3, block.branch5x5))
        total += c * (o1 + r3 + r5) + r3 * 9 * o3 + r5 * 25 * o5 + 5 * (o1 + o3 + o5)
    found = columns.seed_repository_sparsity({"widths": small, "dense_widths": dense})
    assert found == pytest.approx(100 * 8 * (24 + 32 + 16) / total)
