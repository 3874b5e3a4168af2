"""Gates: random or soft variables z that multiply a unit and can become exactly zero.

A gate is a function of *logits*, one per unit, which live in one flat parameter of the handle that `zerogate.sparsify`
returns. Under every gate a negative logit closes a unit and a positive one opens it.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError
from zerogate.fused import Elementwise, plain_only
from zerogate.schedules import Exponential


class Gate(nn.Module, ABC):
    """What a gate must say: how it starts, what it draws in training, what it deploys, how likely it is open."""

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


def _likely(
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
    unchanged = _unchanged(logits)

    def backward(grad: Tensor, *kept: Tensor) -> Tensor:
        if not kept:
            unchanged()
        return derivative(grad, kept[0] if kept else compute(logits))

    return Elementwise.apply(logits, value, () if sparing else (value,), backward, lambda logits, *_: compute(logits))


def _movable(x: Tensor, slope: Tensor | float, p: Tensor) -> Tensor:
    """p = σ(slope · x) with the gradient of a sigmoid that is no steeper than the spread of x allows: at slope · x = 20 its
    own is 0 in float32."""
    spread = x.detach().abs().mean().clamp(min=torch.finfo(x.dtype).tiny)
    soft = torch.sigmoid(torch.clamp(2 / spread, max=slope) * x)
    return soft + (p - soft).detach()


def _unchanged(*tensors: Tensor) -> Callable[[], None]:
    """Raises RuntimeError where these have been written to since; as autograd does for what it has saved itself."""
    versions = [x._version for x in tensors]

    def check() -> None:
        if [x._version for x in tensors] != versions:
            raise RuntimeError(
                "the gates were changed in place between a forward and its backward pass, which needs them as they were"
            )

    return check


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ZerogateError(message)


class HardConcrete(Gate):
    """Hard-concrete gates of Louizos, Welling and Kingma (ICLR 2018, arXiv 1712.01312); logits are log α.

    Training, eq. 10–11:   u ~ U(0,1),  s = σ((log u − log(1−u) + log α)/β),  s̄ = s(ζ−γ)+γ,  z = min(1, max(0, s̄))
    Open,     eq. 12:      P(z ≠ 0) = σ(log α − β log(−γ/ζ))
    Deployed, eq. 13:      ẑ = min(1, max(0, σ(log α)(ζ−γ)+γ))

    Args:
        droprate_init: p in (0, 1); log α starts at N(log((1−p)/p), 0.01²). 0.5 for training from scratch, small
            (0.05) to start open from trained weights.
        temperature: β > 0.
        low, high: γ < 0 and ζ > 1, the interval to which s is stretched.

    Raises `ZerogateError` for values outside these ranges.
    """

    def __init__(
        self, droprate_init: float = 0.5, temperature: float = 2 / 3, low: float = -0.1, high: float = 1.1
    ) -> None:
        super().__init__()
        _check(0 < droprate_init < 1, f"droprate_init must lie strictly between 0 and 1, got {droprate_init}")
        _check(
            temperature > 0 and math.isfinite(temperature),
            f"temperature must be positive and finite, got {temperature}",
        )
        _check(low < 0, f"low (γ) must be below 0 so that gates can close exactly, got {low}")
        _check(high > 1, f"high (ζ) must be above 1 so that gates can open fully, got {high}")
        self._room: dict[Any, tuple[Tensor, Tensor]] = {}
        self.droprate_init = droprate_init
        self.temperature = temperature
        self.low = low
        self.high = high

    def initial_logits(self, units: int) -> Tensor:
        mean = math.log(1 - self.droprate_init) - math.log(self.droprate_init)
        return torch.randn(units) * 0.01 + mean

    def quantile(self, u: Tensor, logits: Tensor) -> Tensor:
        """z at the uniform number(s) u in [0, 1): the inverse CDF of eq. 10–11, broadcast over both arguments."""
        s = torch.sigmoid((torch.logit(u) + logits) / self.temperature)
        return (s * (self.high - self.low) + self.low).clamp(0, 1)

    def cdf(self, x: float | Tensor, logits: Tensor) -> Tensor:
        """P(z ≤ x): σ(β logit((x−γ)/(ζ−γ)) − log α) for x in [0, 1), 0 below and 1 from 1 on."""
        x = torch.as_tensor(x, dtype=logits.dtype, device=logits.device)
        inside = torch.sigmoid(self.temperature * torch.logit((x - self.low) / (self.high - self.low)) - logits)
        return torch.where(x < 0, 0.0, torch.where(x >= 1, 1.0, inside))

    def sample(self, logits: Tensor, examples: int | None = None) -> Tensor:
        shape = logits.shape if examples is None else (examples, *logits.shape)
        return self.quantile(torch.rand(shape, dtype=logits.dtype, device=logits.device), logits)

    def mask(self, logits: Tensor) -> Tensor:
        return (torch.sigmoid(logits) * (self.high - self.low) + self.low).clamp(0, 1)

    def open_probability(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits - self.temperature * math.log(-self.low / self.high))

    def movable_probability(self, logits: Tensor) -> Tensor:
        return _movable(logits - self.temperature * math.log(-self.low / self.high), 1.0, self.open_probability(logits))

    def drawn(self, logits: Tensor, sparing: bool) -> tuple[Tensor, Tensor | None, Again | None]:
        if not self._closed_form("sample", "quantile", "open_probability"):
            return super().drawn(logits, sparing)
        units, beta, spread = len(logits), self.temperature, self.high - self.low
        with torch.no_grad():
            if sparing:
                s = torch.rand_like(logits).logit_().add_(logits).div_(beta).sigmoid_()
                p = None
            else:  # (log u − log(1−u) + log α)/β in one row and log α − β log(−γ/ζ) in the other
                terms, factors = self._terms(units, logits)
                terms[0].uniform_().logit_()
                s, p = torch.addr(terms, factors, logits, beta=1 / beta, alpha=1 / beta).sigmoid_()
            z = torch.rsub(s, self.low, alpha=-spread).clamp_(0, 1)
        if not (logits.requires_grad and torch.is_grad_enabled()):
            return z, p, None
        share = -self.low / spread

        def openness(kept: Tensor) -> Tensor:
            return torch.rsub(kept, share, alpha=-1 / spread) if sparing else kept

        def backward(grad: Tensor, kept: Tensor) -> Tensor:
            s = openness(kept)
            grad = torch.ops.aten.hardtanh_backward(grad, kept, *((0, 1) if sparing else (share, share + 1 / spread)))
            return torch.ops.aten.sigmoid_backward(grad, s).mul_(spread / beta)

        def plain(logits: Tensor, kept: Tensor) -> Tensor:
            s = torch.sigmoid(openness(kept).logit() + (logits - logits.detach()) / beta)
            return (s * spread + self.low).clamp(0, 1)

        return Elementwise.apply(logits, z, (z if sparing else s,), backward, plain), p, None

    def _terms(self, units: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the logits times factors, all times β: room for noise, and the shift of the open probability."""
        key = units, like.device, like.dtype, self.temperature, self.low, self.high
        if key not in self._room:
            with torch.inference_mode(False):
                terms = (
                    like.detach().new_empty(2, units).fill_(-(self.temperature**2) * math.log(-self.low / self.high))
                )
                factors = torch.tensor([1.0, self.temperature]).to(like)
            self._room = {key: (terms, factors)}
        return self._room[key]

    def likely(self, logits: Tensor, value: Tensor | None, sparing: bool) -> Tensor:
        if not self._closed_form("open_probability"):
            return super().likely(logits, value, sparing)
        shift = self.temperature * math.log(-self.low / self.high)

        def compute(logits: Tensor) -> Tensor:
            return (logits - shift).sigmoid()

        return _likely(logits, value, sparing, compute, torch.ops.aten.sigmoid_backward)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_room": {}}

    def extra_repr(self) -> str:
        return (
            f"droprate_init={self.droprate_init}, temperature={self.temperature:.4g}, low={self.low}, high={self.high}"
        )


