"""The attention that stands in while watching, and the one that compaction leaves, against nn.MultiheadAttention."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from zerogate.cutting.attention import Attention, plain_attention, refusal, unnest
from zerogate.errors import CompactionError, ZerogateError

WIDTH, HEADS, N, L, S = 12, 3, 2, 5, 7
FAR = float("-inf")


def attention(seed: int = 0, **options: Any) -> nn.MultiheadAttention:
    """In float64, with no tensor at zero."""
    torch.manual_seed(seed)
    mha = nn.MultiheadAttention(WIDTH, HEADS, **options).double()
    for p in mha.parameters():
        nn.init.normal_(p, std=0.5)
    return mha


def inputs(mha: nn.MultiheadAttention, cross: bool, batched: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    def draw(length: int, width: int) -> Tensor:
        shape = [N, length, width] if mha.batch_first else [length, N, width]
        return torch.randn(shape if batched else [length, width], dtype=torch.float64, requires_grad=True)

    query = draw(L, WIDTH)
    return (query, draw(S, mha.kdim), draw(S, mha.vdim)) if cross else (query, query, query)


def masks(kinds: str, cross: bool, batched: bool = True) -> dict[str, Any]:
    """Masks that leave the first key open, by a word such as "attn pad bool", "head float" or "causal bool"."""
    generator, length = torch.Generator().manual_seed(1), S if cross else L
    shapes = {"attn": [L, length], "head": [N * HEADS if batched else HEADS, L, length]}
    shapes |= {"pad": [N, length] if batched else [length]}
    made: dict[str, Any] = {}
    for kind in kinds.split()[:-1]:
        if kind == "causal":
            closed = torch.ones(L, length, dtype=torch.bool).triu(1)
            made["is_causal"] = True
        else:
            closed = torch.rand(shapes[kind], generator=generator) < 0.4
            closed[..., 0] = False
        mask: Tensor = closed
        if kinds.endswith("float"):
            mask = torch.randn(closed.shape, generator=generator, dtype=torch.float64) * (kind != "causal")
            mask = mask.masked_fill(closed, FAR)
        made["key_padding_mask" if kind == "pad" else "attn_mask"] = mask
    return made


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def same_outputs(a: nn.Module, b: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
    """Outputs in evaluation with and without gradients, outputs in training with one seed, and all gradients."""
    for training, grad in ((False, False), (False, True), (True, True)):
        runs = []
        for module in (a, b):
            torch.manual_seed(3)
            with torch.set_grad_enabled(grad):
                out, weights = module.train(training)(*args, **kwargs)
            assert (weights is None) == (not kwargs.get("need_weights", True))
            runs.append([out] if weights is None else [out, weights])
            if grad:
                leaves = [x for x in dict.fromkeys(args)] + list(module.parameters())
                torch.manual_seed(4)
                total = sum((x * torch.randn(x.shape, dtype=x.dtype)).sum() for x in runs[-1])
                runs[-1] += torch.autograd.grad(total, leaves)
        for x, y in zip(*runs, strict=True):
            close(x, y)


def plain_for(mha: nn.MultiheadAttention, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> nn.MultiheadAttention:
    seen = Attention(mha)
    seen(*args, **kwargs)
    return plain_attention(copy.deepcopy(mha), seen.called)


def without_heads(mha: nn.Module, heads: list[int]) -> None:
    """Slices the tensors of these heads off, in place."""
    keep = torch.arange(WIDTH).view(HEADS, -1)[[h for h in range(HEADS) if h not in heads]].flatten()
    three = torch.cat([keep, keep + WIDTH, keep + 2 * WIDTH])
    for name, p in list(mha.named_parameters(recurse=False)):
        p = p[..., keep] if name in ("bias_k", "bias_v") else p[three if name.startswith("in_proj") else keep]
        setattr(mha, name, nn.Parameter(p.detach()))
    mha.out_proj.weight = nn.Parameter(mha.out_proj.weight.detach()[:, keep])


def close_heads(mha: nn.MultiheadAttention, heads: list[int]) -> nn.MultiheadAttention:
    """A copy in which nobody reads these heads."""
    closed = copy.deepcopy(mha)
    with torch.no_grad():
        closed.out_proj.weight.view(WIDTH, HEADS, -1)[:, heads] = 0
    return closed


OPTIONS = [
    {},
    {"batch_first": True},
    {"bias": False},
    {"dropout": 0.4, "batch_first": True},
    {"add_bias_kv": True, "add_zero_attn": True},
    {"add_bias_kv": True, "bias": False, "batch_first": True},
    {"add_zero_attn": True, "batch_first": True},
    {"kdim": 7, "vdim": 5},
    {"kdim": 7, "vdim": 5, "batch_first": True, "bias": False, "add_zero_attn": True, "add_bias_kv": True},
]
MASKS = ["none", "attn bool", "attn float", "pad bool", "pad float", "attn pad bool", "attn pad float"]
MASKS += ["causal bool", "causal float", "head bool", "head float", "head pad bool"]
RETURNS = [{"need_weights": False}, {}, {"average_attn_weights": False}]


def cases() -> list[Any]:
    """Every option with every mask; batch, cross attention and what is returned take turns."""
    found, turn = [], itertools.cycle(itertools.product((True, False), (True, False), RETURNS))
    for options, kinds in itertools.product(OPTIONS, MASKS):
        for batched, cross, returns in itertools.islice(turn, 2):
            cross = cross or "kdim" in options
            name = "-".join([*options, kinds, "cross" if cross else "self", "N" if batched else "1", *returns])
            found.append(pytest.param(options, kinds, batched, cross, returns, id=name.replace(" ", "_")))
    return found


@pytest.mark.parametrize(("options", "kinds", "batched", "cross", "returns"), cases())
def test_same_as_torch(options: Any, kinds: str, batched: bool, cross: bool, returns: Any) -> None:
    """Stand-in, plain module, and plain module without one or two heads."""
    mha = attention(**options)
    args, kwargs = inputs(mha, cross, batched), masks(kinds, cross, batched) | returns
    seen = Attention(mha)
    same_outputs(mha, seen, args, kwargs)
    assert all(p is q for p, q in zip(mha.parameters(), seen.parameters(), strict=True))
    if "head" in kinds:
        assert refusal(seen.called) == "its attn_mask has a part for each head"
        with pytest.raises(CompactionError, match="a part for each head"):
            plain_attention(copy.deepcopy(mha), seen.called)
        return
    assert refusal(seen.called) is None
    plain = plain_attention(copy.deepcopy(mha), seen.called)
    assert list(plain.state_dict()) == list(mha.state_dict())
    same_outputs(mha, plain, args, kwargs)

    for heads in ([1], [0, 2]):
        want, want_weights = close_heads(mha, heads).eval()(*args, **kwargs)
        stays = [h for h in range(HEADS) if h not in heads]
        first, then = copy.deepcopy(mha), plain_for(mha, args, kwargs)
        without_heads(first, heads)  # before or after the forward is replaced
        without_heads(then, heads)
        stand_in = Attention(first)
        for module in (stand_in, plain_attention(first, seen.called), then):
            out, weights = module.eval()(*args, **kwargs)
            close(out, want)
            if kwargs.get("need_weights", True) and not kwargs.get("average_attn_weights", True):
                close(weights, want_weights[..., stays, :, :])
        assert first.num_heads == len(stays)


@pytest.mark.parametrize("options", [{}, {"batch_first": True, "bias": False}, {"kdim": 7, "vdim": 5}], ids=str)
def test_no_head_left(options: Any) -> None:
    mha = attention(**options)
    args = inputs(mha, cross=True)
    for kwargs in RETURNS[::2]:
        want, _ = close_heads(mha, [0, 1, 2])(*args, **kwargs)
        plain = plain_for(mha, args, kwargs)
        without_heads(plain, [0, 1, 2])
        close(plain(*args, **kwargs)[0], want)


class Blocks(nn.Module):
    """An encoder, a decoder layer and a whole transformer, as torch makes them."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        sizes = {"d_model": WIDTH, "nhead": HEADS + 1, "dim_feedforward": 16} | options
        if kind == "encoder":
            self.net: nn.Module = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**sizes), 2, enable_nested_tensor=False
            )
        elif kind == "nested":
            self.net = nn.TransformerEncoder(nn.TransformerEncoderLayer(**sizes), 2)
        elif kind == "decoder":
            self.net = nn.TransformerDecoder(nn.TransformerDecoderLayer(**sizes), 1)
        else:
            self.net = nn.Transformer(WIDTH, HEADS + 1, 1, 1, 16, **options)
            self.net.encoder.use_nested_tensor = False
        for p in self.parameters():
            nn.init.normal_(p, std=0.3)
        self.double()

    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return self.net(*args, **kwargs)


