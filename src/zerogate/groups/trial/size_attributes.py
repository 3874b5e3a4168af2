"""Attributes of modules that sizes come from: found by trying, and set to what is kept from then on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from zerogate.groups.graph.graph_model import GraphModel, written_sizes
from zerogate.groups.recording.record import Recording, Step
from zerogate.groups.trial.replay import Stop, Trial, sizes_of
from zerogate.groups.trial.size_arguments import asked, demands
from zerogate.groups.units import size_attributes_of
from zerogate.modules.index import modules_by_name
from zerogate.structure import SizeAttribute, Structure

_ATTEMPTS = 12  # attributes tried for one line of code


def repair(trial: Trial, structure: Structure, kept: Tensor, stop: Stop) -> Stop | None:
    """Looks for the attribute that a step took its size from: one that lets the run go on past it. Where the run then
    stops (past all steps, if it does not), or None where there is no such attribute."""
    seen = trial.seen
    if stop.step >= len(seen.steps):
        return None
    step = seen.steps[stop.step]
    if (step.place, step.name) in seen.unrepairable:
        return None
    inside = [s for s in seen.steps if s.module == step.module]
    modules = modules_by_name(trial.model)
    sizes = sizes_of(seen, structure, kept)
    tried: set[tuple[str, str, int | None, int]] = set()
    alike = alike_to(seen, step)
    everywhere: dict[int, dict[tuple[str, str, int | None], SizeAttribute]] = {}
    ran: dict[tuple[int, ...], Stop] = {}

    def search(attempts: list[list[SizeAttribute]]) -> Stop | None:
        """Where the run stops after the first of these attempts that takes it past the step; they are in force then. What
        all together do not touch, none of them does, so it goes by halves."""
        if not attempts:
            return None
        before = dict(seen.size_attributes)
        these = {id(repair): repair for attempt in attempts for repair in attempt}
        for number, repair in these.items():
            if number not in everywhere:
                everywhere[number] = _everywhere(alike, modules, step, repair)
            seen.size_attributes.update(everywhere[number])
        key = tuple(sorted(these))
        if key not in ran:
            followed = replace(structure, size_attributes=size_attributes_of(seen, structure.unit_of))
            ran[key] = trial.run(followed, kept, sizes) or Stop(len(seen.steps) + 1, "")
        further = ran[key]
        if len(attempts) == 1 and further.step > stop.step:
            return further
        seen.size_attributes = before
        if len(attempts) == 1 or (further.step == stop.step and further.given == stop.given is not None):
            return None
        half = (len(attempts) + 1) // 2
        return search(attempts[:half]) or search(attempts[half:])

    held: list[SizeAttribute] = []
    for asking in ([step],) if step.spec.is_move else ([step], inside):
        wanted: list[SizeAttribute] = []
        for asker in asking:
            for size, rows, *_ in asked(asker) if asker is step else demands(asker):
                now = sizes.count(rows)
                if now == size:
                    continue
                for path in [*upwards(step.module), *inside_of(modules, step.module)]:
                    for attribute, entry in holders(modules.get(path), size):
                        key = path, attribute, entry, now
                        if key not in tried and (path, attribute, entry) not in seen.size_attributes:
                            tried.add(key)
                            wanted.append(SizeAttribute(path, attribute, entry, rows))
        held += wanted  # so that no other takes its place
        singles = [[w] for w in wanted]
        lists: dict[tuple[str, str], list[SizeAttribute]] = {}
        for w in wanted:
            if w.entry is not None:
                lists.setdefault((w.module, w.attribute), []).append(w)
        together = [group for group in lists.values() if len(group) > 1]
        found = search([*together, *singles][:_ATTEMPTS])
        if found is None and 1 < len(wanted) <= 8:
            found = search([wanted])
        if found is not None:
            return found
    seen.unrepairable.add((step.place, step.name))
    return None


def alike_to(seen: Recording, step: Step) -> list[Step]:
    """Steps of the same op on the same line of code."""
    return [s for s in seen.steps if s.place == step.place and s.name == step.name]


def _everywhere(
    alike: list[Step], modules: dict[str, nn.Module], step: Step, repair: SizeAttribute
) -> dict[tuple[str, str, int | None], SizeAttribute]:
    """The same repair for all modules of that class that run the same line, and in the child of the same name of those."""
    found = {(repair.module, repair.attribute, repair.entry): repair}
    mine = next((d for d in asked(step) if d.rows is repair.rows or torch.equal(d.rows, repair.rows)), None)
    if mine is None:
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
        for size, rows, key, entry in asked(other):
            # of a list that is given as it is held, all places
            place = entry if repair.entry is not None and repair.entry == mine.entry else repair.entry
            same = key == mine.key and (entry == mine.entry or place == entry)
            if same and (repair.attribute, place) in holders(holder, size):
                found.setdefault((path, repair.attribute, place), SizeAttribute(path, repair.attribute, place, rows))
    return found


def upwards(path: str) -> list[str]:
    parts = path.split(".") if path else []
    return [".".join(parts[:i]) for i in range(len(parts), -1, -1)]


def inside_of(modules: dict[str, nn.Module], path: str) -> list[str]:
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


def follow_written_sizes(model: GraphModel, seen: Recording) -> None:
    """Says which sizes of an exported graph follow from what is kept: all that its nodes were given."""
    seen.size_attributes |= written_sizes(model, seen.steps, demands)
