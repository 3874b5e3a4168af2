"""Gates attached to ordinary modules: what changes, what must not, and how they train."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import zerogate as zg
from support import Lambda, Residual, close_randomly

X = (4, 2, 5, 5)


def test_watching_leaves_no_trace() -> None:
    model = nn.Sequential(Residual(), nn.Dropout(0.5), nn.BatchNorm1d(3), nn.Linear(3, 4), nn.Linear(4, 2))
    model.train()
    model[0].norm.eval()
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(X)
    model(x).sum().backward()
    calls.clear()
    before = copy.deepcopy(model.state_dict())
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) for m in model.modules()]
    rng = torch.get_rng_state()
    kept = x.clone()
    sparse = zg.sparsify(model, x, gate=zg.SoftMask())
    sparse.detach()
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.equal(x, kept)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(torch.equal(a, b.grad) for a, b in zip(grads, model.parameters(), strict=True) if b.grad is not None)
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


def test_names_and_class_stay_and_a_dense_checkpoint_loads() -> None:
    dense = Residual()
    model = Residual()
    sparse = zg.sparsify(model, torch.randn(X))
    assert type(model) is Residual
    model.load_state_dict(dense.state_dict())
    assert list(model.state_dict()) == list(dense.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in dense.named_parameters()]
    assert not any(p is q for p in sparse.parameters() for q in model.parameters())
    assert list(sparse.state_dict()) == ["logits"]


def test_open_gates_change_nothing_and_detach_gives_the_plain_model_back() -> None:
    model = Residual().eval()
    x = torch.randn(X)
    plain = model(x)
    sparse = zg.sparsify(model, x)
    with torch.no_grad():
        sparse.logits.fill_(9.0)
    torch.testing.assert_close(model(x), plain)
    with torch.no_grad():
        sparse.logits.fill_(-9.0)
    assert not torch.allclose(model(x), plain)
    sparse.detach()
    torch.testing.assert_close(model(x), plain, atol=0, rtol=0)
    sparse.attach()
    assert not torch.allclose(model(x), plain)


def test_a_gate_multiplies_every_consumer() -> None:
    """Gated output = the plain model with the consumers' input slices scaled by hand."""
    model = Residual().double().eval()
    x = torch.randn(X, dtype=torch.float64)
    by_hand = copy.deepcopy(model)
    sparse = zg.sparsify(model, x)
    with torch.no_grad():
        sparse.logits.copy_(torch.randn(len(sparse.logits)))
    z = sparse.gate.mask(sparse.logits.detach()).double()
    groups = {g.name: g for g in sparse.groups}
    assert groups["stem"].producers == ("stem", "body.2")
    assert groups["stem"].consumers == ("body.0", "left", "right")
    with torch.no_grad():
        for name in groups["stem"].consumers:
            by_hand.get_submodule(name).weight.mul_(z[groups["stem"].slice].view(1, -1, 1, 1))
        by_hand.body[2].weight.mul_(z[groups["body.0"].slice].view(1, -1, 1, 1))
        by_hand.head.weight.mul_(torch.cat([z[groups["left"].slice], z[groups["right"].slice]]))
    torch.testing.assert_close(model(x), by_hand(x))


def test_one_draw_per_forward_is_shared_by_all_consumers() -> None:
    model = nn.Sequential(
        nn.Linear(3, 50), Lambda(lambda m, x: m.a(x) - m.b(x), a=nn.Linear(50, 2), b=nn.Linear(50, 2))
    )
    with torch.no_grad():
        model[1].b.load_state_dict(model[1].a.state_dict())
    x = torch.randn(4, 3)
    sparse = zg.sparsify(model, x)
    model.train()
    assert model(x).abs().max() == 0  # with a draw of its own for each consumer this could not be
    assert sparse.groups[0].consumers == ("1.a", "1.b")


def test_training_is_random_and_evaluation_is_not() -> None:
    model = Residual()
    x = torch.randn(X)
    zg.sparsify(model, x)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask(steps=60, initial_value=0.05)])
