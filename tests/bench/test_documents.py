"""The documents show what is recorded."""

from __future__ import annotations

from pathlib import Path

import pytest

from zerogate.bench import documents
from zerogate.bench.table import load
from zerogate.errors import ConfigError, ZerogateError

ROOT = Path(__file__).parents[2]


def test_the_documents_show_what_is_recorded() -> None:
    for path, text in documents.documents(ROOT / "benchmarks/results", ROOT / "docs").items():
        assert path.read_text() == text, f"{path} is not what the records render to; run: zerogate bench render"
    for name in documents.ORDER:
        table, problems = documents.rendered(load(name), ROOT / "benchmarks/results")
        assert problems == []
        if table.sections:
            assert (ROOT / f"docs/results/{name}.csv").read_text() == table.csv()
            assert (ROOT / f"docs/results/{name}.json").read_text() == table.json()


def test_older_results_that_are_damaged_are_named(tmp_path: Path) -> None:
    with pytest.raises(ZerogateError, match=r"overhead\.json"):
        documents.rendered(load("overhead"), tmp_path)
    (tmp_path / "zoo.json").write_text("{")
    with pytest.raises(ZerogateError, match=r"zoo\.json"):
        documents.rendered(load("zoo"), tmp_path)


def test_a_readme_without_its_marks_is_refused() -> None:
    with pytest.raises(ConfigError, match="no place for results"):
        documents.with_results("# nothing", "text")
    text = documents.with_results(f"a\n{documents.BEGIN}\nold\n{documents.END}\nb", "new")
    assert text == f"a\n{documents.BEGIN}\n\nnew\n\n{documents.END}\nb" and documents.with_results(text, "new") == text
