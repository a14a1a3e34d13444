"""Samplers and batch samplers of a script's own (S2): curriculum stage, pacing, weights, position.

Those of torch and torchdata carry nothing between batches but a generator, which is a random stream, and the weights
of a weighted one. Lists that are longer than a few thousand numbers are not read at every step: their length alone is.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from trainmem_audit.privacy import public_text
from trainmem_audit.sources.base import ComponentState, Labels, Saved, plain_value
from trainmem_audit.sources.entries import array_tensor, is_array
from trainmem_audit.sources.restoring import put_attributes, put_tensors

__all__ = ["SamplerSource"]

_LABELS = Labels("S2", "meso", "in-process")
_LONGEST = 4096


class SamplerSource:
    """The samplers of one loader: `NAME` for plain values, `NAME.tensors` for tensors and arrays of numbers."""

    def __init__(self, name: str, loader: Any) -> None:
        self.name = name
        self.loader = weakref.ref(loader)
        self._samplers = [(role, weakref.ref(sampler)) for role, sampler in _samplers(loader)]

    def components(self) -> Iterator[ComponentState]:
        """Give the attributes of the samplers as they are now."""
        values: dict[str, Any] = {}
        tensors: list[tuple[str, torch.Tensor]] = []
        for role, reference in self._samplers:
            sampler = reference()
            if sampler is None:
                continue
            plain: dict[str, Any] = {"class": type(sampler).__qualname__}
            for key, value in sorted(vars(sampler).items()):
                tensor = _tensor(value)
                if tensor is not None:
                    tensors.append((f"{role}.{public_text(key)}", tensor))
                elif not _is_torchs(sampler) and _is_plain(value):
                    plain[key] = value
                elif not _is_torchs(sampler) and isinstance(value, list | tuple):
                    plain[key] = {"length": len(value)}
            if not _is_torchs(sampler):
                values[role] = plain_value(plain)
        if values:
            yield ComponentState(self.name, _LABELS, values=values)
        if tensors:
            yield ComponentState(f"{self.name}.tensors", _LABELS, tensors)

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Write tensors in place and set plain attributes; a list that is too long to be read is left as it is."""
        for component in self.components():
            yield from put_tensors(component, saved)
        kept = saved.get(self.name)
        for role, reference in self._samplers if kept is not None and kept.values else ():
            sampler, values = reference(), dict(kept.values.get(role, {})) if kept is not None else {}
            if sampler is None or not values:
                continue
            for key, value in list(values.items()):
                live = vars(sampler).get(key)
                if key == "class" or (isinstance(live, list | tuple) and value == {"length": len(live)}):
                    del values[key]
                elif isinstance(live, list | tuple) and isinstance(value, dict):
                    yield f"{self.name}: {key} has {len(live)} members now, and another number then"
                    del values[key]
            yield from put_attributes(self.name, vars(sampler), values)


def _samplers(loader: Any) -> Iterator[tuple[str, Any]]:
    """Give the samplers of a loader that have attributes to look at, each once, by their role."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    inner = getattr(batch_sampler, "sampler", None)
    seen: set[int] = set()
    for role, sampler in (
        ("sampler", getattr(loader, "sampler", None)),
        ("batch_sampler", batch_sampler),
        ("batch_sampler.sampler", inner),
    ):
        if sampler is None or id(sampler) in seen or not hasattr(sampler, "__dict__"):
            continue
        seen.add(id(sampler))
        if not isinstance(sampler, type) and type(sampler).__weakrefoffset__ and not _carries_nothing(sampler):
            yield role, sampler


def _carries_nothing(sampler: Any) -> bool:
    return _is_torchs(sampler) and all(_tensor(value) is None for value in vars(sampler).values())


def _is_torchs(sampler: Any) -> bool:
    return type(sampler).__module__.split(".")[0] in ("torch", "torchdata")


def _tensor(value: Any) -> torch.Tensor | None:
    """Return a tensor, or an array of numbers as one; they share memory."""
    return value if isinstance(value, torch.Tensor) else array_tensor(value) if is_array(value) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | set | frozenset | dict):
        members = value.values() if isinstance(value, dict) else value
        return len(value) <= _LONGEST and all(isinstance(member, bool | int | float | str) for member in members)
    return value is None or isinstance(value, bool | int | float | str)
