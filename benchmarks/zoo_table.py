"""The table of the zoo: a row for each architecture, and what they come to."""

from __future__ import annotations

import math
import statistics
from typing import Any

from zoo_rivals import EXACT

TARGET = 1e-10
"""Largest error of a compacted network that counts as exact."""
OWN_PRECISION = 1e-5
"""The largest where kernels of the model know nothing but float32."""
Row = dict[str, Any]
"""What the jobs of an architecture have found, by name."""
RIVALS = {"tp": "Torch-Pruning", "kirigami": "torch-kirigami"}


def medians(row: Row) -> Row:
    """Repeated timings as their median, with the number of them."""
    row = dict(row)
    for key, value in list(row.items()):
        if key.endswith("seconds") and isinstance(value, list):
            row |= {key: statistics.median(value), f"{key}_n": len(value)}
    return row


def verdict(job: str, row: Row) -> str:
    """What a job has found, or why it has not."""
    keys = {
        "measure": ("error", "failure", "inexact"),
        "train": ("training_error", "training", "inexact_in_training"),
        "race": ("seconds", "race_failure"),
        "tp": ("tp_error", "tp_failure", "tp_prunes_not"),
        "kirigami": ("kirigami_error", "kirigami_failure", "kirigami_prunes_not"),
    }[job]
    for key in (*keys, f"{job}_failure", f"{job}_ended"):
        if key in row:
            return f"{row[key]:.2g}" if isinstance(row[key], float) else str(row[key])
    return "nothing came back"


def _error(row: Row, key: str, *failures: str) -> str:
    """An error, or in few words why there is none."""
    value = row.get(key)
    if value is not None:
        return value if isinstance(value, str) else f"{value:.0e}"
    return next((str(row[failure])[:60] for failure in failures if failure in row), "")


def same_macs(row: Row) -> bool | None:
    """Whether the witness counts the same MACs in the dense and in the compacted networks; None where it has not run."""
    counts = [row[key]["equal"] for key in ("witness", "witness_30%", "witness_80%") if key in row]
    return all(counts) if counts else None


def rival_exact(row: Row, name: str) -> str:
    """Whether what another tool prunes runs, and is exact."""
    if f"{name}_error" in row:
        return "exact" if _number(row[f"{name}_error"]) <= EXACT else f"{_number(row[f'{name}_error']):.0e}"
    if f"{name}_failure" in row:
        return "fails"
    if f"{name}_prunes_not" in row:
        return "does not run" if f"{name}_share" in row else "fails"
    return str(row.get(f"{name}_ended", ""))


def _number(value: float | str) -> float:
    """Also of "inf" and "nan", as which JSON holds them."""
    return float(value)


def cells(row: Row) -> list[str]:
    """A row as text, in the order of `HEAD`."""

    def number(key: str, form: str) -> str:
        return format(row[key], form) if key in row else ""

    refused = sorted(row.get("refused", {}).items(), key=lambda item: -item[1])
    why = "; ".join(f"{count}× {reason[:90]}" for reason, count in refused[:2]) + ("; …" if len(refused) > 2 else "")
    same = same_macs(row)
    own = [
        row["name"],
        row["source"],
        number("params", ","),
        _error(row, "error", "failure", "inexact", "measure_ended"),
        _error(row, "training_error", "inexact_in_training", "train_ended", "training"),
        number("weight_share", ".1%"),
        number("seconds", ".2f") or number("first_seconds", ".2f"),
        {True: "as counted", False: "differ", None: ""}[same],
    ]
    others = [
        part
        for name in RIVALS
        for part in (
            rival_exact(row, name),
            number(f"{name}_weight_share", ".1%"),
            number(f"{name}_seconds", ".2f"),
        )
    ]
    return [*own, *others, why]


HEAD = (
    "model",
    "source",
    "parameters",
    "fp64 error",
    "in training",
    "of weights",
    "seconds",
    "MACs",
    *(f"{name} {what}" for name in ("TP", "kirigami") for what in ("exact", "of weights", "seconds")),
    "refused and why",
)


