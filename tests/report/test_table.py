"""Reports: what each row says, in all forms in which it can be read."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import Lambda, Residual, close_randomly
from zerogate.cli.output import print_report
from zerogate.report.table import GroupRow, Report, Row


def rows(report: Report) -> dict[str, Row]:
    found = {row.layer: row for row in report.rows}
    assert len(found) == len(report.rows)
    return found


def closed(model: nn.Module, x: Any, share: bool = True, **options: Any) -> zg.Sparsified:
    torch.manual_seed(0)
    sparse = zg.sparsify(model, x, **options)
    with torch.no_grad():
        sparse.logits.fill_(8.0)
    if share:
        close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    return sparse


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.hidden, self.out = nn.LSTM(3, 4), nn.Linear(4, 6), nn.Linear(6, 2)
        self.unused, self.memory = nn.Bilinear(2, 3, 4), nn.Parameter(torch.zeros(4, 4))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(x)
        return self.out(F.relu(self.hidden(x)) * self.scale)


def test_rows_of_a_residual_network() -> None:
    sparse = closed(Residual(), torch.randn(2, 2, 5, 5))
    small, found = sparse.compact(), rows(sparse.report())
    assert list(found) == ["stem", "body.0", "body.2", "left", "right", "head"]
    for name, row in found.items():
        layer = small.get_submodule(name)
        dense = sparse.model.get_submodule(name)
        ins, outs = ("in_features", "out_features") if name == "head" else ("in_channels", "out_channels")
        assert row.kind == type(dense).__name__
        assert row.channels_in == (getattr(layer, ins), getattr(dense, ins))
        assert row.channels_out == (getattr(layer, outs), getattr(dense, outs))
        assert row.params == (layer.weight.numel(), dense.weight.numel())
        assert row.status == ("shrunk" if row.params[0] < row.params[1] else "kept")
    assert found["head"].reason == "an output of the network"
    report = sparse.report()
    assert report.params == (
        sum(p.numel() for p in small.parameters()),
        sum(p.numel() for p in sparse.model.parameters()),
    )
    assert report.units == (int(sparse.kept().sum()), len(sparse.logits))


def test_before_anything_closes() -> None:
    found = rows(closed(Residual(), torch.randn(2, 2, 5, 5), share=False).report())
    assert {row.status for name, row in found.items() if name != "head"} == {"kept"}
    assert (found["head"].status, found["head"].reason) == ("refused", "an output of the network")


def test_groups() -> None:
    sparse = closed(Residual(), torch.randn(2, 2, 5, 5))
    found = {group.name: group for group in sparse.report().groups}
    kept = sparse.kept()
    assert list(found) == [g.name for g in sparse.groups]
    for g in sparse.groups:
        assert found[g.name] == GroupRow(
            g.name, "channel", (int(kept[g.slice].sum()), g.units), g.producers, g.consumers
        )
    assert found["stem"].producers == ("stem", "body.2")


def test_layers_that_nobody_can_cut() -> None:
    sparse = closed(Recurrent(), torch.randn(5, 2, 3))
    found = rows(sparse.report())
    lstm = found["lstm"]
    assert (lstm.kind, lstm.status, lstm.channels_in, lstm.channels_out) == ("LSTM", "refused", None, None)
    assert lstm.params == (112, 112)  # its two matrices
    assert "lstm" in lstm.reason and "test_table.py:" in lstm.reason
    assert (found["unused"].status, found["unused"].reason) == ("refused", "not run on the example inputs")
    assert (found["memory"].kind, found["memory"].status) == ("Recurrent", "refused")
    assert found["memory"].reason == "not read on the example inputs, or not followed"
    assert "scale" not in found
    assert found["hidden"].status == "shrunk"


def test_an_embedding_has_a_row() -> None:
    model = Lambda(lambda m, x: m.b(F.relu(m.a(m.e(x)))), e=nn.Embedding(9, 4), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    embedding = rows(closed(model, torch.randint(9, (2, 3))).report())["e"]
    assert embedding.kind == "Embedding" and embedding.params[1] == 36
    assert embedding.reason or embedding.status == "kept" or embedding.params[0] < 36


def test_single_weights() -> None:
    sparse = closed(Recurrent(), torch.randn(5, 2, 3), unit="weight", exclude=["out"])
    report = sparse.report()
    found = rows(report)
    nonzero = int(torch.count_nonzero(sparse.compact().hidden.weight))
    assert found["hidden"].params == (nonzero, 24) and found["hidden"].channels_out == (6, 6)
    assert (found["out"].status, found["out"].reason) == ("refused", "excluded")
    assert found["lstm"].status == "refused" and found["lstm"].reason
    assert [(g.name, g.kind, g.units) for g in report.groups] == [("hidden.weight", "weight", (nonzero, 24))]
    totals, about = str(report).splitlines()[-2:]
    assert totals.startswith(f"weights {nonzero} of 24")
    assert about == (
        f"unstructured zeros shrink the file, its tensors to {report.file_bytes[0]:,} bytes from "
        f"{report.file_bytes[1]:,}, and not the time of dense kernels"
    )
    assert report.markdown().splitlines()[-3:] == [totals, "", about]
    assert "made by" not in shown(report) and shown(report, 200).splitlines()[-1].strip() == about


@pytest.mark.parametrize("share", [0.01, 0.05, 0.3, 1.0])
def test_bytes_in_a_file_are_those_that_are_written(tmp_path: Path, share: float) -> None:
    model = Lambda(lambda m, x: m.b(F.relu(m.a(x))), a=nn.Linear(40, 60), b=nn.Linear(60, 3)).double()
    sparse = closed(model, torch.randn(2, 40, dtype=torch.float64), share=False, unit="weight")
    with torch.no_grad():
        sparse.logits[torch.rand(len(sparse.logits)) >= share] = -8.0
    zg.save(sparse.compact(), tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    data = len(whole) - 8 - int.from_bytes(whole[:8], "little")
    dense = 8 * (40 * 60 + 60 + 60 * 3 + 3)
    assert sparse.report().file_bytes == (data, dense)
    assert data < dense * (share + 0.1) if share < 1 else data == dense
    assert closed(Residual(), torch.randn(2, 2, 5, 5)).report().file_bytes is None


def test_a_dict_is_plain_json() -> None:
    for sparse in (
        closed(Residual(), torch.randn(2, 2, 5, 5)),
        closed(Recurrent(), torch.randn(5, 2, 3)),
        closed(Residual(), torch.randn(2, 2, 5, 5), unit="weight"),
    ):
        report = sparse.report()
        found = report.as_dict()
        assert json.loads(json.dumps(found)) == found
        assert set(found) == {"rows", "params", "macs", "unit", "units", "groups", "keep_class", "target", "file_bytes"}
        assert found["params"] == list(report.params) and type(found["macs"][0]) is int
        assert len(found["rows"]) == len(report.rows) and len(found["groups"]) == len(report.groups)
        assert found["rows"][0]["params"] == list(report.rows[0].params)


def odd() -> Report:
    reason = "x[:, :32] | y has no rule in <lambda> (a.py:3)"
    row = Row("a|b", "Odd", None, (3, 4), (1234, 5678), "refused", reason)
    group = GroupRow("a[0]", "head", (1, 2), ("a", "b"), ("[red]c",))
    return Report((row,), (1234, 5678), (0, 0), "channel+head", (1, 2), (group,))


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


def shown(report: Report, width: int = 120) -> str:
    console = pytest.importorskip("rich.console")
    out = io.StringIO()
    console.Console(file=out, width=width, force_terminal=False).print(report)
    return out.getvalue()


def test_rich_shows_both_tables() -> None:
    text = shown(odd())
    for part in (
        "a|b",
        "1,234/5,678",
        "x[:, :32] | y has no rule in <lambda> (a.py:3)",
        "a[0]",
        "a, b",
        "[red]c",
        "made by",
    ):
        assert part in text
    assert text.splitlines()[-1].startswith("channels and heads 1 of 2")
    narrow = shown(closed(Recurrent(), torch.randn(5, 2, 3)).report(), width=60)
    assert max(map(len, narrow.splitlines())) <= 60 and "…" not in narrow


def test_the_command_prints_tables_into_a_terminal_only(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    print_report(odd())
    assert capsys.readouterr().out.strip() == str(odd())
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    print_report(odd())
    assert "made by" in capsys.readouterr().out
    print_report("[b]trained without gates")
    assert capsys.readouterr().out == "[b]trained without gates\n"
    monkeypatch.setitem(sys.modules, "rich.console", None)
    print_report(odd())
    assert capsys.readouterr().out.strip() == str(odd())
