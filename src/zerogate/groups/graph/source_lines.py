"""Where the nodes of an exported graph come from: the module that called them, and the line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import fx

from zerogate.groups.code_lines import is_internal
from zerogate.groups.graph.program import Origin


def origins_of(
    graph: fx.Graph, first_names: Mapping[str, str], alone: Mapping[str, bool]
) -> tuple[dict[fx.Node, Origin], dict[str, list[fx.Node]]]:
    """The origin of every call in the graph, and the nodes of every module that was called with one tensor.

    Args:
        graph: with what torch.export notes of each node.
        first_names: name of every module → the first of its names.
        alone: module → whether it was always called with one tensor, by position, and nothing else.
    """
    inside: dict[str, dict[fx.Node, None]] = {}
    stacks: dict[fx.Node, dict[str, str]] = {}
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        stacks[node] = {call: first_names[path] for call, (path, _) in stack.items() if path in first_names}
        for call in stacks[node]:
            inside.setdefault(call, {})[node] = None
    begun: set[str] = set()
    origins: dict[fx.Node, Origin] = {}
    spans: dict[str, list[fx.Node]] = {}
    for node, stack in stacks.items():
        if node.op != "call_function":
            continue
        origin = Origin(["", *stack.values()][-1], _line(node))
        for call, path in stack.items():
            if call not in begun:
                begun.add(call)
                inputs = _inputs(inside[call])
                origin.begins[path] = inputs, alone.get(path, False) and len(inputs) == 1
                if origin.begins[path][1]:
                    spans.setdefault(path, list(inside[call]))
        origins[node] = origin
    return origins, spans


def _inputs(nodes: dict[fx.Node, None]) -> list[fx.Node]:
    """Values from outside that nodes work on."""
    return list(
        dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in nodes and n.op != "get_attr")
    )


def _line(node: fx.Node) -> tuple[str, int]:
    """File and line of the innermost frame that is the user's."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return next(((file, int(n)) for file, n in reversed(frames) if not is_internal(file)), ("", 0))
