"""Masks as values, and in files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import zerogate as zg


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))


masks = st.dictionaries(
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=8),
    st.lists(st.integers(0, 4), max_size=3).flatmap(
        lambda shape: st.integers(0, 2**30).map(
            lambda seed: torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.5
        )
    ),
    max_size=4,
)


@given(masks)
def test_masks_survive_a_file(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, Tensor]) -> None:
    mask = zg.Mask(tensors)
    path = tmp_path_factory.mktemp("mask") / "a.safetensors"
    mask.save(path)
    again = zg.Mask.load(path)
    assert again == mask
    assert [*again] == [*mask]
    assert str(again) == str(mask)


def test_masks_are_values() -> None:
    given = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    a = zg.Mask({"a": given})
    given.zero_()
    a["a"].zero_()
    assert a == zg.Mask({"a": torch.eye(2, dtype=torch.bool)})
    assert a != zg.Mask({"a": torch.ones(2, 2)})
    assert a != zg.Mask({"b": torch.eye(2)})
    assert (a.total, a.remaining, a.density) == (4, 2, 0.5)
    b = zg.Mask({"a": torch.tensor([[1, 1], [0, 0]]), "b": torch.tensor([0, 1, 1])})
    assert a & b == b & a == zg.Mask({"a": torch.tensor([[1, 0], [0, 0]]), "b": torch.tensor([0, 1, 1])})
    assert a | b == zg.Mask({"a": torch.tensor([[1, 1], [0, 1]])})
    assert b.densities() == {"a": 0.5, "b": pytest.approx(2 / 3)}
    assert "b" in str(b)
    assert "66.67%" in str(b)
    assert "4 of 7 weights kept, density 57.14%" in str(b)
    assert zg.Mask({}).density == 1
    mixed = b.shuffled(torch.Generator().manual_seed(0))
    assert mixed.densities() == b.densities()


def test_masks_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(zg.ZerogateError, match="other values"):
        zg.Mask({"a": torch.tensor([0.5, 1.0])})
    with pytest.raises(zg.ZerogateError, match="other values"):
        zg.Mask({"a": torch.tensor([math.nan])})
    with pytest.raises(zg.ZerogateError, match="list"):
        zg.Mask({"a": [1, 0]})  # type: ignore[dict-item]
    with pytest.raises(zg.ZerogateError, match="architectures"):
        zg.Mask({"a": torch.ones(2)}) & zg.Mask({"a": torch.ones(3)})
    model = network()
    with pytest.raises(zg.ZerogateError, match="no parameter 'a'"):
        zg.Mask({"a": torch.ones(2)}).apply(model)
    with pytest.raises(zg.ZerogateError, match=r"0\.weight is \(2,\)"):
        zg.Mask({"0.weight": torch.ones(2)}).apply(model)
    path = tmp_path / "a.safetensors"
    zg.Mask({"a": torch.ones(9)}).save(path)
    with pytest.raises(zg.ZerogateError, match="exists"):
        zg.Mask({"a": torch.ones(2)}).save(path)
    assert zg.Mask.load(path) == zg.Mask({"a": torch.ones(9)})
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(zg.CheckpointError, match="cannot be read as a mask"):
        zg.Mask.load(path)
    path.write_bytes(content.replace(b"[9]", b"[1]"))
    with pytest.raises(zg.CheckpointError, match="not whole"):
        zg.Mask.load(path)
    with pytest.raises(zg.CheckpointError, match="cannot be read"):
        zg.Mask.load(tmp_path / "none")
    with pytest.raises(zg.ZerogateError, match="cannot write"):
        zg.Mask({}).save(tmp_path / "no" / "folder")
