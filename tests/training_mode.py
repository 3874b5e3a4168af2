"""Networks that do more in training mode, and how far a compacted one is from the gated one there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import zerogate as zg
from zerogate.modules.run import tensors_of


class NoDropout(TorchFunctionMode):
    """Dropout passes everything on, also where the forward calls it by itself."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        kwargs = dict(kwargs or {})
        if "dropout" in getattr(func, "__name__", ""):
            return args[0] if args else kwargs["input"]
        if "dropout_p" in kwargs:
            kwargs["dropout_p"] = 0.0
        return func(*args, **kwargs)


def trained(model: nn.Module, batches: Sequence[Any], inputs: Callable[[Any], tuple[Any, ...]]) -> list[Tensor]:
    """What a model returns for each batch in training mode, without dropout; its running statistics move."""
    model.train()
    with torch.no_grad(), NoDropout():
        torch.manual_seed(0)
        return [x for batch in batches for x in tensors_of(model(*inputs(batch)))]


def apart(expected: Sequence[Tensor], received: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors, each relative to its own largest value; inf where shapes differ."""
    if [x.shape for x in expected] != [x.shape for x in received]:
        return float("inf")
    differences = [
        ((x - y).abs().max() / x.abs().max().clamp(min=1e-12)).item()
        for x, y in zip(expected, received, strict=True)
        if x.numel() and x.is_floating_point()
    ]
    return max(differences, default=0.0)


def difference_in_training(
    sparse: zg.Sparsified, batches: Sequence[Any], inputs: Callable[[Any], tuple[Any, ...]] = lambda x: (x,)
) -> float:
    """How far the compacted network is from the gated one with its deployed mask, over these batches in training mode: in
    all that they return, and in what their buffers hold afterwards."""
    frozen, sparse.gates.frozen = sparse.gates.frozen, True
    small = sparse.compact()
    returned = apart(*(trained(model, batches, inputs) for model in (sparse.model, small)))
    after = sparse.compact()  # of the gated network's statistics as they are now
    sparse.gates.frozen = frozen
    assert [name for name, _ in after.named_buffers()] == [name for name, _ in small.named_buffers()]
    kept = [_of_channels_in_use(sparse, model) for model in (after, small)]
    return max(returned, apart(*kept))


def _of_channels_in_use(sparse: zg.Sparsified, small: nn.Module) -> list[Tensor]:
    """The buffers of a compacted network, without a channel that stays because its group would be empty: nobody reads it,
    and what it reads may be gone."""
    found = []
    for name, buffer in small.named_buffers():
        units = sparse.structure.axes.get((name, 0))
        if units is not None and sparse.unit != "weight":
            units = units[(units < 0) | sparse.kept()[units]]
            buffer = buffer[(units < 0) | sparse.cost_model.in_use(sparse.is_open())[units]]
        found.append(buffer)
    return found


class AuxiliaryHead(nn.Module):
    """A classifier of feature maps, with channels of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, 6, 1), nn.BatchNorm2d(6)
        self.hidden, self.out, self.drop = nn.Linear(6 * 4, 5), nn.Linear(5, 3), nn.Dropout(0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(F.adaptive_avg_pool2d(x, 2))))
        return self.out(self.drop(F.relu(self.hidden(x.flatten(1)))))


class TwoAuxiliaryHeads(nn.Module):
    """Returns more in training mode than in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 7, 3, padding=1)
        self.aux1, self.aux2 = AuxiliaryHead(8), AuxiliaryHead(7)
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        x = F.relu(self.norm(self.stem(x)))
        first = self.aux1(x) if self.training else None
        x = F.relu(self.body(x))
        second = self.aux2(x) if self.training else None
        x = self.head(F.dropout(x.mean((2, 3)), 0.3, self.training))
        return x if first is None or second is None else (x, first, second)


class DeepSupervision(nn.Module):
    """In training mode one head reads every stage, so that all stages have the same channels; else only the last."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(a, 6, 3, padding=1) for a in (2, 6, 6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(6) for _ in range(3))
        self.head = nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        maps = []
        for stage, norm in zip(self.stages, self.norms, strict=True):
            x = F.relu(norm(stage(x)))
            maps.append(x)
        return [self.head(x) for x in maps] if self.training else self.head(maps[-1])


class Projected(nn.Module):
    """A dict in training mode: logits, the projection of a second path, and the features themselves, which so stay."""

    def __init__(self, features: bool = False) -> None:
        super().__init__()
        self.features = features
        self.stem, self.body, self.head = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 7, 3), nn.Linear(7, 3)
        self.project = nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4))

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        x = F.relu(self.body(F.relu(self.stem(x)))).mean((2, 3))
        if not self.training:
            return self.head(x)
        found = {"logits": self.head(x), "projected": F.normalize(self.project(x), dim=-1)}
        return found | {"features": x} if self.features else found
