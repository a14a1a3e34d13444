"""What the `step` lines hold, counted; and whether their learning rates are those of the hyper-parameters."""

from __future__ import annotations

from collections import Counter
from typing import Any

from trainmem_audit.documents.record import StepFacts
from trainmem_audit.documents.steplog import Inventory, Line, Step

__all__ = ["StepCollector"]

_MOST_SIZES = 16
_SUFFIX = ".hyper"


class StepCollector:
    """Counts over `step` lines."""

    def __init__(self) -> None:
        self._count: Counter[str] = Counter()
        self._batches: Counter[str] = Counter()
        self._rates: dict[str, tuple[str, ...] | None] = {}
        self._lr_differs: int | None = None

    def take(self, line: Line) -> None:
        """Add one line."""
        if isinstance(line, Inventory):
            for name, component in (line.components or {}).items():
                if component.values is not None:
                    self._hyper(name, component.values)
        elif isinstance(line, Step):
            self._step(line)

    def _step(self, line: Step) -> None:
        count, order = self._count, line.order
        count["count"] += 1
        count["skipped"] += line.skipped is True
        count["with_order"] += order is not None
        count["with_index"] += order is not None and order.index is not None
        count["with_inputs"] += line.inputs is not None
        if order is not None:
            text = str(order.batches)
            known = text in self._batches or len(self._batches) < _MOST_SIZES
            self._batches[text if known else "more"] += 1
        for name, values in (line.values or {}).items():
            self._hyper(name, values)
        rates = self._rates.get((line.optimizer or "optimizer") + _SUFFIX)
        given = (line.scalars or {}).get("lr")
        if self._lr_differs is None and rates is not None and given is not None and rates != tuple(given):
            self._lr_differs = line.i

    def _hyper(self, name: str, values: Any) -> None:
        if name.endswith(_SUFFIX):
            self._rates[name] = _learning_rates(values)

    def finish(self) -> StepFacts:
        """Return the facts."""
        return StepFacts(**self._count, batches=dict(self._batches), lr_differs=self._lr_differs)


def _learning_rates(values: Any) -> tuple[str, ...] | None:
    """Return the learning rates of hyper-parameters; `None` where there are none, or they are no floats."""
    groups = values.get("groups", [values]) if isinstance(values, dict) else None
    found = [group.get("lr") for group in groups if isinstance(group, dict)] if isinstance(groups, list) else []
    rates = tuple(rate for rate in found if isinstance(rate, str))
    return rates if rates and len(rates) == len(found) else None
