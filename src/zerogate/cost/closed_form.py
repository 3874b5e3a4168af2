"""Expected cost of channels in few kernels, with its derivative in closed form.

What `ChannelCost.formula` computes op by op, as one function of the open probabilities p. With q = 1 − p, c = Π q of a
group, f(0) what it keeps if nothing of it is open, and M the costs as a quadratic form in the numbers n of channels kept
(n of a last, constant slot is 1):

    a state of `liveness` is dead with Π over its edges of  d = a + c − a·c      a: the state that the edge leads to is dead
    a group is live with s = Π (1 − dead) over its path
    v = Σp + c − f(0),  n = f(0) + s·v,  cost = n·M n

The first round over the states needs no d, since before it all states are live: it is a product of q as c is.
Products run over lists of entries that stand one after the other; no q is 0 but `TINY`, so that one can divide by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from zerogate.cost.index_tables import Lists, WeightedSums, products, products_backward
from zerogate.cost.limits import MAX_DIRECT_ENTRIES, TINY
from zerogate.cost.liveness import Edge, Liveness
from zerogate.modules.internals import foreach_mul


@dataclass(frozen=True)
class Tables:
    """Index tables of the formulas above, on one device. A slot is a group, or the constant one after them.

    "First products" are the products of entries of q that everything begins with: c of each slot; c of what edges need
    besides; for each state, what its first round comes to.
    """

    q: Tensor
    """Scratch for q [units], with two entries more: 1 and `TINY`."""
    totals: WeightedSums
    """From q to Σp − f(0) of each slot."""
    at_none: Tensor
    """f(0) of each slot."""
    first: Lists
    """Entries of q in each of the first products."""
    to_units: WeightedSums
    """From the gradients of these entries, and after them that of v, to the units' gradient."""
    pairs: Tensor
    """For every edge the first products that are its a and its c, int64 [2, edges]."""
    to_first: WeightedSums
    """From the gradients of c and a of every edge to that of the first products."""
    states: Tensor
    """For every edge the state that it leads to, int64 [edges]."""
    to_states: WeightedSums
    """From edges to the states that they lead to."""
    edges: Tensor
    """Where the edges of each state begin, int64 [states + 1]."""
    rounds: int
    """How many rounds follow the first."""
    paths: Lists
    """States of each slot's path."""
    from_paths: WeightedSums
    """From the gradient of their 1 − dead to that of dead."""
    costs: dict[str, Tensor]
    """M for "params" and "macs", float64 [slots, slots]."""


def make_tables(
    members: Sequence[range], wide: Sequence[int], at_none: Tensor, live: Liveness, costs: dict[str, Tensor]
) -> Tables:
    """Tables for these groups, on the CPU.

    Args:
        members: units of each group.
        wide: groups that keep another number than max(1, N) of N open channels: what is added to their Σp is no c, but
            comes from elsewhere.
        at_none: f(0) of each slot, float64.
        live: whose state depends on whose.
        costs: M of params and macs, symmetric, float64 [slots, slots].
    """
    units, states = sum(map(len, members)), len(live.edges)
    one, tiny = units, units + 1
    first, pairs, rounds = _first_products(members, wide, live, tiny)
    to = torch.tensor([state for out in live.edges for _, state in out])
    group_of_unit = torch.tensor([g for g, m in enumerate(members) for _ in m])
    entries = len(first.entries)
    paths = Lists.of([*live.paths, []])
    return Tables(
        q=torch.cat([torch.ones(units + 1, dtype=torch.float64), torch.full((1,), TINY, dtype=torch.float64)]),
        totals=_totals(members, at_none, one),
        at_none=at_none,
        first=first,
        to_units=WeightedSums.by_owner(
            torch.cat([first.entries, torch.arange(units)]),
            units,
            torch.cat([torch.arange(entries), entries + group_of_unit]),
            torch.cat(
                [torch.full((entries,), -2.0), torch.full((units,), 2.0)]
            ),  # the 2 of n·M n, the sign of q = 1 − p
        ),
        pairs=pairs,
        to_first=WeightedSums.by_owner(pairs.flip(0).flatten(), len(first.bounds) - 1),
        states=to,
        to_states=WeightedSums.by_owner(to, states),
        edges=torch.tensor([0, *map(len, live.edges)]).cumsum(0),
        rounds=rounds,
        paths=paths,
        from_paths=WeightedSums.by_owner(paths.entries, states, weights=-1.0),
        costs=costs,
    )


