"""Parameters and MACs as sums of products of axis sizes, and axis sizes as linear functions of what groups keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zerogate.cost.model import Cost, Expected
from zerogate.cost.products import EntryProducts
from zerogate.structure import Structure


@dataclass(frozen=True)
class AxisSizes:
    """Sizes of the axes that hold units, in the order of `Structure.axes`, and of one more after them that is always 1."""

    always: Tensor
    """Entries along each axis that no unit owns, float64 [axes + 1]."""
    per_channel: Tensor
    """Entries along each axis for each channel that a group keeps, float64 [axes + 1, groups]."""

    @staticmethod
    def of(structure: Structure) -> AxisSizes:
        """The axes of a network. Where one of them holds some units of a group more often than others, each has the mean."""
        lengths, axis, units = structure.in_line
        axes, groups = len(lengths), len(structure.groups)
        always = torch.zeros(axes, dtype=torch.float64).index_add_(0, axis, (units < 0).double())
        owned = units >= 0
        axis, group = axis[owned], structure.group_of_unit[units[owned]]
        counts = torch.zeros(axes * groups, dtype=torch.float64)
        counts.index_add_(0, axis * groups + group, torch.ones(len(group), dtype=torch.float64))
        per_channel = counts.view(axes, groups)
        per_channel /= torch.tensor([g.units for g in structure.groups], dtype=torch.float64)
        return AxisSizes(
            torch.cat([always, always.new_ones(1)]), torch.cat([per_channel, per_channel.new_zeros(1, groups)])
        )

    def __call__(self, n: Tensor) -> Tensor:
        """Sizes where groups keep n channels, float64 [groups]: float64 [axes + 1]."""
        return torch.addmv(self.always, self.per_channel, n)


@dataclass(frozen=True)
class Terms:
    """A tensor has Π (sizes of its axes) parameters, a layer macs · n_in · n_out MACs; terms of the same axes are one."""

    axes: EntryProducts
    """The axes whose sizes each term multiplies."""
    coefficients: Tensor
    """What each term counts for among the parameters, and among the MACs, float64 [2, terms]."""

    @staticmethod
    def of(structure: Structure, shapes: Mapping[str, torch.Size]) -> Terms:
        """The terms of a network whose parameters have these shapes."""
        number = {axis: i for i, axis in enumerate(structure.axes)}
        terms: dict[tuple[int, ...], list[float]] = defaultdict(lambda: [0, 0])  # by axes: of parameters, of MACs
        for name, shape in shapes.items():
            axes = [number.get((name, dim)) for dim in range(len(shape))]
            rest = torch.Size([size for size, axis in zip(shape, axes, strict=True) if axis is None])
            terms[tuple(axis for axis in axes if axis is not None)][0] += rest.numel()
        for c in structure.calls:
            if c.training:
                continue
            coefficient, factors = c.macs, []
            for axis in (c.consumes, c.produces, c.repeats):
                if axis in number:
                    factors.append(number[axis])
                elif axis is not None:
                    coefficient *= structure.size(axis, shapes)
            terms[tuple(factors)][1] += coefficient
        coefficients = torch.tensor(list(terms.values()), dtype=torch.float64).view(-1, 2).T.contiguous()
        return Terms(EntryProducts.of(list(terms), len(number)), coefficients)

    def cost(self, sizes: Tensor) -> Expected:
        """Cost where axes have these sizes, float64 [axes + 1]."""
        params, macs = (self.coefficients @ self.axes(sizes)).unbind()
        return Cost(params, macs)

    @property
    def quadratic(self) -> bool:
        """Whether no term multiplies more than two axes."""
        return self.axes.entries.shape[1] <= 2

    def quadratic_forms(self, sizes: AxisSizes) -> dict[str, Tensor]:
        """M of "params" and "macs" in cost = n·M n, symmetric, float64 [groups + 1, groups + 1]; the last n is 1. For
        terms that are `quadratic`."""
        linear = torch.cat([sizes.per_channel, sizes.always[:, None]], 1)  # in n
        entries = self.axes.entries
        entries = F.pad(entries, (0, 2 - entries.shape[1]), value=len(linear) - 1)
        left, right = linear[entries].unbind(1)
        forms = {}
        for over, each in zip(("params", "macs"), self.coefficients, strict=True):
            m = left.T @ (each[:, None] * right)
            forms[over] = (m + m.T) / 2
        return forms
