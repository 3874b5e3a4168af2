"""What each ATen op does to labels. An op that has no rule here freezes the labels that enter it.

A rule takes an `Op` and returns the labels of the op's output(s): None where no label comes out, one tensor, or a list
with an entry per output tensor. Ops that only move data are not described at all: they are run on the labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from zerogate.errors import first_line
from zerogate.groups.labels import along, labels_in, narrow_constant, squash, varying_dims

Out = Tensor | list[Tensor | None] | None
Rule = Callable[["Op"], Out]
RULES: dict[str, Rule] = {}


class Freeze(Exception):
    """Raised by a rule that cannot follow the labels; carries the reason."""


class Op:
    """One call of an ATen op inside a watched run."""

    def __init__(self, watcher: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        self.watcher, self.func, self.args, self.kwargs, self.out = watcher, func, args, kwargs, out
        self.name: str = func.overloadpacket.__name__
        self.bound = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
        self.bound |= dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs

    def labels(self, x: Any) -> Tensor | None:
        return self.watcher.labels_of(x) if isinstance(x, Tensor) else None

    def tensors(self) -> list[Tensor]:
        return [x for x in tree_leaves((self.args, self.kwargs)) if isinstance(x, Tensor)]


def rule(*names: str) -> Callable[[Rule], Rule]:
    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


# --- moving data ------------------------------------------------------------------------------------------------------

_MOVES = """
    view reshape _unsafe_view view_as reshape_as flatten unflatten ravel squeeze unsqueeze permute transpose t numpy_T
    movedim moveaxis swapaxes swapdims expand expand_as broadcast_to repeat repeat_interleave tile adjoint mT mH
    cat concat concatenate stack hstack vstack dstack column_stack flip fliplr flipud constant_pad_nd masked_fill
""".split()
# Cuts count channels off from the left, picks take them by position: both look at what they move.
_CUTS = """
    slice narrow select split split_with_sizes chunk tensor_split unsafe_split unsafe_split_with_sizes unsafe_chunk
    unbind
""".split()
_PICKS = """
    index index_select roll rot90 pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle diagonal tril triu
    unfold as_strided
""".split()


@rule(*_MOVES)
def _move(op: Op) -> Out:
    moved = _run(op)
    before = op.labels(op.args[0]) if isinstance(op.args[0], Tensor) else None
    if before is not None and isinstance(moved, Tensor):
        _check_reshape(op, before, moved)
    return moved


@rule(*_CUTS)
def _cut(op: Op) -> Out:
    """Cutting at fixed places along channels goes on working only if every piece loses equally many of them."""
    moved, before, dim = _run(op), op.labels(op.bound["self"]), op.bound.get("dim", 0)
    assert before is not None
    dim %= before.ndim
    if dim not in varying_dims(before):
        return moved
    size = before.shape[dim]
    pieces = moved if isinstance(moved, list) else [moved]
    lengths = {x.shape[dim] if op.name not in ("select", "unbind") else 1 for x in pieces if x is not None}
    piece = lengths.pop()
    start = op.bound.get("start", op.bound.get("index", 0)) or 0
    aligned = not lengths and piece and size % piece == 0 and start % piece == 0 and op.bound.get("step", 1) == 1
    if piece == size and not lengths:
        return moved
    if not aligned or len(varying_dims(before)) > 1:
        raise Freeze(f"{op.name} at a fixed place among channels")
    op.watcher.cut(along(before, dim).amax(1).view(-1, piece), f"{op.name} at a fixed place among channels", False)
    return moved


@rule(*_PICKS)
def _pick(op: Op) -> Out:
    """Picking by position is fine as long as it leaves the order of channels alone."""
    moved, before = _run(op), op.labels(op.args[0])
    if before is None or not isinstance(moved, Tensor):
        return moved
    old, new = varying_dims(before), varying_dims(moved)
    if old and not (len(old) == len(new) == 1 and torch.equal(along(before, old[0]), along(moved, new[0]))):
        raise Freeze(f"{op.name} among channels")
    return moved


def _run(op: Op) -> Out:
    """Runs the op on labels; tensors without labels are all 0, indices and masks stay what they are."""

    def to_labels(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if x.dtype in (torch.bool, torch.int64, torch.int32, torch.uint8):
            return x.cpu()  # labels are on the CPU wherever the model is
        found = op.labels(x)
        return found if found is not None else torch.zeros((), dtype=torch.int64).expand(x.shape)

    if op.name == "masked_fill":  # the filled places are constants
        return op.labels(op.bound["self"])
    args, kwargs = tree_map(to_labels, op.args), tree_map(to_labels, op.kwargs)
    if op.name in ("cat", "concat", "concatenate"):
        return _cat(op, args)
    try:
        moved = op.func(*args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        if op.name != "view":  # labels expanded by stride 0 cannot always be viewed; a copy can
            raise Freeze(f"{op.name} cannot be followed ({first_line(error)})") from error
        moved = args[0].reshape(op.out.shape)
    return [squash(x) for x in moved] if isinstance(moved, (list, tuple)) else squash(moved)


def _check_reshape(op: Op, before: Tensor, moved: Tensor) -> None:
    """Folding the channel dimension in two works on only while whole rows, or equally many of each row, are removed."""
    old, new = varying_dims(before), varying_dims(moved)
    if len(new) < 2:
        return
    if len(old) == 1 and len(new) == 2:
        rows = along(moved, new[0])
        op.watcher.cut(rows, f"{op.name} folds channels into {tuple(rows.shape)}", True)
    elif sorted(before.shape[d] for d in old) != sorted(moved.shape[d] for d in new):
        raise Freeze(f"{op.name} folds channels")


def _cat(op: Op, args: Any) -> Tensor:
    """Concatenation without spelling out the dimensions along which no part varies."""
    parts, dim = [p for p in args[0] if p.numel()], op.bound["dim"]
    if not parts:
        return torch.zeros((), dtype=torch.int64).expand(op.out.shape)
    dim %= op.out.ndim
    for d in range(op.out.ndim):
        if d != dim and all(p.shape[d] == 1 or p.stride(d) == 0 for p in parts):
            parts = [p.narrow(d, 0, 1) for p in parts]
    return squash(torch.cat(parts, dim).expand(op.out.shape))


@rule("pad")
def _pad(op: Op) -> Out:
    found = op.labels(op.bound["self"])
    if found is None:
        return None
    mode = op.bound["mode"]
    padded = torch.nn.functional.pad(found.double(), op.bound["pad"], mode=mode)  # reflection lacks an integer kernel
    return squash(padded.long())


_SAME = """
    clone contiguous detach alias to _to_copy type_as lift_fresh float double half bfloat16 dropout dropout_
    feature_dropout feature_dropout_ alpha_dropout alpha_dropout_ feature_alpha_dropout native_dropout positive
    requires_grad_ conj resolve_conj resolve_neg
