"""Shapes from a few lines of Python are those of torch's own shape functions, or left to these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from zerogate.groups.arguments import tensors_among
from zerogate.groups.ops import OPS, MetaShape, spec_of
from zerogate.groups.recording.meta_shapes import SHAPES, result_of
from zerogate.modules.copies import like

ATEN: Any = torch.ops.aten


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def image(new: Callable[..., Tensor], channels_last: bool) -> Tensor:
    x = new(2, 4, 6, 8)
    return x.to(memory_format=torch.channels_last) if channels_last else x


CALLS: dict[str, tuple[Any, Callable[[Tensor, Callable[..., Tensor]], tuple[Any, ...]]]] = {
    "conv2d": (ATEN.conv2d.default, lambda x, new: (x, new(6, 2, 3, 3), new(6), [2, 1], [1, 0], [1, 2], 2)),
    "conv2d, plain": (ATEN.conv2d.default, lambda x, new: (x, new(5, 4, 1, 1))),
    "conv1d": (ATEN.conv1d.default, lambda x, new: (new(2, 4, 7), new(5, 4, 3), None, [1], [1])),
    "conv3d": (ATEN.conv3d.default, lambda x, new: (new(1, 4, 5, 6, 7), new(3, 4, 1, 2, 3))),
    "linear": (ATEN.linear.default, lambda x, new: (x, new(3, 8), new(3))),
    "matmul": (ATEN.matmul.default, lambda x, new: (x, new(4, 8, 3))),
    "mm": (ATEN.mm.default, lambda x, new: (x[0, 0], new(8, 2))),
    "bmm": (ATEN.bmm.default, lambda x, new: (x[0], new(4, 8, 2))),
    "batch_norm": (
        ATEN.batch_norm.default,
        lambda x, new: (x, new(4), new(4), new(4), new(4), False, 0.1, 1e-5, False),
    ),
    "group_norm": (ATEN.group_norm.default, lambda x, new: (x, 2, new(4), new(4))),
    "layer_norm": (ATEN.layer_norm.default, lambda x, new: (x, [6, 8], new(6, 8), new(6, 8))),
    "softmax": (ATEN.softmax.int, lambda x, new: (x, -1)),
    "cat": (ATEN.cat.default, lambda x, new: ([x, x, x], 1)),
    "mean": (ATEN.mean.dim, lambda x, new: (x, [2, -1], True)),
    "sum": (ATEN.sum.dim_IntList, lambda x, new: (x, [1])),
    "mean of all": (ATEN.mean.default, lambda x, new: (x,)),
    "adaptive pool": (ATEN.adaptive_avg_pool2d.default, lambda x, new: (x, [1, 3])),
    "attention": (ATEN.scaled_dot_product_attention.default, lambda x, new: (x, new(2, 4, 5, 8), new(2, 4, 5, 7))),
    "upsample": (ATEN.upsample_nearest2d.vec, lambda x, new: (x, None, [2.0, 1.5])),
    "add": (ATEN.add.Tensor, lambda x, new: (x, new(4, 1, 8))),
    "add a number": (ATEN.add.Scalar, lambda x, new: (x, 2)),
    "wider": (ATEN.mul.Tensor, lambda x, new: (x[:1], new(3, 1, 6, 8))),
    "maximum": (ATEN.maximum.default, lambda x, new: (x, x)),
    "relu": (ATEN.relu.default, lambda x, new: (x,)),
    "gelu": (ATEN.gelu.default, lambda x, new: (x.transpose(1, 3),)),
    "in place": (ATEN.sub_.Tensor, lambda x, new: (x, new(6, 8))),
    "clamped in place": (ATEN.clamp_.default, lambda x, new: (x, 0, 1)),
    "dropout in place": (ATEN.dropout_.default, lambda x, new: (x, 0.5, False)),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_results_are_those_of_torch(name: str, channels_last: bool) -> None:
    """In shape, and in memory format those on a device with data: without data, torch's own forget the format of images."""
    func, arguments = CALLS[name]
    args = arguments(image(meta, channels_last), meta)
    with torch.inference_mode():
        expected = func(*arguments(image(torch.ones, channels_last), torch.ones))
    result = result_of(spec_of(func), args, {}, tensors_among(args))
    if result is None:
        assert channels_last, "a plain call is left to torch"
        return
    assert (result.shape, result.dtype, result.is_meta) == (expected.shape, expected.dtype, True)
    if name != "wider" and (spec_of(func).keeps_format or spec_of(func).meta is not MetaShape.TORCH):
        assert result.stride() == expected.stride()
    assert (result is args[0]) == spec_of(func).in_place


BAD: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "linear": (ATEN.linear.default, (meta(2, 3), meta(5, 4))),
    "conv2d": (ATEN.conv2d.default, (meta(2, 3, 8, 8), meta(5, 4, 3, 3))),
    "too small": (ATEN.conv2d.default, (meta(2, 3, 2, 2), meta(5, 3, 3, 3))),
    "matmul": (ATEN.matmul.default, (meta(2, 3), meta(4, 2))),
    "cat": (ATEN.cat.default, ([meta(2, 3), meta(3, 3)], 1)),
    "layer_norm": (ATEN.layer_norm.default, (meta(2, 3), [4])),
    "group_norm": (ATEN.group_norm.default, (meta(2, 3, 4), 2)),
    "add": (ATEN.add.Tensor, (meta(2, 3), meta(2, 4))),
    "in place": (ATEN.add_.Tensor, (meta(1, 3), meta(2, 3))),
    "attention": (ATEN.scaled_dot_product_attention.default, (meta(1, 2, 3, 4), meta(1, 2, 3, 5), meta(1, 2, 3, 4))),
}


@pytest.mark.parametrize("name", BAD)
def test_operands_that_do_not_fit_are_left_to_torch_which_complains(name: str) -> None:
    func, args = BAD[name]
    assert result_of(spec_of(func), args, {}, tensors_among(args)) is None


def test_other_dtypes_are_left_to_torch() -> None:
    x = meta(2, 3)
    for args, kwargs in (((x.long(),), {}), ((x, meta(3).double()), {}), ((x, -1), {"dtype": torch.float64})):
        func: Any = ATEN.softmax.int if kwargs else ATEN.add.Tensor
        assert result_of(spec_of(func), args, kwargs, tensors_among(args)) is None


def test_every_op_with_a_shape_of_its_own_is_declared() -> None:
    assert set(SHAPES) <= set(OPS)


def test_like_keeps_strides_of_dense_tensors() -> None:
    for x in (torch.randn(2, 3, 4).transpose(0, 2), torch.randn(4, 1, 2).permute(1, 2, 0), torch.randn(3, 8)[:, ::2]):
        assert like(x).stride() == torch.empty_like(x, device="meta").stride()
