"""Runs a model op by op, on the meta device where possible: shapes without data.

Requirements:

* A listener hears of every op, before and after it runs, and of every module whose forward begins.
* No op allocates data where its shape is enough. Each runs once for all operands of the same shapes (`ShapeCache`), or its
  shape follows from a few lines of Python (`meta_shapes`).
* A forward that asks for a value mostly gets it (`KnownValues`). One that asks for a value that depends on weights or inputs
  makes the run fail with `UnknownValue`, and it is repeated with data.
* Errors are those of a run with data: where torch's shape functions check less, the run fails.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from zerogate.errors import WatchError
from zerogate.groups.arguments import Args, AtenOp, Kwargs, Place, bind, map_arguments, takes_device, tensors_among
from zerogate.groups.code_lines import is_internal, located
from zerogate.groups.graph.graph_model import GraphModel
from zerogate.groups.ops import OpSpec, spec_of
from zerogate.groups.recording.known_values import KnownValues, on_device
from zerogate.groups.recording.meta_shapes import result_of
from zerogate.groups.recording.recurrent_shapes import recurrent_results
from zerogate.groups.recording.shape_cache import ShapeCache
from zerogate.groups.recording.tensor_maps import TensorMap, tensor_map
from zerogate.groups.rules.protocol import UnknownValue
from zerogate.modules.index import modules_by_name
from zerogate.modules.internals import frames_above, storage_key
from zerogate.modules.run import seed

_META, _CPU = torch.device("meta"), torch.device("cpu")


class Listener(Protocol):
    """Who hears of what runs. ``tensors`` are those among an op's arguments, in order."""

    def entered(self, module: str, args: Args, kwargs: Kwargs) -> None:
        """A module's forward begins."""

    def before(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> None:
        """An op is about to run; ``tensors`` as the model holds them, with data or without."""

    def visit(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor], out: object) -> None:
        """An op has run."""

    def decided(self, func: AtenOp, out: object) -> object:
        """In a run with data, what the run goes on with in place of what an op has returned; mostly the same."""


