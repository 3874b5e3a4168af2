"""Networks nobody wrote by hand: of feature maps, of token sequences, and from the one to the other.

Each is drawn from a seed, so it shrinks and repeats. The blocks in them are written as users write them, in several ways.
"""

from __future__ import annotations

import math
import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from support import Lambda

Rng = random.Random


class _Macs(TorchDispatchMode):
    """Adds up the MACs of every layer that runs, by the shapes that arrive; a matmul counts where a parameter is in it."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "linear":
            self.total += out.numel() * args[0].shape[-1]
        elif name.startswith("conv"):
            entries = args[0] if "transpose" in name else out  # each meets one column of the weight
            columns = args[1].numel() // args[1].shape[0]
            self.total += entries.numel() * columns
        elif name == "matmul" and any(isinstance(x, nn.Parameter) for x in args):
            self.total += out.numel() * args[0].shape[-1]
        elif name == "einsum" and any(isinstance(x, nn.Parameter) for x in args[1]):  # of two operands
            words = args[0].partition("->")[0].split(",")
            sizes = {c: n for word, x in zip(words, args[1], strict=True) for c, n in zip(word, x.shape, strict=True)}
            self.total += math.prod(sizes.values())
        elif name.split("_")[0] in ("lstm", "gru", "rnn"):  # every weight meets every step of every example
            weights = [w for w in tree_leaves(args[1:]) if isinstance(w, nn.Parameter) and w.ndim == 2]
            self.total += args[0].numel() // args[0].shape[-1] * sum(w.numel() for w in weights)
        return out


def layer_macs(model: nn.Module, x: Tensor) -> int:
    """MACs of all layers for one example, also of those inside nn.MultiheadAttention."""
    training, fast = model.training, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with torch.inference_mode(), _Macs() as macs:  # in inference mode ops arrive whole
        model.eval()(x)
    torch.backends.mha.set_fastpath_enabled(fast)
    model.train(training)
    return macs.total // len(x)


def activation(rng: Rng) -> nn.Module:
    kinds = [nn.ReLU, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU, nn.PReLU, nn.Mish, nn.ReLU6]
    return rng.choice(kinds)()


def divisors(n: int) -> list[int]:
    return [g for g in range(2, n + 1) if n % g == 0]


class OwnRMSNorm(nn.Module):
    """As many decoders have it, in the precision of its input; over the last dimension or over another."""

    def __init__(self, width: int, dim: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones([width] + [1] * (-1 - dim)))
        self.dim, self.eps = dim, 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(self.dim, keepdim=True) + self.eps))


class ChannelsFirstNorm(nn.Module):
    """LayerNorm over dimension 1, written out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (x - mean) / torch.sqrt(variance + 1e-6) * self.weight.view(shape) + self.bias.view(shape)


class Mlp(nn.Module):
    def __init__(self, rng: Rng, width: int, out: int | None = None) -> None:
        super().__init__()
        hidden = rng.randint(3, 8)
        self.fc1 = nn.Linear(width, hidden, bias=rng.random() < 0.8)
        self.act = activation(rng)
        self.norm = token_norm(rng, hidden) if rng.random() < 0.2 else nn.Identity()
        self.drop = nn.Dropout(0.1)
        self.fc2 = nn.Linear(hidden, out or width, bias=rng.random() < 0.8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.drop(self.act(self.fc1(x)))))


class GatedMlp(nn.Module):
    """SwiGLU and its kin: two matrices, or one cut in halves in one of several ways."""

    def __init__(self, rng: Rng, width: int) -> None:
        super().__init__()
        self.hidden = rng.randint(2, 6)
        self.way = rng.choice(["two", "two", "chunk", "split", "slices", "reshape", "glu"])
        self.up = nn.Linear(width, self.hidden if self.way == "two" else 2 * self.hidden, bias=rng.random() < 0.5)
        if self.way == "two":
            self.gate = nn.Linear(width, self.hidden, bias=rng.random() < 0.5)
        self.down = nn.Linear(self.hidden, width, bias=rng.random() < 0.5)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(x)
        if self.way == "glu":
            return self.down(F.glu(up, -1))
        if self.way == "two":
            gate = self.gate(x)
        elif self.way == "chunk":
            gate, up = up.chunk(2, -1)
        elif self.way == "split":
            gate, up = up.split([self.hidden, self.hidden], -1)
        elif self.way == "slices":
            half = up.shape[-1] // 2
            gate, up = up[..., :half], up[..., half:]
        else:
            gate, up = up.unflatten(-1, (2, -1)).unbind(-2)
        return self.down(F.silu(gate) * up)


