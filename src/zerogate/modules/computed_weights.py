"""Weights that a module computes as it runs: seen and changed where a layer reads them; torch's weight norm, stated anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm as SpectralNormHook
from torch.nn.utils.weight_norm import WeightNorm as WeightNormHook
from torch.overrides import TorchFunctionMode

from zerogate.modules.index import join_name
from zerogate.modules.internals import WEIGHT_NORM, pre_hooks_of

LAYER_FUNCTIONS: dict[object, str] = {
    F.linear: "linear",
    torch.conv1d: "conv1d",
    torch.conv2d: "conv2d",
    torch.conv3d: "conv3d",
    torch.conv_transpose1d: "conv_transpose1d",
    torch.conv_transpose2d: "conv_transpose2d",
    torch.conv_transpose3d: "conv_transpose3d",
}
"""Functions of an input, a weight and perhaps a bias → the name of the ATen op that each runs."""


class LayerWeights(TorchFunctionMode):
    """While it is entered, every layer that runs reads ``change(weight, bias)`` in place of its weight.

    Composite functions, such as those of attention, run their layers out of its sight.
    """

    def __init__(self, change: Callable[[Tensor, Tensor | None], Tensor]) -> None:
        super().__init__()
        self._change = change

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in LAYER_FUNCTIONS:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            if len(args) > 1:
                args = (args[0], self._change(args[1], bias), *args[2:])
            else:
                kwargs = {**kwargs, "weight": self._change(kwargs["weight"], bias)}
        return func(*args, **kwargs)


@torch.no_grad()
def weights_read(module: nn.Module, x: Tensor) -> tuple[list[tuple[Tensor, Tensor | None]], object]:
    """Weight and bias of every layer that a module runs on an input, and what it returns."""
    read: list[tuple[Tensor, Tensor | None]] = []

    def note(weight: Tensor, bias: Tensor | None) -> Tensor:
        read.append((weight.detach(), bias if bias is None else bias.detach()))
        return weight

    with LayerWeights(note):
        result = module(x)
    return read, result


@dataclass(frozen=True)
class WeightNorm:
    """The weight g · v / ‖v‖ of one module, by torch's hook or parametrisation, with norms of all slices along ``dim``."""

    g: str
    """Name of the parameter in the model; ``v`` likewise."""
    v: str
    dim: int

    @torch.no_grad()
    def weight(self, g: Tensor, v: Tensor) -> Tensor:
        """What the layer reads."""
        weight: Tensor = v * (g / torch.norm_except_dim(v, 2, self.dim))
        return weight

    @torch.no_grad()
    def state(self, weight: Tensor) -> dict[str, Tensor]:
        """By name, g and v that give another weight: v is the weight itself, and anything where g is zero."""
        g = torch.norm_except_dim(weight, 2, self.dim)
        return {self.g: g, self.v: torch.where(g > 0, weight, 1.0)}


def weight_norms(modules: Mapping[str, nn.Module]) -> dict[str, WeightNorm]:
    """Name of v → weight norm, of every module by name that torch's utilities have put one on."""
    found: dict[str, WeightNorm] = {}
    for path, module in modules.items():
        if isinstance(module, nn.utils.parametrize.ParametrizationList):
            if len(module) == 1 and isinstance(module[0], WEIGHT_NORM):
                g, v = (join_name(path, f"original{i}") for i in range(2))
                found[v] = WeightNorm(g, v, module[0].dim)
            continue
        for hook in pre_hooks_of(module).values():
            if isinstance(hook, WeightNormHook):
                g, v = (join_name(path, f"{hook.name}_{part}") for part in "gv")
                found[v] = WeightNorm(g, v, -1 if hook.dim is None else hook.dim)
    return found


@torch.no_grad()
def refresh(model: nn.Module) -> None:
    """Computes anew what hooks of `torch.nn.utils` keep from the last forward beside the tensors that it was computed
    from."""
    for module in model.modules():
        for hook in pre_hooks_of(module).values():
            if isinstance(hook, (WeightNormHook, BasePruningMethod, SpectralNormHook)):
                training, module.training = module.training, False  # the spectral norm's vectors stay as they are
                hook(module, ())
                module.training = training
