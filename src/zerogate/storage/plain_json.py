"""Plain layers of a plan as JSON values: written, and checked when they are read back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from zerogate.checks import is_whole
from zerogate.cutting.plain_layers import KINDS
from zerogate.errors import CheckpointError
from zerogate.structure import PlainLayer

_KEYS = {"op", "shape", "bias", "options", "source"}
_OPTIONS = {"stride", "padding", "output_padding", "groups", "dilation"}


def describe_plain(plain: Mapping[str, PlainLayer]) -> dict[str, dict[str, object]]:
    """Name of a module → the layer that stands in its place."""
    return {
        path: {
            "op": layer.op,
            "shape": list(layer.shape),
            "bias": layer.bias,
            "options": layer.options,
            "source": layer.source,
        }
        for path, layer in plain.items()
    }


def read_plain(table: object, modules: Mapping[str, nn.Module]) -> dict[str, PlainLayer]:
    """What `describe_plain` wrote, for a network of these modules.

    Raises `CheckpointError` for anything else."""
    if not isinstance(table, dict):
        raise CheckpointError("holds a plan whose plain layers are not a table")
    plain: dict[str, PlainLayer] = {}
    for path, entry in table.items():
        if not path or path not in modules or not isinstance(entry, dict) or set(entry) != _KEYS or not _fits(entry):
            raise CheckpointError(f"holds a plan with a plain layer at {str(path)[:80]!r} that cannot be made")
        shape = tuple(entry["shape"])
        plain[path] = PlainLayer(entry["op"], shape, entry["bias"], entry["options"], entry["source"])
    return plain


def _fits(entry: dict[str, object]) -> bool:
    """Whether the values of an entry are of the kinds that are written."""
    shape, options = entry["shape"], entry["options"]
    if entry["op"] not in KINDS or type(entry["bias"]) is not bool or not isinstance(entry["source"], str):
        return False
    if not isinstance(shape, list) or len(shape) < 2 or not all(is_whole(n) for n in shape):
        return False
    return isinstance(options, dict) and options.keys() <= _OPTIONS and all(map(_is_option, options.values()))


def _is_option(value: object) -> bool:
    if isinstance(value, list):
        return all(is_whole(n, least=0) for n in value)
    return value in ("same", "valid") if isinstance(value, str) else is_whole(value, least=0)
