"""`sparsify`: gates on an ordinary module, attached from outside.

A gate multiplies the *input slice of every consumer's weight*, never the channel where it is made: a closed channel is
then read by nobody, so biases, BatchNorm shifts and paddings before it cannot matter. The model's class, its `state_dict`
and its parameters' names stay as they are.
"""

from __future__ import annotations

import fnmatch
import gc
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

from torch import nn

from zerogate.checks import is_whole
from zerogate.compaction.cuttable import cuttable_of
from zerogate.compaction.first_compaction import refused_groups
from zerogate.cost.widths import narrowest_width
from zerogate.cutting.plain_layers import parameters_as_cut
from zerogate.errors import WatchError, ZerogateError
from zerogate.gates.gate import Gate
from zerogate.gates.hard_concrete import HardConcrete
from zerogate.groups.find import find_groups, find_layers
from zerogate.groups.graph.from_export import exported
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.units import UnitFilter
from zerogate.masking.attachment import is_gated
from zerogate.masking.unit import WEIGHT, Layout, Options, Slices, Unit
from zerogate.modules.index import modules_by_name
from zerogate.modules.outputs import OutputChoice, Outputs
from zerogate.modules.run import Inputs
from zerogate.objectives.penalty import Penalty
from zerogate.objectives.target import Target
from zerogate.sparsified import Sparsified
from zerogate.structure import KINDS

UnitName = Literal["channel", "head", "weight"]


def sparsify(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    gate: Gate | None = None,
    unit: UnitName | Collection[UnitName] = "channel",
    objective: Penalty | Target | None = None,
    per_example: bool = False,
    gate_inputs: bool = False,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    min_channels: int = 1,
    round_to: int = 1,
    keep_class: bool = True,
    verify: bool = True,
    outputs: Outputs | None = None,
) -> Sparsified:
    """Attaches gates to a model, in place, and returns the handle that trains, counts and compacts them.

    Copies of the model run without data and leave no trace: recorded, to find which channels belong together, and cut at
    random, to see that every group can really be removed; one that cannot stays, and the report says why.

    Args:
        model: any module; gates are random in training mode, the deployed mask in evaluation mode.
        example_inputs: what one forward takes: a tensor, a tuple of positional or a dict of keyword arguments. The first
            dimension of the first tensor is the batch, by which MACs are divided.
        gate: the kind of gate; default ``HardConcrete()``.
        unit: ``"channel"`` (of convolutions; neurons of linear layers), ``"head"`` (of attention; heads that share keys
            and values are one), or a set of both: removed physically. ``"weight"``: weights become zero, shapes stay.
        objective: default ``Penalty(1.0)``; or a ``Target``, the share of parameters, MACs or gates that may be left.
        per_example: a draw for every example, multiplied into activations; default one draw, multiplied into weights.
        gate_inputs: also gate the network's inputs (feature selection); compaction then selects inputs first.
        include: patterns (as in ``fnmatch``) of layers whose output channels may go; default all. Channels that belong
            together may go if one of the layers that make them is included.
        exclude: patterns of layers that stay dense, coming in and going out. Default: none; for ``unit="weight"`` what
            the model's class names in ``dense_by_default``.
        min_channels: every group of channels keeps at least so many (all, where it has fewer).
        round_to: each group's number of channels is rounded up to a multiple; what is beyond the open ones adds nothing.
        keep_class: False lets compaction return a `torch.fx.GraphModule`, by `torch.export`, that computes what the model
            does in evaluation mode; channels then also go where the forward has their number as a literal.
        verify: compact a copy at random and compare it with the model, in float64, before gates are attached.
        outputs: which outputs count: names, as in ``["logits", "1.boxes"]``, or a function of what the forward returns that
            picks among it; default all. What does not count may lose channels and is not compared.

    Raises:
        WatchError: the model rejects the inputs, cannot be copied or exported, or has nothing to remove.
        ZerogateError: the model has gates already, an argument is out of range, or a target cannot be reached.
    """
    kind, choice = _unit(unit), OutputChoice.of(outputs)
    _check_arguments(model, gate, objective)
    _check_combination(kind, per_example, gate_inputs, include is not None or outputs is not None, keep_class)
    allowed = _allowed(model, kind, include, exclude, narrowest_width(min_channels, round_to))
    graph = None if keep_class else exported(model, example_inputs)
    options = Options(frozenset(allowed.exclude), min_channels, round_to)
    with _without_collector():
        layout = _layout(model, example_inputs, kind, graph, allowed, gate_inputs, options, verify, choice)
    if not layout.units:
        raise WatchError(_nothing_to_remove(model, example_inputs, layout, allowed, choice, graph, gate_inputs))
    given = gate or HardConcrete(), objective or Penalty()
    return Sparsified(model, example_inputs, layout, *given, per_example=per_example, graph=graph)


def _layout(
    model: nn.Module,
    inputs: Inputs,
    unit: Unit,
    graph: GraphModel | None,
    allowed: UnitFilter,
    label_inputs: bool,
    options: Options,
    verify: bool,
    choice: OutputChoice,
) -> Layout:
    """Finds in a run of the model, or of its graph, what belongs together, and where gates lie then."""
    if not unit.changes_shapes:
        found = find_layers(model, inputs, allowed.exclude)
        return unit.layout(found, parameters_as_cut(model, found.plain), options)
    multiple = options.round_to if is_whole(options.round_to) else 1  # else it is refused where costs are counted
    found = find_groups(
        model, inputs, allowed, label_inputs=label_inputs, multiple=multiple, graph=graph, choice=choice
    )
    parameters = parameters_as_cut(model, found.plain)
    layout = unit.layout(found, parameters, options)
    if not verify or not layout.units:
        return layout
    refused = refused_groups(cuttable_of(model, inputs, graph, nullcontext, found.plain), inputs, layout)
    return unit.layout(found.without(refused), parameters, options) if refused else layout


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


