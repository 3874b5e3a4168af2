"""Tensors of many zeros in fewer bytes, and back, bit for bit.

Besides the dense form there are two. Both keep the entries that are not zero, in order, and say where they stand in the
tensor of n entries, taken as flat:

``bitmask``: a bit for each entry, uint8 [⌈n/8⌉]; entry i is bit i mod 8, the lowest first, of byte ⌊i/8⌋
``coo``: the k indices, ascending, uint8 [k, w], each in the fewest bytes w that hold n − 1, the lowest first

Zero is the bit pattern of +0 alone: −0.0 is an entry like any other, and so is every NaN.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from zerogate.errors import CheckpointError
from zerogate.storage.plan_json import short

_PATTERNS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64, 16: torch.int64}
"""Integers to look at entries by, by the bytes of an entry; one of 16 bytes is two of them."""


@dataclass(frozen=True)
class Encoded:
    """A tensor in one of the two forms; both parts are contiguous."""

    form: str
    """``bitmask`` or ``coo``."""
    values: Tensor
    """The entries that are not zero, in the tensor's dtype, one dimension."""
    where: Tensor
    """The bits, [⌈n/8⌉], or the indices, [k, w]; uint8."""


def smallest(entries: int, nonzeros: int, itemsize: int, saving: int = 0) -> tuple[str, int]:
    """The form that takes the fewest bytes, ``dense``, ``bitmask`` or ``coo``, and how many these are.

    Args:
        entries: how many the tensor has.
        nonzeros: how many of them are not zero.
        itemsize: bytes of one entry.
        saving: another form than the dense one is chosen only if it takes more than so many bytes less.
    """
    values, dense = nonzeros * itemsize, entries * itemsize
    sizes = {"bitmask": -(-entries // 8) + values, "coo": nonzeros * _width(entries) + values}
    form = min(sizes, key=sizes.__getitem__)
    return (form, sizes[form]) if sizes[form] + saving < dense else ("dense", dense)


def encode(tensor: Tensor, saving: int = 0) -> Encoded | None:
    """A contiguous tensor of any dtype and shape in its `smallest` form; None where that is the dense one."""
    patterns = _patterns(tensor)
    nonzero = (patterns != 0).any(1)
    form, _ = smallest(tensor.numel(), int(nonzero.count_nonzero()), tensor.element_size(), saving)
    if form == "dense":
        return None
    values = patterns[nonzero].flatten().view(tensor.dtype)
    if form == "coo":
        shifts = _shifts(_width(len(nonzero)), nonzero.device)
        return Encoded(form, values, ((nonzero.nonzero() >> shifts) & 255).to(torch.uint8))
    return Encoded(form, values, packed(nonzero))


def decode(encoded: Encoded, shape: Sequence[int]) -> Tensor:
    """The tensor of that shape which was encoded, contiguous.

    Raises `CheckpointError` where the parts do not fit each other or the shape; it does not name the tensor.
    """
    values, where = encoded.values, encoded.where
    entries = torch.Size(shape).numel()
    expected = [-(-entries // 8)] if encoded.form == "bitmask" else [len(where) if where.ndim else 0, _width(entries)]
    if where.dtype is not torch.uint8 or list(where.shape) != expected:
        raise CheckpointError(
            f"a {encoded.form} of {entries} entries in {where.dtype} {list(where.shape)}, not in torch.uint8 {expected}"
        )
    if encoded.form == "bitmask":
        places = unpacked(where).nonzero().flatten()
    else:
        places = (where.to(torch.int64) << _shifts(where.shape[1], where.device)).sum(1)
    if len(places) and (places[0] < 0 or places[-1] >= entries or (places[1:] <= places[:-1]).any()):
        raise CheckpointError(f"a {encoded.form} with places that do not ascend within 0 … {entries - 1}")
    if list(values.shape) != [len(places)]:
        raise CheckpointError(f"a {encoded.form} with {len(places)} places and values of shape {list(values.shape)}")
    patterns = _patterns(values)
    flat = patterns.new_zeros(entries, patterns.shape[1])
    flat[places] = patterns
    return flat.flatten().view(values.dtype).view(torch.Size(shape))


def packed(bools: Tensor) -> Tensor:
    """Bools [n] as bits, uint8 [⌈n/8⌉]."""
    bits = torch.nn.functional.pad(bools, (0, -len(bools) % 8)).view(-1, 8).to(torch.uint8)
    return (bits << torch.arange(8, dtype=torch.uint8, device=bits.device)).sum(1, dtype=torch.uint8)


def unpacked(bits: Tensor) -> Tensor:
    """The bools of these bits, [8 · bytes]; those beyond the n that were packed are False."""
    return (bits.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=bits.device) & 1).flatten().bool()


# in a file: the values under the tensor's own name, and a table of what is encoded

Table = dict[str, list[object]]
"""Name of an encoded tensor → [form, shape]."""


def pack(tensors: Mapping[str, Tensor], names: Iterable[str]) -> tuple[dict[str, Tensor], Table]:
    """What is stored of contiguous tensors, and the table of those that are encoded: among the named ones all that take
    less of the file so."""
    stored, table = dict(tensors), Table()
    for name in names:
        encoded = encode(tensors[name], header_bytes(name))
        if encoded is not None:
            stored[name], stored[_part(name, encoded.form)] = encoded.values, encoded.where
            table[name] = [encoded.form, list(tensors[name].shape)]
    return stored, table


def unpack(
    stored: Mapping[str, Tensor], table: Mapping[str, object], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """The tensors that `pack` was given.

    Args:
        stored, table: what it returned, as far as the file is right.
        shapes: name → shape of what may be encoded; nothing larger is made, whatever a table says.

    Raises `CheckpointError`, which does not name the file, for anything that `pack` cannot have returned.
    """
    tensors = dict(stored)
    for name, entry in table.items():
        forms = (form for form in ("bitmask", "coo") if name in shapes and entry == [form, list(shapes[name])])
        form = next(forms, None)
        if form is None:
            expected = list(shapes[name]) if name in shapes else "none to be encoded"
            raise CheckpointError(f"says of {short(name)} that it is encoded as {short(entry)}; there it is {expected}")
        part = _part(name, form)
        if name not in stored or part not in stored:
            raise CheckpointError(f"does not hold {short(name if name not in stored else part)}, part of an encoding")
        try:
            tensors[name] = decode(Encoded(form, tensors[name], tensors.pop(part)), shapes[name])
        except CheckpointError as error:
            raise CheckpointError(f"holds {short(name)} as {error}") from error
    return tensors


def header_bytes(name: str) -> int:
    """How many bytes a file's header needs at most for saying that a tensor is encoded."""
    return 200 + 2 * len(json.dumps(json.dumps(name)))  # a name there is text within text


def _part(name: str, form: str) -> str:
    return f"{name}..{form}"  # no tensor is called so: neither modules nor tensors may have an empty name


def _width(entries: int) -> int:
    """In how many bytes an index into a tensor of so many entries fits."""
    return -(-max(entries - 1, 1).bit_length() // 8)


def _shifts(width: int, device: torch.device) -> Tensor:
    """By how many bits the bytes of an index are apart from its lowest, [width]."""
    return 8 * torch.arange(width, device=device)


def _patterns(tensor: Tensor) -> Tensor:
    """Entries as integers, [entries, 1], or [entries, 2] where they are wider than the widest integer."""
    size = tensor.element_size()
    return tensor.flatten().view(_PATTERNS[size]).view(tensor.numel(), 1 if size <= 8 else 2)
