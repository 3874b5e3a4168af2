"""`sparsify`: gates on an ordinary module, attached from outside.

A gate multiplies the *input slice of every consumer's weight*, never the channel where it is made: a closed channel is
then read by nobody, so biases, BatchNorm shifts and paddings before it cannot matter. The root's forward draws all gates
once; while a layer runs, its weight is shadowed by the masked one (an entry in the module's `__dict__`, which Python finds
before the registered parameter). The model's class, its `state_dict` and its parameters' names stay as they are.
"""

from __future__ import annotations

import fnmatch
import gc
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zerogate import compaction, norms
from zerogate.cost import ChannelCost, Cost, CostModel, WeightCost
from zerogate.draws import Draw, Draws
from zerogate.errors import WatchError, ZerogateError, no_weights
from zerogate.exported import exported
from zerogate.fused import Masked, plain_only, rounds
from zerogate.gates import Gate, HardConcrete
from zerogate.groups import KINDS, Inputs, Structure, build, watch
from zerogate.groups.interpreted import Interpreted
from zerogate.hooks import Begin, End, Multiply, Shadow, Unshadow, Weights
from zerogate.masks import channel_masks, weight_masks
from zerogate.objective import Penalty
from zerogate.removable import removable
from zerogate.report import Report, make_report
from zerogate.target import Target, project
from zerogate.tensors import modules_by_name, owner_of, tied_names

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
        isinstance(hook, Begin)
        for module in modules_by_name(model).values()
        for hook in module._forward_pre_hooks.values()
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
        seen = watch(model if graph is None else graph, example_inputs, label_inputs=gate_inputs)
        if kinds == {"weight"}:
            structure = replace(build(seen, excluded), norms=())
        else:
            structure = removable(model, example_inputs, seen, excluded, included, kinds, _step(round_to), graph)
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


