"""`zerogate bench`: what its words mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from command_lines import refusal
from tiny_table import a_record
from zerogate.bench.command import bench, options
from zerogate.bench.records import Records
from zerogate.bench.table import names
from zerogate.cli.main import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bench", "lenot"], "unknown table 'lenot'; choose one of digits"),
        (["bench", "seeds=1"], "takes a table"),
        (["bench", "lenet", "seeds=0"], "seeds=0"),
        (["bench", "lenet", "precision=16"], "bf16-mixed"),
        (["bench", "lenet", "budget=2"], "budget=2"),
        (["bench", "lenet", "budget=x"], "budget=x"),
        (["bench", "lenet", "render=yes"], "render=yes"),
        (["bench", "lenet", "nope=1"], "no key 'nope'"),
        (["bench", "lenet", "quickly"], "KEY=VALUE"),
        (["bench", "lenet", "data.path="], "data.path="),
        (["bench", "lenet", "only=nothing"], "only=nothing"),
        (["bench", "googlenet", "epochs=3"], "epochs=3"),
        (["bench", "render", "docs=no/such"], "docs=no/such"),
        (["bench", "lenet", "--quick"], "--quick"),
    ],
)
def test_mistakes_are_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refusal(capsys, arguments, way_out=False)
    assert list(tmp_path.iterdir()) == []


def test_help_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["bench"], ["bench", "--help"]):
        assert main(arguments) == 0
        out = capsys.readouterr().out
        assert all(f"  {name} " in out for name in names()) and "budget=SHARE" in out
    given = options(
        ["seeds=2", "budget=0.5", "data.path=/d", "trainer.accelerator=cpu", "render=true", "results=r", "limit=5",
         "precision=bf16-mixed"]
    )  # fmt: skip
    assert given.precision == "bf16-mixed"
    assert (given.seeds, given.budget, given.render, given.results, given.limit) == (2, 0.5, True, Path("r"), 5)
    assert given.extra == ("data.path=/d", "trainer.accelerator=cpu")


def test_rendering_alone_runs_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    records = Records(tmp_path / "records")
    records.add(a_record(table="lenet", row="l300-dense", setting="cpu"))
    damaged = records.add(a_record(table="lenet", row="l300-dense", seed=1, setting="cpu", digest="d1"))
    damaged.write_text("{")
    assert bench(["lenet", "render=true", f"results={tmp_path}", f"output={tmp_path}/out"]) == 0
    out, err = capsys.readouterr()
    assert "| dense | 10.00 |" in out and str(damaged) in err and err.count("\n") == 1
    assert {path.suffix for path in (tmp_path / "out/lenet").iterdir()} == {".md", ".csv", ".json", ".svg"}
