"""The gates' formulas in few kernels, and the one place that decides which version runs.

A gate is its formulas; its own file states them. Those that training needs in every step are stated here once more for the
gates that come with zerogate: in fewer calls, with less kept for the backward pass, with derivatives in closed form. Such a
version is registered for the class whose formulas it replaces, and `Kernels.choose` takes it only where these very formulas
hold and nobody has to see their ops: not for a subclass that overrides one of them, not under `torch.compile`, `torch.func`
or forward mode. Everywhere else the formulas themselves run. `tests/gates/test_fused.py` compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from zerogate.gates.gate import Gate
from zerogate.gates.hard_concrete import HardConcrete
from zerogate.gates.soft_mask import SoftMask
from zerogate.gates.surrogate import gentle_sigmoid, gentle_slope, straight_through
from zerogate.modules.device_tables import DeviceTables
from zerogate.modules.internals import must_stay_traceable, version_of

G = TypeVar("G", bound=Gate)
T = TypeVar("T")
K = TypeVar("K", bound=Callable[..., object])

sigmoid_backward = torch.ops.aten.sigmoid_backward


class DrawnGates(NamedTuple):
    """One draw of all gates.

    Attributes:
        z: the gates, [units] or [examples, units].
        p: the values of `Gate.open_probability`, [units], without a gradient, where they came with the draw.
        recompute: gives p and z again in the backward pass, where autograd is not to save them.
    """

    z: Tensor
    p: Tensor | None = None
    recompute: Recompute | None = None


def draw(gate: Gate, logits: Tensor, *, economical: bool = False, examples: int | None = None) -> DrawnGates:
    """A draw as `Gate.sample` defines it. ``economical``: keep little for the backward pass, as gates are many."""
    kernel = DRAW.choose(gate)
    return DrawnGates(gate.sample(logits, examples)) if kernel is None else kernel(gate, logits, economical, examples)


def open_probability(
    gate: Gate, logits: Tensor, p: Tensor | None = None, recompute: Recompute | None = None, *, economical: bool = False
) -> Tensor:
    """`Gate.open_probability`, [units]. ``p``, ``recompute``: those of a draw from the same logits, where there is one."""
    kernel = OPEN_PROBABILITY.choose(gate)
    return gate.open_probability(logits) if kernel is None else kernel(gate, logits, p, recompute, economical)


def movable_probability(gate: Gate, logits: Tensor, p: Tensor | None = None) -> Tensor:
    """`Gate.movable_probability`, [units]. ``p``: that of a draw from the same logits, where there is one."""
    kernel = MOVABLE_PROBABILITY.choose(gate)
    return gate.movable_probability(logits) if kernel is None else kernel(gate, logits, p)


class Kernels(Generic[T]):
    """Functions that return T in few kernels, each in place of formulas of one class of gates."""

    def __init__(self) -> None:
        self._kernels: dict[type[Gate], tuple[Callable[..., T], tuple[str, ...]]] = {}

    def replaces(self, gates: type[Gate], *formulas: str) -> Callable[[K], K]:
        """Registers a function for a class. ``formulas``: the attributes of the class that it replaces."""

        def register(kernel: K) -> K:
            self._kernels[gates] = kernel, formulas  # type: ignore[assignment]  # K returns T
            return kernel

        return register

    def choose(self, gate: Gate) -> Callable[..., T] | None:
        """The function that may run for a gate; None where its formulas must."""
        if must_stay_traceable():
            return None
        for gates, (kernel, formulas) in self._kernels.items():
            if isinstance(gate, gates) and all(getattr(type(gate), f) is getattr(gates, f) for f in formulas):
                return kernel
        return None


DRAW: Kernels[DrawnGates] = Kernels()
OPEN_PROBABILITY: Kernels[Tensor] = Kernels()
MOVABLE_PROBABILITY: Kernels[Tensor] = Kernels()


class Elementwise(torch.autograd.Function):
    """A function of the logits, element by element, whose value is known already.

    Called as ``apply(logits, value, saved, backward, plain)``: ``backward(gradient, *saved)`` is its derivative in closed
    form; ``plain(logits, *saved)`` computes the value again in differentiable ops, for second derivatives.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor, saved: Sequence[Tensor], backward: Any, plain: Any) -> Tensor:
        ctx.save_for_backward(*saved)
        ctx.logits, ctx.closed_form, ctx.plain = logits, backward, plain
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        if torch.is_grad_enabled():
            value = ctx.plain(ctx.logits, *ctx.saved_tensors)
            return *torch.autograd.grad(value, ctx.logits, grad, create_graph=True), None, None, None, None
        return ctx.closed_form(grad, *ctx.saved_tensors), None, None, None, None


