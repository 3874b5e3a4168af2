"""One run in a plain loop, as a user would write it; for the grids of `defaults.py` and `choosing.py`."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

import zerogate as zg
from zerogate.data import Augment, Batches, ImageData, load
from zerogate.training.scores import evaluate


@functools.cache
def images(name: str, path: str | None) -> ImageData:
    """Decoded once for all runs."""
    return load(name, path)


@dataclass(frozen=True)
class Task:
    """A network and its data, with the length of a run."""

    data: str
    model: str
    steps: int
    batch_size: int = 64
    width: int | None = None
    path: str | None = None

    def network(self) -> torch.nn.Module:
        channels = images(self.data, self.path).shape[0]
        options = {} if self.width is None else {"width": self.width, "in_channels": channels}
        return getattr(zg.models, self.model)(**options)

    def batches(self, seed: int) -> Batches:
        d = images(self.data, self.path)
        augment = Augment(flip=True, crop=4) if self.data.startswith("cifar") else None
        return Batches(
            d.train, self.batch_size, d.mean, d.std, shuffle=True, drop_last=True, seed=seed, augment=augment
        )

    def test(self, model: torch.nn.Module, most: int) -> float:
        d = images(self.data, self.path)
        part = d.test.select(torch.arange(min(most, len(d.test))))
        return evaluate(model, Batches(part, 500, d.mean, d.std), d.num_classes)["accuracy"]


def share(sparse: zg.Sparsified, over: str) -> float:
    """What is deployed of the dense network's parameters or MACs."""
    return float(getattr(sparse.cost(), over) / getattr(sparse.dense_cost, over))


def run(
    task: Task,
    optimizer: str,
    lr: float,
    gate: zg.Gate | None = None,
    unit: Any = "channel",
    objective: Any = None,
    gate_lr: float | None = None,
    seed: int = 0,
    every: int = 0,
    most: int = 2000,
) -> dict[str, Any]:
    """What a run ends with; without a gate it is of the dense network.

    Args:
        optimizer: ``"adam"``, or ``"sgd"`` with a momentum of 0.9.
        every: steps between the points of ``trace``: step, deployed and expected share of parameters, multiplier.
        most: test images.
    """
    torch.manual_seed(seed)
    model, batches = task.network(), task.batches(seed)
    sparse = None
    groups: Any = model.parameters()
    if gate is not None:
        sparse = zg.sparsify(model, next(iter(batches))[0][:2], gate=gate, unit=unit, objective=objective)
        groups = sparse.param_groups(lr, gate_lr)
    made = torch.optim.Adam(groups, lr=lr) if optimizer == "adam" else torch.optim.SGD(groups, lr=lr, momentum=0.9)
    done, trace = 0, []
    while done < task.steps:
        for x, y in batches:
            loss = F.cross_entropy(model(x), y)
            if sparse is not None:
                loss = loss + sparse.loss()
            loss.backward()
            made.step()
            made.zero_grad()
            done += 1
            if sparse is not None:
                sparse.step()
                if every and (done % every == 0 or done == 1):
                    expected = float(sparse.cost(hard=False).params.detach()) / sparse.dense_cost.params
                    weight = float(getattr(objective, "multiplier", 0.0))
                    trace.append([done, round(share(sparse, "params"), 4), round(expected, 4), round(weight, 3)])
            if done == task.steps:
                break
    result: dict[str, Any] = {}
    if sparse is not None:
        sparse.project()
        result |= {over: round(share(sparse, over), 4) for over in ("params", "macs")}
        result |= {"changed": getattr(objective, "projected", None), "gates": len(sparse.logits)}
        result |= {"open": int(sparse.is_open().sum())}
    result["test_accuracy"] = round(task.test(model, most), 4)
    return result | ({"trace": trace} if every else {})
