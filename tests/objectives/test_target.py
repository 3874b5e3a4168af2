"""Budgets: the dual update by hand, runs that reach them, projections, checkpoints, what is refused."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import random
import re
import signal
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from random_nets import FAMILIES
from zerogate.cli.main import main
from zerogate.cost.model import Cost, CostModel
from zerogate.objectives.target import MARGIN, REACH
from zerogate.training.classifier import Classifier
from zerogate.training.config.compose import compose
from zerogate.training.train import train


class Plain(CostModel):
    """Every open unit costs so many parameters and twice the MACs; ``fixed`` stays."""

    def __init__(self, costs: list[float], fixed: float = 0.0) -> None:
        self.costs, self.fixed = torch.tensor(costs), fixed
        self.dense = self.exact(torch.ones(len(costs), dtype=torch.bool))

    def formula(self, p: Tensor) -> Cost:
        total = self.fixed + (p.double() * self.costs).sum()
        return Cost(total, 2 * total)

    def kept(self, is_open: Tensor, logits: Tensor) -> Tensor:
        return is_open


def share(sparse: zg.Sparsified, over: str = "params") -> float:
    return getattr(sparse.cost(), over) / getattr(sparse.dense_cost, over)


def by(sparse: zg.Sparsified, over: str, is_open: Tensor) -> int:
    return getattr(sparse.cost_model.exact(is_open), over)


def mlp(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 3))


def test_the_dual_update_is_its_closed_form() -> None:
    steps, costs = 300, [3.0, 5.0, 2.0]
    target, cost = zg.Target(params=0.4, steps=steps), Plain(costs)
    generator = random.Random(0)
    log, start, weights, seen = 0.0, None, [], []
    for t in range(1, steps + 1):
        p = [generator.random() * (0.5 if t % 90 < 45 else 1) for _ in costs]
        is_open = [x > 0.4 for x in p]
        expected = sum(c * x for c, x in zip(costs, p, strict=True)) / 10
        deployed = sum(c * x for c, x in zip(costs, is_open, strict=True)) / 10
        late = min(1.0, max(0.0, ((t - 1) / steps - 2 / 3) / (1 / 6)))
        w = 0.5 + 0.5 * late
        left = (1 - w) * expected + w * deployed
        start = left if start is None else start
        allowed = start + (0.4 - start) * min(1.0, t / 200)
        over = left - allowed
        g = max(0.0, over) + min(0.0, over + 0.01)
        log += 400 / steps * g
        log = log if log * g > 0 else 0.0
        target.step(torch.tensor(p), torch.tensor(is_open), cost)
        seen.append(target.multiplier.item())
        weights.append(math.copysign(math.expm1(abs(log)), log) + 120 * g if t < 250 else 0.0)
    assert seen == pytest.approx(weights, abs=1e-3, rel=1e-4)
    assert min(seen) < 0 < max(seen)
    assert target.settled  # from step 250 on
    target.multiplier.fill_(seen[200])
    assert target(torch.tensor([0.1, 0.9, 0.5]), cost).item() == pytest.approx(
        seen[200] * (0.3 + 4.5 + 1) / 10, rel=1e-5
    )


def test_the_multiplier_restarts_where_the_constraint_holds() -> None:
    target, fits = zg.Target(macs=0.5, steps=10), torch.tensor(0.495)
    for _ in range(8):
        target.advance(torch.tensor(0.9), torch.tensor(0.9))
    assert target.multiplier > 5
    target.advance(fits, fits)
    assert target.multiplier == 0
    target.advance(torch.tensor(0.2), torch.tensor(0.2))
    assert target.multiplier < 0
    for _ in range(100):
        target.advance(torch.tensor(1.0), torch.tensor(1.0))
    assert target.multiplier.isfinite()
    assert target.multiplier < 1.1e4


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x, dtype=torch.float32).view(-1, 1, 8, 8) / 8 - 1, torch.tensor(y)
    return x[:1437], y[:1437], x[1437:], y[1437:]


@pytest.mark.parametrize(
    ("goal", "options", "optimizer"),
    [
        ({"params": 0.2}, {}, "adam"),
        ({"params": 0.5}, {"gate": zg.SoftMask()}, "adam"),
        ({"macs": 0.3}, {}, "sgd"),
        ({"params": 0.1}, {"gate": zg.SoftMask(), "unit": "weight"}, "adam"),
        ({"macs": 0.9}, {"gate": zg.SoftMask(), "unit": "weight"}, "sgd"),
        ({"params": 0.3}, {"unit": "weight"}, "sgd"),
    ],
)
def test_budgets_are_reached_by_defaults(goal: dict[str, float], options: dict, optimizer: str) -> None:
    steps = 200
    torch.manual_seed(0)
    train_x, train_y, x, y = digits()
    model = zg.models.convnet(width=12)
    (over, wanted), options = next(iter(goal.items())), copy.deepcopy(options)
    sparse = zg.sparsify(model, train_x[:2], objective=zg.Target(**goal, steps=steps), **options)
    groups = sparse.param_groups(0.003 if optimizer == "adam" else 0.05)
    step = torch.optim.Adam(groups) if optimizer == "adam" else torch.optim.SGD(groups, momentum=0.9)
    for _ in range(steps):
        i = torch.randint(len(train_x), (64,))
        (F.cross_entropy(model(train_x[i]), train_y[i]) + sparse.loss()).backward()
        step.step()
        step.zero_grad()
        sparse.step()
    assert sparse.project() == 0  # gates have settled, and fit
    reached, changed = share(sparse, over), sparse.objective.projected
    largest = 1 / 12 if sparse.unit == "channel" else 0.0
    assert wanted - MARGIN - largest < reached <= wanted
    assert changed <= 0.1 * len(sparse.logits)  # training has done it, not the projection
    report = sparse.report()
    assert report.target is not None
    assert (report.target.over, report.target.share, report.target.projected) == (over, wanted, changed)
    assert f"target {wanted:.1%}" in str(report)
    assert report.as_dict()["target"]["reached"] == reached
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small = sparse.compact()
    with torch.no_grad():
        accuracy = (small.eval()(x).argmax(1) == y).double().mean().item()
    assert accuracy > (0.7 if wanted > 0.25 else 0.5)  # a network of 12 channels has little to spare


@pytest.mark.parametrize("seed", range(9))
def test_random_networks_reach_their_targets(seed: int) -> None:
    """Nothing but the target is given, in short runs on noise: at or under, and one more unit would be too much or is not
    missing."""
    family, unit = list(FAMILIES)[seed % 3], ("channel", "weight", {"channel", "head"})[seed // 3]
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model, steps = FAMILIES[family](seed), 30
    x = model.inputs(4, generator)
    gate = zg.SoftMask() if seed % 2 else zg.HardConcrete()
    sparse = zg.sparsify(model, x, gate=gate, unit=unit, objective=zg.Target(params=0.99, steps=steps))  # type: ignore[arg-type]
    assert isinstance(sparse.objective, zg.Target)
    least = by(sparse, "params", torch.zeros(len(sparse.logits), dtype=torch.bool)) / sparse.dense_cost.params
    sparse.objective.share = wanted = least + (1 - least) * (0.2 + 0.6 * seed / 8)
    optimizer = torch.optim.Adam(sparse.param_groups(lr=1e-3))
    for _ in range(steps):
        (model(model.inputs(4, generator)).square().mean() + sparse.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparse.step()
    logits, is_open = sparse.logits.detach(), sparse.is_open()
    assert share(sparse) <= wanted
    if share(sparse) < wanted - MARGIN:
        more = is_open.clone()
        more[logits.masked_fill(is_open, -math.inf).argmax()] = True
        assert by(sparse, "params", more) / sparse.dense_cost.params > wanted
    assert sparse.project() == 0


def test_nothing_is_read_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    sparse = zg.sparsify(mlp(), torch.randn(2, 6), objective=zg.Target(params=0.3, steps=10))
    for name in ("item", "tolist", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(Tensor, name, None)
    for _ in range(3):
        sparse.loss().backward()
        sparse.step()


def fit(sparse: zg.Sparsified, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for number in range(first, last):
        torch.manual_seed(number)
        x = torch.randn(16, 6)
        (F.cross_entropy(sparse.model(x), x[:, :3].argmax(1)) + sparse.loss()).backward()
        optimizer.step()
        optimizer.zero_grad()
        sparse.step()


@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask(steps=60)])
def test_a_resumed_loop_is_the_uninterrupted_one(gate: zg.Gate) -> None:
    def make() -> tuple[zg.Sparsified, torch.optim.Optimizer]:
        goal = zg.Target(params=0.4, steps=60)
        sparse = zg.sparsify(mlp(), torch.randn(2, 6), gate=copy.deepcopy(gate), objective=goal)
        return sparse, torch.optim.Adam(sparse.param_groups(0.01))

    whole, optimizer = make()
    fit(whole, optimizer, 0, 60)
    for stop in (1, 17, 45):
        first, optimizer = make()
        fit(first, optimizer, 0, stop)
        file = io.BytesIO()
        torch.save([first.model.state_dict(), first.state_dict(), optimizer.state_dict()], file)
        file.seek(0)
        model, state, moments = torch.load(file, weights_only=True)
        second, optimizer = make()
        second.objective.steps = None  # the state says it
        second.model.load_state_dict(model)
        second.load_state_dict(state)
        optimizer.load_state_dict(moments)
        fit(second, optimizer, stop, 60)
        for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
            assert torch.equal(a, b) if isinstance(a, Tensor) else a == b
    whole.project()
    other = make()[0]
    other.load_state_dict(whole.state_dict())
    assert other.report().target == whole.report().target


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("gate", [zg.HardConcrete(), zg.SoftMask()])
def test_gates_settle_and_weights_go_on(gate: zg.Gate, optimizer: type) -> None:
    sparse = zg.sparsify(mlp(), torch.randn(2, 6), gate=copy.deepcopy(gate), objective=zg.Target(params=0.5, steps=12))
    with torch.no_grad():
        sparse.logits[:] = torch.linspace(-2, 4, len(sparse.logits))
    options = {"momentum": 0.9} if optimizer is torch.optim.SGD else {}
    step = optimizer(sparse.param_groups(0.01, gate_lr=0.01), lr=0.01, **options)
    x, seen = torch.randn(8, 6), []
    for number in range(12):
        random = not torch.equal(sparse.model(x), sparse.model(x))
        assert random == (number < 10 and isinstance(gate, zg.HardConcrete))
        weights = sparse.model[0].weight.detach().clone()
        (sparse.model(x).square().mean() + sparse.loss()).backward()
        step.step()
        step.zero_grad(set_to_none=False)
        sparse.step()
        seen.append((sparse.settled, share(sparse) <= 0.5, sparse.logits.detach().clone()))
        assert not torch.equal(weights, sparse.model[0].weight)
    assert [s for s, _, _ in seen] == [False] * 9 + [True] * 3
    assert all(fits for settled, fits, _ in seen if settled)
    assert all(torch.equal(logits, seen[-1][2]) for _, _, logits in seen[9:])
    assert not torch.equal(seen[0][2], seen[1][2])
    is_open = sparse.is_open()
    assert (sparse.logits[is_open] >= 0).all()  # what stays is open wholly or nearly so
    assert sparse.project() == 0
    assert sparse.objective.projected == sparse.report().target.projected is not None
    out = sparse.model(x)
    sparse.model.eval()
    assert torch.equal(out, sparse.model(x))  # trained with what is deployed


def test_a_group_that_closed_wholly_gets_its_likeliest_unit_back() -> None:
    sparse = zg.sparsify(mlp(), torch.randn(2, 6), objective=zg.Target(params=0.5, steps=1))
    first, second = (group.slice for group in sparse.groups)
    with torch.no_grad():
        sparse.logits[first], sparse.logits[second] = 5.0, -5.0
        sparse.logits[second][3] = -4.0
    sparse.step()
    assert sparse.is_open()[second][3]
    assert share(sparse) <= 0.5


def test_per_example_gates_settle_too() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    sparse = zg.sparsify(model, torch.randn(2, 6), per_example=True, objective=zg.Target(params=0.6, steps=1))
    x = torch.randn(5, 6)
    assert not torch.equal(model(x), model(x))
    sparse.step()
    out = model(x)
    assert torch.equal(out, model(x))
    model.eval()
    assert torch.allclose(out, model(x), atol=1e-6)


def test_gate_and_target_tell_each_other_how_long_the_run_is() -> None:
    sparse = zg.sparsify(mlp(), torch.randn(2, 6), gate=zg.SoftMask(), objective=zg.Target(params=0.5, steps=70))
    sparse.step()
    assert sparse.gate.steps == 70
    sparse = zg.sparsify(mlp(), torch.randn(2, 6), gate=zg.SoftMask(steps=50), objective=zg.Target(params=0.5))
    sparse.step()
    assert sparse.objective.steps == 50


def test_gates_have_time_to_move() -> None:
    """At a hundred times the weights' rate, thirty for soft masks; in short runs at more: with Adam, 30 over the run."""

    def rate(lr: float, steps: int | None) -> float:
        objective = None if steps is None else zg.Target(params=0.5, steps=steps)
        return zg.sparsify(mlp(), torch.randn(2, 6), objective=objective).param_groups(lr)[1]["lr"]

    assert zg.sparsify(mlp(), torch.randn(2, 6), gate=zg.SoftMask()).param_groups(1e-3)[1]["lr"] == pytest.approx(0.03)
    assert rate(1e-3, None) == pytest.approx(0.1)
    assert rate(1e-3, 100) == pytest.approx(0.3)
    assert rate(1e-3, 10_000) == pytest.approx(0.1)


