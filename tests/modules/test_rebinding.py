"""Functions that modules hold read the copy's tensors, not the original's."""

from __future__ import annotations

import functools
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import Lambda, relative
from zerogate.modules.copies import copy_with, deep_copy, meta_copy, quick_copy


class Net(nn.Module):
    """An embedding whose weight is read again at the end, by a function that is held in one of many ways."""

    def __init__(self, hold: Callable[[Net], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.body = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))
        self.to_logits: Any = hold(self)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = x + self.body(x)
        to_logits = self.to_logits
        while not callable(to_logits):
            to_logits = next(iter(to_logits.values() if isinstance(to_logits, dict) else to_logits))
        y: Tensor = to_logits(x)
        return y


class Holder:
    def __init__(self, net: Net) -> None:
        self.net = net

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.net.embed.weight.t()

    def method(self, x: Tensor) -> Tensor:
        return self(x)


def project(weight: nn.Embedding, x: Tensor) -> Tensor:
    return x @ weight.weight.t()


def nested(net: Net) -> Callable[[Tensor], Tensor]:
    def inner(x: Tensor) -> Tensor:
        return x @ net.embed.weight.t()

    def outer(x: Tensor) -> Tensor:
        return inner(x) if x.ndim else outer(x[None])

    return outer


def decorated(net: Net) -> Callable[[Tensor], Tensor]:
    @functools.wraps(net.body.forward)
    def wrapper(x: Tensor, *, layer: nn.Embedding = net.embed) -> Tensor:
        return x @ layer.weight.t()

    return wrapper


def weak(net: Net) -> Callable[[Tensor], Tensor]:
    to_net = weakref.ref(net)

    def read(x: Tensor) -> Tensor:
        found = to_net()
        assert found is not None
        return x @ found.embed.weight.t()

    return read


HOLDS: dict[str, Callable[[Net], Any]] = {
    "a lambda over self": lambda net: lambda x: x @ net.embed.weight.t(),
    "a lambda over the layer": lambda net: (lambda layer: lambda x: x @ layer.weight.t())(net.embed),
    "a default": lambda net: lambda x, layer=net.embed: x @ layer.weight.t(),
    "a function in a function": nested,
    "a decorated function": decorated,
    "a partial": lambda net: functools.partial(project, net.embed),
    "a partial of a lambda": lambda net: functools.partial(lambda _, x: x @ net.embed.weight.t(), None),
    "a method of another object": lambda net: Holder(net).method,
    "another object": Holder,
    "a method made of a lambda": lambda net: types.MethodType(lambda _, x: x @ net.embed.weight.t(), net.body),
    "a lambda over a list": lambda net: (lambda held: lambda x: x @ held[0]["layer"].weight.t())(
        [{"layer": net.embed}]
    ),
    "a lambda in a dict": lambda net: {"head": lambda x: x @ net.embed.weight.t()},
    "a lambda in a tuple in a list": lambda net: [(lambda x: x @ net.embed.weight.t(),)],
    "a weak reference": weak,
}


OVER_THE_PARAMETER = {"a lambda over the parameter": lambda net: (lambda w: lambda x: x @ w.t())(net.embed.weight)}


@pytest.fixture(params=HOLDS)
def make(request: pytest.FixtureRequest) -> Callable[[], Net]:
    return lambda: Net(HOLDS[request.param]).double()


@pytest.mark.parametrize("hold", (HOLDS | OVER_THE_PARAMETER).values(), ids=(HOLDS | OVER_THE_PARAMETER).keys())
def test_all_copies_read_their_own(hold: Callable[[Net], Any]) -> None:
    model = Net(hold).double()
    ids = torch.randint(20, (2, 5))
    before = model(ids).detach()
    shared = quick_copy(model, {id(p): p for p in model.parameters()})
    for copied in (
        deep_copy(model),
        quick_copy(model),
        copy_with(model, lambda _, x: nn.Parameter(x.detach().clone())),
    ):
        copied(ids).sum().backward()
        assert all(p.grad is None for p in model.parameters()) and copied.embed.weight.grad is not None
        assert torch.equal(copied(ids), before)
        with torch.no_grad():
            copied.embed.weight.zero_()
        assert not copied(ids).any()
    assert torch.equal(model(ids), before) and torch.equal(shared(ids), before)
    assert meta_copy(model)(ids.to("meta")).is_meta


