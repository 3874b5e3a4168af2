"""From a configuration to its objects: data, model, optimizer and Lightning module, each checked as it is made."""

from __future__ import annotations

import inspect
import math

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

import zerogate
from zerogate import data
from zerogate.errors import ConfigError, one_line
from zerogate.training.build_gates import density, excluded, make_sparse
from zerogate.training.checkpoints import load_weights
from zerogate.training.classifier import Classifier, MakeSchedule
from zerogate.training.config.keys import LENGTHS
from zerogate.training.config.messages import unexpected_argument
from zerogate.training.costs import ticket_size
from zerogate.training.datamodule import ImageDataModule
from zerogate.training.instantiate import import_target, instantiate, parameters_of, plain
from zerogate.training.trainer import make_trainer

_BATCHING = ("batch_size", "eval_batch_size", "drop_last", "augment")
"""Keys of the group `data` that `data.load` does not take."""


# data


def load_data(config: DictConfig) -> data.ImageData:
    """The data set that the group `data` describes."""
    arguments = {str(key): value for key, value in config.data.items() if key not in _BATCHING}
    parameters = inspect.signature(data.load).parameters
    for key in arguments:
        if key not in parameters:
            raise ConfigError(f"data has no key {key!r}; it has {', '.join([*parameters, *_BATCHING])}")
    return data.load(**arguments)


def load_batches(config: DictConfig, images: data.ImageData, device: torch.device) -> ImageDataModule:
    """Batches of `images` on `device`, augmented as the group `data` says."""
    options = plain(config.data.augment)
    try:
        augment = data.Augment(**options)
    except TypeError as error:
        raise ConfigError(
            f"data.augment={options} cannot be made: {error}; its keys are flip, crop, resized_crop"
        ) from error
    return ImageDataModule(
        images,
        config.data.batch_size,
        config.data.eval_batch_size,
        augment=augment if any(options.values()) else None,
        drop_last=config.data.drop_last,
        seed=config.seed,
        device=device,
        channels_last=config.channels_last,
    )


def steps_per_epoch(config: DictConfig, batches: ImageDataModule) -> int:
    """Optimizer steps of an epoch."""
    return math.ceil(len(batches.train) / config.trainer.accumulate_grad_batches)


def total_steps(config: DictConfig, batches: ImageDataModule) -> int:
    """Optimizer steps of the whole run."""
    steps = steps_per_epoch(config, batches) * config.trainer.max_epochs
    return min(steps, config.trainer.max_steps or steps)


# model


def model_facts(shape: tuple[int, int, int], num_classes: int) -> dict[str, int]:
    """What the data tell a factory of models that has parameters of these names: `num_classes`, `in_channels`,
    `in_features` = C·H·W and, where images [C, H, W] are square, `image_size`."""
    channels, height, width = shape
    facts = {"num_classes": num_classes, "in_channels": channels, "in_features": channels * height * width}
    return facts | {"image_size": height} if height == width else facts


def make_model(config: DictConfig, images: data.ImageData) -> nn.Module:
    """The model, told of the data what its factory asks for by name and the configuration leaves open.

    Raises:
        ConfigError: the target cannot be imported, is no module, or rejects its arguments.
    """
    parameters = parameters_of(import_target("model", config.model))
    facts = model_facts(images.shape, images.num_classes)
    open_facts = {key: value for key, value in facts.items() if key in parameters and config.model.get(key) is None}
    model = instantiate("model", config.model, **open_facts)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model._target_={config.model._target_} makes a {type(model).__name__}, not a torch.nn.Module"
        )
    return model


@torch.no_grad()
def check_model(model: nn.Module, examples: Tensor, num_classes: int) -> None:
    """Raise `ConfigError` unless the model maps images [B, C, H, W] to logits [B, num_classes]."""
    name, shape = type(model).__name__, list(examples.shape[1:])
    training = model.training
    model.eval()
    try:
        output = model(examples)
    except Exception as error:  # the user's forward may raise anything
        raise ConfigError(
            f"{name} rejects images of shape {shape}: {one_line(error)}; choose another model or data"
        ) from error
    finally:
        model.train(training)
    expected = (len(examples), num_classes)
    if not isinstance(output, Tensor) or output.shape != expected:
        received = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(f"{name} gives {received} for {list(expected)} logits; set model.num_classes={num_classes}")


