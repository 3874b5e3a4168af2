"""Where a recorded number comes from."""

from __future__ import annotations

from pathlib import Path

import torch

from zerogate.training.config.compose import compose
from zerogate.training.provenance import commit, provenance_of, versions


def test_versions_are_of_what_is_installed_here_or_in_other_folders(tmp_path: Path) -> None:
    installed = tmp_path / "some_baseline-1.2.3.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: some-baseline\nVersion: 1.2.3\n")
    assert versions()["torch"] == torch.__version__
    assert "some-baseline" not in versions("some-baseline")
    assert versions("some-baseline", folders=[str(tmp_path)])["some-baseline"] == "1.2.3"


def test_a_result_says_the_command_that_repeats_it() -> None:
    provenance = provenance_of(compose(["experiment=digits", "sparsify.exclude=['a b']"]))
    assert list(provenance) == ["command", "commit", "device", "versions"]
    assert provenance["command"] == """zerogate train experiment=digits 'sparsify.exclude=['"'"'a b'"'"']'"""
    assert provenance["commit"] == commit() and "pytorch-lightning" in provenance["versions"]