def replaced(model: nn.Module, args: Any, kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """Without the first two of four heads: the model with columns of zeros, and with plain attentions."""
    names = [name for name, m in model.named_modules() if type(m) is nn.MultiheadAttention]
    watched, closed, plain = (copy.deepcopy(model).eval() for _ in range(3))
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(watched.get_submodule(parent), child, Attention(watched.get_submodule(name)))
    unnest(watched)
    with torch.inference_mode():
        watched(*args, **kwargs)
    for name in names:
        closed.get_submodule(name).out_proj.weight.data[:, :6] = 0
        mha = plain_attention(plain.get_submodule(name), watched.get_submodule(name).called)
        for key, p in list(mha.named_parameters(recurse=False)):
            setattr(mha, key, nn.Parameter(p.detach().unflatten(0, (3, -1))[:, 6:].flatten(0, 1)))
        mha.out_proj.weight = nn.Parameter(mha.out_proj.weight.detach()[:, 6:])
    return closed, plain


CAUSAL = nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64)
PADDED = torch.arange(L) >= torch.tensor([[L], [3]])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("kind", "options", "kwargs"),
    [
        ("encoder", {"batch_first": True}, {}),
        ("encoder", {"batch_first": True, "activation": "gelu", "norm_first": True}, {"mask": CAUSAL}),
        ("encoder", {"batch_first": True}, {"mask": CAUSAL, "src_key_padding_mask": PADDED.double() * -1e9}),
        ("encoder", {}, {"mask": CAUSAL, "is_causal": True}),
        ("encoder", {"batch_first": True, "bias": False}, {"src_key_padding_mask": PADDED}),
        ("decoder", {"batch_first": True}, {"tgt_mask": CAUSAL, "tgt_is_causal": True}),
        ("decoder", {"norm_first": True}, {"tgt_mask": CAUSAL < 0, "memory_key_padding_mask": PADDED}),
        ("transformer", {"batch_first": True}, {"tgt_mask": CAUSAL, "src_key_padding_mask": PADDED}),
    ],
)
def test_in_torchs_transformers(kind: str, options: Any, kwargs: Any, dropout: float) -> None:
    """Each mode of torch's layers goes through the replaced attention, with no fast path around it and no warning."""
    model = Blocks(kind, dropout=dropout, **options)
    x = torch.randn(*((N, L) if options.get("batch_first") else (L, N)), WIDTH, dtype=torch.float64)
    args = (x,) if kind == "encoder" else (x, torch.randn_like(x))
    closed, plain = replaced(model, args, kwargs)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            close(plain(*args, **kwargs), closed(*args, **kwargs))
    if dropout:
        plain.train()
        outs = [plain(*args, **kwargs) for _ in range(2)]
        assert not torch.equal(*outs)
    else:
        close(plain.train()(*args, **kwargs), closed.train()(*args, **kwargs))


