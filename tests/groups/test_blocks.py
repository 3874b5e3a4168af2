"""Small networks as people build them: trained with gates, compacted, trained on."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly, relative

BOTH = ("channel", "head")


class EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Dropout(0.1), nn.Linear(20, width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Class token, learnt positions, nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, 4)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, 12)), nn.Parameter(torch.randn(1, 5, 12) * 0.02)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.Sequential(EncoderBlock(12, 3), EncoderBlock(12, 3))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        return self.head(self.norm(self.blocks(self.drop(x)))[:, 0])


class Bottleneck(nn.Module):
    """1×1, 3×3 in groups, 1×1, squeeze and excitation, residual."""

    def __init__(self, a: int, b: int, groups: int, stride: int = 1) -> None:
        super().__init__()
        inner = 2 * groups
        self.conv1, self.norm1 = nn.Conv2d(a, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.reduce, self.expand = nn.Conv2d(inner, 3, 1), nn.Conv2d(3, inner, 1)
        self.conv3, self.norm3 = nn.Conv2d(inner, b, 1, bias=False), nn.BatchNorm2d(b)
        same = a == b and stride == 1
        down = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))
        self.down = nn.Identity() if same else down

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = y * torch.sigmoid(self.expand(F.relu(self.reduce(y.mean((2, 3), keepdim=True)))))
        return F.relu(self.norm3(self.conv3(y)) + self.down(x))


class ResNet(nn.Module):
    """Squeeze and excitation, convolutions in groups and by channel, BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.blocks = nn.Sequential(Bottleneck(8, 8, 4), Bottleneck(8, 12, 5, 2), Bottleneck(12, 12, 6))
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.blocks(self.stem(x)).mean((2, 3))))


class RMSNorm(nn.Module):
    """In float32 at least, and back: what decoders do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        y = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * y.to(x.dtype)


class DecoderBlock(nn.Module):
    """Grouped queries with rotary positions, and a gated network."""

    def __init__(self, width: int, heads: int, kv_heads: int, dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.dim = heads, kv_heads, dim
        self.norm1, self.norm2 = RMSNorm(width), RMSNorm(width)
        self.q = nn.Linear(width, heads * dim, bias=False)
        self.k, self.v = nn.Linear(width, kv_heads * dim, bias=False), nn.Linear(width, kv_heads * dim, bias=False)
        self.o = nn.Linear(heads * dim, width, bias=False)
        self.gate, self.up = nn.Linear(width, 18, bias=False), nn.Linear(width, 18, bias=False)
        self.down, self.drop = nn.Linear(18, width, bias=False), nn.Dropout(0.1)

    def turned(self, x: Tensor) -> Tensor:
        half = self.dim // 2
        angle = torch.arange(x.shape[2], device=x.device)[:, None] * 100.0 ** -(torch.arange(half) / half)
        cos, sin = torch.cat([angle, angle], 1).cos().to(x), torch.cat([angle, angle], 1).sin().to(x)
        a, b = x.chunk(2, -1)
        return x * cos + torch.cat([-b, a], -1) * sin

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (f(y).view(*y.shape[:2], -1, self.dim).transpose(1, 2) for f in (self.q, self.k, self.v))
        repeats = self.heads // self.kv_heads
        k, v = self.turned(k).repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
        y = F.scaled_dot_product_attention(self.turned(q), k, v, is_causal=True)
        x = x + self.drop(self.o(y.transpose(1, 2).flatten(2)))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Decoder(nn.Module):
    """Embedding and head are one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, 12)
        self.blocks = nn.ModuleList([DecoderBlock(12, 6, 3, 4), DecoderBlock(12, 4, 2, 4)])
        self.norm, self.head = RMSNorm(12), nn.Linear(12, 17, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)).transpose(1, 2)


