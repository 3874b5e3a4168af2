"""Compacted modules on disk: one safetensors file, never pickle.

The file holds the tensors, and in its header the plan by which they were cut from the dense network. `load` makes the
dense network on the meta device, where it costs nothing, replays the plan and puts the tensors in.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from zerogate.errors import CheckpointError, ZerogateError
from zerogate.files import write
from zerogate.plans import PLAN_VERSION, Plan, apply_plan, fingerprint
from zerogate.tensors import named_tensors, put, tied_names

_KEY = "zerogate"


def save(small: nn.Module, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Writes a module that `Sparsified.compact` returned.

    Raises `ZerogateError` for another module, for a path that exists (unless ``overwrite``) and for one that cannot be
    written; a file is never left half written.
    """
    plan = getattr(small, "zerogate_plan", None)
    if plan is None:
        raise ZerogateError(f"save takes what compact() returned, got a {type(small).__name__} without a plan")
    path = Path(path)
    if path.exists() and not overwrite:
        raise ZerogateError(f"{path} exists; choose another path or pass overwrite=True")
    from safetensors.torch import save as serialize

    tensors = {name: tensor.detach().contiguous() for name, tensor in named_tensors(small)}
    header = plan | {"training": small.training, "torch": torch.__version__}
    content = serialize(tensors, metadata={_KEY: json.dumps(header)})
    try:
        write(path, content)
    except OSError as error:
        raise ZerogateError(f"cannot write {path}: {error.strerror or error}; choose a folder with space") from error


def load(path: str | os.PathLike[str], make_model: Callable[[], nn.Module]) -> nn.Module:
    """The module that `save` wrote, on the CPU.

    Args:
        path: the file.
        make_model: returns a freshly made dense network of the same architecture; called on the meta device.

    Raises `CheckpointError` for a file that is missing, damaged, or belongs to another architecture.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a compacted network: {error}") from error
    if not isinstance(header, dict) or header.get("version") != PLAN_VERSION:
        raise CheckpointError(f"{path} is a safetensors file, but not one that zerogate.save wrote")
    with torch.device("meta"):
        model = make_model()
    if fingerprint(model) != header["dense"]:
        raise CheckpointError(
            f"{path} was cut from another architecture than the {type(model).__name__} that make_model returns; "
            "make the dense network with the arguments it had when it was compacted"
        )
    keep = {(name, dim): torch.tensor(indices) for name, dim, indices in header["keep"]}
    select = {layer: (dim, torch.tensor(indices)) for layer, dim, indices in header["select"]}
    attributes = {(module, attribute): value for module, attribute, value in header["attributes"]}
    model = apply_plan(model, Plan(keep, select, attributes, header["attention"]))
    _fill(model, tensors, path)
    model.zerogate_plan = {k: v for k, v in header.items() if k not in ("training", "torch")}  # type: ignore[assignment]
    return model.train(header["training"])


def _fill(model: nn.Module, tensors: dict[str, torch.Tensor], path: str | os.PathLike[str]) -> None:
    expected = dict(named_tensors(model))
    wrong = sorted(n for n in expected.keys() | tensors.keys() if n not in expected or n not in tensors)
    wrong += [n for n in expected if n in tensors and expected[n].shape != tensors[n].shape]
    if wrong:
        raise CheckpointError(f"{path} does not hold the tensors its plan promises; damaged: {', '.join(wrong[:3])}")
    for first, names in tied_names(model).items():
        held: torch.Tensor = tensors[first]
        if isinstance(expected[first], nn.Parameter):
            held = nn.Parameter(held, requires_grad=expected[first].requires_grad)
        put(model, names, held)
