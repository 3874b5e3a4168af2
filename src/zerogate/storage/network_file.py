"""Compacted modules on disk: one safetensors file, never pickle.

The file holds the tensors, and in its header the plan by which they were cut from the dense network. `load` makes the
dense network on the meta device, where it costs nothing, replays the plan and puts the tensors in.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from zerogate.cutting.cut import cut
from zerogate.errors import CheckpointError, ZerogateError, first_line
from zerogate.files import safetensors, write
from zerogate.modules.copies import copy_with
from zerogate.modules.index import (
    modules_by_name,
    named_tensors,
    owner_of,
    put,
    tied_names,
    transient_buffers,
)
from zerogate.modules.internals import buffers_of
from zerogate.modules.unregistered import can_be_stored, replace, unregistered
from zerogate.storage.encodings import pack, unpack
from zerogate.storage.plan_json import PLAN_KEYS, PLAN_VERSION, first_difference, layout, read_step, short

_KEY = "zerogate"
_ENCODED_VERSION = PLAN_VERSION + 1
"""Of files with encoded tensors, which an earlier zerogate would not understand; all others are of `PLAN_VERSION`."""
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_SEALED = re.compile(r'\{"sha256": "([0-9a-f]{64})", "plan": (.*)\}', re.DOTALL)
"""The header's text: the hash is that of the plan's own text, and of all tensors."""


def save(small: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = False, sparse: bool = True) -> None:
    """Writes a module that `Sparsified.compact` returned: all its parameters and buffers, trainable or not, and modes.

    Tensors that a module holds without having registered them are written too, where they can be told by name.

    Args:
        small: the module.
        path: the file.
        overwrite: whether it may replace one that exists.
        sparse: whether a parameter or buffer of many zeros is written without them, as a bitmask or by indices,
            where that makes the file smaller; `load` gives back the same bits. False: every tensor as it is, under its
            name, for readers of safetensors that know nothing of zerogate.

    Raises `ZerogateError` for another module, for one that was rebuilt since, for a path that exists (unless
    ``overwrite``) and for one that cannot be written; a file is never left half written.
    """
    small = getattr(small, "_orig_mod", small)  # what torch.compile wraps
    plan = getattr(small, "zerogate_plan", None)
    if isinstance(small, fx.GraphModule) and (not isinstance(plan, dict) or "version" not in plan):
        raise ZerogateError(
            "save takes modules of the user's class, not a graph module, which compact() returns with keep_class=False; "
            "write that with torch.export.save(torch.export.export(small, args), path)"
        )
    if not isinstance(plan, dict):
        raise ZerogateError(f"save takes what compact() returned, got a {type(small).__name__} without a plan")
    if plan.get("version") != PLAN_VERSION:
        raise ZerogateError(
            f"this {type(small).__name__} was compacted by another version of zerogate; compact it again"
        )
    if plan["result"] != layout(small):
        raise ZerogateError(
            f"this {type(small).__name__} is not as compact() returned it: modules or shapes have changed since, and "
            "load could not make it again; save it first, or save its state_dict"
        )
    if not isinstance(sparse, bool):
        raise ZerogateError(
            f"sparse is True (zeros are left out where that makes the file smaller) or False, got {sparse!r}"
        )
    path = Path(path)
    if os.path.isdir(path):
        raise ZerogateError(f"{path} is a folder; give the path of a file in it")
    if os.path.exists(path) and not overwrite:
        raise ZerogateError(f"{path} exists; choose another path or pass overwrite=True")
    content = _serialised(small, plan, sparse)
    try:
        write(path, content)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        reason = getattr(error, "strerror", None) or error
        raise ZerogateError(f"cannot write {path}: {reason}; choose a folder that exists, with space") from error


def load(path: str | os.PathLike[str], make_model: Callable[[], nn.Module]) -> nn.Module:
    """The module that `save` wrote, on the CPU.

    Args:
        path: the file.
        make_model: returns a freshly made dense network of the same architecture; called on the meta device, so that
            its weights are never made. Where that does not work (it reads values, or hides tensors where they cannot be
            replaced) it is called once more without.

    Raises:
        CheckpointError: the file is missing, damaged, changed, of another version, or belongs to another architecture.
        ZerogateError: make_model fails, or returns something else than a module.
    """
    header, tensors = _read(path)
    for meta in (True, False):
        dense = _make(make_model, meta)
        if dense is None:
            continue
        try:
            small = _restored(dense, header, tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{path} {error}") from error
        except Exception as error:  # whatever a plan that was made up can do
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise CheckpointError(f"{path} holds a plan that cannot be carried out ({reason})") from error
        left = [name for name, tensor in named_tensors(small) if tensor.is_meta]
        left += [".".join(str(key) for key in where if key) for where, t in unregistered(small) if t.is_meta]
        if not left:
            return small
    raise CheckpointError(
        f"{path} does not hold {short(left[0])}, and make_model makes it without values (on the meta device)"
    )


# writing


def _serialised(small: nn.Module, plan: dict[str, Any], sparse: bool) -> bytes:
    registered = dict(named_tensors(small))
    names = {id(tensor): name for name, tensor in registered.items()}
    tensors = dict(registered)
    plain = []
    for path, tensor in unregistered(small):
        if can_be_stored(path, tensor):
            if id(tensor) not in names:
                names[id(tensor)] = f"unregistered:{len(tensors) - len(registered)}"
                tensors[names[id(tensor)]] = tensor
            plain.append([list(path), names[id(tensor)]])
    modes: dict[str, bool] = {}
    for name, module in modules_by_name(small).items():
        if not name or module.training != small.get_submodule(owner_of(name)).training:
            modes[name] = module.training
    transient = transient_buffers(small)
    header = {key: plan[key] for key in PLAN_KEYS if key in plan} | {
        "modes": modes,
        "frozen": [name for name, p in small.named_parameters() if not p.requires_grad],
        "transient": sorted(transient),
        "unregistered": plain,
        "channels_last": [name for name, tensor in registered.items() if _channels_last(tensor)],
        "torch": torch.__version__,
        "zerogate": _version(),
    }
    try:
        stored, encoded = pack(_apart(tensors), [name for name in registered if sparse and name not in transient])
        if encoded:
            header |= {"version": _ENCODED_VERSION, "encoded": encoded}
        text = json.dumps(header)
        sealed = f'{{"sha256": "{_digest(text, stored)}", "plan": {text}}}'
        return safetensors().torch.save(stored, metadata={_KEY: sealed})
    except ZerogateError:
        raise
    except Exception as error:  # sparse, quantised, on the meta device, a dtype that the format lacks
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ZerogateError(f"the tensors of this {type(small).__name__} cannot be stored ({reason})") from error


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same values on the CPU, contiguous, none a view into another."""
    stored, storages = {}, set()
    for name, tensor in tensors.items():
        held = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if held.untyped_storage().data_ptr() in storages:
            held = held.clone()
        storages.add(held.untyped_storage().data_ptr())
        stored[name] = held
    return stored


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    """sha256 over the plan, and over names, dtypes, shapes and bytes of contiguous tensors on the CPU."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        size = tensor.numel() * tensor.element_size()
        if size:
            found.update((ctypes.c_char * size).from_address(tensor.data_ptr()))  # numpy is not required
    return found.hexdigest()


def _channels_last(tensor: Tensor) -> bool:
    known = _CHANNELS_LAST.get(tensor.ndim)
    return known is not None and tensor.is_contiguous(memory_format=known) and not tensor.is_contiguous()


def _version() -> str:
    try:
        return version("zerogate")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


# reading


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header's plan and the tensors of a file whose hash is right."""
    if os.path.isdir(path):
        raise CheckpointError(f"{path} cannot be read as a compacted network: it is a folder; give a file in it")
    try:
        with safetensors().safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY, "")
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not the file's pages
    except ZerogateError:
        raise
    except Exception as error:  # whatever a damaged header makes of it
        raise CheckpointError(f"{path} cannot be read as a compacted network: {first_line(error)}") from error
    sealed = _SEALED.fullmatch(text)
    try:
        header = json.loads(sealed[2] if sealed else text)
    except (ValueError, RecursionError):
        header = None
    written = header.get("version") if isinstance(header, dict) else None
    if type(written) is not int:
        raise CheckpointError(f"{path} is a safetensors file, but not one that zerogate.save wrote, or it is damaged")
    if not PLAN_VERSION <= written <= _ENCODED_VERSION:
        way_out = "update zerogate" if written > PLAN_VERSION else "compact the network again and save it with this one"
        raise CheckpointError(
            f"{path} was written by {'a later' if written > PLAN_VERSION else 'an earlier'} zerogate (file version "
            f"{written:.6g}, this one reads {PLAN_VERSION} and {_ENCODED_VERSION}); {way_out}"
        )
    if sealed is None or sealed[1] != _digest(sealed[2], tensors):
        raise CheckpointError(f"{path} is damaged or was changed: its contents do not match the hash in it")
    return header, tensors


