"""The worked network in groups/README.md does what the text below it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import zerogate.groups
from zerogate.groups.ops import Family

README = Path(zerogate.groups.__file__).parent / "README.md"
GUIDE = Path(__file__).parents[2] / "docs" / "add_an_op_rule.md"


def test_the_worked_network_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", README.read_text(), re.DOTALL)
    exec(compile(block, "block", "exec"), {"__name__": "readme"})
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == shown.splitlines()


def test_every_file_of_the_folder_has_a_line_on_the_page() -> None:
    text = README.read_text()
    for path in README.parent.iterdir():
        if path.suffix == ".py" and path.name != "__init__.py":
            assert f"`{path.name}`" in text, path.name
        elif path.is_dir() and path.name != "__pycache__":
            assert f"`{path.name}/`" in text, path.name


def test_the_guide_names_every_family() -> None:
    for family in Family:
        assert f"`{family.name}`" in GUIDE.read_text(), family
