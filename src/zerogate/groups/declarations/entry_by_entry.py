"""Ops whose results have each entry at its own place, and those that make or ask for no channels."""

from __future__ import annotations

from zerogate.groups.declarations.table import Family, MetaShape, declare

declare(
    "relu relu6 leaky_relu elu celu selu gelu silu mish sigmoid tanh hardtanh hardswish hardsigmoid clamp clip pow neg",
    Family.POINTWISE,
    in_place="relu_ relu6_ leaky_relu_ elu_ celu_ selu_ gelu_ silu_ mish_ sigmoid_ tanh_ hardtanh_ hardswish_ hardsigmoid_ "
    "clamp_ clip_ pow_ neg_",
    meta=MetaShape.FIRST,
)
declare("softplus square sqrt rsqrt exp log abs", Family.POINTWISE, meta=MetaShape.FIRST)
declare("add sub mul div", Family.POINTWISE, in_place="add_ sub_ mul_ div_", meta=MetaShape.BROADCAST)
declare("maximum minimum", Family.POINTWISE, meta=MetaShape.BROADCAST)
declare(
    """hardshrink softshrink threshold log_sigmoid rrelu where true_divide rsub lerp addcmul addcdiv
    multiply divide subtract negative absolute""",
    Family.POINTWISE,
    in_place="threshold_ copy_",
)
declare(
    "complex polar floor_divide normal poisson binomial",
    Family.POINTWISE,
    in_place="abs_ eq_ ne_ ge_ gt_ le_ lt_ copysign_ floor_divide_ gcd_ lcm_ heaviside_",
)
declare("fake_quantize_per_tensor_affine", Family.POINTWISE)
declare("glu prelu", Family.REARRANGEMENT)
declare("bucketize isin searchsorted")
declare("mse_loss smooth_l1_loss huber_loss soft_margin_loss binary_cross_entropy binary_cross_entropy_with_logits")
declare("view_as_real view_as_complex")

declare("dropout feature_dropout", Family.IDENTITY, in_place="dropout_ feature_dropout_", meta=MetaShape.FIRST)
declare(
    """clone to _to_copy type_as alpha_dropout feature_alpha_dropout native_dropout positive conj
    resolve_conj resolve_neg nan_to_num zeros_like ones_like empty_like full_like rand_like randn_like
    randint_like fill zero bernoulli _conj _neg_view _lazy_clone _masked_scale""",
    Family.IDENTITY,
    in_place="alpha_dropout_ requires_grad_ fill_ zero_ detach_ nan_to_num_ bernoulli_ normal_ uniform_ random_ "
    "exponential_ geometric_ log_normal_ cauchy_",
)
declare("contiguous alias detach lift_fresh", Family.IDENTITY, layout_only=True)

declare(
    "size stride sym_size sym_numel numel dim is_floating_point is_complex is_same_size",
    Family.SHAPE_ONLY,
)
declare("_local_scalar_dense item", Family.SHAPE_ONLY, reads_values=True)
declare("is_nonzero equal", Family.OTHER, reads_values=True)
declare("zeros new_zeros", Family.FACTORY, fill=0)
declare("ones new_ones", Family.FACTORY, fill=1)
declare("full new_full", Family.FACTORY, fill="fill_value")
declare("empty new_empty new_empty_strided", Family.FACTORY)
