"""Gates in the replicas that `nn.DataParallel` makes of a gated model for one forward.

A replica shares the hooks of the model and holds copies of its parameters as plain tensors. It draws gates of its own, which
multiply all of its gated weights when its forward begins: their gradients reach the gates of the model.
"""

from __future__ import annotations

from torch import nn

from zerogate.errors import ZerogateError
from zerogate.gates import fused
from zerogate.masking.forward import GatedForward
from zerogate.modules.index import lists_with, modules_by_name, split_name
from zerogate.modules.internals import replica_parameters_of

_GATED = "_zerogate_gated"
"""Marks the modules of a replica whose gates have been drawn."""


def begin_replica(forward: GatedForward, replica: nn.Module) -> None:
    """Multiplies the weights of a replica of the whole model by gates.

    Raises `ZerogateError` where gates do not lie on weights alone.
    """
    layout = forward.layout
    listed = any(lists_with(owner, owner.get_parameter(attribute)) for owner, attribute in forward.places.values())
    if forward.per_example or layout.structure.norms or layout.computed or listed:
        what = (
            "drawn for every example"
            if forward.per_example
            else "on layers that compute their weights"
            if layout.computed
            else "on weights that their module also holds in a list, as recurrent layers do,"
            if listed
            else "inside norms over all channels"
        )
        raise ZerogateError(
            f"gates {what} do not go with nn.DataParallel; use nn.parallel.DistributedDataParallel, or a single device"
        )
    gates, modules = forward.gates, modules_by_name(replica, twice=True)
    weights = []
    for name in forward.names:
        owner, attribute = split_name(name)
        weights.append(replica_parameters_of(modules[owner])[attribute])
    if replica.training and not gates.frozen:
        z, _, _ = fused.draw(gates.gate, gates.logits, economical=False, examples=None)
    else:
        z = gates.gate.mask(gates.logits)
    masked = forward.masked_weights(z.to(weights[0].device), weights)
    instead = {id(weight): product for weight, product in zip(weights, masked, strict=True)}
    for module in modules.values():
        vars(module)[_GATED] = True
        for attribute, tensor in replica_parameters_of(module).items():
            if id(tensor) in instead:
                vars(module)[attribute] = instead[id(tensor)]


def check_gated_replica(module: nn.Module) -> None:
    """Raises `ZerogateError` for a module of a replica that is no part of a replica of the whole model."""
    if _GATED not in vars(module):
        raise ZerogateError(
            f"nn.DataParallel runs copies of a part of the gated model (a {type(module).__name__}), which see no gates; "
            "take it out of the model, call sparsify, and wrap the whole: nn.DataParallel(model)"
        )
