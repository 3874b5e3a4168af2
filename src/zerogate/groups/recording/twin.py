"""Twins: copies of a model that are recorded or exported in its place, in evaluation mode.

Where the model has an `nn.MultiheadAttention`, its twin has an `Attention`, which takes its heads from its weights.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from zerogate.cutting.attention import Attention, unnest
from zerogate.errors import WatchError, class_and_line
from zerogate.modules.copies import deep_copy, meta_copy, quick_copy
from zerogate.modules.index import modules_by_name, named_tensors
from zerogate.modules.internals import storage_key


def twin_of(model: nn.Module, meta: bool) -> nn.Module:
    """A twin with tensors of its own: on the meta device, or with the model's values.

    Raises `WatchError` where the model cannot be copied."""
    return _prepared(_copied(model, meta_copy if meta else deep_copy))


def shared_twin(model: nn.Module) -> nn.Module:
    """A twin that holds the model's own tensors.

    Raises `WatchError` where the model cannot be copied."""
    return _prepared(_copied(model, lambda m: quick_copy(m, {id(x): x for _, x in named_tensors(m)})))


def originals_of(model: nn.Module) -> dict[int, str]:
    """`storage_key` of each tensor that a twin has a copy of → its name; see `Tracer.originals`."""
    return {storage_key(x): name for name, x in named_tensors(model) if not x.is_meta}


def _prepared(twin: nn.Module) -> nn.Module:
    twin = twin.train().eval()  # both: some empty caches then
    for name, module in modules_by_name(twin).items():
        if type(module) is nn.MultiheadAttention and "forward" not in vars(module):
            if not name:
                return Attention(module).eval()
            twin.set_submodule(name, Attention(module).eval())
    unnest(twin)
    return twin


def _copied(model: nn.Module, copied: Callable[[nn.Module], nn.Module]) -> nn.Module:
    try:
        return copied(model)
    except Exception as error:
        raise WatchError(
            f"{type(model).__name__} cannot be copied ({class_and_line(error)}); "
            "zerogate works on copies, so make copy.deepcopy(model) work first"
        ) from error
