"""Runs a copy with units removed beside the record of the whole one.

If every op of the smaller run is the recorded one, with the recorded scalars and the sizes that its labels promise, then
every result is the matching part of the recorded result. The first op that is not shows what the forward takes from a
written size: an attribute of a module, which is found and follows from then on, or something else, and then the channels
of that op stay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from zerogate.errors import first_line
from zerogate.groups.interpreted import Interpreted, written_sizes
from zerogate.groups.labels import labels_in, narrow_constant, squash, varying_dims
from zerogate.groups.observed import Observations, Repair, Step, scalars_among
from zerogate.groups.rules import CUTS, FACTORIES, MOVES, SAME, TURNS, is_pointwise
from zerogate.groups.shapes import bind
from zerogate.groups.structure import Structure, repairs_of
from zerogate.groups.trace import LAYOUT, Tracer, quick_copy, tensors_among
from zerogate.groups.watch import Inputs, call, located
from zerogate.tensors import modules_by_name, named_tensors

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
    given: Any = None
    """What the op there was given: its name, its numbers, and the shapes of its tensors; None where no op was under way."""


class _Vectors:
    """Labels of all steps' results that vary along a single dimension, in one line: to count them at once."""

    def __init__(self, steps: list[Step]) -> None:
        self.of: dict[int, tuple[int, int, Tensor]] = {}
        """Tensor of labels → the dimension, and the number of its vector; holds the labels, too."""
        vectors: list[Tensor] = []
        known: dict[tuple[int, int, int], int] = {}
        for step in steps:
            for full, found in step.outs:
                for labels in [found] if isinstance(found, Tensor) else found or ():
                    if id(labels) in self.of:
                        continue
                    stride = labels.stride()
                    vary = [d for d, n in enumerate(full) if n > 1 and stride[d]]
                    if len(vary) != 1:
                        continue
                    (d,) = vary
                    key = labels.data_ptr(), stride[d], full[d]
                    if key not in known:
                        known[key] = len(vectors)
                        vectors.append(labels.as_strided((full[d],), (stride[d],)))
                    self.of[id(labels)] = d, known[key], labels
        self.labels = torch.cat([torch.empty(0, dtype=torch.int64), *vectors])
        lengths = torch.tensor([len(v) for v in vectors], dtype=torch.int64)
        self.number = torch.repeat_interleave(torch.arange(len(vectors)), lengths)
        self.count = len(vectors)

    def left(self, kept: Tensor) -> list[int]:
        counts = torch.zeros(self.count, dtype=torch.int64)
        return counts.index_add_(0, self.number, kept[self.labels].long()).tolist()


class Sizes:
    """What is left of each label's places when some labels are removed."""

    def __init__(self, kept: Tensor, seen: Observations) -> None:
        self.kept = kept
        if seen.vectors is None:
            seen.vectors = _Vectors(seen.steps)
        self._vectors: _Vectors = seen.vectors
        self._left = self._vectors.left(kept)
        self._shapes: dict[Any, tuple[int, ...] | None] = {}
        self._alive: list[Tensor] = []

    def shape(self, full: tuple[int, ...], labels: Any) -> tuple[int, ...] | None:
        """The shape that is left; None if what is left is no box."""
        if labels is None:
            return full
        if isinstance(labels, list):
            shapes = [self.shape(full, found) for found in labels]
            return None if None in shapes else tuple(min(sizes) for sizes in zip(*shapes, strict=True))
        vector = self._vectors.of.get(id(labels))
        if vector is not None:
            d, number, _ = vector
            return (*full[:d], self._left[number], *full[d + 1 :])
        key = labels.data_ptr(), full, labels.stride()
        if key not in self._shapes:
            self._alive.append(labels)
            (narrow,) = narrow_constant(labels)
            vary = [d for d, (n, stride) in enumerate(zip(full, labels.stride(), strict=True)) if n > 1 and stride]
            stays, left = self.kept[narrow], [*full]
            for d in vary:
                left[d] = int(stays.any(dim=[i for i in vary if i != d]).sum()) if len(vary) > 1 else int(stays.sum())
            whole = int(stays.sum()) == math.prod(left[d] for d in vary) if vary else bool(stays.all())
            self._shapes[key] = tuple(left) if whole else None
        return self._shapes[key]

    def count(self, rows: Tensor) -> int:
        return int(self.kept[rows].any(1).sum()) if len(rows) else 0


