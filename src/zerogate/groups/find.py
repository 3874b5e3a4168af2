"""What can be removed from a model: it is recorded, units are found in the record, and trials on copies confirm them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import nn

from zerogate.cutting.plain_layers import plain_copy
from zerogate.groups.graph.from_export import exported
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.norms import follow_norms
from zerogate.groups.plain import in_use, made_plain, plain_layers
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.record_run import watch
from zerogate.groups.recording.twin import twin_of
from zerogate.groups.trial.confirm import confirm
from zerogate.groups.trial.trial import Trial
from zerogate.groups.trial.written_sizes import follow_written_sizes
from zerogate.groups.units import UnitFilter, find_units, freeze_other_kinds
from zerogate.modules.outputs import ALL_OUTPUTS, OutputChoice
from zerogate.modules.run import Inputs, kept_rng
from zerogate.structure import Structure


def find_groups(
    model: nn.Module,
    inputs: Inputs,
    allowed: UnitFilter,
    *,
    label_inputs: bool = False,
    multiple: int = 1,
    graph: GraphModel | None = None,
    choice: OutputChoice = ALL_OUTPUTS,
) -> Structure:
    """The structure of all units that the model's own forward, or that of its graph, can do without.

    Args:
        model: any module; copies of it run.
        inputs: example inputs of its forward.
        allowed: which units the user lets go.
        label_inputs: whether the network's inputs may go, too.
        multiple: widths that are tried are multiples of it.
        graph: of the model, where the graph is what will be cut.
        choice: which of the outputs count; the others may change their shapes.

    Raises `WatchError` where the model cannot be copied, rejects the inputs or returns no tensor.
    """
    search = _Search(model, inputs, allowed, label_inputs, multiple, choice)
    given: nn.Module = model if graph is None else graph
    first = search.record(given)
    plain = plain_layers(model, first, allowed.exclude)
    recording: Recording | None = first
    while True:
        whole = given
        if plain:
            whole, recording = plain_copy(model, plain), None
            if graph is not None:
                whole = exported(whole, inputs)
        found = search.run(whole, recording)
        used = in_use(found, plain)
        if len(used) == len(plain):
            return replace(made_plain(found, plain), choice=choice)
        plain, recording = used, None


@dataclass(frozen=True)
class _Search:
    """A search for units, with the arguments of `find_groups`."""

    model: nn.Module
    inputs: Inputs
    allowed: UnitFilter
    label_inputs: bool
    multiple: int
    choice: OutputChoice

    def record(self, whole: nn.Module) -> Recording:
        """The record of the model, of a copy of it with plain layers, or of its graph."""
        return watch(whole, self.inputs, label_inputs=self.label_inputs, choice=self.choice)

    def run(self, whole: nn.Module, recording: Recording | None) -> Structure:
        """The units that are found in what `record` takes; ``recording``: of it, where there is one already."""
        found, trial = self._units(whole, recording)
        for kind, units in trial.possible.items():
            if len(trial.possible) > 1 and units > found.units:  # asking for more kinds of unit must not find fewer
                reason = f"more can go where {kind}s go alone; with both, {trial.why_lost}"
                found = max(found, self._units(whole, None, kind, reason)[0], key=lambda structure: structure.units)
        return found

    def _units(
        self, whole: nn.Module, recording: Recording | None, alone: str = "", reason: str = ""
    ) -> tuple[Structure, Trial]:
        """``alone``: a kind of unit; the others stay, for this reason."""
        graph = whole if isinstance(whole, GraphModel) else None
        if recording is None:
            recording = self.record(whole)
            plain_layers(self.model, recording, self.allowed.exclude)  # says of those that are left why they stay
        with kept_rng(self.model):
            if graph is not None:
                follow_written_sizes(graph, recording)
            structure = find_units(recording, self.allowed)
            if alone:
                freeze_other_kinds(recording, structure, alone, reason)
                structure = find_units(recording, self.allowed)
            structure = follow_norms(self.model, recording, structure, self.allowed, graph)
            twin = twin_of(whole, meta=False) if recording.twin is None else recording.twin
            trial = Trial(twin, self.inputs, recording, self.allowed)
            return _of_both_modes(confirm(trial, structure, self.multiple), recording), trial


def find_layers(model: nn.Module, inputs: Inputs, exclude: Collection[str] = ()) -> Structure:
    """The structure without trials, for gates on single weights: these change no shape, and no norm.

    Raises `WatchError` where the model cannot be copied, rejects the inputs or returns no tensor.
    """
    recording = watch(model, inputs)
    plain = plain_layers(model, recording, exclude)
    if plain:
        recording = watch(plain_copy(model, plain), inputs)
        plain_layers(model, recording, exclude)
    structure = made_plain(replace(find_units(recording, UnitFilter(exclude)), norms=()), plain)
    return _of_both_modes(structure, recording)


def _of_both_modes(structure: Structure, recording: Recording) -> Structure:
    """The structure, which says what is known of training mode."""
    apart = any(run.training for run in recording.runs)
    return replace(structure, trains_apart=apart, unseen_training=recording.unseen_training)
