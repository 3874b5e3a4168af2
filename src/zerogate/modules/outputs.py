"""Which of a model's outputs count: all of them, those of some names, or those that a function picks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from zerogate.errors import WatchError, ZerogateError, class_and_line
from zerogate.modules.run import tensors_of

Outputs = str | Collection[str] | Callable[[object], object]
"""Names of outputs, as in ``"logits"`` or ``"1.boxes"``, or a function of what a forward returns that picks among it."""


@dataclass(frozen=True)
class OutputChoice:
    """Picks the tensors that count of what a forward returns. By default these are all.

    A name leads from keys and places to attributes, and stands for everything inside it. In training mode a forward may
    return other things: there those names count that exist, and everything where none does.
    """

    names: tuple[str, ...] | None = None
    function: Callable[[object], object] | None = None

    @staticmethod
    def of(outputs: Outputs | None) -> OutputChoice:
        """Raises `ZerogateError` for anything but names or a function."""
        if outputs is None:
            return OutputChoice()
        if isinstance(outputs, Collection) and all(isinstance(name, str) and name for name in outputs) and outputs:
            return OutputChoice(names=(outputs,) if isinstance(outputs, str) else tuple(outputs))
        if callable(outputs):
            return OutputChoice(function=outputs)
        raise ZerogateError(
            'outputs must be names such as ["logits", "1.boxes"], or a function of what the forward returns, got '
            f"{outputs!r}; leave it out where all outputs count"
        )

    def __call__(self, returned: object, training: bool = False) -> list[Tensor]:
        """The tensors that count.

        Raises `WatchError` for a name that leads to no tensor, and for a function that fails, or returns no tensor or one
        that is not among the outputs. In training mode all tensors count then, or those of the names that exist.
        """
        try:
            return self._chosen(returned)
        except WatchError:
            if not training:
                raise
        existing = [x for name in self.names or () for x in tensors_of(_at(returned, name))]
        return existing or tensors_of(returned)

    def _chosen(self, returned: object) -> list[Tensor]:
        if self.names is not None:
            found = {name: tensors_of(_at(returned, name)) for name in self.names}
            missing = [name for name, tensors in found.items() if not tensors]
            if missing:
                there = ", ".join(map(repr, _names(returned))) or "a single tensor, which has no name"
                raise WatchError(f"outputs: the forward returns nothing called {missing[0]!r}; there are {there}")
            return [x for tensors in found.values() for x in tensors]
        if self.function is None:
            return tensors_of(returned)
        try:
            picked = tensors_of(self.function(returned))
        except Exception as error:
            raise WatchError(
                f"outputs: the function fails on what the forward returns: {class_and_line(error)}"
            ) from error
        own = {id(x) for x in tensors_of(returned)}
        if not picked or any(id(x) not in own for x in picked):
            raise WatchError(
                "outputs: the function must pick one or more of the tensors that the forward returns, and it "
                f"{'returns others, such as a slice of one' if picked else 'returns none'}"
            )
        return picked


ALL_OUTPUTS = OutputChoice()
"""All tensors that a forward returns."""


def _at(value: object, name: str) -> object:
    """What a name leads to; None where there is nothing."""
    key, _, rest = name.partition(".")
    found = next((inside for own, inside in _inside(value) if own == key), None)
    return _at(found, rest) if rest and found is not None else found


def _names(value: object) -> list[str]:
    """The names of all tensors inside a value."""
    names: list[str] = []
    for key, inside in _inside(value):
        names += [key] if isinstance(inside, Tensor) else [f"{key}.{name}" for name in _names(inside)]
    return names


def _inside(value: object) -> Iterator[tuple[str, object]]:
    """What a container holds, by its keys, places and attributes."""
    if isinstance(value, Mapping):
        yield from ((str(key), inside) for key, inside in value.items())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from ((str(i), inside) for i, inside in enumerate(value))
        yield from ((name, getattr(value, name)) for name in getattr(value, "_fields", ()))
    elif dataclasses.is_dataclass(value):
        yield from ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
