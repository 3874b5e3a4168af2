"""Rules by themselves, in a run that only writes down what they say."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest
import torch
from torch import Tensor

from zerogate.groups.arguments import tensors_among
from zerogate.groups.label_tensors import Sheets, labels_in, no_labels
from zerogate.groups.labels import Labels
from zerogate.groups.ops import spec_of
from zerogate.groups.rules.op import Op, Out
from zerogate.groups.rules.protocol import Freeze, RuleContext, UnknownValue, View
from zerogate.groups.rules.registry import rule_of
from zerogate.groups.rules.views import follow_views

ATEN: Any = torch.ops.aten


class Notes:
    """A `RuleContext` without a run."""

    def __init__(self) -> None:
        self.classes = Labels()
        self.labels: dict[int, Tensor] = {}
        self.views: dict[int, list[View]] = {}
        self.unknown: set[int] = set()
        self.said: list[tuple[Any, ...]] = []
        self.keeps_norms = False
        self.any_size_can_follow = False

    def channels(self, n: int, shape: tuple[int, ...], dim: int) -> Tensor:
        """A tensor with n new labels along one dimension."""
        view = [1] * len(shape)
        view[dim] = n
        x = torch.randn(shape)
        self.labels[id(x)] = self.classes.new(n).view(view).expand(shape)
        return x

    def parameter(self, name: str, *shape: int) -> Tensor:
        x = torch.randn(shape)
        places = [torch.arange(n).view([n if d == i else 1 for i in range(len(shape))]) for d, n in enumerate(shape)]
        self.views[id(x)] = [View(name, tuple(p.expand(shape) for p in places))]
        return x

    def ask(self, func: Any, *args: Any, **kwargs: Any) -> Out:
        out = func(*args, **kwargs)
        rule = rule_of(spec_of(func))
        assert rule is not None
        return rule(self.op(func, *args, out=out, **kwargs))

    def op(self, func: Any, *args: Any, out: Any = None, **kwargs: Any) -> Op:
        out = func(*args, **kwargs) if out is None else out
        return Op(self, func, args, kwargs, out, tensors_among((args, kwargs)))

    def labels_of(self, x: Tensor) -> Tensor | None:
        return self.labels.get(id(x))

    def sheets_of(self, x: Tensor) -> list[Tensor]:
        return [self.labels[id(x)]] if id(x) in self.labels else []

    def views_of(self, x: Tensor, integers: bool = False) -> list[View]:
        return self.views.get(id(x), [])

    def carrier_of(self, x: Tensor) -> View | None:
        views = self.views_of(x)
        return views[0] if len(views) == 1 and views[0].is_whole and not views[0].changed else None

    def value_of(self, x: Tensor) -> Tensor | None:
        return None if id(x) in self.unknown else x

    def unite(self, a: Tensor, b: Tensor) -> None:
        self.classes.unite(a, b)

    def tie_rows(self, rows: Tensor, reason: str) -> Tensor:
        return self.classes.tie_rows(rows, reason)

    def keep_at_least(self, labels: Tensor, n: int) -> None:
        self.said.append(("at least", labels.tolist(), n))

    def tie_to_constant(self, x: Tensor, labels: Tensor) -> None:
        pass

    def freeze(self, labels: Tensor, reason: str) -> None:
        self.classes.freeze(labels, reason)

    def defer_freeze(self, result: Tensor, labels: Tensor, reason: str) -> None:
        self.said.append(("defer", reason))

    def attach(self, parameter: Tensor, dim: int, vector: Tensor) -> None:
        self.said.append(("attach", self.views[id(parameter)][0].name, dim, vector.tolist()))

    def attach_view(self, view: View, labels: Tensor) -> None:
        self.said.append(("attach", view.name))

    def note_factor(self, result: Tensor, factor: View | Tensor, labels: Tensor) -> None:
        pass

    def record_sum(self, x: Tensor) -> bool:
        return False

    def make_channels(self, x: Tensor, dims: Collection[int]) -> Tensor:
        return no_labels(x.shape)

    def constant_channels(self, x: Tensor, dims: Collection[int]) -> Tensor | None:
        return None

    def record_layer(self, weight: Tensor, bias: Tensor | None, **layer: Any) -> Tensor | None:
        self.said.append(("layer", layer["dims"], layer["macs"], layer["channel_dim"]))
        produced = layer["dims"][1]
        return None if produced is None else self.classes.new(weight.shape[produced])

    def record_repeats(self, labels: Tensor) -> None:
        self.said.append(("repeated", labels_in(labels).tolist()))

    def record_grouped_conv(
        self, weight: Tensor, bias: Tensor | None, vector: Tensor | None, macs: float, channel_dim: int
    ) -> Tensor | None:
        self.said.append(("grouped", macs))
        return vector

    def record_norm(self, labels: Tensor) -> bool:
        return self.keeps_norms

    def mark_heads(self, labels: Tensor) -> None:
        self.said.append(("heads", labels.tolist()))

    def state_size(self, attribute: str, value: int | tuple[int, ...], rows: Tensor) -> None:
        self.said.append((attribute, value))


def varying(labels: Out) -> list[int]:
    """The labels along the one dimension in which they vary."""
    labels = labels[-1] if isinstance(labels, list) else labels
    assert isinstance(labels, Tensor)
    flat = [labels[tuple(slice(None) if d == dim else 0 for d in range(labels.ndim))] for dim in range(labels.ndim)]
    return max((x.tolist() for x in flat), key=lambda x: len(set(x)))


@pytest.fixture
def notes() -> Notes:
    context: RuleContext = (made := Notes())
    assert context is made
    return made


def test_moves_run_on_labels(notes: Notes) -> None:
    x = notes.channels(6, (2, 6, 4), 1)
    assert varying(notes.ask(ATEN.flip.default, x, [1])) == [6, 5, 4, 3, 2, 1]
    folded = notes.ask(ATEN.reshape.default, x, [2, 2, 3, 4])
    assert isinstance(folded, Tensor) and folded[0, :, :, 0].tolist() == [[1, 2, 3], [4, 5, 6]]


def test_pointwise_ops_tie_what_meets_and_slice_parameters(notes: Notes) -> None:
    x, y = notes.channels(3, (2, 3, 4), 1), notes.channels(3, (2, 3, 1), 1)
    assert varying(notes.ask(ATEN.add.Tensor, x, y)) == [1, 2, 3]
    assert notes.classes.roots().tolist() == [0, 1, 2, 3, 1, 2, 3]
    notes.ask(ATEN.mul.Tensor, x, notes.parameter("scale", 3, 1))
    assert notes.said == [("attach", "scale")]


def test_one_channel_that_scales_many_stays(notes: Notes) -> None:
    x, one = notes.channels(3, (2, 3, 4), 1), notes.channels(1, (2, 1, 4), 1)
    assert varying(notes.ask(ATEN.mul.Tensor, x, one)) == [1, 2, 3]
    assert notes.classes.reasons()[1] == ["mul of a single channel with others"]


def test_equal_pieces_are_tied_place_by_place(notes: Notes) -> None:
    x = notes.channels(6, (2, 6), 1)
    notes.ask(ATEN.chunk.default, x, 3, 1)
    assert notes.classes.roots().tolist() == [0, 1, 2, 1, 2, 1, 2]


def test_pieces_of_other_lengths_are_left_to_trials_or_stay(notes: Notes) -> None:
    x = notes.channels(5, (2, 5), 1)
    pieces = notes.ask(ATEN.split_with_sizes.default, x, [2, 3], 1)
    assert isinstance(pieces, list) and [varying(p) for p in pieces] == [[1, 2], [3, 4, 5]]
    assert notes.classes.roots().tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(Freeze, match="chunk at a fixed place among channels"):
        notes.ask(ATEN.chunk.default, x, 2, 1)


def test_picks_must_leave_the_order_of_channels_alone(notes: Notes) -> None:
    x = notes.channels(3, (4, 3), 1)
    assert varying(notes.ask(ATEN.index_select.default, x, 0, torch.tensor([1, 3]))) == [1, 2, 3]
    with pytest.raises(Freeze, match="index_select among channels"):
        notes.ask(ATEN.index_select.default, x, 1, torch.tensor([1, 0]))


def test_places_that_nobody_knows_matter_among_channels_only(notes: Notes) -> None:
    x, places = notes.channels(3, (4, 3), 1), torch.tensor([1, 3])
    notes.unknown.add(id(places))
    assert varying(notes.ask(ATEN.index_select.default, x, 0, places)) == [1, 2, 3]
    with pytest.raises(UnknownValue):
        notes.ask(ATEN.index_select.default, notes.channels(4, (2, 4), 1), 1, places)


def test_softmax_ties_along_its_dimension_and_never_all(notes: Notes) -> None:
    x = notes.channels(3, (2, 3, 4), 1)
    assert notes.ask(ATEN.softmax.int, x, 2) is notes.labels_of(x)
    with pytest.raises(Freeze, match="softmax over channels"):
        notes.ask(ATEN.softmax.int, x, 1)
    y = torch.randn(2, 3, 4)
    notes.labels[id(y)] = notes.classes.new(12).view(1, 3, 4).expand(2, 3, 4)
    notes.ask(ATEN.softmax.int, y, 1)
    assert notes.classes.roots()[4:].view(3, 4).unique(dim=0).shape == (1, 4)


def test_reductions_keep_the_labels_of_what_is_left(notes: Notes) -> None:
    x = notes.channels(3, (2, 3, 4), 1)
    assert varying(notes.ask(ATEN.mean.dim, x, [2], True)) == [1, 2, 3]
    values = notes.ask(ATEN.max.dim, x, 2)
    assert isinstance(values, list) and [varying(v) for v in values] == [[1, 2, 3]] * 2
    assert notes.ask(ATEN.mean.dim, x, [1]) is None
    assert notes.said == [("defer", "mean over channels")]
    with pytest.raises(Freeze, match="amax over channels"):
        notes.ask(ATEN.amax.default, x, [1])


def test_a_written_out_norm_leaves_its_channels_to_the_module(notes: Notes) -> None:
    x = notes.channels(3, (2, 3), 1)
    notes.keeps_norms = True
    assert notes.ask(ATEN.mean.dim, x, [1]) is None
    assert notes.said == []


def test_norms_slice_their_parameters(notes: Notes) -> None:
    x = notes.channels(4, (2, 4, 5), 1)
    w, b = notes.parameter("w", 4), notes.parameter("b", 4)
    notes.ask(ATEN.batch_norm.default, x, w, b, None, None, True, 0.1, 1e-5, False)
    assert notes.said == [("attach", name, 0, [1, 2, 3, 4]) for name in "wb"]
    notes.said.clear()
    assert varying(notes.ask(ATEN.group_norm.default, x, 2, w, b)) == [2, 2, 4, 4]
    assert ("num_groups", 2) in notes.said
    assert notes.classes.roots().tolist() == [0, 1, 1, 3, 3]


def test_a_layer_says_where_it_consumes_and_produces(notes: Notes) -> None:
    x = notes.channels(4, (2, 7, 4), 2)
    new = notes.ask(ATEN.linear.default, x, notes.parameter("w", 3, 4))
    assert varying(new) == [5, 6, 7]
    assert notes.said == [("layer", (1, 0), 14.0, -1)]


def test_a_layer_along_positions_leaves_channels_apart(notes: Notes) -> None:
    x = notes.channels(4, (2, 4, 7), 1)
    sheets = notes.ask(ATEN.linear.default, x, notes.parameter("w", 3, 7))
    assert isinstance(sheets, Sheets)
    assert [varying(labels) for labels in sheets] == [[1, 2, 3, 4], [5, 6, 7]]
    assert notes.said == [("layer", (1, 0), 2 * 4, -1), ("repeated", [1, 2, 3, 4])]


def test_channels_of_a_depthwise_convolution_pass(notes: Notes) -> None:
    x = notes.channels(4, (1, 4, 6, 6), 1)
    w = notes.parameter("w", 4, 1, 3, 3)
    assert varying(notes.ask(ATEN.conv2d.default, x, w, None, [1, 1], [1, 1], [1, 1], 4)) == [1, 2, 3, 4]
    assert notes.said == [("groups", 4), ("grouped", 36 * 9.0)]


def test_attention_ties_the_channels_of_each_head(notes: Notes) -> None:
    def heads() -> Tensor:
        x = torch.randn(1, 2, 5, 3)
        notes.labels[id(x)] = notes.classes.new(6).view(1, 2, 1, 3).expand(1, 2, 5, 3)
        return x

    q, k, v = heads(), heads(), heads()
    out = notes.ask(ATEN.scaled_dot_product_attention.default, q, k, v)
    root = notes.classes.roots()
    assert isinstance(out, Tensor)
    assert root[out[0, :, 0]].tolist() == [[1] * 3, [4] * 3]
    assert len(root.unique()) == 3  # two heads, and 0
    assert {tuple(x[1]) for x in notes.said if x[0] == "heads"}


def test_a_parameter_is_followed_through_moves(notes: Notes) -> None:
    weight = notes.parameter("w", 3, 4)
    ((view,),) = follow_views(notes.op(ATEN.t.default, weight)) or [[]]
    assert (view.is_whole, view.dim_along(0), view.dim_along(1), view.changed) == (True, 1, 0, False)
    ((part,),) = follow_views(notes.op(ATEN.slice.Tensor, weight, 0, 1, 3)) or [[]]
    assert not part.is_whole and part.indices(0, 0).tolist() == [1, 2]
    ((scaled,),) = follow_views(notes.op(ATEN.mul.Scalar, weight, 2)) or [[]]
    assert scaled.changed and scaled.keeps_zero
    ((shifted,),) = follow_views(notes.op(ATEN.add.Scalar, weight, 2)) or [[]]
    assert shifted.changed and not shifted.keeps_zero
    assert follow_views(notes.op(ATEN.sum.default, weight)) is None