# --- attention --------------------------------------------------------------------------------------------------------


def rotated(x: Tensor) -> Tensor:
    """Rotary positions for [..., tokens, head_dim], in halves."""
    half = x.shape[-1] // 2
    frequency = 10 ** -(torch.arange(half, device=x.device, dtype=x.dtype) / half)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=x.dtype)[:, None] * frequency
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class PackedAttention(nn.Module):
    """Queries, keys and values of one matrix, as in most vision transformers."""

    def __init__(self, rng: Rng, width: int, tokens: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = rng.choice([1, 2, 2, 3, 3, 4, 4]), rng.choice([2, 3, 4])
        self.ends = rng.choice(["flatten", "-1", "inner"])
        if width % self.num_heads == 0 and rng.random() < 0.2:  # as wide as what comes in, and said so
            self.head_dim, self.ends = width // self.num_heads, "input"
        self.inner = self.num_heads * self.head_dim
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(width, 3 * self.inner, bias=rng.random() < 0.7)
        self.proj = nn.Linear(self.inner, width)
        self.way = rng.choice(["reshape", "reshape", "chunk", "unflatten"])
        self.kind = rng.choice(["fused", "softmax", "softmax", "channels"])
        normed = rng.random() < 0.3
        self.q_norm, self.k_norm = (nn.LayerNorm(self.head_dim) if normed else nn.Identity() for _ in range(2))
        self.bias = nn.Parameter(torch.randn(self.num_heads, tokens, tokens)) if rng.random() < 0.2 else None
        self.table = nn.Parameter(torch.randn(2 * tokens, self.num_heads)) if rng.random() < 0.2 else None
        places = torch.arange(tokens)
        self.register_buffer("index", places[:, None] - places + tokens - 1, persistent=False)
        self.temperature = nn.Parameter(torch.rand(self.num_heads, 1, 1) + 0.5) if rng.random() < 0.3 else 1.0

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        if self.way == "reshape":
            q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        elif self.way == "chunk":
            parts = self.qkv(x).chunk(3, dim=-1)
            q, k, v = (t.view(b, n, self.num_heads, -1).transpose(1, 2) for t in parts)
        else:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = self.q_norm(q), self.k_norm(k)
        bias = self.bias
        if self.table is not None:
            bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        if self.kind == "fused":
            x = F.scaled_dot_product_attention(q * self.temperature, k, v, attn_mask=bias)
        elif self.kind == "softmax":
            scores = q @ k.transpose(-2, -1) * self.scale * self.temperature
            x = (scores if bias is None else scores + bias).softmax(-1) @ v
        else:  # channels of a head attend to each other
            q, k = F.normalize(q, dim=-2), F.normalize(k, dim=-2)
            x = v @ (q.transpose(-2, -1) @ k * self.temperature).softmax(-1).transpose(-2, -1)
        x = x.transpose(1, 2)
        if self.ends == "flatten":
            return self.proj(x.flatten(2))
        return self.proj(x.reshape(b, n, {"-1": -1, "inner": self.inner, "input": c}[self.ends]))


class GroupedAttention(nn.Module):
    """Three matrices, several queries for each key, rotary positions, causal, of itself or of a memory."""

    def __init__(self, rng: Rng, width: int, memory: int | None) -> None:
        super().__init__()
        self.kv_heads, self.groups = rng.choice([2, 2, 3, 4]), rng.choice([1, 2, 2, 3])
        self.num_heads, self.head_dim = self.kv_heads * self.groups, rng.choice([2, 4])
        self.by_size = rng.random() < 0.5  # heads from the size of a head, or written down
        self.rotary = rng.random() < 0.5 and memory is None
        self.causal = rng.random() < 0.4 and memory is None
        self.way = rng.choice(["matmul", "fused", "fused", "einsum"])
        self.repeats = rng.choice(["interleave", "expand", "gqa"] if self.way == "fused" else ["interleave", "expand"])
        bias = rng.random() < 0.5
        self.q = nn.Linear(width, self.num_heads * self.head_dim, bias=bias)
        self.k, self.v = (nn.Linear(memory or width, self.kv_heads * self.head_dim, bias=bias) for _ in range(2))
        self.o = nn.Linear(self.num_heads * self.head_dim, width, bias=rng.random() < 0.5)
        normed = rng.random() < 0.3
        self.q_norm, self.k_norm = (OwnRMSNorm(self.head_dim) if normed else nn.Identity() for _ in range(2))

    def heads(self, x: Tensor, number: int) -> Tensor:
        if self.by_size:
            return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)
        return x.view(x.shape[0], x.shape[1], number, self.head_dim).transpose(1, 2)

    def repeated(self, x: Tensor) -> Tensor:
        if self.groups == 1 or self.repeats == "gqa":
            return x
        if self.repeats == "interleave":
            return x.repeat_interleave(self.groups, dim=1)
        b, h, n, d = x.shape
        return x[:, :, None].expand(b, h, self.groups, n, d).reshape(b, h * self.groups, n, d)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        q, k, v = self.heads(self.q(x), self.num_heads), self.k(memory), self.v(memory)
        k, v = self.heads(k, self.kv_heads), self.heads(v, self.kv_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = rotated(q), rotated(k)
        k, v = self.repeated(k), self.repeated(v)
        if self.way == "fused":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=self.repeats == "gqa")
        else:
            scores = torch.einsum("bhnd,bhmd->bhnm", q, k) if self.way == "einsum" else q @ k.mT
            scores = scores / math.sqrt(self.head_dim)
            if self.causal:
                later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
                scores = scores.masked_fill(later, float("-inf"))
            p = F.dropout(scores.softmax(-1), 0.1, self.training)
            y = torch.einsum("bhnm,bhmd->bhnd", p, v) if self.way == "einsum" else p @ v
        return self.o(y.transpose(1, 2).reshape(*x.shape[:2], -1))


