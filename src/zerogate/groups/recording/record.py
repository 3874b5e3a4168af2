"""The raw record of one watched run, in labels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zerogate.groups.labels import Labels, narrow_constant, varying_dims
from zerogate.groups.ops import OpSpec, bind, spec_of
from zerogate.groups.recording.meta_shapes import like
from zerogate.structure import Axis, LayerCall, Norm, SizeAttribute


@dataclass(frozen=True)
class SliceConstraint:
    """Labels of something that must stay a box: what is removed of it must be whole slices along one dimension."""

    labels: Tensor
    reason: str
    name: str = ""
    """A parameter that is sliced with it."""
    dims: tuple[int, ...] = ()
    """Which dimension of the parameter lies along each dimension of the box; −1 where none does."""
    index: Tensor | None = None
    """Which of the parameter's places lies at each place of the box, along the dimension that is no −1; None: the same."""
    size: int = 0
    """Places of the parameter along that dimension."""


@dataclass(frozen=True)
class Step:
    """One ATen call: what it was given, but for the tensors, and the labels that entered and left."""

    name: str
    module: str
    place: tuple[str, int]
    func: Any
    args: Any
    kwargs: Any
    entering: list[Tensor]
    outs: list[tuple[tuple[int, ...], Any]]
    """Shape and labels of each result: one tensor, None where nothing of it can be removed, or for a parameter that was
    moved a list with the labels along each of its dimensions."""
    node: str = ""
    """Where the model is an exported graph, the name of the node that ran it."""

    @cached_property
    def spec(self) -> OpSpec:
        """What is known of the op."""
        return spec_of(self.func)

    def bound(self) -> dict[str, Any]:
        return bind(self.func, self.args, self.kwargs)

    @cached_property
    def scalars(self) -> list[Any]:
        """All numbers and words among the arguments, in order."""
        return scalars_among((self.args, self.kwargs))


def scalars_among(arguments: Any) -> list[Any]:
    if isinstance(arguments, (list, tuple)):
        return [x for item in arguments for x in scalars_among(item)]
    if isinstance(arguments, dict):
        return scalars_among(list(arguments.values()))
    return [arguments] if isinstance(arguments, (bool, int, float, str)) else []


@dataclass
class Recording:
    meta: bool = True
    """Whether the model runs on the meta device."""
    labels: Labels = field(default_factory=Labels)
    axes: dict[Axis, Tensor] = field(default_factory=dict)
    parameter_sources: set[Axis] = field(default_factory=set)
    """Axes of parameters that are themselves activations (class tokens, queries)."""
    calls: list[LayerCall] = field(default_factory=list)
    repeated: dict[int, Tensor] = field(default_factory=dict)
    """Number of a call that is made once for each channel → labels of these."""
    inputs: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    unfollowed: dict[str, str] = field(default_factory=dict)
    """Tensors that some op without a rule has read, with the reason to give."""
    slice_constraints: list[SliceConstraint] = field(default_factory=list)
    head_labels: list[Tensor] = field(default_factory=list)
    """Labels that a product of two activations sums together."""
    norms: list[Norm] = field(default_factory=list)
    size_attributes: dict[tuple[str, str, int | None], SizeAttribute] = field(default_factory=dict)
    attention: dict[str, dict[str, bool]] = field(default_factory=dict)
    """`nn.MultiheadAttention` modules and how they are called."""
    steps: list[Step] = field(default_factory=list)
    module_inputs: dict[str, list[Tensor]] = field(default_factory=dict)
    """Module → labels of what it was last called with."""
    unrepairable: set[tuple[tuple[str, int], str]] = field(default_factory=set)
    """Lines of code for which no attribute, or no tie, was found."""
    twin: nn.Module | None = None
    """A copy as it was before the run, to cut and run again; None where it holds data and had better be made anew."""
    results: dict[Any, Any] = field(default_factory=dict)
    """What all runs on the meta device share: see `Tracer.results`."""
    vectors: Any = None
    """What a replay counts, once it has been gathered."""
    settled_at: int = -1
    """The state of the labels in which all boxes were found whole."""
    moved_parameters: list[tuple[int, int, list[tuple[str, tuple[Tensor, ...]]]]] = field(default_factory=list)
    """Steps and results that hold parameters alone: their names, and where along each of their dimensions entries lie."""
    _named: int = -1

    def attach(self, name: str, dim: int, vector: Tensor) -> None:
        """Says that slices of a tensor belong to these labels; twice with different labels ties them."""
        known = self.axes.setdefault((name, dim), vector)
        if known is vector:
            return
        self.labels.unite(known, vector)
        lopsided = (known == 0) != (vector == 0)
        if lopsided.any():
            reason = f"{name} is used with and without removable channels"
            self.labels.freeze(torch.where(lopsided, torch.maximum(known, vector), 0), reason)

    def name_moved(self) -> None:
        """Labels of results that hold parameters alone, as far as it is known which of these are sliced."""
        if self._named == len(self.axes):
            return
        self._named = len(self.axes)
        for number, place, views in self.moved_parameters:
            shape, _ = self.steps[number].outs[place]
            self.steps[number].outs[place] = shape, self._labels_in_views(shape, views)
            self.steps[number].__dict__.pop("demands", None)

    def _labels_in_views(
        self, shape: tuple[int, ...], views: list[tuple[str, tuple[Tensor, ...]]]
    ) -> list[Tensor] | None:
        found: dict[tuple[int, ...], Tensor] = {}  # parameters put in line, as in cat, share their dimension
        for name, index in views:
            for d, at in enumerate(index):
                axis = self.axes.get((name, d))
                if axis is not None and axis.any():
                    (narrow,) = narrow_constant(at)
                    labels = torch.where(narrow < 0, 0, axis[narrow.clamp(min=0)]).expand(shape)
                    key = tuple(varying_dims(at))
                    found[key] = torch.where(labels != 0, labels, found[key]) if key in found else labels
        return list(found.values()) or None

    def prepared(self, inputs: Any) -> Any:
        """Example inputs as a run takes them: on the meta device, but for what holds integers."""

        def prepare(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if not self.meta:
                return x.detach().clone()
            # left as it is, so that indexing it with a list does not lose the list's values
            return like(x) if x.is_floating_point() else x.detach().to("cpu", copy=True)

        return tree_map(prepare, inputs)
