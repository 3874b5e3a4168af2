"""Activations times the gates of every example, in few kernels.

Where all numbers of one channel of one example lie together, a channel times its gate is a batch norm in evaluation mode,
with the gate as its scale: mean 0, variance 1 and no shift leave x · z exactly. Its backward pass is a single kernel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from zerogate.modules.device_tables import DeviceTables
from zerogate.modules.internals import foreach_mul, must_stay_traceable


class Spread(torch.autograd.Function):
    """Gates z, [examples, units], in the order in which activations use them: ``apply(z, index, lengths, ungated)`` picks
    the units of ``index``, int64, and splits them into contiguous tensors [examples, length], one for each of ``lengths``.
    Where some channels are ``ungated``, their index is the number of units and their gate 1."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, index: Tensor, lengths: Sequence[int], ungated: bool) -> tuple[Tensor, ...]:
        ctx.index, ctx.lengths, ctx.units = index, lengths, z.shape[1]
        ctx.set_materialize_grads(False)
        z = torch.cat([z, z.new_ones(len(z), 1)], 1) if ungated else z
        return tuple(foreach_mul(z.index_select(1, index).split(lengths, 1), 1.0))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [g for g in grads if g is not None]
        if not present:
            return None, None, None, None
        index = ctx.index
        if len(present) < len(grads):  # layers that share a product, or did not run
            index = torch.cat([i for i, g in zip(index.split(ctx.lengths), grads, strict=True) if g is not None])
        total = present[0].new_zeros(len(present[0]), ctx.units + 1).index_add(1, index, torch.cat(present, 1))
        return total[:, : ctx.units], None, None, None


class _Scaled(torch.autograd.Function):
    """x · z, for z of as many dimensions as x, some of them of length 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, z: Tensor) -> Tensor:
        ctx.save_for_backward(x, z)
        return x * z

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, z) = grads, ctx.saved_tensors
        if torch.is_grad_enabled() or not all(ctx.needs_input_grad):
            of_x, of_z = (
                grad * other if use else None for other, use in zip((z, x), ctx.needs_input_grad, strict=True)
            )
        else:
            of_x, of_z = foreach_mul([grad, grad], [z, x])
        return of_x, None if of_z is None else of_z.sum_to_size(z.shape)


class ScaleChannels:
    """Multiplies activations by gates; holds the constants that this takes."""

    def __init__(self) -> None:
        self._constants: DeviceTables[_ZeroAndOne] = DeviceTables()

    def __call__(self, x: Tensor, z: Tensor, dim: int) -> Tensor:
        """x, [examples, …] with its channels along ``dim``, times z, [examples, channels]."""
        shape = [1] * x.ndim
        shape[0], shape[dim] = z.shape
        z = z.to(x.dtype)
        if must_stay_traceable() or not x.is_floating_point():
            return x * z.view(shape)
        if shape[1] == 1 or not x.is_contiguous() or not x.numel():
            product: Tensor = _Scaled.apply(x, z.view(shape))
            return product
        scale = z.reshape(-1)
        constants = self._constants.get((x.device, x.dtype), lambda: _ZeroAndOne(x))
        mean, variance = constants.of(len(scale))
        planes = x.view(1, len(scale), *x.shape[2:])
        return torch.native_batch_norm(planes, scale, None, mean, variance, False, 0.0, 0.0)[0].view(x.shape)


class _ZeroAndOne:
    """Zeros and ones of a device and dtype, as many as were ever asked for at once."""

    def __init__(self, like: Tensor) -> None:
        self._zeros, self._ones = like.new_zeros(0), like.new_ones(0)

    def of(self, length: int) -> tuple[Tensor, Tensor]:
        """So many zeros and so many ones."""
        if len(self._zeros) < length:
            with torch.inference_mode(False):  # autograd keeps them
                self._zeros, self._ones = self._zeros.new_zeros(length), self._ones.new_ones(length)
        return self._zeros[:length], self._ones[:length]
