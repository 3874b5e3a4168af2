"""Linear layers, embeddings and matrix products.

A matrix or vector that is a whole parameter makes the product a layer: labels along its inner dimension are consumed, new
ones lie along its outer dimension. A product of two activations follows `contraction.contract`.
"""

from __future__ import annotations

from torch import Tensor

from zerogate.groups.label_tensors import Sheets, collapse, first_label, varying_dims
from zerogate.groups.rules.contraction import contract, whole_parameter
from zerogate.groups.rules.layers import Layer, read_channels
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze


@rule("linear")
def _linear(op: Op) -> Out:
    x, weight, bias = op.bound["input"], op.bound["weight"], op.bound.get("bias")
    if op.labels(weight) is not None:  # a weight that another layer has made
        return _with_bias(op, _of_activations(op, x, weight, transposed=True), bias)
    outputs, dims, place = (weight.shape[0], (1, 0), -1) if weight.ndim == 2 else (1, (0, None), None)
    return read_channels(op, x, Layer(weight, bias, dims, -1, place, op.out.numel() / outputs))


@rule("embedding")
def _embedding(op: Op) -> Out:
    """A row for each token: no channels enter, and the columns are new ones."""
    new = op.context.record_layer(op.bound["weight"], None, entering=None, dims=(None, 1), macs=0.0, channel_dim=-1)
    return None if new is None else new.expand(op.out.shape)


@rule("_embedding_bag", "_embedding_bag_forward_only")
def _embedding_bag(op: Op) -> Out:
    """Rows of each bag added up, averaged, or the largest of each column: columns stay apart."""
    new = op.context.record_layer(op.bound["weight"], None, entering=None, dims=(None, 1), macs=0.0, channel_dim=-1)
    shape = op.results[0].shape  # that of the places of the largest, too
    return [None if new is None or x.shape != shape else new.expand(shape) for x in op.results]


@rule("bilinear")
def _bilinear(op: Op) -> Out:
    """A sum over pairs of channels, one of each input: the weight is sliced along all three dimensions."""
    weight, bias, out = op.bound["weight"], op.bound.get("bias"), op.out
    first, second = (op.bound[name] for name in ("input1", "input2"))
    if any(len(op.sheets(x)) > 1 for x in (first, second)) or whole_parameter(op, weight) is None:
        raise Freeze("bilinear of channels along several dimensions, or with a computed weight")
    entering = [None if labels is None else op.channels(labels, -1) for labels in map(op.labels, (first, second))]
    # the pair costs as much as both leave: the second is counted by the first's call, and has one of its own to be gated
    op.context.record_layer(weight, None, entering=entering[1], dims=(2, None), macs=0.0, channel_dim=-1)
    macs = out.numel() / weight.shape[0] * weight.shape[2]
    new = op.context.record_layer(weight, bias, entering=entering[0], dims=(1, 0), macs=macs, channel_dim=-1)
    if entering[1] is not None:
        op.context.record_repeats(entering[1])
    return None if new is None else new.expand(out.shape)


@rule("matmul", "mm", "bmm", "mv", "dot", "_sparse_mm")
def _matmul(op: Op) -> Out:
    return _product(op, op.args[0], op.args[1], None)


@rule("addmm", "baddbmm", "addbmm", "addmv")
def _addmm(op: Op) -> Out:
    if op.bound.get("beta", 1) != 1 or (op.bound.get("alpha", 1) != 1 and op.labels(op.bound["self"]) is not None):
        raise Freeze(f"{op.name} with factors")
    bias, a, b = op.args[:3]
    return _with_bias(op, _product(op, a, b, bias), bias)


@rule("_grouped_mm")
def _grouped_mm(op: Op) -> Out:
    """A matrix for each run of rows, as of the experts that they are sent to."""
    a, b = op.bound["self"], op.bound["mat2"]
    if a.ndim != 2 or b.ndim != 3 or whole_parameter(op, b) is None:
        raise Freeze("_grouped_mm of something that is no parameter")
    return _stacked(op, a, b, -2, -1, op.bound.get("bias"))


