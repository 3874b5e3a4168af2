"""A dense network becomes the compacted one of a file: cut by the steps of its plan, filled with its tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

from zerogate.cutting.cut import cut
from zerogate.errors import CheckpointError
from zerogate.modules.computed_weights import refresh
from zerogate.modules.index import ModuleIndex, modules_by_name, named_tensors, owner_of, split_name, transient_buffers
from zerogate.modules.internals import buffers_of
from zerogate.modules.unregistered import replace, unregistered
from zerogate.storage.encodings import unpack
from zerogate.storage.plan_json import PLAN_KEYS, PLAN_VERSION, first_difference, layout, read_step, short
from zerogate.storage.sealed_file import CHANNELS_LAST, ENCODED_VERSION, PLAIN_VERSION, Header

T = TypeVar("T")


def restore(model: nn.Module, header: Header, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Cuts and fills a dense network; returns the compacted one.

    Args:
        model: the dense network, all of its parameters and buffers on the meta device; used up.
        header: of the file.
        tensors: of the file.

    Raises `CheckpointError`, which does not name the file, where they do not belong together. A header that was made up
    may make it raise anything else.
    """
    difference = first_difference(header.get("dense"), model, _names(header.get("set_by_forward", [])))
    if difference is not None:
        raise CheckpointError(
            f"was cut from another architecture than the {type(model).__name__} that make_model returns: {difference}; "
            "make the dense network with the arguments it had when it was compacted"
        )
    for step in _entry(header, "steps", list):
        model = cut(model, read_step(step, model))
    if layout(model) != header.get("result"):
        raise CheckpointError("holds a plan that does not make the network that was saved")
    _fill(model, header, tensors)
    _put_unregistered(model, header, tensors)
    refresh(model)
    modes = _entry(header, "modes", dict)
    for name, module in modules_by_name(model).items():
        parent = model.get_submodule(owner_of(name))
        module.training = bool(modes.get(name, parent.training))  # not train(): a class may have its own
    plan = {key: header[key] for key in PLAN_KEYS if key in header} | {"version": PLAN_VERSION}
    model.zerogate_plan = plan  # type: ignore[assignment]
    return model


def _fill(model: nn.Module, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Puts the parameters and buffers of a file in place of those on the meta device."""
    frozen, channels_last, transient = (
        set(_entry(header, key, list)) for key in ("frozen", "channels_last", "transient")
    )
    expected, index = dict(named_tensors(model)), ModuleIndex(model)
    lasting = expected.keys() - transient_buffers(model)
    if header["version"] in (ENCODED_VERSION, PLAIN_VERSION):
        tensors = unpack(tensors, _entry(header, "encoded", dict), {name: expected[name].shape for name in lasting})
    promised = {name for name in tensors if not name.startswith("unregistered:")} - transient
    wrong = sorted(lasting ^ promised)
    wrong += [name for name in sorted(lasting & promised) if expected[name].shape != tensors[name].shape]
    if wrong:
        raise CheckpointError(
            f"does not hold the tensors its plan promises; damaged: {', '.join(map(short, wrong[:3]))}"
        )
    for name in sorted(lasting | (transient & tensors.keys())):
        tensor = tensors[name]
        if name in channels_last:
            tensor = tensor.contiguous(memory_format=CHANNELS_LAST[tensor.ndim])
        if isinstance(expected.get(name), nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=name not in frozen)
        if name in index.names or _has_buffer(index, name):
            index.put(name, tensor)


def _has_buffer(index: ModuleIndex, name: str) -> bool:
    """Whether a buffer of that name is registered, be it as None: a cache that was empty."""
    owner, attribute = split_name(name)
    return owner in index.modules and attribute in buffers_of(index.modules[owner])


def _put_unregistered(model: nn.Module, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Puts stored tensors where the model holds some that it has not registered; see `modules.unregistered`."""
    places = dict(unregistered(model))
    registered = dict(named_tensors(model))
    for path, name in _entry(header, "unregistered", list):
        tensor = registered.get(name, tensors.get(name))
        if tensor is None:
            raise CheckpointError(f"does not hold {short(name)}, which its plan promises")
        if tuple(path) in places:  # else a cache: what a fresh network lacks, it makes when it needs it
            replace(model, tuple(path), tensor)


def _names(value: object) -> list[str]:
    """A list of names. Raises `CheckpointError` for anything else."""
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise CheckpointError("holds a plan whose set_by_forward is not a list of names")
    return value


def _entry(header: Header, key: str, kind: type[T]) -> T:
    """An entry of a header. Raises `CheckpointError` where it is missing or of another kind."""
    value = header.get(key)
    if not isinstance(value, kind):
        raise CheckpointError(f"holds a plan without its {key}")
    return value
