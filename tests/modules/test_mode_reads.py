"""Which models' code can reach ``training``."""

from __future__ import annotations

import functools

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from support import Lambda, Residual
from training_mode import TwoAuxiliaryHeads
from zerogate.modules.mode_reads import reads_mode


def dropped(module: nn.Module, x: Tensor) -> Tensor:
    return F.dropout(x, 0.5, module.training)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)


class ByProperty(Own):
    @property
    def noisy(self) -> bool:
        return self.training

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 1 if self.noisy else self.layer(x)


class ByMethod(Own):
    def inner(self, x: Tensor) -> Tensor:
        return dropped(self, x)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.layer(x))


class ByName(Own):
    def forward(self, x: Tensor) -> Tensor:
        return x if getattr(self, "training") else self.layer(x)  # noqa: B009


class OnlyOutside(Own):
    """A method that no forward calls reads the mode."""

    def is_noisy(self) -> bool:
        return self.training

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Norm(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training)


def wrapped() -> nn.Module:
    model = OnlyOutside()
    plain = model.forward

    @functools.wraps(plain)
    def forward(x: Tensor) -> Tensor:
        return plain(x) if not model.training else x

    model.forward = forward  # type: ignore[method-assign]
    return model


READS = {
    "auxiliary heads": TwoAuxiliaryHeads,
    "a property": ByProperty,
    "a function behind a method": ByMethod,
    "getattr": ByName,
    "a function that is held": lambda: Lambda(dropped),
    "a part of a function": lambda: Lambda(functools.partial(lambda m, x, p: dropped(m, x) * p, p=2)),
    "inside": lambda: nn.Sequential(nn.Linear(3, 3), ByMethod()),
    "a forward that is replaced": wrapped,
}
LEAVES = {
    "layers of torch": lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.ReLU()),
    "a transformer of torch": lambda: nn.TransformerEncoderLayer(4, 2, 4),
    "a norm of one's own": lambda: nn.Sequential(nn.Linear(3, 3), Norm(3)),
    "no mode": Residual,
    "only outside of its forward": OnlyOutside,
}


@pytest.mark.parametrize("name", READS)
def test_models_that_read_it(name: str) -> None:
    assert reads_mode(READS[name]())


@pytest.mark.parametrize("name", LEAVES)
def test_models_that_do_not(name: str) -> None:
    assert not reads_mode(LEAVES[name]())
