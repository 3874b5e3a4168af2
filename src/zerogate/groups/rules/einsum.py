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


_Lettered = tuple[str, Tensor | None]
"""Letters of dimensions, and labels along them; None where there are none."""


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
        return _Part(order, [s for a, b in self._pairs(left, right) for s in self._met(left, right, a, b, order)])

    def _pairs(self, left: _Part, right: _Part) -> list[tuple[Tensor | None, Tensor | None]]:
        """Sheets of two parts that lie along the same letters, with None where one has no such sheet."""
        pairs: list[tuple[Tensor | None, Tensor | None]] = []
        rest = list(right.sheets)
        for s in left.sheets:
            along = {left.letters[d] for d in varying_dims(s)}
            others = [(t, {right.letters[d] for d in varying_dims(t)}) for t in rest]
            same = [t for t, dims in others if along & dims or not along or not dims]
            rest = [t for t in rest if not same or t is not same[0]]
            pairs.append((s, same[0] if same else None))
        return pairs + [(None, t) for t in rest]

    def _met(self, left: _Part, right: _Part, a: Tensor | None, b: Tensor | None, order: str) -> list[Tensor]:
        """Labels of a product of two activations, by one sheet of each."""
        try:
            return [self._of_activations((left.letters, a), (right.letters, b), order)]
        except Freeze as reason:  # of these two; what others have consumed goes all the same
            for labels in (a, b):
                if labels is not None:
                    self._op.context.freeze(labels, str(reason))
            return []

    def _of_activations(self, left: _Lettered, right: _Lettered, order: str) -> Tensor:
        (one, _), (other, _) = left, right
        batch = [c for c in one if c in other and c in order]
        summed = [c for c in one if c in other and c not in order]
        rows, columns = [c for c in one if c not in other], [c for c in other if c not in one]

        def as_matrices(part: _Lettered, kinds: list[list[str]]) -> Tensor:
            """Labels of an operand as a batch of matrices."""
            letters, labels = part
            labels = no_labels([self._size[c] for c in letters]) if labels is None else labels
            labels = labels.permute([letters.index(c) for kind in kinds for c in kind])
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
        parts = [self._with_parts(s, x, weight, summed) if shared & set(varying_dims(s)) else s for s in x.sheets]
        x = _Part(x.letters, parts)
        if not summed:  # an outer product: channels pass, and what the parameter adds stays
            return _Part(order, [self._moved(s, x.letters, order) for s in x.sheets])
        channel, sheets = self._summed_channels(x, summed)
        macs = self._macs(x, weight) / self._size[channel] / (self._size[new[0]] if new else 1)
        dims = own.index(channel), own.index(new[0]) if new else None
        place = x.letters.index(channel)
        shape = [
            1 if c in summed else self._size[c] for c in x.letters
        ]  # along the others that are summed all are tied
        shape[place] = self._size[new[0]] if new else 1
        further = (
            self._further_channels(parameter, own, new, order)
            if not any(place not in varying_dims(s) for s in sheets)
            else []
        )
        at = place - len(x.letters)
        layer = Layer(parameter, None, dims, at, at if new else None, macs)
        made = read_sheets(op, sheets, len(x.letters), layer, tuple(shape))
        letters = x.letters.replace(channel, new[0]) if new else x.letters
        for s in further:
            op.context.record_repeats(s)
        return _Part(order, [self._moved(s, letters, order) for s in made] + further)

    def _summed_channels(self, x: _Part, summed: list[str]) -> tuple[str, list[Tensor]]:
        """The letter along which a layer consumes, and the sheets of its input, which vary along no other summed letter."""
        channel, sheets = "", []
        for s in x.sheets:
            over = [c for c in summed if x.letters.index(c) in varying_dims(s)]
            if over and channel:
                self._op.context.freeze(s, f"einsum {self._op.args[0]} sums over channels along several dimensions")
                continue
            if over:
                channel = over[0]
                s = self._op.tie_all_along(s, {x.letters.index(c) for c in over[1:]}) if over[1:] else s
            sheets.append(s)
        return channel or summed[0], sheets

    def _further_channels(self, parameter: Tensor, own: str, new: list[str], order: str) -> list[Tensor]:
        """Labels along the second of a parameter's dimensions of outputs, a sheet of their own: of a layer that costs
        nothing, since that along the first counts it."""
        if len(new) != 2:
            return []
        dims = None, own.index(new[1])
        made = self._op.context.record_layer(parameter, None, entering=None, dims=dims, macs=0.0)
        return [] if made is None else [self._moved(made, new[1], order)]

    def _with_parts(self, labels: Tensor, x: _Part, weight: _Part, summed: list[str]) -> Tensor:
        """Labels of an input that has a matrix for each of its parts: those of the parameter go with these."""
        op = self._op
        labels = op.tie_along(labels, {x.letters.index(c) for c in summed})
        shared = "".join(c for c in x.letters if c in weight.letters)
        own = self._moved(self._without(labels, x.letters, shared), shared, weight.letters)
        for view in op.views(weight.parameter):
            op.context.attach_view(view, own)
        return labels

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