def _first_products(
    members: Sequence[range], wide: Sequence[int], live: Liveness, tiny: int
) -> tuple[Lists, Tensor, int]:
    """`Tables.first`, `Tables.pairs` and `Tables.rounds`. The first products hold the first round, unless it has more than
    `MAX_DIRECT_ENTRIES` entries: then they hold 0 in its place, for every state is live before it."""
    groups = len(members)
    entries: list[Sequence[int]] = [*members, (tiny,)]  # the last group is always open
    rows: list[Sequence[int]] = [
        *([tiny] if g in wide else members[g] for g in range(groups)),
        [],
    ]  # c of wide groups: 0
    edges: list[Edge] = [edge for out in live.edges for edge in out]
    direct = sum(len(entries[g]) for g, _ in edges) <= MAX_DIRECT_ENTRIES
    rounds = live.rounds - 1 if direct else live.rounds
    closed = list(range(groups + 1))  # where edges find c of their group
    if rounds:
        for g in (*wide, groups):
            closed[g] = len(rows)
            rows.append(entries[g])
    start = len(rows)
    rows += [[i for g, _ in out for i in entries[g]] if direct else [tiny] for out in live.edges]
    pairs = [[start + state for _, state in edges], [closed[g] for g, _ in edges]]
    return Lists.of(rows), torch.tensor(pairs), rounds


def _totals(members: Sequence[range], at_none: Tensor, one: int) -> WeightedSums:
    """From q to Σp − f(0) = size − f(0) − Σq of each slot; entry ``one`` of q is 1."""
    lists = Lists.of([*([*units, one] for units in members), [one]])
    weights = torch.full((len(lists.entries),), -1.0, dtype=torch.float64)
    weights[lists.bounds[1:] - 1] = torch.tensor([*map(len, members), 0]) - at_none
    return WeightedSums(lists.entries, lists.bounds[:-1], weights)


class _Context(FunctionCtx):
    tables: Tables
    plain: Callable[[Tensor], Tensor]
    has_extra: bool
    saved_tensors: tuple[Tensor, ...]


class WeightedCost(torch.autograd.Function):
    """weight · expected cost, a 0-dim tensor of p's type.

    Args of ``apply``:
        tables, over, weight: ``over`` is "params" or "macs".
        p: open probabilities [units].
        extra: what wide groups add to v, float64 [slots], or None where there are none.
        plain: the same function of p in differentiable ops, for second derivatives.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        tables: Tables,
        over: str,
        weight: float,
        p: Tensor,
        extra: Tensor | None,
        plain: Callable[[Tensor], Tensor],
    ) -> Tensor:
        t, slots = tables, len(tables.at_none)
        q = t.q
        torch.sub(q[-2:-1], p, out=q[:-2]).add_(TINY)
        entries = q.index_select(0, t.first.entries)
        first = products(entries, t.first.bounds)
        dead = first[-len(t.edges) + 1 :]
        rounds: list[Tensor] = []  # (a, c), d and dead of each
        for i in range(t.rounds):
            pair = first[t.pairs] if not i else torch.stack([dead.index_select(0, t.states), rounds[0][1]])
            factors = torch.lerp(pair[0], q[-2], pair[1])
            dead = products(factors, t.edges)
            rounds += [pair, factors, dead]
        alive = torch.rsub(dead, 1).index_select(0, t.paths.entries)
        s = products(alive, t.paths.bounds)
        v = t.totals(q).add_(first[:slots])
        if extra is not None:
            v += extra
        n = torch.addcmul(t.at_none, s, v)
        y = torch.addmv(n, t.costs[over], n, beta=0, alpha=weight)
        ctx.tables, ctx.plain, ctx.has_extra = t, plain, extra is not None
        ctx.save_for_backward(p, entries, first, alive, s, v, y, *rounds)
        return torch.dot(n, y).to(p.dtype)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        t = ctx.tables
        p, entries, first, alive, s, v, y, *rounds = ctx.saved_tensors
        if torch.is_grad_enabled():
            return None, None, None, torch.autograd.grad(ctx.plain(p), p, grads[0], create_graph=True)[0], None, None
        of_n = y * grads[0]  # half of it: the weights of `Tables.to_units` have the 2
        of_v, of_s = foreach_mul([of_n, of_n], [s, v])
        of_dead = t.from_paths(products_backward(of_s, s, alive, t.paths.bounds))
        of_pair = None  # of c and of a of every edge
        for i in reversed(range(t.rounds)):
            pair, factors, dead = rounds[3 * i : 3 * i + 3]
            of_factors = products_backward(of_dead, dead, factors, t.edges)
            later, of_pair = of_pair, torch.addcmul(of_factors, of_factors, pair, value=-1)
            if later is not None:
                of_pair[0].add_(later[0])
            if i:
                of_dead = t.to_states(of_pair[1])
        if of_pair is None:
            of_first = torch.cat([of_v, of_dead])
        else:
            of_first = t.to_first(of_pair)
            of_first[: len(of_v)].add_(of_v)
        of_entries = products_backward(of_first, first, entries, t.first.bounds)
        of_p = t.to_units(torch.cat([of_entries, of_v])).to(p.dtype)
        return None, None, None, of_p, 2 * of_v if ctx.has_extra else None, None