def _differentiable(logits: Tensor, value: Tensor, saved: Sequence[Tensor], backward: Any, plain: Any) -> Tensor:
    """A value with these derivatives (see `Elementwise`), where the logits get any."""
    if logits.requires_grad and torch.is_grad_enabled():
        value = Elementwise.apply(logits, value, saved, backward, plain)
    return value


class ScratchBuffer:
    """Memory for the open probabilities of a gate's draws, [units]; each draw overwrites those of the one before."""

    def __init__(self, like: Tensor) -> None:
        self.values = torch.empty_like(like, requires_grad=False)
        self.draws = 0


class Recompute:
    """Gives the open probabilities p of a draw in its backward pass, where autograd does not save them: from the scratch
    buffer if no later draw has overwritten it, else computed once more.

    Args:
        compute: gives p.
        inputs: what p is computed from. If they are written to before the backward pass, that raises RuntimeError, as
            autograd does for what it has saved.
        scale: the gates are z = scale · p.
        scratch: where the draw has just put p.
    """

    def __init__(
        self, compute: Callable[[], Tensor], *inputs: Tensor, scale: float = 1.0, scratch: ScratchBuffer | None = None
    ) -> None:
        self._compute, self._scale, self._scratch = compute, scale, scratch
        self._inputs = inputs
        self._written = self._writes()
        if scratch is not None:
            scratch.draws += 1
            self._draw = scratch.draws

    def _writes(self) -> list[int]:
        return [version_of(x) for x in self._inputs if not x.is_inference()]

    def p(self) -> Tensor:
        if self._writes() != self._written:
            raise RuntimeError(
                "the gates were changed in place between a forward and its backward pass, which needs them as they were"
            )
        scratch = self._scratch
        if scratch is None or scratch.draws != self._draw or torch.is_grad_enabled():  # a second derivative is to come
            return self._compute()
        return scratch.values

    def z(self) -> Tensor:
        return self.p() * self._scale


def _latest(tables: WeakKeyDictionary[G, DeviceTables[T]], gate: G, key: Hashable, make: Callable[[], T]) -> T:
    """What a gate uses from draw to draw, made anew where the key is another one than at the last draw."""
    if gate not in tables:
        tables[gate] = DeviceTables(latest=True)
    return tables[gate].get(key, make)


_noise: WeakKeyDictionary[HardConcrete, DeviceTables[tuple[Tensor, Tensor]]] = WeakKeyDictionary()
_scratch: WeakKeyDictionary[SoftMask, DeviceTables[ScratchBuffer]] = WeakKeyDictionary()


@DRAW.replaces(HardConcrete, "sample", "quantile", "stretch_and_clip", "open_probability", "shift")
def _draw_hard_concrete(gate: HardConcrete, logits: Tensor, economical: bool, examples: int | None) -> DrawnGates:
    """Keeps s; if ``economical`` z alone, from which s follows wherever the gradient is not 0."""
    beta, spread, p = gate.temperature, gate.high - gate.low, None
    with torch.no_grad():
        if economical:
            s = torch.rand_like(logits).logit_().add_(logits).div_(beta).sigmoid_()
        else:
            rows = _draw_sigmoids(gate, logits, examples or 1)
            s, p = rows[0] if examples is None else rows[:-1], rows[-1]
        z = torch.rsub(s, gate.low, alpha=-spread).clamp_(0, 1)
    closed = -gate.low / spread  # the largest s at which z is 0
    open_range = (0, 1) if economical else (closed, closed + 1 / spread)

    def s_of(saved: Tensor) -> Tensor:
        return torch.rsub(saved, closed, alpha=-1 / spread) if economical else saved

    def backward(grad: Tensor, saved: Tensor) -> Tensor:
        grad = sigmoid_backward(torch.ops.aten.hardtanh_backward(grad, saved, *open_range), s_of(saved))
        return (grad if examples is None else grad.sum(0)).mul_(spread / beta)

    def plain(logits: Tensor, saved: Tensor) -> Tensor:
        z = gate.stretch_and_clip(torch.sigmoid(s_of(saved).logit() + (logits - logits.detach()) / beta))
        # s of a clipped gate is on the edge, up to rounding, and must stay without a gradient
        return torch.where((saved > open_range[0]) & (saved < open_range[1]), z, z.detach())

    return DrawnGates(_differentiable(logits, z, (z if economical else s,), backward, plain), p)


