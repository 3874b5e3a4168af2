"""Compacted modules on disk: one safetensors file, never pickle.

The file holds the tensors, and in its header the plan by which they were cut from the dense network. `load` makes the
dense network on the meta device, where it costs nothing, carries the plan out on it again and puts the tensors in.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from zerogate.checks import check
from zerogate.errors import CheckpointError, ZerogateError, class_and_line
from zerogate.files import write
from zerogate.modules.copies import copy_with
from zerogate.modules.index import modules_by_name, named_tensors, owner_of, transient_buffers
from zerogate.modules.unregistered import can_be_stored, unregistered
from zerogate.storage.encodings import pack
from zerogate.storage.plan_json import PLAN_KEYS, PLAN_VERSION, layout, short
from zerogate.storage.restore import restore
from zerogate.storage.sealed_file import CHANNELS_LAST, ENCODED_VERSION, PLAIN_VERSION, read_sealed, sealed, separate


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
    plan = _checked_plan(small)
    zeros_left_out = "True (zeros are left out where that makes the file smaller)"
    check(isinstance(sparse, bool), "sparse", f"{zeros_left_out} or False", sparse)
    path = Path(path)
    if os.path.isdir(path):
        raise ZerogateError(f"{path} is a folder; give the path of a file in it")
    if os.path.exists(path) and not overwrite:
        raise ZerogateError(f"{path} exists; choose another path or pass overwrite=True")
    content = _content(small, plan, sparse)
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
    header, tensors = read_sealed(path)
    for meta in (True, False):
        dense = _dense_network(make_model, meta)
        if dense is None:
            continue
        try:
            small = restore(dense, header, tensors)
        except CheckpointError as error:
            raise CheckpointError(f"{path} {error}") from error
        except Exception as error:  # whatever a plan that was made up can do
            raise CheckpointError(
                f"{path} holds a plan that cannot be carried out ({class_and_line(error)})"
            ) from error
        without_values = [name for name, tensor in named_tensors(small) if tensor.is_meta]
        without_values += [".".join(str(key) for key in where if key) for where, t in unregistered(small) if t.is_meta]
        if not without_values:
            return small
    raise CheckpointError(
        f"{path} does not hold {short(without_values[0])}, and make_model makes it without values (on the meta device)"
    )


# writing


def _checked_plan(small: nn.Module) -> Mapping[str, object]:
    """The plan that a compacted module carries. Raises `ZerogateError` where it has none, or is not what it describes."""
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
    return plan


def _content(small: nn.Module, plan: Mapping[str, object], sparse: bool) -> bytes:
    """The file of a module and its plan."""
    registered = dict(named_tensors(small))
    more, places = _unregistered_tensors(small, registered)
    transient = transient_buffers(small)
    header: dict[str, object] = {key: plan[key] for key in PLAN_KEYS if key in plan} | {
        "modes": _modes(small),
        "frozen": [name for name, p in small.named_parameters() if not p.requires_grad],
        "transient": sorted(transient),
        "unregistered": places,
        "channels_last": [name for name, tensor in registered.items() if _is_channels_last(tensor)],
        "torch": torch.__version__,
        "zerogate": _version(),
    }
    try:
        encoded = [name for name in registered if sparse and name not in transient]
        stored, table = pack(separate(registered | more), encoded)
        has_plain = any("plain" in step for step in plan["steps"])  # type: ignore[attr-defined]
        if table or has_plain:
            header |= {"version": PLAIN_VERSION if has_plain else ENCODED_VERSION, "encoded": table}
        return sealed(header, stored)
    except ZerogateError:
        raise
    except Exception as error:  # sparse, quantised, on the meta device, a dtype that the format lacks
        raise ZerogateError(
            f"the tensors of this {type(small).__name__} cannot be stored ({class_and_line(error)})"
        ) from error


def _unregistered_tensors(
    small: nn.Module, registered: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[list[object]]]:
    """Tensors that modules hold without having registered them, by names of their own; and rows [path, name] of all
    places where such tensors are: those of a tensor that is registered, too, have its name."""
    names = {id(tensor): name for name, tensor in registered.items()}
    tensors: dict[str, Tensor] = {}
    places: list[list[object]] = []
    for path, tensor in unregistered(small):
        if can_be_stored(path, tensor):
            if id(tensor) not in names:
                names[id(tensor)] = f"unregistered:{len(tensors)}"
                tensors[names[id(tensor)]] = tensor
            places.append([[*path], names[id(tensor)]])
    return tensors, places


def _modes(model: nn.Module) -> dict[str, bool]:
    """Whether the root is in training mode, and every module whose mode is not that of the one that holds it."""
    modes: dict[str, bool] = {}
    for name, module in modules_by_name(model).items():
        if not name or module.training != model.get_submodule(owner_of(name)).training:
            modes[name] = module.training
    return modes


def _is_channels_last(tensor: Tensor) -> bool:
    memory_format = CHANNELS_LAST.get(tensor.ndim)
    return (
        memory_format is not None and tensor.is_contiguous(memory_format=memory_format) and not tensor.is_contiguous()
    )


def _version() -> str:
    try:
        return version("zerogate")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


# reading


def _dense_network(make_model: Callable[[], nn.Module], meta: bool) -> nn.Module | None:
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
                f"make_model() raises {class_and_line(error)}; it takes no arguments and returns the dense network"
            ) from error
    if not isinstance(model, nn.Module):
        raise ZerogateError(f"make_model returns the dense torch.nn.Module, got a {type(model).__name__}")
    if all(tensor.is_meta for _, tensor in named_tensors(model)):
        return model
    return copy_with(model, _on_meta)  # it may be a network of the caller's, not a fresh one


def _on_meta(name: str, tensor: Tensor) -> Tensor:
    empty = tensor.detach().to("meta")
    return nn.Parameter(empty, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
