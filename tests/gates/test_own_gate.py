"""A gate that somebody writes from the formulas alone works everywhere; also the one of docs/add_a_gate.md."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from zerogate.cli.main import main
from zerogate.gates import fused

GUIDE = Path(__file__).parents[2] / "docs" / "add_a_gate.md"


class StraightThrough(zg.Gate):
    """Hard masks with the gradient of a sigmoid (Bengio, Léonard and Courville 2013, arXiv 1308.3432): z = 1[s > 0] in
    training, too. It takes no arguments."""

    def initial_logits(self, units: int) -> Tensor:
        return torch.full((units,), 0.5) + 0.1 * torch.randn(units)

    def sample(self, logits: Tensor, examples: int | None = None) -> Tensor:
        soft = torch.sigmoid(logits)
        z = soft + (self.mask(logits) - soft).detach()
        return z if examples is None else z.expand(examples, -1)

    def mask(self, logits: Tensor) -> Tensor:
        return (logits > 0).to(logits.dtype)

    def open_probability(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)


def documented_source() -> str:
    """The part of the guide's block that it tells the reader to save."""
    (block,) = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    source: str = block.partition("# In a loop of your own:")[0]
    return source


def gaussian_gate() -> zg.Gate:
    names: dict[str, Any] = {}
    exec(compile(documented_source(), str(GUIDE), "exec"), names)
    gate: zg.Gate = names["GaussianGate"]()
    return gate


GATES = {"straight-through": StraightThrough, "Gaussian": gaussian_gate}
OPTIONS: dict[str, dict[str, Any]] = {
    "channels": {},
    "weights": {"unit": "weight"},
    "channels per example": {"per_example": True},
}
every_gate = pytest.mark.parametrize("make", GATES.values(), ids=GATES)
every_unit = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def two_classes() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    y = torch.arange(64) % 2
    return torch.randn(64, 1, 8, 8) + y.view(-1, 1, 1, 1), y


def trained(gate: zg.Gate, objective: nn.Module, options: dict[str, Any], forward: Any = None) -> zg.Sparsified:
    x, y = two_classes()
    model = zg.models.convnet(num_classes=2, width=4)
    sparse = zg.sparsify(model, x[:2], gate=gate, objective=objective, **options)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(sparse.param_groups(lr=3e-3, gate_lr=3e-2))
    run = model if forward is None else forward(model)
    for _ in range(60):
        optimizer.zero_grad()
        (F.cross_entropy(run(x), y) + sparse.loss()).backward()
        optimizer.step()
        sparse.step()
    sparse.project()
    return sparse


@every_unit
@every_gate
def test_it_trains_to_a_target_and_compacts(make: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sparse = trained(make(), zg.Target(params=0.6, steps=60), options)
    left = sparse.cost().params / sparse.dense_cost.params
    assert left <= 0.6
    assert left > 0.4 or options == {}  # channels are few here
    small = sparse.compact()
    x, y = two_classes()
    sparse.model.eval()
    torch.testing.assert_close(small.eval()(x), sparse.model(x), rtol=1e-4, atol=1e-4)
    assert (small(x).argmax(1) == y).float().mean() > 0.6  # 0.5 by chance
    if options.get("unit") != "weight":
        assert sum(p.numel() for p in small.parameters()) == sparse.cost().params


@every_unit
@every_gate
def test_a_penalty_closes_its_gates(make: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    sparse = trained(make(), zg.Penalty(20.0), options)
    assert sparse.cost().params < 0.5 * sparse.dense_cost.params


@pytest.mark.filterwarnings("ignore")  # of the compiler's own
@every_gate
def test_it_is_compiled_without_a_graph_break(make: Any) -> None:
    torch._dynamo.reset()
    torch.manual_seed(0)
    sparse = trained(
        make(), zg.Penalty(20.0), {}, lambda model: torch.compile(model, fullgraph=True, backend="aot_eager")
    )
    assert sparse.cost().params < sparse.dense_cost.params


@every_gate
def test_no_kernel_runs_for_it(make: Any) -> None:
    gate = make()
    logits = gate.initial_logits(6).requires_grad_()
    torch.manual_seed(4)
    drawn = fused.draw(gate, logits, economical=True)
    torch.manual_seed(4)
    torch.testing.assert_close(drawn, fused.DrawnGates(gate.sample(logits)))
    torch.testing.assert_close(fused.movable_probability(gate, logits), gate.open_probability(logits))


def test_the_documented_gate_follows_its_formulas() -> None:
    gate, mu = gaussian_gate(), torch.tensor([-0.7, 0.0, 0.2, 1.4])
    z = gate.sample(mu, 200_000)
    share = (z > 0).float().mean(0)
    torch.testing.assert_close(share, gate.open_probability(mu), rtol=0, atol=5 * 0.5 / 200_000**0.5)
    torch.testing.assert_close(gate.open_probability(mu), torch.distributions.Normal(0, 0.5).cdf(mu))
    torch.testing.assert_close(gate.mask(mu), torch.tensor([0.0, 0.0, 0.2, 1.0]))


def test_the_command_trains_the_documented_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_gates.py").write_text(documented_source())
    quick = ["experiment=digits", "model.width=4", "data.limit=128", "trainer.max_epochs=1", "trainer.progress=none"]
    assert main(["train", *quick, "gate._target_=my_gates.GaussianGate", "+gate.noise=0.3", "output=run"]) == 0
    assert json.loads(Path("run/result.json").read_text())["dense_params"] == 870
    stored = Path("run/config.yaml").read_text()
    assert "my_gates.GaussianGate" in stored
    assert "noise: 0.3" in stored
    for command in ("eval", "compact"):  # each in a process of its own, which knows the gate from the run alone
        monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
        monkeypatch.delitem(sys.modules, "my_gates")
        assert main([command, "run"]) == 0


def test_the_command_trains_a_gate_without_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys of the experiment's own gate are not for it."""
    monkeypatch.chdir(tmp_path)
    source = Path(__file__).read_text()
    (gate,) = re.findall(r"\nclass StraightThrough.*?\n\n\n", source, re.DOTALL)
    Path("gates_without_arguments.py").write_text(
        f"import torch\nfrom torch import Tensor\nimport zerogate as zg\n{gate}"
    )
    quick = ["experiment=digits", "model.width=4", "data.limit=128", "trainer.max_epochs=1", "trainer.progress=none"]
    assert main(["train", *quick, "gate._target_=gates_without_arguments.StraightThrough", "output=run"]) == 0