def _with_bias(op: Op, out: Out, bias: Tensor | None) -> Out:
    """Labels of a product to which a bias is added: a parameter, or an activation with labels of its own."""
    if bias is None:
        return out
    added = op.labels(bias)
    channels = out[-1] if isinstance(out, Sheets) else out
    if added is None:
        if isinstance(channels, Tensor):
            op.attach_parameters(bias, channels)
        return out
    added = added.expand(op.out.shape)
    if not isinstance(channels, Tensor):
        return added
    if isinstance(out, Sheets) and len(out) > 1:
        op.context.freeze(added, f"{op.name} of channels along several dimensions")
        return out
    op.unite(channels, added)
    return collapse(first_label(channels, added))


def _product(op: Op, a: Tensor, b: Tensor, bias: Tensor | None) -> Out:
    for x, weight, by_rows in ((a, b, False), (b, a, True)):
        if weight.ndim < 3 and whole_parameter(op, weight) is not None:
            return _layer(op, x, weight, bias, by_rows=by_rows)
    if a.ndim > 1 and b.ndim > 1:
        for stack, x, k, n in ((b, a, -2, -1), (a, b, -1, -2)):
            if stack.ndim > 2 and whole_parameter(op, stack) is not None:
                return _stacked(op, x, stack, k, n, bias)
    return _of_activations(op, a, b)


def _of_activations(op: Op, a: Tensor, b: Tensor, *, transposed: bool = False) -> Tensor:
    """Labels of a @ b, or of a @ bᵀ; a vector is a matrix of one row or column."""
    left, right = op.labels_or_zero(a), op.labels_or_zero(b)
    left = left[None] if a.ndim == 1 else left
    right = right[:, None] if b.ndim == 1 else right.mT if transposed else right
    out = contract(op, left, right)
    if b.ndim == 1:
        out = out.squeeze(-1)
    if a.ndim == 1:
        out = out.squeeze(-1 if b.ndim == 1 else -2)
    return collapse(out.expand(op.out.shape))


def _layer(op: Op, x: Tensor, weight: Tensor, bias: Tensor | None, *, by_rows: bool) -> Out:
    """x @ weight, with the input's channels last, or by rows, weight @ x, with them next to last. A vector has no channels
    of its own."""
    at = -2 if by_rows and x.ndim > 1 else -1
    if weight.ndim == 1:
        return read_channels(op, x, Layer(weight, None, (0, None), at, None, op.out.numel()))
    inner, outer = (1, 0) if by_rows else (0, 1)
    return read_channels(op, x, Layer(weight, bias, (inner, outer), at, at, op.out.numel() / weight.shape[outer]))


def _stacked(op: Op, x: Tensor, weight: Tensor, k: int, n: int, bias: Tensor | None) -> Out:
    """A stack of matrices [..., K, N], one for each part of the input: its K and N are channels of all of them, and its
    parts go with what of the input they are for."""
    labels, channel_dim = op.labels(x), -1 if n == -1 else -2
    stack = set() if labels is None else {d for d in varying_dims(labels) if d < labels.ndim - 2}
    if (
        labels is not None
        and stack
        and any(weight.ndim >= labels.ndim - d and weight.shape[d - labels.ndim] > 1 for d in stack)
    ):
        labels = op.tie_along(labels, {labels.ndim + channel_dim})
        passed = collapse(labels.narrow(channel_dim, 0, 1).expand(op.out.shape))
        places = tuple(slice(0, 1) if d >= labels.ndim - 2 else slice(None) for d in range(labels.ndim))
        for view in op.views(weight):
            op.context.attach_view(view, labels[places].expand(weight.shape))
        macs = op.out.numel() * weight.shape[k]
        op.context.record_layer(weight, None, entering=None, dims=(None, None), macs=macs, channel_dim=channel_dim)
        op.context.record_repeats(labels)
        return passed
    dims = weight.ndim + k, weight.ndim + n
    return read_channels(op, x, Layer(weight, bias, dims, channel_dim, n, op.out.numel() / weight.shape[n]))
