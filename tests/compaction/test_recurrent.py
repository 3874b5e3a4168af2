"""Recurrent layers, cells and recurrences by hand: what their gates close leaves them, and nothing else changes."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import zerogate as zg
from support import close_randomly, randomise, relative

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
ROWS = {"LSTM": 4, "GRU": 3, "RNN": 1}


def weights_of(layer: nn.RNNBase | nn.RNNCellBase) -> list[Tensor]:
    return [p for name, p in layer.named_parameters() if "weight" in name]


def close(sparse: zg.Sparsified, share: float = 0.5, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        closed = torch.rand(len(sparse.logits), generator=generator) < share
        sparse.logits.copy_(torch.where(closed, -8.0, 8.0).to(sparse.logits))


def sizes(sparse: zg.Sparsified) -> dict[str, int]:
    return {g.name: g.units for g in sparse.groups}


class Sequences(nn.Module):
    """Channels that a convolution makes, a recurrent layer, and a linear one on each of its outputs."""

    def __init__(self, kind: str = "LSTM", width: int = 12, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv1d(5, 16, 3, padding=1)
        self.layer = getattr(nn, kind)(16, width, batch_first=True, **options)
        ways = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear((options.get("proj_size") or width) * ways, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(F.relu(self.conv(x)).transpose(1, 2))[0])


def test_an_lstm_is_what_it_is_by_hand() -> None:
    torch.manual_seed(0)
    model, x = Sequences().double(), torch.randn(2, 5, 9).double()
    sparse = zg.sparsify(model, x)
    assert sizes(sparse) == {"conv": 16, "layer": 12}
    inputs, hidden = torch.arange(16) % 2 == 0, torch.arange(12) % 3 > 0
    with torch.no_grad():
        sparse.logits.copy_(torch.where(torch.cat([inputs, hidden]), 8.0, -8.0).to(sparse.logits))
    whole, small = copy.deepcopy(model), Sequences(width=8).double()
    small.conv, small.layer = nn.Conv1d(5, 8, 3, padding=1).double(), nn.LSTM(8, 8, batch_first=True).double()
    rows = hidden.repeat(4)
    with torch.no_grad():
        small.conv.weight.copy_(whole.conv.weight[inputs])
        small.conv.bias.copy_(whole.conv.bias[inputs])  # type: ignore[index]
        small.layer.weight_ih_l0.copy_(whole.layer.weight_ih_l0[rows][:, inputs])
        small.layer.weight_hh_l0.copy_(whole.layer.weight_hh_l0[rows][:, hidden])
        small.layer.bias_ih_l0.copy_(whole.layer.bias_ih_l0[rows])
        small.layer.bias_hh_l0.copy_(whole.layer.bias_hh_l0[rows])
        small.head.weight.copy_(whole.head.weight[:, hidden])
        small.head.bias.copy_(whole.head.bias)
    compact = sparse.compact()
    with torch.no_grad():
        assert torch.equal(compact(x), small(x)) and relative(model.eval()(x), small(x)) < 1e-12
    assert (compact.layer.input_size, compact.layer.hidden_size) == (8, 8)
    assert [p.shape for p in compact.parameters()] == [p.shape for p in small.parameters()]
    assert sparse.cost().macs == 9 * (5 * 3 * 8 + 4 * 8 * (8 + 8) + 8 * 3)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["LSTM", "GRU", "RNN"]),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 0, 2, 5]),
    st.integers(0, 10**6),
)
def test_layers_directions_biases_projections(
    kind: str, layers: int, both: bool, bias: bool, projection: int, seed: int
) -> None:
    torch.manual_seed(seed)
    options: dict[str, Any] = {"proj_size": projection} if kind == "LSTM" else {}
    model = Sequences(kind, 7, num_layers=layers, bidirectional=both, bias=bias, **options).double()
    generator = torch.Generator().manual_seed(seed)
    randomise(model, generator)
    sparse = zg.sparsify(model, torch.randn(2, 5, 4).double())
    assert sparse.dense_cost.params == sum(p.numel() for p in model.parameters())
    for _ in range(2):
        close_randomly(sparse, generator)
        small, x = sparse.compact().eval(), torch.randn(3, 5, 6).double()
        with torch.no_grad():
            assert relative(model.eval()(x), small(x)) < 1e-10
        cost, layer = sparse.cost(), small.layer
        assert cost.params == sum(p.numel() for p in small.parameters())
        assert cost.macs == 4 * sum(w.numel() for w in [small.conv.weight, *weights_of(layer), small.head.weight])
        assert layer.input_size == layer.weight_ih_l0.shape[1]
        assert layer.weight_hh_l0.shape[0] == layer.hidden_size * ROWS[kind]
        if options.get("proj_size"):
            assert layer.hidden_size > projection >= layer.proj_size == layer.weight_hr_l0.shape[0]


class Packed(nn.Module):
    """Sequences of several lengths, and a head on both last states."""

    def __init__(self, kind: str = "LSTM", **options: Any) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(20, 8), getattr(nn, kind)(8, 6, 2, bidirectional=True, **options)
        self.each, self.last = nn.Linear(12, 3), nn.Linear(12, 2)

    def forward(self, words: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        packed = pack_padded_sequence(self.words(words), lengths, self.layer.batch_first, enforce_sorted=False)
        packed, h = self.layer(packed)
        y, _ = pad_packed_sequence(packed, self.layer.batch_first, padding_value=1.0)
        h = h[0] if isinstance(h, tuple) else h
        return self.each(y), self.last(torch.cat((h[-2], h[-1]), 1))


@pytest.mark.parametrize("kind", ROWS)
def test_packed_sequences(kind: str) -> None:
    torch.manual_seed(0)
    model = Packed(kind, batch_first=True).double()
    x = torch.randint(20, (3, 7)), torch.tensor([4, 7, 2])
    sparse = zg.sparsify(model, x)
    assert sizes(sparse) == {"words": 8, "layer": 6}
    close(sparse)
    small = sparse.compact().eval()
    others = torch.randint(20, (2, 5)), torch.tensor([5, 1])
    with torch.no_grad():
        for args in (x, others):
            for a, b in zip(model.eval()(*args), small(*args), strict=True):
                assert relative(a, b) < 1e-10
    tokens = 4 + 7 + 2
    heads = 3 * 7 * small.each.weight.numel() + 3 * small.last.weight.numel()
    assert sparse.cost().macs == round((tokens * sum(w.numel() for w in weights_of(small.layer)) + heads) / 3)


def test_a_packed_sequence_as_example_input() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.GRU(4, 6), nn.GRU(6, 5), nn.Linear(5, 2)

        def forward(self, x: PackedSequence) -> Tensor:
            return self.c(self.b(self.a(x)[0])[0].data)

    model = Model().double()
    x = pack_padded_sequence(torch.randn(5, 3, 4).double(), torch.tensor([5, 4, 1]))
    sparse = zg.sparsify(model, (x,))
    assert sizes(sparse) == {"a": 6, "b": 5}
    close(sparse)
    with torch.no_grad():
        assert relative(model.eval()(x), sparse.compact().eval()(x)) < 1e-10


class OfSteps(nn.Module):
    """A recurrence in Python: ``step(model, x, state)`` gives the outputs of one step and the next state."""

    def __init__(self, step: Callable[..., tuple[Tensor, Any]], start: Callable[..., Any], **children: Any) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)
        self.step, self.start, self.width = step, start, 10
        self.enter, self.head = nn.Linear(6, 8), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, outputs = self.enter(x), []
        state = self.start(self, x)
        for t in range(x.shape[1]):
            y, state = self.step(self, x[:, t], state)
            outputs.append(y)
        return self.head(torch.stack(outputs, 1))


def zeros(model: Any, x: Tensor) -> Tensor:
    return x.new_zeros(len(x), model.width)


def two_zeros(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(len(x), model.width).to(x), torch.zeros(len(x), model.width, dtype=x.dtype)


def same_zeros(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.zeros(1, model.width, dtype=x.dtype).expand(len(x), -1)
    return h, h


def of_cell(model: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
    state = model.cell(x, state)
    return (state[0] if isinstance(state, tuple) else state), state


def lstm_by_hand(model: Any, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
    h, c = state
    i, f, g, o = (model.x(x) + model.h(h)).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return h, (h, c)


def gru_by_hand(model: Any, x: Tensor, h: Tensor) -> tuple[Tensor, Any]:
    z, r = torch.sigmoid(model.zr(torch.cat([x, h], 1))).chunk(2, 1)
    n = torch.tanh(model.n(torch.cat([x, r * h], 1)))
    h = (1 - z) * n + z * h
    return h, h


def residual_step(model: Any, x: Tensor, h: Tensor) -> tuple[Tensor, Any]:
    h = torch.tanh(model.x(x) + model.h(model.norm(h)))
    return h, h


RECURRENCES: dict[str, Callable[[], nn.Module]] = {
    "LSTMCell": lambda: OfSteps(of_cell, two_zeros, cell=nn.LSTMCell(8, 10)),
    "LSTMCell, no state given": lambda: OfSteps(of_cell, lambda m, x: None, cell=nn.LSTMCell(8, 10)),
    "GRUCell": lambda: OfSteps(of_cell, zeros, cell=nn.GRUCell(8, 10)),
    "RNNCell": lambda: OfSteps(of_cell, lambda m, x: None, cell=nn.RNNCell(8, 10, bias=False, nonlinearity="relu")),
    "LSTM by hand": lambda: OfSteps(lstm_by_hand, two_zeros, x=nn.Linear(8, 40), h=nn.Linear(10, 40)),
    "LSTM by hand, one tensor": lambda: OfSteps(lstm_by_hand, same_zeros, x=nn.Linear(8, 40), h=nn.Linear(10, 40)),
    "GRU by hand": lambda: OfSteps(gru_by_hand, zeros, zr=nn.Linear(18, 20), n=nn.Linear(18, 10)),
    "with a norm of the state": lambda: OfSteps(
        residual_step, zeros, x=nn.Linear(8, 10), h=nn.Linear(10, 10), norm=nn.LayerNorm(10)
    ),
}


@pytest.mark.parametrize("name", RECURRENCES)
def test_recurrences_in_python(name: str) -> None:
    torch.manual_seed(0)
    model = RECURRENCES[name]().double()
    randomise(model, torch.Generator().manual_seed(0))
    sparse = zg.sparsify(model, torch.randn(2, 4, 6).double())
    assert sorted(g.units for g in sparse.groups) == [8, 10], sparse.report()
    x = torch.randn(3, 5, 6).double()
    for seed in range(3):
        close(sparse, seed=seed)
        small = sparse.compact().eval()
        with torch.no_grad():
            assert relative(model.eval()(x), small(x)) < 1e-10
        assert sparse.cost().params == sum(p.numel() for p in small.parameters())
        assert small.head.in_features < 10 and (
            "zeros" not in model.start.__name__ or small.width == small.head.in_features
        )


class ConvLSTM(nn.Module):
    """A step for each image; the first state is zeros, beside which the image comes into one convolution."""

    def __init__(self, split: bool) -> None:
        super().__init__()
        self.width, self.split = 6, split
        self.gates, self.head = nn.Conv2d(3 + 6, 24, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, steps, _, *size = x.shape
        h, c = (torch.zeros(b, self.width, *size, dtype=x.dtype, device=x.device) for _ in range(2))
        for t in range(steps):
            gates = self.gates(torch.cat([x[:, t], h], 1))
            i, f, o, g = gates.split(self.width, 1) if self.split else gates.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.head(h)


@pytest.mark.parametrize("split", [False, True])
def test_a_convolutional_recurrence(split: bool) -> None:
    torch.manual_seed(0)
    model, x = ConvLSTM(split).double(), torch.randn(2, 3, 3, 5, 4).double()
    sparse = zg.sparsify(model, x)
    assert sizes(sparse) == {"gates": 6}
    close(sparse)
    small = sparse.compact().eval()
    with torch.no_grad():
        assert relative(model.eval()(x), small(x)) < 1e-10
    assert small.gates.weight.shape == (4 * small.width, 3 + small.width, 3, 3)


class Translation(nn.Module):
    """An encoder whose last states start the decoder, which attends to the encoder's outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(5, 8, 2, batch_first=True), nn.LSTM(5, 8, 2, batch_first=True)
        self.query, self.key, self.score = nn.Linear(8, 7), nn.Linear(8, 7), nn.Linear(7, 1)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        memory, state = self.encoder(x)
        y, _ = self.decoder(y, state)
        scores = self.score(torch.tanh(self.query(y)[:, :, None] + self.key(memory)[:, None])).squeeze(-1)
        return self.head(torch.cat([y, scores.softmax(-1) @ memory], -1))


