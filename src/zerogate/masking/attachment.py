"""Gates on the modules of a model.

Nothing of the model is replaced: hooks of the root draw the gates, and while a layer runs, its weight is shadowed by the
masked one (an entry in the module's `__dict__`, which Python finds before the registered parameter).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from zerogate.errors import ZerogateError
from zerogate.masking import norms
from zerogate.masking.forward import GatedForward
from zerogate.masking.hooks import Begin, End, Multiply, Shadow, Unshadow, Weights
from zerogate.masking.placement import Placement
from zerogate.modules.index import modules_by_name, owner_of, tied_names
from zerogate.modules.internals import pre_hooks_of
from zerogate.structure import Structure


class Attachment:
    """The hooks that put gates on a model; none at first."""

    def __init__(
        self, model: nn.Module, structure: Structure, placements: Sequence[Placement], gating: GatedForward
    ) -> None:
        self._model, self._structure, self._placements, self._gating = model, structure, placements, gating
        self._parameters_were = _parameters(model)
        self._handles: list[Any] = []
        self._hosts: dict[str, nn.Module] = {}  # modules with hooks, by name
        self._shadowing: list[list[Any]] = []  # what each hook has shadowed
        self._shadowed: list[tuple[nn.Module, str]] = []  # all that hooks can shadow
        self._last: list[tuple[nn.Module, int]] = []  # hooks that others may not follow, by number

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def attach(self) -> None:
        """Puts the gates (back) on the model.

        Raises `ZerogateError` where its parameters have other shapes than before, or are tied otherwise."""
        if self._handles:
            return
        self.check_unchanged()
        modules = modules_by_name(self._model, twice=True)
        tied = tied_names(self._model)
        shadows: dict[str, list[tuple[nn.Module, str, int]]] = {}
        multiply: list[tuple[str, Multiply]] = []
        self._gating.places = [(modules[owner_of(name)], name.rpartition(".")[2]) for name in self._gating.names]
        for number, weight in enumerate(self._gating.names):
            places = [(modules[owner_of(name)], name.rpartition(".")[2], number) for name in tied[weight]]
            for host in dict.fromkeys(c.host for c in self._structure.calls if c.weight == weight):
                shadows.setdefault(host, []).extend(places)
        for number, placement in enumerate(self._placements if self._gating.per_example else ()):
            calls = [c for c in self._structure.calls if c.weight == placement.weight]
            outside = next((c for c in calls if c.host != c.layer), None)
            if outside is not None:
                raise ZerogateError(
                    f"per_example gates need {outside.layer} to be called as a module, but its weight is read in "
                    f"{outside.host or 'the root'}; exclude it with exclude=[{outside.layer!r}]"
                )
            multiply.append((calls[0].layer, Multiply(self._gating, number, calls[0].channel_dim)))
        self._handles = [
            self._model.register_forward_pre_hook(Begin(self._gating, self), prepend=True, with_kwargs=True),
            self._model.register_forward_hook(End(self._gating), always_call=True),
        ]
        self._shadowing = []
        for host, held in shadows.items():
            put: list[Any] = []
            self._shadowing.append(put)
            self._handles.append(modules[host].register_forward_pre_hook(Shadow(self._gating, held, put)))
            self._handles.append(modules[host].register_forward_hook(Unshadow(put), always_call=True))
        last = [(path, modules[path].register_forward_pre_hook(hook)) for path, hook in multiply]
        for number, norm in enumerate(self._structure.norms):
            before, after = norms.attach(modules[norm.module], norm, Weights(self._gating, number))
            last.append((norm.module, before))
            self._handles.append(after)
        self._handles += [handle for _, handle in last]
        self._last = [(modules[path], handle.id) for path, handle in last]
        self._hosts = {path: modules[path] for path in [*shadows, *(path for path, _ in last)]}
        held_by = [place for held in shadows.values() for place in held]
        self._shadowed = [(module, attribute) for module, attribute, _ in held_by]
        self._shadowed += [(modules[norm.module], "weight") for norm in self._structure.norms]

    def detach(self) -> None:
        """Takes the gates off; the model is the user's plain one again."""
        for handle in self._handles:
            handle.remove()
        if self._handles:
            self.uncover()
        self._handles = []
        self._gating.forget()

    def uncover(self) -> None:
        """Takes back the shadows of a forward that was broken off by more than an Exception (Ctrl-C): torch then runs no
        hooks."""
        self._gating.depth = 0
        for put in self._shadowing:
            put.clear()
        for owner, attribute in self._shadowed:
            owner.__dict__.pop(attribute, None)

    def come_last(self) -> None:
        """Lets hooks that change a layer's input run after those that were registered later."""
        for module, number in self._last:
            hooks = pre_hooks_of(module)
            if next(reversed(hooks)) != number:
                hooks[number] = hooks.pop(number)

    def check_unchanged(self) -> None:
        """Raises `ZerogateError` where the model is not the one that the gates were made for."""
        now, found = _parameters(self._model), ""
        for name, (shape, first) in self._parameters_were.items():
            if name not in now:
                found = f"{name} is gone"
            elif now[name][0] != shape:
                found = f"{name} is {tuple(now[name][0])} and was {tuple(shape)}"
            elif now[name][1] != first:
                found = f"{name} is no longer tied as it was"
            if found:
                break
        modules = dict(self._model.named_modules(remove_duplicate=False))
        for path, module in self._hosts.items() if self._handles and not found else ():
            if modules.get(path) is not module:
                found = f"{path} is another module, on which there are no gates"
        if found:
            raise ZerogateError(
                f"this {type(self._model).__name__} is not what it was when gates were put on it: {found}; undo that, or "
                "call detach() and sparsify it as it is now"
            )


def _parameters(model: nn.Module) -> dict[str, tuple[torch.Size, str]]:
    """Name of every parameter → its shape, and the first name of the same tensor."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    first: dict[int, str] = {}
    return {name: (p.shape, first.setdefault(id(p), name)) for name, p in parameters.items()}
