"""Soft masks of continuous sparsification: deterministic, and harder with every step."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from zerogate.checks import check, check_whole, is_number
from zerogate.gates.gate import Gate, Reset
from zerogate.gates.schedules import Exponential, ScheduleState
from zerogate.gates.surrogate import gentle_sigmoid, straight_through


class SoftMask(Gate):
    """Deterministic soft masks of Continuous Sparsification (Savarese, Silva and Maire, NeurIPS 2020,
    arXiv 1912.04427); logits are s.

    Training:  z = σ(β s) / σ(s₀), with β growing geometrically from 1 to ``final_temperature`` over ``steps``
    Ticket:    ẑ = 1[s > 0] / σ(s₀)

    The scale 1/σ(s₀) keeps the network unchanged at the start; compaction folds it into the weights. β is the buffer
    ``temperature`` and the count of steps is part of the state, so checkpoints keep both.

    Args:
        initial_value: s₀, the same for every unit; lower gives sparser tickets.
        final_temperature: β at the end, ≥ 1.
        steps: optimizer steps over which β grows. The training command fills it in; in a loop of your own give it here,
            or set the buffer ``temperature`` yourself.

    Raises `ZerogateError` for values outside these ranges.
    """

    rate = 30.0
    temperature: Tensor

    def __init__(self, initial_value: float = 0.0, final_temperature: float = 200.0, steps: int | None = None) -> None:
        super().__init__()
        bounded = is_number(initial_value) and abs(initial_value) <= 50
        check(bounded, "initial_value", "between -50 and 50", initial_value)
        grows = is_number(final_temperature) and final_temperature >= 1
        check(grows, "final_temperature", "finite and at least 1 (β starts at 1)", final_temperature)
        check_whole("steps", steps, optional=True)
        self.initial_value = initial_value
        self.final_temperature = final_temperature
        self.steps = steps
        self.scale = 1 + math.exp(-initial_value)  # 1/σ(s₀)
        self.steps_done = 0
        self.register_buffer("temperature", torch.tensor(1.0))

    def initial_logits(self, units: int) -> Tensor:
        return torch.full((units,), float(self.initial_value))

    def soft_mask(self, logits: Tensor) -> Tensor:
        """σ(β s), [units]."""
        return torch.sigmoid(self.temperature * logits)

    def sample(self, logits: Tensor, examples: int | None = None) -> Tensor:
        z = self.soft_mask(logits) * self.scale
        return z if examples is None else z.expand(examples, -1)

    def mask(self, logits: Tensor) -> Tensor:
        return (logits > 0).to(logits.dtype) * self.scale

    def open_probability(self, logits: Tensor) -> Tensor:
        return self.soft_mask(logits)

    def movable_probability(self, logits: Tensor) -> Tensor:
        return straight_through(self.open_probability(logits.detach()), gentle_sigmoid(logits, self.temperature))

    def step(self) -> None:
        self.steps_done += 1
        if self.steps is not None:
            self.temperature.fill_(Exponential(1.0, self.final_temperature, self.steps)(self.steps_done))
        elif self.steps_done == 1:
            warnings.warn(
                "SoftMask does not know how long training lasts, so its temperature stays where it is: "
                "give SoftMask(steps=...), or set its `temperature` yourself",
                stacklevel=3,
            )

    def set_steps(self, steps: int) -> None:
        """Says over how many optimizer steps β grows. Raises `ZerogateError` for less than 1."""
        check_whole("steps", steps)
        self.steps = steps

    def restart(self) -> None:
        self.steps_done = 0
        self.temperature.fill_(1.0)

    def restarted(self, logits: Tensor, initial: Tensor, reset: Reset) -> Tensor:
        """min(β·s, s₀), the paper's rule, or with ``reset="code"`` min(s, s₀)."""
        s = self.temperature * logits if reset == "paper" else logits
        return torch.minimum(s, initial)

    def get_extra_state(self) -> ScheduleState:
        return {"steps_done": self.steps_done, "steps": self.steps}

    def set_extra_state(self, state: ScheduleState) -> None:
        self.steps_done, self.steps = state["steps_done"], state["steps"]

    def extra_repr(self) -> str:
        return f"initial_value={self.initial_value}, final_temperature={self.final_temperature}, steps={self.steps}"
