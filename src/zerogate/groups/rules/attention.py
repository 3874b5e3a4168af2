"""Scaled dot-product attention as one op: softmax(q·kᵀ)·v, by the laws of its two products and of softmax.

q·kᵀ ties the channels that one head sums up; softmax along the positions leaves labels alone; the product with v ties the
head's value channels to them. What comes out is one class for each head.
"""

from __future__ import annotations

from torch import Tensor

from zerogate.groups.label_tensors import any_in, collapse, first_label, no_labels
from zerogate.groups.rules.contraction import contract
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze


@rule(
    "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"
)
def _attention(op: Op) -> Out:
    q, k, v = (op.labels_or_zero(op.bound[n]) for n in ("query", "key", "value"))
    if not any(any_in(x) for x in (q, k, v)):
        return None
    heads = q.shape[-3] if q.ndim > 2 else 1
    if k.ndim > 2 and k.shape[-3] != heads:  # grouped queries
        k, v = (collapse(x.repeat_interleave(heads // x.shape[-3], -3)) for x in (k, v))
    scores = _with_mask(op, _scores(op, q, k))
    scores = op.tie_along(scores, {scores.ndim - 1})
    out = collapse(contract(op, scores, v))
    return op.first_result(out.expand(op.results[0].shape))


def _scores(op: Op, q: Tensor, k: Tensor) -> Tensor:
    """Labels of q·kᵀ. Where there is a single head, its queries and keys stay, and its values are channels."""
    try:
        return contract(op, q, k.transpose(-1, -2))
    except Freeze as reason:
        for x in (q, k):
            op.context.freeze(x, str(reason))
        return no_labels((*q.shape[:-1], k.shape[-2]))


def _with_mask(op: Op, scores: Tensor) -> Tensor:
    """Labels of the scores with a mask, or a bias for each head, added to them."""
    mask = op.bound.get("attn_mask")
    if mask is None:
        return scores
    labels = op.labels(mask)
    if labels is None:
        op.attach_parameters(mask, scores)
        return scores
    labels = labels.expand(scores.shape)
    op.unite(labels, scores)
    return collapse(first_label(scores, labels))