def test_encoder_that_would_nest() -> None:
    """nn.TransformerEncoder makes nested tensors of padded batches; unnest has it pass them on."""
    model, x = Blocks("nested", batch_first=True), torch.randn(N, L, WIDTH, dtype=torch.float64)
    closed, plain = replaced(model, (x,), {"src_key_padding_mask": PADDED})
    for m in (closed, plain):
        unnest(m)
        assert not m.net.use_nested_tensor
    with torch.no_grad():
        close(plain(x, src_key_padding_mask=PADDED), closed(x, src_key_padding_mask=PADDED))


SCRIPT = """
import copy, pickle, sys, warnings
warnings.simplefilter("error")
sys.modules["zerogate"] = None
import torch
with open(sys.argv[1], "rb") as file:
    for model, args, kwargs, want in pickle.load(file):
        for m in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(copy.deepcopy(model)))):
            torch.testing.assert_close(m(*args, **kwargs), want, atol=1e-12, rtol=0)
            m.train()
            assert not torch.equal(m(*args, **kwargs), m(*args, **kwargs))
            m.eval()
            layer = next(x for x in m.modules() if type(x) is torch.nn.MultiheadAttention)
            try:
                layer(torch.zeros(2, 3, 12).double(), *[torch.zeros(2, 3, 12).double()] * 2)
            except AssertionError as error:
                assert "compact with example inputs that make such calls" in str(error), error
            else:
                raise SystemExit("unseen arguments were taken")
assert not [name for name in sys.modules if name.startswith("zerogate.")]
"""


def test_pickle_needs_torch_alone(tmp_path: Path) -> None:
    """Read back where zerogate cannot be imported: same outputs, dropout still follows the mode, checks still made."""
    held = []
    for kind, kwargs in (
        ("encoder", {"mask": CAUSAL}),
        ("encoder", {"src_key_padding_mask": PADDED}),
        ("decoder", {"tgt_mask": CAUSAL, "memory_key_padding_mask": PADDED}),
    ):
        x = torch.randn(N, L, WIDTH, dtype=torch.float64)
        args = (x,) if kind == "encoder" else (x, torch.randn_like(x))
        _, plain = replaced(Blocks(kind, batch_first=True, dropout=0.3), args, kwargs)
        held.append((plain.net, args, kwargs, plain(*args, **kwargs).detach()))
    path = tmp_path / "plain.pickle"
    path.write_bytes(pickle.dumps(held))
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_copies_are_independent() -> None:
    mha = attention()
    args = inputs(mha, cross=False)
    plain = plain_for(mha, args, {})
    twin = copy.deepcopy(plain)
    with torch.no_grad():
        twin.in_proj_weight.zero_()
    close(plain(*args)[0], mha(*args)[0])
    assert not torch.equal(plain(*args)[0], twin(*args)[0])
    twin.load_state_dict(mha.state_dict())
    close(twin(*args)[0], mha(*args)[0])


