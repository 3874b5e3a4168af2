"""Union-find of labels, and tensors of them."""

from __future__ import annotations

import torch

from zerogate.groups.label_tensors import (
    broadcast_shape,
    collapse,
    drop_expanded,
    first_label,
    labels_in,
    max_over,
    no_labels,
    rows_along,
    varying_dims,
    varying_rows,
)
from zerogate.groups.labels import Labels


def naive_classes(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    """The smallest member of each class, by repeated relabelling."""
    root = list(range(n))
    for a, b in pairs:
        low, high = sorted((root[a], root[b]))
        root = [low if r == high else r for r in root]
    return root


def test_classes_are_those_of_a_naive_union_find() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        labels = Labels()
        labels.new(29)
        pairs = torch.randint(1, 30, (20, 2), generator=generator)
        for part in pairs.split(7):
            labels.unite(part[:, 0], part[:, 1])
            labels.roots()  # worked in bit by bit
        assert labels.roots().tolist() == naive_classes(30, [tuple(p) for p in pairs.tolist()])  # type: ignore[misc]


def test_many_pairs_give_the_same_classes_as_few() -> None:
    labels, few = Labels(), Labels()
    a = labels.new(6000).view(2, 3000)
    few.new(6000)
    labels.unite(a[0].repeat(3), a[1].repeat(3))
    for part in (a[:, :1500], a[:, 1500:]):
        few.unite(part[0], part[1])
    assert torch.equal(labels.roots(), few.roots())


def test_label_0_is_tied_to_nothing() -> None:
    labels = Labels()
    a = labels.new(3)
    labels.unite(a, torch.tensor([0, 0, 1]))
    assert labels.roots().tolist() == [0, 1, 2, 1]


def test_the_first_reason_of_a_class_is_reported() -> None:
    labels = Labels()
    labels.new(4)
    labels.freeze(torch.tensor([2]), "first")
    labels.freeze(torch.tensor([1, 2, 0]), "second")
    labels.unite(torch.tensor([2]), torch.tensor([3]))
    root, (why, reasons) = labels.roots(), labels.reasons()
    assert [reasons[i] if i >= 0 else None for i in why[root].tolist()] == [None, "second", "first", "first", None]


def test_rows_are_tied_and_rows_with_zeros_stay() -> None:
    labels = Labels()
    labels.new(6)
    vector = labels.tie_rows(torch.tensor([[1, 2], [3, 0], [0, 0]]), "mixed")
    assert vector.tolist() == [2, 0, 0]
    assert labels.roots().tolist() == [0, 1, 1, 3, 4, 5, 6]
    assert labels.reasons()[0].tolist() == [-1, -1, -1, 0, -1, -1, -1]


def test_restore_undoes_ties_and_reasons_as_often_as_it_is_called() -> None:
    labels = Labels()
    labels.new(6)
    labels.unite(torch.tensor([1]), torch.tensor([2]))
    state = labels.state()
    for other in (3, 4, 5):
        changes = labels.changes
        labels.unite(torch.tensor([1]), torch.tensor([other]))
        labels.freeze(torch.tensor([6]), "tried")
        assert labels.roots()[other] == 1
        labels.restore(state)
        assert labels.changes > changes
        assert labels.roots().tolist() == [0, 1, 1, 3, 4, 5, 6]
        assert labels.reasons()[1] == []


def test_labels_that_do_not_vary_along_a_dimension_collapse() -> None:
    labels = torch.arange(1, 4).view(1, 3, 1).expand(2, 3, 5).contiguous()
    collapsed = collapse(labels)
    assert torch.equal(collapsed, labels)
    assert varying_dims(collapsed) == [1]
    assert drop_expanded(collapsed)[0].shape == (1, 3, 1)
    assert labels_in(collapsed).tolist() == [1, 2, 3]
    assert varying_dims(no_labels((4, 5))) == []


def test_rows_along_a_dimension_hold_all_that_varies() -> None:
    labels = torch.arange(1, 7).view(2, 3, 1).expand(2, 3, 4)
    assert rows_along(labels, 1).tolist() == [[1, 4], [2, 5], [3, 6]]
    assert rows_along(labels, -3).tolist() == [[1, 2, 3], [4, 5, 6]]
    assert torch.equal(rows_along(labels.contiguous(), 1)[:, :4], torch.tensor([[1] * 4, [2] * 4, [3] * 4]))
    assert varying_rows(labels, 2) is None
    assert torch.equal(rows_along(torch.arange(3).view(1, 3, 1).expand(2, 3, 5), 1), torch.arange(3)[:, None])


def test_max_over_and_first_label_keep_what_is_expanded() -> None:
    labels = torch.arange(6).view(2, 3, 1).expand(2, 3, 4)
    top = max_over(labels, [1])
    assert top.shape == (2, 1, 4)
    assert top[:, 0, 0].tolist() == [2, 5]
    first = first_label(labels, torch.full((), 9).expand(labels.shape))
    assert first[0, :, 0].tolist() == [9, 1, 2]
    assert varying_dims(first) == [0, 1]


def test_broadcast_shapes_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        a, b = (tuple(torch.randint(1, 4, (int(n),), generator=generator).tolist()) for n in torch.randint(0, 4, (2,)))
        try:
            expected = tuple(torch.broadcast_shapes(a, b))
        except RuntimeError:
            expected = None
        assert broadcast_shape(a, b) == expected
