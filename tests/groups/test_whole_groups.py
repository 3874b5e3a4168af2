"""Groups of which nothing can go have no gate: closed, they would stay, and what feeds them would be gone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from hand_made import Chain
from support import close_randomly, relative
from zerogate.groups.units import UnitFilter, find_units


def reasons(sparse: zg.Sparsified) -> dict[str, str]:
    return {row.layer: row.reason for row in sparse.report().rows if row.reason}


class Gate(nn.Module):
    """Spatial attention: one channel, by which all are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.squeeze = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 1, 1)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y: Tensor = self.head(x * self.squeeze(x).sigmoid())
        return y


def bottleneck() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 1), nn.BatchNorm2d(1), nn.ReLU()),
        *(nn.Conv2d(1, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)),
    )


def depthwise() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 1, 3), nn.Conv2d(1, 1, 3, groups=1), nn.Conv2d(1, 6, 1), nn.Conv2d(6, 2, 1))


@pytest.mark.parametrize("make", [bottleneck, depthwise, Gate])
def test_a_single_channel_has_no_gate_and_what_feeds_it_lives(make: type[nn.Module]) -> None:
    model, x = make().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    sparse = zg.sparsify(model, x)
    assert all(g.units > 1 for g in sparse.groups)
    for seed, style in enumerate([None, None, "one", "none"]):
        close_randomly(sparse, torch.Generator().manual_seed(seed), style)
        small = sparse.compact()
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
        assert relative(model(x), small(x)) < 1e-10
    sparse.logits.data.fill_(8.0)
    assert sparse.cost() == sparse.dense_cost


def test_the_reason_says_so() -> None:
    sparse = zg.sparsify(bottleneck(), torch.randn(2, 3, 8, 8))
    assert reasons(sparse)["2"] == "a single unit, without which nothing would be left"
    assert [(g.name, g.units) for g in sparse.groups] == [("0", 16), ("5", 8)]


def test_a_single_head_has_no_gate() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            y: Tensor = self.last(x + self.attention(x, x, x)[0])
            return y

    sparse = zg.sparsify(Net(), torch.randn(2, 4, 5), unit={"channel", "head"})
    assert "head" not in {g.kind for g in sparse.groups}


def test_a_single_input_has_no_gate() -> None:
    model = nn.Sequential(nn.Linear(1, 6), nn.ReLU(), nn.Linear(6, 2))
    assert [g.name for g in zg.sparsify(model, torch.randn(4, 1), gate_inputs=True).groups] == ["0"]


def test_a_network_of_single_channels_has_nothing_to_remove() -> None:
    with pytest.raises(zg.WatchError, match=r"no unit that could be removed: .*a single unit"):
        zg.sparsify(nn.Sequential(nn.Conv2d(3, 1, 3), nn.ReLU(), nn.Conv2d(1, 2, 1)), torch.randn(2, 3, 5, 5))


@pytest.mark.parametrize("options", [{"min_channels": 8}, {"round_to": 8}, {"min_channels": 5, "round_to": 4}])
def test_groups_that_the_options_keep_whole_have_no_gate(options: dict[str, int]) -> None:
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    sparse = zg.sparsify(model, torch.randn(3, 4), **options)
    assert [g.units for g in sparse.groups] == [16]
    assert reasons(sparse)["2"] == "a group of 8 channels, all of which min_channels and round_to keep"


def test_units_that_are_left_alone_by_ties_stay() -> None:
    chain = Chain(4, 3, 2)
    chain.recording.labels.unite(chain.made[0], chain.made[0][:1])
    structure = find_units(chain.recording, UnitFilter())
    assert [g.name for g in structure.groups] == ["layer1"]
    assert structure.unit_of[chain.made[0]].tolist() == [-1] * 4
    assert structure.refused[chain.axis(0, 0)] == "a single unit, without which nothing would be left"
