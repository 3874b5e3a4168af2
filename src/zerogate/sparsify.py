"""`sparsify`: gates on an ordinary module, attached from outside.

A gate multiplies the *input slice of every consumer's weight*, never the channel where it is made: a closed channel is
then read by nobody, so biases, BatchNorm shifts and paddings before it cannot matter. The model's class, its `state_dict`
and its parameters' names stay as they are.
"""

from __future__ import annotations

import fnmatch
import gc
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from torch import nn

from zerogate.errors import ZerogateError
from zerogate.gates.gate import Gate
from zerogate.gates.hard_concrete import HardConcrete
from zerogate.groups.find import find_groups, find_layers
from zerogate.groups.graph.from_export import exported
from zerogate.groups.units import UnitFilter
from zerogate.masking.hooks import Begin
from zerogate.modules.index import modules_by_name
from zerogate.modules.internals import pre_hooks_of
from zerogate.modules.run import Inputs
from zerogate.objectives.penalty import Penalty
from zerogate.objectives.target import Target
from zerogate.sparsified import Sparsified
from zerogate.structure import KINDS

Unit = Literal["channel", "head", "weight"]


def sparsify(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    gate: Gate | None = None,
    unit: Unit | Collection[Unit] = "channel",
    objective: Penalty | Target | None = None,
    per_example: bool = False,
    gate_inputs: bool = False,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    min_channels: int = 1,
    round_to: int = 1,
    keep_class: bool = True,
) -> Sparsified:
    """Attaches gates to a model, in place, and returns the handle that trains, counts and compacts them.

    Copies of the model run a few times without data: watched, to find which channels belong together, and compacted at
    random, to see that every group can really be removed; a group that cannot is left alone, and the report says why.
    None of it leaves a trace in the model.

    Args:
        model: any module; it is gated while the handle is attached, random gates in training mode and the deployed
            mask in evaluation mode.
        example_inputs: what one forward takes: a tensor, a tuple of positional or a dict of keyword arguments. The first
            dimension of the first tensor is the batch, by which MACs are divided.
        gate: the kind of gate; default ``HardConcrete()``.
        unit: ``"channel"`` (channels of convolutions, neurons of linear layers), ``"head"`` (heads of attention, with
            grouped queries the heads that share keys and values), or both as in ``{"channel", "head"}``: removed
            physically. Or ``"weight"``: single weights of convolutions and linear layers become exactly zero; shapes stay.
        objective: default ``Penalty(1.0)``; or a ``Target``, the share of parameters or MACs that may be left.
        per_example: a draw of its own for every example, multiplied into activations; default one draw per forward,
            multiplied into weights.
        gate_inputs: also gate the network's inputs (feature selection); compaction then selects inputs first.
        include: patterns (as in ``fnmatch``) of names of layers whose output channels may go; default all. Channels that
            belong together may go if one of the layers that make them is included.
        exclude: patterns of names of layers to leave dense, coming in and going out. Default: for ``unit="weight"`` what
            the model's class names in ``dense_by_default``, else none.
        min_channels: every group of channels keeps at least so many (all, where it has fewer).
        round_to: the number of channels kept of each group is rounded up to a multiple of this, for widths that hardware
            likes; what is kept beyond the open ones adds nothing to the outputs.
        keep_class: False to let compaction return a `torch.fx.GraphModule`, made by `torch.export`, in place of a module
            of the model's class. Channels can then go also where the forward has their number as a literal. The graph
            computes what the model does in evaluation mode. Units are channels or heads; inputs are not gated.

    Raises:
        WatchError: the model rejects the inputs, cannot be copied (with ``keep_class=False`` also: exported), or has
            nothing to remove.
        ZerogateError: the model has gates already, an argument is out of range, or a target cannot be reached.
    """
    if not isinstance(model, nn.Module):
        raise ZerogateError(f"sparsify takes a torch.nn.Module, got {type(model).__name__}")
    if any(
        isinstance(hook, Begin) for module in modules_by_name(model).values() for hook in pre_hooks_of(module).values()
    ):
        raise ZerogateError(
            f"this {type(model).__name__} has gates already; call detach() on the handle that sparsify returned first"
        )
    if gate is not None and not isinstance(gate, Gate):
        raise ZerogateError(f"gate is an instance of a zerogate.Gate, such as zerogate.HardConcrete(), got {gate!r}")
    if objective is not None and not isinstance(objective, nn.Module):
        raise ZerogateError(f"objective is an instance, such as zerogate.Penalty(1.0), got {objective!r}")
    kinds = _kinds(unit)
    if kinds == {"weight"} and (per_example or gate_inputs or include is not None):
        raise ZerogateError(
            'per_example, gate_inputs and include go with unit="channel"; single weights are gated once per forward'
        )
    if not keep_class and (kinds == {"weight"} or gate_inputs):
        raise ZerogateError(
            'keep_class=False goes with unit="channel" or "head" and without gate_inputs: '
            "single weights change no shape, and inputs are selected by a module in front of a layer"
        )
    if exclude is None:
        exclude = getattr(model, "dense_by_default", ()) if kinds == {"weight"} else ()
    excluded = _matching(model, exclude, "exclude")
    included = None if include is None else _matching(model, include, "include")
    graph = None if keep_class else exported(model, example_inputs)
    with _without_collector():
        if kinds == {"weight"}:
            structure = find_layers(model, example_inputs, excluded)
        else:
            allowed = UnitFilter(excluded, included, kinds)
            structure = find_groups(
                model, example_inputs, allowed, label_inputs=gate_inputs, multiple=_step(round_to), graph=graph
            )
    return Sparsified(
        model,
        example_inputs,
        structure,
        gate=HardConcrete() if gate is None else gate,
        unit="+".join(k for k in (*KINDS, "weight") if k in kinds),
        objective=Penalty() if objective is None else objective,
        per_example=per_example,
        excluded=excluded,
        min_channels=min_channels,
        round_to=round_to,
        graph=graph,
    )


