"""Plans: which indices of which tensors stay, and a model cut to that."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from zerogate.cutting.attention import Attention, plain_attention, state_sizes, unnest
from zerogate.modules.index import modules_by_name, owner_of, put, tied_names
from zerogate.modules.internals import CONVOLUTION, RUNNING_NORM, buffers_of, children_of, parameters_of
from zerogate.structure import Axis, Structure


@dataclass(frozen=True)
class Plan:
    """What is left of each tensor.

    Attributes:
        keep: axis → indices that stay along it, int64.
        select: layer → (dim counted from the end, indices of its input that it still takes).
        attributes: (module, attribute) → the size it must state now: an int, or a list of ints.
        attention: `nn.MultiheadAttention` modules that lose heads → how they are called (see `attention.plain_attention`).
    """

    keep: dict[Axis, Tensor] = field(default_factory=dict)
    select: dict[str, tuple[int, Tensor]] = field(default_factory=dict)
    attributes: dict[tuple[str, str], int | list[int]] = field(default_factory=dict)
    attention: dict[str, dict[str, bool]] = field(default_factory=dict)


def make_plan(model: nn.Module, structure: Structure, kept: Tensor, keep: dict[Axis, Tensor] | None = None) -> Plan:
    """The plan by which the dense model keeps these units, bool [units]. ``keep``: of a plan for the same axes and units."""
    kept = kept.cpu()
    plan = Plan(_kept_along(structure, kept) if keep is None else keep)
    present = kept.clone()  # inputs arrive whether a layer still takes them or not
    present[torch.tensor(sorted(structure.inputs), dtype=torch.int64)] = True
    for c in structure.calls if structure.inputs else ():
        if c.consumes in plan.keep:
            units = structure.axes[c.consumes]
            arrives = (units < 0) | present[units]
            stays = (units < 0) | kept[units]
            if not torch.equal(arrives, stays):
                plan.select[c.layer] = (c.channel_dim, stays[arrives].nonzero().flatten())
    modules = modules_by_name(model, twice=True) if structure.size_attributes else {}
    for repair in structure.size_attributes:
        size = int(((repair.rows < 0) | kept[repair.rows]).any(1).sum())
        key = repair.module, repair.attribute
        held = getattr(modules[repair.module], repair.attribute)
        if repair.entry is None:
            if size != held:
                plan.attributes[key] = size
        elif size != held[repair.entry]:
            values = plan.attributes.setdefault(key, list(held))
            assert isinstance(values, list)
            values[repair.entry] = size
    owners = {owner_of(name) for name, _ in plan.keep}
    owners |= {owner.removesuffix(".out_proj") for owner in owners}
    plan.attention.update({path: called for path, called in structure.attention.items() if path in owners})
    return plan


def _kept_along(structure: Structure, kept: Tensor) -> dict[Axis, Tensor]:
    sizes, number, units = structure.in_line
    stays = (units < 0) | kept[units]
    cut = set(number[~stays].unique_consecutive().tolist())
    parts = stays.split(sizes) if sizes else ()
    return {
        axis: here.nonzero().flatten()
        for i, (axis, here) in enumerate(zip(structure.axes, parts, strict=True))
        if i in cut
    }


def apply_plan(model: nn.Module, plan: Plan, made: dict[str, Tensor] | None = None) -> nn.Module:
    """Slices a model's tensors in place, corrects the sizes its layers state, and puts input selections in front.

    ``made``: what tensors of another copy have become by the same ``plan.keep``, used and filled."""
    modules = modules_by_name(model, twice=True)
    names = tied_names(model, modules)
    by_tensor: dict[str, dict[int, Tensor]] = {}
    for (name, dim), indices in plan.keep.items():
        by_tensor.setdefault(name, {})[dim] = indices
    touched: set[nn.Module] = set()
    for name, dims in by_tensor.items():
        if made is not None and name in made:
            touched |= put(modules, names[name], made[name])
            continue
        owner, _, attribute = name.rpartition(".")
        held = parameters_of(modules[owner]).get(attribute)
        old = buffers_of(modules[owner])[attribute] if held is None else held
        assert old is not None
        data = old.detach()
        if data.is_meta:
            size = [len(dims[d]) if d in dims else n for d, n in enumerate(data.shape)]
            data = torch.empty(size, dtype=data.dtype, device="meta")
        else:
            for dim, indices in dims.items():
                data = data.index_select(dim, indices.to(data.device))
        if old.ndim == 4 and old.is_contiguous(memory_format=torch.channels_last) and not old.is_contiguous():
            data = data.contiguous(memory_format=torch.channels_last)
        new = nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data
        if made is not None and data.is_meta:
            made[name] = new
        touched |= put(modules, names[name], new)
    for path, called in plan.attention.items():
        module = model.get_submodule(path)
        if isinstance(module, nn.MultiheadAttention):  # not where it is watched: there something else stands in for it
            plain_attention(module, called)
    if plan.attention:
        unnest(model)
    for module in touched:  # before the attributes, which were tried and may count something else
        if isinstance(module, (nn.MultiheadAttention, Attention)):
            state_sizes(module)
    for (path, attribute), value in plan.attributes.items():
        module = modules[path]
        held = getattr(module, attribute)
        setattr(module, attribute, tuple(value) if isinstance(held, tuple) and isinstance(value, list) else value)
    for module in touched:
        _state_sizes(module)
    for layer, (dim, indices) in plan.select.items():
        select = selection(dim, indices).to(next(modules[layer].parameters()).device)
        chosen = nn.Sequential(select, modules[layer]).train(modules[layer].training)
        if not layer:
            return chosen
        parent, _, attribute = layer.rpartition(".")
        children_of(modules[parent])[attribute] = chosen
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
    weight = parameters_of(module).get("weight")
    if isinstance(module, CONVOLUTION):
        assert weight is not None
        into, out = (0, 1) if module.transposed else (1, 0)
        sizes = [weight.shape[into], weight.shape[out]]
        sizes[1 if module.transposed else 0] *= module.groups
        module.in_channels, module.out_channels = sizes
    elif isinstance(module, nn.Linear):
        assert weight is not None
        module.out_features, module.in_features = weight.shape
    elif isinstance(module, nn.Embedding):
        assert weight is not None
        module.embedding_dim = weight.shape[1]
    elif isinstance(module, RUNNING_NORM):
        held = weight if weight is not None else module.running_mean
        assert held is not None
        module.num_features = held.shape[0]
    elif isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        assert weight is not None
        module.normalized_shape = tuple(weight.shape)
    elif isinstance(module, nn.GroupNorm):
        assert weight is not None
        module.num_channels = weight.shape[0]
    elif isinstance(module, nn.PReLU):
        assert weight is not None
        module.num_parameters = weight.shape[0]