class _Replay(Tracer):
    def __init__(self, seen: Observations, sizes: Sizes) -> None:
        super().__init__(seen.meta)
        self.steps, self.sizes, self.at, self.running = seen.steps, sizes, 0, False
        self.now: tuple[Any, Any, Any] = None, (), {}
        self.norms = {n.module for n in seen.norms}  # tried alone, numbers and all
        self._even = self.by_tensor()
        """Tensors of another size than recorded that are the same all along it → whether they are the same everywhere."""
        self._written: dict[int, Any] = {}
        """Memory of which that is no longer true; held."""

    def before(self, func: Any, args: Any, kwargs: Any) -> None:
        name = func.overloadpacket.__name__
        if name in LAYOUT:
            return
        self.now = func, args, kwargs
        if self.at == len(self.steps) or name != self.steps[self.at].name:
            cut = (
                self.at < len(self.steps) and self.steps[self.at].name in CUTS
            )  # one that cuts nothing off is left out
            raise _Left(_wrong_size(self.steps[self.at]) if cut else "the forward takes another way")
        self.running = True

    def visit(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor], out: Any) -> None:
        name = func.overloadpacket.__name__
        if name in LAYOUT:
            if out is not args[0] and args[0] in self._even:
                self._even[out] = self._even[args[0]]
            return
        self.running = False
        step = self.steps[self.at]
        even = self._stays_even(func, name, args, kwargs, tensors)
        for x, (full, labels) in zip(tensors_among(out), step.outs, strict=True):
            shape = tuple(x.shape)
            if shape != self.sizes.shape(full, labels) and 0 not in full:
                if labels is not None or even is None or len(shape) != len(full):
                    raise _Left(_wrong_size(step))
                if step.name in _SPREADS and not _spread(args[0], shape, full):
                    raise _Left(_wrong_size(step))
                self._even[x] = even
            elif labels is not None and self._even and any([x is given for given in args]):
                self._written[x.untyped_storage()._cdata] = x.untyped_storage()
        if step.name in FACTORIES:
            if step.bound().get("fill_value") != bind(func, args, kwargs).get("fill_value"):
                raise _Left(f"{step.name} with a number that depends on the size")
        elif step.name not in _SIZED:
            if step.module not in self.norms and step.scalars != scalars_among((args, kwargs)):
                raise _Left(f"{step.name} with a number that depends on the size")
        elif step.name in ("slice", "narrow", "select"):
            given = bind(func, args, kwargs)
            for key, start in _starts(step, step.bound(), self.sizes):
                if given.get(key) not in (start, None):
                    raise _Left(_wrong_size(step))
        elif "group_norm" in step.name:
            given = bind(func, args, kwargs)
            if any(
                self.sizes.count(rows) not in (given.get("num_groups"), given.get("group"))
                for _, rows, *_ in _demands(step)
            ):
                raise _Left(f"{step.name} in a number of groups that is written down")
        self.at += 1

    def _stays_even(self, func: Any, name: str, args: Any, kwargs: Any, tensors: list[Tensor]) -> bool | None:
        """What may be said of a result that has another size than recorded: True if it is the same everywhere, False if it
        is the same all along the dimensions that changed, None if it need not be.

        Raises `_Left` where something that may only be broadcast is used in another way.
        """
        if name in FACTORIES:
            return True
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
        mask = bind(func, args, kwargs).get("attn_mask")
        if sum(even is not None for even in held) == (mask is not None and self._even.get(mask) is not None):
            return None
        raise _Left(_wrong_size(self.steps[self.at]))


class _Left(Exception):
    pass


def _spread(x: Tensor, shape: tuple[int, ...], full: tuple[int, ...]) -> bool:
    """Whether x is 1 long wherever what was made of it has another length than recorded."""
    sizes = (1,) * (len(shape) - x.ndim) + tuple(x.shape)
    return all(n == 1 or now == was for n, now, was in zip(sizes, shape, full, strict=True))


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


class Demand(NamedTuple):
    """A size that an op was given, the rows of labels it counts, and the argument that gave it with the place in that,
    if it is a list."""

    size: int
    rows: Tensor
    key: str
    entry: int | None


