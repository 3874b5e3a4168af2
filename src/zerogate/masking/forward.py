"""What gates do in a forward.

All are drawn at once when the root's forward begins, and spread over what uses them: every gated weight is multiplied by
its gates, or per example every activation that such a weight reads; norms over gated channels get their statistics'
weights. Layers then ask for what was drawn, those that gradient checkpointing runs again for what was drawn back then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zerogate.errors import ZerogateError, no_weights
from zerogate.gates import fused
from zerogate.gates.fused import Recompute
from zerogate.masking.activations import ScaleChannels, Spread
from zerogate.masking.fused_weights import MaskWeights, weight_batches
from zerogate.masking.placement import Placement
from zerogate.masking.recomputation import Draw, DrawHistory
from zerogate.modules.internals import must_stay_traceable, parameters_of, saves_tensors_itself, version_of

if TYPE_CHECKING:
    from zerogate.sparsified import Sparsified


class GatedForward:
    """Draws the gates of a handle, and knows what was drawn for the forward that runs.

    Attributes:
        sparse: the handle, whose logits and gate are read anew at every draw.
        per_example: whether activations are multiplied in training, with gates of their own for every example.
        names: of the weights that gates lie on.
        times: multiplies activations by gates, [examples, channels].
        places: module and attribute that hold each of them; known once the gates are attached.
        depth: forwards of the root that are under way, one within the other.
    """

    def __init__(
        self, sparse: Sparsified, placements: Sequence[Placement], shapes: dict[str, torch.Size], per_example: bool
    ) -> None:
        self.sparse, self.per_example, self.depth = sparse, per_example, 0
        self.names = list(dict.fromkeys(p.weight for p in placements))
        self.places: list[tuple[nn.Module, str]] = []
        self._model, self._norms, self._placements = sparse.model, sparse.structure.norms, placements
        self._lengths = [len(p.units) for p in placements]
        self._batches = weight_batches(placements, self.names, shapes, len(sparse.logits))
        alike: dict[tuple[int, ...], int] = {}  # the first placement of the same units
        self._alike = [
            alike.setdefault(tuple(p.units.tolist()), i) for i, p in enumerate(placements if per_example else ())
        ]
        self.times = ScaleChannels()  # of activations and gates
        # open probabilities of the last draw, how to have them again, and of which state they are
        self._open: tuple[Tensor, Recompute | None, list[int]] | None = None
        # every weight times its gates; or per example, the gates of every placement
        self._drawn: list[Tensor] | None = None
        self._statistics: list[Tensor] = []
        self._products: dict[tuple[int, int, int], tuple[Tensor, int, Tensor]] = {}
        self._draws = DrawHistory()

    @property
    def sparing(self) -> bool:
        """Whether gates are as many as weights, so that it matters what is kept of them for the backward pass."""
        return self.sparse.unit == "weight"

    @property
    def multiplies_activations(self) -> bool:
        """Whether the forward that runs draws gates for every example."""
        return self.per_example and self._model.training

    def draw(self, examples: int | None, whole: bool = True) -> None:
        """Draws all gates; [units] into the weights, or [examples, units] to be multiplied into activations.

        ``whole``: for a forward of the whole model."""
        gate, logits = self.sparse.gate, self.sparse.logits
        first = next(self._model.parameters())
        if first.is_meta:
            raise ZerogateError(no_weights(self._model, first.device))
        if first.device != logits.device:
            raise ZerogateError(
                f"the model is on {first.device} and its gates on {logits.device}; move the handle too: "
                f"sparse.to({str(first.device)!r})"
            )
        random, again = self._model.training and not self.sparse.settled, None
        if random:
            z, p, again = fused.draw(gate, logits, economical=self.sparing, examples=examples)
            self._open = None if p is None else (p, again, self._versions())
        else:
            z = gate.mask(logits)
            z = z if examples is None else z.expand(examples, -1)
        self._drawn, self._statistics = self._spread(z, random, again)
        tensors, z_again = [*self._drawn, *self._statistics], None if again is None else again.z
        self._draws.add(z, tensors, whole=whole, random=random, again=z_again)

    def likely(self, movable: bool) -> Tensor:
        """Open probabilities [units], with a gradient: those that came with the last draw, if gates are still the same.
        ``movable``: with a gradient that moves every gate."""
        known, self._open = self._open, None
        gate, logits = self.sparse.gate, self.sparse.logits
        p, again = known[:2] if known is not None and known[2] == self._versions() else (None, None)
        if movable:
            return fused.movable_probability(gate, logits, p)
        return fused.open_probability(gate, logits, p, again, economical=self.sparing)

    def _versions(self) -> list[int]:
        logits = self.sparse.logits
        return [id(logits), *(version_of(x) for x in (logits, *self.sparse.gate.buffers()))]

    def _spread(self, z: Tensor, random: bool, again: Recompute | None = None) -> tuple[list[Tensor], list[Tensor]]:
        """What layers and norms use of gates z, [units] or [examples, units]."""
        if z.ndim == 1:
            # not getattr: that may find a shadow
            weights: list[Any] = [parameters_of(owner)[name] for owner, name in self.places]
            drawn = self.masked_weights(z, weights, again)
        else:
            drawn = self._by_example(z)
        return drawn, self._norm_weights(z, random) if self._norms else []

    def masked_weights(self, z: Tensor, weights: Sequence[Tensor], again: Recompute | None = None) -> list[Tensor]:
        """The gated weights, given in the order of ``names``, times their gates, for z [units]; ``again`` computes z
        once more for the backward pass, which then does not keep it."""
        if not must_stay_traceable():
            found, z_again = list(weights), None if again is None else again.z
            for batch in self._batches:
                numbers = [x.weight for x in batch.slots]
                masked = MaskWeights.apply(batch, z_again, z, *(found[i] for i in numbers))
                for number, w in zip(numbers, masked, strict=True):
                    found[number] = w
            return found
        spread = torch.cat([z, z.new_ones(1)])[self.sparse.index].split(self._lengths)
        by_name = dict(zip(self.names, weights, strict=True))
        for p, part in zip(self._placements, spread, strict=True):
            w = by_name[p.weight]
            by_name[p.weight] = w * part.view(p.view).to(w.dtype)
        return [*by_name.values()]

    def _by_example(self, z: Tensor) -> list[Tensor]:
        """Gates of every placement, [examples, channels], of gates z, [examples, units]."""
        ungated = any(batch.ungated for batch in self._batches)
        if must_stay_traceable():
            z = torch.cat([z, z.new_ones(len(z), 1)], 1) if ungated else z
            return list(z.index_select(1, self.sparse.index).split(self._lengths, 1))
        return list(Spread.apply(z, self.sparse.index, self._lengths, ungated))

    def _norm_weights(self, z: Tensor, random: bool) -> list[Tensor]:
        """How much each channel counts in the statistics of each norm: as far as it is open while gates are random, wholly
        if it is kept under the deployed mask."""
        w = z.clamp(max=1) if random else self.sparse.kept().to(z).expand_as(z)
        w = torch.cat([w, w.new_ones(*w.shape[:-1], 1)], -1)
        return [w[..., n.labels.to(w.device)] for n in self._norms]  # −1 is the last: always there

    def current(self, number: int) -> Tensor:
        """The drawn tensor of a weight, or per example of a placement: of the root's forward that runs, or that is run
        again for its gradient."""
        return self._now()[0][number]

    def statistics(self, number: int) -> Tensor:
        """Weights of a norm's channels, as drawn with the gates."""
        return self._now()[1][number]

    def _now(self) -> tuple[list[Tensor], list[Tensor]]:
        if not self.depth or self._drawn is None:
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
                drawn, statistics = self._spread(draw.z(), draw.random)
            tensors = [*drawn, *statistics]
            draw.tensors = [x.detach().requires_grad_(grad) for x, grad in zip(tensors, draw.learns, strict=True)]
        n = len(draw.tensors) - len(self._norms)
        return draw.tensors[:n], draw.tensors[n:]

    def forget(self) -> None:
        """Drops what was drawn, and the graph that holds it."""
        self._drawn, self._statistics = None, []
        self._products.clear()

    def known_product(self, x: Tensor, number: int, channel_dim: int) -> Tensor | None:
        """An activation times the gates of a placement, where another layer with the same gates has read it in this
        forward."""
        found = None if must_stay_traceable() else self._products.get((id(x), self._alike[number], channel_dim))
        return None if found is None or found[1] != version_of(x) else found[2]

    def note_product(self, x: Tensor, number: int, channel_dim: int, product: Tensor) -> None:
        """Notes what was multiplied, if autograd keeps it in any case; checkpoints and their like keep it elsewhere."""
        kept = torch.is_grad_enabled() and saves_tensors_itself()
        if kept and self.depth and not must_stay_traceable():
            self._products[id(x), self._alike[number], channel_dim] = x, version_of(x), product

    def __getstate__(self) -> dict[str, Any]:
        # a draw belongs to a graph of autograd, which cannot be copied
        return self.__dict__ | {"_drawn": None, "_statistics": [], "depth": 0, "_open": None, "_products": {}}
