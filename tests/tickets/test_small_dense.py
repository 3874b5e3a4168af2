"""The small dense network: as many parameters as asked for, the same class, drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import zerogate as zg
from support import Residual


def params(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@settings(max_examples=15)
@given(st.floats(0.02, 1.0))
def test_it_has_as_many_parameters_as_one_channel_allows(share: float) -> None:
    model = Residual(width=16)
    x = torch.randn(2, 2, 6, 6)
    small = zg.small_dense(model, x, share=share)
    most, dense = int(share * params(model)), params(model)
    assert params(small) <= most
    assert type(small) is Residual
    assert small(x).shape == model(x).shape
    widths = [(m.out_channels, n.out_channels) for m, n in zip(small.modules(), model.modules(), strict=True)
              if isinstance(m, nn.Conv2d) and isinstance(n, nn.Conv2d)]  # fmt: skip
    kept = [few / many for few, many in widths]
    assert max(kept) - min(kept) <= max(1 / many for _, many in widths) + 1e-9  # of every group the same share
    if share < 1:
        # One channel more would be too much; of the stem it costs most: its own rows, the body's twice, three readers.
        assert most - params(small) < (2 * 9 + 1) + 2 + 2 * 18 * 9 + 1 + 4 + 5 * 9
    assert params(model) == dense


def test_it_is_drawn_anew_and_can_be_saved(tmp_path: Path) -> None:
    model = Residual(width=16).eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(7)
    x = torch.randn(2, 2, 6, 6)
    torch.manual_seed(1)
    small = zg.small_dense(model, x, params=1000)
    assert params(small) <= 1000
    assert not small.training
    for name, tensor in small.state_dict().items():
        assert not (tensor == 7).any(), name
    torch.manual_seed(1)
    again = zg.small_dense(model, x, params=1000)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name])
    assert (model.stem.weight == 7).all()
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small.train()(x).sum().backward()
    optimizer.step()
    zg.save(small, tmp_path / "small.safetensors")
    loaded = zg.load(tmp_path / "small.safetensors", lambda: Residual(width=16))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, small.state_dict()[name])


class Scaled(nn.Module):
    """A parameter of the class's own, behind no module that could draw it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 10), nn.Linear(10, 3)
        self.scale = nn.Parameter(torch.arange(10.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) * self.scale)


def test_parameters_that_no_module_draws_are_slices() -> None:
    small = zg.small_dense(Scaled(), torch.randn(2, 4), share=0.5)
    assert 1 < len(small.scale) < 10
    assert set(small.scale.tolist()) < set(range(10))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "one of the two"),
        ({"params": 100, "share": 0.5}, "one of the two"),
        ({"params": 0}, "got 0"),
        ({"params": 10.5}, "got 10.5"),
        ({"share": 0}, "got 0"),
        ({"share": 1.5}, "got 1.5"),
        ({"share": True}, "got True"),
        ({"params": 11}, "too few for a small Scaled.* have 12 of its 93"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(zg.ZerogateError, match=match):
        zg.small_dense(Scaled(), torch.randn(2, 4), **arguments)
