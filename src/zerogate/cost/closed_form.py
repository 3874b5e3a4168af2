"""Expected cost of channels in few kernels, with its derivative in closed form.

What `ChannelCost` says, as one function of the open probabilities p. With q = 1 − p, c = Π q of a group and M the costs as
a quadratic form in the numbers n of channels kept (n of a last, constant group is 1):

    a state is dead with Π over its edges of  d = a + c − a·c        a: the state that the edge leads to is dead
    a group is heard with s = Π (1 − dead) over its path
    v = Σp + c − f(0),  n = f(0) + s·v,  cost = n·M n

The first round over the states needs no d, since their edges lead to what is heard: it is a product of q as c is.
Products run over lists of entries that lie one after the other; no q is 0 but `LEAST`, so that one can divide by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zerogate.cost.liveness import Listening
from zerogate.modules.internals import foreach_mul, foreach_norm, segment_reduce_backward

LEAST = 1e-30
"""In place of 0: nothing beside 1."""
DIRECT = 200_000
"""Entries of the products over states; where more would be needed, the first round is one like the others."""


Bags = tuple[Tensor, Tensor, Tensor]
"""Sums of values: their places, where each sum begins among these, and what each is multiplied by."""


def _lists(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Entries of all rows, one row after the other; where each row begins, and where the last one ends."""
    ends = torch.tensor([0, *(len(r) for r in rows)]).cumsum(0)
    return torch.tensor([i for r in rows for i in r], dtype=torch.int64), ends


def _bags(owners: Tensor, length: int, places: Tensor | None = None, weights: Tensor | float = 1.0) -> Bags:
    """Sums by owner of the values at these places, default all in turn; owners from ``length`` on have none."""
    order = owners.argsort(stable=True)
    order = order[owners[order] < length]
    counts = torch.bincount(owners[order], minlength=length)
    weights = torch.as_tensor(weights, dtype=torch.float64).expand(len(owners))
    return order if places is None else places[order], counts.cumsum(0) - counts, weights[order]


def _summed(values: Tensor, bags: Bags) -> Tensor:
    places, begin, weights = bags
    return torch.embedding_bag(values.view(-1, 1), places, begin, False, 0, False, weights)[0].view(-1)


def _product(x: Tensor, ends: Tensor) -> Tensor:
    return torch.segment_reduce(x, "prod", offsets=ends, initial=1, unsafe=True)


def _others(grad: Tensor, product: Tensor, x: Tensor, ends: Tensor) -> Tensor:
    """The gradient of products with respect to their entries."""
    found: Tensor = segment_reduce_backward(grad, product, x, "prod", offsets=ends, initial=1)
    return found


@dataclass
class Tables:
    """Index tables of the formulas above, on one device. A slot is a group, or the constant one after them.

    Attributes:
        q: room for q, with two entries more: 1 and `LEAST`.
        totals: from q to Σp − f(0) of each slot.
        unheard: f(0) of each slot.
        first: entries of q in c of each slot, in c of what edges need beside, in the first products of states.
        to_units: from the gradient of those entries and that of v to the units'.
        pairs: for every edge the entries of these products that are a and c, [2, edges].
        to_first: from the gradient of c and a of every edge to that of these products.
        states: for every edge the state it leads to.
        to_states: from edges to the states they lead to.
        edges: where the edges of each state begin.
        rounds: how many follow the first.
        paths: states of each slot's path.
        from_paths: from the gradient of their 1 − dead to that of dead.
        costs: M for "params" and "macs".
    """

    q: Tensor
    totals: Bags
    unheard: Tensor
    first: tuple[Tensor, Tensor]
    to_units: Bags
    pairs: Tensor
    to_first: Bags
    states: Tensor
    to_states: Bags
    edges: Tensor
    rounds: int
    paths: tuple[Tensor, Tensor]
    from_paths: Bags
    costs: dict[str, Tensor]

    def on(self, device: torch.device) -> Tables:
        """These tables on a device."""
        return Tables(**{name: _moved(x, device) for name, x in vars(self).items()})


def _moved(x: Any, device: torch.device) -> Any:
    if isinstance(x, dict):
        return {k: _moved(v, device) for k, v in x.items()}
    if isinstance(x, tuple):
        return tuple(_moved(v, device) for v in x)
    return x.to(device) if isinstance(x, Tensor) else x


