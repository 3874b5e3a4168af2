"""A graph of torch.export as a module that runs node by node, recorded and cut like any other.

The integers that nodes are given, sizes among them, are attributes of one of its modules: what sizes follow from what is
kept is then set as in any module that states its sizes.
"""

from __future__ import annotations

import copy
import operator
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from zerogate.groups.graph.program import Arguments, Origin, Program, Value, source_meta
from zerogate.modules.index import modules_by_name, named_tensors, put, split_name
from zerogate.modules.internals import (
    buffers_of,
    children_of,
    copy_signature,
    is_op,
    parameters_of,
    schema_of,
    transient_names_of,
)

ARGUMENTS = "exported graph.arguments"
"""Module that holds the integers of all nodes. No module of a network is called so, as a name in Python code holds no space.
It is two levels below the root, so that no search for the attribute that states a size comes upon it: such a search looks in
a running module, those around it, and its direct children (see `trial.candidates`)."""


class Listener(Protocol):
    """Who is told where in the model the graph is while it runs."""

    stack: list[str]
    """The modules whose forwards are running; the last entry is written."""
    node: str
    """Name of the node that runs."""
    line: tuple[str, int] | None
    """File and line of the user's code from which it comes."""

    def entered(self, module: str, args: tuple[Value, ...], kwargs: dict[str, Value]) -> None:
        """Called where a module's forward begins."""


def _nobody() -> None:
    """Where nobody listens."""


class GraphModel(nn.Module):
    """The graph with a model's tensors.

    Parameters and buffers are held under all the names that the model has for them, in modules of the same names, which
    have no forward of their own. Takes what the model was exported with, in the same form, and returns its tensors flat.
    """

    def __init__(self, program: Program, model: nn.Module) -> None:
        super().__init__()
        self._program = program
        self._listener: Callable[[], Listener | None] = _nobody
        memo: dict[int, nn.Module] = {id(model): self}
        _mirror(model, self, memo)
        for name, tensor in _constants(program, program.constants, nullcontext()).items():
            owner, attribute = split_name(name)
            self.get_submodule(owner).register_buffer(attribute, tensor, persistent=False)
        holder, _, inside = ARGUMENTS.partition(".")
        self.add_module(holder, nn.Module())
        self.get_submodule(holder).add_module(inside, nn.Module())
        for node in program.graph.nodes:
            if numbers := integers(node):
                setattr(self.get_submodule(ARGUMENTS), attribute_of(node), tuple(n.value for n in numbers))
        self.eval()

    @property
    def listener(self) -> Listener | None:
        """Who is told where the graph is; the model does not hold it, whose tensors are none of its own."""
        return self._listener()

    @listener.setter
    def listener(self, listener: Listener) -> None:
        self._listener = weakref.ref(listener)

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes in the order in which they run."""
        return list(self._program.graph.nodes)

    def forward(self, *args: Value, **kwargs: Value) -> Value:
        leaves = iter(tree_leaves((args, kwargs)))
        values: dict[fx.Node, Value] = {}
        for node in self._program.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(leaves)
            elif node.op == "get_attr":
                owner, attribute = split_name(str(node.target))
                values[node] = getattr(self.get_submodule(owner), attribute)
            else:
                arguments = fx.node.map_arg(self.arguments_of(node), values.__getitem__)
                if self.listener is not None:
                    self._tell(self.listener, node, values)
                if node.op == "output":
                    return arguments[0][0]
                values[node] = _run(node, *arguments)
            for old in self._program.last.get(node, ()):
                del values[old]
        raise AssertionError("a graph without an output")

    def _tell(self, listener: Listener, node: fx.Node, values: dict[fx.Node, Value]) -> None:
        origin = self._program.origins.get(node, Origin())
        for module, (inputs, alone) in origin.begins.items():
            present = tuple(values[n] for n in inputs if n in values)
            listener.entered(module, *((present, {}) if alone else ((), {"given": present})))
        listener.stack[-1] = origin.module
        listener.node, listener.line = node.name, origin.line

    def arguments_of(self, node: fx.Node) -> Arguments:
        """A node's arguments with the integers as they are now."""
        numbers = vars(self.get_submodule(ARGUMENTS)).get(attribute_of(node))
        return (node.args, dict(node.kwargs)) if numbers is None else _with_integers(node, iter(numbers))

    def holding(self, model: nn.Module, mode: AbstractContextManager[object]) -> GraphModel:
        """The same graph with the tensors of another instance of the model, and constants made under ``mode``, of that
        instance's precision."""
        tensors, own = dict(named_tensors(model)), dict(named_tensors(self))
        was, now = (next(m.parameters()).dtype for m in (self, model))
        twin = copy.deepcopy(self, {id(x): tensors[name] for name, x in own.items() if name in tensors})
        constants = {name: x.to(now) if x.dtype == was else x for name, x in self._program.constants.items()}
        modules = modules_by_name(twin, twice=True)
        for name, x in _constants(self._program, constants, mode).items():
            put(modules, [name], x.to(now) if x.dtype == was else x)
        return twin

    def part(self, module: str, twin: nn.Module) -> GraphModel | None:
        """What runs inside a module that takes one tensor and returns one, with the tensors of a copy of the module."""
        span = self._program.spans.get(module, [])
        inside = set(span)
        inputs = dict.fromkeys(
            n for node in span for n in node.all_input_nodes if n not in inside and n.op != "get_attr"
        )
        results = [node for node in span if any(user not in inside for user in node.users)]
        if len(inputs) != 1 or len(results) != 1:
            return None
        graph = fx.Graph()
        values = {next(iter(inputs)): graph.placeholder("x")}
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
            new.meta = source_meta(node)
            args, kwargs = self.arguments_of(node)
            new.args = fx.node.map_arg(args, values.__getitem__)
            new.kwargs = fx.node.map_arg(kwargs, values.__getitem__)
        copy_signature(self._program.graph, graph)
        module = fx.GraphModule(self, graph, class_name=name)
        for prefix, holder in self.named_modules(remove_duplicate=False):
            transient = transient_names_of(holder)
            if transient:
                transient_names_of(module.get_submodule(prefix)).update(transient)
        return module.eval()


