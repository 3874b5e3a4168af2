"""``torch.einsum``: operand after operand, as torch computes it.

With a parameter it is a layer; of two activations, it is a product of matrices, once its letters are sorted into those
of the batch, the rows, the columns and the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from string import ascii_letters

from torch import Tensor

from zerogate.groups.label_tensors import Sheets, collapse, no_labels, varying_dims
from zerogate.groups.rules.contraction import contract, whole_parameter
from zerogate.groups.rules.layers import Layer, read_sheets
from zerogate.groups.rules.op import Op, Out, rule
from zerogate.groups.rules.protocol import Freeze


@dataclass
class _Part:
    """An operand, or the product of several: its letters, one for each dimension, and what lies along them."""

    letters: str
    sheets: list[Tensor]
    """Labels, of the letters' sizes."""
    parameter: Tensor | None = None
    """Where it is a whole parameter."""


@rule("einsum")
def _einsum(op: Op) -> Out:
    operands: list[Tensor] = list(op.args[1])
    words, out = _spelled_out(op.args[0], [x.ndim for x in operands])
    size = {c: n for word, x in zip(words, operands, strict=True) for c, n in zip(word, x.shape, strict=True) if n > 1}
    size = dict.fromkeys("".join(words), 1) | size
    run = _Contraction(op, size)
    parts = [run.part(x, word) for x, word in zip(operands, words, strict=True)]
    path: list[int] = list(op.bound.get("path") or [0, 1] * (len(parts) - 1))
    if len(parts) == 1:
        return _as_out(run.summed(parts[0], out).sheets)
    for first, second in zip(path[::2], path[1::2], strict=True):
        right, left = parts.pop(max(first, second)), parts.pop(min(first, second))
        left, right = (left, right) if first < second else (right, left)
        later = set(out).union(*(set(p.letters) for p in parts))
        parts.insert(0 if op.bound.get("path") is None else len(parts), run.product(left, right, later, out))
    return _as_out(run.summed(parts[0], out).sheets)


def _as_out(sheets: list[Tensor]) -> Out:
    return Sheets(collapse(s) for s in sheets) if sheets else None


def _spelled_out(equation: str, dims: list[int]) -> tuple[list[str], str]:
    """The letters of each operand, which has so many dimensions, and of the result: an ellipsis as letters, and a result
    that is left out as torch completes it."""
    inputs, arrow, out = equation.replace(" ", "").partition("->")
    words = inputs.split(",")
    spare = [c for c in ascii_letters if c not in equation]
    lengths = [n - len(word.replace("...", "")) if "..." in word else 0 for word, n in zip(words, dims, strict=True)]
    dots = "".join(spare[: max(lengths)])
    if not arrow:
        single = sorted(c for c in set(inputs) - {",", "."} if inputs.count(c) == 1)
        out = ("..." if "..." in inputs else "") + "".join(single)
    words = [w.replace("...", dots[len(dots) - n :]) for w, n in zip(words, lengths, strict=True)]
    return words, out.replace("...", dots)


