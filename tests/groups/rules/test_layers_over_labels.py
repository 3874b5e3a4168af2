"""Layers along other dimensions than that of the channels: token mixing, kernels that cover channels, windows."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from rule_checks import Net, check_rule, refused


class TextCNN(nn.Module):
    """Filters as wide as the embedding."""

    def __init__(self, width: int = 8, channels: int = 1) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.convs = nn.ModuleList(nn.Conv2d(channels, 5, (k, width)) for k in (2, 3))
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)[:, None].expand(-1, self.convs[0].in_channels, -1, -1)
        x = [F.relu(conv(x)).squeeze(3) for conv in self.convs]
        return self.head(torch.cat([F.max_pool1d(y, y.shape[2]).squeeze(2) for y in x], 1))


@pytest.mark.parametrize("channels", [1, 2])
def test_kernels_that_cover_all_channels_consume_them(channels: int) -> None:
    model = TextCNN(channels=channels)
    sparse = check_rule(model, torch.randint(20, (2, 7)), units={"embed": 8, "convs.0": 5, "convs.1": 5})
    with torch.no_grad():
        sparse.logits.fill_(8)
        sparse.logits[:3] = -8
    small = sparse.compact()
    assert small.convs[1].weight.shape == (5, channels, 3, 5)
    assert small.convs[1].kernel_size == (3, 5)
    assert zg.sparsify(small, torch.randint(20, (2, 7))).groups[0].units == 5  # it can be made smaller again


def test_a_kernel_over_all_channels_and_a_window_over_some() -> None:
    """A window that moves over channels mixes neighbours; the layer still counts."""
    x = torch.randn(2, 6, 4)
    for kernel, padding, reason in ((3, 1, "window"), (8, 1, "window"), (7, 0, "window")):
        model = Net(
            lambda m, x: m.head(m.mix(m.a(x)[:, None]).flatten(1)),
            a=nn.Linear(4, 8),
            mix=nn.Conv2d(1, 2, (1, kernel), padding=(0, padding)),
            head=nn.Linear(2 * 6 * (9 + 2 * padding - kernel), 3),
        )
        assert reason in refused(model, x)["a"]
    model = Net(
        lambda m, x: m.head(m.mix(m.a(x)[:, None]).flatten(2).mean(2)),
        a=nn.Linear(4, 8),
        mix=nn.Conv2d(1, 5, (2, 8)),
        head=nn.Linear(5, 3),
    )
    check_rule(model, x, units={"a": 8, "mix": 5})


def test_an_attention_over_channels_by_a_window_says_so_and_counts() -> None:
    class ECA(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
            self.window = nn.Conv1d(1, 1, 3, padding=1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.window(x.mean((2, 3))[:, None]).transpose(1, 2)
            return self.b(x * torch.sigmoid(y)[..., None])

    model = nn.Sequential(ECA(), nn.Conv2d(4, 6, 3), nn.Conv2d(6, 2, 1))
    x = torch.randn(2, 3, 8, 8)
    sparse = check_rule(model, x, units={"0.b": 4, "1": 6})
    reasons = {row.layer: row.reason for row in sparse.report().rows if row.status == "refused"}
    assert "a window that moves over channels" in reasons["0.a"]
    assert "0.window" in reasons["0.a"] and "not run" not in reasons["0.window"]


def test_a_kernel_of_one_place_leaves_labels_along_places_alone() -> None:
    """The bins of a box regression: softmax over bins, then their mean by a convolution with fixed weights."""

    def boxes(m: Net, x: Tensor) -> Tensor:
        y = m.a(x).flatten(2)
        y = y.view(2, 4, 6, -1).transpose(1, 2).softmax(1)
        return m.head(m.mean(y).view(2, 4, -1).transpose(1, 2))

    mean = nn.Conv2d(6, 1, 1, bias=False).requires_grad_(False)
    model = Net(boxes, a=nn.Conv2d(3, 24, 1), mean=mean, head=nn.Linear(4, 5))
    reasons = refused(model, torch.randn(2, 3, 4, 4))
    assert "written down" in reasons[""]  # four sides
    sides = Net(
        lambda m, x: m.head(
            m.mean(m.a(x).flatten(2).unflatten(1, (-1, 6)).transpose(1, 2).softmax(1))[:, 0].transpose(1, 2)
        ),
        a=nn.Conv2d(3, 24, 1),
        mean=mean,
        head=nn.Linear(4, 5),
    )
    check_rule(sides, torch.randn(2, 3, 4, 4), units=4)


MIXERS = {
    "conv1d": lambda: nn.Sequential(nn.Conv1d(5, 7, 1), nn.GELU(), nn.Conv1d(7, 5, 1)),
    "linear": lambda: Net(
        lambda m, x: m.down(F.gelu(m.up(x.mT))).mT, up=nn.Linear(5, 7, bias=False), down=nn.Linear(7, 5)
    ),
    "conv2d": lambda: Net(
        lambda m, x: m.net(x[:, :, None])[:, :, 0],
        net=nn.Sequential(nn.Conv2d(5, 7, 1), nn.ReLU(), nn.Conv2d(7, 5, (1, 1))),
    ),
    "matrices": lambda: Net(
        lambda m, x: m.down @ F.relu(m.up @ x),
        up=nn.Parameter(torch.randn(7, 5)),
        down=nn.Parameter(torch.randn(5, 7)),
    ),
    "einsum": lambda: Net(
        lambda m, x: torch.einsum("bod,to->btd", F.relu(torch.einsum("btd,to->bod", x, m.up)), m.down),
        up=nn.Parameter(torch.randn(5, 7)),
        down=nn.Parameter(torch.randn(5, 7)),
    ),
    "with a norm and a gate": lambda: Net(
        lambda m, x: m.down(F.layer_norm(m.up(x), (x.shape[-1],)) * m.gate(x).sigmoid()),
        up=nn.Conv1d(5, 7, 1),
        gate=nn.Conv1d(5, 7, 1),
        down=nn.Conv1d(7, 5, 1),
    ),
}


@pytest.mark.parametrize("mixer", MIXERS)
def test_units_of_token_mixing_lie_beside_channels(mixer: str) -> None:
    """Seven units that mix five positions, for each of eight channels. (A product of one unit einsum writes as a sum, which
    torch's counter does not see.)"""
    model = Net(
        lambda m, x: m.head((y := m.a(x)) + m.mix(y)).mean(1),
        a=nn.Linear(4, 8),
        mix=MIXERS[mixer](),
        head=nn.Linear(8, 3),
    )
    norm = mixer == "with a norm and a gate"
    sparse = check_rule(model, torch.randn(2, 5, 4), units=7 if norm else 15, witness=mixer != "einsum")
    reasons = {row.layer: row.reason for row in sparse.report().rows if row.status == "refused"}
    assert norm or any("keeps all positions" in reason for reason in reasons.values())


def test_a_mixer_of_both_kinds() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
            self.tokens = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 5))
            self.channels = nn.Sequential(nn.Linear(8, 9), nn.GELU(), nn.Linear(9, 8))

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
            return x + self.channels(self.norm2(x))

    model = nn.Sequential(nn.Linear(4, 8), Block(), Block(), nn.LayerNorm(8), nn.Linear(8, 3))
    check_rule(model, torch.randn(2, 5, 4), units=8 + 2 * (6 + 9))


