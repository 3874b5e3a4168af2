"""Runs a module op by op, on the meta device where possible: shapes without data.

What does not depend on weights or images (positions, masks, index tables, token ids) is computed along for real, so that
a forward which asks for a value mostly gets it; one that asks for a value nobody knows makes the run fail, and it is
repeated with data.
"""

from __future__ import annotations

import copy
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from zerogate.groups.interpreted import Interpreted
from zerogate.groups.rules import UnknownValue

Place = tuple[str, int]
"""File and line of the user's code."""
LAYOUT = {"contiguous", "alias", "detach", "lift_fresh"}
"""Ops that are left out where a tensor's strides, which depend on sizes, allow it."""
_KNOWN = 1 << 20  # entries up to which values are computed along
_META = torch.device("meta")
_ASKS = {"item", "_local_scalar_dense", "is_nonzero", "equal", "tolist"}


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the model whose floating-point parameters and buffers are on the meta device; costs no memory."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in [*module._parameters.values(), *module._buffers.values()]:
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = _on_meta(tensor) if tensor.is_floating_point() else tensor.detach().clone()
    return quick_copy(model, memo)


def quick_copy(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """`copy.deepcopy`, which spends most of its time on the many empty dicts of a module, without these."""
    memo = {} if memo is None else memo
    if id(module) in memo:
        return memo[id(module)]
    kind = type(module)
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")
    if any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in own):
        return copy.deepcopy(module, memo)
    twin = kind.__new__(kind)
    memo[id(module)] = twin
    for name, value in vars(module).items():
        if type(value) in _ATOMS:
            twin.__dict__[name] = value
        elif name == "_modules":
            twin.__dict__[name] = {n: child if child is None else quick_copy(child, memo) for n, child in value.items()}
        elif name in ("_parameters", "_buffers"):
            twin.__dict__[name] = {
                n: memo[id(x)] if id(x) in memo else copy.deepcopy(x, memo) for n, x in value.items()
            }
        elif type(value) in (dict, OrderedDict, set) and not value:
            twin.__dict__[name] = type(value)()
        else:
            twin.__dict__[name] = copy.deepcopy(value, memo)
    return twin


_ATOMS = {int, float, bool, str, type(None), type, torch.dtype, torch.device, torch.Size}


def _on_meta(x: Tensor) -> Tensor:
    empty = torch.empty_like(x, device="meta")
    return nn.Parameter(empty, requires_grad=x.requires_grad) if isinstance(x, nn.Parameter) else empty


def tensors_among(arguments: Any) -> list[Tensor]:
    """Tensors among an op's arguments or results, in order."""
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, (list, tuple)):
        return [x for item in arguments for x in tensors_among(item)]
    return tensors_among(list(arguments.values())) if isinstance(arguments, dict) else []


def replaced(arguments: Any, function: Callable[[Any], Any]) -> Any:
    """An op's arguments with the function applied to everything in them."""
    if isinstance(arguments, (list, tuple)):
        return type(arguments)([replaced(x, function) for x in arguments])
    if isinstance(arguments, dict):
        return {k: replaced(x, function) for k, x in arguments.items()}
    return function(arguments)


