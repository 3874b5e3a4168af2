"""Units, groups and refusals, read off recordings that are made by hand."""

from __future__ import annotations

import pytest
import torch

from hand_made import Chain, along, call
from zerogate.groups.recording.record import Recording, SliceConstraint
from zerogate.groups.units import UnitFilter, find_units, units_of
from zerogate.structure import Structure


def groups(structure: Structure) -> dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]]:
    return {g.name: (g.units, g.producers, g.consumers) for g in structure.groups}


def test_a_layer_s_channels_are_a_group_with_whoever_makes_and_reads_them() -> None:
    chain = Chain(4, 3, 2)
    structure = find_units(chain.recording, UnitFilter())
    assert groups(structure) == {"layer0": (4, ("layer0",), ("layer1",)), "layer1": (3, ("layer1",), ("layer2",))}
    assert structure.axes[chain.axis(0, 0)].tolist() == structure.axes[chain.axis(1, 1)].tolist() == [0, 1, 2, 3]
    assert structure.axes[chain.axis(1, 0)].tolist() == [4, 5, 6]
    assert structure.refused == {chain.axis(2, 0): "an output of the network"}
    assert structure.unit_of[chain.made[1]].tolist() == [4, 5, 6] and structure.unit_of[0] == -1
    assert structure.calls == tuple(chain.recording.calls)


def test_tied_labels_are_one_unit() -> None:
    chain = Chain(4, 4, 2)
    chain.recording.labels.unite(chain.made[0], chain.made[1].flip(0))
    structure = find_units(chain.recording, UnitFilter())
    assert groups(structure) == {"layer0": (4, ("layer0", "layer1"), ("layer1", "layer2"))}
    assert structure.axes[chain.axis(0, 0)].tolist() == [0, 1, 2, 3]
    assert structure.axes[chain.axis(1, 0)].tolist() == [3, 2, 1, 0]


def test_channels_on_an_axis_more_often_are_a_group_of_their_own() -> None:
    recording = Recording()
    labels = recording.labels.new(4)
    recording.axes["a.weight", 0] = labels
    recording.axes["b.weight", 1] = torch.cat([labels, labels[:2]])
    recording.calls += [call("a", None, 0), call("b", 1, None)]
    structure = find_units(recording, UnitFilter())
    assert groups(structure) == {"a": (2, ("a",), ("b",)), "a#2": (2, ("a",), ("b",))}
    assert structure.axes["b.weight", 1].tolist() == [0, 1, 2, 3, 0, 1]


@pytest.mark.parametrize(
    ("allowed", "names", "refused"),
    [
        (UnitFilter(exclude={"layer0"}), ["layer1"], {("layer0.weight", 0): "layer0 is excluded"}),
        (UnitFilter(exclude={"layer2"}), ["layer0"], {("layer1.weight", 0): "layer2 is excluded"}),
        (UnitFilter(include={"layer1"}), ["layer1"], {("layer0.weight", 0): "not among the included layers"}),
        (
            UnitFilter(kinds={"head"}),
            [],
            {("layer0.weight", 0): 'its units are channels, which unit="channel" gates'},
        ),
    ],
)
def test_what_the_user_does_not_let_go(
    allowed: UnitFilter, names: list[str], refused: dict[tuple[str, int], str]
) -> None:
    structure = find_units(Chain(4, 3, 2).recording, allowed)
    assert [g.name for g in structure.groups] == names
    assert refused.items() <= structure.refused.items()


def test_heads_are_units_of_their_own_kind() -> None:
    chain = Chain(6, 3, 2)
    chain.recording.labels.unite(chain.made[0][2:4], chain.made[0][:2])
    chain.recording.head_labels.append(chain.made[0][:2])
    structure = find_units(chain.recording, UnitFilter())
    assert [(g.name, g.units, g.kind) for g in structure.groups] == [
        ("layer0", 2, "head"),
        ("layer0#2", 2, "channel"),
        ("layer1", 3, "channel"),
    ]
    only = find_units(chain.recording, UnitFilter(kinds={"channel"}))
    assert [(g.name, g.units) for g in only.groups] == [("layer0", 2), ("layer1", 3)]
    assert only.refused[chain.axis(0, 0)] == 'its units are heads, which unit="head" gates'