def test_an_encoder_and_a_decoder() -> None:
    torch.manual_seed(0)
    model, args = Translation().double(), (torch.randn(2, 5, 5).double(), torch.randn(2, 4, 5).double())
    sparse = zg.sparsify(model, args)
    assert sorted(g.units for g in sparse.groups) == [7, 8]
    close(sparse, 0.4)
    with torch.no_grad():
        assert relative(model.eval()(*args), sparse.compact().eval()(*args)) < 1e-10


class Started(nn.Module):
    """A recurrent layer whose first state is a parameter, or given with the inputs."""

    def __init__(self, learned: bool) -> None:
        super().__init__()
        self.layer, self.head = nn.GRU(4, 6, 2), nn.Linear(6, 2)
        self.first = nn.Parameter(torch.randn(2, 1, 6)) if learned else None

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        h = self.first.expand(-1, x.shape[1], -1).contiguous() if self.first is not None else h
        return self.head(self.layer(x, h)[0])


def test_a_learned_first_state_is_cut_too() -> None:
    model, x = Started(learned=True).double(), torch.randn(5, 3, 4).double()
    sparse = zg.sparsify(model, x)
    assert sizes(sparse) == {"layer": 6}
    close(sparse)
    small = sparse.compact().eval()
    assert small.first.shape[-1] == small.layer.hidden_size < 6  # type: ignore[union-attr]
    with torch.no_grad():
        assert relative(model.eval()(x), small(x)) < 1e-10


