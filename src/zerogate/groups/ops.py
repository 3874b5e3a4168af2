"""What is known of each ATen op, said once: `OPS` holds one declaration for every op that a forward can run.

A declaration states an op's family, which says what happens to the labels of its operands, and the few facts that set it
apart within the family. Rules, tracing, trial runs and exported graphs all ask here. An op that is declared nowhere freezes
the labels that enter it, unless torch tags it as pointwise.

To teach zerogate an op: `declare` it, and where its family has no law that holds for it, write a rule (`rules.op.rule`). The
guide is docs/add_an_op_rule.md.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import torch

from zerogate.groups.arguments import AtenOp


class Family(Enum):
    """What an op does to entries; the value is the law that follows for labels. Families marked * have a rule that holds for
    all their ops; ops of the others each have a rule of their own."""

    POINTWISE = "* an entry of the result depends on the entries at its own place: channels that meet are tied"
    IDENTITY = "* entries stay where they are: labels pass"
    RELAYOUT = "* entries move or are repeated, by shapes: the op runs on the labels"
    SLICE = "* a range, or equal pieces: the op runs on the labels; equal pieces are tied, so that they stay equal"
    INDEX = "* entries are picked by position: the op runs on the labels, and their order must not change"
    SCATTER = "* entries are written at positions: their labels join those of the rest"
    SHAPE_ONLY = "* only a shape or a number is read: no labels come out"
    FACTORY = "* the same value everywhere: no labels come out"
    POOL = "* entries of one channel meet: labels pass, if they do not vary in space"
    REDUCTION = "* some dimensions are summed up: labels are tied along them"
    MIXING = "* all entries along one dimension meet, and stay apart: labels are tied along it"
    ORDER = "* entries are sorted along one dimension: labels must not vary along it"
    CONTRACTION = "labels of the summed dimension are consumed, and a parameter makes new ones"
    NORM = "channels are scaled by statistics and by parameters that are sliced with them"
    REARRANGEMENT = "channels change places in a pattern of their own"
    REFUSED = "known, and not to be followed: labels that enter it stay"
    OTHER = "nothing in common: a rule of its own, or none, and then the labels that enter it stay"


class MetaShape(Enum):
    """What the shape of an op's result follows from on the meta device, without running torch's own shape function."""

    TORCH = "torch's own shape function, or one of `recording.meta_shapes.SHAPES`"
    FIRST = "that of the first operand, the only tensor"
    BROADCAST = "that of two operands, broadcast"


@dataclass(frozen=True)
class OpSpec:
    """What is known of one op."""

    name: str
    """Its name in ATen, without overload: ``conv2d``."""
    family: Family = Family.OTHER
    in_place: bool = False
    """It writes into its first operand, and returns it; its name ends in "_"."""
    pointwise: bool = False
    """Its family is `Family.POINTWISE`, or torch itself tags it so."""
    sizes: tuple[str, ...] = ()
    """Arguments that state sizes, or numbers of groups: they must follow the channels that are kept."""
    only_sizes: bool = False
    """All of its integers are sizes; whether they are right shows in the shape of its result."""
    start: str = ""
    """The argument that says where a cut begins."""
    equal_pieces: bool = False
    """It cuts into pieces of one size, but for the last."""
    spreads: bool = False
    """It repeats what is 1 long."""
    broadcast_safe: bool = False
    """What is the same all along a dimension stays so."""
    layout_only: bool = False
    """It does nothing where a tensor's strides, which depend on sizes, allow it: no step of the record."""
    fill: int | str | None = None
    """What a factory writes: a number, or the name of the argument that gives it. None: nothing that is defined."""
    makes_channels: bool = False
    """Its rule runs even where no labels enter: parameters among its operands make channels."""
    frees_parameters: bool = False
    """Where its rule gives up, parameters among its operands can still be cut along other dimensions."""
    reads_values: bool = False
    """It hands values to Python: a run without data must know them."""
    one_dtype: bool = False
    """Its operands must be of one dtype, which torch's shape functions do not all check."""
    meta: MetaShape = MetaShape.TORCH
    keeps_format: bool = False
    """Its result has the memory format of its first operand."""

    @property
    def is_move(self) -> bool:
        """Whether it moves entries by sizes that it is given."""
        return self.family in (Family.RELAYOUT, Family.SLICE)