def test_devices_and_types() -> None:
    mha = attention()
    args = inputs(mha, cross=False)
    with torch.device("meta"):
        empty = plain_for(nn.MultiheadAttention(WIDTH, HEADS), args=inputs(mha, cross=False), kwargs={})
    assert empty(*[torch.empty(L, N, WIDTH, device="meta")] * 3)[0].device.type == "meta"
    empty.load_state_dict(mha.state_dict(), assign=True)
    close(empty(*args)[0], mha(*args)[0])
    small = empty.to(torch.float32)(*[args[0].float()] * 3)[0]
    torch.testing.assert_close(small, mha(*args)[0].float(), atol=1e-5, rtol=0)


def test_unseen_arguments_raise() -> None:
    mha = attention(batch_first=True)
    x = inputs(mha, cross=False)
    pad, attn, head = (masks(f"{kind} bool", cross=False) for kind in ("pad", "attn", "head"))
    bare, masked = plain_for(mha, x, {"need_weights": False}), plain_for(mha, x, pad | attn)
    for plain, args, kwargs, named in [
        (bare, x, pad | {"need_weights": False}, "key_padding_mask: unlike in the calls"),
        (bare, x, attn | {"need_weights": False}, "attn_mask: unlike in the calls"),
        (bare, x, {}, "need_weights: unlike in the calls"),
        (bare, x, {"need_weights": False, "is_causal": True}, "is_causal is a hint"),
        (bare, (x[0], x[0].clone(), x[0]), {"need_weights": False}, "one tensor as query"),
        (bare, (x[0][None],) * 3, {"need_weights": False}, "query must be"),
        (masked, x, pad, "attn_mask: unlike in the calls"),
        (masked, x, attn, "key_padding_mask: unlike in the calls"),
        (masked, x, pad | attn | {"average_attn_weights": False}, "average_attn_weights: unlike in the calls"),
        (masked, x, pad | head, "attn_mask of 3 dimensions"),
        (masked, x, attn | {"key_padding_mask": pad["key_padding_mask"][0]}, "key_padding_mask must be"),
        (masked, x, pad | {"attn_mask": attn["attn_mask"].int()}, "masks must be bool"),
    ]:
        with pytest.raises(AssertionError, match=named):
            plain(*args, **kwargs)
    with pytest.raises(AssertionError, match="is_causal is a hint"):
        Attention(mha)(*x, is_causal=True)


def test_calls_are_merged() -> None:
    """What the calls share is kept, a difference that no graph can follow is a reason to refuse."""
    mha = attention(batch_first=True)
    same, other = inputs(mha, cross=False), inputs(mha, cross=True)
    seen = Attention(mha)
    assert refusal(seen.called) == "it is never called"
    for args in (same, other, same):
        seen(*args, **masks("attn bool", cross=args is other))
    assert not seen.called["same"] and refusal(seen.called) is None
    plain = plain_attention(copy.deepcopy(mha), seen.called)
    for args in (same, other):
        kwargs = masks("attn float", cross=args is other)
        same_outputs(mha, plain, args, kwargs)
    seen(*same, **masks("causal bool", cross=False))  # a hint that may come or not
    same_outputs(mha, plain, same, masks("causal float", cross=False))

    for kwargs in (masks("pad bool", cross=False), {"need_weights": False}, {"average_attn_weights": False}):
        seen = Attention(mha)
        for given in ({}, kwargs, {}):
            seen(*same, **given)
        assert refusal(seen.called) == f"it is called with and without {next(iter(kwargs))}"
        with pytest.raises(CompactionError, match="with and without"):
            plain_attention(mha, seen.called)
    assert "forward" not in vars(mha)


def test_forwards_that_are_not_torchs() -> None:
    class Mine(nn.MultiheadAttention):
        pass

    with pytest.raises(ZerogateError, match="Mine"):
        Attention(Mine(WIDTH, HEADS))
    patched = attention()
    patched.forward = lambda *args: args  # type: ignore[method-assign]
    with pytest.raises(ZerogateError, match="forward"):
        Attention(patched)
    mha = attention()
    args = inputs(mha, cross=False)
    once = plain_for(mha, args, {})
    without_heads(once, [1])
    twice = plain_for(once, args, {"need_weights": False})  # a compacted network can be compacted again
    close(twice(*args, need_weights=False)[0], once(*args)[0])
