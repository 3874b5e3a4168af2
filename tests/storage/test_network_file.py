"""Compacted modules written and read back, and files that must be refused."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import resource
import struct
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import Lambda, Residual, close_randomly
from zerogate.cutting.plan import Plan
from zerogate.modules.unregistered import unregistered
from zerogate.storage.plan_json import architecture, describe_plan, layout, read_step
from zerogate.storage.sealed_file import digest, separate


@pytest.fixture
def small() -> nn.Module:
    torch.manual_seed(0)
    return compacted(Residual(), torch.randn(2, 2, 5, 5)).eval()


def compacted(model: nn.Module, x: Tensor, seed: int = 0, **options: Any) -> nn.Module:
    sparse = zg.sparsify(model, x, **options)
    close_randomly(sparse, torch.Generator().manual_seed(seed), "share")
    sparse.detach()
    return sparse.compact()


def as_it_is(model: nn.Module) -> nn.Module:
    """A network with the plan that removes nothing: what can be stored does not depend on what can be cut."""
    model.zerogate_plan = describe_plan(Plan(), model, model)  # type: ignore[assignment]
    return model


def back(small: nn.Module, path: Path, make: Callable[[], nn.Module]) -> nn.Module:
    zg.save(small, path, overwrite=True)
    return zg.load(path, make)


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def same(a: nn.Module, b: nn.Module) -> None:
    ours, theirs = tensors_of(a), tensors_of(b)
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype and tensor.requires_grad == theirs[name].requires_grad, name
        assert torch.equal(tensor, theirs[name]), name
        assert type(tensor) is type(theirs[name]), name
    assert [(n, type(m).__name__, m.training) for n, m in a.named_modules()] == [
        (n, type(m).__name__, m.training) for n, m in b.named_modules()
    ]


# what comes back


def test_what_was_saved_is_loaded(small: nn.Module, tmp_path: Path) -> None:
    x = torch.randn(3, 2, 5, 5)
    zg.save(small, tmp_path / "small.safetensors")
    loaded = zg.load(tmp_path / "small.safetensors", Residual)
    assert type(loaded) is Residual
    assert not loaded.training
    assert torch.equal(loaded(x), small(x))
    assert loaded.stem.out_channels == loaded.stem.weight.shape[0]
    assert all(p.requires_grad for p in loaded.parameters())
    zg.save(loaded, tmp_path / "again.safetensors")  # and can be saved again
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "small.safetensors").read_bytes()
    assert torch.equal(zg.load(tmp_path / "again.safetensors", Residual)(x), small(x))
    assert loaded.zerogate_plan == small.zerogate_plan


def test_input_selection_and_weight_masks_survive(tmp_path: Path) -> None:
    x = torch.randn(3, 1, 28, 28)
    for number, options in enumerate([{"gate_inputs": True}, {"unit": "weight"}]):
        small = compacted(zg.models.lenet300(), x, **options)
        assert torch.equal(back(small, tmp_path / str(number), zg.models.lenet300)(x), small(x))


def test_input_selection_of_a_single_layer_chain(tmp_path: Path) -> None:
    """The root itself is replaced where the first layer is the whole network's first entry."""
    make = lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))  # noqa: E731
    small = compacted(make(), torch.randn(2, 8), gate_inputs=True)
    same(back(small, tmp_path / "x", make), small)


def test_it_trains_on_after_loading(small: nn.Module, tmp_path: Path) -> None:
    loaded = back(small, tmp_path / "x", Residual)
    x = torch.randn(2, 2, 5, 5)
    for model in (small, loaded):
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(x).square().sum().backward()
        optimizer.step()
    same(loaded, small)


def test_a_network_compacted_twice_is_read_with_the_first_dense_one(tmp_path: Path) -> None:
    x = torch.randn(2, 2, 5, 5)
    first = compacted(Residual(width=24), x)
    second = compacted(first, x, seed=1)
    assert len(second.zerogate_plan["steps"]) == 2
    assert sum(p.numel() for p in second.parameters()) < sum(p.numel() for p in first.parameters())
    loaded = back(second, tmp_path / "x", lambda: Residual(width=24))
    same(loaded, second)
    third = compacted(loaded, x, seed=2)
    same(back(third, tmp_path / "x", lambda: Residual(width=24)), third)
    first.head = nn.Linear(first.head.in_features, 7)  # rebuilt: a network of its own
    assert len(compacted(first, x).zerogate_plan["steps"]) == 1