@pytest.mark.parametrize("unit", ["channel", "weight"])
@pytest.mark.parametrize("per_example", [False, True])
def test_the_loop_of_the_readme_learns_and_prunes(gate: zg.Gate, unit: str, per_example: bool) -> None:
    if per_example and unit == "weight":
        pytest.skip("single weights are gated once per forward")
    torch.manual_seed(0)
    x = torch.randn(64, 2, 5, 5)
    y = (x[:, 0].mean((1, 2)) > 0).long()
    model = Residual(width=12, classes=2)
    sparse = zg.sparsify(
        model,
        x,
        gate=copy.deepcopy(gate),
        unit=unit,  # type: ignore[arg-type]
        per_example=per_example,
        objective=zg.Penalty(0.5),
    )
    optimizer = torch.optim.Adam(sparse.param_groups(lr=1e-2, gate_lr=0.1))
    first = None
    for _ in range(60):
        loss = F.cross_entropy(model(x), y) + sparse.loss()
        first = loss.item() if first is None else first
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        sparse.step()
    assert loss.item() < first
    assert sparse.cost().params < sparse.dense_cost.params
    small = sparse.compact()
    torch.testing.assert_close(small.eval()(x), model.eval()(x), atol=1e-4, rtol=1e-3)


def test_per_example_gates_draw_for_each_example() -> None:
    model = nn.Sequential(nn.Linear(3, 20), nn.Linear(20, 2))
    x = torch.randn(1, 3).expand(8, 3)
    zg.sparsify(model, x, per_example=True)
    y = model.train()(x)
    assert len({tuple(row) for row in y.tolist()}) == 8
    y = model.eval()(x)
    assert torch.allclose(y[0], y[1])


def test_gate_gradients_reach_logits_and_weights() -> None:
    model = Residual().double()
    x = torch.randn(X, dtype=torch.float64)
    sparse = zg.sparsify(model, x).double()
    model.eval()  # deterministic

    def out(logits: Tensor) -> Tensor:
        with torch.no_grad():
            sparse.logits.copy_(logits)
        return model(x).sum()

    with torch.no_grad():
        sparse.logits.uniform_(-1, 1)
    start = sparse.logits.detach().clone()
    out(start).backward()
    analytic = sparse.logits.grad.clone()  # type: ignore[union-attr]
    for i in range(0, len(start), 3):
        step = torch.zeros_like(start)
        step[i] = 1e-6
        numeric = (out(start + step) - out(start - step)).item() / 2e-6
        assert analytic[i].item() == pytest.approx(numeric, rel=1e-5, abs=1e-8)


class Checkpointed(Residual):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x + checkpoint(self.body, x, use_reentrant=False)
        x = torch.cat([checkpoint(self.left, x, use_reentrant=False), F.max_pool2d(self.right(x), 3, 1, 1)], 1)
        return self.head(F.gelu(x).mean((2, 3)))


