"""Compact ≡ gated, in float64, whatever closes; and what a compacted module still is."""

from __future__ import annotations

import copy
import dataclasses
import os
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import zerogate as zg
from support import Lambda, Residual, close_randomly, randomise, relative

# Settings per model in CI; ZEROGATE_SETTINGS=200 tries every model 200 times.
SETTINGS = {"googlenet": 30, "resnet20": 40, "lenet300": 200, "lenet5": 200, "convnet": 200, "vgg16": 10, "wrn28_10": 3}
SHAPES = {"lenet300": (2, 1, 28, 28), "lenet5": (2, 1, 28, 28), "convnet": (2, 1, 8, 8)}


def worst_difference(name: str, settings: int) -> float:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(7)
    model = getattr(zg.models, name)().double()
    shape = SHAPES.get(name, (2, 3, 8, 8))  # small images: these networks pool globally
    sparse = zg.sparsify(model, torch.randn(shape, dtype=torch.float64), gate_inputs=name == "lenet300")
    worst = 0.0
    for _ in range(settings):
        randomise(model, generator)
        close_randomly(sparse, generator)
        small = sparse.compact()
        x = torch.randn(shape, dtype=torch.float64, generator=generator)
        with torch.no_grad():
            worst = max(worst, relative(model.eval()(x), small.eval()(x)))
    return worst


@pytest.mark.parametrize("name", SETTINGS)
def test_compacted_equals_gated(name: str) -> None:
    settings = int(os.environ.get("ZEROGATE_SETTINGS", SETTINGS[name]))
    assert worst_difference(name, settings) <= 1e-10


@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask(initial_value=-0.1)])
@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_gates_between_zero_and_one_are_folded(gate: zg.Gate, unit: str) -> None:
    model = Residual().double()
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    sparse = zg.sparsify(model, x, gate=gate, unit=unit)  # type: ignore[arg-type]
    with torch.no_grad():
        sparse.logits.copy_(torch.randn(len(sparse.logits)) * 2)
    small = sparse.compact()
    assert relative(model.eval()(x), small.eval()(x)) <= 1e-10
    assert small.zerogate_plan["difference"] <= 1e-10


def test_float32_agrees_within_rounding() -> None:
    model = zg.models.convnet()
    x = torch.randn(4, 1, 8, 8)
    sparse = zg.sparsify(model, x)
    with torch.no_grad():
        sparse.logits.copy_(torch.randn(len(sparse.logits)) * 2)
    small = sparse.compact()
    torch.testing.assert_close(small.eval()(x), model.eval()(x), atol=1e-5, rtol=1e-4)


def test_whole_branch_gone_still_adds_its_constant() -> None:
    """The residual body closes altogether: its last bias and the BatchNorm shift must stay in the sum."""
    model = Residual().double()
    randomise(model, torch.Generator().manual_seed(0))
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    sparse = zg.sparsify(model, x)
    with torch.no_grad():
        sparse.logits.fill_(8.0)
        (body,) = [g for g in sparse.groups if g.name == "body.0"]
        sparse.logits[body.slice] = -8.0
    small = sparse.compact()
    assert small.body[0].out_channels == 1
    assert relative(model.eval()(x), small.eval()(x)) <= 1e-12


def test_everything_closed_leaves_one_channel_a_group() -> None:
    model = zg.models.googlenet().double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    sparse = zg.sparsify(model, x)
    with torch.no_grad():
        sparse.logits.fill_(-8.0)
    small = sparse.compact()
    assert all(m.out_channels == 1 for m in small.modules() if isinstance(m, nn.Conv2d))
    assert sparse.cost().params == sum(p.numel() for p in small.parameters())
    assert relative(model.eval()(x), small.eval()(x)) <= 1e-12


def test_input_selection() -> None:
    model = zg.models.lenet300().double()
    x = torch.randn(5, 1, 28, 28, dtype=torch.float64)
    sparse = zg.sparsify(model, x, gate_inputs=True)
    assert [g.name for g in sparse.groups] == ["input", "fc1", "fc2"]
    assert sparse.groups[0].units == 784
    close_randomly(sparse, torch.Generator().manual_seed(1), "share")
    small = sparse.compact()
    used = sparse.kept()[:784]
    y = x.flatten(1).clone()
    y[:, ~used] = torch.randn(5, int((~used).sum()), dtype=torch.float64)  # unused pixels may be anything
    assert relative(model.eval()(x), small.eval()(y.view_as(x))) <= 1e-12