""".split()


@rule(*_SAME)
def _same(op: Op) -> Out:
    return op.labels(op.args[0])


_SHAPE_ONLY = """
    zeros_like ones_like empty_like full_like rand_like randn_like new_zeros new_ones new_empty new_full size stride
    sym_size sym_numel numel dim is_floating_point is_complex
""".split()


@rule(*_SHAPE_ONLY)
def _shape_only(op: Op) -> Out:
    return None


# --- pointwise --------------------------------------------------------------------------------------------------------

_POINTWISE = """
    relu relu_ relu6 relu6_ leaky_relu leaky_relu_ elu elu_ celu celu_ selu selu_ gelu gelu_ silu silu_ mish mish_
    sigmoid sigmoid_ tanh tanh_ hardtanh hardtanh_ hardswish hardswish_ hardsigmoid hardsigmoid_ softplus softsign
    hardshrink softshrink tanhshrink threshold threshold_ log_sigmoid rrelu clamp clamp_ clip clip_ where add add_ sub
    sub_ mul mul_ div div_ true_divide rsub pow pow_ square sqrt rsqrt exp log abs neg neg_ maximum minimum lerp addcmul
    addcdiv multiply divide subtract negative absolute
""".split()


@rule(*_POINTWISE)
def pointwise(op: Op) -> Out:
    """Channels that meet must live or die together; a parameter that meets them is sliced with them."""
    if not isinstance(op.out, Tensor):
        raise Freeze(f"{op.name} has several outputs")
    shape, met = op.out.shape, None
    for x in op.tensors():
        found = op.labels(x)
        if found is None:
            continue
        found = found.expand(shape)
        if met is None:
            met = found
        else:
            op.watcher.seen.labels.unite(met, found)
            met = _either(met, found)
    if met is None:
        return None
    met = squash(met)
    for x in op.tensors():
        name = op.watcher.tensor_name(x)
        if name is not None and op.labels(x) is None:
            _attach_broadcast(op, name, x, met)
    return met


def _either(a: Tensor, b: Tensor) -> Tensor:
    """a where it is a label, else b; keeps dimensions along which neither varies expanded."""
    shape = a.shape
    a, b = narrow_constant(a, b)
    return torch.where(a != 0, a, b).expand(shape)


def _attach_broadcast(op: Op, name: str, x: Tensor, met: Tensor) -> None:
    lead = met.ndim - x.ndim
    own = [d for d in range(x.ndim) if x.shape[d] > 1 and (met.shape[lead + d] > 1)]
    vary = varying_dims(met)
    touching = [d for d in own if lead + d in vary]
    if not touching:
        return  # a scalar, or a dimension along which no channel lies
    if len(vary) > 1:
        raise Freeze(f"{op.name} with parameter {name} where channels lie along more than one dimension")
    op.watcher.attach(name, touching[0], along(met, lead + touching[0]).amax(1))


@rule("prelu")
def _prelu(op: Op) -> Out:
    found = op.labels(op.bound["self"])
    weight = op.bound["weight"]
    if found is not None and weight.numel() > 1:
        op.watcher.attach_or_freeze(weight, 0, _channels(op, found, 1))
    return found


# --- along and across channels ----------------------------------------------------------------------------------------


def _channels(op: Op, found: Tensor, dim: int) -> Tensor:
    """The one label of each index of a dimension; several labels at one index are tied together."""
    rows = along(found, dim)
    vector = rows.amax(1)
    op.watcher.seen.labels.unite(rows, vector[:, None])
    return vector


@rule("batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(op: Op) -> Out:
    found = op.labels(op.bound["input"])
    if found is None:
        return None
    vector = _channels(op, found, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        if op.bound.get(name) is not None:
            op.watcher.attach_or_freeze(op.bound[name], 0, vector)
    labels = squash(vector.view(1, -1, *[1] * (found.ndim - 2)).expand(found.shape))
    return labels if isinstance(op.out, Tensor) else [labels, None, None]


_POOLS = """
    max_pool{}d avg_pool{}d adaptive_avg_pool{}d adaptive_max_pool{}d _adaptive_avg_pool{}d max_pool{}d_with_indices
    upsample_nearest{}d upsample_linear{}d upsample_bilinear{}d upsample_bicubic{}d upsample_trilinear{}d
    _upsample_nearest_exact{}d _upsample_bilinear{}d_aa fractional_max_pool{}d
