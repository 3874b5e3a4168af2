"""The rewind point: the values of a model, and perhaps the state of its optimizer, at a step of the first round."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError


@dataclass(frozen=True)
class Snapshot:
    """Values of a model at one step.

    Attributes:
        tensors: copies of all parameters and buffers, by name.
        optimizer: state of the weights, by their place in the group ``weights``; None where no optimizer was given.
    """

    tensors: dict[str, Tensor]
    optimizer: dict[str, Any] | None

    @classmethod
    def take(cls, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> Snapshot:
        """Copies the values as they are now.

        Raises `ZerogateError` for an optimizer without a group of the weights."""
        state = None
        if optimizer is not None:
            weights = weights_of(optimizer)
            state = {str(i): copy.deepcopy(optimizer.state[p]) for i, p in enumerate(weights) if p in optimizer.state}
        return cls({name: t.detach().clone() for name, t in _tensors(model).items()}, state)

    @torch.no_grad()
    def restore(self, model: nn.Module) -> None:
        """Puts the values back, in place."""
        for name, t in _tensors(model).items():
            t.copy_(self.tensors[name])

    @torch.no_grad()
    def restore_optimizer(self, optimizer: torch.optim.Optimizer, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        """Gives the optimizer the state that it had, with moments of 0 for weights that are not kept.

        Raises `ZerogateError` where none was taken."""
        if self.optimizer is None:
            raise ZerogateError(
                "no optimizer was given to rewind() before the rewind point, so there is no state to return to"
            )
        names = {id(p): name for name, p in model.named_parameters()}
        for number, p in enumerate(weights_of(optimizer)):
            state = copy.deepcopy(self.optimizer.get(str(number)))
            if state is None:
                continue
            at = kept.get(names.get(id(p), ""))
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == p.shape:
                    state[key] = value = value.to(p.device)
                    if at is not None:
                        value.masked_fill_(~at.to(p.device), 0)
            optimizer.state[p] = state


def weights_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters of the group named weights.

    Raises `ZerogateError` where there is none."""
    for group in optimizer.param_groups:
        if group.get("name") == "weights":
            return list(group["params"])
    raise ZerogateError("the optimizer has no parameter group named weights; make it of stage.param_groups(...)")


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
