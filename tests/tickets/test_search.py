"""Searches for tickets: rounds by hand, the last stage against a plain loop, zeros that stay zero."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

import zerogate as zg


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3)).double()


def batches(n: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(size, 6, generator=g).double(), torch.randint(3, (size,), generator=g)) for _ in range(n)]


def train(
    search: zg.TicketSearch,
    data: list[tuple[Tensor, Tensor]],
    optimizer: Callable[..., Any],
    *,
    until: int | None = None,
) -> list[str]:
    """The loop of the documentation; `until`: stop after so many steps in all."""
    names, made = [], 0
    for stage in search:
        names.append(stage.name)
        opt = optimizer(stage)
        for step in range(stage.steps_done, stage.steps):
            x, y = data[step % len(data)]
            loss = F.cross_entropy(search.sparse.model(x), y) + stage.loss()
            loss.backward()
            opt.step()
            opt.zero_grad()
            stage.step()
            made += 1
            if made == until:
                return names
    return names


def sgd(stage: zg.Stage) -> torch.optim.Optimizer:
    return torch.optim.SGD(stage.param_groups(lr=0.1, gate_lr=2.0, weight_decay=1e-3), momentum=0.9)


# rounds


class Three(nn.Module):
    """loss = Σ c·(w z): the gradient of w is c z and that of z is c w, whatever they are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 1, bias=False, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


@pytest.mark.parametrize("reset", ["paper", "code"])
def test_three_weights_through_two_rounds_by_hand(reset: Any) -> None:
    s0, beta_end, length, rewind = 0.1, 4.0, 4, 1
    lr, gate_lr, penalty = 0.1, 0.5, 0.3
    c, w0 = [0.5, -1.0, 0.2], [1.0, 2.0, -0.5]

    # in plain numbers
    scale = 1 / sigmoid(s0)
    w, s, snapshot = [*w0], [s0] * 3, []
    seen: list[list[float]] = []
    for number in range(2):
        beta = 1.0
        for step in range(length):
            z = [scale * sigmoid(beta * x) for x in s]
            p = [sigmoid(beta * x) for x in s]
            dw = [ci * zi for ci, zi in zip(c, z, strict=True)]
            ds = [(ci * wi * scale + penalty / 3) * beta * pi * (1 - pi) for ci, wi, pi in zip(c, w, p, strict=True)]
            w = [a - lr * b for a, b in zip(w, dw, strict=True)]
            s = [a - gate_lr * b for a, b in zip(s, ds, strict=True)]
            beta = beta_end ** ((step + 1) / length)
            if number == 0 and step + 1 == rewind:
                snapshot = [*w]
        seen.append([*s])
        ticket = [x > 0 for x in s]
        w = [*snapshot]
        s = [min(beta * x if reset == "paper" else x, s0) for x in s]
    assert ticket == [False, True, True], "the example must close a weight"
    assert seen[0] != seen[1]
    w = [x * keep for x, keep in zip(w, ticket, strict=True)]
    for _ in range(2):
        w = [x - lr * ci * scale * keep for x, ci, keep in zip(w, c, ticket, strict=True)]

    # by the library
    model = Three()
    with torch.no_grad():
        model.layer.weight.copy_(torch.tensor([w0]))
    x = torch.tensor([c], dtype=torch.float64)
    sparse = zg.sparsify(model, x, gate=zg.SoftMask(s0, beta_end), unit="weight", objective=zg.Penalty(penalty))
    sparse.double()
    with torch.no_grad():
        sparse.logits.fill_(s0)
    search = zg.TicketSearch(sparse, rounds=2, length="4it", final_length="2it", rewind="1it", reset=reset)
    found, names = [], []
    for stage in search:
        names.append(stage.name)
        optimizer = torch.optim.SGD(stage.param_groups(lr=lr, gate_lr=gate_lr))
        for _ in range(stage.steps):
            (model(x).sum() + stage.loss()).backward()
            optimizer.step()
            optimizer.zero_grad()
            stage.step()
        found.append(sparse.logits.tolist())
    assert names == ["round 1", "round 2", "ticket"]
    assert found[:2] == [pytest.approx(values, rel=1e-9) for values in seen]
    assert search.mask == zg.Mask({"layer.weight": torch.tensor([ticket])})
    assert search.history == [pytest.approx(sum(x > 0 for x in values) / 3) for values in seen] + [pytest.approx(2 / 3)]
    assert model.layer.weight.tolist()[0] == pytest.approx(w, rel=1e-9)
    small = sparse.compact()
    assert small.layer.weight.tolist()[0] == pytest.approx([scale * x for x in w], rel=1e-9)


