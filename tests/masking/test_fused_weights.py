"""All gated weights in few kernels, against plain ops; and the gates' own kernels in a whole step."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from gated_networks import MODELS, Twice, X, loss_and_gradients, plainly
from support import Residual
from zerogate.gates import fused
from zerogate.masking.fused_weights import CHUNK, MaskWeights, weight_batches
from zerogate.masking.placement import Placement


@pytest.mark.parametrize("unit", ["channel", "weight"])
@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask(0.4)])
@pytest.mark.parametrize("learns", ["all", "gates", "weights", "some"])
@pytest.mark.parametrize("name", MODELS)
def test_closed_forms_are_the_plain_ops(
    name: str, learns: str, gate: zg.Gate, unit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses and gradients for the same draw."""
    make, shape = MODELS[name]
    found: list[list[Tensor | None]] = []
    for plain in (False, True):
        with monkeypatch.context() as patch:
            if plain:
                plainly(patch)
            torch.manual_seed(0)
            model, x = make(), torch.randn(shape)
            sparse = zg.sparsify(model, x, gate=copy.deepcopy(gate), unit=unit, objective=zg.Penalty(3.0))
            model.use = False
            if learns == "gates":
                model.requires_grad_(False)
            elif learns == "some":
                next(model.parameters()).requires_grad_(False)
            sparse.logits.requires_grad_(learns not in ("weights", "some"))
            if isinstance(sparse.gate, zg.SoftMask):
                sparse.gate.temperature.fill_(1.7)
            found.append(loss_and_gradients(sparse, model, x))
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", ["channel", "weight"])
@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask(0.4)])
def test_second_derivatives(gate: zg.Gate, unit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for plain in (False, True):
        with monkeypatch.context() as patch:
            if plain:
                plainly(patch)
            torch.manual_seed(0)
            model, x = Residual().double(), torch.randn(X, dtype=torch.float64, requires_grad=True)
            sparse = zg.sparsify(model, x, gate=copy.deepcopy(gate), unit=unit).double()
            torch.manual_seed(1)
            learned = [sparse.logits, *model.parameters()]
            loss = model(x).square().sum() + sparse.loss()
            first = torch.autograd.grad(loss, [*learned, x], create_graph=True)
            sum(g.square().sum() for g in first).backward()
            found.append([p.grad for p in learned])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_gradients_are_the_differences_of_values() -> None:
    """Draws held fixed by the seed, in float64."""
    for gate, unit in itertools.product((zg.HardConcrete(), zg.SoftMask(0.4)), ("channel", "weight")):
        torch.manual_seed(0)
        model, x = Twice().double(), torch.randn(4, 3, dtype=torch.float64)
        sparse = zg.sparsify(model, x, gate=gate, unit=unit).double()  # type: ignore[arg-type]

        def value(*_: Tensor, model: nn.Module = model, sparse: zg.Sparsified = sparse, x: Tensor = x) -> Tensor:
            torch.manual_seed(1)
            return model(x).sin().sum() + sparse.loss()

        assert torch.autograd.gradcheck(value, (sparse.logits, *model.parameters()), check_undefined_grad=False)


def test_losses_can_be_added_or_differentiated_one_by_one() -> None:
    """The penalty shares the draw's sigmoid, not its graph."""
    grads = []
    for order in ("together", "task first", "penalty first", "penalty late", "penalty twice"):
        torch.manual_seed(0)
        model, x = Residual(), torch.randn(X)
        sparse = zg.sparsify(model, x)
        torch.manual_seed(1)
        task = model(x).square().sum()
        if order == "together":
            (task + sparse.loss()).backward()
        elif order == "task first":
            penalty = sparse.loss()
            task.backward()
            penalty.backward()
        elif order == "penalty late":
            task.backward()
            sparse.loss().backward()
        else:
            sparse.loss().backward()
            if order == "penalty twice":
                (2 * sparse.loss() - sparse.loss()).backward()
                sparse.logits.grad /= 2
            task.backward()
        grads.append(sparse.logits.grad)
    for grad in grads[1:]:
        torch.testing.assert_close(grad, grads[0])


def test_the_penalty_follows_logits_that_change() -> None:
    for gate in (zg.HardConcrete(), zg.SoftMask()):
        model, x = Residual(), torch.randn(X)
        sparse = zg.sparsify(model, x, gate=gate)
        model(x)
        with torch.no_grad():
            sparse.logits.fill_(-1.0)
        if isinstance(gate, zg.SoftMask):
            gate.temperature.fill_(2.0)
        torch.testing.assert_close(sparse.loss(), gate.open_probability(sparse.logits).mean())


def test_gates_changed_before_the_backward_pass_are_refused() -> None:
    """A weight's mask is not kept but made again from the logits: these must still be there."""
    model, x = Residual(), torch.randn(X)
    sparse = zg.sparsify(model, x, gate=zg.SoftMask(), unit="weight")
    out = model(x).sum()
    with torch.no_grad():
        sparse.logits.add_(1.0)
    with pytest.raises(RuntimeError, match="changed in place"):
        out.backward()


class Squared(zg.HardConcrete):
    """A gate of somebody's own."""

    def sample(self, logits: Tensor, examples: int | None = None) -> Tensor:
        return super().sample(logits, examples).square()


def test_a_gate_of_ones_own_is_asked() -> None:
    model, x = Residual(), torch.randn(X)
    sparse = zg.sparsify(model, x, gate=Squared())
    torch.manual_seed(0)
    z, p, _ = fused.draw(sparse.gate, sparse.logits)
    torch.manual_seed(0)
    torch.testing.assert_close(z, zg.HardConcrete().sample(sparse.logits).square())
    assert p is None
    model(x).sum().backward()


def test_draws_of_soft_weight_masks_may_wait_for_their_backward_pass() -> None:
    """The scratch buffer of open probabilities is overwritten by every draw; earlier ones are computed once more."""
    grads = []
    for together in (False, True):
        torch.manual_seed(0)
        model, x = Residual().eval(), torch.randn(2, *X)
        model.train().norm.eval()
        sparse = zg.sparsify(model, x[0], gate=zg.SoftMask(0.3), unit="weight", objective=zg.Penalty(2.0))
        sparse.logits.data.uniform_(-2, 2)
        losses = []
        for i, part in enumerate(x):
            sparse.gate.temperature = torch.tensor(1.0 + i)
            losses.append(model(part).square().sum() + sparse.loss())
            if not together:
                losses.pop().backward()
        if together:
            sum(losses).backward()
        grads.append([p.grad for p in (sparse.logits, *model.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert sparse.gate in fused._scratch and copy.deepcopy(sparse).gate not in fused._scratch


# The batches by themselves.

SHAPES = {"a": (3, 4), "b": (4, 2, 3), "c": (5,)}
PLACEMENTS = {
    "channels": [
        Placement("a", torch.tensor([2, -1, 0, 1]), (3, 4), 1),
        Placement("b", torch.tensor([0, 1, 2, 2]), (4, 2, 3), 0),
        Placement("a", torch.tensor([1, 1, -1]), (3, 4), 0),
    ],
    "weights": [Placement("c", torch.arange(5), (5,), None)],
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_batch_holds_each_weight_once_and_all_batches_hold_all(name: str) -> None:
    names = list(SHAPES)
    batches = weight_batches(PLACEMENTS[name], names, 5)
    for batch in batches:
        numbers = [slot.weight for slot in batch.slots]
        assert len(set(numbers)) == len(numbers)
    by_weight = sorted(names[slot.weight] for batch in batches for slot in batch.slots)
    assert by_weight == sorted(p.weight for p in PLACEMENTS[name])
    assert len(batches) == max(by_weight.count(weight) for weight in by_weight)


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_masked_weights_and_their_gradients_are_plain_products(name: str, recomputed: bool) -> None:
    torch.manual_seed(0)
    z = torch.rand(5, dtype=torch.float64, requires_grad=True)
    weights = {n: torch.randn(shape, dtype=torch.float64, requires_grad=True) for n, shape in SHAPES.items()}
    learned = [z, *(weights[n] for n in dict.fromkeys(p.weight for p in PLACEMENTS[name]))]

    def in_batches() -> Tensor:
        masked = [*weights.values()]
        for batch in weight_batches(PLACEMENTS[name], [*SHAPES], 5):
            numbers = [slot.weight for slot in batch.slots]
            again = (lambda: z.detach()) if recomputed else None
            for number, w in zip(
                numbers, MaskWeights.apply(batch, again, z, *(masked[i] for i in numbers)), strict=True
            ):
                masked[number] = w
        return sum((w.sin().sum() for w in masked), z.new_zeros(()))

    def plainly_multiplied() -> Tensor:
        masked = {**weights}
        for p in PLACEMENTS[name]:
            masked[p.weight] = masked[p.weight] * torch.cat([z, z.new_ones(1)])[p.units].view(p.view)
        return sum((w.sin().sum() for w in masked.values()), z.new_zeros(()))

    torch.testing.assert_close(in_batches(), plainly_multiplied())
    for a, b in zip(*(torch.autograd.grad(f(), learned) for f in (in_batches, plainly_multiplied)), strict=True):
        torch.testing.assert_close(a, b)


def test_a_batch_is_copied_without_its_buffers() -> None:
    (batch, _) = weight_batches(PLACEMENTS["channels"], [*SHAPES], 5)
    products = [torch.randn(SHAPES["a"]), torch.randn(SHAPES["b"])]
    summed = batch.sum_by_unit(products, torch.zeros(5))
    assert batch.total % CHUNK == 0
    for copied in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        torch.testing.assert_close(copied.sum_by_unit(products, torch.zeros(5)), summed, rtol=0, atol=0)
    torch.testing.assert_close(batch.sum_by_unit([None, products[1]], torch.zeros(5))[0], products[1][0].sum())
