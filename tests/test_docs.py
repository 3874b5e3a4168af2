"""What the documents say must run: Python blocks are executed, commands are composed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from zerogate.training.config.compose import Command, compose

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def python_blocks() -> list[tuple[str, str]]:
    found = []
    for document in DOCUMENTS:
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)):
            found.append((f"{document.name}-{number}", block))
    return found


def commands() -> list[str]:
    found: list[str] = []
    for document in DOCUMENTS:
        found += re.findall(r"zerogate (?:train|tickets|compare) \w[^`|#\n]*=[^`|#\n]+", document.read_text())
    return [command.strip() for command in dict.fromkeys(found) if "…" not in command and "--help" not in command]


@pytest.mark.parametrize("block", [pytest.param(block, id=name) for name, block in python_blocks()])
def test_python_blocks_run(
    block: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # for the files that they write
    torch.manual_seed(0)
    exec(compile(block, "block", "exec"), {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", commands())
def test_commands_compose(command: str) -> None:
    name: Command
    _, name, *overrides = shlex.split(command)  # type: ignore[assignment]
    config = compose(overrides, name)
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in ("experiment", "gate", "objective", "ticket") and not value.startswith("["):
            node = config
            for part in key.split("."):
                node = node[part]
            assert str(node) == value or float(node) == float(value)


def test_there_is_something_to_test() -> None:
    assert len(python_blocks()) >= 1
    assert len(commands()) >= 18


def test_links_and_experiments_exist() -> None:
    for document in DOCUMENTS:
        text = document.read_text()
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (document.parent / target).exists(), target
        for name in re.findall(r"experiment=(\w+)", text):
            assert (ROOT / "src/zerogate/training/configs/experiment" / f"{name}.yaml").exists(), name
