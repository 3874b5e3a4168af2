"""Ops along and across channels: norms, pools, reductions, softmax.

What an op mixes cannot shrink, so it is tied: a norm over each head leaves heads free, a norm in groups of channels leaves
those groups free. Only where all channels are mixed nothing is left; a norm of that kind is taken over the channels that
are kept, if the module it lies in allows it (see `norms`).
"""

from __future__ import annotations

from torch import Tensor

from zerogate.groups.labels import squash, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.rules.op import Freeze, Op, Out, rule
from zerogate.groups.rules.pointwise import pointwise


@rule("batch_norm", "native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training", "instance_norm")
def _batch_norm(op: Op) -> Out:
    found = op.labels(op.bound["input"])
    if found is None:
        return None
    vector = op.channels(found, 1)
    if op.bound.get("weight") is None and op.bound.get("running_mean") is None:
        op.watcher.tell("num_features", len(vector), vector[:, None])
    for name in ("weight", "bias", "running_mean", "running_var"):
        if op.bound.get(name) is not None:
            op.watcher.attach_or_freeze(op.bound[name], 0, vector)
    labels = squash(vector.view(1, -1, *[1] * (found.ndim - 2)).expand(found.shape))
    return labels if isinstance(op.out, Tensor) else [labels, None, None]


@rule("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm")
def _layer_norm(op: Op) -> Out:
    x = op.bound["input"]
    found = op.labels(x)
    over = {x.ndim - 1 - i for i in range(len(op.bound["normalized_shape"]))}
    if found is None and op.views(x):
        found = op.watcher.promote(x, over)
    if found is None or not varying_dims(found):
        return None
    vary = set(varying_dims(found))
    if vary & over and not vary - over:
        labels = _over_kept(op, found, over, "layer" if "layer" in op.name else "rms")
        if len(over) == 1 and op.bound.get("weight") is None:
            op.watcher.tell("normalized_shape", tuple(op.bound["normalized_shape"]), op.channels(labels, -1)[:, None])
        for name in ("weight", "bias"):
            held = op.bound.get(name)
            if held is not None:
                if not op.views(held):
                    raise Freeze(f"{op.name} over channels with a computed {name}")
                for view in op.views(held):
                    op.watcher.attach_view(view, labels[(0,) * (labels.ndim - held.ndim)])
    else:
        labels = op.mix(found, over)
    return labels if isinstance(op.out, Tensor) else [labels] + [None] * (len(op.out) - 1)


@rule("group_norm", "native_group_norm")
def _group_norm(op: Op) -> Out:
    found = op.labels(op.bound["input"])
    if found is None:
        return None
    groups: int = op.bound["num_groups" if "num_groups" in op.bound else "group"]
    vector = op.channels(found, 1)
    if not vector.any():
        return None
    if op.bound.get("weight") is None:
        op.watcher.tell("num_channels", len(vector), vector[:, None])
    if groups == 1 and len(vector) > 1:
        found = _over_kept(op, found, set(range(1, found.ndim)), "layer")
    else:
        vector = op.watcher.tie_rows(vector.view(groups, -1), "group_norm over channels and constants")
        op.watcher.tell("num_groups", groups, vector[:, None])
        vector = vector.repeat_interleave(found.shape[1] // groups)
        found = squash(vector.view(1, -1, *[1] * (found.ndim - 2)).expand(found.shape))
    for name in ("weight", "bias"):
        if op.bound.get(name) is not None:
            op.watcher.attach_or_freeze(op.bound[name], 0, vector)
    return found if isinstance(op.out, Tensor) else [found] + [None] * (len(op.out) - 1)


def _over_kept(op: Op, found: Tensor, over: set[int], kind: str) -> Tensor:
    if not op.watcher.norm(found, kind):
        raise Freeze(f"{op.name} over channels")
    return found


@rule(Family.POOL)
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
    return labels if isinstance(op.out, Tensor) else [labels] * len(op.out)


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def _grid_sampler(op: Op) -> Out:
    found = op.labels(op.bound["input"])
    if found is None or op.labels(op.bound["grid"]) is not None or set(varying_dims(found)) - {0, 1}:
        raise Freeze(f"{op.name} at places that depend on channels")
    for d in range(2, found.ndim):
        found = found.narrow(d, 0, 1)
    return found.expand(op.out.shape)


@rule(Family.REDUCTION)
def _reduce(op: Op) -> Out:
    found = op.labels(op.args[0])
    if "other" in op.bound:  # max(a, b) is pointwise
        return pointwise(op)
    if found is None:
        return None
    dims = op.bound.get("dim")
    dims = range(found.ndim) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    dims = {d % found.ndim for d in dims}
    vary = set(varying_dims(found))
    outs = op.out if isinstance(op.out, (list, tuple)) else [op.out]
    if vary and vary <= dims:
        if op.name not in ("mean", "var", "std", "var_mean", "norm", "linalg_vector_norm", "sum"):
            raise Freeze(f"{op.name} over channels")
        kind = "rms" if op.name in ("mean", "norm", "linalg_vector_norm", "sum") else "layer"
        if not op.watcher.norm(found, kind):
            if op.name == "mean" and isinstance(op.out, Tensor):
                op.watcher.mixes(op.out, found, f"{op.name} over channels")
                return None
            raise Freeze(f"{op.name} over channels")
        return None if isinstance(op.out, Tensor) else [None] * len(outs)
    found = op.mix(found, dims)
    keepdim = bool(op.bound.get("keepdim"))
    labels = found[tuple((slice(0, 1) if keepdim else 0) if d in dims else slice(None) for d in range(found.ndim))]
    return labels if isinstance(op.out, Tensor) else [labels] * len(outs)


@rule(Family.MIXING)
def _along(op: Op) -> Out:
    found = op.labels(op.args[0])
    return None if found is None else op.mix(found, {op.bound["dim"] % found.ndim})


@rule("cosine_similarity")
def _similarity(op: Op) -> Out:
    raise Freeze("cosine_similarity over channels")


@rule("_weight_norm", "_weight_norm_interface")
def _weight_norm(op: Op) -> Out:
    raise Freeze("weight normalisation")
