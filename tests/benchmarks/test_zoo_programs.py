"""The program of the zoo: what it records, how it compares other tools, who counts MACs, and what it says of refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
import zoo
import zoo_jobs
import zoo_refusals
import zoo_rivals
from exactness import largest_difference, random_in_training, without_dropout
from witness import agreement, macs_by_op
from zoo_models import Entry
from zoo_models.entry import missing
from zoo_table import medians, rival_exact, rounded, same_macs, summarise, table, verdict

ROOT = Path(__file__).parents[2]


class Classifier(nn.Module):
    """A convolution, a residual one, a norm over channels, dropout, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.dropout = nn.LayerNorm(8), nn.Dropout(0.5)
        self.head, self.other = nn.Linear(8, 5), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = self.norm((x + self.inner(x).relu()).mean((2, 3)))
        return self.head(self.dropout(x)), self.other(x)


def _images(batch: int, variant: int) -> Tensor:
    return torch.randn(batch + variant, 3, 6, 6, generator=torch.Generator().manual_seed(variant))


ENTRY = Entry("own/classifier", Classifier, _images)


def _found(job: Any, *args: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    job(ENTRY, lambda **values: row.update(values), *args)
    return row


def test_a_network_is_measured_in_evaluation_and_in_training_mode() -> None:
    row = _found(zoo_jobs.measure)
    assert row["error"] <= 1e-10 and row["share"] == pytest.approx(1, abs=0.02)
    assert row["channels"] == row["channels_alone"] == 8 and row["heads"] == 0
    assert same_macs(row) and row["witness"]["macs"] == (3 * 8 + 8 * 8) * 9 * 36 + 8 * 7
    assert row["refused"] == {"an output of the network": 2}
    row |= _found(zoo_jobs.train)
    assert row["training_error"] <= 1e-10 and len(row["training_errors"]) == 4


def test_differences_are_relative_to_each_output() -> None:
    class Two(nn.Module):
        def __init__(self, error: float) -> None:
            super().__init__()
            self.error = error

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return 1000 * x, x + self.error

    x = torch.ones(2, 3, dtype=torch.float64)
    assert largest_difference(Two(0.0), Two(1e-3), x) == pytest.approx(1e-3)
    assert largest_difference(Two(0.0), Two(math.nan), x) is math.nan


def test_what_cannot_be_compared_in_training_mode_is_said() -> None:
    model = Classifier()
    assert random_in_training(model, _images(2, 0)) == "draws random numbers in training mode"
    without_dropout(model)
    assert random_in_training(model, _images(2, 0)) == ""
    assert "does not run in training mode: RuntimeError" in random_in_training(model, torch.zeros(2, 4, 6, 6))


def test_the_witness_says_which_ops_it_saw_where_it_counts_otherwise() -> None:
    model = Classifier()
    counted = macs_by_op(model, _images(2, 0))
    assert counted == {"convolution": (3 * 8 + 8 * 8) * 9 * 36, "addmm": 8 * 7}
    assert agreement(sum(map(int, counted.values())), counted)["equal"]
    assert agreement(1, counted) == {"macs": 1, "equal": False, "ops": counted}
    assert agreement(30, {"mm": 10.0, "bmm": 20.0})["equal"] and agreement(10, {"mm": 10.0, "bmm": 20.0})["equal"]


class Tool:
    """Removes channels 1 and 4 of everything but the inputs of a layer, of which it removes `read`."""

    def __init__(self, read: list[int]) -> None:
        self.kept, self.read = [0, 2, 3, 5, 6, 7], [i for i in range(8) if i not in read]

    def analyse(self, model: nn.Module, inputs: object) -> None: ...

    def prune(self, model: nn.Module, inputs: object) -> Iterator[None]:
        yield
        assert isinstance(model, Classifier)
        for module in (model.stem, model.inner, model.norm):
            for p in (module.weight, module.bias):
                assert p is not None
                p.data = p.data[self.kept]
        for layer in (model.inner, model.head, model.other):
            layer.weight.data = layer.weight.data[:, self.read]
        model.norm.normalized_shape = (6,)


@pytest.mark.parametrize(("read", "exact"), [([1, 4], True), ([1, 5], False)])
def test_another_tool_is_exact_where_it_removes_what_belongs_together(read: list[int], exact: bool) -> None:
    model, row = Classifier().double(), {}
    zoo_rivals.try_pruning(
        Tool(read), model, [_images(2, v).double() for v in (0, 1)], lambda **values: row.update(values)
    )
    assert row["left"] < 1 and row["share"] > 0.9
    assert (row["error"] <= 1e-12) is exact and (exact or row["error"] > 1e-3)


def test_layers_that_make_outputs_are_found() -> None:
    model = Classifier()
    assert {*zoo_rivals.output_layers(model, _images(2, 0))} == {model.head, model.other}


@pytest.mark.skipif(bool(missing("torch_pruning")), reason="torch_pruning not installed; make .venv/.zoo installs it")
def test_torch_pruning_prunes_a_plain_network_exactly() -> None:
    row = _found(zoo_jobs.rival, "tp", 1)
    assert row["tp_error"] <= 1e-10 and row["tp_weight_share"] == 1 and rival_exact(row, "tp") == "exact"


@pytest.mark.skipif(bool(missing("torch_kirigami")), reason="torch_kirigami not installed; make .venv/.zoo installs it")
def test_torch_kirigami_prunes_a_plain_network_exactly() -> None:
    row = _found(zoo_jobs.rival, "kirigami", 1)
    assert row["kirigami_error"] <= 1e-10 and row["kirigami_seconds"] and rival_exact(row, "kirigami") == "exact"


# what is recorded


def test_a_run_that_stopped_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoo, "RESULTS", tmp_path)
    monkeypatch.setattr(zoo.Record, "path", tmp_path / "zoo.json")
    first = next(iter(zoo.ZOO))
    zoo.Record(resume=True, write=True).add(
        first, "measure", {"params": 10, "error": 1e-12, "refused": {"softmax over channels": 2}}
    )
    again = zoo.Record(resume=True, write=True)
    assert again.has(first, "measure") and not again.has(first, "race")
    again.add(first, "race", {"seconds": 0.5, "tp_seconds": 1.0})
    record = json.loads((tmp_path / "zoo.json").read_text())
    assert [row["seconds"] for row in record["rows"]] == [0.5] and record["rows"][0]["error"] == 1e-12
    assert record["rows"][0]["done"].keys() == {"measure", "race"} and record["summary"]["exact"] == 1
    refusals = json.loads((tmp_path / "refusals.json").read_text())
    assert refusals["kinds"][0]["reason"] == "OP over channels" and refusals["kinds"][0]["layers"] == 2
    assert not zoo.Record(resume=False, write=False).has(first, "measure")


