"""What happens around a gated model's forwards.

Hooks are objects, not closures, so that copies and pickles of a gated model carry gates of their own with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from zerogate.errors import ZerogateError
from zerogate.masking.forward import GatedForward
from zerogate.masking.replicas import begin_replica, check_gated_replica
from zerogate.modules.computed_weights import LayerWeights
from zerogate.modules.index import ListPlace, put_in_lists
from zerogate.modules.internals import MODULE_CALL, frames_above, is_replica


class Owned(NamedTuple):
    """How a module holds a weight."""

    owner: nn.Module
    attribute: str
    lists: Sequence[ListPlace] = ()
    """Where it holds it besides."""

    def shadow(self, product: Tensor) -> None:
        """Puts a product in the weight's place, in the owner's `__dict__`, which Python searches before the registered
        parameters."""
        self.owner.__dict__[self.attribute] = product
        put_in_lists(self.owner, self.lists, product)

    def uncover(self) -> None:
        """Takes back what shadows the weight, if anything does."""
        if self.owner.__dict__.pop(self.attribute, None) is not None and self.lists:
            put_in_lists(self.owner, self.lists, getattr(self.owner, self.attribute))


class Attached(Protocol):
    """What the root's hook asks of the attachment that has put it there."""

    def uncover(self) -> None:
        """Takes back what a forward that was broken off has left shadowed."""

    def come_last(self) -> None:
        """Has the hooks that change a layer's input run behind those that were registered later."""


@dataclass
class Begin:
    """Pre-hook of the root: draws the gates."""

    forward: GatedForward
    attachment: Attached

    def __call__(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        forward = self.forward
        if is_replica(module):
            begin_replica(forward, module)
            return
        if forward.depth:
            if _calls_itself(module):
                forward.depth += 1
                return
            self.attachment.uncover()  # the last forward was broken off
        if not torch.compiler.is_compiling():
            self.attachment.come_last()
        examples = None
        if forward.multiplies_activations:
            examples = next(x.shape[0] for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        forward.draw(examples)
        forward.depth = 1


def _calls_itself(module: nn.Module) -> bool:
    """Whether a forward of this module is under way, besides the one that begins."""
    calls = (f for f in frames_above() if f.f_code is MODULE_CALL and f.f_locals.get("self") is module)
    return sum(1 for _ in calls) > 1


@dataclass
class End:
    """Hook of the root: drops what was drawn when the outermost forward ends."""

    forward: GatedForward

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        if is_replica(module):  # used once
            return
        self.forward.depth = max(0, self.forward.depth - 1)
        if not self.forward.depth:
            self.forward.forget()


@dataclass
class Shadow:
    """Pre-hook of a module that reads gated weights: shadows each with its product.

    Attributes:
        weights: how each weight is held, and its number.
        calls: what each call that is under way has shadowed: a module may call itself, or another that reads its weight.
    """

    forward: GatedForward
    weights: list[tuple[Owned, int]]
    calls: list[list[Owned]]

    def __call__(self, module: nn.Module, args: object) -> None:
        if is_replica(module):
            check_gated_replica(module)
            return
        shadowed: list[Owned] = []
        if not self.forward.multiplies_activations:
            for weight, number in self.weights:
                if weight.attribute not in weight.owner.__dict__:
                    shadowed.append(weight)
                weight.shadow(self.forward.current(number))
        self.calls.append(shadowed)


@dataclass
class Unshadow:
    """Hook of such a module: takes back what its latest call has shadowed."""

    calls: list[list[Owned]]

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        for weight in self.calls.pop() if self.calls and not is_replica(module) else ():
            weight.uncover()


@dataclass
class ComputedWeightGates:
    """Stands as ``forward`` in the `__dict__` of a module that computes its weight: runs the module's own forward, in which
    the layer reads the weight times its gates.

    Attributes:
        number: of the weight.
        module: whose forward it is.
        before: what stood there before, if anything did.
    """

    forward: GatedForward
    number: int
    module: nn.Module
    before: Callable[..., object] | None = None

    def __call__(self, *args: object, **kwargs: object) -> object:
        run = partial(type(self.module).forward, self.module) if self.before is None else self.before
        if self.forward.multiplies_activations:
            return run(*args, **kwargs)
        gates = self.forward.current(self.number)
        with LayerWeights(lambda weight, bias: weight * gates.to(weight.dtype)):
            return run(*args, **kwargs)

    def remove(self) -> None:
        """Gives the module its own forward back."""
        own = self.module.__dict__
        if own.get("forward") is self:
            del own["forward"]
            if self.before is not None:
                own["forward"] = self.before


@dataclass
class StatisticsWeights:
    """How much each channel counts in a norm's statistics, asked for when the norm runs."""

    forward: GatedForward
    number: int

    def __call__(self) -> Tensor:
        return self.forward.statistics(self.number)


@dataclass
class Multiply:
    """Pre-hook of a layer with per-example gates: multiplies its input by the gates of its channels."""

    forward: GatedForward
    number: int
    channel_dim: int

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not self.forward.multiplies_activations:
            return None
        if not args:
            raise ZerogateError(
                f"per-example gates: a {type(module).__name__} was called with keywords alone; pass its input by position"
            )
        x, z = args[0], self.forward.current(self.number)
        known = self.forward.known_product(x, self.number, self.channel_dim)
        if known is not None:
            return (known, *args[1:])
        if x.shape[0] != z.shape[0]:
            raise ZerogateError(
                f"per-example gates: a layer received {x.shape[0]} examples where the network received {z.shape[0]}; "
                "use per_example=False for networks that fold other dimensions into the batch"
            )
        groups = x.shape[self.channel_dim] // z.shape[1]  # of a convolution, which share their gates
        product = self.forward.times(x, z if groups == 1 else z.repeat(1, groups), self.channel_dim)
        self.forward.note_product(x, self.number, self.channel_dim, product)
        return (product, *args[1:])
