"""Runs a copy with units removed beside the record of the whole one.

If every op of the smaller run is the recorded one, with the recorded scalars and the sizes that its labels promise, then
every result is the matching part of the recorded result. The first op that is not shows what the forward takes from a
written size: an attribute of a module, which is found and follows from then on, or something else, and then the channels
of that op stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from zerogate.errors import first_line
from zerogate.groups.labels import labels_in, narrow_constant, squash, varying_dims
from zerogate.groups.observed import Observations, Repair, Step
from zerogate.groups.rules import CUTS, FACTORIES, MOVES, SAME, TURNS, is_pointwise
from zerogate.groups.structure import Structure, repairs_of
from zerogate.groups.trace import LAYOUT, Tracer, quick_copy, tensors_among
from zerogate.groups.watch import Inputs, call, located
from zerogate.tensors import named_tensors

_SIZED = {*MOVES, *CUTS, "native_layer_norm", "layer_norm", "rms_norm", "group_norm", "native_group_norm"}
_SIZED |= {"convolution", *(f"conv{t}{n}d" for t in ("", "_transpose") for n in (1, 2, 3)), "pixel_shuffle"}
"""Ops whose integers are sizes; what they mean shows in the shape of the result."""
_NUMBERED = {*MOVES, *CUTS} - {"cat", "flatten", "transpose", "permute"}
_SPREADS = {"expand", "expand_as", "broadcast_to", "repeat"}
_WRITES = {"index_add", "index_copy", "index_put", "scatter", "scatter_add"}
_ATTEMPTS = 12  # attributes tried for one line of code


@dataclass
class Stop:
    """Where a smaller run left the recorded one: the step's number and why."""

    step: int
    why: str


class Sizes:
    """What is left of each label's places when some labels are removed."""

    def __init__(self, kept: Tensor) -> None:
        self.kept = kept
        self._shapes: dict[tuple[int, tuple[int, ...], tuple[int, ...]], tuple[int, ...] | None] = {}
        self._alive: list[Tensor] = []

    def shape(self, full: tuple[int, ...], labels: Any) -> tuple[int, ...] | None:
        """The shape that is left; None if what is left is no box."""
        if labels is None:
            return full
        if isinstance(labels, list):
            shapes = [self.shape(full, found) for found in labels]
            return None if None in shapes else tuple(min(sizes) for sizes in zip(*shapes, strict=True))
        key = labels.data_ptr(), full, labels.stride()
        if key not in self._shapes:
            self._alive.append(labels)
            (narrow,) = narrow_constant(labels)
            stays = self.kept[narrow]
            left, count = [], 1
            for d in range(narrow.ndim):
                n = full[d]
                if narrow.shape[d] > 1:
                    others = [i for i in range(narrow.ndim) if i != d and narrow.shape[i] > 1]
                    n = int((stays.any(dim=others) if others else stays).sum())
                    count *= n
                left.append(n)
            self._shapes[key] = tuple(left) if int(stays.sum()) == count else None
        return self._shapes[key]

    def count(self, rows: Tensor) -> int:
        return int(self.kept[rows].any(1).sum()) if len(rows) else 0


