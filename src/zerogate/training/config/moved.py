"""Names of what configurations point to: those that had another import path once, and those that records hash.

A run that was configured before something moved goes on, and an override may still name the old path. Configurations name
what is public, which does not move; where a public name is replaced, its successor stands here as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MOVED: Mapping[str, str] = {
    "zerogate.rates.drops": "zerogate.drops",
    "zerogate.bench.networks.narrow": "zerogate.bench.narrow",
    "zerogate.bench.pruned.learner": "zerogate.bench.learner",
    "zerogate.bench.pruned.pruned": "zerogate.bench.pruned_network",
    "zerogate.objective.Penalty": "zerogate.Penalty",
    "zerogate.target.Target": "zerogate.Target",
    "zerogate.Hard": "zerogate.FixedGate",
    "zerogate.gates.Hard": "zerogate.FixedGate",
    "zerogate.gates.HardConcrete": "zerogate.HardConcrete",
    "zerogate.gates.SoftMask": "zerogate.SoftMask",
    "zerogate.gates.hard.Hard": "zerogate.FixedGate",
    "zerogate.gates.hard_concrete.HardConcrete": "zerogate.HardConcrete",
    "zerogate.gates.soft_mask.SoftMask": "zerogate.SoftMask",
    "zerogate.baselines.Magnitude": "zerogate.Magnitude",
    "zerogate.baselines.Random": "zerogate.Random",
    "zerogate.models.lenet.LeNet300": "zerogate.models.LeNet300",
    "zerogate.models.lenet.LeNet5": "zerogate.models.LeNet5",
    "zerogate.models.lenet.lenet300": "zerogate.models.lenet300",
    "zerogate.models.lenet.lenet5": "zerogate.models.lenet5",
    "zerogate.models.resnet.ResNet": "zerogate.models.ResNet",
    "zerogate.models.resnet.WideResNet": "zerogate.models.WideResNet",
    "zerogate.models.resnet.resnet20": "zerogate.models.resnet20",
    "zerogate.models.resnet.wrn28_10": "zerogate.models.wrn28_10",
    "zerogate.models.vgg.VGG16": "zerogate.models.VGG16",
    "zerogate.models.vgg.vgg16": "zerogate.models.vgg16",
}
"""Old import path, or public name of before → public name."""

# The digests of records are of the paths that their tables named when they were run.
_RECORDED = {MOVED[old]: old for old in ("zerogate.rates.drops", "zerogate.bench.networks.narrow")}

# A whole import path: a value of its own, or within an override such as +gate={_target_:zerogate.SoftMask}.
_PATH = re.compile(r"(?<![^\s=:,\[{'\"])zerogate(?:\.\w+)+(?![^\s,\]}'\"])")


def current(value: Any) -> Any:
    """A configuration's value, or a list of overrides, with public names in place of paths that were theirs before."""
    return _replaced(value, MOVED)


def recorded(value: Any) -> Any:
    """A configuration's value, or a dict of them, with the names by which records know it."""
    return _replaced(value, _RECORDED)


def _replaced(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return _PATH.sub(lambda found: names.get(found[0], found[0]), value)
    if isinstance(value, Mapping):
        return {key: _replaced(item, names) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(item, names) for item in value]
    return value
