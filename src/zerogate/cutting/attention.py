"""Multi-head attention that takes the number of its heads from its weights.

`nn.MultiheadAttention` insists on heads that fill its width, so none can be removed while its forward runs. `Attention`
computes the same with no such size written down, and stands in its place while a model is recorded. In the compacted
network `plain_attention` gives the module that same computation, for calls of the recorded form, as a graph that needs
torch alone.
"""

from __future__ import annotations

from functools import partial
from operator import is_
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from zerogate.errors import CompactionError, ZerogateError
from zerogate.modules.internals import assert_in_graph, disable_fused_attention

# Python would answer this while fx traces, which it does again to read a pickle; wrapped, it is asked at every call.
fx.wrap("is_")

_TENSORS = "in_proj_weight q_proj_weight k_proj_weight v_proj_weight in_proj_bias bias_k bias_v".split()
_SETTINGS = "embed_dim kdim vdim num_heads head_dim dropout batch_first add_zero_attn".split()
_SHARED = "key_padding_mask attn_mask need_weights average_attn_weights".split()
"""What all calls must have in common, since a graph has no branches."""
_UNSEEN = (
    "{}: unlike in the calls that this attention was compacted for; compact with example inputs that make such calls"
)


class Attention(nn.Module):
    """Stands in the place of an `nn.MultiheadAttention`: it holds the same `Parameter` objects and ``out_proj`` under the
    same names, takes the same arguments and returns the same outputs.

    Attributes:
        called: how it was called, empty before the first call: ``same`` (query, key and value were one tensor),
            ``key_padding_mask`` and ``attn_mask`` (passed), ``need_weights``, ``average_attn_weights`` (and needed),
            ``per_head_mask`` (an attn_mask [batch · heads, L, S]). Several calls are merged: ``same`` if all were; where
            they must be alike and are not, ``"<name> differs"`` is added, see `refusal`.

    Raises `ZerogateError` for a module whose forward is not that of torch.
    """

    def __init__(self, mha: nn.MultiheadAttention) -> None:
        super().__init__()
        runs = getattr(getattr(mha.forward, "func", mha.forward), "__self__", None)
        if type(mha) is not nn.MultiheadAttention or not (runs is mha or isinstance(runs, fx.GraphModule)):
            raise ZerogateError(f"the forward of this {type(mha).__name__} is not nn.MultiheadAttention's; exclude it")
        for name in [*_TENSORS, *_SETTINGS, "out_proj"]:
            setattr(self, name, getattr(mha, name))
        disable_fused_attention(self)  # else nn.TransformerEncoderLayer runs a kernel of its own instead of this
        self.called: dict[str, bool] = {}
        self.training = mha.training

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The output, and None or the weights [..., L, S] or [..., heads, L, S], as `nn.MultiheadAttention` returns them.

        Raises `AssertionError` for arguments that do not go together.
        """
        called = {
            "same": query is key and key is value,
            "key_padding_mask": key_padding_mask is not None,
            "attn_mask": attn_mask is not None,
            "need_weights": bool(need_weights),
            "average_attn_weights": bool(need_weights and average_attn_weights),
            "per_head_mask": attn_mask is not None and attn_mask.dim() == 3,
        }
        self.called = merge_calls(self.called, called)
        rest = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        return _attend(self, self, called, query, key, value, *rest)


def plain_attention(mha: nn.MultiheadAttention, called: dict[str, bool]) -> nn.MultiheadAttention:
    """Makes an attention run with the heads that its weights hold, changing nothing but its forward; returns it.

    The forward is an `fx.GraphModule` of torch alone, so the module can be copied and pickled as before. It raises
    AssertionError for calls of another form than the recorded ones.

    Args:
        mha: the attention; whether its heads are removed before or after makes no difference.
        called: how it is called, see `Attention.called`.

    Raises `CompactionError` where `refusal` has a reason.
    """
    reason = refusal(called)
    if reason is not None:
        raise CompactionError(f"heads of an nn.MultiheadAttention cannot be removed: {reason}")

    def forward(  # type: ignore[no-untyped-def]
        attention, query, key, value, key_padding_mask=None, need_weights=True, attn_mask=None,
        average_attn_weights=True, is_causal=False
    ):  # fmt: skip
        rest = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        return _attend(attention, mha, called, query, key, value, *rest)

    graph = fx.Tracer().trace(forward)
    module = fx.GraphModule(nn.Module(), graph, class_name="Attention")
    mha.forward = partial(module.forward, mha)  # type: ignore[method-assign]
    disable_fused_attention(mha)  # else nn.TransformerEncoderLayer runs a kernel of its own instead of this
    state_heads(mha)
    return mha


def state_heads(m: Any) -> None:
    """Makes an `nn.MultiheadAttention`, or an `Attention`, state what its weights hold.

    That is ``num_heads``, and as ``embed_dim``, ``kdim`` and ``vdim`` the widths of its queries, keys and values.
    ``head_dim`` stays: heads need not fill ``embed_dim``.
    """
    packed = m.in_proj_weight
    q, k, v = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight) if packed is None else packed.chunk(3)
    m.num_heads = len(q) // m.head_dim
    m.embed_dim, m.kdim, m.vdim = q.shape[1], k.shape[1], v.shape[1]


def refusal(called: dict[str, bool]) -> str | None:
    """Why heads of an attention that is called in this form cannot be removed; None where they can."""
    if not called:
        return "it is never called"
    if called["per_head_mask"]:
        return "its attn_mask has a part for each head"
    differs = [name for name in _SHARED if called.get(f"{name} differs")]
    return f"it is called with and without {differs[0]}" if differs else None


def unnest(model: nn.Module) -> None:
    """Makes every `nn.TransformerEncoder` pass on padded batches as they are: only torch's own attention takes nested
    tensors."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def merge_calls(before: dict[str, bool], now: dict[str, bool]) -> dict[str, bool]:
    """How an attention is called, see `Attention.called`, where it is called in both of these forms; empty for no call."""
    if not before:
        return now
    same, per_head = before["same"] and now["same"], before["per_head_mask"] or now["per_head_mask"]
    differs = {f"{name} differs": True for name in _SHARED if before[name] != now[name]}
    return now | before | {"same": same, "per_head_mask": per_head} | differs


