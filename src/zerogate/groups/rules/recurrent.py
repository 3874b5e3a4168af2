"""Recurrent layers and their cells, each one op: LSTM, GRU and the plain ones.

A hidden unit is a row of each of the layer's gates, so many rows apart as there are units, and what its states hold at
that place. It is read by its layer's own next step and by whatever reads the output. An LSTM with a projection has units of
two kinds: those of its cell, which the projection reads, and those that the projection makes.

torch keeps the states of all layers and directions in one tensor, so that all of them are equally wide: the units at one
place of all of them are one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from zerogate.groups.label_tensors import any_in, varying_dims
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze

ROWS = {
    name + suffix: rows
    for name, rows in {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}.items()
    for suffix in ("", "_cell")
}
"""Op → how many rows of its weights belong to one hidden unit."""


class Weights(NamedTuple):
    """Of one layer in one direction, or of a cell."""

    of_input: Tensor
    of_state: Tensor
    input_bias: Tensor | None = None
    state_bias: Tensor | None = None
    projection: Tensor | None = None
    """Of the cell's state to the output, [outputs, units]."""


def layers_of(bound: Mapping[str, Any]) -> list[Weights] | None:
    """The weights of every layer and direction in turn, from an op's arguments by name; None where there are more or fewer
    of them than torch's own layers have."""
    params, count = bound["params"], bound["num_layers"] * (2 if bound["bidirectional"] else 1)
    hx = bound["hx"]
    projected = not isinstance(hx, Tensor) and hx[0].shape[-1] != hx[1].shape[-1]  # as torch tells it
    each = 2 + 2 * bound["has_biases"] + projected
    if len(params) != each * count:
        return None
    layers = []
    for i in range(0, len(params), each):
        own = dict(zip(Weights._fields, params[i : i + each - projected], strict=False))
        layers.append(Weights(**own, projection=params[i + each - 1] if projected else None))
    return layers


def cell_weights(bound: Mapping[str, Any]) -> Weights:
    """The weights of a cell, from its op's arguments by name."""
    return Weights(*(bound[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh")))


class _Units(NamedTuple):
    """Labels of a layer's hidden units."""

    state: Tensor
    """Of what it gives out and reads again, [width]."""
    cell: Tensor
    """Of its cell's state, [size]; the same where there is no projection."""


@rule("lstm", "gru", "rnn_tanh", "rnn_relu")
def _layers(op: Op) -> Out:
    """Layers one after another, each in one direction or in both; results: the outputs of the last one, and the last states
    of all."""
    bound = op.bound
    layers = layers_of(bound)
    if layers is None:
        raise Freeze(f"{op.name} with weights of an unknown kind")
    x: Tensor = bound["data" if "batch_sizes" in bound else "input"]
    both = 2 if bound["bidirectional"] else 1
    steps = x.numel() // x.shape[-1]
    found: list[_Units] = []
    entering = _along_last(op, x)
    for start in range(0, len(layers), both):
        found += [_layer(op, weights, entering, steps) for weights in layers[start : start + both]]
        entering = torch.cat([units.state for units in found[start:]])
    _meet_states(op, found)
    outputs = [torch.cat([units.state for units in found[-both:]]), *found[0]]
    return [vector.expand(y.shape) for vector, y in zip(outputs, op.results, strict=False)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def _cell(op: Op) -> Out:
    """One step of a layer; results: its states."""
    x = op.bound["input"]
    units = _layer(op, cell_weights(op.bound), _along_last(op, x), x.numel() // x.shape[-1])
    _meet_states(op, [units])
    labels = units.state.expand(op.results[0].shape)
    return op.all_results(labels)


def _along_last(op: Op, x: Tensor) -> Tensor:
    """Labels of a tensor's channels, which lie along its last dimension; those that lie along others alone stay."""
    last = x.ndim - 1
    sheets = [s for s in op.sheets_read(x, last) if any_in(s)]
    over = [s for s in sheets if last in varying_dims(s) or not varying_dims(s)]
    for s in sheets:
        if not over or s is not over[0]:
            op.context.freeze(s, f"{op.name} over channels")
    return op.channels(over[0], last) if over else torch.zeros(x.shape[last], dtype=torch.int64)


def _layer(op: Op, weights: Weights, entering: Tensor, steps: float) -> _Units:
    """Records the weights of one layer and direction as layers that read its input, its state, and its cell.

    Args:
        op: runs it.
        weights: of this layer.
        entering: labels of its input, [inputs].
        steps: how often each weight is multiplied with a vector, for all examples together.
    """
    rows = ROWS[op.name]
    size = weights.of_input.shape[0] // rows
    made = _record(op, weights.of_input, weights.input_bias, entering, steps, rows)
    state = cell = torch.zeros(size, dtype=torch.int64) if made is None else made[:size]
    if weights.projection is not None:
        made = _record(op, weights.projection, None, cell, steps)
        state = torch.zeros(weights.of_state.shape[1], dtype=torch.int64) if made is None else made
        op.context.keep_at_least(cell, len(state) + 1)  # by their widths torch tells that there is a projection
    again = _record(op, weights.of_state, weights.state_bias, state, steps, rows)
    _tie(op, [cell, torch.zeros_like(cell) if again is None else again[:size]], "a weight that is computed")
    return _Units(state, cell)


def _record(
    op: Op, weight: Tensor, bias: Tensor | None, entering: Tensor, steps: float, rows: int = 1
) -> Tensor | None:
    """Records one weight as a layer; labels of what it makes. What enters stays where the weight cannot be cut."""
    try:
        return op.context.record_layer(
            weight, bias, entering=entering, dims=(1, 0), macs=steps, channel_dim=-1, repeats=rows, recurrent=True
        )
    except Freeze as reason:
        op.context.freeze(entering, str(reason))
        return None


def _meet_states(op: Op, found: list[_Units]) -> None:
    """Ties the units of all layers and directions, place by place, with what the initial states hold there."""
    hx = op.bound["hx"]
    for i, x in enumerate([hx] if isinstance(hx, Tensor) else hx):
        held = _along_last(op, x)
        _tie(op, [held, *(u[i] for u in found)], "an initial state whose size the layer does not choose")


def _tie(op: Op, vectors: list[Tensor], reason: str) -> None:
    """Ties vectors of labels place by place; where one of them has none, the others stay."""
    op.context.tie_rows(torch.stack(vectors, 1), f"{op.name} with {reason}")


@rule("_pack_padded_sequence", "_pad_packed_sequence")
def _pack(op: Op) -> Out:
    """Steps of all examples under each other, and back: channels stay where they are, last."""
    labels = op.labels(op.args[0])
    if labels is None:
        return None
    vary = varying_dims(labels)
    if vary != [labels.ndim - 1] * len(vary):
        raise Freeze(f"{op.name} over channels")
    return op.first_result(labels[(0,) * (labels.ndim - 1)].expand(op.results[0].shape))
