"""zerogate: learn which parts of a network are exactly zero, then remove them.

sparse = zerogate.sparsify(model, example_inputs, gate=zerogate.HardConcrete(), objective=zerogate.Penalty(1.0))
...  # train with `loss + sparse.loss()`, `sparse.step()` after each optimizer step
small = sparse.compact()
"""

from zerogate import models
from zerogate.cost.model import Cost
from zerogate.errors import CheckpointError, CompactionError, ConfigError, DataError, WatchError, ZerogateError
from zerogate.gates.fixed import FixedGate
from zerogate.gates.gate import Gate
from zerogate.gates.hard_concrete import HardConcrete
from zerogate.gates.pruners import Magnitude, Random
from zerogate.gates.schedules import Exponential
from zerogate.gates.soft_mask import SoftMask
from zerogate.masks import Held, Mask
from zerogate.objectives.penalty import Penalty
from zerogate.objectives.target import Target
from zerogate.report.table import Report
from zerogate.sparsified import Sparsified
from zerogate.sparsify import sparsify
from zerogate.storage.network_file import load, save
from zerogate.structure import Group
from zerogate.tickets.search import TicketSearch
from zerogate.tickets.small_dense import small_dense
from zerogate.tickets.stage import Stage
from zerogate.tickets.time import Time
from zerogate.training.lr_schedules import drops

Hard = FixedGate
"""The name of `FixedGate` before 0.2, for one release."""

__all__ = [
    "CheckpointError",
    "CompactionError",
    "ConfigError",
    "Cost",
    "DataError",
    "Exponential",
    "FixedGate",
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