def _attend(
    m: Any,
    static: Any,
    called: dict[str, bool],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """The forward of an attention for calls of one form.

    Python branches on ``static`` and ``called`` alone; everything else may be a proxy of fx, which traces it.

    Args:
        m: the module whose tensors are used.
        static: a module of the same settings.
        called: the form of the calls, see `Attention.called`.
    """
    _check_call(called, query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
    q, k, v = _project(m, static, query, key, value, called["same"])
    mask = _combined_mask(static, called, q, query, key_padding_mask, attn_mask)
    weights: Any = None
    if called["need_weights"]:
        weights = (q * static.head_dim**-0.5) @ k.transpose(-2, -1)
        weights = (weights if mask is None else weights + mask).softmax(-1)
        weights = F.dropout(weights, m.dropout, m.training)
        out = weights @ v
        if called["average_attn_weights"]:
            weights = weights.mean(-3)
    else:
        hinted = False
        if called["attn_mask"] and not called["key_padding_mask"]:  # then, as in torch, the hint replaces the mask
            hinted = is_causal
            mask = ([mask] * (1 - is_causal) + [None])[0]
        p = m.training * m.dropout
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p, is_causal=hinted)
    # not m.out_proj(…): torch's own forward reads the weight, too, and gates must be where it is read
    out = F.linear(out.transpose(-2, -3).flatten(-2), m.out_proj.weight, m.out_proj.bias)
    return out if static.batch_first else out.transpose(0, -2), weights


def _check_call(
    called: dict[str, bool],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average_attn_weights: bool,
    is_causal: bool,
) -> None:
    """Raises `AssertionError` for arguments that do not go together, or are of another form than ``called``; in a graph
    these checks are nodes."""
    _expect(query.is_nested, False, "no nested tensors: set use_nested_tensor = False on the nn.TransformerEncoder")
    assert_in_graph(query.dim() < 4, "query must be [L, E] or, with a batch, of 3 dimensions")
    if called["same"]:
        _expect(is_(query, key) & is_(key, value), True, _UNSEEN.format("one tensor as query, key and value"))
    _expect(is_(key_padding_mask, None), not called["key_padding_mask"], _UNSEEN.format("key_padding_mask"))
    _expect(is_(attn_mask, None), not called["attn_mask"], _UNSEEN.format("attn_mask"))
    _expect(need_weights, called["need_weights"], _UNSEEN.format("need_weights"))
    if called["need_weights"]:
        _expect(average_attn_weights, called["average_attn_weights"], _UNSEEN.format("average_attn_weights"))
    if not called["attn_mask"]:
        _expect(is_causal, False, "is_causal is a hint about attn_mask, which is missing")


def _combined_mask(
    static: Any,
    called: dict[str, bool],
    q: Tensor,
    query: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
) -> Any:
    """Both masks as one that is added to the scores, or None."""
    mask: Any = None
    appended = (static.bias_k is not None) + static.add_zero_attn
    if attn_mask is not None and called["attn_mask"]:
        mask = _additive(attn_mask, query.dtype, appended)
        if called["per_head_mask"]:
            mask = mask.view(*q.shape[:-1], -1)
        else:
            _expect(attn_mask.dim(), 2, _UNSEEN.format("attn_mask of 3 dimensions"))
    if key_padding_mask is not None and called["key_padding_mask"]:
        _expect(key_padding_mask.dim(), query.dim() - 1, "key_padding_mask must be [S] or, with a batch, [N, S]")
        padding = _additive(key_padding_mask, query.dtype, appended).unsqueeze(-2).unsqueeze(-2)
        mask = padding if mask is None else mask + padding
    return mask


def _project(m: Any, static: Any, query: Tensor, key: Tensor, value: Tensor, same: bool) -> list[Tensor]:
    """Queries, keys and values, each [..., heads, length, head_dim]."""
    packed = static.in_proj_weight is not None
    bias = None if static.in_proj_bias is None else m.in_proj_bias
    if same and packed:
        q, k, v = F.linear(query, m.in_proj_weight, bias).chunk(3, -1)
    else:
        wq, wk, wv = m.in_proj_weight.chunk(3) if packed else (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
        bq, bk, bv = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = F.linear(query, wq, bq), F.linear(key, wk, bk), F.linear(value, wv, bv)
    if not static.batch_first:
        q, k, v = (x.transpose(0, -2) for x in (q, k, v))  # changes nothing where there is no batch
    if static.bias_k is not None:
        k, v = (torch.cat([x, b.flatten().expand_as(x[..., :1, :])], -2) for x, b in ((k, m.bias_k), (v, m.bias_v)))
    if static.add_zero_attn:
        k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
    return [x.unflatten(-1, (-1, static.head_dim)).transpose(-2, -3) for x in (q, k, v)]


def _additive(mask: Tensor, dtype: torch.dtype, appended: int) -> Tensor:
    """A mask as numbers that are added to the scores, 0 for keys that the module itself appends. One graph serves masks of
    bools and of floats."""
    is_bool = mask.dtype == torch.bool
    assert_in_graph(is_bool | mask.is_floating_point(), "masks must be bool or floating point")
    closed = (mask.bool() * (1 * is_bool)).bool()  # torch.jit.trace has no op that takes a tensor and a bool
    mask = mask.to(dtype).masked_fill(closed, float("-inf"))
    return F.pad(mask, (0, appended)) if appended else mask


def _expect(value: object, expected: object, message: str) -> None:
    assert_in_graph(value == expected, message)
