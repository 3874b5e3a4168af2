"""Transforms that leave channels apart: along time, into patches and back, to complex numbers, by places and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_checks import Net, check_rule, parameter, refused

TOKENS = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
"""[batch, time, features]."""
MAPS = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def turned(x: Tensor) -> Tensor:
    x.transpose_(1, 2).unsqueeze_(-1)
    return x.squeeze_(-1).transpose_(1, 2)


ALONG_TIME: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "rfft": lambda m, x: torch.fft.irfft(torch.fft.rfft(x, dim=1), n=6, dim=1),
    "longer": lambda m, x: torch.fft.irfft(torch.fft.rfft(x, n=16, dim=1) * 2, n=16, dim=1)[:, :6],
    "fft": lambda m, x: torch.fft.fft(x, dim=1).real,
    "with a filter": lambda m, x: torch.fft.ifft(torch.fft.fft(x, dim=1) * torch.polar(m.s, m.s)[:6, None], dim=1).imag,
    "shifted": lambda m, x: torch.fft.fftshift(torch.fft.fft(x, dim=1), dim=1).abs(),
    "pairs": lambda m, x: torch.view_as_real(torch.view_as_complex(torch.stack([x, x * 2], -1))).sum(-1),
    "bool and bool": lambda m, x: x * ((x > 0) & (x < 1)),
    "bool or not bool": lambda m, x: x.masked_fill(~((x > 1) | (x < -1)), 0.5),
    "exclusive": lambda m, x: torch.where((x > 0) ^ (x > 0.5), x, -x),
    "logical": lambda m, x: x * torch.logical_and(torch.logical_not(x > 1), torch.logical_xor(x > 0, x < -1)),
    "running largest": lambda m, x: torch.cummax(x, 1)[0] + torch.cummin(x, 1).values + x.cumsum(1),
    "largest of time": lambda m, x: x.gather(1, x.topk(3, 1).indices).repeat(1, 2, 1),
    "ranked": lambda m, x: torch.take_along_dim(x, x.argsort(1), 1) + x.sort(1).values.flip(1),
    "written at the largest": lambda m, x: torch.zeros_like(x).scatter(1, x.topk(2, 1).indices, x.topk(2, 1).values),
    "bins": lambda m, x: x * torch.bucketize(x, torch.linspace(-1, 1, 5, dtype=x.dtype)),
    "in place": lambda m, x: turned(x * 1),
    "rolled": lambda m, x: x.roll(2, 1),
    "filled": lambda m, x: x.index_fill(1, torch.tensor([0, 2]), 0.5),
    "one step set": lambda m, x: torch.select_scatter(x, x[:, 0] * 2, 1, 3),
    "steps set": lambda m, x: torch.slice_scatter(x, x[:, :2], 1, 2, 4),
    "distances": lambda m, x: torch.cdist(x.mT[..., None], x.mT[..., None]).sum(-1).mT,
    "least and largest": lambda m, x: x - torch.aminmax(x, dim=1, keepdim=True).min,
    "median": lambda m, x: x - x.nanmedian(1, keepdim=True)[0] + torch.mode(x, 1, keepdim=True)[0],
    "outer sum of steps": lambda m, x: torch.tensordot(x, m.mix, ([1], [0])).mT,
    "inverse over time": lambda m, x: torch.linalg.inv(torch.eye(6, dtype=x.dtype) * 3 + 0 * m.mix) @ x,
    "differences": lambda m, x: torch.diff(x, dim=1, prepend=x[:, :1]),
    "cross": lambda m, x: torch.linalg.cross(x.unflatten(1, (2, 3)), x.unflatten(1, (2, 3)) * 2 + 1, dim=2).flatten(
        1, 2
    ),
    "trapezoid": lambda m, x: torch.cumulative_trapezoid(x, dim=1).repeat_interleave(2, 1)[:, :6],
    "quantile": lambda m, x: x - torch.quantile(x, 0.25, dim=1, keepdim=True),
}


@pytest.mark.parametrize("kind", ALONG_TIME)
def test_ops_along_time_leave_channels_apart(kind: str) -> None:
    model = Net(
        lambda m, x: m.head(ALONG_TIME[kind](m, m.a(x)).relu()),
        a=nn.Linear(4, 8),
        s=parameter(6),
        mix=parameter(6, 6),
        head=nn.Linear(8, 3),
    )
    check_rule(model, TOKENS, units=8, closings=2, witness=False)


OVER_CHANNELS = {
    "fft": (lambda x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real, "a Fourier transform over channels"),
    "cdist": (lambda x: torch.cdist(x, x) @ x, "_euclidean_dist over all channels"),
    "sorted": (lambda x: x.gather(-1, x.argsort(-1)), "sort over channels"),
    "running": (lambda x: x.cummax(-1).values, "cummax over channels"),
}


@pytest.mark.parametrize("kind", OVER_CHANNELS)
def test_the_same_over_channels_says_so(kind: str) -> None:
    op, reason = OVER_CHANNELS[kind]
    model = Net(lambda m, x: m.head(op(m.a(x))), a=nn.Linear(4, 8), head=nn.Linear(8, 3))
    found = refused(model, TOKENS)[""]
    assert reason in found or reason.replace("_euclidean_dist", "_cdist_forward") in found


GRID = torch.linspace(-1, 1, 6 * 6 * 2).view(1, 6, 6, 2)
PATCHES: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "unfold and fold": (lambda x: F.fold(F.unfold(x, 3, padding=1), (6, 6), 3, padding=1), 8),
    "mean of patches": (lambda x: F.unfold(x, 3, padding=1).unflatten(1, (-1, 9)).mean(2).unflatten(-1, (6, 6)), 8),
    "as views": (lambda x: F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1).amax((-1, -2)), 8),
    "sampled": (lambda x: F.grid_sample(x, GRID.to(x.dtype).expand(len(x), -1, -1, -1), align_corners=False), 8),
    "unpooled": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), 8),
    "resized": (lambda x: F.interpolate(F.interpolate(x, scale_factor=2, mode="nearest"), (6, 6), mode="area"), 8),
    "resized smoothly": (lambda x: F.interpolate(F.interpolate(x, (9, 9), mode="bicubic"), (6, 6), mode="bilinear"), 8),
}


@pytest.mark.parametrize("kind", PATCHES)
def test_patches_of_a_channel_are_its_own(kind: str) -> None:
    op, units = PATCHES[kind]
    model = Net(lambda m, x: m.head(op(m.a(x)).relu()), a=nn.Conv2d(3, 8, 1), head=nn.Conv2d(8, 2, 1))
    check_rule(model, MAPS, units=units, closings=2)


def test_kernels_that_the_network_makes() -> None:
    """Involution: a kernel for each place and group of channels, as many as there are groups of so many."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x).relu()
        b, _, h, w = x.shape
        kernel = m.span(m.reduce(x).relu()).unflatten(1, (-1, 1, 9))
        patches = F.unfold(x, 3, padding=1).view(b, -1, 2, 9, h, w)
        return m.head((kernel * patches).sum(3).flatten(1, 2))

    model = Net(
        forward, a=nn.Conv2d(3, 8, 1), reduce=nn.Conv2d(8, 5, 1), span=nn.Conv2d(5, 4 * 9, 1), head=nn.Conv2d(8, 2, 1)
    )
    check_rule(model, MAPS, units=4 + 5, closings=2)


