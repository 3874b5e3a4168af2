"""Two networks' outputs are compared one by one, in float64, also where a forward draws random numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly
from zerogate.compaction.comparison import WholeNetworkFails, compare, difference_of, rounds_inside
from zerogate.compaction.even_draws import EvenDraws


def values(*numbers: float) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_each_output_is_measured_by_its_own_largest_value() -> None:
    boxes, scores = values(640.0, 3.0), values(0.5, 0.25)
    assert difference_of([boxes, scores], [boxes, scores + values(0, 1e-3)]) == (pytest.approx(2e-3), 1, 2)
    assert difference_of([boxes, scores], [boxes + values(0.64, 0), scores]) == (pytest.approx(1e-3), 0, 2)
    assert str(difference_of([boxes, scores], [boxes, scores + 1])) == "2 of the largest value of output 2"
    assert str(difference_of([scores], [scores + 1])) == "2 of its largest output"


def test_what_is_left_of_a_sum_of_large_numbers_is_no_difference() -> None:
    assert difference_of([values(1e3), values(1e-14)], [values(1e3), values(-1e-14)]).value < 1e-11


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (values(math.inf, 1.0), values(math.inf, 1.0), 0.0),
        (values(math.inf, 1.0), values(-math.inf, 1.0), math.inf),
        (values(1.0), values(1.0, 2.0), math.inf),
        (values(0.0), values(0.0), 0.0),
        (values(0.0), values(0.5), 0.5),
        (torch.tensor([3]), torch.tensor([4]), 0.0),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 3j]), 2.0),
    ],
)
def test_unusual_values(a: Tensor, b: Tensor, expected: float) -> None:
    assert difference_of([a], [b]).value == expected


def test_nan_is_reported_as_nan() -> None:
    assert math.isnan(difference_of([values(1.0), values(math.nan)], [values(1.0), values(2.0)]).value)


def test_a_network_that_does_not_run_itself_is_told_apart() -> None:
    with pytest.raises(WholeNetworkFails):
        compare(nn.Linear(3, 2).double(), nn.Linear(4, 2).double(), torch.ones(1, 4), float64=True)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        compare(nn.Linear(4, 2).double(), nn.Linear(3, 2).double(), torch.ones(1, 4), float64=True)


def test_rounding_inside_is_noticed() -> None:
    class Half(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.zeros(1, dtype=torch.float16)).to(x.dtype)

    assert rounds_inside(Half(), torch.ones(2, 3)) and not rounds_inside(nn.ReLU(), torch.ones(2, 3))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.3),
    "dropout of half": lambda x: F.dropout(x, 0.5),
    "dropout of channels": lambda x: F.dropout1d(x[:, :, None], 0.3)[..., 0],
    "noise": lambda x: x + torch.randn_like(x),
    "uniform": lambda x: x * torch.rand(x.shape, dtype=x.dtype),
    "normal around": lambda x: torch.normal(x, 0.1),
    "bernoulli": lambda x: x * torch.bernoulli(x.sigmoid()),
    "in place": lambda x: x + torch.empty_like(x).exponential_(2.0),
    "attention": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None], dropout_p=0.2)[:, 0],
}


class Drawing(nn.Module):
    """Draws as many numbers as it has channels, in evaluation mode, too; what is drawn later is the same for all."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.first, self.name, self.last = nn.Linear(6, 16), name, nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(DRAWS[self.name](self.first(x).relu())) * torch.rand(3, dtype=x.dtype)


@pytest.mark.parametrize("name", ["dropout", "dropout of half", "dropout of channels", "noise"])
def test_a_network_that_draws_for_each_channel_is_compacted(name: str) -> None:
    torch.manual_seed(0)
    sparse = zg.sparsify(Drawing(name).double(), torch.randn(5, 6, dtype=torch.float64))
    assert len(sparse.logits) == 16
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    assert sparse.compact().get_parameter("first.weight").shape[0] < 16


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_that_do_not_depend_on_the_shape(draw: Callable[[Tensor], Tensor]) -> None:
    whole, part = torch.full((4, 8), 0.5), torch.full((4, 3), 0.5)
    with EvenDraws():
        torch.manual_seed(0)
        a = draw(whole)
        torch.manual_seed(0)
        b = draw(part)
        after = torch.rand(1)
    assert torch.equal(a[:, :3], b) and (a == a[0, 0]).all() and a.isfinite().all()
    torch.manual_seed(0)
    with EvenDraws():
        draw(whole)
        assert torch.equal(torch.rand(1), after)