def _demands(step: Step) -> list[Demand]:
    """Sizes that the op was given."""
    if "demands" in step.__dict__:
        return step.__dict__["demands"]
    bound, found = step.bound(), list[Demand]()
    outs = [labels for _, labels in step.outs]
    out = outs[0] if outs else None

    def ask(key: str, entry: int | None, size: Any, labels: Any, dim: int, stop: int | None = None) -> None:
        for each in tensors_among(labels) if isinstance(size, int) and size > 0 else ():
            rows = _rows(each, dim)
            if rows is not None:
                found.append(Demand(size, rows[:stop], key, entry))

    for key in ("size", "shape"):
        value = bound.get(key)
        if isinstance(value, (list, tuple)) and out is not None and step.name in MOVES:
            for i, n in enumerate(value):
                ask(key, i, n, out, i - len(value))
    if step.name == "unflatten" and out is not None:
        dim = bound["dim"] % (len(step.outs[0][0]) - len(bound["sizes"]) + 1)
        for i, n in enumerate(bound["sizes"]):
            ask("sizes", i, n, out, dim + i)
    if step.name in CUTS and step.entering:
        dim = bound.get("dim", 0)
        for key in ("split_size", "split_sizes", "length"):
            value = bound.get(key)
            if isinstance(value, (list, tuple)):
                for i, n in enumerate(value):
                    ask(key, i, n, outs[i], dim)
            else:
                ask(key, None, value, outs[0], dim)
        for key in ("start", "end"):
            ask(key, None, bound.get(key), step.entering[0], dim, bound.get(key))
    if "normalized_shape" in bound:
        for i, n in enumerate(bound["normalized_shape"]):
            ask("normalized_shape", i, n, out, i - len(bound["normalized_shape"]))
    key = next((k for k in ("groups", "num_groups", "group") if k in bound), "")
    if bound.get(key, 1) > 1 and step.entering:
        rows = _rows(out if isinstance(out, Tensor) else step.entering[0], 1)
        if rows is not None and len(rows) % bound[key] == 0:
            found.append(Demand(bound[key], rows.reshape(bound[key], -1), key, None))
    step.__dict__["demands"] = found
    return found


def _widths(step: Step) -> list[Demand]:
    """Sizes of what a step made: what else it meets must have the same."""
    found = list[Demand]()
    for i, (full, labels) in enumerate(step.outs):
        if isinstance(labels, Tensor):
            rows = ((d, n, _rows(labels, d)) for d, n in enumerate(full))
            found += [Demand(n, r, f"result {i}", d - len(full)) for d, n, r in rows if r is not None]
    return found


def _asked(step: Step) -> list[Demand]:
    """`_demands`, and where an op takes no sizes those of what it made; of a cut those of what it was given: its own may be
    worked out from them, as in ``x.split(self.width // 2)``."""
    if step.name not in CUTS:
        return _demands(step) + ([] if step.name in MOVES else _widths(step))
    given = [(n, d, _rows(labels, d)) for labels in step.entering for d, n in enumerate(labels.shape)]
    return _demands(step) + [Demand(n, rows, "given", d) for n, d, rows in given if rows is not None]


def follow_written_sizes(model: Interpreted, seen: Observations) -> None:
    """Says which sizes of an exported graph follow from what is kept: all that its nodes were given."""
    seen.repairs |= written_sizes(model, seen.steps, _demands)


def replay(twin: nn.Module, inputs: Inputs, seen: Observations, sizes: Sizes) -> Stop | None:
    """Runs a smaller model beside the record; where and why it leaves it, or None. ``twin`` is used up."""
    mode = _Replay(seen, sizes)
    mode.results = seen.results
    inputs = seen.prepared(inputs)
    try:
        with torch.inference_mode(), mode:
            call(twin, inputs)
    except _Left as left:
        return Stop(mode.at, str(left), _given(mode))
    except Exception as error:
        step = seen.steps[mode.at] if mode.running else None
        if step is not None and (step.name in (*MOVES, *CUTS) or is_pointwise(step.func)):
            return Stop(mode.at, _wrong_size(step), _given(mode))
        why = f"the forward depends on its size ({type(error).__name__}: {first_line(error)})"
        return Stop(mode.at, why, _given(mode) if mode.running else None)
    return None if mode.at == len(seen.steps) else Stop(mode.at, "the forward takes another way")


