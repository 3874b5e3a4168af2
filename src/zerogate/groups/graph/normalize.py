"""The graph that torch.export makes, in a form that can be watched and cut."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn

from zerogate.groups.graph.graph_model import GraphModel, Program
from zerogate.groups.graph.source_lines import places_of
from zerogate.groups.ops import Family, bind, spec_of
from zerogate.modules.index import named_tensors
from zerogate.modules.internals import (
    assert_in_graph,
    assert_metadata,
    buffers_of,
    children_of,
    copy_signature,
    is_higher_order_op,
    is_op,
    parameters_of,
    schema_of,
)

_COUNTS = {operator.mul, operator.add, operator.sub, operator.floordiv, torch.ops.aten.sym_size.int}
_LARGE = 1 << 20  # entries up to which a constant is held as a tensor


class GraphNormalizer:
    """Makes an `GraphModel` of what `ExportedProgram.module` returns.

    Checks of the inputs become nodes; checks of types and devices go, so that the graph can be moved and cast. Cuts into
    equal pieces state each piece, cuts from the end their place from the start. Uniform tensors that the forward makes
    become constants that are sliced as parameters are. Sizes that depend on the inputs' are taken from the inputs, times
    a number of their own where channels are folded into them.
    """

    def __init__(self, model: nn.Module, module: fx.GraphModule, alone: dict[str, bool]) -> None:
        self.model, self.module, self.alone = model, module, alone
        self.constants: dict[str, Tensor] = {}
        self.graph = fx.Graph()
        self.new: dict[fx.Node, fx.Node] = {}
        self.sizes: dict[Any, fx.Node] = {}
        """Expression of input sizes → the node that computes it."""
        self.names = {id(x): name for name, x in named_tensors(model)}
        first = {id(module): name for name, module in model.named_modules()}
        self.modules = {name: first[id(m)] for name, m in model.named_modules(remove_duplicate=False)}
        """Name of every module → the first of its names."""
        self.taken = {path.rpartition(".")[2] for path in self.names.values()} | {*children_of(model)}
        self.held: dict[str, fx.Node] = {}
        self.made: list[str] = []
        self.parts: dict[fx.Node, list[fx.Node]] = {}
        """Calls of a part of the graph → its results."""
        self.meta: dict[str, Any] = {}

    def result(self) -> GraphModel:
        old = self.module.graph
        for prefix, module in self.model.named_modules(remove_duplicate=False):  # so that all come in the model's order
            for name, tensor in [*parameters_of(module).items(), *buffers_of(module).items()]:
                if tensor is not None:
                    path = f"{prefix}.{name}" if prefix else name
                    self.held[path] = self._attribute(path)
        for node in old.nodes:
            if node.op == "get_attr":
                held = _held(self.module, str(node.target))
                if isinstance(held, Tensor):
                    self.new[node] = self._tensor(node, held)
            elif node.op == "placeholder":
                self.new[node] = self.graph.node_copy(node)
        for node in old.find_nodes(op="placeholder"):
            self._free_sizes(node)
            self._fixed_value(node)
        self._copy(old)
        recipe = self._fold()
        for node in reversed(self.graph.nodes):
            if not node.users and node.target in _COUNTS:
                self.graph.erase_node(node)
        copy_signature(old, self.graph)
        self.graph.lint()
        places, spans = places_of(self.graph, self.modules, self.alone)
        held = {name: x for name, x in self.constants.items() if name not in self.made}
        return GraphModel(Program(self.graph, places, spans, held, recipe, self.made), self.model)

    def _make(self, target: Any, *args: Any) -> fx.Node:
        made = self.graph.call_function(target, args)
        made.meta = dict(self.meta)
        return made

    def _copy(self, old: fx.Graph) -> None:
        for node in old.nodes:
            self.meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
            if node.op == "call_module" and node.target == "_guards_fn":
                self._checks(self.module.get_submodule("_guards_fn"), [self.new[n] for n in node.all_input_nodes])
            elif node.op in ("call_function", "call_method"):
                if node.target is not assert_metadata:
                    self.new[node] = self._call(node)
            elif node.op == "output" and old is self.module.graph:
                self.graph.node_copy(node, self.new.__getitem__)
            elif node.op == "call_module":
                raise ValueError(f"the exported graph calls a module, {node.target}")

    # tensors

    def _attribute(self, name: str) -> fx.Node:
        return self.graph.create_node("get_attr", name, (), {})

    def _tensor(self, node: fx.Node, held: Tensor) -> fx.Node:
        name = self.names.get(id(held), str(node.target))
        if name not in self.held:
            self.constants[name] = held.detach()
            self.held[name] = self._attribute(name)
        return self.held[name]

    def _name(self) -> str:
        """A name for one more constant."""
        number = len(self.constants)
        while (name := f"constant_{number}") in self.constants or name in self.taken:
            number += 1
        return name

    def _fold(self) -> fx.Graph:
        """Holds floating-point tensors that the forward makes of numbers alone as constants. Returns how they are made."""
        recipe, copied = fx.Graph(), dict[fx.Node, fx.Node]()
        results: list[tuple[str, fx.Node]] = []
        fixed = self._fixed()
        for node in [*fixed]:
            users = [user for user in node.users if user not in fixed]
            value = node.meta.get("val")
            if not users or not _is_followed(value):
                continue
            self.meta = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
            name = self._name()
            self.constants[name] = torch.empty(0)  # until it is made
            with self.graph.inserting_before(node):
                held = self._make(torch.ops.aten.clone.default, self._attribute(name))  # the forward may write into it
            node.replace_all_uses_with(held, delete_user_cb=lambda user: user not in fixed, propagate_meta=False)
            results.append((name, node))
        for node in self.graph.nodes:
            if node in fixed or (node.op == "get_attr" and any(user in fixed for user in node.users)):
                copied[node] = recipe.node_copy(node, copied.__getitem__)
        recipe.output(tuple(copied[node] for _, node in results))
        recipe.eliminate_dead_code()
        for node in reversed(fixed):
            if not node.users:
                self.graph.erase_node(node)
        self.made = [name for name, _ in results]
        return recipe

    def _fixed(self) -> dict[fx.Node, None]:
        """Nodes whose values depend on no input and no parameter, and are not written into."""
        fixed: dict[fx.Node, None] = {}
        written: list[fx.Node] = []
        for node in self.graph.nodes:
            if node.op != "call_function":
                continue
            known = all(n in fixed or (n.op == "get_attr" and n.target in self.constants) for n in node.all_input_nodes)
            schema, tags = schema_of(node.target), getattr(node.target, "tags", ())
            if schema is None:
                if known and node.target is operator.getitem:
                    fixed[node] = None
                continue
            if schema.is_mutable and node.target is not torch.ops.aten.detach_.default:
                written += [node, *node.all_input_nodes]
            if known and torch.Tag.nondeterministic_seeded not in tags:
                fixed[node] = None
        while written:
            node = written.pop()
            if node in fixed:
                del fixed[node]
                written += [*node.all_input_nodes, *node.users]
        return fixed

    # sizes

    def _free_sizes(self, node: fx.Node) -> None:
        value = node.meta.get("val")
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            expression = _expression(size)
            if expression is not None and expression.is_Symbol and expression not in self.sizes:
                self.sizes[expression] = self._make(torch.ops.aten.sym_size.int, self.new[node], dim)

    def _fixed_value(self, node: fx.Node) -> None:
        """Checks what the graph takes as fixed of an input: the value of one that is no tensor, and, where torch has no
        conditions on them, sizes."""
        value = node.meta.get("val")
        if value is None or isinstance(value, (bool, int, float, str)):
            same = self._make(operator.eq, self.new[node], value)
            self._make(assert_in_graph, same, f"{node.name} must be {value!r}, as it was exported with")
        elif isinstance(value, Tensor) and "_guards_fn" not in children_of(self.module):
            for dim, size in enumerate(value.shape):
                same = self._make(operator.eq, self._make(torch.ops.aten.sym_size.int, self.new[node], dim), int(size))
                self._make(assert_in_graph, same, f"size {dim} of {node.name} must be {size}, as it was exported with")

    def _size(self, node: fx.Node) -> fx.Node:
        """A size as a function of the inputs' sizes; times a number of its own, if it has a factor."""
        expression = _expression(node.meta.get("val"))
        if expression is None:
            return self.new[node]
        factor, rest = expression.as_coeff_Mul()
        made = self._computed(rest)
        if made is None or not factor.is_Integer or factor < 1:
            return self.new[node]
        return made if factor == 1 else self._make(operator.mul, made, int(factor))

    def _computed(self, expression: Any) -> fx.Node | None:
        if expression in self.sizes:
            return self.sizes[expression]
        function = operator.add if expression.is_Add else operator.mul if expression.is_Mul else None
        if function is None:
            return None
        parts: list[Any] = [int(e) if e.is_Integer else self._computed(e) for e in expression.args]
        if any(part is None for part in parts):
            return None
        made = parts[0]
        for part in parts[1:]:
            made = self._make(function, made, part)
        self.sizes[expression] = made
        return made

    def _checks(self, guards: nn.Module, inputs: list[fx.Node]) -> None:
        tracer = fx.proxy.GraphAppendingTracer(self.graph)
        guards.forward(*(fx.Proxy(node, tracer) for node in inputs))

    # ops

    def _call(self, node: fx.Node) -> fx.Node:
        target: Any = node.target
        args: Any = node.args
        if is_higher_order_op(target):
            return self._inlined(node)
        if target is operator.getitem and args[0] in self.parts:
            return self.parts[args[0]][args[1]]
        if not is_op(target):
            made = self.graph.node_copy(node, self.new.__getitem__)
            expression = _expression(node.meta.get("val"))
            if expression is not None:
                self.sizes.setdefault(expression, made)
            return made
        rewritten = self._made(node) or self._cut(node)
        if rewritten is not None:
            rewritten.meta["val"] = node.meta.get("val")
            return rewritten
        is_size = target is torch.ops.aten.sym_size.int
        made = self.graph.node_copy(node, self.new.__getitem__ if is_size else self._operand)
        if is_size and (expression := _expression(node.meta.get("val"))) is not None:
            self.sizes.setdefault(expression, made)
        return made

    def _operand(self, node: fx.Node) -> fx.Node:
        return self._size(node) if _expression(node.meta.get("val")) is not None else self.new[node]

    def _made(self, node: fx.Node) -> fx.Node | None:
        """A tensor filled with one number, as one of fixed sizes that is expanded along those of the inputs; None for
        all else."""
        spec = spec_of(node.target)
        value: Any = node.meta.get("val")
        place = 1 if spec.name.startswith("new_") else 0
        args: Any = node.args
        if not _is_followed(value) or spec.fill is None or not isinstance(args[place], list):
            return None
        fill = bind(node.target, args, {}).get(spec.fill) if isinstance(spec.fill, str) else spec.fill
        if not isinstance(fill, (int, float)):
            return None
        fixed = [n if isinstance(n, int) else 1 for n in value.shape]
        options = {"dtype": value.dtype, "device": value.device}
        made = self.graph.call_function(torch.ops.aten.full.default, (fixed, fill), options)
        made.meta = dict(self.meta) | {"val": value}
        sizes = [self._size(n) if isinstance(n, fx.Node) else -1 for n in args[place]]
        if any(isinstance(n, fx.Node) for n in sizes):
            made = self._make(torch.ops.aten.expand.default, made, sizes)
            made = self._make(torch.ops.aten.clone.default, made)
        return made

    def _cut(self, node: fx.Node) -> fx.Node | None:
        """Cuts among places whose number is fixed, with every size counted from the start."""
        spec = spec_of(node.target)
        if spec.family is not Family.SLICE or not (spec.equal_pieces or spec.start == "start"):
            return None
        given = bind(node.target, node.args, node.kwargs)
        x = given["self"].meta["val"]
        dim = given["dim"] % x.ndim
        size = x.shape[dim]
        if not isinstance(size, int):
            return None
        ops, whole = torch.ops.aten, self.new[given["self"]]
        if spec.equal_pieces:
            pieces = [int(part.shape[dim]) for part in node.meta["val"]]
            return self._make(ops.split_with_sizes.default, whole, pieces, dim)
        if spec.name == "narrow":
            start, length = given["start"], given["length"]
            if not isinstance(start, int) or not isinstance(length, int):
                return None
            start = start % size if size else 0
            bounds, step = (start, start + length), 1
        else:
            bounds, step = (given["start"], given["end"]), given["step"]
            if any(not isinstance(n, int) and n is not None for n in (*bounds, step)):
                return None
            start, stop, _ = slice(*bounds).indices(size)
            bounds = start, max(start, stop)
        return self._make(ops.slice.Tensor, whole, dim, *bounds, step)

    def _inlined(self, node: fx.Node) -> fx.Node:
        """Regions without gradients or autocast, in line: evaluation needs no word on either."""
        args: Any = node.args
        part = next((i for i, x in enumerate(args) if isinstance(x, fx.Node) and x.op == "get_attr"), None)
        name = str(node.target)
        plain = name == "wrap_with_set_grad_enabled" or (name == "wrap_with_autocast" and args[2] is False)
        if part is None or not plain:
            raise ValueError(f"the exported graph holds {name}")
        inner = _held(self.module, str(args[part].target)).graph
        for placeholder, given in zip(inner.find_nodes(op="placeholder"), args[part + 1 :], strict=True):
            self.new[placeholder] = self.new[given]
        self._copy(inner)
        self.parts[node] = [self.new[n] for n in inner.output_node().args[0]]
        return self.parts[node][0]


def _is_followed(value: Any) -> bool:
    """Whether a tensor can be sliced with channels: of floating point, and of more than one entry."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout is not torch.strided:
        return False
    fixed = [n for n in value.shape if isinstance(n, int)]
    return any(n > 1 for n in fixed) and math.prod(fixed) <= _LARGE


def _expression(size: Any) -> Any:
    """The expression of a size that depends on the inputs', or None."""
    return size.node.expr if isinstance(size, torch.SymInt) else None


def _held(module: nn.Module, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module
