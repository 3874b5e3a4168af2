"""The command: exit codes, errors as lines, and what an installation lacks."""

import importlib.metadata
import re

import pytest

from command_lines import refusal
from zerogate.cli.main import EXTRA_MODULES, main
from zerogate.training.interruption import StoppedError


def test_debug_shows_where_it_came_from(capsys, monkeypatch):
    monkeypatch.setenv("ZEROGATE_DEBUG", "1")
    assert main(["train", "model=nope"]) == 2
    assert "Traceback" in (error := capsys.readouterr().err) and error.splitlines()[-1].startswith("zerogate: error: ")


@pytest.mark.parametrize("signum", [2, 15])
def test_a_stopped_run_says_how_to_continue(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    def stopped(config: object) -> None:
        raise StoppedError(signum, "outputs/mine")

    monkeypatch.setattr("zerogate.training.train.train", stopped)
    assert main(["train"]) == 128 + signum
    name = {2: "SIGINT", 15: "SIGTERM"}[signum]
    assert capsys.readouterr().out == f"stopped by {name}; continue with: zerogate train resume=outputs/mine\n"


def test_a_package_that_is_missing_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(config: object) -> None:
        raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard.compat")

    monkeypatch.setattr("zerogate.training.train.train", missing)
    assert "tensorboard.compat is not installed; pip install 'zerogate[train]'" in refusal(capsys, ["train"])


def test_a_module_of_the_users_that_is_missing_is_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(config: object) -> None:
        raise ModuleNotFoundError("No module named 'mine'", name="mine")

    monkeypatch.setattr("zerogate.training.train.train", missing)
    with pytest.raises(ModuleNotFoundError):
        main(["train"])


def test_the_modules_of_the_extra_are_those_of_the_metadata() -> None:
    required = {
        re.split(r"[^\w.-]", text)[0].lower().replace("_", "-")
        for text in importlib.metadata.requires("zerogate") or []
        if re.search(r"extra == ['\"](train|demo)['\"]", text)
    } - {"zerogate", "pillow"}  # pillow is imported by zerogate.data alone, which says itself what is missing
    provided = importlib.metadata.packages_distributions()
    modules = {
        module for module, names in provided.items() if {name.lower().replace("_", "-") for name in names} & required
    }
    assert set(EXTRA_MODULES) - {"omegaconf"} <= modules  # omegaconf comes with hydra-core
    covered = {name.lower().replace("_", "-") for module in EXTRA_MODULES for name in provided[module]}
    assert required <= covered
