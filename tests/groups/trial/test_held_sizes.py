"""Sizes that a forward takes from what modules hold in other ways than as an attribute of that very number."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import Lambda, close_randomly, count_macs, randomise, relative


def check(make: Callable[[], nn.Module], x: Tensor, path: Path, macs: bool = True) -> dict[str, int]:
    """The units of each kind that are found; what is compacted must be exact, cost what it is said to, and come through
    copies and files."""
    torch.manual_seed(0)
    x, model = x.double(), make().double().eval()
    randomise(model, torch.Generator().manual_seed(0))
    sparse = zg.sparsify(model, x, unit={"channel", "head"})
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        close_randomly(sparse, generator)
        small = sparse.compact().eval()
        expected = model.eval()(x)
        for other in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small)), small.train().eval()):
            assert relative(expected, other(x)) <= 1e-10
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
        if macs:
            assert sparse.cost().macs == count_macs(small, x)
        zg.save(small, path / "small", overwrite=True)
        assert torch.equal(zg.load(path / "small", lambda: make().double()).eval()(x), small(x))
        small.train()(x).sum().backward()
    units = {"channel": 0, "head": 0}
    for group in sparse.groups:
        units[group.kind] += group.units
    return units


class Split(nn.Module):
    """Splits the last dimension into heads, of which a layer knows the number in a way of its own."""

    def __init__(self, **lengths: int) -> None:
        super().__init__()
        self.hold(**lengths)

    def hold(self, **lengths: int) -> None:
        self.lengths = lengths

    def heads(self) -> int:
        return self.lengths["h"]

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        return x.reshape(b, n, self.heads(), width // self.heads()).transpose(1, 2)


class SplitByPairs(Split):
    def hold(self, **lengths: int) -> None:
        self._pairs = tuple(lengths.items())

    def heads(self) -> int:
        return dict(self._pairs)["h"]


class SplitByTable(Split):
    def hold(self, **lengths: int) -> None:
        self.tables: dict[str, Any] = {"axes": [{"name": "h", "size": lengths["h"]}]}

    def heads(self) -> int:
        size: int = self.tables["axes"][0]["size"]
        return size


class SplitCopiedByArguments(SplitByPairs):
    """Copied and pickled by the arguments that it was made with, as layers of einops are."""

    def hold(self, **lengths: int) -> None:
        self.lengths, self._pairs = lengths, tuple(lengths.items())

    def __getstate__(self) -> dict[str, Any]:
        return {"lengths": self.lengths}

    def __setstate__(self, state: dict[str, Any]) -> None:
        nn.Module.__init__(self)
        self.hold(**state["lengths"])


class SplitCopiedAnew(SplitByPairs):
    """Of which every copy splits as the first did."""

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (), {}

    def __init__(self, h: int = 4) -> None:
        super().__init__(h=h)

    def __setstate__(self, state: object) -> None:
        pass


class Attention(nn.Module):
    """Queries, keys and values by one splitting layer, on a residual stream."""

    def __init__(self, split: nn.Module, width: int = 12, inner: int = 16) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.split, self.o = split, nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)) for layer in (self.q, self.k, self.v))
        return x + self.o((q @ k.transpose(-1, -2)).softmax(-1).matmul(v).transpose(1, 2).flatten(2))


def two_attentions(split: type[Split]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(6, 12), *(Attention(split(h=4)) for _ in range(2)), nn.Linear(12, 3))


@pytest.mark.parametrize("split", [Split, SplitByPairs, SplitByTable, SplitCopiedByArguments])
def test_heads_that_a_layer_holds_in_a_container(split: type[Split], tmp_path: Path) -> None:
    assert check(two_attentions(split), torch.randn(2, 5, 6), tmp_path) == {"channel": 12, "head": 8}


def test_a_number_that_copies_would_not_have_stays() -> None:
    sparse = zg.sparsify(two_attentions(SplitCopiedAnew)(), torch.randn(2, 5, 6), unit={"channel", "head"})
    assert {g.kind for g in sparse.groups} == {"channel"}


def test_containers_are_not_shared_with_the_gated_model() -> None:
    model = two_attentions(SplitByTable)()
    sparse = zg.sparsify(model, torch.randn(2, 5, 6), unit={"channel", "head"})
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    small = sparse.compact()
    assert small[1].split.heads() == 1 and model[1].split.heads() == 4


class Area(nn.Module):
    """Attention within halves of a sequence, of a width that is a multiple of what it holds."""

    def __init__(self, width: int = 12, heads: int = 4, head_dim: int = 2) -> None:
        super().__init__()
        self.heads, self.head_dim, self.inner = heads, head_dim, heads * head_dim
        self.qkv, self.o = nn.Linear(width, 3 * self.inner), nn.Linear(self.inner, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b * 2, n // 2, self.inner * 3)
        each = qkv.view(b * 2, n // 2, self.heads, self.head_dim * 3).permute(0, 2, 1, 3)
        q, k, v = each.split([self.head_dim] * 3, -1)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return x + self.o(y.transpose(1, 2).reshape(b, n, self.inner))


class Packed(Area):
    """Queries, keys and values in blocks, each of all heads."""

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        qkv = self.qkv(x).reshape(b, n, 3 * self.inner).view(b, n, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        return x + self.o(y.transpose(1, 2).reshape(b, n, self.inner))


class Halves(nn.Module):
    """A width of which it holds the double."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.both, self.up, self.down = 16, nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        return x + self.down(self.up(x).reshape(b, n, self.both // 2).relu())


