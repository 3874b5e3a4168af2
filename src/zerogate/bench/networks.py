"""Networks that a table compares: those that runs end with, and baselines as factories that a configuration can name."""

from __future__ import annotations

from collections.abc import Callable

import hydra
import torch
from omegaconf import DictConfig
from torch import nn

import zerogate
from zerogate.checks import is_whole
from zerogate.data import ImageData
from zerogate.errors import ZerogateError
from zerogate.models.layers import init_kaiming
from zerogate.modules.internals import BATCH_NORM, CONVOLUTION
from zerogate.training.build import make_model, model_facts
from zerogate.training.checkpoints import load_weights
from zerogate.training.config.compose import load
from zerogate.training.instantiate import parameters_of
from zerogate.training.run_folder import RunFolder

Widths = dict[str, list[int]]
"""[inputs, outputs] of every convolution and linear layer, by its name."""


def dense_network(config: DictConfig, num_classes: int, shape: tuple[int, int, int]) -> nn.Module:
    """The untrained model of a configuration, which for a baseline is the one that it narrows."""
    factory: Callable[..., nn.Module] = hydra.utils.get_object(config.model.get("network") or config.model._target_)
    taken = parameters_of(factory)
    facts = model_facts(shape, num_classes)
    own = {str(k): v for k, v in config.model.items() if k in taken and v is not None}
    return factory(**{key: value for key, value in facts.items() if key in taken} | own)


def network_of(run: RunFolder, images: ImageData) -> nn.Module:
    """The network that a finished run ends with, without its closed parts, on the CPU in evaluation mode."""
    config = load(run.config)
    if run.compact.is_file():
        return zerogate.load(run.compact, lambda: dense_network(config, images.num_classes, images.shape)).eval()
    model = make_model(config, images)
    load_weights(model, run.folder)
    return model.eval()


def widths(model: nn.Module) -> Widths:
    """[inputs, outputs] of every convolution and linear layer, by its name."""
    sizes: Widths = {}
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTION):
            sizes[name] = [module.in_channels, module.out_channels]
        elif isinstance(module, nn.Linear):
            sizes[name] = [module.in_features, module.out_features]
    return sizes


def built_like(small: nn.Module, dense: nn.Module) -> nn.Module:
    """A network of `dense`'s class built anew at the widths of `small`: every layer made by its own constructor.

    Args:
        small: what `compact()` gave of a network like `dense`. dense: is changed and returned.

    Raises:
        ZerogateError: a layer that differs in its tensors' shapes is of a class that this cannot construct.
    """
    of_small = dict(small.named_modules())
    for name, module in list(dense.named_modules()):
        like = of_small.get(name)
        shapes = [tensor.shape for tensor in module.state_dict().values()]
        if list(module.children()) or like is None or shapes == [t.shape for t in like.state_dict().values()]:
            continue
        dense.set_submodule(name, _construct(name, like))
    for name, module in dense.named_modules():  # sizes that a forward reads from attributes
        for key, value in vars(module).items():
            if is_whole(value, least=None) and isinstance(vars(of_small[name]).get(key), int):
                setattr(module, key, vars(of_small[name])[key])
    shapes_of_small = {key: tensor.shape for key, tensor in small.state_dict().items()}
    if shapes_of_small != {key: tensor.shape for key, tensor in dense.state_dict().items()}:
        raise ZerogateError(f"a {type(dense).__name__} cannot be built at these widths layer by layer; choose another")
    return dense


def _construct(name: str, like: nn.Module) -> nn.Module:
    """A new layer of the same class, sizes and options."""
    if isinstance(like, CONVOLUTION):
        return type(like)(
            like.in_channels, like.out_channels, like.kernel_size, stride=like.stride, padding=like.padding,
            dilation=like.dilation, groups=like.groups, bias=like.bias is not None,
        )  # type: ignore[call-arg]  # fmt: skip
    elif isinstance(like, nn.Linear):
        return nn.Linear(like.in_features, like.out_features, bias=like.bias is not None)
    elif isinstance(like, BATCH_NORM):
        return type(like)(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
    raise ZerogateError(f"{name} is a {type(like).__name__}, which cannot be built at other widths; choose a network of "
                        "convolutions, linear layers and BatchNorm")  # fmt: skip


def narrow(network: str, share: float, num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:
    """A baseline: `network` with the same share of every group of channels removed and new weights, to train from scratch.

    Args:
        network: import path of the dense network's factory. share: of its parameters, which is the most that is left.
        num_classes, in_channels, image_size: of the data.

    Raises:
        ZerogateError: the share cannot be reached.
    """
    dense = hydra.utils.get_object(network)(num_classes=num_classes, in_channels=in_channels)
    small = zerogate.small_dense(dense, torch.zeros(2, in_channels, image_size, image_size), share=share)
    init_kaiming(small, mode="fan_in")  # as the dense networks of this library start, which small_dense cannot know
    return small