def test_channels_that_nobody_consumes_stay() -> None:
    chain = Chain(4, 3, 2)
    spare = chain.recording.labels.new(5)
    chain.recording.axes["spare.weight", 0] = spare
    chain.recording.calls.append(call("spare", None, 0))
    structure = find_units(chain.recording, UnitFilter())
    assert structure.refused["spare.weight", 0] == "no layer consumes it"
    assert "spare" not in groups(structure)


def test_the_first_reason_is_the_one_reported() -> None:
    chain = Chain(4, 3, 2)
    chain.recording.labels.freeze(chain.made[0], "softmax over channels")
    chain.recording.labels.freeze(chain.made[0], "sort over channels")
    structure = find_units(chain.recording, UnitFilter(include=set()))
    assert structure.refused[chain.axis(0, 0)] == "softmax over channels"


def test_network_inputs_go_unless_they_are_tied_to_what_a_layer_makes() -> None:
    chain = Chain(4, 3, 2)
    inputs = chain.recording.inputs = chain.recording.labels.new(5)
    chain.recording.axes["layer0.weight", 1] = inputs
    chain.recording.calls[0] = call("layer0", 1, 0)
    structure = find_units(chain.recording, UnitFilter())
    assert next(g for g in structure.groups if g.name == "input").units == 5
    assert len(structure.inputs) == 5
    chain.recording.labels.unite(inputs[:3], chain.made[0][:3])
    structure = find_units(chain.recording, UnitFilter())
    assert len(structure.inputs) == 2  # those that are not tied
    assert groups(structure).keys() == {"input", "layer1"}


def test_a_tensor_that_is_read_in_an_unknown_way_stays_whole() -> None:
    chain = Chain(4, 3, 2)
    chain.recording.unfollowed["layer1.weight"] = "cumsum of a parameter"
    structure = find_units(chain.recording, UnitFilter())
    assert not structure.groups
    assert structure.refused[chain.axis(1, 1)] == "cumsum of a parameter"
    assert structure.reasons == {"layer1.weight": "cumsum of a parameter"}


def test_a_layer_that_runs_for_each_channel_counts_them() -> None:
    chain = Chain(4, 3, 2)
    chain.recording.repeated[len(chain.recording.calls)] = chain.made[0]
    chain.recording.calls.append(call("each", None, None, macs=40.0))
    structure = find_units(chain.recording, UnitFilter())
    assert structure.calls[-1].macs == 10.0
    assert structure.calls[-1].repeats in (chain.axis(0, 0), chain.axis(1, 1))


def test_reading_units_changes_nothing_and_finding_them_completes_the_labels() -> None:
    chain = Chain(4, 3, 2)
    changes = chain.recording.labels.changes
    first = units_of(chain.recording, UnitFilter(exclude={"layer0"}))
    assert chain.recording.labels.changes == changes
    assert [g.name for g in first.groups] == ["layer0", "layer1"]  # excluded modules are frozen before
    find_units(chain.recording, UnitFilter(exclude={"layer0"}))
    assert chain.recording.labels.changes > changes


def test_rows_of_a_parameter_that_hold_several_channels_are_tied() -> None:
    """Channels laid out as [3, 2] can only go by rows or by columns: by rows, where a whole dimension stays otherwise."""
    chain = Chain(6, 3, 2)
    chain.recording.slice_constraints.append(SliceConstraint(chain.made[0].view(3, 2), "folded"))
    structure = find_units(chain.recording, UnitFilter())
    assert groups(structure)["layer0"][0] == 3
    assert structure.axes[chain.axis(0, 0)].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_row_with_a_label_that_stays_is_frozen_with_its_reason() -> None:
    chain = Chain(8, 3, 2)
    box = torch.where(torch.arange(8) == 5, 0, chain.made[0])[:6].view(3, 2)
    chain.recording.slice_constraints.append(SliceConstraint(box, "folded"))
    structure = find_units(chain.recording, UnitFilter())
    sizes = {name: units for name, (units, _, _) in groups(structure).items()}
    assert sizes == {"layer0": 2, "layer0#2": 3, "layer1": 3}  # two rows, and what is not in the box
    assert structure.refused[chain.axis(0, 0)] == "folded"


def test_a_parameter_of_a_box_is_sliced_with_it() -> None:
    chain = Chain(4, 3, 2)
    labels = along(chain.made[0], (4, 5), 0).contiguous()
    chain.recording.slice_constraints.append(SliceConstraint(labels, "met", "scale", (0, 1)))
    structure = find_units(chain.recording, UnitFilter())
    assert structure.axes["scale", 0].tolist() == [0, 1, 2, 3]
