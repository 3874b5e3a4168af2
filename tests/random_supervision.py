"""Networks nobody wrote by hand that do more in training mode: auxiliary heads of several kinds between their sections."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from random_nets import BATCH, CONV, Maps, Mlp, Rng, activation


class RandomHead(nn.Module):
    """From feature maps [batch, width, ...] to [batch, 3]."""

    def __init__(self, rng: Rng, nd: int, width: int) -> None:
        super().__init__()
        hidden = rng.randint(2, 6)
        self.conv: nn.Module = nn.Identity()
        if rng.random() < 0.5:
            self.conv = nn.Sequential(CONV[nd](width, hidden, 1), rng.choice([BATCH[nd](hidden), nn.Identity()]))
            width = hidden
        self.act, self.places = activation(rng), rng.choice([1, 1, 2])
        self.out = Mlp(rng, width * self.places**nd, 3) if rng.random() < 0.5 else nn.Linear(width * self.places**nd, 3)
        self.nd = nd

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        pooled = getattr(F, f"adaptive_avg_pool{self.nd}d")(x, self.places)
        return self.out(F.dropout(pooled.flatten(1), 0.2, self.training))


class RandomSupervision(nn.Module):
    """Sections of random feature maps; what else training mode does is drawn, too: heads between the sections, of their own
    or one for all, features among the results, an op or a layer that evaluation does not run."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = Rng(seed)
        self.nd = rng.choice([1, 2, 2])
        self.size, width = {1: 12, 2: 6}[self.nd], rng.randint(3, 7)
        self.stem = CONV[self.nd](2, width, 3, padding=1)
        self.sections, self.ends, self.aux = nn.ModuleList(), nn.ModuleList(), nn.ModuleDict()
        self.one_for_all = rng.random() < 0.3
        out = rng.randint(3, 6)
        for number in range(rng.randint(1, 3)):
            section = Maps(rng, self.nd, width, rng.randint(1, 4))
            self.sections.append(section)
            self.ends.append(nn.Sequential(CONV[self.nd](section.width, out, 1), BATCH[self.nd](out)))
            if not self.one_for_all and rng.random() < 0.7:
                self.aux[str(number)] = RandomHead(rng, self.nd, out)
            width = out
        self.head = RandomHead(rng, self.nd, width)
        self.further = CONV[self.nd](width, width, 1) if rng.random() < 0.3 else None
        self.scaled = rng.random() < 0.3
        self.features, self.kind = rng.random() < 0.2, rng.choice(["tuple", "list", "dict"])

    def inputs(self, batch: int, generator: torch.Generator) -> Tensor:
        return torch.randn(batch, 2, *[self.size] * self.nd, generator=generator, dtype=self.stem.weight.dtype)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...] | list[Tensor] | dict[str, Tensor]:
        x, found = self.stem(x), []
        for number, (section, end) in enumerate(zip(self.sections, self.ends, strict=True)):
            x = F.relu(end(section(x)))
            if self.training and (self.one_for_all or str(number) in self.aux):
                found.append(self.head(x) if self.one_for_all else self.aux[str(number)](x))
        if self.training:
            x = x if self.further is None else x + self.further(x)
            x = x * 1.5 if self.scaled else x
        y = self.head(x)
        if not self.training:
            return y
        found = [y, *found, *([x] if self.features else [])]
        if self.kind == "dict":
            return {str(i): y for i, y in enumerate(found)}
        return tuple(found) if self.kind == "tuple" else found
