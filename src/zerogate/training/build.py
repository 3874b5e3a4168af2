"""From a configuration to its objects: data, model, gates, Lightning module and trainer, each checked as it is made."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
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
from zerogate.training.classifier import Classifier, ImageDataModule
from zerogate.training.config import compose as settings
from zerogate.training.run_folder import CheckpointIO, load_weights

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


def density(config: DictConfig) -> float | None:
    """The share of the gated units that a search is to leave, None where it does not say."""
    share: float | None = config.search.density if "search" in config else None
    return share


def make_gate(config: DictConfig) -> Any:
    """The gate, told of `search.density` where it is one that takes a density. An experiment's keys are for its own
    gate: one that replaces it goes without those that it does not know.

    Raises:
        ConfigError: it cannot be made, or is given two densities.
    """
    node, wanted = config.gate, density(config)
    given = {text.lstrip("+").partition("=")[0] for text in config.get("overrides") or ()}
    known: Mapping[str, inspect.Parameter] | None = None
    with suppress(Exception):  # instantiate says what is wrong with it
        known = inspect.signature(hydra.utils.get_object(node._target_)).parameters
    if known is not None and not any(each.kind is each.VAR_KEYWORD for each in known.values()):
        keys = (key for key in node if key not in known and f"gate.{key}" not in given)
        strange = {key for key in keys if not str(key).startswith("_")}
        node = OmegaConf.create({key: value for key, value in node.items() if key not in strange})
    if "density" not in node:
        return instantiate("gate", node)
    if wanted is not None and node.density is not None:
        raise ConfigError(f"search.density={wanted} and gate.density={node.density} are two; give one of them")
    return instantiate("gate", node, **({} if wanted is None else {"density": wanted}))


def make_objective(config: DictConfig) -> Any:
    """What is added to the loss: of gates that learn, with `search.density`, a target of that share of them. An
    experiment's `objective.weight` is for its own objective, not for a target that replaces it.

    Raises:
        ConfigError: it cannot be made, or a penalty's keys are given with a target.
    """
    node = config.objective
    wanted = density(config)
    if wanted is not None and "density" not in config.gate:
        for text in config.get("overrides") or ():
            if text.lstrip("+").startswith(("objective.", "objective=")):
                raise ConfigError(
                    f"search.density={wanted} is an objective already; leave out {text}, or search.density"
                )
        return zerogate.Target(gates=wanted)
    if node.get("_target_") == "zerogate.Target":
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
    gated = bool(config.gate.get("_target_"))
    wanted = density(config)
    model.to(device)
    if wanted is not None and not gated:
        if config.search.kind == "dense" or config.init_from:
            given = "ticket=dense has the network as it is" if not config.init_from else "init_from has weights for it"
            raise ConfigError(f"search.density={wanted} makes a network without gates smaller, and {given}; drop one")
        model = small(config, model, batches.examples())
    if config.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stubs forget it
    examples = batches.examples()
    check_model(model, examples, images.num_classes)
    sparse = None
    if gated:
        sparse = zerogate.sparsify(
            model,
            examples,
            gate=make_gate(config),
            unit=config.sparsify.unit,
            objective=make_objective(config),
            per_example=config.sparsify.per_example,
            gate_inputs=config.sparsify.gate_inputs,
            exclude=_excluded(config),
        )
    classifier = Classifier(
        model,
        sparse,
        optimizer=instantiate("optimizer", config.optimizer),
        scheduler=make_scheduler(config, "scheduler", total_steps(config, batches)),
        gate_scheduler=make_scheduler(config, "gate_scheduler", total_steps(config, batches)),
        lr=config.optimizer.lr,
        gate_lr=config.gate_lr,
        weight_decay=config.optimizer.get("weight_decay") or 0.0,
        num_classes=images.num_classes,
        seed=config.seed,
    )
    try:
        classifier.configure_optimizers()  # Lightning does so again, when it would be too late to refuse
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer or scheduler cannot be made: {error}; {_way_out(config, error)}") from error
    return classifier.to(device)


def _way_out(config: DictConfig, error: Exception) -> str:
    """Where an experiment has set a key for another schedule than the one that was chosen, how to be rid of it."""
    for group in ("optimizer", "scheduler", "gate_scheduler"):
        for key in config.get(group) or ():
            if f"unexpected keyword argument '{key}'" in str(error):
                return f"leave it out with ~{group}.{key}"
    return "correct their keys"


def _excluded(config: DictConfig) -> list[str] | None:
    return None if config.sparsify.exclude is None else list(config.sparsify.exclude)


def make_scheduler(config: DictConfig, group: str, steps: int) -> Any:
    """What makes the schedule of the group `scheduler` or `gate_scheduler` from an optimizer, for a run of so many
    optimizer steps; None where there is none."""
    node = config.get(group)
    if node is None or not node.get("_target_"):  # configurations of before gates had their own have none
        return None
    lengths = {
        key: steps if key == "steps" else config.trainer.max_epochs
        for key in settings.LENGTHS
        if key in node and node[key] is None
    }
    return instantiate(group, node, **lengths)


def gated_share(config: DictConfig, model: nn.Module, examples: Tensor) -> tuple[int, int, int]:
    """What a ticket of this configuration would lie on: (gated parameters, parameters that a ticket of
    `search.density` leaves in all, all parameters)."""
    sparse = zerogate.sparsify(
        copy.deepcopy(model),
        examples,
        gate=zerogate.Random(density(config) or 1.0),
        unit=config.sparsify.unit,
        exclude=_excluded(config),
    )
    dense = sparse.dense_cost.params
    if sparse.unit != "weight":
        return dense, sparse.cost().params, dense
    gated = len(sparse.logits)
    return gated, dense - gated + round((density(config) or 1.0) * gated), dense


def small(config: DictConfig, model: nn.Module, examples: Tensor) -> nn.Module:
    """A network like `model`, with as many parameters as a ticket of `search.density` leaves."""
    with torch.random.fork_rng(devices=[]):  # the count must not depend on, or change, what is drawn
        _, left, _ = gated_share(config, model, examples)
    return zerogate.small_dense(model, examples, params=left)


def make_search(config: DictConfig, sparse: Any, batches: ImageDataModule) -> zerogate.TicketSearch:
    """The search that the node `search` describes.

    Raises:
        ZerogateError: it cannot be.
    """
    wanted = config.search
    return zerogate.TicketSearch(
        sparse,
        rounds=wanted.rounds,
        length=wanted.length or config.trainer.max_epochs,
        final_length=wanted.final_length,
        steps_per_epoch=steps_per_epoch(config, batches),
        rewind=wanted.rewind,
        reset=wanted.reset,
    )


def steps_per_epoch(config: DictConfig, batches: ImageDataModule) -> int:
    """Optimizer steps of an epoch."""
    return math.ceil(len(batches.train) / config.trainer.accumulate_grad_batches)


def total_steps(config: DictConfig, batches: ImageDataModule) -> int:
    """Optimizer steps of the whole run."""
    steps = steps_per_epoch(config, batches) * config.trainer.max_epochs
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
