"""Linear layers, embeddings and matrix products.

A matrix that is a whole parameter makes the product a layer: labels along its inner dimension are consumed, new ones
lie along its outer dimension. A product of two activations follows `contraction.contract`.
"""

from __future__ import annotations

from torch import Tensor

from zerogate.groups.label_tensors import collapse, first_label, varying_dims
from zerogate.groups.rules.contraction import contract, entering_channels, pass_by, whole_parameter
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze


@rule("linear")
def _linear(op: Op) -> Out:
    x, weight, bias = op.bound["input"], op.bound["weight"], op.bound.get("bias")
    if weight.ndim != 2:
        raise Freeze("linear with a weight that is not a matrix")
    passed = pass_by(op, x, weight, -1, op.out.numel() * weight.shape[1])
    if passed is not None:
        return passed
    new = op.context.record_layer(
        weight,
        bias,
        entering=entering_channels(op, x, -1),
        dims=(1, 0),
        macs=op.out.numel() / weight.shape[0],
        channel_dim=-1,
    )
    return None if new is None else new.expand(op.out.shape)


@rule("embedding")
def _embedding(op: Op) -> Out:
    """A row for each token: no channels enter, and the columns are new ones."""
    new = op.context.record_layer(op.bound["weight"], None, entering=None, dims=(None, 1), macs=0.0, channel_dim=-1)
    return None if new is None else new.expand(op.out.shape)


@rule("matmul", "mm", "bmm", "mv", "dot")
def _matmul(op: Op) -> Out:
    return _product(op, op.args[0], op.args[1], None)


@rule("addmm", "baddbmm", "addbmm")
def _addmm(op: Op) -> Out:
    if op.bound.get("beta", 1) != 1 or (op.bound.get("alpha", 1) != 1 and op.labels(op.bound["self"]) is not None):
        raise Freeze(f"{op.name} with factors")
    bias, a, b = op.args[:3]
    out = _product(op, a, b, bias)
    added = op.labels(bias)
    if added is not None:
        added = added.expand(op.out.shape)
        if out is None:
            return added
        op.unite(out, added)
        return collapse(first_label(out, added))
    if out is not None:
        op.attach_parameters(bias, out)
    return out


@rule("_grouped_mm")
def _grouped_mm(op: Op) -> Out:
    """A matrix for each run of rows, as of the experts that they are sent to."""
    a, b = op.bound["self"], op.bound["mat2"]
    if a.ndim != 2 or b.ndim != 3 or whole_parameter(op, b) is None:
        raise Freeze("_grouped_mm of something that is no parameter")
    return _stacked(op, a, b, -2, -1, op.bound.get("bias"))


def _product(op: Op, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor | None:
    if a.ndim < 2 or b.ndim < 2:
        raise Freeze(f"{op.name} of a vector")
    if b.ndim == 2 and whole_parameter(op, b) is not None:
        return _layer(op, a, b, -1, bias)
    if a.ndim == 2 and whole_parameter(op, a) is not None:
        return _layer(op, b, a, -2, bias)
    for stack, x, k, n in ((b, a, -2, -1), (a, b, -1, -2)):
        if stack.ndim > 2 and whole_parameter(op, stack) is not None:
            return _stacked(op, x, stack, k, n, bias)
    out = contract(op, op.labels_or_zero(a), op.labels_or_zero(b))
    return collapse(out.expand(op.out.shape))


def _layer(op: Op, x: Tensor, weight: Tensor, channel_dim: int, bias: Tensor | None) -> Tensor | None:
    """x @ weight, with the input's channels last (``channel_dim`` −1), or weight @ x, with them next to last (−2)."""
    inner, outer = (0, 1) if channel_dim == -1 else (1, 0)
    passed = pass_by(op, x, weight, channel_dim, op.out.numel() * weight.shape[inner])
    if passed is not None:
        return passed
    new = op.context.record_layer(
        weight,
        bias,
        entering=entering_channels(op, x, channel_dim),
        dims=(inner, outer),
        macs=op.out.numel() / weight.shape[outer],
        channel_dim=channel_dim,
    )
    if new is None:
        return None
    return (new if channel_dim == -1 else new.view(-1, 1)).expand(op.out.shape)


def _stacked(op: Op, x: Tensor, weight: Tensor, k: int, n: int, bias: Tensor | None) -> Tensor | None:
    """A stack of matrices [..., K, N], one for each part of the input: its K and N are channels of all of them, and its
    parts go with what of the input they are for."""
    labels, channel_dim = op.labels(x), -1 if n == -1 else -2
    if labels is None and op.views(x):
        labels = op.context.make_channels(x, {channel_dim % x.ndim})
    stack = set() if labels is None else {d for d in varying_dims(labels) if d < labels.ndim - 2}
    if labels is not None and stack:
        labels = op.tie_along(labels, {labels.ndim + channel_dim})
        passed = collapse(labels.narrow(channel_dim, 0, 1).expand(op.out.shape))
        places = tuple(slice(0, 1) if d >= labels.ndim - 2 else slice(None) for d in range(labels.ndim))
        for view in op.views(weight):
            op.context.attach_view(view, labels[places].expand(weight.shape))
        macs = op.out.numel() * weight.shape[k]
        op.context.record_layer(weight, None, entering=None, dims=(None, None), macs=macs, channel_dim=channel_dim)
        return passed
    new = op.context.record_layer(
        weight,
        bias,
        entering=None if labels is None else op.channels(labels, channel_dim),
        dims=(weight.ndim + k, weight.ndim + n),
        macs=op.out.numel() / weight.shape[n],
        channel_dim=channel_dim,
    )
    return None if new is None else new.view(-1, *[1] * (-n - 1)).expand(op.out.shape)
