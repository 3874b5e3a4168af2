"""What is left of each label's places: formulas and counts against tensors that are really cut."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hand_made import along, channels, step_of
from zerogate.groups.trial.sizes import LabelVectors, Sizes, labels_among

VIEW = torch.ops.aten.view.default


def sizes_for(kept: list[int], labels: int, *results: Tensor) -> Sizes:
    """Sizes where of labels 0 … ``labels`` − 1 these and 0 stay, for a record that has these results."""
    stays = torch.zeros(labels, dtype=torch.bool)
    stays[[0, *kept]] = True
    return Sizes(stays, LabelVectors([step_of(VIEW, (None, []), [], results)]))


@pytest.mark.parametrize("recorded", [True, False])  # counted with all others, or by itself
def test_a_dimension_of_channels_has_as_many_places_as_are_kept(recorded: bool) -> None:
    labels = channels(6, (2, -1, 5))
    sizes = sizes_for([1, 4, 5], 7, *([labels] if recorded else []))
    assert sizes.shape((2, 6, 5), labels) == (2, 3, 5)
    assert sizes.shape((2, 6, 5), None) == (2, 6, 5)


def test_one_vector_of_labels_in_many_shapes_is_counted_once() -> None:
    labels = torch.arange(1, 7)
    shapes = [along(labels, (2, 6), 1), along(labels, (6, 3, 3), 0), along(labels, (2, 6, 4), 1)]
    vectors = LabelVectors([step_of(VIEW, (None, []), [], shapes)])
    assert vectors.count == 1 and len(vectors.of) == 3
    assert vectors.kept_of_each(torch.tensor([True, True, False, False, True, True, True])) == [4]


def test_a_box_loses_whole_rows_or_has_no_shape() -> None:
    labels = torch.arange(1, 7).view(3, 2)
    assert sizes_for([1, 2, 5, 6], 7).shape((3, 2), labels) == (2, 2)
    assert sizes_for([1, 3, 5], 7).shape((3, 2), labels) == (3, 1)
    assert sizes_for([1, 2, 5], 7).shape((3, 2), labels) is None  # a corner is missing


def test_random_boxes_against_a_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        n, m = (int(torch.randint(1, 5, (), generator=generator)) for _ in range(2))
        labels = torch.randint(0, 7, (n, m), generator=generator)
        stays = torch.rand(7, generator=generator) < 0.6
        stays[0] = True
        mask = stays[labels]
        rows, columns = mask.any(1), mask.any(0)
        whole = bool(mask[rows][:, columns].all())
        expected = (int(rows.sum()), int(columns.sum())) if whole else None
        if min(n, m) > 1:  # else a dimension does not vary
            assert Sizes(stays, LabelVectors([])).shape((n, m), labels) == expected


def test_labels_along_each_dimension_of_a_parameter_are_met() -> None:
    parts = [channels(4, (-1, 3), dim=0), channels(3, (4, -1), dim=1, first=5)]
    sizes = sizes_for([1, 2, 5], 8)
    assert sizes.shape((4, 3), parts) == (2, 1)


def test_counts_of_rows() -> None:
    sizes = sizes_for([2, 3], 7)
    assert sizes.count(torch.tensor([[1, 2], [4, 5], [3, 3], [6, 1]])) == 2
    assert sizes.count(torch.empty(0, 1, dtype=torch.int64)) == 0
    assert sizes.removes_any([torch.tensor([2, 3]), torch.tensor([0, 4])])
    assert not sizes.removes_any([torch.tensor([2, 3, 0])]) and not sizes.removes_any(None)


def test_labels_among_tensors_in_lists() -> None:
    assert labels_among(torch.tensor([3, 0, 3]), [torch.tensor([1]), None]).tolist() == [3, 1]
    assert labels_among().tolist() == []
