"""``outputs=``: what else a forward returns freezes no channels, and is not compared."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import zerogate as zg
from support import close_randomly, relative


@dataclass
class Result:
    logits: Tensor
    maps: list[Tensor]


class Pair(NamedTuple):
    logits: Tensor
    maps: list[Tensor]


class Detector(nn.Module):
    """Returns its feature maps beside what counts; in training mode, in another form."""

    def __init__(self, form: str = "tuple") -> None:
        super().__init__()
        self.form = form
        self.stem, self.neck = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Any:
        a = self.stem(x).relu()
        b = self.neck(a).relu()
        y, maps = self.head(b), [a, b]
        if self.form == "dict":
            return OrderedDict(logits=y, maps=maps, deep={"logits": y * 2, "other": b})
        if self.form == "training":
            return {"raw": y, "maps": maps} if self.training else (y, maps)
        return {"tuple": lambda: (y, maps), "named": lambda: Pair(y, maps), "dataclass": lambda: Result(y, maps)}[
            self.form
        ]()


def first(returned: Any) -> Any:
    if isinstance(returned, dict):
        return returned.get("logits", returned.get("raw"))
    return returned.logits if isinstance(returned, Result) else returned[0]


X = torch.randn(2, 3, 6, 6, dtype=torch.float64)


@pytest.mark.parametrize(
    ("form", "outputs"),
    [
        ("tuple", "0"),
        ("tuple", first),
        ("named", ["logits"]),
        ("named", {"0"}),
        ("dataclass", ["logits"]),
        ("dict", ["logits", "deep.logits"]),
        ("dict", first),
        ("training", first),
    ],
)
def test_what_does_not_count_may_get_narrower(form: str, outputs: Any) -> None:
    model = Detector(form).double().eval()
    assert [g.name for g in zg.sparsify(Detector(form).double(), X, outputs=first).groups] == ["stem", "neck"]
    with pytest.raises(zg.WatchError, match="an output of the network"):
        zg.sparsify(Detector(form).double(), X)
    sparse = zg.sparsify(model, X, outputs=outputs)
    assert [g.units for g in sparse.groups] == [8, 16]
    for seed, style in enumerate([None, "one", "none"]):
        close_randomly(sparse, torch.Generator().manual_seed(seed), style)
        small = sparse.compact()
        assert relative(first(model(X)), first(small(X))) < 1e-10
        assert sparse.difference(small) < 1e-10
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())


def test_names_of_training_mode_that_do_not_exist_count_as_everything() -> None:
    with pytest.raises(zg.WatchError, match="an output of the network in training mode"):
        zg.sparsify(Detector("training").double(), X, outputs="0")


def test_a_graph_takes_it_too() -> None:
    model = Detector().double().eval()
    sparse = zg.sparsify(model, X, outputs="0", keep_class=False)
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    assert relative(model(X)[0], sparse.compact()(X)[0]) < 1e-10


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        (["2"], r"nothing called '2'; there are '0', '1\.0', '1\.1'"),
        (["0", "1.logits"], r"nothing called '1\.logits'"),
        (lambda returned: returned[5], "the function fails on what the forward returns: IndexError"),
        (lambda returned: returned[0][:, :2], "a slice of one"),
        (lambda returned: None, "returns none"),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(outputs: Any, reason: str) -> None:
    with pytest.raises(zg.WatchError, match=reason):
        zg.sparsify(Detector().double(), X, outputs=outputs)


def test_a_single_tensor_has_no_name() -> None:
    with pytest.raises(zg.WatchError, match="a single tensor, which has no name"):
        zg.sparsify(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), torch.randn(2, 3), outputs="logits")


@pytest.mark.parametrize("outputs", [[], 0, [0], [""], {"logits": 1, 2: 3}])
def test_anything_else_is_refused(outputs: Any) -> None:
    with pytest.raises(zg.ZerogateError, match="outputs must be names"):
        zg.sparsify(Detector(), X, outputs=outputs)


def test_single_weights_keep_all_outputs() -> None:
    with pytest.raises(zg.ZerogateError, match="outputs go with"):
        zg.sparsify(Detector(), X.float(), unit="weight", outputs="0")
