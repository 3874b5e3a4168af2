"""The run that is recorded: rules are asked about every op, and what they say is noted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from zerogate.groups.arguments import Args, AtenOp, Kwargs, tensors_among, without_tensors
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.label_tensors import Sheets, collapse, drop_expanded, no_labels, varying_dims
from zerogate.groups.ops import Family
from zerogate.groups.recording.computed_layers import ComputedLayers
from zerogate.groups.recording.constants import Constants
from zerogate.groups.recording.decisions import decision_of
from zerogate.groups.recording.factors import Factors
from zerogate.groups.recording.memory import Memory
from zerogate.groups.recording.module_calls import ModuleCalls
from zerogate.groups.recording.parameters import ParameterTable
from zerogate.groups.recording.record import Recording, SliceConstraint, Step
from zerogate.groups.recording.sheets import ask_on_sheets, lie_apart
from zerogate.groups.recording.sources import Sources
from zerogate.groups.recording.tensor_maps import TensorMap
from zerogate.groups.recording.tracer import Tracer
from zerogate.groups.rules.layers import record_macs
from zerogate.groups.rules.op import Op, Out
from zerogate.groups.rules.protocol import Freeze, UnknownValue
from zerogate.groups.rules.registry import rule_of
from zerogate.modules.run import Inputs


class Recorder:
    """Listens to a run and fills in a recording. It is the `RuleContext` of rules and the `Listener` of its tracer.

    Args:
        model: a copy to run, under ``recorder.tracer``.
        inputs: example inputs; the run takes them as ``recorder.inputs``.
        label_inputs: whether inputs have labels of their own.
        recording: what the run is added to; it may hold an earlier one.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, label_inputs: bool, recording: Recording) -> None:
        self.recording = recording
        self.tracer = Tracer(self, recording.meta, recording.shapes)
        self.tracer.follow(model)
        self.inputs = self.recording.prepared(inputs)
        self._is_graph = isinstance(model, GraphModel)
        self._first_call = len(recording.calls)
        self._labels: TensorMap[Tensor] = self.tracer.tensor_map()
        self._further: TensorMap[list[Tensor]] = self.tracer.tensor_map()
        """Further sheets of labels, of tensors that have any; see `Sheets`."""
        self._deferred: TensorMap[tuple[Tensor, str]] = self.tracer.tensor_map()
        """Result → labels that stay if any op uses it, and why."""
        self.constants = Constants(self.recording, self.tracer, self._labels)
        self._sources = Sources(model, tree_leaves(self.inputs), self.tracer.tensor_map())
        self._memory = Memory(self.recording.labels)
        self._modules = ModuleCalls(model, self.recording, self.tracer, self._labels)
        tensors = [x for x in tree_leaves(self.inputs) if isinstance(x, Tensor)]
        first = next((x for x in tensors if x.ndim), None)
        examples = first.shape[0] if first is not None and first.shape[0] else 1
        self._parameters = table = ParameterTable(model, self.recording, self.tracer, self._labels, examples)
        self.views_of, self.attach, self.attach_view = table.views_of, table.attach, table.attach_view
        self.tie_to_constant, self.constant_channels = self.constants.meet, self.constants.make_channels
        self.make_channels, self.record_layer = table.make_channels, table.record_layer
        self.record_grouped_conv, self.carrier_of = table.record_grouped_conv, table.carrier_of
        factors = Factors(self.recording, self.tracer, {name for name, _ in model.named_parameters()})
        self.value_of, self.unite = self.tracer.value_of, self.recording.labels.unite
        self.note_factor, self.record_sum = factors.note, factors.record_sum
        self.record_norm, self.state_size = self._modules.record_norm, self._modules.state_size
        self._computed = ComputedLayers(model, self.recording, self.tracer, table, tensors)
        labelled = [x for x in tensors if x.is_floating_point() and x.ndim > 1] if label_inputs else []
        for x, own in zip(labelled, recording.labels_of_inputs([x[0].numel() for x in labelled]), strict=True):
            self._labels[x] = own.view(1, *x.shape[1:]).expand(x.shape)

    # What rules may ask and say: see `RuleContext`.

    def labels_of(self, x: Tensor) -> Tensor | None:
        return self._labels.get(x)

    def sheets_of(self, x: Tensor) -> list[Tensor]:
        first = self._labels.get(x)
        return [] if first is None else [first, *self._further.get(x, ())]

    @property
    def any_size_can_follow(self) -> bool:
        return self._is_graph

    def tie_rows(self, rows: Tensor, reason: str) -> Tensor:
        return self.recording.labels.tie_rows(rows, self.tracer.where(reason))

    def freeze(self, labels: Tensor, reason: str) -> None:
        self.recording.labels.freeze(labels, self.tracer.where(reason))

    def defer_freeze(self, result: Tensor, labels: Tensor, reason: str) -> None:
        self._deferred[result] = labels, self.tracer.where(reason)

    def mark_heads(self, labels: Tensor) -> None:
        self.recording.head_labels.append(labels)

    def keep_at_least(self, labels: Tensor, n: int) -> None:
        self.recording.at_least.append((labels, n))

    def record_repeats(self, labels: Tensor) -> None:
        self.recording.repeated[len(self.recording.calls) - 1] = labels

    # What the tracer tells: see `Listener`.

    def entered(self, module: str, args: Args, kwargs: Kwargs) -> None:
        self._modules.add(module, args, kwargs)
        self._computed.entered(module, args, kwargs)

    def before(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> None:
        self._sources.before(tensors)

    def decided(self, func: AtenOp, out: object) -> object:
        return out

    def visit(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor], out: object) -> None:
        op = Op(self, func, args, kwargs, out, tensors)
        for x in op.tensors:
            self._parameters.note_read(x)
            self.labels_from_memory(x)
            self.flush_deferred(x)
        entering = [labels for x in op.tensors for labels in self.sheets_of(x)]
        outputs = tensors_among(out)
        self._computed.visit(op)
        for x, own in zip(outputs, self._labels_of_results(op, bool(entering)), strict=True):
            self._set_sheets(op, x, own)
        self.constants.follow(op, outputs)
        if op.spec.family is Family.FACTORY:
            self._memory.add_all(outputs)
        self._sources.after(outputs, None if op.spec.layout_only else len(self.recording.steps))
        if not op.spec.layout_only:
            self._add_step(op, entering, outputs)

    # The outputs, and the end.

    def labels_from_memory(self, x: Tensor) -> None:
        """Gives a tensor its labels if channels have been written into its memory under another name."""
        if x in self._labels:
            return
        labels = self._memory.labels_of(x)
        if labels is not None:
            self._labels[x] = labels
            if len(varying_dims(labels)) > 1:
                self._constrain(labels, "memory into which different channels are written")

    def flush_deferred(self, x: Tensor) -> None:
        """Freezes what a result is made of, now that it is used; see `defer_freeze`."""
        if (deferred := self._deferred.pop(x, None)) is not None:
            self.recording.labels.freeze(*deferred)

    def finish(self, outputs: list[Tensor]) -> None:
        """Freezes what the network returns, and completes what only the whole run shows."""
        reason = "an output of the network" + " in training mode" * bool(self.recording.runs)
        for x in outputs:
            self.labels_from_memory(x)
            self.flush_deferred(x)
            for labels in self.sheets_of(x):
                self.recording.labels.freeze(collapse(labels), reason)
        self._modules.finish()
        self.recording.end_run(self._first_call, [tuple(x.shape) for x in outputs])

    # One op.

    def _labels_of_results(self, op: Op, labelled: bool) -> Sequence[Tensor | Sheets | None]:
        """Labels of each result: one tensor, all sheets of them, or None."""
        several = self._further and any(x in self._further for x in op.tensors)
        if several or (labelled and lie_apart(self, op.spec, op.tensors)):
            return ask_on_sheets(self, op, lambda one: self._ask_rule(one, True))
        labels = self._ask_rule(op, labelled)
        if isinstance(labels, list) and not isinstance(labels, Sheets):
            return labels
        return [labels] * len(tensors_among(op.out))

    def _ask_rule(self, op: Op, labelled: bool) -> Out:
        """Labels of the results, by the op's rule; where it has none or gives up, what enters stays."""
        calls = len(self.recording.calls)
        labelled = labelled and not (op.spec.shape_of_second and op.labels(op.args[0]) is None)
        try:
            rule = rule_of(op.spec)
            if rule is not None and (labelled or op.spec.makes_channels):
                return rule(op)
            if labelled:
                raise Freeze(f"{self.tracer.composite or op.name} has no rule")
            self._computed.follow(op)
        except Freeze as reason:
            self._freeze_all(op, str(reason))
            if op.spec.makes_channels and len(self.recording.calls) == calls:
                record_macs(op)
        except UnknownValue:
            raise
        except Exception:  # arguments of a kind that the rule does not know
            empty = any(0 in x.shape for x in op.tensors)
            form = "of nothing: the example inputs leave it without entries" if empty else "in a form that has no rule"
            self._freeze_all(op, f"{op.name} {form}")
        return None

    def _freeze_all(self, op: Op, reason: str) -> None:
        where = self.tracer.where(reason)
        for x in op.tensors:
            # a layer is asked once, all others again about each further sheet
            every = op.spec.family is Family.CONTRACTION and any(op.views(y) for y in op.tensors)
            for labels in op.sheets(x) if every else [op.labels(x)]:
                if labels is not None:
                    self.recording.labels.freeze(labels, where)
        self._computed.give_up(op, where)

    def _set_sheets(self, op: Op, tensor: Tensor, sheets: Tensor | Sheets | None) -> None:
        """Notes the labels of a result, one tensor or several sheets."""
        many = sheets if isinstance(sheets, list) else Sheets()
        further = many[1:]
        self._set_labels(op, tensor, sheets if isinstance(sheets, Tensor) else many[0] if many else None)
        known = self._further.pop(tensor, None) or []
        if further:
            self._further[tensor] = further
        for labels in further:
            if any(tensor is x for x in op.tensors) and not known:
                self.freeze(labels, f"{op.name} writes into a tensor that held no such units")
            if len(varying_dims(labels)) > 1:
                self._constrain(labels, f"{op.name} folds channels into {tuple(labels.shape)}")

    def _set_labels(self, op: Op, tensor: Tensor, labels: Tensor | None) -> None:
        before = self._labels.get(tensor)
        in_place = any(tensor is x for x in op.tensors)
        if labels is None:
            if not in_place:
                self._labels.pop(tensor, None)
            return
        if in_place and labels is not before and not op.spec.is_move:
            self._write(op, tensor, before, labels)
        if labels.shape != tensor.shape:
            raise AssertionError(f"{op.name}: labels {tuple(labels.shape)} for output {tuple(tensor.shape)}")
        self._labels[tensor] = labels
        is_new = all(labels is not self._labels.get(x) for x in op.tensors if x is not tensor)
        if len(varying_dims(labels)) > 1 and is_new:
            self._constrain(labels, f"{op.name} folds channels into {tuple(labels.shape)}")

    def _write(self, op: Op, tensor: Tensor, before: Tensor | None, labels: Tensor) -> None:
        """Follows channels that an op writes, also into a buffer; freezes them where views of its operand would not know."""
        was, now = drop_expanded(before if before is not None else no_labels(tensor.shape), labels)
        if not ((was == 0) & (now != 0)).any():
            return
        if views := self.views_of(tensor):
            for view in views:
                self.attach_view(view, labels)
        elif (before is not None and not self._memory.is_written(tensor)) or not self._memory.write(tensor, labels):
            self.freeze(torch.where(was == 0, now, 0), f"{op.name} writes into a tensor that held no channels")

    def _constrain(self, labels: Tensor, reason: str) -> None:
        self.recording.slice_constraints.append(SliceConstraint(labels, self.tracer.where(reason)))

    def _add_step(self, op: Op, entering: list[Tensor], outputs: list[Tensor]) -> None:
        step = Step(
            op.name,
            self.tracer.module,
            self.tracer.place(),
            op.func,
            cast(Args, without_tensors(op.args)),
            {name: without_tensors(x) for name, x in op.kwargs.items()},
            entering,
            [(tuple(x.shape), self.sheets_of(x) if x in self._further else self._labels.get(x)) for x in outputs],
            self.tracer.node,
            self._sources.read,
        )
        if not self.recording.meta and (entering or not any(op.views(x) for x in op.tensors)):
            step.decision = decision_of(op.tensors, op.out, [x for x in outputs if x in self._labels])
        self.recording.steps.append(step)
        of_constants = {i: self.constants.views_of(x) for i, x in enumerate(outputs)}
        self._parameters.note_moved(outputs, len(self.recording.steps) - 1, of_constants)
