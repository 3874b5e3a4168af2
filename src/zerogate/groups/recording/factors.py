"""Parameters that multiply an activation, ``(x * v).sum(-1)``: a layer with one output, written as a product and a sum.

A gate on the parameter makes closed channels of the product 0, and every op that takes 0 to 0 leaves them so: a sum over all
channels is then one over the open ones.
"""

from __future__ import annotations

from torch import Tensor

from zerogate.groups.label_tensors import varying_dims
from zerogate.groups.recording.record import Recording
from zerogate.groups.recording.tensor_maps import TensorMap
from zerogate.groups.recording.tracer import Tracer
from zerogate.groups.rules.protocol import View
from zerogate.modules.index import owner_of
from zerogate.structure import Axis, LayerCall


class Factors:
    """Knows which tensors of a run are 0 where a parameter's gate is closed.

    Args:
        recording: in which sums are entered.
        tracer: knows where the run is.
        trainable: names of parameters that can have gates.
    """

    def __init__(self, recording: Recording, tracer: Tracer, trainable: set[str]) -> None:
        self._recording, self._tracer, self._trainable = recording, tracer, trainable
        self._axes: TensorMap[tuple[Axis, str]] = tracer.tensor_map()
        """Tensor → the parameter's dimension along which its gates lie, and the module in which it was read."""

    def note(self, result: Tensor, factor: View | Tensor, labels: Tensor) -> None:
        """See `RuleContext.note_factor`."""
        known: tuple[Axis, str] | None = None
        if isinstance(factor, Tensor):
            known = self._axes.get(factor)
        elif not factor.changed and factor.name in self._trainable:
            shape = labels.shape
            along = set(varying_dims(labels))
            own = [d for d, i in enumerate(factor.index) if along & set(varying_dims(i.expand(shape)))]
            known = ((factor.name, own[0]), self._tracer.module) if len(own) == 1 else None
        if known is not None:
            self._axes[result] = known

    def record_sum(self, x: Tensor) -> bool:
        """See `RuleContext.record_sum`."""
        known = self._axes.get(x)
        if known is None or known[0] not in self._recording.axes:
            return False
        axis, host = known
        self._recording.calls.append(LayerCall(owner_of(axis[0]), host, axis[0], axis, None, 0.0, 0))
        return True
