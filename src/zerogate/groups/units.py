"""What watching a run finds: which slices of which tensors belong to which unit, and who consumes whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from zerogate.groups.labels import along, narrow_constant, squash, varying_dims
from zerogate.groups.recording.record import Recording, SliceConstraint
from zerogate.modules.index import owner_of
from zerogate.structure import KINDS, Axis, Group, LayerCall, SizeAttribute, Structure


def build(
    seen: Recording,
    exclude: Iterable[str] = (),
    include: Collection[str] | None = None,
    kinds: Collection[str] = KINDS,
) -> Structure:
    """Turns a watched run into units and groups.

    Args:
        seen: the run.
        exclude: modules whose channels stay, coming in and going out.
        include: modules that make channels which may go; None for all.
        kinds: kinds of units that are wanted.
    """
    excluded = set(exclude)
    for (tensor, _), vector in [*seen.axes.items()]:
        if owner_of(tensor) in excluded:
            seen.labels.freeze(vector, f"{owner_of(tensor)} is excluded")
        if tensor in seen.unfollowed:
            seen.labels.freeze(vector, seen.unfollowed[tensor])
    _settle_boxes(seen)
    root, (why, reasons) = seen.labels.roots(), seen.labels.reasons()
    names = list(seen.axes)
    lengths = [len(v) for v in seen.axes.values()]
    number = torch.repeat_interleave(torch.arange(len(names)), torch.tensor(lengths, dtype=torch.int64))
    held = root[torch.cat([*seen.axes.values(), torch.empty(0, dtype=torch.int64)])]  # root[0] is 0
    axes = dict(zip(names, held.split(lengths), strict=True)) if names else {}

    consumed = {c.consumes for c in seen.calls if c.consumes}
    produced = {c.produces for c in seen.calls if c.produces} | seen.parameter_sources
    _freeze_inputs(seen, root, axes, produced, why, reasons)
    wanted = [a in produced and (include is None or owner_of(a[0]) in include) for a in names]
    none = torch.zeros(len(root), dtype=torch.bool)

    def on(marked: list[bool]) -> Tensor:
        return none.index_fill(0, held[torch.tensor(marked, dtype=torch.bool)[number]], True)

    present, has_consumer = none.index_fill(0, held, True), on([a in consumed for a in names])
    chosen = on(wanted) if include is not None else ~none
    is_head = none.index_fill(0, root[torch.cat([*seen.head_labels, torch.zeros(1, dtype=torch.int64)])], True)
    free = why < 0
    free[0] = False
    for excuse, stay in (
        ("no layer consumes it", ~has_consumer),
        ("not among the included layers", ~chosen),
        ('its units are heads, which unit="head" gates', is_head if "head" not in kinds else none),
        ('its units are channels, which unit="channel" gates', ~is_head if "channel" not in kinds else none),
    ):
        stay = stay & free & present
        why[stay] = len(reasons)
        reasons.append(excuse)
        free &= ~stay
    groups, unit_of = _grouped(names, number, held, free & present, is_head, produced, consumed)
    inputs = frozenset(unit_of[root[seen.inputs]].tolist()) - {-1}
    stays = ~free
    stays[0] = False
    hit = stays[held]
    first = torch.full((len(names),), len(root)).scatter_reduce(0, number[hit], held[hit], "amin")
    if len(seen.inputs):
        stays[root[seen.inputs]] = False
    axes_hit = number[stays[held]].unique_consecutive()
    refused = {names[i]: reasons[j] for i, j in zip(axes_hit.tolist(), why[first[axes_hit]].tolist(), strict=True)}
    units = unit_of[held]
    remain = set(number[units >= 0].unique_consecutive().tolist())
    held_axes = {a: u for i, (a, u) in enumerate(zip(names, units.split(lengths), strict=True)) if i in remain}
    unit_of = unit_of[root]
    owners = {owner_of(name) for name, _ in held_axes}
    norms = (replace(n, labels=unit_of[n.labels]) for n in seen.norms)
    return Structure(
        held_axes,
        tuple(groups),
        tuple(_repeated(seen, unit_of)),
        inputs,
        refused,
        tuple(n for n in norms if (n.labels >= 0).any()),
        size_attributes_of(seen, unit_of),
        {path: called for path, called in seen.attention.items() if path in owners},
        dict(seen.unfollowed),
        unit_of,
    )


def _repeated(seen: Recording, unit_of: Tensor) -> list[LayerCall]:
    """All calls; those that are made once for each channel with an axis that counts these."""
    calls = list(seen.calls)
    if seen.repeated:
        weights = {c.weight for c in calls}
        axes = {tuple(unit_of[v].tolist()): axis for axis, v in seen.axes.items() if axis[0] in weights}
        for number, vector in seen.repeated.items():
            axis = axes.get(tuple(unit_of[vector].tolist()))
            if axis is not None and (unit_of[vector] >= 0).any():
                calls[number] = replace(calls[number], macs=calls[number].macs / len(vector), repeats=axis)
    return calls


def _grouped(
    names: list[Axis],
    number: Tensor,
    held: Tensor,
    free: Tensor,
    is_head: Tensor,
    produced: set[Axis],
    consumed: set[Axis],
) -> tuple[list[Group], Tensor]:
    """Groups of classes that lie on the same axes equally often, and the unit of each class.

    Args:
        number, held: class ``held[i]`` lies on axis ``names[number[i]]``.
        free, is_head: bool [classes].
    """
    inside = free[held]
    number, held = number[inside], held[inside]
    # a class's axes, as a sum of random numbers: alike only where they are the same
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(-(2**62), 2**62, (len(names),), generator=generator)
    signature = torch.zeros(len(free), dtype=torch.int64).index_add_(0, held, random[number]) + is_head
    classes = torch.zeros(len(free), dtype=torch.bool).index_fill_(0, held, True).nonzero().flatten()
    _, which = signature[classes].unique(return_inverse=True)
    parts = classes[which.argsort(stable=True)].split(which.bincount().tolist()) if len(which) else ()
    of_first: dict[int, list[int]] = {int(part[0]): [] for part in parts}
    first = torch.zeros(len(free), dtype=torch.bool)
    first[list(of_first)] = True
    here = first[held]
    for label, axis in zip(held[here].tolist(), number[here].tolist(), strict=True):
        of_first[label].append(axis)
    groups: list[Group] = []
    unit_of = torch.full((len(free),), -1)
    taken: dict[str, int] = defaultdict(int)
    start = 0
    for members in sorted(parts, key=lambda part: int(part[0])):
        label = int(members[0])
        axes = [names[i] for i in dict.fromkeys(of_first[label])]
        producers = _unique(owner_of(a[0]) for a in axes if a in produced)
        consumers = _unique(owner_of(a[0]) for a in axes if a in consumed)
        name = producers[0] if producers else "input"
        taken[name] += 1
        if taken[name] > 1:
            name = f"{name}#{taken[name]}"
        stop = start + len(members)
        kind = "head" if is_head[label] else "channel"
        groups.append(Group(name, slice(start, stop), producers, consumers, kind))
        unit_of[members] = torch.arange(start, stop)
        start = stop
    return groups, unit_of


def size_attributes_of(seen: Recording, unit_of: Tensor) -> tuple[SizeAttribute, ...]:
    repairs = (replace(r, rows=unit_of[r.rows]) for r in seen.size_attributes.values())
    return tuple(r for r in repairs if (r.rows >= 0).any())


def _settle_boxes(seen: Recording) -> None:
    """Ties labels until whatever can be removed of an activation or parameter is a whole slice of it.

    Where classes are no slices yet, they are made so along the dimension that leaves most of them.
    """
    if seen.settled_at == seen.labels.changes:
        return
    boxes = {
        (b.labels.data_ptr(), b.labels.shape, b.labels.stride(), b.name, b.dims): b for b in seen.slice_constraints
    }
    settled = False
    while not settled:
        settled = True
        root, (why, _) = seen.labels.roots(), seen.labels.reasons()
        root = torch.where(why[root] < 0, root, 0)
        for box in boxes.values():
            (narrow,) = narrow_constant(box.labels)
            labels = squash(root[narrow])
            vary = varying_dims(labels)
            if not vary:
                continue
            rows = [along(labels, d) for d in vary]
            pure = [bool((r == r[:, :1]).all()) for r in rows]
            if any(pure):
                d = pure.index(True)
                if box.name and box.dims[vary[d]] >= 0:
                    settled &= not _attach(seen, root, box, box.dims[vary[d]], rows[d][:, 0])
                continue
            settled = False
            best = max(rows, key=lambda r: int((r != 0).all(1).sum()))
            whole = (best != 0).all(1)
            seen.labels.unite(best[whole], best[whole][:, :1])
            seen.labels.freeze(best[~whole], box.reason)
    seen.settled_at = seen.labels.changes


def _attach(seen: Recording, root: Tensor, box: SliceConstraint, dim: int, vector: Tensor) -> bool:
    """Slices a box's parameter with it; whether that was news."""
    if box.index is not None:
        inside = box.index >= 0
        held = torch.zeros(box.size, dtype=torch.int64)
        held.scatter_reduce_(0, box.index[inside], vector[inside], "amax")
        seen.labels.unite(held[box.index[inside]], vector[inside])
        vector = held
    before = seen.axes.get((box.name, dim))
    if before is not None and torch.equal(root[before], root[vector]):
        return False
    seen.attach(box.name, dim, vector)
    return True


def _freeze_inputs(
    seen: Recording,
    root: Tensor,
    axes: dict[Axis, Tensor],
    produced: set[Axis],
    why: Tensor,
    reasons: list[str],
) -> None:
    """Network inputs can be selected only in front of a layer that is called as a module and tied to nothing else."""
    if not len(seen.inputs):
        return
    consumed = {c.consumes for c in seen.calls}
    made = {label for axis in produced for label in axes[axis].tolist()}
    attached = {label for axis, vector in axes.items() if axis not in consumed for label in vector.tolist()}
    outside = {label for c in seen.calls if c.consumes and c.host != c.layer for label in axes[c.consumes].tolist()}
    stays = (why >= 0).tolist()
    number = len(reasons)
    reasons += [
        "a network input that is added to, or scaled with, what a layer makes",
        "a network input whose consumer's weight is read outside its own forward",
    ]
    for label in root[seen.inputs].unique().tolist():
        tied = label in made or label in attached
        if not stays[label] and (tied or label in outside):
            why[label] = number if tied else number + 1


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
