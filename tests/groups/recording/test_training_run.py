"""What is recorded of a run in training mode, and when it is left out."""

from __future__ import annotations

import random
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import Lambda, Residual
from training_mode import AuxiliaryHead, DeepSupervision, Projected, TwoAuxiliaryHeads
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.record_run import watch

X = (2, 2, 6, 6)


def groups(sparse: zg.Sparsified) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    return {g.name: (g.producers, g.consumers) for g in sparse.groups}


def watched(model: nn.Module, *shape: int) -> Recording:
    return watch(model, torch.randn(shape or X))


def test_what_auxiliary_heads_read_and_make() -> None:
    sparse = zg.sparsify(TwoAuxiliaryHeads(), torch.randn(X))
    assert groups(sparse) == {
        "stem": (("stem",), ("body", "aux1.conv")),
        "body": (("body",), ("head", "aux2.conv")),
        "aux1.conv": (("aux1.conv",), ("aux1.hidden",)),
        "aux1.hidden": (("aux1.hidden",), ("aux1.out",)),
        "aux2.conv": (("aux2.conv",), ("aux2.hidden",)),
        "aux2.hidden": (("aux2.hidden",), ("aux2.out",)),
    }
    rows = {row.layer: row for row in sparse.report().rows}
    assert {name for name, row in rows.items() if row.training_only} == {
        f"aux{i}.{name}" for i in (1, 2) for name in ("conv", "hidden", "out")
    }
    assert rows["aux1.out"].reason == "an output of the network in training mode"
    assert rows["head"].reason == "an output of the network"
    assert str(sparse.report()).count("runs in training mode only") == 6


def test_what_training_ties_is_tied() -> None:
    sparse = zg.sparsify(DeepSupervision(), torch.randn(X))
    assert [(g.units, g.producers) for g in sparse.groups] == [(6, ("stages.0", "stages.1", "stages.2"))]


def test_outputs_of_training_stay() -> None:
    free = groups(zg.sparsify(Projected(), torch.randn(X)))
    assert set(free) == {"stem", "body", "project.0"} and free["body"] == (("body",), ("head", "project.0"))
    sparse = zg.sparsify(Projected(features=True), torch.randn(X))
    assert set(groups(sparse)) == {"stem", "project.0"}
    reasons = {row.layer: row.reason for row in sparse.report().rows}
    assert reasons["body"] == "an output of the network in training mode"


def test_calls_of_layers_are_counted_once() -> None:
    model = TwoAuxiliaryHeads()
    sparse = zg.sparsify(model, torch.randn(X))
    evaluated = [c for c in sparse.structure.calls if not c.training]
    assert [c.layer for c in evaluated] == ["stem", "body", "head"]
    assert sparse.dense_cost.macs == 2 * 8 * 9 * 36 + 8 * 7 * 9 * 36 + 7 * 3
    assert sparse.dense_cost.params == sum(p.numel() for p in model.parameters())


def same_twice(m: Lambda, x: Tensor) -> Tensor:
    x = F.dropout(F.relu(m.a(x)), 0.5, m.training)
    return m.b(m.drop(x) * (2 if m.training else 1 + 1))


def test_a_run_that_does_the_same_is_not_recorded() -> None:
    modules = {"a": nn.Linear(2, 4), "b": nn.Linear(4, 3), "drop": nn.Dropout()}
    recording = watched(Lambda(same_twice, **modules), 2, 2)
    assert [run.training for run in recording.runs] == [False]
    assert not recording.unseen_training
    assert len(watched(Residual(), 2, 2, 5, 5).runs) == 1


