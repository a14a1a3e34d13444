"""The `[back_flow]` table of a `study.toml`, and what its plan must be as a whole.

Regimes are named (those of the published table), or written out in tables of their own. Not here: reading the file, and
all other tables of it (`study.plan`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol, get_args

from trainmem_audit.canonical import float_text, parse_float_text
from trainmem_audit.documents.backflow import NO_AUGMENTATION, REGIME_NAME, REGIMES, BackFlowPlan, Sense

__all__ = ["back_flow_members", "back_flow_problems"]

_REPEATS, _DIAGNOSTIC_REPEATS, _WEIGHT_DECAY, _CLIP = 16, 4, 1e-4, 1.0


class _Table(Protocol):
    """What is needed of `study.plan`'s tables."""

    def __contains__(self, name: str) -> bool: ...
    def items(self) -> Any: ...
    def get(self, name: str, kind: Any, expected: str, default: Any = None) -> Any: ...
    def count(self, name: str, low: int, high: int, default: int | None = None) -> int: ...
    def real(self, name: str, low: float, high: float, default: float | None = None) -> str: ...
    def table(self, name: str, kind: str = "") -> Any: ...
    def no(self, name: str, expected: str, got: Any, remedy: str = "") -> Any: ...


def back_flow_members(table: _Table, note: Callable[[str], None]) -> dict[str, Any]:
    """Return the members of `BackFlowPlan` that a table declares; what is filled in is noted.

    Raises
    ------
    UsageError
        Naming the member that is wrong.
    """
    arguments = table.get("arguments", list, "a list of texts", [])
    if not all(isinstance(text, str) for text in arguments):
        table.no("arguments", "a list of texts", arguments)
    senses = table.get("batchNorm", (str, list), " or ".join(get_args(Sense)), "batch-statistics")
    senses = [senses] if isinstance(senses, str) else senses
    if not senses or any(sense not in get_args(Sense) for sense in senses) or len(set(senses)) < len(senses):
        table.no("batchNorm", f"{' or '.join(get_args(Sense))}, or a list of both", senses)
    if "batchNorm" not in table:
        note("back-flow: BatchNorm frozen means that batch statistics are used and the running ones do not move")
    repeats = table.count("repeats", 1, 1000, _REPEATS)
    return {
        "entry": table.get("entry", str, "FILE.py:FUNCTION, the factory of the subject"),
        "arguments": arguments,
        "baseSteps": table.count("baseSteps", 1, 2**31),
        "regimes": _regimes(table, note),
        "repeats": repeats,
        "batch": table.count("batch", 1, 2**20),
        "batchNorm": senses,
        "weightDecay": _from_zero(table, "weightDecay", math.inf, _WEIGHT_DECAY),
        "clip": table.real("clip", 0, math.inf, _CLIP),
        "diagnosticRepeats": table.count("diagnosticRepeats", 0, repeats, min(repeats, _DIAGNOSTIC_REPEATS)),
    }


def _regimes(table: _Table, note: Callable[[str], None]) -> dict[str, Any]:
    if "regimes" not in table:
        note(f"back-flow: the published regimes, {', '.join(REGIMES)}")
        return {name: regime.to_json() for name, regime in REGIMES.items()}
    named = table.get("regimes", (list, dict), "names of published regimes, or tables of others")
    if isinstance(named, list):
        if not named or any(not isinstance(name, str) or name not in REGIMES for name in named):
            table.no("regimes", ", ".join(REGIMES), named)
        return {name: REGIMES[name].to_json() for name in named}
    inner = table.table("regimes")
    odd = next((name for name, _ in inner.items() if not re.fullmatch(REGIME_NAME, name)), None)
    if odd is not None:
        inner.no(odd, "a name of lower-case letters, digits and hyphens: it is that of a folder", odd)
    return {name: _regime(inner.table(name, "regime")) for name, _ in inner.items()}


def _regime(table: _Table) -> dict[str, Any]:
    words = ("first", "other", "second")
    augmentations = {
        word: table.get(word, str, f"the name of an augmentation, or {NO_AUGMENTATION}", NO_AUGMENTATION)
        for word in words
    }
    return {
        "steps": table.count("steps", 1, 24),
        "lr": table.real("lr", 0, math.inf),
        "momentum": _from_zero(table, "momentum", 1),
        **augmentations,
        "overlap": _from_zero(table, "overlap", 1),
        "sameClasses": table.get("sameClasses", bool, "true or false", False),
    }


def _from_zero(table: _Table, name: str, high: float, default: float | None = None) -> str:
    """Return a number from 0 to `high` as float text, both inclusive where they are finite."""
    expected = "a number, 0 or more" if math.isinf(high) else f"a number from 0 to {high:g}"
    value = table.get(name, (int, float), expected, default)
    if not (math.isfinite(value) and 0 <= value <= high):
        table.no(name, expected, value)
    return float_text(float(value))


def back_flow_problems(plan: BackFlowPlan) -> Iterator[tuple[str, str, str]]:
    """Yield what is wrong with a plan as a whole: the place, what is expected, and what there is."""
    for name, regime in plan.regimes.items():
        for member, low, high in (("overlap", 0.0, 1.0), ("momentum", 0.0, 1.0), ("lr", 0.0, math.inf)):
            value = parse_float_text(getattr(regime, member))
            if not low <= value <= high:
                yield f"back_flow.regimes.{name}.{member}", f"from {low:g} to {high:g}", f"{value:g}"
    if plan.diagnostic_repeats > plan.repeats:
        expected = f"at most repeats = {plan.repeats}"
        yield "back_flow.diagnostic_repeats", expected, str(plan.diagnostic_repeats)
