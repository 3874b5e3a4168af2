"""Reports as text, Markdown and a dict."""

from __future__ import annotations

import json

import torch

from report_samples import Unfollowed, closed, odd
from support import Residual


def test_a_dict_is_plain_json() -> None:
    for sparse in (
        closed(Residual(), torch.randn(2, 2, 5, 5)),
        closed(Unfollowed(), torch.randn(5, 2, 3)),
        closed(Residual(), torch.randn(2, 2, 5, 5), unit="weight"),
    ):
        report = sparse.report()
        found = report.as_dict()
        assert json.loads(json.dumps(found)) == found
        assert set(found) == {"rows", "params", "macs", "unit", "units", "groups", "keep_class", "target", "file_bytes"}
        assert found["params"] == list(report.params) and type(found["macs"][0]) is int
        assert len(found["rows"]) == len(report.rows) and len(found["groups"]) == len(report.groups)
        assert found["rows"][0]["params"] == list(report.rows[0].params)


def test_text_and_markdown() -> None:
    text = str(odd()).splitlines()
    assert text[0].split() == ["layer", "kind", "in", "out", "weights", "status", "reason"]
    assert text[1].split()[:4] == ["a|b", "Odd", "3/4", "1,234/5,678"]
    assert text[2] == "channels and heads 1 of 2 (50.0%), parameters 1,234 of 5,678 (21.7%), MACs 0 of 0 (0.0%)"
    markdown = odd().markdown().splitlines()
    assert markdown[0].count("|") == markdown[1].count("|") == 8
    assert markdown[2].replace("\\|", "").count("|") == 8
    assert "a\\|b" in markdown[2] and "x[:, :32] \\| y has no rule in &lt;lambda>" in markdown[2]
    assert markdown[3:] == ["", text[2]]
