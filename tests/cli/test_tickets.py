"""`zerogate tickets`: a mistake is one line, with nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from command_lines import refusal

SMALL = [
    "experiment=digits_tickets", "model.width=4", "data.limit=200", "data.augment.crop=1", "search.length=1ep2it",
    "search.final_length=2", "search.rewind=3it", "trainer.progress=none",
]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["ticket=nope"], "unknown ticket 'nope'; choose one of continuous_sparsification, cs"),
        (["serach.rounds=1"], "no such key 'serach.rounds'; `zerogate tickets --help`"),
        (["search.rounds=-1"], "search.rounds=-1"),
        (["search.rounds=0"], "no round in which SoftMask"),
        (["search.length=4x"], "search.length='4x'"),
        (["search.length=0"], "search.length=0"),
        (["search.rewind=9ep"], "behind the end of the first round"),
        (["search.reset=none"], "paper or code"),
        (["search.density=0"], "search.density=0"),
        (["search.density=0.2", "objective.weight=3"], "leave out objective.weight=3"),
        (["search.density=0.2", "gate.density=0.3", "ticket=imp"], "give one of them"),
        (["ticket=imp"], "Magnitude takes a density or a Target"),
        (["ticket=random"], "density"),
        (["ticket=gradual", "search.density=0.2", "search.rounds=2", "gate.begin=2"], "begin"),
        (["ticket=random", "search.density=0.2", "search.rounds=2"], "Random gates do not change"),
        (["ticket=dense", "search.density=0.2"], "drop one"),
        (["ticket=dense", "search.rounds=1"], "no gates to search with"),
        (["ticket=small_dense", "search.density=0.001"], "too few for a small ConvNet"),
        (["trainer.max_steps=5"], "search.length=1500it"),
        (["resume=no/such/search"], "no/such/search"),
        (["+search.only.cs=3"], "search.only"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_mistakes(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    overrides: list[str],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refusal(capsys, ["tickets", *SMALL, "output=out", *overrides], way_out=False)
    assert not [*tmp_path.rglob("*")]
