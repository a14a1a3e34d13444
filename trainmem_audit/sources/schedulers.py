"""Learning-rate schedulers (S1): the plain values of every attribute but the optimizer.

`state_dict()` is not called, because scripts override it.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler

from trainmem_audit.sources.base import ComponentState, Labels, Saved, plain_value
from trainmem_audit.sources.restoring import put_attributes

__all__ = ["SchedulerSource", "find_schedulers"]

_LABELS = Labels("S1", "macro", "checkpointed")


class SchedulerSource:
    """One scheduler: the component `NAME`."""

    def __init__(self, name: str, scheduler: Any) -> None:
        self.name = name
        self.reference = weakref.ref(scheduler)

    def components(self) -> Iterator[ComponentState]:
        """Give the scheduler's counters and settings as they are now."""
        scheduler = self.reference()
        if scheduler is None:
            return
        attributes = {key: value for key, value in vars(scheduler).items() if key not in _NOT_MEMORY}
        values = {"class": type(scheduler).__qualname__, **plain_value(attributes)}
        yield ComponentState(self.name, _LABELS, values=values)

    def restore(self, saved: Mapping[str, Saved]) -> Iterator[str]:
        """Set the attributes that differ; functions of a `LambdaLR` are the script's and stay."""
        scheduler, kept = self.reference(), saved.get(self.name)
        if scheduler is not None and kept is not None:
            values = {key: value for key, value in kept.values.items() if key != "class"}
            yield from put_attributes(self.name, vars(scheduler), values)


_NOT_MEMORY = frozenset({"optimizer", "_get_lr_called_within_step", "_is_initial", "verbose"})


def find_schedulers(optimizer: torch.optim.Optimizer, known: set[int]) -> list[LRScheduler]:
    """Return the schedulers of `optimizer` that were made before anybody listened, by asking the garbage collector.

    Those that another one holds (`SequentialLR`) come out of it by themselves.
    """
    found = [
        item
        for item in gc.get_objects()
        if issubclass(type(item), LRScheduler) and id(item) not in known and vars(item).get("optimizer") is optimizer
    ]
    inner = {id(part) for item in found for part in vars(item).get("_schedulers", ())}
    return [item for item in found if id(item) not in inner]