def test_reset_rules() -> None:
    s = torch.tensor([0.3, -0.2, 0.05, 1e-4])
    gate = zg.SoftMask(0.1, final_temperature=200.0, steps=1)
    gate.step()
    initial = torch.full((4,), 0.1)
    assert gate.restarted(s, initial, "paper").tolist() == pytest.approx([0.1, -40.0, 0.1, 0.02])
    assert gate.restarted(s, initial, "code").tolist() == pytest.approx([0.1, -0.2, 0.05, 1e-4])


# the last stage


@pytest.mark.parametrize("rewind", ["0it", "3it"])
def test_last_stage_equals_a_plain_loop_over_the_masked_network(rewind: str) -> None:
    model, data = network(), batches(5)
    taken: dict[str, Tensor] = {}
    sparse = zg.sparsify(model, data[0][0], gate=zg.SoftMask(0.05), unit="weight", objective=zg.Penalty(0.1))
    search = zg.TicketSearch(sparse, rounds=2, length="8it", final_length="20it", rewind=rewind)
    made = 0
    if rewind == "0it":
        taken = copy.deepcopy(model.state_dict())
    for stage in search:
        if stage.is_ticket:
            break
        opt = sgd(stage)
        for step in range(stage.steps):
            x, y = data[step % 5]
            (F.cross_entropy(model(x), y) + stage.loss()).backward()
            opt.step()
            opt.zero_grad()
            stage.step()
            made += 1
            if made == 3 and rewind == "3it":
                taken = copy.deepcopy(model.state_dict())
    mask = search.mask
    assert 0.02 < mask.density < 0.98
    assert search.stage is not None
    assert search.stage.is_ticket

    plain = network()
    plain.load_state_dict(taken)
    parameters = dict(plain.named_parameters())
    scale = zg.SoftMask(0.05).scale
    opt = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    with torch.no_grad():
        for name, kept in mask.items():
            parameters[name] *= kept
    for step in range(20):
        x, y = data[step % 5]
        masked = {
            name: p * (mask[name].float() * scale).double() if name in mask else p for name, p in parameters.items()
        }
        F.cross_entropy(functional_call(plain, masked, (x,)), y).backward()
        opt.step()
        opt.zero_grad()

    assert train(search, data, sgd) == ["ticket"]
    for name, t in model.state_dict().items():
        assert torch.equal(t, plain.state_dict()[name]), name
    assert search.mask == mask
    assert search.stage is None


