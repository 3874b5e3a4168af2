"""What can really be removed: copies are cut at random and run beside the record until one is followed to its end.

Where a run leaves the record, the attribute that its size came from follows from then on; else what the op works on is tied
to something that the forward takes its size from; else it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.groups.labels import labels_in, narrow_constant, squash, varying_dims
from zerogate.groups.recording.parameters import located
from zerogate.groups.recording.record import Recording, Step
from zerogate.groups.recording.tracer import tensors_among
from zerogate.groups.trial.replay import Stop, Trial
from zerogate.groups.trial.size_arguments import demands
from zerogate.groups.trial.size_attributes import alike_to, holders, inside_of, repair, upwards
from zerogate.groups.units import size_attributes_of
from zerogate.modules.index import modules_by_name
from zerogate.structure import Structure


def settle(trial: Trial, structure: Structure, build: Callable[[], Structure], step: int = 1) -> Structure:
    """The structure of what can really be removed.

    Args:
        trial: what trial runs need.
        structure: of what has been seen.
        build: makes it anew.
        step: of groups of channels, multiples of it are kept.
    """
    seen, passed = trial.seen, 0
    generator = torch.Generator().manual_seed(0)
    while structure.units:
        seen.name_moved()
        kept = _some(structure, generator, step)
        stop = trial.run(structure, kept)
        while stop is not None and (further := repair(trial, structure, kept, stop)) is not None:
            structure = replace(structure, size_attributes=size_attributes_of(seen, structure.unit_of))
            stop = None if further.step > len(seen.steps) else further
        if stop is None:
            passed += 1
            # a number may be right by chance, where it could be that of another group
            if passed > 1 or not _mistakable(structure, kept, seen.steps):
                break
            continue
        passed = 0
        tied = _tie(trial, structure, build, stop)
        if tied is None:
            _give_up(trial, structure, kept, stop)
            tied = build()
        structure = tied
    return structure


def _some(structure: Structure, generator: torch.Generator, step: int = 1) -> Tensor:
    """A random part of each group that can shrink, never nothing of it; of groups of one size not the same number one
    after another."""
    kept = torch.ones(structure.units, dtype=torch.bool)
    given: dict[int, int] = {}
    for group in structure.groups:
        n = group.units
        if n > 1 and group.slice.start not in structure.inputs:  # selecting inputs is an op more
            turn = given[n] = given.get(n, -1) + 1
            turn %= n - 1
            left = (n + (turn + 1 if turn % 2 else -turn)) // 2  # n/2, n/2 + 1, n/2 − 1, …
            if step > 1 and group.kind == "channel":
                left = -(-left // step) * step  # rounded up, unless that is all of it
                left = min(left, max((n - 1) // step * step, step if n > step else n))
            kept[group.slice] = False
            kept[group.slice.start + torch.randperm(n, generator=generator)[:left]] = True
    return kept


def _mistakable(structure: Structure, kept: Tensor, steps: list[Step]) -> bool:
    """Whether in any module that gives sizes as numbers two groups of one size keep equally many."""
    group = structure.group_of_unit
    left = torch.zeros(len(structure.groups), dtype=torch.int64).index_add_(0, group, kept.long()).tolist()
    everywhere = [(g.units, n) for g, n in zip(structure.groups, left, strict=True) if g.units > 2]
    if len(set(everywhere)) == len(everywhere):
        return False
    met: dict[str, set[int]] = {}
    for step in steps:
        if not step.spec.is_move or not demands(step):
            continue
        units = structure.unit_of[_among(step.entering)]
        met.setdefault(step.module, set()).update(group[units[units >= 0]].unique().tolist())
    for groups in met.values():
        sizes = [(structure.groups[g].units, left[g]) for g in groups if structure.groups[g].units > 2]
        if len(set(sizes)) < len(sizes):
            return True
    return False


def _tie(trial: Trial, structure: Structure, build: Callable[[], Structure], stop: Stop) -> Structure | None:
    """Ties what a step works on to something else, place by place, where that lets the run go on past it.

    Either to what an attribute counts already: a number of heads that is used for two things goes on being right if both
    always lose the same places. Or to what its module was given: ``B, N, C = x.shape; … .reshape(B, N, C)`` gives the
    result the width of the input.
    """
    seen = trial.seen
    if stop.step >= len(seen.steps):
        return None
    step = seen.steps[stop.step]
    widths = f"tie {_wide(step)}"
    if (step.place, widths) in seen.unrepairable:
        return None
    alike = [s for s in alike_to(seen, step) if _wide(s) == _wide(step)]
    modules = modules_by_name(trial.model)
    counted = dict.fromkeys(pair for pair, _ in _counted(seen, modules, step))
    state, repairs = seen.labels.state(), dict(seen.size_attributes)
    for pair in [*counted, None]:
        changes = seen.labels.changes
        for other in alike:
            if pair is not None:
                for found, (mine, rows) in _counted(seen, modules, other):
                    if found == pair:
                        seen.labels.unite(mine.amax(1), rows.amax(1))
                continue
            for mine in tensors_among([other.entering, [found for _, found in other.outs]]):
                for given in seen.module_inputs.get(other.module, ()):
                    if (structure.unit_of[labels_in(given)] >= 0).all():
                        _tie_places(seen, mine, given)
        if seen.labels.changes != changes:
            tied = build()
            seen.name_moved()
            if tied.units and (tied.unit_of[_among(step.entering, [found for _, found in step.outs])] >= 0).any():
                for seed in (1, 2, 3):  # a draw may meet what is wrong further up, and right by chance in others
                    kept = _some(tied, torch.Generator().manual_seed(seed))
                    further = trial.run(tied, kept)
                    if further is None or further.step >= stop.step:
                        break
                if further is not None and further.step == stop.step:
                    seen.unrepairable.discard((step.place, step.name))
                    further = repair(trial, tied, kept, further) or further
                if further is None or further.step > stop.step:
                    return replace(tied, size_attributes=size_attributes_of(seen, tied.unit_of))
        seen.labels.restore(state)
        seen.size_attributes = dict(repairs)
    seen.unrepairable.add((step.place, widths))
    return None


def _counted(
    seen: Recording, modules: dict[str, nn.Module], step: Step
) -> Iterator[tuple[tuple[int, str, int | None], tuple[Tensor, Tensor]]]:
    """Attributes that have the size that a step was given but count something else already: how far up from its module
    each is, its name and entry, and the rows of labels of both."""
    for size, rows, *_ in demands(step):
        for up, path in enumerate([*upwards(step.module), *inside_of(modules, step.module)]):
            for attribute, entry in holders(modules.get(path), size):
                held = seen.size_attributes.get((path, attribute, entry))
                if held is not None and len(held.rows) == len(rows) and not torch.equal(held.rows, rows):
                    yield (up, attribute, entry), (rows, held.rows)


def _wide(step: Step) -> list[tuple[int, ...]]:
    """How wide what a step works on is, along the dimensions of its channels; alike in blocks of one width."""
    return [tuple(x.shape[d] for d in varying_dims(squash(x))) for x in step.entering]


def _tie_places(seen: Recording, mine: Tensor, given: Tensor) -> None:
    (mine,), (given,) = narrow_constant(mine), narrow_constant(given)
    if given.numel() > 1 and mine.numel() % given.numel() == 0 and sum(n > 1 for n in given.shape) == 1:
        seen.labels.unite(mine.reshape(-1, given.numel()), given.reshape(1, -1))


def _give_up(trial: Trial, structure: Structure, kept: Tensor, stop: Stop) -> None:
    """Freezes what the step works on, or what its module was given, or both: whatever lets the run go on if it stays whole.
    The same is frozen wherever that line runs."""
    seen = trial.seen
    steps, groups = seen.steps, structure.group_of_unit
    step = steps[min(stop.step, len(steps) - 1)]
    before = steps[max(0, stop.step - 3) : stop.step + 1]

    def working(at: Step) -> Tensor:
        return _among(at.entering, [found for _, found in at.outs])

    def given(at: Step) -> Tensor:
        return _among(seen.module_inputs.get(at.module, []))

    def around(at: Step) -> Tensor:
        near = [s for s in steps if s.module == at.module] + (before if at is step else [])
        return _among([working(s) for s in near])

    choices: list[tuple[Callable[[Step], Tensor], ...]] = [
        (working,),
        (given,),
        (working, given),
        (working, given, around),
    ]
    for choice in choices:
        units = structure.unit_of[torch.cat([what(step) for what in choice])]
        hit = groups[units[units >= 0]].unique()
        if not len(hit):
            continue
        whole = kept | torch.isin(groups, hit)
        further = None if whole.all() else trial.run(structure, whole)
        if further is None or further.step > stop.step:
            for s in steps:
                if s is step or (
                    s.place[1]
                    and s.place == step.place
                    and s.name == step.name
                    and s.spec.is_move
                    and _wide(s) == _wide(step)
                ):
                    reason = located(stop.why, s.module, s.place)
                    seen.labels.freeze(torch.cat([what(s) for what in choice]), reason)
            return
    seen.labels.freeze((structure.unit_of >= 0).nonzero().flatten(), stop.why)


def _among(*labels: Any) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *(labels_in(x) for x in tensors_among(labels))])