def _given(mode: _Replay) -> Any:
    func, args, kwargs = mode.now
    return func, scalars_among((args, kwargs)), [x.shape for x in tensors_among((args, kwargs))]


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
    while structure.units:
        seen.name_moved()
        kept = _some(structure, generator, step)
        stop = _try(model, inputs, seen, structure, kept, cut)
        while stop is not None and (further := _repair(model, inputs, seen, structure, cut, kept, stop)) is not None:
            structure = replace(structure, repairs=repairs_of(seen, structure.unit_of))
            stop = None if further.step > len(seen.steps) else further
        if stop is None:
            passed += 1
            # a number may be right by chance, where it could be that of another group
            if passed > 1 or not _mistakable(structure, kept, seen.steps):
                break
            continue
        passed = 0
        tied = _tie(model, inputs, seen, structure, build, cut, stop)
        if tied is None:
            _give_up(model, inputs, seen, structure, cut, kept, stop)
            tied = build()
        structure = tied
    return structure


def _some(structure: Structure, generator: torch.Generator, step: int = 1) -> Tensor:
    """A random part of each group that can shrink, never nothing of it; of groups of one size not the same number one
    after another."""
    kept = torch.ones(structure.units, dtype=torch.bool)
    given: dict[int, int] = {}
    for group in structure.groups:
        n = group.units
        if n > 1 and group.slice.start not in structure.inputs:  # selecting inputs is an op more
            turn = given[n] = given.get(n, -1) + 1
            turn %= n - 1
            left = (n + (turn + 1 if turn % 2 else -turn)) // 2  # n/2, n/2 + 1, n/2 − 1, …
            if step > 1 and group.kind == "channel":
                left = -(-left // step) * step  # rounded up, unless that is all of it
                left = min(left, max((n - 1) // step * step, step if n > step else n))
            kept[group.slice] = False
            kept[group.slice.start + torch.randperm(n, generator=generator)[:left]] = True
    return kept


def _mistakable(structure: Structure, kept: Tensor, steps: list[Step]) -> bool:
    """Whether in any module that gives sizes as numbers two groups of one size keep equally many."""
    group = structure.group_of_unit
    left = torch.zeros(len(structure.groups), dtype=torch.int64).index_add_(0, group, kept.long()).tolist()
    everywhere = [(g.units, n) for g, n in zip(structure.groups, left, strict=True) if g.units > 2]
    if len(set(everywhere)) == len(everywhere):
        return False
    met: dict[str, set[int]] = {}
    for step in steps:
        if step.name not in _NUMBERED or not _demands(step):
            continue
        units = structure.unit_of[_among(step.entering)]
        met.setdefault(step.module, set()).update(group[units[units >= 0]].unique().tolist())
    for groups in met.values():
        sizes = [(structure.groups[g].units, left[g]) for g in groups if structure.groups[g].units > 2]
        if len(set(sizes)) < len(sizes):
            return True
    return False


def _sizes(seen: Observations, structure: Structure, kept: Tensor) -> Sizes:
    return Sizes((structure.unit_of < 0) | kept[structure.unit_of], seen)


def _try(
    model: nn.Module,
    inputs: Inputs,
    seen: Observations,
    structure: Structure,
    kept: Tensor,
    cut: Callable[[nn.Module, Structure, Tensor], nn.Module],
    sizes: Sizes | None = None,
) -> Stop | None:
    shared = {id(x): x for _, x in named_tensors(model)}  # cutting puts others in their place
    small = cut(quick_copy(model, shared), structure, kept)
    return replay(small, inputs, seen, _sizes(seen, structure, kept) if sizes is None else sizes)


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
    modules = modules_by_name(model)
    sizes = _sizes(seen, structure, kept)
    tried: set[tuple[str, str, int | None, int]] = set()
    alike = _alike(seen, step)
    everywhere: dict[int, dict[tuple[str, str, int | None], Repair]] = {}
    ran: dict[tuple[int, ...], Stop] = {}

    def search(attempts: list[list[Repair]]) -> Stop | None:
        """Where the run stops after the first of these attempts that takes it past the step; they are in force then. What
        all together do not touch, none of them does, so it goes by halves."""
        if not attempts:
            return None
        before = dict(seen.repairs)
        these = {id(repair): repair for attempt in attempts for repair in attempt}
        for number, repair in these.items():
            if number not in everywhere:
                everywhere[number] = _everywhere(alike, modules, step, repair)
            seen.repairs.update(everywhere[number])
        key = tuple(sorted(these))
        if key not in ran:
            followed = replace(structure, repairs=repairs_of(seen, structure.unit_of))
            ran[key] = _try(model, inputs, seen, followed, kept, cut, sizes) or Stop(len(seen.steps) + 1, "")
        further = ran[key]
        if len(attempts) == 1 and further.step > stop.step:
            return further
        seen.repairs = before
        if len(attempts) == 1 or (further.step == stop.step and further.given == stop.given is not None):
            return None
        half = (len(attempts) + 1) // 2
        return search(attempts[:half]) or search(attempts[half:])

    held: list[Repair] = []
    for asking in ([step],) if step.name in (*MOVES, *CUTS) else ([step], inside):
        wanted: list[Repair] = []
        for asker in asking:
            for size, rows, *_ in _asked(asker) if asker is step else _demands(asker):
                now = sizes.count(rows)
                if now == size:
                    continue
                for path in [*_upwards(step.module), *_inside(modules, step.module)]:
                    for attribute, entry in holders(modules.get(path), size):
                        key = path, attribute, entry, now
                        if key not in tried and (path, attribute, entry) not in seen.repairs:
                            tried.add(key)
                            wanted.append(Repair(path, attribute, entry, rows))
        held += wanted  # so that no other takes its place
        singles = [[w] for w in wanted]
        lists: dict[tuple[str, str], list[Repair]] = {}
        for w in wanted:
            if w.entry is not None:
                lists.setdefault((w.module, w.attribute), []).append(w)
        together = [group for group in lists.values() if len(group) > 1]
        found = search([*together, *singles][:_ATTEMPTS])
        if found is None and 1 < len(wanted) <= 8:
            found = search([wanted])
        if found is not None:
            return found
    seen.hopeless.add((step.place, step.name))
    return None


def _alike(seen: Observations, step: Step) -> list[Step]:
    """Steps of the same op on the same line of code."""
    return [s for s in seen.steps if s.place == step.place and s.name == step.name]


def _everywhere(
    alike: list[Step], modules: dict[str, nn.Module], step: Step, repair: Repair
) -> dict[tuple[str, str, int | None], Repair]:
    """The same repair for all modules of that class that run the same line, and in the child of the same name of those."""
    found = {(repair.module, repair.attribute, repair.entry): repair}
    asked = next((d for d in _asked(step) if d.rows is repair.rows or torch.equal(d.rows, repair.rows)), None)
    if asked is None:
        return found
    above = step.module.startswith(repair.module)
    below = step.module[len(repair.module) :].lstrip(".") if above else repair.module[len(step.module) :].lstrip(".")
    for other in alike:
        if not above:
            path = f"{other.module}.{below}".lstrip(".")
        else:
            path = other.module[: len(other.module) - len(below)].rstrip(".") if below else other.module
        holder = modules.get(path)
        if path == repair.module or type(holder) is not type(modules[repair.module]):
            continue
        for size, rows, key, entry in _asked(other):
            # of a list that is given as it is held, all places
            place = entry if repair.entry is not None and repair.entry == asked.entry else repair.entry
            same = key == asked.key and (entry == asked.entry or place == entry)
            if same and (repair.attribute, place) in holders(holder, size):
                found.setdefault((path, repair.attribute, place), Repair(path, repair.attribute, place, rows))
    return found


def _upwards(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def _inside(modules: dict[str, nn.Module], path: str) -> list[str]:
    """Modules that a module holds: their methods can be called without their forward."""
    return [f"{path}.{name}".lstrip(".") for name, _ in modules[path].named_children()]


def holders(module: nn.Module | None, size: int) -> list[tuple[str, int | None]]:
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
    alike = [s for s in _alike(seen, step) if _wide(s) == _wide(step)]
    modules = modules_by_name(model)
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
    for size, rows, *_ in _demands(step):
        for up, path in enumerate([*_upwards(step.module), *_inside(modules, step.module)]):
            for attribute, entry in holders(modules.get(path), size):
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