def test_what_failed_is_a_row_too() -> None:
    rows = [
        {"name": "a", "source": "own", "failure": "WatchError: no", "done": {"measure": "1"}},
        {
            "name": "b",
            "source": "own",
            "measure_ended": "not done in 60 s",
            "tp_failure": "KeyError: x",
            "done": {"tp": "1"},
        },
        {
            "name": "c",
            "source": "own",
            "params": 5,
            "error": rounded(math.inf),
            "tp_error": rounded(math.nan),
            "done": {},
        },
    ]
    assert "WatchError: no" in table(rows) and "| fails |" in table(rows)
    assert verdict("measure", rows[1]) == "not done in 60 s" and verdict("tp", rows[1]) == "KeyError: x"
    assert summarise(rows)["exact"] == 0 and summarise([])["models"] == 0
    assert medians({"seconds": [3.0, 1.0, 2.0]}) == {"seconds": 2.0, "seconds_n": 3}


# refusals


def test_every_reason_that_was_recorded_is_explained() -> None:
    path = ROOT / "benchmarks/results/refusals.json"
    refusals = json.loads(path.read_text())
    known = {kind.title for kind in zoo_refusals.KINDS}
    assert [kind["reason"] for kind in refusals["kinds"] if kind["reason"] not in known] == []
    counts = [kind["networks"] for kind in refusals["kinds"]]
    assert counts == sorted(counts, reverse=True)
    assert (ROOT / "docs/refusals.md").read_text() == zoo_refusals.page(refusals), (
        "run python benchmarks/zoo.py --refusals"
    )


def test_a_reason_of_the_report_is_of_a_kind() -> None:
    class Soft(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).softmax(-1))

    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), Soft())
    reasons = [row.reason for row in zg.sparsify(model, torch.randn(2, 3)).report().rows if row.reason]
    kinds = [zoo_refusals.kind_of(reason) for reason in reasons]
    assert [kind.title for kind in kinds if kind] == ["OP over channels", "an output of the network"]
    assert zoo_refusals.kind_of("something new") is None


def test_what_is_refused_whole_counts_among_the_refusals() -> None:
    failure = (
        "WatchError: Net has no unit that could be removed: a; softmax over channels in x. Channels must lie between"
    )
    row = {"source": "own", "name": "net", "failure": failure}
    assert zoo_refusals.reasons_of(row) == {"a": 1, "softmax over channels in x": 1}
    assert zoo_refusals.sorted_refusals([row])["refused_whole"] == ["own/net"]