class DropPath(nn.Module):
    """Leaves out whole examples."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = x.new_empty((len(x), *[1] * (x.ndim - 1))).bernoulli_(0.8)
        return x * kept / 0.8


def test_what_does_nothing_in_evaluation_stays_in_it() -> None:
    model = Lambda(lambda m, x: m.b(m.path(m.a(x)) + x), a=nn.Linear(4, 4), b=nn.Linear(4, 2), path=DropPath())
    recording = watched(model, 2, 4)
    assert len(recording.runs) == 1 and recording.idle == {"path"}


DIFFERENT = {
    "one op more": lambda m, x: m.b(m.a(x) * 2 if m.training else m.a(x)),
    "another number": lambda m, x: m.b(m.a(x) * (2 if m.training else 3)),
    "another layer": lambda m, x: m.b((m.c if m.training else m.a)(x)),
    "another weight": lambda m, x: m.b(F.linear(x, m.c.weight if m.training else m.a.weight)),
    "one output more": lambda m, x: (m.b(x), x) if m.training else m.b(x),
    "one op less": lambda m, x: m.b(m.a(x)) if m.training else m.b(m.a(x)).relu(),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_counts_as_different(name: str) -> None:
    a, b, c = (nn.Linear(4, 4, bias=False) for _ in range(3))
    recording = watched(Lambda(DIFFERENT[name], a=a, b=b, c=c), 2, 4)
    assert [run.training for run in recording.runs] == [False, True]
    assert recording.runs[1].start == recording.runs[0].stop and recording.runs[1].stop == len(recording.steps)


class NeedsLabels(TwoAuxiliaryHeads):
    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        if self.training and labels is None:
            raise ValueError("labels are missing in training mode")
        return super().forward(x)


def test_a_model_that_fails_in_training_mode_keeps_the_record_of_evaluation() -> None:
    sparse = zg.sparsify(NeedsLabels(), torch.randn(X))
    assert set(groups(sparse)) == {"stem", "body"}
    assert {row.layer: row.reason for row in sparse.report().rows}["aux1.conv"] == (
        "not run on the example inputs in evaluation mode, and in training mode it fails on the example inputs "
        "(ValueError: labels are missing in training mode)"
    )


def test_labels_among_the_example_inputs() -> None:
    sparse = zg.sparsify(NeedsLabels(), {"x": torch.randn(X), "labels": torch.tensor([0, 1])})
    assert "aux1.conv" in groups(sparse)


def test_one_example_is_enough() -> None:
    assert "project.0" in groups(zg.sparsify(Projected(), torch.randn(1, *X[1:])))


class Skips(nn.Module):
    """Leaves out layers at random, by Python's random numbers or by torch's."""

    def __init__(self, by_torch: bool = False) -> None:
        super().__init__()
        self.layers, self.by_torch = nn.ModuleList(nn.Linear(4, 4) for _ in range(8)), by_torch
        self.aux, self.head = AuxiliaryHead(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        for layer in self.layers:
            draw = torch.rand(()) if self.by_torch else random.random()
            if not (self.training and draw < 0.5):
                x = F.relu(layer(x))
        aux = self.aux(x[..., None, None]) if self.training else None
        return self.head(x) if aux is None else (self.head(x), aux)


def test_draws_of_random_numbers_are_the_same_in_each_run() -> None:
    random.seed(5)
    state = random.getstate()
    sparse = zg.sparsify(Skips(), torch.randn(3, 4))
    assert "aux.conv" in groups(sparse)
    assert random.getstate() == state


class OtherEachTime(nn.Module):
    calls = 0

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            OtherEachTime.calls += 1
            for _ in range(OtherEachTime.calls):
                x = x * 2
        return self.b(x)


def test_a_model_that_does_other_things_each_time_keeps_the_record_of_evaluation() -> None:
    recording = watched(OtherEachTime(), 2, 4)
    assert len(recording.runs) == 1 and recording.unseen_training == "in training mode it does other things each time"
    assert len(recording.steps) == recording.runs[0].stop
    assert set(groups(zg.sparsify(OtherEachTime(), torch.randn(2, 4)))) == {"a"}


def test_a_run_with_data_is_followed_by_one_with_data() -> None:
    def forward(m: Lambda, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = F.relu(m.a(x)) if x.sum().item() < 1e9 else m.a(x)
        return (m.b(x), m.c(x)) if m.training else m.b(x)

    model = Lambda(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2), c=nn.Linear(4, 2))
    assert not watched(model, 2, 3).meta
    assert groups(zg.sparsify(model, torch.randn(2, 3))) == {"a": (("a",), ("b", "c"))}


def test_a_width_that_training_writes_down_stays() -> None:
    def forward(m: Lambda, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.b(x.reshape(-1, 2, 4).flatten(1) if m.training else x)

    sparse = zg.sparsify(
        Lambda(forward, a=nn.Linear(3, 8), b=nn.Linear(8, 6), c=nn.Linear(6, 2)), torch.randn(2, 3), gate_inputs=True
    )
    assert "a" not in groups(sparse)


class Counts(nn.Module):
    """Counts its steps in training mode, and warns there."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 2)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(5))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            warnings.warn("this is training", stacklevel=2)
            self.steps += 1
            self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return self.b(x - self.mean)


def test_watching_leaves_no_trace() -> None:
    model = Counts().eval()
    torch.manual_seed(3)
    state, drawn = {name: x.clone() for name, x in model.state_dict().items()}, torch.get_rng_state()
    sparse = zg.sparsify(model, torch.randn(2, 4))
    torch.manual_seed(3)
    assert torch.equal(torch.get_rng_state(), drawn) and not model.training
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert groups(sparse) == {"a": (("a",), ("b",))}


def test_inputs_are_the_same_in_both_modes() -> None:
    def forward(m: Lambda, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return (m.a(x), m.b(x)) if m.training else m.a(x)

    model = Lambda(forward, a=nn.Linear(5, 2), b=nn.Linear(5, 2))
    sparse = zg.sparsify(model, torch.randn(3, 5), gate_inputs=True)
    assert [(g.units, g.consumers) for g in sparse.groups] == [(5, ("a", "b"))]


class AuxiliaryAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.attention, self.aux = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.embed(x)
        y = self.head(x)
        return (y, self.aux(self.attention(x, x, x, need_weights=False)[0])) if self.training else y


def test_attention_in_training_mode_only() -> None:
    sparse = zg.sparsify(AuxiliaryAttention(), torch.randn(2, 4, 3), unit={"channel", "head"})
    kinds = {g.name: (g.kind, g.units) for g in sparse.groups}
    assert ("head", 2) in kinds.values() and ("channel", 8) in kinds.values()


def test_a_graph_is_that_of_evaluation() -> None:
    sparse = zg.sparsify(TwoAuxiliaryHeads().eval(), torch.randn(X), keep_class=False)
    assert set(groups(sparse)) == {"stem", "body"}


def test_layers_left_out_by_draws_of_torch() -> None:
    sparse = zg.sparsify(Skips(by_torch=True), torch.randn(3, 4))
    assert "aux.conv" in groups(sparse) and not sparse.structure.unseen_training