def test_a_first_state_that_is_given_keeps_its_size() -> None:
    model, args = Started(learned=False), (torch.randn(5, 3, 4), torch.randn(2, 3, 6))
    with pytest.raises(zg.WatchError, match="gru with an initial state whose size the layer does not choose in layer"):
        zg.sparsify(model, args)


def test_a_state_of_a_written_size_stays() -> None:
    model = OfSteps(of_cell, lambda m, x: x.new_zeros(len(x), 10), cell=nn.GRUCell(8, 10))
    sparse = zg.sparsify(model, torch.randn(2, 4, 6))
    assert sizes(sparse) == {"enter": 8}
    reasons = {row.layer: row.reason for row in sparse.report().rows}
    assert "new_zeros to a size that is written down" in reasons["cell"] and "test_recurrent.py:" in reasons["cell"]


def test_channels_along_time_stay() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.layer, self.head = nn.Linear(4, 6), nn.GRU(3, 5), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.layer(self.a(x).permute(2, 0, 1))[0])

    model, x = Model().double(), torch.randn(2, 3, 4).double()
    sparse = zg.sparsify(model, x)
    assert sizes(sparse) == {"layer": 5}
    assert any("gru over channels" in row.reason for row in sparse.report().rows if row.layer == "a")
    close(sparse)
    with torch.no_grad():
        assert relative(model.eval()(x), sparse.compact().eval()(x)) < 1e-10


