"""Learning-rate schedulers (S1): the plain values of every attribute but the optimizer.

`state_dict()` is not called, because scripts override it.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

from trainmem_audit.sources.base import ComponentState, Labels, plain_value

__all__ = ["SchedulerSource"]

_LABELS = Labels("S1", "macro", "checkpointed")


class SchedulerSource:
    """One scheduler: the component `NAME`."""

    def __init__(self, name: str, scheduler: Any) -> None:
        self.name = name
        self._scheduler = weakref.ref(scheduler)

    def components(self) -> Iterator[ComponentState]:
        """Give the scheduler's counters and settings as they are now."""
        scheduler = self._scheduler()
        if scheduler is None:
            return
        attributes = {key: value for key, value in vars(scheduler).items() if key not in _NOT_MEMORY}
        values = {"class": type(scheduler).__qualname__, **plain_value(attributes)}
        yield ComponentState(self.name, _LABELS, values=values)


_NOT_MEMORY = frozenset({"optimizer", "_get_lr_called_within_step", "_is_initial", "verbose"})
