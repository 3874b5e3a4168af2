"""What is known of tensors, by identity."""

from __future__ import annotations

from typing import Any, Generic, Protocol, TypeVar, cast, overload

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

V = TypeVar("V")
D = TypeVar("D")


class TensorMap(Protocol[V]):
    """A dict with tensors as keys, each compared by identity."""

    @overload
    def get(self, key: Tensor, /) -> V | None: ...
    @overload
    def get(self, key: Tensor, default: D, /) -> V | D: ...
    def pop(self, key: Tensor, default: None, /) -> V | None: ...
    def __getitem__(self, key: Tensor, /) -> V: ...
    def __setitem__(self, key: Tensor, value: V, /) -> None: ...
    def __contains__(self, key: object, /) -> bool: ...
    def __bool__(self) -> bool: ...


class _ById(Generic[V]):
    """Holds its tensors: on the meta device they take no memory, and this is faster than weak references."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Tensor, V]] = {}

    def get(self, key: Tensor, default: Any = None, /) -> Any:
        entry = self._entries.get(id(key))
        return default if entry is None else entry[1]

    def pop(self, key: Tensor, default: Any = None, /) -> Any:
        entry = self._entries.pop(id(key), None)
        return default if entry is None else entry[1]

    def __setitem__(self, key: Tensor, value: V, /) -> None:
        self._entries[id(key)] = key, value

    def __getitem__(self, key: Tensor, /) -> V:
        return self._entries[id(key)][1]

    def __contains__(self, key: object, /) -> bool:
        return id(key) in self._entries

    def __bool__(self) -> bool:
        return bool(self._entries)


def tensor_map(meta: bool) -> TensorMap[Any]:
    """A map that does not keep data alive: of tensors on the meta device, or of any others."""
    return _ById() if meta else cast(TensorMap[Any], WeakTensorKeyDictionary())
