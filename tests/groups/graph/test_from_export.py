"""`keep_class=False`: sizes that a forward has as literals are corrected in an exported graph."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import zerogate as zg
from support import Lambda, Residual, randomise, relative


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    out = (
        model(**inputs) if isinstance(inputs, dict) else model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    )
    return [x for x in torch.utils._pytree.tree_leaves(out) if isinstance(x, Tensor)]


def check_exact(model: nn.Module, inputs: Any, other: Any = None, **options: Any) -> zg.Sparsified:
    """In float64: a random 30 %, then 80 % closed, on the example and on other inputs, and the count of parameters."""
    generator = torch.Generator().manual_seed(0)
    randomise(model, generator)
    inputs, other = (
        torch.utils._pytree.tree_map(lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, i)
        for i in (inputs, other)
    )
    sparse = zg.sparsify(model.double(), inputs, keep_class=False, **options)
    names = [name for name, _ in model.named_parameters()]
    for share in (0.3, 0.8):
        with torch.no_grad():
            closed = torch.rand(len(sparse.logits), generator=generator) < share
            sparse.logits.copy_(torch.where(closed, -8.0, 8.0))
        small = sparse.compact()
        assert isinstance(small, fx.GraphModule)
        assert [name for name, _ in small.named_parameters()] == names
        assert small.state_dict().keys() == model.state_dict().keys()
        assert sum(p.numel() for p in small.parameters()) == sparse.cost().params < sparse.dense_cost.params
        assert sparse.difference(small) <= 1e-10
        for x in (inputs, other):
            if x is not None:
                for dense, cut in zip(call(model.eval(), x), call(small, x), strict=True):
                    assert relative(dense, cut) <= 1e-10
    return sparse


def conv(a: int, b: int, k: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(a, b, k, padding=k // 2, **options)


def unevenly(m: nn.Module, x: Tensor) -> Tensor:
    left, right = m.a(x).split([16, 48], 1)
    return m.head(m.b(torch.cat([right.relu(), left.tanh()], 1)).mean((2, 3)))


def attention(m: nn.Module, x: Tensor) -> Tensor:
    b, n = x.shape[:2]
    q, k, v = m.qkv(x).view(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
    z = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(-1) @ v
    return m.head(m.o(z.transpose(1, 2).reshape(b, n, 32)).relu())


def folded_heads(m: nn.Module, x: Tensor) -> Tensor:
    b, n = x.shape[:2]
    q, k, v = (layer(x).view(b, n, 4, 8).transpose(1, 2).reshape(b * 4, n, 8) for layer in (m.q, m.k, m.v))
    z = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
    return m.head(m.o(z.view(b, 4, n, 8).transpose(1, 2).reshape(b, n, 32)).relu())


def depthwise(m: nn.Module, x: Tensor) -> Tensor:
    return m.head(F.conv2d(m.a(x), m.w, padding=1, groups=64).relu().mean((2, 3)))


def windows(m: nn.Module, x: Tensor) -> Tensor:
    b, h, w = x.shape[0], 8, 8
    x = m.a(x).permute(0, 2, 3, 1).reshape(b, 2, 4, 2, 4, 64).permute(0, 1, 3, 2, 4, 5).reshape(b * 4, 16, 64)
    x = m.mlp(x).relu().view(b, 2, 2, 4, 4, 32).permute(0, 1, 3, 2, 4, 5).reshape(b, h, w, 32)
    return m.head(x.mean((1, 2)))


def cnn(**more: nn.Module) -> dict[str, nn.Module]:
    return {"a": conv(3, 64), "b": conv(64, 16), "head": nn.Linear(16, 2)} | more


IMAGE, TOKENS = torch.randn(2, 3, 8, 8), torch.randn(2, 5, 12)
QKV = {"qkv": nn.Linear(12, 96), "o": nn.Linear(32, 24), "head": nn.Linear(24, 2)}
APART = {n: nn.Linear(12, 32) for n in "qkv"} | {"o": nn.Linear(32, 24), "head": nn.Linear(24, 2)}
Case = tuple[Callable[..., Any], dict[str, nn.Module], Tensor, dict[str, int], str]

# forward, modules, input, units with keep_class=False, what the class is refused for
CASES: dict[str, Case] = {
    "flattened by a product": (
        lambda m, x: m.head(F.adaptive_avg_pool2d(m.a(x), 7).view(-1, 64 * 7 * 7).relu()),
        {"a": conv(3, 64), "head": nn.Linear(64 * 49, 2)},
        IMAGE,
        {"a": 64},
        "view to a size that is written down",
    ),
    "folded into rows": (
        lambda m, x: m.head(m.b(m.a(x).reshape(x.shape[0], 4, 16, 8, 8).flatten(1, 2)).mean((2, 3))),
        cnn(),
        IMAGE,
        {"a": 16, "b": 16},
        "reshape to a size that is written down",
    ),
    "rearranged": (
        lambda m, x: m.head(
            m.b(m.a(x).view(-1, 2, 32, 8, 8).permute(0, 2, 1, 3, 4).reshape(-1, 64, 8, 8)).mean((2, 3))
        ),
        cnn(),
        IMAGE,
        {"a": 32, "b": 16},
        "view to a size that is written down",
    ),
    "uneven split": (unevenly, cnn(), IMAGE, {"a": 64, "b": 16}, "split_with_sizes at a fixed place"),
    "first channels": (
        lambda m, x: m.head(m.b(torch.cat([(y := m.a(x))[:, :12].relu(), y[:, 12:]], 1)).mean((2, 3))),
        cnn(),
        IMAGE,
        {"a": 64, "b": 16},
        "slice at a fixed place among channels",
    ),
    "last channels": (
        lambda m, x: m.head(m.b((y := m.a(x))[:, -24:]).mean((2, 3))) + m.c(y[:, :-24].mean((2, 3))),
        cnn(b=conv(24, 16), c=nn.Linear(40, 2)),
        IMAGE,
        {"a": 40, "a#2": 24, "b": 16},
        "slice at a fixed place among channels",
    ),
    "halves of different use": (
        lambda m, x: m.head(m.b((y := m.a(x)).chunk(2, 1)[0]).mean((2, 3))) + m.c(y.chunk(2, 1)[1].mean((2, 3))),
        cnn(b=conv(32, 16), c=nn.Linear(32, 2)),
        IMAGE,
        {"a": 32, "a#2": 32, "b": 16},
        "",
    ),
    "zeros": (
        lambda m, x: m.head(m.a(x).relu() + torch.zeros(x.shape[0], x.shape[1], 32, dtype=x.dtype)),
        {"a": nn.Linear(12, 32), "head": nn.Linear(32, 2)},
        TOKENS,
        {"a": 32},
        "tensors whose sizes no longer agree",
    ),
    "filled and counted": (
        lambda m, x: m.head(m.a(x) * torch.full((32,), 0.3, dtype=x.dtype) + torch.arange(32, dtype=x.dtype)),
        {"a": nn.Linear(12, 32), "head": nn.Linear(32, 2)},
        TOKENS,
        {"a": 32},
        "tensors whose sizes no longer agree",
    ),
    "a norm of a literal width": (
        lambda m, x: m.head(m.norm(m.a(x))),
        {"a": nn.Linear(12, 64), "norm": Lambda(lambda m, x: F.layer_norm(x, (64,))), "head": nn.Linear(64, 2)},
        TOKENS,
        {"a": 64},
        "a norm over channels",
    ),
    "attention": (attention, QKV, TOKENS, {"qkv": 4, "o": 24}, "view to a size that is written down"),
    "heads folded into the batch": (folded_heads, APART, TOKENS, {"q": 4, "o": 24}, "view to a size"),
    "depthwise": (
        depthwise,
        {"a": conv(3, 64), "head": nn.Linear(64, 2)},
        IMAGE,
        {"a": 64},
        "the forward depends on its size",
    ),
    "groups normalised": (
        lambda m, x: m.head(m.b(F.group_norm(m.a(x), 16)).mean((2, 3))),
        cnn(),
        IMAGE,
        {"a": 16, "b": 16},
        "group_norm in a number of groups that is written down",
    ),
    "windows": (
        windows,
        {"a": conv(3, 64), "mlp": nn.Linear(64, 32), "head": nn.Linear(32, 2)},
        IMAGE,
        {"a": 64, "mlp": 32},
        "to a size that is written down",
    ),
    "pixels": (
        lambda m, x: m.head(m.b(F.pixel_shuffle(m.a(x), 2).view(-1, 16, 16, 16)).mean((2, 3))),
        cnn(b=conv(16, 16)),
        IMAGE,
        {"a": 16, "b": 16},
        "view to a size that is written down",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_literal_sizes(name: str) -> None:
    forward, modules, x, units, reason = CASES[name]
    model = Lambda(forward, **copy.deepcopy(modules))
    if name == "depthwise":
        model.w = nn.Parameter(torch.randn(64, 1, 3, 3))
    if reason:
        try:
            sparse = zg.sparsify(model, x, unit={"channel", "head"})
            said = " ".join(sparse.structure.refused.values())
            assert {g.name: g.units for g in sparse.groups} != units
            sparse.detach()
        except zg.WatchError as error:
            said = str(error)
        assert reason in said
        assert "test_from_export.py:" in said or "depends on its size" in reason
    other = torch.randn(5, *x.shape[1:]) if x.ndim == 4 else torch.randn(5, 7, 12)
    sparse = check_exact(model, x, other, unit={"channel", "head"})
    assert {g.name: g.units for g in sparse.groups} == units


class Several(nn.Module):
    """Dict, tuple and keyword inputs of different batch sizes, tied weights, buffers in and out of the state_dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(10, 64), nn.Linear(64, 32)
        self.tied = self.again = nn.Linear(10, 32)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 3)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("shift", torch.randn(32), persistent=False)
        self.scale = torch.rand(32)

    def forward(self, x: Tensor, more: dict[str, Any], factor: Tensor | None = None) -> dict[str, Any]:
        b, n = x.shape[:2]
        y = self.b(F.relu(self.a(x)).reshape(-1, 64)).view(b, n, 32)
        y = y + self.tied(more["u"][0]).mean(0) + self.again(x)
        y = self.norm((y + self.shift) * self.scale.to(y))
        if factor is not None:
            y = y * factor
        return {"out": self.head(y), "more": (self.head(y).exp(), None)}


