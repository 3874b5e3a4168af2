"""What a run with data decides by numbers: places of largest values, comparisons, values that Python asks for.

A smaller copy computes other numbers and would decide otherwise: send other rows to an expert, or pick others. Its run is
to be that of the whole model with less in it, so it goes on with what was decided then.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from zerogate.modules.run import holds_numbers

Decision = list[object]
"""What an op returned, its leaves in order: a copy of a tensor of whole numbers, a number, or None for what follows from
what the op is given."""


def decision_of(tensors: Iterable[Tensor], out: object, labelled: Iterable[Tensor]) -> Decision | None:
    """What an op of a run with data has decided by the numbers in its tensors; None for nothing.

    ``labelled``: those of its results that have channels; what is said of each channel is said anew of those that stay."""
    if not any(holds_numbers(x) for x in tensors):
        return None
    apart = {id(x) for x in (*tensors, *labelled)}
    leaves = tree_leaves(out)
    decided = [not isinstance(x, Tensor) or not (holds_numbers(x) or id(x) in apart) for x in leaves]
    if not any(decided):
        return None
    return [
        (x.clone() if isinstance(x, Tensor) else x) if is_decided else None
        for x, is_decided in zip(leaves, decided, strict=True)
    ]


def decided_as(decision: Decision, out: object) -> object:
    """What an op has returned, with those results that were decided in their places."""
    leaves, form = tree_flatten(out)
    if len(leaves) != len(decision):
        return out
    return tree_unflatten([x if y is None else y for x, y in zip(leaves, decision, strict=True)], form)
