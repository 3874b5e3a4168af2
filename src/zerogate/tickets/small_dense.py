"""`small_dense`: the baseline of a ticket that has no ticket, a narrower network of the same class."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.checks import check_share, check_whole
from zerogate.errors import ZerogateError
from zerogate.gates.pruners import Random
from zerogate.modules.run import Inputs
from zerogate.objectives.budget import Budget
from zerogate.sparsify import sparsify
from zerogate.structure import Group


def small_dense(
    model: nn.Module, example_inputs: Inputs, *, params: int | None = None, share: float | None = None
) -> nn.Module:
    """A network like this one with fewer channels, to be trained from scratch: what a ticket with as many parameters is to
    be compared with.

    The same share of every group of channels goes, to within one channel, as few as are needed for at most ``params``
    parameters. Then every module that has ``reset_parameters`` is drawn anew. Parameters outside of such modules are
    slices of the model's own. An initialisation that the model's class does by itself, behind its modules', is not
    repeated, since only the class knows it; do that afterwards where it matters.

    Args:
        model: the dense network; it stays as it is.
        example_inputs: as for `sparsify`.
        params: the most parameters that it may have; or
        share: the same as a share of the model's, in (0, 1].

    Returns a plain module of the same class in the model's mode, which `save` takes.

    Raises `ZerogateError` unless one of the two is given, and where not even one channel of each group fits.
    """
    if (params is None) == (share is None):
        raise ZerogateError(f"small_dense takes params or share, one of the two, got params={params} and share={share}")
    check_whole("params", params, optional=True)
    check_share("share", share, optional=True)
    sparse = sparsify(copy.deepcopy(model), example_inputs, gate=Random(1.0), unit="channel")
    dense = sparse.dense_cost.params
    most = int((share or 0) * dense) if params is None else params
    budget, order = Budget.of_count("params", sparse.cost_model, most), _evenly(sparse.groups).to(sparse.logits.device)
    least = budget.left_of_first(order, 0)
    if least > most:
        raise ZerogateError(
            f"{most:,} parameters are too few for a small {type(model).__name__}: one channel of each group, and layers "
            f"that cannot be narrowed, have {least:,} of its {dense:,}; give at least that"
        )
    is_open = torch.zeros(len(order), dtype=torch.bool, device=order.device)
    is_open[order[: budget.largest(order)]] = True
    sparse.gates.set_open(is_open)
    small = sparse.compact()
    for module in small.modules():
        reset: Any = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
    return small


def _evenly(groups: Sequence[Group]) -> Tensor:
    """All units, in an order whose every beginning has the same share of each group, int64 [units]."""
    places = [(torch.arange(group.units, dtype=torch.float64) + 0.5) / group.units for group in groups]
    return torch.cat(places).argsort(stable=True)
