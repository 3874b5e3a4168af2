"""The network of a run without its closed parts, as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

import zerogate
from zerogate.cutting.plan import Plan
from zerogate.modules.index import tensor_bytes
from zerogate.sparsified import Sparsified
from zerogate.storage.plan_json import describe_plan
from zerogate.training.costs import deployed_cost
from zerogate.training.evaluate import restore_run
from zerogate.training.run_folder import Result, RunFolder
from zerogate.training.trainer import quiet


def write_compacted(model: nn.Module, sparse: Sparsified | None, path: Path) -> Result:
    """Compact a network, compare it with the gated one, and write it; a network without gates is written as it is.

    Returns:
        `groups`: how many units of each group are kept; `compaction_error`: the largest difference of outputs in float64,
        which `compact` has checked; with gates `compaction_rounding`: that of the file, whose weights are rounded after
        gates were folded into them; `file_bytes` with the header, and `dense_bytes` of the dense network's tensors.
    """
    model.eval()  # the mode in which the network will be used
    if sparse is None:
        if getattr(model, "zerogate_plan", None) is None:
            model.zerogate_plan = describe_plan(Plan(), model, model) | {"difference": 0.0}  # type: ignore[assignment]
        zerogate.save(model, path, overwrite=True)
        return {"groups": [], "compaction_error": 0.0, **_bytes(path, model)}
    small = sparse.compact()
    kept = sparse.kept()
    zerogate.save(small, path, overwrite=True)
    groups = [{"name": g.name, "kept": int(kept[g.slice].sum()), "units": g.units} for g in sparse.groups]
    return {
        "groups": groups,
        "compaction_error": small.zerogate_plan["difference"],  # type: ignore[index]  # a dict, which compact attached
        "compaction_rounding": sparse.difference(small),
        **_bytes(path, model),
    }


def _bytes(path: Path, model: nn.Module) -> dict[str, int]:
    return {"file_bytes": path.stat().st_size, "dense_bytes": tensor_bytes(model)}


def compact(folder: str | Path, which: str = "last", overrides: Sequence[str] = ()) -> Result:
    """Compact the network of a run and write it beside its checkpoint; without gates it is written as it is.

    Args:
        folder: the run's, or that of a search or a stage.
        which: `last` or `best`, the checkpoint.
        overrides: values of the run's configuration, such as data.path=DIR.

    Returns:
        `path`; what `write_compacted` returns; `params` and `macs`; and `report`, a `Report` or, without gates, a line of
        text.

    Raises:
        ZerogateError: as `evaluate_run`.
    """
    run = RunFolder.of(folder)
    with quiet():
        module, batches = restore_run(run, which, overrides)
        path = run.compact if which == "last" else run.folder / f"compact-{which}.safetensors"
        written = write_compacted(module.model, module.sparse, path)
        if module.sparse is None:
            report: object = f"{run} was trained without gates: nothing to remove, the network is written as it is"
        else:
            report = module.sparse.report()
        cost = deployed_cost(module.model, module.sparse, batches.examples())
    return {"path": str(path), **written, **cost, "report": report}
