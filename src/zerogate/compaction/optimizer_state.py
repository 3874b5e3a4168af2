"""What goes over to a compacted network besides its weights: the optimizer's state and a moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from zerogate.cutting.plan import Plan, apply_plan
from zerogate.errors import ZerogateError
from zerogate.modules.index import copy_with, named_tensors, overwrite_masked
from zerogate.modules.internals import children_of

if TYPE_CHECKING:
    from zerogate.sparsified import Sparsified


def carry(
    sparse: Sparsified, plan: Plan, small: nn.Module, optimizer: Optimizer | None = None, ema: nn.Module | None = None
) -> None:
    """Takes an optimizer and a moving average of the gated model over to the compacted one, in place.

    Args:
        sparse: the handle of the gated model.
        plan: that by which ``small`` was cut.
        small: the compacted network.
        optimizer: see `carry_optimizer`.
        ema: see `carry_average`.

    Raises `ZerogateError` before anything is changed.
    """
    changes = [] if optimizer is None else [carry_optimizer(optimizer, sparse, plan, small)]
    changes += [] if ema is None else [carry_average(ema, sparse, plan, small)]
    for change in changes:
        change()


def carry_optimizer(optimizer: Optimizer, sparse: Sparsified, plan: Plan, small: nn.Module) -> Callable[[], None]:
    """Prepares that an optimizer goes on with the compacted network; the function returned does it.

    Its groups then hold ``small``'s parameters in place of the gated model's, with their order, names and values. State
    of a parameter's shape is cut as the parameter is, single numbers stay. Gates leave, and with them a group of nothing
    else; it stays, empty, where a learning rate schedule counts the groups. Parameters of neither stay as they are.

    Raises `ZerogateError` for state that cannot be cut, and for an optimizer that does not train the model.
    """
    if not isinstance(optimizer, Optimizer):
        raise ZerogateError(f"optimizer is a torch.optim.Optimizer, got a {type(optimizer).__name__}")
    kind = type(optimizer).__name__
    names = {id(p): name for name, p in sparse.model.named_parameters()}
    gates = {id(p) for p in sparse.parameters()}
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if not any(id(p) in names for p in held):
        raise ZerogateError(f"this {kind} trains no parameter of the gated model; pass the one that does")
    for attribute, value in vars(optimizer).items():
        inside = value if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(x, Optimizer) or id(x) in names for x in inside):
            raise ZerogateError(
                f"this {kind} also holds parameters in its attribute {attribute}, which cannot be exchanged; "
                f"make a new {kind} for the compacted network"
            )
    new_names = _new_names(sparse, plan)
    parameters = dict(small.named_parameters())
    if {name for found in new_names.values() for name in found} != parameters.keys():
        raise ZerogateError(f"the compacted {type(small).__name__} was not cut from this model by this plan")
    shapes = {name: p.shape for name, p in sparse.model.named_parameters()}
    state = _cut_state(sparse, plan, _checked_state(optimizer, names, shapes), new_names)
    new_state: dict[Any, Any] = {p: entry for p, entry in optimizer.state.items() if id(p) not in gates | names.keys()}
    new_state |= {parameters[name]: entry for name, entry in state.items()}
    new_groups = [_exchanged(group, names, gates, new_names, parameters) for group in optimizer.param_groups]
    scheduled = hasattr(optimizer.step, "_wrapped_by_lr_sched")
    groups = []
    for group, new in zip(optimizer.param_groups, new_groups, strict=True):
        if new["params"] or not group["params"] or scheduled:
            groups.append((group, new))

    def change() -> None:
        for group, new in groups:
            group.update(new)
        optimizer.param_groups[:] = [group for group, _ in groups]
        optimizer.state.clear()
        optimizer.state.update(new_state)

    return change


def carry_average(ema: nn.Module, sparse: Sparsified, plan: Plan, small: nn.Module) -> Callable[[], None]:
    """Prepares that a moving average becomes the average of the compacted network; the function returned does it.

    The averaged weights are multiplied with the gates as deployed now and cut by the same plan.

    Args:
        ema: a copy of the gated model that holds the averages, or a module that holds such a copy as ``.module``, as
            `torch.optim.swa_utils.AveragedModel` does; then only this is replaced, ``n_averaged`` and all else stays.

    Raises `ZerogateError` where its parameters are not, by name and shape, those of the gated model.
    """
    if not isinstance(ema, nn.Module):
        raise ZerogateError(f"ema is a module such as torch.optim.swa_utils.AveragedModel, got a {type(ema).__name__}")
    if not sparse.keep_class:
        raise ZerogateError(
            "with keep_class=False a moving average cannot become that of the compacted network, which is no module of "
            "its class; leave out ema, or load the averages into the model before compact()"
        )
    within = getattr(ema, "module", None)
    network = within if isinstance(within, nn.Module) and "module" not in children_of(sparse.model) else ema
    kind = type(ema).__name__
    if network is sparse.model:
        raise ZerogateError(f"the {kind} given as ema holds the gated model itself, not a copy with averaged weights")
    averages = dict(named_tensors(network))
    model = dict(named_tensors(sparse.model))
    for name in [*model, *averages]:
        here, there = (found.get(name) for found in (model, averages))
        if (
            not isinstance(here, nn.Parameter)
            and not isinstance(there, nn.Parameter)
            and (here is None or there is None)
        ):
            continue  # buffers may be caches
        shapes = ["no" if tensor is None else f"a {tuple(tensor.shape)}" for tensor in (there, here)]
        if shapes[0] != shapes[1]:
            raise ZerogateError(
                f"the {kind} given as ema holds {shapes[0]} {name}, the gated {type(sparse.model).__name__} {shapes[1]}; "
                "average a copy of this model"
            )

    def average(name: str, tensor: Tensor) -> Tensor:
        tensor = averages.get(name, tensor)  # an average need not hold caches
        data = tensor.detach().clone()
        return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data

    with sparse.detached() as plain:
        new = copy_with(plain, average)
    for name, module in network.named_modules():
        new.get_submodule(name).training = module.training
    z = sparse.gate.mask(sparse.logits.detach())
    weights = [new.get_parameter(name) for name in sparse._layout.names]
    with torch.no_grad():
        overwrite_masked(weights, sparse._forward.masked_weights(z, [weight.to(z.device) for weight in weights]))
    new = apply_plan(new, plan)
    if network is ema and type(new) is not type(ema):
        raise ZerogateError(
            f"{kind} cannot become {type(new).__name__}, which the compacted network is; "
            "wrap the copy in torch.optim.swa_utils.AveragedModel"
        )
    new.zerogate_plan = getattr(small, "zerogate_plan", None)  # type: ignore[assignment]  # so that it can be saved

    def change() -> None:
        if network is ema:
            ema.__dict__.clear()
            ema.__dict__.update(new.__dict__)
        else:
            ema.module = new

    return change


def _cut(sparse: Sparsified, plan: Plan, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the plan leaves of tensors in the shapes of the model's parameters, by their names in the compacted network."""

    def instead(name: str, tensor: Tensor) -> Tensor:
        return nn.Parameter(tensors[name], requires_grad=False) if isinstance(tensor, nn.Parameter) else tensor

    if sparse.keep_class:
        with sparse.detached() as model:
            twin = copy_with(model, instead)
    else:
        twin = copy_with(sparse.graph(), instead)
    return {name: p.detach() for name, p in apply_plan(twin, plan).named_parameters()}


