"""zerogate: learn which parts of a network are exactly zero, then remove them.

sparse = zerogate.sparsify(model, example_inputs, gate=zerogate.HardConcrete(), objective=zerogate.Penalty(1.0))
...  # train with `loss + sparse.loss()`, `sparse.step()` after each optimizer step
small = sparse.compact()
"""

from zerogate import models
from zerogate.baselines import Magnitude, Random
from zerogate.cost import Cost
from zerogate.errors import (
    CheckpointError,
    CompactionError,
    ConfigError,
    DataError,
    WatchError,
    ZerogateError,
)
from zerogate.gates import Gate, Hard, HardConcrete, SoftMask
from zerogate.groups import Group
from zerogate.masking import sparsify
from zerogate.objective import Penalty
from zerogate.rates import drops
from zerogate.report import Report
from zerogate.schedules import Exponential
from zerogate.sparsified import Sparsified
from zerogate.storage import load, save
from zerogate.target import Target
from zerogate.tickets import Held, Mask, Stage, TicketSearch, small_dense
from zerogate.times import Time

__all__ = [
    "CheckpointError",
    "CompactionError",
    "ConfigError",
    "Cost",
    "DataError",
    "Exponential",
    "Gate",
    "Group",
    "Hard",
    "HardConcrete",
    "Held",
    "Magnitude",
    "Mask",
    "Penalty",
    "Random",
    "Report",
    "SoftMask",
    "Sparsified",
    "Stage",
    "Target",
    "TicketSearch",
    "Time",
    "WatchError",
    "ZerogateError",
    "drops",
    "load",
    "models",
    "save",
    "small_dense",
    "sparsify",
]