def inputs(b: int, n: int, other: int) -> dict[str, Any]:
    return {"x": torch.randn(b, n, 10), "more": {"u": (torch.randn(other, 10),)}, "factor": torch.rand(())}


def halved(sparse: zg.Sparsified) -> zg.Sparsified:
    with torch.no_grad():
        sparse.logits.copy_(torch.where(torch.arange(len(sparse.logits)) % 2 == 0, -8.0, 8.0))
    return sparse


def test_inputs_and_outputs_in_containers() -> None:
    model = Several()
    sparse = check_exact(model, inputs(2, 5, 3), inputs(4, 6, 7))
    assert {g.name: g.units for g in sparse.groups} == {"a": 64, "b": 32}
    small = sparse.compact()
    assert small.tied.weight is small.again.weight


def test_the_graph_is_an_ordinary_module() -> None:
    model = Several()
    sparse = halved(zg.sparsify(model, inputs(2, 5, 3), keep_class=False))
    small, x = sparse.compact(), inputs(4, 6, 7)
    wanted = small(**x)["out"]
    assert torch.equal(small.train()(**x)["out"], wanted) and torch.equal(small.eval()(**x)["out"], wanted)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.13 warns of classes of its own that it copies
        assert torch.equal(pickle.loads(pickle.dumps(small))(**x)["out"], wanted)
        assert torch.equal(copy.deepcopy(small)(**x)["out"], wanted)
        assert torch.allclose(torch.compile(small, backend="eager")(**x)["out"], wanted)
        file = io.BytesIO()
        torch.export.save(torch.export.export(small, (), x, strict=False), file)
        file.seek(0)
        again = torch.export.load(file).module()
        assert torch.equal(again(**x)["out"], wanted)
        twice = halved(zg.sparsify(small, inputs(2, 5, 3), keep_class=False)).compact()
    assert twice.a.weight.shape[0] == 16
    wanted.sum().backward()
    assert small.a.weight.grad is not None and model.a.weight.grad is None


