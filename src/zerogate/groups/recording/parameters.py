"""What a run shows of parameters: which of their slices belong to which labels, and the layers they make."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from zerogate.groups.label_tensors import collapse, drop_expanded, no_labels, rows_along, varying_dims
from zerogate.groups.recording.parameter_views import ParameterViews
from zerogate.groups.recording.record import NOT_ALWAYS, MovedParameter, Recording, SliceConstraint
from zerogate.groups.recording.tensor_maps import TensorMap
from zerogate.groups.recording.tracer import Tracer
from zerogate.groups.rules.op import Op
from zerogate.groups.rules.protocol import Freeze, View
from zerogate.modules.index import layer_of
from zerogate.modules.unregistered import plain_places
from zerogate.structure import Axis, LayerCall

COMPUTED = "a layer whose weight is computed, not a parameter"


class ParameterTable(ParameterViews):
    """Knows a model's parameters and buffers wherever they appear in a run, and enters in the recording what it says of
    them.

    Args:
        model: as it runs.
        recording: what is entered into.
        tracer: knows where in the user's code the run is.
        labels: of the run's tensors.
        examples: in the batch; MACs are recorded for one.
    """

    def __init__(
        self, model: nn.Module, recording: Recording, tracer: Tracer, labels: TensorMap[Tensor], examples: int
    ) -> None:
        recording.places = plain_places(model)
        super().__init__(model, tracer, recording.places)
        self._recording, self._tracer, self._labels, self._examples = recording, tracer, labels, examples
        self._read_in: dict[str, str] = {}
        """Parameter → the module whose forward last computed something with it."""

    def note_read(self, x: Tensor) -> None:
        """Notes that an op is given a tensor."""
        name = self._names.get(id(x))
        if name is not None:
            self._recording.read.add(name)

    def note_computed(self, op: Op) -> None:
        """Notes that an op computes with parameters alone. Where it writes into one of them, whatever it is given besides
        is sliced as that is."""
        for x in op.tensors:
            if (name := self._names.get(id(x))) is not None:
                self._read_in[name] = self._tracer.module
        if not op.spec.in_place or len(op.tensors) < 2:
            return
        for written in self.views_of(op.tensors[0]):
            for view in [v for x in op.tensors[1:] for v in self.views_of(x, integers=True)]:
                along = {d for i in view.index for d in varying_dims(i)}
                for d, index in enumerate(written.index):
                    if along & set(varying_dims(index)):
                        own = self._axis(written.name, d)
                        self.attach_view(view, own[index.clamp(min=0)].expand(index.shape))

    def note_moved(self, results: list[Tensor], step: int, of_constants: Mapping[int, list[View]]) -> None:
        """Notes which results of a step hold entries of parameters and constants alone; ``of_constants``: number of a result
        → where those of constants are."""
        for i, x in enumerate(results):
            views = [] if x in self._labels else [*self.moved.get(x, []), *of_constants[i]]
            if views:
                index = [(view.name, view.index) for view in views]
                self._recording.moved_parameters.append(MovedParameter(step, i, index))

    def attach(self, parameter: Tensor, dim: int, vector: Tensor) -> None:
        """Says that slices of a parameter, also of one that was moved before, go with these channels; raises `Freeze`
        where the tensor is computed from something else."""
        if not vector.any():
            return
        name = self._names.get(id(parameter))
        if name is not None:
            self._recording.attach(name, dim, vector)
            return
        views = self.views_of(parameter)
        if not views:
            raise Freeze("an operand that is computed, not a parameter or buffer")
        for view in views:
            self.attach_view(view, _along(vector, parameter, dim))

    def attach_view(self, view: View, labels: Tensor) -> None:
        """Says that a parameter, moved as the view says and broadcast to the labels' shape, is sliced with them."""
        vary = set(varying_dims(labels))
        index = {d: i.expand(labels.shape) for d, i in enumerate(view.index)}
        touching = [d for d, i in index.items() if vary & set(varying_dims(i))]
        if not touching:
            return
        along_it = set(varying_dims(index[touching[0]]))
        if len(touching) == 1 and len(along_it) == 1:
            (t,) = along_it
            places, size = rows_along(index[touching[0]], t)[:, 0], self._shapes[view.name][touching[0]]
            in_order = vary == along_it and torch.equal(places, torch.arange(size))
            if in_order:  # the usual case
                self._recording.attach(view.name, touching[0], rows_along(labels, t)[:, 0])
                return
            if vary - along_it:
                # what is removed may lie along the other dimensions, and the parameter stays whole: the end shows
                (narrow,) = drop_expanded(labels)
                dims = tuple(touching[0] if d == t else -1 for d in range(labels.ndim))
                reason = self._tracer.where("a parameter among channels")
                self._constrain(SliceConstraint(narrow, reason, view.name, dims, places, size))
                return
        self._attach_places(view.name, touching, index, labels)

    def _attach_places(self, name: str, touching: list[int], index: dict[int, Tensor], labels: Tensor) -> None:
        """Slices a parameter with labels that lie anywhere: in another order, at several places, or at a part of it.

        Args:
            touching: dimensions of the parameter along which the labels vary.
            index: for each dimension of the parameter, where along it the entries lie.
        """
        sizes = [self._shapes[name][d] for d in touching]
        place = index[touching[0]]
        for d, n in zip(touching[1:], sizes[1:], strict=True):
            place = torch.where((place < 0) | (index[d] < 0), -1, place * n + index[d])
        place, labels = drop_expanded(place, labels)
        inside = place >= 0
        place, labels = place[inside], labels[inside]
        own = torch.zeros(math.prod(sizes), dtype=torch.int64)
        own.scatter_reduce_(0, place, labels, "amax")
        unite, freeze = self._recording.labels.unite, self._recording.labels.freeze
        unite(labels, own[place])
        if ((labels == 0) & (own[place] != 0)).any():
            freeze(torch.where(labels == 0, own[place], 0), NOT_ALWAYS.format(name))
        if len(touching) > 1:
            reason = self._tracer.where("a parameter over several dimensions of channels")
            self._constrain(SliceConstraint(collapse(own.view(sizes)), reason, name, tuple(touching)))
            return
        met = torch.zeros(len(own), dtype=torch.bool).index_fill_(0, place, True)
        if met.all():
            self._recording.attach(name, touching[0], own)
        else:
            axis = self._axis(name, touching[0])
            unite(axis[met], own[met])
            freeze(axis[met][own[met] == 0], NOT_ALWAYS.format(name))

    def _constrain(self, constraint: SliceConstraint) -> None:
        self._recording.slice_constraints.append(constraint)

    def _axis(self, name: str, dim: int) -> Tensor:
        """The labels of an axis, new ones where there are none yet."""
        axes = self._recording.axes
        if (name, dim) not in axes:
            axes[name, dim] = self._recording.labels.new(self._shapes[name][dim])
        return axes[name, dim]

    def make_channels(self, x: Tensor, dims: Collection[int]) -> Tensor:
        """Labels, which vary along ``dims``, for a tensor made of parameters alone that is used as an activation."""
        labels = no_labels(x.shape)
        for view in self.views_of(x):
            for d, index in enumerate(view.index):
                if view.lies_along(d, dims):
                    own = self._axis(view.name, d)
                    self._recording.parameter_sources.add((view.name, d))
                    (narrow,) = drop_expanded(index)
                    new = torch.where(narrow < 0, 0, own[narrow.clamp(min=0)]).expand(x.shape)
                    self._recording.labels.unite(labels, new)
                    labels = torch.where(labels != 0, labels, new) if labels.any() else new
        labels = collapse(labels)
        if labels.any():
            self._labels[x] = labels
        return labels

    def record_layer(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        entering: Tensor | None,
        dims: tuple[int | None, int | None],
        macs: float,
        channel_dim: int = 0,
        repeats: int = 1,
        recurrent: bool = False,
    ) -> Tensor | None:
        """Records a layer that sums over its input channels and makes new ones; see `RuleContext.record_layer`."""
        views, consumed, produced = self.views_of(weight), *dims
        whole = views[0] if self.is_one(weight) and views[0].name in self._trainable else self.carrier_of(weight)
        own_in, own_out = (None if whole is None or d is None else self._own_dim(whole, weight, d) for d in dims)
        if whole is not None:  # a vector that was made a matrix of one row or column has no channels along these
            consumed = None if own_in is None and consumed is not None and weight.shape[consumed] == 1 else consumed
            produced = None if own_out is None and produced is not None and weight.shape[produced] == 1 else produced
        if whole is None or (own_in is None) != (consumed is None) or (own_out is None) != (produced is None):
            sizes = [weight.shape[d] for d in dims if d is not None]
            self._record(self._tracer.module, "", None, None, macs * math.prod(sizes), channel_dim)
            if entering is not None and entering.any():
                is_buffer = self.is_one(weight) and views[0].name not in self._trainable
                raise Freeze("a layer whose weight is a buffer" if is_buffer else COMPUTED)
            return None
        others = [view for view in views if view.name != whole.name]
        if own_in is not None and consumed is not None:
            vector = torch.zeros(weight.shape[consumed], dtype=torch.int64) if entering is None else entering
            if self._names.get(id(weight)) == whole.name:
                self._recording.attach(whole.name, own_in, vector)
            elif vector.any():
                for view in (whole, *others):
                    self.attach_view(view, _along(vector, weight, consumed))
        new = None
        if own_out is not None and produced is not None:
            new = self._new_channels(whole, own_out, weight, produced, repeats)
            macs *= weight.shape[produced] / self._shapes[whole.name][own_out]
            for view in others:
                self.attach_view(view, _along(new, weight, produced))
            if bias is not None:
                self._attach_bias(bias, new)
        axis_in = None if own_in is None else (whole.name, own_in)
        axis_out = None if own_out is None else (whole.name, own_out)
        host = self._reader(weight, whole.name)
        self._record(host, whole.name, axis_in, axis_out, macs, channel_dim, computed=whole.normed, recurrent=recurrent)
        return new

    def _own_dim(self, view: View, weight: Tensor, dim: int) -> int | None:
        """The parameter's own dimension along a dimension of a view of it."""
        if self._names.get(id(weight)) == view.name:
            return dim
        return view.dim_along(dim)

    def _new_channels(self, view: View, own: int, weight: Tensor, dim: int, repeats: int) -> Tensor:
        """Labels of what a layer makes, [size of dim]: those along its parameter's dimension ``own``, tied over
        ``repeats`` groups."""
        total = self._shapes[view.name][own]
        if repeats > 1:
            new = self._recording.axes.get((view.name, own))
            if new is None:
                new = self._recording.labels.new(total // repeats).repeat(repeats)
                self._recording.axes[view.name, own] = new
            self._recording.labels.unite(new.view(repeats, -1), new.view(repeats, -1)[:1])
        labels = self._axis(view.name, own)
        return labels if weight.shape[dim] == total else labels[view.indices(own, dim)]

    def _attach_bias(self, bias: Tensor, new: Tensor) -> None:
        labels = self._labels.get(bias)
        if labels is not None:
            self._recording.labels.unite(labels, new.expand(labels.shape))
        name = self._names.get(id(bias))
        if name is not None and new.shape == bias.shape:
            self._recording.attach(name, 0, new)
            return
        for view in self.views_of(bias):
            self.attach_view(view, new.expand(bias.shape))

    def record_grouped_conv(
        self, weight: Tensor, bias: Tensor | None, vector: Tensor | None, macs: float, channel_dim: int
    ) -> Tensor | None:
        """Records a convolution in groups each of which is one unit; see `RuleContext.record_grouped_conv`."""
        views, whole = self.views_of(weight), self.carrier_of(weight)
        if whole is None and len(views) == 1 and views[0].is_whole and not views[0].changed:
            whole = views[0]  # a buffer: no gate lies on it, it is only sliced
        own = None if whole is None else self._own_dim(whole, weight, 0)
        if whole is None or own is None or vector is None or not vector.any():
            macs *= weight.shape[0]
            self.record_layer(weight, None, entering=None, dims=(None, None), macs=macs, channel_dim=channel_dim)
            return None
        self.attach(weight, 0, vector)
        if bias is not None:
            self.attach(bias, 0, vector)
        self._record(self._reader(weight, whole.name), whole.name, None, (whole.name, own), macs, channel_dim)
        return vector

    def _reader(self, x: Tensor, name: str) -> str:
        """The module in whose forward a parameter is read, of which an op that runs now takes x."""
        host = self._tracer.module
        read_in = host if id(x) in self._names else self._read_in.get(name, host)
        return host if f"{read_in}.".startswith(f"{host}." if host else "") else read_in

    def _record(
        self,
        host: str,
        weight: str,
        axis_in: Axis | None,
        axis_out: Axis | None,
        macs: float,
        channel_dim: int,
        computed: bool = False,
        recurrent: bool = False,
    ) -> None:
        layer, macs = layer_of(weight), macs / self._examples
        call = LayerCall(
            layer, host, weight, axis_in, axis_out, macs, channel_dim, computed=computed, recurrent=recurrent
        )
        self._recording.calls.append(call)


def _along(vector: Tensor, x: Tensor, dim: int) -> Tensor:
    """A vector of labels along one dimension of a tensor of x's shape."""
    shape = [1] * x.ndim
    shape[dim] = -1
    return vector.view(shape).expand(x.shape)
