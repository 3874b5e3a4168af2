"""Makes whatever can be removed of a tensor a whole slice of it, by tying more labels."""

from __future__ import annotations

import torch
from torch import Tensor

from zerogate.groups.label_tensors import collapse, drop_expanded, rows_along, varying_dims
from zerogate.groups.recording.record import Recording, SliceConstraint


def make_slices_whole(recording: Recording) -> None:
    """Ties labels until whatever can be removed of an activation or parameter is a whole slice of it.

    Where classes of labels are no slices yet, they are tied along the dimension that leaves most of them.
    """
    if recording.constraints_met_at == recording.labels.changes:
        return
    constraints = {
        (c.labels.data_ptr(), c.labels.shape, c.labels.stride(), c.name, c.dims): c for c in recording.slice_constraints
    }
    whole = False
    while not whole:
        root, (why, _) = recording.labels.roots(), recording.labels.reasons()
        root = torch.where(why[root] < 0, root, 0)
        whole = all([_make_whole(recording, root, constraint) for constraint in constraints.values()])
    recording.constraints_met_at = recording.labels.changes


def _make_whole(recording: Recording, root: Tensor, constraint: SliceConstraint) -> bool:
    """Ties or freezes labels so that what can be removed of a tensor is a slice, and attaches its parameter to that.

    Returns whether all was so already. ``root``: the class of each label, 0 for those that stay.
    """
    (narrow,) = drop_expanded(constraint.labels)
    labels = collapse(root[narrow])
    vary = varying_dims(labels)
    if not vary:
        return True
    rows = [rows_along(labels, d) for d in vary]
    pure = [bool((r == r[:, :1]).all()) for r in rows]
    if any(pure):
        i = pure.index(True)
        if not constraint.name or constraint.dims[vary[i]] < 0:
            return True
        return not _slice_parameter(recording, root, constraint, constraint.dims[vary[i]], rows[i][:, 0])
    best = max(rows, key=lambda r: int((r != 0).all(1).sum()))
    removable = (best != 0).all(1)
    recording.labels.unite(best[removable], best[removable][:, :1])
    recording.labels.freeze(best[~removable], constraint.reason)
    return False


def _slice_parameter(recording: Recording, root: Tensor, constraint: SliceConstraint, dim: int, vector: Tensor) -> bool:
    """Attaches labels [size] to a dimension of a constraint's parameter; whether they were not known to be there."""
    if constraint.index is not None:
        inside = constraint.index >= 0
        own = torch.zeros(constraint.size, dtype=torch.int64)
        own.scatter_reduce_(0, constraint.index[inside], vector[inside], "amax")
        recording.labels.unite(own[constraint.index[inside]], vector[inside])
        vector = own
    before = recording.axes.get((constraint.name, dim))
    if before is not None and torch.equal(root[before], root[vector]):
        return False
    recording.attach(constraint.name, dim, vector)
    return True
