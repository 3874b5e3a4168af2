"""What a run shows of modules: what they were called with, sizes that they state, norms over all of their channels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zerogate.cutting.attention import Attention, merge_calls, refusal
from zerogate.groups.arguments import Args, Kwargs, tensors_among
from zerogate.groups.label_tensors import rows_along, varying_dims
from zerogate.groups.recording.record import NOT_ALWAYS, Recording
from zerogate.groups.recording.tensor_maps import TensorMap
from zerogate.groups.recording.tracer import Tracer
from zerogate.modules.held_numbers import Entry
from zerogate.modules.index import modules_by_name
from zerogate.structure import Norm, SizeAttribute


class ModuleCalls:
    """Knows the calls of a model's modules, and enters in the recording what it says of them.

    Args:
        model: as it runs.
        recording: what is entered into.
        tracer: knows which module is running.
        labels: of the run's tensors.
    """

    def __init__(self, model: nn.Module, recording: Recording, tracer: Tracer, labels: TensorMap[Tensor]) -> None:
        self._recording, self._tracer, self._labels = recording, tracer, labels
        self._modules = modules_by_name(model)
        self._arguments: dict[str, Args] = {}
        """Module → positional arguments of its last call; none where it was called with keywords."""
        self._calls: dict[str, int] = {}
        """Module → how often it has been called."""
        self._normalising: dict[str, set[int]] = {}
        """Module → numbers of the calls in which it has normalised over channels."""

    def add(self, module: str, args: Args, kwargs: Kwargs) -> None:
        """Notes that a module's forward begins."""
        self._arguments[module] = args if not kwargs else ()
        self._calls[module] = self._calls.get(module, 0) + 1
        tensors = tensors_among((args, kwargs))
        self._recording.module_inputs[module] = [labels for x in tensors if (labels := self._labels.get(x)) is not None]

    def record_norm(self, labels: Tensor) -> bool:
        """Notes that the running module normalises over all its channels; False unless it is called with one tensor, whose
        channels are those that are normalised."""
        path = self._tracer.module
        args = self._arguments.get(path, ())
        if not path or len(args) != 1 or not isinstance(args[0], Tensor):
            return False
        entering = self._labels.get(args[0])
        if entering is None or len(varying_dims(entering)) != 1 or len(varying_dims(labels)) != 1:
            return False
        (dim,), (own,) = varying_dims(entering), varying_dims(labels)
        vector = rows_along(entering, dim)[:, 0]
        if not torch.equal(vector, rows_along(labels, own)[:, 0]):
            return False
        reason = self._tracer.where("a norm over channels")
        norm = Norm(path, dim - entering.ndim, tuple(args[0].shape), vector, reason)
        known = next((n for n in self._recording.norms if n.module == path), None)
        if known is None:
            self._recording.norms.append(norm)
        elif known.labels.shape != norm.labels.shape or known.dim != norm.dim:
            return False
        elif known.labels is not norm.labels:  # in a second place: it keeps the same channels in both
            self._recording.labels.unite(known.labels, norm.labels)
            self._recording.freeze_one_sided(known.labels, norm.labels, NOT_ALWAYS.format(path))
        self._normalising.setdefault(path, set()).add(self._calls[path])
        return True

    def finish(self) -> None:
        """At the end of the run: enters how attentions were called, and freezes what norms take that do not run over
        channels in every call."""
        for name, module in self._modules.items():
            if isinstance(module, Attention) and module.called:
                called = merge_calls(self._recording.attention.get(name, {}), module.called)
                self._recording.attention[name] = called
                if (reason := refusal(called)) is not None:
                    for tensor, _ in module.named_parameters():
                        self._recording.unfollowed[f"{name}.{tensor}"] = f"{reason} in {name}"
        for norm in self._recording.norms:
            if len(self._normalising.get(norm.module, ())) != self._calls.get(norm.module, 0):
                self._recording.labels.freeze(norm.labels, NOT_ALWAYS.format(norm.module))

    def state_size(self, attribute: str, value: int | tuple[int, ...], rows: Tensor) -> None:
        """Says that an attribute of the running module counts the rows of labels of which some are kept, if its value is
        this one; of a tuple or list, the last place."""
        path = self._tracer.module
        stated = vars(self._modules[path]).get(attribute)
        entry: Entry = (len(stated) - 1,) if isinstance(stated, (tuple, list)) and stated else ()
        if stated is not None and (tuple(stated) == value if entry else stated == value):
            self._recording.size_attributes[path, attribute, entry] = SizeAttribute(path, attribute, entry, rows)
