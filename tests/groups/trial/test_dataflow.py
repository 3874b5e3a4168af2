"""What a forward reads must not depend on widths: branches of Python code that choose a tensor, a parameter, or a number."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import Lambda, close_randomly, relative
from zerogate.groups.recording.record_run import watch
from zerogate.groups.recording.sources import Sources
from zerogate.groups.recording.tensor_maps import tensor_map

WIDTH = 16


def chooses(choose: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> nn.Module:
    """A residual sum of something that is chosen from a stream and its norm."""

    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        y = m.norm(x)
        return m.head(choose(m, x, y) + m.body(y))

    body, norm = nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH)
    model = Lambda(forward, stem=nn.Linear(4, WIDTH), norm=norm, body=body, head=nn.Linear(WIDTH, 3))
    model.width = WIDTH
    model.scales = nn.ParameterList([torch.rand(1), torch.rand(1)])
    model.constants = [torch.rand(1), torch.rand(1)]
    return model.double()


FOLLOWED: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "result": lambda m, x, y: x if x.shape[-1] == m.width else y,
    "parameter": lambda m, x, y: x * m.scales[int(x.shape[-1] == m.width)],
    "constant": lambda m, x, y: x * m.constants[int(x.shape[-1] == m.width)].to(x),
    "number": lambda m, x, y: x * (2.0 if x.shape[-1] == m.width else 3.0),
}
WRITTEN: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "result": lambda m, x, y: x if x.shape[-1] == 16 else y,
    "parameter": lambda m, x, y: x * m.scales[int(x.shape[-1] == 16)],
    "constant": lambda m, x, y: x * m.constants[int(x.shape[-1] == 16)].to(x),
    "number": lambda m, x, y: x * (2.0 if x.shape[-1] == 16 else 3.0),
    "a factor": lambda m, x, y: x if x.shape[-1] % 2 == 0 else y,
    "values": lambda m, x, y: x * torch.tensor([x.shape[-1] ** -0.5]).to(x),
    "order": lambda m, x, y: torch.cat((x, y) if x.shape[-1] == 16 else (y, x), 1).unflatten(1, (2, -1)).mean(1),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_width_that_is_compared_with_an_attribute_follows_it(name: str) -> None:
    model, x = chooses(FOLLOWED[name]), torch.randn(5, 4, dtype=torch.float64)
    sparse = zg.sparsify(model, x)
    assert [group.units for group in sparse.groups] == [WIDTH]
    assert "width" in {size.attribute for size in sparse.structure.size_attributes}
    for seed in range(4):
        close_randomly(sparse, torch.Generator().manual_seed(seed))
        assert relative(model.eval()(x), sparse.compact()(x)) < 1e-10


@pytest.mark.parametrize("name", WRITTEN)
def test_what_depends_on_a_written_width_stays(name: str) -> None:
    model = chooses(WRITTEN[name])
    try:
        sparse = zg.sparsify(model, torch.randn(5, 4, dtype=torch.float64))
    except zg.WatchError as error:
        assert "depends on" in str(error) or "written down" in str(error)
    else:
        assert not any(group.units == WIDTH for group in sparse.groups)


def sources_of(model: nn.Module, x: Tensor) -> list[list[object]]:
    return [[*step.sources] for step in watch(model, x).steps]


def test_sources_are_parameters_by_name_inputs_and_results_of_steps() -> None:
    model = Lambda(lambda m, x: m.two(m.one(x).contiguous().relu_()), one=nn.Linear(3, 4), two=nn.Linear(4, 2))
    first, relu, last, *_ = sources_of(model, torch.randn(5, 3))
    assert first == [("input", 0), "one.weight", "one.bias"]
    assert relu == [(0, 0)]  # what settles a layout is no step
    assert last == [(1, 0), "two.weight", "two.bias"]


def test_tensors_that_a_module_holds_without_registering_them_are_told_apart() -> None:
    model = Lambda(lambda m, x: m.one(x) * m.held[1] + m.held[0], one=nn.Linear(3, 4))
    model.held = [torch.rand(1), torch.rand(1)]
    _, product, total = sources_of(model, torch.randn(5, 3))
    assert product[1] != total[1]


def test_small_constants_are_told_apart_by_what_they_hold() -> None:
    def source(value: float) -> object:
        sources = Sources(nn.Module(), (), tensor_map(False))
        sources.before([torch.tensor(value)])
        return sources.read

    assert source(1.0) == source(1.0) != source(2.0)
    assert source(float("nan")) == source(float("nan"))