def test_attention_to_a_neighbourhood() -> None:
    """Outlook attention: each place says how its neighbours are mixed; heads by the size of a head."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.a(x)
        b, _, h, w = x.shape
        v = F.unfold(m.v(x), 3, padding=1).view(b, -1, 2, 9, h * w).permute(0, 1, 4, 3, 2)
        scores = m.attention(x.flatten(2).mT).view(b, h * w, -1, 9, 9).permute(0, 2, 1, 3, 4).softmax(-1)
        x = (scores @ v).permute(0, 1, 4, 3, 2).flatten(1, 3)
        return m.head(F.fold(x, (h, w), 3, padding=1))

    model = Net(
        forward, a=nn.Conv2d(3, 5, 1), v=nn.Conv2d(5, 8, 1), attention=nn.Linear(5, 4 * 81), head=nn.Conv2d(8, 2, 1)
    )
    check_rule(model, MAPS, units=4 + 5, closings=2, witness=False)


def test_states_beside_channels() -> None:
    """A scan as selective state spaces have it: channels along one dimension, states along another, summed at the end."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x, gate = m.a(x).chunk(2, -1)
        step, into, out = m.select(x).split([2, 3, 3], -1)
        step = F.softplus(m.step(step))
        decay = torch.exp(-m.log_decay.exp()[None, None] * step[..., None])
        added = step[..., None] * into[:, :, None, :] * x[..., None]
        state, seen = torch.zeros_like(added[:, 0]), []
        for i in range(x.shape[1]):
            state = decay[:, i] * state + added[:, i]
            seen.append((state @ out[:, i, :, None]).squeeze(-1))
        y = torch.stack(seen, 1) + x * m.skip
        return m.head(y * F.silu(gate))

    model = Net(
        forward,
        a=nn.Linear(4, 16),
        select=nn.Linear(8, 8, bias=False),
        step=nn.Linear(2, 8),
        log_decay=parameter(8, 3),
        skip=parameter(8),
        head=nn.Linear(8, 3),
    )
    check_rule(model, TOKENS, units={"a": 8}, closings=2, witness=False)


@pytest.mark.parametrize("how", ["product", "sum", "einsum"])
def test_an_outer_product_has_channels_along_both(how: str) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        a, b = m.a(x), m.b(x)
        if how == "einsum":
            y = torch.einsum("btc,btd->btcd", a, b)
        else:
            y = a[..., :, None] * b[..., None, :] if how == "product" else a[..., :, None] + b[..., None, :]
        return m.last(m.head(y.tanh()).mean(2))

    model = Net(forward, a=nn.Linear(4, 5), b=nn.Linear(4, 7), head=nn.Linear(7, 6), last=nn.Linear(6, 3))
    reasons = refused(model, TOKENS)
    assert "over channels" in reasons["a"] and set(reasons) == {"a", "last"}  # the mean runs over a's


def test_deformable_attention() -> None:
    """Values are sampled at places that the queries choose, and mixed by weights that they choose."""

    def forward(m: Net, x: Tensor) -> Tensor:
        b = len(x)
        value = m.value(x).unflatten(-1, (-1, 3)).permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (2, 3))
        places = m.places(x).unflatten(-1, (-1, 4, 2)).transpose(1, 2).flatten(0, 1).tanh()
        share = m.share(x).unflatten(-1, (-1, 4)).softmax(-1).transpose(1, 2).flatten(0, 1)
        seen = F.grid_sample(value, places, align_corners=False)
        return m.head((seen * share[:, None]).sum(-1).unflatten(0, (b, -1)).flatten(1, 2).mT)

    model = Net(
        forward,
        value=nn.Linear(4, 12),
        places=nn.Linear(4, 4 * 4 * 2),
        share=nn.Linear(4, 4 * 4),
        head=nn.Linear(12, 3),
    )
    check_rule(model, TOKENS, units=4, closings=2, witness=False)
