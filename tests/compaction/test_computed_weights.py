"""Layers that compute their weight: gated where the weight is read, cut exactly, stored and made again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import zerogate as zg
from computed_layers import LAYERS, NORMED, PLAIN, SLICED, Network, QuantisedByChannel
from support import close_randomly, count_macs, relative

SHAPE = (2, 2, 6, 6)
Make = Callable[[int, int], nn.Module]


@pytest.fixture(autouse=True)
def _old_functions_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*weight_norm")
        yield


def _trained(make: Make, unit: str = "channel", **options: object) -> tuple[zg.Sparsified, torch.Tensor]:
    """A gated network after a few steps, with some gates closed and the others open in part."""
    torch.manual_seed(0)
    model, x = Network(make), torch.randn(SHAPE)
    sparse = zg.sparsify(model, x, unit=unit, **options)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(sparse.param_groups(lr=1e-2))
    for _ in range(3):
        (model(x).square().sum() + sparse.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparse.step()
    close_randomly(sparse, torch.Generator().manual_seed(1), "share")
    with torch.no_grad():
        sparse.logits.copy_(torch.where(sparse.logits > 0, torch.rand_like(sparse.logits), sparse.logits))
    model.eval()
    if not options.get("keep_class", True):
        return sparse, x
    model.double()
    sparse.double()
    return sparse, x.double()


def _check(sparse: zg.Sparsified, x: torch.Tensor, small: nn.Module) -> None:
    """The compacted network computes what the gated one does, and is what was counted."""
    with torch.no_grad():
        assert relative(sparse.model(x), small(x)) < 1e-10
    assert sparse.cost().params == sum(p.numel() for p in small.parameters())
    assert sparse.cost().macs == count_macs(small, x)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_channels_go_exactly(make: Make) -> None:
    sparse, x = _trained(make)
    assert [g.name for g in sparse.groups] == ["stem", "inner"]
    _check(sparse, x, sparse.compact())


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_single_weights_go_exactly(make: Make) -> None:
    sparse, x = _trained(make, unit="weight")
    small = sparse.compact()
    with torch.no_grad():
        assert relative(sparse.model(x), small(x)) < 1e-10
    assert sparse.dense_cost.macs == count_macs(small, x)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_compacted_network_is_stored_copied_and_trained(make: Make, tmp_path: Path) -> None:
    sparse, x = _trained(make)
    small = sparse.compact()
    zg.save(small, tmp_path / "small.safetensors")

    def again() -> nn.Module:
        torch.manual_seed(0)
        return Network(make)

    loaded = zg.load(tmp_path / "small.safetensors", again).double()
    with torch.no_grad():
        expected = small(x)
        assert torch.equal(loaded(x), expected)
        assert torch.equal(copy.deepcopy(small)(x), expected)
    assert loaded.state_dict().keys() == small.state_dict().keys()
    small.train()(x).square().sum().backward()
    assert all(any(p.grad is not None for p in layer.parameters()) for layer in small.children())


EXPORTED = {name: make for name, make in LAYERS.items() if name != "masked in place"}  # which torch.export refuses


@pytest.mark.parametrize("make", EXPORTED.values(), ids=EXPORTED)
def test_as_a_graph(make: Make) -> None:
    sparse, x = _trained(make, keep_class=False)
    small = sparse.compact()
    with torch.no_grad():
        assert (
            relative(sparse.model(x), small(x)) < 1e-5
        )  # of roundings: it is compared in float64 before it is returned


@pytest.mark.parametrize("make", [*SLICED.values(), *NORMED.values()], ids=[*SLICED, *NORMED])
def test_layers_keep_their_class_and_parameters(make: Make) -> None:
    sparse, _ = _trained(make)
    small = sparse.compact()
    assert {type(m).__name__ for m in small.modules()} == {type(m).__name__ for m in sparse.model.modules()}
    assert small.state_dict().keys() == sparse.model.state_dict().keys()


@pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)
def test_other_layers_become_plain(make: Make) -> None:
    sparse, _ = _trained(make)
    small = sparse.compact()
    assert {type(m) for m in small.children()} == {nn.Conv2d, nn.BatchNorm2d}
    assert type(small) is Network


@pytest.mark.parametrize("make", [LAYERS["masked"], NORMED["weight norm"], PLAIN["spectral norm"]])
def test_optimizers_and_averages_go_on(make: Make) -> None:
    sparse, x = _trained(make)
    model = sparse.model
    ema = torch.optim.swa_utils.AveragedModel(model)
    optimizer = torch.optim.AdamW(sparse.param_groups(lr=1e-3))
    (model.train()(x).square().sum() + sparse.loss()).backward()
    optimizer.step()
    small = sparse.compact(optimizer=optimizer, ema=ema)
    small.train()(x).square().sum().backward()
    optimizer.step()
    assert {id(p) for g in optimizer.param_groups for p in g["params"]} == {id(p) for p in small.parameters()}
    assert ema.module(x).shape == small(x).shape


@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_scales_of_channels_are_sliced(unit: str) -> None:
    """Fake quantisation by channel knows nothing but float32."""
    torch.manual_seed(0)
    model, x = Network(QuantisedByChannel), torch.randn(SHAPE)
    sparse = zg.sparsify(model, x, unit=unit)  # type: ignore[arg-type]
    close_randomly(sparse, torch.Generator().manual_seed(1), "share")
    small = sparse.compact().eval()
    with torch.no_grad():
        assert relative(model.eval()(x), small(x)) < 1e-5
    assert isinstance(small.inner, QuantisedByChannel)
    if unit == "channel":
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
        assert len(small.inner.scale) == len(small.inner.zero_point) == len(small.inner.weight) < 8
