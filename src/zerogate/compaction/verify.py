"""Whether a compacted network computes what the gated one does: both run on the example inputs, in float64."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from zerogate.compaction.comparison import WholeNetworkFails, compare, rounds_inside
from zerogate.compaction.deployed import Deployed
from zerogate.compaction.fault import smallest_failing
from zerogate.compaction.training_comparison import compare_in_training
from zerogate.cutting.plan import Plan
from zerogate.errors import CompactionError, class_and_line, no_weights
from zerogate.groups.code_lines import line_of
from zerogate.masking.norms import attach_kept
from zerogate.modules.copies import copy_with, widened
from zerogate.modules.index import named_tensors
from zerogate.modules.run import tensors_of
from zerogate.structure import Group

TOLERANCE = 1e-10
"""Largest difference from the gated network that compaction accepts, of each output relative to its largest value, in
float64."""
TOLERANCE_ROUNDED_INSIDE = 1e-6
"""The largest for a model that computes in a lower precision inside, whatever the precision of its weights."""
TOLERANCE_IN_TRAINING = 1e-7
"""The largest in training mode, where batch statistics of a few examples enlarge rounding."""
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


@dataclass(frozen=True)
class Outcome:
    """How a compaction went."""

    difference: float
    """Of the compacted and the gated network; see `Difference`."""
    failure: str | None = None
    """What the compacted network does that it should not: as in ``does not run: RuntimeError: …``; None where it computes
    the same, or where outputs hold NaN."""
    cause: Exception | None = None


def verify(deployed: Deployed, plan: Plan) -> float:
    """The difference that the plan makes, measured before weights are rounded to the model's own precision.

    Raises `CompactionError` where it is larger than the tolerance, or NaN, or where one of the networks does not run; where
    that is the compacted one, the message names the layers at fault."""
    name = type(deployed.model).__name__
    try:
        outcome = try_plan(deployed, plan)
    except WholeNetworkFails as error:
        why = class_and_line(error.__cause__ or error)
        raise CompactionError(
            f"the gated {name} does not run on its example inputs in evaluation mode: {why}; set sparse.example_inputs to "
            "what its forward takes"
        ) from error
    if outcome.failure is not None:
        raise CompactionError(
            f"the compacted {name} {outcome.failure}; it is not handed back. {_way_out(deployed)}"
        ) from outcome.cause
    if math.isnan(outcome.difference):
        raise CompactionError(
            f"the outputs of this {name} hold NaN for the example inputs and cannot be compared; "
            "look for NaN or infinity among its parameters and inputs"
        )
    return outcome.difference


def try_plan(deployed: Deployed, plan: Plan) -> Outcome:
    """Compacts a copy and compares it with the gated network.

    Raises `WholeNetworkFails` where that does not run, and `ZerogateError` for a model that cannot be copied."""
    for float64, allowed in ((True, TOLERANCE), (False, TOLERANCE_OWN_PRECISION)):
        gated = deployed.folded(float64)
        try:
            small = gated.sharing().cut(plan)
            attach_kept(gated.module, deployed.structure, deployed.kept)
            difference = compare(gated.module, small, deployed.example_inputs, float64, deployed.structure.choice)
        except WholeNetworkFails:  # some kernels know nothing but float32
            if not float64:
                raise
        except Exception as error:
            return Outcome(math.inf, f"does not run: {class_and_line(error)}{line_of(error)}", error)
        else:
            failure = None
            if float64 and allowed < difference.value <= TOLERANCE_ROUNDED_INSIDE:
                allowed = TOLERANCE_ROUNDED_INSIDE if rounds_inside(gated.module, deployed.example_inputs) else allowed
            if difference.value > allowed:
                failure = f"differs from the gated one by {difference} (allowed {allowed:g})"
            return Outcome(difference.value, failure or _failure_in_training(deployed, plan, float64))
    raise AssertionError("the own precision is the last")


def _failure_in_training(deployed: Deployed, plan: Plan, float64: bool) -> str | None:
    """What the compacted network does in training mode that it should not; see `Outcome.failure`."""
    if not deployed.structure.trains_apart:
        return None
    try:
        difference = compare_in_training(deployed, plan, float64)
    except Exception as error:
        return f"does not run in training mode: {class_and_line(error)}{line_of(error)}"
    allowed = TOLERANCE_IN_TRAINING if float64 else TOLERANCE_OWN_PRECISION
    if difference is None or not difference.value > allowed:
        return None
    return f"differs from the gated one in training mode by {difference.value:.3g} of what is compared (allowed {allowed:g})"


def groups_at_fault(deployed: Deployed) -> list[Group]:
    """A smallest set of groups whose closed units make the compaction fail while all other groups stay whole.

    Args:
        deployed: whose compaction fails.
    """
    structure, kept = deployed.structure, deployed.kept
    number = structure.group_of_unit.to(kept.device)

    def fails(groups: Sequence[int]) -> bool:
        whole = ~torch.isin(number, torch.tensor(groups, device=kept.device))
        fewer = replace(deployed, kept=kept | whole)
        return try_plan(fewer, fewer.plan()).failure is not None

    cut = number[~kept].unique().tolist()
    return [structure.groups[i] for i in smallest_failing(cut, fails)]


def _way_out(deployed: Deployed) -> str:
    """Which layers to leave out, as a sentence."""
    groups = groups_at_fault(deployed)
    names = list(dict.fromkeys((*group.producers, *group.consumers, group.name)[0] for group in groups))
    if not names:
        return "Please report the model"
    which = f"the channels of {names[0]}" if len(names) == 1 else f"the channels of {', '.join(names)} together"
    return f"What fails is to remove {which}: sparsify with exclude={names!r} keeps them. Please report the model, too"


def difference(deployed: Deployed, small: nn.Module) -> float:
    """How far a compacted network is from the gated one, see `Sparsified.difference`.

    Raises `CompactionError` where the model or the example inputs are on the meta device, or one of them does not run."""
    check_comparable(deployed)
    gated = deployed.folded(float64=True).module
    attach_kept(gated, deployed.structure, deployed.kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, which copies its own deprecated classes with a graph
        small = copy_with(small, lambda _, x: widened(x))
    try:
        return compare(gated, small, deployed.example_inputs, True, deployed.structure.choice).value
    except WholeNetworkFails as error:
        why = class_and_line(error.__cause__ or error)
        raise CompactionError(f"the gated {type(gated).__name__} does not run in float64: {why}") from error
