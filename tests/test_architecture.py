"""ARCHITECTURE.md lists every room of the package, in the words of the room itself.

python tests/test_architecture.py    # writes the tree anew
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE, DOCUMENT = ROOT / "src" / "zerogate", ROOT / "ARCHITECTURE.md"
HEADING = "## The tree\n\n"
ROOMS = """
    errors checks files structure modules cutting gates masks storage cost masking groups objectives compaction report
    sparsified sparsify tickets models data training sweeps bench cli
""".split()


def summary(path: Path) -> str:
    """The first sentence or paragraph of a module's docstring, on one line."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(text.split("\n\n")[0].split())


def room(path: Path, depth: int = 0) -> list[str]:
    """The lines of a file, or of a folder and all in it."""
    indent = "  " * depth
    if path.is_file():
        return [f"{indent}- `{path.name}`: {summary(path)}"]
    lines = [f"{indent}- **`{path.name}/`** {summary(path / '__init__.py')}"]
    for inside in sorted(path.iterdir(), key=lambda p: (p.is_dir(), p.name)):
        if (inside.suffix == ".py" and inside.name != "__init__.py") or (
            (inside / "__init__.py").exists() and inside.name != "configs"
        ):
            lines += room(inside, depth + 1)
    return lines


def tree() -> str:
    """The list of all rooms, from the ground up."""
    paths = [SOURCE / name if (SOURCE / name).is_dir() else SOURCE / f"{name}.py" for name in ROOMS]
    return "\n".join(line for path in paths for line in room(path)) + "\n"


def test_the_tree_lists_every_room_in_its_own_words() -> None:
    assert DOCUMENT.read_text().partition(HEADING)[2] == tree(), "write it anew: python tests/test_architecture.py"


def test_every_file_says_what_it_is() -> None:
    for path in SOURCE.rglob("*.py"):
        assert summary(path).endswith((".", ":")), f"{path.relative_to(SOURCE)} begins with a sentence"


def test_the_files_that_it_names_exist() -> None:
    import re

    before = DOCUMENT.read_text().partition(HEADING)[0]
    for name in re.findall(r"`([a-z_]+(?:/[a-z_]+)*(?:\.py|/))`", before):
        places = [SOURCE / name, ROOT / name, *SOURCE.rglob(name.rstrip("/"))]
        assert any(place.exists() for place in places), name


if __name__ == "__main__":
    head = DOCUMENT.read_text().partition(HEADING)[0]
    DOCUMENT.write_text(head + HEADING + tree())
