"""What a recording holds after a run, piece by piece."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support import Lambda
from zerogate.groups.labels import Labels
from zerogate.groups.recording.memory import Memory
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.record_run import watch


def recorded(forward: Callable[[Lambda, Tensor], Tensor], *shape: int, **modules: nn.Module) -> Recording:
    return watch(Lambda(forward, **modules), torch.randn(shape or (2, 3)))


def test_a_layer_consumes_labels_and_makes_new_ones() -> None:
    recording = recorded(lambda m, x: m.b(m.a(x)), a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    axes = recording.axes
    assert axes["a.weight", 0].tolist() == axes["a.bias", 0].tolist() == axes["b.weight", 1].tolist() == [1, 2, 3, 4]
    assert axes["b.weight", 0].tolist() == [5, 6]
    assert [(c.layer, c.consumes, c.produces, c.macs) for c in recording.calls] == [
        ("a", ("a.weight", 1), ("a.weight", 0), 1),
        ("b", ("b.weight", 1), ("b.weight", 0), 1),
    ]
    why, reasons = recording.labels.reasons()
    assert reasons == ["an output of the network"]
    assert why.tolist() == [-1] * 5 + [0] * 2


def test_a_parameter_that_was_moved_before_use_is_sliced_along_its_own_dimension() -> None:
    recording = recorded(lambda m, x: x @ m.a.weight.t() * m.a.bias[None], a=nn.Linear(3, 4))
    assert recording.axes["a.weight", 0].tolist() == recording.axes["a.bias", 0].tolist() == [1, 2, 3, 4]
    (moved,) = [m for m in recording.moved_parameters if recording.steps[m.step].name == "t"]
    shape, labels = recording.steps[moved.step].outs[moved.result]
    assert shape == (3, 4) and isinstance(labels, list)
    assert labels[0][0].tolist() == [1, 2, 3, 4]


def test_steps_hold_no_tensors_and_leave_out_what_settles_layout() -> None:
    recording = recorded(lambda m, x: m.a(x).contiguous().view(2, 2, 2), a=nn.Linear(3, 4))
    assert [s.name for s in recording.steps] == ["linear", "view"]
    linear, view = recording.steps
    assert linear.args == (None, None, None)
    assert view.bound()["size"] == [2, 2, 2]
    assert view.scalars == [2, 2, 2]


def test_an_op_without_a_rule_freezes_what_enters_with_its_line() -> None:
    recording = recorded(lambda m, x: torch.linalg.solve(m.a(x), m.a(x)), 4, 3, a=nn.Linear(3, 4))
    reason = recording.labels.reasons()[1][0]
    assert reason.startswith("linalg_solve has no rule (test_recorder.py:")


def test_a_norm_that_does_not_run_over_channels_each_time_freezes_them() -> None:
    recording = recorded(
        lambda m, x: m.norm(m.a(x)) + m.norm(torch.arange(8.0).view(2, 4)), a=nn.Linear(3, 4), norm=nn.LayerNorm(4)
    )
    assert "norm is used with and without removable channels" in recording.labels.reasons()[1]


def test_a_deferred_freeze_holds_only_where_the_result_is_used() -> None:
    def unused(m: Lambda, x: Tensor) -> Tensor:
        x = m.a(x)
        x.mean()
        return m.b(x)

    modules = {"a": nn.Linear(3, 4), "b": nn.Linear(4, 2)}
    assert recorded(unused, **modules).labels.reasons()[1] == ["an output of the network"]
    used = recorded(lambda m, x: m.b(m.a(x) + m.a(x).mean()), **modules)
    assert used.labels.reasons()[1][0].startswith("mean over channels (test_recorder.py:")


def test_channels_that_meet_the_same_constant_are_tied() -> None:
    def forward(m: Lambda, x: Tensor) -> Tensor:
        ones = torch.ones(4)
        return m.c(m.a(x) * ones) + m.d(m.b(x) * ones)

    recording = recorded(forward, a=nn.Linear(3, 4), b=nn.Linear(3, 4), c=nn.Linear(4, 2), d=nn.Linear(4, 2))
    root = recording.labels.roots()
    assert torch.equal(root[recording.axes["a.weight", 0]], root[recording.axes["b.weight", 0]])


def test_an_attribute_that_states_a_size_follows() -> None:
    recording = recorded(
        lambda m, x: m.norm(m.a(x)), 2, 3, 5, 5, a=nn.Conv2d(3, 4, 3), norm=nn.GroupNorm(2, 4, affine=False)
    )
    followed = {(s.attribute, s.entry): s.rows.shape for s in recording.size_attributes.values()}
    assert followed == {("num_channels", ()): (4, 1), ("num_groups", ()): (2, 1)}


def test_a_run_that_needs_values_is_repeated_with_data() -> None:
    def forward(m: Lambda, x: Tensor) -> Tensor:
        x = m.a(x)
        return m.b(F.relu(x) if x.sum().item() > 1e9 else x)

    recording = recorded(forward, a=nn.Linear(3, 4), b=nn.Linear(4, 2))
    assert not recording.meta and recording.twin is None
    assert [s.name for s in recording.steps if s.name in ("linear", "relu")] == ["linear", "linear"]


def test_memory_has_the_labels_that_were_written_into_it_at_their_offsets() -> None:
    labels = Labels()
    channels = labels.new(3)
    buffer = torch.zeros(2, 5, 4)
    memory = Memory(labels)
    memory.add(buffer)
    assert memory.labels_of(buffer) is None
    part = buffer[:, 1:4]
    assert memory.write(part, channels.view(1, 3, 1).expand(2, 3, 4))
    assert memory.is_written(buffer)
    whole = memory.labels_of(buffer)
    assert whole is not None and whole[0, :, 0].tolist() == [0, 1, 2, 3, 0]
    rest = memory.labels_of(buffer[1, 2:])
    assert rest is not None and rest[:, 0].tolist() == [2, 3, 0]


def test_memory_that_no_factory_made_is_not_followed() -> None:
    labels = Labels()
    x = torch.zeros(2, 3)
    assert not Memory(labels).write(x, labels.new(3).view(1, 3).expand(2, 3))
