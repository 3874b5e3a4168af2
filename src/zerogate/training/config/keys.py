"""Keys of the configuration that have a part of their own, and the command that a configuration is for. Imports nothing."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Literal

Command = Literal["train", "tickets", "compare"]

LENGTHS = ("T_max", "epochs", "steps")
"""Keys of a schedule that are filled with the epochs, or optimizer steps, of the run where they are null."""

CALL_KEYS = ("resume", "output", "overwrite")
"""Keys that say what one call of a command does, not what the run is: a run that goes on does not take them over."""

NEUTRAL_KEYS = (*CALL_KEYS, "overrides", "data.path", "data.cache_dir",
                "trainer.progress", "trainer.log_every_n_steps")  # fmt: skip
"""Keys that decide no number of a run: where its files and data are, and what is shown of it. The lists below add to them,
each for a reason of its own."""

RESUMABLE_KEYS: dict[Command, tuple[str, ...]] = {
    "train": (*NEUTRAL_KEYS, "trainer.max_epochs"),
    "tickets": NEUTRAL_KEYS,
    "compare": (*NEUTRAL_KEYS, "compare.kinds", "compare.densities", "compare.seeds", "compare.workers"),
}
"""Keys that may change when a run goes on. A run may become longer and a comparison wider, since what is done stays as it
is; the masks of a search depend on the epochs of its stages. `name` and `trainer.accelerator` are not among them: one is
part of result.json, the other changes how numbers are rounded half way through a run."""

RECORD_NEUTRAL_KEYS = (*NEUTRAL_KEYS, "name", "trainer.accelerator")
"""Keys that do not decide which record of a table a run is. Two runs that differ in their name or device alone are the same
experiment; a record says beside its figures on what device they were measured."""


def command_of(config: Container[object]) -> Command:
    """Which command a configuration is for."""
    return "compare" if "compare" in config else "tickets" if "search" in config else "train"


def key_of(override: str) -> str:
    """The key that a Hydra override sets, adds or deletes: ``a.b`` of ``a.b=1``, ``+a.b=1`` and ``~a.b``."""
    return override.lstrip("+~").partition("=")[0]


def not_repeated(stored: Sequence[str], overrides: Sequence[str]) -> list[str]:
    """Those of a run's overrides that are not given a second time, which Hydra forbids for +KEY=VALUE and ~KEY."""
    return [text for text in stored if text not in overrides]
