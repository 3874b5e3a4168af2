"""Ops that only move data: they are run on the labels themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zerogate.errors import first_line
from zerogate.groups.labels import along, any_in, constant, squash, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.rules.op import Freeze, Op, Out, UnknownValue, View, replaced, rule

_INTEGERS = (torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_LARGE = 1 << 21  # entries of a parameter above which its reshaped indices are not followed


@rule(Family.RELAYOUT)
def _move(op: Op) -> Out:
    return run(op)


@rule(Family.IDENTITY)
def _same(op: Op) -> Out:
    return op.labels(op.args[0])


@rule(Family.SHAPE_ONLY, Family.FACTORY)
def _shape_only(op: Op) -> Out:
    return None


@rule(Family.SLICE)
def _cut(op: Op) -> Out:
    """Cutting equal pieces goes on working if every piece loses equally many channels, so these are tied; pieces of
    different lengths must have their sizes repaired."""
    moved, before, dim = run(op), op.labels(op.bound["self"]), op.bound.get("dim", 0)
    if before is None:
        raise Freeze(f"{op.name} by channels")
    dim %= before.ndim
    if dim not in varying_dims(before):
        return moved
    size = before.shape[dim]
    if op.name in ("select", "unbind"):
        if op.name == "select" and varying_dims(before) == [dim]:
            op.watcher.mixes(op.out, before, "select among channels")  # often only to ask for the shape of the rest
            return None
        op.mix(before, {dim})
        return moved
    pieces = moved if isinstance(moved, list) else [moved]
    if op.watcher.rewritten and op.name in ("slice", "split_with_sizes") and op.bound.get("step", 1) == 1:
        return moved
    lengths = {x.shape[dim] for x in pieces if x is not None}
    step, start = op.bound.get("step", 1), op.bound.get("start", 0) or 0
    if step == 1 and lengths == {size}:
        return moved
    length = max(lengths)
    if not length:
        return moved
    columns = before.movedim(dim, -1)
    if step > 1 and size % step == 0:
        columns = columns.unflatten(-1, (-1, step))
        op.unite(columns, columns[..., :1])
    elif step == 1 and len(lengths) == 1 and size % length == 0 and start % size % length == 0:
        if length == 1:
            op.mix(before, {dim})
            return moved
        columns = columns.unflatten(-1, (-1, length))
        op.unite(columns, columns[..., :1, :])
    elif step > 1 or "chunk" in op.name or op.name == "tensor_split":
        raise Freeze(f"{op.name} at a fixed place among channels")
    return moved


@rule(Family.INDEX)
def _pick(op: Op) -> Out:
    """Picking by position is fine as long as it leaves the order of channels alone."""
    before = op.labels(op.args[0])
    if before is None or any(any_in(op.labels_or_zero(x)) for x in op.tensors if x is not op.args[0]):
        raise Freeze(f"{op.name} by channels")
    moved = run(op)
    assert isinstance(moved, Tensor)
    old, new = varying_dims(before), varying_dims(moved)
    if old:
        kept = len(old) == len(new)
        if kept and len(old) == 1:
            kept = torch.equal(along(before, old[0]), along(moved, new[0]))
        elif kept:
            kept = torch.equal(_varying(before, old), _varying(moved, new))
        if not kept:
            dims = _picked(op, before)
            if dims is None or not set(old) - dims:
                raise Freeze(f"{op.name} among channels")
            return run(op, op.mix(before, dims))
    return moved


def _picked(op: Op, before: Tensor) -> set[int] | None:
    """Dimensions along which an op picks places, where that is known."""
    if op.name == "index":
        return {d for d, i in enumerate(op.args[1]) if i is not None}
    return {op.bound["dim"] % before.ndim} if op.name in ("index_select", "gather", "take_along_dim") else None


def _varying(labels: Tensor, dims: list[int]) -> Tensor:
    for d in range(labels.ndim):
        if d not in dims:
            labels = labels.narrow(d, 0, 1)
    return labels.squeeze()


@rule("pixel_shuffle")
def _pixel_shuffle(op: Op) -> Out:
    """The r² channels that make one output channel are tied."""
    found = op.labels(op.args[0])
    assert found is not None
    r = op.bound["upscale_factor"]
    rows = op.channels(found, -3).view(-1, r * r)
    vector = op.watcher.tie_rows(rows, "pixel_shuffle of channels and constants")
    return squash(vector.view(-1, 1, 1).expand(op.out.shape))


@rule("channel_shuffle", "native_channel_shuffle")
def _channel_shuffle(op: Op) -> Out:
    """Groups stay equally long if the channels at one place in all of them are tied."""
    found = op.labels(op.args[0])
    assert found is not None
    columns = op.channels(found, 1).view(op.bound["groups"], -1)
    vector = op.watcher.tie_rows(columns.T, "channel_shuffle of channels and constants")
    vector = vector.repeat_interleave(op.bound["groups"])
    return squash(vector.view(1, -1, *[1] * (found.ndim - 2)).expand(op.out.shape))


@rule("pad")
def _pad(op: Op) -> Out:
    found = op.labels(op.bound["self"])
    if found is None:
        return None
    pad, mode = op.bound["pad"], op.bound["mode"]
    padded = [found.ndim - 1 - i // 2 for i, n in enumerate(pad) if n]
    if not set(padded) & set(varying_dims(found)):  # what is padded in are constants of the same channels
        for d in padded:
            found = found.narrow(d, 0, 1)
        return found.expand(op.out.shape)
    result = torch.nn.functional.pad(found.double(), pad, mode=mode)  # reflection lacks an integer kernel
    return squash(result.long())


@rule("index_put", "index_put_")
def _index_put(op: Op) -> Out:
    """Places are picked along dimensions without channels; what is put there has the channels of the rest."""
    found, values = op.labels(op.bound["self"]), op.bound["values"]
    given = op.labels(values)
    picked = [d for d, i in enumerate(op.bound["indices"]) if i is not None]
    rest = op.out.ndim - 1 - picked[-1]
    if given is None and found is None:
        return None
    if found is not None and set(picked) & set(varying_dims(found)):
        raise Freeze(f"{op.name} among channels")
    if given is None or not values.numel():
        return found
    if any(d < given.ndim - rest for d in varying_dims(given)):
        raise Freeze(f"{op.name} of other channels at each place")
    put = given[(0,) * max(given.ndim - rest, 0)].expand(op.out.shape)
    if found is None:
        return squash(put)
    op.unite(found, put)
    return squash(torch.where(found != 0, found, put))


@rule(Family.SCATTER)
def _added(op: Op) -> Out:
    """Places are picked along one dimension; what is put there has the same channels."""
    found, source = op.labels_or_zero(op.bound["self"]), op.bound.get("source", op.bound.get("src"))
    dim = op.bound["dim"] % found.ndim
    given = op.labels(source) if isinstance(source, Tensor) else None
    if dim in varying_dims(found) or (given is not None and dim in varying_dims(given)):
        raise Freeze(f"{op.name} among channels")
    if given is None:
        return found
    if any(n != m for d, (n, m) in enumerate(zip(given.shape, found.shape, strict=True)) if d != dim):
        raise Freeze(f"{op.name} at a part of the places")
    put = given.narrow(dim, 0, 1).expand(found.shape)
    op.unite(found, put)
    return squash(torch.where(found != 0, found, put))


@rule(Family.ORDER)
def _ordered(op: Op) -> Out:
    found = op.labels(op.args[0])
    if found is None:
        return None
    dim = op.bound.get("dim", -1) % found.ndim
    if dim in varying_dims(found):
        raise Freeze(f"{op.name} over channels")
    first = op.out if isinstance(op.out, Tensor) else op.out[0]
    labels = squash(found.narrow(dim, 0, 1).expand(first.shape)) if first.ndim == found.ndim else found.select(dim, 0)
    return labels if isinstance(op.out, Tensor) else [labels] * len(op.out)


def run(op: Op, instead: Tensor | None = None) -> Out:
    """Runs a move on labels, or on others ``instead`` of those of its first operand; tensors without labels are all 0,
    indices and masks stay what they are."""
    if op.name.startswith("masked_fill"):  # the filled places are constants
        found = op.labels(op.bound["self"])
        return None if found is None else found.expand(op.out.shape)
    if op.name in ("cat", "concat", "concatenate"):
        return _cat(op)

    def to_labels(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        found = instead if instead is not None and x is op.args[0] else op.labels(x)
        if found is None and x.dtype in _INTEGERS:
            return _values(op, x)
        return constant(x.shape) if found is None else found

    args, kwargs = replaced(op.args, to_labels), replaced(op.kwargs, to_labels)
    moved = _call(op, args, kwargs)
    return [squash(x) for x in moved] if isinstance(moved, (list, tuple)) else squash(moved)


def _values(op: Op, x: Tensor) -> Tensor:
    """What an index tensor holds, on the CPU: labels are there wherever the model is."""
    known = op.watcher.value_of(x)
    if known is not None:
        return known.cpu()
    if op.spec.family is Family.INDEX and x.dtype != torch.bool:
        found = op.labels(op.args[0])
        dims = None if found is None else _picked(op, found)
        if found is not None and dims is not None and not dims & set(varying_dims(found)):
            return torch.zeros(x.shape, dtype=torch.int64)  # along these, all places have the same labels
    raise UnknownValue(op.name)


def _call(op: Op, args: Any, kwargs: Any) -> Any:
    try:
        return op.func(*args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        if op.name != "view":  # labels expanded by stride 0 cannot always be viewed; a copy can
            raise Freeze(f"{op.name} cannot be followed ({first_line(error)})") from error
        return args[0].reshape(op.out.shape)


def _cat(op: Op) -> Tensor:
    """Concatenation without spelling out the dimensions along which no part varies.

    What is put in line along another dimension than that of the channels shares them: labels at one place are tied, and
    parts without labels take them on.
    """
    tensors = [x for x in op.args[0] if x.numel()]
    if not tensors:
        return constant(op.out.shape)
    dim = op.bound["dim"] % op.out.ndim
    parts = [op.labels_or_zero(x) for x in tensors]
    across = {d for p in parts for d in varying_dims(p)} - {dim}
    if across and len(parts) > 1:
        firsts = [p.narrow(dim, 0, 1) for p in parts if dim not in varying_dims(p)]
        shared = torch.zeros((), dtype=torch.int64)
        for p in firsts:
            shared = torch.where(shared == 0, p, shared)
        for i, x in enumerate(tensors):
            if op.labels(x) is None and op.views(x):
                parts[i] = op.watcher.promote(x, across)
        for i, p in enumerate(parts):
            op.unite(p, shared)
            if not p.any() or dim not in varying_dims(p):
                parts[i] = shared.expand(p.shape)
    for d in range(op.out.ndim):
        if d != dim and all(p.shape[d] == 1 or p.stride(d) == 0 for p in parts):
            parts = [p.narrow(d, 0, 1) for p in parts]
    return squash(torch.cat(parts, dim).expand(op.out.shape))


# --- parameters that are moved before use -----------------------------------------------------------------------------


def follow_views(op: Op) -> list[list[View]] | None:
    """Views that come out of a move or pointwise op whose operands hold none but parameters and constants, one list per
    output; None where the op does something else with them."""
    outs = op.out if isinstance(op.out, (list, tuple)) else [op.out]
    views = {id(x): op.views(x) for x in op.tensors}
    names = list(dict.fromkeys(v.name for found in views.values() for v in found))
    family = op.spec.family
    if family is Family.IDENTITY or op.spec.pointwise:
        if len(outs) != 1:
            return None
        shape = outs[0].shape
        other = family is not Family.IDENTITY
        return [
            [
                View(v.name, tuple(i.expand(shape) for i in v.index), other or v.changed)
                for found in views.values()
                for v in found
            ]
        ]
    if not op.spec.is_move and op.name not in ("index", "index_select", "roll"):
        return None
    result: list[list[View]] = [[] for _ in outs]
    changed = {v.name for found in views.values() for v in found if v.changed}
    for name in names:
        dims = next(len(v.index) for found in views.values() for v in found if v.name == name)
        moved = []
        for d in range(dims):
            if outs[0].numel() > _LARGE and op.name not in ("permute", "transpose", "t", "numpy_T", "expand"):
                return None

            def to_index(x: Any, name: str = name, d: int = d) -> Any:
                if not isinstance(x, Tensor):
                    return x
                for v in views[id(x)]:
                    if v.name == name:
                        return v.index[d]
                if x.dtype in _INTEGERS and (op.name != "index" or op.watcher.value_of(x) is not None):
                    return _values(op, x)
                if x.dtype in _INTEGERS:  # places that nobody knows, of a dimension that keeps its own
                    return torch.zeros(x.shape, dtype=torch.int64)
                return torch.full((), -1).expand(x.shape)

            args, kwargs = replaced(op.args, to_index), replaced(op.kwargs, to_index)
            out = _call(op, args, kwargs) if not op.name.startswith("masked_fill") else args[0].expand(outs[0].shape)
            moved.append(list(out) if isinstance(out, (list, tuple)) else [out])
        for number in range(len(outs)):
            result[number].append(View(name, tuple(squash(m[number]) for m in moved), name in changed))
    return result
