"""Recurrent layers and cells, and the ops that pack sequences of several lengths for them."""

from __future__ import annotations

from zerogate.groups.declarations.table import Family, declare

declare(
    "lstm gru rnn_tanh rnn_relu",
    Family.CONTRACTION,
    makes_channels=True,
    frees_parameters=True,
    values=("batch_sizes",),
)
declare(
    "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    Family.CONTRACTION,
    makes_channels=True,
    frees_parameters=True,
    one_dtype=True,
)
declare("_pack_padded_sequence", Family.REARRANGEMENT, values=("lengths",))
declare("_pad_packed_sequence", Family.REARRANGEMENT, values=("batch_sizes",))
