"""An optimizer of the gated model goes on with the compacted network, its state cut as the parameters are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zerogate.compaction.deployed import Deployed
from zerogate.cutting.plan import Plan
from zerogate.errors import ZerogateError

ParamGroup = dict[str, Any]
"""One of an optimizer's ``param_groups``: its parameters, perhaps their names, and settings."""
State = dict[str, object]
"""What an optimizer keeps of one parameter: tensors of its shape, and single numbers."""


def carry_optimizer(optimizer: Optimizer, deployed: Deployed, plan: Plan, small: nn.Module) -> Callable[[], None]:
    """Prepares that an optimizer goes on with the compacted network; the function returned does it.

    Its groups then hold ``small``'s parameters in place of the gated model's, with their order, names and settings. State
    of a parameter's shape is cut as the parameter is, single numbers stay. Gates leave, and with them a group of nothing
    else; it stays, empty, where a learning rate schedule counts the groups. Other parameters stay as they are.

    Args:
        optimizer: trains the gated model.
        deployed: the gated model with its mask.
        plan: the plan by which ``small`` was cut.
        small: the compacted network.

    Raises `ZerogateError` for state that cannot be cut, and for an optimizer that does not train the model.
    """
    if not isinstance(optimizer, Optimizer):
        raise ZerogateError(f"optimizer is a torch.optim.Optimizer, got a {type(optimizer).__name__}")
    names = {id(p): name for name, p in deployed.model.named_parameters()}
    _check_optimizer(optimizer, names.keys())
    new_names = _new_names(deployed, plan)
    parameters = dict(small.named_parameters())
    if {new for several in new_names.values() for new in several} != parameters.keys():
        raise ZerogateError(f"the compacted {type(small).__name__} was not cut from this model by this plan")
    state = _cut_state(deployed, plan, _checked_state(optimizer, deployed.model), new_names)
    gates = {id(p) for p in deployed.gate_parameters}
    new_state: dict[Any, State] = {
        p: entry for p, entry in optimizer.state.items() if id(p) not in gates | names.keys()
    }
    new_state |= {parameters[name]: entry for name, entry in state.items()}
    replaced = {p: new_names[names[id(p)]] for g in optimizer.param_groups for p in g["params"] if id(p) in names}
    groups = []
    for group in optimizer.param_groups:
        new = _new_group(group, replaced, parameters, gates)
        if new["params"] or not group["params"] or hasattr(optimizer.step, "_wrapped_by_lr_sched"):
            groups.append((group, new))

    def change() -> None:
        for group, new in groups:
            group.update(new)
        optimizer.param_groups[:] = [group for group, _ in groups]
        optimizer.state.clear()
        optimizer.state.update(new_state)

    return change


def _check_optimizer(optimizer: Optimizer, model: Collection[int]) -> None:
    """Raises `ZerogateError` where an optimizer trains none of the model's parameters, given their ids, or holds some
    outside of its groups."""
    kind = type(optimizer).__name__
    if not any(id(p) in model for group in optimizer.param_groups for p in group["params"]):
        raise ZerogateError(f"this {kind} trains no parameter of the gated model; pass the one that does")
    for attribute, value in vars(optimizer).items():
        inside = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(x, Optimizer) or id(x) in model for x in inside):
            raise ZerogateError(
                f"this {kind} also holds parameters in its attribute {attribute}, which cannot be exchanged; "
                f"make a new {kind} for the compacted network"
            )


def _new_names(deployed: Deployed, plan: Plan) -> dict[str, list[str]]:
    """Name of each parameter → its name in the compacted network, or names where it is split.

    The plan is applied to tensors that hold the number of their parameter everywhere."""
    shapes = {name: p.shape for name, p in deployed.model.named_parameters()}
    old = list(shapes)
    numbers = {name: torch.tensor(float(i), dtype=torch.float64).expand(shapes[name]) for i, name in enumerate(old)}
    new: dict[str, list[str]] = {name: [] for name in old}
    for name, left in deployed.cuttable.cut_tensors(numbers, plan).items():
        sources = [old[int(number)] for number in left.unique()] or [name]
        if len(sources) > 1 or sources[0] not in new:
            raise ZerogateError(
                f"{name} of the compacted network comes from {' and '.join(sources)}; state cannot follow"
            )
        new[sources[0]].append(name)
    return new


def _checked_state(optimizer: Optimizer, model: nn.Module) -> dict[str, State]:
    """The state of the model's parameters, by their names. Raises `ZerogateError` where some of it cannot be cut."""
    kind = type(optimizer).__name__
    names = {id(p): name for name, p in model.named_parameters()}
    state: dict[str, State] = {}
    for p, entry in optimizer.state.items():
        if not isinstance(p, Tensor) or not isinstance(entry, dict):
            raise ZerogateError(f"this {kind} keeps state that belongs to no parameter; make a new one")
        if id(p) not in names:
            continue
        name = names[id(p)]
        for key, value in entry.items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else None
            if shape not in ((), tuple(p.shape)) and not (value is None or isinstance(value, (int, float, str))):
                what = f"a {type(value).__name__}" if shape is None else f"of shape {shape}"
                raise ZerogateError(
                    f"this {kind} keeps {key!r} of {name} as {what}, neither one number nor in the parameter's shape "
                    f"{tuple(p.shape)}, so it cannot be cut; make a new {kind} for the compacted network"
                )
        state[name] = entry
    return state


def _cut_state(
    deployed: Deployed, plan: Plan, state: Mapping[str, State], new_names: Mapping[str, list[str]]
) -> dict[str, State]:
    """The state of the compacted network's parameters, by their names."""
    shapes = {name: p.shape for name, p in deployed.model.named_parameters()}
    new = {
        new_name: {key: v.clone() if i and isinstance(v, Tensor) else v for key, v in entry.items()}
        for name, entry in state.items()
        for i, new_name in enumerate(new_names[name])
    }
    for key in dict.fromkeys(key for entry in state.values() for key in entry):
        whole = {
            name: value
            for name, entry in state.items()
            if isinstance(value := entry.get(key), Tensor) and value.shape == shapes[name]
        }
        blank = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items() if name not in whole}
        left = deployed.cuttable.cut_tensors(whole | blank, plan)
        for name in whole:
            for new_name in new_names[name]:
                new[new_name][key] = left[new_name]
    return new


def _new_group(
    group: ParamGroup,
    replaced: Mapping[Tensor, list[str]],
    parameters: Mapping[str, nn.Parameter],
    gates: Collection[int],
) -> ParamGroup:
    """What a group holds afterwards: ``params``, and ``param_names`` where there are such.

    Args:
        group: of the optimizer.
        replaced: parameter of the gated model → its names in the compacted network; a single one keeps the group's own
            name for it.
        parameters: those of the compacted network, by name.
        gates: ids of what leaves.
    """
    own_names: Iterable[str | None] = group.get("param_names", [None] * len(group["params"]))
    members: list[tuple[object, str | None]] = []
    for p, own_name in zip(group["params"], own_names, strict=True):
        if p in replaced:
            new = replaced[p]
            members += [(parameters[name], own_name if len(new) == 1 else name) for name in new]
        elif id(p) not in gates:
            members.append((p, own_name))
    changed: ParamGroup = {"params": [p for p, _ in members]}
    return changed | ({"param_names": [name for _, name in members]} if "param_names" in group else {})
