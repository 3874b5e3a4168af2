"""What a rule may ask of a run and say of it: `RuleContext`. Rules know nothing else of whatever records the run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from zerogate.groups.label_tensors import collapse, drop_expanded, rows_along, varying_dims


class Freeze(Exception):
    """Raised by a rule that cannot follow the labels; carries the reason. All labels that enter the op then stay."""


class UnknownValue(Exception):
    """Raised where a run without data would need a tensor's values; the model is then run with data."""


@dataclass(frozen=True)
class View:
    """A parameter or buffer that was moved about before use."""

    name: str
    """Whose entries these are."""
    index: tuple[Tensor, ...]
    """For each of its dimensions, where along it every entry lies: int64, of the shape that the tensor has now; −1 where an
    entry is none of it."""
    changed: bool = False
    """Whether its values are others now (it was scaled, passed through a function, …)."""
    keeps_zero: bool = True
    """Whether an entry is zero now wherever the parameter's own is, whatever else it was computed from."""
    normed: bool = False
    """Whether it is the direction v of torch's weight norm, g · v / ‖v‖: every such weight has a g and v of its own."""

    @staticmethod
    def whole(name: str, shape: torch.Size) -> View:
        """All of a parameter, buffer or constant, as it is."""
        steps = [torch.arange(n).view([-1 if i == d else 1 for i in range(len(shape))]) for d, n in enumerate(shape)]
        return View(name, tuple(i.expand(shape) for i in steps))

    @property
    def is_whole(self) -> bool:
        """Whether dimensions have at most been permuted or lengthened by 1."""
        sizes = [int(i.amax()) + 1 for i in self.index]
        now = self.index[0].shape if self.index else torch.Size()
        one_each = all(len(varying_dims(i)) <= 1 for i in self.index)
        return one_each and sorted(s for s in sizes if s > 1) == sorted(s for s in now if s > 1)

    def dim_along(self, dim: int) -> int | None:
        """Which dimension of the parameter lies along this dimension of the tensor; None for none or several."""
        dim %= self.index[0].ndim
        own = [d for d, i in enumerate(self.index) if dim in varying_dims(i)]
        return own[0] if len(own) == 1 else None

    def lies_along(self, own: int, dims: Collection[int]) -> bool:
        """Whether places along the parameter's dimension ``own`` change along any of these dimensions of the tensor, apart
        from where other entries take turns with its own."""
        (narrow,) = drop_expanded(self.index[own])
        filled = torch.where(narrow < 0, narrow.amax([*dims], keepdim=True), narrow)
        return bool(set(dims) & set(varying_dims(collapse(filled))))

    def indices(self, own: int, dim: int) -> Tensor:
        """Indices along the parameter's dimension ``own``, in the order of the tensor's dimension ``dim``."""
        return rows_along(self.index[own], dim)[:, 0]