def test_single_weights_of_recurrent_layers() -> None:
    torch.manual_seed(0)
    model, x = Sequences("LSTM", 12, proj_size=5, num_layers=2).double(), torch.randn(2, 5, 4).double()
    sparse = zg.sparsify(model, x, unit="weight")
    named = {name: p.numel() for name, p in model.named_parameters() if p.ndim > 1}
    assert sizes(sparse) == named and len(named) == 8
    close(sparse)
    small = sparse.compact().eval()
    with torch.no_grad():
        assert relative(model.eval()(x), small(x)) < 1e-12
    for name, p in small.named_parameters():
        if p.ndim > 1:
            assert int((p == 0).sum()) == int(
                (~sparse.is_open()[next(g.slice for g in sparse.groups if g.name == name)]).sum()
            )
    left = sum(int(torch.count_nonzero(p)) for p in small.parameters() if p.ndim == 2)
    assert sparse.cost().macs == 4 * (left + int(torch.count_nonzero(small.conv.weight)))


@pytest.mark.parametrize("unit", ["channel", "weight"])
def test_training_saving_and_copies(unit: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    make = lambda: Packed("LSTM", batch_first=True, dropout=0.2)  # noqa: E731
    model, x = make(), (torch.randint(20, (3, 7)), torch.tensor([4, 7, 2]))
    sparse = zg.sparsify(model, x, unit=unit, objective=zg.Target(params=0.6, steps=6))
    optimizer = torch.optim.Adam(sparse.param_groups(lr=1e-2, gate_lr=0.5))
    for _ in range(6):
        loss = sum(y.square().mean() for y in model(*x)) + sparse.loss()
        loss.backward()
        gradient = sparse.logits.grad
        assert sparse.settled or (gradient is not None and gradient.isfinite().all() and gradient.any())
        for weight in weights_of(model.layer):
            assert weight.grad is not None and weight.grad.any()
        optimizer.step()
        optimizer.zero_grad()
        sparse.step()
    assert all(a is b for a, b in zip(model.layer._flat_weights, model.layer.parameters(), strict=True))
    twin = copy.deepcopy(model).eval()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(twin(*x), model.eval()(*x), strict=True))
    sparse.project()
    small = sparse.compact(optimizer=optimizer)
    assert sparse.cost().params <= 0.6 * sparse.dense_cost.params
    assert all(a is b for a, b in zip(small.layer._flat_weights, small.layer.parameters(), strict=True))
    small.layer.flatten_parameters()
    sum(y.square().mean() for y in small.train()(*x)).backward()  # type: ignore[union-attr]
    optimizer.step()
    zg.save(small.eval(), tmp_path / "x")
    loaded, again = zg.load(tmp_path / "x", make).eval(), copy.deepcopy(small)
    with torch.no_grad():
        for other in (loaded, again):
            assert all(torch.equal(a, b) for a, b in zip(other(*x), small(*x), strict=True))
    sparse.detach()
    with torch.no_grad():
        assert model(*x)[0].isfinite().all()


