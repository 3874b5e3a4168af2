"""Trial runs: a copy of the model is cut to some of its units and run beside the record of the whole one."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property

from torch import Tensor, nn

from zerogate.cutting.cut import cut
from zerogate.cutting.plan import make_plan
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.training_run import in_training_mode
from zerogate.groups.trial.replay import Divergence, replay
from zerogate.groups.trial.scopes import Scopes
from zerogate.groups.trial.size_arguments import SizeArguments
from zerogate.groups.trial.sizes import LabelVectors, Sizes
from zerogate.groups.trial.widths import Widths
from zerogate.groups.units import UnitFilter, find_units, size_attributes_of
from zerogate.modules.copies import quick_copy
from zerogate.modules.index import modules_by_name, named_tensors
from zerogate.modules.run import Inputs
from zerogate.structure import Axis, Structure

CodeLine = tuple[tuple[str, int], str]
"""File and line of the user's code, and what was sought there."""


class Trial:
    """Runs of smaller copies of one model, and what they share.

    Args:
        model: a dense copy as it was recorded.
        inputs: the example inputs.
        recording: of the whole model; what trials find out is entered there.
        allowed: which units the user lets go.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, recording: Recording, allowed: UnitFilter) -> None:
        self.model, self.inputs, self.recording, self.allowed = model, inputs, recording, allowed
        self.arguments = SizeArguments()
        self.in_vain: set[CodeLine] = set()
        """Lines of code for which a search has found nothing: it is not made again in other modules."""
        self.possible: dict[str, int] = {}
        """How many units of each kind a search for units of that kind alone would find at the most, where that was for
        several."""
        self.why_lost = ""
        """Why the first of them were lost."""
        self._cutter = _Cutter()

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """The model's modules by name."""
        return modules_by_name(self.model)

    @cached_property
    def _vectors(self) -> LabelVectors:
        return LabelVectors(self.recording.steps)

    @cached_property
    def _scopes(self) -> Scopes:
        return Scopes(self.recording, self.arguments)

    def sizes(self, structure: Structure, kept: Tensor) -> Sizes:
        """The sizes that a copy with these units, bool [units], must have."""
        return Sizes((structure.unit_of < 0) | kept[structure.unit_of], self._vectors)

    def run(self, structure: Structure, kept: Tensor, sizes: Sizes | None = None) -> Divergence | None:
        """Where and why a copy with these units, bool [units], leaves the record; None if it does not.

        ``sizes``: of these units, where they are known already.
        """
        sizes = self.sizes(structure, kept) if sizes is None else sizes
        for run in self.recording.runs:
            shared = {id(x): x for _, x in named_tensors(self.model)}  # cutting puts others in their place
            small = self._cutter.cut(quick_copy(self.model, shared), structure, kept)
            mode = in_training_mode(small, self.recording) if run.training else nullcontext()
            with mode:
                divergence = replay(small, self.inputs, self.recording, run, sizes, self.arguments)
            if divergence is not None:
                return divergence
        return None

    def find_units(self) -> Structure:
        """The units, after labels have been tied or frozen."""
        return find_units(self.recording, self.allowed)

    def widths(self, structure: Structure, multiple: int = 1) -> Widths:
        """What runs of a copy of that structure keep; see `Widths`."""
        return Widths(structure, self._scopes, multiple)

    def with_size_attributes(self, structure: Structure) -> Structure:
        """The structure with the size attributes that are known by now."""
        return replace(structure, size_attributes=size_attributes_of(self.recording, structure.unit_of))


class _Cutter:
    """Cuts copies of one model. Those that differ in size attributes alone share what is left of their tensors."""

    def __init__(self) -> None:
        self._axes: dict[Axis, Tensor] | None = None
        self._kept: Tensor | None = None
        self._keep: dict[Axis, Tensor] = {}
        """Indices that stay along each axis, for these axes and kept units."""
        self._sliced: dict[str, Tensor] = {}
        """What the tensors have become by that."""

    def cut(self, copy: nn.Module, structure: Structure, kept: Tensor) -> nn.Module:
        """Removes from a copy all but the kept units, bool [units]."""
        same = self._axes is structure.axes and self._kept is kept
        plan = make_plan(copy, structure, kept, self._keep if same else None)
        if not same:
            self._axes, self._kept, self._keep, self._sliced = structure.axes, kept, plan.keep, {}
        return cut(copy, plan, self._sliced)