def test_gated_copies_make_their_graph_again() -> None:
    model = Several()
    sparse = halved(zg.sparsify(model, inputs(2, 5, 3), keep_class=False))
    x = inputs(3, 4, 5)
    wanted = sparse.compact()(**x)["out"]
    for twin, handle in (copy.deepcopy((model, sparse)), pickle.loads(pickle.dumps((model, sparse)))):
        assert handle.model is twin and torch.equal(handle.compact()(**x)["out"], wanted)


def test_inputs_it_does_not_hold_for() -> None:
    model = Lambda(lambda m, x: m.b(m.a(x) if x.shape[1] % 2 else m.a(x).view(-1, 16).relu().view(*x.shape[:2], 16)))
    model.a, model.b = nn.Linear(3, 16), nn.Linear(16, 2)
    small = halved(zg.sparsify(model, torch.randn(2, 4, 3), keep_class=False)).compact()
    assert small(torch.randn(5, 6, 3)).shape == (5, 6, 2)
    with pytest.raises(AssertionError):
        small(torch.randn(5, 5, 3))
    model, x = Several(), inputs(2, 5, 3)
    small = halved(zg.sparsify(model, x | {"factor": None}, keep_class=False)).compact()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        again = pickle.loads(pickle.dumps(small))
    for graph in (small, again):
        assert graph(**x | {"factor": None})["more"][1] is None
        with pytest.raises(AssertionError, match="factor must be None"):
            graph(**x)


def test_a_torch_that_keeps_no_conditions(monkeypatch: pytest.MonkeyPatch) -> None:
    """As those before 2.9: then all sizes are fixed, and checked."""
    module = torch.export.ExportedProgram.module
    monkeypatch.setattr(torch.export.ExportedProgram, "module", lambda self: module(self, check_guards=False))
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    small = halved(zg.sparsify(model, torch.randn(4, 3), keep_class=False)).compact()
    assert small(torch.randn(4, 3)).shape == (4, 2)
    with pytest.raises(AssertionError, match=r"size 0 of input\w* must be 4"):
        small(torch.randn(5, 3))


