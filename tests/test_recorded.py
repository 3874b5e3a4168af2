"""What is on disk stays of use: records are found, and what commit 81535d8 wrote is read, gone on with and understood.

`written_at_81535d8/write.py` says how its files were made. Where a test of this file fails, the source is to be mended, not
the files: people have such files of their own.
"""

from __future__ import annotations

import json
import math
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

import zerogate as zg
from run_folders import flat
from written_at_81535d8.write import NETWORKS, RUN
from zerogate.bench.command import options
from zerogate.bench.jobs import Job, jobs
from zerogate.bench.records import Record, Records
from zerogate.bench.table import TABLES, load
from zerogate.cli.main import main
from zerogate.training import build
from zerogate.training.build_gates import make_gate, make_objective
from zerogate.training.checkpoints import load_checkpoint
from zerogate.training.config import compose as settings
from zerogate.training.config import moved
from zerogate.training.deploy import compact
from zerogate.training.evaluate import evaluate_run
from zerogate.training.instantiate import instantiate

RECORDS = Records(Path(__file__).parent.parent / "benchmarks/results/records")
WRITTEN = Path(__file__).parent / "written_at_81535d8"
EXPECTED: dict[str, Any] = json.loads((WRITTEN / "expected.json").read_text())

# ---------------------------------------------------------------------------------------------------------- records

SUPERSEDED = {
    "of before 8710f55, where LeNet-300-100 had a constant learning rate": {
        "l300-dense-0-5bdb8db044b4", "l300-t0.05-0-84b3d9c1be84", "l300-t0.10042-0-55f0339d9903",
        "l300-t0.261017-0-ebfafdaf88b3",
    },
    "of rows that cc59808 took out of the table": {"l300-t0.07-0-6e860b48c9e9", "l300-t0.18-0-c05889801375"},
    "of before e7e9588, where Torch-Pruning had the MACs of hard-concrete gates": {
        "tp-macs-0.39-0-7737c6da821e", "tp-macs-0.64-0-c1277ddaf42e", "tp-macs-0.815-0-a7b905e10964",
    },
}  # fmt: skip
"""Records that no row asks for any more, which 81535d8 did not find either."""


def asked(record: Record) -> list[Job]:
    """The jobs for which the record's own command asks, as `zerogate bench` makes them."""
    _, _, name, *arguments = shlex.split(record["command"])
    table, given = load(name), options(arguments)
    if given.only not in [row.id for row in table.rows]:
        return []
    profile = "cpu" if record["device"].endswith(" CPU") else "cuda"
    return jobs(table, profile, [record["seed"]], given.budget, given.epochs, given.only, given.limit,
                            given.precision)  # fmt: skip


def test_every_record_is_found_by_its_table() -> None:
    files = sorted(RECORDS.folder.glob("*/*.json"))
    assert len(files) >= 96 and {path.parent.name for path in files} >= {"googlenet", "latency", "lenet", "resnet20"}
    lost = set()
    for table in sorted({path.parent.name for path in files}):
        found = RECORDS.find(table)
        assert found.problems == []
        for record in found.records:
            wanted = {job.digest: job for job in asked(record)}
            if record["digest"] not in wanted:
                lost.add(f"{record['row']}-{record['seed']}-{record['digest'][:12]}")
                continue
            job = wanted[record["digest"]]
            place = (job.table, job.row.id, job.seed, job.budget, job.setting, job.recipe)
            assert place == tuple(record[key] for key in ("table", "row", "seed", "budget", "setting", "recipe"))
    assert lost == set().union(*SUPERSEDED.values())


def test_digests_are_of_the_names_that_were_recorded() -> None:
    (job,) = jobs(load("googlenet"), "cpu", [0], only="small-0.39")
    names = {job.config["model._target_"], job.config["scheduler._target_"]}
    assert names == {"zerogate.bench.narrow", "zerogate.drops"}
    assert {moved.recorded(name) for name in names} == {"zerogate.bench.networks.narrow", "zerogate.rates.drops"}
    assert {moved.current(moved.recorded(name)) for name in names} == names
    assert moved.recorded({"a": ["zerogate.Target", 1, None]}) == {"a": ["zerogate.Target", 1, None]}  # as it was then