def test_without_a_target_nothing_is_projected() -> None:
    sparse = zg.sparsify(mlp(), torch.randn(2, 6))
    assert sparse.project() == 0
    assert sparse.report().target is None


def test_compact_says_where_the_target_is_missed() -> None:
    sparse = zg.sparsify(mlp(), torch.randn(2, 6), objective=zg.Target(macs=0.25))
    with torch.no_grad():
        sparse.logits[:] = torch.linspace(3, 4, len(sparse.logits))
    with pytest.warns(
        UserWarning, match=r"684 of 684 macs are left \(100.00%\), and the target is 25.00%.*project\(\)"
    ):
        sparse.compact()
    assert sparse.is_open().all()  # and changes nothing
    sparse.project()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert sum(m.weight.numel() for m in sparse.compact() if isinstance(m, nn.Linear)) <= 0.25 * 684


def test_without_steps_it_says_so_once() -> None:
    sparse = zg.sparsify(mlp(), torch.randn(2, 6), objective=zg.Target(params=0.5))
    with pytest.warns(UserWarning, match=r"Target\(steps="):
        sparse.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sparse.step()


def test_a_target_out_of_reach_is_refused_with_what_can_be_reached() -> None:
    model = mlp()
    with pytest.raises(zg.ZerogateError, match=r"params=0\.001 cannot be reached: 15 of 731 params") as caught:
        zg.sparsify(model, torch.randn(2, 6), objective=zg.Target(params=0.001))
    found = re.search(r"smallest share is ([0-9.e-]+)", str(caught.value))
    assert found is not None
    sparse = zg.sparsify(model, torch.randn(2, 6), objective=zg.Target(params=float(found[1])))
    sparse.project()
    assert share(sparse) <= float(found[1])
    wide = "0"  # a dense first layer costs more than this
    with pytest.raises(zg.ZerogateError, match="smallest share"):
        zg.sparsify(mlp(), torch.randn(2, 6), exclude=[wide], objective=zg.Target(macs=0.1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zg.Target(params=0.0), "got 0.0"),
        (lambda: zg.Target(params=-0.1), "got -0.1"),
        (lambda: zg.Target(macs=1.1), "got 1.1"),
        (lambda: zg.Target(params=math.nan), "got nan"),
        (lambda: zg.Target(macs=math.inf), "got inf"),
        (lambda: zg.Target(params="half"), "got 'half'"),  # type: ignore[arg-type]
        (lambda: zg.Target(params=True), "got True"),
        (lambda: zg.Target(), "params=None, macs=None"),
        (lambda: zg.Target(params=0.1, macs=0.2), "params=0.1, macs=0.2"),
        (lambda: zg.Target(params=0.1, steps=0), "got 0"),
        (lambda: zg.Target(params=0.1, steps=1.5), "got 1.5"),  # type: ignore[arg-type]
    ],
)
def test_bad_values_are_named(make, message: str) -> None:
    with pytest.raises(zg.ZerogateError, match=re.escape(message)):
        make()


