"""What every gate must say, and what gates share to compute it in few kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError
from zerogate.fused import Elementwise, plain_only

Reset = Literal["paper", "code"]
RESETS = get_args(Reset)
"""How logits start another round of a ticket search."""


class Gate(nn.Module, ABC):
    """What a gate must say: how it starts, what it draws in training, what it deploys, how likely it is open.

    Attributes:
        learns: whether logits get gradients.
        scale: what a wholly open gate multiplies by.
        rate: learning rate of the logits, in multiples of that of the weights, where none is given.
    """

    learns = True
    scale = 1.0
    rate = 100.0

    @abstractmethod
    def initial_logits(self, units: int) -> Tensor:
        """Starting logits, float32 [units]."""

    @abstractmethod
    def sample(self, logits: Tensor, examples: int | None = None) -> Tensor:
        """z used in training: [units], or [examples, units] with a draw of its own for each example."""

    @abstractmethod
    def mask(self, logits: Tensor) -> Tensor:
        """z used in evaluation, [units]: deterministic, and exactly 0 for every unit that compaction removes."""

    @abstractmethod
    def open_probability(self, logits: Tensor) -> Tensor:
        """P(z ≠ 0), or its soft stand-in, [units] in [0, 1]; differentiable."""

    def movable_probability(self, logits: Tensor) -> Tensor:
        """`open_probability` with a gradient that moves every gate, also those that are all but decided: what a `Target`
        pushes on."""
        return self.open_probability(logits)

    def step(self) -> None:
        """Called once after each optimizer step; moves schedules on."""

    def restarted(self, logits: Tensor, initial: Tensor, reset: Reset) -> Tensor:
        """Logits with which another round of a ticket search starts, [units]: of open gates the initial ones, of closed
        gates those that they have."""
        return torch.where(self.mask(logits) > 0, initial, logits)

    def restart(self) -> None:
        """Sets schedules back to their beginning."""

    def drawn(self, logits: Tensor, sparing: bool) -> tuple[Tensor, Tensor | None, Again | None]:
        """What `sample` gives, in fewer kernels where the gate knows how, the values of `open_probability` where they come
        with it, and how to have z again. ``sparing``: keep as little as possible for the backward pass."""
        return self.sample(logits), None, None

    def likely(self, logits: Tensor, value: Tensor | None, sparing: bool) -> Tensor:
        """What `open_probability` gives, in fewer kernels where the gate knows how; ``value``: as `drawn` gave it."""
        return self.open_probability(logits)

    def _closed_form(self, *methods: str) -> bool:
        """Whether these are the gate's own, not a subclass's, and nobody needs to see their ops."""
        own = next(c for c in type(self).__mro__ if "drawn" in vars(c))
        return not plain_only() and all(getattr(type(self), m) is getattr(own, m) for m in methods)


class Again:
    """Computes a draw's z once more, in the backward pass: for the weights, and then for the logits."""

    def __init__(self, compute: Callable[[], Tensor], plain: Callable[[], Tensor], check: Callable[[], None]) -> None:
        self._compute, self._plain, self._check = compute, plain, check
        self._made: Tensor | None = None

    def __call__(self) -> Tensor:
        self._check()
        if torch.is_grad_enabled():  # a second derivative is to come
            return self._plain()
        self._made = self._compute()
        return self._made

    def take(self) -> Tensor:
        """To be written to."""
        self._check()
        z, self._made = self._made, None
        return self._compute() if z is None else z


def probability(
    logits: Tensor,
    value: Tensor | None,
    sparing: bool,
    compute: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """An open probability that is perhaps known already; ``derivative(gradient, probability)``."""
    if value is None:
        with torch.no_grad():
            value = compute(logits)
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return value
    check = unchanged(logits)

    def backward(grad: Tensor, *kept: Tensor) -> Tensor:
        if not kept:
            check()
        return derivative(grad, kept[0] if kept else compute(logits))

    return Elementwise.apply(logits, value, () if sparing else (value,), backward, lambda logits, *_: compute(logits))


def movable(x: Tensor, slope: Tensor | float, p: Tensor) -> Tensor:
    """p = σ(slope · x) with the gradient of a sigmoid no steeper than the spread of x allows: at slope · x = 20 its own is
    0 in float32."""
    spread = x.detach().abs().mean().clamp(min=torch.finfo(x.dtype).tiny)
    soft = torch.sigmoid(torch.clamp(2 / spread, max=slope) * x)
    return soft + (p - soft).detach()


def unchanged(*tensors: Tensor) -> Callable[[], None]:
    """Raises RuntimeError where these have been written to since; as autograd does for what it has saved itself."""
    versions = [x._version for x in tensors]

    def check() -> None:
        if [x._version for x in tensors] != versions:
            raise RuntimeError(
                "the gates were changed in place between a forward and its backward pass, which needs them as they were"
            )

    return check


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ZerogateError(message)
