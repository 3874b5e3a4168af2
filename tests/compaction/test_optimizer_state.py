"""Training that goes on after compaction: the optimizer's state and moving averages."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import zerogate as zg
from support import Lambda, Residual, close_randomly, relative
from zerogate.compaction.compact import carry
from zerogate.cutting.plan import Plan
from zerogate.storage.plan_json import read_step

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": partial(SGD, lr=0.01, momentum=0.9, weight_decay=1e-3),
    "sgd-plain": partial(SGD, lr=0.01),
    "adam": partial(Adam, lr=0.01),
    "adam-foreach": partial(Adam, lr=0.01, foreach=True),
    "adamw-fused": partial(AdamW, lr=0.01, fused=True),
    "adamw-amsgrad": partial(AdamW, lr=0.01, amsgrad=True),
    "adamw-capturable": partial(AdamW, lr=torch.tensor(0.01), foreach=False),
    "rmsprop": partial(RMSprop, lr=0.001, momentum=0.9, centered=True),
    "nadam": partial(NAdam, lr=0.01),
    "radam": partial(RAdam, lr=0.01),
    "adamax": partial(Adamax, lr=0.01),
    "adagrad": partial(Adagrad, lr=0.01),
}
X = torch.randn(8, 2, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, optimizer: Optimizer, steps: int, x: Tensor = X, y: Tensor = Y) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def gated(model: nn.Module, x: Tensor = X, **options: Any) -> zg.Sparsified:
    sparse = zg.sparsify(model.double(), x, **options)
    with torch.no_grad():
        sparse.logits.fill_(8.0)
    return sparse


def compact(sparse: zg.Sparsified, **what: Any) -> tuple[nn.Module, Plan]:
    small = sparse.compact()
    plan = read_step(small.zerogate_plan["steps"][-1], sparse.model)
    carry(sparse._deployed(), plan, small, **what)
    return small, plan


def snapshot(optimizer: Optimizer) -> Any:
    return copy.deepcopy(optimizer.state_dict()), [[id(p) for p in g["params"]] for g in optimizer.param_groups]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_state_is_cut_as_the_weights_are(kind: str) -> None:
    torch.manual_seed(0)
    model = Residual()
    sparse = gated(model)
    optimizer = OPTIMIZERS[kind](sparse.param_groups(lr=0.01))
    train(model, optimizer, 3)
    before = {name: dict(optimizer.state[p]) for name, p in model.named_parameters()}
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small, plan = compact(sparse, optimizer=optimizer)
    assert plan.keep
    assert [g["name"] for g in optimizer.param_groups] == ["weights"]
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in small.parameters()]
    assert kind == "sgd-plain" or len(optimizer.state) == len(list(small.parameters()))
    for name, p in small.named_parameters():
        after = optimizer.state[p]
        assert list(after) == list(before[name])
        for key, value in before[name].items():
            if isinstance(value, Tensor) and value.ndim:
                for (tensor, dim), indices in plan.keep.items():
                    value = value.index_select(dim, indices) if tensor == name else value
                assert after[key].shape == p.shape
            assert torch.equal(after[key], value) if isinstance(value, Tensor) else after[key] == value, (name, key)
    losses = train(small.train(), optimizer, 10)
    assert losses[-1] < losses[0]
    assert optimizer.state_dict()["param_groups"][0]["params"] == list(range(len(list(small.parameters()))))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_with_nothing_closed_training_goes_on_bit_for_bit(kind: str) -> None:
    torch.manual_seed(0)
    model = Residual()
    sparse = gated(model)
    optimizer = OPTIMIZERS[kind](sparse.param_groups(lr=0.01, gate_lr=0.0))
    train(model, optimizer, 3)
    with sparse.detached() as plain:
        twin, twins = copy.deepcopy((plain, optimizer))
    small, plan = compact(sparse, optimizer=optimizer)
    assert not plan.keep
    assert train(small, optimizer, 5) == train(twin, twins, 5)
    assert all(torch.equal(p, q) for p, q in zip(small.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["sgd", "adamw-amsgrad", "rmsprop", "nadam"])
def test_the_compacted_network_trains_as_the_gated_one_would(kind: str) -> None:
    """Closed units read nothing and are read by nobody, so for the others nothing changes when they go."""
    torch.manual_seed(0)
    model = Residual()
    sparse = gated(model)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    sparse.logits.requires_grad_(False)
    optimizer = OPTIMIZERS[kind](model.parameters())
    model.eval()  # deployed gates; statistics of BatchNorm stay
    train(model, optimizer, 3)
    whole, twins = copy.deepcopy((sparse, optimizer))
    small, plan = compact(sparse, optimizer=optimizer)
    assert plan.keep
    after = train(small, optimizer, 20)
    assert after == pytest.approx(train(whole.model, twins, 20), rel=1e-9)
    for (name, p), q in zip(small.named_parameters(), whole.compact().parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9, msg=name)


def test_groups_names_and_other_parameters() -> None:
    model, extra = Residual(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    sparse = gated(model)
    model.right.weight.requires_grad_(False)
    named = list(model.named_parameters())
    optimizer = AdamW(
        [
            {"params": named[:3], "lr": 0.1, "name": "front"},
            {"params": [("logits", sparse.logits), ("extra", extra)], "weight_decay": 0.0, "mine": [1]},
            {"params": [*named[5:], *named[3:5]], "betas": (0.5, 0.6)},
        ],
        lr=0.01,
    )
    (model(X).square().mean() + extra.sum()).backward()
    optimizer.step()
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    state = dict(optimizer.state[extra])
    small, _ = compact(sparse, optimizer=optimizer)
    new = dict(small.named_parameters())
    names = [name for name, _ in named]
    front, other, rest = optimizer.param_groups
    assert [id(p) for p in front["params"]] == [id(new[n]) for n in names[:3]] and front["param_names"] == names[:3]
    assert (front["lr"], front["name"], rest["betas"]) == (0.1, "front", (0.5, 0.6))
    assert other["params"] == [extra] and other["param_names"] == ["extra"] and other["mine"] == [1]
    assert [id(p) for p in rest["params"]] == [id(new[n]) for n in [*names[5:], *names[3:5]]]
    assert optimizer.state[extra] == state
    assert not new["right.weight"].requires_grad and new["right.weight"] not in optimizer.state
    assert sparse.logits not in optimizer.state


def test_a_schedule_goes_on() -> None:
    model = Residual()
    sparse = gated(model)
    optimizer = SGD(sparse.param_groups(lr=0.1, gate_lr=1.0), momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    train(model, optimizer, 1)
    schedule.step()
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small, _ = compact(sparse, optimizer=optimizer)
    assert [len(g["params"]) for g in optimizer.param_groups] == [len(list(small.parameters())), 0]
    rate = optimizer.param_groups[0]["lr"]
    for _ in range(3):
        train(small, optimizer, 1)
        schedule.step()
    assert optimizer.param_groups[0]["lr"] < rate


def test_tied_and_renamed_parameters() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(5, 6), nn.Linear(6, 2)
            self.a, self.b = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.relu(self.b(torch.relu(self.a(torch.relu(self.stem(x)))))))

    torch.manual_seed(0)
    model, x, y = Tied(), torch.randn(4, 5, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    sparse = gated(model, x, gate_inputs=True)
    optimizer = Adam(model.parameters(), lr=0.01)
    train(model, optimizer, 2, x, y)
    before = optimizer.state[model.stem.weight]["exp_avg"]
    close_randomly(sparse, torch.Generator().manual_seed(3), "share")
    small, plan = compact(sparse, optimizer=optimizer)
    assert "stem.1.weight" in dict(small.named_parameters())  # behind the selection of inputs
    assert len(optimizer.param_groups[0]["params"]) == len(list(small.parameters())) == len(list(model.parameters()))
    assert small.a.weight is small.b.weight and optimizer.state[small.a.weight]["exp_avg"].shape == small.a.weight.shape
    for (name, dim), indices in plan.keep.items():
        before = before.index_select(dim, indices) if name == "stem.weight" else before
    assert torch.equal(optimizer.state[small.stem[1].weight]["exp_avg"], before)
    train(small, optimizer, 2, x, y)


def test_heads_of_attention() -> None:
    attention = nn.MultiheadAttention(8, 4, batch_first=True)
    model = Lambda(
        lambda m, x: m.out(m.attention(x, x, x, need_weights=False)[0]), attention=attention, out=nn.Linear(8, 3)
    )
    x, y = torch.randn(2, 5, 8, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)
    try:
        sparse = gated(model, x, unit="head")
    except zg.ZerogateError:
        pytest.skip("heads are not gated yet")
    optimizer, ema = AdamW(sparse.param_groups(lr=0.01)), AveragedModel(model)
    train(model, optimizer, 2, x, y)
    ema.update_parameters(model)
    close_randomly(sparse, torch.Generator().manual_seed(0), "one")
    expected = model.eval()(x)
    small, _ = compact(sparse, optimizer=optimizer, ema=ema)
    assert small.attention.in_proj_weight.shape == (6, 8)
    assert optimizer.state[small.attention.in_proj_weight]["exp_avg"].shape == (6, 8)
    assert relative(expected, ema.eval()(x)) <= 1e-12
    train(small, optimizer, 2, x, y)
    ema.update_parameters(small)


def test_weights_with_gates_of_their_own() -> None:
    model = Residual()
    sparse = gated(model, unit="weight")
    optimizer = Adam(sparse.param_groups(lr=0.01))
    train(model, optimizer, 2)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    small, _ = compact(sparse, optimizer=optimizer)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(p) for p in small.parameters()]
    train(small, optimizer, 2)


# optimizers that are refused


def test_optimizers_that_are_refused() -> None:
    model = Residual()
    sparse = gated(model)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")

    def refused(optimizer: Any, says: str, train_first: bool = True, **more: Any) -> None:
        if train_first:
            train(model, optimizer, 1)
        before = snapshot(optimizer) if isinstance(optimizer, Optimizer) else None
        with pytest.raises(zg.ZerogateError, match=says) as error:
            compact(sparse, optimizer=optimizer, **more)
        assert "\n" not in str(error.value)
        if before is not None:
            after = snapshot(optimizer)
            assert str(after) == str(before)

    refused(
        torch.optim.Adafactor(model.parameters(), lr=0.01),
        r"Adafactor keeps 'row_var' of stem.weight as of shape \(6, 2, 3, 1\), neither one number nor in the parameter's "
        r"shape \(6, 2, 3, 3\)",
    )
    refused(torch.optim.LBFGS(model.parameters()), "LBFGS also holds parameters in its attribute _params", False)
    refused(3, "optimizer is a torch.optim.Optimizer, got a int", False)
    refused(SGD([sparse.logits], lr=0.1), "trains no parameter of the gated model", False)
    refused(SGD(Residual().parameters(), lr=0.1), "trains no parameter of the gated model", False)

    class Nested(SGD):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.inner = SGD(*args, **kwargs)

    refused(Nested(list(model.parameters()), lr=0.1), "also holds parameters in its attribute inner", False)
    odd = Adam(model.parameters(), lr=0.1)
    odd.state[model.stem.weight]["history"] = [torch.zeros(3)]
    refused(odd, "keeps 'history' of stem.weight as a list", False)
    odd = Adam(model.parameters(), lr=0.1)
    odd.state["all"] = {"k": 3}  # type: ignore[index]
    refused(odd, "state that belongs to no parameter", False)
    refused(
        Adam(model.parameters(), lr=0.1), "given as ema holds no stem.weight", ema=nn.Linear(2, 2)
    )  # and the optimizer stays


def test_another_network_is_refused() -> None:
    sparse = gated(Residual())
    with pytest.raises(zg.ZerogateError, match="was not cut from this model by this plan"):
        carry(sparse._deployed(), Plan(), nn.Linear(2, 2), optimizer=Adam(sparse.model.parameters()))


# moving averages


def averaged(sparse: zg.Sparsified, ema: nn.Module, inside: nn.Module, steps: int = 3, **options: Any) -> Tensor:
    """Trains and averages; the output of the gated network with averaged weights, in evaluation mode."""
    model = sparse.model
    optimizer = SGD(sparse.param_groups(lr=0.05), momentum=0.9)
    for _ in range(steps):
        train(model, optimizer, 1)
        if isinstance(ema, AveragedModel):
            ema.update_parameters(model)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    with torch.no_grad():
        sparse.logits += (
            torch.randn(len(sparse.logits), generator=torch.Generator().manual_seed(0)) * 3
        )  # some within 0 … 1
    trained = copy.deepcopy(model.state_dict())
    model.load_state_dict({k: v.to(trained[k].dtype) for k, v in inside.state_dict().items()})
    training = model.training
    with torch.no_grad():
        expected = model.eval()(X)
    model.train(training).load_state_dict(trained)
    return expected


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_averaged_model_becomes_the_average_compacted(when: str, buffers: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Residual()
    make = partial(AveragedModel, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=buffers)
    ema = make(model.double()) if when == "before" else None
    sparse = gated(model)
    ema = ema or make(model)  # a copy with gates of its own, which nobody trains
    expected = averaged(sparse, ema, ema.module)
    ema.module.body.eval()
    small, _ = compact(sparse, ema=ema)
    assert int(ema.n_averaged) == 3
    assert type(ema.module) is Residual and ema.module.training and not ema.module.body.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in ema.modules())
    assert {n: p.shape for n, p in ema.module.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    with torch.no_grad():
        assert relative(expected, ema.eval()(X)) <= 1e-12
    assert relative(expected, small.eval()(X)) > 1e-6  # the average is another network
    zg.save(ema.module, tmp_path / "ema")
    assert torch.equal(zg.load(tmp_path / "ema", Residual)(X), ema(X))
    optimizer = SGD(small.parameters(), lr=0.1)
    train(small.train(), optimizer, 1)
    ema.update_parameters(small)
    assert int(ema.n_averaged) == 4
    assert torch.equal(ema.module.norm.running_mean, small.norm.running_mean) or buffers


def test_a_plain_copy_becomes_the_average_compacted() -> None:
    torch.manual_seed(0)
    model = Residual()
    sparse = gated(model)
    ema = copy.deepcopy(model).requires_grad_(False).eval()
    with torch.no_grad():
        for p in ema.parameters():
            p.mul_(1.1)
    before = ema
    expected = averaged(sparse, ema, ema)
    small, _ = compact(sparse, ema=ema)
    assert ema is before and not ema.training
    assert relative(expected, ema(X)) <= 1e-12
    assert not any(p.requires_grad for p in ema.parameters()) and all(p.requires_grad for p in small.parameters())
    assert ema.stem.out_channels == small.stem.out_channels


def test_averages_of_another_precision_and_input_selection() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
    x = torch.randn(4, 8)
    sparse = zg.sparsify(model, x, gate_inputs=True)
    ema = AveragedModel(copy.deepcopy(model).double())
    ema.update_parameters(model)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    compact(sparse, ema=ema)
    assert all(p.dtype == torch.float64 for p in ema.parameters())
    torch.testing.assert_close(ema(x.double()).float(), model.eval()(x))


def test_averages_that_are_refused() -> None:
    model = Residual()
    sparse = gated(model)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")

    def refused(ema: Any, says: str) -> None:
        before = {k: v.clone() for k, v in ema.state_dict().items()} if isinstance(ema, nn.Module) else {}
        with pytest.raises(zg.ZerogateError, match=says) as error:
            compact(sparse, ema=ema)
        assert "\n" not in str(error.value)
        assert all(torch.equal(v, ema.state_dict()[k]) for k, v in before.items())

    refused({"stem.weight": 3}, "ema is a module")
    refused(model, "holds the gated model itself")
    refused(AveragedModel(Residual(width=7)), r"holds a \(7, 2, 3, 3\) stem.weight, the gated Residual a \(6, 2,")
    refused(AveragedModel(nn.Linear(2, 2)), r"given as ema holds no stem.weight, the gated Residual a \(6, 2,")
    bigger = Residual()
    bigger.more = nn.Linear(2, 2)
    refused(AveragedModel(bigger), r"given as ema holds a \(2, 2\) more.weight, the gated Residual no;")

    class Own(Residual):
        pass

    refused(Own().double(), "Own cannot become Residual")
