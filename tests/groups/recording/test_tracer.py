"""A run without data: what the listener hears, which values are known, and what fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from support import Lambda
from zerogate.groups.arguments import Args, AtenOp, Kwargs
from zerogate.groups.limits import KNOWN_VALUE_ENTRIES
from zerogate.groups.recording.known_values import KnownValues
from zerogate.groups.recording.shape_cache import ShapeCache
from zerogate.groups.recording.tracer import Tracer
from zerogate.groups.rules.protocol import UnknownValue


class Heard:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.modules: list[str] = []
        self.before_ops: list[str] = []
        self.after_ops: list[tuple[str, int]] = []

    def entered(self, module: str, args: Args, kwargs: Kwargs) -> None:
        self.modules.append(module)

    def before(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> None:
        self.before_ops.append(func.overloadpacket.__name__)

    def decided(self, func: AtenOp, out: object) -> object:
        return out

    def visit(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor], out: object) -> None:
        self.after_ops.append((func.overloadpacket.__name__, len(tensors)))


def traced(function: Callable[[], object], shapes: ShapeCache | None = None) -> tuple[object, Tracer, Heard]:
    heard = Heard()
    tracer = Tracer(heard, meta=True, shapes=shapes)
    with torch.inference_mode(), tracer:
        return function(), tracer, heard


@pytest.mark.parametrize("meta", [True, False])
def test_the_listener_hears_of_modules_and_ops_in_order(meta: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    heard = Heard()
    tracer = Tracer(heard, meta)
    tracer.follow(model)
    x = torch.randn(2, 3)
    with torch.inference_mode(), tracer:
        out = model(x)
    assert heard.modules == ["", "0", "1"]
    assert heard.before_ops == ["linear", "relu"]
    assert heard.after_ops == [("linear", 3), ("relu", 1)]
    assert out.is_meta == meta
    assert tracer.stack == []


def test_values_that_depend_on_numbers_alone_are_known() -> None:
    positions, tracer, _ = traced(lambda: torch.arange(4).flip(0) * 2)
    assert isinstance(positions, Tensor) and positions.is_meta
    value = tracer.value_of(positions)
    assert value is not None and value.tolist() == [6, 4, 2, 0]


def test_a_forward_that_asks_for_a_known_value_gets_it() -> None:
    assert traced(lambda: torch.arange(4).sum().item())[0] == 6
    found, _, _ = traced(lambda: (torch.arange(4) > 1).nonzero())  # of a shape that depends on values
    assert isinstance(found, Tensor) and found.shape == (2, 1)


def test_a_forward_that_asks_for_a_value_that_depends_on_inputs_fails() -> None:
    x = torch.empty(3, device="meta")
    with pytest.raises(UnknownValue):
        traced(lambda: x.sum().item())


def test_random_and_large_values_are_not_known() -> None:
    for make in (lambda: torch.rand(3), lambda: torch.empty(3), lambda: torch.arange(KNOWN_VALUE_ENTRIES + 1)):
        out, tracer, _ = traced(make)
        assert isinstance(out, Tensor) and tracer.value_of(out) is None


def test_what_has_been_written_with_unknown_values_is_forgotten() -> None:
    unknown = torch.empty(3, device="meta")

    def write() -> tuple[Tensor, Tensor]:
        known = torch.zeros(3)
        view = known[:2]
        known.add_(unknown)
        return known, view

    out, tracer, _ = traced(write)
    assert isinstance(out, tuple)
    assert all(tracer.value_of(x) is None for x in out)


def test_what_has_been_written_with_known_values_is_known() -> None:
    def write() -> Tensor:
        known = torch.zeros(3)
        known[1:] += torch.arange(2)
        return known

    out, tracer, _ = traced(write)
    assert isinstance(out, Tensor)
    value = tracer.value_of(out)
    assert value is not None and value.tolist() == [0, 0, 1]


def test_operands_of_several_dtypes_fail_as_with_data() -> None:
    x, w = torch.empty(2, 3, device="meta"), torch.empty(4, 3, device="meta", dtype=torch.float64)
    with pytest.raises(UnknownValue):
        traced(lambda: torch.nn.functional.linear(x, w))


def test_an_op_runs_once_for_all_operands_of_the_same_shapes() -> None:
    shapes, func = ShapeCache(), torch.ops.aten.logcumsumexp.default
    x, y = torch.empty(2, 3, device="meta"), torch.empty(2, 3, device="meta")
    first, second = shapes.run(func, (x, 1), {}, [x]), shapes.run(func, (y, 1), {}, [y])
    assert isinstance(first, Tensor) and isinstance(second, Tensor)
    assert first is not second and first.shape == second.shape == (2, 3)
    assert len(shapes._results) == 1
    shapes.run(func, (y, 0), {}, [y])
    shapes.run(func, (y, True), {}, [y])  # True equals 1, and is another argument
    assert len(shapes._results) == 3
    view = shapes.run(torch.ops.aten.view.default, (x, [6]), {}, [x])
    assert isinstance(view, Tensor) and view._is_view()
    assert len(shapes._results) == 3


def test_a_tensor_with_data_is_replaced_by_the_same_shape_each_time() -> None:
    values, x = KnownValues(), torch.arange(3.0)
    shape = values.stand_in(x)
    assert shape.is_meta and shape is values.stand_in(x) and values.get(shape) is x
    assert values.stand_in("word") == "word"


def test_the_place_is_the_line_of_the_users_code() -> None:
    places = []

    class Listening(Heard):
        def visit(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor], out: object) -> None:
            places.append((tracer.place()[0].rpartition("/")[2], tracer.where("a reason")))

    tracer = Tracer(Listening(), meta=True)
    model = Lambda(lambda m, x: m.inner(x).relu(), inner=nn.Linear(3, 4))
    tracer.follow(model)
    x = torch.randn(2, 3)
    with torch.inference_mode(), tracer:
        model(x)
    assert [name for name, _ in places] == ["test_tracer.py"] * 2
    assert places[0][1].startswith("a reason in inner (test_tracer.py:")
    assert places[1][1].startswith("a reason (test_tracer.py:")
