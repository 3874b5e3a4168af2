"""What compaction takes: a `Deployed` value made by hand, of a model of the user's class or of its graph."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import torch
from torch import Tensor, fx, nn

import zerogate as zg
from support import Residual, close_randomly
from zerogate.compaction.compact import carry, compact
from zerogate.compaction.cuttable import ClassModel, Cuttable, ExportedModel, KeptGraph
from zerogate.compaction.deployed import Deployed
from zerogate.compaction.verify import difference
from zerogate.groups.graph.from_export import exported
from zerogate.masking.unit import CHANNEL, WEIGHT
from zerogate.structure import Group, Structure

X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
KEPT = torch.tensor([True, False, True, False])
MASK = torch.tensor([0.5, 0.0, 1.0, 0.0], dtype=torch.float64)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def as_class(model: nn.Module) -> Cuttable:
    return ClassModel(model)


def as_graph(model: nn.Module) -> Cuttable:
    return ExportedModel(model, KeptGraph(model, X, exported(model, X)))


def deployed(cuttable: Cuttable) -> Deployed:
    """Four hidden units, of which the second and the last are closed and the first is open by half."""
    units = torch.arange(4)
    structure = Structure(
        {("0.weight", 0): units, ("0.bias", 0): units, ("2.weight", 1): units},
        (Group("0", slice(0, 4), ("0",), ("2",)),),
        (),
        frozenset(),
        {},
    )

    def mask(weights: Sequence[Tensor]) -> list[Tensor]:
        return [weight * MASK.to(weight) for weight in weights]

    return Deployed(cuttable, X, structure, KEPT, unit=CHANNEL, gated_names=("2.weight",), mask=mask)


def expected(model: nn.Module) -> Tensor:
    return (torch.tanh(model[0](X)) * MASK) @ model[2].weight.T + model[2].bias  # type: ignore[operator, index, union-attr]


both = pytest.mark.parametrize("make", [as_class, as_graph])


@both
def test_a_value_made_by_hand_is_compacted(make: object) -> None:
    model = network()
    value = deployed(make(model))  # type: ignore[operator]
    small = compact(value)
    assert small.get_parameter("0.weight").shape == (2, 3) and small.get_parameter("2.weight").shape == (2, 2)
    torch.testing.assert_close(small(X), expected(model), rtol=0, atol=1e-14)
    assert difference(value, small) <= 1e-14 and difference(value, network()) > 0.1
    assert small.zerogate_plan["difference"] <= 1e-14
    assert isinstance(small, fx.GraphModule) == (make is as_graph) == ("steps" not in small.zerogate_plan)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters(), strict=True))


def test_a_deployed_value_cannot_be_changed() -> None:
    value = deployed(ClassModel(network()))
    for field in fields(value):
        with pytest.raises(FrozenInstanceError):
            setattr(value, field.name, None)


@both
def test_single_weights_stay_in_their_place_as_zeros(make: object) -> None:
    model = network()
    small = compact(replace(deployed(make(model)), unit=WEIGHT))  # type: ignore[operator]
    weight = small.get_parameter("2.weight")
    assert torch.equal(weight, model[2].weight * MASK)  # type: ignore[index, operator]
    assert not torch.signbit(weight[:, 1]).any()  # every zero is +0
    torch.testing.assert_close(small(X), expected(model), rtol=0, atol=1e-14)


@both
def test_what_differs_or_cannot_be_compared_is_not_handed_back(make: object) -> None:
    model = network()
    value = deployed(make(model))  # type: ignore[operator]
    with pytest.raises(zg.CompactionError, match="the compacted Sequential differs from the gated one by"):
        compact(replace(value, kept=~KEPT))
    with pytest.raises(zg.CompactionError, match="example inputs are on the meta device"):
        compact(replace(value, example_inputs=X.to("meta")))
    with torch.no_grad():
        model[2].bias.fill_(float("nan"))  # type: ignore[index, union-attr, operator]
    with pytest.raises(zg.CompactionError, match="outputs of this Sequential hold NaN"):
        compact(value)


@both
def test_state_goes_along_under_the_names_of_the_small_network(make: object) -> None:
    model = network()
    value = deployed(make(model))  # type: ignore[operator]
    optimizer = torch.optim.Adam([*model.parameters(), gate := nn.Parameter(torch.zeros(4))])
    (model(X).square().sum() + gate.sum()).backward()
    optimizer.step()
    moment = optimizer.state[model[2].weight]["exp_avg"]  # type: ignore[index]
    small = compact(replace(value, gate_parameters=(gate,)), optimizer)
    assert optimizer.param_groups[0]["params"] == [*small.parameters()] and gate not in optimizer.state
    assert torch.equal(optimizer.state[small.get_parameter("2.weight")]["exp_avg"], moment[:, KEPT])


@both
def test_a_cuttable_is_copied_and_cut(make: object) -> None:
    model = network().float().train()
    model[1].eval()  # type: ignore[index]
    model.zero_grad()
    model(X.float()).sum().backward()
    cuttable: Cuttable = make(model) if make is as_class else ExportedModel(model, KeptGraph(model, X.float()))  # type: ignore[operator]
    plan = deployed(cuttable).plan()
    twin = cuttable.copy(float64=True)
    assert twin.module is not model and type(twin.module) is nn.Sequential
    assert all(p.dtype == torch.float64 and p.grad is None for p in twin.module.parameters())
    assert twin.module.training and not twin.module[1].training  # type: ignore[index]
    small = twin.cut(plan)
    names = {name: p.shape for name, p in small.named_parameters()}
    assert names == {"0.weight": (2, 3), "0.bias": (2,), "2.weight": (2, 2), "2.bias": (2,)}
    numbers = {name: torch.full(p.shape, float(i)) for i, (name, p) in enumerate(model.named_parameters())}
    cut = cuttable.cut_tensors(numbers, plan)
    assert {name: (x.shape, x.unique().tolist()) for name, x in cut.items()} == {
        name: (names[name], [i]) for i, name in enumerate(names)
    }
    assert all(p.dtype == torch.float32 and p.grad is not None for p in model.parameters())
    assert bool(cuttable.describe(plan, small)) == (make is as_class)


def test_a_class_takes_other_tensors_and_a_graph_does_not() -> None:
    model = network()
    twin = as_class(model).with_tensors(lambda name, x: nn.Parameter(x.detach() * 2))
    assert torch.equal(twin.module.get_parameter("2.bias"), model.get_parameter("2.bias") * 2)
    with pytest.raises(zg.ZerogateError, match=r"keep_class=False .* leave out ema"):
        as_graph(model).with_tensors(lambda name, x: x)


def test_a_graph_is_exported_anew_in_copies_and_for_one_precision_alone() -> None:
    model = network()
    graph = KeptGraph(model, X, exported(model, X))
    assert graph.get() is graph.get()
    for twin in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        (a,), (b,) = twin.get()(X), graph.get()(X)
        assert twin.get() is not graph.get() and torch.equal(a, b)
    model.float()
    with pytest.raises(zg.ZerogateError, match="exported for float64 on cpu, and the model is float32 on cpu now"):
        graph.get()


def test_the_handle_deploys_what_is_open_now() -> None:
    model = Residual().double()
    sparse = zg.sparsify(model, torch.randn(2, 2, 5, 5, dtype=torch.float64))
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    value = sparse._deployed()
    small = compact(value)
    with torch.no_grad():
        sparse.logits.fill_(8.0)
    assert compact(value).state_dict().keys() == small.state_dict().keys()  # the value stays, whatever the gates do
    assert all(torch.equal(a, b) for a, b in zip(compact(value).parameters(), small.parameters(), strict=True))
    assert sparse.compact().stem.weight.shape == model.stem.weight.shape
    carry(value, value.plan(), small)  # nothing to take along
