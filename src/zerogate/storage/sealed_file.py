"""A safetensors file whose header holds a JSON text and a hash of it and of all tensors: it is read unchanged or refused.

The header's entry ``zerogate`` is the text ``{"sha256": "…", "plan": …}``; see `digest` for what is hashed.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from zerogate.errors import CheckpointError, ZerogateError, first_line
from zerogate.files import safetensors
from zerogate.storage.plan_json import PLAN_VERSION

Header = dict[str, object]
"""What the JSON text says; of a file that is read, whatever somebody wrote there."""

ENCODED_VERSION = PLAN_VERSION + 1
"""The version of files with encoded tensors, which an earlier zerogate would not understand."""
PLAIN_VERSION = PLAN_VERSION + 2
"""The version of files with plain layers, encoded or not; all others are of `PLAN_VERSION`."""

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Dimensions of a tensor → the memory format in which its channels come last; the file holds tensors contiguous."""

_KEY = "zerogate"
_SEALED = re.compile(r'\{"sha256": "([0-9a-f]{64})", "plan": (.*)\}', re.DOTALL)


def sealed(header: Mapping[str, object], tensors: dict[str, Tensor]) -> bytes:
    """The content of a file.

    Args:
        header: JSON values, with the file's ``version``.
        tensors: on the CPU, contiguous, none a view into another; see `separate`.
    """
    text = json.dumps(header)
    seal = f'{{"sha256": "{digest(text, tensors)}", "plan": {text}}}'
    content: bytes = safetensors().torch.save(tensors, metadata={_KEY: seal})
    return content


def read_sealed(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """The header and the tensors of a file, on the CPU.

    Raises `CheckpointError` for a file that cannot be read, that zerogate did not write, that is of another version, or
    whose hash does not fit its contents.
    """
    text, tensors = _opened(path)
    seal = _SEALED.fullmatch(text)
    try:
        header = json.loads(seal[2] if seal else text)
    except (ValueError, RecursionError):
        header = None
    version = header.get("version") if isinstance(header, dict) else None
    if type(version) is not int:
        raise CheckpointError(f"{path} is a safetensors file, but not one that zerogate.save wrote, or it is damaged")
    if not PLAN_VERSION <= version <= PLAIN_VERSION:
        is_later = version > PLAN_VERSION
        way_out = "update zerogate" if is_later else "compact the network again and save it with this one"
        raise CheckpointError(
            f"{path} was written by {'a later' if is_later else 'an earlier'} zerogate (file version {version:.6g}, "
            f"this one reads {PLAN_VERSION} to {PLAIN_VERSION}); {way_out}"
        )
    if seal is None or seal[1] != digest(seal[2], tensors):
        raise CheckpointError(f"{path} is damaged or was changed: its contents do not match the hash in it")
    return header, tensors


def _opened(path: str | os.PathLike[str]) -> tuple[str, dict[str, Tensor]]:
    """The header's entry, "" where there is none, and the tensors of a safetensors file."""
    if os.path.isdir(path):
        raise CheckpointError(f"{path} cannot be read as a compacted network: it is a folder; give a file in it")
    try:
        with safetensors().safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY, "")
            return text, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  # not its pages
    except ZerogateError:
        raise
    except Exception as error:  # whatever a damaged header makes of it
        raise CheckpointError(f"{path} cannot be read as a compacted network: {first_line(error)}") from error


def separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same values on the CPU, contiguous, none a view into another."""
    stored, storages = {}, set()
    for name, tensor in tensors.items():
        values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        if values.untyped_storage().data_ptr() in storages:
            values = values.clone()
        storages.add(values.untyped_storage().data_ptr())
        stored[name] = values
    return stored


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the JSON text, and over names, dtypes, shapes and bytes of the tensors: contiguous, on the CPU."""
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        size = tensor.numel() * tensor.element_size()
        if size:
            total.update((ctypes.c_char * size).from_address(tensor.data_ptr()))  # numpy is not required
    return total.hexdigest()
