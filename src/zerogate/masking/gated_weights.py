"""The gated weights of a model: what units let through of them, which units a mask keeps, their magnitudes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError
from zerogate.masking.forward import GatedForward
from zerogate.masking.scores import magnitudes
from zerogate.masks import Mask
from zerogate.modules.internals import foreach_copy_


class GatedWeights:
    """The parameters on which gates lie.

    Args:
        model: whose parameters they are.
        forward: multiplies them by their gates.
    """

    def __init__(self, model: nn.Module, forward: GatedForward) -> None:
        self._model, self._forward, self._layout = model, forward, forward.layout

    def by_name(self) -> dict[str, nn.Parameter]:
        """The parameters by name, as the model has them now."""
        parameters = dict(self._model.named_parameters())
        return {name: parameters[name] for name in self._layout.names}

    @torch.no_grad()
    def entries(self, is_open: Tensor) -> dict[str, Tensor]:
        """Which entries of each weight these units let through, for bool [units]: bool tensors by name."""
        weights = self.by_name()
        masked = self._forward.masked_weights(is_open.float(), [torch.ones_like(weight) for weight in weights.values()])
        return {name: product > 0 for name, product in zip(weights, masked, strict=True)}

    def open_only(self, is_open: Tensor) -> None:
        """Opens these units, bool [units], and closes all others, of gates that do not learn; zeroes what closed."""
        self._forward.gates.set_open(is_open)
        self.zero_closed()

    @torch.no_grad()
    def zero_closed(self) -> None:
        """Sets the entries that closed gates multiply to zero, in place."""
        weights: list[Tensor] = [*self.by_name().values()]
        logits = self._forward.gates.logits
        foreach_copy_(weights, self._forward.masked_weights((logits > 0).to(logits.dtype), weights))

    def units_of(self, mask: Mask) -> Tensor:
        """The units of which a mask keeps any entry, bool [units].

        Raises `ZerogateError` where the mask is of another architecture, or keeps parts of a unit."""
        mask.check(self._model)
        if missing := [name for name in mask if name not in self._layout.names]:
            raise ZerogateError(f"this mask is of weights without gates: {missing[0]}; sparsify the model with them")
        is_open = torch.zeros(self._layout.units, dtype=torch.bool)
        for placement in self._layout.placements:
            kept = mask.get(placement.weight, torch.ones(()).expand(placement.shape) > 0)
            rows, gated = placement.rows(kept).any(1), placement.units >= 0
            is_open[placement.units[gated]] |= rows[gated]
        is_open = is_open.to(self._forward.gates.logits.device)
        for name, entries in self.entries(is_open).items():
            if name in mask and not torch.equal(entries.cpu(), mask[name]):
                unit = self._layout.unit.name
                raise ZerogateError(f'this mask cuts through units: {name} keeps parts of a {unit}; use unit="weight"')
        return is_open

    def magnitudes(self) -> Tensor:
        """Score of every unit, [units]: |w| of a single weight; of a channel or head the root mean square of the weights
        that read it, over the mean of its group."""
        relative_to = self._layout.groups if self._layout.unit.changes_shapes else ()
        return magnitudes(self.by_name(), self._layout.placements, self._layout.units, relative_to)
