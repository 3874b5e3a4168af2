"""Where a size may be written."""

from __future__ import annotations

from torch import nn

from zerogate.groups.trial.candidates import attributes_equal_to, modules_near


def test_modules_near_a_path_are_those_around_it_from_the_inside_out_and_its_own() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())), nn.Linear(2, 2))
    modules = dict(model.named_modules())
    assert modules_near("0", modules) == ["0", "", "0.0", "0.1"]
    assert modules_near("0.1", modules) == ["0.1", "0", "", "0.1.0"]
    assert modules_near("", modules) == ["", "0", "1"]


def test_whole_numbers_are_found_in_attributes_and_in_short_lists() -> None:
    module = nn.Module()
    module.width, module.other, module.flag, module.ratio = 24, 25, True, 24.0
    module.shape, module.sizes, module.table = (24, 3, 24), [24.0, 24], [24] * 65
    assert attributes_equal_to(24, module) == [("width", ()), ("shape", (0,)), ("shape", (2,)), ("sizes", (1,))]
    assert attributes_equal_to(1, module) == []  # True is no 1
    assert attributes_equal_to(24, None) == []
