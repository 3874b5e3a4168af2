"""How many channels a group keeps of those that are open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zerogate.checks import is_whole
from zerogate.cost.index_tables import padded
from zerogate.cost.poisson_binomial import count_distribution
from zerogate.structure import Group


@dataclass(frozen=True)
class Widths:
    """f(N) = min(size, ⌈max(N, m)/r⌉·r): how many channels stay of a group with N open ones.

    A group is *wide* if that is another number than max(1, N) for some N. Only the mean of a wide group needs the
    distribution of N.
    """

    size: Tensor
    """Channels of each group, float64 [groups]."""
    least: Tensor
    """m of each group: how many it keeps at least."""
    multiple: Tensor
    """r of each group: what the number that it keeps is a multiple of."""
    at_none: Tensor
    """f(0) of each group, float64 [groups]."""
    wide: tuple[int, ...]
    """The wide groups."""
    index: Tensor
    """The wide groups as a tensor, int64 [wide]."""
    members: Tensor
    """Units of each wide group, int64 [wide, largest]; small ones are filled up with a unit after the last one."""
    added: Tensor
    """f(N) − N of each wide group for N = 0 …, float64 [wide, largest + 1]; beyond its size 0."""

    @staticmethod
    def of(groups: Sequence[Group], min_channels: int, round_to: int) -> Widths:
        """The widths of these groups; ``min_channels`` and ``round_to`` are for channels, and heads keep at least one."""
        size = torch.tensor([g.units for g in groups], dtype=torch.float64)
        least = torch.tensor([max(g.least, min_channels if g.kind == "channel" else 1) for g in groups]).double()
        multiple = torch.tensor([round_to if g.kind == "channel" else 1 for g in groups]).double()
        n = torch.arange(max((g.units for g in groups), default=0) + 1, dtype=torch.float64)[:, None]
        added = torch.where(n <= size, _width(n, size, least, multiple) - n, 0.0)  # [n, groups]
        index = (added != (n == 0)).any(0).nonzero().flatten()
        wide = tuple(index.tolist())
        members = padded(
            [range(groups[g].slice.start, groups[g].slice.stop) for g in wide], sum(g.units for g in groups)
        )
        return Widths(
            size, least, multiple, added[0], wide, index, members, added[: members.shape[1] + 1, index].T.contiguous()
        )

    def __call__(self, n: Tensor) -> Tensor:
        """f(n) of groups with n open channels, float64 [groups]."""
        return _width(n, self.size, self.least, self.multiple)

    def expected_addition(self, p: Tensor) -> Tensor:
        """E[f(N) − N] of the wide groups at open probabilities p [units] in float64; 0 elsewhere: float64 [groups + 1]."""
        members = torch.cat([p, p.new_zeros(1)])[self.members]
        added = (count_distribution(members) * self.added).sum(1)
        return p.new_zeros(len(self.size) + 1).index_copy(0, self.index, added)


def _width(n: Tensor, size: Tensor, least: Tensor, multiple: Tensor) -> Tensor:
    return torch.minimum((torch.maximum(n, least) / multiple).ceil() * multiple, size)


def narrowest_width(min_channels: object, round_to: object) -> int:
    """How many channels a large group keeps where all are closed; 1 for options that `ChannelCost` refuses."""
    if not is_whole(min_channels) or not is_whole(round_to):
        return 1
    return -(-min_channels // round_to) * round_to
