"""Modules that no optimizer trains, that are called, and that change all the same: teachers, averages, target networks.

A module counts as changing as soon as its tensors differ from what they were when it was first called. At the first
steps they are compared by digest, then by version counters and addresses, since a large frozen extractor should cost
nothing. What is changed only through `.data`, and for the first time after those steps, is therefore not seen.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch

from trainmem_audit.digests import tensor_digest
from trainmem_audit.privacy import public_name
from trainmem_audit.sources.base import Saved

__all__ = ["CalledModules", "Watched"]

_BY_DIGEST = 4
"""How often a module is compared by digest: before the first step and after the first three, say."""


class CalledModules:
    """The modules whose outermost forward ran, and whether they have changed since.

    Parameters
    ----------
    params_only:
        Whether the parameters alone are looked at: the BatchNorm of a frozen part of a model that is trained moves.
    """

    def __init__(self, params_only: bool = False) -> None:
        self._params_only = params_only
        self._watched: weakref.WeakKeyDictionary[torch.nn.Module, Watched] = weakref.WeakKeyDictionary()

    def add(self, module: torch.nn.Module) -> None:
        """Note a module that was called, or found as the copy of a trained one."""
        if module not in self._watched:
            self._watched[module] = Watched(done=not any(True for _ in self._tensors(module)))

    def forget(self, condition: Callable[[torch.nn.Module], bool]) -> None:
        """Forget the modules of which `condition` is true."""
        for module in list(self._watched):
            if condition(module):
                del self._watched[module]

    def changed(self, is_known: Callable[[torch.nn.Module], bool]) -> list[torch.nn.Module]:
        """Return the modules that have changed, each once; those that are known already are forgotten."""
        found: list[torch.nn.Module] = []
        for module, watched in list(self._watched.items()):
            if watched.done:
                continue
            known = is_known(module)
            if not known and not watched.has_changed(list(self._tensors(module))):
                continue
            watched.done = True
            if not known:
                found.append(module)
        return found

    def _tensors(self, module: torch.nn.Module) -> Iterator[torch.Tensor]:
        yield from module.parameters()
        if not self._params_only:
            yield from module.buffers()

    def fitting(
        self,
        saved: Mapping[str, Saved],
        known: Collection[str],
        is_known: Callable[[torch.nn.Module], bool],
        claimed: Collection[int] = (),
    ) -> list[tuple[str, torch.nn.Module]]:
        """Return the teachers that `saved` holds and that are not `known`, each with a module that has its tensors.

        `claimed` are the ids of tensors that others report: an average may hold what it averages.
        """
        missing: dict[str, dict[str, torch.Tensor]] = {}
        for component, kept in saved.items():
            name = component.split(".")[0]
            if name.startswith("teacher") and name not in known:
                missing.setdefault(name, {}).update(kept.tensors or {})
        found: list[tuple[str, torch.nn.Module]] = []
        for module, watched in list(self._watched.items()):
            named = next((name for name in sorted(missing) if _fits(module, missing[name], claimed)), None)
            if named is not None and not watched.done and not is_known(module):
                watched.done = True
                found.append((named, module))
                del missing[named]
        return found


def _fits(module: torch.nn.Module, kept: Mapping[str, torch.Tensor], claimed: Collection[int]) -> bool:
    """Tell whether a module has tensors of these names and forms, and no parameter besides that nobody else reports."""
    own = {public_name(name): tensor for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    if any(public_name(name) not in kept and id(param) not in claimed for name, param in module.named_parameters()):
        return False
    return all(
        name in own and (own[name].shape, own[name].dtype) == (tensor.shape, tensor.dtype)
        for name, tensor in kept.items()
    )


class Watched:
    """Some tensors, and whether they have changed since they were looked at first."""

    def __init__(self, done: bool = False) -> None:
        self.done = done
        self._times = 0
        self._digests: list[bytes] = []
        self._marks: list[Any] = []

    def has_changed(self, tensors: list[torch.Tensor]) -> bool:
        """Tell whether they have changed since this was asked for the first time."""
        marks = [(tensor.data_ptr(), -1 if tensor.is_inference() else tensor._version) for tensor in tensors]
        first = self._times == 0
        by_digest = self._times < _BY_DIGEST
        self._times += by_digest
        digests = _digests(tensors) if by_digest or marks != self._marks else self._digests
        changed = not first and digests != self._digests
        self._digests, self._marks = digests, marks
        return changed


def _digests(tensors: Iterable[torch.Tensor]) -> list[bytes]:
    return [tensor_digest(tensor) for tensor in tensors]
