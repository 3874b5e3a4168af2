"""What `sparsify` says of a network of which nothing can go: the reasons, and what else could be gated, which is true."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg


class Written(nn.Module):
    """Has the width of its hidden layer as a literal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).view(-1, 6))


WAYS = {
    'unit="weight"': {"unit": "weight"},
    "gate_inputs=True": {"gate_inputs": True},
    "keep_class=False": {"keep_class": False},
}


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (nn.Linear(4, 3), {}, "an output of the network"),
        (nn.Linear(4, 3), {"unit": "head"}, "an output of the network"),
        (nn.ReLU(), {}, "no convolution, linear layer or matrix product with a parameter runs on the example inputs"),
        (nn.ReLU(), {"unit": "weight"}, "has no weight that could be gated: no convolution, linear layer"),
        (Written(), {}, "view to a size that is written down"),
        (nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)), {"exclude": ["0"]}, "0 is excluded"),
        (
            nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)),
            {"exclude": ["*"], "unit": "weight"},
            "all layers are excluded",
        ),
    ],
)
def test_each_way_out_that_is_named_is_one(model: nn.Module, options: dict[str, object], said: str) -> None:
    x = torch.randn(2, 4)
    with pytest.raises(zg.WatchError, match=said) as error:
        zg.sparsify(model, x, **options)  # type: ignore[arg-type]
    for way, option in WAYS.items():
        if way in str(error.value):
            handle = zg.sparsify(model, x, **options | option)  # type: ignore[arg-type]
            assert len(handle.logits)
            handle.detach()
        else:
            with pytest.raises(zg.ZerogateError):
                zg.sparsify(model, x, **options | option)  # type: ignore[arg-type]
