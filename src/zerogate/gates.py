"""Gates: random or soft variables z that multiply a unit and can become exactly zero.

A gate is a function of *logits*, one per unit, which live in one flat parameter of the handle that `zerogate.sparsify`
returns. Under every gate a negative logit closes a unit and a positive one opens it.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError
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

    def movable_probability(self, logits: Tensor) -> Tensor:
        # At β s = 20 the gradient of σ(β s) is 0 in float32. Here β grows no further than the spread of s allows.
        spread = logits.detach().abs().mean().clamp(min=torch.finfo(logits.dtype).tiny)
        p = torch.sigmoid(torch.minimum(self.temperature, 2 / spread) * logits)
        return p + (self.open_probability(logits) - p).detach()

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
