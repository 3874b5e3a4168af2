"""What a table can show of a run: the head of a column, and the value that a record's figures give."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from zerogate.bench.table import Plain
from zerogate.errors import ConfigError
from zerogate.modules.index import split_name

Figures = Plain
"""The figures of a run: numbers by name, and `widths`."""


@dataclass(frozen=True)
class Column:
    """A number of every run, shown as mean ± standard deviation, or a text."""

    head: str  # shown above
    digits: int = 2  # after the point
    of: Callable[[Figures], float | None] = lambda figures: None  # a run's number; None where there is none
    text: Callable[[Sequence[Figures]], str] | None = None  # instead of a number, what the runs of a row show
    lower: bool = True  # whether less is better, which a goal needs to know

    @property
    def sign(self) -> str:
        """≤ or ≥, between the column and a limit."""
        return "≤" if self.lower else "≥"


@dataclass(frozen=True)
class Value:
    """A cell: mean and standard deviation (None for a single run) over `values`; `text` where it is no number."""

    values: tuple[float, ...] = ()
    digits: int = 2
    text: str = ""

    @property
    def mean(self) -> float | None:
        """The mean over the runs; None where there are none."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """The standard deviation over the runs, n − 1 in the denominator; None for fewer than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        if self.mean is None:
            return self.text
        shown = f"{self.mean:,.{self.digits}f}"
        return shown if self.std is None else f"{shown} ± {self.std:,.{self.digits}f}"


_KERNELS = {"branch1x1": 1, "branch3x3": 9, "branch5x5": 25}
"""Weights of a kernel in the branches whose convolutions that repository counts."""


def seed_repository_sparsity(figures: Figures) -> float | None:
    """Share of removed parameters, in per cent, as the repository of the L0 GoogLeNet counts them.

    It counts the stem's and the reductions' weights, the 1×1, 3×3 and 5×5 convolutions with bias and four numbers of
    BatchNorm for each channel (running mean and variance too), and the classifier; not the pool branches' convolutions, nor
    biases and BatchNorm of the reductions, nor the stem's BatchNorm. There, stem and reductions always stay whole; here the
    widths that are left are put in for these, too.
    """
    if "published_sparsity" in figures:
        return figures["published_sparsity"]
    small, dense = figures.get("widths"), figures.get("dense_widths")
    if not small or not dense or "stage1.0.branch1x1.conv" not in dense:
        return None
    return 100 * (1 - _seed_count(small, dense) / _seed_count(dense, dense))


def _seed_count(widths: Mapping[str, Sequence[int]], dense: Mapping[str, Sequence[int]]) -> int:
    count = 0
    for name in dense:
        inputs, outputs = widths[name]
        part = split_name(name.removesuffix(".conv"))[1]
        if part == "stem":
            count += inputs * outputs * 9 + outputs
        elif part in ("reduce3x3", "reduce5x5"):
            count += inputs * outputs
        elif part in _KERNELS:
            count += inputs * outputs * _KERNELS[part] + 5 * outputs
        elif part == "classifier":
            count += inputs * outputs + outputs
    return count


def _scaled(name: str, scale: float = 1.0) -> Callable[[Figures], float | None]:
    return lambda figures: None if figures.get(name) is None else scale * figures[name]


def _removed(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: None if figures.get(name) is None else 100 * (1 - figures[name])


def _inverse(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: None if not figures.get(name) else 1 / figures[name]


def _widths(runs: Sequence[Figures]) -> str:
    """Inputs of the first layer where it is linear, and outputs of every layer but the last, run by run."""
    shown = []
    for figures in runs:
        layers = figures.get("widths")
        if isinstance(layers, str):
            shown.append(layers)
        elif layers:
            pairs = list(layers.items())
            first = [pairs[0][1][0]] if pairs[0][1][0] > 4 else []  # not the channels of an image
            shown.append("-".join(str(n) for n in [*first, *(outputs for _, (_, outputs) in pairs[:-1])]))
    return ", ".join(dict.fromkeys(shown))


COLUMNS: dict[str, Column] = {
    "test_error": Column("test error %", of=_removed("test_accuracy")),
    "test_accuracy": Column("test accuracy %", of=_scaled("test_accuracy", 100), lower=False),
    "val_accuracy": Column("validation accuracy %", of=_scaled("val_accuracy", 100), lower=False),
    "params": Column("parameters", 0, _scaled("params")),
    "macs": Column("MACs", 0, _scaled("macs")),
    "params_removed": Column("parameters removed %", 1, _removed("density_params"), lower=False),
    "macs_removed": Column("MACs removed %", 1, _removed("density_macs"), lower=False),
    "seed_sparsity": Column("sparsity as counted there %", 1, seed_repository_sparsity, lower=False),
    "widths": Column("widths", text=_widths),
    "epochs": Column("epochs", 0, _scaled("total_epochs")),
    "remaining": Column("weights that remain %", 1, _scaled("remaining", 100)),
    "latency_b1": Column("time of dense, batch 1", 2, _scaled("latency_b1")),
    "latency_b64": Column("time of dense, batch 64", 2, _scaled("latency_b64")),
    "minutes": Column("minutes", 1, _scaled("seconds", 1 / 60)),
    "macs_ratio": Column("dense MACs / left", 2, _inverse("density_macs"), lower=False),
    **{
        f"{name}_b{batch}": Column(f"{head}, batch {batch}", 3 if name != "speedup" else 2, of, lower=name != "speedup")
        for batch in (1, 64)
        for name, head, of in (
            ("to_built", "time of built", _scaled(f"to_built_b{batch}")),
            ("again", "of its own copy", _scaled(f"again_b{batch}")),
            ("speedup", "faster than dense", _inverse(f"to_dense_b{batch}")),
        )
    },
}


def column(name: str) -> Column:
    """A column by its name.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in COLUMNS:
        raise ConfigError(f"there is no column {name!r}; choose one of {', '.join(COLUMNS)}")
    return COLUMNS[name]


def value(name: str, runs: Sequence[Figures]) -> Value:
    """The cell of a column for a row's runs."""
    shown = column(name)
    if shown.text is not None:
        return Value(text=shown.text(runs))
    numbers = (shown.of(figures) for figures in runs)
    return Value(tuple(number for number in numbers if number is not None), shown.digits)
