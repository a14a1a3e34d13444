"""How each component went on over the steps: where it is named, how often it changed, and where from."""

from __future__ import annotations

from dataclasses import dataclass

from trainmem_audit.documents.record import ComponentFacts
from trainmem_audit.documents.steplog import End, Line, Step

__all__ = ["ComponentCollector"]


@dataclass
class _Counts:
    first: int
    last: int = 0
    steps: int = 0
    changes: int = 0
    copies: int = 0
    changed_at_end: bool | None = None


class ComponentCollector:
    """Counts over `step` and `end` lines."""

    def __init__(self) -> None:
        self._counts: dict[str, _Counts] = {}
        self._state: dict[str, str] = {}

    def take(self, line: Line) -> None:
        """Add one line."""
        if isinstance(line, Step):
            self._step(line)
        elif isinstance(line, End):
            for name in line.state.keys() & self._state.keys():
                self._counts[name].changed_at_end = line.state[name] != self._state[name]

    def _step(self, line: Step) -> None:
        before, state = self._state, line.state
        known = set(before.values())
        for name, digest in state.items():
            counts = self._counts.get(name)
            if counts is None:
                counts = self._counts[name] = _Counts(line.i)
            counts.last = line.i
            counts.steps += 1
            old = before.get(name)
            if old is not None and old != digest:
                counts.changes += 1
                counts.copies += digest in known  # of another component: its own was not this
        self._state = state

    def finish(self) -> dict[str, ComponentFacts]:
        """Return the facts by the name of the component."""
        return {name: ComponentFacts.model_validate(vars(counts)) for name, counts in sorted(self._counts.items())}
