"""What a watched run finds out about parameters: which of their slices belong to which labels, and the layers they make."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zerogate.groups.labels import along, constant, narrow_constant, squash, varying_dims
from zerogate.groups.recording.record import Recording, SliceConstraint
from zerogate.groups.recording.tracer import Tracer
from zerogate.groups.rules import Freeze, View
from zerogate.modules.index import named_tensors, owner_of
from zerogate.structure import Axis, LayerCall

NOT_ALWAYS = "{} is used with and without removable channels"


class Parameters(Tracer):
    """Names a model's parameters and buffers wherever they appear in the run."""

    def __init__(self, model: nn.Module, meta: bool) -> None:
        super().__init__(meta)
        self.follow(model)
        self.seen = Recording(meta=meta)
        self._labels = self.by_tensor()
        self._views = self.by_tensor()
        tensors = dict(named_tensors(model))
        self._names = {id(tensor): name for name, tensor in tensors.items()}
        self._shapes_of = {name: tensor.shape for name, tensor in tensors.items()}
        self._raw: dict[str, View] = {}
        self._parameters = {name for name, _ in model.named_parameters()}
        self._batch = 1
        """Examples, by which MACs are divided."""

    def labels_of(self, x: Tensor) -> Tensor | None:
        return self._labels.get(x)

    def views_of(self, x: Tensor) -> list[View]:
        name = self._names.get(id(x))
        if name is None:
            return self._views.get(x, [])
        if not x.is_floating_point():
            return []
        if name not in self._raw:
            shape = x.shape
            steps = [torch.arange(n).view([-1 if i == d else 1 for i in range(x.ndim)]) for d, n in enumerate(shape)]
            self._raw[name] = View(name, tuple(i.expand(shape) for i in steps))
        return [self._raw[name]]

    def tie_rows(self, rows: Tensor, reason: str) -> Tensor:
        return self.seen.labels.tie_rows(rows, self.where(reason))

    def attach_or_freeze(self, tensor: Tensor, dim: int, vector: Tensor) -> None:
        """`attach` for a parameter, also one that was moved before; others are constants of fixed size."""
        if not vector.any():
            return
        name = self._names.get(id(tensor))
        if name is not None:
            self.seen.attach(name, dim, vector)
            return
        views = self.views_of(tensor)
        if not views:
            raise Freeze("an operand that is computed, not a parameter or buffer")
        for view in views:
            shape = [1] * tensor.ndim
            shape[dim] = -1
            self.attach_view(view, vector.view(shape).expand(tensor.shape))

    def attach_view(self, view: View, labels: Tensor) -> None:
        """Says that a parameter, moved as the view says and broadcast to the labels' shape, is sliced with them."""
        vary = set(varying_dims(labels))
        index = {d: i.expand(labels.shape) for d, i in enumerate(view.index)}
        touching = [d for d, i in index.items() if vary & set(varying_dims(i))]
        if not touching:
            return
        along_it = set(varying_dims(index[touching[0]]))
        if len(touching) == 1 and vary == along_it and len(vary) == 1:  # the usual case: one dimension, in its order
            (t,) = vary
            if torch.equal(along(index[touching[0]], t)[:, 0], torch.arange(self._shapes_of[view.name][touching[0]])):
                self.seen.attach(view.name, touching[0], along(labels, t)[:, 0])
                return
        if len(touching) == 1 and len(along_it) == 1 and vary - along_it:
            # what is removed may lie along the other dimensions, and the parameter stay whole: it is seen in the end
            (t,) = along_it
            (narrow,) = narrow_constant(labels)
            dims = tuple(touching[0] if d == t else -1 for d in range(labels.ndim))
            reason = self.where("a parameter among channels")
            places = along(index[touching[0]], t)[:, 0]
            size = self._shapes_of[view.name][touching[0]]
            self.seen.slice_constraints.append(SliceConstraint(narrow, reason, view.name, dims, places, size))
            return
        sizes = [self._shapes_of[view.name][d] for d in touching]
        place = index[touching[0]]
        for d, n in zip(touching[1:], sizes[1:], strict=True):
            here = index[d]
            place = torch.where((place < 0) | (here < 0), -1, place * n + here)
        place, labels = narrow_constant(place, labels)
        inside = place >= 0
        place, labels = place[inside], labels[inside]
        held = torch.zeros(math.prod(sizes), dtype=torch.int64)
        held.scatter_reduce_(0, place, labels, "amax")
        self.seen.labels.unite(labels, held[place])
        if ((labels == 0) & (held[place] != 0)).any():
            half = torch.where(labels == 0, held[place], 0)
            self.seen.labels.freeze(half, NOT_ALWAYS.format(view.name))
        if len(touching) > 1:
            self.seen.slice_constraints.append(
                SliceConstraint(
                    squash(held.view(sizes)),
                    self.where("a parameter over several dimensions of channels"),
                    view.name,
                    tuple(touching),
                )
            )
            return
        met = torch.zeros(len(held), dtype=torch.bool).index_fill_(0, place, True)
        if met.all():
            self.seen.attach(view.name, touching[0], held)
        else:
            own = self.axis(view.name, touching[0])
            self.seen.labels.unite(own[met], held[met])
            self.seen.labels.freeze(own[met][held[met] == 0], NOT_ALWAYS.format(view.name))

    def axis(self, name: str, dim: int) -> Tensor:
        """The labels of an axis, new ones where there are none yet."""
        if (name, dim) not in self.seen.axes:
            self.seen.axes[name, dim] = self.seen.labels.new(self._shapes_of[name][dim])
        return self.seen.axes[name, dim]

    def promote(self, x: Tensor, dims: set[int]) -> Tensor:
        """Labels of a tensor made of parameters alone, varying along ``dims``: a parameter can make channels, too."""
        labels = constant(x.shape)
        for view in self.views_of(x):
            for d, index in enumerate(view.index):
                if dims & set(varying_dims(index)):
                    own = self.axis(view.name, d)
                    self.seen.parameter_sources.add((view.name, d))
                    (narrow,) = narrow_constant(index)
                    made = torch.where(narrow < 0, 0, own[narrow.clamp(min=0)]).expand(x.shape)
                    self.seen.labels.unite(labels, made)
                    labels = torch.where(labels != 0, labels, made) if labels.any() else made
        labels = squash(labels)
        if labels.any():
            self._labels[x] = labels
        return labels

    def layer(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        entering: Tensor | None,
        dims: tuple[int | None, int | None],
        macs: float,
        channel_dim: int = 0,
        repeats: int = 1,
    ) -> Tensor | None:
        """Records a layer that contracts its input channels and makes new ones; returns the new labels.

        Args:
            weight: the parameter, or a view of it.
            entering: labels of the input channels; None where none of them could be removed.
            dims: dimensions of ``weight`` along which it consumes and produces.
            macs: per consumed and produced channel, for the whole batch.
            channel_dim: where the input has its channels, counted from the end.
            repeats: the layer has as many groups of channels, and those at one place of all groups are tied.
        """
        views = self.views_of(weight)
        sizes = [weight.shape[d] for d in dims if d is not None]
        whole = views[0] if len(views) == 1 and not views[0].changed and views[0].name in self._parameters else None
        own = [None if whole is None or d is None else self._own_dim(whole, weight, d) for d in dims]
        if whole is None or any(o is None and d is not None for o, d in zip(own, dims, strict=True)):
            self._record("", "", None, None, macs * math.prod(sizes), channel_dim)
            if entering is not None and entering.any():
                raise Freeze("a layer whose weight is computed, not a parameter")
            return None
        name, made = whole.name, None
        axis_in = None if own[0] is None else (name, own[0])
        axis_out = None if own[1] is None else (name, own[1])
        if axis_in is not None:
            assert dims[0] is not None
            vector = torch.zeros(weight.shape[dims[0]], dtype=torch.int64) if entering is None else entering
            shape = [1] * weight.ndim
            shape[dims[0]] = -1
            if self._names.get(id(weight)) == name:
                self.seen.attach(name, axis_in[1], vector)
            elif vector.any():
                self.attach_view(whole, vector.view(shape).expand(weight.shape))
        if axis_out is not None:
            assert dims[1] is not None
            total = self._shapes_of[name][axis_out[1]]
            if axis_out not in self.seen.axes and repeats > 1:
                self.seen.axes[axis_out] = self.seen.labels.new(total // repeats).repeat(repeats)
            labels = self.axis(*axis_out)
            if repeats > 1:
                self.seen.labels.unite(labels.view(repeats, -1), labels.view(repeats, -1)[:1])
            made = labels if weight.shape[dims[1]] == total else labels[whole.indices(axis_out[1], dims[1])]
            macs *= weight.shape[dims[1]] / total
            if bias is not None:
                self._add_bias(bias, made)
        self._record(owner_of(name), name, axis_in, axis_out, macs, channel_dim)
        return made

    def _own_dim(self, view: View, weight: Tensor, dim: int) -> int | None:
        if self._names.get(id(weight)) == view.name:
            return dim
        return view.dim_along(dim)

    def _add_bias(self, bias: Tensor, made: Tensor) -> None:
        labels = self.labels_of(bias)
        if labels is not None:
            self.seen.labels.unite(labels, made.expand(labels.shape))
        name = self._names.get(id(bias))
        if name is not None and made.shape == bias.shape:
            self.seen.attach(name, 0, made)
            return
        for view in self.views_of(bias):
            self.attach_view(view, made.expand(bias.shape))

    def blocks(
        self, weight: Tensor, bias: Tensor | None, vector: Tensor | None, macs: float, channel_dim: int
    ) -> Tensor | None:
        """Records a convolution in groups each of which is one unit: labels [outputs] pass through it."""
        name = self._names.get(id(weight))
        if name is None or vector is None or not vector.any():
            self.layer(
                weight, None, entering=None, dims=(None, None), macs=macs * weight.shape[0], channel_dim=channel_dim
            )
            return None
        self.seen.attach(name, 0, vector)
        if bias is not None:
            self.attach_or_freeze(bias, 0, vector)
        self._record(owner_of(name), name, None, (name, 0), macs, channel_dim)
        return vector

    def apart(self, weight: Tensor, vector: Tensor, macs: float, channel_dim: int) -> None:
        """Records a layer that runs once for each of these channels, [size], and leaves them apart; per channel it has as
        many MACs."""
        views = self.views_of(weight)
        name = views[0].name if len(views) == 1 and views[0].name in self._parameters else ""
        self.seen.repeated[len(self.seen.calls)] = vector
        self._record(owner_of(name), name, None, None, macs * len(vector), channel_dim)

    def _record(
        self, layer: str, weight: str, axis_in: Axis | None, axis_out: Axis | None, macs: float, channel_dim: int
    ) -> None:
        host = self.stack[-1] if self.stack else ""
        self.seen.calls.append(LayerCall(layer, host, weight, axis_in, axis_out, macs / self._batch, channel_dim))

    def where(self, reason: str) -> str:
        """The reason, with the module and the line of the user's code that is running."""
        return located(reason, self.stack[-1] if self.stack else "", self.place())


def located(reason: str, module: str, place: tuple[str, int]) -> str:
    line = f" ({place[0].replace(chr(92), '/').rpartition('/')[2]}:{place[1]})" if place[0] else ""
    return f"{reason}{f' in {module}' if module else ''}{line}"
