"""A graph of torch.export with what is known of its nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

Value = Any
"""What a node is given or returns: tensors, numbers, other objects and containers of these. torch.fx says no more."""
Arguments = tuple[tuple[Value, ...], dict[str, Value]]
"""A node's arguments, positional and named."""


@dataclass
class Origin:
    """Where in the model a node comes from."""

    module: str = ""
    """Innermost module whose forward was running."""
    line: tuple[str, int] = ("", 0)
    """File and line of the user's code."""
    begins: dict[str, tuple[list[fx.Node], bool]] = field(default_factory=dict)
    """Modules whose forward begins with this node → what they are given, and whether that is all of it: one tensor, by
    position."""


@dataclass
class Program:
    """What never changes; copies of a `GraphModel` share it."""

    graph: fx.Graph
    origins: dict[fx.Node, Origin]
    spans: dict[str, list[fx.Node]] = field(default_factory=dict)
    """Module → the nodes of its first call."""
    constants: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that the model holds without having registered them."""
    recipe: fx.Graph = field(default_factory=fx.Graph)
    """How other constants are made of these and of numbers."""
    folded: list[str] = field(default_factory=list)
    """Names of what the recipe makes."""
    last: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    """Node → values that nobody needs after it."""

    def __post_init__(self) -> None:
        last_use = {n: node for node in self.graph.nodes for n in node.all_input_nodes}
        for origin in self.origins.values():
            origin.begins = {
                module: (inputs, alone)
                for module, (inputs, alone) in origin.begins.items()
                if all(n in last_use for n in inputs)
            }
        for value, node in last_use.items():
            self.last.setdefault(node, []).append(value)

    def __deepcopy__(self, memo: dict[int, object]) -> Program:
        return self


def source_meta(node: fx.Node) -> dict[str, Value]:
    """What torch.export notes of where in the user's code a node comes from."""
    return {key: value for key, value in node.meta.items() if key in ("nn_module_stack", "stack_trace")}
