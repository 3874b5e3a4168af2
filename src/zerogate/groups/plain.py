"""Layers whose weight is computed in a way that cannot be sliced: which of them are cut as plain layers, found by trying.

Weight standardisation and the spectral norm mix what a slice would take apart. The module then amounts to a layer of torch
that holds the computed weight, and is recorded, and cut, as that.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from torch import nn

from zerogate.cutting.plain_layers import amounts_to, is_read_once
from zerogate.groups.norms import random_double
from zerogate.groups.recording.record import Recording
from zerogate.modules.index import owner_of
from zerogate.structure import PlainLayer, Structure


def plain_layers(model: nn.Module, recording: Recording, exclude: Collection[str]) -> dict[str, PlainLayer]:
    """Modules of a recorded model that compute a weight and amount to plain layers → these.

    Freezes the channels of weights with a weight norm whose gates would have no place to act, and says of the others that
    are left why they stay."""
    plain: dict[str, PlainLayer] = {}
    for path, (layer, normed, where) in recording.computed.items():
        if path in exclude:
            continue
        module, fits = model.get_submodule(path), False
        with suppress(Exception):  # whatever a module does alone
            if layer.sample and path:
                fits = (is_read_once if normed else amounts_to)(random_double(module), layer)
        if fits and not normed:
            plain[path] = layer
        elif not fits:
            _refuse(recording, layer, where)
    return plain


def _refuse(recording: Recording, layer: PlainLayer, where: str) -> None:
    reason = (
        f"{where}, in a module that, run by itself, gives something else than one layer with this weight would; put a "
        "layer that holds the weight in its place"
    )
    recording.unfollowed[layer.source] = reason


def in_use(structure: Structure, plain: dict[str, PlainLayer]) -> dict[str, PlainLayer]:
    """Those of the plain layers that lose slices, or whose weight gates multiply."""
    touched = {owner_of(name) for name, _ in structure.axes}
    return {path: layer for path, layer in plain.items() if path in touched}


def made_plain(structure: Structure, plain: dict[str, PlainLayer]) -> Structure:
    """The structure found in a model in which plain layers stand, for the model itself."""
    calls = tuple(replace(call, computed=True) if call.layer in plain else call for call in structure.calls)
    return replace(structure, plain=plain, calls=calls)
