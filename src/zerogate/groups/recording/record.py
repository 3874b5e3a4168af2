"""The record of a model's runs, in labels; `units` reads the groups off it."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zerogate.groups.arguments import Args, AtenOp, Kwargs, Place, bind, scalars_among
from zerogate.groups.label_tensors import drop_expanded, varying_dims
from zerogate.groups.labels import Labels
from zerogate.groups.ops import OpSpec, spec_of
from zerogate.groups.recording.decisions import Decision
from zerogate.groups.recording.shape_cache import ShapeCache
from zerogate.groups.recording.sources import Source
from zerogate.modules.copies import like
from zerogate.modules.outputs import ALL_OUTPUTS, OutputChoice
from zerogate.modules.run import Inputs, holds_numbers
from zerogate.structure import Axis, LayerCall, Norm, PlainLayer, SizeAttribute, SizePlace

NOT_ALWAYS = "{} is used with and without removable channels"

ResultLabels = Tensor | list[Tensor] | None
"""Labels of a result: one tensor of its shape; None where nothing of it can be removed; a list where there are several
sheets of labels, or, for a parameter that was moved, with the labels along each of its dimensions."""


@dataclass(frozen=True)
class SliceConstraint:
    """Labels of a tensor of which only whole slices along one dimension can be removed."""

    labels: Tensor
    reason: str
    """Why those stay that are no slices, with module and line."""
    name: str = ""
    """A parameter that is sliced with it."""
    dims: tuple[int, ...] = ()
    """Which dimension of the parameter lies along each dimension of the labels; −1 where none does."""
    index: Tensor | None = None
    """Which of the parameter's places lies at each place of the labels, along the dimension that is not −1; None: the
    same."""
    size: int = 0
    """Places of the parameter along that dimension."""


@dataclass(eq=False)
class Step:
    """One call of an ATen op, without tensors, and the labels that entered and left."""

    name: str
    module: str
    """Innermost module whose forward was running; "" is the root."""
    place: Place
    func: AtenOp
    args: Args
    """Positional arguments, None in place of tensors; ``kwargs`` likewise."""
    kwargs: Kwargs
    entering: list[Tensor]
    """Labels of the operands that have any."""
    outs: list[tuple[tuple[int, ...], ResultLabels]]
    """Shape and labels of each result; `Recording.label_moved_parameters` fills in those of moved parameters."""
    node: str = ""
    """Where the model is an exported graph, the name of the node that ran it."""
    sources: list[Source] = field(default_factory=list)
    """Where each of its tensors came from."""
    decision: Decision | None = None
    """In a run with data, what it has decided by numbers."""

    def bound(self) -> Kwargs:
        """All arguments by name."""
        return bind(self.func, self.args, self.kwargs)

    @cached_property
    def spec(self) -> OpSpec:
        """What is known of the op."""
        return spec_of(self.func)

    @cached_property
    def scalars(self) -> list[bool | int | float | str]:
        """All numbers and words among the arguments, in order."""
        return scalars_among((self.args, self.kwargs))


@dataclass
class MovedParameter:
    """A result of a step that holds entries of parameters alone."""

    step: int
    result: int
    """Its place among the step's results."""
    index: list[tuple[str, tuple[Tensor, ...]]]
    """Parameters, and where along each of their dimensions the entries of the result lie."""


@dataclass(frozen=True)
class RecordedRun:
    """One run of the model, and which steps are its own."""

    training: bool
    """Whether it ran in training mode."""
    start: int
    """Number of its first step."""
    stop: int
    """Number of the step after its last."""
    outputs: list[tuple[int, ...]]
    """Shapes of the tensors that it returned."""


