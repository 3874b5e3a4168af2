"""Removing closed units: fold the gates into the weights, slice every tensor, compare in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from zerogate.errors import CompactionError, first_line
from zerogate.groups import Inputs, Structure, build, call, kept_rng, plain_copy
from zerogate.groups.structure import Observations
from zerogate.plans import Plan, apply_plan, describe_plan, make_plan
from zerogate.tensors import named_tensors

if TYPE_CHECKING:
    from zerogate.masking import Sparsified

TOLERANCE = 1e-10
"""Largest difference from the gated model that compaction accepts, relative to the largest output, in float64."""


def fold(model: nn.Module, masked: dict[str, Tensor]) -> None:
    """Overwrites weights with masked ones, in place."""
    first = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in masked.items():
            first[name].copy_(value)


def compact(sparse: Sparsified) -> nn.Module:
    """See `Sparsified.compact`."""
    plan = make_plan(sparse.structure, sparse.kept()) if sparse.unit == "channel" else Plan()
    gated = _deployed(sparse, torch.float64)
    small = apply_plan(copy.deepcopy(gated), plan)
    error = _difference(gated, small, sparse.example_inputs)  # before rounding to the model's own precision
    if not error <= TOLERANCE:
        raise CompactionError(
            f"the compacted {type(sparse.model).__name__} differs from the gated one by {error:.3g} of its largest output "
            f"(float64, allowed {TOLERANCE:g}); it is not handed back. Please report the model"
        )
    small = apply_plan(_deployed(sparse), plan)
    description = describe_plan(plan, sparse.model) | {"difference": error}
    small.zerogate_plan = description  # type: ignore[assignment]  # plain JSON values, for `zerogate.save`
    return small


def _deployed(sparse: Sparsified, dtype: torch.dtype | None = None) -> nn.Module:
    """A plain copy of the gated model with the deployed mask multiplied into its weights."""
    with sparse.detached() as model:
        twin = copy.deepcopy(model)
    if dtype is not None:
        twin.to(dtype)
    for p in twin.parameters():
        p.grad = None
    weights = {m.weight: twin.get_parameter(m.weight) for m in sparse.masks}
    masked = sparse.masked_weights(sparse.gate.mask(sparse.logits.detach()), [*weights.values()])
    fold(twin, dict(zip(weights, masked, strict=True)))
    return twin


def difference(sparse: Sparsified, small: nn.Module) -> float:
    """See `Sparsified.difference`."""
    return _difference(_deployed(sparse, torch.float64), copy.deepcopy(small).double(), sparse.example_inputs)


def _difference(a: nn.Module, b: nn.Module, inputs: Inputs) -> float:
    """max |a − b| / max |a|; puts both into evaluation mode."""
    inputs = tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
    a, b = a.eval(), b.eval()
    with torch.no_grad(), kept_rng(a):
        out_a, out_b = (
            [x for x in tree_leaves(call(m, tree_map(_clone, inputs))) if isinstance(x, Tensor)] for m in (a, b)
        )
    if [x.shape for x in out_a] != [x.shape for x in out_b]:
        return float("inf")
    floats = [(x, y) for x, y in zip(out_a, out_b, strict=True) if x.is_floating_point()]
    largest = max((x.abs().max().item() for x, _ in floats if x.numel()), default=0.0)
    apart = [(x - y).abs().max().item() for x, y in floats if x.numel()]
    worst = float("nan") if any(v != v for v in apart) else max(apart, default=0.0)
    return worst / largest if largest else worst


def _clone(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


def only_removable(
    model: nn.Module,
    inputs: Inputs,
    seen: Observations,
    structure: Structure,
    exclude: Iterable[str],
) -> Structure:
    """Freezes groups whose removal the model's own forward does not survive.

    Sizes written into a forward (a reshape, a split at fixed places) leave no trace in the labels. So a copy with random
    weights is closed at random and compacted, and must agree with the masked copy in float64; where it does not, groups
    are tried by halves until the guilty ones are found.
    """
    with kept_rng(model):
        torch.manual_seed(0)
        twin = _randomised(model)

        def trial(numbers: list[int]) -> str | None:
            return _try_removing(twin, inputs, structure, numbers)

        guilty = _search(list(range(len(structure.groups))), trial)
    if not guilty:
        return structure
    for number, reason in guilty.items():
        group = structure.groups[number]
        for axis, units in structure.axes.items():
            held = (units >= group.slice.start) & (units < group.slice.stop)
            seen.labels.freeze(torch.where(held, seen.axes[axis], 0), reason)
    return build(seen, exclude)


def _search(numbers: list[int], trial: Callable[[list[int]], str | None]) -> dict[int, str]:
    reason = trial(numbers) if numbers else None
    if reason is None:
        return {}
    if len(numbers) == 1:
        return {numbers[0]: reason}
    half = len(numbers) // 2
    found = _search(numbers[:half], trial) | _search(numbers[half:], trial)
    rest = [n for n in numbers if n not in found]
    if not found or trial(rest) is not None:  # guilty only together
        return dict.fromkeys(numbers, reason)
    return found


def _try_removing(twin: nn.Module, inputs: Inputs, structure: Structure, numbers: list[int]) -> str | None:
    """Removes a random part of these groups from a copy; why that fails, or None."""
    kept = torch.ones(structure.units, dtype=torch.bool)
    for number in numbers:
        where = structure.groups[number].slice
        size = where.stop - where.start
        closed = torch.rand(size) < 0.5
        some, other = torch.randperm(size)[:2].tolist() if size > 1 else (0, 0)
        closed[some], closed[other] = True, False  # always shrinks, never to nothing
        kept[where] = ~closed
    masked, first = copy.deepcopy(twin), dict(twin.named_parameters())
    weights = {}
    for c in structure.calls:
        if c.consumes in structure.axes:
            units = structure.axes[c.consumes]
            view = [1] * first[c.weight].ndim
            view[c.consumes[1]] = -1
            weights[c.weight] = first[c.weight] * ((units < 0) | kept[units]).view(view).to(first[c.weight])
    fold(masked, weights)
    small = apply_plan(copy.deepcopy(masked), make_plan(structure, kept))
    try:
        error = _difference(masked, small, inputs)
    except Exception as failure:
        return f"the forward depends on its size ({type(failure).__name__}: {first_line(failure)})"
    return None if error <= TOLERANCE else "the forward depends on its size (outputs differ when it is removed)"


def _randomised(model: nn.Module) -> nn.Module:
    """A float64 copy in evaluation mode whose weights hide nothing: no zeros at the start, no equal channels."""
    twin = plain_copy(model).double().eval()
    with torch.no_grad():
        for name, tensor in named_tensors(twin):
            if not tensor.is_floating_point():
                continue
            if tensor.ndim > 1:
                tensor.normal_(0, (2 / max(tensor[0].numel(), 1)) ** 0.5)
            elif name.endswith("running_mean") or name.endswith("bias"):
                tensor.normal_(0, 0.1)
            else:
                tensor.uniform_(0.5, 1.5)
    return twin