def test_dtypes_shapes_and_flags(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)
            self.scalar = nn.Parameter(torch.tensor(1.5))
            self.empty = nn.Parameter(torch.zeros(3, 0))
            self.count = nn.Parameter(torch.tensor([3, 4]), requires_grad=False)
            self.register_buffer("steps", torch.tensor(7))
            self.register_buffer("mask", torch.tensor([True, False]))
            self.register_buffer("complex", torch.randn(3, dtype=torch.complex64).conj())
            self.register_buffer("none", None)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.relu(self.a(x))) * self.scalar

    model = Odd()
    model.a.weight.requires_grad_(False)
    model.b.eval()
    with torch.no_grad():
        model.scalar.fill_(2.5)
        model.steps.fill_(9)
    small = as_it_is(model)
    assert small.training and not small.b.training
    same(back(small, tmp_path / "x", Odd), small)
    small = small.bfloat16()  # may be converted before it is saved
    loaded = back(small, tmp_path / "x", Odd)
    assert loaded.a.weight.dtype == torch.bfloat16
    same(loaded, small)
    small = small.eval()
    small.a.train()
    loaded = back(small, tmp_path / "x", Odd)
    assert loaded.a.training and not loaded.training
    same(loaded, small)


def test_ties_survive(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.a, self.b = nn.Embedding(9, 4), nn.Linear(4, 6), nn.Linear(6, 4)
            self.lm_head = nn.Linear(4, 9, bias=False)
            self.lm_head.weight = self.embed.weight
            self.same = self.b

        def forward(self, x: Tensor) -> Tensor:
            return self.lm_head(self.b(torch.relu(self.a(self.embed(x)))))

    small = compacted(Tied(), torch.randint(9, (2, 3)))
    loaded = back(small, tmp_path / "x", Tied)
    assert loaded.lm_head.weight is loaded.embed.weight
    assert loaded.same is loaded.b
    same(loaded, small)


def test_views_of_one_storage(tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        both = torch.randn(2, 4, 4)
        model[0].weight, model[2].weight = nn.Parameter(both[0]), nn.Parameter(both[1])
        model[0].bias = nn.Parameter(both[0, 0])
        return model

    small = as_it_is(make())
    loaded = back(small, tmp_path / "x", make)
    same(loaded, small)
    assert len({p.untyped_storage().data_ptr() for p in loaded.parameters()}) == 4


def test_memory_formats_survive(tmp_path: Path) -> None:
    small = compacted(Residual().to(memory_format=torch.channels_last), torch.randn(2, 2, 5, 5))  # type: ignore[call-overload]
    loaded = back(small, tmp_path / "x", Residual)
    for name, p in small.named_parameters():
        assert loaded.get_parameter(name).stride() == p.stride(), name


class Rotary(nn.Module):
    """Buffers that are no part of the state_dict: one made at once, one when it is needed."""

    def __init__(self, lazy: int | None = None) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)
        self.register_buffer("inv_freq", torch.arange(4.0), persistent=False)
        self.register_buffer("cache", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.cache is None:
            self.register_buffer("cache", self.inv_freq.cos(), persistent=False)
        return self.b(torch.relu(self.a(x))) + self.cache


def test_buffers_outside_the_state_dict(tmp_path: Path) -> None:
    for used in (False, True):
        model, x = Rotary(), torch.randn(2, 4)
        model.inv_freq.mul_(3)  # so that a fresh one would differ
        if used:
            model(x)
        small = compacted(model, x)
        assert (small.cache is not None) is used
        loaded = back(small, tmp_path / "x", Rotary)
        assert torch.equal(loaded.inv_freq, model.inv_freq)
        assert torch.equal(loaded(x), small(x))
        assert sorted(loaded.state_dict()) == sorted(Rotary().state_dict())
        same(loaded, small)


class Plain(nn.Module):
    """Tensors that nobody registered."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)
        self.register_buffer("grid", torch.randn(4))
        self.again = self.grid  # not a copy
        self.table = torch.randn(4)
        self.anchors = [torch.randn(4), (torch.randn(4), 3)]
        self.scales = {"x": torch.randn(4), 2: torch.tensor(2.0, dtype=torch.float64)}
        self.config = types.SimpleNamespace(shift=torch.randn(4), teacher=None)
        self.config.teacher = nn.Linear(4, 4)  # in no list of submodules
        self.known = torch.arange(4.0, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(torch.relu(self.a(x + self.again * self.table)))
        x = x + self.anchors[0] + self.anchors[1][0] * self.scales["x"] * self.scales[2].float()
        return x + self.config.shift + self.config.teacher(x) + self.known


def test_tensors_that_nobody_registered_come_back(tmp_path: Path) -> None:
    x = torch.randn(2, 4)
    small = as_it_is(Plain())
    called = []

    def make() -> nn.Module:
        called.append(torch.empty(0).device.type)
        return Plain()

    loaded = back(small, tmp_path / "x", make)
    assert called == ["meta"]  # all values are in the file
    assert torch.equal(loaded(x), small(x))
    assert loaded.again is loaded.grid
    assert type(loaded.anchors[1]) is tuple and loaded.anchors[1][1] == 3
    assert loaded.scales[2].dtype == torch.float64
    assert isinstance(loaded.config.teacher.weight, nn.Parameter) and loaded.config.teacher.weight.requires_grad


def test_tensors_out_of_reach_are_made_again(tmp_path: Path) -> None:
    x = torch.randn(2, 4)

    def make(kind: str) -> nn.Module:
        secret = torch.arange(4.0)
        model = Lambda(lambda m, x: m.b(m.use(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 2))
        if kind == "closure":
            model.use = lambda x: x + secret
        elif kind == "partial":
            model.use = partial(torch.add, secret)
        else:
            model.use = torch.relu
            model.keys = {"key": {(1, 2): secret}, "set": {secret}, "sparse": secret.to_sparse()}[kind]
        return model

    for kind in ("closure", "partial", "key", "set", "sparse"):
        small = as_it_is(make(kind))
        loaded = back(small, tmp_path / "x", partial(make, kind))
        assert torch.equal(loaded(x), small(x)), kind
        same(loaded, small)
        assert not any(t.is_meta for _, t in unregistered(loaded))


def test_caches_that_a_fresh_network_lacks_are_left_out(tmp_path: Path) -> None:
    class Cached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 4)
            self.seen: list[Tensor] = []
            self.last = None

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.a(x))
            self.last = y.detach() if self.training else None
            self.seen.append(y)
            return self.b(y)

    x = torch.randn(2, 4)
    small = compacted(Cached(), x)
    small(x)
    loaded = back(small, tmp_path / "x", Cached)
    assert loaded.last is None and loaded.seen == []
    assert torch.equal(loaded(x), small(x))


def test_a_recurrent_layer_comes_back(tmp_path: Path) -> None:
    make = lambda: Lambda(  # noqa: E731
        lambda m, x: m.c(torch.relu(m.b(m.a(x)[0]))), a=nn.LSTM(3, 4), b=nn.Linear(4, 6), c=nn.Linear(6, 2)
    )
    x = torch.randn(5, 2, 3)
    small = compacted(make(), x)
    loaded = back(small, tmp_path / "x", make)
    assert all(flat is p for flat, p in zip(loaded.a._flat_weights, loaded.a.parameters(), strict=True))
    assert torch.equal(loaded(x), small(x))


# making the dense network


def test_dense_weights_are_never_made(tmp_path: Path) -> None:
    width = 20_000  # 3.2 GB of dense weights
    with torch.device("meta"):
        dense = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        small = nn.Sequential(nn.Linear(width, 3), nn.ReLU(), nn.Linear(3, width))
    small = small.to_empty(device="cpu")
    for p in small.parameters():
        nn.init.normal_(p)
    keep = torch.tensor([1, 5, 19_999])
    plan = Plan(keep={("0.weight", 0): keep, ("0.bias", 0): keep, ("2.weight", 1): keep})
    small.zerogate_plan = describe_plan(plan, dense, small)  # type: ignore[assignment]
    zg.save(small, tmp_path / "x")

    def make() -> nn.Module:
        model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        assert all(p.is_meta for p in model.parameters())
        return model

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = zg.load(tmp_path / "x", make)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB
    same(loaded, small)
    assert (loaded[0].out_features, loaded[2].in_features) == (3, 3)


class ReadsValues(Residual):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.linspace(0, 1, 3)[1].item()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale


def test_a_constructor_that_reads_values_is_run_on_the_cpu(tmp_path: Path) -> None:
    x = torch.randn(2, 2, 5, 5)
    small = compacted(ReadsValues(), x)
    zg.save(small, tmp_path / "x")
    state = torch.get_rng_state()
    loaded = zg.load(tmp_path / "x", ReadsValues)
    assert torch.equal(state, torch.get_rng_state())
    same(loaded, small)
    assert torch.equal(loaded(x), small(x))


def test_a_network_of_the_callers_is_left_alone(small: nn.Module, tmp_path: Path) -> None:
    mine = Residual()
    before = copy.deepcopy(mine.state_dict())
    loaded = back(small, tmp_path / "x", lambda: mine)
    same(loaded, small)
    assert all(torch.equal(t, before[n]) for n, t in mine.state_dict().items())
    assert mine.stem.out_channels == 6


def test_make_model_that_loads_weights(small: nn.Module, tmp_path: Path) -> None:
    def make() -> nn.Module:
        model = Residual()
        model.load_state_dict(Residual().state_dict())
        return model

    same(back(small, tmp_path / "x", make), small)


def test_make_model_that_is_no_good(small: nn.Module, tmp_path: Path) -> None:
    zg.save(small, tmp_path / "x")

    def fails() -> nn.Module:
        raise KeyError("width")

    for make, says in [
        (lambda: 3, "make_model returns the dense torch.nn.Module, got a int"),
        (fails, "make_model\\(\\) raises KeyError: 'width'"),
        (Residual(), "make_model\\(\\) raises TypeError"),
        (None, "make_model\\(\\) raises TypeError"),
    ]:
        with pytest.raises(zg.ZerogateError, match=says) as error:
            zg.load(tmp_path / "x", make)  # type: ignore[arg-type]
        assert "\n" not in str(error.value)


# writing


def test_an_existing_file_is_not_overwritten_unasked(small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    path.write_text("precious")
    with pytest.raises(zg.ZerogateError, match="exists"):
        zg.save(small, path)
    assert path.read_text() == "precious"
    zg.save(small, path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]  # no temporary file is left


def test_bad_saves(small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")

    def refused(says: str, model: nn.Module, path: Path, **options: Any) -> None:
        with pytest.raises(zg.ZerogateError, match=says) as error:
            zg.save(model, path, **options)
        assert "\n" not in str(error.value)

    refused("without a plan", Residual(), tmp_path / "x")
    refused("cannot write .*No such file", small, tmp_path / "missing" / "x")
    refused("is a folder", small, tmp_path)
    refused("is a folder", small, tmp_path, overwrite=True)
    refused("cannot write .*Not a directory", small, tmp_path / "file" / "x")
    refused("cannot write .*too long", small, tmp_path / ("x" * 300))
    refused("cannot write .*null", small, tmp_path / "a\0b")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]

    def denied(*args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    refused("cannot write .*Permission denied", small, tmp_path / "x")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    monkeypatch.undo()

    small.register_buffer("odd", torch.eye(3).to_sparse())
    refused("is not as compact\\(\\) returned it", small, tmp_path / "x")
    small.zerogate_plan["result"] = layout(small)
    refused("cannot be stored", small, tmp_path / "x")
    small.odd = torch.zeros(3, 3, device="meta")
    refused("cannot be stored", small, tmp_path / "x")
    small.zerogate_plan["version"] = 1
    refused("another version of zerogate", small, tmp_path / "x")


def test_without_safetensors(small: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    for call in (lambda: zg.save(small, tmp_path / "x"), lambda: zg.load(tmp_path / "x", Residual)):
        with pytest.raises(zg.ZerogateError, match="pip install safetensors"):
            call()


# files that must be refused


def refused(path: Path, content: bytes, says: str, make: Callable[[], nn.Module] = Residual) -> None:
    path.write_bytes(content)
    with pytest.raises(zg.CheckpointError, match=says) as error:
        zg.load(path, make)
    assert "\n" not in str(error.value)


def opened(content: bytes) -> tuple[dict[str, Any], bytes]:
    """(header of the safetensors file, its tensors' bytes)."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def closed(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def test_files_that_are_refused(small: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    with pytest.raises(zg.CheckpointError, match=r"cannot be read.*No such file"):
        zg.load(tmp_path / "nowhere", Residual)
    with pytest.raises(zg.CheckpointError, match="is a folder"):
        zg.load(tmp_path, Residual)
    zg.save(small, path)
    whole = path.read_bytes()
    refused(path, whole[: len(whole) // 2], "cannot be read")
    refused(path, b"", "cannot be read")
    refused(path, b"hello world, this is no such file", "cannot be read")
    header, data = opened(whole)
    plain = {k: v for k, v in header.items() if k != "__metadata__"}
    refused(path, closed(plain, data), "not one that zerogate.save wrote")
    refused(
        path, closed(plain | {"__metadata__": {"zerogate": "[" * 100_000}}, data), "not one that zerogate.save wrote"
    )
    for old in ({"version": 1, "dense": "x", "keep": []}, {"version": None, "keep": []}):
        says = (
            "not one that" if old["version"] is None else "an earlier zerogate \\(file version 1, this one reads 2 to 4"
        )
        refused(path, closed(plain | {"__metadata__": {"zerogate": json.dumps(old)}}, data), says)
    later = header["__metadata__"]["zerogate"].replace('"version": 2', '"version": 5')
    refused(path, closed(plain | {"__metadata__": {"zerogate": later}}, data), "a later zerogate")
    changed = header["__metadata__"]["zerogate"].replace('"torch": "', '"torch": "9')
    refused(path, closed(plain | {"__metadata__": {"zerogate": changed}}, data), "damaged or was changed")


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 3), nn.Linear(3, 1)
        self.plain = torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x))) * self.plain


def test_any_flipped_bit_and_any_truncation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    small = compacted(Tiny(), torch.randn(2, 2))
    zg.save(small, path)
    whole = path.read_bytes()
    loads = 0
    for position in range(len(whole)):
        mask = (0x20, 0xFF, 1 << position % 8)[position % 3]  # 0x20 makes small letters large
        path.write_bytes(whole[:position] + bytes([whole[position] ^ mask]) + whole[position + 1 :])
        try:
            loaded = zg.load(path, Tiny)
        except zg.CheckpointError:
            continue
        loads += 1
        same(loaded, small)  # spaces that pad the header may be other spaces
    assert loads <= 8
    for length in range(0, len(whole), 16):
        refused(path, whole[:length], "cannot be read")
    refused(path, whole + b"\0", "cannot be read")


def resealed(header: dict[str, Any], data: bytes, plan: Any, small: nn.Module) -> bytes:
    """A file whose hash is right, whatever its plan says."""
    text = json.dumps(plan)
    stored = separate({**dict(small.named_parameters()), **dict(small.named_buffers())})
    for n, (_, tensor) in enumerate(unregistered(small)):
        stored[f"unregistered:{n}"] = tensor
    sealed = f'{{"sha256": "{digest(text, stored)}", "plan": {text}}}'
    return closed(header | {"__metadata__": {"zerogate": sealed}}, data)


def nodes(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, item in items for p in nodes(item, (*path, key)))]