class _Contraction:
    """The steps of one einsum.

    Args:
        op: the einsum.
        size: of each letter.
    """

    def __init__(self, op: Op, size: dict[str, int]) -> None:
        self._op, self._size = op, size

    def part(self, x: Tensor, word: str) -> _Part:
        if len(set(word)) < len(word):
            raise Freeze(f"einsum {self._op.args[0]} of a diagonal")
        shape = [self._size[c] for c in word]
        sheets = [collapse(s.expand(shape)) for s in self._op.sheets(x)]
        whole = not sheets and whole_parameter(self._op, x) is not None
        return _Part(word, sheets, x if whole else None)

    def summed(self, part: _Part, out: str) -> _Part:
        """A part whose other letters than those of the result are summed up, in the result's order."""
        if part.letters == out:
            return part
        sheets = []
        for s in part.sheets:
            s = self._op.tie_along(s, {i for i, c in enumerate(part.letters) if c not in out})
            s = s[tuple(slice(None) if c in out else 0 for c in part.letters)]
            left = [c for c in part.letters if c in out]
            sheets.append(s.permute([left.index(c) for c in out]))
        return _Part(out, sheets)

    def product(self, left: _Part, right: _Part, later: set[str], out: str) -> _Part:
        """Two parts multiplied, and summed over letters that nothing later has; ``out``: the order of the result's."""
        letters = [c for c in dict.fromkeys(left.letters + right.letters) if c in later]
        order = "".join(c for c in out if c in letters) + "".join(c for c in letters if c not in out)
        left, right = (
            self.summed(p, "".join(c for c in p.letters if c in later or c in q.letters))
            for p, q in ((left, right), (right, left))
        )
        for x, weight in ((left, right), (right, left)):
            if weight.parameter is not None:
                return self._layer(x, weight, order)
        if not left.sheets and not right.sheets:
            return _Part(order, [])
        if len(left.sheets) > 1 or len(right.sheets) > 1:
            raise Freeze(f"einsum {self._op.args[0]} of channels along several dimensions")
        return _Part(order, [self._of_activations(left, right, order)])

    def _of_activations(self, left: _Part, right: _Part, order: str) -> Tensor:
        batch = [c for c in left.letters if c in right.letters and c in order]
        summed = [c for c in left.letters if c in right.letters and c not in order]
        rows = [c for c in left.letters if c not in right.letters]
        columns = [c for c in right.letters if c not in left.letters]

        def as_matrices(part: _Part, kinds: list[list[str]]) -> Tensor:
            """Labels of an operand as a batch of matrices."""
            shape = [self._size[c] for c in part.letters]
            labels = part.sheets[0] if part.sheets else no_labels(shape)
            labels = labels.permute([part.letters.index(c) for kind in kinds for c in kind])
            return labels.reshape(
                *(self._size[c] for c in kinds[0]), *(math.prod(self._size[c] for c in k) for k in kinds[1:])
            )

        a, b = as_matrices(left, [batch, rows, summed]), as_matrices(right, [batch, summed, columns])
        result = contract(self._op, collapse(a), collapse(b))
        kept = batch + rows + columns
        return collapse(result.reshape([self._size[c] for c in kept]).permute([kept.index(c) for c in order]))

    def _layer(self, x: _Part, weight: _Part, order: str) -> _Part:
        """Labels of a layer. Channels of a parameter with several dimensions of inputs or outputs, such as [width, heads,
        head size], lie along the first of them; along the others they are tied."""
        op, own, parameter = self._op, weight.letters, weight.parameter
        assert parameter is not None
        summed = [c for c in own if c in x.letters and c not in order]
        new = [c for c in own if c not in x.letters]
        if not x.sheets and x.parameter is not None:
            x = _Part(x.letters, [op.context.make_channels(x.parameter, {x.letters.index(c) for c in summed})])
        shared = {x.letters.index(c) for c in own if c in x.letters and c in order}
        if any(shared & set(varying_dims(s)) for s in x.sheets):
            return self._stacked(x, weight, order, summed)
        if not summed:  # an outer product: channels pass, and what the parameter adds stays
            return _Part(order, [self._moved(s, x.letters, order) for s in x.sheets])
        channel = summed[0]
        sheets = []
        for s in x.sheets:
            over = [c for c in summed if x.letters.index(c) in varying_dims(s)]
            if over:
                channel = over[0]
                s = op.tie_all_along(s, {x.letters.index(c) for c in over[1:]}) if over[1:] else s
            sheets.append(s)
        macs = self._macs(x, weight) / self._size[channel] / (self._size[new[0]] if new else 1)
        dims = own.index(channel), own.index(new[0]) if new else None
        at = x.letters.index(channel) - len(x.letters)
        kept = "".join(c for c in x.letters if c not in summed or c == channel)  # the others are tied already
        sheets = [self._without(s, x.letters, kept) for s in sheets]
        place = kept.index(channel)
        shape = tuple(1 if c == channel else self._size[c] for c in kept)
        if new:
            shape = (*shape[:place], self._size[new[0]], *shape[place + 1 :])
        layer = Layer(parameter, None, dims, at, place - len(kept) if new else None, macs)
        made = read_sheets(op, sheets, len(kept), layer._replace(channel_dim=place - len(kept)), shape)
        letters = kept.replace(channel, new[0] if new else "")
        out = [s if new else s.squeeze(place) for s in made or ()] if isinstance(made, Sheets) else []
        return _Part(order, [self._moved(s, letters, order) for s in out])

    def _stacked(self, x: _Part, weight: _Part, order: str, summed: list[str]) -> _Part:
        """A matrix for each part of the input: the parts of the parameter go with these, and nothing else does."""
        op, parameter = self._op, weight.parameter
        if len(x.sheets) > 1 or parameter is None:
            raise Freeze(f"einsum {op.args[0]} of channels along several dimensions")
        labels = op.tie_along(x.sheets[0], {x.letters.index(c) for c in summed})
        own = self._moved(
            self._without(labels, x.letters, "".join(c for c in x.letters if c in weight.letters)),
            "".join(c for c in x.letters if c in weight.letters),
            weight.letters,
        )
        for view in op.views(parameter):
            op.context.attach_view(view, own)
        if summed:
            op.context.record_layer(parameter, None, entering=None, dims=(None, None), macs=self._macs(x, weight))
            op.context.record_repeats(labels)
        return _Part(order, [self._moved(labels, x.letters, order)])

    def _macs(self, x: _Part, weight: _Part) -> float:
        return math.prod(self._size[c] for c in dict.fromkeys(x.letters + weight.letters))

    def _without(self, labels: Tensor, letters: str, kept: str) -> Tensor:
        """Labels along the kept letters, of labels that are the same along the others."""
        return labels[tuple(slice(None) if c in kept else 0 for c in letters)]

    def _moved(self, labels: Tensor, letters: str, order: str) -> Tensor:
        """Labels along letters in another order; they are the same along letters that come or go."""
        both = [c for c in letters if c in order]
        labels = self._without(labels, letters, "".join(both)).permute([both.index(c) for c in order if c in both])
        for i, c in enumerate(order):
            if c not in both:
                labels = labels.unsqueeze(i)
        return collapse(labels.expand([self._size[c] for c in order]))