@pytest.mark.parametrize(("block", "heads", "inner"), [(Area, 8, 0), (Packed, 8, 0), (Halves, 0, 16)])
def test_a_size_that_is_a_multiple_or_a_share(block: type[nn.Module], heads: int, inner: int, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 12), block(), nn.Linear(12, 12), block(), nn.Linear(12, 3))

    assert check(make, torch.randn(2, 8, 6), tmp_path) == {"channel": 24 + inner, "head": heads}


class Scaled(nn.Module):
    """Attention that works the width of a head out, from a width and a number of heads, in one of several places."""

    def __init__(self, way: str, width: int = 12, inner: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, inner) for _ in range(3))
        self.o, self.inner, self.heads, self.way = nn.Linear(inner, width), inner, heads, way

    def split(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        if self.way == "width":
            return x.view(b, n, self.heads, width // self.heads)
        if self.way == "view":
            return x.view(b, n, self.heads, self.inner // self.heads)
        return x.view(b, n, self.heads, -1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(layer(x)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(-1, -2) * (self.inner // self.heads) ** -0.5
        return x + self.o((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("way", ["width", "view", "scale"])
def test_the_width_of_a_head_that_is_worked_out(way: str, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 12), Scaled(way), Scaled(way), nn.Linear(12, 3))

    assert check(make, torch.randn(2, 5, 6), tmp_path) == {"channel": 12, "head": 8}


def counted_flat(m: Any, x: Tensor) -> Tensor:
    x = F.max_pool2d(m.a(x), 2).relu()
    return m.o(x.view(-1, int(x.nelement() / x.shape[0])))


def test_a_count_of_entries_per_example(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return Lambda(counted_flat, a=nn.Conv2d(1, 6, 3), o=nn.Linear(6 * 9, 3))

    assert check(make, torch.randn(2, 1, 8, 8), tmp_path) == {"channel": 6, "head": 0}


class Checked(nn.Module):
    """Compares a width with what it holds, before its first layer or behind its last."""

    def __init__(self, last: bool, width: int = 12) -> None:
        super().__init__()
        self.up, self.down, self.width, self.last = nn.Linear(width, 8), nn.Linear(8, width), width, last

    def forward(self, x: Tensor) -> Tensor:
        if not self.last and x.shape[-1] != self.width:
            raise ValueError(f"expected {self.width} features")
        x = self.down(self.up(x).relu())
        assert not self.last or x.shape[-1] == self.width
        return x


@pytest.mark.parametrize("last", [False, True])
def test_a_width_that_python_code_checks(last: bool, tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 12), Checked(last), nn.Linear(12, 12), Checked(last), nn.Linear(12, 3))

    assert check(make, torch.randn(2, 6), tmp_path) == {"channel": 4 * 12 + 2 * 8, "head": 0}


class Seq2Seq(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(6, 16), nn.Linear(16, 3)
        self.transformer = nn.Transformer(16, 4, 1, 1, 24, 0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.transformer(self.embed(x), self.embed(x.flip(1))))


def test_the_stream_of_torch_s_own_transformer(tmp_path: Path) -> None:
    # two layers' inner widths of 24, the stream, and the heads of three attentions
    assert check(Seq2Seq, torch.randn(2, 5, 6), tmp_path, macs=False) == {"channel": 2 * 24 + 16, "head": 12}


class Pool(nn.Module):
    """Pools a feature map by one query, through torch's function with weights of its own, as CLIP's ResNets do."""

    def __init__(self, check: str, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, n) for n in (width, width, width, 8))
        self.width, self.heads, self.check = width, heads, check

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2).permute(2, 0, 1)
        x = torch.cat([x.mean(0, keepdim=True), x])
        return F.multi_head_attention_forward(
            x[:1], x, x, x.shape[-1] if self.check == "shape" else self.width, self.heads,
            None, torch.cat([self.q.bias, self.k.bias, self.v.bias]), None, None, False, 0.0,
            self.o.weight, self.o.bias, training=self.training, need_weights=self.check == "weights",
            use_separate_proj_weight=True,
            q_proj_weight=self.q.weight, k_proj_weight=self.k.weight, v_proj_weight=self.v.weight,
        )[0][0]  # fmt: skip


@pytest.mark.parametrize("check_by", ["shape", "attribute", "weights"])
def test_torch_s_attention_as_a_function_ties_the_stream_to_its_heads(check_by: str, tmp_path: Path) -> None:
    """It insists on heads that fill the width of what comes in."""

    def make() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 12, 3), Pool(check_by), nn.Linear(8, 3))

    assert check(make, torch.randn(2, 3, 7, 7), tmp_path, macs=False) == {"channel": 10 + 8, "head": 3}
