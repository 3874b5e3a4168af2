"""A graph of torch.export as a module that runs node by node, watched and cut like any other.

The integers that nodes are given, sizes among them, are attributes of one of its modules: what sizes follow from what is
kept is then set as in any module that states its sizes.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from zerogate.groups.ops import bind
from zerogate.groups.recording.record import Step
from zerogate.modules.index import modules_by_name, named_tensors, put
from zerogate.modules.internals import (
    buffers_of,
    children_of,
    copy_signature,
    is_op,
    parameters_of,
    schema_of,
    transient_names_of,
)
from zerogate.structure import SizeAttribute

ARGUMENTS = "exported graph.arguments"
"""Module that holds the integers; no network's own modules are called so, and none searches it for sizes."""


@dataclass
class Place:
    """Where in the model a node comes from.

    Attributes:
        module: innermost module whose forward was running.
        line: file and line of the user's code.
        begins: modules whose forward begins with this node → what they are given, and whether that is all of it: one
            tensor, by position.
    """

    module: str = ""
    line: tuple[str, int] = ("", 0)
    begins: dict[str, tuple[list[fx.Node], bool]] = field(default_factory=dict)


@dataclass
class Program:
    """What never changes; copies of an `GraphModel` share it."""

    graph: fx.Graph
    places: dict[fx.Node, Place]
    spans: dict[str, list[fx.Node]] = field(default_factory=dict)
    """Module → the nodes of its first call."""
    constants: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that the model holds without having registered them."""
    recipe: fx.Graph = field(default_factory=fx.Graph)
    """How other constants are made of these and of numbers."""
    made: list[str] = field(default_factory=list)
    """Names of what it makes."""
    last: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    """Node → values that nobody needs after it."""

    def __post_init__(self) -> None:
        used = {n: node for node in self.graph.nodes for n in node.all_input_nodes}
        for place in self.places.values():
            place.begins = {
                k: (given, all_) for k, (given, all_) in place.begins.items() if all(n in used for n in given)
            }
        for value, node in used.items():
            self.last.setdefault(node, []).append(value)

    def __deepcopy__(self, memo: Any) -> Program:
        return self


class GraphModel(nn.Module):
    """The graph with a model's tensors.

    Parameters and buffers are held under all the names that the model has for them, in modules of the same names, which
    have no forward of their own. Takes what the model was exported with, in the same form, and returns its tensors flat.
    """

    def __init__(self, program: Program, model: nn.Module) -> None:
        super().__init__()
        self._program = program
        self._listener: Any = None
        """A tracer that is told which node runs."""
        memo: dict[int, nn.Module] = {id(model): self}
        _mirror(model, self, memo)
        for name, tensor in _constants(program, program.constants, nullcontext()).items():
            owner, _, attribute = name.rpartition(".")
            self.get_submodule(owner).register_buffer(attribute, tensor, persistent=False)
        holder, _, inside = ARGUMENTS.partition(".")
        self.add_module(holder, nn.Module())
        self.get_submodule(holder).add_module(inside, nn.Module())
        for node in program.graph.nodes:
            if found := integers(node):
                setattr(self.get_submodule(ARGUMENTS), attribute_of(node), tuple(value for *_, value in found))
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        leaves = iter(tree_leaves((args, kwargs)))
        values: dict[fx.Node, Any] = {}
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(leaves)
            elif node.op == "get_attr":
                owner, _, attribute = str(node.target).rpartition(".")
                values[node] = getattr(self.get_submodule(owner), attribute)
            else:
                given = fx.node.map_arg(self.arguments_of(node), values.__getitem__)
                if self._listener is not None:
                    self._tell(node, values)
                if node.op == "output":
                    return given[0][0]
                values[node] = _run(node, *given)
            for old in self._program.last.get(node, ()):
                del values[old]
        raise AssertionError("a graph without an output")

    def _tell(self, node: fx.Node, values: dict[fx.Node, Any]) -> None:
        place = self._program.places.get(node, Place())
        for module, (given, alone) in place.begins.items():
            held = tuple(values[n] for n in given if n in values)
            self._listener.entered(module, *((held, {}) if alone else ((), {"given": held})))
        self._listener.stack[-1] = place.module
        self._listener.node, self._listener.line = node.name, place.line

    def arguments_of(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A node's arguments with the integers as they are now."""
        held = vars(self.get_submodule(ARGUMENTS)).get(attribute_of(node))
        if held is None:
            return node.args, dict(node.kwargs)
        left = iter(held)
        return _walk(node, lambda name, entry, value: next(left))

    def holding(self, model: nn.Module, mode: AbstractContextManager[Any]) -> GraphModel:
        """The same graph with the tensors of another instance of the model, and constants made under ``mode``, of that
        instance's precision."""
        tensors, mine = dict(named_tensors(model)), dict(named_tensors(self))
        was, now = (next(m.parameters()).dtype for m in (self, model))
        twin = copy.deepcopy(self, {id(own): tensors[name] for name, own in mine.items() if name in tensors})
        held = {name: x.to(now) if x.dtype == was else x for name, x in self._program.constants.items()}
        modules = modules_by_name(twin, twice=True)
        for name, x in _constants(self._program, held, mode).items():
            put(modules, [name], x.to(now) if x.dtype == was else x)
        return twin

    def part(self, module: str, twin: nn.Module) -> GraphModel | None:
        """What runs inside a module that takes one tensor and returns one, with the tensors of a copy of the module."""
        span = self._program.spans.get(module, [])
        inside = set(span)
        given = dict.fromkeys(
            n for node in span for n in node.all_input_nodes if n not in inside and n.op != "get_attr"
        )
        results = [node for node in span if any(user not in inside for user in node.users)]
        if len(given) != 1 or len(results) != 1:
            return None
        graph = fx.Graph()
        values = {next(iter(given)): graph.placeholder("x")}
        constants: dict[str, Tensor] = {}
        own = set(dict(named_tensors(twin)))
        for node in span:
            for read in node.all_input_nodes:
                if read.op == "get_attr" and read not in values:
                    name = str(read.target).removeprefix(f"{module}.")
                    if name not in own:
                        name = str(read.target)
                        constants[name] = dict(named_tensors(self)).get(name, torch.empty(0))
                    values[read] = graph.get_attr(name)
            values[node] = graph.node_copy(node, values.__getitem__)
        graph.output(values[results[0]])
        return GraphModel(Program(graph, {}, constants=constants), twin)

    def plain(self, name: str) -> fx.GraphModule:
        """A graph module of torch alone, in evaluation mode, that holds these tensors and integers."""
        graph = fx.Graph()
        values: dict[fx.Node, fx.Node] = {}
        for node in self._program.graph.nodes:
            values[node] = new = graph.node_copy(node, values.__getitem__)
            new.meta = {key: held for key, held in node.meta.items() if key in ("nn_module_stack", "stack_trace")}
            args, kwargs = self.arguments_of(node)
            new.args = fx.node.map_arg(args, values.__getitem__)
            new.kwargs = fx.node.map_arg(kwargs, values.__getitem__)
        copy_signature(self._program.graph, graph)
        module = fx.GraphModule(self, graph, class_name=name)
        for prefix, held in self.named_modules(remove_duplicate=False):
            transient = transient_names_of(held)
            if transient:
                transient_names_of(module.get_submodule(prefix)).update(transient)
        return module.eval()