def test_plans_that_were_made_up_are_refused_with_a_reason(tmp_path: Path) -> None:
    """Whatever stands anywhere in a plan, hash and all: a network, or a CheckpointError of one line."""
    path = tmp_path / "x"
    model = Lambda(lambda m, x: m.net(x), net=Tiny(), attention=nn.MultiheadAttention(4, 2))
    small = compacted(model, torch.randn(2, 2), gate_inputs=True)
    zg.save(small, path)
    header, data = opened(path.read_bytes())
    plan = json.loads(header["__metadata__"]["zerogate"])["plan"]
    plan["steps"][0]["attributes"].append(["net.a", "out_features", 3])
    assert plan["steps"][0]["keep"] and plan["steps"][0]["select"] and plan["unregistered"]
    junk = [None, True, 1.5, -1, 0, 10**30, "x", "net.a", "a\nb", [], [0], [-1], [1, 0], [[]], {}, {"x": 1}]
    refusals = 0
    for number, where in enumerate(nodes(plan)):
        for value in junk[number % 16 :: 16 if where[:1] == ("dense",) else 3]:
            bad = copy.deepcopy(plan)
            if where:
                holder = bad
                for key in where[:-1]:
                    holder = holder[key]
                holder[where[-1]] = value
            else:
                bad = value
            path.write_bytes(resealed(header, data, bad, small))
            try:
                zg.load(path, lambda: Lambda(model.function, net=Tiny(), attention=nn.MultiheadAttention(4, 2)))
            except zg.CheckpointError as error:
                refusals += 1
                assert "\n" not in str(error), (where, value)
    assert refusals > 150


