"""Plans as JSON values: what is written of them, and what is checked when they are read back."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from itertools import pairwise
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from zerogate.checks import is_whole
from zerogate.cutting.plain_layers import make_plain
from zerogate.cutting.plan import Plan
from zerogate.errors import CheckpointError
from zerogate.modules.copies import meta_copy
from zerogate.modules.held_numbers import NewValue, attributes_of, is_new_value_of
from zerogate.modules.index import join_name, modules_by_name, named_tensors, tied_names, transient_buffers
from zerogate.modules.stated_sizes import Size, set_by_forwards, stated_sizes
from zerogate.modules.unregistered import Path, plain_places, tensor_at
from zerogate.storage.plain_json import describe_plain, read_plain

PLAN_VERSION = 2
PLAN_KEYS = ("version", "dense", "set_by_forward", "steps", "result", "difference")
"""The keys of a `StoredPlan`, in the order in which they are written."""

Architecture = dict[str, str | Size]
"""See `architecture`."""


class _WhereThereAreAny(TypedDict, total=False):
    """The keys of a `StoredStep` that are left out where there would be nothing in them."""

    tables: list[list[object]]
    """Rows [path, dim, indices] of `Plan.keep` for tensors that modules have not registered, at the first of their
    `Plan.places`."""
    plain: dict[str, dict[str, object]]
    """`Plan.plain`, see `describe_plain`."""


class StoredStep(_WhereThereAreAny):
    """One `Plan` as JSON values; tensors are lists of indices."""

    keep: list[list[object]]
    """Rows [name, dim, indices] of `Plan.keep`."""
    select: list[list[object]]
    """Rows [layer, dim, indices] of `Plan.select`."""
    attributes: list[list[object]]
    """Rows [module, attribute, value] of `Plan.attributes`."""
    attention: dict[str, dict[str, bool]]
    """As `Plan.attention`."""


class StoredPlan(TypedDict, total=False):
    """How a compacted network came from a dense one. A graph module, which is not saved, has the difference alone."""

    version: int
    """`PLAN_VERSION` of the zerogate that compacted it."""
    dense: Architecture
    """The network that was dense at the very beginning, without what its forward sets."""
    set_by_forward: list[str]
    """Names of attributes, as ``path.attribute``, that its forward sets; older files do not have it."""
    steps: list[StoredStep]
    """What each compaction left, the first one first."""
    result: str
    """`layout` of the compacted network."""
    difference: float
    """Measured between the gated and the compacted network, relative to the largest output."""


def describe_plan(plan: Plan, dense: nn.Module, small: nn.Module, set_by_forward: Collection[str] = ()) -> StoredPlan:
    """A plan as JSON values, with the network it applies to.

    Where the dense network is itself what an earlier compaction returned, the earlier steps come first: the file is
    then read with the network that was dense at the very beginning.

    Args:
        plan: by which the small network was cut from the dense one.
        dense, small: the two networks.
        set_by_forward: attributes that a run of the dense network has set, besides those that its forwards name.
    """
    not_made = {*set_by_forward, *set_by_forwards(dense)}
    before = getattr(dense, "zerogate_plan", None)
    if not isinstance(before, dict) or before.get("result") != layout(dense):
        made = {name: part for name, part in architecture(dense).items() if name not in not_made}
        before = {"dense": made, "steps": []}
    not_made.update(before.get("set_by_forward", ()))
    whole = make_plain(meta_copy(dense), plan.plain) if plan.plain else dense
    registered = dict(named_tensors(whole))
    stored = registered.keys() - transient_buffers(whole)  # a dense network may not have these yet
    step: StoredStep = {
        "keep": [[name, dim, indices.tolist()] for (name, dim), indices in plan.keep.items() if name in stored],
        "select": [[layer, dim, indices.tolist()] for layer, (dim, indices) in plan.select.items()],
        "attributes": [
            [module, attribute, value]
            for (module, attribute), value in plan.attributes.items()
            if join_name(module, attribute) not in not_made
        ],
        "attention": plan.attention,
    }
    tables = [(name, dim) for name, dim in plan.keep if name not in registered]
    if tables:
        step["tables"] = [[[*plan.places[name][0]], dim, plan.keep[name, dim].tolist()] for name, dim in tables]
    if plan.plain:
        step["plain"] = describe_plain(plan.plain)
    return {
        "version": PLAN_VERSION,
        "dense": before["dense"],
        "set_by_forward": sorted(not_made),
        "steps": [*before["steps"], step],
        "result": layout(small),
    }


def architecture(model: nn.Module, attributes: bool = True) -> Architecture:
    """What tells a network from another one: path → class of a module, kind and shape of a tensor, value of an attribute.

    Attributes are the ints, and tuples and lists of ints, that a module holds under a public name: heads, strides and
    the like leave no trace in shapes. Tensors that are tied name the first of them. Buffers that are not part of the
    state_dict do not count.
    """
    parts: Architecture = {}
    transient = transient_buffers(model)
    for prefix, module in modules_by_name(model).items():
        parts[prefix] = type(module).__name__
        if attributes:
            parts |= {join_name(prefix, name): size for name, size in stated_sizes(module).items()}
    tensors = dict(named_tensors(model))
    for first, names in tied_names(model).items():
        if first not in transient:
            tensor = tensors[first]
            shape = "of unknown size" if is_lazy(tensor) else " × ".join(map(str, tensor.shape)) or "scalar"
            parts[first] = f"{'parameter' if isinstance(tensor, nn.Parameter) else 'buffer'} {shape}"
            for name in names[1:]:
                parts[name] = f"tied to {first}"
    return parts


def layout(model: nn.Module) -> str:
    """Hash of the names, classes and shapes in a network: changes with every cut, not with training."""
    parts = architecture(model, attributes=False)
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def first_difference(written: object, model: nn.Module, set_by_forward: Collection[str] = ()) -> str | None:
    """Where a network is not the one of which `architecture` was written; None if it is. What its forward sets, and what
    is named as set so, is not compared.

    Raises `CheckpointError` where nothing of the kind was written."""
    if not isinstance(written, dict):
        raise CheckpointError("does not say from which network it was cut")
    here, not_made = architecture(model), {*set_by_forward, *set_by_forwards(model)}
    for path in [*here, *written]:
        if path not in not_made and written.get(path) != here.get(path):
            there, now = (short(x[path]) if path in x else "absent" for x in (written, here))
            return f"{path[:200] or 'the network'} is {there} in the file and {now} in it"
    return None


def read_step(step: object, model: nn.Module) -> Plan:
    """One step of a described plan, for the network that it applies to, in which plain layers take their places.

    Raises `CheckpointError` for anything but what `describe_plan` can have written for this network.
    """
    if not isinstance(step, dict) or set(step) - {"tables", "plain"} != {"keep", "select", "attributes", "attention"}:
        raise CheckpointError("contains an invalid plan step")
    modules = modules_by_name(model, twice=True)
    plain = read_plain(step.get("plain", {}), modules)
    if plain:
        modules = modules_by_name(make_plain(model, plain), twice=True)
    keep, places = _read_keep(step["keep"], dict(named_tensors(model))), plain_places(model)
    return Plan(
        keep | _read_tables(step.get("tables", []), model, places),
        _read_select(step["select"], modules),
        _read_attributes(step["attributes"], modules),
        places,
        _read_attention(step["attention"], modules),
        plain,
    )


def _read_keep(rows: object, tensors: Mapping[str, Tensor]) -> dict[tuple[str, int], Tensor]:
    keep: dict[tuple[str, int], Tensor] = {}
    for name, dim, indices in _triples(rows, "keep"):
        tensor = tensors.get(name)
        if tensor is None or not is_whole(dim, least=None) or not 0 <= dim < tensor.ndim or (name, dim) in keep:
            raise CheckpointError(f"holds a plan that keeps part of axis {short(dim)} of {short(name)}: there is none")
        keep[name, dim] = _indices(indices, tensor.shape[dim], f"keep of {short(name)}")
    return keep


def _read_tables(rows: object, model: nn.Module, places: Mapping[str, list[Path]]) -> dict[tuple[str, int], Tensor]:
    """Rows of tables that this network holds; what it lacks, it makes when it needs it."""
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 3 for r in rows):
        raise CheckpointError("holds a plan whose tables are not a table of three columns")
    names = {path: name for name, paths in places.items() for path in paths}
    keep: dict[tuple[str, int], Tensor] = {}
    for path, dim, indices in rows:
        name = names.get(tuple(path)) if isinstance(path, list) and all(type(k) in (str, int) for k in path) else None
        tensor = None if name is None else tensor_at(model, tuple(path))
        if name is None or tensor is None:
            continue
        if not is_whole(dim, least=None) or not 0 <= dim < tensor.ndim or (name, dim) in keep:
            raise CheckpointError(f"holds a plan that keeps part of axis {short(dim)} of {short(name)}: there is none")
        keep[name, dim] = _indices(indices, tensor.shape[dim], f"keep of {short(name)}")
    return keep


def _read_select(rows: object, modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, Tensor]]:
    select: dict[str, tuple[int, Tensor]] = {}
    for layer, dim, indices in _triples(rows, "select"):
        sizes = [] if layer not in modules else [size for p in modules[layer].parameters() for size in p.shape]
        if not sizes or not is_whole(dim, least=None) or not -8 <= dim < 0 or layer in select:
            raise CheckpointError(f"holds a plan that selects inputs {short(dim)} of {short(layer)}: there are none")
        select[layer] = (dim, _indices(indices, max(sizes), f"select of {short(layer)}"))
    return select


def _read_attributes(rows: object, modules: Mapping[str, nn.Module]) -> dict[tuple[str, str], NewValue]:
    attributes: dict[tuple[str, str], NewValue] = {}
    for name, attribute, value in _triples(rows, "attributes"):
        known = dict(attributes_of(modules[name])) if name in modules else {}
        stated = known.get(attribute) if isinstance(attribute, str) else None
        if not is_new_value_of(value, stated):
            where = f"{short(attribute)} of {short(name)}"
            raise CheckpointError(f"holds a plan that sets {where} to {short(value)}, where it is {short(stated)}")
        attributes[name, str(attribute)] = value
    return attributes


def _read_attention(table: object, modules: Mapping[str, nn.Module]) -> dict[str, dict[str, bool]]:
    if not isinstance(table, dict):
        raise CheckpointError("holds a plan whose attention is not a table")
    for name, flags in table.items():
        flags_fit = isinstance(flags, dict) and all(type(flag) is bool for flag in flags.values())
        if type(modules.get(name)) is not nn.MultiheadAttention or not flags_fit:
            raise CheckpointError(f"holds a plan with an attention at {short(name)}: there is none")
    return table


def _triples(rows: object, what: str) -> Iterator[tuple[str, object, object]]:
    """The rows of a table of three columns, the first of which holds names."""
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise CheckpointError(f"holds a plan whose {what} is not a table of three columns")
    for name, *_ in rows:
        if not isinstance(name, str):
            raise CheckpointError(f"holds a plan whose {what} has a name that is not a string: {short(name)}")
    for name, a, b in rows:
        yield name, a, b


def _indices(value: object, size: int, what: str) -> Tensor:
    """Ascending indices below a size, int64."""
    if not isinstance(value, list) or not all(is_whole(i, least=None) for i in value):
        raise CheckpointError(f"holds a plan whose {what} is not a list of whole numbers")
    if any(a >= b for a, b in pairwise(value)) or (value and not 0 <= value[0] <= value[-1] < size):
        raise CheckpointError(f"holds a plan whose {what} is not ascending within 0 … {size - 1}")
    return torch.tensor(value, dtype=torch.int64)


def short(value: object) -> str:
    """What a file says, for a message of one line."""
    text = repr(value) if not isinstance(value, str) or not value.isprintable() else value
    return text if len(text) <= 80 else f"{text[:80]}…"
