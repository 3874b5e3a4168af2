"""Attributes of modules that sizes come from: found by trying, and set to what is kept from then on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from zerogate.groups.limits import DEEPEST_SIZE, MOST_ATTRIBUTES_AT_ONCE, MOST_ATTRIBUTES_TRIED
from zerogate.groups.recording.record import Recording, Step
from zerogate.groups.trial.candidates import MULTIPLES, Form, is_torch_layer, modules_near, numbers_behind, numbers_of
from zerogate.groups.trial.replay import Divergence
from zerogate.groups.trial.size_arguments import SizeArgument, input_sizes, output_sizes
from zerogate.groups.trial.trial import Trial
from zerogate.modules.held_numbers import Entry
from zerogate.modules.index import owner_of
from zerogate.structure import SizeAttribute, SizePlace, Structure


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
    further = _AttributeSearch(trial, structure, kept, divergence).search()
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
        alike = set(map(id, steps_alike(self._recording, self._step)))
        self._alike = [i for i, s in enumerate(self._recording.steps) if id(s) in alike]
        self._near = dict.fromkeys(modules_near(self._step.module, trial.modules), 0)
        if self._raised and divergence.step:
            before = self._recording.steps[divergence.step - 1]
            self._near |= {path: -1 for path in modules_near(before.module, trial.modules) if path not in self._near}
        self._closest = {path for path, behind in self._near.items() if behind}
        self._closest.update([self._step.module, owner_of(self._step.module)])
        """Modules that are searched for multiples, and deeper than the others."""
        self._candidates: list[_Candidate] = []
        self._known: set[tuple[SizePlace, int]] = set()
        """Attributes that are candidates already, and the size that they would have."""
        self._everywhere: dict[int, dict[SizePlace, SizeAttribute]] = {}
        """Number of a candidate → what it means in all modules that run the same line."""
        self._before_all = dict(self._recording.size_attributes)
        self._outcomes: dict[tuple[int, ...], Divergence] = {}
        """Numbers of candidates → where the run diverges with all of them."""

    def search(self) -> Divergence | None:
        """Where the run diverges with what was found; None if nothing was.

        What is likely is tried first: attributes that are a size that the step depends on, then one that any op of its
        module was given, then one of what meets there, and last those of which such a size is a multiple.
        """
        arguments, at = self._trial.arguments, self._divergence.step
        around: list[int] = []
        if self._raised or not self._step.spec.is_move:
            around = [i for i, s in enumerate(self._recording.steps) if s.module == self._step.module and i != at]
        meeting = [at, *around, *([at - 1] if self._raised and at else [])]
        related = [(at, size) for size in arguments.related_sizes(self._step)]
        given = [(i, size) for i in around for size in arguments.of(self._recording.steps[i])]
        for sizes, forms in (
            (related, (Form.EQUAL,)),
            (given, (Form.EQUAL,)),
            ([(i, size) for i in meeting for size in _meeting_sizes(self._recording.steps[i])], (Form.EQUAL,)),
            (related, MULTIPLES),
            (given, MULTIPLES),
        ):
            further = self._try_singly(self._new_candidates(sizes, forms))
            if further is not None:
                return further
        every = range(len(self._candidates))
        return self._together(every) if len(every) <= MOST_ATTRIBUTES_AT_ONCE else None

    @property
    def _raised(self) -> bool:
        """Whether the forward itself raised an error: what it checked may be met just before, or just behind."""
        return self._divergence.call is None

    def _new_candidates(self, sizes: Iterable[tuple[int, SizeArgument]], forms: Sequence[Form]) -> list[int]:
        """Numbers of new candidates: attributes in or around the step's module from which one of these sizes, each with the
        number of its step, follows, and of which the smaller copy has fewer."""
        first = len(self._candidates)
        modules, at = self._trial.modules, self._divergence.step
        for step, size in sizes:
            if self._sizes.count(size.rows) == size.size:
                continue
            for path, behind in self._near.items():
                if forms is MULTIPLES and (path not in self._closest or is_torch_layer(modules.get(path))):
                    continue
                deepest = DEEPEST_SIZE if path in self._closest else 1
                for attribute, entry, number in numbers_of(modules.get(path), deepest):
                    for form in forms:
                        rows = form.rows(size.rows, number)
                        if rows is not None and (form is Form.EQUAL or self._is_pure(rows)):
                            self._add(_Candidate((path, attribute, entry), behind, rows, size, step - at, form), number)
        return list(range(first, len(self._candidates)))

    def _is_pure(self, rows: Tensor) -> bool:
        """Whether all labels of each row go together."""
        units = self._structure.unit_of[rows]
        return bool((units == units[:, :1]).all())

    def _add(self, candidate: _Candidate, number: int) -> None:
        """Makes it a candidate if it is none and the smaller copy has another number."""
        remaining = self._sizes.count(candidate.rows)
        known = candidate.place, remaining
        if remaining != number and known not in self._known and candidate.place not in self._recording.size_attributes:
            self._known.add(known)
            self._candidates.append(candidate)

    def _try_singly(self, new: Sequence[int]) -> Divergence | None:
        """Tries lists whole, then each attribute alone, then all at once."""
        lists: dict[tuple[str, str], list[int]] = {}
        for number in new:
            module, attribute, entry = self._candidates[number].place
            if entry:
                lists.setdefault((module, attribute), []).append(number)
        attempts = [tuple(numbers) for numbers in lists.values() if len(numbers) > 1]
        attempts += [(number,) for number in new]
        further = self._bisect(attempts[:MOST_ATTRIBUTES_TRIED])
        return further or (self._together(new) if 1 < len(new) <= MOST_ATTRIBUTES_AT_ONCE else None)

    def _together(self, numbers: Sequence[int]) -> Divergence | None:
        """Tries all of these at once; leaves those in force that are needed for the run to go on past the step."""
        if len(numbers) < 2 or self._bisect([tuple(numbers)]) is None:
            return None
        needed = list(numbers)
        for number in numbers:
            fewer = [n for n in needed if n != number]
            if fewer and self._try(fewer).step > self._divergence.step:
                needed = fewer
        return self._try(needed)

    def _bisect(self, attempts: Sequence[tuple[int, ...]]) -> Divergence | None:
        """Bisects the attempts; returns where the run diverges with the first that gets past the step, and leaves that one
        in force. If all together change nothing, none does alone."""
        if not attempts:
            return None
        numbers = list(dict.fromkeys(number for attempt in attempts for number in attempt))
        further = self._try(numbers)
        if len(attempts) == 1 and further.step > self._divergence.step:
            return further
        self._recording.size_attributes = dict(self._before_all)
        if len(attempts) == 1 or self._is_the_same(further, numbers):
            return None
        half = (len(attempts) + 1) // 2
        return self._bisect(attempts[:half]) or self._bisect(attempts[half:])

    def _is_the_same(self, further: Divergence, numbers: Sequence[int]) -> bool:
        """Whether a run with these candidates diverged as if nothing had been set: an op was given the same, or the same
        error was raised, which need not state what was compared, and each attribute was tried in a single way."""
        was = self._divergence
        if further.step != was.step or (further.call is None) is not (was.call is None):
            return False
        once = len({self._candidates[number].place for number in numbers}) == len(numbers)
        return further.call == was.call if was.call is not None else once and further.reason == was.reason

    def _try(self, numbers: Sequence[int]) -> Divergence:
        """Where the run diverges with these candidates, which are in force from then on and no others; past all steps, if it
        does not."""
        self._recording.size_attributes = dict(self._before_all)
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

    def _at_all_places(self, candidate: _Candidate) -> dict[SizePlace, SizeAttribute]:
        """The same attribute in all modules of that class that run the same line, or that stand in the same place beside a
        module that does, with the numbers from which copies of these would make it."""
        (module, attribute, _), modules, steps = candidate.place, self._trial.modules, self._recording.steps
        counted = {candidate.place: candidate.rows}
        for i in self._alike:
            near, at = i + candidate.near, i + candidate.offset
            if not 0 <= near < len(steps) or not 0 <= at < len(steps):
                continue
            path = _moved(module, steps[self._divergence.step + candidate.near].module, steps[near].module)
            holder = modules.get(path)
            if path == module or type(holder) is not type(modules[module]):
                continue
            for size in [*self._trial.arguments.related_sizes(steps[at]), *_meeting_sizes(steps[at])]:
                entry = _same_place(candidate, size)
                for name, where, number in numbers_of(holder) if entry is not None else ():
                    rows = candidate.form.rows(size.rows, number)
                    if (name, where) == (attribute, entry) and rows is not None:
                        counted.setdefault((path, name, where), rows)
        return {key: value for place, rows in counted.items() for key, value in self._with_behind(place, rows).items()}

    def _with_behind(self, place: SizePlace, rows: Tensor) -> dict[SizePlace, SizeAttribute]:
        """An attribute that counts these rows, with those from which copies would make it; none where copies would not have
        it."""
        path, attribute, entry = place
        behind = numbers_behind(self._trial.modules[path], attribute, entry, self._sizes.count(rows))
        places = [] if behind is None else [place, *((path, *other) for other in behind)]
        return {key: SizeAttribute(*key, rows) for key in places}


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A number that a size may follow from."""

    place: SizePlace
    near: int
    """How many steps behind the one that diverged that has its module near."""
    rows: Tensor
    """What it counts then, labels [n, m]."""
    size: SizeArgument
    """The size that follows from it, and how many steps behind the one that diverged that has it."""
    offset: int
    form: Form


def _meeting_sizes(step: Step) -> list[SizeArgument]:
    """Sizes of what an op works on and makes."""
    return [*input_sizes(step), *output_sizes(step)]


def _same_place(candidate: _Candidate, size: SizeArgument) -> Entry | None:
    """Where in the same attribute of another module a size is from, if it is the like of the candidate's; else None.

    A list that is passed on as it is held follows in all its places.
    """
    *_, entry = candidate.place
    if size.argument != candidate.size.argument:
        return None
    whole_list = entry and entry == (candidate.size.entry,)
    if whole_list and size.entry is not None:
        return (size.entry,)
    return entry if size.entry == candidate.size.entry else None


def steps_alike(recording: Recording, step: Step) -> list[Step]:
    """Steps of the same op on the same line of code."""
    return [s for s in recording.steps if s.place == step.place and s.name == step.name]


def _moved(path: str, start: str, to: str) -> str:
    """The module that is, seen from module ``to``, where ``path`` is seen from ``start``: around it, or inside of it."""
    if not start.startswith(path):
        return f"{to}.{path[len(start) :].lstrip('.')}".lstrip(".")
    below = start[len(path) :].lstrip(".")
    return to[: len(to) - len(below)].rstrip(".") if below else to
