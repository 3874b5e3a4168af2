"""The sizes that ops are given, for every kind of op that takes one, and the labels that these count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hand_made import along, channels, step_of
from zerogate.groups.recording.record import Step
from zerogate.groups.trial.size_arguments import (
    SizeArgument,
    SizeArguments,
    input_sizes,
    output_sizes,
    size_arguments,
    slice_starts,
    varying_rows,
)

ATEN = torch.ops.aten
FLAT = channels(8)  # [2, 8]
IMAGE = channels(8, (2, -1, 4, 4))
GRID = torch.arange(1, 9).view(1, 2, 4).expand(2, 2, 4)
VECTOR = torch.arange(1, 9)


def columns(*rows: list[int]) -> list[list[int]]:
    return [list(row) for row in rows]


EACH = [[i] for i in range(1, 9)]
# op, arguments without tensors, labels that enter, labels of results, sizes: argument, entry, size, rows that it counts
CASES: dict[
    str, tuple[Any, tuple[Any, ...], list[Tensor], list[Tensor], list[tuple[str, int | None, int, list[Any]]]]
] = {
    "view": (ATEN.view.default, (None, [2, 8]), [FLAT], [FLAT], [("size", 1, 8, EACH)]),
    "reshape into a grid": (
        ATEN.reshape.default,
        (None, [2, 2, 4]),
        [FLAT],
        [GRID],
        [
            ("shape", 1, 2, columns([1, 2, 3, 4], [5, 6, 7, 8])),
            ("shape", 2, 4, columns([1, 5], [2, 6], [3, 7], [4, 8])),
        ],
    ),
    "a size that is left open": (ATEN.view.default, (None, [2, -1]), [FLAT], [FLAT], []),
    "expand": (ATEN.expand.default, (None, [3, 8]), [VECTOR], [channels(8, (3, -1))], [("size", 1, 8, EACH)]),
    "unflatten": (
        ATEN.unflatten.int,
        (None, 1, [2, 4]),
        [FLAT],
        [GRID],
        [
            ("sizes", 0, 2, columns([1, 2, 3, 4], [5, 6, 7, 8])),
            ("sizes", 1, 4, columns([1, 5], [2, 6], [3, 7], [4, 8])),
        ],
    ),
    "split into pieces of one size": (
        ATEN.split.Tensor,
        (None, 4, 1),
        [FLAT],
        [FLAT[:, :4], FLAT[:, 4:]],
        [("split_size", None, 4, EACH[:4])],
    ),
    "split with sizes": (
        ATEN.split_with_sizes.default,
        (None, [3, 5], 1),
        [FLAT],
        [FLAT[:, :3], FLAT[:, 3:]],
        [("split_sizes", 0, 3, EACH[:3]), ("split_sizes", 1, 5, EACH[3:])],
    ),
    "narrow": (
        ATEN.narrow.default,
        (None, 1, 2, 3),
        [FLAT],
        [FLAT[:, 2:5]],
        [("length", None, 3, EACH[2:5]), ("start", None, 2, EACH[:2])],
    ),
    "slice": (
        ATEN.slice.Tensor,
        (None, 1, 2, 6),
        [FLAT],
        [FLAT[:, 2:6]],
        [("start", None, 2, EACH[:2]), ("end", None, 6, EACH[:6])],
    ),
    "slice of what has no channels along it": (ATEN.slice.Tensor, (None, 0, 0, 1), [FLAT], [FLAT[:1]], []),
    "layer norm": (
        ATEN.layer_norm.default,
        (None, [8]),
        [FLAT],
        [FLAT],
        [("normalized_shape", 0, 8, EACH)],
    ),
    "convolution in groups": (
        ATEN.conv2d.default,
        (None, None, None, [1, 1], [0, 0], [1, 1], 4),
        [IMAGE],
        [IMAGE],
        [("groups", None, 4, columns([1, 2], [3, 4], [5, 6], [7, 8]))],
    ),
    "convolution in one group": (ATEN.conv2d.default, (None, None), [IMAGE], [IMAGE], []),
    "group norm": (
        ATEN.group_norm.default,
        (None, 2),
        [IMAGE],
        [IMAGE],
        [("num_groups", None, 2, columns([1, 2, 3, 4], [5, 6, 7, 8]))],
    ),
    "channel shuffle": (
        ATEN.channel_shuffle.default,
        (None, 2),
        [IMAGE],
        [IMAGE],
        [("groups", None, 2, columns([1, 2, 3, 4], [5, 6, 7, 8]))],
    ),
    "an op that takes none": (ATEN.relu.default, (None,), [FLAT], [FLAT], []),
}


def shown(sizes: list[SizeArgument]) -> list[tuple[str, int | None, int, list[Any]]]:
    return [(s.argument, s.entry, s.size, s.rows.tolist()) for s in sizes]


@pytest.mark.parametrize("name", CASES)
def test_sizes_of_each_kind_of_op(name: str) -> None:
    func, args, entering, results, expected = CASES[name]
    sizes = size_arguments(step_of(func, args, entering, results))
    assert shown(sizes) == expected
    assert all(s.size == len(s.rows) for s in sizes)


def test_sizes_of_results_and_operands() -> None:
    relu = step_of(ATEN.relu.default, (None,), [FLAT], [FLAT])
    assert shown(output_sizes(relu)) == [("result 0", -1, 8, EACH)]
    assert shown(input_sizes(relu)) == [("operand", 1, 8, EACH)]


def test_an_op_depends_on_its_input_s_sizes_if_it_slices_and_else_on_its_output_s() -> None:
    arguments = SizeArguments()
    slices = step_of(ATEN.split.Tensor, (None, 4, 1), [FLAT], [FLAT[:, :4], FLAT[:, 4:]])
    assert [s.argument for s in arguments.related_sizes(slices)] == ["split_size", "operand"]
    view = step_of(ATEN.view.default, (None, [2, 8]), [FLAT], [FLAT])
    assert [s.argument for s in arguments.related_sizes(view)] == ["size"]
    relu = step_of(ATEN.relu.default, (None,), [FLAT], [FLAT])
    assert [s.argument for s in arguments.related_sizes(relu)] == ["result 0"]


def test_where_a_slice_begins() -> None:
    def starts(step: Step) -> list[tuple[str, list[Any]]]:
        return [(argument, rows.tolist()) for argument, rows in slice_starts(step, step.bound())]

    assert starts(step_of(ATEN.slice.Tensor, (None, 1, 2, 6), [FLAT], [FLAT[:, 2:6]])) == [("start", EACH[:2])]
    assert starts(step_of(ATEN.select.int, (None, 1, 3), [FLAT], [FLAT[:, 3]])) == [("index", EACH[:3])]
    assert starts(step_of(ATEN.slice.Tensor, (None, 1, 0, 6), [FLAT], [FLAT[:, :6]])) == []
    assert starts(step_of(ATEN.slice.Tensor, (None, 1, 2, 6, 2), [FLAT], [FLAT[:, 2:6:2]])) == []


def test_sizes_are_read_again_once_the_results_have_other_labels() -> None:
    step = step_of(ATEN.view.default, (None, [2, 8]), [], [])
    step.outs.append(((2, 8), None))
    arguments = SizeArguments()
    assert arguments.of(step) == [] and arguments.of(step) is arguments.of(step)
    step.outs[0] = (2, 8), [FLAT]  # a parameter that turned out to be sliced
    assert shown(arguments.of(step)) == [("size", 1, 8, EACH)]


def test_rows_along_a_dimension() -> None:
    rows = varying_rows(GRID, 1)
    assert rows is not None and rows.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    rows = varying_rows(GRID, -1)
    assert rows is not None and rows.tolist() == [[1, 5], [2, 6], [3, 7], [4, 8]]
    assert varying_rows(GRID, 0) is None and varying_rows(None, 0) is None
    assert varying_rows(along(torch.tensor([7]), (1, 4), 0), 0) is not None  # one row is a row
