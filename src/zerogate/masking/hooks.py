"""What happens around a gated model's forwards.

Hooks are objects, not closures, so that copies and pickles of a gated model carry their own handle with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from zerogate.errors import ZerogateError
from zerogate.modules.internals import MODULE_CALL, frames_above

if TYPE_CHECKING:
    from zerogate.masking.attachment import Attachment
    from zerogate.masking.forward import GatedForward


@dataclass
class Begin:
    gating: GatedForward
    attachment: Attachment

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        gating = self.gating
        if gating.depth:
            if _calls_itself(module):
                gating.depth += 1
                return
            self.attachment.uncover()  # the last forward was broken off
        if not torch.compiler.is_compiling():
            self.attachment.come_last()
        examples = None
        if gating.multiplies_activations:
            examples = next(x.shape[0] for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        gating.draw(examples)
        gating.depth = 1


def _calls_itself(module: nn.Module) -> bool:
    """Whether a forward of this module is under way, besides the one that begins."""
    calls = (f for f in frames_above() if f.f_code is MODULE_CALL and f.f_locals.get("self") is module)
    return sum(1 for _ in calls) > 1


@dataclass
class End:
    gating: GatedForward

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.gating.depth = max(0, self.gating.depth - 1)
        if not self.gating.depth:
            self.gating.forget()


@dataclass
class Shadow:
    gating: GatedForward
    held: list[tuple[nn.Module, str, int]]
    put: list[list[tuple[nn.Module, str]]]
    """What each call that is under way has shadowed: a module may call itself, or another one that reads its weight."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        put = []
        if not self.gating.multiplies_activations:
            for owner, attribute, number in self.held:
                if attribute not in owner.__dict__:
                    put.append((owner, attribute))
                owner.__dict__[attribute] = self.gating.current(number)
        self.put.append(put)


@dataclass
class Unshadow:
    put: list[list[tuple[nn.Module, str]]]

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        for owner, attribute in self.put.pop() if self.put else ():
            owner.__dict__.pop(attribute, None)


@dataclass
class Weights:
    """How much each channel counts in a norm's statistics."""

    gating: GatedForward
    number: int

    def __call__(self) -> Tensor:
        return self.gating.statistics(self.number)


@dataclass
class Multiply:
    gating: GatedForward
    number: int
    channel_dim: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.gating.multiplies_activations:
            return None
        x, z = args[0], self.gating.current(self.number)
        known = self.gating.known_product(x, self.number, self.channel_dim)
        if known is not None:
            return (known, *args[1:])
        if x.shape[0] != z.shape[0]:
            raise ZerogateError(
                f"per-example gates: a layer received {x.shape[0]} examples where the network received {z.shape[0]}; "
                "use per_example=False for networks that fold other dimensions into the batch"
            )
        product = self.gating.times(x, z, self.channel_dim)
        self.gating.note_product(x, self.number, self.channel_dim, product)
        return (product, *args[1:])