@contextmanager
def _without_collector() -> Iterator[None]:
    """Copies of modules are many small objects at once, over which Python's garbage collector would run again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _step(round_to: Any) -> int:
    """What widths are multiples of while they are tried; an option out of range is found later."""
    return round_to if isinstance(round_to, int) and round_to > 0 else 1


def _kinds(unit: Unit | Collection[Unit]) -> frozenset[str]:
    known = isinstance(unit, (str, Collection)) and all(isinstance(u, str) for u in unit)
    kinds = frozenset([unit] if isinstance(unit, str) else unit if known else ())
    if not kinds or not kinds <= {*KINDS, "weight"}:
        raise ZerogateError(
            f'unit is "channel", "head", "weight", or channels and heads together as {{"channel", "head"}}; got {unit!r}'
        )
    if "weight" in kinds and len(kinds) > 1:
        raise ZerogateError(f'unit="weight" keeps all shapes and cannot be mixed with others, got {unit!r}')
    return kinds


def _matching(model: nn.Module, patterns: Iterable[str], option: str) -> frozenset[str]:
    if isinstance(patterns, str):
        raise ZerogateError(
            f"{option} is a list of names or patterns, got the string {patterns!r}; write [{patterns!r}]"
        )
    names = [name for name, _ in model.named_modules()]
    found: set[str] = set()
    patterns = [*patterns] if isinstance(patterns, Iterable) else [patterns]
    if not all(isinstance(p, str) for p in patterns):
        raise ZerogateError(f"{option} is a list of names or patterns of modules, got {patterns!r}")
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ZerogateError(f"{option}: no module is called {pattern!r}; the model has {', '.join(names[1:6])}, …")
        for name in matched:
            found.update(n for n in names if n == name or n.startswith(f"{name}."))
    return frozenset(found)
