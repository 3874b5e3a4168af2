"""Gates on weights that layers compute: they act where the weight is read, and come off again."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint

import zerogate as zg
from computed_layers import LAYERS, NORMED, PLAIN, Network
from support import relative

SHAPE = (2, 2, 6, 6)
Make = Callable[[int, int], nn.Module]
FEW = {
    name: LAYERS[name] for name in ("masked", "weight norm", "weight norm by a hook", "spectral norm", "standardised")
}


@pytest.fixture(autouse=True)
def _old_functions_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message=".*weight_norm")
        yield


def _gated(make: Make, **options: object) -> tuple[zg.Sparsified, nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Network(make), torch.randn(SHAPE)
    sparse = zg.sparsify(model, x, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        sparse.logits.copy_(torch.randn_like(sparse.logits))
    return sparse, model, x


class Recomputed(Network):
    """Runs a part of itself again for its gradient, if that is asked for."""

    again = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu()
        x = checkpoint(self.inner, x, use_reentrant=False) if self.again else self.inner(x)  # type: ignore[assignment]
        return self.last(self.outer(x.relu())).mean((2, 3))


@pytest.mark.parametrize("make", [*NORMED.values(), *PLAIN.values()], ids=[*NORMED, *PLAIN])
def test_gates_multiply_the_weight_that_is_read(make: Make) -> None:
    """As they would multiply what the layers read: channels of the activation."""
    sparse, model, x = _gated(make)
    model.eval()
    received, z = model(x), sparse.gates.mask().detach()
    gates = {g.name: z[g.slice].view(1, -1, 1, 1) for g in sparse.groups}
    with sparse.detached() as plain, torch.no_grad():
        stem = plain.norm(plain.stem(x)).relu()
        inner = plain.inner(stem * gates["stem"]).relu()
        stream = stem + plain.outer(inner * gates["inner"])
        assert relative(plain.last(stream * gates["stem"]).mean((2, 3)), received) < 1e-5


@pytest.mark.parametrize("make", FEW.values(), ids=FEW)
@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_gates_learn(make: Make, unit: str) -> None:
    sparse, model, x = _gated(make, unit=unit)
    model(x).square().sum().backward()
    gradient = sparse.logits.grad
    assert gradient is not None and all(gradient[g.slice].abs().sum() > 0 for g in sparse.groups)


@pytest.mark.parametrize("make", FEW.values(), ids=FEW)
def test_gates_come_off(make: Make) -> None:
    sparse, model, x = _gated(make)
    before = copy.deepcopy(model.state_dict())
    model.eval()
    gated = model(x)
    sparse.detach()
    assert not any("forward" in vars(module) for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(model(x), gated)
    sparse.attach()
    assert torch.equal(model(x), gated)


@pytest.mark.parametrize("make", FEW.values(), ids=FEW)
def test_copies_have_gates_of_their_own(make: Make) -> None:
    sparse, model, x = _gated(make)
    model.eval()
    with torch.no_grad():
        expected = model(x)
        twin = copy.deepcopy(sparse)
        assert torch.equal(twin.model(x), expected)
        twin.logits.fill_(-8.0)
        assert not torch.equal(twin.model(x), expected)
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("make", [make for name, make in FEW.items() if name != "masked"])
def test_gates_of_every_example(make: Make) -> None:
    sparse, model, x = _gated(make, per_example=True)
    model(x).square().sum().backward()
    assert sparse.logits.grad is not None and (sparse.logits.grad != 0).any()
    model.eval()
    small = sparse.compact()
    with torch.no_grad():
        assert relative(model(x), small(x)) < 1e-5


@pytest.mark.parametrize(
    "make", [make for name, make in FEW.items() if name != "spectral norm"]
)  # it changes when it runs
def test_recomputed_parts_see_the_same_gates(make: Make) -> None:
    torch.manual_seed(0)
    model, x = Recomputed(make), torch.randn(SHAPE)
    sparse = zg.sparsify(model, x)
    gradients = []
    for model.again in (False, True):
        torch.manual_seed(1)
        sparse.logits.grad = None
        model(x).square().sum().backward()
        assert sparse.logits.grad is not None
        gradients.append(sparse.logits.grad.clone())
    assert torch.allclose(*gradients, rtol=1e-4)


@pytest.mark.parametrize("make", FEW.values(), ids=FEW)
def test_pruners_and_tickets(make: Make) -> None:
    torch.manual_seed(0)
    model, x = Network(make), torch.randn(SHAPE)
    sparse = zg.sparsify(model, x, unit="weight", gate=zg.Magnitude(density=0.3, begin=0, end=0, steps=2))
    (model(x).square().sum() + sparse.loss()).backward()
    sparse.step()
    mask = sparse.mask()
    assert set(mask) <= set(dict(model.named_parameters())) and len(mask) == 4
    assert 0.2 < mask.density < 0.4
    sparse.harden(mask)
    assert sparse.mask() == mask
    model.eval()
    small = sparse.compact()
    with torch.no_grad():
        assert relative(model(x), small(x)) < 1e-5


def test_what_replaces_a_gated_parameter_is_said() -> None:
    model, x = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(2, 3)
    sparse = zg.sparsify(model, x)
    prune.l1_unstructured(model[2], "weight", 0.5)
    with pytest.raises(zg.ZerogateError, match=r"2.weight is gone from this Sequential.*prune.*call detach"):
        model(x)
    sparse.detach()
    again = zg.sparsify(model, x)
    assert again.compact().eval()(x).shape == (2, 2)


def test_a_module_that_does_more_than_its_layer_says_so() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.weight / self.weight.square().sum().sqrt()
            return nn.functional.conv2d(nn.functional.pad(x, (0, 1, 0, 1)), weight, self.bias)

    model = nn.Sequential(nn.Conv2d(2, 4, 1), Padded(4, 5, 2), nn.Conv2d(5, 3, 1), nn.Conv2d(3, 2, 1))
    sparse = zg.sparsify(model, torch.randn(SHAPE))
    assert [g.name for g in sparse.groups] == ["2"]
    report = str(sparse.report())
    assert "a layer whose weight is computed" in report
    assert "gives something else than one layer with this weight" in sparse.structure.reasons["1.weight"]


def test_layers_that_are_excluded_stay_what_they_are() -> None:
    model = nn.Sequential(*(parametrizations.spectral_norm(nn.Linear(6, 6)) for _ in range(4)))
    x = torch.randn(2, 6)
    sparse = zg.sparsify(model, x, exclude=["2"])
    assert set(sparse.structure.plain) == {"0", "1"}
    small = sparse.compact()
    assert [type(m).__name__ for m in small] == ["Linear", "Linear", "ParametrizedLinear", "ParametrizedLinear"]
    assert sparse.cost().params == sum(p.numel() for p in small.parameters())
