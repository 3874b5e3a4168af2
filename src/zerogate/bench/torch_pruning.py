"""Torch-Pruning as a baseline: its group-norm pruner on a trained network, with and without its sparse learning.

Needs the package torch-pruning, which no other part of zerogate does; `make zoo` installs it.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import hydra
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from zerogate.errors import ConfigError
from zerogate.modules.internals import CONVOLUTION
from zerogate.training.checkpoints import load_weights

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
FOLDER = str(Path(sys.prefix) / "zoo")
"""Where `make zoo` installs torch-pruning, apart from the environment."""
STEPS = 400
"""In how many steps a network is pruned, each of which removes the same share of all channels."""


def library() -> ModuleType:
    """torch_pruning, from the environment or from the folder where `make zoo` installs it.

    Raises:
        ConfigError: it is in neither.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.path.append(FOLDER)
        try:
            return importlib.import_module("torch_pruning")
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"torch-pruning is not installed ({error.name} is missing); run `make zoo` in a clone, or "
                "`pip install torch-pruning`"
            ) from error
        finally:
            sys.path.remove(FOLDER)


def _pruner(tp: ModuleType, model: nn.Module, example: torch.Tensor, **options: object) -> Any:
    """Its group-norm pruner of everything but the classifier, the last linear layer."""
    classifiers = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tp.pruner.GroupNormPruner(
            model, example, importance=tp.importance.GroupMagnitudeImportance(), global_pruning=True,
            ignored_layers=classifiers, **options,
        )  # fmt: skip


def pruned_network(source: str, network: str, params: float | None = None, macs: float | None = None,
                   num_classes: int = 10, in_channels: int = 3, image_size: int = 32) -> nn.Module:  # fmt: skip
    """A trained network cut to a share of its parameters or MACs, weights as they were, to be trained further.

    Args:
        source: run folder or checkpoint of the network. network: import path of its factory.
        params, macs: the share that may be left, one of the two; above 1, a number of parameters or MACs.
        num_classes, in_channels, image_size: of the data.

    Raises:
        ZerogateError: torch-pruning is not installed, or cannot reach the share.
    """
    if (params is None) == (macs is None):
        raise ConfigError(f"model takes params or macs, one of the two, got params={params} and macs={macs}")
    tp = library()
    model: nn.Module = hydra.utils.get_object(network)(num_classes=num_classes, in_channels=in_channels)
    load_weights(model, source)
    model.eval()
    example = torch.zeros(2, in_channels, image_size, image_size)

    def left() -> int:
        if params is not None:
            return sum(p.numel() for p in model.parameters())
        return _macs(model, example)

    share = float(params if params is not None else macs)  # type: ignore[arg-type]
    most = share * left() if share <= 1 else share
    pruner = _pruner(tp, model, example, pruning_ratio=1.0, iterative_steps=STEPS)
    for _ in range(STEPS):
        if left() <= most:
            break
        pruner.step()
    if left() > most:
        raise ConfigError(f"torch-pruning leaves {left():,} where {most:,.0f} were asked for; ask for more")
    return model.train()


@torch.no_grad()
def _macs(model: nn.Module, example: torch.Tensor) -> int:
    """MACs of convolutions and linear layers for one example, from the shapes that a forward makes."""
    macs = [0]

    def count(layer: nn.Module, inputs: object, output: torch.Tensor) -> None:
        weight = layer.get_parameter("weight")
        macs[0] += output[0, 0].numel() * weight.numel() if output.ndim > 2 else weight.numel()

    layers = [m for m in model.modules() if isinstance(m, (CONVOLUTION, nn.Linear))]
    handles = [layer.register_forward_hook(count) for layer in layers]
    model(example[:1])
    for handle in handles:
        handle.remove()
    return macs[0]


_learners: list[nn.Module] = []
"""The network that `learner` made last: Lightning owns it by the time its gradients are there."""


def learner(network: str, num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """The dense network, to whose gradients `sparse_learning` adds the penalty.

    Args:
        network: import path of its factory. num_classes, in_channels: of the data.
    """
    model: nn.Module = hydra.utils.get_object(network)(num_classes=num_classes, in_channels=in_channels)
    _learners[:] = [model]
    return model


@contextmanager
def sparse_learning(strength: float, shape: tuple[int, int, int] = (3, 32, 32)) -> Iterator[None]:
    """While it is open, Torch-Pruning's group-norm penalty is added to the latest `learner`'s gradients before every step.

    Args:
        strength: the penalty's weight. shape: of an image.
    """
    tp = library()
    pruner: list[Any] = []

    def penalise(optimizer: object, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
        closure, model = kwargs["closure"], _learners[0]
        if not pruner:
            training = model.training
            example = torch.zeros(2, *shape, device=next(model.parameters()).device)
            with torch.enable_grad():
                pruner.append(_pruner(tp, model.eval(), example, pruning_ratio=0.5, reg=strength))
            model.train(training)

        def with_penalty() -> object:  # Lightning's closure runs forward and backward
            loss = closure()
            pruner[0].regularize(model)
            return loss

        return args, kwargs | {"closure": with_penalty}

    handle = register_optimizer_step_pre_hook(penalise)
    try:
        yield
    finally:
        handle.remove()
