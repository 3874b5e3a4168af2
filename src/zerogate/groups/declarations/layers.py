"""Ops that sum over channels: layers, products of matrices, attention."""

from __future__ import annotations

from zerogate.groups.declarations.table import Family, declare

declare(
    "conv1d conv2d conv3d",
    Family.CONTRACTION,
    sizes=("groups",),
    only_sizes=True,
    makes_channels=True,
    frees_parameters=True,
    one_dtype=True,
    keeps_format=True,
)
declare(
    "conv_transpose1d conv_transpose2d conv_transpose3d convolution",
    Family.CONTRACTION,
    sizes=("groups",),
    only_sizes=True,
    makes_channels=True,
    frees_parameters=True,
)
declare("linear mm bmm addmm baddbmm", Family.CONTRACTION, makes_channels=True, frees_parameters=True, one_dtype=True)
declare("matmul", Family.CONTRACTION, makes_channels=True, one_dtype=True)
declare("mv dot addmv bilinear _sparse_mm", Family.CONTRACTION, makes_channels=True, frees_parameters=True)
declare(
    """addbmm _grouped_mm embedding _embedding_bag _embedding_bag_forward_only einsum
    scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_attention_math""",
    Family.CONTRACTION,
    makes_channels=True,
    frees_parameters=True,
)
declare("_cdist_forward _euclidean_dist", Family.CONTRACTION)