def _make(make_model: Callable[[], nn.Module], meta: bool) -> nn.Module | None:
    """A dense network whose parameters and buffers are on the meta device; None where it cannot be made there."""
    with torch.random.fork_rng(devices=[]):
        try:
            if meta:
                with torch.device("meta"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of initialisers and checkpoints that have no effect there
                    model = make_model()
            else:
                model = make_model()
        except Exception as error:
            if meta:
                return None
            raise ZerogateError(
                f"make_model() raises {type(error).__name__}: {first_line(error)}; it takes no arguments and returns the "
                "dense network"
            ) from error
    if not isinstance(model, nn.Module):
        raise ZerogateError(f"make_model returns the dense torch.nn.Module, got a {type(model).__name__}")
    if all(tensor.is_meta for _, tensor in named_tensors(model)):
        return model
    return copy_with(model, _on_meta)  # it may be a network of the caller's, not a fresh one


def _on_meta(name: str, tensor: Tensor) -> Tensor:
    held = tensor.detach().to("meta")
    return nn.Parameter(held, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else held


def _restored(model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor]) -> nn.Module:
    """Cuts a dense network by the plan and fills it. Raises `CheckpointError`, which does not name the file."""
    difference = first_difference(header.get("dense"), model)
    if difference is not None:
        raise CheckpointError(
            f"was cut from another architecture than the {type(model).__name__} that make_model returns: {difference}; "
            "make the dense network with the arguments it had when it was compacted"
        )
    for step in _field(header, "steps", list):
        model = cut(model, read_step(step, model))
    if layout(model) != header.get("result"):
        raise CheckpointError("holds a plan that does not make the network that was saved")
    _fill(model, header, tensors)
    plain = dict(unregistered(model))
    registered = dict(named_tensors(model))
    for entry in _field(header, "unregistered", list):
        path, name = entry
        held = registered.get(name, tensors.get(name))
        if held is None:
            raise CheckpointError(f"does not hold {short(name)}, which its plan promises")
        if tuple(path) in plain:  # else a cache: what a fresh network lacks, it makes when it needs it
            replace(model, tuple(path), held)
    modes = _field(header, "modes", dict)
    for name, module in modules_by_name(model).items():
        parent = model.get_submodule(owner_of(name))
        module.training = bool(modes.get(name, parent.training))  # not train(): a class may have its own
    plan = {key: header[key] for key in PLAN_KEYS if key in header} | {"version": PLAN_VERSION}
    model.zerogate_plan = plan  # type: ignore[assignment]
    return model


def _fill(model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    frozen, channels_last, transient = (
        set(_field(header, key, list)) for key in ("frozen", "channels_last", "transient")
    )
    expected, all_names = dict(named_tensors(model)), tied_names(model)
    lasting = expected.keys() - transient_buffers(model)
    if header["version"] == _ENCODED_VERSION:
        tensors = unpack(tensors, _field(header, "encoded", dict), {name: expected[name].shape for name in lasting})
    promised = {name for name in tensors if not name.startswith("unregistered:")} - transient
    wrong = sorted(lasting ^ promised)
    wrong += [n for n in sorted(lasting & promised) if expected[n].shape != tensors[n].shape]
    if wrong:
        raise CheckpointError(
            f"does not hold the tensors its plan promises; damaged: {', '.join(map(short, wrong[:3]))}"
        )
    modules = modules_by_name(model, twice=True)
    for name in sorted(lasting | (transient & tensors.keys())):
        held = tensors[name]
        if name in channels_last:
            held = held.contiguous(memory_format=_CHANNELS_LAST[held.ndim])
        if isinstance(expected.get(name), nn.Parameter):
            held = nn.Parameter(held, requires_grad=name not in frozen)
        if name in all_names:
            put(modules, all_names[name], held)
        elif owner_of(name) in modules and name.rpartition(".")[2] in buffers_of(modules[owner_of(name)]):
            put(modules, [name], held)  # registered as None, a cache that was empty


def _field(header: dict[str, Any], key: str, kind: type) -> Any:
    value = header.get(key)
    if not isinstance(value, kind):
        raise CheckpointError(f"holds a plan without its {key}")
    return value
