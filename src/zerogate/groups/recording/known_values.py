"""Values that are computed along with a run on the meta device.

What does not depend on weights or images (positions, masks, index tables, token ids) is computed for real, but only when
somebody asks: until then the ops wait in a line.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zerogate.groups.arguments import Args, AtenOp, Kwargs, arguments_of, map_arguments, tensors_among, writes
from zerogate.groups.limits import KNOWN_VALUE_ENTRIES
from zerogate.groups.ops import spec_of
from zerogate.groups.recording.tensor_maps import TensorMap, tensor_map
from zerogate.modules.copies import on_meta
from zerogate.modules.internals import storage_key

_META = torch.device("meta")
_WAITING: Any = object()
"""In place of a value that can be computed, but has not been."""


class KnownValues:
    """What tensors on the meta device hold, as far as it is known."""

    def __init__(self) -> None:
        self._values: TensorMap[Tensor] = tensor_map(True)
        self._stand_ins: TensorMap[Tensor] = tensor_map(True)
        """Tensor with data → its shape on the meta device, by which a run uses it."""
        self._waiting: list[tuple[AtenOp, Args, Kwargs, list[Tensor]]] = []
        """Ops that wait to be computed, in order, with their results on the meta device."""
        self._stale: dict[int, torch.UntypedStorage] = {}
        """Memory that an op has written to without the value being known; held, so that no other takes its place."""

    def stand_in(self, x: Any) -> Any:
        """A tensor with data as a tensor of its shape on the meta device, its value remembered; all else as it is."""
        if not isinstance(x, Tensor) or x.is_meta:
            return x
        shape = self._stand_ins.get(x)
        if shape is None:
            with torch.inference_mode(False):  # views of it are tracked like those of any parameter or buffer
                shape = self._stand_ins[x] = on_meta(x)
            if x.numel() <= KNOWN_VALUE_ENTRIES:
                self._values[shape] = x
        return shape

    def __contains__(self, x: Tensor) -> bool:
        if not x.is_meta:
            return True
        value = self._values.get(x)
        if value is None or value is _WAITING:
            return value is not None
        return not self._stale or storage_key(value) not in self._stale

    def get(self, x: Tensor) -> Tensor | None:
        """What a tensor holds; None where that is not known."""
        if not x.is_meta:
            return x
        if self._values.get(x) is _WAITING:
            self._catch_up()
        value = self._values.get(x)
        return None if value is None or storage_key(value) in self._stale else value

    def compute(self, func: AtenOp, args: Args, kwargs: Kwargs) -> Any:
        """What an op gives for operands that are all known."""
        self._catch_up()
        return self._compute(func, args, kwargs)

    def note(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor], out: object) -> None:
        """Remembers an op whose operands, ``tensors``, are all known, to compute its results ``out`` if they are asked for.

        Memory that is not filled, large results, and random numbers are not computed; single random numbers are, by which
        forwards leave out layers.
        """
        outs = tensors_among(out)
        entries = sum([x.numel() for x in outs])
        is_random = torch.Tag.nondeterministic_seeded in func.tags and entries > 1
        if is_random or spec_of(func).name.startswith("empty") or entries > KNOWN_VALUE_ENTRIES:
            self.forget_written(func, args)
            return
        if not writes(func) and not any([x is t for x in outs for t in tensors]):
            self._waiting.append((func, args, kwargs, outs))
            for x in outs:
                self._values[x] = _WAITING
            return
        values = tensors_among(self.compute(func, args, kwargs))
        for x, value in zip(outs, values, strict=True):
            if not any(x is t for t in tensors):
                self._values[x] = value

    def shape_of(self, func: AtenOp, args: Args, kwargs: Kwargs) -> Tensor | None:
        """The result, on the meta device, of an op whose shape depends on values, as that of ``nonzero`` does; None where it
        returns no tensor or writes to its operands."""
        value = self.compute(func, args, kwargs)
        if not isinstance(value, Tensor) or writes(func):
            return None
        out = torch.empty_like(value, device=_META)
        self._values[out] = value
        return out

    def forget_written(self, func: AtenOp, args: Args) -> None:
        """Forgets what an op has written to."""
        if not writes(func):
            return
        self._catch_up()
        for argument, x in zip(arguments_of(func), args, strict=False):
            value = self.get(x) if argument.is_written and isinstance(x, Tensor) else None
            if value is not None:
                self._stale[storage_key(value)] = value.untyped_storage()

    def _catch_up(self) -> None:
        """Computes what nobody has asked for so far."""
        waiting, self._waiting = self._waiting, []
        for func, args, kwargs, outs in waiting:
            for x, value in zip(outs, tensors_among(self._compute(func, args, kwargs)), strict=True):
                self._values[x] = value

    def _compute(self, func: AtenOp, args: Args, kwargs: Kwargs) -> Any:
        values = {id(x): x if not x.is_meta else self._values.get(x) for x in tensors_among((args, kwargs))}

        def value(x: object) -> object:
            return values[id(x)] if isinstance(x, Tensor) else x

        return func(*map_arguments(args, value), **map_arguments(kwargs, value))


def on_device(arguments: Any, device: torch.device) -> Any:
    """An op's arguments with this device in place of every device among them."""
    return map_arguments(arguments, lambda x: device if isinstance(x, torch.device) else x)
