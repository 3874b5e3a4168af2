"""The graph that torch.export makes, in a form that can be recorded and cut."""

from __future__ import annotations

import operator
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from zerogate.groups.arguments import AtenOp, bind
from zerogate.groups.graph.constants import fold_constants, is_followed
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.graph.input_sizes import GraphBuilder, InputSizes
from zerogate.groups.graph.program import Program, source_meta
from zerogate.groups.graph.source_lines import origins_of
from zerogate.groups.ops import Family, spec_of
from zerogate.modules.index import named_tensors, split_name
from zerogate.modules.internals import (
    assert_in_graph,
    assert_metadata,
    buffers_of,
    children_of,
    copy_signature,
    is_higher_order_op,
    is_op,
    parameters_of,
)

_SIZE_OPS = {operator.mul, operator.add, operator.sub, operator.floordiv, torch.ops.aten.sym_size.int}
"""What computes sizes: left out where nobody uses the result."""
_GUARDS = "_guards_fn"
"""Module in which torch.export has put its checks of the inputs."""


class GraphNormalizer:
    """Makes a `GraphModel` of what `ExportedProgram.module` returns.

    Checks of the inputs become nodes; checks of types and devices go, so that the graph can be moved and cast. Cuts into
    equal pieces state each piece, cuts from the end their place from the start. Uniform tensors that the forward makes
    become constants that are sliced as parameters are. Sizes that depend on the inputs' are taken from the inputs, times
    a number of their own where channels are folded into them.

    Args:
        model: that was exported.
        module: its graph.
        alone: module → whether it was always called with one tensor, by position, and nothing else.
    """

    def __init__(self, model: nn.Module, module: fx.GraphModule, alone: dict[str, bool]) -> None:
        self._model, self._module, self._alone = model, module, alone
        self._builder = GraphBuilder()
        self._graph = self._builder.graph
        self._sizes = InputSizes(self._builder)
        self._new: dict[fx.Node, fx.Node] = {}
        """Old node → the new one that gives its value."""
        self._names = {id(x): name for name, x in named_tensors(model)}
        """id of every tensor of the model → its name."""
        self._taken = {split_name(name)[1] for name in self._names.values()} | {*children_of(model)}
        self._constants: dict[str, Tensor] = {}
        self._read: dict[str, fx.Node] = {}
        """Name of a tensor → the node that reads it."""
        self._inlined: dict[fx.Node, list[fx.Node]] = {}
        """Calls of a part of the graph → its results."""

    def result(self) -> GraphModel:
        """The graph model, on the model's own tensors."""
        old = self._module.graph
        self._read_tensors(old)
        for node in old.find_nodes(op="placeholder"):
            self._sizes.add_input(node.meta.get("val"), self._new[node])
            self._check_fixed(node)
        self._copy(old)
        constants = dict(self._constants)
        recipe, folded = fold_constants(self._builder, self._constants, self._reserve_name)
        for node in reversed(self._graph.nodes):
            if not node.users and node.target in _SIZE_OPS:
                self._graph.erase_node(node)
        copy_signature(old, self._graph)
        self._graph.lint()
        first = {id(module): name for name, module in self._model.named_modules()}
        first_names = {name: first[id(m)] for name, m in self._model.named_modules(remove_duplicate=False)}
        origins, spans = origins_of(self._graph, first_names, self._alone)
        return GraphModel(Program(self._graph, origins, spans, constants, recipe, folded), self._model)

    def _copy(self, old: fx.Graph) -> None:
        for node in old.nodes:
            self._builder.meta = source_meta(node)
            if node.op == "call_module" and node.target == _GUARDS:
                self._check_guards([self._new[n] for n in node.all_input_nodes])
            elif node.op in ("call_function", "call_method"):
                if node.target is not assert_metadata:
                    self._new[node] = self._call(node)
            elif node.op == "output" and old is self._module.graph:
                self._graph.node_copy(node, self._new.__getitem__)
            elif node.op == "call_module":
                raise ValueError(f"the exported graph calls a module, {node.target}")

    # tensors

    def _read_tensors(self, old: fx.Graph) -> None:
        """Reads all tensors first, so that they come in the model's order; then takes the inputs."""
        for prefix, module in self._model.named_modules(remove_duplicate=False):
            for name, tensor in [*parameters_of(module).items(), *buffers_of(module).items()]:
                if tensor is not None:
                    path = f"{prefix}.{name}" if prefix else name
                    self._read[path] = self._graph.get_attr(path)
        for node in old.nodes:
            if node.op == "get_attr":
                tensor = _attribute(self._module, str(node.target))
                if isinstance(tensor, Tensor):
                    self._new[node] = self._node_of(tensor, str(node.target))
            elif node.op == "placeholder":
                self._new[node] = self._graph.node_copy(node)

    def _node_of(self, tensor: Tensor, target: str) -> fx.Node:
        """The node that reads a tensor: one of the model's, or a constant under the name that the old graph has for it."""
        name = self._names.get(id(tensor), target)
        if name not in self._read:
            self._constants[name] = tensor.detach()
            self._read[name] = self._graph.get_attr(name)
        return self._read[name]

    def _reserve_name(self) -> str:
        """A name for one more constant."""
        number = len(self._constants)
        while (name := f"constant_{number}") in self._constants or name in self._taken:
            number += 1
        self._constants[name] = torch.empty(0)  # until it is made
        return name

    # checks

    def _check_fixed(self, node: fx.Node) -> None:
        """Checks what the graph takes as fixed of an input: the value of one that is no tensor, and, where torch has no
        conditions on them, sizes."""
        value, call = node.meta.get("val"), self._builder.call
        if value is None or isinstance(value, (bool, int, float, str)):
            same = call(operator.eq, self._new[node], value)
            call(assert_in_graph, same, f"{node.name} must be {value!r}, as it was exported with")
        elif isinstance(value, Tensor) and _GUARDS not in children_of(self._module):
            for dim, size in enumerate(value.shape):
                same = call(operator.eq, call(torch.ops.aten.sym_size.int, self._new[node], dim), int(size))
                call(assert_in_graph, same, f"size {dim} of {node.name} must be {size}, as it was exported with")

    def _check_guards(self, inputs: list[fx.Node]) -> None:
        """Runs torch's checks of the inputs on nodes in place of values, which makes nodes of them."""
        tracer = fx.proxy.GraphAppendingTracer(self._graph)
        self._module.get_submodule(_GUARDS).forward(*(fx.Proxy(node, tracer) for node in inputs))

    # ops

    def _call(self, node: fx.Node) -> fx.Node:
        """The new node for a call."""
        target: Any = node.target
        args: Any = node.args
        if is_higher_order_op(target):
            return self._inline(node)
        if target is operator.getitem and args[0] in self._inlined:
            return self._inlined[args[0]][args[1]]
        value = node.meta.get("val")
        if not is_op(target):
            copied = self._graph.node_copy(node, self._new.__getitem__)
            self._sizes.add(value, copied)
            return copied
        rewritten = self._uniform(node) or self._slice(node)
        if rewritten is not None:
            rewritten.meta["val"] = value
            return rewritten
        is_size = target is torch.ops.aten.sym_size.int
        copied = self._graph.node_copy(node, self._new.__getitem__ if is_size else self._operand)
        if is_size:
            self._sizes.add(value, copied)
        return copied

    def _operand(self, node: fx.Node) -> fx.Node:
        """What an op is given in place of an old node."""
        return self._sizes.node_for(node.meta.get("val"), self._new[node])

    def _uniform(self, node: fx.Node) -> fx.Node | None:
        """A tensor filled with one number, as one of fixed sizes that is expanded along those of the inputs; None for
        all else."""
        spec = spec_of(cast(AtenOp, node.target))
        value: Any = node.meta.get("val")
        place = 1 if spec.name.startswith("new_") else 0
        args: Any = node.args
        if not is_followed(value) or spec.fill is None or not isinstance(args[place], list):
            return None
        fill = bind(node.target, args, {}).get(spec.fill) if isinstance(spec.fill, str) else spec.fill
        if not isinstance(fill, (int, float)):
            return None
        fixed = [n if isinstance(n, int) else 1 for n in value.shape]
        call, aten = self._builder.call, torch.ops.aten
        uniform = call(aten.full.default, fixed, fill, dtype=value.dtype, device=value.device)
        uniform.meta["val"] = value
        sizes = [self._operand(n) if isinstance(n, fx.Node) else -1 for n in args[place]]
        if any(isinstance(n, fx.Node) for n in sizes):
            uniform = call(aten.clone.default, call(aten.expand.default, uniform, sizes))
        return uniform

    def _slice(self, node: fx.Node) -> fx.Node | None:
        """Slices of a dimension whose size is fixed, with every size counted from the start; None for all else."""
        spec = spec_of(cast(AtenOp, node.target))
        if spec.family is not Family.SLICE or not (spec.equal_pieces or spec.start == "start"):
            return None
        bound = bind(node.target, node.args, node.kwargs)
        x = bound["self"].meta["val"]
        dim = bound["dim"] % x.ndim
        size = x.shape[dim]
        if not isinstance(size, int):
            return None
        call, aten, whole = self._builder.call, torch.ops.aten, self._new[bound["self"]]
        if spec.equal_pieces:
            pieces = [int(part.shape[dim]) for part in node.meta["val"]]
            return call(aten.split_with_sizes.default, whole, pieces, dim)
        if spec.name == "narrow":
            start, length = bound["start"], bound["length"]
            if not isinstance(start, int) or not isinstance(length, int):
                return None
            start = start % size if size else 0
            return call(aten.slice.Tensor, whole, dim, start, start + length, 1)
        bounds, step = (bound["start"], bound["end"]), bound["step"]
        if any(not isinstance(n, int) and n is not None for n in (*bounds, step)):
            return None
        start, stop, _ = slice(*bounds).indices(size)
        return call(aten.slice.Tensor, whole, dim, start, max(start, stop), step)

    def _inline(self, node: fx.Node) -> fx.Node:
        """Regions without gradients or autocast, in line: evaluation needs no word on either."""
        args: Any = node.args
        part = next((i for i, x in enumerate(args) if isinstance(x, fx.Node) and x.op == "get_attr"), None)
        name = str(node.target)
        plain = name == "wrap_with_set_grad_enabled" or (name == "wrap_with_autocast" and args[2] is False)
        if part is None or not plain:
            raise ValueError(f"the exported graph holds {name}")
        inner = _attribute(self._module, str(args[part].target)).graph
        for placeholder, argument in zip(inner.find_nodes(op="placeholder"), args[part + 1 :], strict=True):
            self._new[placeholder] = self._new[argument]
        self._copy(inner)
        self._inlined[node] = [self._new[n] for n in inner.output_node().args[0]]
        return self._inlined[node][0]


def _attribute(module: nn.Module, path: str) -> Any:
    """What a module holds at a path of attributes."""
    for name in path.split("."):
        module = getattr(module, name)
    return module
