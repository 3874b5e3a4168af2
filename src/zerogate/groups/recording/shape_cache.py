"""What ops give on the meta device, run once for all operands of the same shapes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from zerogate.groups.arguments import Args, AtenOp, Kwargs, aliases
from zerogate.modules.internals import is_view, storage_key

_META = torch.device("meta")


@dataclass(frozen=True)
class _EmptyTensor:
    """A tensor on the meta device, to be made as often as it is needed."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=_META)


class ShapeCache:
    """Results of ops on the meta device, by op and by shapes of the operands; shared by all runs of a model.

    An op that writes to its operands or returns views of them runs each time.
    """

    def __init__(self) -> None:
        self._results: dict[Hashable, _EmptyTensor | list[_EmptyTensor]] = {}

    def run(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> object:
        """What the op gives for these arguments, on the meta device; ``tensors`` are those among them."""
        if aliases(func):
            return func(*args, **kwargs)
        key = (func, torch.get_default_dtype(), _key(args), _key(kwargs))
        try:
            known = self._results.get(key)
        except TypeError:  # an argument that cannot be looked up
            return func(*args, **kwargs)
        if known is not None:
            return known.make() if isinstance(known, _EmptyTensor) else [x.make() for x in known]
        out = func(*args, **kwargs)
        parts = [out] if isinstance(out, Tensor) else out
        if isinstance(parts, (list, tuple)) and all(isinstance(x, Tensor) for x in parts):
            memory = {storage_key(x) for x in tensors}
            if not any(storage_key(x) in memory or is_view(x) for x in parts):
                empty = [_EmptyTensor(tuple(x.shape), x.stride(), x.dtype) for x in parts]
                self._results[key] = empty[0] if isinstance(out, Tensor) else empty
        return out


def _key(arguments: object) -> Hashable:
    """All that the shape of a result depends on."""
    if isinstance(arguments, Tensor):
        return arguments.shape, arguments.stride(), arguments.dtype
    if isinstance(arguments, (list, tuple)):
        return tuple([_key(x) for x in arguments])
    if isinstance(arguments, dict):
        return tuple([(name, _key(x)) for name, x in arguments.items()])
    return type(arguments), arguments  # 1, 1.0 and True are equal
