"""Gathers, in one pass over the lines of a step log and its sample indices, the facts that rules need.

Memory does not grow with the steps: every collector keeps counts and digests, by names whose number the log reader
bounds. A collector is one class in a file of its own with `take` (a checked line) and, if it wants the indices,
`indices`. Not here: any judgement (`validators/`), any check of the bytes (`steplog`, `sidefiles`).
"""

from __future__ import annotations

from trainmem_audit.documents.record import Facts
from trainmem_audit.documents.steplog import End, Line
from trainmem_audit.gathering.components import ComponentCollector
from trainmem_audit.gathering.interventions import InterventionCollector
from trainmem_audit.gathering.order import OrderCollector
from trainmem_audit.gathering.steps import StepCollector
from trainmem_audit.gathering.streams import StreamCollector

__all__ = ["Gatherer"]


class Gatherer:
    """Takes the lines of one log in their order: `take(line)`, then `indices(chunk)` for those of a `step` line."""

    def __init__(self) -> None:
        self._started = False
        self._ended = False
        self._steps = StepCollector()
        self._components = ComponentCollector()
        self._order = OrderCollector()
        self._streams = StreamCollector()
        self._interventions = InterventionCollector()

    def take(self, line: Line) -> None:
        """Add one line that the reader has checked."""
        self._started = True
        self._ended = isinstance(line, End)
        self._steps.take(line)
        self._components.take(line)
        self._order.take(line)
        self._streams.take(line)
        self._interventions.take(line)

    def indices(self, chunk: bytes) -> None:
        """Add sample indices (int64, little-endian) of the step that was taken last; `sidefiles` checks them later."""
        self._order.indices(chunk)

    def finish(self, whole: bool) -> Facts | None:
        """Return the facts, or `None` if there was no line; `whole` says whether the log was read to its end."""
        if not self._started:
            return None
        observed, interventions = self._interventions.finish()
        return Facts(
            whole=whole,
            ended=self._ended,
            steps=self._steps.finish(),
            components=self._components.finish(),
            order=self._order.finish(),
            streams=self._streams.finish(),
            observed=observed,
            interventions=interventions,
        )
