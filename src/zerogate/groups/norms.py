"""The exact rule for each norm over channels, found by trying.

A norm over channels can be taken over the kept ones if its module, with the hooks of `masking.norms` on it, gives what the
module gives when it is cut. Which statistics it takes (of what is centred, over which dimensions) and which of its
attributes count its channels is not read off its class: each rule is tried on a copy in float64.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from zerogate.cutting.cut import cut
from zerogate.cutting.plan import make_plan
from zerogate.groups.graph.graph_model import ARGUMENTS, GraphModel
from zerogate.groups.recording.record import Recording
from zerogate.groups.trial.candidates import attributes_equal_to
from zerogate.groups.units import UnitFilter, find_units
from zerogate.masking.norms import FixedWeights, attach, kept_channels
from zerogate.modules.copies import deep_copy
from zerogate.modules.held_numbers import Entry
from zerogate.modules.index import named_tensors
from zerogate.modules.run import KeepFloat64
from zerogate.structure import Norm, SizeAttribute, Structure

_SAME = 1e-12
"""Largest difference, as a share of the largest output, that counts as none: some thousand roundings of float64. With
another rule than its own, a norm is off by a visible share on random inputs, not by roundings."""
_SAMPLE_SIZE = 3
"""Length of the sample along every dimension but the channels': more than 1, so that dimensions a norm runs over show."""


@dataclass(frozen=True)
class NormRule:
    """How a norm is taken over the kept channels."""

    centred: bool
    """Whether it subtracts the mean."""
    over: tuple[int, ...]
    """Dimensions it normalises over, counted from the end."""
    scaled: bool = True
    """Whether what it divides by is a mean, which counts the channels."""
    factor: str = ""
    """Its parameter that multiplies each channel; "" where there is no plain one, and the result is rescaled."""
    shift: str | None = ""
    """What it adds to each channel after that; None where that is not known."""
    sizes: tuple[tuple[str, Entry], ...] = ()
    """Attributes of the module that count its channels, with the place in them where they are tuples or lists."""

    def apply_to(self, norm: Norm) -> Norm:
        """The norm, taken by this rule."""
        centred, over, scaled = self.centred, self.over, self.scaled
        return replace(norm, centred=centred, over=over, scaled=scaled, factor=self.factor, shift=self.shift)


def follow_norms(
    model: nn.Module, recording: Recording, structure: Structure, allowed: UnitFilter, graph: GraphModel | None
) -> Structure:
    """Picks an exact rule for every norm and enters it in the recording.

    Channels of a norm that has none are frozen there. Returns the structure with the rules; found anew if channels were
    frozen or size attributes added.
    """
    rules = {norm.module: rule for norm, rule in exact_rules(model, structure, graph)}
    norms: list[Norm] = []
    for norm in recording.norms:
        rule = rules.get(norm.module)
        if rule is None:
            if norm.module in rules:
                recording.labels.freeze(norm.labels, norm.reason)
            else:
                norms.append(norm)  # none of its channels can go
            continue
        norms.append(rule.apply_to(norm))
        for attribute, entry in rule.sizes:
            key = norm.module, attribute, entry
            recording.size_attributes[key] = SizeAttribute(*key, norm.labels[:, None])
    recording.norms = norms
    if any(rule is None or rule.sizes for rule in rules.values()):
        return find_units(recording, allowed)
    return replace(structure, norms=tuple(rule.apply_to(n) for n in structure.norms if (rule := rules[n.module])))


def exact_rules(
    model: nn.Module, structure: Structure, graph: GraphModel | None = None
) -> Iterator[tuple[Norm, NormRule | None]]:
    """Every norm of the structure with its rule; None where no rule is exact.

    Where there is a graph, the part of it that the norm runs is what will be cut, and not the norm itself.
    """
    known: dict[tuple[object, ...], NormRule | None] = {}
    for norm in structure.norms:
        module = model.get_submodule(norm.module)
        tensors = [(k, tuple(v.shape)) for k, v in module.state_dict().items()]
        alike = type(module), norm.dim, norm.shape, str(tensors), repr(module)
        if graph is not None or alike not in known:
            known[alike] = _find_rule(module, norm, structure, graph)
        yield norm, known[alike]


