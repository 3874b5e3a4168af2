"""Every private call into torch and Python that zerogate makes, one name each, with the reason.

What a new torch can break stands here and nowhere else; a test reads all other files for names of this kind. Each entry
says what it gives and why nothing public does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.utils.checkpoint import CheckpointFunction

# Modules. The public iterators over parameters and buffers leave out what is held twice, run several times as long, and
# cannot replace what they give.


def parameters_of(module: nn.Module) -> dict[str, nn.Parameter | None]:
    """The module's own parameters by attribute, to read and to replace."""
    return module._parameters


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The module's own buffers by attribute, to read and to replace."""
    return module._buffers


def children_of(module: nn.Module) -> dict[str, nn.Module | None]:
    """The module's own children by attribute, to read and to replace."""
    return module._modules


def transient_names_of(module: nn.Module) -> set[str]:
    """Attributes of buffers that the module does not store in its `state_dict`."""
    return module._non_persistent_buffers_set


def pre_hooks_of(module: nn.Module) -> dict[int, Any]:
    """The module's forward pre-hooks by number, in the order in which they run; there is no public way to move one."""
    return module._forward_pre_hooks


def is_replica(module: nn.Module) -> bool:
    """Whether a module is one of the copies that `nn.DataParallel` makes for one forward."""
    return bool(getattr(module, "_is_replica", False))


def replica_parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """What a replica holds in the place of its parameters, by attribute, as it was made."""
    found: dict[str, Tensor] = module._former_parameters  # type: ignore[assignment]
    return found


MODULE_CALL: CodeType = nn.Module._call_impl.__code__
"""The code that runs when a module is called: in a stack of frames, one frame for each call that is under way."""

CONVOLUTION = nn.modules.conv._ConvNd
"""The common class of all convolutions, transposed ones included."""
BATCH_NORM = nn.modules.batchnorm._BatchNorm
"""The common class of all batch norms."""
DROPOUT = nn.modules.dropout._DropoutNd
"""The common class of all dropouts."""
WEIGHT_NORM = nn.utils.parametrizations._WeightNorm
"""The parametrisation that `torch.nn.utils.parametrizations.weight_norm` registers."""
RUNNING_NORM = nn.modules.batchnorm._NormBase
"""The common class of batch and instance norms, which may hold running statistics."""


def disable_fused_attention(attention: nn.Module) -> None:
    """Keeps `nn.TransformerEncoderLayer` from running a kernel of its own in place of an attention's forward."""
    attention._qkv_same_embed_dim = False  # type: ignore[assignment]


# Tensors and their storage.


def version_of(x: Tensor) -> int:
    """How often a tensor has been written to: autograd's own check for what it has saved."""
    return x._version


def storage_key(x: Tensor | torch.UntypedStorage) -> int:
    """The same number for all tensors that share memory, also on the meta device, where all addresses are 0."""
    if isinstance(x, Tensor) and x.layout is not torch.strided:
        return id(x)  # a sparse tensor's memory is that of others, which it holds
    storage = x.untyped_storage() if isinstance(x, Tensor) else x
    return storage._cdata


def is_view(x: Tensor) -> bool:
    """Whether autograd takes a tensor for a view of another one."""
    return x._is_view()


# Autograd.


def must_stay_traceable() -> bool:
    """Whether a compiler or a transformation (`torch.func`, forward mode) follows what runs, and must find plain ops."""
    return (
        torch.compiler.is_compiling()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
    )


def saves_tensors_itself() -> bool:
    """Whether autograd keeps what a graph needs, and no hook (of a checkpoint, say) keeps it elsewhere or not at all."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True) is None


def node_in_backward() -> Any:
    """The node of the graph whose backward pass is under way on this thread; None outside of a backward pass."""
    return None if torch._C._current_graph_task_id() == -1 else torch._C._current_autograd_node()


def node_number(node: Any) -> int:
    """When a node was made, counted over all graphs of this thread; −1 for no node."""
    return -1 if node is None else node._sequence_nr()


def is_reentrant_checkpoint(node: object) -> bool:
    """Whether a node is a checkpoint with ``use_reentrant=True``, which starts a backward pass of its own."""
    return isinstance(node, CheckpointFunction._backward_cls)


# Kernels over lists of tensors: one launch where single ops make one for each tensor. No public op does the same.

foreach_mul = torch._foreach_mul
foreach_copy_ = torch._foreach_copy_
foreach_zero_ = torch._foreach_zero_
foreach_norm = torch._foreach_norm
segment_reduce_backward = torch.ops.aten._segment_reduce_backward
"""The derivative of `torch.segment_reduce`, for a function that states its own."""

# Graphs of torch.fx and torch.export.

assert_in_graph = torch._assert
"""An assertion that tracing keeps as a node."""
assert_metadata = torch.ops.aten._assert_tensor_metadata.default
"""What torch.export adds to check types and devices."""


def schema_of(op: object) -> Any:
    """The names, defaults and aliases of an ATen op's arguments and results; None for what is no op."""
    return getattr(op, "_schema", None)


def is_composite(op: Any) -> bool:
    """Whether torch itself runs an op as other ops, on every device: ``op.decompose`` then runs these."""
    try:
        return torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")
    except RuntimeError:  # an op that is defined in Python alone
        return False


def is_op(target: object) -> bool:
    """Whether the target of a node is an ATen op."""
    return isinstance(target, torch._ops.OpOverload)


def is_higher_order_op(target: object) -> bool:
    """Whether the target of a node is an op that runs a graph of its own."""
    return isinstance(target, torch._ops.HigherOrderOperator)


def copy_signature(source: fx.Graph, to: fx.Graph) -> None:
    """Has a graph take and return what another one does, in the same nesting."""
    to.set_codegen(source._codegen)


# Python.


def frames_above() -> Iterator[FrameType]:
    """The frames that are running, the innermost first, without the caller's own."""
    frame: FrameType | None = sys._getframe(2)  # 0 is this function, 1 what iterates
    while frame is not None:
        yield frame
        frame = frame.f_back
