"""What watching finds, op by op: which channels are tied, which stay, and what the report says of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import Lambda, close_randomly, relative


def conv(a: int, b: int, k: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=k // 2, **options)


def units(sparse: zg.Sparsified) -> dict[str, int]:
    return {g.name: g.units for g in sparse.groups}


def check_exact(model: nn.Module, x: Tensor, **options: object) -> zg.Sparsified:
    """Sparsifies in float64 and compares after several random closings."""
    model = model.double()
    sparse = zg.sparsify(model, x.double(), **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        close_randomly(sparse, generator)
        small = sparse.compact().eval()
        fresh = torch.randn(x.shape, dtype=torch.float64)
        assert relative(model.eval()(fresh), small(fresh)) <= 1e-10
    return sparse


def check_shares(model: nn.Module, *inputs: Tensor, atol: float = 1e-12) -> zg.Sparsified:
    """Sparsifies in float64, closes 30 % and 80 % of all channels and heads at random, and compares."""
    model = model.double()
    doubled = tuple(x.double() if x.is_floating_point() else x for x in inputs)
    sparse = zg.sparsify(model, doubled, unit={"channel", "head"})
    generator = torch.Generator().manual_seed(0)
    for share in (0.3, 0.8):
        with torch.no_grad():
            closed = torch.rand(len(sparse.logits), generator=generator) < share
            sparse.logits.copy_(torch.where(closed, -8.0, 8.0))
        small = sparse.compact().eval()
        assert sum(p.numel() for p in small.parameters()) < sparse.dense_cost.params
        with torch.no_grad():
            assert relative(model.eval()(*doubled), small(*doubled)) <= atol
    return sparse


def into_zeros(x: Tensor) -> Tensor:
    """Rows are written one by one, and two more stay what they were."""
    out = torch.zeros(*x.shape[:2], x.shape[2] + 2, x.shape[3], dtype=x.dtype)
    for i in range(x.shape[2]):
        out[:, :, i] = x[:, :, i] * i
    return out + 1


def put_at_places(x: Tensor) -> Tensor:
    out = x.permute(0, 2, 3, 1).clone()
    out[torch.tensor([0, 1]), torch.tensor([2, 5])] = out[:, 0] * 2
    out[:, 1] = 0.5
    return out.permute(0, 3, 1, 2)


# Between two convolutions, 8 channels pass through an op and go on, as 8 free units.
PASSING = {
    "relu in place": lambda x: F.relu(x, inplace=True),
    "hardswish in place": lambda x: F.hardswish(x, inplace=True),
    "chained in place": lambda x: x.add_(1).mul_(2).clamp_(-1, 1),
    "gelu": F.gelu,
    "softplus": F.softplus,
    "max pool": lambda x: F.max_pool2d(x, 2),
    "max pool with indices": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "average pool": lambda x: F.avg_pool2d(x, 3, 1, 1),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(x, 3),
    "upsample": lambda x: F.interpolate(x, scale_factor=2),
    "bilinear": lambda x: F.interpolate(x, size=(5, 5), mode="bilinear"),
    "zero padding": lambda x: F.pad(x, (1, 2, 0, 1)),
    "reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
    "transpose space": lambda x: x.transpose(2, 3),
    "crop": lambda x: x[:, :, 1:-1, ::2],
    "roll space": lambda x: x.roll(1, -1),
    "flip channels": lambda x: x.flip(1),
    "stack and take": lambda x: torch.stack([x, -x])[0] + torch.stack([x, -x], 1)[:, 1],
    "split batch": lambda x: torch.cat(x.split(1), 0),
    "unbind rows": lambda x: torch.stack(x.unbind(2), 2),
    "spatial mean kept": lambda x: x - x.mean((2, 3), keepdim=True),
    "spatial softmax": lambda x: x.flatten(2).softmax(-1).view_as(x),
    "flatten and back": lambda x: x.flatten(2).unflatten(2, x.shape[2:]),
    "zeros like": lambda x: torch.cat([x, torch.zeros_like(x)], 2),
    "dropout": lambda x: F.dropout2d(x, 0.5, training=False),
    "to and back": lambda x: x.to(torch.float32).to(x.dtype) * 0 + x,
    "where": lambda x: torch.where(x > 0, x, 0.1 * x),
    "gated rows": lambda x: F.glu(x, 2),
    "picked rows": lambda x: x.gather(2, torch.tensor([[3], [1]])[:, None, :, None].expand(2, x.shape[1], 1, 6)),
    "into zeros": lambda x: torch.zeros(x.shape, dtype=x.dtype).add_(x),
    "into part of zeros": into_zeros,
    "put at places": put_at_places,
    "summed at places": lambda x: x.new_zeros(x.shape).index_add_(2, torch.tensor([0, 0, 1, 2, 3, 4]), x),
    "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
    "expand": lambda x: x.unsqueeze(0).expand(2, *x.shape).mean(0),
    "minimum": lambda x: torch.minimum(x, x.amax((2, 3), keepdim=True) / 2),
    "chunk of glued halves": lambda x: torch.cat([x, x], 1).chunk(2, 1)[1],
    "fold into equal rows": lambda x: torch.cat([x, -x], 1).view(x.shape[0], 2, -1, *x.shape[2:]).sum(1),
}


@pytest.mark.parametrize("name", PASSING)
def test_ops_that_pass_channels_on(name: str) -> None:
    op = PASSING[name]
    model = Lambda(lambda m, x: m.head(m.b(op(m.a(x))).mean((2, 3))), a=conv(3, 8), b=conv(8, 5), head=nn.Linear(5, 2))
    assert units(check_exact(model, torch.randn(2, 3, 6, 6))) == {"a": 8, "b": 5}


# The same place, but the op cannot work with fewer channels or mixes them: they stay, and the reason is given.
REFUSING = {
    "softmax over channels": (lambda x: x.softmax(1), "softmax over channels"),
    "mean over channels": (lambda x: x.mean(1, keepdim=True) + x, "mean over channels"),
    "fixed slice": (lambda x: torch.cat([x[:, 3:], x[:, :3]], 1), "slice at a fixed place among channels"),
    "three channels": (lambda x: torch.cat([x[:, :3], x], 1)[:, 3:], "slice at a fixed place among channels"),
    "roll channels": (lambda x: x.roll(1, 1), "roll among channels"),
    "uneven thirds": (lambda x: torch.cat(x.chunk(3, 1)[::-1], 1), "chunk at a fixed place among channels"),
    "shuffle to written sizes": (
        lambda x: x.view(2, 2, 4, 6, 6).transpose(1, 2).reshape(2, 8, 6, 6),
        "view to a size that is written down",
    ),
    "index": (lambda x: x[:, [1, 0, 2, 3, 4, 5, 7, 6]], "index among channels"),
    "literal size": (lambda x: x.reshape(-1, 8, 6, 6), "reshape to a size that is written down"),
    "cumulative sum": (lambda x: x.cumsum(1), "cumsum over channels"),
    "sort": (lambda x: x.sort(1).values, "sort over channels"),
    "matmul": (lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2) @ x.flatten(2), "matmul over all channels"),
    "index by values": (lambda x: x[x.flatten(1).argmax(1) % 2], "argmax over channels"),
    "index by a mask": (lambda x: x[(x > 9e9).sum((1, 2, 3)) == 0], "sum over channels"),
    "picked at channels' places": (lambda x: x.gather(1, (x > 0).long()), "gather among channels"),
    "written into": (lambda x: torch.zeros(2, 8, 6, 6, dtype=x.dtype).add_(x), "tensors whose sizes no longer agree"),
    "convolution along channels": (
        lambda x: (
            F.conv1d(x.mean((2, 3))[:, None], torch.ones(1, 1, 3, dtype=x.dtype), padding=1)[:, 0, :, None, None] * x
        ),
        "conv1d in a window that moves over channels",
    ),
    "control flow": (lambda x: x if x.sum().item() else -x, "over channels"),
}


# The same place, but channels must be tied for the op to go on working: fewer units, still exact.
TYING = {
    "halves swapped": (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 4),
    "quarters": (lambda x: torch.cat(x.split(x.shape[1] // 4, 1)[::-1], 1), 2),
    "shuffle": (lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2), 4),
    "channel shuffle": (lambda x: F.channel_shuffle(x, 4), 2),
    "pixel shuffle": (lambda x: F.pixel_unshuffle(F.pixel_shuffle(x, 2), 2), 2),
    "interleaved": (lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1), 4),
    "mirrored": (lambda x: x + x.flip(1), 4),
    "gated linear unit": (lambda x: torch.cat([F.glu(x, 1), F.glu(-x, 1)], 1), 4),
    "instance norm": (lambda x: F.instance_norm(x), 8),
    "group norm": (lambda x: F.group_norm(x, x.shape[1]), 8),
}


@pytest.mark.parametrize("name", TYING)
def test_ops_that_tie_channels(name: str) -> None:
    op, expected = TYING[name]
    model = Lambda(lambda m, x: m.head(m.b(op(m.a(x))).mean((2, 3))), a=conv(3, 8), b=conv(8, 5), head=nn.Linear(5, 2))
    assert units(check_exact(model, torch.randn(2, 3, 6, 6))) == {"a": expected, "b": 5}


@pytest.mark.parametrize("name", REFUSING)
def test_ops_that_need_all_channels(name: str) -> None:
    op, reason = REFUSING[name]

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        y = op(m.a(x))
        return m.head(m.b(y.view(2, -1, 6, 6) if y.shape[1] == 8 else y.view(2, 8, 6, -1)).mean((2, 3)))

    model = Lambda(forward, a=conv(3, 8), b=conv(8, 5), head=nn.Linear(5, 2))
    sparse = check_exact(model, torch.randn(2, 3, 6, 6))
    assert units(sparse) == {"b": 5}
    (row,) = [r for r in sparse.report().rows if r.layer == "a"]
    assert row.status == "refused"
    assert reason in row.reason
    assert "depends" in reason or "test_find.py" in row.reason  # where in the user's code


def test_residual_sums_tie_and_concatenations_do_not() -> None:
    model = Lambda(
        lambda m, x: m.head(torch.cat([m.a(x) + m.b(x), m.c(x)], 1).mean((2, 3))),
        a=conv(3, 4),
        b=conv(3, 4),
        c=conv(3, 6),
        head=nn.Linear(10, 2),
    )
    sparse = check_exact(model, torch.randn(2, 3, 5, 5))
    assert [(g.name, g.units, g.producers, g.consumers) for g in sparse.groups] == [
        ("a", 4, ("a", "b"), ("head",)),
        ("c", 6, ("c",), ("head",)),
    ]
    assert [g.slice for g in sparse.groups] == [slice(0, 4), slice(4, 10)]


def test_depthwise_convolutions_are_part_of_their_channel() -> None:
    model = Lambda(
        lambda m, x: m.head(m.out(F.relu6(m.norm(m.deep(m.a(x))))).mean((2, 3))),
        a=conv(3, 4),
        deep=conv(4, 8, groups=4),
        norm=nn.BatchNorm2d(8),
        out=conv(8, 5, 1),
        head=nn.Linear(5, 2),
    )
    sparse = check_exact(model, torch.randn(2, 3, 5, 5))
    assert units(sparse) == {"a": 4, "out": 5}
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    small = sparse.compact()
    assert (small.deep.in_channels, small.deep.out_channels, small.deep.groups) == (1, 2, 1)


@pytest.mark.parametrize("nd", [1, 2, 3])
def test_transposed_convolutions(nd: int) -> None:
    up = getattr(nn, f"ConvTranspose{nd}d")
    model = nn.Sequential(up(3, 6, 3), nn.ReLU(), up(6, 6, 3, groups=6), up(6, 4, 2, stride=2), nn.Flatten())
    x = torch.randn(2, 3, *[3] * nd)
    model.append(nn.Linear(model(x).shape[1], 2))
    assert units(check_exact(model, x)) == {"0": 6, "3": 4}


def test_flattened_channels_own_several_inputs() -> None:
    model = nn.Sequential(conv(1, 4), nn.Flatten(), nn.Linear(4 * 25, 7), nn.BatchNorm1d(7), nn.Linear(7, 2))
    sparse = check_exact(model, torch.randn(2, 1, 5, 5))
    assert units(sparse) == {"0": 4, "2": 7}
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    assert sparse.compact()[2].in_features == 25


def test_parameters_used_directly_are_sliced_with_their_channels() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)
            self.scale, self.shift = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(1, 6))
            self.register_buffer("offset", torch.randn(6))
            self.temperature = nn.Parameter(torch.tensor(1.3))

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x) * self.scale + self.shift - self.offset) * self.temperature)

    sparse = check_exact(Scaled(), torch.randn(4, 3))
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    small = sparse.compact()
    assert (small.scale.shape, small.shift.shape, small.offset.shape) == ((1,), (1, 1), (1,))
    assert isinstance(small.scale, nn.Parameter)
    assert not isinstance(small.offset, nn.Parameter)


def test_computed_weights_in_modules_that_do_more_stay() -> None:
    """The weight that meets the channels is no parameter, and its module no plain layer: its channels stay, and why."""

    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, w, self.bias).relu()

    model = nn.Sequential(conv(3, 6), Standardised(6, 5, 1), conv(5, 4), nn.Flatten(), nn.Linear(100, 2))
    sparse = check_exact(model, torch.randn(2, 3, 5, 5))
    assert units(sparse) == {"2": 4}
    assert "weight is computed" in str(sparse.report())


def test_control_flow_and_reused_modules_are_seen() -> None:
    class Looped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.body, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            for _ in range(3 if x.shape[0] > 1 else 1):
                x = torch.relu(self.body(x))
            return self.head(x)

    sparse = check_exact(Looped(), torch.randn(4, 3))
    assert sparse.groups[0].producers == ("a", "body")
    assert units(sparse) == {"a": 6}


def test_unused_layers_do_not_disturb() -> None:
    model = Lambda(lambda m, x: m.b(m.a(x)), a=nn.Linear(3, 6), b=nn.Linear(6, 2), spare=nn.Linear(9, 9))
    sparse = check_exact(model, torch.randn(2, 3))
    assert sparse.dense_cost.params == sum(p.numel() for p in model.parameters())


def test_report_as_text_markdown_and_dict() -> None:
    sparse = zg.sparsify(zg.models.convnet(), torch.randn(2, 1, 8, 8))
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    report = sparse.report()
    assert f"parameters {sparse.cost().params:,} of {sparse.dense_cost.params:,}" in str(report)
    assert report.markdown().splitlines()[1].startswith("| ---") or "| --- |" in report.markdown()
    found = report.as_dict()
    assert found["params"] == [sparse.cost().params, sparse.dense_cost.params]
    weights = {n: p for n, p in sparse.compact().named_parameters() if p.ndim > 1}
    assert [row["params"][0] for row in found["rows"]] == [p.numel() for p in weights.values()]
    assert found["rows"][-1]["reason"] == "an output of the network"


class Float32RMSNorm(nn.Module):
    """As many decoders have it; its statistics are taken in float32, whatever the model is in."""

    def __init__(self, width: int, offset: float) -> None:
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.randn(width) * 0.1), offset

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)
        return y.to(x.dtype) * (self.offset + self.weight)


class PlainLayerNorm(nn.Module):
    """In float32 and without parameters: its width is an attribute alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.normalized_shape = (width,)

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.to(torch.float32), self.normalized_shape).to(x.dtype)