class Sparsified(nn.Module):
    """Gates attached to a model; made by `sparsify`.

    A module of its own: its `state_dict` holds the logits and the gate's and objective's state, not the model.

    Attributes:
        model: the model given to `sparsify`, gated in place.
        logits: all gates of the model, one parameter [units]; negative closes, positive opens.
        unit: ``"channel"``, ``"head"``, ``"channel+head"`` or ``"weight"``.
        groups: `Group`s: name, slice into ``logits``, producers, consumers.
        dense_cost: `Cost` with every gate open.
    """

    model: nn.Module
    _index: Tensor

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        structure: Structure,
        *,
        gate: Gate,
        unit: str,
        objective: Penalty | Target,
        per_example: bool,
        excluded: frozenset[str],
        min_channels: int,
        round_to: int,
        graph: Interpreted | None = None,
    ) -> None:
        super().__init__()
        self.keep_class = graph is None
        self.__dict__["_graph"] = graph
        self._kept_in = _kept_in(model)
        self.__dict__["model"] = model  # not a submodule: parameters and state of the two stay apart
        self.example_inputs = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, example_inputs)
        self.structure = structure
        self.unit = unit
        self.per_example = per_example
        parameters = dict(model.named_parameters())
        shapes = {name: p.shape for name, p in parameters.items()}
        self.cost_model: CostModel
        if unit == "weight":
            self.masks, self.groups = weight_masks(structure, shapes, excluded)
            self.cost_model = WeightCost(
                structure, {m.weight: g.slice for m, g in zip(self.masks, self.groups, strict=True)}, shapes
            )
        else:
            self.masks, self.groups = channel_masks(structure, parameters), structure.groups
            self.cost_model = ChannelCost(structure, shapes, min_channels, round_to)
        units = self.groups[-1].slice.stop if self.groups else 0
        if units == 0:
            raise WatchError(_nothing_to_remove(model, structure))
        if isinstance(objective, Target):
            objective.check(self.cost_model, units)
        self.gate = gate
        self.objective = objective
        device = next((p.device for p in parameters.values() if not p.is_meta), torch.device("cpu"))
        self.logits = nn.Parameter(gate.initial_logits(units).to(device))
        self.gate.to(device)
        self.objective.to(device)
        index = torch.cat([m.units for m in self.masks])
        self.register_buffer("_index", torch.where(index < 0, units, index).to(device), persistent=False)
        self._lengths = [len(m.units) for m in self.masks]
        self._weights = list(dict.fromkeys(m.weight for m in self.masks))
        self._rounds = rounds(self.masks, self._weights, shapes, units)
        self._open: tuple[Tensor, list[int]] | None = None  # open probabilities of the last draw, and of which state
        self._parameters_were = _parameters(model)
        self._held: Tensor | None = None  # what the logits stay at
        self._drawn: list[Tensor] | None = None  # every weight times its gates; or per example, the gates of every mask
        self._statistics: list[Tensor] = []
        self._products: dict[tuple[int, int, int], tuple[Tensor, int, Tensor]] = {}
        alike: dict[tuple[int, ...], int] = {}  # the first mask of the same units
        self._alike = [
            alike.setdefault(tuple(m.units.tolist()), i) for i, m in enumerate(self.masks if per_example else ())
        ]
        self._draws = Draws()
        self._depth = 0
        self._handles: list[Any] = []
        self.attach()

    # training

    def param_groups(self, lr: float, gate_lr: float | None = None, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: the model's weights, and the gates with a learning rate of their own and no
        weight decay. ``gate_lr`` defaults to 30 · lr: at the weights' own rate gates hardly move."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        return [
            {"name": "weights", "params": weights, "lr": lr, "weight_decay": weight_decay},
            {
                "name": "gates",
                "params": [self.logits],
                "lr": 30 * lr if gate_lr is None else gate_lr,
                "weight_decay": 0.0,
            },
        ]

    def loss(self) -> Tensor:
        """The objective's term, a 0-dim tensor to add to the task's loss."""
        value, self._open = self._open, None
        self._held = self.logits.detach().clone() if self.settled else None
        if isinstance(self.objective, Target) and type(self.gate).movable_probability is not Gate.movable_probability:
            return self.objective(self.gate.movable_probability(self.logits), self.cost_model)
        known = value[0] if value is not None and value[1] == self._versions() else None
        return self.objective(self.gate.likely(self.logits, known, self._sparing), self.cost_model)

    def step(self) -> None:
        """Call once after each optimizer step; moves the gate's schedule on, and a target's multiplier."""
        self.gate.step()
        if self._held is not None:  # momentum would move them on
            with torch.no_grad():
                self.logits.copy_(self._held)
            self._held = None
        if isinstance(self.objective, Target):
            before = self.settled
            self.objective.step(self.open_probability(), self.is_open(), self.cost_model)
            if self.settled and not before:
                project(self)

    def project(self) -> int:
        """Call at the end of training with a `Target`; the training command does. Where the deployed network costs more,
        the open gates with the lowest logits are closed until it fits; where it is more than a point of the dense cost
        below, the closed gates with the highest are opened until it is not, or the next would not fit.

        Returns how many gates it changed, which `report` repeats; 0 without a target."""
        return project(self) if isinstance(self.objective, Target) else 0

    @property
    def settled(self) -> bool:
        """Whether a `Target` has fixed the gates: training then goes on with the deployed mask, for the weights alone."""
        return isinstance(self.objective, Target) and self.objective.settled

    @property
    def _sparing(self) -> bool:
        """Whether gates are as many as weights, so that it matters what is kept of them for the backward pass."""
        return self.unit == "weight"

    def _versions(self) -> list[int]:
        return [id(self.logits), *(x._version for x in (self.logits, *self.gate.buffers()))]

    # counting

    @property
    def dense_cost(self) -> Cost:
        return self.cost_model.dense

    def open_probability(self) -> Tensor:
        """P(z ≠ 0) of every unit, detached, [units]."""
        return self.gate.open_probability(self.logits).detach()

    def is_open(self) -> Tensor:
        """Whether the deployed mask lets each unit through, bool [units]."""
        return self.gate.mask(self.logits.detach()) > 0

    def kept(self) -> Tensor:
        """Units that compaction keeps, bool [units]: open and of use, and at least one of each group."""
        return self.cost_model.kept(self.is_open(), self.logits.detach())

    def cost(self, hard: bool = True) -> Cost:
        """What is left: deployed (ints, the count of what `compact` returns now) or expected (tensors, differentiable)."""
        if hard:
            return self.cost_model.exact(self.is_open())
        return self.cost_model.expected(self.gate.open_probability(self.logits))

    # deploying

    def compact(self, *, optimizer: torch.optim.Optimizer | None = None, ema: nn.Module | None = None) -> nn.Module:
        """A new plain module without the closed units: no gates, no masks, the same outputs as the gated model in
        evaluation mode. With ``keep_class=False`` a `torch.fx.GraphModule`, which computes these in training mode, too.

        The gated model stays as it is. Training mode is that of the model. Before it is returned, the module is
        compared with the gated one in float64 on the example inputs (in its own precision, to 1e-4, where the model has
        kernels that do not know float64).

        Args:
            optimizer: its state goes over to the new module, in place: it holds the new module's parameters instead of
                the model's, moments cut alike, and no gates.
            ema: an averaged copy of the model (`torch.optim.swa_utils.AveragedModel` or a module of the same names):
                folded and cut by the same plan, in place.

        Warns where a target is not met; call `project` before.

        Raises `CompactionError` where the outputs differ by more than 1e-10 of the largest, or where the model or the
        example inputs are on the meta device, and `ZerogateError` for an optimizer or average that does not fit, and for
        a graph's model that was cast or moved since; then nothing has been changed.
        """
        return compaction.compact(self, optimizer, ema)

    def graph(self) -> Interpreted:
        """The model as a graph, with its tensors: what compaction cuts where it does not keep the class.

        Raises `ZerogateError` where the model has been cast or moved since it was exported."""
        now = _kept_in(self.model)
        if now != self._kept_in:
            raise ZerogateError(
                f"the graph of this {type(self.model).__name__} was exported for {self._kept_in}, and the model is "
                f"{now} now; cast or move it back for compact(), or call sparsify again"
            )
        if self.__dict__["_graph"] is None:  # a copy or what was pickled
            with self.detached() as model:
                self.__dict__["_graph"] = exported(model, self.example_inputs)
        graph: Interpreted = self.__dict__["_graph"]
        return graph

    def difference(self, small: nn.Module) -> float:
        """max |gated − small| / max |gated| over all outputs for the example inputs, both in float64 and evaluation mode.

        For a module of lower precision it includes the rounding of gates that lie between 0 and 1 into the weights."""
        return compaction.difference(self, small)

    def report(self) -> Report:
        """Every layer: kept, shrunk or refused, and why."""
        return make_report(self)

    # attaching

    def attach(self) -> None:
        """Puts the gates (back) on the model.

        Raises `ZerogateError` where its parameters have other shapes than before, or are tied otherwise."""
        if self._handles:
            return
        self.check_unchanged()
        modules = modules_by_name(self.model, twice=True)
        tied = tied_names(self.model)
        shadows: dict[str, list[tuple[nn.Module, str, int]]] = {}
        multiply: list[tuple[str, Multiply]] = []
        self._places = [(modules[owner_of(name)], name.rpartition(".")[2]) for name in self._weights]
        for number, weight in enumerate(self._weights):
            places = [(modules[owner_of(name)], name.rpartition(".")[2], number) for name in tied[weight]]
            for host in dict.fromkeys(c.host for c in self.structure.calls if c.weight == weight):
                shadows.setdefault(host, []).extend(places)
        for number, mask in enumerate(self.masks if self.per_example else ()):
            calls = [c for c in self.structure.calls if c.weight == mask.weight]
            outside = next((c for c in calls if c.host != c.layer), None)
            if outside is not None:
                raise ZerogateError(
                    f"per_example gates need {outside.layer} to be called as a module, but its weight is read in "
                    f"{outside.host or 'the root'}; exclude it with exclude=[{outside.layer!r}]"
                )
            multiply.append((calls[0].layer, Multiply(self, number, calls[0].channel_dim)))
        self._handles = [
            self.model.register_forward_pre_hook(Begin(self), prepend=True, with_kwargs=True),
            self.model.register_forward_hook(End(self), always_call=True),
        ]
        self._shadowing: list[list[Any]] = []
        for host, held in shadows.items():
            put: list[Any] = []
            self._shadowing.append(put)
            self._handles.append(modules[host].register_forward_pre_hook(Shadow(self, held, put)))
            self._handles.append(modules[host].register_forward_hook(Unshadow(put), always_call=True))
        last = [(path, modules[path].register_forward_pre_hook(hook)) for path, hook in multiply]
        for number, norm in enumerate(self.structure.norms):
            before, after = norms.attach(modules[norm.module], norm, Weights(self, number))
            last.append((norm.module, before))
            self._handles.append(after)
        self._handles += [handle for _, handle in last]
        self._last = [(modules[path], handle.id) for path, handle in last]
        self._hosts = {path: modules[path] for path in [*shadows, *(path for path, _ in last)]}
        held_by = [place for held in shadows.values() for place in held]
        self._shadowed = [(module, attribute) for module, attribute, _ in held_by]
        self._shadowed += [(modules[norm.module], "weight") for norm in self.structure.norms]

    def detach(self) -> None:
        """Takes the gates off; the model is the user's plain one again."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            self.uncover()
        self._handles = []
        self.forget()

    def forget(self) -> None:
        """Drops what was drawn, and the graph that holds it."""
        self._drawn, self._statistics = None, []
        self._products.clear()

    def known_product(self, x: Tensor, number: int, channel_dim: int) -> Tensor | None:
        """An activation times the gates of a mask, where another layer with the same gates has read it in this forward."""
        found = None if plain_only() else self._products.get((id(x), self._alike[number], channel_dim))
        return None if found is None or found[1] != x._version else found[2]

    def note_product(self, x: Tensor, number: int, channel_dim: int, product: Tensor) -> None:
        """Notes what was multiplied, if autograd keeps it in any case; checkpoints and their like keep it elsewhere."""
        kept = torch.is_grad_enabled() and torch._C._autograd._top_saved_tensors_default_hooks(True) is None
        if kept and self._depth and not plain_only():
            self._products[id(x), self._alike[number], channel_dim] = x, x._version, product

    def uncover(self) -> None:
        """Takes back the shadows of a forward that was broken off by more than an Exception (Ctrl-C): torch then runs no
        hooks."""
        self._depth = 0
        for put in self._shadowing:
            put.clear()
        for owner, attribute in self._shadowed:
            owner.__dict__.pop(attribute, None)

    def come_last(self) -> None:
        """Lets hooks that change a layer's input run after those that were registered later."""
        for module, number in self._last:
            hooks = module._forward_pre_hooks
            if next(reversed(hooks)) != number:
                hooks[number] = hooks.pop(number)

    def check_unchanged(self) -> None:
        """Raises `ZerogateError` where the model is not the one that the gates were made for."""
        now, found = _parameters(self.model), ""
        for name, (shape, first) in self._parameters_were.items():
            if name not in now:
                found = f"{name} is gone"
            elif now[name][0] != shape:
                found = f"{name} is {tuple(now[name][0])} and was {tuple(shape)}"
            elif now[name][1] != first:
                found = f"{name} is no longer tied as it was"
            if found:
                break
        modules = dict(self.model.named_modules(remove_duplicate=False))
        for path, module in self._hosts.items() if self._handles and not found else ():
            if modules.get(path) is not module:
                found = f"{path} is another module, on which there are no gates"
        if found:
            raise ZerogateError(
                f"this {type(self.model).__name__} is not what it was when gates were put on it: {found}; undo that, or "
                "call detach() and sparsify it as it is now"
            )

    @contextmanager
    def detached(self) -> Iterator[nn.Module]:
        """The plain model, for as long as the block lasts."""
        attached = bool(self._handles)
        self.detach()
        try:
            yield self.model
        finally:
            if attached:
                self.attach()

    def masked_weights(
        self, z: Tensor, weights: Sequence[Tensor], again: Callable[[], Tensor] | None = None
    ) -> list[Tensor]:
        """The gated weights, given in the order of `gated_names`, times their gates, for z [units]; ``again`` computes z
        once more for the backward pass, which then does not keep it."""
        if not plain_only():
            found = list(weights)
            for lies in self._rounds:
                lies.to(z.device)
                numbers = [x.weight for x in lies.layers]
                for number, w in zip(numbers, Masked.apply(lies, again, z, *(found[i] for i in numbers)), strict=True):
                    found[number] = w
            return found
        spread = torch.cat([z, z.new_ones(1)])[self._index].split(self._lengths)
        masked = dict(zip(self._weights, weights, strict=True))
        for m, part in zip(self.masks, spread, strict=True):
            w = masked[m.weight]
            masked[m.weight] = w * part.view(m.view).to(w.dtype)
        return [*masked.values()]

    @property
    def gated_names(self) -> list[str]:
        """Names of the weights that gates lie on."""
        return self._weights

    def draw(self, examples: int | None, whole: bool = True) -> None:
        """Draws all gates; [units] into the weights, or [examples, units] to be multiplied into activations.

        ``whole``: for a forward of the whole model."""
        first = next(self.model.parameters())
        if first.is_meta:
            raise ZerogateError(no_weights(self.model, first.device))
        if first.device != self.logits.device:
            raise ZerogateError(
                f"the model is on {first.device} and its gates on {self.logits.device}; move the handle too: "
                f"sparse.to({str(first.device)!r})"
            )
        training, again = self.model.training and not self.settled, None
        if examples is not None:
            z = self.gate.sample(self.logits, examples) if training else self.gate.mask(self.logits).expand(examples, -1)
        elif training:
            z, p, again = self.gate.drawn(self.logits, self._sparing)
            self._open = None if p is None else (p, self._versions())
        else:
            z = self.gate.mask(self.logits)
        self._drawn, self._statistics = self._spread(z, training, again)
        self._draws.add(z, [*self._drawn, *self._statistics], whole=whole, training=training)

    def _spread(
        self, z: Tensor, training: bool, again: Callable[[], Tensor] | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """What layers and norms use of gates z, [units] or [examples, units]."""
        if z.ndim == 1:
            weights: list[Any] = [
                owner._parameters[name] for owner, name in self._places
            ]  # not getattr: that may find a shadow
            drawn = self.masked_weights(z, weights, again)
        else:
            if any(lies.ungated for lies in self._rounds):
                z = torch.cat([z, z.new_ones(len(z), 1)], 1)
            drawn = list(z.index_select(1, self._index).split(self._lengths, 1))
        return drawn, self._norm_weights(z, training) if self.structure.norms else []

    def _norm_weights(self, z: Tensor, training: bool) -> list[Tensor]:
        """How much each channel counts in the statistics of each norm: in training as far as it is open, in evaluation
        wholly if it is kept."""
        w = z.clamp(max=1) if training else self.kept().to(z)
        w = torch.cat([w, w.new_ones(*w.shape[:-1], 1)], -1)
        return [w[..., n.labels.to(w.device)] for n in self.structure.norms]  # −1 is the last: always there

    def statistics(self, number: int) -> Tensor:
        """Weights of a norm's channels, as drawn with the gates."""
        return self._now()[1][number]

    def current(self, number: int) -> Tensor:
        """The drawn tensor of a weight, or per example of a mask: of the root's forward that runs, or that is run again
        for its gradient."""
        return self._now()[0][number]

    def _now(self) -> tuple[list[Tensor], list[Tensor]]:
        if not self._depth or self._drawn is None:
            again = self._draws.recomputed()
            if again is not None:
                return self._again(again)
            if self.multiplies_activations:
                raise ZerogateError(
                    "per-example gates are drawn by the root's forward; call the model, not a part of it"
                )
            self.draw(None, whole=False)  # a part of the model called by itself
            assert self._drawn is not None
        return self._drawn, self._statistics

    def _again(self, draw: Draw) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of an earlier draw. They are no part of its graph: what is run again only gives this graph the
        values that it has not kept."""
        assert draw.z is not None
        if not draw.tensors:
            with torch.no_grad():
                drawn, statistics = self._spread(draw.z, draw.training)
            tensors = [*drawn, *statistics]
            draw.tensors = [x.detach().requires_grad_(grad) for x, grad in zip(tensors, draw.learns, strict=True)]
        n = len(draw.tensors) - len(self.structure.norms)
        return draw.tensors[:n], draw.tensors[n:]

    @property
    def multiplies_activations(self) -> bool:
        return self.per_example and self.model.training

    def __getstate__(self) -> dict[str, Any]:
        # a draw belongs to a graph of autograd, which cannot be copied; one of fx cannot be pickled, and is made again
        return self.__dict__ | {
            "_drawn": None,
            "_statistics": [],
            "_depth": 0,
            "_graph": None,
            "_open": None,
            "_products": {},
        }

    def extra_repr(self) -> str:
        return f"units={len(self.logits)}, groups={len(self.groups)}, unit={self.unit!r}"


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


def _parameters(model: nn.Module) -> dict[str, tuple[torch.Size, str]]:
    """Name of every parameter → its shape, and the first name of the same tensor."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    return {name: (p.shape, first.setdefault(id(p), name)) for name, p in parameters.items()}


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


def _kept_in(model: nn.Module) -> str:
    """Precision and device of a model's parameters."""
    return ", ".join(sorted({f"{str(p.dtype).removeprefix('torch.')} on {p.device}" for p in model.parameters()}))


def _nothing_to_remove(model: nn.Module, structure: Structure) -> str:
    reasons = "; ".join(dict.fromkeys(structure.refused.values()))
    reasons = reasons or "it runs no convolution or linear layer with parameters"
    return (
        f"{type(model).__name__} has no unit that could be removed: {reasons}. Channels must lie between two "
        'layers; unit="weight" gates single weights, gate_inputs=True the inputs'
    )