class Encoder(nn.Module):
    """torch's own encoder, with padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(17, 12), nn.Embedding(6, 12)
        layer = nn.TransformerEncoderLayer(12, 3, 20, 0.1, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, nn.LayerNorm(12), enable_nested_tensor=False)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1], device=x.device) >= lengths[:, None]
        x = self.embed(x) + self.place.weight[: x.shape[1]]
        x = self.layers(x, src_key_padding_mask=padding)
        return self.head(x[:, 0])


def images(batch: int) -> tuple[tuple[Tensor, ...], Tensor]:
    y = torch.arange(batch) % 4
    x = torch.randn(batch, 3, 8, 8) * 0.3
    x[torch.arange(batch), :, y // 2 * 4, y % 2 * 4] += 2
    return (x,), y


def sentences(batch: int) -> tuple[tuple[Tensor, ...], Tensor]:
    """The next token is this one plus 3."""
    x = (torch.randint(17, (batch, 1)) + 3 * torch.arange(7)) % 17
    return (x[:, :-1],), x[:, 1:]


def padded(batch: int) -> tuple[tuple[Tensor, ...], Tensor]:
    x = torch.randint(17, (batch, 6))
    return (x, 1 + torch.arange(batch) % 6), x[:, 0] % 4


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[tuple[Tensor, ...], Tensor]]]] = {
    "vit": (ViT, images),
    "resnet": (ResNet, images),
    "decoder": (Decoder, sentences),
    "encoder": (Encoder, padded),
}
each = pytest.mark.parametrize("name", MODELS)


def cast(inputs: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(x.to(dtype) if x.is_floating_point() else x for x in inputs)


def gated(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> zg.Sparsified:
    torch.manual_seed(0)
    make, data = MODELS[name]
    return zg.sparsify(make().to(dtype), cast(data(4)[0], dtype), unit=BOTH, **options)


def half_open(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> zg.Sparsified:
    """About half of each group closed, never all."""
    sparse = gated(name, dtype, **options)
    with torch.no_grad():
        for group in sparse.groups:
            sparse.logits[group.slice] = torch.where(torch.arange(group.units) % 2 == 0, 9.0, -9.0).to(sparse.logits)
    return sparse


def train(
    model: nn.Module, name: str, optimizer: torch.optim.Optimizer, steps: int, extra: Callable[[], Tensor] | None = None
) -> list[float]:
    torch.manual_seed(1)
    (x, y), losses = MODELS[name][1](32), []
    x = cast(x, next(model.parameters()).dtype)
    for _ in range(steps):
        loss = F.cross_entropy(model(*x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss if extra is None else loss + extra()).backward()
        optimizer.step()
    return losses


@each
def test_everything_inside_can_be_removed(name: str) -> None:
    sparse = half_open(name)
    kinds = {group.kind for group in sparse.groups}
    assert kinds == ({"channel"} if name == "resnet" else {"channel", "head"})
    dense, cost = sparse.dense_cost, sparse.cost()
    assert cost.params < 0.5 * dense.params
    assert cost.macs < 0.5 * dense.macs
    small = sparse.compact()
    assert cost.params == sum(p.numel() for p in small.parameters())
    assert all(row.reason in ("", "an output of the network") for row in sparse.report().rows)


@each
def test_a_compacted_model_trains_on(name: str) -> None:
    small = half_open(name).compact()
    assert small.training
    optimizer = torch.optim.Adam(small.parameters(), lr=0.01)
    before = copy.deepcopy(small.state_dict())
    losses = train(small, name, optimizer, 20)
    assert all(loss == loss for loss in losses)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    for key, value in small.state_dict().items():  # also the statistics of BatchNorm
        assert value.shape == before[key].shape
        assert not torch.equal(value, before[key]) or "key" in key or "in_proj_bias" in key, key
    x = MODELS[name][1](4)[0]
    assert not torch.equal(small(*x), small(*x))  # dropout
    assert torch.equal(small.eval()(*x), small(*x))


@each
def test_batch_norm_and_dropout_go_by_the_mode(name: str) -> None:
    small = half_open(name).compact()
    torch.manual_seed(2)
    x = MODELS[name][1](4)[0]
    norms = [m for m in small.modules() if isinstance(m, nn.BatchNorm2d)]
    assert bool(norms) == (name == "resnet")
    assert all(m.num_features == len(m.running_mean) == len(m.weight) for m in norms)
    counts = [int(m.num_batches_tracked) for m in norms]
    small.eval()(*x)
    assert [int(m.num_batches_tracked) for m in norms] == counts
    small.train()(*x)
    assert [int(m.num_batches_tracked) for m in norms] == [n + 1 for n in counts]
    assert all(m.p > 0 and m.training for m in small.modules() if isinstance(m, nn.Dropout))


@each
def test_state_copies_and_pickles(name: str) -> None:
    sparse = half_open(name)
    small, other = sparse.compact(), sparse.compact()
    train(small, name, torch.optim.SGD(small.parameters(), lr=0.1), 3)
    x = MODELS[name][1](4)[0]
    expected = small.eval()(*x)
    assert not torch.equal(other.eval()(*x), expected)
    other.load_state_dict(small.state_dict())
    twins = [other, copy.deepcopy(small), pickle.loads(pickle.dumps(small))]
    for twin in twins:
        assert type(twin) is MODELS[name][0]
        assert torch.equal(twin.eval()(*x), expected)
        assert [n for n, _ in twin.named_parameters()] == [n for n, _ in small.named_parameters()]
    train(twins[1].train(), name, torch.optim.SGD(twins[1].parameters(), lr=0.1), 2)  # of its own
    assert torch.equal(small(*x), expected)
    assert not torch.equal(twins[1].eval()(*x), expected)
    if name == "decoder":
        assert all(twin.head.weight is twin.embed.weight for twin in [small, *twins])


@pytest.mark.parametrize("unit", [BOTH, "weight"])
def test_gates_before_there_are_weights(unit: Any) -> None:
    """A model on the meta device: its channels are found; what needs values says how to come by them."""
    with torch.device("meta"):
        model = ViT()
    x = torch.randn(2, 3, 8, 8)
    sparse = zg.sparsify(model, x, unit=unit)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    assert sparse.cost().params < sparse.dense_cost.params
    for needs_values in (sparse.compact, lambda: sparse.difference(model)):
        with pytest.raises(zg.CompactionError, match=r"meta device.*to_empty"):
            needs_values()
    with pytest.raises(zg.ZerogateError, match=r"meta device.*to_empty"):
        model(x)
    torch.manual_seed(0)
    model.to_empty(device="cpu").load_state_dict(ViT().state_dict())
    small = sparse.compact().eval()
    torch.testing.assert_close(small(x), model.eval()(x))
    sparse.example_inputs = x.to("meta")
    with pytest.raises(zg.CompactionError, match="example inputs are on the meta device"):
        sparse.compact()


class Counts:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any) -> None:
        self.calls += 1


@each
def test_modes_and_hooks_stay(name: str) -> None:
    """Hooks of the user's, registered before and after the gates, are in the compacted model; none of zerogate's are."""
    torch.manual_seed(0)
    make, data = MODELS[name]
    model, x = make(), data(4)[0]
    frozen = [n for n, m in model.named_modules() if isinstance(m, (nn.BatchNorm2d, nn.LayerNorm, nn.Dropout))][::2]
    for path in frozen:
        model.get_submodule(path).eval()
    modes = {n: m.training for n, m in model.named_modules()}
    model.register_forward_hook(Counts())
    model.head.register_forward_pre_hook(Counts())
    sparse = zg.sparsify(model, x, unit=BOTH)
    model.head.register_full_backward_hook(Counts())
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact()
    assert {n: m.training for n, m in small.named_modules()} == modes
    held = [
        (n, kind, hook)
        for n, m in small.named_modules()
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        for hook in getattr(m, kind).values()
    ]
    assert [(n, kind, type(hook)) for n, kind, hook in held] == [
        ("", "_forward_hooks", Counts),
        ("head", "_forward_pre_hooks", Counts),
        ("head", "_backward_hooks", Counts),
    ]
    before = [hook.calls for _, _, hook in held]
    small(*x).sum().backward()
    assert [hook.calls - b for (_, _, hook), b in zip(held, before, strict=True)] == [1, 1, 1]


@each
@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_moments_go_along(name: str, kind: str) -> None:
    sparse = half_open(name)
    groups = sparse.param_groups(lr=0.01, gate_lr=0.0)
    optimizer = torch.optim.AdamW(groups) if kind == "adamw" else torch.optim.SGD(groups, momentum=0.9)
    train(sparse.model, name, optimizer, 8)
    small = sparse.compact(optimizer=optimizer)
    assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(p) for p in small.parameters()]
    moment = "exp_avg" if kind == "adamw" else "momentum_buffer"
    assert all(optimizer.state[p][moment].shape == p.shape for p in small.parameters())
    assert any(optimizer.state[p][moment].abs().sum() > 0 for p in small.parameters())
    losses = train(small, name, optimizer, 20)
    assert sum(losses[-3:]) < sum(losses[:3])
    rest = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(rest)
    train(small, name, optimizer, 1)


GATES: dict[str, Callable[[], zg.Gate]] = {
    "hard concrete": zg.HardConcrete,
    "open at first": lambda: zg.HardConcrete(droprate_init=0.05),
    "soft mask": lambda: zg.SoftMask(steps=5, final_temperature=50.0),
}


@each
@pytest.mark.parametrize("kind", GATES)
def test_gated_training_and_what_is_deployed(name: str, kind: str) -> None:
    """Five steps: all losses and gradients finite, all parts learn; then gated in evaluation ≡ compacted."""
    sparse = gated(name, torch.float64, gate=GATES[kind](), objective=zg.Penalty(0.1))
    model = sparse.model
    optimizer = torch.optim.Adam(sparse.param_groups(lr=0.01, gate_lr=0.2))
    start = sparse.logits.detach().clone()
    torch.manual_seed(3)
    x, y = MODELS[name][1](16)
    x = cast(x, torch.float64)
    for _ in range(5):
        loss = F.cross_entropy(model(*x), y) + sparse.loss()
        optimizer.zero_grad()
        loss.backward()
        assert loss.isfinite()
        for key, p in [*model.named_parameters(), ("gates", sparse.logits)]:
            assert p.grad is not None, key
            assert p.grad.isfinite().all(), key
        optimizer.step()
        sparse.step()
    assert (sparse.logits != start).all()
    model.eval()
    generator = torch.Generator().manual_seed(0)
    for spread in (0.0, 1.0, 3.0):
        with torch.no_grad():
            sparse.logits += spread * torch.randn(len(start), generator=generator)
            z = sparse.gate.mask(sparse.logits)
            small = sparse.compact().eval()
            fresh = cast(MODELS[name][1](6)[0], torch.float64)
            assert relative(model(*fresh), small(*fresh)) <= 1e-10
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
        if kind != "soft mask" and spread < 3:
            assert ((z > 0) & (z < 1)).any()
    assert not sparse.is_open().all()


@each
@pytest.mark.parametrize("training", [False, True])
def test_open_gates_change_nothing(name: str, training: bool) -> None:
    """Outputs and gradients are those of the plain model, also through norms and in training."""
    torch.manual_seed(0)
    make, data = MODELS[name]
    model = make().double().train(training)
    x, y = data(6)
    x = cast(x, torch.float64)
    runs = []
    for gates in (False, True):
        if gates:  # a mask that is 1 up to 1e-13, and draws nothing at random
            zg.sparsify(model, x, unit=BOTH, gate=zg.SoftMask(initial_value=30.0))
        model.zero_grad()
        torch.manual_seed(4)
        out = model(*x)
        F.cross_entropy(out, y).backward()
        runs.append([out.detach(), *(p.grad.clone() for p in model.parameters())])
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


@each
def test_copies_of_a_gated_model_in_training(name: str) -> None:
    """An average, a deep copy, a pickle: taken while a draw and its graph are alive."""
    sparse = gated(name)
    with torch.no_grad():
        sparse.logits.normal_()
    train(sparse.model, name, torch.optim.SGD(sparse.param_groups(0.01)), 2, sparse.loss)
    average = torch.optim.swa_utils.AveragedModel(sparse.model)
    twins = copy.deepcopy(sparse), pickle.loads(pickle.dumps(sparse))
    x = MODELS[name][1](4)[0]
    expected = sparse.model.eval()(*x)
    assert torch.equal(average.eval()(*x), expected)
    for twin in twins:
        assert torch.equal(twin.model.eval()(*x), expected)
        train(twin.model.train(), name, torch.optim.SGD(twin.param_groups(0.01)), 1, twin.loss)
        assert torch.equal(sparse.model(*x), expected)  # of its own
    small = sparse.compact(ema=average).eval()
    torch.testing.assert_close(average.eval()(*x), small(*x))


@each
def test_gates_learn_to_close(name: str) -> None:
    """Under a strong penalty gates close in training, with norms over what is left, and the network still learns."""
    sparse = gated(name, gate=zg.HardConcrete(droprate_init=0.2), objective=zg.Penalty(1.0))
    optimizer = torch.optim.Adam(sparse.param_groups(lr=0.01, gate_lr=0.1))
    losses = train(sparse.model, name, optimizer, 40, sparse.loss)
    assert all(loss == loss for loss in losses)
    assert sparse.cost().params < sparse.dense_cost.params
    small = sparse.compact()
    x = MODELS[name][1](6)[0]
    torch.testing.assert_close(small.eval()(*x), sparse.model.eval()(*x), atol=1e-4, rtol=1e-3)


@each
def test_gated_training_in_mixed_precision(name: str) -> None:
    sparse = gated(name)
    optimizer = torch.optim.Adam(sparse.param_groups(lr=0.01))
    x, y = MODELS[name][1](8)
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(sparse.model(*x).float(), y) + sparse.loss()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in sparse.model.parameters())
        assert sparse.logits.grad is not None
        assert sparse.logits.grad.isfinite().all()
    sparse.compact()


@each
@pytest.mark.parametrize("least, step", [(3, 1), (1, 4)])
def test_widths_that_hardware_likes(name: str, least: int, step: int) -> None:
    sparse = gated(name, torch.float64, min_channels=least, round_to=step)
    generator = torch.Generator().manual_seed(0)
    fresh = cast(MODELS[name][1](3)[0], torch.float64)
    for _ in range(3):
        close_randomly(sparse, generator)
        small = sparse.compact().eval()
        assert relative(sparse.model.eval()(*fresh), small(*fresh)) <= 1e-10
        for group in sparse.groups:
            kept = int(sparse.kept()[group.slice].sum())
            assert group.kind == "head" or kept == group.units or (kept % step == 0 and kept >= least)


# --- what random networks have found ----------------------------------------------------------------------------------


def check_exact(model: nn.Module, x: Tensor, *styles: str | None) -> zg.Sparsified:
    model = model.double()
    sparse = zg.sparsify(model, x.double(), unit=BOTH)
    generator = torch.Generator().manual_seed(0)
    fresh = torch.randn(5, *x.shape[1:], dtype=torch.float64, generator=generator)
    for style in styles or (None,) * 4:
        close_randomly(sparse, generator, style)
        small = sparse.compact().eval()
        assert relative(model.eval()(fresh), small(fresh)) <= 1e-10
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
    return sparse


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
def test_a_norm_listens_to_channels_that_stay_closed(norm: Callable[[int], nn.Module]) -> None:
    """One channel of a closed group stays and counts in a norm that covers living groups, too: its value must be right."""

    class Meeting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(6, 3)
            self.body = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4))
            self.norm = norm(6)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            x = x + self.body(x)
            return self.head(self.norm(torch.cat([x, self.b(x)], -1)))

    torch.manual_seed(0)
    model, x = Meeting().double(), torch.randn(4, 3, dtype=torch.float64)
    sparse = zg.sparsify(model, x)
    for closed in (["a"], ["a", "b"], ["b"], ["a", "body.0"]):
        with torch.no_grad():
            for group in sparse.groups:
                sparse.logits[group.slice] = -8.0 if group.name in closed else 8.0
        small = sparse.compact().eval()
        fresh = torch.randn(9, 3, dtype=torch.float64)
        assert relative(model.eval()(fresh), small(fresh)) <= 1e-10
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())


class InGroups(nn.Module):
    """A norm in groups whose number is an attribute, or written down."""

    def __init__(self, groups: int, written: bool) -> None:
        super().__init__()
        self.groups, self.written = groups, written

    def forward(self, x: Tensor) -> Tensor:
        if self.written:
            return F.group_norm(x, 4)
        return F.group_norm(x, self.groups)


@pytest.mark.parametrize(
    "layer, units",
    [
        (nn.GroupNorm(8, 8), 8),
        (nn.GroupNorm(8, 8, affine=False), 8),
        (nn.GroupNorm(4, 8), 4),
        (nn.GroupNorm(2, 8), 2),
        (nn.GroupNorm(1, 8), 8),
        (nn.GroupNorm(1, 8, affine=False), 8),
        (InGroups(4, False), 4),
        (InGroups(8, False), 8),
        (InGroups(4, True), None),  # written down: the channels stay
        (nn.BatchNorm2d(8, affine=False, track_running_stats=False), 8),
        (nn.InstanceNorm2d(8), 8),
        (nn.InstanceNorm2d(8, affine=True, track_running_stats=True), 8),
        (nn.LocalResponseNorm(3), None),
        (nn.Conv2d(8, 8, 3, 1, 1, groups=4), 4),
        (nn.Conv2d(8, 16, 3, 1, 1, groups=2), 4),
        (nn.ConvTranspose2d(8, 8, 2, 2, groups=8), 8),
        (nn.ConvTranspose2d(8, 8, 2, 2, groups=4), 4),
        (nn.ConvTranspose2d(8, 12, 2, 2, groups=2), 4),
    ],
)
def test_layers_in_groups_between_convolutions(layer: nn.Module, units: int | None) -> None:
    layer = copy.deepcopy(layer)
    width = layer.out_channels if hasattr(layer, "out_channels") else 8
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.ReLU(), nn.Conv2d(width, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    sparse = check_exact(model, torch.randn(2, 3, 7, 7))
    found = {g.name: g.units for g in sparse.groups}
    assert found.get("0") == units
    assert found["3"] == 5
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    small = sparse.compact()
    for m in small.modules():
        if isinstance(m, (nn.BatchNorm2d, nn.InstanceNorm2d)):
            assert m.num_features == small[0].out_channels


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("affine", [True, False])
def test_norms_with_and_without_parameters(norm: Any, affine: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 6), norm(6, elementwise_affine=affine), nn.Linear(6, 4), nn.Linear(4, 2))
    sparse = check_exact(model, torch.randn(4, 3))
    assert {g.name: g.units for g in sparse.groups} == {"0": 6, "2": 4}
    assert sparse.compact()[1].normalized_shape == (sparse.kept()[:6].sum(),)


@pytest.mark.parametrize("groups", [1, 4])
def test_a_norm_in_groups_states_its_channels(groups: int) -> None:
    layers = nn.Conv2d(3, 8, 3), nn.GroupNorm(groups, 8, affine=False), nn.Conv2d(8, 2, 1)
    sparse = check_exact(nn.Sequential(*layers), torch.randn(2, 3, 5, 5))
    with torch.no_grad():
        sparse.logits[::2] = -8.0
        sparse.logits[1::2] = 8.0
    small = sparse.compact()
    assert small[1].num_channels == small[0].out_channels == 4
    assert small[1].num_groups == max(1, groups // 2)


class OverWidth(nn.Module):
    """A norm that has its width from an attribute."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        self.width, self.kind = width, kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "size":
            return F.layer_norm(x, (self.width,))
        return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) / self.width + 1e-6)


