"""How much of a model's weights gates can remove."""

from __future__ import annotations

import torch
from torch import nn

import zerogate as zg


def layer_weights(model: nn.Module) -> set[str]:
    """Names of the weights of convolutions and linear layers, however the libraries call these."""
    names = set()
    for prefix, module in model.named_modules():
        kind = type(module).__name__
        own = [n for n, p in module.named_parameters(recurse=False) if p.ndim > 1]
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or kind in ("Conv1D", "CondConv2d", "StdConv2d"):
            names.update(f"{prefix}.{n}" if prefix else n for n in own)
        elif isinstance(module, nn.MultiheadAttention):
            names.update(f"{prefix}.{n}" if prefix else n for n in own if n.endswith("proj_weight"))
    return names & set(dict(model.named_parameters()))  # tied ones once


def share(model: nn.Module, touched: set[str]) -> dict[str, float]:
    """Parts of all parameters, and of convolutions' and linear layers' weights, that lie in the named ones."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    weights = layer_weights(model)
    return {
        "share": sum(sizes[n] for n in sizes if n in touched) / max(sum(sizes.values()), 1),
        "weight_share": sum(sizes[n] for n in weights if n in touched) / max(sum(sizes[n] for n in weights), 1),
    }


def touched(sparse: zg.Sparsified) -> set[str]:
    """Tensors with an axis that holds a removable unit of a group of at least two."""
    of_use = torch.zeros(sparse.structure.units + 1, dtype=torch.bool)  # the last is for −1
    for group in sparse.structure.groups:
        of_use[group.slice] = group.units > 1
    return {tensor for (tensor, _), units in sparse.structure.axes.items() if of_use[units].any()}
