"""`TicketSearch`: rounds of training from a rewind point, then the training of the ticket that they found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from zerogate.checks import check_choice, check_whole, is_whole
from zerogate.errors import CheckpointError, ZerogateError
from zerogate.gates.gate import RESETS, Reset
from zerogate.gates.pruners import Magnitude
from zerogate.gates.schedules import Scheduled
from zerogate.masks import Mask
from zerogate.objectives.target import Target
from zerogate.sparsified import Sparsified
from zerogate.tickets.snapshot import Snapshot, weights_of
from zerogate.tickets.stage import Stage
from zerogate.tickets.time import Time

MARGIN = 0.002
"""A round with a `Target` ends at most this share, or one unit, under it."""


class TicketSearch:
    """A search for a ticket, as in "Winning the Lottery with Continuous Sparsification" (Savarese, Silva and Maire, NeurIPS
    2020) and in iterative magnitude pruning with rewinding (Frankle et al., ICML 2020).

    Every round trains the network with its gates from the rewind point, all gates starting anew by the reset rule (the
    first round starts from the beginning and passes the rewind point). The last stage trains the ticket, what is open at
    the end of the last round, from the rewind point with hard masks; the weights outside of it are exactly zero.
    Rewinding restores all parameters and buffers: weights, BatchNorm, the classifier.

    Iterate over it for its stages, and train each in a loop of your own:

        for stage in search:
            optimizer = torch.optim.SGD(stage.param_groups(lr=0.1, gate_lr=0.1), momentum=0.9)
            for _ in range(stage.steps_done, stage.steps):
                loss = F.cross_entropy(model(x), y) + stage.loss()
                loss.backward(); optimizer.step(); optimizer.zero_grad(); stage.step()
        print(search.mask)

    The gates say what kind of search it is: `SoftMask` continuous sparsification, `HardConcrete` L0 regularisation,
    `Magnitude` iterative magnitude pruning, whose density falls geometrically over the rounds. With ``rounds=0`` there is
    the last stage alone: `Magnitude` then prunes within it, gradually or at once, and `Random` has pruned already. With a
    `Target`, round r of R ends at the share d^(r/R).

    Args:
        sparse: the handle of `sparsify`, for single weights, channels or heads.
        rounds: rounds of search, at least 1 for gates that learn.
        length: of a round: epochs, or a time such as "4ep" or "1500it".
        final_length: of the training of the ticket; default as a round.
        steps_per_epoch: optimizer steps of an epoch; needed where a time has epochs.
        rewind: the point of the first round to whose weights every later stage returns.
        reset: how logits s of a `SoftMask` start a round: "paper" min(β·s, s₀), "code" min(s, s₀).

    Attributes:
        mask: the ticket as found so far, a `Mask`; all ones before the end of the first round.
        history: the density of the gated weights after each round.
        stage: the stage that is under way, None when all are done.
        lengths: optimizer steps of every stage.

    Raises `ZerogateError` for values outside these ranges.
    """

    def __init__(
        self,
        sparse: Sparsified,
        *,
        rounds: int = 2,
        length: int | str | Time,
        final_length: int | str | Time | None = None,
        steps_per_epoch: int | None = None,
        rewind: str | Time = "0it",
        reset: Reset = "paper",
    ) -> None:
        check_whole("rounds", rounds, least=0)
        if rounds == 0 and sparse.gate.learns:
            raise ZerogateError(f"rounds=0 leaves no round in which {type(sparse.gate).__name__} gates could learn")
        if rounds > 0 and not sparse.gate.learns and not isinstance(sparse.gate, Magnitude):
            raise ZerogateError(f"rounds={rounds}: {type(sparse.gate).__name__} gates do not change; give rounds=0")
        check_choice("reset", reset, RESETS)
        self.sparse, self.rounds, self.reset = sparse, rounds, reset
        self.steps_per_epoch = steps_per_epoch
        final_length = length if final_length is None else final_length
        self.lengths = [self._steps("length", length)] * rounds + [self._steps("final_length", final_length)]
        self._rewind = self._steps("rewind", rewind, least=0)
        if rounds and self._rewind > self.lengths[0]:
            raise ZerogateError(
                f"rewind={rewind} is step {self._rewind}, behind the end of the first round, step {self.lengths[0]}"
            )
        self.number = 0
        self.steps_done = 0
        self.history: list[float] = []
        self._initial = sparse.logits.detach().clone()
        self._mask: Mask | None = None
        self._snapshot: Snapshot | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self._share = sparse.objective.share if isinstance(sparse.objective, Target) else None
        self._gate_steps = sparse.gate.steps if isinstance(sparse.gate, Scheduled) else None
        if isinstance(sparse.gate, Magnitude):
            sparse.gate.in_rounds = rounds > 0
        self._begin()

    def _steps(self, name: str, value: int | str | Time, least: int = 1) -> int:
        time = Time(epochs=value) if is_whole(value, least=None) else Time.of(value)  # type: ignore[arg-type]
        if time.epochs and not self.steps_per_epoch:
            raise ZerogateError(f"{name}={time} is in epochs: give steps_per_epoch, the optimizer steps of one")
        steps = time.steps(self.steps_per_epoch or 0)
        if steps < least:
            raise ZerogateError(f"{name} must be at least {least} step long, got {value}")
        return steps

    # stages

    def __iter__(self) -> Iterator[Stage]:
        while (stage := self.stage) is not None:
            yield stage
            if self.number == stage.number:
                self.advance()

    @property
    def stage(self) -> Stage | None:
        return Stage(self, self.number) if self.number <= self.rounds else None

    @property
    def mask(self) -> Mask:
        if self._mask is not None:
            return self._mask
        return self.sparse.mask(all_open=self.sparse.gate.learns)

    def step(self) -> None:
        """Call once after each optimizer step."""
        if self.number > self.rounds or self.steps_done >= self.lengths[self.number]:
            where = "the search" if self.number > self.rounds else f"{Stage(self, self.number).name}"
            raise ZerogateError(f"{where} has made all its steps; iterate over the search for its stages")
        self.sparse.step()
        self.steps_done += 1
        if self.number == 0 and self.rounds and self.steps_done == self._rewind:
            self._snapshot = Snapshot.take(self.sparse.model, self._optimizer)

    def advance(self) -> None:
        """Ends the stage, and rewinds for the next one. Iterating over the search does it.

        Raises `ZerogateError` where the stage has not made all its steps."""
        if self.number > self.rounds:
            raise ZerogateError("the search is over; there is no further stage")
        if self.steps_done < self.lengths[self.number]:
            raise ZerogateError(
                f"{Stage(self, self.number).name} has made {self.steps_done} of its {self.lengths[self.number]} steps: call "
                "step() after each optimizer step, and train it to its end before the next"
            )
        if self.number < self.rounds:
            self._end_round()
        else:
            self._mask = Mask.of(self.sparse)
            self.history.append(self._mask.density)
        self.number += 1
        self.steps_done = 0
        self._optimizer = None
        if self.number <= self.rounds:
            self._begin()

    def prune(self) -> None:
        """After the last step of a round, closes what is not in the round's mask, so that the network can be evaluated with
        it. `advance` does it where it is not done yet."""
        gate, sparse = self.sparse.gate, self.sparse
        if self.number >= self.rounds:
            return
        if isinstance(gate, Magnitude):
            share = gate.final_share(sparse._control.budget(sparse.objective)) ** ((self.number + 1) / self.rounds)
            sparse._control.prune(sparse.objective, share)
        else:
            sparse._control.project(sparse.objective, MARGIN)

    def _end_round(self) -> None:
        self.prune()
        gate, sparse = self.sparse.gate, self.sparse
        self._mask = Mask.of(sparse)
        self.history.append(self._mask.density)
        self._rewind_point.restore(sparse.model)
        if gate.learns and self.number + 1 == self.rounds:
            sparse.harden()
        elif gate.learns:
            with torch.no_grad():
                sparse.logits.copy_(gate.restarted(sparse.logits, self._initial.to(sparse.logits.device), self.reset))
            gate.restart()
        else:
            sparse._weights.zero_closed()

    def _begin(self) -> None:
        """Tells the gates and the objective how long the stage is and what share it ends with."""
        steps, gate, objective = self.lengths[self.number], self.sparse.gate, self.sparse.objective
        if self._gate_steps is None and isinstance(gate, Scheduled):
            gate.set_steps(steps)
        if isinstance(objective, Target) and self._share is not None and gate.learns:
            objective.restart(self._share ** ((self.number + 1) / self.rounds), steps)
            self.sparse._control.follow(objective)
        if self.number == 0 and self.rounds and self._rewind == 0 and self._snapshot is None:
            self._snapshot = Snapshot.take(self.sparse.model, None)

    # rewinding

    @property
    def _rewind_point(self) -> Snapshot:
        if self._snapshot is None:
            raise ZerogateError(f"the search has not passed its rewind point, step {self._rewind} of the first round")
        return self._snapshot

    def rewind(self, optimizer: torch.optim.Optimizer) -> None:
        """Call with each stage's optimizer before its first step where its state is to be rewound, too: the weights'
        moments as they were at the rewind point, zero for weights outside of the ticket. Not called, every stage
        starts with a fresh optimizer.

        Raises `ZerogateError` for an optimizer without a group of the weights, or where the first stage had none."""
        weights_of(optimizer)
        if self.number == 0:
            self._optimizer = optimizer
            if self.steps_done == self._rewind and self.rounds:
                self._snapshot = Snapshot.take(self.sparse.model, optimizer)
        elif self.steps_done == 0:  # else it is resumed, and the optimizer has its own state
            kept = {} if self.sparse.gate.learns else self.mask
            self._rewind_point.restore_optimizer(optimizer, self.sparse.model, kept)

    # state

    def progress(self) -> dict[str, Any]:
        """The state of the search without that of the model and the gates: numbers and tensors."""
        return {
            "stage": self.number,
            "steps_done": self.steps_done,
            "lengths": list(self.lengths),
            "rewind": self._rewind,
            "history": list(self.history),
            "mask": None if self._mask is None else dict(self._mask),
            "initial": self._initial,
            "snapshot": None if self._snapshot is None else self._snapshot.tensors,
            "optimizer": None if self._snapshot is None else self._snapshot.optimizer,
            "scale": None if self.sparse.gate.learns else self.sparse.gate.scale,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that a stopped search needs to go on, without the optimizer's state: that of the search, of the gates and of
        the model."""
        return {"search": self.progress(), "gates": self.sparse.state_dict(), "model": self.sparse.model.state_dict()}

    def load_progress(self, state: dict[str, Any]) -> None:
        """Takes back what `progress` gave; the gates become hard where they were.

        Raises `CheckpointError` where it is the state of a search with other stages."""
        if not isinstance(state, dict) or "lengths" not in state:
            raise CheckpointError("this is not the state of a ticket search; give what its state_dict() returned")
        if (state["lengths"], state["rewind"]) != (self.lengths, self._rewind):
            raise CheckpointError(
                f"this state is of a search with stages of {state['lengths']} steps and a rewind point at step "
                f"{state['rewind']}; this one has {self.lengths} and {self._rewind}"
            )
        self.number, self.steps_done = state["stage"], state["steps_done"]
        self.history = list(state["history"])
        self._mask = None if state["mask"] is None else Mask(state["mask"])
        self._initial = state["initial"]
        self._snapshot = None if state["snapshot"] is None else Snapshot(state["snapshot"], state["optimizer"])
        if self.number <= self.rounds:
            self._begin()
        if state["scale"] is not None and self.sparse.gate.learns:
            self.sparse.harden()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what `state_dict` gave, into a search made in the same way.

        Raises `CheckpointError` where it is the state of another search."""
        self.load_progress(state.get("search", {}))
        self.sparse.load_state_dict(state["gates"])
        self.sparse.model.load_state_dict(state["model"])