def _constants(program: Program, held: dict[str, Tensor], mode: AbstractContextManager[Any]) -> dict[str, Tensor]:
    """All constants of a program, those that it makes under ``mode``."""
    values: dict[fx.Node, Any] = {}
    for node in program.recipe.nodes:
        if node.op == "get_attr":
            values[node] = held[str(node.target)]
        elif node.op == "output":
            results = fx.node.map_arg(node.args[0], values.__getitem__)
            return held | dict(zip(program.made, results, strict=True))
        else:
            with torch.no_grad(), mode:
                values[node] = _run(node, *fx.node.map_arg((node.args, node.kwargs), values.__getitem__))
    return held


def _run(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    assert callable(node.target)
    return node.target(*args, **kwargs)


def _mirror(model: nn.Module, twin: nn.Module, memo: dict[int, nn.Module]) -> None:
    parameters_of(twin).update(parameters_of(model))
    buffers_of(twin).update(buffers_of(model))
    transient_names_of(twin).update(transient_names_of(model))
    for name, child in children_of(model).items():
        if child is not None:
            known = child if id(child) in memo else None
            children_of(twin)[name] = memo.setdefault(id(child), nn.Module())
            if known is None:
                _mirror(child, memo[id(child)], memo)


def attribute_of(node: fx.Node) -> str:
    return f"of {node.name}"


def integers(node: fx.Node) -> list[tuple[str, int | None, int]]:
    """Integers among a node's arguments: argument, its place in a list, value."""
    found: list[tuple[str, int | None, int]] = []
    if node.op == "call_function" and (is_op(node.target) or node.target is operator.mul):
        _walk(node, lambda *each: found.append(each) or each[2])  # type: ignore[func-returns-value]
    return found


def _walk(node: fx.Node, each: Callable[[str, int | None, int], int]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A node's arguments with each integer replaced, in order."""
    schema = schema_of(node.target)
    names = [a.name for a in schema.arguments] if schema is not None else [str(i) for i in range(len(node.args))]

    def one(name: str, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [each(name, i, v) if type(v) is int else v for i, v in enumerate(value)]
        return each(name, None, value) if type(value) is int else value

    args = tuple(one(name, value) for name, value in zip(names, node.args, strict=False))
    return args, {name: one(name, value) for name, value in node.kwargs.items()}


def written_sizes(
    model: GraphModel, steps: Sequence[Step], located: Callable[[Step], Sequence[tuple[int, Tensor, str, int | None]]]
) -> dict[tuple[str, str, int | None], SizeAttribute]:
    """Which of the integers follow from what is kept.

    Args:
        model: as it was watched.
        steps: the record.
        located: sizes that a step was given: size, rows of labels that it counts, argument, place in it.
    """
    nodes = {node.name: node for node in model._program.graph.nodes}
    found: dict[tuple[str, str, int | None], SizeAttribute] = {}
    for step in steps:
        node = nodes.get(step.node)
        if node is None or node.target is not step.func:
            continue
        places = {(name, entry): i for i, (name, entry, _) in enumerate(integers(node))}
        for size, rows, name, entry in located(step):
            if len(rows) != size:
                continue
            number = places.get((name, entry))
            if number is not None:
                key = ARGUMENTS, attribute_of(node), number
            else:
                factor, period = _factor(_argument(node, name, entry)), None
                if factor is not None:
                    value = integers(factor)[0][2]
                    period = _period(rows, value)
                if factor is None or period is None:
                    continue
                key, rows = (ARGUMENTS, attribute_of(factor), 0), period
            found[key] = SizeAttribute(*key, rows)
    return found


def _argument(node: fx.Node, name: str, entry: int | None) -> Any:
    value = bind(node.target, node.args, node.kwargs).get(name)
    return value[entry] if entry is not None and isinstance(value, (list, tuple)) else value


def _factor(value: Any) -> fx.Node | None:
    """The node that multiplies a size of the inputs with a written number, if the value is one."""
    if isinstance(value, fx.Node) and value.target is operator.mul and len(integers(value)) == 1:
        return value
    return None


def _period(rows: Tensor, length: int) -> Tensor | None:
    """The rows that return again and again along a dimension that has channels in it and a size of the inputs."""
    if len(rows) % length:
        return None
    for parts, each in ((rows.unflatten(0, (-1, length)), 0), (rows.unflatten(0, (length, -1)), 1)):
        first = parts.select(each, 0)
        if bool((parts == first.unsqueeze(each)).all()):
            return first
    return None
