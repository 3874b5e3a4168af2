"""What a plan can be applied to: a model of the user's class, or its graph (``keep_class=False``)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from types import MappingProxyType
from typing import Protocol

from torch import Tensor, nn

from zerogate.cutting.cut import cut
from zerogate.cutting.plain_layers import in_place_of_plain, plain_copy
from zerogate.cutting.plan import Plan
from zerogate.errors import ZerogateError
from zerogate.groups.graph.from_export import exported
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.modules.computed_weights import weight_norms
from zerogate.modules.copies import copy_with, quick_copy, widened
from zerogate.modules.index import modules_by_name, named_tensors
from zerogate.modules.run import Inputs, KeepFloat64, holds_numbers
from zerogate.modules.unregistered import replace, unregistered
from zerogate.storage.plan_json import StoredPlan, describe_plan
from zerogate.structure import PlainLayer

WithoutGates = Callable[[], AbstractContextManager[object]]
"""Takes the gates off a model for as long as a block lasts."""


class Cuttable(Protocol):
    """A gated model, or a plain copy of it, that plans can be made for and applied to."""

    module: nn.Module
    """The module of the user's class, which holds the trained weights."""

    @property
    def whole(self) -> nn.Module:
        """The module that plans are made for: their names and attributes are its own."""

    def copy(self, float64: bool = False) -> Cuttable:
        """A plain copy without gates and gradients, in the modes of the original: to fold masks into, and to cut.

        ``float64``: casts the copy, and makes its forward stay in float64."""

    def sharing(self) -> Cuttable:
        """A plain copy that holds the same parameters, to be cut: a cut puts others in their place. Of copies alone."""

    def with_tensors(self, instead: Callable[[str, Tensor], Tensor]) -> Cuttable:
        """A plain copy that holds ``instead(name, tensor)`` in place of each parameter and buffer.

        Raises `ZerogateError` where what is cut is no module of the user's class."""

    def cut(self, plan: Plan) -> nn.Module:
        """The compacted network: what a plan leaves. Of copies alone, which are used up."""

    def cut_tensors(self, tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
        """What a plan leaves of tensors in the shapes of the parameters, by their names in the compacted network."""

    def describe(self, plan: Plan, small: nn.Module, set_by_forward: Collection[str] = ()) -> StoredPlan:
        """What `zerogate.save` writes of a plan and the network ``small`` that it made; empty for what it does not save.

        ``set_by_forward``: see `describe_plan`."""


class ClassModel:
    """A model that stays a module of the user's class; see `Cuttable`.

    Args:
        module: the model.
        without_gates: takes its gates off while it is copied; nothing to do for a plain one.
    """

    def __init__(self, module: nn.Module, without_gates: WithoutGates = nullcontext) -> None:
        self.module, self._without_gates = module, without_gates

    @property
    def whole(self) -> nn.Module:
        return self.module

    def copy(self, float64: bool = False) -> ClassModel:
        return ClassModel(_plain_copy(self.module, self._without_gates, float64))

    def sharing(self) -> ClassModel:
        return ClassModel(_sharing_copy(self.module))

    def with_tensors(self, instead: Callable[[str, Tensor], Tensor]) -> ClassModel:
        with self._without_gates():
            return ClassModel(copy_with(self.module, instead))

    def cut(self, plan: Plan) -> nn.Module:
        return cut(self.module, plan)

    def cut_tensors(self, tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
        with self._without_gates():
            twin = copy_with(self.module, _in_place_of_parameters(tensors))
        return _parameters(cut(twin, plan, values=False))

    def describe(self, plan: Plan, small: nn.Module, set_by_forward: Collection[str] = ()) -> StoredPlan:
        return describe_plan(plan, self.module, small, set_by_forward)


class ExportedModel:
    """A model that becomes a `torch.fx.GraphModule`, for ``keep_class=False``; see `Cuttable`.

    Args:
        module: the model.
        graph: its graph.
        without_gates: takes its gates off while it is copied.
        float64: whether constants that the graph makes stay in float64.
    """

    def __init__(
        self, module: nn.Module, graph: KeptGraph, without_gates: WithoutGates = nullcontext, float64: bool = False
    ) -> None:
        self.module, self._graph, self._without_gates, self._float64 = module, graph, without_gates, float64

    @property
    def whole(self) -> GraphModel:
        return self._graph.get(self._without_gates)

    def copy(self, float64: bool = False) -> ExportedModel:
        module = _plain_copy(self.module, self._without_gates, float64)
        return ExportedModel(module, self._graph, float64=self._float64 or float64)

    def sharing(self) -> ExportedModel:
        return ExportedModel(_sharing_copy(self.module), self._graph, float64=self._float64)

    def with_tensors(self, instead: Callable[[str, Tensor], Tensor]) -> ExportedModel:
        raise ZerogateError(
            "with keep_class=False a moving average cannot become that of the compacted network, which is no module of "
            "its class; leave out ema, or load the averages into the model before compact()"
        )

    def cut(self, plan: Plan) -> nn.Module:
        graph = self.whole.holding(self.module, KeepFloat64() if self._float64 else nullcontext())
        norms = weight_norms(modules_by_name(self.module))
        cut(graph, dataclasses.replace(plan, plain={}), norms=norms)  # the graph was exported with plain layers
        return graph.plain(type(self.module).__name__)

    def cut_tensors(self, tensors: Mapping[str, Tensor], plan: Plan) -> dict[str, Tensor]:
        tensors = {**tensors, **in_place_of_plain(tensors, plan.plain)}
        twin = copy_with(self.whole, _in_place_of_parameters(tensors))
        return _parameters(cut(twin, dataclasses.replace(plan, plain={}), values=False))

    def describe(self, plan: Plan, small: nn.Module, set_by_forward: Collection[str] = ()) -> StoredPlan:
        return {}


class KeptGraph:
    """The graph of a model, which fx cannot copy or pickle: copies export it anew when it is asked for.

    Args:
        model: the model, whose tensors the graph holds.
        inputs: on which it was exported.
        graph: the graph, where there is one.
        plain: layers that are exported as plain ones.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Inputs,
        graph: GraphModel | None = None,
        plain: Mapping[str, PlainLayer] = MappingProxyType({}),
    ) -> None:
        self._model, self._inputs, self._graph, self._plain = model, inputs, graph, dict(plain)
        self._exported_for = _precision_and_device(model)

    def get(self, without_gates: WithoutGates = nullcontext) -> GraphModel:
        """The graph. Raises `ZerogateError` where the model has been cast or moved since it was exported."""
        now = _precision_and_device(self._model)
        if now != self._exported_for:
            raise ZerogateError(
                f"the graph of this {type(self._model).__name__} was exported for {self._exported_for}, and the model is "
                f"{now} now; cast or move it back for compact(), or call sparsify again"
            )
        if self._graph is None:
            with without_gates():
                whole = plain_copy(self._model, self._plain) if self._plain else self._model
                self._graph = exported(whole, self._inputs)
        return self._graph

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_graph": None}


def cuttable_of(
    model: nn.Module,
    inputs: Inputs,
    graph: GraphModel | None,
    without_gates: WithoutGates,
    plain: Mapping[str, PlainLayer] = MappingProxyType({}),
) -> Cuttable:
    """What compaction cuts of a gated model: the graph where there is one, which was exported on these inputs; with plain
    layers in these places, it is exported anew."""
    if graph is None:
        return ClassModel(model, without_gates)
    return ExportedModel(model, KeptGraph(model, inputs, None if plain else graph, plain), without_gates)


def _plain_copy(model: nn.Module, without_gates: WithoutGates, float64: bool) -> nn.Module:
    """See `Cuttable.copy`."""
    with without_gates():
        wider = {id(x): widened(x) for _, x in named_tensors(model)} if float64 else {}
        twin = quick_copy(model, wider)
    modes = [(module, module.training) for module in twin.modules()]
    twin.train()  # empties what some modules keep from their last evaluation
    for module, training in modes:
        module.training = training
    if float64:
        held = [*unregistered(twin)]
        wider = {id(x): x for x in (*twin.parameters(), *twin.buffers())}
        for path, tensor in held:
            if holds_numbers(tensor):
                if id(tensor) not in wider:  # one tensor in several places stays one
                    wider[id(tensor)] = widened(tensor)
                with suppress(KeyError):  # held by a closure: out of reach
                    replace(twin, path, wider[id(tensor)])
    for p in twin.parameters():
        p.grad = None
    return twin


def _sharing_copy(model: nn.Module) -> nn.Module:
    return quick_copy(model, {id(p): p for p in model.parameters()})


def _in_place_of_parameters(tensors: Mapping[str, Tensor]) -> Callable[[str, Tensor], Tensor]:
    """These tensors for the parameters of their names, and the model's own buffers."""

    def instead(name: str, tensor: Tensor) -> Tensor:
        return nn.Parameter(tensors[name], requires_grad=False) if isinstance(tensor, nn.Parameter) else tensor

    return instead


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters()}


def _precision_and_device(model: nn.Module) -> str:
    """As in ``float32 on cpu``, of all parameters."""
    return ", ".join(sorted({f"{str(p.dtype).removeprefix('torch.')} on {p.device}" for p in model.parameters()}))
