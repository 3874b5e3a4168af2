"""`keep_class=False`: the model as a graph of torch.export, in which every size is a number that can be set.

A size that a forward has as a literal cannot be corrected in the user's class. In the exported graph it can: each node's
integers stand beside the node. The graph is recorded in place of the model, under the model's names, and cut; gates and
training stay on the model.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any, cast

import torch
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from zerogate.errors import WatchError, first_line
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.graph.normalize import GraphNormalizer
from zerogate.groups.recording.twin import shared_twin
from zerogate.modules.run import Inputs, kept_rng


def exported(model: nn.Module, inputs: Inputs) -> GraphModel:
    """The model in evaluation mode as a graph, on its own tensors.

    Batch sizes stay free, and so do lengths of inputs of up to three dimensions, wherever the forward allows it and the
    example does not say 1, which torch.export takes as fixed. If it allows none, or sets conditions that cannot be
    checked in the graph, all are fixed. The graph raises AssertionError for inputs that it does not hold for.

    Raises `WatchError` where torch.export cannot export the model.
    """
    try:
        return _exported(model, inputs, free=True)
    except Exception as error:
        with suppress(Exception):
            return _exported(model, inputs, free=False)
        raise WatchError(
            f"{type(model).__name__} cannot be exported by torch.export ({type(error).__name__}: {first_line(error)}); "
            "leave keep_class=True, or make torch.export.export(model, …) work first"
        ) from error


def _exported(model: nn.Module, inputs: Inputs, free: bool) -> GraphModel:
    """The graph with free sizes of the inputs, or with fixed ones."""
    twin = shared_twin(model)
    alone = _note_calls(twin)
    with kept_rng(model), _quietly():
        return GraphNormalizer(model, _export(twin, inputs, free), alone).result()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps torch's warnings, logs and half-made graphs off the terminal: whatever fails is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _export(model: nn.Module, inputs: Inputs, free: bool) -> fx.GraphModule:
    copies: dict[int, Tensor] = {}  # not views of others, and the same tensor where it was the same

    def own(x: object) -> object:
        return copies.setdefault(id(x), x.detach().clone()) if isinstance(x, Tensor) else x

    inputs = pytree.tree_map(own, inputs)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    args = () if kwargs else tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)

    shapes = torch.export.ShapesCollection()
    for x in pytree.tree_leaves((args, kwargs)):
        if isinstance(x, Tensor):
            # sizes of images stay as they are: what windows and strides make of free ones takes torch.export minutes
            shapes[x] = {d: torch.export.Dim.AUTO for d in range(x.ndim if x.ndim < 4 else 1)}
    dynamic = cast(Any, shapes) if free else None  # which torch takes, whatever its annotation says
    with torch.no_grad():
        program = torch.export.export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
    module = program.module()
    if not isinstance(module, fx.GraphModule):
        raise TypeError(f"torch.export gave a {type(module).__name__}, not a graph module")
    if free and not hasattr(module, "_guards_fn"):
        raise ValueError("this torch does not check the conditions under which sizes are free")
    return module


def _note_calls(model: nn.Module) -> dict[str, bool]:
    """Module → whether every call so far gave it one tensor, by position, and nothing else; filled as the model runs."""
    alone: dict[str, bool] = {}
    for name, module in model.named_modules():

        def note(module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object], name: str = name) -> None:
            one_tensor = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
            alone[name] = one_tensor and alone.get(name, True)

        module.register_forward_pre_hook(note, with_kwargs=True)
    return alone
