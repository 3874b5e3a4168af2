"""Hard-concrete gates: random, and exactly 0 or 1 with a probability above zero."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from zerogate.gates.gate import Again, Gate, movable, probability, require
from zerogate.masking.fused_weights import Elementwise


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
        require(0 < droprate_init < 1, f"droprate_init must lie strictly between 0 and 1, got {droprate_init}")
        require(
            temperature > 0 and math.isfinite(temperature),
            f"temperature must be positive and finite, got {temperature}",
        )
        require(low < 0, f"low (γ) must be below 0 so that gates can close exactly, got {low}")
        require(high > 1, f"high (ζ) must be above 1 so that gates can open fully, got {high}")
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

    def movable_probability(self, logits: Tensor, value: Tensor | None = None) -> Tensor:
        value = self.open_probability(logits.detach()) if value is None else value
        return movable(logits, self.temperature * math.log(-self.low / self.high), 1.0, value)

    def drawn(
        self, logits: Tensor, sparing: bool, examples: int | None = None
    ) -> tuple[Tensor, Tensor | None, Again | None]:
        if not self._closed_form("sample", "quantile", "open_probability"):
            return super().drawn(logits, sparing, examples)
        beta, spread = self.temperature, self.high - self.low
        with torch.no_grad():
            if sparing:
                s = torch.rand_like(logits).logit_().add_(logits).div_(beta).sigmoid_()
                p = None
            else:  # (log u − log(1−u) + log α)/β in each row, log α − β log(−γ/ζ) in the last
                terms, factors = self._terms(examples or 1, logits)
                terms[:-1].uniform_().logit_()
                rows = torch.addr(terms, factors, logits, beta=1 / beta, alpha=1 / beta).sigmoid_()
                s, p = rows[0] if examples is None else rows[:-1], rows[-1]
            z = torch.rsub(s, self.low, alpha=-spread).clamp_(0, 1)
        if not (logits.requires_grad and torch.is_grad_enabled()):
            return z, p, None
        share = -self.low / spread

        def openness(kept: Tensor) -> Tensor:
            return torch.rsub(kept, share, alpha=-1 / spread) if sparing else kept

        def backward(grad: Tensor, kept: Tensor) -> Tensor:
            s = openness(kept)
            grad = torch.ops.aten.hardtanh_backward(grad, kept, *((0, 1) if sparing else (share, share + 1 / spread)))
            grad = torch.ops.aten.sigmoid_backward(grad, s)
            return (grad if examples is None else grad.sum(0)).mul_(spread / beta)

        def plain(logits: Tensor, kept: Tensor) -> Tensor:
            s = torch.sigmoid(openness(kept).logit() + (logits - logits.detach()) / beta)
            return (s * spread + self.low).clamp(0, 1)

        return Elementwise.apply(logits, z, (z if sparing else s,), backward, plain), p, None

    def _terms(self, draws: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to the logits times factors, all times β: room for noise, [draws, units], and a row of the open
        probability's shift."""
        key = draws, len(like), like.device, like.dtype, self.temperature, self.low, self.high
        if key not in self._room:
            with torch.inference_mode(False):
                shift = -(self.temperature**2) * math.log(-self.low / self.high)
                terms = like.detach().new_full((draws + 1, len(like)), shift)
                factors = torch.tensor([1.0] * draws + [self.temperature]).to(like)
            self._room = {key: (terms, factors)}
        return self._room[key]

    def likely(self, logits: Tensor, value: Tensor | None, sparing: bool, again: Again | None = None) -> Tensor:
        if not self._closed_form("open_probability"):
            return super().likely(logits, value, sparing)
        shift = self.temperature * math.log(-self.low / self.high)

        def compute(logits: Tensor) -> Tensor:
            return (logits - shift).sigmoid()

        return probability(logits, value, sparing, compute, torch.ops.aten.sigmoid_backward)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_room": {}}

    def extra_repr(self) -> str:
        return (
            f"droprate_init={self.droprate_init}, temperature={self.temperature:.4g}, low={self.low}, high={self.high}"
        )
