"""Sizes that count something else already: both lose the same places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import zerogate as zg
from hand_made import along, step_of
from support import Lambda, close_randomly, relative
from zerogate.groups.trial.ties import channel_widths


def check_exact(model: nn.Module, x: Tensor, **options: object) -> zg.Sparsified:
    sparse = zg.sparsify(model.double(), x.double(), **options)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        close_randomly(sparse, generator)
        small = sparse.compact().eval()
        assert relative(model.eval()(x.double()), small(x.double())) <= 1e-10
    return sparse


def test_a_result_that_is_given_the_width_of_the_input_is_tied_to_it() -> None:
    """As attention does that writes ``B, N, C = x.shape`` and ``reshape(B, N, C)``."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            b, n, c = x.shape
            return self.down(self.up(x).transpose(1, 2).reshape(b, c, n).transpose(1, 2).reshape(b, n, c))

    model = Lambda(
        lambda m, x: m.head(m.inner(m.first(x))), first=nn.Linear(5, 12), inner=Inner(), head=nn.Linear(12, 2)
    )
    sparse = check_exact(model, torch.randn(2, 3, 5))
    group = next(g for g in sparse.groups if "inner.up" in g.producers)
    assert group.units == 12 and "first" in group.producers


def test_a_number_that_is_used_for_two_things_ties_them() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(5, 12), nn.Linear(12, 12), nn.Linear(12, 2)
            self.width = 12

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(x).view(-1, self.width).relu()
            return self.head(self.two(x).reshape(-1, self.width))

    sparse = check_exact(Twice(), torch.randn(4, 5))
    assert [(g.units, g.producers) for g in sparse.groups] == [(12, ("one", "two"))]
    assert [(a.attribute, a.entry) for a in sparse.structure.size_attributes] == [("width", ())]


def test_widths_of_a_step_are_those_along_its_channels() -> None:
    labels = along(torch.arange(1, 7), (2, 6, 5), 1)
    relu = step_of(torch.ops.aten.relu.default, (None,), [labels], [labels])
    assert channel_widths(relu) == [(6,)]
