"""What gates do in a forward.

All are drawn at once when the root's forward begins, and spread over what uses them: every gated weight is multiplied by
its gates, or per example every activation that such a weight reads; norms over gated channels get their statistics'
weights. Layers then ask for what was drawn, those that gradient checkpointing runs again for what was drawn back then.

What this design gives:
* a channel's gate has one value in all layers that read it, because there is one draw for a forward;
* a step costs a few kernels more than a dense one, however deep the network: all weights are multiplied at once;
* recomputation, parts of a model called by themselves, and models that call themselves see the draw that they belong to;
* under torch.compile, torch.func and forward-mode differentiation plain ops run, which these can follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError, no_weights
from zerogate.gates import fused
from zerogate.gates.fused import Recompute
from zerogate.masking.activations import ScaleChannels, Spread
from zerogate.masking.fused_weights import MaskWeights, weight_batches
from zerogate.masking.placement import gated_products
from zerogate.masking.recomputation import Draw, DrawHistory
from zerogate.masking.state import Gates
from zerogate.masking.unit import Layout
from zerogate.modules.internals import must_stay_traceable, parameters_of, saves_tensors_itself, version_of


class DrawnTensors(NamedTuple):
    """One draw as layers and norms use it.

    Attributes:
        masked: every gated weight times its gates; of a weight that its layer computes, its gates alone, in the shape in
            which they broadcast over it. Or per example the gates of every placement, [examples, channels].
        statistics: how much each channel counts in the statistics of each norm, [channels] or [examples, channels].
    """

    masked: list[Tensor]
    statistics: list[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        return [*self.masked, *self.statistics]


class KnownProbability(NamedTuple):
    """Open probabilities that came with a draw, [units], how to compute them again, and the state they belong to."""

    value: Tensor
    recompute: Recompute | None
    versions: list[int]


class GatedForward:
    """Draws the gates of a model, and knows what was drawn for the forward that runs.

    Attributes:
        gates: whose logits and kind are read anew at every draw.
        layout: where they lie.
        per_example: whether activations are multiplied in training, with gates of their own for every example.
        names: of the weights that gates lie on.
        times: multiplies activations by gates, [examples, channels].
        places: weight → module and attribute that hold it; known once the gates are attached. Weights that layers compute
            are held nowhere.
        depth: forwards of the root that are under way, one within the other.
    """

    def __init__(self, model: nn.Module, gates: Gates, layout: Layout, per_example: bool) -> None:
        self.gates, self.layout, self.per_example, self.depth = gates, layout, per_example, 0
        self.names = layout.names
        self.places: dict[str, tuple[nn.Module, str]] = {}
        self._computed = layout.computed
        self._model, self._norms, self._placements = model, layout.structure.norms, layout.placements
        self._lengths = [len(p.units) for p in self._placements]
        self._batches = weight_batches(self._placements, self.names, layout.units)
        self._first_alike = _first_of_the_same_units(layout) if per_example else []
        self.times = ScaleChannels()
        self._probability: KnownProbability | None = None
        self._drawn: DrawnTensors | None = None
        self._products: dict[tuple[int, int, int], tuple[Tensor, int, Tensor]] = {}
        self._draws = DrawHistory()

    @property
    def economical(self) -> bool:
        """Whether gates are as many as weights, so that it matters what is kept of them for the backward pass."""
        return not self.layout.unit.changes_shapes

    @property
    def multiplies_activations(self) -> bool:
        """Whether the forward that runs draws gates for every example."""
        return self.per_example and self._model.training

    # drawing

    def draw(self, examples: int | None, whole: bool = True) -> DrawnTensors:
        """Draws all gates: [units], multiplied into the weights, or [examples, units], to be multiplied into activations.

        Args:
            whole: whether it is for a forward of the whole model.

        Raises `ZerogateError` where the model has no values, or is on another device than its gates."""
        self._check_device()
        gate, logits = self.gates.gate, self.gates.logits
        random, recompute = self._model.training and not self.gates.frozen, None
        if random:
            z, p, recompute = fused.draw(gate, logits, economical=self.economical, examples=examples)
            self._probability = None if p is None else KnownProbability(p, recompute, self._versions())
        else:
            z = gate.mask(logits)
            z = z if examples is None else z.expand(examples, -1)
        self._drawn = self._spread(z, random, recompute)
        again = None if recompute is None else recompute.z
        self._draws.add(z, self._drawn.tensors, whole=whole, random=random, again=again)
        return self._drawn

    def _check_device(self) -> None:
        first, device = next(self._model.parameters()), self.gates.logits.device
        if first.is_meta:
            raise ZerogateError(no_weights(self._model, first.device))
        if first.device != device:
            raise ZerogateError(
                f"the model is on {first.device} and its gates on {device}; move the handle too: "
                f"sparse.to({str(first.device)!r})"
            )

    def open_probability(self, movable: bool) -> Tensor:
        """Open probabilities [units], with a gradient: those that came with the last draw, if gates are still the same.

        Args:
            movable: whether the gradient is to move every gate, also those that are all but decided.
        """
        known, self._probability = self._probability, None
        gate, logits = self.gates.gate, self.gates.logits
        current = known is not None and known.versions == self._versions()
        p, recompute = (known.value, known.recompute) if known is not None and current else (None, None)
        if movable:
            return fused.movable_probability(gate, logits, p)
        return fused.open_probability(gate, logits, p, recompute, economical=self.economical)

    def _versions(self) -> list[int]:
        logits = self.gates.logits
        return [id(logits), *(version_of(x) for x in (logits, *self.gates.gate.buffers()))]

    # spreading

    def _spread(self, z: Tensor, random: bool, recompute: Recompute | None = None) -> DrawnTensors:
        """What layers and norms use of gates z, [units] or [examples, units]."""
        masked = self._by_example(z) if z.ndim > 1 else self.masked_weights(z, self.multiplied(z), recompute)
        return DrawnTensors(masked, self._norm_weights(z, random) if self._norms else [])

    def multiplied(self, z: Tensor) -> list[Tensor]:
        """What gates z multiply in a forward, in the order of ``names``: weights, and ones in the place of those that layers
        compute.

        Raises `ZerogateError` where the model no longer holds a weight."""
        return [self._multiplied(name, z) for name in self.names]

    def _multiplied(self, name: str, z: Tensor) -> Tensor:
        if name in self._computed:
            return z.new_ones(self._computed[name].factor)
        owner, attribute = self.places[name]
        weight = parameters_of(owner).get(attribute)  # not getattr: that may find what shadows the weight
        if weight is None:
            raise ZerogateError(
                f"{name} is gone from this {type(self._model).__name__}, on which gates lie: something was put in its place "
                "(such as torch.nn.utils.prune, or a parametrisation); call detach() on the handle that sparsify returned, "
                "and sparsify the model as it is now"
            )
        return weight

    def masked_weights(self, z: Tensor, weights: Sequence[Tensor], recompute: Recompute | None = None) -> list[Tensor]:
        """The gated weights, given in the order of ``names``, times their gates.

        Args:
            z: gates, [units].
            recompute: computes z once more for the backward pass, which then does not keep it.
        """
        if not must_stay_traceable():
            masked, again = list(weights), None if recompute is None else recompute.z
            for batch in self._batches:
                numbers = [slot.weight for slot in batch.slots]
                products = MaskWeights.apply(batch, again, z, *(masked[i] for i in numbers))
                for number, product in zip(numbers, products, strict=True):
                    masked[number] = product
            return masked
        spread = torch.cat([z, z.new_ones(1)])[self.gates.index].split(self._lengths)
        return gated_products(self._placements, self.names, weights, spread)

    def _by_example(self, z: Tensor) -> list[Tensor]:
        """Gates of every placement, [examples, channels], of gates z, [examples, units]."""
        ungated = any(batch.ungated for batch in self._batches)
        if must_stay_traceable():
            z = torch.cat([z, z.new_ones(len(z), 1)], 1) if ungated else z
            return list(z.index_select(1, self.gates.index).split(self._lengths, 1))
        return list(Spread.apply(z, self.gates.index, self._lengths, ungated))

    def _norm_weights(self, z: Tensor, random: bool) -> list[Tensor]:
        """How much each channel counts in the statistics of each norm: as far as it is open while gates are random, wholly
        if it is kept under the deployed mask."""
        w = z.clamp(max=1) if random else self.kept().to(z).expand_as(z)
        w = torch.cat([w, w.new_ones(*w.shape[:-1], 1)], -1)
        return [w[..., n.labels.to(w.device)] for n in self._norms]  # −1 is the last: always there

    def kept(self) -> Tensor:
        """Units that compaction keeps, bool [units]: open and of use, and at least one of each group."""
        return self.layout.cost.kept(self.gates.is_open(), self.gates.logits.detach())

    # what layers ask for

    def current(self, number: int) -> Tensor:
        """The drawn tensor of a weight, or per example of a placement: of the root's forward that runs, or that is run
        again for its gradient."""
        return self._now().masked[number]

    def statistics(self, number: int) -> Tensor:
        """Weights of a norm's channels, as drawn with the gates."""
        return self._now().statistics[number]

    def _now(self) -> DrawnTensors:
        if self.depth and self._drawn is not None:
            return self._drawn
        recomputed = self._draws.recomputed()
        if recomputed is not None:
            return self._of_earlier(recomputed)
        if self.multiplies_activations:
            raise ZerogateError("per-example gates are drawn by the root's forward; call the model, not a part of it")
        return self.draw(None, whole=False)  # a part of the model called by itself

    def _of_earlier(self, draw: Draw) -> DrawnTensors:
        """The tensors of an earlier draw of the whole model. They are no part of its graph: what is run again only gives
        this graph the values that it has not kept."""
        if not draw.tensors and draw.z is not None:
            with torch.no_grad():
                tensors = self._spread(draw.z(), draw.random).tensors
            draw.tensors = [x.detach().requires_grad_(grad) for x, grad in zip(tensors, draw.learns, strict=True)]
        n = len(draw.tensors) - len(self._norms)
        return DrawnTensors(draw.tensors[:n], draw.tensors[n:])

    def forget(self) -> None:
        """Drops what was drawn, and the graph that holds it."""
        self._drawn = None
        self._products.clear()

    # products of activations and gates

    def known_product(self, x: Tensor, number: int, channel_dim: int) -> Tensor | None:
        """An activation times the gates of a placement, where another layer with the same gates has read it in this
        forward."""
        key = id(x), self._first_alike[number], channel_dim
        known = None if must_stay_traceable() else self._products.get(key)
        return None if known is None or known[1] != version_of(x) else known[2]

    def note_product(self, x: Tensor, number: int, channel_dim: int, product: Tensor) -> None:
        """Notes what was multiplied, if autograd keeps it in any case; checkpoints and their like keep it elsewhere."""
        kept = torch.is_grad_enabled() and saves_tensors_itself()
        if kept and self.depth and not must_stay_traceable():
            self._products[id(x), self._first_alike[number], channel_dim] = x, version_of(x), product

    def __getstate__(self) -> dict[str, Any]:
        # a draw belongs to a graph of autograd, which cannot be copied
        return self.__dict__ | {"_drawn": None, "depth": 0, "_probability": None, "_products": {}}


def _first_of_the_same_units(layout: Layout) -> list[int]:
    """For every placement, the first one that has gates of the same units."""
    first: dict[tuple[int, ...], int] = {}
    return [first.setdefault(tuple(p.units.tolist()), i) for i, p in enumerate(layout.placements)]
