"""Parameters and buffers of a model, wherever they appear in a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from zerogate.groups.recording.tensor_maps import TensorMap
from zerogate.groups.recording.tracer import Tracer
from zerogate.groups.rules.protocol import View
from zerogate.modules.index import named_tensors
from zerogate.modules.run import holds_numbers
from zerogate.modules.unregistered import Path, tensor_at


class ParameterViews:
    """Knows which tensors are parameters or buffers, or made of them alone.

    Args:
        model: as it runs.
        tracer: runs it.
        places: tensor → where modules hold it without having registered it.
    """

    def __init__(self, model: nn.Module, tracer: Tracer, places: Mapping[str, Sequence[Path]]) -> None:
        tensors = dict(named_tensors(model))
        for name, held in places.items():
            table = None if name in tensors else tensor_at(model, held[0])
            if table is not None:
                tensors[name] = table
        self._names = {id(tracer.stand_in(tensor)): name for name, tensor in tensors.items()}
        self._shapes = {name: tensor.shape for name, tensor in tensors.items()}
        self._trainable = {name for name, _ in model.named_parameters()}
        self._learns = {name for name, p in model.named_parameters() if p.requires_grad}
        self._whole: dict[str, View] = {}
        """Name → the view of all of it, as it is."""
        self.moved: TensorMap[list[View]] = tracer.tensor_map()
        """Tensors made of parameters alone → the parameters that they are made of."""

    def views_of(self, x: Tensor, integers: bool = False) -> list[View]:
        """Parameters and buffers that a tensor is made of, and of no activation; see `RuleContext.views_of`."""
        name = self._names.get(id(x))
        if name is None:
            return self.moved.get(x, [])
        if not (integers or holds_numbers(x)):
            return []
        if name not in self._whole:
            self._whole[name] = View.whole(name, x.shape)
        return [self._whole[name]]

    def is_one(self, x: Tensor) -> bool:
        """Whether a tensor is a parameter or buffer itself, or entries of a single one, as they are."""
        views = self.views_of(x)
        return id(x) in self._names or (len(views) == 1 and not views[0].changed)

    def carrier_of(self, x: Tensor) -> View | None:
        """The parameter on which gates of a matrix lie; see `RuleContext.carrier_of`."""
        views = self.views_of(x)
        whole = [v for v in views if v.name in self._trainable and v.is_whole]
        if len(views) == 1 and not views[0].changed:
            return whole[0] if whole else None
        names = [v.name for v in views]
        fit = [
            v for v in whole if v.keeps_zero and names.count(v.name) == 1 and not any((i < 0).any() for i in v.index)
        ]
        learns = [v for v in fit if v.name in self._learns]
        return next(iter(learns or fit), None)
