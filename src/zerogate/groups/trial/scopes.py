"""Scopes: which widths the code of a module that gives sizes as numbers can see, and so could take for each other."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from zerogate.groups.ops import Family
from zerogate.groups.recording.record import Recording, Step
from zerogate.groups.trial.size_arguments import SizeArguments
from zerogate.modules.index import modules_around, owner_of
from zerogate.structure import SizePlace, Structure


class Scopes:
    """Which dimensions the code of each module can see that gives sizes as numbers: its own, and those of modules around it,
    from which it may have been given a number. In labels, of one recording."""

    def __init__(self, recording: Recording, arguments: SizeArguments) -> None:
        self._recording, self._arguments = recording, arguments
        self._ends: list[tuple[Tensor, Tensor]] = []
        """For each dimension the first and the last label of each of its rows, [n]; the same where rows have one label."""
        self._known: dict[object, int] = {}
        self._of_tensor: dict[int, tuple[Tensor, list[int]]] = {}
        self._seen: list[tuple[int, int, int]] = []
        """Number of a scope, of a dimension, and how far around the module that is: 0 in its own code, 1 in that of the
        module that holds it, 2 beyond."""
        self._given: dict[str, list[Step]] = defaultdict(list)
        """Module that gives sizes → its steps that are given any."""
        for step in recording.steps:
            spec = step.spec
            if spec.family is Family.FACTORY or (spec.is_move and (spec.sizes or spec.spreads)):
                self._given[step.module].append(step)
        own = self._own()
        for scope, module in enumerate(self._given):
            for distance, path in enumerate(modules_around(module)):
                self._seen += [(scope, dim, min(distance, 2)) for dim in own[path]]
        self._scopes = len(self._given)
        self._attributes: set[SizePlace] = set()

    def __bool__(self) -> bool:
        return bool(self._seen)

    def add_attributes(self) -> bool:
        """Adds a scope for each size attribute that the code of several modules may read: all that its number counts there.

        Returns whether there are any that were not known.
        """
        new = [key for key in self._recording.size_attributes if key not in self._attributes]
        self._attributes.update(new)
        before = self._scopes
        for module, attribute, entry in new:
            readers = [m for m in self._given if not module or m == module or m.startswith(f"{module}.")]
            if len(readers) < 2:
                continue
            size = len(self._recording.size_attributes[module, attribute, entry].rows)
            counted = [a.rows for m in readers for s in self._given[m] for a in self._arguments.of(s) if a.size == size]
            dims = {self._dimension(id(rows), rows[:, 0], rows[:, -1]) for rows in counted}
            self._seen += [(self._scopes, dim, 0) for dim in dims]
            self._scopes += 1
        return self._scopes > before

    def dimensions(self, structure: Structure) -> tuple[Tensor, Tensor, Tensor]:
        """In units: the unit at each place of each dimension, −1 where it stays or follows from several; the number of its
        dimension; and of all that is seen anywhere the scope, the dimension and how far around, [3, n]."""
        firsts, lasts = (structure.unit_of[torch.cat(ends)] for ends in zip(*self._ends, strict=True))
        lengths = torch.tensor([len(first) for first, _ in self._ends])
        number = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        return torch.where(firsts == lasts, firsts, -1), number, torch.tensor(self._seen).T

    def in_use(self, structure: Structure) -> list[bool]:
        """Of which scopes the module gives a size of what can be removed, or makes tensors, whatever these meet."""
        given = [
            any(
                step.spec.family is Family.FACTORY
                or any((structure.unit_of[size.rows] >= 0).any() for size in self._arguments.of(step))
                for step in steps
            )
            for steps in self._given.values()
        ]
        return given + [True] * (self._scopes - len(given))

    def _own(self) -> dict[str, set[int]]:
        """Dimensions of what each module's own code handles, of modules that give sizes and those around them."""
        relevant = {around for module in self._given for around in modules_around(module)}
        own: dict[str, set[int]] = {module: set() for module in relevant}
        for step in self._recording.steps:
            if step.module in relevant:
                for labels in step.entering:
                    own[step.module].update(self._dimensions(labels))
        for module, given in self._recording.module_inputs.items():
            parent = owner_of(module)
            for reader in {module, parent} & relevant:
                for labels in given:
                    own[reader].update(self._dimensions(labels))
        return own

    def _dimensions(self, labels: Tensor) -> list[int]:
        """Numbers of the dimensions along which labels vary."""
        known = self._of_tensor.get(id(labels))
        if known is None:
            start, shape, stride = labels.storage_offset(), labels.shape, labels.stride()
            vary = [(n, step) for n, step in zip(shape, stride, strict=True) if n > 1 and step and labels.numel()]
            end = start + sum([(n - 1) * step for n, step in vary])
            found = []
            for n, step in vary:
                key = labels.data_ptr(), n, step, end
                if key not in self._known:
                    first = labels.as_strided((n,), (step,), start)
                    last = first if len(vary) == 1 else labels.as_strided((n,), (step,), end - (n - 1) * step)
                    self._dimension(key, first, last)
                found.append(self._known[key])
            known = self._of_tensor[id(labels)] = labels, found
        return known[1]

    def _dimension(self, key: object, first: Tensor, last: Tensor) -> int:
        """The number of a dimension, given the first and the last label of each row along it."""
        if key not in self._known:
            self._known[key] = len(self._ends)
            self._ends.append((first, last))
        return self._known[key]
