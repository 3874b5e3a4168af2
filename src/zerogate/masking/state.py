"""`Gates`: the state that a forward, a loss and a budget read; they know nothing else of the handle."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zerogate.gates.gate import Gate
from zerogate.modules.internals import parameters_of


class Gates(nn.Module):
    """All gates of a model.

    Attributes:
        logits: one parameter, float32 [units]; negative closes a unit, positive opens it.
        gate: the kind of gate, which says what the logits mean.
        frozen: whether gates that could learn stand still: training goes on with the deployed mask, for the weights alone.
        index: for all placements, one after the other, the unit of each channel; `len(logits)` where there is no gate.
    """

    index: Tensor

    def __init__(self, gate: Gate, units: int, index: Tensor, device: torch.device) -> None:
        super().__init__()
        self.gate = gate.to(device)
        self.logits = nn.Parameter(gate.initial_logits(units).to(device), requires_grad=gate.learns)
        self.frozen = False
        self.register_buffer("index", torch.where(index < 0, units, index).to(device), persistent=False)

    def open_probability(self) -> Tensor:
        """P(z ≠ 0) of every unit, detached, [units]."""
        return self.gate.open_probability(self.logits).detach()

    def mask(self) -> Tensor:
        """z of the deployed mask, detached, [units]; exactly 0 for closed units."""
        return self.gate.mask(self.logits.detach())

    def is_open(self) -> Tensor:
        """Whether the deployed mask lets each unit through, bool [units]."""
        return self.mask() > 0

    @torch.no_grad()
    def set_open(self, is_open: Tensor) -> None:
        """Opens these units, bool [units], and closes all others, of gates that do not learn: logits become 1 and −1."""
        self.logits.copy_(torch.where(is_open.to(self.logits.device), 1.0, -1.0))

    def replace(self, gate: Gate) -> None:
        """Puts gates of another kind, which do not learn, in place of these; the logits stay."""
        self.gate = gate.to(self.logits.device)
        self.logits.requires_grad_(False)
        self.logits.grad = None
        self.frozen = False

    def extra_repr(self) -> str:
        return f"units={len(self.logits)}"


def flatten_names(owner: nn.Module, child: str) -> None:
    """Has a module's `state_dict` name what a child holds as if it held it itself: ``gates.logits`` becomes ``logits``, the
    names that checkpoints have always had; and read them so."""
    owner.register_state_dict_post_hook(_Flatten(child))
    owner.register_load_state_dict_pre_hook(_Unflatten(child))


@dataclass  # torch marks the hooks that it is given
class _Flatten:
    child: str

    def __call__(self, owner: nn.Module, state: dict[str, object], prefix: str, metadata: object) -> None:
        for key in [key for key in state if key.startswith(prefix)]:  # all of them, so that their order stays
            value = state.pop(key)
            state[prefix + key.removeprefix(prefix).removeprefix(f"{self.child}.")] = value


@dataclass
class _Unflatten:
    child: str

    def __call__(self, owner: nn.Module, state: dict[str, object], prefix: str, *_: object) -> None:
        inside = owner.get_submodule(self.child)
        names = [*parameters_of(inside), *(f"{name}." for name, _ in inside.named_children())]
        own = tuple(f"{prefix}{name}" for name in names)
        for key in [key for key in state if key.startswith(own)]:
            state[f"{prefix}{self.child}.{key.removeprefix(prefix)}"] = state.pop(key)