@pytest.mark.parametrize("norm", [Float32RMSNorm(8, 0.0), Float32RMSNorm(8, 1.0), PlainLayerNorm(8)])
def test_norms_in_float32_are_taken_over_the_kept_channels(norm: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 8), norm, nn.Linear(8, 4), nn.Linear(4, 2)).double()
    sparse = zg.sparsify(model, torch.randn(4, 3, dtype=torch.float64))
    assert units(sparse) == {"0": 8, "2": 4}
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    small = sparse.compact()
    assert small.zerogate_plan["difference"] <= 1e-14
    assert small[0].out_features == 1


class StackedMatrices(nn.Module):
    """A network of its own for each part of the input, as experts have."""

    def __init__(self, left: bool) -> None:
        super().__init__()
        self.left, self.stem, self.head = left, nn.Linear(3, 6), nn.Linear(5, 2)
        self.up, self.down = nn.Parameter(torch.randn(4, 6, 7)), nn.Parameter(torch.randn(4, 7, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).expand(4, *x.shape[:-1], -1)
        y = (self.down.mT @ (self.up.mT @ y.mT).relu()).mT if self.left else torch.bmm((y @ self.up).relu(), self.down)
        return self.head(y.sum(0))


@pytest.mark.parametrize("left", [False, True])
def test_stacks_of_matrices(left: bool) -> None:
    sparse = check_shares(StackedMatrices(left), torch.randn(5, 3))
    assert units(sparse) == {"stem": 6, "": 7, "#2": 5}


class EinsumAttention(nn.Module):
    """Weights of three dimensions: width, heads, head size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.q, self.k, self.v, self.o = (nn.Parameter(torch.randn(8, 4, 3)) for _ in range(4))
        self.q_bias = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = (torch.einsum("bic,chd->bihd", x, w) for w in (self.q, self.k, self.v))
        scores = torch.einsum("bihd,bjhd->bhij", q + self.q_bias, k).softmax(-1)
        y = torch.einsum("bhij,bjhd->bihd", scores, v)
        return self.head(x + torch.einsum("bihd,chd->bic", y, self.o))


def test_einsum_with_weights_of_three_dimensions() -> None:
    sparse = check_shares(EinsumAttention(), torch.randn(2, 5, 3))
    assert sorted((g.kind, g.units) for g in sparse.groups) == [("channel", 8), ("head", 4)]
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    assert sparse.compact().o.shape == (1, 1, 3)


class Experts(nn.Module):
    """Rows are sorted by expert and go through one matrix each; the kernel takes whole 16 bytes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 16), nn.Linear(16, 2)
        self.up, self.down = nn.Parameter(torch.randn(3, 32, 16) / 4), nn.Parameter(torch.randn(3, 16, 32) / 4)

    def forward(self, x: Tensor) -> Tensor:
        ends, y = torch.tensor([4, 4, 8], dtype=torch.int32), self.stem(x)
        y = F.grouped_mm(y, self.up.mT, offs=ends).relu()
        return self.head(F.grouped_mm(y, self.down.mT, offs=ends))