class SoftMask(Gate):
    """Deterministic soft masks of Continuous Sparsification (Savarese, Silva and Maire, NeurIPS 2020,
    arXiv 1912.04427); logits are s.

    Training:  z = σ(β s) / σ(s₀), with β growing geometrically from 1 to ``final_temperature`` over ``steps``
    Ticket:    ẑ = 1[s > 0] / σ(s₀)

    The scale 1/σ(s₀) keeps the network unchanged at the start; compaction folds it into the weights.

    Args:
        initial_value: s₀, the same for every unit; lower gives sparser tickets.
        final_temperature: β at the end, ≥ 1.
        steps: optimizer steps over which β grows. The training command fills it in; in a loop of your own give it
            here, or set the buffer ``temperature`` yourself.

    β is the buffer ``temperature`` and the count of steps is part of the state, so checkpoints keep both.
    Raises `ZerogateError` for values outside these ranges.
    """

    temperature: Tensor

    def __init__(self, initial_value: float = 0.0, final_temperature: float = 200.0, steps: int | None = None) -> None:
        super().__init__()
        _check(abs(initial_value) <= 50, f"initial_value must lie between -50 and 50, got {initial_value}")
        _check(
            math.isfinite(final_temperature) and final_temperature >= 1,
            f"final_temperature must be finite and at least 1 (β starts at 1), got {final_temperature}",
        )
        _check(steps is None or steps >= 1, f"steps must be at least 1, or None, got {steps}")
        self.initial_value = initial_value
        self.final_temperature = final_temperature
        self.steps = steps
        self.scale = 1 + math.exp(-initial_value)  # 1/σ(s₀)
        self.steps_done = 0
        self.register_buffer("temperature", torch.tensor(1.0))

    def initial_logits(self, units: int) -> Tensor:
        return torch.full((units,), float(self.initial_value))

    def sample(self, logits: Tensor, examples: int | None = None) -> Tensor:
        z = torch.sigmoid(self.temperature * logits) * self.scale
        return z if examples is None else z.expand(examples, -1)

    def mask(self, logits: Tensor) -> Tensor:
        return (logits > 0).to(logits.dtype) * self.scale

    def open_probability(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(self.temperature * logits)

    def drawn(self, logits: Tensor, sparing: bool) -> tuple[Tensor, Tensor | None, Again | None]:
        if not self._closed_form("sample", "open_probability"):
            return super().drawn(logits, sparing)
        beta, scale = self.temperature, self.scale
        learns = logits.requires_grad and torch.is_grad_enabled()

        def plain(logits: Tensor, beta: Tensor, *_: Tensor) -> Tensor:
            return torch.sigmoid(beta * logits) * scale

        if not sparing:
            with torch.no_grad():
                p = self.open_probability(logits)
                z = p * scale

            def backward(grad: Tensor, beta: Tensor, p: Tensor) -> Tensor:
                return torch.ops.aten.sigmoid_backward(grad, p).mul_(beta).mul_(scale)

            return Elementwise.apply(logits, z, (beta, p), backward, plain) if learns else z, p, None

        def compute() -> Tensor:
            return (beta * logits).sigmoid_().mul_(scale)

        with torch.no_grad():
            z = compute()
        again = Again(compute, lambda: plain(logits, beta), _unchanged(logits, beta))

        def once_more(grad: Tensor, beta: Tensor) -> Tensor:  # β (z − z²/scale) · gradient
            z = again.take()
            return z.addcmul_(z, z, value=-1 / scale).mul_(grad).mul_(beta)

        return Elementwise.apply(logits, z, (beta,), once_more, plain) if learns else z, None, again

    def likely(self, logits: Tensor, value: Tensor | None, sparing: bool) -> Tensor:
        if not self._closed_form("open_probability"):
            return super().likely(logits, value, sparing)
        beta = self.temperature

        def backward(grad: Tensor, p: Tensor) -> Tensor:
            return torch.ops.aten.sigmoid_backward(grad, p).mul_(beta)

        return _likely(logits, value, sparing, self.open_probability, backward)

    def movable_probability(self, logits: Tensor) -> Tensor:
        return _movable(logits, self.temperature, self.open_probability(logits))

    def step(self) -> None:
        if self.steps is None:
            if self.steps_done == 0:
                warnings.warn(
                    "SoftMask does not know how long training lasts, so its temperature stays where it is: "
                    "give SoftMask(steps=...), or set its `temperature` yourself",
                    stacklevel=3,
                )
            self.steps_done += 1
            return
        self.steps_done += 1
        self.temperature.fill_(Exponential(1.0, self.final_temperature, self.steps)(self.steps_done))

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done, "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps_done, self.steps = state["steps_done"], state["steps"]

    def extra_repr(self) -> str:
        return f"initial_value={self.initial_value}, final_temperature={self.final_temperature}, steps={self.steps}"