@pytest.mark.parametrize("kind", ["size", "number"])
def test_a_norm_of_ones_own_knows_its_width(kind: str) -> None:
    model = nn.Sequential(nn.Linear(3, 6), OverWidth(6, kind), nn.Linear(6, 4), nn.Linear(4, 2))
    sparse = check_exact(model, torch.randn(4, 3))
    assert {g.name: g.units for g in sparse.groups} == {"0": 6, "2": 4}
    assert sparse.compact()[1].width == sparse.kept()[:6].sum()


class NormTwice(nn.Module):
    """One norm without parameters in two places."""

    def __init__(self, norm: nn.Module, raw: bool, inner: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, inner), nn.Linear(inner, 2)
        self.norm, self.raw = norm, raw

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.norm(self.a(self.norm(x) if self.raw else x))).tanh()
        return self.c(x if self.raw else self.norm(x))


@pytest.mark.parametrize("norm", [nn.LayerNorm(6, elementwise_affine=False), OverWidth(6, "number")])
def test_a_norm_in_two_places(norm: nn.Module) -> None:
    """It keeps the same channels in both; none, where one of the two places has none to give."""
    both = check_exact(NormTwice(copy.deepcopy(norm), False), torch.randn(4, 6))
    assert [(g.units, g.producers) for g in both.groups] == [(6, ("a", "b"))]
    once = check_exact(NormTwice(copy.deepcopy(norm), True), torch.randn(4, 6))
    assert [(g.units, g.producers) for g in once.groups] == [(6, ("b",))]
    assert any("norm is used with and without" in row.reason for row in once.report().rows)


