"""Plain layers in place of modules that compute their weight as they run: torch's own, which hold the computed weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.errors import CompactionError
from zerogate.modules.computed_weights import weights_read
from zerogate.modules.copies import deep_copy, meta_copy, quick_copy
from zerogate.modules.index import join_name, modules_by_name, named_tensors, split_name
from zerogate.modules.internals import children_of, parameters_of
from zerogate.structure import PlainLayer

KINDS: dict[str, type[nn.Module]] = {
    "linear": nn.Linear,
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "conv_transpose3d": nn.ConvTranspose3d,
}
"""Op → the class of torch that runs it."""
_SAME = 1e-12
"""Largest difference in float64, as a share of the largest output, that counts as none."""


def make_plain(model: nn.Module, plain: Mapping[str, PlainLayer], values: bool = True) -> nn.Module:
    """Puts plain layers in the places of modules, unless they stand there already; returns the model.

    Args:
        model: changed in place; its tensors may be on the meta device.
        plain: name of a module → what it amounts to.
        values: whether tensors hold the model's values; else each new weight gets what stands in the place of its source.

    Raises `CompactionError` where a module computes something else than its plain layer.
    """
    modules = modules_by_name(model, twice=True) if plain else {}
    for path, layer in plain.items():
        module = modules[path]
        if not is_plain(module, layer):
            made = _made(model, path, module, layer, values)
            for name in [name for name, other in modules.items() if other is module]:
                parent, attribute = split_name(name)
                children_of(modules[parent])[attribute] = made
    return model


def plain_copy(model: nn.Module, plain: Mapping[str, PlainLayer]) -> nn.Module:
    """A copy of the model with plain layers in these places; it shares all other tensors."""
    return make_plain(quick_copy(model, {id(x): x for _, x in named_tensors(model)}), plain)


def parameters_as_cut(model: nn.Module, plain: Mapping[str, PlainLayer]) -> dict[str, nn.Parameter]:
    """A model's parameters by name where plain layers stand in these places; then without values."""
    return dict((make_plain(meta_copy(model), plain) if plain else model).named_parameters())


def is_plain(module: nn.Module, layer: PlainLayer) -> bool:
    """Whether a module is the plain layer already."""
    present = [name for name, p in parameters_of(module).items() if p is not None]
    return type(module) is KINDS[layer.op] and present == ["weight", *["bias"] * layer.bias]


def in_place_of_plain(tensors: Mapping[str, Tensor], plain: Mapping[str, PlainLayer]) -> dict[str, Tensor]:
    """What stands in the places of weights and biases of plain layers, by their names, where other tensors stand in the
    places of the model's parameters: that of the weight's source, and that of the module's own bias, or else zeros."""
    instead: dict[str, Tensor] = {}
    for path, layer in plain.items():
        zero = torch.zeros(())
        instead[join_name(path, "weight")] = tensors.get(layer.source, zero.expand(layer.shape))
        if layer.bias:
            bias = join_name(path, "bias")
            instead[bias] = tensors.get(bias, zero.expand(_outputs(layer)))
    return instead


def _made(model: nn.Module, path: str, module: nn.Module, layer: PlainLayer, values: bool) -> nn.Module:
    own = dict(module.named_parameters())
    like = next(iter(own.values()), torch.empty(0))
    weight: Tensor
    bias: Tensor | None
    if like.is_meta:
        weight, bias = like.new_empty(layer.shape), like.new_empty(_outputs(layer)) if layer.bias else None
    elif values:
        weight, bias = read_weight(module, layer, path)
    else:
        tensors = {name: p.detach() for name, p in model.named_parameters()}
        instead = in_place_of_plain(tensors, {path: layer})
        weight, bias = instead[join_name(path, "weight")], instead.get(join_name(path, "bias"))
    learns = any(p.requires_grad for p in own.values())
    return plain_layer(layer, weight, bias, learns).train(module.training)


def plain_layer(layer: PlainLayer, weight: Tensor, bias: Tensor | None, learns: bool = True) -> nn.Module:
    """A layer of torch with this weight and bias."""
    made = _without_values(layer)
    parameters_of(made)["weight"] = nn.Parameter(weight, requires_grad=learns)
    if bias is not None:
        parameters_of(made)["bias"] = nn.Parameter(bias, requires_grad=learns)
    return made


def _without_values(layer: PlainLayer) -> nn.Module:
    kind: Any = KINDS[layer.op]
    options: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in layer.options.items()}
    groups = layer.options.get("groups", 1)
    outputs, inputs = layer.shape[:2]
    if layer.op == "linear":
        return nn.Linear(inputs, outputs, layer.bias, device="meta")
    if "transpose" in layer.op:
        inputs, outputs = outputs, inputs
        made = kind(inputs, outputs * groups, layer.shape[2:], bias=layer.bias, device="meta", **options)
    else:
        made = kind(inputs * groups, outputs, layer.shape[2:], bias=layer.bias, device="meta", **options)
    assert isinstance(made, nn.Module)
    return made


def _outputs(layer: PlainLayer) -> int:
    groups = layer.options.get("groups", 1)
    assert isinstance(groups, int)
    return layer.shape[1] * groups if "transpose" in layer.op else layer.shape[0]


def read_weight(module: nn.Module, layer: PlainLayer, path: str) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that a module computes in evaluation mode.

    Raises `CompactionError` where it computes something else with them than the plain layer."""
    twin = deep_copy(module).eval()
    weight, bias = _read(twin, layer, _random_input(twin, layer), path)
    return weight.clone(), None if bias is None else bias.clone()


def _read(module: nn.Module, layer: PlainLayer, x: Tensor, path: str) -> tuple[Tensor, Tensor | None]:
    reads, _ = weights_read(module, x)
    if len(reads) != 1 or reads[0][0].shape != layer.shape or (reads[0][1] is None) == layer.bias:
        raise CompactionError(f"{path} no longer runs one layer with a weight of shape {layer.shape}, as it did")
    return reads[0]


def is_read_once(module: nn.Module, layer: PlainLayer) -> bool:
    """Whether a module in evaluation mode and float64 runs one layer, whose weight can be changed where it is read."""
    _read(module.eval(), layer, _random_input(module, layer), "")
    return True


def _random_input(module: nn.Module, layer: PlainLayer, seed: int = 0) -> Tensor:
    like = next(module.parameters())
    return torch.randn(layer.sample, generator=torch.Generator().manual_seed(seed), dtype=like.dtype).to(like.device)


def amounts_to(module: nn.Module, layer: PlainLayer) -> bool:
    """Whether a module, in evaluation mode and float64, gives for two random inputs what the plain layer with the weight
    that it computes does, and computes the same weight for both.

    ``module`` is used up; its tensors are not on the meta device."""
    module = module.eval()
    weights = []
    for seed in range(2):
        x = _random_input(module, layer, seed)
        weight, bias = _read(module, layer, x, "")
        with torch.no_grad():
            expected, received = module(x), plain_layer(layer, weight, bias)(x)
        if not isinstance(expected, Tensor) or expected.shape != received.shape:
            return False
        if not (expected - received).abs().max() <= _SAME * expected.abs().max().clamp(min=1):
            return False
        weights.append(weight)
    return torch.equal(*weights)
