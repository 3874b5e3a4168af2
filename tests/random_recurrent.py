"""Recurrent networks nobody wrote by hand: layers of torch, cells in loops, recurrences written out, and what is between."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from random_nets import Mlp, ReadsTokens, Rng, token_norm


class OwnLayer(nn.Module):
    """One of torch's layers, over padded or packed sequences; returns its outputs, or its last states at each step."""

    def __init__(self, rng: Rng, width: int) -> None:
        super().__init__()
        kind, hidden = rng.choice(["LSTM", "LSTM", "GRU", "RNN"]), rng.randint(4, 7)
        self.both, self.first, self.packed = rng.random() < 0.5, rng.random() < 0.6, rng.random() < 0.3
        projection = rng.choice([0, 0, 2]) if kind == "LSTM" else 0
        options: dict[str, Any] = {"proj_size": projection} if projection else {}
        self.layer = getattr(nn, kind)(
            width,
            hidden,
            rng.choice([1, 1, 2, 3]),
            bias=rng.random() < 0.8,
            batch_first=self.first,
            bidirectional=self.both,
            **options,
        )
        self.state = "none" if kind == "LSTM" and projection else rng.choice(["none", "none", "zeros", "learned"])
        states, self.hidden = self.layer.num_layers * (1 + self.both), hidden
        self.start = nn.Parameter(torch.randn(states, 1, hidden)) if self.state == "learned" else None
        self.end = rng.choice(["each", "each", "last"])
        self.width = (projection or hidden) * (1 + self.both)

    def forward(self, x: Tensor) -> Tensor:
        batch, steps, _ = x.shape
        h: Any = None
        if self.start is not None:
            h = self.start.expand(-1, batch, -1).contiguous()
        elif self.state == "zeros":
            h = torch.zeros(self.layer.num_layers * (1 + self.both), batch, self.hidden, dtype=x.dtype, device=x.device)
        if h is not None and isinstance(self.layer, nn.LSTM):
            h = h, torch.zeros_like(h)
        x = x if self.first else x.transpose(0, 1)
        given: Any = x
        if self.packed:
            lengths = steps - 2 * (torch.arange(batch) % 2)
            given = pack_padded_sequence(x, lengths, batch_first=self.first, enforce_sorted=False)
        y, h = self.layer(given) if h is None else self.layer(given, h)
        if self.packed:
            y, _ = pad_packed_sequence(y, batch_first=self.first)
        y = y if self.first else y.transpose(0, 1)
        if self.end == "last":
            h = h[0] if isinstance(h, tuple) else h
            last = torch.cat((h[-2], h[-1]), 1) if self.both else h[-1]
            return y + last[:, None]
        return y


class Loop(nn.Module):
    """A cell, or what one computes, step by step."""

    def __init__(self, rng: Rng, width: int) -> None:
        super().__init__()
        self.kind = rng.choice(["LSTMCell", "GRUCell", "RNNCell", "lstm", "lstm", "gru", "plain", "plain"])
        self.width, bias = rng.randint(3, 7), rng.random() < 0.8
        self.joint, self.whole = rng.random() < 0.5, rng.random() < 0.5
        self.state = rng.choice(
            ["none", "new", "same", "expanded"] if "Cell" in self.kind else ["new", "same", "expanded"]
        )
        n = self.width
        if "Cell" in self.kind:
            self.cell = getattr(nn, self.kind)(width, n, bias=bias)
            return
        rows = {"lstm": 4, "gru": 2, "plain": 1}[self.kind] * n
        if self.joint:
            self.gates = nn.Linear(width + n, rows, bias=bias)
        else:
            self.of_input, self.of_state = nn.Linear(width, rows, bias=bias), nn.Linear(n, rows, bias=False)
        self.new = nn.Linear(width + n, n) if self.kind == "gru" else None
        self.norm = nn.LayerNorm(n) if self.kind == "plain" and rng.random() < 0.4 else nn.Identity()

    def start(self, x: Tensor) -> tuple[Tensor, Tensor]:
        n = self.width
        if self.state == "new":
            return x.new_zeros(len(x), n), torch.zeros(len(x), n, dtype=x.dtype, device=x.device)
        h = torch.zeros(len(x), n).to(x) if self.state == "same" else torch.zeros(1, n, dtype=x.dtype).expand(len(x), n)
        return h, h

    def step(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        y = self.gates(torch.cat([x, h], -1)) if self.joint else self.of_input(x) + self.of_state(h)
        if self.kind == "plain":
            return torch.tanh(self.norm(y)), c
        if self.new is not None:
            z, r = torch.sigmoid(y).chunk(2, -1)
            new = torch.tanh(self.new(torch.cat([x, r * h], -1)))
            return (1 - z) * new + z * h, c
        i, f, g, o = y.chunk(4, 1) if self.whole else y.split(self.width, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c

    def forward(self, x: Tensor) -> Tensor:
        outputs, state = [], None if self.state == "none" else self.start(x)
        for one in x.unbind(1):
            if self.kind == "LSTMCell":
                state = self.cell(one, state)
            elif "Cell" in self.kind:
                h = self.cell(one, None if state is None else state[0])
                state = h, h
            else:
                assert state is not None
                state = self.step(one, *state)
            outputs.append(state[0])
        return torch.stack(outputs, 1)


class Glue(nn.Module):
    """A norm, and a perceptron beside the input or in its place."""

    def __init__(self, rng: Rng, width: int) -> None:
        super().__init__()
        self.norm, self.beside = token_norm(rng, width), rng.random() < 0.5
        self.width = width if self.beside else rng.randint(3, 8)
        self.mlp = Mlp(rng, width, self.width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(x))
        return x + y if self.beside else y


class RandomRecurrent(ReadsTokens):
    """Tokens or vectors, recurrent parts of several kinds, and an end."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = Rng(seed)
        width, self.tokens, self.words = rng.choice([3, 4, 6]), rng.randint(3, 5), rng.random() < 0.5
        self.stem = nn.Embedding(11, width) if self.words else nn.Linear(3, width)
        self.parts = nn.ModuleList()
        for kind in rng.choices([OwnLayer, Loop, Glue], [4, 4, 2], k=rng.randint(1, 3)):
            part = kind(rng, width)
            width = part.width
            self.parts.append(part)
        self.end = rng.choice(["each", "last", "mean"])
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for part in self.parts:
            x = part(x)
        x = x if self.end == "each" else x[:, -1] if self.end == "last" else x.mean(1)
        return self.head(x)