@pytest.mark.parametrize("bias", [True, False])
def test_the_first_layer_can_be_any(bias: bool) -> None:
    rest = [nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)]
    for first in (
        nn.ConvTranspose2d(4, 4, 2, stride=2, groups=4, bias=bias),
        nn.ConvTranspose2d(4, 4, 2, groups=2, bias=bias),
        nn.Conv2d(4, 4, 3, groups=4, bias=bias),
        nn.Conv2d(4, 4, 3, groups=2, bias=bias),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4),
    ):
        sparse = check_exact(nn.Sequential(first, *copy.deepcopy(rest)), torch.randn(2, 4, 6, 6))
        assert {g.name: g.units for g in sparse.groups}.get("1") == 6


class CrossAttention(nn.Module):
    """Queries, keys and values of three widths."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(3, 12), nn.Linear(3, 8), nn.Linear(3, 6)
        self.attention = nn.MultiheadAttention(12, 4, kdim=8, vdim=6, batch_first=True)
        self.out = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        return self.out(q + self.attention(q, self.k(x), self.v(x), need_weights=False)[0])


@pytest.mark.parametrize("unit", ["channel", "head"])
def test_attention_states_its_widths(unit: Any) -> None:
    model, x = CrossAttention().double(), torch.randn(2, 5, 3, dtype=torch.float64)
    sparse = zg.sparsify(model, x, unit=unit)
    with torch.no_grad():
        for group in sparse.groups:
            sparse.logits[group.slice] = torch.where(torch.arange(group.units) < group.units // 2, -8.0, 8.0).double()
    for small in (sparse.compact(), copy.deepcopy(sparse.compact())):
        attention = small.attention
        widths = [attention.embed_dim, attention.kdim, attention.vdim]
        assert [attention.num_heads, *widths] == ([2, 12, 8, 6] if unit == "head" else [4, 6, 4, 3])
        assert widths == [small.q.out_features, small.k.out_features, small.v.out_features]
        assert attention.head_dim == 3
        again = check_exact(small, x)  # cut twice
        assert again.compact().attention.embed_dim == again.compact().q.out_features


def gated_vit() -> tuple[zg.Sparsified, Tensor, Tensor, Tensor, list[set[str]]]:
    """A gated network, its input, what it makes of it without gates and with them, and what its modules hold without."""
    torch.manual_seed(0)
    model, x = ViT().eval(), torch.randn(2, 3, 8, 8)
    plain, places = model(x), [{*vars(m)} for m in model.modules()]
    sparse = zg.sparsify(model, x, unit=BOTH)
    with torch.no_grad():
        sparse.logits.normal_()
    expected = model(x)
    return sparse, x, plain, expected, places


def test_gates_come_off_after_an_exception(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever a gated forward breaks off: the plain model is whole again, and the gated one runs on."""
    sparse, x, plain, expected, places = gated_vit()
    model = sparse.model

    def fails(*_: Any, **__: Any) -> None:
        raise MemoryError

    for kind in (nn.LayerNorm, nn.MultiheadAttention, nn.GELU, nn.Linear, nn.Conv2d):
        for training in (False, True):
            with monkeypatch.context() as patch:
                patch.setattr(kind, "forward", fails)
                with pytest.raises(MemoryError):
                    model.train(training)(x)
            model.eval()
            sparse.detach()
            assert [{*vars(m)} for m in model.modules()] == places
            assert torch.equal(model(x), plain)
            sparse.attach()
            assert torch.equal(model(x), expected)


