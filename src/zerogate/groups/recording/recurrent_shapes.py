"""Shapes of what recurrent layers return, in plain Python: torch's own shape functions run all of their time steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zerogate.groups.arguments import Args, AtenOp, Kwargs, bind
from zerogate.groups.rules.recurrent import ROWS, layers_of

_META = torch.device("meta")


def recurrent_results(name: str, func: AtenOp, args: Args, kwargs: Kwargs) -> tuple[Tensor, ...] | None:
    """The results of a recurrent layer on the meta device: its outputs and its last states; None for other ops, and where
    the op itself must say (or complain).

    Args:
        name: of the op.
        func, args, kwargs: the call.
    """
    if name not in ROWS or name.endswith("_cell"):
        return None
    bound = bind(func, args, kwargs)
    x, states = bound.get("input", bound.get("data")), bound["hx"]
    states = [states] if isinstance(states, Tensor) else [*states]
    layers = layers_of(bound)
    if x is None or layers is None or any(t.dtype is not x.dtype for t in [*states, *bound["params"]]):
        return None
    packed, both = "batch_sizes" in bound, 2 if bound["bidirectional"] else 1
    batch = states[0].shape[1] if packed else x.shape[0 if bound["batch_first"] else 1]
    width, size = states[0].shape[-1], states[-1].shape[-1]
    if x.ndim != (2 if packed else 3) or [s.shape[:-1] for s in states] != [(len(layers), batch)] * len(states):
        return None
    entering = [x.shape[-1]] * both + [width * both] * (len(layers) - both)
    shapes = [_shapes(ROWS[name] * size, n, width, size) for n in entering]
    for layer, shape in zip(layers, shapes, strict=True):
        if any(t is not None and t.shape != s for t, s in zip(layer, shape, strict=True)):
            return None
    if packed:
        out = x.new_empty(len(x), width * both)
    elif bound["batch_first"]:
        out = x.new_empty(x.shape[1], batch, width * both).transpose(0, 1)
    else:
        out = x.new_empty(x.shape[0], batch, width * both)
    return (out, *(x.new_empty(s.shape) for s in states))


def _shapes(rows: int, entering: int, width: int, size: int) -> Sequence[tuple[int, ...]]:
    """Of the five weights of a layer: of its input, of its state, their biases, and the projection."""
    return (rows, entering), (rows, width), (rows,), (rows,), (width, size)
