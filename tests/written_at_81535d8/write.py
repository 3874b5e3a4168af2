"""Writes what stands beside it: runs, networks and a mask as commit 81535d8 left them, which later versions must read.

It was run with the source of that commit on the path, in this folder, so that only relative paths are written:

    git worktree add AT 81535d8
    cd tests/written_at_81535d8
    PYTHONPATH=AT/src OMP_NUM_THREADS=1 python write.py

and is not run again: a later commit would write its own files, and nothing would be protected any more. What the tests need
of it later are the networks, so imports of what is not public stand in the functions that write.

* `run`: `zerogate train`, stopped by SIGTERM within its fourth epoch of six.
* `search`: `zerogate tickets`, stopped by SIGTERM within its second stage of three.
* `channels`, `heads`, `weights`: networks by `zg.save`, and the mask of the last one by `Mask.save`.
* `examples`: inputs and outputs of these networks, the entries of the mask.
* `expected`: what that commit itself makes of `run` and `search` when it goes on, evaluates and compacts.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import zerogate as zg

RUN = ["experiment=digits", "model.width=6", "gate=hard_concrete", "gate_lr=0.3", "optimizer.lr=0.01", "objective=target",
       "objective.params=0.6", "scheduler=drops", "trainer.max_epochs=6", "trainer.progress=none"]  # fmt: skip
SEARCH = ["experiment=digits_tickets", "model.width=4", "search.rounds=2", "search.density=0.3", "search.length=2",
          "search.final_length=2", "search.rewind=10it", "search.rewind_optimizer=true",
          "trainer.progress=none"]  # fmt: skip
STEPS = 20  # of an epoch
STOPS = {"run": 3 * STEPS + 10, "search": 3 * STEPS + 10}


class Encoder(nn.Module):
    """An `nn.TransformerEncoder` over eight tokens of sixteen channels, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 24, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.classifier = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.encoder(x).mean(1))


def perceptron() -> nn.Module:
    """Two linear layers, one for each way in which zeros are left out of a file."""
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "channels": (lambda: zg.models.convnet(in_channels=1, width=6), [3, 1, 8, 8]),
    "heads": (Encoder, [3, 8, 16]),
    "weights": (perceptron, [3, 12]),
}
"""How each dense network is made, and the shape of its inputs."""
UNITS: dict[str, Any] = {"channels": "channel", "heads": {"channel", "head"}, "weights": "weight"}


def cut(name: str) -> tuple[nn.Module, Any, Tensor]:
    """(compacted network, the handle of its gates, inputs): of every group some units closed."""
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, x = make(), torch.randn(shape)
    with torch.no_grad():
        for buffer_name, buffer in model.named_buffers():  # statistics as training could have left them
            if buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape) + ("var" in buffer_name) * 0.5)
    sparse = zg.sparsify(model, x, unit=UNITS[name], exclude=[] if name == "weights" else None)
    with torch.no_grad():
        for number, group in enumerate(sparse.groups):
            share = (0.5, 0.96, 0.7)[number % 3] if name == "weights" else 0.5
            closed = torch.rand(group.units) < share
            closed[0] = False
            sparse.logits[group.slice] = torch.where(closed, -8.0, 8.0)
    model.eval()
    return sparse.compact(), sparse, x


def write_networks() -> None:
    from safetensors.torch import save_file

    examples = {}
    for name in NETWORKS:
        small, sparse, x = cut(name)
        zg.save(small, f"{name}.safetensors", overwrite=True)
        with torch.no_grad():
            examples |= {f"{name}.input": x, f"{name}.output": small(x)}
        if name == "weights":
            mask = zg.Mask.of(sparse)
            mask.save("mask.safetensors", overwrite=True)
            examples |= {f"mask.{parameter}": kept for parameter, kept in mask.items()}
    save_file(examples, "examples.safetensors")


def stopped(command: str, overrides: list[str], folder: str) -> None:
    """Begin a run in a folder and stop it by a signal in the step that `STOPS` says."""
    from zerogate.lit import Classifier

    from zerogate.cli import main

    step, done = Classifier.training_step, [0]

    def interrupted(module: Any, batch: Any, batch_idx: int) -> Any:
        done[0] += 1
        if done[0] == STOPS[folder]:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(module, batch, batch_idx)

    Classifier.training_step = interrupted  # type: ignore[method-assign]
    shutil.rmtree(folder, ignore_errors=True)
    assert main([command, *overrides, f"output={folder}"]) == 128 + signal.SIGTERM
    Classifier.training_step = step  # type: ignore[method-assign]
    for path in Path(folder).rglob("events.out.tfevents.*"):
        path.unlink()  # their names have the machine's


def plain(written: dict[str, Any]) -> dict[str, Any]:
    """What `compact` returns without its path and its report."""
    return {key: value for key, value in written.items() if key not in ("path", "report")}


def expected() -> dict[str, Any]:
    """What comes of copies of the stopped runs."""
    from zerogate.runs import compact, evaluate_run

    from zerogate.cli import main

    here = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("run", "search"):
            shutil.copytree(name, Path(folder) / name)
        os.chdir(folder)
        found: dict[str, Any] = {
            "evaluated": {
                f"{run} {which}": evaluate_run(run, which)
                for run, which in (
                    ("run", "last"),
                    ("run", "best"),
                    ("search/round-1", "last"),
                    ("search/round-2", "last"),
                )
            },
            "compacted": {run: plain(compact(run)) for run in ("run", "search/round-1")},
        }
        for name, command in (("run", "train"), ("search", "tickets")):
            assert main([command, f"resume={name}"]) == 0
            found[name] = json.loads((Path(name) / "result.json").read_text())
        os.chdir(here)
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    stopped("train", RUN, "run")
    stopped("tickets", SEARCH, "search")
    write_networks()
    Path("expected.json").write_text(json.dumps(expected(), indent=1) + "\n")
