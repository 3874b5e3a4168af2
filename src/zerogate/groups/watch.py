"""Runs a copy of the model once and follows the label of every channel through it.

The copy runs in inference mode: there ATen ops arrive whole (``linear``, ``batch_norm``, ``flatten``) rather than in
pieces, and whatever the run leaves behind is left in the copy.
"""

from __future__ import annotations

import dataclasses
import math
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from zerogate.attention import Attention, refusal, unnest
from zerogate.errors import WatchError, first_line
from zerogate.groups.interpreted import Interpreted
from zerogate.groups.labels import along, constant, narrow_constant, squash, varying_dims
from zerogate.groups.observed import Axis, Box, Call, Norm, Observations, Repair, Step
from zerogate.groups.rules import FACTORIES, LAYERS, RULES, Freeze, Op, UnknownValue, View, follow_views, pointwise
from zerogate.groups.rules.op import replaced
from zerogate.groups.trace import LAYOUT, Tracer, meta_copy, quick_copy, tensors_among
from zerogate.tensors import deep_copy, modules_by_name, named_tensors, owner_of

_FOLLOWED = 1 << 22  # entries of memory up to which what is written into it is followed
Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """model(tensor), model(*tuple) or model(**mapping)."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested containers and dataclasses, in order; caches and other objects are left alone."""
    found = []
    for x in tree_leaves(value):
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, Mapping):
            found += tensors_of(list(x.values()))
        elif dataclasses.is_dataclass(x) and not isinstance(x, type):
            found += tensors_of([getattr(x, f.name) for f in dataclasses.fields(x)])
    return found


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy; raises `WatchError` where the model cannot be copied."""
    return _copied(model, deep_copy)


def twin_of(model: nn.Module, meta: bool) -> nn.Module:
    """A copy to watch, in evaluation mode: on the meta device or with data; attention that follows its weights' sizes."""
    return _prepared(_copied(model, meta_copy if meta else deep_copy))


def shared_twin(model: nn.Module) -> nn.Module:
    """The same with the model's own tensors."""
    return _prepared(_copied(model, lambda m: quick_copy(m, {id(x): x for _, x in named_tensors(m)})))


def _prepared(twin: nn.Module) -> nn.Module:
    twin = twin.train().eval()  # both: some empty caches then
    for name, module in modules_by_name(twin).items():
        if type(module) is nn.MultiheadAttention and "forward" not in vars(module):
            if not name:
                return Attention.stand_in(module).eval()
            twin.set_submodule(name, Attention.stand_in(module).eval())
    unnest(twin)
    return twin


def _copied(model: nn.Module, function: Any) -> nn.Module:
    try:
        return function(model)
    except Exception as error:
        raise WatchError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {first_line(error)}); "
            "zerogate works on copies, so make copy.deepcopy(model) work first"
        ) from error


