"""Soft masks of continuous sparsification: deterministic, and harder with every step."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from zerogate.gates.gate import Again, Gate, Reset, Room, movable, probability, require
from zerogate.gates.schedules import Exponential
from zerogate.masking.fused_weights import Elementwise


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

    rate = 30.0
    temperature: Tensor

    def __init__(self, initial_value: float = 0.0, final_temperature: float = 200.0, steps: int | None = None) -> None:
        super().__init__()
        require(abs(initial_value) <= 50, f"initial_value must lie between -50 and 50, got {initial_value}")
        require(
            math.isfinite(final_temperature) and final_temperature >= 1,
            f"final_temperature must be finite and at least 1 (β starts at 1), got {final_temperature}",
        )
        require(steps is None or steps >= 1, f"steps must be at least 1, or None, got {steps}")
        self.initial_value = initial_value
        self.final_temperature = final_temperature
        self.steps = steps
        self.scale = 1 + math.exp(-initial_value)  # 1/σ(s₀)
        self.steps_done = 0
        self._room: Room | None = None
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

    def drawn(
        self, logits: Tensor, sparing: bool, examples: int | None = None
    ) -> tuple[Tensor, Tensor | None, Again | None]:
        if not self._closed_form("sample", "open_probability"):
            return super().drawn(logits, sparing, examples)
        beta, scale, again = self.temperature, self.scale, None
        with torch.no_grad():
            if sparing:
                if self._room is None or not self._room.fits(logits):
                    self._room = Room(logits)
                p = torch.mul(beta, logits, out=self._room.numbers).sigmoid_()
                again = Again(lambda: torch.sigmoid(beta * logits), scale, logits, beta, room=self._room)
            else:
                p = self.open_probability(logits)
            z = p * scale
        if logits.requires_grad and torch.is_grad_enabled():

            def backward(grad: Tensor, beta: Tensor, *kept: Tensor) -> Tensor:
                p = kept[0] if again is None else again.p()
                return torch.ops.aten.sigmoid_backward(grad, p).mul_(beta * scale)

            def plain(logits: Tensor, beta: Tensor, *_: Tensor) -> Tensor:
                return torch.sigmoid(beta * logits) * scale

            z = Elementwise.apply(logits, z, (beta,) if sparing else (beta, p), backward, plain)
        return z if examples is None else z.expand(examples, -1), p, again

    def likely(self, logits: Tensor, value: Tensor | None, sparing: bool, again: Again | None = None) -> Tensor:
        if not self._closed_form("open_probability"):
            return super().likely(logits, value, sparing)
        beta = self.temperature

        def backward(grad: Tensor, p: Tensor) -> Tensor:
            if grad.stride() == (0,):  # of a sum: one number
                return torch.ops.aten.sigmoid_backward((grad[:1] * beta).expand_as(grad), p)
            return torch.ops.aten.sigmoid_backward(grad, p).mul_(beta)

        return probability(logits, value, sparing, self.open_probability, backward, again)

    def movable_probability(self, logits: Tensor, value: Tensor | None = None) -> Tensor:
        value = self.open_probability(logits.detach()) if value is None else value
        return movable(logits, 0.0, self.temperature, value)

    def restarted(self, logits: Tensor, initial: Tensor, reset: Reset) -> Tensor:
        """min(β·s, s₀), the paper's rule, or with ``reset="code"`` min(s, s₀)."""
        s = self.temperature * logits if reset == "paper" else logits
        return torch.minimum(s, initial)

    def restart(self) -> None:
        self.steps_done = 0
        self.temperature.fill_(1.0)

    def set_steps(self, steps: int) -> None:
        """Says how many optimizer steps the run has."""
        self.steps = steps

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

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_room": None}

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps_done": self.steps_done, "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps_done, self.steps = state["steps_done"], state["steps"]

    def extra_repr(self) -> str:
        return f"initial_value={self.initial_value}, final_temperature={self.final_temperature}, steps={self.steps}"
