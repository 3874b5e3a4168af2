"""How far the outputs of two networks are apart: both run on the same inputs, in float64 where they can."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from zerogate.compaction.even_draws import EvenDraws
from zerogate.cutting.attention import unnest
from zerogate.modules.index import named_tensors
from zerogate.modules.outputs import ALL_OUTPUTS, OutputChoice
from zerogate.modules.run import Inputs, KeepFloat64, call, holds_numbers, kept_rng, seed, tensors_of, wide_dtype

_SMALLEST_SCALE = 1e-5
"""An output whose largest value is a smaller share than this of the largest of all is compared with that share: it may be
what is left where large numbers cancel, and then all of it is rounding."""


class Difference(NamedTuple):
    """How far two networks are apart."""

    value: float
    """max |a − b| / max |a|, of the output where it is largest; infinite where shapes differ, NaN where outputs hold it."""
    output: int = 0
    """Which output that is, among all tensors that are returned."""
    outputs: int = 1
    """How many tensors are returned."""

    def __str__(self) -> str:
        which = f"the largest value of output {self.output + 1}" if self.outputs > 1 else "its largest output"
        return f"{self.value:.3g} of {which}"


class WholeNetworkFails(Exception):
    """The network that another one is compared with does not run itself; the cause says why."""


def compare(
    whole: nn.Module, small: nn.Module, inputs: Inputs, float64: bool, choice: OutputChoice = ALL_OUTPUTS
) -> Difference:
    """How far ``small`` is from ``whole``, by `difference_of`, in the outputs that count. Puts both into evaluation mode.

    A forward that draws random numbers draws the same in both; where that does not make them equal, since they draw
    different amounts, both draw as `EvenDraws` does.

    Raises `WholeNetworkFails`, or whatever ``small`` raises.
    """
    inputs = inputs_for(whole, inputs, float64)
    unnest(whole)  # nested tensors hold zeros where padding was, and plain ones do not
    try:
        expected, draws = outputs_of(whole, inputs, float64, choice)
    except Exception as error:
        raise WholeNetworkFails from error
    try:
        difference = difference_of(expected, outputs_of(small, inputs, float64, choice)[0])
    except RuntimeError:
        if not draws:
            raise
        difference = Difference(math.inf)
    if draws and difference.value > 0:
        expected, received = (outputs_of(model, inputs, float64, choice, EvenDraws())[0] for model in (whole, small))
        even = difference_of(expected, received)
        difference = even if not even.value >= difference.value else difference
    return difference


def difference_of(expected: Sequence[Tensor], received: Sequence[Tensor]) -> Difference:
    """The largest difference of two networks' outputs, each relative to its own largest value.

    Tensors of whole numbers are compared in their shapes alone: they are often places of a largest value, and which of two
    equal ones is taken depends on rounding."""
    if [x.shape for x in expected] != [x.shape for x in received]:
        shapes = enumerate(zip(expected, received, strict=False))
        return Difference(math.inf, next((i for i, (x, y) in shapes if x.shape != y.shape), 0), len(expected))
    pairs = [
        (i, _real(x), _real(y))
        for i, (x, y) in enumerate(zip(expected, received, strict=True))
        if holds_numbers(x) and x.numel()
    ]
    scales = {i: x[x.isfinite()].abs().amax().item() if x.isfinite().any() else 0.0 for i, x, _ in pairs}
    smallest = _SMALLEST_SCALE * max(scales.values(), default=0.0)
    worst = Difference(0.0, outputs=len(expected))
    for i, x, y in pairs:
        apart = torch.where(x == y, 0.0, (x - y).abs()).amax().item()  # equal infinities are no difference
        value = apart / max(scales[i], smallest) if scales[i] or smallest else apart
        if math.isnan(value):
            return Difference(math.nan, i, len(expected))
        if value > worst.value:
            worst = Difference(value, i, len(expected))
    return worst


def rounds_inside(model: nn.Module, inputs: Inputs) -> bool:
    """Whether a model in float64 computes anything in a lower precision, as a forward does that casts in its own way."""
    noticed = _NoticeRounding()
    with torch.no_grad(), kept_rng(model), KeepFloat64(), noticed:
        torch.manual_seed(0)
        call(model, inputs_for(model, inputs, True))
    return noticed.rounds


class _NoticeRounding(TorchDispatchMode):
    """Notices whether any op returns floating-point numbers that are not in float64."""

    rounds = False

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        narrow = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)
        self.rounds = self.rounds or any(x.dtype in narrow and x.numel() > 1 for x in tensors_of(out))
        return out


def _real(x: Tensor) -> Tensor:
    """In float64; complex numbers as pairs."""
    return (torch.view_as_real(x) if x.is_complex() else x).double()


def outputs_of(
    model: nn.Module,
    inputs: Inputs,
    float64: bool,
    choice: OutputChoice,
    draws: EvenDraws | None = None,
    training: bool = False,
) -> tuple[list[Tensor], bool]:
    """The tensors that count of what a model returns in this mode, from the same random state; and whether it drew random
    numbers."""
    model.train(training)
    with torch.no_grad(), kept_rng(model), ExitStack() as modes:
        seed()
        before = _random_state()
        if float64:
            modes.enter_context(KeepFloat64())
        if draws is not None:
            modes.enter_context(draws)
        returned = call(model, tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, inputs))
        outputs = choice(returned, training)
        modes.close()
        return outputs, not all(map(torch.equal, before, _random_state()))


def _random_state() -> list[Tensor]:
    states = [torch.random.get_rng_state()]
    return states + torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else states


def inputs_for(model: nn.Module, inputs: Inputs, float64: bool) -> Inputs:
    """The inputs on a device of the model, those of floating point in float64 where that is asked for."""
    devices = list(dict.fromkeys(tensor.device for _, tensor in named_tensors(model)))

    def prepared(x: object) -> object:
        if not isinstance(x, Tensor):
            return x
        x = x if not devices or x.device in devices else x.to(devices[0])  # the model has moved since
        return x.to(wide_dtype(x)) if float64 else x

    moved: Inputs = tree_map(prepared, inputs)
    return moved