@pytest.mark.skipif(not hasattr(F, "grouped_mm"), reason="of later versions of torch")
def test_grouped_products_with_widths_that_the_kernel_takes() -> None:
    torch.manual_seed(0)
    model, x = Experts(), torch.randn(8, 3)
    sparse = zg.sparsify(model, x, round_to=8)
    assert units(sparse) == {"stem": 16, "": 32, "#2": 16}
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    small = sparse.compact().eval()
    assert small.down.shape == (3, 8, 8)
    with torch.no_grad():
        assert relative(model.eval()(x), small(x)) <= 1e-5


class WithZeros(nn.Module):
    """Scores get a bias of zeros, made by the first block for both, and a hidden state starts at one."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 6
        self.stem, self.head = nn.Linear(3, 8), nn.Linear(6, 2)
        self.qkv = nn.ModuleList(nn.Linear(8, 24) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.cell, self.enter = nn.Linear(8, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        mask = torch.ones(1, 1, 1, x.shape[1], dtype=x.dtype).cumsum(-1)
        bias = torch.zeros(1, self.heads, x.shape[1], x.shape[1], dtype=x.dtype) - mask
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = qkv(x).view(*x.shape[:2], 3, self.heads, 2).permute(2, 0, 3, 1, 4)
            x = x + out(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))
        state = x.new_full((len(x), self.width), 0.5).mul(2)
        for step in x.unbind(1):
            state = torch.tanh(self.cell(step) + state)
        return self.head(state)


def test_constants_of_a_size_that_follows() -> None:
    sparse = check_shares(WithZeros(), torch.randn(2, 5, 3))
    assert sorted((g.kind, g.units) for g in sparse.groups) == [("channel", 6), ("channel", 8), ("head", 4)]
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    small = sparse.compact()
    assert (small.heads, small.width) == (1, 1)


UNEVEN = {
    "linspace": lambda n: torch.linspace(0, 1, n, dtype=torch.float64),
    "cumulative": lambda n: torch.ones(n, dtype=torch.float64).cumsum(0),
    "sum": lambda n: torch.ones(n, dtype=torch.float64) * torch.ones(n).sum(),
}


@pytest.mark.parametrize("name", UNEVEN)
def test_constants_that_differ_along_the_channels_stay(name: str) -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        return m.c(m.b(torch.tanh(m.a(x)) * UNEVEN[name](m.width)))

    model = Lambda(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2))
    model.width = 6  # type: ignore[assignment]
    assert units(check_shares(model, torch.randn(4, 3))) == {"b": 5}


class TalkingHeads(nn.Module):
    """A convolution over heads between scores and values: one attribute counts the heads of both."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.stem, self.head = 4, nn.Linear(3, 8), nn.Linear(8, 2)
        self.q, self.k, self.v = (nn.Linear(8, 12) for _ in range(3))
        self.out = nn.Linear(12, 8)
        self.talk = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = (f(x).view(*x.shape[:2], self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = self.talk(q @ k.mT).softmax(-1) @ v
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


def test_one_attribute_that_counts_two_things_ties_them() -> None:
    sparse = check_shares(TalkingHeads(), torch.randn(2, 5, 3))
    assert sorted(g.units for g in sparse.groups) == [4, 8]
    (heads,) = (g for g in sparse.groups if g.units == 4)
    assert set(heads.producers) == {"q", "k", "v", "talk"}


class Stages(nn.Module):
    """Attention that gives its result the width of its input: with one head, where nothing can go, and with three."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            n, t, c = x.shape
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, 4).permute(2, 0, 3, 1, 4)
            return x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, t, c))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, 4), nn.Linear(12, 2)
        self.narrow, self.widen, self.wide = self.Block(4, 1), nn.Linear(4, 12), self.Block(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.widen(self.narrow(self.stem(x)))))


def test_a_width_that_cannot_follow_leaves_others_alone() -> None:
    sparse = check_shares(Stages(), torch.randn(2, 5, 3))
    assert [(g.kind, g.units, set(g.producers)) for g in sparse.groups] == [
        ("head", 3, {"widen", "wide.qkv", "wide.out"})
    ]
    assert "written down" in str(sparse.report())


def test_values_of_a_single_head_are_channels() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.head(F.scaled_dot_product_attention(m.q(x)[:, None], m.k(x)[:, None], m.v(x)[:, None]).squeeze(1))

    layers = {name: nn.Linear(8, 6) for name in "qkv"}
    model = Lambda(forward, stem=nn.Linear(3, 8), head=nn.Linear(6, 2), **layers)
    sparse = check_shares(model, torch.randn(2, 5, 3))
    assert units(sparse) == {"stem": 8, "v": 6}


class AlongPositions(nn.Module):
    """Layers along 5 positions, as linear layer, product and convolution, and a map of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 2)
        self.up, self.down = nn.Linear(5, 7), nn.Linear(7, 5)
        self.mix, self.score = nn.Parameter(torch.randn(5, 5)), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)
        x = (self.mix @ x) * self.score(x).sigmoid()
        return self.head(torch.relu(self.inner(x)))


