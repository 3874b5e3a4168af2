"""Ops that move, pick, repeat or write entries."""

from __future__ import annotations

from zerogate.groups.declarations.table import Family, declare

declare("view _unsafe_view", Family.RELAYOUT, sizes=("size",), only_sizes=True)
declare("reshape", Family.RELAYOUT, sizes=("shape",), only_sizes=True)
declare("unflatten", Family.RELAYOUT, sizes=("sizes",), only_sizes=True)
declare("expand broadcast_to", Family.RELAYOUT, sizes=("size",), only_sizes=True, spreads=True, broadcast_safe=True)
declare("expand_as", Family.RELAYOUT, only_sizes=True, spreads=True, broadcast_safe=True, shape_of_second=True)
declare("view_as reshape_as", Family.RELAYOUT, only_sizes=True, shape_of_second=True)
declare("repeat", Family.RELAYOUT, only_sizes=True, spreads=True)
declare("unsqueeze squeeze permute transpose t", Family.RELAYOUT, only_sizes=True, broadcast_safe=True)
declare("cat", Family.RELAYOUT, only_sizes=True, broadcast_safe=True, keeps_format=True)
declare("masked_fill", Family.RELAYOUT, only_sizes=True, broadcast_safe=True)
declare(
    """flatten ravel numpy_T movedim moveaxis swapaxes swapdims repeat_interleave tile adjoint mT mH
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
    "index _unsafe_index index_select roll rot90 diagonal tril triu unfold as_strided gather take_along_dim",
    Family.INDEX,
)
declare(
    """index_put _unsafe_index_put index_add index_copy index_reduce scatter_add scatter scatter_reduce select_scatter
    slice_scatter""",
    Family.SCATTER,
    in_place="index_put_ index_add_ index_copy_ index_reduce_ scatter_add_ scatter_ scatter_reduce_",
)
declare("index_fill segment_reduce", in_place="index_fill_")
declare(
    "",
    Family.RELAYOUT,
    in_place="squeeze_ unsqueeze_ t_ transpose_ swapaxes_ swapdims_",
    only_sizes=True,
    broadcast_safe=True,
)
declare("im2col col2im", Family.REARRANGEMENT)
declare("topk sort kthvalue msort mode", Family.ORDER)
