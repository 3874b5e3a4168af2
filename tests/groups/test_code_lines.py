"""Which lines are the user's, and how reasons name them."""

from __future__ import annotations

import torch

import zerogate
from zerogate.groups.code_lines import is_internal, located
from zerogate.groups.recording import tracer


def test_files_of_torch_and_of_what_runs_models_are_internal() -> None:
    assert is_internal(torch.nn.modules.linear.__file__) and is_internal(tracer.__file__)
    assert not is_internal(__file__)
    assert not is_internal(zerogate.models.__path__[0] + "/resnet.py")  # a model that a user may have


def test_a_reason_names_the_module_and_the_line_that_are_known() -> None:
    assert located("sum over channels", "head", ("/home/me/net.py", 12)) == "sum over channels in head (net.py:12)"
    assert located("sum over channels", "", ("C:\\me\\net.py", 3)) == "sum over channels (net.py:3)"
    assert located("sum over channels", "", ("", 0)) == "sum over channels"
