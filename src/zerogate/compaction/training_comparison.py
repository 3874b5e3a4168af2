"""How far a compacted network is from the gated one in training mode, where they do other things than in evaluation mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zerogate.compaction.comparison import Difference, difference_of, inputs_for, outputs_of
from zerogate.compaction.cuttable import Cuttable
from zerogate.compaction.deployed import Deployed
from zerogate.compaction.even_draws import EvenDraws
from zerogate.cutting.attention import unnest
from zerogate.cutting.plan import Plan
from zerogate.masking.norms import attach_kept

_ROUNDING = 1e-10
"""A difference up to which nothing more is asked."""
_ENLARGED = 100
"""How much larger a difference may be than what comes of a few roundings in the weights, and still be taken for that."""


def compare_in_training(deployed: Deployed, plan: Plan, float64: bool) -> Difference | None:
    """The difference that a plan makes in what one forward in training mode returns on the example inputs, and in what
    buffers hold after it. Nothing is dropped, see `EvenDraws`.

    None where that cannot be said: the gated network does not run in training mode (it takes labels, or more than one
    example), does other things each time, or makes as much of a rounding. Raises whatever the compacted network raises.
    """
    gated = deployed.folded(float64)
    small = gated.copy().cut(plan)
    expected = _returned(deployed, gated, float64)
    if expected is None:
        return None
    outputs = difference_of(expected, _outputs(deployed, small, float64))
    after = gated.copy().cut(plan)
    buffers = difference_of(_buffers(deployed, after), _buffers(deployed, small))
    difference = buffers if buffers.value > outputs.value else outputs
    if difference.value > _ROUNDING:
        again = _returned(deployed, _disturbed(deployed.folded(float64)), float64)
        if again is None or difference_of(expected, again).value * _ENLARGED >= difference.value:
            return None
    return difference


def _disturbed(gated: Cuttable) -> Cuttable:
    """A copy with weights off by some roundings: with batch statistics of two examples, say, much may come of it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in gated.module.parameters():
            if p.is_floating_point():
                some = torch.rand(p.shape, generator=generator).to(p) - 0.5
                p.mul_(1 + 64 * torch.finfo(p.dtype).eps * some)
    return gated


def _returned(deployed: Deployed, gated: Cuttable, float64: bool) -> list[Tensor] | None:
    """What a copy of the gated network returns; None where it fails."""
    attach_kept(gated.module, deployed.structure, deployed.kept)
    try:
        return _outputs(deployed, gated.module, float64)
    except Exception:
        return None


def _outputs(deployed: Deployed, model: nn.Module, float64: bool) -> list[Tensor]:
    unnest(model)
    inputs = inputs_for(model, deployed.example_inputs, float64)
    return outputs_of(model, inputs, float64, deployed.structure.choice, EvenDraws(), training=True)[0]


def _buffers(deployed: Deployed, small: nn.Module) -> list[Tensor]:
    """What the buffers of a compacted network hold for the channels that anybody reads: those that stay only because a
    group keeps one channel at least are computed from what may be gone."""
    kept, in_use = deployed.kept.cpu(), deployed.kept if deployed.in_use is None else deployed.in_use
    found = []
    for name, buffer in small.named_buffers():
        units = deployed.structure.axes.get((name, 0)) if deployed.unit.changes_shapes else None
        if units is not None:
            units = units[(units < 0) | kept[units]]
            buffer = buffer[((units < 0) | in_use.cpu()[units]).to(buffer.device)]
        found.append(buffer)
    return found
