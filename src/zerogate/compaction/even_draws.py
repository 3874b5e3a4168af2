"""Random numbers that do not depend on the shape in which they are drawn, for comparing networks of different widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from zerogate.groups.arguments import bind, writes
from zerogate.modules.internals import schema_of

Op = Any
"""A `torch.ops.aten` overload."""


class EvenDraws(TorchDispatchMode):
    """While it is entered, an op that draws random numbers into a tensor draws one number and puts it everywhere.

    A network that has lost channels draws fewer numbers than the whole one, so that from the first draw on the two hold
    others. With one number for each draw both hold the same, however many they need. Dropout and Bernoulli masks become
    their means. Draws of whole numbers, such as permutations, stay as they are.
    """

    def __torch_dispatch__(
        self, func: Op, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        even = _EVEN.get(func.overloadpacket.__name__)
        return func(*args, **kwargs) if even is None else even(func, args, kwargs)


def _bernoulli(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The probability of a one, in place of ones and zeros."""
    probability = bind(func, args, kwargs).get("p", args[0])
    out = args[0] if writes(func) else torch.empty_like(args[0])
    return out.copy_(probability) if isinstance(probability, Tensor) else out.fill_(probability)


def _dropped(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What enters, of ops that return it and a mask or it alone."""
    kept = args[0].clone()
    return kept if len(schema_of(func).returns) == 1 else (kept, torch.ones_like(kept, dtype=torch.bool))


def _without_dropout(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The op with a probability of 0 that anything is dropped."""
    bound = bind(func, args, kwargs)
    return func(**bound | {name: 0.0 for name in ("dropout", "dropout_p") if name in bound})


def _filled(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """An op that fills its first argument: drawn once, for an entry, and put everywhere."""
    x: Tensor = args[0]
    return x.fill_(func(x.new_empty(1), *args[1:], **kwargs)[0])


def _made(draw: Callable[[int], Tensor]) -> Callable[[Op, tuple[Any, ...], dict[str, Any]], Tensor]:
    """An op that makes a tensor of numbers that ``draw`` draws."""

    def made(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        with torch.random.fork_rng():
            out: Tensor = func(*args, **kwargs)
        return out.fill_(float(draw(1)))

    return made


def _normal(func: Op, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """mean + std · z with one z for all entries."""
    with torch.random.fork_rng():
        out: Tensor = func(*args, **kwargs)
    bound = bind(func, args, kwargs)
    return out.copy_(torch.as_tensor(bound["mean"] + bound["std"] * float(torch.randn(1))))


_EVEN: dict[str, Callable[[Op, tuple[Any, ...], dict[str, Any]], Any]] = {
    **dict.fromkeys(["bernoulli", "bernoulli_"], _bernoulli),
    **dict.fromkeys(["dropout", "alpha_dropout", "native_dropout"], _dropped),
    **dict.fromkeys("lstm gru rnn_tanh rnn_relu".split(), _without_dropout),
    **dict.fromkeys(
        [
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
        ],
        _without_dropout,
    ),
    **dict.fromkeys("normal_ uniform_ exponential_ log_normal_ cauchy_ geometric_".split(), _filled),
    **dict.fromkeys(["rand", "rand_like"], _made(torch.rand)),
    **dict.fromkeys(["randn", "randn_like"], _made(torch.randn)),
    "normal": _normal,
}
"""Name of an op → what is done in its place."""
