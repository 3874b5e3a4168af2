"""Which draw of the gates a recomputation belongs to.

Gradient checkpointing runs parts of a forward again during the backward pass, when the model may have run on other
examples since. Autograd numbers the nodes of its graphs in the order of their making: the node whose backward is under way
tells which forward it is from.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from zerogate.errors import ZerogateError
from zerogate.modules.internals import is_reentrant_checkpoint, node_in_backward, node_number


@dataclass(eq=False)
class Draw:
    """One draw of all gates.

    Attributes:
        number: of the first node of its graph.
        z: gives them, detached; None where a part of the model was called by itself, which draws at every layer.
        random: whether z was drawn, and is not the deployed mask.
        learns: which of the tensors made of it have a gradient.
        tensors: made of it again.
    """

    number: int
    z: Callable[[], Tensor] | None
    random: bool
    learns: list[bool]
    tensors: list[Tensor] = field(default_factory=list)


class DrawHistory:
    """All draws whose graphs are alive: a draw is held by its own graph."""

    def __init__(self) -> None:
        self._alive: list[weakref.ref[Draw]] = []
        self._frozen: Draw | None = None  # the last one, if nothing learns: it is part of no graph

    def add(
        self,
        z: Tensor,
        tensors: Sequence[Tensor],
        *,
        whole: bool,
        random: bool,
        again: Callable[[], Tensor] | None = None,
    ) -> None:
        """Notes a draw and the tensors made of it; ``whole``: for a forward of the whole model; ``again``: gives z once
        more, so that it need not be kept."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        node: Any = next((x.grad_fn for x in (z, *tensors) if x.grad_fn is not None), None)
        number = node_number(node)
        values = again or z.detach().detach
        draw = Draw(number, values if whole else None, random, [x.requires_grad for x in tensors])
        self._alive = [ref for ref in self._alive if ref() is not None]
        self._frozen = draw if node is None else None
        if node is not None:
            node.metadata["zerogate"] = draw
            self._alive.append(weakref.ref(draw))

    def recomputed(self) -> Draw | None:
        """The draw of the forward that is being run again, if that is so and it was one of the whole model.

        Raises `ZerogateError` where the gates could not get their gradient.
        """
        node = node_in_backward()
        if node is None:
            return None
        number = node_number(node)
        draws = (draw for ref in self._alive if (draw := ref()) is not None and draw.number <= number)
        found = max(draws, key=lambda draw: draw.number, default=self._frozen)
        if found is None or found.z is None:
            return None
        if is_reentrant_checkpoint(node) and any(found.learns):
            raise ZerogateError(
                "gradient checkpointing with use_reentrant=True starts a backward pass of its own, which does not reach the "
                "gates; pass use_reentrant=False"
            )
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return DrawHistory, ()  # a draw belongs to a graph, which cannot be copied