def test_what_a_step_may_say() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.MultiheadAttention(4, 2))
    model.train()

    def step(**changes: Any) -> dict[str, Any]:
        return {"keep": [], "select": [], "attributes": [], "attention": {}} | changes

    def refused(says: str, **changes: Any) -> None:
        with pytest.raises(zg.CheckpointError, match=says):
            read_step(step(**changes), model)

    plan = read_step(
        step(
            keep=[["0.weight", 0, [0, 2]], ["0.weight", 1, []]],
            select=[["0", -1, [3]]],
            attributes=[["0", "out_features", 2], ["1", "normalized_shape", [2]]],
            attention={"2": {"same": True}},
        ),
        model,
    )
    assert plan.keep["0.weight", 0].tolist() == [0, 2] and plan.keep["0.weight", 1].dtype == torch.int64
    assert plan.attributes == {("0", "out_features"): 2, ("1", "normalized_shape"): [2]}
    assert plan.attention == {"2": {"same": True}}
    for bad in ([3], [-1, 0], [1, 1], [2, 0], [True], [0.0], "01", None):
        refused("keep of 0.weight", keep=[["0.weight", 0, bad]])
    for name, dim in (("9.weight", 0), ("0.weight", 2), ("0.weight", -1), ("0.weight", True), ("", 0)):
        refused("there is none", keep=[[name, dim, [0]]])
    refused("there is none", keep=[["0.weight", 0, [0]], ["0.weight", 0, [1]]])
    refused(r"keep has a name that is not a string: \['0.weight'\]", keep=[[["0.weight"], 0, [0]]])
    refused("not a table of three columns", keep=[["0.weight", 0]])
    refused("there are none", select=[["9", -1, [0]]])
    refused("there are none", select=[["0", 1, [0]]])
    refused("select of 0", select=[["0", -1, [4]]])
    for name, attribute, value in (
        ("0", "training", 1),
        ("0", "out_features", True),
        ("0", "out_features", 2.0),
        ("0", "out_features", [2]),
        ("0", "weight", 2),
        ("0", "_parameters", 2),
        ("0", "forward", 2),
        ("0", ["x"], 2),
        ("9", "out_features", 2),
        ("1", "normalized_shape", [2, 1]),
        ("1", "normalized_shape", 2),
        ("1", "eps", 0),
    ):
        refused("holds a plan that sets", attributes=[[name, attribute, value]])
    refused("with an attention at 0", attention={"0": {}})
    refused("with an attention at 2", attention={"2": {"same": 1}})
    refused("attention is not a table", attention=[])
    for bad_step in (None, [], {}, step(more=1)):
        with pytest.raises(zg.CheckpointError, match="contains an invalid plan step"):
            read_step(bad_step, model)