@pytest.mark.parametrize("per_example", [False, True])
def test_gradient_checkpointing_reuses_the_draw(per_example: bool) -> None:
    torch.manual_seed(0)
    plain, saved = Residual(), Checkpointed()
    saved.load_state_dict(plain.state_dict())
    x, grads = torch.randn(X), []
    for model in (plain, saved):
        torch.manual_seed(1)
        sparse = zg.sparsify(model, x, per_example=per_example)
        torch.manual_seed(2)
        model.train()(x).square().sum().backward()
        grads.append([sparse.logits.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


class Recomputed(nn.Module):
    def __init__(self, reentrant: bool | None) -> None:
        super().__init__()
        self.first, self.last, self.reentrant = nn.Linear(6, 8), nn.Linear(8, 2), reentrant
        self.body = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.reentrant is None or not self.training:
            return self.last(x + self.body(x))
        return self.last(x + checkpoint(self.body, x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("between", ["nothing", "a forward", "an evaluation", "an exception", "a compaction", "a part"])
@pytest.mark.parametrize("learns", ["all", "weights", "inputs"])
def test_a_recomputation_uses_the_draw_of_its_own_forward(between: str, learns: str) -> None:
    if learns == "inputs" and between in ("a forward", "an exception", "a part"):
        pytest.skip("where nothing learns, the draw is part of no graph and only the last one is known")
    grads = []
    for reentrant in (None, False):
        torch.manual_seed(0)
        model, x = Recomputed(reentrant), torch.randn(4, 6)
        sparse = zg.sparsify(model, x)
        x.requires_grad_()
        sparse.logits.requires_grad_(learns == "all")
        for p in model.parameters():
            p.requires_grad_(learns != "inputs")
        torch.manual_seed(1)
        out = model(x).pow(2).sum()
        if between == "a forward":
            out = out * model(x + 1).pow(2).sum()
        elif between == "an evaluation":
            with torch.no_grad():
                model.eval()(x)
            model.train()
        elif between == "an exception":
            with pytest.raises(RuntimeError):
                model(x[:, :3])
        elif between == "a compaction":
            sparse.compact()
        elif between == "a part":
            model.body(torch.zeros(4, 8))
        out.backward()
        grads.append([p.grad for p in (x, sparse.logits, *model.parameters()) if p.grad is not None])
    assert len(grads[0]) == {"all": 12, "weights": 11, "inputs": 1}[learns]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_reentrant_checkpointing_is_refused() -> None:
    """Its backward pass would end at the weights that the forward has multiplied with the gates."""
    model = Recomputed(True)
    zg.sparsify(model, torch.randn(4, 6))
    with pytest.raises(zg.ZerogateError, match="pass use_reentrant=False"):
        model(torch.randn(4, 6)).sum().backward()


def test_nothing_is_held_after_a_forward() -> None:
    """A draw lives as long as the graph it is part of."""
    model, x = Residual(), torch.randn(X)
    sparse = zg.sparsify(model, x)
    outs = [model(x) for _ in range(3)]
    assert len([ref for ref in sparse._forward._draws._alive if ref() is not None]) == 3
    assert sparse._forward._drawn is None
    del outs
    assert not [ref for ref in sparse._forward._draws._alive if ref() is not None]


class Mirrored(nn.Module):
    """A tied autoencoder: one weight consumes along both of its dimensions, in its own layer and outside."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.encode, self.last = nn.Linear(3, 7), nn.Linear(7, 5), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encode(self.first(x).relu()).relu()
        return self.last(F.linear(x, self.encode.weight.t()).relu())


class Recursive(nn.Module):
    """Calls itself, and reads its weight when it has returned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6) * 0.4)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        if depth:
            x = self(x, depth - 1)
        return F.linear(x, self.weight).relu()


@pytest.mark.parametrize(
    "make",
    [Mirrored, lambda: nn.Sequential(nn.Linear(3, 6), Recursive(), nn.Linear(6, 2))],
    ids=["mirrored", "recursive"],
)
def test_a_weight_is_gated_wherever_it_is_read(make) -> None:
    torch.manual_seed(0)
    model, x = make().double().eval(), torch.randn(4, 3, dtype=torch.float64)
    sparse = zg.sparsify(model, x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        close_randomly(sparse, generator, "share")
        with torch.no_grad():
            sparse.logits[sparse.logits > 0] = 0.3  # open, but less than 1
        small = sparse.compact().eval()
        torch.testing.assert_close(small(x), model(x), atol=1e-12, rtol=1e-10)
        assert not any("weight" in vars(m) for m in model.modules())
    model.train()(x).sum().backward()
    assert sparse.logits.grad.isfinite().all()


class Nested(nn.Module):
    """A root that calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        if depth:
            x = self(x, depth - 1)
        return self.b(self.a(x).relu())


def test_one_draw_for_a_root_that_calls_itself() -> None:
    model, x, drawn = Nested(), torch.randn(4, 6), []
    sparse = zg.sparsify(model, x)
    draws = []
    model.b.register_forward_pre_hook(lambda m, _: drawn.append(m.weight))
    model.a.register_forward_hook(lambda *_: draws.append(sparse._forward.depth))
    model(x).sum().backward()
    assert draws == [3, 2, 1]
    assert drawn[0] is drawn[1] is drawn[2] is not model.b.weight


@pytest.mark.parametrize("affine", [True, False])
def test_hooks_registered_later_come_first(affine: bool) -> None:
    """What gates do to a norm's input, they do to what the user's hooks make of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6, elementwise_affine=affine), nn.Linear(6, 2)).double()
    x = torch.randn(4, 3, dtype=torch.float64)
    model[1].register_forward_hook(lambda m, args, out: out + 1)
    sparse = zg.sparsify(model, x)
    model[0].register_forward_hook(lambda m, args, out: out + 1)
    model[1].register_forward_pre_hook(lambda m, args: (args[0] * args[0],))
    model[1].register_forward_hook(lambda m, args, out: out * 2)
    model[2].register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    with torch.no_grad():
        sparse.logits.copy_(torch.tensor([-8.0, 8, -8, 8, 8, 8]))
    small = sparse.compact().eval()
    assert small[0].out_features == 4
    torch.testing.assert_close(small(x), model.eval()(x), atol=1e-12, rtol=1e-10)


def test_gates_in_functional_calls_and_their_gradients() -> None:
    """torch.func: other parameters in their place, gradients of single examples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)).eval()
    x = torch.randn(4, 3)
    sparse = zg.sparsify(model, x)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    plain = model(x)
    other = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    changed = torch.func.functional_call(model, other, (x,))
    assert torch.equal(model(x), plain)
    twin = copy.deepcopy(sparse)
    twin.model.load_state_dict(other)
    torch.testing.assert_close(twin.model(x), changed)

    def loss(parameters: dict[str, Tensor], example: Tensor) -> Tensor:
        return torch.func.functional_call(model, parameters, (example[None],)).pow(2).sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(dict(model.named_parameters()), x)
    model(x).pow(2).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(each[name].sum(0), p.grad)


def test_a_model_that_has_changed_since() -> None:
    def changed(change) -> str:
        model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5), nn.Linear(5, 4), nn.Linear(4, 7, bias=False))
        model[3].weight = model[0].weight
        sparse = zg.sparsify(model, torch.randint(7, (2, 3)))
        sparse.compact()
        change(model)
        with pytest.raises(zg.ZerogateError, match="not what it was when gates were put on it") as caught:
            sparse.compact()
        return str(caught.value)

    assert "3.weight is no longer tied" in changed(lambda m: m.load_state_dict(m.state_dict(), assign=True))
    assert "2.weight is (3, 5) and was (4, 5)" in changed(lambda m: m.__setitem__(2, nn.Linear(5, 3)))
    assert "2 is another module" in changed(lambda m: m.__setitem__(2, nn.Linear(5, 4)))
    assert "2.weight is gone" in changed(lambda m: m.__setitem__(2, nn.Sequential(nn.Linear(5, 4))))
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4))
    sparse = zg.sparsify(model, torch.randn(2, 3))
    sparse.detach()
    model[1] = nn.Linear(5, 4)  # fits
    sparse.attach()
    assert sparse.compact()[1].out_features == 4
    sparse.detach()
    model[1] = nn.Linear(5, 6)
    with pytest.raises(zg.ZerogateError, match=r"1\.weight is \(6, 5\) and was \(4, 5\)"):
        sparse.attach()


def test_example_inputs_that_are_part_of_a_graph() -> None:
    model, x = Residual(), torch.randn(X, requires_grad=True) * 2
    sparse = zg.sparsify(model, x)
    twin = copy.deepcopy(sparse)
    assert torch.equal(twin.example_inputs, x)
    pickle.dumps(sparse)
    sparse.compact()


def test_copies_and_pickles_carry_their_own_gates() -> None:
    model = Residual()
    x = torch.randn(X)
    sparse = zg.sparsify(model, x)
    model.train()
    model(x).sum().backward()  # a draw is alive now
    other = copy.deepcopy(sparse)
    loaded = pickle.loads(pickle.dumps(sparse))
    with torch.no_grad():
        sparse.logits.fill_(-9.0)
    for twin in (other, loaded):
        assert not torch.allclose(twin.model.eval()(x), model.eval()(x))
        assert twin.compact() is not None
    lone = copy.deepcopy(model)  # an EMA copy of the model alone is gated as well
    torch.testing.assert_close(lone.eval()(x), model.eval()(x))
    with pytest.raises(zg.ZerogateError, match="has gates already"):
        zg.sparsify(lone, x)


def test_state_dict_brings_everything_back() -> None:
    model = Residual()
    x = torch.randn(X)
    sparse = zg.sparsify(model, x, gate=zg.SoftMask(steps=9))
    for _ in range(4):
        sparse.step()
    with torch.no_grad():
        sparse.logits.normal_()
    twin = zg.sparsify(Residual(), x, gate=zg.SoftMask())
    twin.model.load_state_dict(model.state_dict())
    twin.load_state_dict(sparse.state_dict())
    assert torch.equal(model.train()(x), twin.model.train()(x))


def test_parts_can_be_called_by_themselves() -> None:
    model = Residual()
    x = torch.randn(X)
    sparse = zg.sparsify(model, x)
    with torch.no_grad():
        sparse.logits.fill_(-9.0)
    inner = torch.randn(2, 6, 5, 5)
    closed = model.eval().body(inner)
    assert torch.allclose(closed[0], closed[1])  # nothing but biases is left
    model.train().body(inner).sum().backward()


def test_functional_use_of_a_weight_is_gated() -> None:
    """The weight belongs to a module that is never called; the shadow must cover the module that reads it."""

    class Reader(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(torch.relu(self.a(x)), self.b.weight, self.b.bias)

    model, x = Reader().double(), torch.randn(4, 3, dtype=torch.float64)
    sparse = zg.sparsify(model, x)
    with torch.no_grad():
        sparse.logits.copy_(torch.tensor([-9.0, 9.0] * 3))
    small = sparse.compact()
    torch.testing.assert_close(small.eval()(x), model.eval()(x))
    sparse.detach()
    with pytest.raises(zg.ZerogateError, match="per_example"):
        zg.sparsify(model, x, per_example=True)


def test_inputs_as_tuple_dict_and_nested_outputs() -> None:
    model = Lambda(
        lambda m, a, b=None: {"y": m.c(m.a(a) + m.b(b)), "n": 3},
        a=nn.Linear(3, 5),
        b=nn.Linear(4, 5),
        c=nn.Linear(5, 2),
    )
    a, b = torch.randn(2, 3), torch.randn(2, 4)
    for inputs in ((a, b), [a, b]):
        sparse = zg.sparsify(model, inputs)
        assert [g.units for g in sparse.groups] == [5]
        sparse.detach()
    named = Lambda(lambda m, *, a, b: m.c(m.a(a) + m.b(b)), a=nn.Linear(3, 5), b=nn.Linear(4, 5), c=nn.Linear(5, 2))
    sparse = zg.sparsify(named, {"a": a, "b": b})
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    assert sparse.compact()(a=a, b=b).shape == (2, 2)


def test_exclude_keeps_layers_dense() -> None:
    model = Residual()
    sparse = zg.sparsify(model, torch.randn(X), exclude=["bo*"])
    assert {g.name for g in sparse.groups} == {"left", "right"}
    assert "body.0 is excluded" in str(sparse.report())
    sparse.detach()
    sparse = zg.sparsify(model, torch.randn(X), unit="weight", exclude=["head"])
    assert "head.weight" not in {g.name for g in sparse.groups}


def test_param_groups() -> None:
    sparse = zg.sparsify(Residual(), torch.randn(X))
    weights, gates = sparse.param_groups(lr=0.01, gate_lr=0.2, weight_decay=0.1)
    assert (weights["lr"], weights["weight_decay"]) == (0.01, 0.1)
    assert (gates["lr"], gates["weight_decay"]) == (0.2, 0.0)
    assert gates["params"] == [sparse.logits]
    assert len(weights["params"]) == len(list(sparse.model.parameters()))
    assert sparse.param_groups(lr=0.01)[1]["lr"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: zg.sparsify(Residual(), torch.randn(2, 3, 5, 5)), "does not run on the example inputs"),
        (lambda: zg.sparsify(Residual(), torch.randn(X, dtype=torch.float64)), "torch.float64"),
        (lambda: zg.sparsify(Residual(), {"y": torch.randn(X)}), "does not run on the example inputs"),
        (lambda: zg.sparsify(nn.Linear(3, 2), torch.randn(1, 3)), "no unit that could be removed"),
        (lambda: zg.sparsify(nn.ReLU(), torch.randn(1, 3)), "no unit that could be removed"),
        (lambda: zg.sparsify(torch.relu, torch.randn(1, 3)), "takes a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: zg.sparsify(Residual(), torch.randn(X), unit="neuron"), "neuron"),  # type: ignore[arg-type]
        (lambda: zg.sparsify(Residual(), torch.randn(X), unit="weight", per_example=True), "per_example"),
        (lambda: zg.sparsify(Residual(), torch.randn(X), gate=zg.HardConcrete), "gate is an instance"),  # type: ignore[arg-type]
        (lambda: zg.sparsify(Residual(), torch.randn(X), objective=0.5), r"Penalty\(1.0\), got 0.5"),  # type: ignore[arg-type]
        (lambda: zg.sparsify(Residual(), torch.randn(X), exclude=["nothing"]), "nothing"),
        (lambda: zg.sparsify(Residual(), torch.randn(X), exclude="body"), r"write \['body'\]"),
    ],
)
def test_bad_arguments(make, says: str) -> None:
    with pytest.raises(zg.ZerogateError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_sparsify_twice() -> None:
    model = Residual()
    sparse = zg.sparsify(model, torch.randn(X))
    with pytest.raises(zg.ZerogateError, match="has gates already"):
        zg.sparsify(model, torch.randn(X))
    sparse.detach()
    zg.sparsify(model, torch.randn(X))


PLAIN_LOOP = '''
import importlib.machinery
import sys

BLOCKED = {"lightning", "pytorch_lightning", "hydra", "omegaconf", "datasets", "rich", "pandas", "matplotlib", "sklearn",
           "safetensors", "torchmetrics", "tensorboard", "scipy", "PIL"}

class Blocked:
    """Finds these modules and fails to load them, as if they were not installed."""
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        raise ModuleNotFoundError(f"{spec.name} is blocked", name=spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Blocked())
import torch
import zerogate as zg

model = zg.models.convnet()
x, y = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
sparse = zg.sparsify(model, x, gate=zg.HardConcrete(), unit="channel", objective=zg.Penalty(1.0))
optimizer = torch.optim.AdamW(sparse.param_groups(lr=1e-3, gate_lr=1e-1))
for _ in range(3):
    loss = torch.nn.functional.cross_entropy(model(x), y) + sparse.loss()
    loss.backward(); optimizer.step(); optimizer.zero_grad(); sparse.step()
small = sparse.compact()
print(sparse.report())
torch.save(small, sys.argv[1])
'''

RUN_SMALL = """
import sys, torch
small = torch.load(sys.argv[1], weights_only=False)
assert small(torch.randn(3, 5)).shape == (3, 2)
assert "zerogate" not in sys.modules
"""


def test_a_plain_loop_needs_torch_only(tmp_path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::UserWarning:torch", "-c", PLAIN_LOOP, tmp_path / "small.pt"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "parameters" in done.stdout


def test_a_compacted_module_runs_without_zerogate(tmp_path) -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 2))
    sparse = zg.sparsify(model, torch.randn(1, 5), gate_inputs=True)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    torch.save(sparse.compact(), tmp_path / "small.pt")
    done = subprocess.run([sys.executable, "-c", RUN_SMALL, tmp_path / "small.pt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
