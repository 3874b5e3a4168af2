"""From a configuration to its objects: data, model, gates, Lightning module and trainer, each checked as it is made."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Sequence
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import zerogate
from zerogate import data
from zerogate.errors import ConfigError, WatchError, ZerogateError
from zerogate.folder import CheckpointIO, load_weights
from zerogate.lit import Classifier, ImageDataModule

_BATCHING = ("batch_size", "eval_batch_size", "drop_last", "augment")
_OURS = ("max_epochs", "max_steps", "log_every_n_steps", "progress")  # of the group `trainer`, not for Lightning


def instantiate(group: str, node: DictConfig, **extra: Any) -> Any:
    """What `node._target_` makes of the node's other keys and of `extra`; null keys are left to its own defaults.

    Raises:
        ConfigError: the target cannot be imported, or does not take these arguments.
        ZerogateError: whatever the target itself raised, if it is one of ours.
    """
    given = {key: value for key, value in node.items() if value is not None}
    try:
        return hydra.utils.instantiate({**given, **extra})
    except (HydraException, TypeError, ValueError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
            if isinstance(cause, ZerogateError):
                raise cause from None
        reason = " ".join(str(cause).split()) or type(cause).__name__
        raise ConfigError(
            f"{group}._target_={node._target_} cannot be made: {reason}; correct the {group} keys"
        ) from error


def load_data(config: DictConfig) -> data.ImageData:
    """The data set that the group `data` describes."""
    wanted = OmegaConf.to_container(config.data)
    assert isinstance(wanted, dict)
    arguments: dict[str, Any] = {str(key): value for key, value in wanted.items() if key not in _BATCHING}
    known = inspect.signature(data.load).parameters
    for key in arguments:
        if key not in known:
            raise ConfigError(f"data has no key {key!r}; it has {', '.join([*known, *_BATCHING])}")
    return data.load(**arguments)


def load_batches(config: DictConfig, images: data.ImageData, device: torch.device) -> ImageDataModule:
    """Batches of `images` on `device`, augmented as the group `data` says."""
    wanted: Any = OmegaConf.to_container(config.data.augment)
    try:
        augment = data.Augment(**wanted)
    except TypeError as error:
        raise ConfigError(
            f"data.augment={wanted} cannot be made: {error}; its keys are flip, crop, resized_crop"
        ) from error
    return ImageDataModule(
        images,
        config.data.batch_size,
        config.data.eval_batch_size,
        augment=augment if any(wanted.values()) else None,
        drop_last=config.data.drop_last,
        seed=config.seed,
        device=device,
        channels_last=config.channels_last,
    )


def make_model(config: DictConfig, images: data.ImageData) -> nn.Module:
    """The model, told of the data what its factory asks for by name and the configuration leaves open.

    Raises:
        ConfigError: the target cannot be imported, is no module, or rejects its arguments.
    """
    channels, height, width = images.shape
    facts = {"num_classes": images.num_classes, "in_channels": channels, "in_features": channels * height * width}
    if height == width:
        facts["image_size"] = height
    try:
        target = hydra.utils.get_object(config.model._target_)
    except Exception as error:  # importing a module of the user's may raise anything
        while error.__cause__ is not None and isinstance(error.__cause__, Exception):
            error = error.__cause__
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"model._target_={config.model._target_} cannot be imported: {reason}; give package.module.Class, "
            "in the current directory or installed"
        ) from error
    try:
        taken = set(inspect.signature(target).parameters)
    except (TypeError, ValueError):  # it does not tell
        taken = set()
    filled = {key: value for key, value in facts.items() if key in taken and config.model.get(key) is None}
    model = instantiate("model", config.model, **filled)
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model._target_={config.model._target_} makes a {type(model).__name__}, not a torch.nn.Module"
        )
    return model


@torch.no_grad()
def check_model(model: nn.Module, examples: Tensor, num_classes: int) -> None:
    """Raise `ConfigError` unless the model maps the images to one logit per class."""
    name, shape = type(model).__name__, list(examples.shape[1:])
    training = model.training
    model.eval()
    try:
        output = model(examples)
    except Exception as error:  # the user's forward may raise anything
        reason = " ".join(str(error).split())
        raise ConfigError(f"{name} rejects images of shape {shape}: {reason}; choose another model or data") from error
    finally:
        model.train(training)
    wanted = (len(examples), num_classes)
    if not isinstance(output, Tensor) or output.shape != wanted:
        found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigError(f"{name} gives {found} for {list(wanted)} logits; set model.num_classes={num_classes}")


def make_objective(config: DictConfig) -> Any:
    """What is added to the loss. An experiment's `objective.weight` is for its own objective, not for a target that
    replaces it.

    Raises:
        ConfigError: it cannot be made, or a penalty's keys are given with a target.
    """
    node = config.objective
    if node.get("_target_") in ("zerogate.Target", "zerogate.target.Target"):
        penalty = ("weight", "over", "reduce")
        for key in penalty:
            if any(text.lstrip("+").startswith(f"objective.{key}=") for text in config.get("overrides") or ()):
                raise ConfigError(f"objective=target has no {key}; give objective.params or objective.macs alone")
        node = OmegaConf.create({key: value for key, value in node.items() if key not in penalty})
    return instantiate("objective", node)


def make_classifier(config: DictConfig, batches: ImageDataModule, device: torch.device) -> Classifier:
    """Model, gates and optimizer settings; weights from `init_from` if it is given.

    Raises:
        ZerogateError: any of them cannot be made, or they do not fit each other.
    """
    torch.manual_seed(config.seed)
    images = batches.data
    model = make_model(config, images)
    if config.init_from:
        load_weights(model, config.init_from)
    model.to(device)
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs forget it
    examples = batches.examples()
    check_model(model, examples, images.num_classes)
    sparse = None
    if config.gate.get("_target_"):
        sparse = zerogate.sparsify(
            model,
            examples,
            gate=instantiate("gate", config.gate),
            unit=config.sparsify.unit,
            objective=make_objective(config),
            per_example=config.sparsify.per_example,
            gate_inputs=config.sparsify.gate_inputs,
            exclude=None if config.sparsify.exclude is None else list(config.sparsify.exclude),
        )
    classifier = Classifier(
        model,
        sparse,
        optimizer=instantiate("optimizer", config.optimizer),
        scheduler=instantiate("scheduler", config.scheduler) if config.scheduler.get("_target_") else None,
        lr=config.optimizer.lr,
        gate_lr=config.gate_lr,
        weight_decay=config.optimizer.get("weight_decay") or 0.0,
        num_classes=images.num_classes,
        seed=config.seed,
    )
    try:
        classifier.configure_optimizers()  # Lightning does so again, when it would be too late to refuse
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer or scheduler cannot be made: {error}; correct their keys") from error
    return classifier.to(device)


def total_steps(config: DictConfig, batches: ImageDataModule) -> int:
    """Optimizer steps of the whole run."""
    steps = math.ceil(len(batches.train) / config.trainer.accumulate_grad_batches) * config.trainer.max_epochs
    return min(steps, config.trainer.max_steps or steps)


def make_trainer(config: DictConfig, callbacks: Sequence[pl.Callback] = ()) -> pl.Trainer:
    """A Lightning trainer for one device that writes nothing and says nothing by itself."""
    wanted = {str(key): value for key, value in config.trainer.items() if key not in _OURS}
    try:
        return pl.Trainer(
            max_epochs=config.trainer.max_epochs,
            devices=1,
            callbacks=list(callbacks),
            plugins=[CheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,
            **wanted,
        )
    except (TypeError, ValueError, RuntimeError, pl.utilities.exceptions.MisconfigurationException) as error:
        raise ConfigError(
            f"trainer cannot be made: {' '.join(str(error).split())}; correct the trainer keys"
        ) from error


def dense_cost(model: nn.Module, examples: Tensor) -> dict[str, int | None]:
    """Parameters and MACs of a model without gates; MACs are None where it cannot be watched."""
    try:
        cost = zerogate.sparsify(copy.deepcopy(model), examples, unit="weight", exclude=[]).dense_cost
    except WatchError:
        return {"params": sum(parameter.numel() for parameter in model.parameters()), "macs": None}
    return {"params": cost.params, "macs": cost.macs}