# which architecture


class Heads(nn.Module):
    def __init__(self, heads: int = 6, window: tuple[int, ...] = (2, 2)) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)
        self.mlp, self.out = nn.Linear(12, 20), nn.Linear(20, 2)
        self.heads, self.window = heads, window
        self.rate, self.fused, self._calls = 0.5, True, 0

    def forward(self, x: Tensor) -> Tensor:
        self._calls += 1
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        x = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.out(F.gelu(self.mlp(x)))


def test_what_shapes_do_not_say_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "x"
    x = torch.randn(2, 5, 12)
    small = compacted(Heads(), x, exclude=["qkv", "proj"])
    zg.save(small, path)
    whole = path.read_bytes()
    assert torch.equal(zg.load(path, Heads)(x), small(x))
    refused(path, whole, "heads is 6 in the file and 12 in it", lambda: Heads(12))
    refused(path, whole, r"window is \[2, 2\] in the file and \[4, 1\] in it", lambda: Heads(window=(4, 1)))

    def changed(change: Callable[[Heads], object]) -> Callable[[], nn.Module]:
        def make() -> nn.Module:
            model = Heads()
            change(model)
            return model

        return make

    for change, says in [
        (lambda m: setattr(m, "out", nn.Bilinear(20, 1, 2)), "out is Linear in the file and Bilinear in it"),
        (lambda m: setattr(m, "extra", nn.ReLU()), "extra is absent in the file and ReLU in it"),
        (lambda m: delattr(m, "out"), "out is Linear in the file and absent in it"),
        (lambda m: setattr(m.proj, "weight", nn.Parameter(torch.zeros(12, 11))), "parameter 12 × 12 in the file and"),
        (lambda m: setattr(m.mlp, "bias", None), "mlp.bias is parameter 20 in the file and absent in it"),
        (lambda m: m.register_buffer("b", torch.zeros(())), "b is absent in the file and buffer scalar in it"),
        (lambda m: setattr(m.proj, "weight", m.qkv.weight), "tied to qkv.weight in it"),
        (lambda m: setattr(m, "qkv", nn.LazyLinear(36)), "qkv is Linear in the file and LazyLinear in it"),
    ]:
        refused(path, whole, says, changed(change))
    for harmless in ({"rate": 0.1}, {"fused": False}, {"_calls": 9}, {"training": False}):
        path.write_bytes(whole)
        zg.load(path, changed(lambda m, harmless=harmless: m.__dict__.update(harmless)))  # type: ignore[misc]


