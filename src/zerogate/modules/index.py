"""A model's modules, parameters and buffers by name; a tensor that is tied counts once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

from torch import Tensor, nn

from zerogate.modules.internals import buffers_of, children_of, parameters_of, transient_names_of


def split_name(name: str) -> tuple[str, str]:
    """The owner and the attribute of a parameter, buffer or module: ``"a.b.weight"`` → ``("a.b", "weight")``; the root
    is ``""``."""
    owner, _, attribute = name.rpartition(".")
    return owner, attribute


def owner_of(name: str) -> str:
    """Name of the module that owns a parameter, buffer or module; the root is ``""``."""
    return split_name(name)[0]


def modules_around(name: str) -> list[str]:
    """Names of a module and of all modules around it, from the inside out; the last is the root, ``""``."""
    return [name, *modules_around(owner_of(name))] if name else [""]


def layer_of(name: str) -> str:
    """Name of the module that reads a parameter or buffer as its own: the owner, or, of what
    `torch.nn.utils.parametrize` keeps apart, the module that is parametrised."""
    owner = f".{owner_of(name)}"
    return owner.partition(".parametrizations.")[0][1:]


def join_name(owner: str, attribute: str) -> str:
    """The inverse of `split_name`."""
    return f"{owner}.{attribute}" if owner else attribute


def modules_by_name(model: nn.Module, twice: bool = False) -> dict[str, nn.Module]:
    """What ``model.named_modules()`` yields, several times as fast.

    Args:
        model: the root, which is called ``""``.
        twice: whether a module that is held in several places is listed under each of its names, or under the first.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if not twice and id(module) in seen:
            continue
        seen.add(id(module))
        found[name] = module
        children = children_of(module)
        if children:
            inside = f"{name}." if name else ""
            waiting += [(inside + n, child) for n, child in reversed(children.items()) if child is not None]
    return found


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once, by their first name."""
    seen: set[int] = set()
    for owner, attribute, tensor in _registered(modules_by_name(model)):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield join_name(owner, attribute), tensor


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """First name of every parameter and buffer → all its names."""
    return ModuleIndex(model).names


def tensor_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for _, tensor in named_tensors(model))


def transient_buffers(model: nn.Module) -> set[str]:
    """First names of the buffers that no `state_dict` holds: registered with ``persistent=False`` under all their names."""
    index = ModuleIndex(model)
    return {
        first
        for first, names in index.names.items()
        if all(attribute in transient_names_of(owner) for owner, attribute in map(index.owner, names))
    }


class ModuleIndex:
    """A model's modules and tensors by name, gone through once for a function that looks up many of them.

    It is right for as long as the model's modules stay; tensors may be replaced by `put`.

    Attributes:
        modules: name → module; a module that is held in several places stands under each of its names.
    """

    def __init__(self, model: nn.Module) -> None:
        self.modules = modules_by_name(model, twice=True)

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """First name of every parameter and buffer → all its names."""
        names: dict[int, list[str]] = {}
        for owner, attribute, tensor in _registered(self.modules):
            names.setdefault(id(tensor), []).append(join_name(owner, attribute))
        return {all_names[0]: all_names for all_names in names.values()}

    def owner(self, name: str) -> tuple[nn.Module, str]:
        """The module that owns a parameter or buffer, and the attribute. Raises `KeyError` where there is no such module."""
        owner, attribute = split_name(name)
        return self.modules[owner], attribute

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of that name. Raises `KeyError` where there is none."""
        found = self.find(name)
        if found is None:
            raise KeyError(name)
        return found

    def find(self, name: str) -> Tensor | None:
        """The parameter or buffer of that name; None where there is none."""
        owner, attribute = split_name(name)
        module = self.modules.get(owner)
        parameter, buffer = (
            None if module is None else of(module).get(attribute) for of in (parameters_of, buffers_of)
        )
        return buffer if parameter is None else parameter

    def put(self, name: str, tensor: Tensor) -> set[nn.Module]:
        """Replaces a parameter or buffer, given its first name, under all its names; returns the modules that own it."""
        return put(self.modules, self.names.get(name, [name]), tensor)


def put(modules: Mapping[str, nn.Module], names: Sequence[str], tensor: Tensor) -> set[nn.Module]:
    """Replaces a parameter or buffer under all its names; returns the modules that own it.

    Args:
        modules: name → module, as `ModuleIndex.modules`.
        names: all names of the tensor, which may be registered as None.
        tensor: a parameter where one is registered, else a buffer.
    """
    owners = set()
    for name in names:
        owner, attribute = split_name(name)
        module = modules[owner]
        was = parameters_of(module).get(attribute)
        if was is not None:
            put_in_lists(module, lists_with(module, was), tensor)
        (parameters_of(module) if attribute in parameters_of(module) else buffers_of(module))[attribute] = tensor  # type: ignore[assignment]
        owners.add(module)
    return owners


ListPlace = tuple[str, int]
"""An attribute of a module that is a list, and a place in it."""


def lists_with(module: nn.Module, parameter: Tensor) -> list[ListPlace]:
    """Where a module holds one of its parameters a second time, in a list that its forward may read it from, as torch's
    recurrent layers do."""
    lists = [(name, value) for name, value in vars(module).items() if type(value) is list]
    return [(name, i) for name, value in lists for i, x in enumerate(value) if x is parameter]


def put_in_lists(module: nn.Module, places: Sequence[ListPlace], tensor: Tensor) -> None:
    """Replaces what a module's lists hold at these places."""
    for name, i in places:
        vars(module)[name][i] = tensor


def _registered(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, Tensor]]:
    """(module's name, attribute, tensor) of every parameter and buffer that is there."""
    for owner, module in modules.items():
        for attribute, tensor in [*parameters_of(module).items(), *buffers_of(module).items()]:
            if tensor is not None:
                yield owner, attribute, tensor