""".split()


@rule(*(name.format(n) for name in _POOLS for n in (1, 2, 3)))
def _pool(op: Op) -> Out:
    spatial = int(next(c for c in op.name if c.isdigit()))
    found = op.labels(op.args[0])
    if found is None:
        return None
    if any(d >= found.ndim - spatial for d in varying_dims(found)):
        raise Freeze(f"{op.name} over places that hold different channels")
    first = op.out if isinstance(op.out, Tensor) else op.out[0]
    for d in range(found.ndim - spatial, found.ndim):
        found = found.narrow(d, 0, 1)
    labels = found.expand(first.shape)
    return labels if isinstance(op.out, Tensor) else [labels] + [None] * (len(op.out) - 1)


_REDUCTIONS = "mean sum amax amin std var max min logsumexp norm linalg_vector_norm median nansum".split()


@rule(*_REDUCTIONS)
def _reduce(op: Op) -> Out:
    found = op.labels(op.args[0])
    if "other" in op.bound:  # max(a, b) is pointwise
        return pointwise(op)
    if found is None:
        return None
    dims = op.bound.get("dim")
    dims = range(found.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = {d % found.ndim for d in dims}
    if dims & set(varying_dims(found)):
        raise Freeze(f"{op.name} over channels")
    kept = [0 if d in dims else slice(None) for d in range(found.ndim)]
    if op.bound.get("keepdim"):
        kept = [slice(0, 1) if d in dims else slice(None) for d in range(found.ndim)]
    labels = found[tuple(kept)]
    return labels if isinstance(op.out, Tensor) else [labels] * len(op.out)


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "cumsum")
def _along(op: Op) -> Out:
    found = op.labels(op.args[0])
    if found is not None and op.bound["dim"] % found.ndim in varying_dims(found):
        raise Freeze(f"{op.name} over channels")
    return found


# --- layers -----------------------------------------------------------------------------------------------------------


@rule("linear")
def _linear(op: Op) -> Out:
    x, weight, bias = op.bound["input"], op.bound["weight"], op.bound.get("bias")
    macs = op.out.numel() / weight.shape[0]
    found = op.labels(x)
    vector = None if found is None else _channels(op, found, -1)
    made = op.watcher.layer(weight, bias, consumes=(1, vector), produces=0, macs=macs, channel_dim=-1)
    return None if made is None else made.expand(op.out.shape)


@rule(*(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)), "convolution")
def _convolution(op: Op) -> Out:
    x, weight, bias, groups = op.bound["input"], op.bound["weight"], op.bound.get("bias"), op.bound["groups"]
    transposed = "transpose" in op.name or bool(op.bound.get("transposed"))
    spatial = weight.ndim - 2
    channel_dim = -spatial - 1
    inputs = x.shape[channel_dim]
    outputs = op.out.shape[channel_dim]
    positions = (x if transposed else op.out).numel() / (inputs if transposed else outputs)
    macs = positions * math.prod(weight.shape[2:])
    found = op.labels(x)
    vector = None if found is None else _channels(op, found, channel_dim)
    in_dim, out_dim = (0, 1) if transposed else (1, 0)
    if groups == 1:
        made = op.watcher.layer(
            weight, bias, consumes=(in_dim, vector), produces=out_dim, macs=macs, channel_dim=channel_dim
        )
    elif groups == inputs and (not transposed or outputs == inputs):
        if vector is not None:  # each channel is filtered on its own and keeps its label
            vector = vector.repeat_interleave(outputs // inputs)
        made = op.watcher.depthwise(weight, bias, vector, macs, channel_dim)
    else:
        macs *= inputs * outputs / groups
        op.watcher.layer(weight, bias, consumes=None, produces=None, macs=macs, channel_dim=channel_dim)
        if found is not None and labels_in(found).numel():
            raise Freeze(f"convolution in {groups} groups")
        return None
    if made is None:
        return None
    return made.view(-1, *[1] * spatial).expand(op.out.shape)
