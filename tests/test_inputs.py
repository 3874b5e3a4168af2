"""What users hand in: wrong inputs and options, models of many habits; and that a model is left as it was."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import Lambda, Residual, close_randomly, relative

BOTH = ("channel", "head")
X = (4, 2, 5, 5)


def perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, f.name) for f in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [x for item in value for x in tensors(item)] if isinstance(value, (list, tuple)) else []


def call(model: nn.Module, inputs: Any) -> list[Tensor]:
    if isinstance(inputs, dict):
        return tensors(model(**inputs))
    return tensors(model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs))


def double(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: double(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(double(v) for v in value)
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def check_exact(model: nn.Module, inputs: Any, fresh: Any = None, **options: Any) -> zg.Sparsified:
    """Sparsifies in float64, closes at random a few times and compares all outputs; the last closing stays."""
    sparse = zg.sparsify(model.double(), double(inputs), **options)
    generator = torch.Generator().manual_seed(0)
    fresh = double(inputs if fresh is None else fresh)
    for _ in range(4):
        close_randomly(sparse, generator)
        small = sparse.compact().eval()
        gated = call(model.eval(), fresh)
        assert gated
        for a, b in zip(gated, call(small, fresh), strict=True):
            assert a.shape == b.shape
            assert relative(a, b) <= 1e-10
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
    return sparse


def groups(sparse: zg.Sparsified) -> dict[str, int]:
    return {g.name: g.units for g in sparse.groups}


# --- inputs that do not fit -------------------------------------------------------------------------------------------


def test_inputs_on_another_device() -> None:
    for inputs in (torch.randn(X), (torch.randn(X),), {"x": torch.randn(X)}):
        moved = torch.utils._pytree.tree_map(lambda x: x.to("meta"), inputs)
        with pytest.raises(
            zg.WatchError, match=r"inputs are on meta and the Residual on cpu; move them: inputs\.to\('cpu'\)"
        ):
            zg.sparsify(Residual(), moved)
        for given in (inputs, moved):  # a model on the meta device can be materialised anywhere
            assert zg.sparsify(Residual().to("meta"), given).logits.device.type == "cpu"


@pytest.mark.parametrize("layer", ["linear", "convolution", "attention"])
@pytest.mark.parametrize(
    "of_model, of_inputs",
    [(torch.float32, torch.float64), (torch.bfloat16, torch.float32), (torch.float32, torch.int64)],
)
def test_inputs_of_another_dtype(layer: str, of_model: torch.dtype, of_inputs: torch.dtype) -> None:
    model, x = perceptron(6, 4, 2), torch.ones(3, 6)
    if layer == "convolution":
        model, x = nn.Sequential(nn.Conv1d(6, 4, 1), nn.ReLU(), nn.Conv1d(4, 2, 1)), torch.ones(3, 6, 2)
    elif layer == "attention":
        model, x = nn.Sequential(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)), torch.ones(3, 2, 6)
    with pytest.raises(zg.WatchError, match="does not run on the example inputs") as error:
        zg.sparsify(model.to(of_model), x.to(of_inputs))
    assert str(of_inputs) in str(error.value)
    assert "\n" not in str(error.value)


def test_token_ids_must_be_whole_numbers() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 2))
    with pytest.raises(zg.WatchError, match="does not run on the example inputs"):
        zg.sparsify(model, torch.ones(2, 3))
    assert groups(check_exact(model, torch.tensor([[1, 2, 4]]))) == {"0": 4, "1": 6}


@pytest.mark.parametrize("inputs", [None, (), {}, [], 3, "text", np.ones((4, 3), np.float32), torch.tensor(1.0)])
def test_inputs_of_another_kind(inputs: Any) -> None:
    model = perceptron(3, 6, 2)
    with pytest.raises(zg.WatchError, match="does not run on the example inputs") as error:
        zg.sparsify(model, inputs)
    assert "\n" not in str(error.value)
    zg.sparsify(model, torch.randn(4, 3))  # nothing is left of the attempt


def test_arguments_that_the_forward_does_not_take() -> None:
    x = torch.randn(4, 3)
    for inputs in ((x, x), {"y": x}, {}):
        with pytest.raises(zg.WatchError, match="argument"):
            zg.sparsify(perceptron(3, 6, 2), inputs)


def test_layers_without_a_shape_yet() -> None:
    model = nn.Sequential(nn.LazyLinear(6), nn.ReLU(), nn.Linear(6, 2))
    with pytest.raises(zg.WatchError, match=r"0\.weight .* has no shape yet; run the model once"):
        zg.sparsify(model, torch.randn(4, 3))
    model(torch.randn(4, 3))
    assert zg.sparsify(model, torch.randn(4, 3)).groups[0].units == 6


def test_a_forward_that_fails_is_quoted() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        raise KeyError("first line\nsecond line")

    with pytest.raises(zg.WatchError, match="KeyError: 'first line") as error:
        zg.sparsify(Lambda(forward, a=nn.Linear(3, 2)), torch.randn(4, 3))
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, KeyError)


@pytest.mark.parametrize("output", [None, 3, (), [], {}, "text", (None, 1.5), {"a": None}])
def test_a_forward_that_returns_no_tensor(output: Any) -> None:
    def forward(m: nn.Module, x: Tensor) -> Any:
        m.b(m.a(x))
        return output

    with pytest.raises(zg.WatchError, match="returns no tensor"):
        zg.sparsify(Lambda(forward, a=nn.Linear(3, 6), b=nn.Linear(6, 2)), torch.randn(4, 3))


# --- options ----------------------------------------------------------------------------------------------------------


def test_a_model_with_gates_is_refused_also_as_a_part() -> None:
    inner = Residual()
    sparse = zg.sparsify(inner, torch.randn(X))
    for model in (inner, nn.Sequential(inner, nn.Linear(3, 2)), copy.deepcopy(inner)):
        with pytest.raises(zg.ZerogateError, match=r"has gates already; call detach\(\)"):
            zg.sparsify(model, torch.randn(X))
    sparse.detach()
    zg.sparsify(nn.Sequential(inner, nn.Linear(3, 2)), torch.randn(X))


@pytest.mark.parametrize("unit", ["neuron", "", "channels", (), {}, ["channel", "neuron"], 3, None, [["channel"]]])
def test_units_that_do_not_exist(unit: Any) -> None:
    with pytest.raises(zg.ZerogateError, match='unit is "channel", "head", "weight"') as error:
        zg.sparsify(Residual(), torch.randn(X), unit=unit)
    assert repr(unit) in str(error.value)


@pytest.mark.parametrize("unit", [{"channel", "weight"}, ["weight", "head"], ("weight", "channel", "head")])
def test_single_weights_mix_with_nothing(unit: Any) -> None:
    with pytest.raises(zg.ZerogateError, match="cannot be mixed"):
        zg.sparsify(Residual(), torch.randn(X), unit=unit)


@pytest.mark.parametrize("unit", ["channel", ["channel"], {"channel"}, ("channel", "channel"), {"head", "channel"}])
def test_units_in_any_collection(unit: Any) -> None:
    sparse = zg.sparsify(Residual(), torch.randn(X), unit=unit)
    assert sparse.unit == ("channel+head" if "head" in unit else "channel")


def test_without_heads_there_is_nothing_to_gate_by_head() -> None:
    with pytest.raises(zg.WatchError, match="no unit that could be removed: its units are channels"):
        zg.sparsify(Residual(), torch.randn(X), unit="head")


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize(
    "value, says",
    [
        (["nothing"], "no module is called 'nothing'"),
        (["stem", "lef"], "no module is called 'lef'"),
        (["head.*"], "no module is called"),
        ("stem", r"write \['stem'\]"),
        ([0], "0"),
        ([None], "None"),
        (3, "3"),
    ],
)
def test_names_that_do_not_exist(option: str, value: Any, says: str) -> None:
    with pytest.raises(zg.ZerogateError, match=rf"{option}.*{says}"):
        zg.sparsify(Residual(), torch.randn(X), **{option: value})


@pytest.mark.parametrize(
    "include, expected",
    [
        (["left"], {"left"}),
        (["stem"], {"stem"}),
        (["body.2"], {"stem"}),  # it adds to what the stem makes
        (["body.0"], {"body.0"}),
        (["body"], {"stem", "body.0"}),
        (["*t"], {"left", "right"}),
        (["left", "bo*"], {"stem", "body.0", "left"}),
        (["*"], {"stem", "body.0", "left", "right"}),
    ],
)
def test_only_what_included_layers_make(include: list[str], expected: set[str]) -> None:
    sparse = check_exact(Residual(), torch.randn(X), include=include)
    assert set(groups(sparse)) == expected
    with torch.no_grad():
        sparse.logits.fill_(9.0)
    stay = {r.layer for r in sparse.report().rows if r.reason == "not among the included layers"}
    assert stay - {"body.2"} == {"stem", "body.0", "left", "right"} - expected


def test_included_layers_that_cannot_shrink() -> None:
    for include in (["head"], []):
        with pytest.raises(zg.WatchError, match="not among the included layers"):
            zg.sparsify(Residual(), torch.randn(X), include=include)
    with pytest.raises(zg.WatchError, match=r"body\.2 is excluded"):  # exclusion goes first
        zg.sparsify(Residual(), torch.randn(X), include=["body"], exclude=["body.2"])


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 4, 12, batch_first=True), nn.Linear(8, 3))


@pytest.mark.parametrize("m, r", [(1, 1), (3, 1), (1, 4), (3, 2), (99, 1), (1, 99)])
def test_min_channels_and_round_to(m: int, r: int) -> None:
    model, x = encoder().double(), torch.randn(2, 3, 5, dtype=torch.float64)
    sparse = zg.sparsify(model, x, unit=BOTH, min_channels=m, round_to=r)
    some_can_go = max(m, r) < 8  # of 8 and 12 channels
    assert sorted(g.kind for g in sparse.groups) == ["channel", "channel", "head"][0 if some_can_go else 2 :]
    generator = torch.Generator().manual_seed(0)
    for style in (None, None, None, "one", "none"):
        close_randomly(sparse, generator, style)
        small = sparse.compact().eval()
        for group in sparse.groups:
            kept, size = int(sparse.kept()[group.slice].sum()), group.units
            if group.kind == "head":
                assert kept <= max(1, int(sparse.is_open()[group.slice].sum()))
            else:
                assert kept == size or (kept >= m and kept % r == 0)
        first = sparse.groups[0]
        assert small[0].out_features == (sparse.kept()[first.slice].sum() if first.name == "0" else 8)
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
        fresh = torch.randn(3, 3, 5, dtype=torch.float64)
        assert relative(model.eval()(fresh), small(fresh)) <= 1e-10


@pytest.mark.parametrize("option", ["min_channels", "round_to"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True, None, "2"])
def test_widths_out_of_range(option: str, value: Any) -> None:
    with pytest.raises(
        zg.ZerogateError, match=f"{option} must be a whole number of at least 1, got .*{value}.*; leave it out"
    ):
        zg.sparsify(Residual(), torch.randn(X), **{option: value})


@pytest.mark.parametrize("make", [Residual, encoder])
@pytest.mark.parametrize("least", [1, 2])
def test_with_everything_closed_the_minimum_stays_and_the_report_says_so(make: Any, least: int) -> None:
    model = make().double()
    x = torch.randn(X if make is Residual else (2, 3, 5), dtype=torch.float64)
    sparse = zg.sparsify(model, x, unit=BOTH, min_channels=least)
    with torch.no_grad():
        sparse.logits.fill_(-9.0)
    assert not sparse.is_open().any()
    small = sparse.compact().eval()
    assert relative(model.eval()(x), small(x)) <= 1e-12
    report = sparse.report()
    assert {g.name: g.units for g in report.groups} == {
        g.name: (least if g.kind == "channel" else 1, g.units) for g in sparse.groups
    }
    weights = {n: p for n, p in small.named_parameters() if p.ndim > 1}
    assert sum(row.params[0] for row in report.rows) == sum(p.numel() for p in weights.values())
    assert report.params[0] == sum(p.numel() for p in small.parameters()) == sparse.cost().params
    assert f"{least}/" in str(report)


# --- a model is left as it was ----------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Dropout, BatchNorm, attention, and a forward that counts its calls in a buffer and writes into its input."""

    def __init__(self, asks: bool) -> None:
        super().__init__()
        self.asks, self.calls, self.cache = asks, 0, {"last": None}
        self.stem, self.norm = nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6)
        self.block = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3, batch_first=True)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(()))
        self.register_buffer("offset", torch.randn(6, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen += 1
        x.mul_(2)
        noise, _, _ = torch.rand(1, device=x.device), random.random(), np.random.rand()
        if self.asks and x.sum().item() > 1e9:
            x = -x
        x = F.relu(self.norm(self.stem(x)) - self.offset)
        self.cache["last"] = x.detach()
        return self.head(self.drop(self.block(x.transpose(1, 2)))).mean(1) + 0 * noise


def everything(model: nn.Module) -> dict[Any, Any]:
    """All that a module is, except the values of its tensors: modes, hooks, attributes, which objects it holds."""
    found: dict[Any, Any] = {}
    for name, module in model.named_modules():
        found[name] = type(module)
        for key, value in vars(module).items():
            if isinstance(value, dict):
                found[name, key] = [(k, id(v)) for k, v in value.items()]
            else:
                found[name, key] = value if isinstance(value, (int, str, float, tuple)) else id(value)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        found[name, "tensor"] = id(tensor), tensor.data_ptr(), tensor._version, tensor.requires_grad
        found[name, "grad"] = None if tensor.grad is None else (id(tensor.grad), tensor.grad._version)
    return found


def values(model: nn.Module) -> list[Tensor]:
    held = [*model.parameters(), *model.buffers()]
    return [t.detach().clone() for t in held] + [t.grad.clone() for t in held if t.grad is not None]


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("unit", ["channel", "weight", BOTH])
def test_no_trace_in_the_model(unit: Any, asks: bool) -> None:
    """Not in modes, statistics, gradients, hooks, attributes, the inputs, or any random state."""
    model = Restless(asks).train()
    model.norm.eval()
    model.block.dropout1.eval()
    model.head.bias.requires_grad_(False)
    model.register_forward_hook(lambda *_: None)
    model.stem.register_full_backward_hook(lambda *_: None)
    model.stem.register_state_dict_pre_hook(lambda *_: None)
    x = torch.randn(4, 2, 7)
    model(x.clone().requires_grad_() * 1).square().sum().backward()
    x.requires_grad_()
    before, tensors_before, given = everything(model), values(model), x.detach().clone()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()

    def unchanged() -> None:
        now = everything(model)
        assert {k: (v, now.get(k)) for k, v in before.items() if now.get(k) != v} == {}
        assert now.keys() == before.keys()
        for a, b in zip(tensors_before, values(model), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(x, given)
        assert x.grad is None
        assert torch.equal(torch.get_rng_state(), states[0])
        same = random.getstate() == states[1], (np.random.get_state()[1] == states[2]).all()
        assert same == (True, True)

    sparse = zg.sparsify(model, x, unit=unit, gate=zg.SoftMask())  # the start of a SoftMask is not random
    sparse.detach()
    unchanged()
    sparse.attach()
    close_randomly(sparse, torch.Generator().manual_seed(0))
    small = sparse.compact()
    sparse.report()
    sparse.difference(small)
    sparse.detach()
    unchanged()


def test_no_trace_of_a_refusal() -> None:
    model = Restless(False)
    before = everything(model)
    for inputs, options in (
        (torch.randn(4, 3, 7), {}),
        (torch.randn(4, 2, 7), {"exclude": ["*"]}),
        (torch.randn(4, 2, 7), {"min_channels": 0}),
        (torch.randn(4, 2, 7), {"unit": "weight", "exclude": ["*"]}),
    ):
        with pytest.raises(zg.ZerogateError):
            zg.sparsify(model, inputs, **options)
        assert everything(model) == before


def test_random_numbers_go_on_where_they_were() -> None:
    """The same draws follow as without zerogate, apart from the gates' own start."""
    model = Restless(False)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    sparse = zg.sparsify(model, torch.randn(4, 2, 7, generator=torch.Generator().manual_seed(0)), gate=zg.SoftMask())
    sparse.compact()
    assert torch.equal(torch.rand(3), expected)


# --- compacting -------------------------------------------------------------------------------------------------------


def test_compacting_twice_gives_equal_modules() -> None:
    for model, x in ((Residual(), torch.randn(X)), (encoder(), torch.randn(2, 3, 5))):
        sparse = zg.sparsify(model, x, unit=BOTH)
        close_randomly(sparse, torch.Generator().manual_seed(0))
        a, b = sparse.compact(), sparse.compact()
        assert a is not b
        assert list(a.state_dict()) == list(b.state_dict())
        assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
        assert not {p.data_ptr() for p in a.parameters()} & {
            p.data_ptr() for p in [*b.parameters(), *model.parameters()]
        }
        assert a.zerogate_plan == b.zerogate_plan
        assert torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize("make, shape", [(Residual, X), (encoder, (2, 3, 5))])
def test_compacting_again_and_again(make: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    """Three rounds, in each of which every group loses a unit; what is left is saved and loaded."""
    model = make(width=8) if make is Residual else make()
    x = torch.randn(shape, dtype=torch.float64)
    small = model.double()
    for round_ in range(3):
        sparse = zg.sparsify(small, x, unit=BOTH)
        assert sparse.dense_cost.params == sum(p.numel() for p in small.parameters())
        with torch.no_grad():
            sparse.logits.fill_(9.0)
            for group in sparse.groups:
                if group.units > 1:
                    sparse.logits[group.slice.start + round_ % group.units] = -9.0
        smaller = sparse.compact().eval()
        assert relative(small.eval()(x), smaller(x)) <= 1e-10
        assert sparse.cost().params == sum(p.numel() for p in smaller.parameters()) < sparse.dense_cost.params
        sparse.detach()
        small = smaller
    zg.save(small, tmp_path / "small")
    loaded = zg.load(tmp_path / "small", (lambda: Residual(width=8)) if make is Residual else make).eval()
    assert torch.equal(small(x), loaded(x))


def test_saving_onto_an_existing_file(tmp_path: Path) -> None:
    sparse = zg.sparsify(Residual(), torch.randn(X))
    first = sparse.compact()
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    second = sparse.compact()
    zg.save(first, tmp_path / "file")
    with pytest.raises(zg.ZerogateError, match="exists"):
        zg.save(second, tmp_path / "file")
    assert zg.load(tmp_path / "file", Residual).stem.out_channels == 6
    zg.save(second, tmp_path / "file", overwrite=True)
    assert zg.load(tmp_path / "file", Residual).stem.out_channels == 1


# --- inputs and outputs of all kinds ----------------------------------------------------------------------------------


class Two(nn.Module):
    """Two inputs meet; the second may be missing."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, a: Tensor, b: Tensor | None = None, scale: float = 1.0, extra: Any = None) -> Tensor:
        x = self.a(a) if b is None else self.a(a) + self.b(b)
        if extra is not None:
            x = x + extra["more"][0].mean()
        return self.c(torch.tanh(x) * scale)


A, B = torch.randn(4, 3), torch.randn(4, 4)


@pytest.mark.parametrize(
    "inputs",
    [
        A,
        (A,),
        [A],
        (A, None),
        (A, B),
        [A, B],
        (A, B, 0.5),
        {"a": A},
        {"a": A, "b": B},
        {"b": B, "a": A, "scale": 2.0},
        {"a": A, "b": None, "scale": 1},
        (A, B, 1.0, {"more": [torch.randn(2, 2), 3]}),
        {"a": A, "extra": {"more": (torch.randn(3), torch.arange(3))}},
    ],
)
def test_inputs_as_tensor_tuple_list_and_dict(inputs: Any) -> None:
    assert groups(check_exact(Two(), inputs)) == {"a": 5}


@dataclasses.dataclass
class Inner:
    logits: Tensor
    name: str = "x"


@dataclasses.dataclass
class Outer:
    inner: Inner
    hidden: tuple[Tensor, ...]
    nothing: Tensor | None = None


class Pair(NamedTuple):
    first: Tensor
    second: dict[str, Tensor]


class Output(dict):
    """Like the outputs of transformers: a dict with attributes."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda y, h: (y, h),
    "list": lambda y, h: [y, 3, h],
    "nested": lambda y, h: [y, {"h": [h, None]}],
    "dict": lambda y, h: {"y": y, "h": h, "n": 3},
    "dataclass": lambda y, h: Outer(Inner(y), (h,)),
    "dataclass in a list": lambda y, h: [Outer(Inner(y), (h, h))],
    "dataclass in a dict": lambda y, h: {"out": Inner(y), "h": h},
    "named tuple": lambda y, h: Pair(y, {"h": h}),
    "dict with attributes": lambda y, h: Output(y=y, h=h),
    "one twice": lambda y, h: (y, y, h),
    "one inside another": lambda y, h: (y, y[:, :1], h),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_outputs_of_all_kinds(kind: str) -> None:
    """Also the hidden features that are returned stay as they are, whatever they lie in."""

    def forward(m: nn.Module, x: Tensor) -> Any:
        h = torch.tanh(m.b(torch.relu(m.a(x))))
        return OUTPUTS[kind](m.d(torch.relu(m.c(h))), h)

    layers = {"a": nn.Linear(3, 7), "b": nn.Linear(7, 6), "c": nn.Linear(6, 5), "d": nn.Linear(5, 2)}
    sparse = check_exact(Lambda(forward, **layers), torch.randn(4, 3), torch.randn(6, 3))
    assert groups(sparse) == {"a": 7, "c": 5}
    (row,) = [r for r in sparse.report().rows if r.layer == "b"]
    assert row.reason == "an output of the network"


# --- models of many habits --------------------------------------------------------------------------------------------


def test_a_module_used_twice() -> None:
    model = Lambda(
        lambda m, x: m.head(torch.cat([m.a(x), m.a(x.flip(-1)), m.norm(m.a(-x))], 1)),
        a=nn.Linear(3, 5),
        norm=nn.BatchNorm1d(5),
        head=nn.Linear(15, 2),
    )
    sparse = check_exact(model, torch.randn(4, 3), torch.randn(6, 3))
    assert groups(sparse) == {"a": 5}


def test_a_module_under_two_names() -> None:
    model = Lambda(lambda m, x: m.out(m.b(torch.relu(m.a(m.stem(x))))), stem=nn.Linear(3, 5), out=nn.Linear(5, 2))
    model.a = model.b = nn.Linear(5, 5)
    sparse = check_exact(model, torch.randn(4, 3), torch.randn(6, 3))
    assert groups(sparse) == {"stem": 5}
    small = sparse.compact()
    assert small.a is small.b


def test_layers_of_one_weight() -> None:
    model = Lambda(
        lambda m, x: (m.out(m.a(m.stem(x))), m.out(m.b(m.stem(x)))),
        stem=nn.Linear(3, 6),
        a=nn.Linear(6, 5),
        b=nn.Linear(6, 5, bias=False),
        out=nn.Linear(5, 2),
    )
    model.b.weight = model.a.weight
    sparse = check_exact(model, torch.randn(4, 3), torch.randn(6, 3))
    assert groups(sparse) == {"stem": 6, "a": 5}
    small = sparse.compact()
    assert small.a.weight is small.b.weight


def test_a_parameter_of_a_list_and_one_of_a_dict() -> None:
    model = Lambda(
        lambda m, x: m.b(torch.relu(m.a(x)) * m.scales[0] + m.shifts["x"][1]),
        a=nn.Linear(3, 6),
        b=nn.Linear(6, 2),
        scales=nn.ParameterList([torch.randn(6)]),
        shifts=nn.ParameterDict({"x": torch.randn(2, 6)}),
    )
    check_exact(model, torch.randn(4, 3), torch.randn(6, 3))


def test_frozen_parameters_stay_frozen() -> None:
    torch.manual_seed(0)
    model = Residual()
    for p in [*model.stem.parameters(), model.body[2].weight, model.norm.bias, model.head.weight]:
        p.requires_grad_(False)
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    sparse = zg.sparsify(model, torch.randn(X))
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen
    weights = sparse.param_groups(0.1)[0]["params"]
    assert {id(p) for p in weights} == {id(p) for p in model.parameters() if p.requires_grad}
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    before = {n: p.clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.Adam(sparse.param_groups(0.1))
    (model.train()(torch.randn(X)).square().mean() + sparse.loss()).backward()
    optimizer.step()
    assert all(torch.equal(before[n], p) == (n in frozen) for n, p in model.named_parameters())
    small = sparse.compact(optimizer=optimizer)
    assert {n for n, p in small.named_parameters() if not p.requires_grad} == frozen
    small(torch.randn(X)).sum().backward()
    assert {n for n, p in small.named_parameters() if p.grad is None} == frozen


def test_only_the_gates_of_a_frozen_model_train() -> None:
    model = Residual().requires_grad_(False)
    sparse = zg.sparsify(model, torch.randn(X))
    weights, _ = sparse.param_groups(0.1)
    assert weights["params"] == []
    (model.train()(torch.randn(X)).square().mean() + sparse.loss()).backward()
    assert sparse.logits.grad is not None
    assert sparse.logits.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in sparse.compact().parameters())


BUFFERS: dict[str, tuple[Tensor, Callable[[nn.Module, Tensor], Tensor]]] = {
    "scale": (torch.randn(6), lambda m, x: x * m.held),
    "shift": (torch.randn(1, 6), lambda m, x: x + m.held),
    "difference": (torch.randn(6), lambda m, x: m.held - x),
    "statistics": (torch.rand(2, 6) + 0.5, lambda m, x: (x - m.held[0]) / m.held[1]),
    "where": (torch.randn(6), lambda m, x: torch.where(x > m.held, x, m.held)),
    "added in place": (torch.randn(6), lambda m, x: x.add_(m.held)),
    "row of a table": (torch.randn(3, 6), lambda m, x: x + m.held[1]),
    "row by token": (torch.randn(9, 6), lambda m, x: x + m.held[: len(x)]),
    "concatenated": (torch.randn(1, 6), lambda m, x: torch.cat([m.held, x])[1:]),
    "column": (torch.randn(6, 1), lambda m, x: x * m.held.squeeze(1)),
    "matrix": (torch.randn(6, 6), lambda m, x: x @ m.held),
    "whole numbers": (torch.tensor([1, 0, 2, 3, 1, 2]), lambda m, x: x * m.held),
    "mask": (torch.tensor([1, 0, 1, 1, 0, 1]).bool(), lambda m, x: x.masked_fill(m.held, 0.0)),
    "mask in where": (torch.tensor([1, 0, 1, 1, 0, 1]).bool(), lambda m, x: torch.where(m.held, x, -x)),
    "order": (torch.tensor([1, 0, 2, 5, 4, 3]), lambda m, x: x[:, m.held]),
    "one number": (torch.tensor(1.5), lambda m, x: x * m.held),
}


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_of_channels(kind: str, persistent: bool) -> None:
    """Cut with their channels where they can be, and else the channels stay; exact either way."""
    held, use = BUFFERS[kind]
    model = Lambda(
        lambda m, x: m.c(torch.relu(m.b(use(m, m.a(x))))), a=nn.Linear(3, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2)
    )
    model.register_buffer("held", held.clone(), persistent=persistent)
    sparse = check_exact(model, torch.randn(4, 3), torch.randn(6, 3))
    stays = kind in ("matrix", "order") or not held.is_floating_point()
    assert groups(sparse) == ({"b": 5} if stays else {"a": 6, "b": 5})
    small = sparse.compact()
    assert "held" not in dict(small.named_parameters())
    assert ("held" in small.state_dict()) == persistent
    assert small.held.dtype == (torch.float64 if held.is_floating_point() else held.dtype)


ASKING: dict[str, Callable[[Tensor], Tensor]] = {
    "if a sum": lambda x: x if x.sum() > 0 else 2 * x,
    "bool": lambda x: x if bool((x > 0).all()) else -x,
    "item": lambda x: x / (1 + abs(x.mean().item())),
    "float": lambda x: x * float(x.std()),
    "int as a size": lambda x: x[:, : max(1, int(x.abs().max().clamp(3, 3)))],
    "tolist": lambda x: x * torch.tensor(x[0].tolist()).to(x).abs().mean(),
    "a loop over rows": lambda x: torch.stack([row * (1 if row[0] > 0 else -1) for row in x]),
    "numpy": lambda x: x * float(np.abs(x.detach().numpy()).mean()),
    "from numpy": lambda x: x + torch.from_numpy(np.tanh(x.detach().numpy())),
    "assert": lambda x: x if torch.isfinite(x).all() else torch.zeros_like(x),
    "nonzero": lambda x: x * len(torch.nonzero(x)),
    "picked by a mask": lambda x: x * x[x > 0].sum(),
    "unique": lambda x: x * len(torch.unique(x.sign())),
    "equal": lambda x: x if torch.equal(x, x.abs()) else x + 1,
    "format": lambda x: x * len(f"{x.sum():.0f}"),
}


@pytest.mark.parametrize("kind", ASKING)
def test_forwards_that_ask_for_values(kind: str) -> None:
    """A run without data cannot answer; one with data can."""
    model = Lambda(lambda m, x: m.c(torch.relu(m.b(ASKING[kind](x)))), b=nn.Linear(3, 5), c=nn.Linear(5, 2))
    for sign in (1, -1):
        x = torch.randn(4, 3)
        assert groups(check_exact(model, sign * x.abs(), -sign * x.abs()[:3])) == {"b": 5}
        model = copy.deepcopy(model)
        for hooks in (m._forward_pre_hooks for m in model.modules()):
            hooks.clear()


def test_lengths_and_masks_of_tokens() -> None:
    """Values that follow from whole numbers are known without data: lengths, masks, positions."""

    def forward(m: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
        x = m.embed(ids[:, : int(lengths.max())])
        open_ = torch.arange(x.shape[1])[None] < lengths[:, None]
        x = m.down(F.gelu(m.up(x))) * open_[..., None]
        return m.head(x.sum(1) / lengths[:, None])

    layers = {"embed": nn.Embedding(9, 6), "up": nn.Linear(6, 8), "down": nn.Linear(8, 6), "head": nn.Linear(6, 2)}
    ids = torch.randint(9, (3, 7))
    inputs = (ids, torch.tensor([3, 5, 1])), (ids.flip(0), torch.tensor([7, 2, 2]))
    assert groups(check_exact(Lambda(forward, **layers), *inputs)) == {"embed": 6, "up": 8, "down": 6}


def test_a_model_of_several_precisions() -> None:
    model = Lambda(
        lambda m, x: m.c(torch.relu(m.b(m.a(x).to(torch.float64))).float()),
        a=nn.Linear(3, 6),
        b=nn.Linear(6, 5, dtype=torch.float64),
        c=nn.Linear(5, 2),
    )
    x = torch.randn(4, 3)
    sparse = zg.sparsify(model, x)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact()
    assert [small.a.weight.dtype, small.b.weight.dtype] == [torch.float32, torch.float64]
    torch.testing.assert_close(small.eval()(x), model.eval()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_models_of_low_precision(dtype: torch.dtype) -> None:
    model, x = encoder().to(dtype), torch.randn(2, 3, 5).to(dtype)
    sparse = zg.sparsify(model, x, unit=BOTH)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact().eval()
    assert {p.dtype for p in small.parameters()} == {dtype}
    torch.testing.assert_close(small(x), model.eval()(x), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("where", ["no gradients", "autocast", "float64 by default", "deterministic"])
def test_settings_of_torch_that_hold_around_it(where: str) -> None:
    model, x = encoder(), torch.randn(2, 3, 5)
    around = {"no gradients": torch.no_grad(), "autocast": torch.autocast("cpu", torch.bfloat16)}
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64 if where == "float64 by default" else default)
        torch.use_deterministic_algorithms(where == "deterministic")
        with around.get(where, nullcontext()):
            sparse = zg.sparsify(model, x, unit=BOTH)
            close_randomly(sparse, torch.Generator().manual_seed(0), "share")
            small = sparse.compact()
        (model.train()(x).sum() + sparse.loss()).backward()
        assert sparse.logits.grad is not None
    finally:
        torch.set_default_dtype(default)
        torch.use_deterministic_algorithms(False)
    assert {p.dtype for p in small.parameters()} == {torch.float32}
    torch.testing.assert_close(small.eval()(x), model.eval()(x))
