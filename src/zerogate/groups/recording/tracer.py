"""Runs a module op by op, on the meta device where possible: shapes without data.

What does not depend on weights or images (positions, masks, index tables, token ids) is computed along for real, so that
a forward which asks for a value mostly gets it; one that asks for a value nobody knows makes the run fail, and it is
repeated with data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.ops import arguments_of, spec_of
from zerogate.groups.recording.meta_shapes import result_of
from zerogate.groups.rules import UnknownValue
from zerogate.groups.rules.op import replaced
from zerogate.modules.copies import on_meta
from zerogate.modules.index import modules_by_name
from zerogate.modules.internals import frames_above, is_view, schema_of, storage_key

Place = tuple[str, int]
"""File and line of the user's code."""
_KNOWN = 1 << 20  # entries up to which values are computed along
_META = torch.device("meta")


def tensors_among(arguments: Any) -> list[Tensor]:
    """Tensors among an op's arguments or results, in order."""
    if isinstance(arguments, Tensor):
        return [arguments]
    found: list[Tensor] = []
    if isinstance(arguments, dict):
        arguments = arguments.values()
    elif not isinstance(arguments, (list, tuple)):
        return found
    for x in arguments:
        if isinstance(x, Tensor):
            found.append(x)
        elif isinstance(x, (list, tuple, dict)):
            found += tensors_among(x)
    return found


class ById:
    """What is known of tensors, by identity. Holds the tensors, too: on the meta device they take no memory."""

    def __init__(self) -> None:
        self._held: dict[int, tuple[Tensor, Any]] = {}

    def get(self, x: Tensor, default: Any = None) -> Any:
        found = self._held.get(id(x))
        return default if found is None else found[1]

    def pop(self, x: Tensor, default: Any = None) -> Any:
        found = self._held.pop(id(x), None)
        return default if found is None else found[1]

    def __setitem__(self, x: Tensor, value: Any) -> None:
        self._held[id(x)] = x, value

    def __getitem__(self, x: Tensor) -> Any:
        return self._held[id(x)][1]

    def __contains__(self, x: Tensor) -> bool:
        return id(x) in self._held

    def __bool__(self) -> bool:
        return bool(self._held)