@pytest.mark.parametrize("unit", ["weight", "channel"])
@pytest.mark.parametrize(
    "gate",
    [zg.SoftMask(0.02), zg.HardConcrete(), zg.Magnitude(0.3), zg.Magnitude(0.3, scope="layer")],
    ids=["cs", "l0", "imp", "imp-layer"],
)
def test_every_kind_of_search(gate: zg.Gate, unit: Any) -> None:
    model, data = network(), batches(5)
    if unit == "channel":
        model = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.Linear(8, 3)
        ).double()
    sparse = zg.sparsify(
        model,
        data[0][0],
        gate=copy.deepcopy(gate),
        unit=unit,
        objective=zg.Penalty(60.0 if isinstance(gate, zg.HardConcrete) else 9.0),
    )
    search = zg.TicketSearch(sparse, rounds=2, length="10it", rewind="2it")
    assert train(search, data, sgd) == ["round 1", "round 2", "ticket"]
    assert search.mask.density < 1
    assert len(search.history) == 3
    assert search.history[2] == search.history[1] == search.mask.density
    if isinstance(gate, zg.Magnitude):
        assert search.history[0] == pytest.approx(0.3**0.5, abs=0.06)
        assert search.history[1] == pytest.approx(0.3, abs=0.06)
    for name, kept in search.mask.items():
        assert not model.get_parameter(name)[~kept].any()
    small = sparse.compact()
    x = data[0][0]
    assert torch.allclose(small.eval()(x), model.eval()(x), rtol=1e-10, atol=1e-10)
    if unit == "channel":
        assert sum(p.numel() for p in small.parameters()) == sparse.cost().params < sparse.dense_cost.params


@pytest.mark.parametrize("unit", ["weight", "channel"])
@pytest.mark.parametrize("over", ["gates", "params", "macs"])
@pytest.mark.parametrize("gate", [zg.SoftMask(), zg.HardConcrete(), zg.Magnitude()], ids=["cs", "l0", "imp"])
def test_a_search_ends_at_its_target(gate: zg.Gate, over: str, unit: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 3)).double()
    data = batches(5)
    objective = zg.Target(**{over: 0.3})
    sparse = zg.sparsify(model, data[0][0], gate=copy.deepcopy(gate), unit=unit, objective=objective)
    search = zg.TicketSearch(sparse, rounds=2, length="100it", final_length="10it", rewind="2it")
    train(search, data, sgd)
    cost, dense = sparse.cost(), sparse.dense_cost
    reached = {
        "gates": float(sparse.is_open().double().mean()),
        "params": cost.params / dense.params,
        "macs": cost.macs / dense.macs,
    }[over]
    largest = 0.005 if unit == "weight" else 0.05  # or one unit
    assert 0.3 - largest < reached <= 0.3


def test_gradual_magnitude_pruning_follows_its_cubic() -> None:
    model, data = network(), batches(5)
    gate = zg.Magnitude(0.2, begin=0.1, end=0.6, every=5)
    sparse = zg.sparsify(model, data[0][0], gate=gate, unit="weight")
    search = zg.TicketSearch(sparse, rounds=0, length="100it")
    total = len(sparse.logits)
    wanted, found = [], []
    for stage in search:
        opt = sgd(stage)
        for step in range(1, 101):
            x, y = data[step % 5]
            (F.cross_entropy(model(x), y) + stage.loss()).backward()
            opt.step()
            before = sparse.is_open()
            magnitudes = torch.cat([model[0].weight.flatten(), model[3].weight.flatten()]).abs().detach()
            opt.zero_grad()
            stage.step()
            k = min(1.0, (max(step, 10) - 10) // 5 * 5 / 50)
            wanted.append(round((0.2 + 0.8 * (1 - k) ** 3) * total))
            found.append(int(sparse.is_open().sum()))
            closed = before & ~sparse.is_open()
            if closed.any():
                assert magnitudes[closed].max() <= magnitudes[sparse.is_open()].min()
            assert not (sparse.is_open() & ~before).any()
    assert found == wanted
    assert found[-1] == round(0.2 * total)


def test_random_tickets_have_the_same_share_of_every_layer() -> None:
    torch.manual_seed(3)
    model = network()
    sparse = zg.sparsify(model, torch.randn(2, 6).double(), gate=zg.Random(0.25), unit="weight")
    assert zg.Mask.of(sparse).densities() == {"0.weight": 0.25, "3.weight": 0.25}
    assert "gates" not in [group["name"] for group in sparse.param_groups(lr=0.1)]
    assert sparse.loss().item() == 0
    other = zg.sparsify(network(), torch.randn(2, 6).double(), unit="weight")
    other.harden(zg.Mask.of(sparse).shuffled())
    assert zg.Mask.of(other).densities() == {"0.weight": 0.25, "3.weight": 0.25}
    assert zg.Mask.of(other) != zg.Mask.of(sparse)


# zeros


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "momentum": lambda groups: torch.optim.SGD(groups, momentum=0.9, nesterov=True),
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}


