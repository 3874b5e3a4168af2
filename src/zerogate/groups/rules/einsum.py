"""``torch.einsum`` of two operands.

With a parameter it is a layer; of two activations, it is a product of matrices, once its letters are sorted into those
of the batch, the rows, the columns and the sum.
"""

from __future__ import annotations

import math

from torch import Tensor

from zerogate.groups.label_tensors import collapse, varying_dims
from zerogate.groups.rules.contraction import contract, whole_parameter
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze


@rule("einsum")
def _einsum(op: Op) -> Out:
    equation, operands = op.args[0].replace(" ", ""), op.args[1]
    if "." in equation or "->" not in equation or len(operands) != 2:
        raise Freeze(f"einsum {equation}")
    left, out = equation.split("->")
    letters = left.split(",")
    for own, other in ((0, 1), (1, 0)):
        if whole_parameter(op, operands[own]) is not None:
            return _layer(op, operands[other], letters[other], operands[own], letters[own], out)
    if any(len(set(word)) < len(word) for word in letters):
        raise Freeze(f"einsum {equation}")
    batch = [c for c in letters[0] if c in letters[1] and c in out]
    summed = [c for c in letters[0] if c in letters[1] and c not in out]
    rows = [c for c in letters[0] if c not in letters[1]]
    columns = [c for c in letters[1] if c not in letters[0]]
    if any(c not in out for c in rows + columns):
        raise Freeze(f"einsum {equation}")
    size = {c: n for word, x in zip(letters, operands, strict=True) for c, n in zip(word, x.shape, strict=True)}

    def as_matrices(number: int, order: list[list[str]]) -> Tensor:
        """Labels of an operand as a batch of matrices."""
        labels = op.labels_or_zero(operands[number]).permute([letters[number].index(c) for part in order for c in part])
        return labels.reshape(*[size[c] for c in order[0]], *[math.prod(size[c] for c in p) for p in order[1:]])

    a, b = as_matrices(0, [batch, rows, summed]), as_matrices(1, [batch, summed, columns])
    result = contract(op, collapse(a), collapse(b))
    result = result.reshape([size[c] for c in batch + rows + columns])
    return collapse(result.permute([(batch + rows + columns).index(c) for c in out]))


def _layer(op: Op, x: Tensor, letters: str, weight: Tensor, own: str, out: str) -> Tensor | None:
    """Labels of a layer. Channels of a parameter with several dimensions of inputs or outputs, such as [width, heads,
    head size], lie along the first of them; along the others they are tied.

    Args:
        x, letters: the input and the letters of its dimensions.
        weight, own: the parameter and the letters of its dimensions.
        out: letters of the result.
    """
    summed = [c for c in own if c in letters and c not in out]
    new = [c for c in own if c not in letters]
    stacked = any(c in letters and c in out for c in own)
    if stacked or not summed or not new or any(c not in out for c in new) or len({*letters}) < len(letters):
        raise Freeze(f"einsum {op.args[0]} with a parameter")
    labels = op.labels(x)
    if labels is None and op.views(x):
        labels = op.context.make_channels(x, {letters.index(c) for c in summed})
    if labels is not None:
        vary = varying_dims(labels)
        summed_channels = [c for c in summed if letters.index(c) in vary] or summed
        if len(summed_channels) > 1:
            labels = op.tie_all_along(labels, {letters.index(c) for c in summed_channels[1:]})
        channel = summed_channels[0]
    else:
        channel = summed[0]
    place = out.index(new[0])
    others = math.prod(weight.shape[own.index(c)] for c in summed if c != channel)
    vector = op.context.record_layer(
        weight,
        None,
        entering=None if labels is None else op.channels(labels, letters.index(channel)),
        dims=(own.index(channel), own.index(new[0])),
        macs=op.out.numel() / op.out.shape[place] * others,
        channel_dim=letters.index(channel) - x.ndim,
    )
    if vector is None:
        return None
    return vector.view(-1, *[1] * (op.out.ndim - 1 - place)).expand(op.out.shape)
