"""The run that is watched: rules are asked about every op, and what they say is noted."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from zerogate.errors import first_line
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.labels import along, constant, narrow_constant, squash, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.recording.parameters import NOT_ALWAYS, Parameters
from zerogate.groups.recording.record import SliceConstraint, Step
from zerogate.groups.recording.tracer import tensors_among
from zerogate.groups.rules import Freeze, Op, UnknownValue, follow_views, rule_of
from zerogate.groups.rules.op import replaced
from zerogate.modules.index import modules_by_name
from zerogate.modules.internals import storage_key
from zerogate.modules.run import Inputs
from zerogate.structure import Norm, SizeAttribute

_FOLLOWED = 1 << 22  # entries of memory up to which what is written into it is followed


class Recorder(Parameters):
    """What rules see of the run."""

    def __init__(self, model: nn.Module, inputs: Inputs, label_inputs: bool, meta: bool) -> None:
        super().__init__(model, meta)
        self.results = self.seen.results
        self.inputs = self.seen.prepared(inputs)
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
        self.rewritten = isinstance(model, GraphModel)
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

    def stored(self, x: Tensor) -> None:
        """Gives a tensor its labels if channels have been written into its memory under another name."""
        if not self._written or x in self._labels:
            return
        memory = self._written.get(storage_key(x))
        if memory is not None:
            labels = squash(memory[0].flatten().as_strided(x.shape, x.stride(), x.storage_offset()))
            self._labels[x] = labels
            if len(varying_dims(labels)) > 1:
                self.seen.slice_constraints.append(
                    SliceConstraint(labels, self.where("memory into which different channels are written"))
                )

    def _write(self, x: Tensor, labels: Tensor) -> bool:
        """Notes that channels are written into memory that a factory made. They lie there at their own places; along other
        dimensions all of it has them, as what is put in line with channels has. False where it cannot be followed."""
        storage, vary = x.untyped_storage(), varying_dims(labels)
        base = self._bases.get(storage_key(storage))
        if base is None or not vary or math.prod(base[0]) > _FOLLOWED:
            return False
        shape, strides, _ = base
        memory, _ = self._written.get(storage_key(storage), (torch.zeros(shape, dtype=torch.int64), None))
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
        self._written[storage_key(storage)] = memory, storage
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
            self.seen.labels.freeze(torch.where(lopsided, known.labels + site.labels, 0), NOT_ALWAYS.format(path))
        self._normed.setdefault(path, set()).add(self._entered[path])
        return True

    def tell(self, attribute: str, value: int | tuple[int, ...], rows: Tensor) -> None:
        """Says that an attribute of the running module, if it is this one's, counts the rows of labels that are kept; the
        last place of it does, if it is a tuple or list."""
        path = self.stack[-1] if self.stack else ""
        held = vars(self._modules[path]).get(attribute)
        entry = len(held) - 1 if isinstance(held, (tuple, list)) and held else None
        if held is not None and (held == value if entry is None else tuple(held) == value):
            self.seen.size_attributes[path, attribute, entry] = SizeAttribute(path, attribute, entry, rows)

    def mixes(self, result: Tensor, labels: Tensor, reason: str) -> None:
        """Says that a result is made of all of these channels; they stay if anything uses it."""
        self._mixed[result] = labels, self.where(reason)

    def used(self, x: Tensor) -> None:
        if (mixed := self._mixed.pop(x, None)) is not None:
            self.seen.labels.freeze(*mixed)

    def entered(self, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._arguments[module] = args if not kwargs else ()
        self._entered[module] = self._entered.get(module, 0) + 1
        tensors = tensors_among((args, kwargs))
        self.seen.module_inputs[module] = [labels for x in tensors if (labels := self._labels.get(x)) is not None]

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
        except UnknownValue:
            raise
        except Exception as error:  # arguments of a kind that the rule does not know
            self._freeze_all(op, f"{op.name} cannot be followed ({type(error).__name__}: {first_line(error)})")
            labels = None
        found = labels if isinstance(labels, list) else [labels] * len(outputs)
        for tensor, label in zip(outputs, found, strict=True):
            self._set(op, tensor, label)
        is_factory = op.spec.family is Family.FACTORY
        if is_factory or any(x in self._constant for x in op.tensors):
            for x in outputs:
                if x not in self._labels and x not in self._constant:
                    self._constant[x] = self._constant.get(op.tensors[0]) if op.spec.layout_only else None
                if is_factory and x.is_contiguous():
                    self._bases[storage_key(x)] = tuple(x.shape), x.stride(), x.untyped_storage()
        if op.spec.layout_only:
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
                self.seen.moved_parameters.append((len(self.seen.steps) - 1, i, indices))

    def _apply(self, op: Op, labelled: bool) -> Any:
        rule = rule_of(op.spec)
        if rule is not None and (labelled or op.spec.makes_channels):
            return rule(op)
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
                self.seen.unfollowed.setdefault(view.name, reason)

    def _set(self, op: Op, tensor: Tensor, label: Tensor | None) -> None:
        before = self._labels.get(tensor)
        in_place = any(tensor is x for x in op.tensors)
        if in_place and label is not None and label is not before:
            held, now = narrow_constant(before if before is not None else constant(tensor.shape), label)
            fresh = before is None or storage_key(tensor) in self._written
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
            self.seen.slice_constraints.append(SliceConstraint(label, reason))

    def finish(self) -> None:
        """Freezes what norms take that do not always run over channels."""
        for norm in self.seen.norms:
            if len(self._normed[norm.module]) != self._entered[norm.module]:
                self.seen.labels.freeze(norm.labels, NOT_ALWAYS.format(norm.module))

    def _freeze_all(self, op: Op, reason: str) -> None:
        where = self.where(reason)
        for x in op.tensors:
            labels = self.labels_of(x)
            if labels is not None:
                self.seen.labels.freeze(labels, where)
        if not op.spec.frees_parameters:
            self._read_otherwise(op, where)


def _plain(x: Any) -> Any:
    """Arguments without their tensors."""
    return replaced(x, lambda leaf: None if isinstance(leaf, Tensor) else leaf)
