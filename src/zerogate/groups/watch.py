"""Runs a copy of the model once and follows the label of every channel through it.

The copy runs in inference mode: there ATen ops arrive whole (``linear``, ``batch_norm``, ``flatten``) rather than in
pieces, and whatever the run leaves behind is left in the copy.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from zerogate.errors import WatchError, first_line
from zerogate.groups.labels import labels_in, squash
from zerogate.groups.rules import RULES, Freeze, Op, pointwise
from zerogate.groups.structure import Axis, Call, Observations
from zerogate.tensors import named_tensors, owner_of

Inputs = Tensor | tuple[Any, ...] | list[Any] | Mapping[str, Any]


def call(model: nn.Module, inputs: Inputs) -> Any:
    """model(tensor), model(*tuple) or model(**mapping)."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy; raises `WatchError` where the model cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise WatchError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {first_line(error)}); "
            "zerogate works on copies, so make copy.deepcopy(model) work first"
        ) from error


@contextmanager
def kept_rng(model: nn.Module) -> Iterator[None]:
    """Leaves the random state of the CPU and of the model's devices as it was."""
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(d for d in devices if d is not None)):
        yield


def watch(model: nn.Module, inputs: Inputs, *, label_inputs: bool = False) -> Observations:
    """Runs a copy of the model in evaluation mode on example inputs and returns what was seen.

    Raises `WatchError` when the model cannot be copied or rejects the inputs.
    """
    with kept_rng(model):
        twin = plain_copy(model).eval()
        inputs = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, inputs)
        watcher = _Watcher(twin, inputs, label_inputs)
        try:
            with torch.inference_mode(), watcher:
                outputs = call(twin, inputs)
        except Exception as error:
            raise WatchError(
                f"{type(model).__name__} does not run on the example inputs ({_describe(inputs)}): "
                f"{type(error).__name__}: {first_line(error)}; pass inputs as the model's forward takes them "
                "(a tensor, a tuple of positional or a dict of keyword arguments)"
            ) from error
        watcher.finish(outputs)
    return watcher.seen


