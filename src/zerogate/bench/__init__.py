"""Tables of results: `zerogate bench TABLE` trains what a table lacks, records every run in a file, and renders.

`narrow`, `learner` and `pruned_network` are the factories of baselines that configurations name.
"""

from __future__ import annotations

import importlib
from typing import Any

_FACTORIES = {"narrow": "networks", "learner": "torch_pruning", "pruned_network": "torch_pruning"}


def __getattr__(name: str) -> Any:
    """A factory, from its module, which imports Lightning and so is left alone until one is asked for."""
    if name not in _FACTORIES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_FACTORIES)}")
    return getattr(importlib.import_module(f"{__name__}.{_FACTORIES[name]}"), name)
