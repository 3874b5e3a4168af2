"""Whether a compacted network computes what the gated one does: both run on the example inputs, in float64."""

from __future__ import annotations

import math
import warnings
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zerogate.compaction.deployed import Deployed
from zerogate.cutting.attention import unnest
from zerogate.cutting.plan import Plan
from zerogate.errors import CompactionError, no_weights
from zerogate.masking.norms import attach_kept
from zerogate.modules.copies import deep_copy
from zerogate.modules.index import named_tensors
from zerogate.modules.run import Inputs, KeepFloat64, call, kept_rng, tensors_of

TOLERANCE = 1e-10
"""Largest difference from the gated network that compaction accepts, relative to the largest output, in float64."""
TOLERANCE_OWN_PRECISION = 1e-4
"""The largest for a model that does not run in float64, in its own precision."""


def check_comparable(deployed: Deployed) -> None:
    """Raises `CompactionError` where the model or the example inputs are on the meta device."""
    model = deployed.model
    if any(tensor.is_meta for _, tensor in named_tensors(model)):
        raise CompactionError(no_weights(model, "meta"))
    if any(x.is_meta for x in tensors_of(deployed.example_inputs)):
        raise CompactionError(
            "the example inputs are on the meta device and hold nothing to compare on; set sparse.example_inputs to inputs "
            f"on the device of the {type(model).__name__}"
        )


def verify(deployed: Deployed, plan: Plan) -> float:
    """The difference that the plan makes, measured before weights are rounded to the model's own precision.

    Raises `CompactionError` where it is larger than the tolerance, or NaN."""
    try:
        difference, allowed = _difference_of_plan(deployed, plan, float64=True), TOLERANCE
    except _GatedModelFails:  # some kernels know nothing but float32
        difference, allowed = _difference_of_plan(deployed, plan, float64=False), TOLERANCE_OWN_PRECISION
    name = type(deployed.model).__name__
    if math.isnan(difference):
        raise CompactionError(
            f"the outputs of this {name} hold NaN for the example inputs and cannot be compared; "
            "look for NaN or infinity among its parameters and inputs"
        )
    if difference > allowed:
        raise CompactionError(
            f"the compacted {name} differs from the gated one by {difference:.3g} of its largest output "
            f"(allowed {allowed:g}); it is not handed back. Please report the model"
        )
    return difference


def difference(deployed: Deployed, small: nn.Module) -> float:
    """How far a compacted network is from the gated one, see `Sparsified.difference`.

    Raises `CompactionError` where the model or the example inputs are on the meta device."""
    check_comparable(deployed)
    gated = deployed.folded(float64=True).module
    attach_kept(gated, deployed.structure, deployed.kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, which copies its own deprecated classes with a graph
        small = deep_copy(small).double()
    return _difference_of_outputs(gated, small, deployed.example_inputs, float64=True)


class _GatedModelFails(Exception):
    """The gated model itself does not run in the precision in which it is compared."""


def _difference_of_plan(deployed: Deployed, plan: Plan, float64: bool) -> float:
    """Of the gated network and what the plan leaves of it."""
    gated = deployed.folded(float64)
    small = gated.copy().cut(plan)
    attach_kept(gated.module, deployed.structure, deployed.kept)
    return _difference_of_outputs(gated.module, small, deployed.example_inputs, float64)


def _difference_of_outputs(gated: nn.Module, small: nn.Module, inputs: Inputs, float64: bool) -> float:
    """max |gated − small| / max |gated| over all floating-point outputs; infinite where their shapes differ.

    Puts both into evaluation mode. A forward that draws random numbers draws the same in both."""
    inputs = _inputs_for(gated, inputs, float64)
    unnest(gated)  # nested tensors hold zeros where padding was, and plain ones do not
    try:
        expected = _outputs(gated, inputs, float64)
    except Exception as error:
        raise _GatedModelFails from error
    received = _outputs(small, inputs, float64)
    if [x.shape for x in expected] != [x.shape for x in received]:
        return math.inf
    pairs = [
        (x.double(), y.double()) for x, y in zip(expected, received, strict=True) if x.is_floating_point() and x.numel()
    ]
    largest = max((x.abs().max().item() for x, _ in pairs), default=0.0)
    differences = [(x - y).abs().max().item() for x, y in pairs]
    worst = math.nan if any(map(math.isnan, differences)) else max(differences, default=0.0)
    return worst / largest if largest else worst


def _outputs(model: nn.Module, inputs: Inputs, float64: bool) -> list[Tensor]:
    """All tensors that a model returns in evaluation mode, from the seed 0."""
    model.eval()
    with torch.no_grad(), kept_rng(model), KeepFloat64() if float64 else nullcontext():
        torch.manual_seed(0)
        return tensors_of(call(model, tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs)))


def _inputs_for(model: nn.Module, inputs: Inputs, float64: bool) -> Inputs:
    """The inputs on a device of the model, those of floating point in float64 where that is asked for."""
    devices = list(dict.fromkeys(tensor.device for _, tensor in named_tensors(model)))

    def prepared(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        x = x if x.device in devices else x.to(devices[0])  # the model has moved since
        return x.to(torch.float64) if float64 and x.is_floating_point() else x

    moved: Inputs = tree_map(prepared, inputs)
    return moved
