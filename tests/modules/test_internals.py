"""Private names of torch and Python stand in `modules/internals.py`, and nowhere else."""

from __future__ import annotations

import ast
from pathlib import Path

import torch
from torch import nn

from zerogate.modules import device_tables, internals

SOURCE = Path(internals.__file__).parents[1]
PUBLIC = {"_target_", "_exit", "_fields", "_fingerprint"}
"""Documented all the same: Hydra's key, `os._exit`, a named tuple's fields, the fingerprint of a data set."""


def private(node: ast.AST) -> str:
    """The private name that a node takes from something else, or nothing."""
    name = node.attr if isinstance(node, ast.Attribute) else ""
    return name if name.startswith("_") and not name.startswith("__") else ""


def own_names(trees: list[ast.Module]) -> set[str]:
    """Names that the package itself defines or assigns."""
    own: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            own.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    return own


def test_every_private_name_that_is_not_ours_stands_in_internals() -> None:
    trees = {path: ast.parse(path.read_text()) for path in SOURCE.rglob("*.py")}
    own = own_names([*trees.values()]) | PUBLIC
    found = {
        f"{path.relative_to(SOURCE)}:{node.lineno} {name}"
        for path, tree in trees.items()
        if path.name != "internals.py"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and (name := private(node)) and name not in own
    }
    assert not found, sorted(found)


def test_a_private_name_would_be_found() -> None:
    tree = ast.parse("x._version + self._mine")
    assert {private(node) for node in ast.walk(tree)} - {""} - own_names([tree]) == {"_version", "_mine"}


def test_the_private_names_still_mean_what_is_said() -> None:
    x = torch.zeros(4)
    assert internals.storage_key(x) == internals.storage_key(x[1:]) != internals.storage_key(torch.zeros(4))
    assert internals.is_view(x[1:]) and not internals.is_view(x)
    before = internals.version_of(x)
    x.add_(1)
    assert internals.version_of(x) == before + 1
    assert internals.schema_of(torch.ops.aten.relu.default).name == "aten::relu" and internals.schema_of(len) is None
    assert internals.is_op(torch.ops.aten.relu.default) and not internals.is_op(torch.relu)
    assert internals.node_in_backward() is None and internals.node_number(None) == -1
    assert internals.saves_tensors_itself() and not internals.must_stay_traceable()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        assert not internals.saves_tensors_itself()
    with torch.autograd.forward_ad.dual_level():
        assert internals.must_stay_traceable()


def test_the_frames_of_a_call_are_told_from_others() -> None:
    seen: list[int] = []

    class Inner(nn.Module):
        def forward(self) -> None:
            seen.append(sum(frame.f_code is internals.MODULE_CALL for frame in internals.frames_above()))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self) -> None:
            self.inner()

    Outer()()
    assert seen == [2]


def test_tables_are_made_once_and_left_behind_by_copies() -> None:
    import copy
    import pickle

    tables: device_tables.DeviceTables[int] = device_tables.DeviceTables(latest=True)
    assert [tables.get("a", lambda: 1), tables.get("a", lambda: 2), tables.get("b", lambda: 3)] == [1, 1, 3]
    assert tables.get("a", lambda: 4) == 4  # only the latest is kept
    for again in (copy.deepcopy(tables), pickle.loads(pickle.dumps(tables))):
        assert again.get("a", lambda: 5) == 5
    with torch.inference_mode():
        made = device_tables.DeviceTables[torch.Tensor]().get(torch.device("cpu"), lambda: torch.zeros(2))
    assert not made.is_inference()