class TorchAttention(nn.Module):
    """nn.MultiheadAttention, of itself or of a memory."""

    def __init__(self, rng: Rng, width: int, memory: int | None) -> None:
        super().__init__()
        self.first = rng.random() < 0.6
        sizes = {} if memory is None or memory == width else {"kdim": memory, "vdim": memory}
        self.attention = nn.MultiheadAttention(
            width, rng.choice(divisors(width)), bias=rng.random() < 0.7, batch_first=self.first, **sizes
        )
        self.weights = rng.random() < 0.3

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        memory = x if memory is None else memory
        if self.first:
            return self.attention(x, memory, memory, need_weights=self.weights)[0]
        q, kv = x.transpose(0, 1), memory.transpose(0, 1)
        kv = q if memory is x else kv
        return self.attention(q, kv, kv, need_weights=self.weights)[0].transpose(0, 1)


class Pooling(nn.Module):
    """A learnt query that attends to all tokens."""

    def __init__(self, rng: Rng, width: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 2, 3
        self.query = nn.Parameter(torch.randn(1, 1, width))
        self.q, self.kv = nn.Linear(width, 6), nn.Linear(width, 12)
        self.proj = nn.Linear(6, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(self.query.expand(b, -1, -1)).reshape(b, 1, self.num_heads, self.head_dim).transpose(1, 2)
        k, v = self.kv(x).reshape(b, n, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(b, 1, -1))[:, 0]


# --- tokens -----------------------------------------------------------------------------------------------------------


def token_norm(rng: Rng, width: int) -> nn.Module:
    kind = rng.choice(["layer", "layer", "plain", "rms", "own", "batch", "none"])
    if kind == "batch":
        return Lambda(lambda m, x: m.norm(x.flatten(0, -2)).view(x.shape), norm=nn.BatchNorm1d(width))
    made = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "own": OwnRMSNorm}
    if kind == "plain":
        return nn.LayerNorm(width, elementwise_affine=False)
    return made[kind](width) if kind in made else nn.Identity()


class Scale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """A function of tokens in a residual connection, normed before or behind it."""

    def __init__(self, rng: Rng, width: int, tokens: int, memory: int) -> None:
        super().__init__()
        kinds = """packed packed packed grouped grouped grouped torch torch mlp mlp gated gated cross cross memory mixer
        conv both matrix""".split()
        kind = rng.choice(kinds)
        self.cross = kind in ("cross", "memory")
        if kind == "packed":
            self.body: nn.Module = PackedAttention(rng, width, tokens)
        elif kind in ("grouped", "cross"):
            self.body = GroupedAttention(rng, width, memory if self.cross else None)
        elif kind in ("torch", "memory"):
            self.body = TorchAttention(rng, width, memory if self.cross else None)
        elif kind == "mixer":  # a network over the tokens
            self.body = Lambda(lambda m, x: m.mlp(x.transpose(1, 2)).transpose(1, 2), mlp=Mlp(rng, tokens))
        elif kind == "both":  # side by side
            parts = {"attention": PackedAttention(rng, width, tokens), "mlp": GatedMlp(rng, width)}
            self.body = Lambda(lambda m, x: m.attention(x) + m.mlp(x), **parts)
        elif kind == "matrix":  # a parameter of one's own
            inner = rng.randint(3, 6)
            held = nn.ParameterList([torch.randn(width, inner), torch.randn(width, inner), torch.randn(inner)])
            self.body = Lambda(lambda m, x: F.linear(torch.relu_(x @ m.held[0] + m.held[2]), m.held[1]), held=held)
        elif kind == "conv":
            groups = rng.choice([1, width])
            deep = nn.Conv1d(width, width, 3, padding=1, groups=groups)
            self.body = Lambda(lambda m, x: m.conv(x.transpose(1, 2)).transpose(1, 2), conv=deep)
        else:
            self.body = GatedMlp(rng, width) if kind == "gated" else Mlp(rng, width)
        self.before, self.norm = rng.random() < 0.7, token_norm(rng, width)
        self.scale = Scale(width) if rng.random() < 0.3 else nn.Identity()

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        y = self.norm(x) if self.before else x
        y = x + self.scale(self.body(y, memory) if self.cross else self.body(y))
        return y if self.before else self.norm(y)


class Tokens(nn.Module):
    """Blocks on tokens [batch, tokens, width] that can also attend to what came in."""

    def __init__(self, rng: Rng, width: int, tokens: int, blocks: int) -> None:
        super().__init__()
        memory = width
        self.blocks, self.widening = nn.ModuleList(), nn.ModuleDict()
        for number in range(blocks):
            again = self.blocks and rng.random() < 0.1 and str(number - 1) not in self.widening
            self.blocks.append(self.blocks[-1] if again else Block(rng, width, tokens, memory))
            if rng.random() < 0.15:
                more = rng.choice([2, 4])
                self.widening[str(number)] = nn.Linear(width, more)
                width += more
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        memory = x
        for number, block in enumerate(self.blocks):
            x = block(x, memory)
            if str(number) in self.widening:
                x = torch.cat([x, self.widening[str(number)](x)], -1)
        return x


class ReadsTokens(nn.Module):
    """A network that reads token ids or vectors, as its seed says."""

    tokens: int
    words: bool
    head: nn.Linear

    def inputs(self, batch: int, generator: torch.Generator) -> Tensor:
        if self.words:
            return torch.randint(11, (batch, self.tokens), generator=generator)
        return torch.randn(batch, self.tokens, 3, generator=generator, dtype=self.head.weight.dtype)


class RandomSequence(ReadsTokens):
    """Token ids or vectors, blocks, and an end: tied to the embedding, of the class token, the mean or attention."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = Rng(seed)
        width, self.tokens, self.words = rng.choice([4, 6, 8]), rng.randint(3, 5), rng.random() < 0.5
        self.stem = nn.Embedding(11, width) if self.words else nn.Linear(3, width)
        self.token = nn.Parameter(torch.randn(1, 1, width)) if rng.random() < 0.4 else None
        tokens = self.tokens + (self.token is not None)
        self.place = nn.Parameter(torch.randn(1, tokens, width)) if rng.random() < 0.6 else None
        self.first = token_norm(rng, width) if rng.random() < 0.3 else nn.Identity()
        self.trunk = Tokens(rng, width, tokens, rng.randint(1, 3))
        self.last = token_norm(rng, self.trunk.width)
        ends = ["mean", "each", "pool", "tied" if self.words else "flat"]
        self.end = rng.choice(ends if self.token is None else [*ends, "token"])
        if self.end == "tied" and self.trunk.width != width:
            self.end = "each"
        out = self.trunk.width
        self.pool = Pooling(rng, out) if self.end == "pool" else None
        self.head = nn.Linear(out * tokens if self.end == "flat" else out, 11 if self.end == "tied" else 3, bias=False)
        if self.end == "tied":
            self.head.weight = self.stem.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.first(x if self.place is None else x + self.place)
        x = self.last(self.trunk(x))
        if self.pool is not None:
            x = self.pool(x)
        elif self.end == "flat":
            x = x.flatten(1)
        elif self.end in ("mean", "token"):
            x = x.mean(1) if self.end == "mean" else x[:, 0]
        return self.head(x)


# --- feature maps -----------------------------------------------------------------------------------------------------

MAPS = """conv conv conv conv conv depthwise grouped grouped transposed norm norm norm norm act act sum sum cat cat max avg
shuffle blend affine mul flip mirror halves swap glu maxout split se se mlp hour hour resize reshape dropout spatial
computed inplace stack evens twice pixels pairs branch""".split()
CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


def map_norm(rng: Rng, nd: int, n: int) -> nn.Module:
    kind = rng.choice(["batch", "batch", "group", "group", "one group", "instance", "layer", "rms", "own", "own rms"])
    affine = rng.random() < 0.8
    if kind == "batch":
        return BATCH[nd](n, affine=affine)
    if kind == "instance":
        return INSTANCE[nd](n, affine=affine, track_running_stats=rng.random() < 0.3)
    if "group" in kind:
        return nn.GroupNorm(rng.choice(divisors(n)) if kind == "group" else 1, n, affine=affine)
    if kind in ("layer", "rms"):  # channels last
        norm = nn.LayerNorm(n, elementwise_affine=affine) if kind == "layer" else nn.RMSNorm(n)
        return Lambda(lambda m, x: m.norm(x.movedim(1, -1)).movedim(-1, 1), norm=norm)
    return ChannelsFirstNorm(n) if kind == "own" else OwnRMSNorm(n, -1 - nd)


class Excitation(nn.Module):
    """Squeeze and excitation, of linear layers or 1×1 convolutions."""

    def __init__(self, rng: Rng, nd: int, n: int) -> None:
        super().__init__()
        self.linear, few = rng.random() < 0.5, rng.randint(2, 4)
        layer = nn.Linear if self.linear else lambda a, b: CONV[nd](a, b, 1)
        self.reduce, self.act, self.expand = layer(n, few), activation(rng), layer(few, n)

    def forward(self, x: Tensor) -> Tensor:
        if self.linear:
            s = self.expand(self.act(self.reduce(x.flatten(2).mean(-1)))).sigmoid()
            return x * s.view(x.shape[0], x.shape[1], *[1] * (x.ndim - 2))
        s = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        return x * F.hardsigmoid(self.expand(self.act(self.reduce(s))))


class Split(nn.Module):
    """Parts of written sizes that go different ways."""

    def __init__(self, rng: Rng, nd: int, n: int) -> None:
        super().__init__()
        first = rng.randint(1, n - 1)
        self.sizes = [first, n - first]
        self.conv = CONV[nd](first, first, 3, padding=1, groups=rng.choice([1, first]))

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.split(self.sizes, 1)
        return torch.cat([b, self.conv(a)], 1)


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        b, c, *size = x.shape
        return x.view(b, self.groups, c // self.groups, *size).transpose(1, 2).reshape(b, c, *size)


class Pairs(nn.Module):
    """A layer of which two channels are normalised together, laid out as wide as what came in."""

    def __init__(self, nd: int, n: int) -> None:
        super().__init__()
        self.conv, self.norm = CONV[nd](n, n, 1), nn.GroupNorm(n // 2, n)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).flatten(2).sin().view(x.shape[0], x.shape[1], *x.shape[2:])


class Branch(nn.Module):
    """Goes by a width: one tensor or another, one number or another."""

    def __init__(self, rng: Rng, n: int) -> None:
        super().__init__()
        self.width, self.written, self.numbers = n, n if rng.random() < 0.3 else None, rng.random() < 0.3

    def forward(self, x: Tensor) -> Tensor:
        whole = x.shape[1] == (self.width if self.written is None else self.written)
        y = x.tanh()
        return y * (2.0 if whole else 3.0) if self.numbers else y + (x if whole else y)


class Maps(nn.Module):
    """A random graph of steps over a pool of feature maps of one size; the last one comes out."""

    def __init__(self, rng: Rng, nd: int, width: int, steps: int) -> None:
        super().__init__()
        self.layers, self.sources = nn.ModuleList(), []
        pool = [width]  # channels of each feature map made so far
        for _ in range(steps):
            src = rng.randrange(max(0, len(pool) - 4), len(pool))
            layer, made, sources = self.step(rng, nd, pool, src)
            self.layers.append(layer)
            self.sources.append(sources)
            pool.append(made)
        self.width = pool[-1]

    def step(self, rng: Rng, nd: int, pool: list[int], src: int) -> tuple[nn.Module, int, list[int]]:
        kind, n, bias = rng.choice(MAPS), pool[src], rng.random() < 0.7
        if kind in ("halves", "swap", "glu", "split", "maxout", "evens") and n < 4:
            kind = "conv"
        if kind == "conv":
            made, k = rng.choice([2, 3, 4, 5, 6, 8]), rng.choice([1, 3])
            return CONV[nd](n, made, k, padding=k // 2, bias=bias), made, [src]
        if kind in ("depthwise", "grouped"):
            groups = n if kind == "depthwise" else rng.choice(divisors(n)) if n > 1 else 1
            made = groups * rng.choice([1, 1, 2, 3] if groups < 5 else [1])
            return CONV[nd](n, made, 3, padding=1, groups=groups, bias=bias), made, [src]
        if kind == "transposed":
            groups = rng.choice([1, 1, 1, n, rng.choice(divisors(n))]) if n > 1 else 1
            made = groups * rng.randint(1, 2) if groups > 1 else rng.randint(2, 8)
            return TRANSPOSED[nd](n, made, 3, padding=1, groups=groups, bias=bias), made, [src]
        if kind in ("sum", "mul", "cat"):
            others = [i for i, c in enumerate(pool) if (c + n <= 16 if kind == "cat" else c == n)]
            sources = [src, rng.choice(others or [src])]
            if kind == "cat" and others:
                return Lambda(lambda m, a, b: torch.cat([a, b], 1)), n + pool[sources[1]], sources
            return Lambda((lambda m, a, b: a * b) if kind == "mul" else (lambda m, a, b: a + b)), n, sources
        if kind in ("glu", "maxout", "evens") and n % 2 == 0:
            plain = {
                "glu": lambda m, x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1].sigmoid(),
                "maxout": lambda m, x: x.unflatten(1, (-1, 2)).amax(2),
                "evens": lambda m, x: x[:, ::2] - x[:, 1::2],
            }
            return Lambda(plain[kind]), n // 2, [src]
        if kind == "twice" and n < 6:
            return Lambda(lambda m, x: torch.cat([x, x.repeat(1, 1, *[1] * (x.ndim - 2)).relu()], 1)), 2 * n, [src]
        if kind == "stack" and n < 6:
            return Lambda(lambda m, x: torch.stack([x, x.tanh()], 2).flatten(1, 2)), 2 * n, [src]
        return self.same_width(rng, nd, n, kind), n, [src]

    def same_width(self, rng: Rng, nd: int, n: int, kind: str) -> nn.Module:
        if kind == "norm":
            return map_norm(rng, nd, n) if n > 1 else BATCH[nd](n)
        if kind == "act":
            return nn.PReLU(n) if rng.random() < 0.2 else activation(rng)
        if kind == "pairs" and n % 2 == 0 and n > 2:
            return Pairs(nd, n)
        if kind == "branch":
            return Branch(rng, n)
        if kind == "affine":
            scale = nn.ParameterList([torch.rand(n, *[1] * nd) + 0.5])
            return Lambda(lambda m, x: x * m.scale[0], scale=scale)
        if kind == "se":
            return Excitation(rng, nd, n)
        if kind == "mlp":
            return Lambda(lambda m, x: x + m.mlp(x.movedim(1, -1)).movedim(-1, 1), mlp=Mlp(rng, n))
        if kind == "split":
            return Split(rng, nd, n)
        if kind == "hour":  # down, and up again
            inner, mode = rng.randint(3, 6), rng.choice(["zeros", "circular"])
            up = rng.choice([CONV[nd](inner, n, 3, padding=1), TRANSPOSED[nd](inner, n, 2, stride=2)])
            down = nn.Sequential(CONV[nd](n, inner, 3, 2, 1, padding_mode=mode), activation(rng))
            return Lambda(lambda m, x: x + F.interpolate(m.up(m.down(x)), x.shape[2:]), down=down, up=up)
        if kind == "spatial":  # where to look, from the mean and the largest of all channels
            look = CONV[nd](2, 1, 3, padding=1)
            return Lambda(
                lambda m, x: x * m.look(torch.cat([x.mean(1, True), x.amax(1, True)], 1)).sigmoid(), look=look
            )
        if kind == "computed":  # a layer whose weight is no parameter
            return nn.utils.parametrizations.weight_norm(CONV[nd](n, n, 1))
        if kind == "pixels" and nd == 2:
            return Lambda(lambda m, x: F.avg_pool2d(F.pixel_shuffle(m.conv(x), 2), 2), conv=nn.Conv2d(n, 4 * n, 1))
        if kind == "blend":
            return Shuffle(rng.choice(divisors(n)) if n > 1 else 1)
        plain = {
            "max": lambda m, x: getattr(F, f"max_pool{nd}d")(x, 3, 1, 1),
            "avg": lambda m, x: getattr(F, f"avg_pool{nd}d")(x, 3, 1, 1),
            "shuffle": lambda m, x: x.transpose(1, -1).contiguous().flip(1).transpose(-1, 1),
            "flip": lambda m, x: x.flip(-1).clone(),
            "mirror": lambda m, x: x + x.flip(1),
            # a split at a fixed place: channels on both sides cannot be removed freely
            "halves": lambda m, x: torch.cat([torch.relu(x.tensor_split(2, 1)[1]), x.tensor_split(2, 1)[0]], 1),
            "swap": lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1),
            "resize": lambda m, x: F.interpolate(x, scale_factor=2).flatten(2)[..., : x[0, 0].numel()].view_as(x),
            "reshape": lambda m, x: x.flatten(2).transpose(1, 2).softmax(1).transpose(1, 2).reshape(x.shape),
            "dropout": lambda m, x: F.dropout(x, 0.3, m.training),
            "inplace": lambda m, x: x.clone().add_(x).mul_(0.5).relu_(),
        }
        return Lambda(plain.get(kind, plain["reshape"]))

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for layer, sources in zip(self.layers, self.sources, strict=True):
            maps.append(layer(*(maps[i] for i in sources)))
        return maps[-1]


class RandomNetwork(nn.Module):
    """Feature maps in one to three dimensions, and a small classifier of them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = Rng(seed)
        self.nd = rng.choice([1, 2, 2, 2, 3])
        self.size = {1: 12, 2: 6, 3: 4}[self.nd]
        channels = rng.randint(3, 8)
        self.stem = CONV[self.nd](2, channels, 3, padding=1)
        self.trunk = Maps(rng, self.nd, channels, rng.randint(2, 9))
        self.flatten = rng.random() < 0.5
        last = self.trunk.width
        self.hidden = nn.Linear(last * self.size**self.nd if self.flatten else last, 5)
        self.head = nn.Linear(5, 3)

    def inputs(self, batch: int, generator: torch.Generator) -> Tensor:
        shape = (batch, 2, *[self.size] * self.nd)
        return torch.randn(shape, generator=generator, dtype=self.head.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(self.stem(x))
        return self.head(F.relu(self.hidden(x.flatten(1) if self.flatten else x.flatten(2).mean(-1))))


class RandomPatches(nn.Module):
    """Feature maps that become tokens, and sometimes maps again."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = Rng(seed)
        channels, width, self.grid = rng.choice([3, 4, 6]), rng.choice([4, 6, 8]), rng.choice([2, 2, 3])
        self.stem = nn.Conv2d(2, channels, 3, padding=1)
        self.maps = Maps(rng, 2, channels, rng.randint(0, 3))
        self.patches = nn.Conv2d(self.maps.width, width, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, width)) if rng.random() < 0.5 else None
        tokens = self.grid**2 + (self.token is not None)
        self.place = nn.Parameter(torch.randn(1, tokens, width)) if rng.random() < 0.7 else None
        self.tokens = Tokens(rng, width, tokens, rng.randint(1, 2))
        width = self.tokens.width
        self.norm = token_norm(rng, width)
        self.way = rng.choice(["unflatten", "reshape", "view"])
        self.back = Maps(rng, 2, width, rng.randint(1, 3)) if rng.random() < 0.4 else None
        self.head = nn.Linear(width if self.back is None else self.back.width, 3)

    def inputs(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, 2, *[2 * self.grid] * 2, generator=generator, dtype=self.head.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(self.maps(self.stem(x))).flatten(2).transpose(1, 2)
        if self.token is not None:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.norm(self.tokens(x if self.place is None else x + self.place))
        if self.back is None:
            return self.head(x.mean(1) if self.token is None else x[:, 0])
        x = (x if self.token is None else x[:, 1:]).transpose(1, 2)
        b, c, _ = x.shape
        if self.way == "unflatten":
            x = x.unflatten(2, (self.grid, self.grid))
        else:
            x = x.reshape(b, c if self.way == "reshape" else -1, self.grid, self.grid)
        return self.head(self.back(x).mean((2, 3)))


# --- sums over other dimensions, and norms of one's own ---------------------------------------------------------------


class Mixture(nn.Module):
    """A function of tokens in a residual connection: layers over tokens, over channels as places, by einsum, by vectors."""

    def __init__(self, rng: Rng, width: int, tokens: int) -> None:
        super().__init__()
        self.kind = rng.choice(
            ["tokens", "tokens", "text", "experts", "vector", "sum", "time", "window", "outer", "attention"]
        )
        inner, self.act = rng.randint(2, 6), activation(rng)
        if self.kind == "tokens":
            layers = [nn.Conv1d(tokens, inner, 1), self.act, nn.Conv1d(inner, tokens, 1)]
            if rng.random() < 0.5:  # each unit's channels, too
                layers[2:2] = [nn.Linear(width, width, bias=rng.random() < 0.5)]
            self.body: nn.Module = nn.Sequential(*layers)
        elif self.kind == "text":
            self.conv, self.back = nn.Conv2d(1, inner, (rng.choice([1, 2]), width)), nn.Linear(inner, width)
        elif self.kind == "experts":
            self.up, self.down = (nn.Parameter(torch.randn(2, a, b) / 2) for a, b in ((width, inner), (inner, width)))
        elif self.kind in ("vector", "sum"):
            self.v = nn.Parameter(torch.randn(width))
        elif self.kind == "window":
            self.window = nn.Conv1d(1, 1, 3, padding=1)
        elif self.kind == "outer":
            self.a, self.b, self.back = nn.Linear(width, inner), nn.Linear(width, 3), nn.Linear(3, width)
        elif self.kind == "attention":
            self.body = OneScore(rng, width)
        self.norm = rng.choice([OwnNames, UnitLength, OwnNames, nn.LayerNorm])(width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.kind in ("tokens", "attention"):
            y = self.body(y)
        elif self.kind == "text":
            z = self.act(self.conv(y[:, None])).flatten(2).amax(2)
            y = self.back(z)[:, None]
        elif self.kind == "experts":
            y = torch.einsum("ebth,ehd->ebtd", self.act(torch.einsum("btd,edh->ebth", y, self.up)), self.down).sum(0)
        elif self.kind == "vector":
            y = y * (y @ self.v).tanh()[..., None]
        elif self.kind == "sum":
            y = y * (self.act(y) * self.v).sum(-1, keepdim=True).sigmoid()
        elif self.kind == "time":
            y = torch.fft.irfft(torch.fft.rfft(y, dim=1) * 0.5, n=y.shape[1], dim=1)
        elif self.kind == "window":
            y = y * self.window(y.mean(1, keepdim=True)).sigmoid()
        elif self.kind == "outer":
            y = self.back((self.a(y)[..., :, None] * self.b(y)[..., None, :]).amax(2))
        return x + y


class OneScore(nn.Module):
    """Attention of a single head whose scores come from two vectors."""

    def __init__(self, rng: Rng, width: int) -> None:
        super().__init__()
        self.source, self.target = (nn.Parameter(torch.randn(width)) for _ in range(2))
        self.value = nn.Linear(width, width, bias=rng.random() < 0.5)

    def forward(self, x: Tensor) -> Tensor:
        score = (x * self.source).sum(-1)[..., :, None] + (x @ self.target)[..., None, :]
        return F.leaky_relu(score).softmax(-1) @ self.value(x)


class OwnNames(nn.Module):
    """LayerNorm with other names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.g, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.g, self.shift)


class UnitLength(nn.Module):
    """To unit length, by a sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale, self.g = width**0.5, nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * self.scale * self.g


class RandomMixture(nn.Module):
    """Vectors, mixtures, and their mean or largest."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = Rng(seed)
        width, self.tokens = rng.choice([4, 6, 8]), rng.randint(3, 5)
        self.stem = nn.Linear(3, width)
        self.trunk = nn.Sequential(*(Mixture(rng, width, self.tokens) for _ in range(rng.randint(1, 3))))
        self.largest, self.head = rng.random() < 0.5, nn.Linear(width, 3)

    def inputs(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, self.tokens, 3, generator=generator, dtype=self.head.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(self.stem(x))
        return self.head(x.amax(1) if self.largest else x.mean(1))


FAMILIES = {"maps": RandomNetwork, "sequences": RandomSequence, "patches": RandomPatches, "mixtures": RandomMixture}