class Tracer(TorchDispatchMode):
    """Calls `visit` for every op that a model runs.

    Args:
        meta: run on the meta device, whatever device the tensors say.
    """

    def __init__(self, meta: bool) -> None:
        super().__init__()
        self.meta = meta
        self.stack: list[str] = []
        self.node = ""
        self.line: Place | None = None
        """The node that runs, and its line, where the model is an exported graph."""
        self.results: dict[Any, Any] = {}
        """Op and shapes of its operands → its results on the meta device."""
        self._values = self.by_tensor()
        self._later: list[tuple[Any, Any, Any, list[Tensor]]] = []
        """Ops whose results are known, in order, that have not been computed as nobody has asked."""
        self._shapes = self.by_tensor()
        self._stale: dict[int, Any] = {}  # held, so that no other storage takes their place

    def by_tensor(self) -> Any:
        """A dict of tensors that does not keep data alive."""
        return ById() if self.meta else WeakTensorKeyDictionary()

    def follow(self, model: nn.Module) -> None:
        """Keeps `stack`, the names of the modules whose forwards are running, with hooks on the model."""
        if isinstance(model, GraphModel):
            model.listener = self
        for prefix, module in modules_by_name(model).items():
            module.register_forward_pre_hook(_Enter(self, prefix), prepend=True, with_kwargs=True)
            module.register_forward_hook(_Leave(self.stack), always_call=True)

    def visit(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], out: Any) -> None:
        """Called after an op has run; ``tensors`` are those among its arguments."""
        raise NotImplementedError

    def before(self, func: Any, args: Any, kwargs: Any) -> None:
        """Called before an op runs."""

    def entered(self, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called when a module's forward begins."""

    def value_of(self, x: Tensor) -> Tensor | None:
        """What a tensor holds, where that is known."""
        if not x.is_meta:
            return x
        if self._values.get(x) is _LATER:
            self._catch_up()
        known = self._values.get(x)
        return None if known is None or storage_key(known) in self._stale else known

    def _has_value(self, x: Tensor) -> bool:
        if not x.is_meta:
            return True
        known = self._values.get(x)
        if known is None or known is _LATER:
            return known is not None
        return not self._stale or storage_key(known) not in self._stale

    def _catch_up(self) -> None:
        """Computes the values that nobody has asked for so far."""
        later, self._later = self._later, []
        for func, args, kwargs, outs in later:
            for x, held in zip(outs, tensors_among(self._computed(func, args, kwargs)), strict=True):
                self._values[x] = held

    def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
        values = {id(x): x if not x.is_meta else self._values.get(x) for x in tensors_among((args, kwargs))}
        return func(*_replace(args, values), **_replace(kwargs, values))

    def known(self, x: Any) -> Any:
        """A tensor as this run uses it: on the meta device, its value remembered."""
        if not isinstance(x, Tensor) or x.is_meta or not self.meta:
            return x
        shape = self._shapes.get(x)
        if shape is None:
            with torch.inference_mode(False):  # views of it are tracked like those of any parameter or buffer
                shape = self._shapes[x] = on_meta(x)
            if x.numel() <= _KNOWN:
                self._values[shape] = x
        return shape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.before(func, args, kwargs)
        tensors = tensors_among(args)
        if kwargs:
            tensors += tensors_among(kwargs)
        if not self.meta:
            out = func(*args, **kwargs)
        else:
            if any(not x.is_meta for x in tensors):
                args, kwargs = replaced(args, self.known), replaced(kwargs, self.known)
                tensors = tensors_among((args, kwargs))
            out = self._without_data(func, args, kwargs, tensors)
        self.visit(func, args, kwargs, tensors, out)
        return out

    def _without_data(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        spec = spec_of(func)
        known = all([self._has_value(x) for x in tensors])
        if spec.reads_values:
            if not known:
                raise UnknownValue(spec.name)
            self._catch_up()
            return self._computed(func, args, kwargs)
        if spec.one_dtype and any(x.dtype is not tensors[0].dtype for x in tensors):
            raise UnknownValue(spec.name)  # without data not all of these complain
        if not known:
            out = result_of(spec, args, kwargs, tensors)
            if out is not None:
                if out is args[0]:
                    self._forget(func, args)
                return out
        real_args, real_kwargs = args, kwargs
        if any([isinstance(x, torch.device) for x in (*args, *kwargs.values())]):
            args, kwargs = _on(args, _META), _on(kwargs, _META)
            real_args, real_kwargs = _on(real_args, torch.device("cpu")), _on(real_kwargs, torch.device("cpu"))
        elif not tensors and _has_device(func):
            kwargs = {**kwargs, "device": _META}
        if not known:
            out = self._shaped(func, args, kwargs, tensors)
            self._forget(func, args)
            return out
        try:
            out = self._shaped(func, args, kwargs, tensors)
        except (RuntimeError, NotImplementedError):  # its shape depends on values, as with nonzero
            self._catch_up()
            real = self._computed(func, real_args, real_kwargs)
            if not isinstance(real, Tensor) or _writes(func):
                raise
            out = torch.empty_like(real, device=_META)
            self._values[out] = real
            return out
        outs = tensors_among(out)
        random = torch.Tag.nondeterministic_seeded in func.tags or spec.name.startswith("empty")
        if random or sum([x.numel() for x in outs]) > _KNOWN:
            self._forget(func, args)
            return out
        if not _writes(func) and not any([x is t for x in outs for t in tensors]):
            self._later.append((func, real_args, real_kwargs, outs))
            for x in outs:
                self._values[x] = _LATER
            return out
        self._catch_up()
        real = self._computed(func, real_args, real_kwargs)
        for x, held in zip(outs, tensors_among(real), strict=True):
            if not any(x is t for t in tensors):
                self._values[x] = held
        return out

    def _shaped(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> Any:
        """What an op gives on the meta device, run once for all operands of these shapes."""
        if _aliases(func):
            return func(*args, **kwargs)
        key = (func, torch.get_default_dtype(), _key(args), _key(kwargs))
        try:
            known = self.results.get(key)
        except TypeError:  # an argument that cannot be looked up
            return func(*args, **kwargs)
        if known is not None:
            return known() if isinstance(known, _Result) else [made() for made in known]
        out = func(*args, **kwargs)
        parts = [out] if isinstance(out, Tensor) else out
        if isinstance(parts, (list, tuple)) and all(isinstance(x, Tensor) for x in parts):
            held = {storage_key(x) for x in tensors}
            if not any(storage_key(x) in held or is_view(x) for x in parts):
                made = [_Result(tuple(x.shape), x.stride(), x.dtype) for x in parts]
                self.results[key] = made[0] if isinstance(out, Tensor) else made
        return out

    def _forget(self, func: Any, args: Any) -> None:
        """What an op has written to is no longer known."""
        if not _writes(func):
            return
        self._catch_up()
        for (_, _, written, _), x in zip(arguments_of(func), args, strict=False):
            value = self.value_of(x) if written and isinstance(x, Tensor) else None
            if value is not None:
                self._stale[storage_key(value)] = value.untyped_storage()

    def place(self) -> Place:
        """The line of the user's code that is running; none where torch's own modules called each other from the start."""
        if self.line is not None:
            return self.line
        for frame in frames_above():
            if not is_internal(frame.f_code.co_filename):
                return frame.f_code.co_filename, frame.f_lineno
            if frame.f_code.co_name == "call":  # what started the run; behind it lies whoever asked for it
                break
        return "", 0


def is_internal(file: str) -> bool:
    """Whether a file is torch's, or this package's."""
    return file.startswith(_INTERNAL)


_PACKAGE = Path(__file__).parents[2]
_INTERNAL = tuple(map(str, (Path(torch.__file__).parent, _PACKAGE / "groups", _PACKAGE / "modules")))


_LATER: Any = object()  # stands for a value that can be computed


@cache
def _writes(func: Any) -> bool:
    """Whether an op writes to any of its arguments."""
    return any(written for _, _, written, _ in arguments_of(func))


@cache
def _aliases(func: Any) -> bool:
    """Whether an op writes to its arguments or returns views of them."""
    return _writes(func) or any(x.alias_info is not None for x in schema_of(func).returns)


@cache
def _has_device(func: Any) -> bool:
    return any(device for *_, device in arguments_of(func))


@dataclass(frozen=True)
class _Result:
    """A tensor on the meta device, to be made again."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def __call__(self) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=_META)


def _key(arguments: Any) -> Any:
    """All that the shape of a result depends on, to look it up."""
    if isinstance(arguments, Tensor):
        return arguments.shape, arguments.stride(), arguments.dtype
    if isinstance(arguments, (list, tuple)):
        return tuple([_key(x) for x in arguments])
    if isinstance(arguments, dict):
        return tuple([(name, _key(x)) for name, x in arguments.items()])
    return type(arguments), arguments  # 1, 1.0 and True are equal


def _replace(arguments: Any, values: dict[int, Any]) -> Any:
    return replaced(arguments, lambda x: values[id(x)] if isinstance(x, Tensor) else x)


def _on(arguments: Any, device: torch.device) -> Any:
    return replaced(arguments, lambda x: device if isinstance(x, torch.device) else x)


class _Enter:
    def __init__(self, tracer: Tracer, name: str) -> None:
        self.tracer, self.name = tracer, name

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.tracer.stack.append(self.name)
        self.tracer.entered(self.name, args, kwargs)


class _Leave:
    def __init__(self, stack: list[str]) -> None:
        self.stack = stack

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()