# ------------------------------------------------------------------------------------------------------------- names


def test_configurations_and_tables_name_what_is_public() -> None:
    folders = [Path(settings.__file__).parents[1] / "configs", TABLES]
    texts = [path.read_text() for folder in folders for path in folder.rglob("*.yaml")]
    named = {found[0] for text in texts for found in moved._PATH.finditer(text)}
    assert len(named) >= 15 and {"zerogate.drops", "zerogate.bench.narrow", "zerogate.HardConcrete"} <= named
    for name in named:
        module, _, attribute = name.rpartition(".")
        public = {"zerogate": zg.__all__, "zerogate.models": zg.models.__all__}.get(module, ["narrow"])
        assert attribute in public, name


def test_every_name_that_moved_has_a_public_one() -> None:
    for name in set(moved.MOVED.values()):
        assert callable(hydra.utils.get_object(name)), name
        assert name not in moved.MOVED and moved.current(name) == name
    assert moved.MOVED["zerogate.Hard"] == "zerogate.FixedGate" and zg.Hard is zg.FixedGate
    assert zg.drops is hydra.utils.get_object("zerogate.drops") and "drops" in zg.__all__


@pytest.mark.parametrize(
    "text",
    [
        "scheduler._target_={}",
        "+scheduler._target_='{}'",
        "++a.b={{_target_:{},at:[0.5]}}",
        "+a=[{}, {}]",
        "+a={{b: {}}}",
    ],
)
def test_overrides_may_name_an_old_path(text: str) -> None:
    assert moved.current(text.format(*["zerogate.rates.drops"] * 2)) == text.format(*["zerogate.drops"] * 2)


@pytest.mark.parametrize(
    "text", ["output=out/zerogate.rates.drops", "a=zerogate.rates.drops.b", "a=my.zerogate.rates.drops",
             "a=zerogate.rates.dropsy", "a=zerogate.rates", "zerogate.rates.drops=1", "zerogate.rates"]
)  # fmt: skip
def test_what_is_no_old_path_stays(text: str) -> None:
    assert moved.current(text) == text


def test_an_old_path_is_accepted_and_means_the_public_name() -> None:
    given = ["gate._target_=zerogate.gates.hard_concrete.HardConcrete", "objective=target", "objective.params=0.5",
             "objective._target_=zerogate.target.Target", "model._target_=zerogate.models.lenet.lenet5",
             "scheduler=drops", "scheduler._target_=zerogate.rates.drops"]  # fmt: skip
    config = settings.compose(given)
    named = [config[group]._target_ for group in ("gate", "objective", "model", "scheduler")]
    assert named == ["zerogate.HardConcrete", "zerogate.Target", "zerogate.models.lenet5", "zerogate.drops"]
    assert config.overrides[-1] == "scheduler._target_=zerogate.drops"
    assert isinstance(make_gate(config), zg.HardConcrete)
    objective = make_objective(config)  # a target, whose configuration may hold a penalty's keys
    assert isinstance(objective, zg.Target) and objective.share == 0.5
    assert settings.amend(config, ["scheduler._target_=zerogate.rates.drops"]) == config
    config.gate._target_ = "zerogate.gates.SoftMask"  # changed since it was composed
    assert settings.renewed(config).gate._target_ == "zerogate.SoftMask"


@pytest.mark.parametrize("path", ["zerogate.rates.nope", "zerogate.nowhere.Penalty", "zerogate.gates.Nope"])
def test_a_path_that_never_was_is_refused_by_its_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, path: str
) -> None:
    assert main(["train", f"gate._target_={path}", "trainer.progress=none", f"output={tmp_path}/run"]) == 2
    error = capsys.readouterr().err
    assert f"gate._target_={path} cannot be made" in error and "correct the gate keys" in error
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_of_before_is_brought_up_to_date(tmp_path: Path) -> None:
    assert "_target_: zerogate.rates.drops" in (WRITTEN / "run/config.yaml").read_text()
    before = OmegaConf.load(WRITTEN / "run/config.yaml")
    before.model = {"_target_": "zerogate.bench.networks.narrow", "network": "zerogate.models.resnet.resnet20"}
    before.overrides.append("model._target_=zerogate.bench.networks.narrow")
    OmegaConf.save(before, tmp_path / "config.yaml")
    config = settings.load(tmp_path / "config.yaml")
    assert config.model == {"_target_": "zerogate.bench.narrow", "network": "zerogate.models.resnet20"}
    assert (
        config.scheduler._target_ == "zerogate.drops" and config.overrides[-1] == "model._target_=zerogate.bench.narrow"
    )
    network = instantiate("model", config.model, share=0.5)
    assert isinstance(network, zg.models.ResNet)