OPS: dict[str, OpSpec] = {}
"""ATen op → what is known of it."""
_BY_OVERLOAD: dict[int, tuple[AtenOp, OpSpec]] = {}
"""Overloads by identity, each held, with their specs: torch computes their hashes in Python, and `spec_of` runs for every
op."""


def declare(names: str, family: Family = Family.OTHER, *, in_place: str = "", **facts: Any) -> None:
    """Enters ops into `OPS`.

    Args:
        names: of the ops, without namespace and overload, separated by spaces.
        family: what they do to labels.
        in_place: ops that write into their first operand, ``relu_``; the same facts hold for them.
        facts: fields of `OpSpec`.
    """
    for name in names.split():
        OPS[name] = OpSpec(name, family, pointwise=family is Family.POINTWISE, **facts)
    for name in in_place.split():
        OPS[name] = OpSpec(name, family, in_place=True, pointwise=family is Family.POINTWISE, **facts)
    _BY_OVERLOAD.clear()


def spec_of(func: AtenOp) -> OpSpec:
    """What is known of an op as it was called, an overload: ``aten.add.Tensor``."""
    known = _BY_OVERLOAD.get(id(func))
    if known is None:
        known = _BY_OVERLOAD[id(func)] = func, _spec_of(func)
    return known[1]


def _spec_of(func: AtenOp) -> OpSpec:
    name = func.overloadpacket.__name__
    spec = OPS.get(name)
    tagged = torch.Tag.pointwise in func.tags
    if spec is None:
        return OpSpec(name, Family.POINTWISE if tagged else Family.OTHER, pointwise=tagged)
    return replace(spec, pointwise=True) if tagged else spec


_FIRST, _BROADCAST = MetaShape.FIRST, MetaShape.BROADCAST

# --- entry by entry ---------------------------------------------------------------------------------------------------

declare(
    "relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid clamp clip pow neg",
    Family.POINTWISE,
    in_place="relu_ relu6_ leaky_relu_ elu_ celu_ selu_ gelu_ silu_ mish_ sigmoid_ tanh_ hardtanh_ hardswish_ hardsigmoid_ "
    "clamp_ clip_ pow_ neg_",
    meta=_FIRST,
)
declare("softplus square sqrt rsqrt exp log abs", Family.POINTWISE, meta=_FIRST)
declare("add sub mul div", Family.POINTWISE, in_place="add_ sub_ mul_ div_", meta=_BROADCAST)
declare("maximum minimum", Family.POINTWISE, meta=_BROADCAST)
declare(
    """hardshrink softshrink threshold log_sigmoid rrelu where true_divide rsub lerp addcmul addcdiv
    multiply divide subtract negative absolute""",
    Family.POINTWISE,
    in_place="threshold_ copy_",
)
declare("glu prelu", Family.REARRANGEMENT)

declare("dropout feature_dropout", Family.IDENTITY, in_place="dropout_ feature_dropout_", meta=_FIRST)
declare(
    """clone to _to_copy type_as alpha_dropout feature_alpha_dropout native_dropout positive conj
    resolve_conj resolve_neg nan_to_num zeros_like ones_like empty_like full_like rand_like randn_like""",
    Family.IDENTITY,
    in_place="alpha_dropout_ requires_grad_ fill_ zero_ detach_ nan_to_num_",
)
declare("contiguous alias detach lift_fresh", Family.IDENTITY, layout_only=True)

# --- moves ------------------------------------------------------------------------------------------------------------

declare("view _unsafe_view", Family.RELAYOUT, sizes=("size",), only_sizes=True)
declare("reshape", Family.RELAYOUT, sizes=("shape",), only_sizes=True)
declare("unflatten", Family.RELAYOUT, sizes=("sizes",), only_sizes=True)
declare("expand broadcast_to", Family.RELAYOUT, sizes=("size",), only_sizes=True, spreads=True, broadcast_safe=True)
declare("expand_as", Family.RELAYOUT, only_sizes=True, spreads=True, broadcast_safe=True)
declare("repeat", Family.RELAYOUT, only_sizes=True, spreads=True)
declare("unsqueeze squeeze permute transpose t", Family.RELAYOUT, only_sizes=True, broadcast_safe=True)
declare("cat", Family.RELAYOUT, only_sizes=True, broadcast_safe=True, keeps_format=True)
declare("masked_fill", Family.RELAYOUT, only_sizes=True, broadcast_safe=True)
declare(
    """view_as reshape_as flatten ravel numpy_T movedim moveaxis swapaxes swapdims repeat_interleave tile adjoint mT mH
    concat concatenate stack hstack vstack dstack column_stack flip fliplr flipud constant_pad_nd
    pixel_unshuffle meshgrid""",
    Family.RELAYOUT,
    in_place="masked_fill_",
    only_sizes=True,
)
declare("pad channel_shuffle native_channel_shuffle", Family.REARRANGEMENT)
declare("pixel_shuffle", Family.REARRANGEMENT, only_sizes=True)