def _draw_sigmoids(gate: HardConcrete, logits: Tensor, draws: int) -> Tensor:
    """s of each draw, and in one row more the open probability, [draws + 1, units]. All are sigmoids of a multiple of the
    logits plus something, noise or the shift; here both times β."""

    def make() -> tuple[Tensor, Tensor]:
        terms = logits.detach().new_full((draws + 1, len(logits)), -gate.temperature * gate.shift)
        return terms, logits.new_tensor([1.0] * draws + [gate.temperature])

    key = draws, len(logits), logits.device, logits.dtype, gate.temperature, gate.low, gate.high
    terms, factors = _latest(_noise, gate, key, make)
    terms[:-1].uniform_().logit_()
    return torch.addr(terms, factors, logits, beta=1 / gate.temperature, alpha=1 / gate.temperature).sigmoid_()


@DRAW.replaces(SoftMask, "sample", "soft_mask", "open_probability")
def _draw_soft_mask(gate: SoftMask, logits: Tensor, economical: bool, examples: int | None) -> DrawnGates:
    """Keeps p; if ``economical`` nothing but the gate's scratch buffer."""
    beta, scale, recompute = gate.temperature, gate.scale, None
    with torch.no_grad():
        if economical:
            key = logits.shape, logits.dtype, logits.device
            scratch = _latest(_scratch, gate, key, lambda: ScratchBuffer(logits))
            p = torch.mul(beta, logits, out=scratch.values).sigmoid_()
            recompute = Recompute(lambda: torch.sigmoid(beta * logits), logits, beta, scale=scale, scratch=scratch)
        else:
            p = gate.open_probability(logits)
        z = p * scale

    def backward(grad: Tensor, beta: Tensor, *saved: Tensor) -> Tensor:
        p = saved[0] if recompute is None else recompute.p()
        return sigmoid_backward(grad, p).mul_(beta * scale)

    def plain(logits: Tensor, beta: Tensor, *_: Tensor) -> Tensor:
        return torch.sigmoid(beta * logits) * scale

    z = _differentiable(logits, z, (beta,) if economical else (beta, p), backward, plain)
    return DrawnGates(z if examples is None else z.expand(examples, -1), p, recompute)


@OPEN_PROBABILITY.replaces(HardConcrete, "open_probability", "shift")
@OPEN_PROBABILITY.replaces(SoftMask, "open_probability", "soft_mask")
def _open(
    gate: HardConcrete | SoftMask, logits: Tensor, p: Tensor | None, recompute: Recompute | None, economical: bool
) -> Tensor:
    """Open probabilities σ(log α − shift) or σ(β s). Keeps p; if ``economical`` nothing."""
    beta = gate.temperature if isinstance(gate, SoftMask) else None
    if p is None:
        with torch.no_grad():
            p = gate.open_probability(logits)
    again = recompute or Recompute(lambda: gate.open_probability(logits), logits)

    def backward(grad: Tensor, *saved: Tensor) -> Tensor:
        p = saved[0] if saved else again.p()
        if beta is None:
            return sigmoid_backward(grad, p)
        if grad.stride() == (0,):  # of a sum: one number
            return sigmoid_backward((grad[:1] * beta).expand_as(grad), p)
        return sigmoid_backward(grad, p).mul_(beta)

    def plain(logits: Tensor, *_: Tensor) -> Tensor:
        return gate.open_probability(logits)

    return _differentiable(logits, p, () if economical else (p,), backward, plain)


@MOVABLE_PROBABILITY.replaces(HardConcrete, "movable_probability", "shift")
@MOVABLE_PROBABILITY.replaces(SoftMask, "movable_probability")
def _movable(gate: HardConcrete | SoftMask, logits: Tensor, p: Tensor | None) -> Tensor:
    """Open probabilities σ(slope · (logits − shift)) with the derivative of `gentle_sigmoid`."""
    shift, slope = (gate.shift, 1.0) if isinstance(gate, HardConcrete) else (0.0, gate.temperature)
    value = gate.open_probability(logits.detach()) if p is None else p

    def shifted(logits: Tensor) -> Tensor:
        return logits - shift if shift else logits

    def backward(grad: Tensor, logits: Tensor, *_: Tensor) -> Tensor:
        x = shifted(logits)
        k = gentle_slope(x, slope)
        return sigmoid_backward(grad, torch.sigmoid(k * x)).mul_(k)

    def plain(logits: Tensor, *_: Tensor) -> Tensor:
        return straight_through(value, gentle_sigmoid(shifted(logits), slope))

    saved = (logits.detach(), slope) if isinstance(slope, Tensor) else (logits.detach(),)
    return _differentiable(logits, value, saved, backward, plain)
