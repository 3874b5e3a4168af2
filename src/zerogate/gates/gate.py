"""What a gate is: four formulas and three facts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Reset = Literal["paper", "code"]
RESETS = get_args(Reset)
"""How logits start another round of a ticket search."""


class Gate(nn.Module, ABC):
    """The variable z that multiplies a unit (a weight, a channel or a head), as a function of the unit's logit.

    A gate of your own is a subclass that defines `initial_logits`, `sample`, `mask` and `open_probability`, in plain
    torch ops on all logits at once, floating-point [units]. That is all: it then works for every ``unit=``, per example,
    with a `Penalty` or a `Target`, compiled, and from the command as ``gate._target_=my_gates.MyGate``. What the formulas
    must keep to:

    * The more positive a logit, the further open its unit: `mask` and `open_probability` never fall as it grows, and
      `mask` is exactly 0 below some logit and above 0 beyond it. At most `scale` is multiplied in.
    * `sample` draws with torch's own generator, in the dtype and on the device of the logits.
    * Numbers that change during training are buffers, or part of `get_extra_state`, so that checkpoints hold them. A
      schedule over the run moves in `step`; `zerogate.gates.schedules.Scheduled` says how a gate is told its length.

    Attributes:
        learns: whether logits get gradients.
        scale: what a wholly open gate multiplies by; compaction folds it into the weights.
        rate: learning rate of the logits where none is given, in multiples of that of the weights.
    """

    learns = True
    scale = 1.0
    rate = 100.0

    def __init__(self) -> None:  # no arguments: the command asks which ones a gate takes
        super().__init__()

    @abstractmethod
    def initial_logits(self, units: int) -> Tensor:
        """The logits that training starts with, float32 [units]."""

    @abstractmethod
    def sample(self, logits: Tensor, examples: int | None = None) -> Tensor:
        """z as training uses it, differentiable in the logits: [units], or [examples, units] with a draw of its own for
        each example."""

    @abstractmethod
    def mask(self, logits: Tensor) -> Tensor:
        """z as evaluation and compaction use it, [units]: deterministic, and exactly 0 for every unit to be removed."""

    @abstractmethod
    def open_probability(self, logits: Tensor) -> Tensor:
        """P(z ≠ 0), or a soft stand-in for it, [units] in [0, 1], differentiable: what a `Penalty` makes small."""

    def movable_probability(self, logits: Tensor) -> Tensor:
        """The values of `open_probability` with a gradient that still moves gates which are all but decided, for a
        `Target`, which may have to open what has closed; `zerogate.gates.surrogate` makes one of a sigmoid."""
        return self.open_probability(logits)

    def step(self) -> None:
        """Called once after each optimizer step; moves schedules on."""

    def set_steps(self, steps: int) -> None:
        """Told how many optimizer steps the run has, where the gate has an attribute ``steps`` for it."""
        self.steps: int | None = steps

    def restart(self) -> None:
        """Sets schedules back to their beginning, for another round of a ticket search."""

    def restarted(self, logits: Tensor, initial: Tensor, reset: Reset) -> Tensor:
        """The logits, [units], with which another round of a ticket search starts: the initial ones of open gates, those
        that they have of closed ones."""
        return torch.where(self.mask(logits) > 0, initial, logits)