def test_layers_along_positions_leave_channels_apart() -> None:
    sparse = check_shares(AlongPositions(), torch.randn(2, 5, 3))
    assert units(sparse) == {"stem": 8, "up": 7, "inner": 6}
    assert "single channel" in str(sparse.report())
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    assert sparse.cost().macs == sum(
        [
            5 * 3 * 1,  # stem: positions, in, out
            2 * 1 * 5 * 1,  # up and down, for one channel: positions, units
            1 * 5 * 5,
            5 * 1,
            5 * 1,
            5 * 2,
        ]
    )


class BiasedQueries(nn.Module):
    """A bias per head and place is given two more dimensions before it meets the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.stem, self.head = 3, nn.Linear(3, 8), nn.Linear(8, 2)
        self.qkv, self.out, self.bias = nn.Linear(8, 36), nn.Linear(12, 8), nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, 4).permute(2, 0, 3, 1, 4)
        y = ((q + self.bias[None, :, None, :]) @ k.mT).softmax(-1) @ v
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


def test_parameters_over_heads_and_places_that_are_moved_first() -> None:
    sparse = check_shares(BiasedQueries(), torch.randn(2, 5, 3))
    assert sorted((g.kind, g.units) for g in sparse.groups) == [("channel", 8), ("head", 3)]


class HalvesOfAWidth(nn.Module):
    """Pieces as long as half of an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.a, self.b, self.head = 8, nn.Conv2d(3, 8, 1), nn.Conv2d(4, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).split(self.width // 2, 1)
        return self.head(self.b(torch.tanh(left) * right).mean((2, 3)))


def test_sizes_that_are_worked_out_from_an_attribute() -> None:
    sparse = check_shares(HalvesOfAWidth(), torch.randn(2, 3, 4, 4))
    assert units(sparse) == {"a": 4, "b": 5}
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    assert sparse.compact().width == 2


class Detections(nn.Module):
    """Boxes whose score is high enough, as many as there are, and nothing where there are none."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.a, self.b, self.boxes, self.scores = conv(3, 8), conv(8, 6), conv(6, 4), conv(6, 3)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        boxes, scores = self.boxes(x).flatten(2).mT.flatten(0, 1), self.scores(x).flatten(2).mT.flatten(0, 1)
        score, kind = scores.max(1)
        found = score > self.threshold
        parts = [torch.cat([boxes[found], score[found][:, None], kind[found][:, None]], 1)]
        return torch.cat([boxes.new_zeros(0, 6), *parts, *(part[len(part) :] for part in parts)])


@pytest.mark.parametrize("threshold", [0.1, 1e6], ids=["some", "none"])
def test_shapes_that_follow_from_values_after_the_last_channel(threshold: float) -> None:
    """A smaller network finds others: as many as the gated one, whatever the record says."""
    torch.manual_seed(0)
    sparse = zg.sparsify(Detections(threshold).double(), torch.randn(2, 3, 6, 6).double())
    assert sorted(g.units for g in sparse.groups) == [6, 8]
    counts = []
    for seed in range(5):
        close_randomly(sparse, torch.Generator().manual_seed(seed))
        small, fresh = sparse.compact().eval(), torch.randn(3, 3, 9, 9, dtype=torch.float64)
        gated, found = sparse.model.eval()(fresh), small(fresh)
        assert gated.shape == found.shape
        assert not len(found) or relative(gated, found) <= 1e-10
        counts.append(len(found))
    assert len(set(counts)) > 1 if threshold < 1 else not any(counts)
