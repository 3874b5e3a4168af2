"""Who still listens: the probability that what a group of channels says reaches the end of the network.

Groups with the same listeners are one node. A node is heard if one of its layers makes an open group of a node that is
heard itself. All ways from a node to the end run through its next *post-dominator* (the concatenation after an Inception
block, the next layer of a chain), so the probability is a product: that the node is heard at its post-dominator, times
that this one is heard. The stretches between are short and worked out all at once, in as many rounds as the longest of
them has layers; the product is one more step, however deep the network is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

END = -1  # of the network: an output, a layer that never loses all its outputs
MOST = 200_000  # entries of the tables; beyond, all stretches run to the end of the network


@dataclass
class Listening:
    """Tables of one recursion: state i is heard unless every (group, state) of ``edges[i]`` is closed or not heard.

    State 0 is always heard; group `groups` of an edge is always open.
    """

    edges: list[list[tuple[int, int]]]
    paths: list[list[int]]  # for every group the states whose product is its probability
    rounds: int


def listening(groups: int, consumers: Sequence[Sequence[int]], made: Sequence[Sequence[int]]) -> Listening:
    """``consumers[g]``: layers that read group g. ``made[l]``: groups that layer l makes; others than these: the end."""
    listeners: dict[tuple[int, ...], int] = {}
    node_of = [listeners.setdefault(tuple(sorted(set(c))), len(listeners)) for c in consumers]
    steps: list[list[tuple[int, int]]] = []
    for layers in listeners:
        out = [(g, node_of[g]) if g < groups else (groups, END) for layer in layers for g in made[layer]]
        ends = [e for e in out if e[1] == END]
        steps.append(ends[:1] or out)  # always heard, whatever else listens
    order = _from_the_end(steps)
    for node in set(range(len(steps))).difference(order):
        steps[node] = [(groups, END)]  # a part that leads nowhere, whose layers hear each other: it stays
        order.append(node)
    next_of = _post_dominators(steps, order)
    found = _states(steps, next_of)
    if found is None:
        next_of = [END] * len(steps)
        found = _states(steps, next_of, shared=True)
        assert found is not None
    edges, first = found
    paths = []
    for node in node_of:
        path = [first[node]]
        while next_of[node] != END:
            node = next_of[node]
            path.append(first[node])
        paths.append(path)
    return Listening(edges, paths, _longest(edges))


def _from_the_end(steps: list[list[tuple[int, int]]]) -> list[int]:
    """Nodes from which there is a way to the end, those closest to it first."""
    preceding: dict[int, list[int]] = {}
    for node, out in enumerate(steps):
        for _, to in out:
            preceding.setdefault(to, []).append(node)
    found, left = dict.fromkeys([END]), [END]
    for node in left:
        new = [before for before in dict.fromkeys(preceding.get(node, ())) if before not in found]
        found |= dict.fromkeys(new)
        left += new
    return left[1:]


def _post_dominators(steps: list[list[tuple[int, int]]], order: list[int]) -> list[int]:
    """The first node, or the end, that all ways from a node to the end run through."""
    n = len(steps)
    succeeding = [{to for _, to in out} for out in steps]
    everything = (1 << (n + 1)) - 1  # bit n: the end
    through = dict.fromkeys(order, everything) | {END: 1 << n}
    changed = True
    while changed:
        changed = False
        for node in order:
            common = everything
            for to in succeeding[node]:
                common &= through[to]
            common |= 1 << node
            changed |= common != through[node]
            through[node] = common
    size = {node: bits.bit_count() for node, bits in through.items()}
    found = [END] * n
    for node in order:
        behind = through[node] & ~(1 << node) & ~(1 << n)
        if behind:
            candidates = [b for b in range(n) if behind >> b & 1]
            found[node] = max(candidates, key=size.__getitem__)
    return found


def _states(
    steps: list[list[tuple[int, int]]], next_of: list[int], shared: bool = False
) -> tuple[list[list[tuple[int, int]]], list[int]] | None:
    """One state for every node of every stretch. A way back to where the stretch begins leads nowhere."""
    edges: list[list[tuple[int, int]]] = [[(-1, 0)]]
    first: list[int] = []
    known: dict[int, int] = {}
    entries = 0
    for start, end in enumerate(next_of):
        if not shared:
            known = {}
        queue = [start]
        if start not in known:
            known[start] = len(edges)
            edges.append([])
        else:
            queue = []
        for node in queue:
            for group, to in steps[node]:
                if to in (end, END):
                    edges[known[node]].append((group, 0))
                    continue
                if to == node or (to == start and not shared):
                    continue
                if to not in known:
                    known[to] = len(edges)
                    edges.append([])
                    queue.append(to)
                edges[known[node]].append((group, known[to]))
            entries += len(steps[node])
            if entries > MOST and not shared:
                return None
        first.append(known[start])
    return edges, first


def _longest(edges: list[list[tuple[int, int]]]) -> int:
    """Rounds after which nothing changes any more: the longest way, on which every cycle counts all its states."""
    number, low, level = [0] * len(edges), [0] * len(edges), [0] * len(edges)
    done = [False] * len(edges)
    stack: list[int] = []
    count = 0
    for root in range(1, len(edges)):  # Tarjan's strongly connected components, which close from the end on
        calls = [(root, 0)] if not number[root] else []
        while calls:
            state, at = calls.pop()
            if not at:
                count += 1
                number[state] = low[state] = count
                stack.append(state)
            else:
                low[state] = min(low[state], low[edges[state][at - 1][1]])
            for place in range(at, len(edges[state])):
                to = edges[state][place][1]
                if to and not number[to]:
                    calls += [(state, place + 1), (to, 0)]
                    break
                if to and not done[to]:
                    low[state] = min(low[state], number[to])
            else:
                if low[state] == number[state]:
                    start = stack.index(state)
                    together = stack[start:]
                    del stack[start:]
                    below = max((level[to] for i in together for _, to in edges[i]), default=0)
                    for i in together:
                        done[i], level[i] = True, below + len(together)
    return max(level)
