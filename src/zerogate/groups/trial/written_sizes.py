"""Which integers of an exported graph follow from what is kept."""

from __future__ import annotations

import operator

from torch import Tensor, fx

from zerogate.groups.arguments import bind
from zerogate.groups.graph.graph_model import ARGUMENTS, GraphModel, attribute_of, integers
from zerogate.groups.recording.record import Recording
from zerogate.groups.trial.size_arguments import SizeArgument, size_arguments
from zerogate.structure import SizeAttribute


def follow_written_sizes(model: GraphModel, recording: Recording) -> None:
    """Enters in the recording of a graph all of its integers that count labels: each size that a node was given, or the
    factor by which that follows from a size of the inputs."""
    nodes = {node.name: node for node in model.nodes}
    for step in recording.steps:
        node = nodes.get(step.node)
        if node is None or node.target is not step.func:
            continue
        places = {(argument, entry): i for i, (argument, entry, _) in enumerate(integers(node))}
        for size in size_arguments(step):
            if len(size.rows) != size.size:
                continue
            place = places.get((size.argument, size.entry))
            if place is not None:
                counted = SizeAttribute(ARGUMENTS, attribute_of(node), (place,), size.rows)
            elif (factor := _counted_by_factor(node, size)) is not None:
                counted = factor
            else:
                continue
            recording.size_attributes[counted.key] = counted


def _counted_by_factor(node: fx.Node, size: SizeArgument) -> SizeAttribute | None:
    """The integer by which a node multiplies a size of the inputs, where that is this size and the integer counts labels."""
    value = bind(node.target, node.args, node.kwargs).get(size.argument)
    if size.entry is not None and isinstance(value, (list, tuple)):
        value = value[size.entry]
    if not isinstance(value, fx.Node) or value.target is not operator.mul:
        return None
    factors = integers(value)
    if len(factors) != 1:
        return None
    ((_, _, factor),) = factors
    rows = _period(size.rows, factor)
    return None if rows is None else SizeAttribute(ARGUMENTS, attribute_of(value), (0,), rows)


def _period(rows: Tensor, length: int) -> Tensor | None:
    """The rows that return again and again along a dimension that has channels in it and a size of the inputs."""
    if len(rows) % length:
        return None
    for parts, each in ((rows.unflatten(0, (-1, length)), 0), (rows.unflatten(0, (length, -1)), 1)):
        first = parts.select(each, 0)
        if bool((parts == first.unsqueeze(each)).all()):
            return first
    return None