def test_an_optimizer_goes_on() -> None:
    model = Several()
    sparse = zg.sparsify(model, inputs(2, 5, 3), keep_class=False)
    optimizer = torch.optim.AdamW(sparse.param_groups(lr=1e-3))
    for _ in range(2):
        (model(**inputs(2, 5, 3))["out"].square().mean() + sparse.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparse.step()
    moment = optimizer.state[model.head.weight]["exp_avg"]
    kept = halved(sparse).kept()[sparse.structure.axes["head.weight", 1]]
    small = sparse.compact(optimizer=optimizer)
    assert all(a is b for a, b in zip(optimizer.param_groups[0]["params"], small.parameters(), strict=True))
    assert torch.equal(optimizer.state[small.head.weight]["exp_avg"], moment[:, kept])
    before = small.head.weight.clone()
    small(**inputs(2, 5, 3))["out"].sum().backward()
    optimizer.step()
    assert not torch.equal(small.head.weight, before)


def test_what_does_not_go_with_a_graph(tmp_path: Path) -> None:
    x = torch.randn(2, 2, 5, 5)
    for options in ({"unit": "weight"}, {"gate_inputs": True}):
        with pytest.raises(zg.ZerogateError, match="keep_class=False goes with"):
            zg.sparsify(Residual(), x, keep_class=False, **options)  # type: ignore[arg-type]
    model = Residual()
    sparse = zg.sparsify(model, x, keep_class=False)
    with pytest.raises(zg.ZerogateError, match="leave out ema"):
        sparse.compact(ema=torch.optim.swa_utils.AveragedModel(model))
    with pytest.raises(zg.ZerogateError, match=r"torch\.export\.save"):
        zg.save(sparse.compact(), tmp_path / "small.safetensors")
    assert "graph module" in str(sparse.report()) and not sparse.report().as_dict()["keep_class"]


def test_a_model_that_cannot_be_exported(capfd: pytest.CaptureFixture[str]) -> None:
    model = Lambda(lambda m, x: m.b(m.a(x) if x.sum() > 0 else m.a(x) * 2), a=nn.Linear(3, 8), b=nn.Linear(8, 2))
    with pytest.raises(zg.WatchError, match=r"Lambda cannot be exported by torch\.export .*keep_class=True") as error:
        zg.sparsify(model, torch.randn(2, 3), keep_class=False)
    assert "\n" not in str(error.value) and capfd.readouterr() == ("", "")


def test_nothing_is_left_in_the_model() -> None:
    model, x = Several().train(), inputs(2, 5, 3)
    state, hooks = copy.deepcopy(model.state_dict()), [len(m._forward_pre_hooks) for m in model.modules()]
    random = torch.random.get_rng_state()
    zg.sparsify(model, x, keep_class=False, gate=zg.SoftMask()).detach()
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.training and hooks == [len(m._forward_pre_hooks) for m in model.modules()]
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values(), strict=True))


def test_example_inputs_that_are_views() -> None:
    """torch.export notes conditions on what they are views of."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    small = halved(zg.sparsify(model, torch.randn(9, 3)[2:6], keep_class=False)).compact()
    assert small(torch.randn(5, 3)).shape == (5, 2)


def test_constants_of_each_head_go_with_it() -> None:
    """As the slopes of ALiBi, made of numbers in the forward."""

    def forward(m: Lambda, x: Tensor) -> Tensor:
        b, n = x.shape[:2]
        q, k, v = m.qkv(x).view(b, n, 3, 4, 8).permute(2, 0, 3, 1, 4)
        slopes = torch.pow(0.3, torch.arange(1, 5, device=x.device).to(x.dtype))
        scores = q @ k.transpose(-2, -1) + slopes.view(4, 1, 1) * torch.arange(n, device=x.device)
        return m.head((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, 32))

    model = Lambda(forward, qkv=nn.Linear(12, 96), head=nn.Linear(32, 2))
    sparse = check_exact(model, TOKENS, torch.randn(3, 9, 12), unit="head")
    assert {g.name: g.units for g in sparse.groups} == {"qkv": 4}


def test_a_model_that_was_cast_since() -> None:
    model = Several()
    sparse = halved(zg.sparsify(model, inputs(2, 5, 3), keep_class=False))
    model.bfloat16()
    with pytest.raises(zg.ZerogateError, match="exported for float32 on cpu, and the model is bfloat16 on cpu now"):
        sparse.compact()
    model.float()
    assert isinstance(sparse.compact(), fx.GraphModule)
