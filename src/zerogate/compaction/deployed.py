"""A gated model as compaction needs it: what is cut, by which mask, and what must come out the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zerogate.compaction.cuttable import Cuttable
from zerogate.cutting.plan import Plan
from zerogate.masking.unit import Unit
from zerogate.modules.run import Inputs
from zerogate.structure import Structure


@dataclass(frozen=True)
class Deployed:
    """A gated model with the mask that is deployed now. A value: the model may train on, this mask stays."""

    cuttable: Cuttable
    """The gated model, of the user's class or as a graph; never changed, copies of it are cut."""
    example_inputs: Inputs
    """What the outputs of the gated and of the compacted network are compared on."""
    structure: Structure
    """Which slices of which tensors belong to each unit, and which norms run over the kept channels alone."""
    kept: Tensor
    """Units that stay, bool [units]: the open ones that are of use, and at least one of each group."""
    unit: Unit
    """What one gate closes: slices, which leave the tensors, or single weights, which stay as zeros."""
    gated_names: tuple[str, ...]
    """Weights that gates multiply, by their names in the model."""
    mask: Callable[[Sequence[Tensor]], Sequence[Tensor]]
    """Multiplies gated weights, in the order of their names, with the deployed mask; returns new tensors."""
    is_open: Tensor | None = None
    """Units that the mask lets through, bool [units]; None: those that stay."""
    gate_parameters: tuple[Tensor, ...] = ()
    """What an optimizer may train besides the model's weights; the compacted network has none of it."""

    @property
    def model(self) -> nn.Module:
        """The gated model."""
        return self.cuttable.module

    def plan(self) -> Plan:
        """What compaction leaves of each tensor."""
        return self.unit.plan(self.cuttable.whole, self.structure, self.kept)

    def folded(self, float64: bool = False) -> Cuttable:
        """A plain copy of the model with the mask multiplied into its weights; ``float64``: see `Cuttable.copy`."""
        copy = self.cuttable.copy(float64)
        self.fold_into(copy.module)
        return copy

    @torch.no_grad()
    def fold_into(self, model: nn.Module) -> None:
        """Multiplies the mask into the gated weights of a copy of the model, in place.

        Every zero becomes +0: a negative weight times 0 is −0.0, and files leave out +0 alone."""
        weights = [model.get_parameter(name) for name in self.gated_names]
        for weight, masked in zip(weights, self.mask(weights), strict=True):
            weight.copy_(masked)
            weight.masked_fill_(weight == 0, 0)
