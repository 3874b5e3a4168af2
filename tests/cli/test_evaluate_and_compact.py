"""`zerogate eval` and `zerogate compact`: what they say and write of a finished run, and what they refuse."""

import json

import torch

import zerogate
from command_lines import QUICK, contents, refusal
from zerogate.cli.main import main


def test_eval_agrees_with_the_result(capsys, gated):
    result = json.loads((gated / "result.json").read_text())
    before = contents(gated)
    for which, expected in (("last", result), ("best", result["best"])):
        assert main(["eval", str(gated), f"which={which}"]) == 0
        out = capsys.readouterr().out
        assert (
            f"validation accuracy {expected['val_accuracy']:.2%}, test accuracy {expected['test_accuracy']:.2%}" in out
        )
        assert f"parameters {expected['params']:,}" in out
    assert contents(gated) == before


def test_compact_writes_the_same_network_again(capsys, gated):
    network = gated / "compact.safetensors"
    before = network.read_bytes()
    assert main(["compact", str(gated)]) == 0
    out = capsys.readouterr().out
    assert f"wrote {network}: {len(before):,} bytes; dense tensors take " in out and "stem.conv" in out
    assert network.read_bytes() == before
    assert main(["compact", str(gated), "which=best"]) == 0
    assert (gated / "compact-best.safetensors").is_file()


def test_compacting_a_run_without_gates_writes_its_network(capsys, dense):
    assert main(["compact", str(dense)]) == 0
    assert "without gates: nothing to remove" in capsys.readouterr().out
    network = zerogate.load(dense / "compact.safetensors", lambda: zerogate.models.convnet(width=4))
    trained = torch.load(dense / "last.ckpt", weights_only=True)["state_dict"]
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, trained[f"model.{name}"])


def test_bad_arguments_of_eval_and_compact(capsys, tmp_path, gated, dense):
    for command in ("eval", "compact"):
        assert "0" in refusal(capsys, [command])
        assert "2" in refusal(capsys, [command, str(gated), str(dense)])
        assert "holds no run" in refusal(capsys, [command, str(tmp_path)])
        assert "last or best" in refusal(capsys, [command, str(gated), "which=first"])
        assert "no key 'data.nope'" in refusal(capsys, [command, str(gated), "data.nope=1"])
        assert "another model" in refusal(capsys, [command, str(gated), "model.width=5"])


def test_damaged_runs(capsys, tmp_path, gated):
    run = tmp_path / "run"
    run.mkdir()
    for path in gated.glob("*.*"):
        (run / path.name).write_bytes(path.read_bytes())
    whole = (run / "last.ckpt").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a checkpoint"):
        (run / "last.ckpt").write_bytes(damaged)
        before = contents(run)
        for arguments in (["eval", str(run)], ["train", f"resume={run}"], ["compact", str(run)]):
            assert "last.ckpt" in refusal(capsys, arguments)
        assert "last.ckpt" in refusal(capsys, ["train", *QUICK, f"output={tmp_path}/new", f"init_from={run}"])
        assert contents(run) == before and not (tmp_path / "new").exists()
    (run / "last.ckpt").unlink()
    assert "last.ckpt" in refusal(capsys, ["eval", str(run)])
    assert "last.ckpt" in refusal(capsys, ["train", f"resume={run}"])
    (run / "last.ckpt").write_bytes(whole)
    (run / "config.yaml").write_text("{a: [")
    assert "config.yaml" in refusal(capsys, ["eval", str(run)])


def test_a_checkpoint_without_gates_where_gates_are_asked_for(capsys, tmp_path, gated, dense):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_bytes((gated / "config.yaml").read_bytes())
    (run / "last.ckpt").write_bytes((dense / "last.ckpt").read_bytes())
    for arguments in (["eval", str(run)], ["compact", str(run)], ["train", f"resume={run}"]):
        assert "has no gates" in refusal(capsys, arguments)
    (run / "config.yaml").write_bytes((dense / "config.yaml").read_bytes())
    (run / "last.ckpt").write_bytes((gated / "last.ckpt").read_bytes())
    assert "has gates" in refusal(capsys, ["eval", str(run)])
