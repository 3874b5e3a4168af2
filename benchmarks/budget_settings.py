"""The networks, data and gates of budgets.py, and the budgets that are asked of them."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Setting:
    """A network, its data and its gates: the options of all its runs."""

    name: str
    gate: str
    options: tuple[str, ...]
    shares: tuple[float, ...]
    seeds: int
    weights: tuple[float, ...]  # of the penalty: the grid
    compared: tuple[float, ...]  # shares at which λ is bisected where no run of the grid is near
    costs: tuple[str, ...] = ("params", "macs")
    data: str | None = None  # the option that says where the data are
    tries: int = 2  # bisections for a share and a seed
    penalised: tuple[str, ...] = field(default=("params", "macs"))


DIGITS = tuple(n / 10 for n in range(1, 10))
SETTINGS = (
    Setting(
        "digits, ConvNet, channels",
        "HardConcrete",
        ("experiment=digits",),
        shares=DIGITS,
        seeds=3,
        weights=(0.05, 0.3, 1.0, 4.0),
        compared=(0.1, 0.3, 0.5, 0.7, 0.9),
    ),
    Setting(
        "digits, ConvNet, weights",
        "SoftMask",
        ("experiment=digits_cs",),
        shares=DIGITS,
        seeds=3,
        weights=(0.01, 0.3, 1.0, 4.0),
        compared=(0.1, 0.3, 0.5, 0.7, 0.9),
    ),
    Setting(
        "MNIST, LeNet-5, channels",
        "HardConcrete",
        ("experiment=mnist_lenet5", "data.limit=6000", "trainer.max_epochs=5", "gate_lr=null"),
        shares=(0.1, 0.3, 0.5),
        seeds=2,
        weights=(0.3, 1.0, 3.0),
        compared=(0.1, 0.3, 0.5),
        data="mnist",
        tries=1,
    ),
    Setting(
        "CIFAR-10, ResNet-20, weights",
        "SoftMask",
        ("experiment=resnet20_cs", "data.limit=1600", "data.batch_size=32", "trainer.max_epochs=5",
         "scheduler.milestones=[3,4]", "gate_lr=10"),
        shares=(0.1, 0.3, 0.5),
        seeds=1,
        weights=(1.0, 10.0),
        compared=(0.1, 0.3, 0.5),
        data="cifar10",
        tries=2,
        penalised=("params",),
    ),
)  # fmt: skip
