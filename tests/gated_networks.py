"""Small networks with gates, a count of calls, and plain ops on demand: what the tests of masking share."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import zerogate as zg
from support import Residual

X = (4, 2, 5, 5)
"""Shape of what `Residual` takes."""


class Calls(TorchDispatchMode):
    """ATen calls that are not views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets plain ops run everywhere, as under a compiler."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("zerogate.") and hasattr(module, "must_stay_traceable"):
            monkeypatch.setattr(module, "must_stay_traceable", lambda: True)


def loss_and_gradients(sparse: zg.Sparsified, model: nn.Module, x: Tensor) -> list[Tensor | None]:
    """A loss of one draw, and its gradients by the logits and by every parameter; the same each time."""
    with torch.no_grad():
        sparse.logits.uniform_(-2, 2)
    torch.manual_seed(1)
    loss = model(x).square().sum() + sparse.loss()
    loss.backward()
    return [loss.detach(), sparse.logits.grad, *(p.grad for p in model.parameters())]


class Twice(nn.Module):
    """A weight with gates along both dimensions, a weight that is not used, inputs without gates."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.encode, self.last = nn.Linear(3, 37), nn.Linear(37, 5), nn.Linear(37 + 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.encode(self.first(x).relu()).relu()
        return self.last(torch.cat([F.linear(y, self.encode.weight.t()).relu(), x], -1))


class Optional(nn.Module):
    """One of its layers is not always used."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.use = nn.Linear(3, 5), nn.Linear(5, 2), nn.Linear(5, 2), True

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.b(x) + self.c(x) if self.use else self.b(x)


MODELS: dict[str, Any] = {
    "residual": (Residual, X),
    "channels last": (lambda: Residual().to(memory_format=torch.channels_last), X),
    "twice": (Twice, (4, 3)),
    "optional": (Optional, (4, 3)),
}
