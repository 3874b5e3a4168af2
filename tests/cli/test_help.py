"""The help of the command: every option, key and example, read without loading what trains."""

import subprocess
import sys

import pytest

from command_lines import refusal
from zerogate.cli.help import CONFIGS
from zerogate.cli.main import COMMANDS, help_text, main
from zerogate.training.config.compose import compose, leaves


def test_the_help_of_train(capsys):
    for arguments in ([], ["--help"], ["eval", "--help"]):
        assert main(arguments) == 0
        assert "zerogate train" in capsys.readouterr().out
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    for group in ("model", "data", "gate", "objective", "optimizer", "scheduler", "trainer", "experiment"):
        options = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
        assert f"  {group} (default" in out and ", ".join(options) in out
    keys = leaves(compose([]))
    keys.pop("overrides")
    keys.pop("scheduler._target_")
    keys.pop("gate_scheduler._target_")
    assert all(f"  {key}=" in out for key in keys)
    assert "unknown command 'tain'" in refusal(capsys, ["tain"])


def test_the_help_of_searches_and_comparisons(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("tickets", "compare"):
        assert main([name, "--help"]) == 0
        out = capsys.readouterr().out
        assert f"zerogate {name} resume=OUT" in out
        options = sorted(path.stem for path in (CONFIGS / "ticket").glob("*.yaml"))
        assert f"  ticket (default continuous_sparsification): {', '.join(options)}" in out
        keys = leaves(compose([], name))
        for key in keys.keys() - {"overrides", "scheduler._target_", "gate_scheduler._target_"}:
            assert f"  {key}=" in out or key.startswith("gate."), key


def test_every_command_has_a_line_in_the_help() -> None:
    usages = [line for line in help_text().splitlines() if line.startswith("  zerogate ")]
    assert [usage.split()[1] for usage in usages] == [*COMMANDS, "--help"]
    assert list(COMMANDS) == ["train", "tickets", "compare", "eval", "compact", "bench"]


def test_bench_without_arguments_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for arguments in (["bench"], ["bench", "--help"]):
        assert main(arguments) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "zerogate bench" in shown[0]


def test_help_loads_no_lightning_and_a_module_is_a_command():
    code = "import sys; from zerogate.cli.main import main; main(['train', '--help']); print('hydra' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n") and "GROUP=OPTION" in done.stdout
    done = subprocess.run([sys.executable, "-m", "zerogate", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("zerogate ")
