"""Tensors of one value everywhere, which factories make: any slice of them is the same, so they follow what meets them."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from zerogate.groups.arguments import writes
from zerogate.groups.label_tensors import collapse, drop_expanded, no_labels, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.tensor_maps import TensorMap
from zerogate.groups.recording.tracer import Tracer
from zerogate.groups.rules.op import Op
from zerogate.groups.rules.protocol import View
from zerogate.groups.rules.views import follow_views
from zerogate.modules.internals import storage_key

_FILLS = ("masked_fill", "constant_pad_nd")
"""Moves that put other values among those that they move."""

_REFILLS = ("zero_", "fill_")


class Constants:
    """Knows what factories make, and what is made of that alone.

    Args:
        recording: what is entered into.
        tracer: of the run.
        labels: of the run's tensors.

    Their sizes must follow the channels that they meet: those that meet one at one place are tied. One that is read as
    channels itself, as a recurrence's first state is, gets labels: it can lose any of its places.
    """

    def __init__(self, recording: Recording, tracer: Tracer, labels: TensorMap[Tensor]) -> None:
        self._recording, self._labels = recording, labels
        self._views: TensorMap[list[View]] = tracer.tensor_map()
        """Tensor → where the entries of factories' results lie in it; empty where they cannot be followed any more."""
        self._met: TensorMap[Tensor] = tracer.tensor_map()
        """Tensor → the labels that it has met."""
        self._meetings: list[tuple[list[View], Tensor]] = []
        """All of these labels, and where the tensor's entries come from."""
        self._written: dict[int, torch.UntypedStorage] = {}
        """Memory of which that is no longer true; held, so that no other takes its place."""

    def views_of(self, x: Tensor) -> list[View]:
        """Where the entries of factories' results lie in a tensor; none where it may hold different values."""
        return [] if self._written and storage_key(x) in self._written else self._views.get(x, [])

    def met_by(self, x: Tensor) -> Tensor | None:
        """The labels that a constant has met; None where it has met none."""
        return self._met.get(x)

    def follow(self, op: Op, outputs: list[Tensor]) -> None:
        """Notes the results of an op that are constants, and constants that it writes to."""
        if op.spec.family is Family.FACTORY:
            for x in outputs:
                self._views[x] = [self._new(x)]
        elif any(x in self._views for x in op.tensors):
            if writes(op.func):
                self._note_written(op)
                return
            views = self._views_of_results(op)
            for i, x in enumerate(outputs):
                if x not in self._views and x not in self._labels:
                    self._views[x] = [] if views is None else views[i]
                    if op.spec.layout_only and (met := self._met.get(op.tensors[0])) is not None:
                        self._met[x] = met

    def _new(self, x: Tensor) -> View:
        name = f"constant {len(self._recording.constants)}"
        self._recording.constants[name] = x.shape
        return View.whole(name, x.shape)

    def _note_written(self, op: Op) -> None:
        """A number that is written everywhere leaves a constant one; all else may not."""
        x = op.tensors[0]
        views = self.views_of(x)
        is_whole = len(views) == 1 and views[0].is_whole
        if len(op.tensors) > 1 or not is_whole or not (op.spec.pointwise or op.name in _REFILLS):
            self._written[storage_key(x)] = x.untyped_storage()

    def _views_of_results(self, op: Op) -> list[list[View]] | None:
        if torch.Tag.nondeterministic_seeded in op.func.tags or op.name in _FILLS or op.name.startswith("empty"):
            return None
        if op.spec.family is not Family.IDENTITY and not op.spec.pointwise:
            return follow_views(op, self.views_of)
        if len(op.results) != 1 or not all(self.views_of(x) for x in op.tensors):
            return None
        shape = op.results[0].shape
        return [[View(v.name, tuple(i.expand(shape) for i in v.index)) for x in op.tensors for v in self.views_of(x)]]

    def make_channels(self, x: Tensor, dims: Collection[int]) -> Tensor | None:
        """Labels, which vary along ``dims``, for a constant that is read as channels; None where x is none there."""
        labels = no_labels(x.shape)
        for view in self.views_of(x):
            for d, index in enumerate(view.index):
                if view.lies_along(d, dims):
                    new = _at(self._axis(view.name, d), index)
                    self._recording.labels.unite(labels, new)
                    labels = torch.where(labels != 0, labels, new)
        labels = collapse(labels)
        if not varying_dims(labels):
            return None
        self._labels[x] = labels
        return labels

    def _axis(self, name: str, dim: int) -> Tensor:
        """The labels along a dimension of a factory's result; new ones are tied to what it has met."""
        axes = self._recording.axes
        if (name, dim) not in axes:
            axes[name, dim] = self._recording.labels.new(self._recording.constants[name][dim])
            for views, met in self._meetings:
                self._unite(views, met, (name, dim))
        return axes[name, dim]

    def _unite(self, views: list[View], met: Tensor, *axes: tuple[str, int]) -> None:
        """Ties labels that a constant has met to those along these axes of what it is made of."""
        for view in views:
            for d, index in enumerate(view.index):
                if (view.name, d) in axes and view.lies_along(d, varying_dims(met)):
                    self._recording.labels.unite(_at(self._recording.axes[view.name, d], index), met)

    def meet(self, x: Tensor, labels: Tensor) -> None:
        """Ties all channels that meet the same constant: its length fixes how many of each may remain."""
        if x not in self._views or not (vary := varying_dims(labels)):
            return
        shift = labels.ndim - x.ndim
        if any(d < shift or x.shape[d - shift] == 1 for d in vary):
            return
        met = labels[(0,) * shift][tuple(slice(0, 1) if n == 1 else slice(None) for n in x.shape)].expand(x.shape)
        before = self._met.get(x)
        if before is None:
            self._met[x] = met
        else:
            self._recording.labels.unite(met, before)
        views = self.views_of(x)
        if views:
            self._meetings.append((views, met))
            self._unite(views, met, *self._recording.axes)


def _at(axis: Tensor, index: Tensor) -> Tensor:
    """The labels along an axis where its places are, 0 where an entry is none of it."""
    (narrow,) = drop_expanded(index)
    return torch.where(narrow < 0, 0, axis[narrow.clamp(min=0)]).expand(index.shape)
