"""Tables that a module holds as plain tensors are sliced like buffers; parameters without entries are, too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly, relative
from zerogate.modules.unregistered import plain_places

WIDTH = 24


def table(tokens: int = 5, width: int = WIDTH) -> Tensor:
    return torch.linspace(-1, 1, tokens * width, dtype=torch.float64).view(tokens, width)


class Tokens(nn.Module):
    """Tokens with a table of positions added to them, which is held in the way that is asked for."""

    def __init__(self, held: str) -> None:
        super().__init__()
        self.held = held
        self.embed, self.out = nn.Linear(6, WIDTH), nn.Linear(WIDTH, 3)
        self.body = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.pos: Any = None
        if held == "buffer":
            del self.pos
            self.register_buffer("pos", table())
        elif held in ("plain", "moved", "cast", "sliced"):
            self.pos = table()
        elif held == "list":
            self.pos = [torch.ones(3), table()]
        elif held == "dict":
            self.pos = {"inner": {"table": table()}}
        elif held == "batched":
            self.pos = table()[None]
        elif held == "scale":
            self.pos = table()[0]
        elif held == "trained":
            self.pos = table().requires_grad_()
        elif held == "twice":
            self.pos = table()
            self.again = [self.pos]
        elif held == "parameter in a list":
            self.weight = nn.Parameter(table())
            self.all = [self.weight]

    def position(self, x: Tensor) -> Tensor:
        pos = self.pos
        if self.held == "list":
            return pos[1]
        if self.held == "dict":
            return pos["inner"]["table"]
        if self.held == "moved":
            return pos.to(x.device)
        if self.held == "cast":
            return pos.to(x)
        if self.held == "sliced":
            return pos[: x.shape[1]]
        if self.held == "twice":
            return pos * self.again[0]
        if self.held == "parameter in a list":
            return self.all[0]
        if self.held == "lazy":
            if self.pos is None or self.pos.shape[0] != x.shape[1]:
                self.pos = torch.ones(x.shape[1], x.shape[2], dtype=x.dtype).cumsum(0)
            return self.pos
        return pos

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x * self.position(x) if self.held == "scale" else x + self.position(x)
        y: Tensor = self.out((x + self.body(x)).mean(1))
        return y


HELD = ["buffer", "plain", "moved", "cast", "sliced", "list", "dict", "batched", "scale", "trained", "twice"]


def checked(make: Callable[[], nn.Module], x: Tensor, path: Path, run_before: bool = False) -> zg.Sparsified:
    """Compacts at random, compares, trains on, saves and loads."""
    torch.manual_seed(0)
    model = make()
    if run_before:
        model(x)
    sparse = zg.sparsify(model, x)
    model.train()(x).sum().backward()
    for seed, style in enumerate([None, None, "share"]):
        close_randomly(sparse, torch.Generator().manual_seed(seed), style)
        small = sparse.compact().eval()
        assert relative(model.eval()(x), small(x)) < 1e-10
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
    zg.save(small, path)
    assert torch.equal(zg.load(path, make)(x), small(x))
    small.train()(x).sum().backward()
    return sparse


@pytest.mark.parametrize("held", HELD)
def test_a_table_goes_with_the_channels_it_meets(held: str, tmp_path: Path) -> None:
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    sparse = checked(lambda: Tokens(held).double(), x, tmp_path / "small.safetensors")
    assert len(sparse.logits) == WIDTH + 32
    assert not any(row.status == "refused" for row in sparse.report().rows)
    small = sparse.compact()
    if held == "plain":
        kept = sparse.kept()[next(g for g in sparse.groups if g.name == "embed").slice]
        assert torch.equal(small.pos, table()[:, kept])
        assert sparse.model.pos.shape == (5, WIDTH)
    if held == "twice":
        assert small.again[0] is small.pos
    if held == "trained":
        assert small.pos.requires_grad


@pytest.mark.parametrize("run_before", [False, True])
def test_a_table_that_the_forward_makes_when_it_needs_it(run_before: bool, tmp_path: Path) -> None:
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    sparse = checked(lambda: Tokens("lazy").double(), x, tmp_path / "small.safetensors", run_before)
    assert len(sparse.logits) == 32 + (WIDTH if run_before else 0)  # sums of ones do not tell how long they are


class Kept(nn.Module):
    """Makes a tensor in its first forward and keeps it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 24), nn.Linear(24, 24), nn.Linear(24, 3)
        self.kept: Any = None
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.kept is None:
            if self.kind == "ones":
                self.kept = x.new_ones(x.shape[-1])
            elif self.kind == "like":
                self.kept = torch.full_like(x[0], 0.5)
            else:
                self.kept = x.detach().mean(0)
        self.seen = {"last": [x]}
        y: Tensor = self.last(self.second(x + self.kept).relu())
        return y


@pytest.mark.parametrize("kind", ["ones", "like", "mean"])
@pytest.mark.parametrize("run_before", [False, True])
def test_what_the_first_forward_keeps_is_cut_with_its_channels(kind: str, run_before: bool) -> None:
    model, x = Kept(kind).double(), torch.randn(4, 6, dtype=torch.float64)
    if run_before:
        model(x)
    sparse = zg.sparsify(model, x)
    assert len(sparse.logits) == 48
    model.train()(torch.randn(7, 6, dtype=torch.float64))
    for seed in range(3):
        close_randomly(sparse, torch.Generator().manual_seed(seed), "share")
        small = sparse.compact().eval()
        assert small.kept.shape == (small.first.out_features,) and model.kept.shape == (24,)
        assert relative(model.eval()(x), small(x)) < 1e-10


def test_a_parameter_that_a_list_holds_as_well_is_replaced_there() -> None:
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    model = Tokens("parameter in a list").double()
    sparse = zg.sparsify(model, x)
    assert len(sparse.logits) == WIDTH + 32
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact().eval()
    assert small.all[0] is small.weight and relative(model.eval()(x), small(x)) < 1e-10


def test_names_of_plain_tensors() -> None:
    model = nn.Sequential(Tokens("dict"), Tokens("twice"), Tokens("parameter in a list"), Tokens("buffer"))
    assert {name: [path[0] for path in paths] for name, paths in plain_places(model).items()} == {
        "0.pos.inner.table": ["0"],
        "1.again.0": ["1", "1"],
        "2.weight": ["2"],
    }


class ClassToken(nn.Module):
    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.embed, self.cls = nn.Linear(6, WIDTH), nn.Parameter(torch.randn(tokens, WIDTH))
        self.body = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.out = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(x), -1, -1), self.embed(x)], 1)
        y: Tensor = self.out((x + self.body(x)).mean(1))
        return y


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_a_parameter_without_entries_is_cut_with_the_tokens_it_stands_before(tokens: int, tmp_path: Path) -> None:
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    sparse = checked(lambda: ClassToken(tokens).double(), x, tmp_path / "small.safetensors")
    assert len(sparse.logits) == WIDTH + 32
    small = sparse.compact()
    assert small.cls.shape == (tokens, small.embed.out_features)