def test_the_compacted_network_reads_its_own_and_can_be_loaded(make: Callable[[], Net], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, ids = make(), torch.randint(20, (2, 5))
    sparse = zg.sparsify(model, ids)
    assert len(sparse.logits) == 40
    with torch.no_grad():
        sparse.logits.copy_(torch.where(torch.rand(40) < 0.5, -8.0, 8.0))
    small = sparse.compact().eval()
    assert sum(p.numel() for p in small.parameters()) == sparse.cost().params
    small(ids).logsumexp(-1).sum().backward()
    assert model.embed.weight.grad is None
    torch.optim.SGD(small.parameters(), 0.5).step()
    zg.save(small, tmp_path / "small.safetensors")
    assert torch.equal(zg.load(tmp_path / "small.safetensors", make)(ids), small(ids))


def test_a_parameter_that_a_function_holds_itself_stays_whole(tmp_path: Path) -> None:
    (hold,) = OVER_THE_PARAMETER.values()
    model, ids = Net(hold).double(), torch.randint(20, (2, 5))
    sparse = zg.sparsify(model, ids)
    assert len(sparse.logits) == 24
    sparse.logits.data[::2] = -8
    small = sparse.compact()
    small(ids).sum().backward()
    assert small.embed.weight.grad is not None and model.embed.weight.grad is None
    zg.save(small, tmp_path / "small.safetensors")
    with pytest.raises(zg.CheckpointError, match="does not hold to_logits"):  # a cell cannot be filled from outside
        zg.load(tmp_path / "small.safetensors", lambda: Net(hold).double())


class CountingHook:
    """A user's hook that refers to the layer it is on, and changes what that returns."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer

    def __call__(self, module: nn.Module, args: object, out: Tensor) -> Tensor:
        return out * self.layer.weight.mean()


@pytest.mark.parametrize("kind", ["lambda", "object"])
def test_hooks_refer_to_the_copy(kind: str) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2)).double()
    last = model[2]
    model[2].register_forward_hook(
        CountingHook(last) if kind == "object" else lambda module, args, out: out * last.weight.mean()
    )
    for copied in (deep_copy(model), quick_copy(model)):
        copied(torch.randn(2, 3, dtype=torch.float64)).sum().backward()
        assert last.weight.grad is None and copied[2].weight.grad is not None


def test_what_refers_to_nothing_of_the_model_stays_the_same_object() -> None:
    teacher = nn.Linear(3, 3)
    model = Lambda(lambda self, x: self.teach(x))
    model.teach = lambda x: teacher(x)
    model.act = torch.nn.functional.gelu
    for copied in (deep_copy(model), quick_copy(model)):
        assert copied.teach is model.teach and copied.act is model.act and copied.function is model.function


def test_a_shared_variable_of_two_functions_stays_shared() -> None:
    model = nn.Linear(2, 2)
    count = 0

    def add() -> None:
        nonlocal count
        count += model.in_features

    model.add, model.get = add, lambda: (count, model.in_features)
    copied = deep_copy(model)
    copied.add()
    assert copied.get() == model.get() == (2, 2)  # a number is no part of a model: as for every copy of a function


class Globally(nn.Module):
    layer: nn.Linear

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)
        Globally.layer = self.last

    def forward(self, x: Tensor) -> Tensor:
        return Globally.layer(self.first(x).relu())


def test_what_copies_cannot_reach_is_refused_with_its_name_and_line() -> None:
    with pytest.raises(
        zg.WatchError, match=r"copies .* go on reading last.weight of the original .*\(.*:\d+\); let the "
    ):
        zg.sparsify(Globally(), torch.randn(2, 4))


def test_a_partial_keeps_its_attributes_and_keywords() -> None:
    model = nn.Linear(2, 2)
    held = functools.partial(lambda x, scale: x * scale * model.weight.sum(), scale=2.0)
    held.note = "kept"  # type: ignore[attr-defined]
    model.held = held
    copied = deep_copy(model)
    assert copied.held.note == "kept" and copied.held is not held
    assert relative(copied.held(torch.ones(2)), model.held(torch.ones(2))) == 0
