"""The handle of a gated model: what trains, counts and compacts its gates."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zerogate.compaction.compact import compact
from zerogate.compaction.cuttable import cuttable_of
from zerogate.compaction.deployed import Deployed
from zerogate.compaction.verify import difference
from zerogate.cost.model import Cost
from zerogate.gates.fixed import FixedGate
from zerogate.gates.gate import Gate
from zerogate.gates.pruners import Pruner
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.masking.attachment import Attachment
from zerogate.masking.forward import GatedForward
from zerogate.masking.gated_weights import GatedWeights
from zerogate.masking.state import Gates, flatten_names
from zerogate.masking.unit import Layout
from zerogate.masks import Mask
from zerogate.modules.run import Inputs
from zerogate.objectives.control import GateControl, Objective
from zerogate.objectives.target import Target
from zerogate.report.count import GatedNetwork, make_report, target_row
from zerogate.report.table import Report


class Sparsified(nn.Module):
    """Gates attached to a model; made by `sparsify`.

    A module of its own: its `state_dict` holds the logits and the gate's and objective's state, not the model.

    Attributes:
        gates: their state: logits, kind, whether they stand still.
        objective: `Penalty` or `Target`.
        unit: ``"channel"``, ``"head"``, ``"channel+head"`` or ``"weight"``.
        groups: `Group`s in the order of their logits: name, slice into ``logits``, producers, consumers.
        structure: units and the slices of tensors that they occupy.
        cost_model: counts what is left with units open, and expects it at open probabilities.
        placements: how gates lie on weights.
        per_example: whether gates are drawn for every example, in training.
        keep_class: whether compaction returns a module of the model's class.
        example_inputs: what one forward takes; compaction compares outputs on them.
    """

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Inputs,
        layout: Layout,
        gate: Gate,
        objective: Objective,
        *,
        per_example: bool,
        graph: GraphModel | None = None,
    ) -> None:
        super().__init__()
        self.keep_class = graph is None
        self.example_inputs = tree_map(lambda x: x.detach() if isinstance(x, Tensor) else x, example_inputs)
        self._layout = layout
        self.unit, self.structure, self.groups = layout.unit.name, layout.structure, layout.groups
        self.placements, self.cost_model, self.per_example = layout.placements, layout.cost, per_example
        budget = objective.budget(layout.cost) if isinstance(objective, Target) else None
        if budget is not None:
            budget.check_reachable()
        if isinstance(gate, Pruner):
            gate.check(budget)
        device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
        self.gates = Gates(gate, layout.units, torch.cat([p.units for p in layout.placements]), device)
        self.objective = objective.to(device)
        self._forward = GatedForward(model, self.gates, layout, per_example)
        self._attachment = Attachment(model, self._forward)
        self._weights = GatedWeights(model, self._forward, self._attachment.detached)
        self._control = GateControl(self._forward, self._weights)
        plain, detached = self.structure.plain, self._attachment.detached
        self._cuttable = cuttable_of(model, self.example_inputs, graph, detached, plain)
        flatten_names(self, "gates")
        self.register_load_state_dict_post_hook(_after_loading)
        self.attach()
        first = gate.first_open(self.groups) if isinstance(gate, Pruner) else None
        if first is not None:
            self._weights.open_only(first)

    # parts

    @property
    def model(self) -> nn.Module:
        """The model given to `sparsify`, gated in place; not a submodule: parameters and state of the two stay apart."""
        return self._attachment.model

    @property
    def logits(self) -> nn.Parameter:
        """All gates of the model, one parameter [units]; negative closes, positive opens."""
        return self.gates.logits

    @property
    def gate(self) -> Gate:
        """The kind of gate."""
        return self.gates.gate

    @property
    def dense_cost(self) -> Cost:
        """`Cost` with every gate open."""
        return self.cost_model.dense

    @property
    def settled(self) -> bool:
        """Whether a `Target` has fixed the gates: training goes on with the deployed mask, for the weights alone."""
        return self.gates.frozen

    # training

    def param_groups(self, lr: float, gate_lr: float | None = None, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer: the model's weights, and the gates with a learning rate of their own and no
        weight decay. Gates that do not learn have no group.

        ``gate_lr`` defaults to r · lr, with r = 100 for `HardConcrete` and 30 for `SoftMask`, since at the weights' own
        rate gates hardly move; and to no less than 0.3 r / steps where a `Target` knows the steps of the run, so that with
        Adam there is time for gates to open and to close."""
        weights = [p for p in self.model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [{"name": "weights", "params": weights, "lr": lr, "weight_decay": weight_decay}]
        if self.gate.learns:
            gate_lr = self._control.learning_rate(self.objective, lr) if gate_lr is None else gate_lr
            groups.append({"name": "gates", "params": [self.logits], "lr": gate_lr, "weight_decay": 0.0})
        return groups

    def loss(self) -> Tensor:
        """The objective's term, a 0-dim tensor to add to the task's loss; 0 for gates that do not learn."""
        return self._control.loss(self.objective)

    def step(self) -> None:
        """Call once after each optimizer step; moves the gate's schedule on, and a target's multiplier."""
        self._control.step(self.objective)

    def project(self) -> int:
        """Call at the end of training with a `Target`; the training command does. Where the deployed network costs more,
        the open gates with the lowest logits are closed until it fits; where it is more than a point of the dense cost
        below, the closed gates with the highest are opened until it is not, or the next would not fit.

        Returns how many gates it changed; 0 without a target, and for gates that do not learn. `report` says how many were
        changed in all, together with those of the step at which the target settled."""
        return self._control.project(self.objective)

    # tickets

    def harden(self, mask: Mask | None = None) -> None:
        """Makes gates hard: they no longer learn, and the weights that closed ones multiply become exactly zero and stay
        so under any optimizer. Make a new optimizer of `param_groups` after it.

        Args:
            mask: the ticket, in which a unit is open if any of its entries is; None for what is open now.

        Raises `ZerogateError` where the mask is of another architecture, or cuts through a channel."""
        is_open = self.is_open() if mask is None else self._weights.units_of(mask)
        self.gates.replace(FixedGate(self.gate.scale))
        self._weights.open_only(is_open)

    def mask(self, all_open: bool = False) -> Mask:
        """The ticket: what the deployed mask lets through now, of every weight with gates; with ``all_open`` the ticket of
        the dense network. A closed channel's entries are those by which its consumers read it."""
        return Mask(self._weights.entries(self.is_open() | all_open))

    # counting

    def open_probability(self) -> Tensor:
        """P(z ≠ 0) of every unit, detached, [units]."""
        return self.gates.open_probability()

    def is_open(self) -> Tensor:
        """Whether the deployed mask lets each unit through, bool [units]."""
        return self.gates.is_open()

    def kept(self) -> Tensor:
        """Units that compaction keeps, bool [units]: open and of use, and at least one of each group."""
        return self._forward.kept()

    def cost(self, hard: bool = True) -> Cost:
        """What is left: deployed (ints, the count of what `compact` returns now) or expected (tensors, differentiable)."""
        if hard:
            return self.cost_model.exact(self.is_open())
        self._control.usage.expected_cost()
        return self.cost_model.expected(self.gate.open_probability(self.logits))

    # deploying

    def compact(self, *, optimizer: torch.optim.Optimizer | None = None, ema: nn.Module | None = None) -> nn.Module:
        """A new plain module without the closed units: no gates, no masks, the same outputs as the gated model in
        evaluation mode. With ``keep_class=False`` a `torch.fx.GraphModule`, which computes these in training mode, too.

        The gated model stays as it is. Training mode is that of the model. Before it is returned, the module is
        compared with the gated one in float64 on the example inputs (in its own precision, to 1e-4, where the model has
        kernels that do not know float64); in training mode, too, if the model does other things there.

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
        deployed, budget = self._deployed(), self._control.budget(self.objective)
        if budget is not None:
            budget.warn_if_exceeded(self.is_open(), stacklevel=2)
        return compact(deployed, optimizer, ema)

    def difference(self, small: nn.Module) -> float:
        """max |gated − small| / max |gated| over all outputs for the example inputs, both in float64 and evaluation mode.

        For a module of lower precision it includes the rounding of weights that were multiplied with gates between 0
        and 1."""
        return difference(self._deployed(), small)

    def _deployed(self) -> Deployed:
        """The gated model with the mask that is deployed now, as compaction takes it.

        Raises `ZerogateError` where the model is not the one that the gates were made for."""
        self._attachment.check_unchanged()
        z = self.gates.mask()
        return Deployed(
            self._cuttable,
            self.example_inputs,
            self.structure,
            self.kept(),
            unit=self._layout.unit,
            gated_names=tuple(self._layout.names),
            mask=lambda weights: self._forward.masked_weights(z, [weight.to(z.device) for weight in weights]),
            in_use=self.cost_model.in_use(self.is_open()),
            gate_parameters=tuple(self.parameters()),
        )

    def report(self) -> Report:
        """Every layer: kept, shrunk or refused, and why."""
        is_open = self.is_open()
        target = target_row(self.objective, is_open, self.cost_model)
        return make_report(GatedNetwork(self.model, self._layout, is_open, self.kept(), self.keep_class, target))

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
        with self._attachment.detached() as model:
            yield model

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("logits", "gate"):  # ``sparse.logits += 1`` assigns, too
            setattr(self.gates, name, value)
        else:
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name in _RENAMED:
            warnings.warn(f"Sparsified.{name} is private now and goes with the next release", DeprecationWarning, 2)
            return _RENAMED[name](self)
        return super().__getattr__(name)


_RENAMED: dict[str, Callable[[Sparsified], object]] = {
    "entries": lambda sparse: sparse._weights.entries,
    "open_only": lambda sparse: lambda units: sparse._weights.open_only(_marked(units, len(sparse.logits))),
    "zero_closed": lambda sparse: sparse._weights.zero_closed,
    "gated_names": lambda sparse: sparse._layout.names,
    "masked_weights": lambda sparse: sparse._forward.masked_weights,
    "graph": lambda sparse: lambda: sparse._cuttable.whole,
    "check_unchanged": lambda sparse: sparse._attachment.check_unchanged,
}
"""Public names of before 0.2, for one release."""


def _after_loading(sparse: Sparsified, incompatible_keys: object) -> None:
    sparse._control.follow(sparse.objective)


def _marked(units: Tensor, number: int) -> Tensor:
    return torch.zeros(number, dtype=torch.bool, device=units.device).index_fill_(0, units, True)