RECIPE = ["experiment=digits", "model.width=6", "objective=target", "objective.params=0.4", "trainer.max_epochs=6",
          "data.limit=300", "trainer.progress=none"]  # fmt: skip


def test_by_command_stopped_and_resumed(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert main(["train", *RECIPE, f"output={tmp_path}/whole"]) == 0
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert whole["lambda"] is None
    assert whole["target"]["over"] == "params" and whole["target"]["share"] == 0.4
    assert 0.3 < whole["target"]["reached"] == whole["density_params"] <= 0.4
    assert whole["target"]["projected"] >= 0
    assert whole["best"]["params"] <= 0.4 * whole["dense_params"]  # best among those that fit
    step, done = Classifier.training_step, []

    def interrupted(self, batch, batch_idx):
        done.append(batch_idx)
        if len(done) in (3, 21):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", interrupted)
    assert main(["train", *RECIPE, f"output={tmp_path}/run"]) == 143
    assert main(["train", f"resume={tmp_path}/run"]) == 143
    assert main(["train", f"resume={tmp_path}/run"]) == 0
    resumed = json.loads((tmp_path / "run" / "result.json").read_text())
    for name in ("metrics.csv", "compact.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert {k: v for k, v in whole.items() if k not in ("command", "images_per_second")} == {
        k: v for k, v in resumed.items() if k not in ("command", "images_per_second")
    }
    capsys.readouterr()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["objective=target"], "params=None, macs=None"),
        (["objective=target", "objective.params=2"], "got 2"),
        (["objective=target", "objective.macs=1e-6"], "smallest share"),
        (["objective=target", "objective.params=0.5", "objective.macs=0.5"], "give one"),
        (["experiment=digits", "objective=target", "objective.params=0.5", "objective.weight=3"], "has no weight"),
    ],
)
def test_bad_configurations_are_refused(overrides: list[str], message: str, tmp_path) -> None:
    with pytest.raises(zg.ZerogateError, match=re.escape(message)):
        train(compose([*overrides, f"output={tmp_path}/run"]))


def test_the_pace_is_that_of_the_run() -> None:
    assert pytest.approx(2 / 3) == REACH
    grown = {}
    for steps in (30, 3000):
        target = zg.Target(params=0.1, steps=steps)
        for _ in range(steps // 3):
            target.advance(torch.tensor(1.0), torch.tensor(1.0))
        grown[steps] = math.log1p(target.multiplier.item())
    assert grown[30] == pytest.approx(grown[3000], rel=0.12)
