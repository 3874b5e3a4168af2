"""Copies of modules: deep ones, quick ones, on the meta device, and with other tensors in place of the model's."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from zerogate.modules.index import modules_by_name, named_tensors
from zerogate.modules.internals import buffers_of, parameters_of
from zerogate.modules.rebinding import Memo, Rebinding, refers_to_anything
from zerogate.modules.run import holds_numbers, wide_dtype

T = TypeVar("T")

_META = torch.device("meta")


def deep_copy(value: T, memo: Memo | None = None) -> T:
    """`copy.deepcopy` that also takes results of a computation, which modules keep for a picture or a loss: the copy has
    their values and is no part of their graph. Functions that the modules hold refer to the copy, see `Rebinding`."""
    memo = {} if memo is None else memo
    with WithoutGraph():
        copied = copy.deepcopy(value, memo)
        if isinstance(copied, nn.Module):
            rebinding = Rebinding(memo)
            for module in modules_by_name(copied).values():
                rebinding.mend(vars(module))
    return copied


def copy_with(model: nn.Module, instead: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A deep copy that holds ``instead(name, tensor)`` in place of each parameter and buffer, which are not copied."""
    return deep_copy(model, {id(tensor): instead(name, tensor) for name, tensor in named_tensors(model)})


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the model whose parameters and buffers of real or complex numbers are on the meta device; costs no
    memory."""
    memo: Memo = {}
    for module in model.modules():
        for tensor in [*parameters_of(module).values(), *buffers_of(module).values()]:
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = on_meta(tensor) if holds_numbers(tensor) else tensor.detach().clone()
    return quick_copy(model, memo)


def on_meta(x: Tensor) -> Tensor:
    """A tensor of the same shape, strides and dtype on the meta device; a parameter if ``x`` is one."""
    empty = like(x)
    return nn.Parameter(empty, requires_grad=x.requires_grad) if isinstance(x, nn.Parameter) else empty


def like(x: Tensor) -> Tensor:
    """`torch.empty_like` on the meta device, many times as fast where the memory is dense."""
    if x.is_contiguous():
        return torch.empty(x.shape, dtype=x.dtype, device=_META)
    packed, expected = sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n > 1), 1
    for stride, n in packed:
        if stride != expected:
            return torch.empty_like(x, device=_META)
        expected *= n
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=_META)


def widened(x: Tensor) -> Tensor:
    """A copy in float64, or complex128; of the same dtype where it holds no such numbers. A parameter if ``x`` is one."""
    wide = x.detach().to(wide_dtype(x), copy=True)
    return nn.Parameter(wide, requires_grad=x.requires_grad) if isinstance(x, nn.Parameter) else wide


class WithoutGraph(TorchFunctionMode):
    """Lets ``copy.deepcopy`` copy tensors that are part of a graph, detached; torch itself refuses them."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            x, memo = args
            if id(x) not in memo:
                with torch.no_grad():
                    memo[id(x)] = x.detach().clone()
            return memo[id(x)]
        return func(*args, **(kwargs or {}))


def quick_copy(module: nn.Module, memo: Memo | None = None) -> nn.Module:
    """`deep_copy` of a module, several times as fast: `copy.deepcopy` spends most of its time on the many empty dicts of
    a module."""
    memo, to_rebind = {} if memo is None else memo, list[tuple[dict[str, Any], str]]()
    with WithoutGraph():
        copied = _quick_copy(module, memo, to_rebind)
        if to_rebind:
            rebinding = Rebinding(memo)
            for own, name in to_rebind:
                own[name] = rebinding.in_copy(own[name])
    return copied


def _quick_copy(module: nn.Module, memo: Memo, to_rebind: list[tuple[dict[str, Any], str]]) -> nn.Module:
    """A copy, in which attributes that may hold functions are yet to be rebound: (``__dict__``, name) of each is added."""
    if id(module) in memo:
        known: nn.Module = memo[id(module)]
        return known
    kind = type(module)
    if not is_copied_plainly(module):
        whole = copy.deepcopy(module, memo)
        to_rebind += [(vars(m), name) for m in modules_by_name(whole).values() for name in vars(m)]
        return whole
    twin = kind.__new__(kind)
    memo[id(module)] = twin
    own = twin.__dict__
    for name, value in vars(module).items():
        of = type(value)
        if of in _ATOMS or (of is tuple and all(type(x) in _ATOMS for x in value)):
            own[name] = value
        elif of in _HOLDERS and not value:
            own[name] = of()
        elif name == "_modules":
            own[name] = {
                n: child if child is None else _quick_copy(child, memo, to_rebind) for n, child in value.items()
            }
        elif name in ("_parameters", "_buffers"):
            own[name] = {n: memo[id(x)] if id(x) in memo else copy.deepcopy(x, memo) for n, x in value.items()}
        elif of is FunctionType and not refers_to_anything(value):
            own[name] = value
        else:
            own[name] = copy.deepcopy(value, memo)
            to_rebind.append((own, name))
    return twin


def is_copied_plainly(module: nn.Module) -> bool:
    """Whether copying a module is copying its attributes."""
    return _copied_plainly(type(module))  # type: ignore[arg-type]


@cache
def _copied_plainly(kind: type[nn.Module]) -> bool:
    """Whether copying a module of this class is copying its attributes."""
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__")
    if any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in own):
        return False
    owner = next(c for c in kind.__mro__ if "__setstate__" in vars(c))
    # those of torch's layers only fill in what old pickles lack
    return owner.__module__.startswith("torch.nn.modules.") and owner is not nn.RNNBase


_ATOMS = {int, float, bool, str, type(None), type, torch.dtype, torch.device, torch.Size, BuiltinFunctionType}
_HOLDERS = {dict, OrderedDict, set}