def _new_names(sparse: Sparsified, plan: Plan) -> dict[str, list[str]]:
    """Name of each parameter → its name, or names where it is split, in the compacted network."""
    shapes = {name: p.shape for name, p in sparse.model.named_parameters()}
    old = list(shapes)
    marks = {name: torch.tensor(float(i), dtype=torch.float64).expand(shapes[name]) for i, name in enumerate(old)}
    new: dict[str, list[str]] = {name: [] for name in old}
    for name, left in _cut(sparse, plan, marks).items():
        found = [old[int(number)] for number in left.unique()] or [name]
        if len(found) > 1 or found[0] not in new:
            raise ZerogateError(
                f"{name} of the compacted network comes from {' and '.join(found)}; state cannot follow"
            )
        new[found[0]].append(name)
    return new


def _checked_state(
    optimizer: Optimizer, names: dict[int, str], shapes: dict[str, torch.Size]
) -> dict[str, dict[str, Any]]:
    """The state of the gated model's parameters, by their names, if all of it can be cut."""
    kind = type(optimizer).__name__
    state: dict[str, dict[str, Any]] = {}
    for p, entry in optimizer.state.items():
        if not isinstance(p, Tensor) or not isinstance(entry, dict):
            raise ZerogateError(f"this {kind} keeps state that belongs to no parameter; make a new one")
        if id(p) not in names:
            continue
        name = names[id(p)]
        for key, value in entry.items():
            shape = tuple(value.shape) if isinstance(value, Tensor) else None
            if shape not in ((), tuple(shapes[name])) and not (value is None or isinstance(value, (int, float, str))):
                what = f"a {type(value).__name__}" if shape is None else f"of shape {shape}"
                raise ZerogateError(
                    f"this {kind} keeps {key!r} of {name} as {what}, neither one number nor in the parameter's shape "
                    f"{tuple(shapes[name])}, so it cannot be cut; make a new {kind} for the compacted network"
                )
        state[name] = entry
    return state


def _cut_state(
    sparse: Sparsified, plan: Plan, state: dict[str, dict[str, Any]], new_names: dict[str, list[str]]
) -> dict[str, dict[str, Any]]:
    """The same for the parameters of the compacted network."""
    shapes = {name: p.shape for name, p in sparse.model.named_parameters()}
    new = {
        new_name: {key: v.clone() if i and isinstance(v, Tensor) else v for key, v in entry.items()}
        for name, entry in state.items()
        for i, new_name in enumerate(new_names[name])
    }
    for key in dict.fromkeys(key for entry in state.values() for key in entry):
        held = {name: entry[key] for name, entry in state.items() if isinstance(entry.get(key), Tensor)}
        whole = {name: value for name, value in held.items() if value.shape == shapes[name]}
        blank = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items() if name not in whole}
        left = _cut(sparse, plan, whole | blank)
        for name in whole:
            for new_name in new_names[name]:
                new[new_name][key] = left[new_name]
    return new


def _exchanged(
    group: dict[str, Any],
    names: dict[int, str],
    gates: set[int],
    new_names: dict[str, list[str]],
    parameters: dict[str, nn.Parameter],
) -> dict[str, Any]:
    """``params``, and ``param_names`` where there are such, that a group holds afterwards."""
    called: Iterable[str | None] = group.get("param_names", [None] * len(group["params"]))
    found: list[tuple[Any, str | None]] = []
    for p, own_name in zip(group["params"], called, strict=True):
        new = new_names[names[id(p)]] if id(p) in names else []
        if len(new) == 1:
            found.append((parameters[new[0]], own_name))
        elif new:
            found += [(parameters[name], name) for name in new]
        elif id(p) not in gates | names.keys():
            found.append((p, own_name))
    exchanged: dict[str, Any] = {"params": [p for p, _ in found]}
    return exchanged | ({"param_names": [name for _, name in found]} if "param_names" in group else {})
