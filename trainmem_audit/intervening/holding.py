"""Holds components that an intervention has frozen: what training writes into them is taken back.

A copy of the state is written back in place, before and after each forward and step: so the flag of a module (`train`,
`eval`) makes no difference, and a frozen average is never used with the update that the script gave it. Between two of
these moments the script may see what it wrote. Not here: when they are (`recording.session`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from trainmem_audit.errors import UsageError
from trainmem_audit.intervening.targets import Absent, Memory, Target, find, put
from trainmem_audit.sources.base import Saved
from trainmem_audit.sources.restoring import write_tensor

__all__ = ["Hold"]


@dataclass(frozen=True)
class Hold:
    """The components that are held, with what they held when they were frozen."""

    memory: Memory
    kept: tuple[tuple[str, Saved], ...]

    @classmethod
    def of(cls, memory: Memory, targets: Iterable[Target]) -> Hold:
        """Hold `targets` as they are now."""
        kept = []
        for target in targets:
            name = f"{target.name}/{target.within}" if target.within else target.name
            tensors = target.component.tensors
            saved = Saved(values=target.component.values) if tensors is None else Saved(target.copies())
            kept.append((name, saved))
        return cls(memory, tuple(kept))

    def take_back(self) -> None:
        """Write the state back where it is another one now; a component that is gone for the moment is left alone."""
        with torch.no_grad(), torch._C.DisableTorchFunction():
            for name, saved in self.kept:
                try:
                    found = find(self.memory, name)
                except UsageError:  # the script's objects are gone
                    continue
                for target in [] if isinstance(found, Absent) else found:
                    _write_back(target, saved)


def _write_back(target: Target, saved: Saved) -> None:
    if saved.tensors is None:
        if target.component.values != saved.values:
            list(target.source.restore({target.name: saved}))
        return
    now = dict(target.tensors())
    if now.keys() == saved.tensors.keys():
        changed = {name: value for name, value in saved.tensors.items() if not _is_same(now[name], value)}
        if changed and target.is_aliased:
            for name, value in changed.items():
                write_tensor(now[name].data, value)  # a backward pass may be under way: no version is counted up
        elif changed:
            put(target, changed)


def _is_same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
