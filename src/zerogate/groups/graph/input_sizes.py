"""A graph that is being built, and the sizes in it that depend on the inputs'."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from zerogate.groups.graph.program import Value

Expression = Any
"""Of sympy, in the symbols that torch.export has made for the sizes of the inputs."""


class GraphBuilder:
    """A new graph; its nodes are noted to come from where the node of the old graph does that is being copied."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.meta: dict[str, Value] = {}
        """What new nodes note of where they come from."""

    def call(self, target: Any, *args: Value, **kwargs: Value) -> fx.Node:
        """A new node that calls a function."""
        node = self.graph.call_function(target, args, kwargs)
        node.meta = dict(self.meta)
        return node


class InputSizes:
    """Nodes that compute sizes from the inputs' sizes, each once."""

    def __init__(self, builder: GraphBuilder) -> None:
        self._builder = builder
        self._nodes: dict[Expression, fx.Node] = {}

    def add_input(self, value: Value, node: fx.Node) -> None:
        """Adds the free sizes of an input: ``value`` as torch.export notes it, ``node`` that gives it in the new graph."""
        for dim, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            expression = expression_of(size)
            if expression is not None and expression.is_Symbol and expression not in self._nodes:
                self._nodes[expression] = self._builder.call(torch.ops.aten.sym_size.int, node, dim)

    def add(self, value: Value, node: fx.Node) -> None:
        """Notes that a node of the new graph gives a size, unless one does already."""
        expression = expression_of(value)
        if expression is not None:
            self._nodes.setdefault(expression, node)

    def node_for(self, value: Value, otherwise: fx.Node) -> fx.Node:
        """The node for a size: a function of the inputs' sizes, times a number of its own if it has a factor.

        ``otherwise``: the node for what is no such size.
        """
        expression = expression_of(value)
        if expression is None:
            return otherwise
        factor, rest = expression.as_coeff_Mul()
        node = self._computed(rest)
        if node is None or not factor.is_Integer or factor < 1:
            return otherwise
        return node if factor == 1 else self._builder.call(operator.mul, node, int(factor))

    def _computed(self, expression: Expression) -> fx.Node | None:
        """The node that computes a sum or product; None for what is neither."""
        if expression in self._nodes:
            return self._nodes[expression]
        function = operator.add if expression.is_Add else operator.mul if expression.is_Mul else None
        if function is None:
            return None
        parts = [int(e) if e.is_Integer else self._computed(e) for e in expression.args]
        if any(part is None for part in parts):
            return None
        node: Value = parts[0]
        for part in parts[1:]:
            node = self._builder.call(function, node, part)
        self._nodes[expression] = node
        return node


def expression_of(size: Value) -> Expression | None:
    """The expression of a size that depends on the inputs', or None."""
    return size.node.expr if isinstance(size, torch.SymInt) else None
