"""What commands print of their results."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any


def print_report(report: object) -> None:
    """Print a report: as tables in a terminal, where rich is installed; as text into a pipe, where nothing may be folded."""
    if sys.stdout.isatty() and hasattr(report, "__rich__"):
        try:
            from rich.console import Console

            return Console().print(report)
        except ModuleNotFoundError:
            pass
    print(report)


def print_scores(scores: Mapping[str, Any]) -> None:
    """Print accuracies, parameters and MACs of a result, and how exact its compacted network is if there is one."""
    macs = "unknown" if scores["macs"] is None else f"{scores['macs']:,}"
    print(f"validation accuracy {scores['val_accuracy']:.2%}, test accuracy {scores['test_accuracy']:.2%}")
    print(f"parameters {scores['params']:,} ({scores['density_params']:.1%} of the dense network's), MACs {macs}")
    if "compaction_error" in scores:
        print(f"compacted: differs from the gated network by {scores['compaction_error']:.1e} of the largest output")
