"""From a configuration to gates: what they are, what is added to the loss for them, and their place on a model."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress

import hydra
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

import zerogate
from zerogate.errors import ConfigError
from zerogate.gates.gate import Gate
from zerogate.gates.schedules import Scheduled
from zerogate.objectives.penalty import Penalty
from zerogate.objectives.target import Target
from zerogate.sparsified import Sparsified
from zerogate.training.config.keys import key_of
from zerogate.training.instantiate import instantiate


def density(config: DictConfig) -> float | None:
    """The share of the gated units that a search is to leave, None where it does not say."""
    share: float | None = config.search.density if "search" in config else None
    return share


def excluded(config: DictConfig) -> list[str] | None:
    """Patterns of layer names to leave dense; None for the model's own choice."""
    return None if config.sparsify.exclude is None else list(config.sparsify.exclude)


def make_gate(config: DictConfig) -> Gate:
    """The gate, with `search.density` if it is one that takes a density.

    Keys that an experiment sets for its own gate are dropped if another gate, chosen in its place, does not take them.

    Raises:
        ConfigError: it cannot be made, or two densities are given.
    """
    node, share = config.gate, density(config)
    stated = {key_of(text) for text in config.get("overrides") or ()}
    parameters: Mapping[str, inspect.Parameter] | None = None
    with suppress(Exception):  # instantiate says what is wrong with it
        parameters = inspect.signature(hydra.utils.get_object(node._target_)).parameters
    if parameters is not None and not any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        others = {str(key) for key in node if key not in parameters and not str(key).startswith("_")}
        unknown = {key for key in others if f"gate.{key}" not in stated}
        node = OmegaConf.create({key: value for key, value in node.items() if key not in unknown})
    if share is not None and node.get("density") is not None:
        raise ConfigError(f"search.density={share} and gate.density={node.density} are two; give one of them")
    extra = {"density": share} if share is not None and "density" in node else {}
    gate: Gate = instantiate("gate", node, **extra)
    return gate


def make_objective(config: DictConfig) -> Penalty | Target:
    """What is added to the loss. For gates that learn, `search.density` is a target of that share of them.

    A penalty's keys that an experiment sets, such as `objective.weight`, are dropped if a target is chosen in its place.

    Raises:
        ConfigError: it cannot be made, or a penalty's keys are given with a target.
    """
    node, share = config.objective, density(config)
    overrides = config.get("overrides") or ()
    if share is not None and "density" not in config.gate:
        for text in overrides:
            if text.lstrip("+").startswith(("objective.", "objective=")):
                raise ConfigError(
                    f"search.density={share} is an objective already; leave out {text}, or search.density"
                )
        return zerogate.Target(gates=share)
    if node.get("_target_") == "zerogate.Target":
        penalty = ("weight", "over", "reduce")
        for key in penalty:
            if any(text.lstrip("+").startswith(f"objective.{key}=") for text in overrides):
                raise ConfigError(f"objective=target has no {key}; give objective.params or objective.macs alone")
        node = OmegaConf.create({key: value for key, value in node.items() if key not in penalty})
    objective: Penalty | Target = instantiate("objective", node)
    return objective


def make_sparse(config: DictConfig, model: nn.Module, examples: Tensor) -> Sparsified | None:
    """Gates on the model; None where the configuration has no gate."""
    if not config.gate.get("_target_"):
        return None
    return zerogate.sparsify(
        model,
        examples,
        gate=make_gate(config),
        unit=config.sparsify.unit,
        objective=make_objective(config),
        per_example=config.sparsify.per_example,
        gate_inputs=config.sparsify.gate_inputs,
        exclude=excluded(config),
    )


def state_steps(sparse: Sparsified, steps: int) -> None:
    """Tell the gate and the objective how many optimizer steps the run has, if they follow its length and do not know it."""
    for part in (sparse.gate, sparse.objective):
        if isinstance(part, Scheduled) and part.steps is None:
            part.set_steps(steps)
