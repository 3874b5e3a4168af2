"""Tensors that a forward makes of numbers alone: held as constants, which are sliced as parameters are."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection

import torch
from torch import Tensor, fx

from zerogate.groups.graph.input_sizes import GraphBuilder
from zerogate.groups.graph.program import Value, source_meta
from zerogate.groups.limits import FOLDED_CONSTANT_ENTRIES
from zerogate.modules.internals import schema_of


def fold_constants(
    builder: GraphBuilder, constants: Collection[str], new_name: Callable[[], str]
) -> tuple[fx.Graph, list[str]]:
    """Reads floating-point tensors that are made of numbers and constants alone as constants, in a graph that is complete.

    Args:
        builder: of the graph.
        constants: names of the constants that it reads already.
        new_name: gives a name for one more.

    Returns:
        How the new constants are made, and their names.
    """
    recipe, copied = fx.Graph(), dict[fx.Node, fx.Node]()
    results: list[tuple[str, fx.Node]] = []
    fixed = _fixed_nodes(builder.graph, constants)
    for node in [*fixed]:
        users = [user for user in node.users if user not in fixed]
        if not users or not is_followed(node.meta.get("val")):
            continue
        builder.meta = source_meta(node)
        name = new_name()
        with builder.graph.inserting_before(node):
            clone = builder.call(
                torch.ops.aten.clone.default, builder.graph.get_attr(name)
            )  # the forward may write into it
        node.replace_all_uses_with(clone, delete_user_cb=lambda user: user not in fixed, propagate_meta=False)
        results.append((name, node))
    for node in builder.graph.nodes:
        if node in fixed or (node.op == "get_attr" and any(user in fixed for user in node.users)):
            copied[node] = recipe.node_copy(node, copied.__getitem__)
    recipe.output(tuple(copied[node] for _, node in results))
    recipe.eliminate_dead_code()
    for node in reversed(fixed):
        if not node.users:
            builder.graph.erase_node(node)
    return recipe, [name for name, _ in results]


def _fixed_nodes(graph: fx.Graph, constants: Collection[str]) -> dict[fx.Node, None]:
    """Nodes whose values depend on no input and no parameter, and are not written into."""
    fixed: dict[fx.Node, None] = {}
    written: list[fx.Node] = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        known = all(n in fixed or (n.op == "get_attr" and n.target in constants) for n in node.all_input_nodes)
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


def is_followed(value: Value) -> bool:
    """Whether a tensor can be sliced with channels: of floating point, and of more than one entry."""
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout is not torch.strided:
        return False
    fixed = [n for n in value.shape if isinstance(n, int)]
    return any(n > 1 for n in fixed) and math.prod(fixed) <= FOLDED_CONSTANT_ENTRIES
