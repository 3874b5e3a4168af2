"""Removing closed units: fold the gates into the weights, slice every tensor, compare in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from zerogate.errors import CompactionError
from zerogate.groups import Axis, Inputs, Structure, build, call, kept_rng, plain_copy
from zerogate.groups.structure import Observations

if TYPE_CHECKING:
    from zerogate.masking import Sparsified

TOLERANCE = 1e-10
"""Largest difference from the gated model that compaction accepts, relative to the largest output, in float64."""


@dataclass(frozen=True)
class Plan:
    """What is left of each tensor.

    Attributes:
        keep: axis → indices that stay along it, int64.
        select: layer → (dim counted from the end, indices of its input that it still takes).
    """

    keep: dict[Axis, Tensor] = field(default_factory=dict)
    select: dict[str, tuple[int, Tensor]] = field(default_factory=dict)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, each once, by their first name."""
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield (f"{prefix}.{name}" if prefix else name), tensor


def tied_names(model: nn.Module) -> dict[str, list[str]]:
    """First name of every parameter and buffer → all its names."""
    names: dict[int, list[str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None:
                names.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    return {all_names[0]: all_names for all_names in names.values()}


def make_plan(structure: Structure, kept: Tensor) -> Plan:
    """The plan that keeps these units, bool [units]."""
    plan = Plan()
    kept = kept.cpu()
    present = kept.clone()  # inputs arrive whether a layer still takes them or not
    present[torch.tensor(sorted(structure.inputs), dtype=torch.int64)] = True
    for axis, units in structure.axes.items():
        stays = (units < 0) | kept[units]
        if not stays.all():
            plan.keep[axis] = stays.nonzero().flatten()
    for c in structure.calls:
        if c.consumes in plan.keep:
            units = structure.axes[c.consumes]
            arrives = (units < 0) | present[units]
            stays = (units < 0) | kept[units]
            if not torch.equal(arrives, stays):
                plan.select[c.layer] = (c.channel_dim, stays[arrives].nonzero().flatten())
    return plan


def apply_plan(model: nn.Module, plan: Plan) -> nn.Module:
    """Slices a model's tensors in place, corrects the sizes its layers state, and puts input selections in front."""
    names = tied_names(model)
    first = {name: tensor for name, tensor in named_tensors(model)}
    by_tensor: dict[str, dict[int, Tensor]] = {}
    for (name, dim), indices in plan.keep.items():
        by_tensor.setdefault(name, {})[dim] = indices
    modules = dict(model.named_modules(remove_duplicate=False))
    touched: dict[int, nn.Module] = {}
    for name, dims in by_tensor.items():
        old = first[name]
        data = old.detach()
        for dim, indices in dims.items():
            data = data.index_select(dim, indices.to(data.device))
        if old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
            data = data.contiguous(memory_format=torch.channels_last)
        new = nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data
        for full in names[name]:
            owner, _, attribute = full.rpartition(".")
            module = modules[owner]
            (module._parameters if attribute in module._parameters else module._buffers)[attribute] = new
            touched[id(module)] = module
    for module in touched.values():
        _state_sizes(module)
    for layer, (dim, indices) in plan.select.items():
        select = selection(dim, indices).to(next(modules[layer].parameters()).device)
        chosen = nn.Sequential(select, modules[layer]).train(modules[layer].training)
        if not layer:
            return chosen
        parent, _, attribute = layer.rpartition(".")
        modules[parent]._modules[attribute] = chosen
    return model


def selection(dim: int, indices: Tensor) -> nn.Module:
    """A module of torch alone that takes some entries of its input: x.index_select(dim, indices)."""
    root = nn.Module()
    root.register_buffer("indices", indices)
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.index_select, (x, dim, graph.get_attr("indices"))))
    return fx.GraphModule(root, graph, class_name="SelectInputs")


def _state_sizes(module: nn.Module) -> None:
    """Lets torch's own layers state the sizes that their tensors now have."""
    weight = module._parameters.get("weight")
    if isinstance(module, nn.modules.conv._ConvNd):
        assert weight is not None
        transposed = module.transposed
        if module.groups > 1:  # depthwise: sliced by whole channels
            per_channel = module.out_channels // module.groups
            module.groups = weight.shape[0] if transposed else weight.shape[0] // per_channel
            module.in_channels, module.out_channels = module.groups, module.groups * per_channel
        else:
            ins, outs = (0, 1) if transposed else (1, 0)
            module.in_channels, module.out_channels = weight.shape[ins], weight.shape[outs]
    elif isinstance(module, nn.Linear):
        assert weight is not None
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        held = weight if weight is not None else module.running_mean
        assert held is not None
        module.num_features = held.shape[0]
    elif isinstance(module, nn.PReLU):
        assert weight is not None
        module.num_parameters = weight.shape[0]


def fold(model: nn.Module, masked: dict[str, Tensor]) -> None:
    """Overwrites weights with masked ones, in place."""
    first = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in masked.items():
            first[name].copy_(value)


def compact(sparse: Sparsified) -> nn.Module:
    """See `Sparsified.compact`."""
    with sparse.detached() as model:
        small = copy.deepcopy(model)
    for p in small.parameters():
        p.grad = None
    z = sparse.gate.mask(sparse.logits.detach())
    masked = {m.weight: w for m, w in zip(sparse.masks, sparse.masked_weights(z), strict=True)}
    fold(small, masked)
    if sparse.unit == "channel":
        small = apply_plan(small, make_plan(sparse.structure, sparse.kept()))
    error = difference(sparse, small)
    if not error <= TOLERANCE:
        raise CompactionError(
            f"the compacted {type(sparse.model).__name__} differs from the gated one by {error:.3g} of its largest output "
            f"(float64, allowed {TOLERANCE:g}); it is not handed back. Please report the model"
        )
    return small


def difference(sparse: Sparsified, small: nn.Module) -> float:
    """See `Sparsified.difference`."""
    gated = copy.deepcopy(sparse)
    gated.model.double().eval()
    other = copy.deepcopy(small).double().eval()
    return _difference(gated.model, other, sparse.example_inputs)


def _difference(a: nn.Module, b: nn.Module, inputs: Inputs) -> float:
    inputs = tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, inputs)
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
    layers_of: dict[str, str],
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
    return build(seen, layers_of, exclude)


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
        closed[torch.randint(size, ())] = False
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
        message = (str(failure).strip().splitlines() or [""])[0]
        return f"the forward depends on its size ({type(failure).__name__}: {message})"
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

