"""What can be removed from a model: it is recorded, units are found in the record, and trials on copies confirm them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from torch import nn

from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.norms import follow_norms
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
    whole = model if graph is None else graph

    def search(alone: str = "", reason: str = "") -> tuple[Structure, Trial]:
        recording = watch(whole, inputs, label_inputs=label_inputs, choice=choice)
        with kept_rng(model):
            if graph is not None:
                follow_written_sizes(graph, recording)
            structure = find_units(recording, allowed)
            if alone:
                freeze_other_kinds(recording, structure, alone, reason)
                structure = find_units(recording, allowed)
            structure = follow_norms(model, recording, structure, allowed, graph)
            twin = twin_of(whole, meta=False) if recording.twin is None else recording.twin
            trial = Trial(twin, inputs, recording, allowed)
            return _of_both_modes(confirm(trial, structure, multiple), recording), trial

    found, trial = search()
    for kind, units in trial.possible.items():
        if len(trial.possible) > 1 and units > found.units:  # asking for more kinds of unit must not find fewer
            reason = f"more can go where {kind}s go alone; with both, {trial.why_lost}"
            found = max(found, search(kind, reason)[0], key=lambda structure: structure.units)
    return replace(found, choice=choice)


def find_layers(model: nn.Module, inputs: Inputs, exclude: Collection[str] = ()) -> Structure:
    """The structure without trials, for gates on single weights: these change no shape, and no norm.

    Raises `WatchError` where the model cannot be copied, rejects the inputs or returns no tensor.
    """
    recording = watch(model, inputs)
    return _of_both_modes(replace(find_units(recording, UnitFilter(exclude)), norms=()), recording)


def _of_both_modes(structure: Structure, recording: Recording) -> Structure:
    """The structure, which says what is known of training mode."""
    apart = any(run.training for run in recording.runs)
    return replace(structure, trains_apart=apart, unseen_training=recording.unseen_training)
