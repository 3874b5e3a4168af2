"""Contractions: layers, which consume the labels of the contracted dimension and make new ones, and products of two
activations, which tie what they sum together."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zerogate.groups.labels import along, any_in, constant, labels_in, over, squash, varying_dims
from zerogate.groups.recording.meta_shapes import broadcast
from zerogate.groups.rules.op import Freeze, Op, Out, View, rule
from zerogate.groups.rules.pointwise import either, meet


def _entering(op: Op, x: Tensor, dim: int) -> Tensor | None:
    """Labels along the contracted dimension, [size]; None where nothing there could be removed."""
    found = op.labels(x)
    if found is None and op.views(x):
        found = op.watcher.promote(x, {dim % x.ndim})
    return None if found is None else op.channels(found, dim)


def _through(op: Op, x: Tensor, weight: Tensor, dim: int, macs: float) -> Tensor | None:
    """Labels of a result whose input has its channels along other dimensions than the contracted one: a layer along
    positions leaves channels apart. None where it is not so."""
    found = op.labels(x)
    vary = [] if found is None else varying_dims(found)
    if found is None or not vary or dim % x.ndim in vary:
        return None
    n = x.shape[vary[0]]
    if len(vary) == 1:
        op.watcher.apart(weight, along(found, vary[0])[:, 0], macs / n, dim)
    else:
        op.watcher.apart(weight, torch.zeros(1, dtype=torch.int64), macs, dim)
    return found.narrow(dim, 0, 1).expand(op.out.shape)


@rule("linear")
def _linear(op: Op) -> Out:
    x, weight, bias = op.bound["input"], op.bound["weight"], op.bound.get("bias")
    if weight.ndim != 2:
        raise Freeze("linear with a weight that is not a matrix")
    through = _through(op, x, weight, -1, op.out.numel() * weight.shape[1])
    if through is not None:
        return through
    made = op.watcher.layer(
        weight,
        bias,
        entering=_entering(op, x, -1),
        dims=(1, 0),
        macs=op.out.numel() / weight.shape[0],
        channel_dim=-1,
    )
    return None if made is None else made.expand(op.out.shape)


@rule(*(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)), "convolution")
def _convolution(op: Op) -> Out:
    x, weight, bias, groups = op.bound["input"], op.bound["weight"], op.bound.get("bias"), op.bound["groups"]
    transposed = "transpose" in op.name or bool(op.bound.get("transposed"))
    spatial = weight.ndim - 2
    channel_dim = -spatial - 1
    inputs, outputs = x.shape[channel_dim], op.out.shape[channel_dim]
    positions = (x if transposed else op.out).numel() / (inputs if transposed else outputs)
    macs = positions * math.prod(weight.shape[2:])
    found = op.labels(x)
    vary = [] if found is None else [d - x.ndim for d in varying_dims(found)]
    if channel_dim not in vary and any(d > channel_dim for d in vary):
        raise Freeze(f"{op.name} over channels")
    vector = _entering(op, x, channel_dim)
    dims = (0, 1) if transposed else (1, 0)
    if groups == 1:
        made = op.watcher.layer(weight, bias, entering=vector, dims=dims, macs=macs, channel_dim=channel_dim)
    elif transposed and groups == inputs == outputs and (vector is None or not vector.any()):
        op.watcher.layer(weight, None, entering=None, dims=(None, None), macs=macs * outputs)
        return None
    elif transposed and not groups == inputs == outputs:
        op.watcher.layer(weight, None, entering=None, dims=(None, None), macs=macs * inputs * outputs / groups)
        raise Freeze(f"transposed convolution in {groups} groups")
    elif vector is not None and vector.any() and groups * groups >= inputs:
        # as blocks: all channels of one group of the convolution, in and out, are one
        vector = op.watcher.tie_rows(vector.view(groups, -1), "convolution in groups over channels and constants")
        op.watcher.tell("groups", groups, vector[:, None])
        vector = vector.repeat_interleave(outputs // groups)
        made = op.watcher.blocks(weight, bias, vector, macs * (inputs // groups), channel_dim)
    else:
        # in columns: the channels at one place of all groups are one, and stay equally many in each
        if vector is not None:
            columns = vector.view(groups, -1).T
            vector = op.watcher.tie_rows(columns, "convolution in groups over channels and constants")
        made = op.watcher.layer(
            weight, bias, entering=vector, dims=dims, macs=macs, channel_dim=channel_dim, repeats=groups
        )
    if made is None:
        return None
    return made.view(-1, *[1] * spatial).expand(op.out.shape)


@rule("embedding")
def _embedding(op: Op) -> Out:
    made = op.watcher.layer(op.bound["weight"], None, entering=None, dims=(None, 1), macs=0.0, channel_dim=-1)
    return None if made is None else made.expand(op.out.shape)


# --- products of two tensors ------------------------------------------------------------------------------------------


@rule("matmul", "mm", "bmm", "mv", "dot")
def _matmul(op: Op) -> Out:
    a, b = op.args[0], op.args[1]
    return _product(op, a, b, None)


@rule("addmm", "baddbmm", "addbmm")
def _addmm(op: Op) -> Out:
    if op.bound.get("beta", 1) != 1 or (op.bound.get("alpha", 1) != 1 and op.labels(op.bound["self"]) is not None):
        raise Freeze(f"{op.name} with factors")
    bias, a, b = op.args[:3]
    out = _product(op, a, b, bias)
    found = op.labels(bias)
    if found is not None:
        found = found.expand(op.out.shape)
        if out is None:
            return found
        op.unite(out, found)
        return squash(either(out, found))
    if out is not None:
        meet(op, bias, out)
    return out


def _product(op: Op, a: Tensor, b: Tensor, bias: Tensor | None) -> Tensor | None:
    if a.ndim < 2 or b.ndim < 2:
        raise Freeze(f"{op.name} of a vector")
    weight = _whole_parameter(op, b)
    if b.ndim == 2 and weight is not None:
        through = _through(op, a, b, -1, op.out.numel() * b.shape[0])
        if through is not None:
            return through
        macs = op.out.numel() / b.shape[1]
        entering = _entering(op, a, -1)
        made = op.watcher.layer(b, bias, entering=entering, dims=(0, 1), macs=macs, channel_dim=-1)
        return None if made is None else made.expand(op.out.shape)
    weight = _whole_parameter(op, a)
    if a.ndim == 2 and weight is not None:
        through = _through(op, b, a, -2, op.out.numel() * a.shape[1])
        if through is not None:
            return through
        macs = op.out.numel() / a.shape[0]
        entering = _entering(op, b, -2)
        made = op.watcher.layer(a, bias, entering=entering, dims=(1, 0), macs=macs, channel_dim=-2)
        return None if made is None else made.view(-1, 1).expand(op.out.shape)
    for stack, x, k, n in ((b, a, -2, -1), (a, b, -1, -2)):
        if stack.ndim > 2 and _whole_parameter(op, stack) is not None:
            return _stacked(op, x, stack, k, n, bias)
    out = contract(op, op.labels_or_zero(a), op.labels_or_zero(b))
    return squash(out.expand(op.out.shape))


def _stacked(op: Op, x: Tensor, weight: Tensor, k: int, n: int, bias: Tensor | None) -> Tensor | None:
    """A stack of matrices [..., K, N], one for each part of the input: its K and N are channels of all of them, and its
    parts go with what of the input they are for."""
    found, channel_dim = op.labels(x), -1 if n == -1 else -2
    if found is None and op.views(x):
        found = op.watcher.promote(x, {channel_dim % x.ndim})
    stack = set() if found is None else {d for d in varying_dims(found) if d < found.ndim - 2}
    if found is not None and stack:
        found = op.mix(found, {found.ndim + channel_dim})
        through = squash(found.narrow(channel_dim, 0, 1).expand(op.out.shape))
        places = tuple(slice(0, 1) if d >= found.ndim - 2 else slice(None) for d in range(found.ndim))
        for view in op.views(weight):
            op.watcher.attach_view(view, found[places].expand(weight.shape))
        macs = op.out.numel() * weight.shape[k]
        op.watcher.layer(weight, None, entering=None, dims=(None, None), macs=macs, channel_dim=channel_dim)
        return through
    made = op.watcher.layer(
        weight,
        bias,
        entering=None if found is None else op.channels(found, channel_dim),
        dims=(weight.ndim + k, weight.ndim + n),
        macs=op.out.numel() / weight.shape[n],
        channel_dim=channel_dim,
    )
    return None if made is None else made.view(-1, *[1] * (-n - 1)).expand(op.out.shape)


@rule("_grouped_mm")
def _grouped_mm(op: Op) -> Out:
    """A matrix for each run of rows, as of the experts that they are sent to."""
    a, b = op.bound["self"], op.bound["mat2"]
    if a.ndim != 2 or b.ndim != 3 or _whole_parameter(op, b) is None:
        raise Freeze("_grouped_mm of something that is no parameter")
    return _stacked(op, a, b, -2, -1, op.bound.get("bias"))


def _whole_parameter(op: Op, x: Tensor) -> View | None:
    if op.labels(x) is not None:
        return None
    views = op.views(x)
    return views[0] if len(views) == 1 and views[0].is_whole and not views[0].changed else None


def contract(op: Op, a: Tensor, b: Tensor) -> Tensor:
    """Labels of a @ b, from labels [..., n, k] and [..., k, m].

    All labels that are summed together are tied, and so is what meets; a result that holds a single class of everything
    means that nothing can be removed.
    """
    a, b = _shared(op, a, b), _shared(op, b, a)
    k = a.shape[-1]
    both = any_in(a) and any_in(b)
    over_a, over_b = a.ndim - 1 in varying_dims(a), b.ndim - 2 in varying_dims(b)
    rows, columns = over(a, [-1]), over(b, [-2])
    if over_a:
        op.unite(a, rows)
    if over_b:
        op.unite(b, columns)
    rows, columns = squash(rows.squeeze(-1)), squash(columns.squeeze(-2))
    for found, hit in ((rows, over_a), (columns, over_b)):
        if hit and k > 1 and not varying_dims(found):
            raise Freeze(f"{op.name} over all channels")
    left, right = rows[..., :, None], columns[..., None, :]
    shape = broadcast(left.shape, right.shape)
    assert shape is not None
    left, right = left.expand(shape), right.expand(shape)
    op.unite(left, right)
    out = squash(either(squash(left), squash(right)))
    if both or over_a or over_b:
        op.watcher.seen.head_labels.append(labels_in(out))
    return out


@rule(
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"
)
def _attention(op: Op) -> Out:
    q, k, v = (op.labels_or_zero(op.bound[n]) for n in ("query", "key", "value"))
    if not any(any_in(x) for x in (q, k, v)):
        return None
    heads = q.shape[-3] if q.ndim > 2 else 1
    if k.ndim > 2 and k.shape[-3] != heads:  # grouped queries
        k, v = (squash(x.repeat_interleave(heads // x.shape[-3], -3)) for x in (k, v))
    try:
        scores = contract(op, q, k.transpose(-1, -2))
    except Freeze as reason:  # a single head: its queries and keys stay, its values are channels
        for x in (q, k):
            op.watcher.seen.labels.freeze(x, op.watcher.where(str(reason)))
        scores = constant((*q.shape[:-1], k.shape[-2]))
    mask = op.bound.get("attn_mask")
    if mask is not None:
        found = op.labels(mask)
        if found is not None:
            found = found.expand(scores.shape)
            op.unite(found, scores)
            scores = squash(either(scores, found))
        else:
            meet(op, mask, scores)
    scores = op.mix(scores, {scores.ndim - 1})
    out = squash(contract(op, scores, v))
    first = op.out if isinstance(op.out, Tensor) else op.out[0]
    labels = out.expand(first.shape)
    return labels if isinstance(op.out, Tensor) else [labels] + [None] * (len(op.out) - 1)


@rule("einsum")
def _einsum(op: Op) -> Out:
    equation, operands = op.args[0].replace(" ", ""), op.args[1]
    if "." in equation or "->" not in equation or len(operands) != 2:
        raise Freeze(f"einsum {equation}")
    left, out = equation.split("->")
    letters = left.split(",")
    for mine, other in ((0, 1), (1, 0)):
        if _whole_parameter(op, operands[mine]) is not None:
            return _einsum_layer(op, operands[other], letters[other], operands[mine], letters[mine], out)
    if any(len(set(word)) < len(word) for word in letters):
        raise Freeze(f"einsum {equation}")
    batch = [c for c in letters[0] if c in letters[1] and c in out]
    summed = [c for c in letters[0] if c in letters[1] and c not in out]
    rows = [c for c in letters[0] if c not in letters[1]]
    columns = [c for c in letters[1] if c not in letters[0]]
    if any(c not in out for c in rows + columns):
        raise Freeze(f"einsum {equation}")
    size = {c: n for word, x in zip(letters, operands, strict=True) for c, n in zip(word, x.shape, strict=True)}

    def arranged(number: int, order: list[list[str]]) -> Tensor:
        labels = op.labels_or_zero(operands[number]).permute([letters[number].index(c) for part in order for c in part])
        return labels.reshape(*[size[c] for c in order[0]], *[math.prod(size[c] for c in p) for p in order[1:]])

    a, b = arranged(0, [batch, rows, summed]), arranged(1, [batch, summed, columns])
    result = contract(op, squash(a), squash(b))
    result = result.reshape([size[c] for c in batch + rows + columns])
    return squash(result.permute([(batch + rows + columns).index(c) for c in out]))


def _einsum_layer(op: Op, x: Tensor, letters: str, weight: Tensor, own: str, out: str) -> Tensor | None:
    """Channels of a parameter with several dimensions of inputs or outputs, such as [width, heads, head size], lie along
    the first of them; along the others they are tied."""
    summed = [c for c in own if c in letters and c not in out]
    made = [c for c in own if c not in letters]
    stacked = any(c in letters and c in out for c in own)
    if stacked or not summed or not made or any(c not in out for c in made) or len({*letters}) < len(letters):
        raise Freeze(f"einsum {op.args[0]} with a parameter")
    found = op.labels(x)
    if found is None and op.views(x):
        found = op.watcher.promote(x, {letters.index(c) for c in summed})
    lies = summed
    if found is not None:
        lies = [c for c in summed if letters.index(c) in varying_dims(found)] or summed
        if len(lies) > 1:
            found = op.mix_all(found, {letters.index(c) for c in lies[1:]})
    place = out.index(made[0])
    labels = op.watcher.layer(
        weight,
        None,
        entering=None if found is None else op.channels(found, letters.index(lies[0])),
        dims=(own.index(lies[0]), own.index(made[0])),
        macs=op.out.numel()
        / op.out.shape[place]
        * math.prod(weight.shape[own.index(c)] for c in summed if c != lies[0]),
        channel_dim=letters.index(lies[0]) - x.ndim,
    )
    if labels is None:
        return None
    return labels.view(-1, *[1] * (op.out.ndim - 1 - place)).expand(op.out.shape)


def _shared(op: Op, one: Tensor, other: Tensor) -> Tensor:
    """Labels of one operand, or none of them where it is the same for all parts of the other, as the keys and values of
    multi-query attention are: then it stays, and those parts do not have to live and die together."""
    mine = {d - one.ndim for d in varying_dims(one)}
    theirs = {d - other.ndim for d in varying_dims(other)}
    batch = {d for d in theirs if d < -2}
    if (theirs and not mine) or batch - mine:
        op.watcher.seen.labels.freeze(one, op.watcher.where(f"{op.name} with something that all of its parts share"))
        return constant(one.shape)
    return one
