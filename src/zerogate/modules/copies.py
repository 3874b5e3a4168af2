"""Copies of a model: as they are, on the meta device, or made ready to be watched."""

from __future__ import annotations

import copy
from collections import OrderedDict
from functools import cache
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from zerogate.cutting.attention import Attention, unnest
from zerogate.errors import WatchError, first_line
from zerogate.groups.recording.meta_shapes import like
from zerogate.modules.index import WithoutGraph, deep_copy, modules_by_name, named_tensors
from zerogate.modules.internals import buffers_of, parameters_of


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy; raises `WatchError` where the model cannot be copied."""
    return _copied(model, deep_copy)


def twin_of(model: nn.Module, meta: bool) -> nn.Module:
    """A copy to watch, in evaluation mode: on the meta device or with data; attention that follows its weights' sizes."""
    return _prepared(_copied(model, meta_copy if meta else deep_copy))


def shared_twin(model: nn.Module) -> nn.Module:
    """The same with the model's own tensors."""
    return _prepared(_copied(model, lambda m: quick_copy(m, {id(x): x for _, x in named_tensors(m)})))


def _prepared(twin: nn.Module) -> nn.Module:
    twin = twin.train().eval()  # both: some empty caches then
    for name, module in modules_by_name(twin).items():
        if type(module) is nn.MultiheadAttention and "forward" not in vars(module):
            if not name:
                return Attention.stand_in(module).eval()
            twin.set_submodule(name, Attention.stand_in(module).eval())
    unnest(twin)
    return twin


def _copied(model: nn.Module, function: Any) -> nn.Module:
    try:
        return function(model)
    except Exception as error:
        raise WatchError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {first_line(error)}); "
            "zerogate works on copies, so make copy.deepcopy(model) work first"
        ) from error


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy of the model whose floating-point parameters and buffers are on the meta device; costs no memory."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in [*parameters_of(module).values(), *buffers_of(module).values()]:
            if tensor is not None and id(tensor) not in memo:
                memo[id(tensor)] = on_meta(tensor) if tensor.is_floating_point() else tensor.detach().clone()
    return quick_copy(model, memo)


def quick_copy(module: nn.Module, memo: dict[int, Any] | None = None) -> nn.Module:
    """`copy.deepcopy`, which spends most of its time on the many empty dicts of a module, without these."""
    with WithoutGraph():
        return _quick_copy(module, {} if memo is None else memo)


def _quick_copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    if id(module) in memo:
        return memo[id(module)]
    kind = type(module)
    if not _copied_plainly(kind):  # type: ignore[arg-type]
        return copy.deepcopy(module, memo)
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
            own[name] = {n: child if child is None else _quick_copy(child, memo) for n, child in value.items()}
        elif name in ("_parameters", "_buffers"):
            own[name] = {n: memo[id(x)] if id(x) in memo else copy.deepcopy(x, memo) for n, x in value.items()}
        else:
            own[name] = copy.deepcopy(value, memo)
    return twin


@cache
def _copied_plainly(kind: type) -> bool:
    """Whether copying a module of this class is copying its attributes."""
    own = ("__deepcopy__", "__reduce__", "__reduce_ex__", "__getstate__")
    if any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in own):
        return False
    owner = next(c for c in kind.__mro__ if "__setstate__" in vars(c))
    # those of torch's layers only fill in what old pickles lack
    return owner.__module__.startswith("torch.nn.modules.") and owner is not nn.RNNBase


_ATOMS = {int, float, bool, str, type(None), type, torch.dtype, torch.device, torch.Size}
_ATOMS |= {FunctionType, BuiltinFunctionType}
_HOLDERS = {dict, OrderedDict, set}


def on_meta(x: Tensor) -> Tensor:
    empty = like(x)
    return nn.Parameter(empty, requires_grad=x.requires_grad) if isinstance(x, nn.Parameter) else empty