class _Watcher(TorchDispatchMode):
    def __init__(self, model: nn.Module, inputs: Inputs, label_inputs: bool) -> None:
        super().__init__()
        self.seen = Observations()
        self._labels = WeakTensorKeyDictionary()
        self._stack: list[str] = []
        self._names = {id(tensor): name for name, tensor in named_tensors(model)}
        for prefix, module in model.named_modules():
            module.register_forward_pre_hook(_Enter(self._stack, prefix), prepend=True)
            module.register_forward_hook(_Leave(self._stack), always_call=True)
        tensors = [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]
        first = next((x for x in tensors if x.ndim), None)
        self._batch = first.shape[0] if first is not None and first.shape[0] else 1
        if label_inputs:
            for x in tensors:
                if x.is_floating_point() and x.ndim > 1:
                    new = self.seen.labels.new(x[0].numel())
                    self.seen.inputs = torch.cat([self.seen.inputs, new])
                    self._labels[x] = new.view(1, *x.shape[1:]).expand(x.shape)

    # what rules use

    def labels_of(self, x: Tensor) -> Tensor | None:
        return self._labels.get(x)

    def tensor_name(self, x: Tensor) -> str | None:
        return self._names.get(id(x))

    def attach(self, name: str, dim: int, vector: Tensor) -> None:
        """Says that slices of a tensor belong to these labels; twice with different labels ties them."""
        axis: Axis = (name, dim)
        known = self.seen.axes.setdefault(axis, vector)
        self.seen.labels.unite(known, vector)
        lopsided = (known == 0) != (vector == 0)
        if lopsided.any():
            reason = f"{name} is used with and without removable channels"
            self.seen.labels.freeze(torch.where(lopsided, torch.maximum(known, vector), 0), reason)

    def attach_or_freeze(self, tensor: Tensor, dim: int, vector: Tensor) -> None:
        name = self.tensor_name(tensor)
        if name is None:
            raise Freeze("an operand that is computed, not a parameter or buffer")
        self.attach(name, dim, vector)

    def cut(self, rows: Tensor, reason: str, by_row: bool) -> None:
        """Says that channels are counted off in rows of fixed length; see `Observations.cuts`."""
        self.seen.cuts.append((rows, self._where(reason), by_row))

    def layer(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        consumes: tuple[int, Tensor | None] | None,
        produces: int | None,
        macs: float,
        channel_dim: int,
    ) -> Tensor | None:
        """Records a layer that contracts its input channels and makes new ones; returns the new labels."""
        name = self.tensor_name(weight)
        sizes = [weight.shape[d] for d in (consumes[0] if consumes else None, produces) if d is not None]
        if name is None:
            self._record("", "", None, None, macs * math.prod(sizes), channel_dim)
            if consumes and consumes[1] is not None and labels_in(consumes[1]).numel():
                raise Freeze("a layer whose weight is computed, not a parameter")
            return None
        axis_in = axis_out = made = None
        if consumes is not None:
            dim, vector = consumes
            axis_in = (name, dim)
            self.attach(name, dim, vector if vector is not None else torch.zeros(weight.shape[dim], dtype=torch.int64))
        if produces is not None:
            axis_out = (name, produces)
            if axis_out not in self.seen.axes:
                self.seen.axes[axis_out] = self.seen.labels.new(weight.shape[produces])
            made = self.seen.axes[axis_out]
            if bias is not None:
                self.attach_or_freeze(bias, 0, made)
        self._record(owner_of(name), name, axis_in, axis_out, macs, channel_dim)
        return made

    def depthwise(
        self, weight: Tensor, bias: Tensor | None, vector: Tensor | None, macs: float, channel_dim: int
    ) -> Tensor | None:
        """Records a layer that filters each channel on its own: labels pass through it."""
        name = self.tensor_name(weight)
        if name is None or vector is None:
            return self.layer(
                weight, bias, consumes=None, produces=None, macs=macs * weight.shape[0], channel_dim=channel_dim
            )
        self.attach(name, 0, vector)
        if bias is not None:
            self.attach_or_freeze(bias, 0, vector)
        self._record(owner_of(name), name, None, (name, 0), macs, channel_dim)
        return vector

    # the run

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        op = Op(self, func, args, kwargs, out)
        try:
            labels = self._apply(op)
        except Freeze as reason:
            self._freeze_all(op, str(reason))
            return out
        outputs = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        found = labels if isinstance(labels, list) else [labels] * len(outputs)
        for tensor, label in zip(outputs, found, strict=True):
            self._set(op, tensor, label)
        return out

    def _apply(self, op: Op) -> Any:
        known = RULES.get(op.name)
        if known is None and torch.Tag.pointwise in op.func.tags:
            known = pointwise
        if known is None:
            if any(self.labels_of(x) is not None or self.tensor_name(x) for x in op.tensors()):
                raise Freeze(f"{op.name} has no rule")
            return None
        labelled = any(self.labels_of(x) is not None for x in op.tensors())
        if known is not pointwise and not labelled and op.name not in _LAYERS:
            for x in op.tensors():  # e.g. a parameter that is reshaped before use: its slices are lost sight of
                name = self.tensor_name(x)
                if name:
                    self.seen.read_otherwise.setdefault(name, self._where(f"{op.name} of a parameter"))
            return None
        return known(op)

    def _set(self, op: Op, tensor: Tensor, label: Tensor | None) -> None:
        before = self._labels.get(tensor)
        in_place = any(tensor is x for x in op.tensors())
        if in_place and label is not None:
            held = before if before is not None else torch.zeros((), dtype=torch.int64).expand(tensor.shape)
            gained = torch.where(held == 0, label, 0)  # a view of it elsewhere would not know
            self.seen.labels.freeze(gained, self._where(f"{op.name} writes into a tensor that held no channels"))
        if label is None:
            if not in_place:
                self._labels.pop(tensor, None)
        elif label.shape != tensor.shape:
            raise AssertionError(f"{op.name}: labels {tuple(label.shape)} for output {tuple(tensor.shape)}")
        else:
            self._labels[tensor] = label

    def _freeze_all(self, op: Op, reason: str) -> None:
        where = self._where(reason)
        for x in op.tensors():
            labels = self.labels_of(x)
            if labels is not None:
                self.seen.labels.freeze(labels, where)
            name = self.tensor_name(x)
            if name is not None and op.name not in _LAYERS:
                self.seen.read_otherwise.setdefault(name, where)

    def finish(self, outputs: Any) -> None:
        for x in tree_leaves(outputs):
            if isinstance(x, Tensor) and (labels := self.labels_of(x)) is not None:
                self.seen.labels.freeze(squash(labels), "an output of the network")

    def _record(
        self, layer: str, weight: str, axis_in: Axis | None, axis_out: Axis | None, macs: float, channel_dim: int
    ) -> None:
        host = self._stack[-1] if self._stack else ""
        self.seen.calls.append(Call(layer, host, weight, axis_in, axis_out, macs / self._batch, channel_dim))

    def _where(self, reason: str) -> str:
        """The reason, with the module and the line of the user's code that was running."""
        frame = sys._getframe(1)
        while frame is not None and _internal(frame.f_code.co_filename):
            frame = frame.f_back  # type: ignore[assignment]
        place = f" ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})" if frame is not None else ""
        module = f" in {self._stack[-1]}" if self._stack and self._stack[-1] else ""
        return f"{reason}{module}{place}"


_LAYERS = {name for name, function in RULES.items() if function.__name__ in ("_linear", "_convolution")}
_INTERNAL = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


def _internal(filename: str) -> bool:
    return filename.startswith(_INTERNAL)


class _Enter:
    def __init__(self, stack: list[str], name: str) -> None:
        self.stack, self.name = stack, name

    def __call__(self, module: nn.Module, args: Any) -> None:
        self.stack.append(self.name)


class _Leave:
    def __init__(self, stack: list[str]) -> None:
        self.stack = stack

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        self.stack.pop()


def _describe(inputs: Any) -> str:
    shown = [f"{tuple(x.shape)} {x.dtype} {x.device}" for x in tree_leaves(inputs) if isinstance(x, Tensor)]
    return ", ".join(shown) or f"a {type(inputs).__name__} without tensors"
