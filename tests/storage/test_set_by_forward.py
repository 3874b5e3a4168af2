"""Attributes that a forward sets say nothing of how a network was made: files do not compare them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly
from zerogate.modules.stated_sizes import assigned_by
from zerogate.storage.plan_json import architecture, describe_plan, first_difference


class Last(nn.Module):
    """Keeps numbers of what it has seen, in the way that is asked for; ``kernel`` is fixed when it is made."""

    def __init__(self, keeps: str, kernel: int = 3) -> None:
        super().__init__()
        self.keeps, self.kernel = keeps, kernel
        self.shape: torch.Size | None = None
        self.runs, self.height, self.batches = 0, 0, 0
        self.widths = [0]
        self.read = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.keeps == "shape":
            self.shape = x.shape
        elif self.keeps == "count":
            self.runs += 1
        elif self.keeps == "new":
            self.last = tuple(x.shape[-2:])
        elif self.keeps == "int":
            self._note(x)
        elif self.keeps == "list":
            self.widths.append(x.shape[-1])
        elif self.keeps == "training" and self.training:
            self.batches += len(x)
        elif self.keeps == "setattr":
            setattr(self, "sides", [x.shape[-1]] * 2)  # noqa: B010  # as code does that knows the name at run time only
        return nn.functional.max_pool2d(self.read(x), self.kernel, 1)

    def _note(self, x: Tensor) -> None:
        self.height = x.shape[2]


class Around(nn.Module):
    """Sets attributes of a module inside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inside = nn.Conv2d(3, 8, 3), Last("nothing")

    def forward(self, x: Tensor) -> Tensor:
        self.inside.shape = x.shape
        y: Tensor = self.inside(self.first(x).relu())
        return y


def network(keeps: str, kernel: int = 3) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), Last(keeps, kernel)).double()


def loads_the_same(make: Callable[[], nn.Module], path: Path, run_before: bool) -> None:
    torch.manual_seed(0)
    model, x = make(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    if run_before:
        model.train()(x)
    sparse = zg.sparsify(model, x)
    model.train()(x)
    close_randomly(sparse, torch.Generator().manual_seed(1), "share")
    small = sparse.compact().eval()
    zg.save(small, path)
    assert torch.equal(zg.load(path, make)(x), small(x))


@pytest.mark.parametrize("keeps", ["shape", "count", "new", "int", "list", "training", "setattr"])
@pytest.mark.parametrize("run_before", [False, True])
def test_what_a_forward_keeps_is_not_compared(keeps: str, run_before: bool, tmp_path: Path) -> None:
    loads_the_same(lambda: network(keeps), tmp_path / "small.safetensors", run_before)


@pytest.mark.parametrize("run_before", [False, True])
def test_what_a_forward_keeps_in_another_module_is_not_compared(run_before: bool, tmp_path: Path) -> None:
    loads_the_same(lambda: Around().double(), tmp_path / "small.safetensors", run_before)


def test_what_construction_fixes_is_still_compared(tmp_path: Path) -> None:
    model, x = network("count"), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    sparse = zg.sparsify(model, x)
    sparse.logits.data[:4] = -8
    zg.save(sparse.compact(), tmp_path / "small.safetensors")
    with pytest.raises(zg.CheckpointError, match=r"2\.kernel is 3 in the file and 5 in it"):
        zg.load(tmp_path / "small.safetensors", lambda: network("count", kernel=5))


def test_a_compacted_network_that_is_compacted_again_knows_what_was_set_before(tmp_path: Path) -> None:
    model, x = network("setattr"), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for closed in (2, 2):
        sparse = zg.sparsify(model, x)
        sparse.logits.data[:closed] = -8
        model = sparse.compact()
    zg.save(model, tmp_path / "small.safetensors")
    assert torch.equal(zg.load(tmp_path / "small.safetensors", lambda: network("setattr"))(x), model(x))


def test_files_from_before_are_read_by_what_the_class_says() -> None:
    ran = network("int")
    ran(torch.randn(2, 3, 8, 8, dtype=torch.float64))
    assert architecture(ran)["2.height"] == 6
    assert first_difference(architecture(ran), network("int")) is None
    described = describe_plan(zg.sparsify(ran, torch.randn(2, 3, 8, 8).double())._deployed().plan(), ran, ran)
    assert "2.height" in described["set_by_forward"] and "2.height" not in described["dense"]


def test_what_a_class_assigns_in_its_forward_is_read_from_its_code() -> None:
    assert assigned_by(Last) == {"shape", "runs", "last", "height", "batches"}
    assert assigned_by(nn.Conv2d) == assigned_by(nn.Linear) == frozenset()
