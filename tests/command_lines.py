"""What tests of the command share: a quick training, and what a refusal looks like."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerogate.cli.main import main

QUICK = ["experiment=digits", "model.width=4", "data.limit=128", "trainer.max_epochs=1"]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refusal(capsys: pytest.CaptureFixture[str], arguments: list[str], way_out: bool = True) -> str:
    """The one line that the command says, having written nothing to stdout: what is wrong, and the way out."""
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1 and err.startswith("zerogate: error: ")
    assert not way_out or ";" in err or "," in err or ": expected " in err
    return err