def test_a_compacted_recurrence_can_be_traced_and_exported() -> None:
    torch.manual_seed(0)
    model, x = Sequences("GRU", 6, num_layers=2).eval(), torch.randn(2, 5, 4)
    sparse = zg.sparsify(model, x)
    close(sparse)
    small = sparse.compact().eval()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        for other in (torch.jit.trace(small, x, check_trace=False), torch.export.export(small, (x,)).module()):
            assert torch.allclose(other(x), small(x), atol=1e-6)


def test_gates_of_every_example_do_not_reach_a_recurrence() -> None:
    model, x = Sequences(), torch.randn(2, 5, 4)
    with pytest.raises(
        zg.ZerogateError, match=r"its forward, of a LSTM, may read layer.weight_.h_l0 with something else"
    ):
        zg.sparsify(model, x, per_example=True)


def test_inputs_of_a_recurrent_layer_stay() -> None:
    sparse = zg.sparsify(Started(learned=True), torch.randn(5, 3, 4), gate_inputs=True)
    assert sizes(sparse) == {"layer": 6}


class Listed(nn.Module):
    """Reads its weights from a list beside its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(3, 6))
        self.all = [self.a, self.b]

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.all[0]).relu(), self.all[1])


def test_weights_that_are_read_from_a_list() -> None:
    model, x = Listed().double(), torch.randn(2, 4).double()
    sparse = zg.sparsify(model, x)
    close(sparse)
    small = sparse.compact()
    assert small.all[0] is small.a and small.a.shape[0] < 6
    with torch.no_grad():
        gated = model.eval()(x)
        assert relative(gated, small(x)) < 1e-12
    assert model.all[1] is model.b
    sparse.detach()
    with torch.no_grad():
        assert relative(gated, model(x)) > 1e-3
