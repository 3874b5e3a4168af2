"""Where the tensors of a run come from: what tells whether two runs read the same results, one step after the other."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from zerogate.groups.limits import COMPARED_CONSTANT_ENTRIES
from zerogate.groups.recording.tensor_maps import TensorMap
from zerogate.modules.index import named_tensors
from zerogate.modules.internals import storage_key
from zerogate.modules.unregistered import unregistered

Source = str | tuple[object, ...]
"""A parameter or buffer by its name; (step, number of its result); an input by its number; anything else by where a module
holds it, or by the order in which it was come upon, with its values where it is small."""


class Sources:
    """The source of each tensor of one run.

    Args:
        model: as it runs.
        inputs: what it is given, in order.
        known: an empty map for the tensors of this run.
    """

    def __init__(self, model: nn.Module, inputs: Iterable[object], known: TensorMap[Source]) -> None:
        self._model, self._known = model, known
        for i, x in enumerate(inputs):
            if isinstance(x, Tensor):
                known[x] = "input", i
        for name, x in named_tensors(model):
            known[x] = name
        self._held: dict[int, tuple[Tensor, Source]] | None = None
        """id of a tensor that a module holds without having registered it → the tensor, and where."""
        self._memory: dict[int, str] = {}
        """Memory of a parameter or buffer → its name."""
        self._met = 0
        self.read: list[Source] = []
        """The source of each tensor that the op is given that runs now."""

    def before(self, tensors: Iterable[Tensor]) -> None:
        """Looks up the sources of an op's tensors, which are `read` then."""
        known = self._known.get
        self.read = [known(x) or self._find(x) for x in tensors]

    def after(self, results: Iterable[Tensor], step: int | None) -> None:
        """Notes what that op has returned, also where that is one of its operands, into which it has written.

        ``step``: number of the op in the record; None for one that only settles the layout of its first tensor.
        """
        if step is not None:
            for i, x in enumerate(results):
                self._known[x] = step, i
        elif self.read:
            for x in results:
                self._known[x] = self.read[0]

    def _find(self, x: Tensor) -> Source:
        """The source of a tensor that no op has returned."""
        if self._held is None:
            self._held = {id(t): (t, path) for path, t in reversed([*unregistered(self._model)])}
            self._memory = {storage_key(t): name for name, t in named_tensors(self._model) if _is_strided(t)}
        source: Source | None = None
        if id(x) in self._held:
            source = self._held[id(x)][1]
        elif _is_strided(x) and storage_key(x) in self._memory:  # ``weight.data``
            source = "memory", self._memory[storage_key(x)]
        if source is None:
            self._met += 1
            source = self._met, *_values(x)
        self._known[x] = source
        return source


def _values(x: Tensor) -> tuple[object, ...]:
    """What a small tensor with data holds; nothing of any other."""
    if x.is_meta or not _is_strided(x) or x.numel() > COMPARED_CONSTANT_ENTRIES:
        return ()
    return (str(x.tolist()),)  # as words: not a number is equal to itself then


def _is_strided(x: Tensor) -> bool:
    return x.layout is torch.strided and not x.is_nested