def table(rows: list[Row]) -> str:
    """All rows in Markdown."""
    body = [" | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells(row)) for row in rows]
    return "\n".join([f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(f"| {line} |" for line in body)])


LARGE = 1_000_000
"""Parameters from which on seconds are compared: below, both take next to none."""


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Counts over all rows that were measured; ``ratio`` is Torch-Pruning's seconds over ours, where both have any."""
    rows = measured = [r for r in rows if "measure" in r.get("done", {"measure": ""})]
    raced = [r for r in rows if "seconds" in r and "tp_seconds" in r]
    large = [r for r in raced if r.get("params", 0) >= LARGE]
    seconds = {f"{r['source']}/{r['name']}": r.get("seconds", r.get("first_seconds")) for r in rows}
    seconds = {name: value for name, value in seconds.items() if value is not None}
    slowest = max(seconds, key=lambda name: seconds[name], default=None)
    shares = [r["weight_share"] for r in rows if "weight_share" in r]
    compared = [r for r in rows if "tp_share" in r and "share" in r]
    trained = [r for r in rows if "groups" in r and ("training_error" in r or "inexact_in_training" in r)]
    counted = [same for r in rows if (same := same_macs(r)) is not None]
    both = [r for r in rows if "channels" in r and "channels_alone" in r]
    summary = {
        "models": len(rows),
        "gated": sum("groups" in r for r in measured),
        "exact": sum(_exact(r, "error") for r in measured),
        "compared_in_training": len(trained),
        "exact_in_training": sum(_exact(r, "training_error") for r in trained),
        "median_weight_share": statistics.median(shares) if shares else None,
        "weight_share_at_least_90_percent": sum(s >= 0.9 for s in shares),
        "median_seconds": statistics.median(seconds.values()) if seconds else None,
        "max_seconds": seconds[slowest] if slowest else None,
        "slowest": slowest,
        "macs_compared": len(counted),
        "macs_as_the_witness_counts": sum(counted),
        "fewer_channels_with_heads": sum(r["channels"] < r["channels_alone"] for r in both),
        "compared_with_torch_pruning": len(compared),
        "share_below_torch_pruning": sum(r["share"] < r["tp_share"] - 5e-4 for r in compared),
        "median_ratio_of_seconds": statistics.median(r["tp_seconds"] / r["seconds"] for r in raced) if raced else None,
        "large_models_raced": len(large),
        "median_seconds_large": statistics.median(r["seconds"] for r in large) if large else None,
        "torch_pruning_median_seconds_large": statistics.median(r["tp_seconds"] for r in large) if large else None,
    }
    for name in RIVALS:
        tried = [r for r in rows if name in r.get("done", {})]
        exact = sum(rival_exact(r, name) == "exact" for r in tried)
        if tried:
            runs = sum(f"{name}_error" in r for r in tried)
            summary |= {f"{name}_tried": len(tried), f"{name}_runs": runs, f"{name}_exact": exact}
    return summary


def _exact(row: Row, key: str) -> bool:
    return key in row and _number(row[key]) <= (
        TARGET if row.get("precision", "float64") == "float64" else OWN_PRECISION
    )


def shown(summary: dict[str, Any]) -> str:
    """The counts as a Markdown list."""
    return "\n".join(
        f"* {key.replace('_', ' ')}: {format(value, '.3g') if isinstance(value, float) else value}"
        for key, value in summary.items()
    )


def without_places(row: Row) -> Row:
    """Without the places in the source at which something was raised."""
    return {key: value for key, value in row.items() if not key.endswith("_at")}


def rounded(x: Any) -> Any:
    """Floats with three digits; JSON has no infinities."""
    if isinstance(x, float):
        return float(f"{x:.3g}") if math.isfinite(x) else str(x)
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    return [rounded(value) for value in x] if isinstance(x, list) else x