def _constants(
    program: Program, constants: dict[str, Tensor], mode: AbstractContextManager[object]
) -> dict[str, Tensor]:
    """These constants of a program, and those that it makes of them under ``mode``."""
    values: dict[fx.Node, Value] = {}
    for node in program.recipe.nodes:
        if node.op == "get_attr":
            values[node] = constants[str(node.target)]
        elif node.op == "output":
            results = fx.node.map_arg(node.args[0], values.__getitem__)
            return constants | dict(zip(program.folded, results, strict=True))
        else:
            with torch.no_grad(), mode:
                values[node] = _run(node, *fx.node.map_arg((node.args, node.kwargs), values.__getitem__))
    return constants


def _run(node: fx.Node, args: tuple[Value, ...], kwargs: dict[str, Value]) -> Value:
    if isinstance(node.target, str):  # a method's name
        return getattr(args[0], node.target)(*args[1:], **kwargs)
    return node.target(*args, **kwargs)


def _mirror(model: nn.Module, twin: nn.Module, memo: dict[int, nn.Module]) -> None:
    """Puts a model's tensors into modules of the same names."""
    parameters_of(twin).update(parameters_of(model))
    buffers_of(twin).update(buffers_of(model))
    transient_names_of(twin).update(transient_names_of(model))
    for name, child in children_of(model).items():
        if child is not None:
            known = id(child) in memo
            children_of(twin)[name] = memo.setdefault(id(child), nn.Module())
            if not known:
                _mirror(child, memo[id(child)], memo)


def attribute_of(node: fx.Node) -> str:
    """The attribute of module `ARGUMENTS` that holds a node's integers, a tuple. The word and the space before the node's
    name keep it apart from what a module has anyway: a node may be called "training"."""
    return f"of {node.name}"


class Integer(NamedTuple):
    """A whole number that a node is given."""

    argument: str
    """Name of the argument; its position for what is no ATen op."""
    entry: int | None
    """Place in the argument, if that is a list."""
    value: int


def integers(node: fx.Node) -> list[Integer]:
    """The whole numbers among a node's arguments, in the order of its arguments."""
    if node.op != "call_function" or not (is_op(node.target) or node.target is operator.mul):
        return []
    schema = schema_of(node.target)
    names = [a.name for a in schema.arguments] if schema is not None else [str(i) for i in range(len(node.args))]
    numbers: list[Integer] = []
    for name, value in [*zip(names, node.args, strict=False), *node.kwargs.items()]:
        if isinstance(value, (list, tuple)):
            numbers += [Integer(name, i, v) for i, v in enumerate(value) if type(v) is int]
        elif type(value) is int:
            numbers.append(Integer(name, None, value))
    return numbers


def _with_integers(node: fx.Node, numbers: Iterator[int]) -> Arguments:
    """A node's arguments with these numbers in place of its `integers`."""

    def filled(value: Value) -> Value:
        if isinstance(value, (list, tuple)):
            return [next(numbers) if type(v) is int else v for v in value]
        return next(numbers) if type(value) is int else value

    return tuple([filled(value) for value in node.args]), {name: filled(value) for name, value in node.kwargs.items()}