class Tracer(TorchDispatchMode):
    """Calls `visit` for every op that a model runs.

    Args:
        model: run under this mode; hooks are put on its modules.
        meta: run on the meta device, whatever device the tensors say.
    """

    def __init__(self, model: nn.Module, meta: bool) -> None:
        super().__init__()
        self.meta = meta
        self.stack: list[str] = []
        self.node = ""
        self.line: Place | None = None
        """The node that runs, and its line, where the model is an exported graph."""
        if isinstance(model, Interpreted):
            model._listener = self
        self._values = WeakTensorKeyDictionary()
        self._shapes = WeakTensorKeyDictionary()
        self._stale: dict[int, Any] = {}  # held, so that no other storage takes their place
        for prefix, module in model.named_modules():
            module.register_forward_pre_hook(_Enter(self, prefix), prepend=True, with_kwargs=True)
            module.register_forward_hook(_Leave(self.stack), always_call=True)

    def visit(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        raise NotImplementedError

    def before(self, func: Any) -> None:
        """Called before an op runs."""

    def entered(self, module: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Called when a module's forward begins."""

    def value_of(self, x: Tensor) -> Tensor | None:
        """What a tensor holds, where that is known."""
        if not x.is_meta:
            return x
        known = self._values.get(x)
        return None if known is None or known.untyped_storage()._cdata in self._stale else known

    def known(self, x: Any) -> Any:
        """A tensor as this run uses it: on the meta device, its value remembered."""
        if not isinstance(x, Tensor) or x.is_meta or not self.meta:
            return x
        shape = self._shapes.get(x)
        if shape is None:
            with torch.inference_mode(False):  # views of it are tracked like those of any parameter or buffer
                shape = self._shapes[x] = _on_meta(x)
            if x.numel() <= _KNOWN:
                self._values[shape] = x
        return shape

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.before(func)
        if self.meta:
            args, kwargs = replaced(args, self.known), replaced(kwargs, self.known)
            out = self._without_data(func, args, kwargs)
        else:
            out = func(*args, **kwargs)
        self.visit(func, args, kwargs, out)
        return out

    def _without_data(self, func: Any, args: Any, kwargs: Any) -> Any:
        tensors = tensors_among((args, kwargs))
        values = {id(x): self.value_of(x) for x in tensors}
        known = all(v is not None for v in values.values())
        name = func.overloadpacket.__name__
        if name in _ASKS:
            if not known:
                raise UnknownValue(name)
            return func(*_replace(args, values), **_replace(kwargs, values))
        if name in _ONE_TYPE and len({x.dtype for x in tensors}) > 1:
            raise UnknownValue(name)  # without data not all of these complain
        arguments = func._schema.arguments
        real_args, real_kwargs = args, kwargs
        if any(isinstance(x, torch.device) for x in (*args, *kwargs.values())):
            args, kwargs = _on(args, _META), _on(kwargs, _META)
            real_args, real_kwargs = _on(real_args, torch.device("cpu")), _on(real_kwargs, torch.device("cpu"))
        elif not tensors and any(a.name == "device" for a in arguments):
            kwargs = {**kwargs, "device": _META}
        out = _shaped(name, args, kwargs, tensors)
        if out is None:
            out = func(*args, **kwargs)
        outs = tensors_among(out)
        random = torch.Tag.nondeterministic_seeded in func.tags or name.startswith("empty")
        if known and not random and sum(x.numel() for x in outs) <= _KNOWN:
            real = func(*_replace(real_args, values), **_replace(real_kwargs, values))
            for x, held in zip(outs, tensors_among(real), strict=True):
                if not any(x is t for t in tensors):
                    self._values[x] = held
        else:
            for a, x in zip(arguments, args, strict=False):
                value = values.get(id(x)) if a.alias_info is not None and a.alias_info.is_write else None
                if value is not None:
                    self._stale[value.untyped_storage()._cdata] = value.untyped_storage()
        return out

    def place(self) -> Place:
        """The line of the user's code that is running; none where torch's own modules called each other from the start."""
        if self.line is not None:
            return self.line
        frame = sys._getframe(1)
        while frame is not None and frame.f_code.co_filename.startswith(_INTERNAL):
            if frame.f_code.co_name == "call":  # what started the run; behind it lies whoever asked for it
                return "", 0
            frame = frame.f_back  # type: ignore[assignment]
        return (frame.f_code.co_filename, frame.f_lineno) if frame is not None else ("", 0)


def is_internal(file: str) -> bool:
    """Whether a file is torch's, or this package's."""
    return file.startswith(_INTERNAL)


_INTERNAL = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


_AS_FIRST = set(
    """relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid softplus dropout
    feature_dropout batch_norm sqrt rsqrt square abs neg clamp clip""".split()
)
_PACKED = set("layer_norm group_norm rms_norm instance_norm softmax".split())
_IN_PLACE = set("relu_ relu6_ hardswish_ silu_ gelu_ leaky_relu_ hardtanh_ sigmoid_ clamp_ mul_ add_".split())
_ONE_TYPE = set("linear conv1d conv2d conv3d matmul mm bmm addmm baddbmm".split())
_BROADCAST = {"add", "mul", "sub", "div"}


def _shaped(name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> Tensor | None:
    """The result of some frequent ops, whose own shape-only versions are slow; None for all others."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    x = args[0]
    if name in _AS_FIRST and kwargs.get("dtype") is None and all(t.dtype == x.dtype for t in tensors):
        return torch.empty_like(x)
    if name in _PACKED and kwargs.get("dtype") is None and all(t.dtype == x.dtype for t in tensors):
        return torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if name in _IN_PLACE and all(t.dtype == x.dtype for t in tensors):
        return x
    if name == "linear" and args[1].dim() == 2 and x.shape[-1] == args[1].shape[1]:
        bias = args[2] if len(args) > 2 else None
        if all(t.dtype == x.dtype for t in tensors) and (bias is None or bias.shape == args[1].shape[:1]):
            return torch.empty((*x.shape[:-1], len(args[1])), dtype=x.dtype, device=x.device)
    if name == "scaled_dot_product_attention" and x.dim() == 4 and len(args) == 3 and not kwargs.get("enable_gqa"):
        k, v, mask = args[1], args[2], kwargs.get("attn_mask")
        fits = mask is None or all(
            n in (1, m) for n, m in zip(mask.shape[::-1], (k.shape[2], *x.shape[2::-1]), strict=False)
        )
        if x.shape[:2] == k.shape[:2] == v.shape[:2] and x.shape[3] == k.shape[3] and k.shape[2] == v.shape[2] and fits:
            return torch.empty((*x.shape[:3], v.shape[3]), dtype=x.dtype, device=x.device)
    if name in _BROADCAST and len(args) == 2:
        y = args[1]
        if isinstance(y, (int, float)):
            return torch.empty_like(x)
        if isinstance(y, Tensor) and y.dtype == x.dtype:
            shape = torch.broadcast_shapes(x.shape, y.shape)
            for full in (x, y):
                if full.shape == shape:
                    return torch.empty_like(full)
    return None


def _replace(arguments: Any, values: dict[int, Tensor | None]) -> Any:
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
