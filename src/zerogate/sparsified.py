"""The handle of a gated model: what trains, counts and compacts its gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zerogate.compaction import compact as compaction
from zerogate.cost.channels import ChannelCost
from zerogate.cost.model import Cost, CostModel
from zerogate.cost.weights import WeightCost
from zerogate.errors import WatchError, ZerogateError
from zerogate.gates.fixed import FixedGate
from zerogate.gates.gate import Gate
from zerogate.groups.graph.from_export import exported
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.masking.attachment import Attachment
from zerogate.masking.forward import GatedForward
from zerogate.masking.placement import channel_placements, weight_placements
from zerogate.modules.internals import foreach_copy_
from zerogate.modules.run import Inputs
from zerogate.objectives.penalty import Penalty
from zerogate.objectives.target import Target, project, settle
from zerogate.report.count import GatedNetwork, make_report, target_row
from zerogate.report.table import Report
from zerogate.structure import Structure

if TYPE_CHECKING:
    from zerogate.masks import Mask


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
    index: Tensor  # the units of all placements, one after the other; one more for what has no gate

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
        graph: GraphModel | None = None,
    ) -> None:
        super().__init__()
        self.keep_class = graph is None
        self.__dict__["_graph"] = graph
        self._kept_in = _kept_in(model)
        self.__dict__["model"] = model  # not a submodule: parameters and state of the two stay apart
        self.example_inputs = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, example_inputs)
        self.structure = structure
        self.unit = unit
        parameters = dict(model.named_parameters())
        shapes = {name: p.shape for name, p in parameters.items()}
        self.cost_model: CostModel
        if unit == "weight":
            self.placements, self.groups = weight_placements(structure, shapes, excluded)
            self.cost_model = WeightCost(
                structure, {p.weight: g.slice for p, g in zip(self.placements, self.groups, strict=True)}, shapes
            )
        else:
            self.placements, self.groups = channel_placements(structure, parameters), structure.groups
            self.cost_model = ChannelCost(structure, shapes, min_channels, round_to)
        units = self.groups[-1].slice.stop if self.groups else 0
        if units == 0:
            raise WatchError(_nothing_to_remove(model, structure))
        if isinstance(objective, Target):
            objective.check(self.cost_model, units)
        self.gate = gate
        self.objective = objective
        device = next((p.device for p in parameters.values() if not p.is_meta), torch.device("cpu"))
        self.logits = nn.Parameter(gate.initial_logits(units).to(device), requires_grad=gate.learns)
        self.gate.to(device)
        self.objective.to(device)
        index = torch.cat([p.units for p in self.placements])
        self.register_buffer("index", torch.where(index < 0, units, index).to(device), persistent=False)
        self._held: Tensor | None = None  # the logits, for as long as they stay as they are
        self._gating = GatedForward(self, self.placements, shapes, per_example)
        self._attachment = Attachment(model, structure, self.placements, self._gating)
        self.attach()
        if isinstance(gate, FixedGate):
            gate.begin(self)

    @property
    def per_example(self) -> bool:
        """Whether gates are drawn for every example, in training."""
        return self._gating.per_example

    # training

    def param_groups(self, lr: float, gate_lr: float | None = None, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: the model's weights, and the gates with a learning rate of their own and no
        weight decay. Gates that do not learn have no group.

        ``gate_lr`` defaults to r · lr, with r = 100 for `HardConcrete` and 30 for `SoftMask`, since at the weights' own
        rate gates hardly move; and to no less than 0.3 r / steps where a `Target` knows the steps of the run, so that with
        Adam there is time for gates to open and to close."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        groups = [{"name": "weights", "params": weights, "lr": lr, "weight_decay": weight_decay}]
        if self.gate.learns:
            if gate_lr is None:
                self._share_steps()
                steps = self.objective.steps if isinstance(self.objective, Target) else None
                gate_lr = self.gate.rate * max(lr, 0.3 / steps if steps else 0.0)
            groups.append({"name": "gates", "params": [self.logits], "lr": gate_lr, "weight_decay": 0.0})
        return groups

    def loss(self) -> Tensor:
        """The objective's term, a 0-dim tensor to add to the task's loss; 0 for gates that do not learn."""
        if not self.gate.learns:
            return self.logits.new_zeros(())
        self._held = self.logits.detach().clone() if self.settled else None
        return self.objective(self._gating.likely(isinstance(self.objective, Target)), self.cost_model)

    def step(self) -> None:
        """Call once after each optimizer step; moves the gate's schedule on, and a target's multiplier."""
        self._share_steps()
        self.gate.step()
        if isinstance(self.gate, FixedGate):
            self.gate.follow(self)
            self.zero_closed()
        elif isinstance(self.objective, Target):
            self._hold()
            if self.objective.step(self.open_probability(), self.is_open(), self.cost_model):
                settle(self)

    def _hold(self) -> None:
        """Puts logits back that stand still: the optimizer's momentum has moved them."""
        if self._held is not None:
            with torch.no_grad():
                self.logits.copy_(self._held)
            self._held = None

    def _share_steps(self) -> None:
        """Of the gate and the target, that which knows how long the run is tells the other."""
        gate: Any = self.gate
        if isinstance(self.objective, Target) and hasattr(gate, "steps"):
            if self.objective.steps is None:
                self.objective.steps = gate.steps
            elif gate.steps is None:
                gate.steps = self.objective.steps

    def project(self) -> int:
        """Call at the end of training with a `Target`; the training command does. Where the deployed network costs more,
        the open gates with the lowest logits are closed until it fits; where it is more than a point of the dense cost
        below, the closed gates with the highest are opened until it is not, or the next would not fit.

        Returns how many gates it changed; 0 without a target, and for gates that do not learn. `report` says how many were
        changed in all, together with those of the step at which the target settled."""
        return project(self) if isinstance(self.objective, Target) and self.gate.learns else 0

    # tickets

    def entries(self, units: Tensor) -> dict[str, Tensor]:
        """Which entries of each gated weight these units let through, for bool [units]: bool tensors by name."""
        parameters = dict(self.model.named_parameters())
        ones = [torch.ones_like(parameters[name]) for name in self.gated_names]
        with torch.no_grad():
            return {n: w > 0 for n, w in zip(self.gated_names, self.masked_weights(units.float(), ones), strict=True)}

    def harden(self, mask: Mask | None = None) -> None:
        """Makes gates hard: they no longer learn, and the weights that closed ones multiply become exactly zero and stay
        so under any optimizer. Make a new optimizer of `param_groups` after it.

        Args:
            mask: the ticket, in which a unit is open if any of its entries is; None for what is open now.

        Raises `ZerogateError` where the mask is of another architecture, or cuts through a channel."""
        is_open = self.is_open() if mask is None else self._units_of(mask)
        self.gate = FixedGate(self.gate.scale).to(self.logits.device)
        self.logits.requires_grad_(False)
        self.logits.grad = None
        self.open_only(is_open.nonzero().flatten())

    def _units_of(self, mask: Mask) -> Tensor:
        mask.check(self.model)
        if missing := [name for name in mask if name not in self.gated_names]:
            raise ZerogateError(f"this mask is of weights without gates: {missing[0]}; sparsify the model with them")
        is_open = torch.zeros(len(self.logits), dtype=torch.bool)
        for lies in self.placements:
            along = lies.view.index(-1) if -1 in lies.view else None
            kept = mask.get(lies.weight, torch.ones(()).expand(self.model.get_parameter(lies.weight).shape) > 0)
            kept = kept.flatten() if along is None else kept.movedim(along, 0).flatten(1).any(1)
            gated = lies.units >= 0
            is_open[lies.units[gated]] |= kept[gated]
        is_open = is_open.to(self.logits.device)
        for name, entries in self.entries(is_open).items():
            if name in mask and not torch.equal(entries.cpu(), mask[name]):
                raise ZerogateError(
                    f'this mask cuts through units: {name} keeps parts of a {self.unit}; use unit="weight"'
                )
        return is_open

    @torch.no_grad()
    def open_only(self, units: Tensor) -> None:
        """Opens these units, int64 [n], and closes all others; of gates that do not learn."""
        self.logits.fill_(-1.0)
        self.logits[units] = 1.0
        self.zero_closed()

    @torch.no_grad()
    def zero_closed(self) -> None:
        """Sets the weights that closed gates multiply to zero, in place."""
        parameters = dict(self.model.named_parameters())
        weights: list[Tensor] = [parameters[name] for name in self.gated_names]
        masked = self.masked_weights((self.logits > 0).to(self.logits.dtype), weights)
        foreach_copy_(weights, masked)

    @property
    def settled(self) -> bool:
        """Whether a `Target` has fixed the gates: training goes on with the deployed mask, for the weights alone."""
        return self.gate.learns and isinstance(self.objective, Target) and self.objective.settled

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

    def graph(self) -> GraphModel:
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
        graph: GraphModel = self.__dict__["_graph"]
        return graph

    def difference(self, small: nn.Module) -> float:
        """max |gated − small| / max |gated| over all outputs for the example inputs, both in float64 and evaluation mode.

        For a module of lower precision it includes the rounding of gates that lie between 0 and 1 into the weights."""
        return compaction.difference(self, small)

    def report(self) -> Report:
        """Every layer: kept, shrunk or refused, and why."""
        single_weights = {p.weight: p.units for p in self.placements} if self.unit == "weight" else None
        return make_report(
            GatedNetwork(
                model=self.model,
                structure=self.structure,
                groups=self.groups,
                unit=self.unit,
                single_weights=single_weights,
                kept=self.kept(),
                cost=self.cost_model.exact(self.is_open()),
                dense=self.dense_cost,
                keep_class=self.keep_class,
                target=target_row(self.objective, self.is_open(), self.cost_model),
            )
        )

    @property
    def gated_names(self) -> list[str]:
        """Names of the weights that gates lie on."""
        return self._gating.names

    def masked_weights(self, z: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """The gated weights, given in the order of `gated_names`, times their gates, for z [units]."""
        return self._gating.masked_weights(z, weights)

    # attaching

    def attach(self) -> None:
        """Puts the gates (back) on the model.

        Raises `ZerogateError` where its parameters have other shapes than before, or are tied otherwise."""
        self._attachment.attach()

    def detach(self) -> None:
        """Takes the gates off; the model is the user's plain one again."""
        self._attachment.detach()

    @contextmanager
    def detached(self) -> Iterator[nn.Module]:
        """The plain model, for as long as the block lasts."""
        attached = self._attachment.attached
        self.detach()
        try:
            yield self.model
        finally:
            if attached:
                self.attach()

    def check_unchanged(self) -> None:
        """Raises `ZerogateError` where the model is not the one that the gates were made for."""
        self._attachment.check_unchanged()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_graph": None}  # a graph of fx cannot be pickled, and is made again

    def extra_repr(self) -> str:
        return f"units={len(self.logits)}, groups={len(self.groups)}, unit={self.unit!r}"


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