class RuleContext(Protocol):
    """The run that a rule's op is part of.

    Labels are int64 tensors of the shape of the tensor they belong to; a *vector* of labels is 1-dimensional, with one label
    for each channel. Reasons are given without module and line, which are added.
    """

    # What is known of a tensor.

    def labels_of(self, x: Tensor) -> Tensor | None:
        """A tensor's labels; None where nothing of it could be removed."""

    def sheets_of(self, x: Tensor) -> list[Tensor]:
        """All of a tensor's labels, see `Sheets`: those of `labels_of` first."""

    def views_of(self, x: Tensor, integers: bool = False) -> list[View]:
        """Parameters and buffers that a tensor is made of, and of no activation.

        ``integers``: whether it may be a buffer of integers or booleans itself, such as a mask."""

    def carrier_of(self, x: Tensor) -> View | None:
        """The parameter on which gates of a matrix lie: all of it, as it is or computed entry by entry such that zeros
        stay zeros. None where there is none."""

    def value_of(self, x: Tensor) -> Tensor | None:
        """What a tensor holds; None where that is not known without data."""

    @property
    def any_size_can_follow(self) -> bool:
        """Whether every size that an op is given can be set to what is kept, as in an exported graph."""

    # What may be removed only together, and what stays.

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Ties a[i] to b[i] for every i where both are labels; shapes broadcast."""

    def tie_rows(self, rows: Tensor, reason: str) -> Tensor:
        """Ties the labels of each row, [rows, n], and returns one for each, [rows]; rows with labels and zeros stay."""

    def tie_to_constant(self, x: Tensor, labels: Tensor) -> None:
        """Ties all channels that meet the same constant tensor x: its length fixes how many of each may remain."""

    def keep_at_least(self, labels: Tensor, n: int) -> None:
        """Says that n of these labels stay, whichever these are: a layer with fewer would be another one."""

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Says that these labels stay."""

    def defer_freeze(self, result: Tensor, labels: Tensor, reason: str) -> None:
        """Says that a result is made of all of these channels: they stay if any op uses it."""

    # Parameters.

    def attach(self, parameter: Tensor, dim: int, vector: Tensor) -> None:
        """Says that slices of a parameter or buffer along ``dim`` are removed with these channels.

        Raises `Freeze` where the tensor is computed from something else.
        """

    def attach_view(self, view: View, labels: Tensor) -> None:
        """Says that a parameter, moved as the view says and broadcast to the labels' shape, is sliced with them."""

    def note_factor(self, result: Tensor, factor: View | Tensor, labels: Tensor) -> None:
        """Says that a parameter, or what is known to multiply another tensor, multiplies a result with these labels: where
        a gate closes a channel of that parameter, the result is 0."""

    def record_sum(self, x: Tensor) -> bool:
        """Says that all channels of x are summed up; False where no parameter multiplies them, whose gates could leave
        closed ones out."""

    def make_channels(self, x: Tensor, dims: Collection[int]) -> Tensor:
        """Labels, which vary along ``dims``, for a tensor made of parameters alone that is used as an activation."""

    def constant_channels(self, x: Tensor, dims: Collection[int]) -> Tensor | None:
        """Labels, which vary along ``dims``, for a tensor of one value everywhere that is used as an activation, such as the
        first state of a recurrence; None for any other tensor."""

    # Layers, norms and sizes.

    def record_layer(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        entering: Tensor | None,
        dims: tuple[int | None, int | None],
        macs: float,
        channel_dim: int = 0,
        repeats: int = 1,
        recurrent: bool = False,
    ) -> Tensor | None:
        """Records a layer that sums over its input channels and makes new ones; returns the new labels, [outputs].

        Args:
            weight: the parameter, a view of it, or what is computed from it entry by entry.
            bias: likewise; it is sliced with the new channels.
            entering: labels of the input channels; None where none of them could be removed.
            dims: dimensions of ``weight`` along which it consumes and produces.
            macs: per consumed and produced channel, for the whole batch.
            channel_dim: where the input has its channels, counted from the end.
            repeats: the layer has as many groups of channels, and those at one place of all groups are tied.
            recurrent: see `LayerCall.recurrent`.
        """

    def record_repeats(self, labels: Tensor) -> None:
        """Says that the layer recorded last runs once for each of its input's channels with these labels, and leaves them
        apart."""

    def record_grouped_conv(
        self, weight: Tensor, bias: Tensor | None, vector: Tensor | None, macs: float, channel_dim: int
    ) -> Tensor | None:
        """Records a convolution in groups each of which is one unit; labels [outputs] pass through it.

        ``macs``: per output channel, for the whole batch.
        """

    def record_norm(self, labels: Tensor) -> bool:
        """Notes that the running module normalises over all its channels; False where it cannot be made to normalise over
        the kept ones only."""

    def mark_heads(self, labels: Tensor) -> None:
        """Says that these labels are summed together in a product of two activations: units with them are heads."""

    def state_size(self, attribute: str, value: int | tuple[int, ...], rows: Tensor) -> None:
        """Says that an attribute of the running module counts the rows of labels of which some are kept, if its value is
        this one; of a tuple or list, the last place."""
