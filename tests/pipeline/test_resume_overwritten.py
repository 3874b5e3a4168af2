"""A run that replaced another one is resumed like any other: what its call said of the folder is no part of the run."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from command_lines import QUICK, refusal
from zerogate.cli.main import main
from zerogate.training.classifier import Classifier
from zerogate.training.config.compose import compose
from zerogate.training.run_folder import RunFolder


def test_a_run_begun_with_overwrite_goes_on_after_it_was_stopped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, step, stops = tmp_path / "run", Classifier.training_step, [1]

    def interrupted(self: Any, batch: Any, number: int) -> Any:
        if stops:
            stops.pop()
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number)

    monkeypatch.setattr(Classifier, "training_step", interrupted)
    assert main(["train", *QUICK, f"output={run}", "overwrite=true"]) == 128 + signal.SIGTERM
    assert "contradict" in refusal(capsys, ["train", f"resume={run}", "overwrite=true"])
    assert main(["train", f"resume={run}"]) == 0
    assert (run / "result.json").is_file()
    assert "overwrite: true" in (run / "config.yaml").read_text()  # as it was begun


@pytest.mark.parametrize("command", ["tickets", "compare"])
def test_searches_do_not_take_overwrite_over(command: Any, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.folder.mkdir()
    folder.save_config(compose(["model.width=4", "overwrite=true", f"output={folder}"], command))
    config = compose([f"resume={folder}"], command)
    assert not config.overwrite and config.model.width == 4