def make_network(config: DictConfig, batches: ImageDataModule, device: torch.device) -> nn.Module:
    """The network before it has gates: made, its weights from `init_from` if that is given, on the device, checked.

    Without gates, `search.density` asks for a smaller one.
    """
    model = make_model(config, batches.data)
    if config.init_from:
        load_weights(model, config.init_from)
    model.to(device)
    if not config.gate.get("_target_") and (share := density(config)) is not None:
        if config.search.kind == "dense" or config.init_from:
            reason = "ticket=dense has the network as it is" if not config.init_from else "init_from has weights for it"
            raise ConfigError(f"search.density={share} makes a network without gates smaller, and {reason}; drop one")
        model = make_small(config, model, batches.examples())
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs forget it
    check_model(model, batches.examples(), batches.data.num_classes)
    return model


def make_small(config: DictConfig, model: nn.Module, examples: Tensor) -> nn.Module:
    """A network like `model`, with as many parameters as a ticket of `search.density` leaves."""
    with torch.random.fork_rng(devices=[]):  # the count must not depend on, or change, what is drawn
        size = ticket_size(model, examples, density(config), config.sparsify.unit, excluded(config))
    return zerogate.small_dense(model, examples, params=size.remaining)


# training


def make_scheduler(config: DictConfig, group: str, steps: int) -> MakeSchedule | None:
    """What makes the schedule of the group `scheduler` or `gate_scheduler` from an optimizer; None where there is none.

    Args:
        steps: optimizer steps of the run, or of the stage of a search.
    """
    node = config.get(group)
    if node is None or not node.get("_target_"):  # None: left out by ~gate_scheduler
        return None
    lengths = {
        key: steps if key == "steps" else config.trainer.max_epochs
        for key in LENGTHS
        if key in node and node[key] is None
    }
    make: MakeSchedule = instantiate(group, node, **lengths)
    return make


def make_classifier(config: DictConfig, batches: ImageDataModule, device: torch.device) -> Classifier:
    """Network, gates and what trains them, on a device; all that is drawn follows from `seed`.

    Raises:
        ZerogateError: one of them cannot be made, or they do not fit each other.
    """
    torch.manual_seed(config.seed)
    model = make_network(config, batches, device)
    sparse = make_sparse(config, model, batches.examples())
    steps = total_steps(config, batches)
    classifier = Classifier(
        model,
        sparse,
        optimizer=instantiate("optimizer", config.optimizer),
        scheduler=make_scheduler(config, "scheduler", steps),
        gate_scheduler=make_scheduler(config, "gate_scheduler", steps),
        lr=config.optimizer.lr,
        gate_lr=config.gate_lr,
        weight_decay=config.optimizer.get("weight_decay") or 0.0,
        num_classes=batches.data.num_classes,
        seed=config.seed,
    )
    _check_optimizers(config, classifier)
    return classifier.to(device)


def _check_optimizers(config: DictConfig, classifier: Classifier) -> None:
    """Raise `ConfigError` if the optimizer or a schedule cannot be made; Lightning would find out only in training."""
    try:
        classifier.configure_optimizers()
    except (TypeError, ValueError) as error:
        key = unexpected_argument(error)
        groups = [group for group in ("optimizer", "scheduler", "gate_scheduler") if key in (config.get(group) or ())]
        # An experiment sets keys for its own schedule, and another one may have been chosen in its place.
        way_out = f"leave it out with ~{groups[0]}.{key}" if groups else "correct their keys"
        raise ConfigError(f"optimizer or scheduler cannot be made: {error}; {way_out}") from error


def build_run(config: DictConfig) -> tuple[Classifier, ImageDataModule]:
    """The module and the batches of a configuration, on the device that Lightning chooses for it."""
    device: torch.device = make_trainer(config).strategy.root_device
    batches = load_batches(config, load_data(config), device)
    return make_classifier(config, batches, device), batches