@contextmanager
def kept_rng(model: nn.Module) -> Iterator[None]:
    """Leaves the random state of the CPU and of the model's devices as it was, and that of Python and NumPy."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python, numpy = random.getstate(), sys.modules.get("numpy")  # a forward that draws from NumPy has imported it
    drawn = numpy.random.get_state() if numpy is not None else None
    try:
        with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
            yield
    finally:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(drawn)


def watch(model: nn.Module, inputs: Inputs, *, label_inputs: bool = False) -> Observations:
    """Runs a copy of the model in evaluation mode on example inputs and returns what was seen.

    Raises `WatchError` when the model cannot be copied, rejects the inputs, or returns no tensor.
    """
    _check_inputs(model, inputs)
    inputs = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, inputs)
    with kept_rng(model):
        try:
            return _watch(model, inputs, label_inputs, meta=True)
        except Exception:  # it asked for data, or uses an op that has no shape-only version
            try:
                return _watch(model, inputs, label_inputs, meta=False)
            except WatchError:
                raise
            except Exception as error:
                raise WatchError(
                    f"{type(model).__name__}{_dtypes(model)} does not run on the example inputs ({_describe(inputs)}): "
                    f"{type(error).__name__}: {first_line(error)}; pass inputs as the model's forward takes them "
                    "(a tensor, a tuple of positional or a dict of keyword arguments)"
                ) from error


def _watch(model: nn.Module, inputs: Inputs, label_inputs: bool, meta: bool) -> Observations:
    twin = twin_of(model, meta)
    untouched = quick_copy(twin, {id(x): x for _, x in named_tensors(twin)}) if meta else None
    watcher = Watcher(twin, inputs, label_inputs, meta)
    with torch.inference_mode(), watcher:
        outputs = tensors_of(call(twin, watcher.inputs))
    if not outputs:
        raise WatchError(
            f"{type(model).__name__} returns no tensor (also not in a tuple, list, dict or dataclass); "
            "give zerogate the module whose outputs matter"
        )
    for x in outputs:
        watcher.stored(x)
        watcher.used(x)
        if (labels := watcher.labels_of(x)) is not None:
            watcher.seen.labels.freeze(squash(labels), "an output of the network")
    watcher.seen.twin = untouched
    watcher.finish()
    watcher.seen.name_moved()
    for name, module in modules_by_name(twin).items():
        if isinstance(module, Attention) and module.called:
            watcher.seen.attention[name] = dict(module.called)
            if (reason := refusal(module.called)) is not None:
                for tensor, _ in module.named_parameters():
                    watcher.seen.read_otherwise[f"{name}.{tensor}"] = f"{reason} in {name}"
    return watcher.seen


class Watcher(Tracer):
    """What rules see of the run."""

    def __init__(self, model: nn.Module, inputs: Inputs, label_inputs: bool, meta: bool) -> None:
        super().__init__(meta)
        self.follow(model)
        self.seen = Observations(meta=meta)
        self.results = self.seen.results
        self.inputs = self.seen.prepared(inputs)
        self._labels = self.by_tensor()
        self._views = self.by_tensor()
        self._names = {id(tensor): name for name, tensor in named_tensors(model)}
        self._shapes_of = {name: tensor.shape for name, tensor in named_tensors(model)}
        self._raw: dict[str, View] = {}
        self._parameters = {name for name, _ in model.named_parameters()}
        self._modules = modules_by_name(model)
        self._arguments: dict[str, tuple[Any, ...]] = {}
        self._entered: dict[str, int] = {}
        self._normed: dict[str, set[int]] = {}  # runs of a module in which it has normalised over channels
        self._mixed = self.by_tensor()
        self._bases: dict[int, tuple[tuple[int, ...], tuple[int, ...], Any]] = {}
        """Memory that a factory made → its shape and strides; held, so that no other takes its place."""
        self._written: dict[int, tuple[Tensor, Any]] = {}
        """Memory into which channels were written → its labels; held."""
        self._constant = self.by_tensor()
        """Results of factories, and what was made of them alone → the labels they have met."""
        self.rewritten = isinstance(model, Interpreted)
        """Whether every size that an op is given can be set to what is left."""
        tensors = [x for x in tree_leaves(self.inputs) if isinstance(x, Tensor)]
        first = next((x for x in tensors if x.ndim), None)
        self._batch = first.shape[0] if first is not None and first.shape[0] else 1
        if label_inputs:
            for x in tensors:
                if x.is_floating_point() and x.ndim > 1:
                    new = self.seen.labels.new(x[0].numel())
                    self.seen.inputs = torch.cat([self.seen.inputs, new])
                    self._labels[x] = new.view(1, *x.shape[1:]).expand(x.shape)

    # what rules use

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

    def stored(self, x: Tensor) -> None:
        """Gives a tensor its labels if channels have been written into its memory under another name."""
        if not self._written or x in self._labels:
            return
        memory = self._written.get(x.untyped_storage()._cdata)
        if memory is not None:
            labels = squash(memory[0].flatten().as_strided(x.shape, x.stride(), x.storage_offset()))
            self._labels[x] = labels
            if len(varying_dims(labels)) > 1:
                self.seen.boxes.append(Box(labels, self.where("memory into which different channels are written")))

    def _write(self, x: Tensor, labels: Tensor) -> bool:
        """Notes that channels are written into memory that a factory made. They lie there at their own places; along other
        dimensions all of it has them, as what is put in line with channels has. False where it cannot be followed."""
        storage, vary = x.untyped_storage(), varying_dims(labels)
        base = self._bases.get(storage._cdata)
        if base is None or not vary or math.prod(base[0]) > _FOLLOWED:
            return False
        shape, strides, _ = base
        memory, _ = self._written.get(storage._cdata, (torch.zeros(shape, dtype=torch.int64), None))
        part, order = memory, []
        for d in vary:
            found = [
                b for b, (n, stride) in enumerate(zip(shape, strides, strict=True)) if n > 1 and stride == x.stride(d)
            ]
            start = x.storage_offset() // x.stride(d) % shape[found[0]] if found else 0
            if len(found) != 1 or start + x.shape[d] > shape[found[0]]:
                return False
            part = part.narrow(found[0], start, x.shape[d])
            order.append(found[0])
        put = labels[tuple(slice(None) if d in vary else 0 for d in range(labels.ndim))]
        put = put.permute(sorted(range(len(order)), key=order.__getitem__))
        put = put.reshape([part.shape[d] if d in order else 1 for d in range(len(shape))]).expand(part.shape)
        self.seen.labels.unite(part, put)
        part.copy_(torch.where(put != 0, put, part))
        self._written[storage._cdata] = memory, storage
        return True

    def meet_constant(self, x: Tensor, labels: Tensor) -> None:
        """Ties all labels that meet the same constant: as long as it may be, so many there are of each of them."""
        if x not in self._constant or not (vary := varying_dims(labels)):
            return
        shift = labels.ndim - x.ndim
        if any(d < shift or x.shape[d - shift] == 1 for d in vary):
            return
        met = labels[(0,) * shift][tuple(slice(0, 1) if n == 1 else slice(None) for n in x.shape)].expand(x.shape)
        held = self._constant[x]
        if held is None:
            self._constant[x] = met
        else:
            self.seen.labels.unite(met, held)

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
            self.seen.boxes.append(Box(narrow, reason, view.name, dims, places, size))
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
            self.seen.labels.freeze(half, _NOT_ALWAYS.format(view.name))
        if len(touching) > 1:
            self.seen.boxes.append(
                Box(
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
            self.seen.labels.freeze(own[met][held[met] == 0], _NOT_ALWAYS.format(view.name))

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
                    self.seen.sources.add((view.name, d))
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

    def norm(self, labels: Tensor, kind: str) -> bool:
        """Notes that the running module normalises over all its channels; False where it cannot be asked to normalise
        over the kept ones only."""
        path = self.stack[-1] if self.stack else ""
        args = self._arguments.get(path, ())
        if not path or len(args) != 1 or not isinstance(args[0], Tensor):
            return False
        entering = self.labels_of(args[0])
        if entering is None or len(varying_dims(entering)) != 1:
            return False
        (dim,) = varying_dims(entering)
        vary = varying_dims(labels)
        if len(vary) != 1 or not torch.equal(along(entering, dim)[:, 0], along(labels, vary[0])[:, 0]):
            return False
        site = Norm(
            path,
            dim - entering.ndim,
            tuple(args[0].shape),
            along(entering, dim)[:, 0],
            self.where("a norm over channels"),
        )
        known = next((n for n in self.seen.norms if n.module == path), None)
        if known is None:
            self.seen.norms.append(site)
        elif known.labels.shape != site.labels.shape or known.dim != site.dim:
            return False
        elif known.labels is not site.labels:  # in a second place: it keeps the same channels in both
            self.seen.labels.unite(known.labels, site.labels)
            lopsided = (known.labels == 0) != (site.labels == 0)
            self.seen.labels.freeze(torch.where(lopsided, known.labels + site.labels, 0), _NOT_ALWAYS.format(path))
        self._normed.setdefault(path, set()).add(self._entered[path])
        return True

    def tell(self, attribute: str, value: int | tuple[int, ...], rows: Tensor) -> None:
        """Says that an attribute of the running module, if it is this one's, counts the rows of labels that are kept; the
        last place of it does, if it is a tuple or list."""
        path = self.stack[-1] if self.stack else ""
        held = vars(self._modules[path]).get(attribute)
        entry = len(held) - 1 if isinstance(held, (tuple, list)) and held else None
        if held is not None and (held == value if entry is None else tuple(held) == value):
            self.seen.repairs[path, attribute, entry] = Repair(path, attribute, entry, rows)

    def mixes(self, result: Tensor, labels: Tensor, reason: str) -> None:
        """Says that a result is made of all of these channels; they stay if anything uses it."""
        self._mixed[result] = labels, self.where(reason)

    def used(self, x: Tensor) -> None:
        if (mixed := self._mixed.pop(x, None)) is not None:
            self.seen.labels.freeze(*mixed)

    # the run

    def entered(self, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._arguments[module] = args if not kwargs else ()
        self._entered[module] = self._entered.get(module, 0) + 1
        tensors = tensors_among((args, kwargs))
        self.seen.given[module] = [labels for x in tensors if (labels := self._labels.get(x)) is not None]

    def visit(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], out: Any) -> None:
        op = Op(self, func, args, kwargs, out, tensors)
        for x in op.tensors:
            self.stored(x)
        entering = [(x, found) for x in op.tensors if (found := self._labels.get(x)) is not None]
        outputs = tensors_among(out)
        for x in op.tensors:
            self.used(x)
        try:
            labels = self._apply(op, bool(entering))
        except Freeze as reason:
            self._freeze_all(op, str(reason))
            labels = None
        found = labels if isinstance(labels, list) else [labels] * len(outputs)
        for tensor, label in zip(outputs, found, strict=True):
            self._set(op, tensor, label)
        if op.name in FACTORIES or any(x in self._constant for x in op.tensors):
            for x in outputs:
                if x not in self._labels and x not in self._constant:
                    self._constant[x] = self._constant.get(op.tensors[0]) if op.name in LAYOUT else None
                if op.name in FACTORIES and x.is_contiguous():
                    self._bases[x.untyped_storage()._cdata] = tuple(x.shape), x.stride(), x.untyped_storage()
        if op.name in LAYOUT:
            return
        self.seen.steps.append(
            Step(
                op.name,
                self.stack[-1] if self.stack else "",
                self.place(),
                func,
                _plain(args),
                kwargs and {k: _plain(v) for k, v in kwargs.items()},
                [found for _, found in entering],
                [(tuple(x.shape), self._labels.get(x)) for x in outputs],
                self.node,
            )
        )
        for i, x in enumerate(outputs):
            if x in self._views and x not in self._labels:
                indices = [(v.name, v.index) for v in self._views[x]]
                self.seen.moved.append((len(self.seen.steps) - 1, i, indices))

    def _apply(self, op: Op, labelled: bool) -> Any:
        known = RULES.get(op.name)
        if known is None and torch.Tag.pointwise in op.func.tags:
            known = pointwise
        if known is not None and (labelled or op.name in LAYERS):
            return known(op)
        viewed = any(self.views_of(x) for x in op.tensors)
        if labelled:
            raise Freeze(f"{op.name} has no rule")
        if not viewed:
            return None
        views = follow_views(op)
        if views is None:
            self._read_otherwise(op, self.where(f"{op.name} of a parameter"))
        else:
            for x, found in zip(tensors_among(op.out), views, strict=True):
                if found:
                    self._views[x] = found
        return None

    def _read_otherwise(self, op: Op, reason: str) -> None:
        for x in op.tensors:
            for view in self.views_of(x):
                self.seen.read_otherwise.setdefault(view.name, reason)

    def _set(self, op: Op, tensor: Tensor, label: Tensor | None) -> None:
        before = self._labels.get(tensor)
        in_place = any(tensor is x for x in op.tensors)
        if in_place and label is not None and label is not before:
            held, now = narrow_constant(before if before is not None else constant(tensor.shape), label)
            fresh = before is None or tensor.untyped_storage()._cdata in self._written
            if ((held == 0) & (now != 0)).any() and not (fresh and self._write(tensor, label)):
                # a view of it elsewhere would not know
                reason = f"{op.name} writes into a tensor that held no channels"
                self.seen.labels.freeze(torch.where(held == 0, now, 0), self.where(reason))
        if label is None:
            if not in_place:
                self._labels.pop(tensor, None)
            return
        if label.shape != tensor.shape:
            raise AssertionError(f"{op.name}: labels {tuple(label.shape)} for output {tuple(tensor.shape)}")
        self._labels[tensor] = label
        if len(varying_dims(label)) > 1 and all(
            label is not self._labels.get(x) for x in op.tensors if x is not tensor
        ):
            reason = self.where(f"{op.name} folds channels into {tuple(label.shape)}")
            self.seen.boxes.append(Box(label, reason))

    def finish(self) -> None:
        """Freezes what norms take that do not always run over channels."""
        for norm in self.seen.norms:
            if len(self._normed[norm.module]) != self._entered[norm.module]:
                self.seen.labels.freeze(norm.labels, _NOT_ALWAYS.format(norm.module))

    def _freeze_all(self, op: Op, reason: str) -> None:
        where = self.where(reason)
        for x in op.tensors:
            labels = self.labels_of(x)
            if labels is not None:
                self.seen.labels.freeze(labels, where)
        if op.name not in LAYERS or op.name in ("mv", "dot", "matmul"):
            self._read_otherwise(op, where)

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
        self.seen.calls.append(Call(layer, host, weight, axis_in, axis_out, macs / self._batch, channel_dim))

    def where(self, reason: str) -> str:
        """The reason, with the module and the line of the user's code that is running."""
        return located(reason, self.stack[-1] if self.stack else "", self.place())