@dataclass
class Recording:
    """What a run in evaluation mode has shown, and one in training mode where that does other things. Rules add to it
    through `groups.rules.protocol.RuleContext`; trials tie and freeze more labels."""

    meta: bool = True
    """Whether the model ran on the meta device."""
    labels: Labels = field(default_factory=Labels)
    axes: dict[Axis, Tensor] = field(default_factory=dict)
    """Labels along dimensions of parameters and buffers, [size]; see `attach`."""
    constants: dict[str, torch.Size] = field(default_factory=dict)
    """Shapes of tensors of one value everywhere, which factories have made. They have axes as parameters do, by these
    names."""
    parameter_sources: set[Axis] = field(default_factory=set)
    """Axes of parameters that are themselves activations (class tokens, queries)."""
    calls: list[LayerCall] = field(default_factory=list)
    """Every run of a layer, in order."""
    repeated: dict[int, Tensor] = field(default_factory=dict)
    """Number of a call that runs once for each channel of its input → labels of these channels, of the input's shape."""
    inputs: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    """Labels of the network's own inputs, if they are asked for."""
    unfollowed: dict[str, str] = field(default_factory=dict)
    """Tensors that some op reads in a way that cannot be followed → why; nothing is cut from them."""
    slice_constraints: list[SliceConstraint] = field(default_factory=list)
    head_labels: list[Tensor] = field(default_factory=list)
    """Labels that a product of two activations sums together."""
    norms: list[Norm] = field(default_factory=list)
    """Modules that are to normalise over the kept ones of their channels."""
    size_attributes: dict[SizePlace, SizeAttribute] = field(default_factory=dict)
    """Module, attribute, and place in it → what it counts."""
    attention: dict[str, dict[str, bool]] = field(default_factory=dict)
    """`nn.MultiheadAttention` modules and how they are called."""
    at_least: list[tuple[Tensor, int]] = field(default_factory=list)
    """Labels, and how many of them stay, whichever these are."""
    steps: list[Step] = field(default_factory=list)
    """Every op that ran, but for those that only settle a tensor's layout; of all runs, one after the other."""
    runs: list[RecordedRun] = field(default_factory=list)
    read: set[str] = field(default_factory=set)
    """Parameters and buffers that some op was given."""
    idle: set[str] = field(default_factory=set)
    """Modules that hold nothing and do nothing in evaluation mode; they stay in it where the others are trained."""
    unseen_training: str = ""
    """Why it is not known what the model does in training mode; empty where it is."""
    module_inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    """Module → labels of what it was last called with."""
    moved_parameters: list[MovedParameter] = field(default_factory=list)
    places: dict[str, list[tuple[Any, ...]]] = field(default_factory=dict)
    """Tensor → where modules hold it without having registered it."""
    choice: OutputChoice = ALL_OUTPUTS
    """Which of the outputs count."""
    set_by_forward: set[str] = field(default_factory=set)
    """Attributes that state sizes, as ``path.attribute``, and that the run has set."""
    computed: dict[str, tuple[PlainLayer, bool, str]] = field(default_factory=dict)
    """Module that computes the weight of a layer from parameters alone → the plain layer that this is, if it runs nothing
    else; whether it does so by torch's weight norm; and where."""
    twin: nn.Module | None = None
    """A copy as it was before the run, to cut and run again; None where it would hold data: it is copied again when it
    is needed."""
    shapes: ShapeCache = field(default_factory=ShapeCache)
    """What ops give on the meta device, for all runs of this model and of its cut copies."""
    constraints_met_at: int = -1
    """`Labels.changes` when all slice constraints were last met."""
    _labelled: tuple[int, int] = (-1, -1)
    """Numbers of axes and of moved parameters when these were last labelled."""

    def continued(self) -> Recording:
        """A recording that holds what this one does, to add another run to; this one stays as it is."""
        further = copy.copy(self)
        for of in fields(self):
            value = getattr(self, of.name)
            if isinstance(value, (list, dict, set)):
                setattr(further, of.name, value.copy())
        further.labels = self.labels.copied()
        for number in {moved.step for moved in self.moved_parameters}:  # their labels are filled in later
            step = self.steps[number]
            further.steps[number] = replace(step, outs=[*step.outs])
        return further

    def end_run(self, first_call: int, outputs: list[tuple[int, ...]]) -> None:
        """Notes that a run has ended: the first is in evaluation mode, a second one in training mode.

        Args:
            first_call: number of its first call of a layer.
            outputs: shapes of what it returned.
        """
        training, start = bool(self.runs), self.runs[-1].stop if self.runs else 0
        if training:
            self._mark_training_calls(first_call)
        self.runs.append(RecordedRun(training, start, len(self.steps), outputs))
        self.label_moved_parameters()

    def _mark_training_calls(self, first: int) -> None:
        """Says that the calls from this number on were made in training mode, and leaves out those that are made in
        evaluation mode likewise."""
        known = {_place(call) for call in self.calls[:first]}
        new = {_place(call): replace(call, training=True) for call in self.calls[first:]}
        self.calls[first:] = [call for place, call in new.items() if place not in known]
        self.repeated = {number: vector for number, vector in self.repeated.items() if number < first}

    def labels_of_inputs(self, sizes: Sequence[int]) -> Sequence[Tensor]:
        """Labels of inputs of so many entries each; the same ones in every run."""
        if not len(self.inputs):
            self.inputs = self.labels.new(sum(sizes))
        return self.inputs.split(list(sizes))

    def attach(self, name: str, dim: int, vector: Tensor) -> None:
        """Says that slices of a parameter or buffer along ``dim`` go with these labels, [size]; a second time with
        other labels ties both, and freezes where one of them holds none."""
        known = self.axes.setdefault((name, dim), vector)
        if known is vector:
            return
        self.labels.unite(known, vector)
        self.freeze_one_sided(known, vector, NOT_ALWAYS.format(name))

    def freeze_one_sided(self, a: Tensor, b: Tensor, reason: str) -> None:
        """Freezes labels of a or b where the other one has none."""
        one_sided = (a == 0) != (b == 0)
        if one_sided.any():
            self.labels.freeze(torch.where(one_sided, torch.maximum(a, b), 0), reason)

    def label_moved_parameters(self) -> None:
        """Fills in labels of results computed from parameters only, once it is known which parameters are sliced."""
        known = len(self.axes), len(self.moved_parameters)
        if self._labelled == known:
            return
        self._labelled = known
        for moved in self.moved_parameters:
            outs = self.steps[moved.step].outs
            shape, _ = outs[moved.result]
            outs[moved.result] = shape, self._labels_of_moved(shape, moved)

    def _labels_of_moved(self, shape: tuple[int, ...], moved: MovedParameter) -> list[Tensor] | None:
        by_dims: dict[tuple[int, ...], Tensor] = {}  # parameters that were concatenated share their dimension
        for name, index in moved.index:
            for d, places in enumerate(index):
                axis = self.axes.get((name, d))
                if axis is not None and axis.any():
                    (narrow,) = drop_expanded(places)
                    labels = torch.where(narrow < 0, 0, axis[narrow.clamp(min=0)]).expand(shape)
                    key = tuple(varying_dims(places))
                    by_dims[key] = torch.where(labels != 0, labels, by_dims[key]) if key in by_dims else labels
        return list(by_dims.values()) or None

    def prepared(self, inputs: Inputs) -> Inputs:
        """Example inputs as a run takes them: on the meta device, but for what holds integers."""

        def prepare(x: object) -> object:
            if not isinstance(x, Tensor):
                return x
            if not self.meta:
                return x.detach().clone()
            # left as it is, so that indexing it with a list does not lose the list's values
            return like(x) if holds_numbers(x) else x.detach().to("cpu", copy=True)

        return tree_map(prepare, inputs)


def _place(call: LayerCall) -> tuple[object, ...]:
    """Which layer reads and makes which channels, and where."""
    return call.layer, call.host, call.weight, call.consumes, call.produces, call.channel_dim
