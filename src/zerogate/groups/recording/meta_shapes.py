"""Shapes of what frequent ops return, in plain Python: many of torch's own shape functions take a hundred times as long."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from zerogate.groups.arguments import Args, Kwargs
from zerogate.groups.label_tensors import broadcast_shape
from zerogate.groups.ops import MetaShape, OpSpec
from zerogate.modules.copies import like

Shape = tuple[int, ...]
Sizes = int | Sequence[int]
"""One for all dimensions, or one for each."""
SHAPES: dict[str, Callable[..., Shape | None]] = {}
"""ATen op → the shape of its one result, from its arguments; None where the op itself must say (or complain)."""
_META = torch.device("meta")


def result_of(spec: OpSpec, args: Args, kwargs: Kwargs, tensors: list[Tensor]) -> Tensor | None:
    """An op's result on the meta device, where its shape follows from a few lines; None for everything else."""
    if not tensors or not args or (args[0] is not tensors[0] and spec.name != "cat"):
        return None
    x = tensors[0]
    dtype = x.dtype
    if not dtype.is_floating_point or kwargs.get("dtype") is not None or "out" in kwargs:
        return None
    for t in tensors:
        if t.dtype is not dtype:
            return None
    if spec.meta is not MetaShape.TORCH:
        if spec.in_place:
            return x if len(tensors) == 1 or broadcast_shape(x.shape, tensors[1].shape) == x.shape else None
        if spec.meta is MetaShape.FIRST:
            return like(x) if len(tensors) == 1 else None
        return _two(x, args[1]) if len(args) == 2 else None
    known = SHAPES.get(spec.name)
    shape = None if known is None else known(*args, **kwargs)
    if shape is None:
        return None
    if not spec.keeps_format or x.is_contiguous():
        return torch.empty(shape, dtype=dtype, device=_META)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return torch.empty(shape, dtype=dtype, device=_META, memory_format=torch.channels_last)
    return None


def _two(x: Tensor, y: object) -> Tensor | None:
    """The result of two operands, broadcast; the memory format is that of the one that has its shape."""
    if isinstance(y, (int, float)):
        return like(x)
    if not isinstance(y, Tensor):
        return None
    shape = broadcast_shape(x.shape, y.shape)
    for full in (x, y):
        if full.shape == shape:
            return like(full)
    return None if shape is None else torch.empty(shape, dtype=x.dtype, device=_META)


def shape_of(*names: str) -> Callable[[Callable[..., Shape | None]], Callable[..., Shape | None]]:
    """Registers a function as what the shape of these ops' result follows from."""

    def register(function: Callable[..., Shape | None]) -> Callable[..., Shape | None]:
        SHAPES.update(dict.fromkeys(names, function))
        return function

    return register


@shape_of("softmax", "log_softmax")
def _softmax(x: Tensor, dim: int, dtype: object = None) -> Shape | None:
    return x.shape if dtype is None and -x.ndim <= dim < x.ndim else None


@shape_of("batch_norm", "instance_norm")
def _batch_norm(x: Tensor, *others: object) -> Shape | None:
    fit = x.ndim > 1 and all(t.ndim == 1 and len(t) == x.shape[1] for t in others if isinstance(t, Tensor))
    return x.shape if fit else None


@shape_of("group_norm")
def _group_norm(x: Tensor, num_groups: int, *others: object) -> Shape | None:
    return None if num_groups < 1 or x.ndim < 2 or x.shape[1] % num_groups else _batch_norm(x, *others)


@shape_of("layer_norm", "rms_norm")
def _layer_norm(x: Tensor, normalized_shape: Sequence[int], *others: object) -> Shape | None:
    over = tuple(normalized_shape)
    fit = len(over) and x.shape[-len(over) :] == over and all(t.shape == over for t in others if isinstance(t, Tensor))
    return x.shape if fit else None


@shape_of("linear")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Shape | None:
    if weight.ndim != 2 or not x.ndim or x.shape[-1] != weight.shape[1]:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return (*x.shape[:-1], weight.shape[0])


@shape_of("conv1d", "conv2d", "conv3d")
def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Shape | None:
    n = weight.ndim - 2
    if x.ndim != n + 2 or isinstance(padding, str) or groups < 1 or x.shape[1] != weight.shape[1] * groups:
        return None
    if weight.shape[0] % groups or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    sizes = []
    for size, k, s, p, d in zip(
        x.shape[2:], weight.shape[2:], _each(stride, n), _each(padding, n), _each(dilation, n), strict=True
    ):
        sizes.append((size + 2 * p - d * (k - 1) - 1) // s + 1)
        if sizes[-1] < 1:
            return None
    return (x.shape[0], weight.shape[0], *sizes)


def _each(value: Sizes, n: int) -> Sequence[int]:
    """A size for each of n dimensions, where one number may stand for all."""
    if isinstance(value, int):
        return (value,) * n
    return value if len(value) == n else tuple(value) * n


@shape_of("matmul", "bmm", "mm")
def _matmul(a: Tensor, b: Tensor) -> Shape | None:
    if a.ndim < 2 or b.ndim < 2 or a.shape[-1] != b.shape[-2]:
        return None
    batch = broadcast_shape(a.shape[:-2], b.shape[:-2])
    return None if batch is None else (*batch, a.shape[-2], b.shape[-1])


@shape_of("cat")
def _cat(tensors: Sequence[Tensor], dim: int = 0) -> Shape | None:
    first = tensors[0]
    n = first.ndim
    if not n or not -n <= dim < n:
        return None
    dim %= n
    total = 0
    for x in tensors:
        if x.ndim != n or x.is_contiguous() != first.is_contiguous():
            return None
        for d in range(n):
            if d != dim and x.shape[d] != first.shape[d]:
                return None
        total += x.shape[dim]
    return (*first.shape[:dim], total, *first.shape[dim + 1 :])


@shape_of("mean", "sum", "amax", "amin")
def _reduced(x: Tensor, dim: Sizes | None = None, keepdim: bool = False) -> Shape | None:
    if dim is None or dim == []:
        return (1,) * x.ndim if keepdim else ()
    dims = {d % x.ndim for d in ((dim,) if isinstance(dim, int) else dim)} if x.ndim else set()
    if keepdim:
        return tuple(1 if d in dims else n for d, n in enumerate(x.shape))
    return tuple(n for d, n in enumerate(x.shape) if d not in dims)


@shape_of("adaptive_avg_pool2d")
def _adaptive(x: Tensor, output_size: Sizes) -> Shape | None:
    return (*x.shape[:-2], *_each(output_size, 2)) if x.ndim in (3, 4) else None


@shape_of("scaled_dot_product_attention")
def _attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: object = None, *_: object, **rest: object) -> Shape | None:
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4 or rest.get("enable_gqa"):
        return None
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        return None
    scores = (*q.shape[:3], k.shape[2])
    if isinstance(attn_mask, Tensor) and broadcast_shape(attn_mask.shape, scores) != scores:
        return None
    return (*q.shape[:3], v.shape[3])


@shape_of("upsample_bilinear2d", "upsample_nearest2d", "upsample_bicubic2d")
def _upsample(x: Tensor, output_size: Sequence[int] | None, *rest: object, **named: object) -> Shape | None:
    if x.ndim != 4:
        return None
    if output_size is None:
        factors = rest[-1] if rest else named.get("scale_factors")
        if not isinstance(factors, (list, tuple)) or len(factors) != 2:
            return None
        output_size = [int(n * f) for n, f in zip(x.shape[2:], factors, strict=True)]
    return (*x.shape[:2], *output_size)