# -------------------------------------------------------------------------------------------------------------- runs


def differing(found: Any, expected: Any) -> list[str]:
    """Where figures differ from those of that commit by more than another CPU, or another version of torch, explains."""
    other = {"command", "commit", "device", "versions", "images_per_second"}
    one, two = (
        {name: value for name, value in flat(figures) if name.split("/")[1] not in other}
        for figures in (found, expected)
    )
    differ = sorted(two.keys() - one.keys())  # figures that are new are welcome
    for name in one.keys() & two.keys():
        a, b = one[name], two[name]
        if name.endswith("accuracy"):
            same = math.isclose(a, b, abs_tol=0.02)
        elif name.endswith("file_bytes"):  # the header says versions
            same = math.isclose(a, b, abs_tol=100)
        elif isinstance(b, float):
            same = math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-3)
        else:
            same = a == b
        if not same:
            differ.append(f"{name}: {a}, and {b} at that commit")
    return differ


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Copies of both stopped runs that were gone on with to the end."""
    folder = tmp_path_factory.mktemp("finished")
    for name, command in (("run", "train"), ("search", "tickets")):
        shutil.copytree(WRITTEN / name, folder / name)
        # Given by today's name and by the one of then, which are the same.
        given = ["scheduler._target_=zerogate.rates.drops"] if name == "run" else []
        assert main([command, f"resume={folder / name}", f"data.cache_dir={folder}", *given]) == 0
    yield folder


@pytest.mark.parametrize("name", ["run", "search"])
def test_a_stopped_run_goes_on_to_the_same_end(finished: Path, name: str) -> None:
    assert differing(json.loads((finished / name / "result.json").read_text()), EXPECTED[name]) == []
    stages = {"run": ["run"], "search": ["search/round-1", "search/round-2", "search/ticket"]}[name]
    for stage in stages:  # in the rows that were written then, and those since
        before = (WRITTEN / stage / "metrics.csv").read_text() if (WRITTEN / stage).exists() else ""
        rows = (finished / stage / "metrics.csv").read_text()
        assert rows.startswith(before) and rows.count("\n") == 1 + (6 if name == "run" else 2)


def test_the_comparison_can_fail() -> None:
    result = EXPECTED["run"]
    assert differing(result, result) == []
    assert differing(result | {"test_accuracy": result["test_accuracy"] + 0.01, "commit": "another"}, result) == []
    for change in ({"test_accuracy": 0.5}, {"params": result["params"] + 1}, {"density_macs": 0.6}, {"unit": []}):
        assert len(differing(result | change, result)) == 1


@pytest.mark.parametrize("name", EXPECTED["evaluated"])
def test_a_stopped_run_is_evaluated(name: str) -> None:
    run, which = name.split()
    found = evaluate_run(WRITTEN / run, which) | {"run": run}
    assert differing(found, EXPECTED["evaluated"][name]) == []


@pytest.mark.parametrize("name", EXPECTED["compacted"])
@pytest.mark.filterwarnings("ignore:.* params are left .*, and the target is:UserWarning")
def test_a_stopped_run_is_compacted(tmp_path: Path, name: str) -> None:
    shutil.copytree(WRITTEN / name, tmp_path / "run")
    written = compact(tmp_path / "run")
    found = {key: value for key, value in written.items() if key not in ("path", "report")}
    assert differing(found, EXPECTED["compacted"][name]) == []
    width = 6 if name == "run" else 4
    small = zg.load(written["path"], lambda: zg.models.convnet(in_channels=1, width=width))
    count = torch.numel if name == "run" else torch.count_nonzero  # of single weights those that are not zero
    assert sum(int(count(p)) for p in small.parameters()) == written["params"]


def test_a_finished_run_is_evaluated_and_compacted(finished: Path) -> None:
    for name in ("run", "search"):
        found, result = evaluate_run(finished / name), EXPECTED[name]
        assert (found["params"], found["macs"]) == (result["params"], result["macs"])
        assert found["test_accuracy"] == pytest.approx(result["test_accuracy"], abs=0.02)
    assert [group["kept"] for group in compact(finished / "run")["groups"]] == [
        group["kept"] for group in EXPECTED["run"]["groups"]
    ]
    mask = zg.Mask.load(finished / "search/mask.safetensors")
    assert mask.remaining == EXPECTED["search"]["remaining_weights"]


def test_a_run_of_before_is_started_from(tmp_path: Path) -> None:
    config = settings.compose([*RUN, f"init_from={WRITTEN / 'run'}", f"data.cache_dir={tmp_path}"])
    batches = build.load_batches(config, build.load_data(config), torch.device("cpu"))
    module = build.make_classifier(config, batches, torch.device("cpu"))
    wanted = load_checkpoint(WRITTEN / "run/last.ckpt")["state_dict"]
    assert all(torch.equal(value, wanted[f"model.{key}"]) for key, value in module.model.state_dict().items())


def keys(checkpoint: dict[str, Any]) -> set[str]:
    """The names in a checkpoint, those of nested dicts included; numbers stand for what there are several of."""

    def walk(value: Any, name: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{name}/{'#' if isinstance(key, int) else key}")
        elif isinstance(value, (list, tuple)) and any(isinstance(item, dict) for item in value):
            for inner in value:
                yield from walk(inner, f"{name}/#")
        else:
            yield name

    others = ("loops", "lr_schedulers", "optimizer_states", "pytorch-lightning_version")  # names of other libraries
    return {name for key, value in checkpoint.items() if key not in others for name in walk(value, key)}


@pytest.mark.parametrize("name", ["run/last.ckpt", "run/best.ckpt", "search/round-2/last.ckpt"])
def test_checkpoints_have_the_names_that_they_had(finished: Path, name: str) -> None:
    before, now = (load_checkpoint(folder / name) for folder in (WRITTEN, finished))
    assert before.keys() <= now.keys() and before["callbacks"].keys() == now["callbacks"].keys() == {"RunFiles"}
    assert keys(before) <= keys(now)  # what is new beside them does no harm
    assert {"callbacks/RunFiles/rows/#/val_accuracy", "state_dict/sparse.logits"} <= keys(now)
    groups = [
        [group["name"] for group in checkpoint["optimizer_states"][0]["param_groups"]] for checkpoint in (before, now)
    ]
    assert groups == [["weights", "gates"]] * 2


# ------------------------------------------------------------------------------------------------- networks and masks


@pytest.fixture(scope="module")
def examples() -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(WRITTEN / "examples.safetensors")


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_computes_what_it_did(examples: dict[str, torch.Tensor], name: str) -> None:
    make, _ = NETWORKS[name]
    small = zg.load(WRITTEN / f"{name}.safetensors", make)
    assert not small.training
    with torch.no_grad():
        found = small(examples[f"{name}.input"])
    torch.testing.assert_close(found, examples[f"{name}.output"], rtol=1e-5, atol=1e-6)
    if name == "weights":
        assert zg.Mask.of_zeros(small).density < 0.5
    else:
        assert sum(p.numel() for p in small.parameters()) < 0.8 * sum(p.numel() for p in make().parameters())
    attention = [module for module in small.modules() if isinstance(module, nn.MultiheadAttention)]
    assert [(module.num_heads, module.head_dim) for module in attention] == ([(2, 4)] if name == "heads" else [])


def test_a_saved_mask_is_the_one_that_it_was(examples: dict[str, torch.Tensor]) -> None:
    mask = zg.Mask.load(WRITTEN / "mask.safetensors")
    entries = {key.removeprefix("mask."): value for key, value in examples.items() if key.startswith("mask.")}
    assert mask == zg.Mask(entries) and len(entries) == 3
    assert mask == zg.Mask.of_zeros(zg.load(WRITTEN / "weights.safetensors", NETWORKS["weights"][0]))
