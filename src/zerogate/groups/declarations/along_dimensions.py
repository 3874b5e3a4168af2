"""Ops that mix what lies along some dimensions: pools, reductions, softmax, norms."""

from __future__ import annotations

from zerogate.groups.declarations.table import Family, declare

declare(
    "softmax log_softmax _softmax _log_softmax _safe_softmax cumsum cumprod logcumsumexp cummax cummin",
    Family.MIXING,
    in_place="cumsum_ cumprod_",
)
declare(
    """_fft_r2c _fft_c2r _fft_c2c linalg_cross linalg_inv_ex linalg_cholesky_ex cholesky linalg_matrix_exp _linalg_det
    _linalg_slogdet _linalg_svd _linalg_eigh linalg_eig linalg_qr linalg_lu linalg_lu_factor_ex max_unpool2d max_unpool3d"""
)
declare(
    """mean sum amax amin std var max min logsumexp norm linalg_vector_norm median nansum var_mean std_mean argmax argmin
    prod any all count_nonzero aminmax nanmedian""",
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
