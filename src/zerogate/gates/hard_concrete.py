"""Hard-concrete gates: random, and exactly 0 or 1 with a probability above zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zerogate.checks import check, is_number
from zerogate.gates.gate import Gate
from zerogate.gates.surrogate import gentle_sigmoid, straight_through


class HardConcrete(Gate):
    """Hard-concrete gates of Louizos, Welling and Kingma (ICLR 2018, arXiv 1712.01312); logits are log α.

    Training, eq. 10–11:   u ~ U(0,1),  s = σ((log u − log(1−u) + log α)/β),  s̄ = s(ζ−γ)+γ,  z = min(1, max(0, s̄))
    Open,     eq. 12:      P(z ≠ 0) = σ(log α − β log(−γ/ζ))
    Deployed, eq. 13:      ẑ = min(1, max(0, σ(log α)(ζ−γ)+γ))

    Args:
        droprate_init: p in (0, 1); log α starts at N(log((1−p)/p), 0.01²). 0.2 from scratch (the paper has 0.5
            and 0.3), small (0.05) to start open from trained weights.
        temperature: β > 0.
        low, high: γ < 0 and ζ > 1, the interval to which s is stretched.

    Raises `ZerogateError` for values outside these ranges.
    """

    def __init__(
        self, droprate_init: float = 0.2, temperature: float = 2 / 3, low: float = -0.1, high: float = 1.1
    ) -> None:
        super().__init__()
        is_rate = is_number(droprate_init) and 0 < droprate_init < 1
        check(is_rate, "droprate_init", "strictly between 0 and 1", droprate_init)
        check(is_number(temperature) and temperature > 0, "temperature", "positive and finite", temperature)
        check(is_number(low) and low < 0, "low (γ)", "below 0 so that gates can close exactly", low)
        check(is_number(high) and high > 1, "high (ζ)", "above 1 so that gates can open fully", high)
        self.droprate_init = droprate_init
        self.temperature = temperature
        self.low = low
        self.high = high

    def initial_logits(self, units: int) -> Tensor:
        mean = math.log(1 - self.droprate_init) - math.log(self.droprate_init)
        return torch.randn(units) * 0.01 + mean

    def sample(self, logits: Tensor, examples: int | None = None) -> Tensor:
        shape = logits.shape if examples is None else (examples, *logits.shape)
        return self.quantile(torch.rand(shape, dtype=logits.dtype, device=logits.device), logits)

    def quantile(self, u: Tensor, logits: Tensor) -> Tensor:
        """z at the uniform number(s) u in [0, 1), eq. 10: its inverse CDF, broadcast over both arguments."""
        return self.stretch_and_clip(torch.sigmoid((torch.logit(u) + logits) / self.temperature))

    def stretch_and_clip(self, s: Tensor) -> Tensor:
        """min(1, max(0, s(ζ−γ)+γ)), eq. 11 and 13."""
        return (s * (self.high - self.low) + self.low).clamp(0, 1)

    @property
    def shift(self) -> float:
        """β log(−γ/ζ): the log α at which a gate is as often open as closed, eq. 12."""
        return self.temperature * math.log(-self.low / self.high)

    def open_probability(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits - self.shift)

    def movable_probability(self, logits: Tensor) -> Tensor:
        return straight_through(self.open_probability(logits.detach()), gentle_sigmoid(logits - self.shift, 1.0))

    def mask(self, logits: Tensor) -> Tensor:
        return self.stretch_and_clip(torch.sigmoid(logits))

    def cdf(self, x: float | Tensor, logits: Tensor) -> Tensor:
        """P(z ≤ x): σ(β logit((x−γ)/(ζ−γ)) − log α) for x in [0, 1), 0 below and 1 from 1 on."""
        x = torch.as_tensor(x, dtype=logits.dtype, device=logits.device)
        inside = torch.sigmoid(self.temperature * torch.logit((x - self.low) / (self.high - self.low)) - logits)
        return torch.where(x < 0, 0.0, torch.where(x >= 1, 1.0, inside))

    def extra_repr(self) -> str:
        return (
            f"droprate_init={self.droprate_init}, temperature={self.temperature:.4g}, low={self.low}, high={self.high}"
        )