def test_input_selection_behind_a_concatenation() -> None:
    """Features made by a layer and raw inputs meet in one weight; the selection indexes what really arrives."""
    model = Lambda(
        lambda m, x: m.c(torch.relu(m.b(torch.cat([torch.tanh(m.a(x)), x], 1)))),
        a=nn.Linear(6, 5),
        b=nn.Linear(11, 7),
        c=nn.Linear(7, 2),
    ).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    sparse = zg.sparsify(model, x, gate_inputs=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        close_randomly(sparse, generator)
        small = sparse.compact()
        assert relative(model.eval()(x), small.eval()(x)) <= 1e-12


def test_convolution_inputs_are_selected_by_channel() -> None:
    model = nn.Sequential(nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)).double()
    x = torch.randn(2, 5, 6, 6, dtype=torch.float64)
    sparse = zg.sparsify(model, x, gate_inputs=True)
    assert {g.name: g.units for g in sparse.groups} == {"input": 5, "0": 4}
    close_randomly(sparse, torch.Generator().manual_seed(2), "one")
    assert relative(model.eval()(x), sparse.compact().eval()(x)) <= 1e-12


def test_a_compacted_module_is_plain_and_of_the_users_class() -> None:
    model = Residual()
    model.train()
    model.body.eval()
    x = torch.randn(2, 2, 5, 5)
    sparse = zg.sparsify(model, x)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact()
    assert type(small) is Residual
    assert small.training
    assert not small.body.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in small.modules())
    assert sorted(small.state_dict()) == sorted(model.state_dict())
    again = pickle.loads(pickle.dumps(copy.deepcopy(small)))
    torch.testing.assert_close(again.eval()(x), small.eval()(x))
    assert small.stem.out_channels == small.stem.weight.shape[0] == small.norm.num_features == small.body[0].in_channels


def test_compact_leaves_the_gated_model_alone_and_can_be_called_again() -> None:
    model = Residual()
    x = torch.randn(2, 2, 5, 5)
    sparse = zg.sparsify(model, x)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first, second = sparse.compact(), sparse.compact()
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    torch.testing.assert_close(first.eval()(x), second.eval()(x), atol=0, rtol=0)
    again = zg.sparsify(first, x)  # a compacted module can be sparsified in its turn
    assert again.dense_cost == sparse.cost()


def test_a_compacted_module_trains_on() -> None:
    torch.manual_seed(0)
    model = Residual()
    x, y = torch.randn(32, 2, 5, 5), torch.randint(3, (32,))
    sparse = zg.sparsify(model, x)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact()
    optimizer = torch.optim.Adam(small.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        loss = F.cross_entropy(small(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_a_difference_is_never_handed_back() -> None:
    """If the plan were wrong, compact() must notice; here the structure is damaged on purpose."""
    model = Residual()
    sparse = zg.sparsify(model, torch.randn(2, 2, 5, 5))
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    axes = sparse.structure.axes
    damaged = axes | {("head.weight", 1): axes["head.weight", 1].roll(1)}
    sparse.structure = dataclasses.replace(sparse.structure, axes=damaged)
    with pytest.raises((zg.CompactionError, RuntimeError)):
        sparse.compact()


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Linear(3, 6)
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.head = nn.Linear(6, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.b(torch.relu(self.a(self.stem(x))))))

    model, x = Tied().double(), torch.randn(4, 3, dtype=torch.float64)
    sparse = zg.sparsify(model, x)
    close_randomly(sparse, torch.Generator().manual_seed(3), "share")
    small = sparse.compact()
    assert small.a.weight is small.b.weight
    assert sparse.cost().params == sum(p.numel() for p in small.parameters())
    assert relative(model.eval()(x), small.eval()(x)) <= 1e-12


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_kept(memory_format: torch.memory_format) -> None:
    model = Residual().to(memory_format=memory_format)  # type: ignore[call-overload]
    sparse = zg.sparsify(model, torch.randn(2, 2, 5, 5))
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small = sparse.compact()
    assert small.body[0].weight.is_contiguous(memory_format=memory_format)
