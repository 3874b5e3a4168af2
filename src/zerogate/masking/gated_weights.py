"""The gated weights of a model: what units let through of them, which units a mask keeps, their magnitudes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from zerogate.cutting.plain_layers import plain_copy
from zerogate.errors import ZerogateError
from zerogate.masking.forward import GatedForward
from zerogate.masking.scores import magnitudes
from zerogate.masks import Mask
from zerogate.modules.computed_weights import weight_norms
from zerogate.modules.index import ModuleIndex, modules_by_name
from zerogate.modules.internals import foreach_copy_


def gated_weights(model: nn.Module, names: Sequence[str]) -> dict[str, Tensor]:
    """These weights of a model without gates, by name; of torch's weight norm, the weight that it computes."""
    index, norms = ModuleIndex(model), weight_norms(modules_by_name(model))
    weights = {name: index.tensor(name) for name in names}
    for name, norm in norms.items():
        if name in weights:
            weights[name] = norm.weight(index.tensor(norm.g), index.tensor(norm.v))
    return weights


class GatedWeights:
    """The weights on which gates lie.

    Args:
        model: whose weights they are.
        forward: multiplies them by their gates.
        without_gates: takes the gates off for as long as a block lasts.
    """

    def __init__(
        self, model: nn.Module, forward: GatedForward, without_gates: Callable[[], AbstractContextManager[object]]
    ) -> None:
        self._model, self._forward, self._layout = model, forward, forward.layout
        self._without_gates = without_gates
        self._shapes = {p.weight: p.shape for p in self._layout.placements}
        plain = self._layout.structure.plain
        self._sources = {f"{path}.weight": layer.source for path, layer in plain.items()}

    def by_name(self) -> dict[str, Tensor]:
        """The weights by name, as the model has them now; those that layers compute, as these compute them."""
        plain = self._layout.structure.plain
        if not plain:
            return gated_weights(self._model, self._layout.names)
        with self._without_gates():
            return gated_weights(plain_copy(self._model, plain), self._layout.names)

    @torch.no_grad()
    def entries(self, is_open: Tensor) -> dict[str, Tensor]:
        """Which entries of each weight these units let through, for bool [units]: bool tensors by the parameter's name; a
        weight that is computed has that of the parameter of its shape, if there is one."""
        ones = [torch.ones(shape, device=is_open.device) for shape in self._shapes.values()]
        masked = self._forward.masked_weights(is_open.float(), ones)
        entries = {self._sources.get(name, name): m > 0 for name, m in zip(self._shapes, masked, strict=True)}
        return {name: kept for name, kept in entries.items() if name}

    def open_only(self, is_open: Tensor) -> None:
        """Opens these units, bool [units], and closes all others, of gates that do not learn; zeroes what closed."""
        self._forward.gates.set_open(is_open)
        self.zero_closed()

    @torch.no_grad()
    def zero_closed(self) -> None:
        """Sets the entries that closed gates multiply to zero, in place; not those of weights that layers compute, whose
        gates go on closing them."""
        logits = self._forward.gates.logits
        weights = self._forward.multiplied(logits)
        products = self._forward.masked_weights((logits > 0).to(logits.dtype), weights)
        own = [i for i, name in enumerate(self._layout.names) if name not in self._layout.computed]
        if own:
            foreach_copy_([weights[i] for i in own], [products[i] for i in own])

    def units_of(self, mask: Mask) -> Tensor:
        """The units of which a mask keeps any entry, bool [units].

        Raises `ZerogateError` where the mask is of another architecture, or keeps parts of a unit."""
        mask.check(self._model)
        names = [self._sources.get(name, name) for name in self._layout.names]
        if missing := [name for name in mask if name not in names]:
            raise ZerogateError(f"this mask is of weights without gates: {missing[0]}; sparsify the model with them")
        is_open = torch.zeros(self._layout.units, dtype=torch.bool)
        for placement in self._layout.placements:
            name = self._sources.get(placement.weight, placement.weight)
            kept = mask.get(name, torch.ones(()).expand(placement.shape) > 0)
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
