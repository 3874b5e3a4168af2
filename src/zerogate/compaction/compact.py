"""Compaction: the closed units of a gated model removed, and a plain network returned that computes the same."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

from zerogate.compaction.average import carry_average
from zerogate.compaction.deployed import Deployed
from zerogate.compaction.optimizer_state import carry_optimizer
from zerogate.compaction.verify import check_comparable, verify
from zerogate.cutting.plan import Plan
from zerogate.errors import CompactionError, ZerogateError, class_and_line
from zerogate.modules.computed_weights import refresh


def compact(deployed: Deployed, optimizer: Optimizer | None = None, ema: nn.Module | None = None) -> nn.Module:
    """The compacted network of a gated model, see `Sparsified.compact`.

    Its ``zerogate_plan`` holds, as plain JSON values, what `zerogate.save` needs, and the measured difference.

    Args:
        deployed: the gated model with its mask.
        optimizer: goes over to the compacted network, in place; see `carry_optimizer`.
        ema: a moving average, which becomes that of the compacted network, in place; see `carry_average`.

    Raises `CompactionError` where the two networks differ or cannot be compared, and `ZerogateError` for an optimizer or
    average that does not fit; then nothing has been changed.
    """
    check_comparable(deployed)
    try:
        plan = deployed.plan()
        difference = verify(deployed, plan)
        small = deployed.folded().cut(plan)
        refresh(small)
        description = deployed.cuttable.describe(plan, small, deployed.structure.set_by_forward)
        description["difference"] = difference
        small.zerogate_plan = description  # type: ignore[assignment]  # plain JSON values: no tensor and no module
        carry(deployed, plan, small, optimizer, ema)
    except (ZerogateError, MemoryError):
        raise
    except Exception as error:
        raise CompactionError(
            f"this {type(deployed.model).__name__} cannot be compacted: {class_and_line(error)}; the gated model is as it "
            "was. Please report the model"
        ) from error
    return small


def carry(
    deployed: Deployed,
    plan: Plan,
    small: nn.Module,
    optimizer: Optimizer | None = None,
    ema: nn.Module | None = None,
) -> None:
    """Takes an optimizer and a moving average of the gated model over to the compacted one, in place.

    Args:
        deployed: the gated model with its mask.
        plan: the plan by which ``small`` was cut.
        small: the compacted network.
        optimizer: see `carry_optimizer`.
        ema: see `carry_average`.

    Raises `ZerogateError` before anything is changed.
    """
    changes = [] if optimizer is None else [carry_optimizer(optimizer, deployed, plan, small)]
    changes += [] if ema is None else [carry_average(ema, deployed, plan, small)]
    for change in changes:
        change()
