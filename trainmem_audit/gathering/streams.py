"""The random streams of loader workers: which of them started from one state, and were drawn from."""

from __future__ import annotations

from trainmem_audit.documents.record_order import StreamFacts, WorkerCollision
from trainmem_audit.documents.steplog import Inventory, Line

__all__ = ["StreamCollector"]

_MOST_STARTS = 2**16
_MOST_COLLISIONS = 16


class StreamCollector:
    """Takes the `workers` of inventory lines."""

    def __init__(self) -> None:
        self._starts = 0
        self._first: dict[tuple[str, str], str] = {}
        self._collisions: list[WorkerCollision] = []

    def take(self, line: Line) -> None:
        """Add one line."""
        if not isinstance(line, Inventory):
            return
        for worker in line.workers or ():
            self._starts += 1
            here = f"{worker.loader[:150]}/{worker.epoch}/{worker.worker}"
            for name in worker.consumed:
                self._start(name, worker.streams.get(name), here)

    def _start(self, name: str, digest: str | None, here: str) -> None:
        if digest is None:
            return
        first = self._first.get((name, digest))
        if first is not None:
            if len(self._collisions) < _MOST_COLLISIONS:
                self._collisions.append(WorkerCollision(stream=name, first=first, second=here))
        elif len(self._first) < _MOST_STARTS:
            self._first[name, digest] = here

    def finish(self) -> StreamFacts:
        """Return the facts."""
        return StreamFacts(worker_starts=self._starts, worker_collisions=tuple(self._collisions))
