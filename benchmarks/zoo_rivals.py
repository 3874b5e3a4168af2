"""Torch-Pruning and torch-kirigami on the models of the zoo, by the recipes of their own examples; and whether what they
prune computes what the dense network does without what was removed.

How that is found, whatever a tool does to a network: before it cuts, every parameter is filled with the indices of its own
entries, so that after the cut each holds the indices of those that were kept. From them come two networks. The *pruned* one
is the tool's, with the dense values of these entries. The *masked* one is the dense network with every other entry zero; a
norm over channels runs over those kept, as it does in the pruned one. Both run in float64 on inputs of two shapes.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exactness import call, floating_tensors, largest_difference, precision
from reach import share

RATIO = 0.5
"""The share of channels and heads that both are asked to remove."""
EXACT = 1e-6
"""Largest difference of a pruned network from the masked one that counts as exact."""


class Rival(Protocol):
    """A tool that removes channels."""

    def analyse(self, model: nn.Module, inputs: Any) -> Any:
        """What the tool finds of a network before anything is chosen: the step that corresponds to attaching gates."""

    def prune(self, model: nn.Module, inputs: Any) -> Iterator[None]:
        """Chooses what to remove, yields, then removes it."""


class TorchPruning:
    """Its pruner with random importance, which removes half of all channels, and of heads where an attention module says how
    many it has, as in its examples of vision transformers and language models: with shared keys it removes dimensions of
    heads instead, outputs in objects are unpacked for it, and layers that make outputs are ignored."""

    def __init__(self, library: ModuleType) -> None:
        self.library = library

    def analyse(self, model: nn.Module, inputs: Any) -> Any:
        return self.library.DependencyGraph().build_dependency(
            model, _given(inputs), output_transform=lambda out: [*floating_tensors(out)]
        )

    def prune(self, model: nn.Module, inputs: Any) -> Iterator[None]:
        heads = _heads(model)
        shared = any(
            isinstance(getattr(m, k, None), int) and getattr(m, k) != n for m, _, n in heads for k in FEWER_HEADS
        )
        halves = [m.gate_up_proj for m in model.modules() if isinstance(getattr(m, "gate_up_proj", None), nn.Linear)]
        pruner = self.library.pruner.BasePruner(
            model,
            _given(inputs),
            importance=self.library.importance.RandomImportance(),
            pruning_ratio=RATIO,
            ignored_layers=output_layers(model, inputs),
            num_heads={projection: n for _, projection, n in heads},
            prune_num_heads=not shared,
            prune_head_dims=shared,
            head_pruning_ratio=RATIO,
            in_channel_groups={},
            out_channel_groups=dict.fromkeys(halves, 2),
            output_transform=lambda out: [*floating_tensors(out)],
        )
        yield
        pruner.step()
        if hasattr(model, "hidden_dim") and hasattr(
            model, "conv_proj"
        ):  # torchvision's vision transformer states a width
            model.hidden_dim = model.conv_proj.out_channels
        for module, projection, before in heads:
            _state_heads(module, projection, before, pruner.num_heads[projection])


class Kirigami:
    """Its greedy strategy by group magnitude, as in its first example, with half of every width."""

    def __init__(self, library: ModuleType) -> None:
        self.library = library

    def analyse(self, model: nn.Module, inputs: Any) -> Any:
        pruning = importlib.import_module("torch_kirigami.pruning")
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else (_given(inputs), {})
        graph = self.library.DependencyGraph.build(model, args=tuple(args), kwargs=kwargs)
        pruner = pruning.Pruner(model, graph=graph)
        return pruning, pruner, pruner.discover_candidates()

    def prune(self, model: nn.Module, inputs: Any) -> Iterator[None]:
        pruning, pruner, space = self.analyse(model, inputs)
        plan = pruner.plan(
            space, budget=pruning.ChannelRatio(RATIO), strategy=pruning.Greedy(pruning.GroupMagnitude(p=2))
        )
        yield
        pruner.apply(plan)


def try_pruning(tool: Rival, model: nn.Module, variants: list[Any], emit: Callable[..., None]) -> None:
    """Prunes a float64 model, and emits the shares of its parameters and weights that are in tensors that became smaller,
    the share of parameters that is left, and the largest difference from the masked network."""
    dense = copy.deepcopy(model)
    steps = tool.prune(model, variants[0])
    next(steps)
    for p in model.parameters():  # `data` leaves the counters of changes alone, by which a tool may notice this
        p.data = torch.arange(p.numel(), dtype=torch.float64).reshape(p.shape)  # float32 has too few digits
    next(steps, None)
    kept = {name: p.detach().long() for name, p in model.named_parameters()}
    values = dict(dense.named_parameters())
    emit(**share(dense, {name for name, indices in kept.items() if indices.numel() < values[name].numel()}))
    emit(left=sum(i.numel() for i in kept.values()) / max(sum(p.numel() for p in values.values()), 1))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.data = values[name].flatten()[kept[name]]
    for inputs in variants:
        with torch.no_grad(), precision(dense):
            call(model.eval(), inputs)
    masked = _masked(dense, model, kept)
    emit(error=max(largest_difference(masked, model, inputs) for inputs in variants))


def _masked(dense: nn.Module, pruned: nn.Module, kept: dict[str, Tensor]) -> nn.Module:
    """The dense network with entries that are gone zero, and with norms over the channels that are left."""
    for name, p in dense.named_parameters():
        mask = torch.zeros(p.numel(), dtype=torch.bool)
        mask[kept[name].flatten()] = True
        p.data = torch.where(mask.reshape(p.shape), p.data, 0.0)
    for name, module in dense.named_modules():
        indices = kept.get(f"{name}.weight")
        size = module.weight.shape if indices is not None else ()
        if indices is not None and len(size) == 1 and indices.numel() < size[0] and "Norm" in type(module).__name__:
            if isinstance(module, nn.GroupNorm):
                _run_on_kept(module, _group_norm(module, indices), indices, 1)
            elif not isinstance(module, nn.modules.batchnorm._NormBase):
                dim = 1 if "2d" in type(module).__name__ else -1
                _run_on_kept(module, pruned.get_submodule(name), indices, dim)
    return dense.eval()


def _run_on_kept(module: nn.Module, on_kept: Any, indices: Tensor, dim: int) -> None:
    """A norm sees only the channels that are left; the others are zero."""

    def forward(x: Tensor) -> Tensor:
        return torch.zeros_like(x).index_copy(dim, indices, on_kept(x.index_select(dim, indices)))

    module.forward = forward  # type: ignore[method-assign]


def _group_norm(module: nn.GroupNorm, indices: Tensor) -> Any:
    """Each of the dense network's groups, over those of its channels that are left."""
    groups = indices // (module.num_channels // module.num_groups)

    def forward(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for group in groups.unique():
            own = (groups == group).nonzero().flatten()
            weight, bias = module.weight[indices[own]], module.bias[indices[own]]
            out = out.index_copy(1, own, F.group_norm(x.index_select(1, own), 1, weight, bias, module.eps))
        return out

    return forward


# what the examples know of a model, worked out for any


def _given(inputs: Any) -> Any:
    return inputs if isinstance(inputs, dict | tuple) else (inputs,)


def output_layers(model: nn.Module, inputs: Any) -> list[nn.Module]:
    """Modules whose parameters the outputs depend on with no other layer in between: their widths are the outputs' own."""
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    with precision(model):
        found: dict[nn.Module, None] = {}
        todo = [x.grad_fn for x in floating_tensors(call(model.eval(), inputs))]
    seen = set()
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        weights = [owner for owner in map(owners.get, _parameters_of(node)) if owner is not None]
        if node.name().startswith(LAYERS) and weights:
            found.update(dict.fromkeys(weights))
        else:
            todo.extend(parent for parent, _ in node.next_functions)
    return list(found)


LAYERS = ("ConvolutionBackward", "AddmmBackward", "MmBackward", "EmbeddingBackward")


def _parameters_of(node: Any) -> Iterator[int]:
    """Parameters that an operation reads, also transposed."""
    for parent, _ in node.next_functions:
        if parent is not None and parent.name() in ("TBackward0", "TransposeBackward0"):
            parent = parent.next_functions[0][0]
        if parent is not None and hasattr(parent, "variable"):
            yield id(parent.variable)


HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
FEWER_HEADS = ("num_key_value_heads", "num_kv_heads")
PROJECTIONS = ("qkv", "query_key_value", "Wqkv", "in_proj", "to_qkv",
               "query", "key", "value", "q_proj", "k_proj", "v_proj", "q", "k", "v",
               "to_q", "to_k", "to_v", "q_lin", "k_lin", "v_lin")  # fmt: skip
WIDTHS = ("all_head_size", "attn_dim", "inner_dim", "inner_kv_dim", "embed_dim", "hidden_size", "dim")


def _heads(model: nn.Module) -> list[tuple[nn.Module, nn.Linear, int]]:
    """Attention modules, the projections in them, and the number of heads of each."""
    found = []
    for module in model.modules():
        heads = next((n for name in HEADS if isinstance(n := getattr(module, name, None), int)), 0)
        fewer = next((n for name in FEWER_HEADS if isinstance(n := getattr(module, name, None), int)), heads)
        for name in PROJECTIONS if heads else ():
            projection = getattr(module, name, None)
            if isinstance(projection, nn.Linear):
                found.append((module, projection, fewer if name.strip("to_").startswith(("k", "v")) else heads))
    return found


def _state_heads(module: nn.Module, projection: nn.Linear, before: int, after: int) -> None:
    """The attributes that the examples set after pruning: numbers of heads, their size, and widths that are both times."""
    for name in (*HEADS, *FEWER_HEADS):
        if getattr(module, name, None) == before:
            setattr(module, name, after)
    if isinstance(getattr(module, "head_dim", None), int) and before == after:
        module.head_dim = projection.out_features // after
    for name in WIDTHS if before != after else ():
        width = getattr(module, name, None)
        if isinstance(width, int) and width % before == 0:
            setattr(module, name, width // before * after)
