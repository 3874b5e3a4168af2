"""Which groups of channels are live: whether what a group computes can still reach the end of the network.

The words are those of compilers. A layer that reads a group is one of its readers; a group is live if one of its readers
produces an open group that is live itself, or an output. Groups with the same readers are one node of a graph. All paths
from a node to the end run through its next *post-dominator* (the concatenation after an Inception block, the next layer of a
chain), so the probability that a group is live is a product: that it is live as far as its post-dominator, times that this
one is live. The stretches between are short and computed all at once, in as many rounds as the longest of them has layers;
the product is one more step, however deep the network is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from zerogate.cost.limits import MAX_TABLE_ENTRIES

Edge = tuple[int, int]
"""A group, and the node or state that it leads to."""
Edges = list[list[Edge]]
"""The edges of every node or state."""

END = -1
"""In place of a node: the end of the network, an output or a layer that never loses all its outputs."""


@dataclass(frozen=True)
class Liveness:
    """Tables of one recursion: a state is live unless, on each of its edges, the group is closed or the state not live.

    State 0 is always live, and so is the edge of a group after the last one, which stands for what is always open.
    """

    edges: Edges
    """The (group, state) edges of every state."""
    paths: list[list[int]]
    """For every group the states that are all live where it is; the product of their probabilities is its own."""
    rounds: int
    """How often all states must be computed from the ones before, until nothing changes."""


def liveness(groups: int, readers: Sequence[Sequence[int]], produced: Sequence[Sequence[int]]) -> Liveness:
    """Tables of who is live.

    Args:
        groups: how many there are.
        readers: for every group the layers that read it.
        produced: for every layer the groups that it produces; a number from ``groups`` on stands for an output, or for
            channels that always stay.
    """
    nodes: dict[tuple[int, ...], int] = {}  # by their readers
    node_of = [nodes.setdefault(tuple(sorted(set(layers))), len(nodes)) for layers in readers]
    graph = _graph(groups, list(nodes), node_of, produced)
    order = _towards_the_start(graph)
    for node in set(range(len(graph))).difference(order):
        graph[node] = [(groups, END)]  # a part that leads nowhere, whose layers read each other: it stays
        order.append(node)
    next_of = _post_dominators(graph, order)
    states = _states_of_stretches(groups, graph, next_of)
    if states is None:
        next_of = [END] * len(graph)
        states = _states_to_the_end(groups, graph)
    edges, first = states
    paths = []
    for node in node_of:
        path = [first[node]]
        while next_of[node] != END:
            node = next_of[node]
            path.append(first[node])
        paths.append(path)
    return Liveness(edges, paths, _rounds(edges))


def _graph(
    groups: int, readers: Sequence[Sequence[int]], node_of: Sequence[int], produced: Sequence[Sequence[int]]
) -> Edges:
    """The edges of every node, given by its readers: (a group that they produce, the node of this group)."""
    graph: Edges = []
    for layers in readers:
        edges = [(g, node_of[g]) if g < groups else (groups, END) for layer in layers for g in produced[layer]]
        ends = [edge for edge in edges if edge[1] == END]
        graph.append(ends[:1] or edges)  # always live, whatever else is
    return graph


def _towards_the_start(graph: Edges) -> list[int]:
    """Nodes from which a path leads to the end, those closest to it first."""
    before: dict[int, list[int]] = {}
    for node, edges in enumerate(graph):
        for _, to in edges:
            before.setdefault(to, []).append(node)
    reached, queue = dict.fromkeys([END]), [END]
    for node in queue:
        new = [previous for previous in dict.fromkeys(before.get(node, ())) if previous not in reached]
        reached |= dict.fromkeys(new)
        queue += new
    return queue[1:]


def _post_dominators(graph: Edges, order: list[int]) -> list[int]:
    """The first node, or the end, that all paths from a node to the end run through: a fixed point over bit sets."""
    n = len(graph)
    following = [{to for _, to in edges} for edges in graph]
    everything = (1 << (n + 1)) - 1  # bit n: the end
    dominators = dict.fromkeys(order, everything) | {END: 1 << n}
    changed = True
    while changed:
        changed = False
        for node in order:
            common = everything
            for to in following[node]:
                common &= dominators[to]
            common |= 1 << node
            changed |= common != dominators[node]
            dominators[node] = common
    count = {node: bits.bit_count() for node, bits in dominators.items()}
    next_of = [END] * n
    for node in order:
        later = dominators[node] & ~(1 << node) & ~(1 << n)
        if later:
            next_of[node] = max((b for b in range(n) if later >> b & 1), key=count.__getitem__)
    return next_of


def _states_of_stretches(groups: int, graph: Edges, next_of: list[int]) -> tuple[Edges, list[int]] | None:
    """States of the stretches from every node to its post-dominator, and the first state of each; None where their edges
    are more than `MAX_TABLE_ENTRIES`. An edge back to where a stretch begins leads nowhere."""
    states: Edges = [[(groups, 0)]]
    first = []
    entries = 0
    for start, end in enumerate(next_of):
        first.append(len(states))
        entries += _add_states(states, {}, graph, start, end, back=start)
        if entries > MAX_TABLE_ENTRIES:
            return None
    return states, first


def _states_to_the_end(groups: int, graph: Edges) -> tuple[Edges, list[int]]:
    """One state for every node, from which all paths run to the end of the network; and the state of each."""
    states: Edges = [[(groups, 0)]]
    state_of: dict[int, int] = {}
    for start in range(len(graph)):
        if start not in state_of:
            _add_states(states, state_of, graph, start, END)
    return states, [state_of[node] for node in range(len(graph))]


def _add_states(
    states: Edges, state_of: dict[int, int], graph: Edges, start: int, end: int, back: int | None = None
) -> int:
    """Adds a state for every node on a path from ``start`` to ``end`` that has none in ``state_of`` yet, and enters it
    there. Edges to ``back`` are left out. Returns how many edges the graph has at these nodes."""
    state_of[start] = len(states)
    states.append([])
    queue = [start]
    for node in queue:
        edges = states[state_of[node]]
        for group, to in graph[node]:
            if to in (end, END):
                edges.append((group, 0))
                continue
            if to in (node, back):
                continue
            if to not in state_of:
                state_of[to] = len(states)
                states.append([])
                queue.append(to)
            edges.append((group, state_of[to]))
    return sum(len(graph[node]) for node in queue)


def _rounds(edges: Edges) -> int:
    """Rounds after which nothing changes any more: the longest path, on which a cycle counts with all its states.

    Tarjan's strongly connected components, which close from the end on; ``level`` is the longest path behind a state."""
    number, low, level = [0] * len(edges), [0] * len(edges), [0] * len(edges)
    closed = [False] * len(edges)
    stack: list[int] = []
    count = 0
    for root in range(1, len(edges)):
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
                if to and not closed[to]:
                    low[state] = min(low[state], number[to])
            else:
                if low[state] == number[state]:
                    start = stack.index(state)
                    component = stack[start:]
                    del stack[start:]
                    behind = max((level[to] for i in component for _, to in edges[i]), default=0)
                    for i in component:
                        closed[i], level[i] = True, behind + len(component)
    return max(level)