def test_attention_that_lost_heads_comes_back(tmp_path: Path) -> None:
    def make(width: int = 12) -> nn.Module:
        encoder = nn.TransformerEncoderLayer(width, 6, 16, batch_first=True, dropout=0.0)
        return nn.Sequential(nn.Linear(4, width), encoder, nn.Linear(width, 2))

    x = torch.randn(2, 5, 4)
    small = compacted(make(), x, unit="head")
    assert small.zerogate_plan["steps"][0]["attention"]
    loaded = back(small, tmp_path / "x", make)
    same(loaded, small)
    assert loaded[1].self_attn.num_heads == small[1].self_attn.num_heads < 6
    for mode in (True, False):
        assert torch.equal(loaded.train(mode)(x), small.train(mode)(x))
    path = tmp_path / "x"
    with pytest.raises(zg.CheckpointError, match="another architecture"):
        zg.load(path, lambda: make(24))
    again = compacted(loaded, x)
    same(back(again, path, make), again)


def test_sizes_that_a_network_states_come_back(tmp_path: Path) -> None:
    x = torch.randn(2, 5, 12)
    small = compacted(Heads(), x, unit="head")
    assert small.heads < 6 and ["", "heads", small.heads] in small.zerogate_plan["steps"][0]["attributes"]
    loaded = back(small, tmp_path / "x", Heads)
    assert loaded.heads == small.heads and loaded.window == (2, 2)
    assert torch.equal(loaded(x), small(x))


def test_architectures() -> None:
    found = architecture(nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)))
    assert found[""] == "Sequential" and found["0"] == "Conv2d"
    assert found["0.stride"] == [1, 1] and found["0.out_channels"] == 3 and "0.padding_mode" not in found
    assert found["0.weight"] == "parameter 3 × 2 × 3 × 3" and found["1.num_batches_tracked"] == "buffer scalar"
    assert json.loads(json.dumps(found)) == found
    assert hashlib.sha256(json.dumps(found).encode()).hexdigest()  # plain values only
