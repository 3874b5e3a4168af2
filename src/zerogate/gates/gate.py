"""What every gate must say, and what gates share to compute it in few kernels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError
from zerogate.masking.fused_weights import Elementwise
from zerogate.modules.internals import must_stay_traceable, version_of

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

    def movable_probability(self, logits: Tensor, value: Tensor | None = None) -> Tensor:
        """`open_probability` with a gradient that moves every gate, also those that are all but decided: what a `Target`
        pushes on. ``value``: its values, where they are known."""
        return self.open_probability(logits)

    def step(self) -> None:
        """Called once after each optimizer step; moves schedules on."""

    def restarted(self, logits: Tensor, initial: Tensor, reset: Reset) -> Tensor:
        """Logits with which another round of a ticket search starts, [units]: of open gates the initial ones, of closed
        gates those that they have."""
        return torch.where(self.mask(logits) > 0, initial, logits)

    def restart(self) -> None:
        """Sets schedules back to their beginning."""

    def drawn(
        self, logits: Tensor, sparing: bool, examples: int | None = None
    ) -> tuple[Tensor, Tensor | None, Again | None]:
        """What `sample` gives, in fewer kernels where the gate knows how, the values of `open_probability` where they come
        with it, and how to have z again. ``sparing``: keep as little as possible for the backward pass."""
        return self.sample(logits, examples), None, None

    def likely(self, logits: Tensor, value: Tensor | None, sparing: bool, again: Again | None = None) -> Tensor:
        """What `open_probability` gives, in fewer kernels where the gate knows how; ``value`` and ``again``: as `drawn`
        gave them."""
        return self.open_probability(logits)

    def _closed_form(self, *methods: str) -> bool:
        """Whether these are the gate's own, not a subclass's, and nobody needs to see their ops."""
        own = next(c for c in type(self).__mro__ if "drawn" in vars(c))
        return not must_stay_traceable() and all(getattr(type(self), m) is getattr(own, m) for m in methods)


class Room:
    """Where a gate writes the open probabilities of its draws, each over those of the one before."""

    def __init__(self, like: Tensor) -> None:
        with torch.inference_mode(False):
            self.numbers = torch.empty_like(like, requires_grad=False)
        self.draws = 0

    def fits(self, logits: Tensor) -> bool:
        kind = (logits.shape, logits.dtype, logits.device)
        return (self.numbers.shape, self.numbers.dtype, self.numbers.device) == kind


class Again:
    """Open probabilities p of a draw for its backward pass, which autograd does not keep: what the room still holds, or
    computed once more. The gates z are a multiple of them. ``given``: what they are computed from."""

    def __init__(self, compute: Callable[[], Tensor], scale: float, *given: Tensor, room: Room | None = None) -> None:
        self._compute, self._scale, self._check, self._room = compute, scale, unchanged(*given), room
        if room is not None:
            room.draws += 1
            self._number = room.draws

    def p(self) -> Tensor:
        self._check()
        room = self._room
        if room is None or room.draws != self._number or torch.is_grad_enabled():  # a second derivative is to come
            return self._compute()
        return room.numbers

    def z(self) -> Tensor:
        return self.p() * self._scale


def probability(
    logits: Tensor,
    value: Tensor | None,
    sparing: bool,
    compute: Callable[[Tensor], Tensor],
    derivative: Callable[[Tensor, Tensor], Tensor],
    again: Again | None = None,
) -> Tensor:
    """An open probability that is perhaps known already; ``derivative(gradient, probability)``. ``again``: how to have
    it once more, if it is not kept."""
    if value is None:
        with torch.no_grad():
            value = compute(logits)
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return value
    again = again or Again(lambda: compute(logits), 1.0, logits)

    def backward(grad: Tensor, *kept: Tensor) -> Tensor:
        return derivative(grad, kept[0] if kept else again.p())

    return Elementwise.apply(logits, value, () if sparing else (value,), backward, lambda logits, *_: compute(logits))


def movable(logits: Tensor, shift: float, slope: Tensor | float, value: Tensor) -> Tensor:
    """σ(slope · (logits − shift)), which is known to be ``value``, with the gradient of a sigmoid no steeper than the spread
    of the logits allows: at slope · x = 20 its own is 0 in float32."""

    def gentler(logits: Tensor) -> tuple[Tensor, Tensor]:
        x = logits - shift if shift else logits
        steepest = x.detach().norm(1).reciprocal() * (2 * len(x))  # 2 over the mean of |x|
        k = torch.clamp(steepest, max=slope)
        return k, torch.sigmoid(k * x)

    def plain(logits: Tensor, *_: Tensor) -> Tensor:
        soft = gentler(logits)[1]
        return soft + (value - soft).detach()

    if must_stay_traceable():
        return plain(logits)
    if not (logits.requires_grad and torch.is_grad_enabled()):
        return value

    def backward(grad: Tensor, logits: Tensor, *_: Tensor) -> Tensor:
        k, soft = gentler(logits)
        return torch.ops.aten.sigmoid_backward(grad, soft).mul_(k)

    saved = (logits.detach(), slope) if isinstance(slope, Tensor) else (logits.detach(),)
    return Elementwise.apply(logits, value, saved, backward, plain)


def unchanged(*tensors: Tensor) -> Callable[[], None]:
    """Raises RuntimeError where these have been written to since; as autograd does for what it has saved itself."""
    versions = [version_of(x) for x in tensors]

    def check() -> None:
        if [version_of(x) for x in tensors] != versions:
            raise RuntimeError(
                "the gates were changed in place between a forward and its backward pass, which needs them as they were"
            )

    return check


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ZerogateError(message)