def test_a_layer_over_channels_between_layers_over_positions() -> None:
    """The inner layer runs for each unit of the outer pair."""
    model = Net(
        lambda m, x: m.head(m.down(F.relu(m.inner(F.relu(m.up(m.a(x)))))).mean(1)),
        a=nn.Linear(4, 8),
        up=nn.Conv1d(5, 7, 1),
        inner=nn.Linear(8, 6),
        down=nn.Conv1d(7, 5, 1),
        head=nn.Linear(6, 3),
    )
    check_rule(model, torch.randn(2, 5, 4), units=8 + 7 + 6)


@pytest.mark.parametrize(("groups", "out", "units"), [(2, 8, 4), (2, 12, 4), (4, 8, 4), (8, 16, 8), (1, 5, 8)])
@pytest.mark.parametrize("bias", [True, False])
def test_transposed_convolutions_in_groups(groups: int, out: int, units: int, bias: bool) -> None:
    layer = nn.ConvTranspose2d(8, out, 2, 2, groups=groups, bias=bias)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.ReLU(), nn.Conv2d(out, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1))
    inner = {(2, 8): 4, (2, 12): 6, (1, 5): 5}.get((groups, out), 0)
    check_rule(model, torch.randn(2, 3, 7, 7), units=units + inner + 5, witness=groups == 1)
