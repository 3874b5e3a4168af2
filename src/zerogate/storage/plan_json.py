"""Plans as JSON-able values: what is written of them, and what is checked when they are read back."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from zerogate.cutting.plan import Plan
from zerogate.errors import CheckpointError
from zerogate.modules.index import modules_by_name, named_tensors, tied_names, transient_buffers

PLAN_VERSION = 2
PLAN_KEYS = ("version", "dense", "steps", "result", "difference")


def describe_plan(plan: Plan, dense: nn.Module, small: nn.Module) -> dict[str, Any]:
    """A plan as JSON-able values, with the network it applies to.

    Where the dense network is itself what an earlier compaction returned, the earlier steps come first: the file is
    then read with the network that was dense at the very beginning.
    """
    before = getattr(dense, "zerogate_plan", None)
    if not isinstance(before, dict) or before.get("result") != layout(dense):
        before = {"dense": architecture(dense), "steps": []}
    gone = transient_buffers(dense)  # stored as they are in the end, a dense network may not have them yet
    step = {
        "keep": [[name, dim, indices.tolist()] for (name, dim), indices in plan.keep.items() if name not in gone],
        "select": [[layer, dim, indices.tolist()] for layer, (dim, indices) in plan.select.items()],
        "attributes": [[module, attribute, value] for (module, attribute), value in plan.attributes.items()],
        "attention": plan.attention,
    }
    return {
        "version": PLAN_VERSION,
        "dense": before["dense"],
        "steps": [*before["steps"], step],
        "result": layout(small),
    }


def architecture(model: nn.Module, attributes: bool = True) -> dict[str, Any]:
    """What tells a network from another one: path → class of a module, kind and shape of a tensor, value of an attribute.

    Attributes are the ints, and tuples and lists of ints, that a module holds under a public name: heads, strides and
    the like leave no trace in shapes. Tensors that are tied name the first of them. Buffers that are not part of the
    state_dict do not count.
    """
    found: dict[str, Any] = {}
    transient = transient_buffers(model)
    for prefix, module in modules_by_name(model).items():
        found[prefix] = type(module).__name__
        for name, value in vars(module).items() if attributes else ():
            if not name.startswith("_") and _is_size(value):
                plain = list(value) if isinstance(value, (tuple, list)) else value
                found[f"{prefix}.{name}" if prefix else name] = plain
    tensors = dict(named_tensors(model))
    for first, names in tied_names(model).items():
        if first not in transient:
            tensor = tensors[first]
            shape = "of unknown size" if is_lazy(tensor) else " × ".join(map(str, tensor.shape)) or "scalar"
            found[first] = f"{'parameter' if isinstance(tensor, nn.Parameter) else 'buffer'} {shape}"
            found |= dict.fromkeys(names[1:], f"tied to {first}")
    return found


def layout(model: nn.Module) -> str:
    """Hash of the names, classes and shapes in a network: changes with every cut, not with training."""
    found = architecture(model, attributes=False)
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def first_difference(written: Any, model: nn.Module) -> str | None:
    """Where a network is not the one of which `architecture` was written; None if it is."""
    if not isinstance(written, dict):
        raise CheckpointError("does not say from which network it was cut")
    here = architecture(model)
    for path in [*here, *written]:
        if written.get(path) != here.get(path):
            there, now = (short(x[path]) if path in x else "absent" for x in (written, here))
            return f"{path[:200] or 'the network'} is {there} in the file and {now} in it"
    return None


def read_step(step: Any, model: nn.Module) -> Plan:
    """One step of a described plan, for the network that it applies to.

    Raises `CheckpointError` for anything but what `describe_plan` can have written for this network.
    """
    plan = Plan()
    if not isinstance(step, dict) or set(step) != {"keep", "select", "attributes", "attention"}:
        raise CheckpointError("holds a plan with a step that is none")
    tensors, modules = dict(named_tensors(model)), modules_by_name(model, twice=True)
    for name, dim, indices in _triples(step["keep"], "keep"):
        tensor = tensors.get(name)
        if tensor is None or type(dim) is not int or not 0 <= dim < tensor.ndim or (name, dim) in plan.keep:
            raise CheckpointError(f"holds a plan that keeps part of axis {short(dim)} of {short(name)}: there is none")
        plan.keep[name, dim] = _indices(indices, tensor.shape[dim], f"keep of {short(name)}")
    for layer, dim, indices in _triples(step["select"], "select"):
        owned = [] if layer not in modules else [size for p in modules[layer].parameters() for size in p.shape]
        if not owned or type(dim) is not int or not -8 <= dim < 0 or layer in plan.select:
            raise CheckpointError(f"holds a plan that selects inputs {short(dim)} of {short(layer)}: there are none")
        plan.select[layer] = (dim, _indices(indices, max(owned), f"select of {short(layer)}"))
    for name, attribute, value in _triples(step["attributes"], "attributes"):
        held = vars(modules[name]).get(attribute) if name in modules and isinstance(attribute, str) else None
        if not _is_size(held) or not _is_size(value) or _length(held) != _length(value):
            where = f"{short(attribute)} of {short(name)}"
            raise CheckpointError(f"holds a plan that sets {where} to {short(value)}, where it is {short(held)}")
        plan.attributes[name, attribute] = value
    if not isinstance(step["attention"], dict):
        raise CheckpointError("holds a plan whose attention is no table")
    for name, flags in step["attention"].items():
        flags_fit = isinstance(flags, dict) and all(type(flag) is bool for flag in flags.values())
        if type(modules.get(name)) is not nn.MultiheadAttention or not flags_fit:
            raise CheckpointError(f"holds a plan with an attention at {short(name)}: there is none")
        plan.attention[name] = flags
    return plan


def _triples(rows: Any, what: str) -> list[tuple[str, Any, Any]]:
    if not isinstance(rows, list) or not all(isinstance(r, list) and len(r) == 3 for r in rows):
        raise CheckpointError(f"holds a plan whose {what} is no table of three columns")
    if not all(isinstance(name, str) for name, _, _ in rows):
        raise CheckpointError(f"holds a plan whose {what} names things by what is no text")
    return [(name, a, b) for name, a, b in rows]


def _indices(value: Any, size: int, what: str) -> Tensor:
    if not isinstance(value, list) or not all(type(i) is int for i in value):
        raise CheckpointError(f"holds a plan whose {what} is no list of whole numbers")
    if any(a >= b for a, b in pairwise(value)) or (value and not 0 <= value[0] <= value[-1] < size):
        raise CheckpointError(f"holds a plan whose {what} is not ascending within 0 … {size - 1}")
    return torch.tensor(value, dtype=torch.int64)


def _is_size(value: Any) -> bool:
    """An int, or ints in a tuple or list."""
    if isinstance(value, (tuple, list)):
        return len(value) > 0 and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    return isinstance(value, int) and not isinstance(value, bool)


def short(value: Any) -> str:
    """What a file says, for a message of one line."""
    text = repr(value) if not isinstance(value, str) or not value.isprintable() else value
    return text if len(text) <= 80 else f"{text[:80]}…"


def _length(value: Any) -> int | None:
    return len(value) if isinstance(value, (tuple, list)) else None
