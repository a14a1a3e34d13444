"""Which runs to make, and what they prove. Pure: runs are made and compared by a `Runner`.

1. Runs as the user's own would be, until one differs from the first. None does: equal.
2. Two more, in which the values of the step that differs are written aside, and who asks for clocks and the like is
   watched: a pin that nobody would notice needs no experiment.
3. Factor by factor, the most suspected first: runs with that factor pinned, until one differs. A factor *cures* if none
   of them does. How many it takes to say so depends on how often two unpinned runs are equal (`runs_needed`).
4. After three factors that do not cure, all are pinned together. If that does not help, no single one will.
5. If all together cure and none alone, they are let go one by one; those that cannot be are the causes.
6. A cause that consists of parts is narrowed down to those in the same way.
7. Last, unpinned runs again: two of them have to differ. And pinned ones again, as many as before: of several factors
   that were tried, one may have seemed to cure by luck.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Protocol

from trainmem_audit.documents.findings import Difference
from trainmem_audit.documents.twice import Cause, Experiment, Place, Twice
from trainmem_audit.pinning.pins import Pin
from trainmem_audit.twice.factors import Factor, Facts, factor, in_order_of_suspicion

__all__ = ["Attempt", "Runner", "Verdict", "runs_needed", "search"]

_LEAST = 3
_MOST = 15
_LUCK = 0.02
_PAIRED = 8
_ALONE_FIRST = 3

Pins = frozenset[Pin]


@dataclass(frozen=True)
class Attempt:
    """One run. `failed` says why it is of no use; `stopped` why it ended before its time, with steps that count."""

    number: int
    steps: int = 0
    failed: str = ""
    stopped: str = ""
    dumped: int | None = None


@dataclass(frozen=True)
class Verdict:
    """A comparison of two runs: the first difference of what is trained, and streams that differ without effect."""

    steps: int
    difference: Difference | None = None
    idle: tuple[str, ...] = ()


class Runner(Protocol):
    """Makes runs and compares them."""

    def run(self, pins: Pins, dump: int | None = None) -> Attempt:
        """Run the script from a fresh copy, with `pins`; or watch it, and write the state of step `dump` aside."""

    def compare(self, a: Attempt, b: Attempt) -> Verdict:
        """Compare two runs that have not failed."""

    def measure(self, difference: Difference, a: Attempt, b: Attempt) -> Difference:
        """Return `difference` with the sizes of what differs, if the state of its step was written aside."""

    def facts(self) -> Facts:
        """Return what the runs so far tell about which factors can matter."""

    def places(self, pins: Pins) -> tuple[Place, ...]:
        """Return the lines of the script that asked for what `pins` hold still."""


@dataclass
class _Search:
    runner: Runner
    say: Callable[[Experiment], None]
    enough: int = _LEAST
    unpinned: list[Attempt] = field(default_factory=list)
    experiments: list[Experiment] = field(default_factory=list)
    rows: dict[tuple[str, ...], Pins] = field(default_factory=dict)
    cured: dict[Pins, list[Attempt]] = field(default_factory=dict)
    made: dict[Pins, bool] = field(default_factory=dict)

    def note(self, experiment: Experiment) -> Experiment:
        self.experiments.append(experiment)
        self.say(experiment)
        return experiment

    def add_unpinned(self, *attempts: Attempt) -> None:
        """Learn from unpinned runs how often two are equal, and so how many pinned ones have to be."""
        self.unpinned += [item for item in attempts if not item.failed]
        pairs = list(combinations(self.unpinned, 2))
        equal = sum(self.runner.compare(*pair).difference is None for pair in pairs)
        self.enough = runs_needed(equal / len(pairs))

    def able(self, factors: Sequence[Factor]) -> list[Factor]:
        """Return those factors whose pin did not break the script."""
        broken = {name for item in self.experiments if item.outcome == "failed" for name in item.factors}
        return [item for item in factors if item.name not in broken]

    def cures(self, factors: Sequence[Factor], label: tuple[str, ...] = ()) -> bool:
        """Make the experiment that pins `factors`, and tell whether all runs were equal."""
        names = label or tuple(item.name for item in factors)
        pins = _together(factors)
        if pins in self.made:
            return self.made[pins]
        found = self._until_different(names, pins, [self.runner.run(pins)], self.enough)
        self.note(found)
        self.made[pins] = found.outcome == "equal"
        return self.made[pins]

    def cures_again(self, factors: Sequence[Factor]) -> bool:
        """Make an experiment that has cured go on for as many runs again; its row then tells of all."""
        pins = _together(factors)
        attempts = self.cured[pins]
        row = next(
            row for row in reversed(self.experiments) if row.outcome == "equal" and self.rows[row.factors] == pins
        )
        found = self._until_different(row.factors, pins, attempts, len(attempts) + max(self.enough, _LEAST))
        self.experiments[self.experiments.index(row)] = found
        self.say(found)
        return found.outcome == "equal"

    def _until_different(self, names: tuple[str, ...], pins: Pins, attempts: list[Attempt], enough: int) -> Experiment:
        """Run on after `attempts`, which are equal, until a run differs from the first or `enough` are equal."""
        self.rows[names] = pins
        while not attempts[-1].failed and len(attempts) < enough:
            attempts.append(self.runner.run(pins))
            different = None if attempts[-1].failed else self.runner.compare(attempts[0], attempts[-1]).difference
            if different is not None:
                return _differs(names, len(attempts), different)
        if attempts[-1].failed:
            return Experiment(factors=names, outcome="failed", detail=attempts[-1].failed)
        self.cured[pins] = attempts
        return Experiment(factors=names, outcome="equal", runs=len(attempts))


def _together(factors: Sequence[Factor]) -> Pins:
    return frozenset(pin for item in factors for pin in item.pins)


def search(runner: Runner, command: str, runs: int = 2, say: Callable[[Experiment], None] = lambda _: None) -> Twice:
    """Run the script until two runs differ, or `runs` times; then find the cause.

    Parameters
    ----------
    runs:
        How many unpinned runs must be equal to call it equal; at least 2.
    say:
        Told each experiment when it is done.
    """
    attempts = [runner.run(frozenset())]
    verdict = Verdict(0)
    idle: set[str] = set()
    differs = None
    while not attempts[-1].failed and len(attempts) < runs and differs is None:
        attempts.append(runner.run(frozenset()))
        if not attempts[-1].failed:
            verdict = runner.compare(attempts[0], attempts[-1])
            idle |= set(verdict.idle)
            differs = verdict.difference
    say(_baseline(attempts, differs))
    reason = next((item.failed or item.stopped for item in attempts if item.failed or item.stopped), "")
    known = Twice(
        verdict="undecided" if reason else "equal",
        command=command,
        runs=len(attempts),
        steps=verdict.steps,
        reason=reason,
        idle=tuple(sorted(idle)),
        exit_code=3 if reason else 0,
    )
    return known if differs is None else _find_cause(_Search(runner, say), attempts, differs, known)


def _baseline(attempts: Sequence[Attempt], found: Difference | None) -> Experiment:
    failed = next((item.failed for item in attempts if item.failed), "")
    if found is not None:
        return _differs((), len(attempts), found)
    return Experiment(factors=(), outcome="failed" if failed else "equal", runs=len(attempts), detail=failed)


def _differs(factors: tuple[str, ...], runs: int, found: Difference) -> Experiment:
    return Experiment(factors=factors, outcome="differs", runs=runs, step=found.step, blame=found.blame)


def _find_cause(search: _Search, attempts: list[Attempt], found: Difference, known: Twice) -> Twice:
    runner = search.runner
    again = [runner.run(frozenset(), dump=found.step) for _ in range(2)]
    if not any(item.failed for item in again):
        fresh = runner.compare(*again).difference
        if fresh is not None and fresh.step == found.step:
            found = runner.measure(fresh, *again)
    search.add_unpinned(*attempts[-_PAIRED:], *again)
    facts = runner.facts()
    candidates = []
    for item in in_order_of_suspicion(found):
        if why := item.idle(facts):
            search.note(Experiment(factors=(item.name,), outcome="skipped", detail=why))
        else:
            candidates.append(item)
    causes, back = _proven_causes(search, candidates)
    shown = tuple(_cause(search, item, facts) for item in causes)
    return known.model_copy(
        update={
            "verdict": "differs",
            "exit_code": 1,
            "reason": "",
            "difference": found,
            "experiments": tuple(search.experiments),
            "causes": shown,
            "proven": bool(back),
            "evidence": _evidence(search, causes, back) if causes else "",
        }
    )


def runs_needed(collisions: float) -> int:
    """Return how many runs must be equal so that luck is out of the question.

    Parameters
    ----------
    collisions:
        How often two unpinned runs are equal: `sum(p**2)` over the probabilities of their outcomes. No outcome is then
        likelier than its square root, so `n` runs are all equal with at most the probability `collisions ** (n / 2)`.
    """
    if collisions <= 0:
        return _LEAST
    likely = min(collisions, 0.9)
    return min(_MOST, max(_LEAST, math.ceil(2 * math.log(_LUCK) / math.log(likely))))


def _causes(search: _Search, candidates: Sequence[Factor]) -> list[Factor]:
    """Return the factors that together cure, and none of which can be let go; none if nothing cures."""
    together: bool | None = None
    for number, item in enumerate(candidates):
        if number == _ALONE_FIRST:
            able = search.able(candidates)
            together = search.cures(able, ("all together",))
            if not together and search.experiments[-1].outcome == "differs":
                return []
        if search.cures([item]):
            return _narrowed(search, item, [])
    able = search.able(candidates)
    if not together and not search.cures(able, ("all together",)):
        return []
    needed = _without_idle(search, able, [])
    result: list[Factor] = []
    for item in needed:
        others = [other for other in needed if other is not item]
        result += _narrowed(search, item, others)
    return result


def _without_idle(search: _Search, factors: Sequence[Factor], context: Sequence[Factor]) -> list[Factor]:
    """Let factors go one by one; return those that cannot be. All of them together, with `context`, cure."""
    needed = list(factors)
    for item in reversed(factors):
        rest = [other for other in needed if other is not item]
        gone = [other.name for other in factors if other not in rest]
        label = (f"all but {', '.join(gone)}",) if len(rest) > 2 and not context else ()
        if (rest or context) and search.cures([*rest, *context], label):
            needed = rest
    return needed


def _narrowed(search: _Search, item: Factor, context: Sequence[Factor]) -> list[Factor]:
    """Return the parts of a factor that are needed, given that it cures together with `context`."""
    if not item.parts:
        return [item]
    for part in item.parts:
        if search.cures([part, *context]):
            return [part]
    return _without_idle(search, item.parts, context)


def _proven_causes(search: _Search, candidates: Sequence[Factor]) -> tuple[list[Factor], int]:
    """Return the causes, and after how many new unpinned runs these differed again (0: they did not)."""
    while True:
        causes = _causes(search, candidates)
        if not causes:
            return [], 0
        back = _comes_back(search)
        if search.cures_again(causes):
            return causes, back
        candidates = [item for item in candidates if not {item, *item.parts} & set(causes)]  # it was luck


def _comes_back(search: _Search) -> int:
    """Run unpinned again until two runs differ; return how many runs that took, or 0."""
    fresh = [search.runner.run(frozenset())]
    while len(fresh) < max(search.enough, 2):
        fresh.append(search.runner.run(frozenset()))
        if any(item.failed for item in fresh):
            return 0
        if search.runner.compare(fresh[0], fresh[-1]).difference is not None:
            search.add_unpinned(*fresh)
            return len(fresh)
    return 0


def _evidence(search: _Search, causes: Sequence[Factor], back: int) -> str:
    names = " and ".join(item.name for item in causes)
    count = len(search.cured[_together(causes)])
    equal = f"with {names} pinned, {count} of {count} runs are equal"
    if back:
        return f"{equal}; without it, {back} new runs differ again"
    return f"{equal}; but {search.enough} new runs without it are equal too, so something else has changed meanwhile"


def _cause(search: _Search, item: Factor, facts: Facts) -> Cause:
    remedies = list(item.remedies(facts))
    for name in item.rivals:
        rival = factor(name)
        if not rival.idle(facts) and search.cures([rival]):
            remedies += [
                remedy.model_copy(update={"note": f"cures too, and keeps the threads; {remedy.note}"})
                for remedy in rival.remedies(facts)
            ]
    return Cause(
        factor=item.name,
        explanation=item.explanation,
        remedies=tuple(remedies),
        places=_distinct(search.runner.places(item.pins)),
    )


def _distinct(places: Iterable[Place]) -> tuple[Place, ...]:
    return tuple(dict.fromkeys(places))
