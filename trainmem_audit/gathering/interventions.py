"""What was done to the memory of the run, line by line, and at which steps predictions were kept."""

from __future__ import annotations

from trainmem_audit.documents.record_study import InterventionFacts
from trainmem_audit.documents.steplog import Component, InterventionLine, Inventory, Line, Observe
from trainmem_audit.pairing import names_component, value_of

__all__ = ["InterventionCollector"]

_MOST = 1000


class InterventionCollector:
    """Takes `intervention`, `observe` and `inventory` lines."""

    def __init__(self) -> None:
        self._components: dict[str, Component] = {}
        self._found: list[InterventionFacts] = []
        self._observed: list[int] = []

    def take(self, line: Line) -> None:
        """Add one line."""
        match line:
            case Inventory():
                self._components.update(line.components or {})
            case Observe() if len(self._observed) < _MOST:
                self._observed.append(line.i)
            case InterventionLine() if len(self._found) < _MOST:
                self._found.append(self._facts(line))

    def _facts(self, line: InterventionLine) -> InterventionFacts:
        intervention, rng = line.intervention, line.rng
        names = rng.before.keys() | rng.after.keys()
        moved = sorted(name for name in names if rng.before.get(name) != rng.after.get(name))
        named = sorted(name for name in self._components if names_component([intervention], name))
        return InterventionFacts(
            step=line.i,
            intervention=intervention,
            changed=line.changed,
            not_named=tuple(name for name in line.changed if name not in named),
            moved=() if intervention.primitive == "fork" else tuple(moved),
            sources={name: self._components[name].source for name in named},
            values={
                name: value_of(intervention, line.state.after, self._components, name)
                for name in line.changed
                if name in named
            },
        )

    def finish(self) -> tuple[tuple[int, ...], tuple[InterventionFacts, ...]]:
        """Return the steps with predictions, and the interventions."""
        return tuple(self._observed), tuple(self._found)
