"""The cut: every tensor sliced to the indices that a plan keeps, and every module made to state its new sizes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from zerogate.cutting.attention import Attention, plain_attention, state_heads, unnest
from zerogate.cutting.layer_sizes import state_sizes
from zerogate.cutting.plain_layers import make_plain
from zerogate.cutting.plan import Plan
from zerogate.modules.computed_weights import WeightNorm, weight_norms
from zerogate.modules.held_numbers import NewValue, with_numbers
from zerogate.modules.index import ModuleIndex, layer_of, split_name
from zerogate.modules.internals import children_of
from zerogate.modules.unregistered import replace, tensor_at


def cut(
    model: nn.Module,
    plan: Plan,
    known: dict[str, Tensor] | None = None,
    *,
    values: bool = True,
    norms: Mapping[str, WeightNorm] | None = None,
) -> nn.Module:
    """Cuts a model by a plan, in place, and returns it; a root that selects its inputs is returned inside a new module.

    Args:
        model: used up; its tensors may be on the meta device.
        plan: made for this model.
        known: first name → what a tensor of another copy has become by the same ``plan.keep``; taken in place of slicing
            again. Tensors on the meta device are added to it.
        values: whether tensors hold the model's values; else something else in their places, and nothing is computed.
        norms: the weight norms, where the model's modules are not those that have them.
    """
    make_plain(model, plan.plain, values)
    index = ModuleIndex(model)
    norms = (weight_norms(index.modules) if norms is None else norms) if values else {}
    owners = _slice_tensors(model, index, plan, {} if known is None else known, norms)
    _remove_heads(model, plan.attention)
    for module in owners:  # before the attributes, which were tried and may count something else
        if isinstance(module, (nn.MultiheadAttention, Attention)):
            state_heads(module)
    _set_attributes(index.modules, plan.attributes)
    for module in owners:
        state_sizes(module)
    return _select_inputs(model, index.modules, plan.select)


def _slice_tensors(
    model: nn.Module,
    index: ModuleIndex,
    plan: Plan,
    known: dict[str, Tensor],
    norms: Mapping[str, WeightNorm],
) -> set[nn.Module]:
    """Slices each tensor along all of its axes at once; returns the modules that have registered one.

    What is left of a weight with a weight norm is what was there, and its norms are those of what is left."""
    by_tensor: dict[str, dict[int, Tensor]] = {}
    for (name, dim), indices in plan.keep.items():
        by_tensor.setdefault(name, {})[dim] = indices
    left = _left_of_normed(index, norms, by_tensor)
    owners: set[nn.Module] = set()
    for name, dims in by_tensor.items():
        places, registered = plan.places.get(name, []), index.find(name)
        old = tensor_at(model, places[0]) if registered is None and places else index.tensor(name)
        if old is None or (
            registered is None and not _fits(old, dims)
        ):  # made when it is needed: not yet, or for others
            continue
        new = known[name] if name in known else sliced(old, dims)
        if new.is_meta:
            known[name] = new
        for place in places:
            if tensor_at(model, place) is old:
                replace(model, place, new)
        if registered is not None:
            owners |= index.put(name, new) | {index.modules[layer_of(name)]}
    for name, tensor in left.items():
        index.put(name, as_parameter(tensor, index.tensor(name)))
    return owners


def _left_of_normed(
    index: ModuleIndex, norms: Mapping[str, WeightNorm], by_tensor: Mapping[str, Mapping[int, Tensor]]
) -> dict[str, Tensor]:
    """By name, g and v of the weights with a weight norm that lose slices, for what is left of these weights."""
    left: dict[str, Tensor] = {}
    for name, norm in norms.items():
        if name in by_tensor and not index.tensor(name).is_meta:
            weight = norm.weight(index.tensor(norm.g), index.tensor(norm.v))
            left |= norm.state(sliced(weight, by_tensor[name]))
    return left


def as_parameter(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor in place of another one: a parameter if that is one, and trainable if that is."""
    return nn.Parameter(tensor, requires_grad=like.requires_grad) if isinstance(like, nn.Parameter) else tensor


def _fits(tensor: Tensor, dims: Mapping[int, Tensor]) -> bool:
    """Whether a tensor has these indices along each of these dims."""
    return all(d < tensor.ndim and (not len(i) or int(i[-1]) < tensor.shape[d]) for d, i in dims.items())


def sliced(tensor: Tensor, dims: Mapping[int, Tensor]) -> Tensor:
    """A parameter or buffer with the given indices alone along each of these dims; memory format and kind stay.

    Args:
        tensor: of any device; of one on the meta device the size is what changes.
        dims: dim → indices that stay, int64.
    """
    data = tensor.detach()
    if data.is_meta:
        size = [len(dims[d]) if d in dims else n for d, n in enumerate(data.shape)]
        data = torch.empty(size, dtype=data.dtype, device="meta")
    else:
        for dim, indices in dims.items():
            data = data.index_select(dim, indices.to(data.device))
    if tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous():
        data = data.contiguous(memory_format=torch.channels_last)
    return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data


def _remove_heads(model: nn.Module, attention: Mapping[str, dict[str, bool]]) -> None:
    """Gives attention modules that lose heads a forward that takes their number from the weights."""
    for path, called in attention.items():
        module = model.get_submodule(path)
        if isinstance(module, nn.MultiheadAttention):  # in a twin, `Attention` stands here and does so already
            plain_attention(module, called)
    if attention:
        unnest(model)


def _set_attributes(modules: Mapping[str, nn.Module], attributes: Mapping[tuple[str, str], NewValue]) -> None:
    for (path, attribute), size in attributes.items():
        setattr(modules[path], attribute, with_numbers(getattr(modules[path], attribute), size))


def _select_inputs(
    model: nn.Module, modules: Mapping[str, nn.Module], select: Mapping[str, tuple[int, Tensor]]
) -> nn.Module:
    """Puts a selection of inputs in front of each of these layers; returns the model, or what stands in its place."""
    for name, (dim, indices) in select.items():
        layer = modules[name]
        selection = selection_of(dim, indices).to(next(layer.parameters()).device)
        selected = nn.Sequential(selection, layer).train(layer.training)
        if not name:
            return selected
        parent, attribute = split_name(name)
        children_of(modules[parent])[attribute] = selected
    return model


def selection_of(dim: int, indices: Tensor) -> nn.Module:
    """A module of torch alone that takes some entries of its input: ``x.index_select(dim, indices)``."""
    root = nn.Module()
    root.register_buffer("indices", indices)
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.output(graph.call_function(torch.index_select, (x, dim, graph.get_attr("indices"))))
    return fx.GraphModule(root, graph, class_name="SelectInputs")
