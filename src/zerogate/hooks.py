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

if TYPE_CHECKING:
    from zerogate.masking import Sparsified


@dataclass
class Begin:
    sparse: Sparsified

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.sparse._inside:  # the last forward was broken off
            self.sparse.uncover()
        examples = None
        if self.sparse.multiplies_activations:
            examples = next(x.shape[0] for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor))
        self.sparse.draw(examples)
        self.sparse._inside = True


@dataclass
class End:
    sparse: Sparsified

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.sparse._inside = False
        if output is None or not torch.is_grad_enabled():  # None: the forward broke off
            self.sparse.forget()


@dataclass
class Shadow:
    sparse: Sparsified
    held: list[tuple[nn.Module, str, int]]

    def __call__(self, module: nn.Module, args: Any) -> None:
        if not self.sparse.multiplies_activations:
            for owner, attribute, number in self.held:
                owner.__dict__[attribute] = self.sparse.current(number)


@dataclass
class Unshadow:
    held: list[tuple[nn.Module, str, int]]

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        for owner, attribute, _ in self.held:
            owner.__dict__.pop(attribute, None)


@dataclass
class Weights:
    """How much each channel counts in a norm's statistics."""

    sparse: Sparsified
    number: int

    def __call__(self) -> Tensor:
        return self.sparse.statistics(self.number)


@dataclass
class Multiply:
    sparse: Sparsified
    number: int
    channel_dim: int

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.sparse.multiplies_activations:
            return None
        x, z = args[0], self.sparse.current(self.number)
        if x.shape[0] != z.shape[0]:
            raise ZerogateError(
                f"per-example gates: a layer received {x.shape[0]} examples where the network received {z.shape[0]}; "
                "use per_example=False for networks that fold other dimensions into the batch"
            )
        shape = [1] * x.ndim
        shape[0], shape[self.channel_dim] = z.shape
        return (x * z.view(shape).to(x.dtype), *args[1:])
