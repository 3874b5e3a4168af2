"""A gated model as compaction needs it: what is cut, by which mask, and what must come out the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from zerogate.compaction.cuttable import Cuttable
from zerogate.cutting.plain_layers import make_plain
from zerogate.cutting.plan import Plan
from zerogate.masking.gated_weights import gated_weights
from zerogate.masking.unit import Unit
from zerogate.modules.computed_weights import weight_norms
from zerogate.modules.copies import meta_copy
from zerogate.modules.index import modules_by_name
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
    in_use: Tensor | None = None
    """Units that the mask lets through and that are read, bool [units]; None: those that stay."""
    gate_parameters: tuple[Tensor, ...] = ()
    """What an optimizer may train besides the model's weights; the compacted network has none of it."""

    @property
    def model(self) -> nn.Module:
        """The gated model."""
        return self.cuttable.module

    def plan(self) -> Plan:
        """What compaction leaves of each tensor."""
        whole = self.cuttable.whole
        if self.structure.plain and whole is self.model:
            whole = make_plain(meta_copy(whole), self.structure.plain)
        return self.unit.plan(whole, self.structure, self.kept)

    def folded(self, float64: bool = False) -> Cuttable:
        """A plain copy of the model with the mask multiplied into its weights; ``float64``: see `Cuttable.copy`."""
        copy = self.cuttable.copy(float64)
        self.fold_into(copy.module)
        return copy

    @torch.no_grad()
    def fold_into(self, model: nn.Module) -> None:
        """Multiplies the mask into the gated weights of a copy of the model, in place; plain layers take their places in it.

        Every zero becomes +0: a negative weight times 0 is −0.0, and files leave out +0 alone."""
        make_plain(model, self.structure.plain)
        weights = gated_weights(model, self.gated_names)
        norms = weight_norms(modules_by_name(model))
        for (name, weight), masked in zip(weights.items(), self.mask([*weights.values()]), strict=True):
            left = masked.masked_fill(masked == 0, 0)
            for stated, tensor in (norms[name].state(left) if name in norms else {name: left}).items():
                model.get_parameter(stated).copy_(tensor.to(weight.device))