def located(reason: str, module: str, place: tuple[str, int]) -> str:
    line = f" ({place[0].replace(chr(92), '/').rpartition('/')[2]}:{place[1]})" if place[0] else ""
    return f"{reason}{f' in {module}' if module else ''}{line}"


_NOT_ALWAYS = "{} is used with and without removable channels"


def _plain(x: Any) -> Any:
    """Arguments without their tensors."""
    return replaced(x, lambda leaf: None if isinstance(leaf, Tensor) else leaf)


def _check_inputs(model: nn.Module, inputs: Inputs) -> None:
    devices = {p.device for p in model.parameters() if not p.is_meta}  # else it can be materialised anywhere
    for name, tensor in named_tensors(model):
        if is_lazy(tensor):
            raise WatchError(
                f"{name} of this {type(model).__name__} has no shape yet; run the model once on the example inputs first"
            )
    for x in tree_leaves(inputs):
        if isinstance(x, Tensor) and not x.numel():
            raise WatchError(f"the example inputs are empty: {_describe(inputs)}; give at least one example")
        if isinstance(x, Tensor) and devices and x.device not in devices:
            there = ", ".join(sorted(map(str, devices)))
            raise WatchError(
                f"the example inputs are on {x.device} and the {type(model).__name__} on {there}; "
                f"move them: inputs.to({there.split(', ')[0]!r})"
            )


def _dtypes(model: nn.Module) -> str:
    found = sorted({str(p.dtype) for p in model.parameters()})
    return f" ({', '.join(found)})" if found else ""


def _describe(inputs: Any) -> str:
    shown = [f"{tuple(x.shape)} {x.dtype} {x.device}" for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    return ", ".join(shown) or f"a {type(inputs).__name__} without tensors"


__all__ = ["Inputs", "UnknownValue", "call", "kept_rng", "plain_copy", "shared_twin", "tensors_of", "twin_of", "watch"]