def tables(
    members: Sequence[range], widened: Sequence[int], unheard: Tensor, heard: Listening, costs: dict[str, Tensor]
) -> Tables:
    """Tables of these groups.

    Args:
        members: units of each group.
        widened: groups that keep other numbers than max(1, N): of their c nothing is kept, what is comes from elsewhere.
        unheard: f(0) of each slot, float64.
        heard: who listens to whom.
        costs: M of params and macs, float64 [slots, slots].
    """
    groups, units, states = len(members), sum(map(len, members)), len(heard.edges)
    one, least = units, units + 1
    rows: list[Sequence[int]] = [*([least] if g in widened else members[g] for g in range(groups)), []]
    inside: list[Sequence[int]] = [*members, (least,)]  # the last group is always open
    out_of = [[(groups if g < 0 else g, to) for g, to in out] for out in heard.edges]
    edges = [edge for out in out_of for edge in out]
    closed = list(range(groups + 1))  # where edges find c of their group
    direct = sum(len(inside[g]) for g, _ in edges) <= DIRECT
    rounds = heard.rounds - 1 if direct else heard.rounds
    if rounds:
        for g in (*widened, groups):
            closed[g] = len(rows)
            rows.append(inside[g])
    start = len(rows)
    rows += [[i for g, _ in out for i in inside[g]] if direct else [least] for out in out_of]
    first = _lists(rows)
    to = torch.tensor([state for _, state in edges])
    pairs = torch.stack([start + to, torch.tensor([closed[g] for g, _ in edges])])
    group_of_unit = torch.tensor([g for g, m in enumerate(members) for _ in m])
    paths = _lists([*heard.paths, []])
    totals = _lists([*([*m, one] for m in members), [one]])
    amounts = torch.full((len(totals[0]),), -1.0, dtype=torch.float64)
    amounts[totals[1][1:] - 1] = torch.tensor([*map(len, members), 0]) - unheard  # Σp − f(0) = size − f(0) − Σq
    return Tables(
        q=torch.cat([torch.ones(units + 1, dtype=torch.float64), torch.full((1,), LEAST, dtype=torch.float64)]),
        totals=(totals[0], totals[1][:-1], amounts),
        unheard=unheard,
        first=first,
        to_units=_bags(
            torch.cat([first[0], torch.arange(units)]),
            units,
            torch.cat([torch.arange(len(first[0])), len(first[0]) + group_of_unit]),
            torch.cat([torch.full((len(first[0]),), -2.0), torch.full((units,), 2.0)]),  # of n·M n, and of 1 − p
        ),
        pairs=pairs,
        to_first=_bags(pairs.flip(0).flatten(), len(rows)),
        states=to,
        to_states=_bags(to, states),
        edges=torch.tensor([0, *map(len, heard.edges)]).cumsum(0),
        rounds=rounds,
        paths=paths,
        from_paths=_bags(paths[0], states, weights=-1.0),
        costs=costs,
    )


class Priced(torch.autograd.Function):
    """``price`` · expected cost, 0-dim of p's type. ``extra``, float64 [slots] or None: what widened groups add to v;
    ``plain(p)``: the same in differentiable ops, for second derivatives."""

    @staticmethod
    def forward(ctx: Any, t: Tables, over: str, price: float, p: Tensor, extra: Tensor | None, plain: Any) -> Tensor:
        slots = len(t.unheard)
        q = t.q
        torch.sub(q[-2:-1], p, out=q[:-2]).add_(LEAST)
        entries = q.index_select(0, t.first[0])
        first = _product(entries, t.first[1])
        dead = first[-len(t.edges) + 1 :]
        kept: list[Tensor] = []
        for i in range(t.rounds):
            pair = first[t.pairs] if not i else torch.stack([dead.index_select(0, t.states), kept[0][1]])
            factors = torch.lerp(pair[0], q[-2], pair[1])
            dead = _product(factors, t.edges)
            kept += [pair, factors, dead]
        alive = torch.rsub(dead, 1).index_select(0, t.paths[0])
        s = _product(alive, t.paths[1])
        v = _summed(q, t.totals).add_(first[:slots])
        if extra is not None:
            v += extra
        n = torch.addcmul(t.unheard, s, v)
        y = torch.addmv(n, t.costs[over], n, beta=0, alpha=price)
        ctx.tables, ctx.plain = t, plain
        ctx.save_for_backward(p, extra, entries, first, alive, s, v, y, *kept)
        return torch.dot(n, y).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        t: Tables = ctx.tables
        p, extra, entries, first, alive, s, v, y, *kept = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, None, torch.autograd.grad(ctx.plain(p), p, grads[0], create_graph=True)[0], None, None
        g = y * grads[0]  # half the gradient of n
        of_v, of_s = foreach_mul([g, g], [s, v])
        of_dead = _summed(_others(of_s, s, alive, t.paths[1]), t.from_paths)
        both = None  # of c and of a
        for i in reversed(range(t.rounds)):
            pair, factors, dead = kept[3 * i : 3 * i + 3]
            of_factors = _others(of_dead, dead, factors, t.edges)
            later, both = both, torch.addcmul(of_factors, of_factors, pair, value=-1)
            if later is not None:
                both[0].add_(later[0])
            if i:
                of_dead = _summed(both[1], t.to_states)
        if both is None:
            of_first = torch.cat([of_v, of_dead])
        else:
            of_first = _summed(both, t.to_first)
            of_first[: len(of_v)].add_(of_v)
        of_entries = _others(of_first, first, entries, t.first[1])
        of_p = _summed(torch.cat([of_entries, of_v]), t.to_units).to(p.dtype)
        return None, None, None, of_p, None if extra is None else 2 * of_v, None


class Weighed(torch.autograd.Function):
    """fixed + Σ of every part of p, of these lengths, times its weight, float64 [parts]: 0-dim of p's type, for p ≥ 0."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, lengths: Sequence[int], weights: Tensor, fixed: float) -> Tensor:
        ctx.kind, ctx.lengths, ctx.weights = p.dtype, lengths, weights
        sums = foreach_norm(p.split(lengths), 1, dtype=torch.float64)
        return torch.dot(torch.stack(sums), weights).add_(fixed).to(p.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        of_parts = (ctx.weights * grads[0]).to(ctx.kind).unbind()
        of_p = torch.cat([x.expand(n) for x, n in zip(of_parts, ctx.lengths, strict=True)])
        return of_p, None, None, None
