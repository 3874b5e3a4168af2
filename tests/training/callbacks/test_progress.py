"""The progress line of a run."""

import pytest

from zerogate.cli.main import main

SMALL = ["model.width=4", "data.limit=200", "data.augment.crop=1", "trainer.max_epochs=3"]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_progress_on_a_terminal_is_one_line(capsys, monkeypatch, tmp_path, width):
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["train", "experiment=digits", *SMALL, "trainer.progress=bar", f"output={tmp_path}/run"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if " left" in line)
    assert len(line) <= width and "…" not in line
    shown = ["12/12", "train ", "val ", "params ", "0:00 left"] + ["epoch 3/3", "images/s", "macs "] * (width > 100)
    assert all(part in line for part in shown)
