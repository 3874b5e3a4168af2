"""What stays where a run cannot be followed: as few units as possible, and never more for more kinds of unit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import Lambda, close_randomly, randomise, relative
from zerogate.groups.trial import confirm
from zerogate.groups.trial.smallest_loss import Loss
from zerogate.groups.trial.trial import Trial

Make = Callable[[], nn.Module]


def found(make: Make, x: Tensor, *kinds: Any) -> dict[str, int]:
    """Units of each kind; what is compacted must be exact."""
    torch.manual_seed(0)
    model, x = make().double().eval(), x.double()
    randomise(model, torch.Generator().manual_seed(0))
    try:
        sparse = zg.sparsify(model, x, unit=set(kinds))
    except zg.WatchError:
        return {"channel": 0, "head": 0}
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        close_randomly(sparse, generator)
        assert relative(model(x), sparse.compact().eval()(x)) <= 1e-10
    units = {"channel": 0, "head": 0}
    for group in sparse.groups:
        units[group.kind] += group.units
    return units


def monotone(make: Make, x: Tensor) -> dict[str, int]:
    """Units of each kind that are found when both are asked for: no fewer than for each of them."""
    both = found(make, x, "channel", "head")
    for kind in ("channel", "head"):
        assert found(make, x, kind)[kind] <= both[kind]
    return both


class Padded(nn.Module):
    """A residual block that widens its shortcut with zeros, as in PyramidNet."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Conv2d(width, out, 3, padding=1), nn.Conv2d(out, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.outer(self.inner(x).relu())
        zeros = x.new_zeros(x.shape[0], y.shape[1] - x.shape[1], *x.shape[2:])
        return y + torch.cat([x, zeros], 1)


def test_a_shortcut_that_is_padded_with_zeros_keeps_no_inner_channels() -> None:
    def make() -> nn.Module:
        blocks = Padded(8, 12), Padded(12, 16)
        return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))

    assert monotone(make, torch.randn(2, 3, 8, 8))["channel"] >= 12 + 16


def involution(m: Any, x: Tensor) -> Tensor:
    """A kernel for every place, and one for every group of four of the channels, however many there are."""
    y = m.first(x)
    b, c, h, w = y.shape
    kernels = m.span(m.reduce(y).relu()).view(b, 4, 1, 9, h, w)
    parts = torch.stack([F.pad(y, (1, 1, 1, 1))[..., i : i + h, j : j + w] for i in range(3) for j in range(3)], 2)
    y = (kernels * parts.view(b, 4, c // 4, 9, h, w)).sum(3).view(b, c, h, w)
    return m.last(m.between(y).relu())


def test_what_an_involution_cannot_do_without_is_its_own() -> None:
    def make() -> nn.Module:
        layers = {"first": nn.Conv2d(3, 16, 1), "reduce": nn.Conv2d(16, 6, 1), "span": nn.Conv2d(6, 36, 1)}
        return Lambda(involution, **layers, between=nn.Conv2d(16, 10, 1), last=nn.Conv2d(10, 3, 1))

    assert monotone(make, torch.randn(2, 3, 6, 6))["channel"] >= 6 + 10


class Attention(nn.Module):
    """Attention whose queries, keys and values are laid out by a width that is written down, in one of several ways."""

    def __init__(self, way: str, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.way = heads, way
        self.qkv, self.o = nn.Linear(width, 48), nn.Linear(16, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b * 2, n // 2, 48 if self.way == "literal" else -1)
        q, k, v = qkv.view(b * 2, n // 2, self.heads, 3, -1).permute(3, 0, 2, 1, 4)
        y = ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2)
        return x + self.o(y.reshape(b, n, c) if self.way == "input" else y.reshape(b, n, -1))


def attentions(way: str, blocks: int = 3) -> Make:
    def block() -> nn.Module:
        return nn.Sequential(Attention(way), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16))

    return lambda: nn.Sequential(nn.Linear(6, 16), *(block() for _ in range(blocks)), nn.Linear(16, 3))


def test_heads_stay_where_a_tie_would_cost_more_channels() -> None:
    """The written width could be made right by tying it to the stream, of which only whole heads could go then."""
    streams = 4 * 16 + 3 * 24
    assert monotone(attentions("literal"), torch.randn(2, 8, 6)) == {"channel": streams, "head": 0}
    assert monotone(attentions("free"), torch.randn(2, 8, 6)) == {"channel": streams, "head": 12}


def test_a_tie_is_made_where_it_leaves_more() -> None:
    """The three streams that enter an attention are tied to its heads; the last one is not."""
    assert monotone(attentions("input"), torch.randn(2, 8, 6)) == {"channel": 16 + 3 * 24, "head": 3 * 4}


def test_what_plays_the_same_part_is_lost_without_further_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    run = Trial.run
    for blocks in (2, 6):
        runs: list[Any] = []
        monkeypatch.setattr(Trial, "run", lambda *args, runs=runs: (runs.append(0), run(*args))[1])
        zg.sparsify(attentions("literal", blocks)(), torch.randn(2, 8, 6), unit={"channel", "head"})
        counts.append(len(runs))
    assert counts[1] <= counts[0] + 4


def test_another_search_is_made_where_one_for_a_single_kind_would_find_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all were lost because of a few heads."""

    def all_of_it(trial: Trial, structure: Any, *_: Any) -> Loss:
        return Loss([((structure.unit_of >= 0).nonzero().flatten(), "its size is not followed")], {"head": 12})

    monkeypatch.setattr(confirm, "smallest_loss", all_of_it)
    monkeypatch.setattr(confirm, "find_tie", lambda *_, **__: None)
    sparse = zg.sparsify(attentions("literal")(), torch.randn(2, 8, 6), unit={"channel", "head"})
    assert sum(g.units for g in sparse.groups) == 4 * 16 + 3 * 24
    reasons = {row.reason for row in sparse.report().rows if row.layer.endswith("qkv")}
    assert reasons == {"more can go where channels go alone; with both, its size is not followed"}
