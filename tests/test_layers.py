"""The architecture: imports point one way, and every idea stands on a floor of its own.

Imports under `TYPE_CHECKING` and inside functions count: to name a thing is to know it.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import zerogate

SOURCE = Path(zerogate.__file__).parent
ROOMS = """
    errors checks files modules structure gates cutting storage masks cost masking groups objectives compaction report
    sparsified sparsify models tickets data training sweeps bench cli __init__ __main__
""".split()
"""Folders and files of the package from the ground up: each imports only rooms before it."""
HANDLE = ROOMS.index("sparsified")
EDGE = ROOMS.index("data")
"""From here on the product needs more than torch."""


def files() -> dict[str, Path]:
    """Every module of the package by its dotted name, without `zerogate.`."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


FILES = files()


def imports(name: str) -> set[str]:
    """Modules of the package that a module imports anywhere."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "zerogate"
            and not node.level
        ):
            module = node.module.removeprefix("zerogate").removeprefix(".")
            for alias in node.names:
                inside = f"{module}.{alias.name}".removeprefix(".")
                found.add(inside if inside in FILES else module or "__init__")
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "zerogate"]
            found |= {n.removeprefix("zerogate").removeprefix(".") or "__init__" for n in names}
    return found & FILES.keys()


def room(name: str) -> str:
    return name.split(".")[0]


def test_every_file_has_a_room() -> None:
    assert {room(name) for name in FILES} == set(ROOMS)


@pytest.mark.parametrize("name", FILES)
def test_imports_point_down(name: str) -> None:
    at = ROOMS.index(room(name))
    public = at >= EDGE  # what stands above the library may use its public face
    up = {other for other in imports(name) if ROOMS.index(room(other)) > at and not (public and other == "__init__")}
    assert not up, f"{name} imports {sorted(up)}, which stand above it"


def test_no_circle_of_files() -> None:
    graph = {name: imports(name) - {name, "__init__"} for name in FILES}
    done: set[str] = set()
    while left := {name: others - done for name, others in graph.items() if name not in done}:
        free = {name for name, others in left.items() if not others}
        assert free, f"a circle among {sorted(left)}"
        done |= free


def test_nothing_below_the_handle_knows_the_handle() -> None:
    knowing = []
    for name in (n for n in FILES if ROOMS.index(room(n)) < HANDLE):
        for node in ast.walk(ast.parse(FILES[name].read_text())):
            used = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
            text = node.value if isinstance(node, ast.Constant) and node.value == "Sparsified" else ""
            if "Sparsified" in (used, text):
                knowing.append(f"{name}:{node.lineno}")
    assert not knowing, knowing


def test_the_library_needs_torch_alone() -> None:
    others: set[str] = set()
    for name in (n for n in FILES if ROOMS.index(room(n)) < EDGE):
        for node in ast.parse(FILES[name].read_text()).body:  # at import; files take safetensors when they are written
            if isinstance(node, ast.ImportFrom) and not node.level:
                others.add(str(node.module).split(".")[0])
            elif isinstance(node, ast.Import):
                others |= {alias.name.split(".")[0] for alias in node.names}
    assert others - sys.stdlib_module_names == {"torch", "zerogate"}


def test_the_house_has_few_doors_and_no_long_files() -> None:
    at_root = {path.stem for path in SOURCE.glob("*.py")} - {"__init__", "__main__"}
    assert len(at_root) <= 10, sorted(at_root)
    assert not {n: lines for n, p in FILES.items() if (lines := len(p.read_text().splitlines())) > 300}


def test_no_function_is_long() -> None:
    long = {
        f"{name}:{node.name}": size
        for name, path in FILES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.end_lineno is not None
        if (size := node.end_lineno - node.lineno + 1) > 60
    }
    assert not long, long


def test_packages_are_only_their_files() -> None:
    """An `__init__` that imports would let everything in a folder depend on everything else in it."""
    faces = {"__init__", "models", "data", "bench", "groups.rules"}  # the last one registers the rules
    for name, path in FILES.items():
        if path.name == "__init__.py" and name not in faces:
            assert not imports(name), f"{name} is a docstring alone"
