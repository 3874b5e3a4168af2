"""Attributes of modules that sizes come from: found by trying, and set to what is kept from then on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from zerogate.groups.limits import MOST_ATTRIBUTES_AT_ONCE, MOST_ATTRIBUTES_TRIED
from zerogate.groups.recording.record import Recording, Step
from zerogate.groups.trial.candidates import attributes_equal_to, modules_near
from zerogate.groups.trial.replay import Divergence
from zerogate.groups.trial.size_arguments import SizeArgument
from zerogate.groups.trial.trial import Trial
from zerogate.structure import SizeAttribute, Structure

Key = tuple[str, str, int | None]
"""Module, attribute, and place in it where it is a tuple or list."""


def find_size_attribute(trial: Trial, structure: Structure, kept: Tensor, divergence: Divergence) -> Divergence | None:
    """Looks for the attribute that a diverging step took its size from: one that lets the run go on past it.

    It is entered in the recording, for all places where the same line runs. Returns where the run diverges then (past all
    steps, if it does not), or None where there is no such attribute.
    """
    steps = trial.recording.steps
    if divergence.step >= len(steps):
        return None
    step = steps[divergence.step]
    line = step.place, step.name
    if line in trial.in_vain:
        return None
    search = _AttributeSearch(trial, structure, kept, divergence)
    further = search.of_step()
    if further is None and not step.spec.is_move:
        further = search.of_module()
    if further is None:
        trial.in_vain.add(line)
    return further


class _AttributeSearch:
    """Tries attributes, singly and together, for one step at which a run diverged.

    Attributes that are tried count the rows of labels that the step's own size counts. Those of one list are tried
    together first, then each alone, by bisection.
    """

    def __init__(self, trial: Trial, structure: Structure, kept: Tensor, divergence: Divergence) -> None:
        self._trial, self._structure, self._kept, self._divergence = trial, structure, kept, divergence
        self._recording = trial.recording
        self._step = self._recording.steps[divergence.step]
        self._sizes = trial.sizes(structure, kept)
        self._alike = steps_alike(self._recording, self._step)
        self._candidates: list[SizeAttribute] = []
        self._known: set[tuple[Key, int]] = set()
        """Attributes that are candidates already, and the size that they would have."""
        self._everywhere: dict[int, dict[Key, SizeAttribute]] = {}
        """Number of a candidate → what it means in all modules that run the same line."""
        self._outcomes: dict[tuple[int, ...], Divergence] = {}
        """Numbers of candidates → where the run diverges with all of them."""

    def of_step(self) -> Divergence | None:
        """The search among attributes with one of the sizes that the step depends on."""
        return self._search(self._new_candidates(self._trial.arguments.related_sizes(self._step)))

    def of_module(self) -> Divergence | None:
        """The search among attributes with one of the sizes that any op in the same module was given."""
        new: list[int] = []
        arguments = self._trial.arguments
        for other in self._recording.steps:
            if other.module == self._step.module:
                is_same = other is self._step
                new += self._new_candidates(arguments.related_sizes(other) if is_same else arguments.of(other))
        return self._search(new)

    def _new_candidates(self, sizes: Sequence[SizeArgument]) -> list[int]:
        """Numbers of new candidates: attributes in or around the step's module that have one of these sizes, of which the
        smaller copy has fewer."""
        first = len(self._candidates)
        modules = self._trial.modules
        for size in sizes:
            remaining = self._sizes.count(size.rows)
            if remaining == size.size:
                continue
            for path in modules_near(self._step.module, modules):
                for attribute, entry in attributes_equal_to(size.size, modules.get(path)):
                    key = path, attribute, entry
                    if (key, remaining) not in self._known and key not in self._recording.size_attributes:
                        self._known.add((key, remaining))
                        self._candidates.append(SizeAttribute(*key, size.rows))
        return list(range(first, len(self._candidates)))

    def _search(self, new: Sequence[int]) -> Divergence | None:
        """Tries lists whole, then each attribute alone, then all at once."""
        lists: dict[tuple[str, str], list[int]] = {}
        for number in new:
            candidate = self._candidates[number]
            if candidate.entry is not None:
                lists.setdefault((candidate.module, candidate.attribute), []).append(number)
        attempts = [tuple(numbers) for numbers in lists.values() if len(numbers) > 1]
        attempts += [(number,) for number in new]
        further = self.bisect(attempts[:MOST_ATTRIBUTES_TRIED])
        if further is None and 1 < len(new) <= MOST_ATTRIBUTES_AT_ONCE:
            further = self.bisect([tuple(new)])
        return further

    def bisect(self, attempts: Sequence[tuple[int, ...]]) -> Divergence | None:
        """Bisects the attempts; returns where the run diverges with the first that gets past the step, and leaves that one
        in force. If all together change nothing, none does alone."""
        if not attempts:
            return None
        before = dict(self._recording.size_attributes)
        numbers = list(dict.fromkeys(number for attempt in attempts for number in attempt))
        further = self._try(numbers)
        if len(attempts) == 1 and further.step > self._divergence.step:
            return further
        self._recording.size_attributes = before
        same_call = further.call == self._divergence.call is not None
        if len(attempts) == 1 or (further.step == self._divergence.step and same_call):
            return None
        half = (len(attempts) + 1) // 2
        return self.bisect(attempts[:half]) or self.bisect(attempts[half:])

    def _try(self, numbers: Sequence[int]) -> Divergence:
        """Where the run diverges with these candidates, which are in force from then on; past all steps, if it does not."""
        for number in numbers:
            if number not in self._everywhere:
                self._everywhere[number] = self._at_all_places(self._candidates[number])
            self._recording.size_attributes.update(self._everywhere[number])
        key = tuple(sorted(numbers))
        if key not in self._outcomes:
            structure = self._trial.with_size_attributes(self._structure)
            diverges = self._trial.run(structure, self._kept, self._sizes)
            self._outcomes[key] = diverges or Divergence(len(self._recording.steps) + 1, "")
        return self._outcomes[key]

    def _at_all_places(self, candidate: SizeAttribute) -> dict[Key, SizeAttribute]:
        """The same attribute in all modules of that class that run the same line, or that stand in the same place beside a
        module that does."""
        everywhere: dict[Key, SizeAttribute] = {(candidate.module, candidate.attribute, candidate.entry): candidate}
        sizes = self._trial.arguments.related_sizes(self._step)
        own = next((s for s in sizes if s.rows is candidate.rows or torch.equal(s.rows, candidate.rows)), None)
        if own is None:
            return everywhere
        modules = self._trial.modules
        for other in self._alike:
            path = _moved(candidate.module, self._step.module, other.module)
            holder = modules.get(path)
            if path == candidate.module or type(holder) is not type(modules[candidate.module]):
                continue
            for size in self._trial.arguments.related_sizes(other):
                # a list that is passed on as it is held follows in all its places
                whole_list = candidate.entry is not None and candidate.entry == own.entry
                entry = size.entry if whole_list else candidate.entry
                same = size.argument == own.argument and (size.entry == own.entry or entry == size.entry)
                if same and (candidate.attribute, entry) in attributes_equal_to(size.size, holder):
                    key = path, candidate.attribute, entry
                    everywhere.setdefault(key, SizeAttribute(*key, size.rows))
        return everywhere


def steps_alike(recording: Recording, step: Step) -> list[Step]:
    """Steps of the same op on the same line of code."""
    return [s for s in recording.steps if s.place == step.place and s.name == step.name]


def _moved(path: str, start: str, to: str) -> str:
    """The module that is, seen from module ``to``, where ``path`` is seen from ``start``: around it, or inside of it."""
    if not start.startswith(path):
        return f"{to}.{path[len(start) :].lstrip('.')}".lstrip(".")
    below = start[len(path) :].lstrip(".")
    return to[: len(to) - len(below)].rstrip(".") if below else to
