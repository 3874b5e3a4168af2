"""Properties over networks nobody wrote by hand."""

from __future__ import annotations

import copy
import random

import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly, count_macs, randomise, relative

KINDS = """conv conv conv depthwise transposed norm act sum cat max avg shuffle affine mul flip mirror halves gate
dropout""".split()


class RandomNetwork(nn.Module):
    """A random graph of layers over a pool of feature maps; drawn from a seed, so it shrinks and repeats."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = random.Random(seed)
        self.nd = rng.choice([1, 2, 2, 2, 3])
        self.conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[self.nd]
        self.transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[self.nd]
        self.batch_norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}[self.nd]
        self.size = {1: 12, 2: 6, 3: 4}[self.nd]
        channels = rng.randint(3, 7)
        self.stem = self.conv(2, channels, 3, padding=1)
        self.layers = nn.ModuleDict()
        self.steps: list[tuple[str, list[int]]] = []
        pool = [channels]  # channels of each feature map made so far
        for number in range(rng.randint(2, 9)):
            kind = rng.choice(KINDS)
            src = rng.randrange(max(0, len(pool) - 4), len(pool))
            n, key, sources, made = pool[src], str(number), [src], pool[src]
            bias = rng.random() < 0.7
            if kind == "conv":
                made = rng.randint(2, 8)
                k = rng.choice([1, 3])
                self.layers[key] = self.conv(n, made, k, padding=k // 2, bias=bias)
            elif kind == "depthwise":
                made = n * rng.choice([1, 2])
                self.layers[key] = self.conv(n, made, 3, padding=1, groups=n, bias=bias)
            elif kind == "transposed":
                made = rng.randint(2, 8)
                self.layers[key] = self.transposed(n, made, 3, padding=1, bias=bias)
            elif kind == "norm":
                self.layers[key] = self.batch_norm(n, affine=rng.random() < 0.8)
            elif kind == "act":
                acts = [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.PReLU(n), nn.Hardswish(), nn.LeakyReLU(0.2)]
                self.layers[key] = rng.choice(acts)
            elif kind in ("sum", "mul"):
                others = [i for i, c in enumerate(pool) if c == n]
                sources = [src, rng.choice(others)]
            elif kind == "cat":
                sources = [src, rng.randrange(len(pool))]
                made = n + pool[sources[1]]
            elif kind == "affine":
                self.layers[key] = nn.ParameterList([torch.rand(n, *[1] * self.nd) + 0.5])
            elif kind == "gate":
                self.layers[key] = nn.Sequential(nn.Linear(n, 3), nn.ReLU(), nn.Linear(3, n), nn.Sigmoid())
            self.steps.append((kind, sources))
            pool.append(made)
        last = pool[-1]
        self.flatten = rng.random() < 0.5
        features = last * self.size**self.nd if self.flatten else last
        self.hidden = nn.Linear(features, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.stem(x)]
        for number, (kind, sources) in enumerate(self.steps):
            a = maps[sources[0]]
            layer = dict(self.layers.items()).get(str(number))
            if kind == "sum":
                a = a + maps[sources[1]]
            elif kind == "mul":
                a = a * maps[sources[1]]
            elif kind == "cat":
                a = torch.cat([a, maps[sources[1]]], 1)
            elif kind == "max":
                a = getattr(F, f"max_pool{self.nd}d")(a, 3, 1, 1)
            elif kind == "avg":
                a = getattr(F, f"avg_pool{self.nd}d")(a, 3, 1, 1)
            elif kind == "shuffle":
                a = a.transpose(1, -1).contiguous().flip(1).transpose(-1, 1)
            elif kind == "affine":
                a = a * layer[0]
            elif kind == "flip":
                a = a.flip(-1).clone()
            elif kind == "mirror":
                a = a + a.flip(1)
            elif kind == "halves":  # a split at a fixed place: channels on both sides cannot be removed freely
                b, c = a.tensor_split(2, 1)
                a = torch.cat([torch.relu(c), b], 1)
            elif kind == "gate":
                s = layer(a.flatten(2).mean(-1))
                a = a * s.reshape(*s.shape, *[1] * self.nd)
            elif kind == "dropout":
                a = F.dropout(a, 0.3, self.training)
            elif layer is not None:
                a = layer(a)
            maps.append(a)
        a = maps[-1].flatten(1) if self.flatten else maps[-1].flatten(2).mean(-1)
        return self.head(F.relu(self.hidden(a)))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.integers(0, 10**9))
def test_compacted_equals_gated_and_cost_is_the_count(seed: int) -> None:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = RandomNetwork(seed).double()
    randomise(model, generator)
    x = torch.randn(2, 2, *[model.size] * model.nd, dtype=torch.float64)
    try:
        sparse = zg.sparsify(model, x, gate=zg.HardConcrete())
    except zg.WatchError as error:  # e.g. a split straight after the stem and nothing else
        assert "no unit that could be removed" in str(error)
        assume(False)
    assert sparse.dense_cost.params == sum(p.numel() for p in model.parameters())
    assert sparse.dense_cost.macs == count_macs(copy.deepcopy(model), x)
    fresh = torch.randn(3, 2, *[model.size] * model.nd, dtype=torch.float64)
    for _ in range(2):
        close_randomly(sparse, generator)
        small = sparse.compact().eval()
        model.eval()
        with torch.no_grad():
            assert relative(model(fresh), small(fresh)) <= 1e-10
        cost = sparse.cost(hard=True)
        assert cost.params == sum(p.numel() for p in small.parameters())
        assert cost.macs == count_macs(small, x)


def test_random_networks_are_worth_testing() -> None:
    """Most channels of these networks must be removable, or the property above would say little."""
    removable = total = 0
    for seed in range(40):
        model = RandomNetwork(seed)
        x = torch.randn(2, 2, *[model.size] * model.nd)
        try:
            sparse = zg.sparsify(model, x)
        except zg.WatchError:
            total += sum(p.numel() for p in model.parameters())
            continue
        with torch.no_grad():
            sparse.logits.fill_(-8.0)
        removable += sparse.dense_cost.params - sparse.cost().params
        total += sparse.dense_cost.params
    assert removable / total > 0.7