class Tracer(TorchDispatchMode):
    """While it is entered, tells a listener of every op that a model runs.

    Args:
        listener: who is told.
        meta: run on the meta device, whatever device the tensors say.
        shapes: what ops give on the meta device, shared by runs of one model.
    """

    def __init__(self, listener: Listener, meta: bool, shapes: ShapeCache | None = None) -> None:
        super().__init__()
        self.listener, self.meta = listener, meta
        self.originals: dict[int, str] = {}
        """`storage_key` of each tensor of the model that the one which runs was copied from → its name."""
        self.stack: list[str] = []
        """Modules whose forwards are running, from the outermost to the innermost."""
        self.node = ""
        """Where the model is an exported graph: the node that runs. The graph sets it, `line` and the innermost
        module."""
        self.composite = ""
        """The composite op that is running, the outermost of them."""
        self.line: Place | None = None
        """Where the model is an exported graph: the line of the user's code that the node comes from."""
        self._shapes = ShapeCache() if shapes is None else shapes
        self._values = KnownValues()

    def __enter__(self) -> Tracer:
        seed()  # every run draws the same random numbers
        super().__enter__()
        return self

    def tensor_map(self) -> TensorMap[Any]:
        """A map by tensor that does not keep data alive."""
        return tensor_map(self.meta)

    def follow(self, model: nn.Module) -> None:
        """Keeps `stack` with hooks on the model, and tells the listener of forwards that begin."""
        if isinstance(model, GraphModel):
            model.listener = self
        for prefix, module in modules_by_name(model).items():
            module.register_forward_pre_hook(_Enter(self, prefix), prepend=True, with_kwargs=True)
            module.register_forward_hook(_Leave(self.stack), always_call=True)

    @property
    def module(self) -> str:
        """The innermost module whose forward is running; "" is the root."""
        return self.stack[-1] if self.stack else ""

    def entered(self, module: str, args: Args, kwargs: Kwargs) -> None:
        """Tells the listener that a module's forward begins; an exported graph calls this itself."""
        self.listener.entered(module, args, kwargs)

    def stand_in(self, x: Tensor) -> Tensor:
        """What ops see of a tensor that the model holds: on the meta device a tensor of its shape, its value remembered."""
        found: Tensor = self._values.stand_in(x) if self.meta else x
        return found

    def value_of(self, x: Tensor) -> Tensor | None:
        """What a tensor holds; None where that is not known."""
        return self._values.get(x)

    def __torch_dispatch__(self, func: AtenOp, types: object, args: Args = (), kwargs: Kwargs | None = None) -> Any:
        kwargs = kwargs or {}
        if spec_of(func).composite:
            return self._by_parts(func, args, kwargs)
        tensors = tensors_among(args)
        if kwargs:
            tensors += tensors_among(kwargs)
        self.listener.before(func, args, kwargs, tensors)
        if not self.meta:
            self._check_own(tensors)
            out = self.listener.decided(func, func(*args, **kwargs))
        else:
            if any(not x.is_meta for x in tensors):
                self._check_own(tensors)
                args, kwargs = map_arguments(args, self._values.stand_in), map_arguments(kwargs, self._values.stand_in)
                tensors = tensors_among((args, kwargs))
            out = self._without_data(func, args, kwargs, tensors)
        self.listener.visit(func, args, kwargs, tensors, out)
        return out

    def _by_parts(self, func: AtenOp, args: Args, kwargs: Kwargs) -> Any:
        """Runs a composite op as the ops that it consists of; the listener is told of these."""
        outermost = not self.composite
        self.composite = self.composite or spec_of(func).name
        try:
            with self:
                return func.decompose(*args, **kwargs)
        finally:
            if outermost:
                self.composite = ""

    def _check_own(self, tensors: list[Tensor]) -> None:
        """Raises `WatchError` where a copy reads what belongs to the model that it was made from."""
        for x in tensors if self.originals else ():
            name = self.originals.get(storage_key(x))
            if name is not None:
                raise WatchError(
                    f"{self.where(f'copies of the model go on reading {name} of the original')}; let the forward reach it "
                    "through self, not through a global name or a class"
                )

    def _without_data(self, func: AtenOp, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> Any:
        spec = spec_of(func)
        known = all([x in self._values for x in tensors])
        if spec.reads_values:
            if not known:
                raise UnknownValue(spec.name)
            return self._values.compute(func, args, kwargs)
        if spec.values:
            return self._with_values(func, spec, args, kwargs)
        if spec.one_dtype and any(x.dtype is not tensors[0].dtype for x in tensors):
            raise UnknownValue(spec.name)  # without data not all of these complain
        if not known:
            result = result_of(spec, args, kwargs, tensors)
            if result is not None:
                if result is args[0]:
                    self._values.forget_written(func, args)
                return result
        real_args, real_kwargs = args, kwargs
        if any([isinstance(x, torch.device) for x in (*args, *kwargs.values())]):
            args, kwargs = on_device(args, _META), on_device(kwargs, _META)
            real_args, real_kwargs = on_device(real_args, _CPU), on_device(real_kwargs, _CPU)
        elif not tensors and takes_device(func):
            kwargs = {**kwargs, "device": _META}
        if not known:
            out = self._shapes.run(func, args, kwargs, tensors)
            self._values.forget_written(func, args)
            return out
        try:
            out = self._shapes.run(func, args, kwargs, tensors)
        except (RuntimeError, NotImplementedError):
            shape = self._values.shape_of(func, real_args, real_kwargs)
            if shape is None:
                raise
            return shape
        self._values.note(func, real_args, real_kwargs, tensors, out)
        return out

    def _with_values(self, func: AtenOp, spec: OpSpec, args: Args, kwargs: Kwargs) -> Any:
        """An op that reads the values of some arguments, which are on the CPU; its other operands are on the meta device."""
        results = recurrent_results(spec.name, func, args, kwargs)
        if results is not None:
            return results
        bound = bind(func, args, kwargs)
        for name in spec.values:
            if isinstance(bound.get(name), Tensor):
                bound[name] = self._values.get(bound[name])
                if bound[name] is None:
                    raise UnknownValue(spec.name)
        return func(**bound)

    def place(self) -> Place:
        """The line of the user's code that is running; ("", 0) where torch's own modules called each other from the
        start."""
        if self.line is not None:
            return self.line
        for frame in frames_above():
            if not is_internal(frame.f_code.co_filename):
                return frame.f_code.co_filename, frame.f_lineno
            if frame.f_code.co_name == "call":  # what started the run; above it is whoever asked for it
                break
        return "", 0

    def where(self, reason: str) -> str:
        """A reason, with the module and the line of the user's code that is running."""
        return located(reason, self.module, self.place())


class _Enter:
    """Pre-hook of a module."""

    def __init__(self, tracer: Tracer, name: str) -> None:
        self.tracer, self.name = tracer, name

    def __call__(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        self.tracer.stack.append(self.name)
        self.tracer.entered(self.name, args, kwargs)


class _Leave:
    """Hook of a module."""

    def __init__(self, stack: list[str]) -> None:
        self.stack = stack

    def __call__(self, module: nn.Module, args: object, output: object) -> None:
        self.stack.pop()
