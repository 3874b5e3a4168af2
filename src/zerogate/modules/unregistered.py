"""Tensors that modules hold without having registered them: constants, caches, lists of anchors.

`state_dict` does not know them. `zerogate.save` stores them, since to make them again might give other values, and
`zerogate.load` finds by them whether something was left on the meta device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from zerogate.modules.held_numbers import attributes_of
from zerogate.modules.index import named_tensors

Path = tuple[Any, ...]
"""A module's name, one of its attributes, and the keys, indices and attributes that lead from there to a tensor. A key of
a dict may be anything that can be hashed."""

_HIDDEN = object()
"""Stands in a path for a step that cannot be taken again: into a set, a closure, an argument bound by a partial."""


def unregistered(model: nn.Module) -> Iterator[tuple[Path, Tensor]]:
    """(path, tensor) of each of them; a tensor that is held in several places is yielded once for each, but a container
    that is held in several places is searched once."""
    seen = {id(module) for module in model.modules()}
    for prefix, module in model.named_modules():
        waiting: list[tuple[Path, object]] = [((prefix, name), value) for name, value in attributes_of(module)]
        while waiting:
            path, value = waiting.pop()
            if isinstance(value, Tensor):
                yield path, value
            elif id(value) not in seen:
                inside = [((*path, key), item) for key, item in _items(value)]
                if inside:
                    seen.add(id(value))
                waiting.extend(inside)


def plain_places(model: nn.Module) -> dict[str, list[Path]]:
    """Name → paths of each floating-point tensor that can be reached by names and indices alone, and replaced there. One
    that is registered, too, has its first name; all others the name of their first place, as in ``blocks.0.table``."""
    names = {id(tensor): name for name, tensor in named_tensors(model)}
    places: dict[str, list[Path]] = {}
    for path, tensor in unregistered(model):
        if can_be_stored(path, tensor, of_any_device=True) and tensor.is_floating_point():
            name = names.setdefault(id(tensor), ".".join(str(key) for key in path if key != ""))
            places.setdefault(name, []).append(path)
    return places


def tensor_at(model: nn.Module, path: Path) -> Tensor | None:
    """What lies at a path; None where that is no tensor."""
    holder: Any = model.get_submodule(path[0])
    for key in path[1:]:
        items = vars(holder) if isinstance(holder, nn.Module) else dict(_items(holder))
        if key not in items:
            return None
        holder = items[key]
    return holder if isinstance(holder, Tensor) else None


def can_be_stored(path: Path, tensor: Tensor, of_any_device: bool = False) -> bool:
    """Whether the path can be written as JSON, and the tensor is data in an ordinary form and no part of a graph;
    ``of_any_device``: the meta device included."""
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided and not tensor.is_quantized
    return (
        plain
        and tensor.grad_fn is None
        and (of_any_device or not tensor.is_meta)
        and all(type(key) in (str, int) for key in path)
    )


def replace(model: nn.Module, path: Path, tensor: Tensor) -> None:
    """Puts another tensor in the place of one that `unregistered` yields. It becomes a parameter if that is one, and
    trainable if that is. Raises `KeyError` for a path that leads into a closure or a set."""
    _replaced(model.get_submodule(path[0]), path[1:], tensor)


def _replaced(holder: Any, path: Path, tensor: Tensor) -> Any:
    if not path:
        if isinstance(holder, nn.Parameter) and not isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor, requires_grad=holder.requires_grad)
        return tensor.requires_grad_() if holder.requires_grad and not tensor.requires_grad else tensor
    key, rest = path[0], path[1:]
    if isinstance(holder, tuple):
        items = [_replaced(item, rest, tensor) if i == key else item for i, item in enumerate(holder)]
        return type(holder)(*items) if hasattr(holder, "_fields") else type(holder)(items)
    place = holder if isinstance(holder, (dict, list)) else vars(holder)
    place[key] = _replaced(place[key], rest, tensor)
    return holder


def _items(value: object) -> Iterable[tuple[object, object]]:
    """What a container or an object holds, by key, index or attribute."""
    if isinstance(value, dict):
        return list(value.items())
    if isinstance(value, (list, tuple)):
        return enumerate(value)
    hidden: Iterable[object] = ()
    if isinstance(value, (set, frozenset)):
        hidden = value
    elif isinstance(value, partial):
        hidden = (value.func, value.args, value.keywords)
    elif isinstance(value, MethodType):
        hidden = (value.__self__,)
    elif isinstance(value, FunctionType):
        hidden = (value.__closure__ or (), value.__defaults__ or ())
    elif isinstance(value, CellType):
        hidden = _contents(value)
    elif hasattr(value, "__dict__") and not isinstance(value, (type, ModuleType, fx.Graph)):
        return list(vars(value).items())
    return [(_HIDDEN, item) for item in hidden]


def _contents(cell: CellType) -> tuple[object, ...]:
    try:
        return (cell.cell_contents,)
    except ValueError:  # not filled yet
        return ()
