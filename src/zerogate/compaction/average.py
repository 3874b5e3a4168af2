"""A moving average of the gated model becomes that of the compacted network."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from zerogate.compaction.deployed import Deployed
from zerogate.cutting.plan import Plan
from zerogate.errors import ZerogateError
from zerogate.modules.index import named_tensors
from zerogate.modules.internals import children_of


def carry_average(ema: nn.Module, deployed: Deployed, plan: Plan, small: nn.Module) -> Callable[[], None]:
    """Prepares that a moving average becomes the average of the compacted network; the function returned does it.

    The averaged weights are multiplied with the mask that is deployed now, and cut by the same plan.

    Args:
        ema: a copy of the gated model that holds the averages, or a module that holds such a copy as ``.module``, as
            `torch.optim.swa_utils.AveragedModel` does; then only the copy is replaced, ``n_averaged`` and all else stays.
        deployed: the gated model with its mask.
        plan: the plan by which ``small`` was cut.
        small: the compacted network.

    Raises `ZerogateError` where its parameters are not, by name and shape, those of the gated model.
    """
    if not isinstance(ema, nn.Module):
        raise ZerogateError(f"ema is a module such as torch.optim.swa_utils.AveragedModel, got a {type(ema).__name__}")
    network = _network_of(ema, deployed.model)
    averages = dict(named_tensors(network))
    _check_averages(type(ema).__name__, averages, deployed.model)
    new = _compacted(network, averages, deployed, plan)
    if network is ema and type(new) is not type(ema):
        raise ZerogateError(
            f"{type(ema).__name__} cannot become {type(new).__name__}, which the compacted network is; "
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


def _network_of(ema: nn.Module, model: nn.Module) -> nn.Module:
    """The copy of the model that holds the averages: ``ema`` itself, or what it wraps."""
    inside = getattr(ema, "module", None)
    network = inside if isinstance(inside, nn.Module) and "module" not in children_of(model) else ema
    if network is model:
        raise ZerogateError(
            f"the {type(ema).__name__} given as ema holds the gated model itself, not a copy with averaged weights"
        )
    return network


def _check_averages(kind: str, averages: Mapping[str, Tensor], model: nn.Module) -> None:
    """Raises `ZerogateError` for the first tensor that the averages, held by a ``kind``, and the model do not share."""
    tensors = dict(named_tensors(model))
    for name in [*tensors, *averages]:
        ours, theirs = tensors.get(name), averages.get(name)
        is_parameter = isinstance(ours, nn.Parameter) or isinstance(theirs, nn.Parameter)
        if not is_parameter and (ours is None or theirs is None):
            continue  # buffers may be caches
        held, expected = ("no" if x is None else f"a {tuple(x.shape)}" for x in (theirs, ours))
        if held != expected:
            raise ZerogateError(
                f"the {kind} given as ema holds {held} {name}, the gated {type(model).__name__} {expected}; "
                "average a copy of this model"
            )


def _compacted(network: nn.Module, averages: Mapping[str, Tensor], deployed: Deployed, plan: Plan) -> nn.Module:
    """The compacted network with averaged weights, in the modes of the network that holds them."""

    def average(name: str, tensor: Tensor) -> Tensor:
        tensor = averages.get(name, tensor)  # an average need not hold caches
        data = tensor.detach().clone()
        return nn.Parameter(data, requires_grad=tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data

    averaged = deployed.cuttable.with_tensors(average)
    for name, module in network.named_modules():
        averaged.module.get_submodule(name).training = module.training
    deployed.fold_into(averaged.module)
    return averaged.cut(plan)
