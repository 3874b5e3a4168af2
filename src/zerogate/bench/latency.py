"""How fast a compacted network is: beside the dense one, and beside one that was built at its widths."""

from __future__ import annotations

import copy
import statistics

import torch

import zerogate
from zerogate.bench.networks import built_like, widths
from zerogate.checks import is_share
from zerogate.cost.stopwatch import seconds_in_turn
from zerogate.errors import ConfigError


def figures(
    seed: int, network: str, density: float, shape: list[int], batches: list[int], rounds: int = 30
) -> dict[str, object]:
    """Closes gates of an untrained network at random, compacts it, and times its forward and that of others in turn.

    Args:
        seed: of the weights and of the gates that close. network: a factory of `zerogate.models`.
        density: share of the channels of every group that stay. shape: of an image, [C, H, W]. batches: their sizes.
        rounds: of measurements in turn, for each batch size.

    Returns:
        `params`, `macs`, `dense_…`, `density_…`, `widths`, and for each batch size `…_b1`, …: `seconds_compacted`,
        `seconds_built`, `seconds_dense` (medians), `to_built` and `to_dense`, the medians of the ratios of neighbours,
        `to_built_low` and `to_built_high`, their quartiles, and `again`, of two networks that are the same.
    """
    if not is_share(density):
        raise ConfigError(f"density must be a share in (0, 1], got {density!r}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(seed)
    dense = getattr(zerogate.models, network)(in_channels=shape[0]).to(device)
    model = copy.deepcopy(dense)
    sparse = zerogate.sparsify(model, torch.randn(2, *shape, device=device))
    with torch.no_grad():
        for group in sparse.groups:
            n_open = max(1, round(density * group.units))
            is_open = torch.zeros(group.units, dtype=torch.bool)
            is_open[torch.randperm(group.units)[:n_open]] = True
            sparse.logits[group.slice] = torch.where(is_open, 8.0, -8.0).to(sparse.logits)
    small = sparse.compact().eval()
    built = built_like(small, copy.deepcopy(dense)).to(device).eval()
    built.load_state_dict(small.state_dict())  # max-pooling takes longer over some values than over others
    cost, whole = sparse.cost(), sparse.dense_cost
    result: dict[str, object] = {"params": cost.params, "macs": cost.macs}
    result |= {"dense_params": whole.params, "dense_macs": whole.macs}
    result |= {"density_params": cost.params / whole.params, "density_macs": cost.macs / whole.macs}
    result["widths"] = widths(small)
    twin = copy.deepcopy(small)
    for batch in batches:
        x = torch.randn(batch, *shape, device=device)
        taken = seconds_in_turn([small, built, dense.eval(), twin], x, rounds)
        for name, column in zip(("compacted", "built", "dense"), zip(*taken, strict=True), strict=False):
            result[f"seconds_{name}_b{batch}"] = statistics.median(column)
        to_built = [times[0] / times[1] for times in taken]
        low, middle, high = statistics.quantiles(to_built, n=4)
        result |= {f"to_built_b{batch}": middle, f"to_built_low_b{batch}": low, f"to_built_high_b{batch}": high}
        result[f"to_dense_b{batch}"] = statistics.median(times[0] / times[2] for times in taken)
        result[f"again_b{batch}"] = statistics.median(times[0] / times[3] for times in taken)
    return result