@dataclass(frozen=True)
class _Trial:
    """One norm with some of its channels removed: what a rule is tried on."""

    gated: nn.Module
    """A dense copy, to put hooks on."""
    whole: nn.Module
    """A copy to cut: of the module, or of the part of the graph that it runs."""
    norm: Norm
    structure: Structure
    """What is cut with the norm's channels, under the names of ``whole``."""
    kept: Tensor
    """Units that stay, bool [units]."""
    x: Tensor
    """A dense input."""

    def find_rule(self, sizes: tuple[tuple[str, Entry], ...], scaled: bool) -> NormRule | None:
        """The rule under which the gated norm equals the cut one on x; None if there is none.

        Args:
            sizes: attributes that are set to the number of channels that stay.
            scaled: whether what it divides by counts the channels.
        """
        counted = tuple(SizeAttribute("", *size, self.norm.labels[:, None]) for size in sizes)
        structure = replace(self.structure, size_attributes=self.structure.size_attributes + counted)
        small = cut(deep_copy(self.whole), make_plan(self.whole, structure, self.kept))
        names = self._own_names() if scaled else []
        with torch.no_grad(), KeepFloat64():
            expected = small(self.x.index_select(self.norm.dim, self._stays.nonzero().flatten()))
            for centred, over in itertools.product((True, False), ((self.norm.dim,), tuple(range(1 - self.x.ndim, 0)))):
                rule = NormRule(centred, over, scaled, sizes=sizes)
                shifts = [*names, ""]
                shift = next((n for n in shifts if self._is_exact(replace(rule, shift=n), expected)), None)
                for factor in names:
                    of_factor = replace(rule, factor=factor, shift=shift)
                    if factor != shift and self._is_exact(of_factor, expected):
                        return of_factor
                if shift is not None:
                    return replace(rule, shift=shift)
        return None

    @property
    def _stays(self) -> Tensor:
        return kept_channels(self.norm, self.kept)

    def _own_names(self) -> list[str]:
        """The norm's own tensors with an entry for each channel; those that are mostly added come first."""
        n = len(self.norm.labels)
        own = {k for k, x in named_tensors(self.gated) if "." not in k and x.numel() == n and x.is_floating_point()}
        return [*reversed(dict.fromkeys(name for name, _ in self.structure.axes if name in own))]

    def _is_exact(self, rule: NormRule, expected: Tensor) -> bool:
        """Whether the gated norm gives, by this rule, what the cut one does: where it has channels, for those that stay."""
        gated = deep_copy(self.gated)
        attach(gated, rule.apply_to(self.norm), FixedWeights(self._stays))
        y = gated(self.x)
        dim, n = self.norm.dim, len(self.norm.labels)
        if y.shape != expected.shape and y.ndim >= -dim and y.shape[dim] == n:
            y = y.index_select(dim, self._stays.nonzero().flatten())
        return y.shape == expected.shape and bool((y - expected).abs().max() <= _SAME * expected.abs().max())


def _find_rule(module: nn.Module, norm: Norm, structure: Structure, graph: GraphModel | None) -> NormRule | None:
    trial = _make_trial(module, norm, structure, graph)
    if trial is None:
        return None
    counts: list[tuple[str, Entry]] = []
    if graph is None:
        known = {(size.attribute, size.entry) for size in trial.structure.size_attributes}
        counts = [size for size in attributes_equal_to(len(norm.labels), module) if size not in known]
    choices = [(), tuple(counts), *((size,) for size in counts if len(counts) > 1)] if counts else [()]
    for scaled, sizes in itertools.product((True, False), choices):
        try:
            rule = trial.find_rule(sizes, scaled)
        except Exception:  # whatever the module does with an input of this size
            continue
        if rule is not None:
            return rule
    return None


def _make_trial(module: nn.Module, norm: Norm, structure: Structure, graph: GraphModel | None) -> _Trial | None:
    """None where nothing can be cut, or not by itself."""
    own = norm.labels[norm.labels >= 0].unique()
    kept = torch.ones(structure.units, dtype=torch.bool)
    kept[own[1::3] if len(own) > 1 else own] = False
    if not kept_channels(norm, kept).any():
        return None
    x = _sample(norm)
    gated = random_double(module)
    whole = gated if graph is None else graph.part(norm.module, deep_copy(gated))
    if whole is None:
        return None
    whole.double()
    return _Trial(gated, whole, norm, _structure_within(whole, norm, structure), kept, x)


def _sample(norm: Norm) -> Tensor:
    """A random input, with another mean for each channel: of the recorded shape, shortened beside the channels."""
    shape = [min(n, _SAMPLE_SIZE) for n in norm.shape]
    shape[norm.dim] = len(norm.labels)
    spread = [1] * len(shape)
    spread[norm.dim] = -1
    means = torch.linspace(-1, 1, shape[norm.dim], dtype=torch.float64)
    return torch.rand(shape, dtype=torch.float64) + means.view(spread)


def random_double(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode on the CPU, in float64, with random weights."""
    twin = deep_copy(module)
    on_meta = any(x.is_meta for x in (*twin.parameters(), *twin.buffers()))
    twin = (twin.to_empty(device="cpu") if on_meta else twin.cpu()).double().eval()
    generator = torch.Generator().manual_seed(0)
    for _, x in named_tensors(twin):
        if isinstance(x, nn.Parameter) or x.is_floating_point():
            x.data = torch.rand(x.shape, generator=generator, dtype=torch.float64) + 0.5
    return twin


def _structure_within(whole: nn.Module, norm: Norm, structure: Structure) -> Structure:
    """The axes and size attributes of the norm alone, under the names that its copy has for them."""
    inside, own, is_graph = f"{norm.module}.", dict(named_tensors(whole)), isinstance(whole, GraphModel)
    names = {n: n.removeprefix(inside) for n, _ in structure.axes if n.startswith(inside) or (is_graph and n in own)}
    sizes: list[SizeAttribute] = []
    for size in structure.size_attributes:
        if size.module == norm.module:
            sizes.append(replace(size, module=""))
        elif is_graph and size.attribute in vars(whole.get_submodule(ARGUMENTS)):
            sizes.append(size)
    axes = {(names[n], d): units for (n, d), units in structure.axes.items() if n in names}
    return Structure(axes, structure.groups, (), frozenset(), {}, size_attributes=tuple(sizes))
