"""Checkpoints: read with care, checked against the model that they are for, written whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import zerogate as zg
from zerogate.errors import CheckpointError
from zerogate.training import build
from zerogate.training.checkpoints import (
    CheckpointIO,
    check_state,
    last_checkpoint,
    load_checkpoint,
    load_weights,
)
from zerogate.training.config.compose import compose
from zerogate.training.run_folder import RunFolder


def test_a_plain_state_dict_can_be_started_from(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = zg.models.convnet(in_channels=1, width=4)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    config = compose(["experiment=digits_dense", "model.width=4", f"init_from={tmp_path}/weights.pt"])
    batches = build.load_batches(config, build.load_data(config), torch.device("cpu"))
    module = build.make_classifier(config, batches, torch.device("cpu"))
    for name, value in module.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no checkpoint"),
        (b"", r"\(0 bytes\) is truncated or no checkpoint of zerogate; give another one"),
        (b"nonsense", r"\(8 bytes\) is truncated"),
        ([1, 2], "holds a list, not a checkpoint"),
    ],
)
def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "last.ckpt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(path)


def test_a_state_has_exactly_the_tensors_of_its_module() -> None:
    module, path = nn.Linear(3, 2), Path("last.ckpt")
    state = module.state_dict()
    check_state(module, state, path)
    with pytest.raises(CheckpointError, match="it lacks 'bias'"):
        check_state(module, {"weight": state["weight"]}, path)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \[2, 4\], the model wants \[2, 3\]"):
        check_state(module, state | {"weight": torch.zeros(2, 4)}, path)
    with pytest.raises(CheckpointError, match="it holds 'other'"):
        check_state(module, state | {"other": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="has gates but the configuration has gate=none"):
        check_state(module, state | {"sparse.logits": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="has no gates but the configuration asks for some"):
        check_state(nn.ModuleDict({"sparse": module}), state, path)


def test_weights_come_from_a_folder_a_checkpoint_or_a_plain_state_dict(tmp_path: Path) -> None:
    source = nn.Linear(3, 2)
    state = {f"model.{name}": tensor for name, tensor in source.state_dict().items()}
    torch.save({"state_dict": state | {"sparse.logits": torch.zeros(1)}}, tmp_path / "last.ckpt")
    torch.save(source.state_dict(), tmp_path / "weights.pt")
    for given, read in ((tmp_path, "last.ckpt"), (tmp_path / "last.ckpt", "last.ckpt"), (tmp_path / "weights.pt",) * 2):
        model = nn.Linear(3, 2)
        assert load_weights(model, given) == tmp_path / read
        assert torch.equal(model.weight, source.weight) and torch.equal(model.bias, source.bias)


def test_a_run_that_wrote_nothing_yet_has_no_checkpoint(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert last_checkpoint(run) is None
    run.metrics.write_text("epoch\n")
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        last_checkpoint(run)
    torch.save({"state_dict": {}}, run.last)
    with pytest.raises(CheckpointError, match="it holds weights only; use init_from="):
        last_checkpoint(run)


def test_lightning_reads_what_it_has_written(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    CheckpointIO().save_checkpoint({"a": torch.arange(3), "b": [1.5, None]}, path)
    assert [item.name for item in tmp_path.iterdir()] == ["last.ckpt"]  # no temporary file is left
    read = CheckpointIO().load_checkpoint(path)
    assert torch.equal(read["a"], torch.arange(3)) and read["b"] == [1.5, None]
