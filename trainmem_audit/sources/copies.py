"""Copies of the weights in plain tensors: slow weights, shadow weights of an average that is no module (S1).

A copy is a list, tuple or mapping of tensors with the shapes of the parameters, in their order, that some object holds
by name. It counts when it changes: the best weights so far that wait for the end are none, until they do. What is first
made after the first step is not found. Not here: variables, for which `sources.banks` tells what a loop carries.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from trainmem_audit.privacy import public_text
from trainmem_audit.sources.base import ComponentState, Labels, Saved
from trainmem_audit.sources.called import Watched
from trainmem_audit.sources.restoring import put_tensors

__all__ = ["CopySource", "find_plain_copies"]

_DEPTH = 2
_CONTAINERS = (list, tuple, dict)


class CopySource:
    """One copy of the weights: `average.ATTRIBUTE`, looked up anew at every step."""

    def __init__(self, name: str, holder: Any, attribute: str, names: list[str]) -> None:
        self.name = name
        self.attribute = attribute
        self._names = names
        self._holder = weakref.ref(holder)
        self._watched: Watched | None = Watched()
        self._labels = Labels("S1", "meso", "in-process", _lifetime(holder))

    def is_held_by(self, holder: Any, attribute: str) -> bool:
        """Tell whether it is this copy."""
        return self._holder() is holder and self.attribute == attribute

    def changes(self) -> bool:
        """Tell whether it has changed since this was asked first."""
        if self._watched is not None and self._watched.has_changed(self.tensors()):
            self._watched = None
        return self._watched is None

    def components(self) -> Iterator[ComponentState]:
        """Give the tensors as they are now."""
        if self._watched is None and (tensors := self.tensors()):
            names = self._names if len(self._names) == len(tensors) else map(str, range(len(tensors)))
            yield ComponentState(self.name, self._labels, list(zip(names, tensors, strict=True)))

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Write the tensors in place, also where they have not changed yet."""
        if self.name in saved:
            self._watched = None
        for component in self.components():
            yield from put_tensors(component, saved)

    def tensors(self) -> list[torch.Tensor]:
        """Return its tensors as they are now, whether they have changed or not."""
        holder = self._holder()
        return [] if holder is None else list(_flat(vars(holder).get(self.attribute)))


def find_plain_copies(
    params: list[torch.Tensor], names: list[str], known: Sequence[CopySource] = ()
) -> list[CopySource]:
    """Return the copies of `params` that objects of the script hold, but for those that are `known`.

    Whether they change is for later to see.
    """
    shapes = [param.shape for param in params]
    own = {id(param) for param in params}
    found: list[CopySource] = []
    for holder in _holders():
        for attribute, value in list(vars(holder).items()):
            if not isinstance(value, _CONTAINERS) or not isinstance(attribute, str) or not _is_copy(value, shapes, own):
                continue
            if not any(source.is_held_by(holder, attribute) for source in known):
                alike = sum(source.attribute == attribute for source in (*known, *found))
                name = f"average.{public_text(attribute)}{alike + 1 if alike else ''}"
                found.append(CopySource(name, holder, attribute, names))
    return found


def _holders() -> Iterator[Any]:
    """Give the objects of classes that are no library's of tensors."""
    for item in gc.get_objects():
        kind = type(item)
        if (
            isinstance(kind.__module__, str)  # some of C's have something else there
            and kind.__module__.split(".")[0] not in _LIBRARIES
            and kind.__weakrefoffset__
            and kind.__dictoffset__
            and not issubclass(kind, torch.nn.Module | torch.optim.Optimizer | torch.Tensor | type)
            and any(isinstance(held, _CONTAINERS) for held in gc.get_referents(item))  # `vars` makes a dict of each
        ):
            yield item


_LIBRARIES = sys.stdlib_module_names | {"builtins", "torch", "numpy", "scipy", "trainmem_audit", "pydantic", "rich"}


def _is_copy(value: Any, shapes: list[torch.Size], own: set[int]) -> bool:
    tensors: list[torch.Tensor] = []
    for tensor in _flat(value):
        if len(tensors) == len(shapes) or tensor.shape != shapes[len(tensors)] or id(tensor) in own:
            return False
        tensors.append(tensor)
    return len(tensors) == len(shapes)


def _flat(value: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """Give the tensors of a list, tuple or mapping in order, and those of lists in it."""
    members: Iterable[Any] = value.values() if isinstance(value, dict) else value if value is not None else ()
    for member in members:
        if isinstance(member, torch.Tensor):
            yield member
        elif isinstance(member, list | tuple) and depth < _DEPTH:
            yield from _flat(member, depth + 1)


def _lifetime(holder: Any) -> float | None:
    """Return 1/(1-decay) or k/α in steps, where the holder has numbers of these names."""
    found = {name: value for name, value in vars(holder).items() if type(value) in (int, float)}
    for name in ("decay", "beta", "ema_decay"):
        if 0 <= found.get(name, 1.0) < 1:
            return float(1 / (1 - found[name]))
    alpha, every = found.get("alpha"), found.get("k", found.get("la_steps"))
    return every / alpha if alpha and every and 0 < alpha <= 1 else None