declare("slice", Family.SLICE, sizes=("start", "end"), only_sizes=True, start="start")
declare("narrow", Family.SLICE, sizes=("length", "start"), only_sizes=True, start="start")
declare("select", Family.SLICE, only_sizes=True, start="index")
declare("split unsafe_split", Family.SLICE, sizes=("split_size",), only_sizes=True, equal_pieces=True)
declare("split_with_sizes unsafe_split_with_sizes", Family.SLICE, sizes=("split_sizes",), only_sizes=True)
declare("chunk unsafe_chunk", Family.SLICE, only_sizes=True, equal_pieces=True)
declare("tensor_split unbind", Family.SLICE, only_sizes=True)

declare(
    "index index_select roll rot90 diagonal tril triu unfold as_strided gather take_along_dim",
    Family.INDEX,
)
declare(
    "index_put index_add index_copy scatter_add scatter",
    Family.SCATTER,
    in_place="index_put_ index_add_ index_copy_ scatter_add_ scatter_",
)
declare("topk sort kthvalue msort", Family.ORDER)

# --- shapes and constants ---------------------------------------------------------------------------------------------

declare(
    "size stride sym_size sym_numel numel dim is_floating_point is_complex is_same_size",
    Family.SHAPE_ONLY,
)
declare("_local_scalar_dense item", Family.SHAPE_ONLY, reads_values=True)
declare("is_nonzero equal", Family.OTHER, reads_values=True)
declare("zeros new_zeros", Family.FACTORY, fill=0)
declare("ones new_ones", Family.FACTORY, fill=1)
declare("full new_full", Family.FACTORY, fill="fill_value")
declare("empty new_empty", Family.FACTORY)

# --- along dimensions -------------------------------------------------------------------------------------------------

declare("softmax log_softmax _softmax _log_softmax cumsum cumprod logcumsumexp", Family.MIXING)
declare(
    """mean sum amax amin std var max min logsumexp norm linalg_vector_norm median nansum var_mean std_mean argmax argmin
    prod any all""",
    Family.REDUCTION,
)
declare(
    """max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    upsample_nearest1d upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
    upsample_linear1d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa""",
    Family.POOL,
)
declare("adaptive_avg_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d", Family.POOL, keeps_format=True)
declare("grid_sampler grid_sampler_2d grid_sampler_3d", Family.REARRANGEMENT)

declare("batch_norm instance_norm", Family.NORM, keeps_format=True)
declare("native_batch_norm cudnn_batch_norm _native_batch_norm_legit_no_training", Family.NORM)
declare(
    "layer_norm", Family.NORM, sizes=("normalized_shape",), only_sizes=True, makes_channels=True, frees_parameters=True
)
declare("rms_norm native_layer_norm", Family.NORM, sizes=("normalized_shape",), only_sizes=True)
declare("_fused_rms_norm", Family.NORM, sizes=("normalized_shape",))
declare("group_norm", Family.NORM, sizes=("num_groups",), only_sizes=True, keeps_format=True)
declare("native_group_norm", Family.NORM, sizes=("group",), only_sizes=True)
declare("cosine_similarity _weight_norm _weight_norm_interface", Family.REFUSED)

# --- sums over channels -----------------------------------------------------------------------------------------------

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
declare("mv dot", Family.CONTRACTION, makes_channels=True)
declare(
    """addbmm _grouped_mm embedding einsum scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu
    _scaled_dot_product_attention_math""",
    Family.CONTRACTION,
    makes_channels=True,
    frees_parameters=True,
)