class _Replay(Tracer):
    def __init__(self, model: nn.Module, steps: list[Step], sizes: Sizes, meta: bool) -> None:
        super().__init__(model, meta)
        self.steps, self.sizes, self.at, self.running = steps, sizes, 0, False
        self._even = WeakTensorKeyDictionary()
        """Tensors of another size than recorded that are the same all along it → whether they are the same everywhere."""
        self._written: dict[int, Any] = {}
        """Memory of which that is no longer true; held."""

    def before(self, func: Any) -> None:
        name = func.overloadpacket.__name__
        if name in LAYOUT:
            return
        if self.at == len(self.steps) or name != self.steps[self.at].name:
            cut = (
                self.at < len(self.steps) and self.steps[self.at].name in CUTS
            )  # one that cuts nothing off is left out
            raise _Left(_wrong_size(self.steps[self.at]) if cut else "the forward takes another way")
        self.running = True

    def visit(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        if func.overloadpacket.__name__ in LAYOUT:
            return
        self.running = False
        step = self.steps[self.at]
        even = self._stays_even(func, args, kwargs)
        for x, (full, labels) in zip(tensors_among(out), step.outs, strict=True):
            shape = tuple(x.shape)
            if shape != self.sizes.shape(full, labels) and 0 not in full:
                if labels is not None or even is None or len(shape) != len(full):
                    raise _Left(_wrong_size(step))
                if step.name in _SPREADS and not _spread(args[0], shape, full):
                    raise _Left(_wrong_size(step))
                self._even[x] = even
            elif labels is not None and self._even and any(x is given for given in args):
                self._written[x.untyped_storage()._cdata] = x.untyped_storage()
        if step.name in FACTORIES:
            if step.bound().get("fill_value") != _bound(func, args, kwargs).get("fill_value"):
                raise _Left(f"{step.name} with a number that depends on the size")
        elif step.name not in _SIZED:
            old, new = _scalars((step.args, step.kwargs)), _scalars((args, kwargs))
            if old != new:
                raise _Left(f"{step.name} with a number that depends on the size")
        elif step.name in ("slice", "narrow", "select"):
            bound, given = step.bound(), _bound(func, args, kwargs)
            wanted = dict(_starts(step, bound, self.sizes))
            for key, start in wanted.items():
                if given.get(key) not in (start, None):
                    raise _Left(_wrong_size(step))
        elif "group_norm" in step.name:
            given = _bound(func, args, kwargs)
            if any(
                self.sizes.count(rows) not in (given.get("num_groups"), given.get("group"))
                for _, rows in _demands(step)
            ):
                raise _Left(f"{step.name} in a number of groups that is written down")
        self.at += 1

    def _stays_even(self, func: Any, args: Any, kwargs: Any) -> bool | None:
        """What may be said of a result that has another size than recorded: True if it is the same everywhere, False if it
        is the same all along the dimensions that changed, None if it need not be.

        Raises `_Left` where something that may only be broadcast is used in another way.
        """
        name = func.overloadpacket.__name__
        if name in FACTORIES:
            return True
        tensors = tensors_among((args, kwargs))
        held: list[bool | None] = []
        if self._even:
            held = [None if x.untyped_storage()._cdata in self._written else self._even.get(x) for x in tensors]
        if all(even is None for even in held):
            return False if name in _SPREADS else None
        if name in CUTS:
            return all(even is True for even in held)
        if name in ("gather", "take_along_dim") and held[0] is None:
            return None
        if name.removesuffix("_") in _WRITES and all(even is None for even in held[1:]):
            return None
        if name in SAME or is_pointwise(func) or name in TURNS:
            return all(even is True for even in held)
        if name in MOVES and all(held):
            return True
        mask = _bound(func, args, kwargs).get("attn_mask")
        if sum(even is not None for even in held) == (mask is not None and self._even.get(mask) is not None):
            return None
        raise _Left(_wrong_size(self.steps[self.at]))


class _Left(Exception):
    pass


def _spread(x: Tensor, shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether x is 1 long wherever what was made of it has another length than recorded."""
    sizes = (1,) * (len(shape) - x.ndim) + tuple(x.shape)
    return all(n == 1 or now == was for n, now, was in zip(sizes, shape, full, strict=True))


def _bound(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """Arguments by name."""
    return dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs


def _scalars(arguments: Any) -> list[Any]:
    if isinstance(arguments, (list, tuple)):
        return [x for item in arguments for x in _scalars(item)]
    if isinstance(arguments, dict):
        return _scalars(list(arguments.values()))
    return [arguments] if isinstance(arguments, (bool, int, float, str)) else []


def _wrong_size(step: Step) -> str:
    if step.name in CUTS:
        return f"{step.name} at a fixed place among channels"
    return f"{step.name} to a size that is written down"


def _starts(step: Step, bound: dict[str, Any], sizes: Sizes) -> Iterable[tuple[str, int]]:
    """Where a cut along channels must begin, and under what name it says so."""
    key = "index" if step.name == "select" else "start"
    dim, start = bound.get("dim", 0), bound.get(key)
    if not start or not step.entering or bound.get("step", 1) > 1:
        return
    rows = _rows(step.entering[0], dim)
    if rows is not None and start > 0:
        yield key, sizes.count(rows[:start])


def _rows(labels: Tensor | None, dim: int) -> Tensor | None:
    """Labels [size of dim, everything else that varies]; None where they do not vary along it."""
    if labels is None or not labels.numel():
        return None
    dim %= labels.ndim
    (narrow,) = narrow_constant(labels)
    if narrow.shape[dim] == 1 and labels.shape[dim] > 1:
        return None
    return narrow.movedim(dim, 0).reshape(labels.shape[dim], -1)


def _demands(step: Step) -> list[tuple[int, Tensor]]:
    """Sizes that the op was given → the rows of labels they count."""
    bound, found = step.bound(), list[tuple[int, Tensor]]()
    outs = [labels for _, labels in step.outs]
    out = outs[0] if outs else None

    def ask(size: Any, labels: Any, dim: int, stop: int | None = None) -> None:
        for each in tensors_among(labels):
            rows = _rows(each, dim)
            if rows is not None and isinstance(size, int) and size > 0:
                found.append((size, rows[:stop]))

    for key in ("size", "shape"):
        value = bound.get(key)
        if isinstance(value, (list, tuple)) and out is not None and step.name in MOVES:
            for i, n in enumerate(value):
                ask(n, out, i - len(value))
    if step.name == "unflatten" and out is not None:
        dim = bound["dim"] % (len(step.outs[0][0]) - len(bound["sizes"]) + 1)
        for i, n in enumerate(bound["sizes"]):
            ask(n, out, dim + i)
    if step.name in CUTS and step.entering:
        dim = bound.get("dim", 0)
        for key in ("split_size", "split_sizes", "length"):
            value = bound.get(key)
            for i, n in enumerate(value if isinstance(value, (list, tuple)) else [value]):
                ask(n, outs[i], dim)
        for key in ("start", "end"):
            ask(bound.get(key), step.entering[0], dim, bound.get(key))
    if "normalized_shape" in bound:
        for i, n in enumerate(bound["normalized_shape"]):
            ask(n, out, i - len(bound["normalized_shape"]))
    groups = bound.get("groups", bound.get("num_groups", bound.get("group", 1)))
    if groups > 1 and step.entering:
        rows = _rows(out if isinstance(out, Tensor) else step.entering[0], 1)
        if rows is not None and len(rows) % groups == 0:
            found.append((groups, rows.reshape(groups, -1)))
    return found


def _widths(step: Step) -> list[tuple[int, Tensor]]:
    """Sizes of what a step made → the rows of labels they count: what else it meets must have the same."""
    found = list[tuple[int, Tensor]]()
    for full, labels in step.outs:
        if isinstance(labels, Tensor):
            rows = ((n, _rows(labels, d)) for d, n in enumerate(full))
            found += [(n, r) for n, r in rows if r is not None]
    return found


def _asked(step: Step) -> list[tuple[int, Tensor]]:
    """`_demands`, and where an op takes no sizes those of what it made; of a cut those of what it was given: its own may be
    worked out from them, as in ``x.split(self.width // 2)``."""
    if step.name not in CUTS:
        return _demands(step) + ([] if step.name in MOVES else _widths(step))
    given = [(n, _rows(labels, d)) for labels in step.entering for d, n in enumerate(labels.shape)]
    return _demands(step) + [(n, rows) for n, rows in given if rows is not None]


def replay(twin: nn.Module, inputs: Inputs, seen: Observations, sizes: Sizes) -> Stop | None:
    """Runs a smaller model beside the record; where and why it leaves it, or None. ``twin`` is used up."""
    mode = _Replay(twin, seen.steps, sizes, seen.meta)
    inputs = seen.prepared(inputs, mode)
    try:
        with torch.inference_mode(), mode:
            call(twin, inputs)
    except _Left as left:
        return Stop(mode.at, str(left))
    except Exception as error:
        if mode.running and seen.steps[mode.at].name in (*MOVES, *CUTS):
            return Stop(mode.at, _wrong_size(seen.steps[mode.at]))
        return Stop(mode.at, f"the forward depends on its size ({type(error).__name__}: {first_line(error)})")
    return None if mode.at == len(seen.steps) else Stop(mode.at, "the forward takes another way")


# --- what to do about it ----------------------------------------------------------------------------------------------


def settle(
    model: nn.Module,
    inputs: Inputs,
    seen: Observations,
    structure: Structure,
    build: Callable[[], Structure],
    cut: Callable[[nn.Module, Structure, Tensor], nn.Module],
    step: int = 1,
) -> Structure:
    """The structure of what can really be removed.

    Args:
        model: a dense copy as it was watched.
        structure: of what has been seen.
        build: makes it anew.
        cut: removes from a copy all but the kept units, bool [units].
        step: of groups of channels, multiples of it are kept.
    """
    passed = 0
    generator = torch.Generator().manual_seed(0)
    # twice where sizes are given as numbers: one that is written down may be right by chance
    enough = 2 if any(_demands(s) for s in seen.steps if s.name in _NUMBERED) else 1
    while structure.units and passed < enough:
        seen.name_moved()
        kept = _some(structure, generator, step)
        stop = _try(model, inputs, seen, structure, kept, cut)
        passed = passed + 1 if stop is None else 0
        while stop is not None and (further := _repair(model, inputs, seen, structure, cut, kept, stop)) is not None:
            structure = replace(structure, repairs=repairs_of(seen, structure.unit_of))
            stop = None if further.step > len(seen.steps) else further
        if stop is not None:
            tied = _tie(model, inputs, seen, structure, build, cut, stop)
            if tied is None:
                _give_up(model, inputs, seen, structure, cut, kept, stop)
                tied = build()
            structure = tied
    return structure


def _some(structure: Structure, generator: torch.Generator, step: int = 1) -> Tensor:
    """A random part of each group that can shrink, never nothing of it."""
    kept = torch.ones(structure.units, dtype=torch.bool)
    for group in structure.groups:
        n = group.units
        if n > 1 and group.slice.start not in structure.inputs:  # selecting inputs is an op more
            closed = torch.rand(n, generator=generator) < 0.5
            some, other = torch.randperm(n, generator=generator)[:2].tolist()
            closed[some], closed[other] = True, False
            if step > 1 and group.kind == "channel":
                wanted = -(-int((~closed).sum()) // step) * step  # rounded up, unless that is all of it
                wanted = min(wanted, max((n - 1) // step * step, step if n > step else n))
                closed = torch.ones(n, dtype=torch.bool)
                closed[torch.randperm(n, generator=generator)[:wanted]] = False
            kept[group.slice] = ~closed
    return kept


def _sizes(structure: Structure, kept: Tensor) -> Sizes:
    return Sizes((structure.unit_of < 0) | kept[structure.unit_of])


def _try(
    model: nn.Module,
    inputs: Inputs,
    seen: Observations,
    structure: Structure,
    kept: Tensor,
    cut: Callable[[nn.Module, Structure, Tensor], nn.Module],
) -> Stop | None:
    shared = {id(x): x for _, x in named_tensors(model)}  # cutting puts others in their place
    small = cut(quick_copy(model, shared), structure, kept)
    return replay(small, inputs, seen, _sizes(structure, kept))


def _repair(
    model: nn.Module,
    inputs: Inputs,
    seen: Observations,
    structure: Structure,
    cut: Callable[[nn.Module, Structure, Tensor], nn.Module],
    kept: Tensor,
    stop: Stop,
) -> Stop | None:
    """Looks for the attribute that a step took its size from: one that lets the run go on past it. Where the run then
    stops (past all steps, if it does not), or None where there is no such attribute."""
    if stop.step >= len(seen.steps):
        return None
    step = seen.steps[stop.step]
    if (step.place, step.name) in seen.hopeless:
        return None
    inside = [s for s in seen.steps if s.module == step.module]
    modules = dict(model.named_modules())
    sizes = _sizes(structure, kept)
    tried: set[tuple[str, str, int | None, int]] = set()
    for asking in ([step],) if step.name in (*MOVES, *CUTS) else ([step], inside):
        wanted: list[tuple[Repair, int]] = []
        for asker in asking:
            for size, rows in _asked(asker) if asker is step else _demands(asker):
                now = sizes.count(rows)
                if now == size:
                    continue
                for path in [*_upwards(step.module), *_inside(modules, step.module)]:
                    for attribute, entry in _holders(modules.get(path), size):
                        key = path, attribute, entry, now
                        if key not in tried and (path, attribute, entry) not in seen.repairs:
                            tried.add(key)
                            wanted.append((Repair(path, attribute, entry, rows), size))
        singles = [[w] for w in wanted]
        lists: dict[tuple[str, str], list[tuple[Repair, int]]] = {}
        for w in wanted:
            if w[0].entry is not None:
                lists.setdefault((w[0].module, w[0].attribute), []).append(w)
        together = [group for group in lists.values() if len(group) > 1]
        for attempt in [*together, *singles, *([wanted] if 1 < len(wanted) <= 8 else [])][:_ATTEMPTS]:
            before = dict(seen.repairs)
            for repair, _ in attempt:
                seen.repairs.update(_everywhere(seen, modules, step, repair))
            structure = replace(structure, repairs=repairs_of(seen, structure.unit_of))
            next_stop = _try(model, inputs, seen, structure, kept, cut)
            if next_stop is None or next_stop.step > stop.step:
                return next_stop or Stop(len(seen.steps) + 1, "")
            seen.repairs = before
    seen.hopeless.add((step.place, step.name))
    return None


def _everywhere(
    seen: Observations, modules: dict[str, nn.Module], step: Step, repair: Repair
) -> dict[tuple[str, str, int | None], Repair]:
    """The same repair for all modules of that class that run the same line."""
    found = {(repair.module, repair.attribute, repair.entry): repair}
    if not step.module.startswith(repair.module):
        return found | _in_siblings(seen, modules, step, repair)
    below = step.module[len(repair.module) :].lstrip(".")
    numbers = [i for i, (_, rows) in enumerate(_asked(step)) if rows is repair.rows or torch.equal(rows, repair.rows)]
    if not numbers:
        return found
    for other in seen.steps:
        if other.place != step.place or other.name != step.name:
            continue
        path = other.module[: len(other.module) - len(below)].rstrip(".") if below else other.module
        holder = modules.get(path)
        if path == repair.module or type(holder) is not type(modules[repair.module]):
            continue
        demands = _asked(other)
        if numbers[0] < len(demands):
            size, rows = demands[numbers[0]]
            if (repair.attribute, repair.entry) in _holders(holder, size):
                found[path, repair.attribute, repair.entry] = Repair(path, repair.attribute, repair.entry, rows)
    return found


def _in_siblings(
    seen: Observations, modules: dict[str, nn.Module], step: Step, repair: Repair
) -> dict[tuple[str, str, int | None], Repair]:
    """The same repair in the child of the same name of all modules that run the same line."""
    child = repair.module[len(step.module) :].lstrip(".")
    number = next((i for i, (_, rows) in enumerate(_asked(step)) if torch.equal(rows, repair.rows)), None)
    found = {}
    for other in seen.steps:
        path = f"{other.module}.{child}".lstrip(".")
        if other.place == step.place and other.name == step.name and path in modules and number is not None:
            demands = _asked(other)
            if number < len(demands) and (repair.attribute, repair.entry) in _holders(
                modules[path], demands[number][0]
            ):
                found[path, repair.attribute, repair.entry] = replace(repair, module=path, rows=demands[number][1])
    return found


def _upwards(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def _inside(modules: dict[str, nn.Module], path: str) -> list[str]:
    """Modules that a module holds: their methods can be called without their forward."""
    return [f"{path}.{name}".lstrip(".") for name, _ in modules[path].named_children()]


def _holders(module: nn.Module | None, size: int) -> list[tuple[str, int | None]]:
    """Attributes of a module that hold this number, and the place in them where they are tuples or lists."""
    found: list[tuple[str, int | None]] = []
    for name, value in vars(module).items() if module is not None else ():
        if type(value) is int and value == size:
            found.append((name, None))
        elif isinstance(value, (tuple, list)) and 0 < len(value) <= 64:
            found += [(name, i) for i, x in enumerate(value) if type(x) is int and x == size]
    return found


def _tie(
    model: nn.Module,
    inputs: Inputs,
    seen: Observations,
    structure: Structure,
    build: Callable[[], Structure],
    cut: Callable[[nn.Module, Structure, Tensor], nn.Module],
    stop: Stop,
) -> Structure | None:
    """Ties what a step works on to something else, place by place, where that lets the run go on past it.

    Either to what an attribute counts already: a number of heads that is used for two things goes on being right if both
    always lose the same places. Or to what its module was given: ``B, N, C = x.shape; … .reshape(B, N, C)`` gives the
    result the width of the input.
    """
    if stop.step >= len(seen.steps):
        return None
    step = seen.steps[stop.step]
    widths = f"tie {_wide(step)}"
    if (step.place, widths) in seen.hopeless:
        return None
    alike = [s for s in seen.steps if s.place == step.place and s.name == step.name and _wide(s) == _wide(step)]
    modules = dict(model.named_modules())
    counted = dict.fromkeys(pair for pair, _ in _counted(seen, modules, step))
    state, repairs = seen.labels.state(), dict(seen.repairs)
    for pair in [*counted, None]:
        changes = seen.labels.changes
        for other in alike:
            if pair is not None:
                for found, (mine, rows) in _counted(seen, modules, other):
                    if found == pair:
                        seen.labels.unite(mine.amax(1), rows.amax(1))
                continue
            for mine in tensors_among([other.entering, [found for _, found in other.outs]]):
                for given in seen.given.get(other.module, ()):
                    if (structure.unit_of[labels_in(given)] >= 0).all():
                        _tie_places(seen, mine, given)
        if seen.labels.changes != changes:
            tied = build()
            seen.name_moved()
            if tied.units and (tied.unit_of[_among(step.entering, [found for _, found in step.outs])] >= 0).any():
                for seed in (1, 2, 3):  # a draw may meet what is wrong further up, and right by chance in others
                    kept = _some(tied, torch.Generator().manual_seed(seed))
                    further = _try(model, inputs, seen, tied, kept, cut)
                    if further is None or further.step >= stop.step:
                        break
                if further is not None and further.step == stop.step:
                    seen.hopeless.discard((step.place, step.name))
                    further = _repair(model, inputs, seen, tied, cut, kept, further) or further
                if further is None or further.step > stop.step:
                    return replace(tied, repairs=repairs_of(seen, tied.unit_of))
        seen.labels.restore(state)
        seen.repairs = dict(repairs)
    seen.hopeless.add((step.place, widths))
    return None


def _counted(
    seen: Observations, modules: dict[str, nn.Module], step: Step
) -> Iterator[tuple[tuple[int, str, int | None], tuple[Tensor, Tensor]]]:
    """Attributes that have the size that a step was given but count something else already: how far up from its module
    each is, its name and entry, and the rows of labels of both."""
    for size, rows in _demands(step):
        for up, path in enumerate([*_upwards(step.module), *_inside(modules, step.module)]):
            for attribute, entry in _holders(modules.get(path), size):
                held = seen.repairs.get((path, attribute, entry))
                if held is not None and len(held.rows) == len(rows) and not torch.equal(held.rows, rows):
                    yield (up, attribute, entry), (rows, held.rows)


def _wide(step: Step) -> list[tuple[int, ...]]:
    """How wide what a step works on is, along the dimensions of its channels; alike in blocks of one width."""
    return [tuple(x.shape[d] for d in varying_dims(squash(x))) for x in step.entering]


def _tie_places(seen: Observations, mine: Tensor, given: Tensor) -> None:
    (mine,), (given,) = narrow_constant(mine), narrow_constant(given)
    if given.numel() > 1 and mine.numel() % given.numel() == 0 and sum(n > 1 for n in given.shape) == 1:
        seen.labels.unite(mine.reshape(-1, given.numel()), given.reshape(1, -1))


def _give_up(
    model: nn.Module,
    inputs: Inputs,
    seen: Observations,
    structure: Structure,
    cut: Callable[[nn.Module, Structure, Tensor], nn.Module],
    kept: Tensor,
    stop: Stop,
) -> None:
    """Freezes what the step works on, or what its module was given, or both: whatever lets the run go on if it stays whole.
    The same is frozen wherever that line runs."""
    steps, groups = seen.steps, structure.group_of_unit
    step = steps[min(stop.step, len(steps) - 1)]
    before = steps[max(0, stop.step - 3) : stop.step + 1]

    def working(at: Step) -> Tensor:
        return _among(at.entering, [found for _, found in at.outs])

    def given(at: Step) -> Tensor:
        return _among(seen.given.get(at.module, []))

    def around(at: Step) -> Tensor:
        near = [s for s in steps if s.module == at.module] + (before if at is step else [])
        return _among([working(s) for s in near])

    choices: list[tuple[Callable[[Step], Tensor], ...]] = [
        (working,),
        (given,),
        (working, given),
        (working, given, around),
    ]
    for choice in choices:
        units = structure.unit_of[torch.cat([what(step) for what in choice])]
        hit = groups[units[units >= 0]].unique()
        if not len(hit):
            continue
        whole = kept | torch.isin(groups, hit)
        further = None if whole.all() else _try(model, inputs, seen, structure, whole, cut)
        if further is None or further.step > stop.step:
            for s in steps:
                if s is step or (
                    s.place[1]
                    and s.place == step.place
                    and s.name == step.name
                    and s.name in (*MOVES, *CUTS)
                    and _wide(s) == _wide(step)
                ):
                    reason = located(stop.why, s.module, s.place)
                    seen.labels.freeze(torch.cat([what(s) for what in choice]), reason)
            return
    seen.labels.freeze((structure.unit_of >= 0).nonzero().flatten(), stop.why)


def _among(*labels: Any) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.int64), *(labels_in(x) for x in tensors_among(labels))])
