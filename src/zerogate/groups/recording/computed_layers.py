"""What a run computes from parameters alone, and the layers that read such a weight."""

from __future__ import annotations

from torch import Tensor, nn

from zerogate.groups.arguments import Args, Kwargs, tensors_among
from zerogate.groups.recording.parameters import ParameterTable
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.tensor_maps import TensorMap
from zerogate.groups.recording.tracer import Tracer
from zerogate.groups.rules.op import Op
from zerogate.groups.rules.views import follow_views
from zerogate.modules.computed_weights import LAYER_FUNCTIONS
from zerogate.modules.index import join_name, layer_of, modules_by_name
from zerogate.structure import PlainLayer

_OPTIONS = ("stride", "padding", "output_padding", "groups", "dilation")
_LAYERS = frozenset(LAYER_FUNCTIONS.values())


class ComputedLayers:
    """Follows what is computed from parameters alone, and enters in the recording every module that computes the weight of
    a layer so.

    Args:
        model: as it runs.
        recording: what is entered into.
        tracer: knows which module is running.
        parameters: knows what tensors are made of.
        inputs: the run's inputs.
    """

    def __init__(
        self, model: nn.Module, recording: Recording, tracer: Tracer, parameters: ParameterTable, inputs: list[Tensor]
    ) -> None:
        self._recording, self._tracer, self._parameters = recording, tracer, parameters
        self._modules = modules_by_name(model)
        self._from_input: TensorMap[bool] = tracer.tensor_map()
        for x in inputs:
            self._from_input[x] = True
        self._mixed: TensorMap[bool] = tracer.tensor_map()
        """Tensors made of parameters in a way that cannot be followed."""
        self._given: dict[str, tuple[int, ...]] = {}
        """Module → shape of the one tensor that it was last called with."""

    def entered(self, module: str, args: Args, kwargs: Kwargs) -> None:
        """A module's forward begins."""
        alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        self._given[module] = tuple(args[0].shape) if alone else ()

    def follow(self, op: Op) -> None:
        """Notes which parameters the results of an op hold that works on parameters and constants alone, or where that
        cannot be said, that they are read in an unknown way."""
        mixed = any([x in self._mixed for x in op.tensors])
        if not mixed and not any(self._parameters.views_of(x, integers=op.spec.pointwise) for x in op.tensors):
            return
        views = None if mixed else follow_views(op)
        if views is None:
            self._read_in_an_unknown_way(op, self._tracer.where(f"{op.name} of a parameter"))
            return
        self._parameters.note_computed(op)
        for x, of_result in zip(tensors_among(op.out), views, strict=True):
            if of_result:
                self._parameters.moved[x] = of_result

    def give_up(self, op: Op, where: str) -> None:
        """An op that works on channels could not be followed, for the reason given."""
        if not op.spec.frees_parameters:
            self._read_in_an_unknown_way(op, where)

    def _read_in_an_unknown_way(self, op: Op, where: str) -> None:
        for x in op.tensors:
            for view in self._parameters.views_of(x):
                self._recording.unfollowed.setdefault(view.name, where)
        if not any([x in self._from_input for x in op.tensors]):
            for x in tensors_among(op.out):
                self._mixed[x] = True
                self._parameters.moved.pop(x, None)

    def visit(self, op: Op) -> None:
        """An op has run."""
        if any([x in self._from_input for x in op.tensors]):
            for x in tensors_among(op.out):
                self._from_input[x] = True
        if op.name not in _LAYERS or "weight" not in op.bound:
            return
        weight, bias, module = op.bound["weight"], op.bound.get("bias"), self._tracer.module
        if weight in self._from_input or self._parameters.is_one(weight):
            return
        carrier = self._parameters.carrier_of(weight)
        if carrier is not None and not carrier.normed:
            return
        options = {name: value for name in _OPTIONS if (value := op.bound.get(name)) is not None}
        options = {
            name: list(value) * (weight.ndim - 2 if len(value) == 1 else 1)
            if isinstance(value, (list, tuple))
            else value
            for name, value in options.items()
        }
        found = PlainLayer(
            op.name,
            tuple(weight.shape),
            bias is not None,
            options,
            self._source(module, weight),
            self._given.get(module, ()),
        )
        where = self._tracer.where("a weight that is computed")
        self._recording.computed.setdefault(module, (found, carrier is not None, where))

    def _source(self, module: str, weight: Tensor) -> str:
        """The first parameter of the module that has the weight's shape, or what `parametrize` keeps of it."""
        own = self._modules.get(module)
        shapes = {} if own is None else {join_name(module, n): p for n, p in own.named_parameters()}
        alike = [name for name, p in shapes.items() if p.shape == weight.shape and layer_of(name) == module]
        return next(iter(alike), "")
