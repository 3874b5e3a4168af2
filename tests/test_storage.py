"""Compacted modules written and read back, and files that must be refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch

import zerogate as zg
from support import Residual, close_randomly


@pytest.fixture
def small() -> torch.nn.Module:
    torch.manual_seed(0)
    sparse = zg.sparsify(Residual(), torch.randn(2, 2, 5, 5))
    close_randomly(sparse, torch.Generator().manual_seed(0), "share")
    return sparse.compact().eval()


def test_what_was_saved_is_loaded(small: torch.nn.Module, tmp_path: Path) -> None:
    x = torch.randn(3, 2, 5, 5)
    zg.save(small, tmp_path / "small.safetensors")
    loaded = zg.load(tmp_path / "small.safetensors", Residual)
    assert type(loaded) is Residual
    assert not loaded.training
    assert torch.equal(loaded(x), small(x))
    assert loaded.stem.out_channels == loaded.stem.weight.shape[0]
    assert all(p.requires_grad for p in loaded.parameters())
    zg.save(loaded, tmp_path / "again.safetensors")  # and can be saved again
    assert torch.equal(zg.load(tmp_path / "again.safetensors", Residual)(x), small(x))


def test_input_selection_and_weight_masks_survive(tmp_path: Path) -> None:
    x = torch.randn(3, 1, 28, 28)
    for number, options in enumerate([{"gate_inputs": True}, {"unit": "weight"}]):
        sparse = zg.sparsify(zg.models.lenet300(), x, **options)  # type: ignore[arg-type]
        close_randomly(sparse, torch.Generator().manual_seed(0), "share")
        small = sparse.compact()
        path = tmp_path / f"{number}.safetensors"
        zg.save(small, path)
        assert torch.equal(zg.load(path, zg.models.lenet300)(x), small(x))


def test_an_existing_file_is_not_overwritten_unasked(small: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    path.write_text("precious")
    with pytest.raises(zg.ZerogateError, match="exists"):
        zg.save(small, path)
    assert path.read_text() == "precious"
    zg.save(small, path, overwrite=True)
    assert [p.name for p in tmp_path.iterdir()] == ["small.safetensors"]  # no temporary file is left


def test_bad_saves(small: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(zg.ZerogateError, match="without a plan"):
        zg.save(Residual(), tmp_path / "x")
    with pytest.raises(zg.ZerogateError, match="cannot write"):
        zg.save(small, tmp_path / "missing" / "x")


def test_files_that_are_refused(small: torch.nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    zg.save(small, path)
    whole = path.read_bytes()

    def refused(content: bytes, says: str, make=Residual) -> None:  # type: ignore[no-untyped-def]
        path.write_bytes(content)
        with pytest.raises(zg.CheckpointError, match=says) as error:
            zg.load(path, make)
        assert "\n" not in str(error.value)

    with pytest.raises(zg.CheckpointError, match="cannot be read"):
        zg.load(tmp_path / "nowhere", Residual)
    refused(whole[: len(whole) // 2], "cannot be read")
    refused(b"", "cannot be read")
    refused(b"hello world, this is no such file", "cannot be read")
    refused(whole, "another architecture", lambda: Residual(width=7))
    length = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + length])
    plain = {k: v for k, v in header.items() if k != "__metadata__"}

    def with_header(changed: dict) -> bytes:  # type: ignore[type-arg]
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + whole[8 + length :]

    refused(with_header(plain), "not one that zerogate.save wrote")
    plan = json.loads(header["__metadata__"]["zerogate"])
    plan["keep"][0][2] = plan["keep"][0][2][:-1] or [0, 1]
    tampered = plain | {"__metadata__": {"zerogate": json.dumps(plan)}}
    refused(with_header(tampered), "does not hold the tensors its plan promises")
