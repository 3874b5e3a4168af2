"""Removing closed units: fold the gates into the weights, slice every tensor, compare in float64."""

from __future__ import annotations

import warnings
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zerogate.compaction.optimizer_state import carry
from zerogate.cutting.attention import unnest
from zerogate.cutting.plan import Plan, apply_plan, make_plan
from zerogate.errors import CompactionError, no_weights
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.masking.norms import attach_kept
from zerogate.modules.float64 import KeepFloat64
from zerogate.modules.index import deep_copy, named_tensors, overwrite_masked
from zerogate.modules.run import Inputs, call, kept_rng, tensors_of
from zerogate.modules.unregistered import replace, unregistered
from zerogate.objectives.target import Target
from zerogate.storage.plan_json import describe_plan

if TYPE_CHECKING:
    from zerogate.sparsified import Sparsified

TOLERANCE = 1e-10
"""Largest difference from the gated model that compaction accepts, relative to the largest output, in float64."""
COARSE = 1e-4
"""The same for a model that does not run in float64, in its own precision."""


def compact(
    sparse: Sparsified, optimizer: torch.optim.Optimizer | None = None, ema: nn.Module | None = None
) -> nn.Module:
    """See `Sparsified.compact`."""
    _check_data(sparse)
    _check_target(sparse)
    plan = Plan() if sparse.unit == "weight" else make_plan(_whole(sparse), sparse.structure, sparse.kept())
    try:
        error, allowed = _check(sparse, plan, torch.float64), TOLERANCE
    except _NotInThisPrecision:  # some kernels know nothing but float32
        error, allowed = _check(sparse, plan, None), COARSE
    if error != error:
        raise CompactionError(
            f"the outputs of this {type(sparse.model).__name__} hold NaN for the example inputs and cannot be compared; "
            "look for NaN or infinity among its parameters and inputs"
        )
    if not error <= allowed:
        raise CompactionError(
            f"the compacted {type(sparse.model).__name__} differs from the gated one by {error:.3g} of its largest output "
            f"(allowed {allowed:g}); it is not handed back. Please report the model"
        )
    small = _cut(sparse, _deployed(sparse), plan, None)
    description = describe_plan(plan, sparse.model, small) if sparse.keep_class else {}
    description |= {"difference": error}
    small.zerogate_plan = description  # type: ignore[assignment]  # plain JSON values, for `zerogate.save`
    carry(sparse, plan, small, optimizer, ema)
    return small


def _check_data(sparse: Sparsified) -> None:
    """Raises `CompactionError` where there are shapes only, and `ZerogateError` for a model that has changed."""
    sparse.check_unchanged()
    if any(tensor.is_meta for _, tensor in named_tensors(sparse.model)):
        raise CompactionError(no_weights(sparse.model, "meta"))
    if any(x.is_meta for x in tensors_of(sparse.example_inputs)):
        raise CompactionError(
            "the example inputs are on the meta device and hold nothing to compare on; set sparse.example_inputs to inputs "
            f"on the device of the {type(sparse.model).__name__}"
        )


def _check_target(sparse: Sparsified) -> None:
    """Warns where more is left than the target allows."""
    target = sparse.objective
    if isinstance(target, Target):
        left, dense = target.left(sparse.is_open(), sparse.cost_model), target.dense(sparse.cost_model)
        if left > target.allowed(sparse.cost_model):
            warnings.warn(
                f"{left:,} of {dense:,} {target.over} are left ({left / dense:.2%}), and the target is {target.share:.2%}: "
                "train longer, or call project() on the handle first, which closes the most doubtful gates",
                stacklevel=4,
            )


def _whole(sparse: Sparsified) -> nn.Module:
    """What a plan applies to: the model, or its graph."""
    return sparse.model if sparse.keep_class else sparse.graph()


def _cut(sparse: Sparsified, model: nn.Module, plan: Plan, dtype: torch.dtype | None) -> nn.Module:
    """What the plan leaves of a copy of the model, which is used up."""
    if sparse.keep_class:
        return apply_plan(model, plan)
    mode = KeepFloat64() if dtype is torch.float64 else nullcontext()
    graph = apply_plan(sparse.graph().holding(model, mode), plan)
    assert isinstance(graph, GraphModel)
    return graph.plain(type(sparse.model).__name__)


def _check(sparse: Sparsified, plan: Plan, dtype: torch.dtype | None) -> float:
    """How far the compacted model is from the gated one, before rounding to the model's own precision."""
    gated = _deployed(sparse, dtype)
    small = _cut(sparse, deep_copy(gated), plan, dtype)
    attach_kept(gated, sparse.structure, sparse.kept())
    return _difference(gated, small, sparse.example_inputs, dtype)


def _deployed(sparse: Sparsified, dtype: torch.dtype | None = None) -> nn.Module:
    """A plain copy of the gated model with the deployed mask multiplied into its weights."""
    with sparse.detached() as model:
        twin = deep_copy(model)
    modes = [(module, module.training) for module in twin.modules()]
    twin.train()  # empties what some modules keep from their last evaluation
    for module, training in modes:
        module.training = training
    if dtype is torch.float64:
        twin.double()  # not .to(): that makes complex buffers real
        for path, tensor in [*unregistered(twin)]:
            if tensor.is_floating_point():
                with suppress(KeyError):  # held by a closure: out of reach
                    replace(twin, path, tensor.double())
    for p in twin.parameters():
        p.grad = None
    weights = [twin.get_parameter(name) for name in sparse.gated_names]
    overwrite_masked(weights, sparse.masked_weights(sparse.gate.mask(sparse.logits.detach()), weights))
    return twin


def difference(sparse: Sparsified, small: nn.Module) -> float:
    """See `Sparsified.difference`."""
    _check_data(sparse)
    gated = _deployed(sparse, torch.float64)
    attach_kept(gated, sparse.structure, sparse.kept())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, which copies its own deprecated classes with a graph
        small = deep_copy(small).double()
    return _difference(gated, small, sparse.example_inputs)


class _NotInThisPrecision(Exception):
    """The gated model itself does not run."""


def _difference(a: nn.Module, b: nn.Module, inputs: Inputs, dtype: torch.dtype | None = torch.float64) -> float:
    """max |a − b| / max |a|; puts both into evaluation mode. Both see the same random numbers."""
    devices = list(dict.fromkeys(tensor.device for _, tensor in named_tensors(a)))

    def prepared(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        x = x if x.device in devices else x.to(devices[0])  # the model has moved since
        return x.to(dtype) if dtype is not None and x.is_floating_point() else x

    inputs = tree_map(prepared, inputs)
    a, b = a.eval(), b.eval()
    unnest(a)  # nested tensors hold zeros where padding was, and plain ones do not
    outs = []
    for model in (a, b):
        with torch.no_grad(), kept_rng(model), KeepFloat64() if dtype is torch.float64 else nullcontext():
            torch.manual_seed(0)
            try:
                outs.append(tensors_of(call(model, tree_map(_clone, inputs))))
            except Exception as error:
                if model is a:
                    raise _NotInThisPrecision from error
                raise
    out_a, out_b = outs
    if [x.shape for x in out_a] != [x.shape for x in out_b]:
        return float("inf")
    floats = [(x.double(), y.double()) for x, y in zip(out_a, out_b, strict=True) if x.is_floating_point()]
    largest = max((x.abs().max().item() for x, _ in floats if x.numel()), default=0.0)
    apart = [(x - y).abs().max().item() for x, y in floats if x.numel()]
    worst = float("nan") if any(v != v for v in apart) else max(apart, default=0.0)
    return worst / largest if largest else worst


def _clone(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x
