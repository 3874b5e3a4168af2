"""How a run of each kind is carried out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import zerogate as zg
from zerogate.bench import kinds
from zerogate.training.config import compose as settings
from zerogate.training.config.resume import resumed
from zerogate.training.run_folder import RunFolder


@pytest.mark.parametrize("channels_last", [False, True])
def test_latencies_compare_networks_in_one_memory_format(channels_last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    stored = zg.models.convnet(width=8).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    shapes = []

    def measured(small: nn.Module, dense: nn.Module, x: torch.Tensor, rounds: int) -> float:
        for tensor in (x, small.stem.conv.weight, dense.stem.conv.weight, dense.conv_b.weight):
            assert isinstance(tensor, torch.Tensor) and tensor.is_contiguous(memory_format=layout)
        shapes.append(list(x.shape))
        return 1.0

    monkeypatch.setattr(kinds.stopwatch, "latency_ratio", measured)
    kinds._latencies(stored, zg.models.convnet(width=8), (1, 8, 8), channels_last)
    assert shapes == [[1, 1, 8, 8], [64, 1, 8, 8]]


def test_a_run_goes_on_with_data_that_lie_elsewhere(tmp_path: Path) -> None:
    begun = kinds._configured(tmp_path, ["data=mnist", "seed=3"], ["data.path=/here"])
    assert (begun.output, begun.seed) == (str(tmp_path), 3)
    run = RunFolder(tmp_path)
    run.begin(begun)
    going_on = kinds._configured(tmp_path, ["data=mnist", "seed=3"], ["data.path=/there"])
    config = resumed(going_on, run.folder, settings.load(run.config))
    assert (config.data.name, config.data.path, config.seed) == ("mnist", "/there", 3)
