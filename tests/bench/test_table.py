"""Tables as data: each is well formed, and slips in one are named."""

from __future__ import annotations

from typing import Any

import pytest

import zerogate as zg
from tiny_table import TINY
from zerogate.bench import columns, documents
from zerogate.bench.jobs import jobs
from zerogate.bench.table import PROFILES, load, names, parse
from zerogate.errors import ConfigError


@pytest.mark.parametrize("name", names())
def test_every_table_is_well_formed(name: str) -> None:
    table = load(name)
    assert name in documents.ORDER and table.title
    for row in table.rows:
        for key in row.goal or ():
            columns.column(key)
    for key in table.columns:
        columns.column(key)
    if table.source is None:
        for profile in PROFILES:
            asked = jobs(table, profile, [0, 1])
            assert len({job.digest for job in asked}) == len(asked)
            assert all(asked.index(need) < asked.index(job) for job in asked for need in job.needs)


def test_the_papers_networks_have_as_many_parameters_as_the_table_says() -> None:
    dense = {"LeNet-300-100": zg.models.lenet300(), "LeNet-5-Caffe": zg.models.lenet5()}
    table = load("lenet")
    for row in table.rows:
        if row.kind:
            continue
        a, b, c, d = map(int, [*row.figures["widths"].split("-"), "0"][:4])
        if row.section == "LeNet-300-100":
            params = a * b + b + b * c + c + c * 10 + 10
        else:
            params = 25 * a + a + 25 * a * b + b + c * d + d + d * 10 + 10
        assert row.figures["params"] == params
        whole = sum(p.numel() for p in dense[row.section].parameters())
        shares = [
            float(other.label.split("=")[1][:-1]) for other in table.rows if other.goal and other.section == row.section
        ]
        assert any(params - whole * 1e-6 <= share * whole <= params for share in shares)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colums": []}, "no key 'colums'"),
        ({"rows": [{"id": "a", "label": "a", "knd": "train"}]}, "no key 'knd'"),
        ({"rows": [{"label": "a"}]}, "lacks its id"),
        ({"rows": [{"id": "a", "label": "a", "kind": "trian"}]}, "kind 'trian'"),
        ({"rows": [{"id": "a", "label": "a"}] * 2}, "two rows 'a'"),
        ({"rows": [{"id": "a", "label": "a", "kind": "train", "overrides": ["init_from={run:b}"]}]}, "no row 'b'"),
    ],
)
def test_slips_in_a_table(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse("tiny", TINY | change)
