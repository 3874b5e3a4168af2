"""A run's folder: the paths of its files, and the rule that it holds one run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from zerogate.errors import ConfigError
from zerogate.training.run_folder import RunFolder, default_folder, read_result, write_csv, write_json

CONFIG = OmegaConf.create({"name": "mine", "copy": "${name}"})


def test_a_run_is_named_by_its_folder_or_a_file_in_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.begin(CONFIG)
    assert RunFolder.of(run.config).folder == RunFolder.of(str(run)).folder == run.folder
    assert str(run.stage("ticket")) == f"{run}/ticket"
    assert OmegaConf.to_container(OmegaConf.load(run.config)) == {"name": "mine", "copy": "mine"}


def test_a_folder_with_a_run_is_taken(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.check_free(overwrite=False)
    run.stage("round-1").begin(CONFIG)
    with pytest.raises(ConfigError, match=r"already holds a run \(config.yaml\): continue it with resume="):
        run.check_free(overwrite=False)
    run.check_free(overwrite=True)
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ConfigError, match="is a file; give a folder"):
        RunFolder(file).check_free(overwrite=True)


def test_a_new_run_deletes_the_files_of_the_old_one_and_no_others(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    kept = [tmp_path / "notes.txt", tmp_path / "round-2" / "notes.txt"]
    for stage in ("round-1", "round-2", "ticket"):
        run.stage(stage).begin(CONFIG)
    for path in (run.last, run.mask, tmp_path / "compact-best.safetensors", tmp_path / "events.out.tfevents.1", *kept):
        path.write_text("")
    run.begin(CONFIG)
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([run.config, *kept])
    assert not (tmp_path / "round-1").exists() and not (tmp_path / "ticket").exists()


def test_default_folders_are_never_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda format: "now")
    names = []
    for _ in range(3):
        names.append(default_folder("mine"))
        names[-1].mkdir(parents=True)
    assert [str(name) for name in names] == ["outputs/mine/now", "outputs/mine/now_2", "outputs/mine/now_3"]


def test_results_and_tables_keep_every_digit(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"a": 0.1 + 0.2, "b": None})
    assert read_result(tmp_path / "result.json") == {"a": 0.1 + 0.2, "b": None}
    assert json.loads((tmp_path / "result.json").read_text())["a"] == 0.30000000000000004
    write_csv(tmp_path / "table.csv", ["a", "b"], [{"a": 0.1 + 0.2, "b": None}, {"a": 1}])
    assert (tmp_path / "table.csv").read_text() == "a,b\n0.30000000000000004,\n1,\n"
