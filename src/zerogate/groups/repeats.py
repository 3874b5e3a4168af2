"""Layers that run once for each channel: which axis counts these."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from zerogate.groups.label_tensors import collapse, drop_expanded, rows_along, varying_dims
from zerogate.groups.recording.record import Recording
from zerogate.structure import LayerCall


def count_repeats(recording: Recording, unit_of: Tensor) -> list[LayerCall]:
    """All calls; those that are made once for each channel with an axis that counts these."""
    calls = list(recording.calls)
    if recording.repeated:
        weights = {c.weight for c in calls}
        axes = {_shares(unit_of[v]): axis for axis, v in recording.axes.items() if axis[0] in weights}
        for number, labels in recording.repeated.items():
            (units,) = drop_expanded(labels)
            units = collapse(unit_of[units])
            for dim in varying_dims(units):
                axis = axes.get(_shares(rows_along(units, dim)[:, 0]))
                if axis is not None:
                    size = len(recording.axes[axis])
                    calls[number] = replace(calls[number], macs=calls[number].macs / size, repeats=axis)
                    break
    return calls


def _shares(units: Tensor) -> tuple[tuple[int, int], ...]:
    """Which share of a dimension each unit has, −1 for what stays: two dimensions with the same shares shrink alike."""
    values, counts = units.unique(return_counts=True)
    factor = math.gcd(*counts.tolist())
    return tuple(zip(values.tolist(), (counts // factor).tolist(), strict=True))