@pytest.mark.parametrize("how", ["plain", "ema", "amp", "accumulation"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("held", ["ticket", "mask"])
def test_pruned_weights_stay_exactly_zero(held: str, optimizer: str, how: str) -> None:
    torch.manual_seed(0)
    model = network().float()
    data = [(x.float(), y) for x, y in batches(5)]
    mask = zg.Mask({n: torch.rand_like(p) < 0.3 for n, p in model.named_parameters() if p.ndim > 1})
    if held == "ticket":
        sparse = zg.sparsify(model, data[0][0], unit="weight")
        sparse.harden(mask)
        opt = OPTIMIZERS[optimizer](sparse.param_groups(lr=0.05, weight_decay=0.1))
        step = sparse.step
    else:
        weights = [{"params": [*model.parameters()], "lr": 0.05, "weight_decay": 0.1}]
        mask.apply(model)
        opt = OPTIMIZERS[optimizer](weights)
        step = lambda: None  # noqa: E731
    ema = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for i in range(100):
        x, y = data[i % 5]
        with torch.autocast("cpu", torch.bfloat16, enabled=how == "amp"):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        if how == "accumulation" and i % 2:
            continue
        opt.step()
        opt.zero_grad()
        step()
        ema.update_parameters(model)
        for name, kept in mask.items():
            assert not model.get_parameter(name).detach()[~kept].any()
    for name, kept in mask.items():
        assert not ema.module.get_parameter(name).detach()[~kept].any()
        assert (model.get_parameter(name) != before[name])[kept].any()


def test_momentum_from_before_the_ticket_does_not_revive_weights() -> None:
    model, data = network(), batches(5)
    opt = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in data:
        F.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()
    mask = zg.Mask({"0.weight": torch.rand(12, 6) < 0.5})
    held = mask.apply(model, opt)
    for x, y in data:
        F.cross_entropy(model(x), y).backward()
        opt.step()
        opt.zero_grad()
        assert not model[0].weight[~mask["0.weight"]].any()
    held.remove()
    for x, y in data:
        F.cross_entropy(model(x), y).backward()
        opt.step()
    assert model[0].weight[~mask["0.weight"]].all()


# rewinding and resuming


def test_optimizer_state_is_rewound_on_request() -> None:
    model, data = network(), batches(5)
    sparse = zg.sparsify(model, data[0][0], gate=zg.Magnitude(0.5), unit="weight")
    search = zg.TicketSearch(sparse, rounds=1, length="6it", rewind="3it")
    taken: dict[str, Tensor] = {}
    for stage in search:
        opt = sgd(stage)
        stage.rewind(opt)
        names = {id(p): name for name, p in model.named_parameters()}
        if stage.is_ticket:
            for p in stage.param_groups(lr=0.1)[0]["params"]:
                kept = search.mask.get(names[id(p)], torch.ones_like(p, dtype=torch.bool))
                momentum = opt.state[p]["momentum_buffer"]
                assert torch.equal(momentum, taken[names[id(p)]] * kept)
                assert momentum.any()
        for step in range(stage.steps):
            x, y = data[step % 5]
            F.cross_entropy(model(x), y).backward()
            opt.step()
            opt.zero_grad()
            stage.step()
            if not stage.is_ticket and step == 2:
                taken = {names[id(p)]: state["momentum_buffer"].clone() for p, state in opt.state.items()}
            for name, kept in search.mask.items():
                assert not model.get_parameter(name)[~kept].any()


@pytest.mark.parametrize("until", [1, 3, 8, 9, 12, 16, 17, 20])
@pytest.mark.parametrize("gate", [zg.SoftMask(0.02), zg.HardConcrete(), zg.Magnitude(0.3)], ids=["cs", "l0", "imp"])
def test_a_search_resumes_bit_for_bit(gate: zg.Gate, until: int) -> None:
    data = batches(5)

    def made() -> zg.TicketSearch:
        sparse = (
            zg.sparsify(network(), data[0][0], gate=copy.deepcopy(gate), unit="weight", objective=zg.Target(params=0.5))
            if not isinstance(gate, zg.Magnitude)
            else zg.sparsify(network(), data[0][0], gate=copy.deepcopy(gate), unit="weight")
        )
        return zg.TicketSearch(sparse, rounds=2, length="8it", final_length="6it", rewind="3it")

    state: dict[str, Any] = {}

    def run(search: zg.TicketSearch, first: dict[str, Any] | None, stop: int | None) -> None:
        """All that is random follows from the stage and the step; optimizers are saved by the user."""
        total = 0
        for stage in search:
            opt = sgd(stage)
            if first is not None:
                opt.load_state_dict(first["optimizer"])
                total, first = first["total"], None
            for step in range(stage.steps_done, stage.steps):
                torch.manual_seed(1000 * stage.number + step)
                x, y = data[step % 5]
                (F.cross_entropy(search.sparse.model(x), y) + stage.loss()).backward()
                opt.step()
                opt.zero_grad()
                stage.step()
                total += 1
                if total == stop:
                    file = io.BytesIO()
                    saved = {"search": search.state_dict(), "optimizer": opt.state_dict(), "total": total}
                    torch.save(saved, file)
                    file.seek(0)
                    state.update(torch.load(file, weights_only=True))
                    return

    whole = made()
    run(whole, None, None)
    run(made(), None, until)
    resumed = made()
    resumed.load_state_dict(state["search"])
    run(resumed, state, None)
    assert resumed.mask == whole.mask
    assert resumed.history == whole.history
    for name, t in whole.sparse.model.state_dict().items():
        assert torch.equal(t, resumed.sparse.model.state_dict()[name]), name


def test_stages_cannot_be_cut_short() -> None:
    data = batches(1)
    sparse = zg.sparsify(network(), data[0][0], gate=zg.SoftMask(), unit="weight")
    search = zg.TicketSearch(sparse, rounds=1, length="4it")
    with pytest.raises(zg.ZerogateError, match="round 1 has made 0 of its 4 steps"):
        for _ in search:
            pass


@pytest.mark.parametrize(
    ("gate", "options", "match"),
    [
        (zg.SoftMask(), {"rounds": 0}, "no round in which SoftMask"),
        (zg.SoftMask(), {"rounds": -1}, "rounds must"),
        (zg.SoftMask(), {"length": "4ep"}, "steps_per_epoch"),
        (zg.SoftMask(), {"length": 4}, "steps_per_epoch"),
        (zg.SoftMask(), {"length": "0it"}, "at least 1 step"),
        (zg.SoftMask(), {"rewind": "9it"}, "behind the end of the first round"),
        (zg.SoftMask(), {"reset": "other"}, "paper, code"),
        (zg.Random(0.5), {"rounds": 2}, "do not change"),
    ],
)
def test_searches_that_cannot_be_are_refused(gate: zg.Gate, options: dict[str, Any], match: str) -> None:
    sparse = zg.sparsify(network(), torch.randn(2, 6).double(), gate=gate, unit="weight")
    with pytest.raises(zg.ZerogateError, match=match):
        zg.TicketSearch(sparse, **{"length": "8it", **options})


@pytest.mark.parametrize("density", [0, -0.1, 1.1, math.nan, True, "0.5"])
def test_densities_out_of_range_are_refused(density: Any) -> None:
    with pytest.raises(zg.ZerogateError, match="density"):
        zg.Random(density)
    with pytest.raises(zg.ZerogateError, match="density"):
        zg.Magnitude(density)
