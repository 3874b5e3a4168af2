"""The table of the zoo: a row for each architecture, and what they come to."""

from __future__ import annotations

import math
import statistics
from typing import Any

TARGET = 1e-10
"""Largest error of a compacted network that counts as exact."""
Row = dict[str, Any]
"""What the processes of an architecture have found, by name."""


def verdict(row: Row) -> str:
    """The fp64 error, or why there is none."""
    if "error" in row:
        return f"{row['error']:.1e}"
    return str(row.get("failure") or row.get("inexact") or row.get("measure_ended") or "nothing came back")


def cells(row: Row) -> list[str]:
    """A row as text, in the order of `HEAD`."""

    def number(key: str, form: str) -> str:
        return format(row[key], form) if key in row else ""

    refused = sorted(row.get("refused", {}).items(), key=lambda item: -item[1])
    why = "; ".join(f"{count}× {reason[:90]}" for reason, count in refused[:2]) + ("; …" if len(refused) > 2 else "")
    tp = row.get("tp_failure") or row.get("race_ended") or row.get("race_failure") or ""
    return [
        row["name"],
        row["source"],
        number("seconds", ".2f"),
        f"{row['groups']} ({row['units']})" if "groups" in row else "",
        number("share", ".1%"),
        number("weight_share", ".1%"),
        why,
        verdict(row)[:160],
        number("tp_seconds", ".2f"),
        number("tp_share", ".1%") or tp[:100],
    ]


HEAD = (
    "model",
    "source",
    "seconds",
    "groups (units)",
    "share",
    "of weights",
    "refused and why",
    "fp64 error",
    "TP seconds",
    "TP share",
)


def table(rows: list[Row]) -> str:
    """All rows in Markdown."""
    body = [" | ".join(cell.replace("|", "/") for cell in cells(row)) for row in rows]
    return "\n".join([f"| {' | '.join(HEAD)} |", f"|{' --- |' * len(HEAD)}", *(f"| {line} |" for line in body)])


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Counts over all rows; ``ratio`` is Torch-Pruning's seconds over ours, where both have any."""
    ratios = [r["tp_seconds"] / r["seconds"] for r in rows if "tp_seconds" in r and "seconds" in r]
    seconds = {f"{r['source']}/{r['name']}": r["seconds"] for r in rows if "seconds" in r}
    slowest = max(seconds, key=lambda name: seconds[name], default=None)
    compared = [r for r in rows if "tp_share" in r]
    shares = [r["weight_share"] for r in rows if "weight_share" in r]
    return {
        "models": len(rows),
        "gated": sum("groups" in r for r in rows),
        "exact": sum(r.get("error", math.inf) <= TARGET for r in rows),
        "median_weight_share": statistics.median(shares) if shares else None,
        "weight_share_at_least_90_percent": sum(s >= 0.9 for s in shares),
        "median_seconds": statistics.median(seconds.values()) if seconds else None,
        "max_seconds": seconds.get(slowest) if slowest else None,
        "slowest": slowest,
        "torch_pruning_enumerates": len(compared),
        "share_below_torch_pruning": sum(r.get("share", 0.0) < r["tp_share"] - 5e-4 for r in compared),
        "median_ratio_of_seconds": statistics.median(ratios) if ratios else None,
    }


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