def test_gates_come_off_after_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hooks do not run then: the next forward, or detach, clears up."""
    sparse, x, plain, expected, places = gated_vit()
    model = sparse.model

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for kind in (nn.LayerNorm, nn.GELU, nn.Linear):
        with monkeypatch.context() as patch:
            patch.setattr(kind, "forward", interrupted)
            with pytest.raises(KeyboardInterrupt):
                model(x)
        if kind is nn.GELU:
            assert torch.equal(model(x), expected)
        if kind is nn.Linear:
            sparse.compact()
        with sparse.detached():
            assert [{*vars(m)} for m in model.modules()] == places
            assert torch.equal(model(x), plain)
        assert torch.equal(model(x), expected)


def test_an_activation_that_is_kept() -> None:
    """Attention maps for a picture, a loss of a layer's own: part of a graph, which deepcopy refuses."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.last = nn.Linear(3, 6), nn.Linear(6, 2), {"map": None}

        def forward(self, x: Tensor) -> Tensor:
            self.last["map"] = torch.relu(self.a(x))
            return self.b(self.last["map"])

    model, x = Keeps(), torch.randn(4, 3)
    model(x)
    sparse = zg.sparsify(model, x)
    (model(x).sum() + sparse.loss()).backward()
    held = model.last["map"]
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact()
    assert model.last["map"] is held
    assert held.grad_fn is not None
    torch.testing.assert_close(small.eval()(x), model.eval()(x))
