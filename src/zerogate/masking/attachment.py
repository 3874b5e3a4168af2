"""Gates on the modules of a model.

Nothing of the model is replaced: hooks of the root draw the gates, and while a layer runs, its weight is shadowed by the
masked one (an entry in the module's `__dict__`, which Python finds before the registered parameter).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Size, nn
from torch.utils.hooks import RemovableHandle

from zerogate.errors import ZerogateError
from zerogate.masking import norms
from zerogate.masking.forward import GatedForward
from zerogate.masking.hooks import Begin, ComputedWeightGates, End, Multiply, Owned, Shadow, StatisticsWeights, Unshadow
from zerogate.modules.index import lists_with, modules_by_name, split_name, tied_names
from zerogate.modules.internals import CONVOLUTION, parameters_of, pre_hooks_of


def is_gated(model: nn.Module) -> bool:
    """Whether gates are attached to any module of a model."""
    hooks = (hook for module in modules_by_name(model).values() for hook in pre_hooks_of(module).values())
    return any(isinstance(hook, Begin) for hook in hooks)


class Attachment:
    """The hooks that put gates on a model; none at first.

    Attributes:
        model: the user's; it stays apart from the modules of whoever holds the attachment.
    """

    def __init__(self, model: nn.Module, forward: GatedForward) -> None:
        self.model, self._forward, self._structure = model, forward, forward.layout.structure
        self._parameters_were = _shapes_and_ties(model)
        self._handles: list[RemovableHandle] = []
        self._hosts: dict[str, nn.Module] = {}  # modules with hooks, by name
        self._calls: list[list[list[Owned]]] = []  # what each shadowing hook has shadowed
        self._shadowed: list[Owned] = []  # all that hooks can shadow
        self._gated_forwards: list[ComputedWeightGates] = []
        self._last: list[tuple[nn.Module, int]] = []  # hooks that others may not follow, by number

    @property
    def attached(self) -> bool:
        """Whether the hooks are on the model."""
        return bool(self._handles)

    def attach(self) -> None:
        """Puts the gates (back) on the model.

        Raises `ZerogateError` where its parameters have other shapes than before, or are tied otherwise."""
        if self._handles:
            return
        self.check_unchanged()
        modules = modules_by_name(self.model, twice=True)
        shadows = self._weights_by_reader(modules)
        multiply = self._multiplications() if self._forward.per_example else []
        computed = self._computed_by_reader()
        self._calls = []
        for reader, weights in shadows.items():
            calls: list[list[Owned]] = []
            self._calls.append(calls)
            # first, since other hooks may compute with the weight
            shadow = Shadow(self._forward, weights, calls)
            self._handles.append(modules[reader].register_forward_pre_hook(shadow, prepend=True))
            self._handles.append(modules[reader].register_forward_hook(Unshadow(calls), always_call=True))
        self._handles += [
            self.model.register_forward_pre_hook(Begin(self._forward, self), prepend=True, with_kwargs=True),
            self.model.register_forward_hook(End(self._forward), always_call=True),
        ]
        for reader, number in computed.items():
            gated = ComputedWeightGates(self._forward, number, modules[reader], vars(modules[reader]).get("forward"))
            modules[reader].__dict__["forward"] = gated
            self._gated_forwards.append(gated)
        last = [(path, modules[path].register_forward_pre_hook(hook)) for path, hook in multiply]
        for number, norm in enumerate(self._structure.norms):
            before, after = norms.attach(modules[norm.module], norm, StatisticsWeights(self._forward, number))
            last.append((norm.module, before))
            self._handles.append(after)
        self._handles += [handle for _, handle in last]
        self._last = [(modules[path], handle.id) for path, handle in last]
        self._hosts = {path: modules[path] for path in [*shadows, *computed, *(path for path, _ in last)]}
        self._shadowed = [weight for weights in shadows.values() for weight, _ in weights]
        self._shadowed += [Owned(modules[n.module], n.factor) for n in self._structure.norms if n.factor]

    def _weights_by_reader(self, modules: dict[str, nn.Module]) -> dict[str, list[tuple[Owned, int]]]:
        """For every module in whose forward gated weights are read: how each is held, under all the names that it has, and
        its number."""
        tied = tied_names(self.model)
        shadows: dict[str, list[tuple[Owned, int]]] = {}
        own = {n: name for n, name in enumerate(self._forward.names) if name not in self._forward.layout.computed}
        self._forward.places = {name: _owned(modules, name)[:2] for name in own.values()}
        for number, weight in own.items():
            places = [(_owned(modules, name), number) for name in tied[weight]]
            for reader in dict.fromkeys(c.host for c in self._structure.calls if c.weight == weight):
                shadows.setdefault(reader, []).extend(places)
        return shadows

    def _computed_by_reader(self) -> dict[str, int]:
        """For every module that computes a gated weight the number of this weight."""
        names, computed = self._forward.names, self._forward.layout.computed
        calls = [c for c in self._structure.calls if c.computed and c.weight in computed]
        return {c.host: names.index(c.weight) for c in calls}

    def _multiplications(self) -> list[tuple[str, Multiply]]:
        """For per-example gates the layer of every placement, and the hook that multiplies its input.

        Raises `ZerogateError` for a layer that is not called as a module, and for one whose forward may do more with its
        input than multiply it by this weight."""
        multiply = []
        for number, placement in enumerate(self._forward.layout.placements):
            calls = [c for c in self._structure.calls if c.weight == placement.weight]
            outside = next((c for c in calls if c.host != c.layer or not c.channel_dim), None)
            if outside is not None:
                raise ZerogateError(
                    f"per_example gates need {outside.layer} to be called as a module, but its weight is read in "
                    f"{outside.host or 'the root'}; exclude it with exclude=[{outside.layer!r}]"
                )
            layer = self.model.get_submodule(calls[0].layer)
            if calls[0].layer not in self._structure.plain and not _only_multiplies(layer):
                raise ZerogateError(
                    f"per_example gates multiply what {calls[0].layer or 'the root'} is called with, but its forward, of a "
                    f"{type(layer).__name__}, may read {placement.weight} with something else; exclude it with "
                    f"exclude=[{calls[0].layer!r}], or use per_example=False"
                )
            multiply.append((calls[0].layer, Multiply(self._forward, number, calls[0].channel_dim)))
        return multiply

    def detach(self) -> None:
        """Takes the gates off; the model is the user's plain one again."""
        for handle in self._handles:
            handle.remove()
        for gated in self._gated_forwards:
            gated.remove()
        if self._handles:
            self.uncover()
        self._handles, self._gated_forwards = [], []
        self._forward.forget()

    @contextmanager
    def detached(self) -> Iterator[nn.Module]:
        """The plain model, for as long as the block lasts."""
        attached = self.attached
        self.detach()
        try:
            yield self.model
        finally:
            if attached:
                self.attach()

    def uncover(self) -> None:
        """Takes back the shadows of a forward that was broken off by more than an Exception (Ctrl-C): torch then runs no
        hooks."""
        self._forward.depth = 0
        for calls in self._calls:
            calls.clear()
        for weight in self._shadowed:
            weight.uncover()

    def come_last(self) -> None:
        """Has the hooks that change a layer's input run behind those that were registered later."""
        for module, number in self._last:
            hooks = pre_hooks_of(module)
            if next(reversed(hooks)) != number:
                hooks[number] = hooks.pop(number)

    def check_unchanged(self) -> None:
        """Raises `ZerogateError` where the model is not the one that the gates were made for."""
        change = self._change()
        if change:
            raise ZerogateError(
                f"this {type(self.model).__name__} is not what it was when gates were put on it: {change}; undo that, or "
                "call detach() and sparsify it as it is now"
            )

    def _change(self) -> str:
        """What is different about the model, or nothing."""
        now = _shapes_and_ties(self.model)
        for name, (shape, first) in self._parameters_were.items():
            if name not in now:
                return f"{name} is gone"
            if now[name][0] != shape:
                return f"{name} is {tuple(now[name][0])} and was {tuple(shape)}"
            if now[name][1] != first:
                return f"{name} is no longer tied as it was"
        if self._handles:
            modules = modules_by_name(self.model, twice=True)
            for path, module in self._hosts.items():
                if modules.get(path) is not module:
                    return f"{path} is another module, on which there are no gates"
        return ""


def _only_multiplies(layer: nn.Module) -> bool:
    """Whether a layer is a convolution or linear layer that runs torch's own forward."""
    forward = type(layer).forward
    own = "forward" not in vars(layer) and forward.__module__.startswith("torch.nn.modules.")
    return own and isinstance(layer, (CONVOLUTION, nn.Linear))


def _owned(modules: Mapping[str, nn.Module], name: str) -> Owned:
    """How the module of a parameter of this name holds it."""
    owner, attribute = split_name(name)
    parameter = parameters_of(modules[owner])[attribute]
    return Owned(modules[owner], attribute, () if parameter is None else lists_with(modules[owner], parameter))


def _shapes_and_ties(model: nn.Module) -> dict[str, tuple[Size, str]]:
    """Name of every parameter → its shape, and the first name of the same tensor."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    return {name: (p.shape, first.setdefault(id(p), name)) for name, p in parameters.items()}
