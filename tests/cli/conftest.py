"""Finished runs that tests of the command share."""

from pathlib import Path

import pytest

from command_lines import QUICK
from zerogate.cli.main import main


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with gates."""
    folder = tmp_path_factory.mktemp("gated") / "run"
    assert main(["train", *QUICK, f"output={folder}"]) == 0
    return folder


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run without."""
    folder = tmp_path_factory.mktemp("dense") / "run"
    assert main(["train", *QUICK, "gate=none", f"output={folder}"]) == 0
    return folder
