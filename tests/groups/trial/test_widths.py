"""Widths of trial runs: which units they keep, and that no two widths can be taken for each other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from hand_made import Chain
from support import close_randomly, count_macs, relative
from zerogate.groups.recording.record_run import watch
from zerogate.groups.recording.twin import twin_of
from zerogate.groups.trial.scopes import Scopes
from zerogate.groups.trial.size_arguments import SizeArguments
from zerogate.groups.trial.trial import Trial
from zerogate.groups.trial.widths import Widths
from zerogate.groups.units import UnitFilter, find_units
from zerogate.structure import Structure


def widths_of(*sizes: int, multiple: int = 1) -> tuple[Structure, Widths]:
    recording = Chain(*sizes, 2).recording
    structure = find_units(recording, UnitFilter())
    return structure, Widths(structure, Scopes(recording, SizeArguments()), multiple)


def counts(*sizes: int, multiple: int = 1, seed: int = 0) -> list[int]:
    structure, widths = widths_of(*sizes, multiple=multiple)
    kept = widths.draw(torch.Generator().manual_seed(seed))
    return [int(kept[g.slice].sum()) for g in structure.groups]


def test_groups_of_one_size_keep_different_numbers() -> None:
    assert len({*counts(8, 8, 8, 8)}) == 4
    assert len({*counts(*[64] * 12)}) == 12


def test_no_group_is_left_empty_or_whole() -> None:
    sizes = 2, 2, 3, 3, 3, 40
    for seed in range(20):
        assert all(0 < left < n for n, left in zip(sizes, counts(*sizes, seed=seed), strict=True))


def test_a_width_of_one_is_tried_only_where_there_is_hardly_another() -> None:
    assert min(counts(4, 4, 5, 9)) > 1  # it would be broadcast


def test_which_units_stay_is_random() -> None:
    _, widths = widths_of(40)
    kept = [widths.draw(torch.Generator().manual_seed(seed)) for seed in range(2)]
    assert not torch.equal(*kept)


def test_widths_are_multiples_where_that_is_not_all() -> None:
    assert all(n % 8 == 0 for n in counts(32, 12, 9, multiple=8))
    assert counts(8, 5, 3, multiple=8) == [8, 5, 3]
    assert all(n % 4 == 0 for n in counts(32, 32, 16, 20, 12, multiple=4))


# what a forward could take for each other


class Attention(nn.Module):
    """Takes the width of what it returns from what it was given."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(b, n, c))


class Quotient(Attention):
    """Takes the size of a head from the width of what it was given."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Blocks(nn.Module):
    def __init__(self, kind: type[Attention], width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(3, width), nn.Linear(width, 2)
        self.blocks = nn.ModuleList(kind(width, heads) for _ in range(blocks))
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        x = x + self.down(self.up(x).relu())
        return self.head(x.mean(1))


class Passed(nn.Module):
    """Every block is given the number of its heads by what is around it, which counts them for all."""

    def __init__(self, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.stem, self.head, self.heads = nn.Linear(3, width), nn.Linear(width, 2), heads
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(blocks))
        self.proj = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for qkv, proj in zip(self.qkv, self.proj, strict=True):
            q, k, v = qkv(x).reshape(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            x = x + proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(x.mean(1))


class NonLocal(nn.Module):
    """A view whose width is that of another tensor, of which two channels are one unit."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(c, 4), nn.Linear(c, 4), nn.Linear(c, c)
        self.norm, self.out = nn.GroupNorm(c // 2, c), nn.Linear(c, 6)

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        a = torch.softmax(self.q(x) @ self.k(x).transpose(1, 2), -1)
        y = self.norm(self.v(x).transpose(1, 2)) @ a.transpose(1, 2)
        return self.out(y.reshape(b, c, n).mean(-1))


class Halves(nn.Module):
    """The width of one layer's result is half of another's, and is worked out so."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.head = (
            nn.Linear(3, c),
            nn.Linear(c, c),
            nn.Linear(c, c // 2),
            nn.Linear(c, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        left, right = self.left(x), self.right(x)
        right = right.reshape(*right.shape[:-1], 1, left.shape[-1] // 2).flatten(-2)
        return self.head(left).mean(1) + right.mean((1, 2))[:, None]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "one attention": lambda: Blocks(Attention, 16, 4, 1),
    "one head": lambda: Blocks(Attention, 8, 1, 2),
    "two heads": lambda: Blocks(Attention, 8, 2, 3),
    "many heads": lambda: Blocks(Attention, 24, 8, 2),
    "quotient": lambda: Blocks(Quotient, 16, 4, 1),
    "quotient of two heads": lambda: Blocks(Quotient, 12, 2, 2),
    "one number for all": lambda: Passed(8, 2, 3),
    "units of two channels": lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), NonLocal(8), nn.Linear(6, 2)),
    "many units of two channels": lambda: nn.Sequential(nn.Linear(3, 32), nn.ReLU(), NonLocal(32), nn.Linear(6, 2)),
    "halves": lambda: Halves(16),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_accepted_can_be_compacted(name: str) -> None:
    torch.manual_seed(0)
    model, x = NETWORKS[name]().double(), torch.randn(2, 5, 3, dtype=torch.float64)
    sparse = zg.sparsify(model, x, unit=("channel", "head"))
    for seed in range(8):
        close_randomly(sparse, torch.Generator().manual_seed(seed))
        small = sparse.compact()
        assert relative(model.eval()(x), small(x)) < 1e-10
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
        assert sparse.cost().macs == count_macs(small, x)


@pytest.mark.parametrize("name", NETWORKS)
def test_runs_that_pass_tell_all_widths_apart(name: str) -> None:
    model, x = NETWORKS[name](), torch.randn(2, 5, 3)
    recording = watch(model, x)
    trial = Trial(recording.twin or twin_of(model, meta=False), x, recording, UnitFilter())
    widths, generator = trial.widths(trial.find_units()), torch.Generator().manual_seed(0)
    for run in range(3):
        if widths.undecided:
            widths.settle(widths.draw(generator, again=run > 0))
    assert not widths.undecided
