"""Where the nodes of an exported graph come from: the module that called them, and the line."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import fx

from zerogate.groups.graph.graph_model import Place
from zerogate.groups.recording.tracer import is_internal


def places_of(
    graph: fx.Graph, modules: Mapping[str, str], alone: Mapping[str, bool]
) -> tuple[dict[fx.Node, Place], dict[str, list[fx.Node]]]:
    """The place of every call in the graph, and the nodes of every module that was called with one tensor.

    Args:
        modules: name of every module → the first of its names.
        alone: module → whether it was always called with one tensor, by position, and nothing else.
    """
    inside: dict[str, dict[fx.Node, None]] = {}
    stacks: dict[fx.Node, dict[str, str]] = {}
    for node in graph.nodes:
        held = node.meta.get("nn_module_stack") or {}
        stacks[node] = {key: modules[path] for key, (path, _) in held.items() if path in modules}
        for key in stacks[node]:
            inside.setdefault(key, {})[node] = None
    begun: set[str] = set()
    places: dict[fx.Node, Place] = {}
    spans: dict[str, list[fx.Node]] = {}
    for node, stack in stacks.items():
        if node.op != "call_function":
            continue
        place = Place(["", *stack.values()][-1], _line(node))
        for key, path in stack.items():
            if key not in begun:
                begun.add(key)
                given = _given(inside[key])
                place.begins[path] = given, alone.get(path, False) and len(given) == 1
                if place.begins[path][1]:
                    spans.setdefault(path, list(inside[key]))
        places[node] = place
    return places, spans


def _given(nodes: dict[fx.Node, None]) -> list[fx.Node]:
    """Values from outside that nodes work on."""
    found = dict.fromkeys(n for node in nodes for n in node.all_input_nodes if n not in nodes and n.op != "get_attr")
    return list(found)


def _line(node: fx.Node) -> tuple[str, int]:
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    return next(((file, int(n)) for file, n in reversed(frames) if not is_internal(file)), ("", 0))