def _check_arguments(model: object, gate: object, objective: object) -> None:
    if not isinstance(model, nn.Module):
        raise ZerogateError(f"sparsify takes a torch.nn.Module, got {type(model).__name__}")
    if is_gated(model):
        raise ZerogateError(
            f"this {type(model).__name__} has gates already; call detach() on the handle that sparsify returned first"
        )
    if gate is not None and not isinstance(gate, Gate):
        raise ZerogateError(f"gate is an instance of a zerogate.Gate, such as zerogate.HardConcrete(), got {gate!r}")
    if objective is not None and not isinstance(objective, nn.Module):
        raise ZerogateError(f"objective is an instance, such as zerogate.Penalty(1.0), got {objective!r}")


def _check_combination(unit: Unit, per_example: bool, gate_inputs: bool, chosen: bool, keep_class: bool) -> None:
    if not unit.changes_shapes and (per_example or gate_inputs or chosen):
        raise ZerogateError(
            'per_example, gate_inputs, include and outputs go with unit="channel"; single weights are gated once per forward'
        )
    if not keep_class and (not unit.changes_shapes or gate_inputs):
        raise ZerogateError(
            'keep_class=False goes with unit="channel" or "head" and without gate_inputs: '
            "single weights change no shape, and inputs are selected by a module in front of a layer"
        )


def _unit(unit: UnitName | Collection[UnitName]) -> Unit:
    are_names = isinstance(unit, (str, Collection)) and all(isinstance(u, str) for u in unit)
    kinds = frozenset([unit] if isinstance(unit, str) else unit if are_names else ())
    if not kinds or not kinds <= {*KINDS, WEIGHT.name}:
        raise ZerogateError(
            f'unit is "channel", "head", "weight", or channels and heads together as {{"channel", "head"}}; got {unit!r}'
        )
    if WEIGHT.name in kinds and len(kinds) > 1:
        raise ZerogateError(f'unit="weight" keeps all shapes and cannot be mixed with others, got {unit!r}')
    return WEIGHT if WEIGHT.name in kinds else Slices(kinds)


def _allowed(
    model: nn.Module, unit: Unit, include: Sequence[str] | None, exclude: Sequence[str] | None, narrowest: int
) -> UnitFilter:
    """Which units may go, by the names of the layers that make and read them."""
    if exclude is None:
        exclude = () if unit.changes_shapes else getattr(model, "dense_by_default", ())
    excluded = _matching(model, exclude, "exclude")
    included = None if include is None else _matching(model, include, "include")
    return UnitFilter(excluded, included, unit.kinds if isinstance(unit, Slices) else frozenset(KINDS), narrowest)


def _matching(model: nn.Module, patterns: Iterable[str], option: str) -> frozenset[str]:
    """Modules whose names match one of the patterns, and all inside them."""
    if isinstance(patterns, str):
        raise ZerogateError(
            f"{option} is a list of names or patterns, got the string {patterns!r}; write [{patterns!r}]"
        )
    patterns = [*patterns] if isinstance(patterns, Iterable) else [patterns]
    if not all(isinstance(p, str) for p in patterns):
        raise ZerogateError(f"{option} is a list of names or patterns of modules, got {patterns!r}")
    names = [*modules_by_name(model)] if patterns else []
    matching: set[str] = set()
    for pattern in patterns:
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise ZerogateError(f"{option}: no module is called {pattern!r}; the model has {', '.join(names[1:6])}, …")
        for name in matched:
            matching.update(n for n in names if n == name or n.startswith(f"{name}."))
    return frozenset(matching)


def _nothing_to_remove(
    model: nn.Module,
    inputs: Inputs,
    layout: Layout,
    allowed: UnitFilter,
    choice: OutputChoice,
    graph: GraphModel | None,
    label_inputs: bool,
) -> str:
    """Why there is nothing to remove, and what else could be: only what has been tried and is there."""
    plain = graph is None and not label_inputs
    structure, name = layout.structure, type(model).__name__
    unread = [*dict.fromkeys(structure.reasons.values())]
    if not structure.calls:
        unread.append("no convolution, linear layer or matrix product with a parameter runs on the example inputs")
    if not layout.unit.changes_shapes:
        return f"{name} has no weight that could be gated: {'; '.join(unread) or 'all layers are excluded'}"
    why = "; ".join(dict.fromkeys([*structure.refused.values(), *unread]))
    ways = []
    if WEIGHT.layout(structure, dict(model.named_parameters()), Options()).units:
        ways.append('unit="weight" gates single weights')
    if plain and find_groups(model, inputs, allowed, label_inputs=True, choice=choice).units:
        ways.append("gate_inputs=True gates the network's inputs")
    if plain and _found_in_graph(model, inputs, allowed, choice):
        ways.append("keep_class=False removes channels in a graph of the model")
    instead = f"; {', '.join(ways)}" if ways else ""
    return f"{name} has no unit that could be removed: {why}. Channels must lie between two layers{instead}"


def _found_in_graph(model: nn.Module, inputs: Inputs, allowed: UnitFilter, choice: OutputChoice) -> bool:
    """Whether there is anything to remove with ``keep_class=False``."""
    try:
        return find_groups(model, inputs, allowed, graph=exported(model, inputs), choice=choice).units > 0
    except WatchError:
        return False
