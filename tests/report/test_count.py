"""Reports: what each row says, against the compacted network and against the file that is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zerogate as zg
from report_samples import Unfollowed, closed, shown
from support import Lambda, Residual
from zerogate.report.count import target_row
from zerogate.report.table import GroupRow, Report, Row, TargetRow


def rows(report: Report) -> dict[str, Row]:
    found = {row.layer: row for row in report.rows}
    assert len(found) == len(report.rows)
    return found


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
    sparse = closed(Unfollowed(), torch.randn(5, 2, 3))
    found = rows(sparse.report())
    odd = found["distances"]
    assert (odd.kind, odd.status, odd.channels_in, odd.channels_out) == ("Distances", "refused", None, None)
    assert odd.params == (28, 28)  # its two matrices
    assert "cdist" in odd.reason and "report_samples.py:" in odd.reason
    assert (found["unused"].status, found["unused"].reason) == ("refused", "not run on the example inputs")
    assert (found["memory"].kind, found["memory"].status) == ("Unfollowed", "refused")
    assert found["memory"].reason == "not read on the example inputs, or not followed"
    assert "scale" not in found
    assert found["hidden"].status == "shrunk"


def test_an_embedding_has_a_row() -> None:
    model = Lambda(lambda m, x: m.b(F.relu(m.a(m.e(x)))), e=nn.Embedding(9, 4), a=nn.Linear(4, 6), b=nn.Linear(6, 2))
    embedding = rows(closed(model, torch.randint(9, (2, 3))).report())["e"]
    assert embedding.kind == "Embedding" and embedding.params[1] == 36
    assert embedding.reason or embedding.status == "kept" or embedding.params[0] < 36


def test_single_weights() -> None:
    sparse = closed(Unfollowed(), torch.randn(5, 2, 3), unit="weight", exclude=["out"])
    report = sparse.report()
    found = rows(report)
    nonzero = int(torch.count_nonzero(sparse.compact().hidden.weight))
    assert found["hidden"].params == (nonzero, 24) and found["hidden"].channels_out == (6, 6)
    assert (found["out"].status, found["out"].reason) == ("refused", "excluded")
    assert found["distances"].status == "refused" and found["distances"].reason
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


@pytest.mark.parametrize("over", ["params", "macs", "gates"])
def test_a_target_has_a_row_of_what_remains(over: str) -> None:
    target = zg.Target(**{over: 0.7}, steps=10)  # type: ignore[arg-type]
    sparse = closed(Residual(), torch.randn(2, 2, 5, 5), objective=target)
    is_open = sparse.is_open()
    row = target_row(sparse.objective, is_open, sparse.cost_model)
    if over == "gates":
        remaining = int(is_open.sum()) / len(is_open)
    else:
        remaining = getattr(sparse.cost(), over) / getattr(sparse.dense_cost, over)
    assert row == sparse.report().target == TargetRow(over, 0.7, remaining, None)
    assert target_row(zg.Penalty(), is_open, sparse.cost_model) is None
    words = {"params": "parameters", "macs": "MACs", "gates": "gates"}
    assert str(sparse.report()).endswith(f"; target 70.0% of {words[over]}")
