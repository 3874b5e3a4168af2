"""What gates add to a training step, in calls, kept tensors and host reads; and that what runs around them still does."""

from __future__ import annotations

import copy
import itertools
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import zerogate as zg
from support import Residual
from zerogate.gates import fused
from zerogate.masking.activations import ScaleChannels

HOST_READS = {"_local_scalar_dense", "is_nonzero", "item", "nonzero", "masked_select", "equal", "tolist"}
X = (4, 2, 5, 5)


class Calls(TorchDispatchMode):
    """ATen calls that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def a_step(name: str, **options: Any) -> tuple[int, int, float]:
    """Calls and host reads of a forward and backward, and MiB kept for the latter, of parameters aside."""
    options = copy.deepcopy(options)
    torch.manual_seed(0)
    model, x, y = getattr(zg.models, name)(), torch.randn(2, 3, 32, 32), torch.randint(10, (2,))
    sparse = zg.sparsify(model, x, **options) if options else None
    parameters = [*model.parameters(), *(sparse.parameters() if sparse else ())]
    own = {p.untyped_storage().data_ptr() for p in parameters}

    def loss() -> Tensor:
        found = F.cross_entropy(model(x), y)
        return found if sparse is None else found + sparse.loss()

    loss().backward()
    for p in parameters:
        p.grad = None
    with Calls() as calls:
        loss().backward()
    kept: dict[int, Any] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss()
    reads = sum(name in HOST_READS for name in calls.names)
    return len(calls.names), reads, sum(s.nbytes() for s in kept.values()) / 2**20


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"gate": zg.HardConcrete()}, 1.05),
        ({"gate": zg.SoftMask()}, 1.045),
        ({"gate": zg.HardConcrete(), "unit": "weight"}, 1.06),
        ({"gate": zg.SoftMask(), "unit": "weight"}, 1.045),
        ({"gate": zg.SoftMask(), "unit": "weight", "objective": zg.Penalty(1.0, over="macs")}, 1.055),
        ({"objective": zg.Penalty(1.0, over="params")}, 1.105),
        ({"objective": zg.Penalty(1.0, over="macs")}, 1.105),
        ({"objective": zg.Target(params=0.5, steps=9)}, 1.125),
        ({"gate": zg.SoftMask(), "objective": zg.Target(macs=0.5, steps=9)}, 1.13),
        ({"per_example": True}, 1.20),
    ],
)
def test_calls_of_a_step(options: Any, most: float) -> None:
    dense, _, _ = a_step("googlenet")
    gated, reads, _ = a_step("googlenet", **options)
    assert gated <= most * dense
    assert reads == 0


def test_depth_costs_no_calls() -> None:
    """Expected costs of chains: as many calls for twenty layers as for three."""
    counts = []
    for depth in (3, 20):
        model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(depth)))
        sparse = zg.sparsify(model, torch.randn(2, 6))
        with Calls() as calls:
            sparse.cost(hard=False).params.backward()
        counts.append(len(calls.names))
    assert counts[0] == counts[1]


@pytest.mark.parametrize("gate", [zg.SoftMask(), zg.HardConcrete()])
def test_weight_masks_keep_little(gate: zg.Gate) -> None:
    """The masked weights, which convolutions keep; random gates also the gates."""
    _, _, dense = a_step("resnet20")
    _, _, gated = a_step("resnet20", gate=gate, unit="weight")
    weights = 267_696 * 4 / 2**20
    assert gated - dense <= weights * (1 if isinstance(gate, zg.SoftMask) else 2) + 0.01


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets plain ops run everywhere, as under a compiler."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("zerogate.") and hasattr(module, "must_stay_traceable"):
            monkeypatch.setattr(module, "must_stay_traceable", lambda: True)


class Twice(nn.Module):
    """A weight with gates along both dimensions, a weight that is not used, inputs without gates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.encode, self.last = nn.Linear(3, 37), nn.Linear(37, 5), nn.Linear(37 + 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encode(self.first(x).relu()).relu()
        return self.last(torch.cat([F.linear(y, self.encode.weight.t()).relu(), x], -1))


class Optional(nn.Module):
    """One of its layers is not always used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.use = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2), True

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.b(x) + self.c(x) if self.use else self.b(x)


MODELS: dict[str, Any] = {
    "residual": (Residual, X),
    "channels last": (lambda: Residual().to(memory_format=torch.channels_last), X),
    "twice": (Twice, (4, 3)),
    "optional": (Optional, (4, 3)),
}


@pytest.mark.parametrize("unit", ["channel", "weight"])
@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask(0.4)])
@pytest.mark.parametrize("learns", ["all", "gates", "weights", "some"])
@pytest.mark.parametrize("name", MODELS)
def test_closed_forms_are_the_plain_ops(
    name: str, learns: str, gate: zg.Gate, unit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same losses and gradients for the same draw."""
    make, shape = MODELS[name]
    found: list[list[Any]] = []
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
            with torch.no_grad():
                sparse.logits.uniform_(-2, 2)
            torch.manual_seed(1)
            loss = model(x).square().sum() + sparse.loss()
            loss.backward()
            found.append([loss.detach(), sparse.logits.grad, *(p.grad for p in model.parameters())])
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


class Shared(nn.Module):
    """One activation read by several layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        out = self.b(x) + self.c(x)
        x = x + 1.0
        return out + self.d(x)


def test_per_example_products_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    found, read = [], []
    for plain in (False, True):
        with monkeypatch.context() as patch:
            if plain:
                plainly(patch)
            torch.manual_seed(0)
            model, x = Shared(), torch.randn(4, 3)
            sparse = zg.sparsify(model, x, per_example=True)
            for name in "bcd":
                model.get_submodule(name).register_forward_hook(lambda m, args, out: read.append(args[0]))
            torch.manual_seed(1)
            model(x).square().sum().backward()
            assert not sparse._gating._products
            found.append([sparse.logits.grad, *(p.grad for p in model.parameters())])
    assert read[0] is read[1] is not read[2]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, "last", "flat"])
def test_products_with_activations(layout: Any, kind: torch.dtype) -> None:
    """x · z to the last bit, also of zeros and of what is not a number; its gradients, and theirs."""
    torch.manual_seed(0)
    x, z, dim = torch.randn(3, 4, 2, 5), torch.rand(3, 4), 1
    z[0], z[1, 0] = 0.0, 1.0
    x[0, 0, 0, 0], x[2, 1, 0, 1], x[1, 2, 0, 0] = 0.0, float("inf"), float("nan")
    if layout == "last":
        x, dim = x.permute(0, 2, 3, 1).contiguous(), -1
    elif layout == "flat":
        x = x[:, :, 0, 0].contiguous()
    else:
        x = x.contiguous(memory_format=layout)
    shape = [3, *[1] * (x.ndim - 1)]
    shape[dim] = 4
    times = ScaleChannels()
    given = [x.to(kind).requires_grad_(), z.to(kind).requires_grad_()]
    product = times(*given, dim)
    plain = given[0] * given[1].view(shape)
    torch.testing.assert_close(product, plain, rtol=0, atol=0, equal_nan=True)
    assert product.stride() == plain.stride()
    grad = torch.randn_like(plain)
    for found, wanted in zip(*(torch.autograd.grad(y, given, grad) for y in (product, plain)), strict=True):
        torch.testing.assert_close(found, wanted, equal_nan=True)
    if kind == torch.float64:
        given = [x.nan_to_num(0.5, 0.5).double().requires_grad_(), given[1].detach().requires_grad_()]
        assert torch.autograd.gradcheck(lambda x, z: times(x, z, dim), given)
        assert torch.autograd.gradgradcheck(lambda x, z: times(x, z, dim), given)
        fixed = given[0].detach()
        assert torch.autograd.gradcheck(lambda z: times(fixed, z, dim), given[1:])


def test_a_product_is_two_calls_where_channels_lie_together() -> None:
    for layout, most in ((torch.contiguous_format, 2), (torch.channels_last, 3)):
        x, z = torch.randn(3, 4, 2, 2).contiguous(memory_format=layout).requires_grad_(), torch.rand(3, 4)
        grad, times = torch.ones_like(x), ScaleChannels()
        times(x, z.requires_grad_(), 1)  # makes its constants
        with Calls() as calls:
            torch.autograd.grad(times(x, z, 1), (x, z), grad)
        assert len(calls.names) == most


@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask(0.4)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_per_example_closed_forms_are_the_plain_ops(
    layout: torch.memory_format, gate: zg.Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[Any]] = []
    for plain in (False, True):
        with monkeypatch.context() as patch:
            if plain:
                plainly(patch)
            torch.manual_seed(0)
            model, x = Residual().to(memory_format=layout), torch.randn(X).contiguous(memory_format=layout)
            sparse = zg.sparsify(model, x, gate=copy.deepcopy(gate), per_example=True, objective=zg.Penalty(3.0))
            with torch.no_grad():
                sparse.logits.uniform_(-2, 2)
            torch.manual_seed(1)
            loss = model(x).square().sum() + sparse.loss()
            loss.backward()
            found.append([loss.detach(), sparse.logits.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


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


# --- what runs around gates -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize(
    "options", [{}, {"gate": zg.SoftMask()}, {"unit": "weight"}, {"gate": zg.SoftMask(), "unit": "weight"}]
)
def test_compiled_without_a_graph_break(options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(X)
    sparse = zg.sparsify(model, x, **copy.deepcopy(options))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    results = []
    for run in (model, compiled):
        sparse.logits.grad = None
        torch.manual_seed(1)
        loss = run(x).square().sum() + sparse.loss()
        loss.backward()
        results.append((loss.detach(), sparse.logits.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    model.eval()
    torch.testing.assert_close(compiled(x), model(x))


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_mixed_precision(kind: torch.dtype, unit: Any) -> None:
    """Gradients are those of the full precision, as far as the lower one can tell."""
    grads = []
    for low in (False, True):
        torch.manual_seed(0)
        model, x = Residual(), torch.randn(X)
        sparse = zg.sparsify(model, x, unit=unit)
        torch.manual_seed(1)
        with torch.autocast("cpu", kind, enabled=low):
            loss = model(x).float().square().mean() + sparse.loss()
        loss.backward()
        grads.append(torch.cat([p.grad.flatten() for p in (sparse.logits, *model.parameters())]))
        assert sparse.logits.grad.dtype == torch.float32
    assert F.cosine_similarity(*grads, dim=0) > 0.99


def test_a_model_in_bfloat16() -> None:
    for unit in ("channel", "weight"):
        model, x = Residual().bfloat16(), torch.randn(X, dtype=torch.bfloat16)
        sparse = zg.sparsify(model, x, unit=unit)  # type: ignore[arg-type]
        (model(x).float().square().mean() + sparse.loss()).backward()
        assert sparse.logits.grad is not None
        assert sparse.logits.grad.isfinite().all()


def test_accumulated_gradients_are_the_sum() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(2, *X)
    sparse = zg.sparsify(model, x[0], gate=zg.SoftMask())
    learned = [sparse.logits, *model.parameters()]
    model.norm.eval()
    for part in x:
        (model(part).square().sum() + sparse.loss()).backward()
    grads = [p.grad for p in learned]
    whole = sum(model(part).square().sum() for part in x) + 2 * sparse.loss()
    for a, b in zip(grads, torch.autograd.grad(whole, learned), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("unit", ["channel", "weight"])
@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask()])
def test_a_checkpointed_model_draws_the_same_again(gate: zg.Gate, unit: Any) -> None:
    grads = []
    for saves in (False, True):
        torch.manual_seed(0)
        model, x = Residual(), torch.randn(X)
        sparse = zg.sparsify(model, x, gate=copy.deepcopy(gate), unit=unit)
        torch.manual_seed(1)
        out = checkpoint(model, x, use_reentrant=False) if saves else model(x)
        (out.square().sum() + sparse.loss()).backward()
        grads.append([p.grad for p in (sparse.logits, *model.parameters())])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_an_average_of_a_gated_model() -> None:
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(X)
    sparse = zg.sparsify(model, x)
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.Adam(sparse.param_groups(1e-2))
    for _ in range(4):
        (model(x).square().sum() + sparse.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        ema.update_parameters(model)
    assert ema.eval()(x).isfinite().all()
    assert not torch.equal(ema.module.head.weight, model.head.weight)


def test_parameters_of_a_functional_call_get_their_gradients() -> None:
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(X)
    zg.sparsify(model, x)
    other = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    torch.func.functional_call(model, other, (x,)).square().sum().backward()
    model(x).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(other[name].grad, p.grad)


DISTRIBUTED = """
import os, sys, torch, torch.distributed as dist, torch.nn.functional as F
from torch import nn
import zerogate as zg

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://" + sys.argv[2], rank=rank, world_size=2)

class Both(nn.Module):
    def __init__(self, model, sparse):
        super().__init__()
        self.model, self.sparse = model, sparse
    def forward(self, x):
        return self.model(x), self.sparse.loss()

torch.manual_seed(0)
model = zg.models.convnet()
sparse = zg.sparsify(model, torch.randn(2, 1, 8, 8))
both = nn.parallel.DistributedDataParallel(Both(model, sparse))
optimizer = torch.optim.Adam(sparse.param_groups(lr=1e-3, gate_lr=0.1))
torch.manual_seed(1 + rank)
differ = 0
for step in range(50):
    x, y = torch.randn(4, 1, 8, 8), torch.randint(10, (4,))
    drawn = []
    hook = model.register_forward_pre_hook(lambda *_: drawn.append([w.detach() for w in sparse._gating._drawn]))
    out, penalty = both(x)
    hook.remove()
    mine = torch.cat([(w / sparse.model.get_parameter(n)).flatten() for n, w in zip(sparse.gated_names, drawn[0])])
    all_ = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(all_, mine)
    differ += not torch.equal(*all_)
    (F.cross_entropy(out, y) + penalty).backward()
    optimizer.step()
    optimizer.zero_grad()
    sparse.step()
state = torch.cat([sparse.logits.detach(), *(p.detach().flatten() for p in model.parameters())])
all_ = [torch.empty_like(state) for _ in range(2)]
dist.all_gather(all_, state)
assert torch.equal(*all_), "the gates have drifted apart"
assert differ == 50, differ
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # gloo's threads do not always outlive the interpreter's own end: "terminate called"
"""


def test_two_processes_share_gates_and_draw_their_own(tmp_path) -> None:
    if not (torch.distributed.is_available() and torch.distributed.is_gloo_available()):
        pytest.skip("this torch has no gloo")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", DISTRIBUTED, str(rank), str(tmp_path / "store")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=120)[1] for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], said
