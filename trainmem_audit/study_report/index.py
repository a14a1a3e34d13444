"""Plan and estimates of a study, so that what belongs together is found: by contrast, estimand and place.

Not here: what of it is shown (`page`), and what it does not show (`limits`).
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Final

from trainmem_audit.documents.estimates import Estimate, Estimates, Interval, Measured, Pair, SeedTable
from trainmem_audit.documents.plan import Contrast, Plan
from trainmem_audit.study_report import words
from trainmem_audit.study_report.pictures import Bar
from trainmem_audit.study_report.views import Claim
from trainmem_audit.study_report.words import value_of

__all__ = ["Place", "Study", "bar_of", "claim_of", "verdict_of"]

Place = tuple[str, int, int]
"""Observable, branch step, horizon."""


class Study:
    """Plan and estimates with what the page and the limits look up in them."""

    def __init__(self, plan: Plan, estimates: Estimates) -> None:
        self.plan = plan
        self.document = estimates
        self.contrasts: dict[str, Contrast] = {item.name: item for item in plan.contrasts}
        primary = plan.primary
        self.place: Place = (primary.observable, primary.branch_step, primary.horizon)
        self.margin = value_of(plan.analysis.equivalence_margin)
        self.alpha = value_of(plan.analysis.alpha)

    @cached_property
    def index(self) -> dict[tuple[str, str, Place], Estimate]:
        """The estimates by contrast, estimand and place; the first of several."""
        found: dict[tuple[str, str, Place], Estimate] = {}
        for item in self.document.estimates:
            place = (item.observable, item.branch_step, item.horizon)
            found.setdefault((item.contrast, item.estimand, place), item)
        return found

    @cached_property
    def tables(self) -> dict[tuple[str, Place], SeedTable]:
        """The tables per seed by contrast and place."""
        tables = self.document.per_seed or ()
        return {(item.contrast, (item.observable, item.branch_step, item.horizon)): item for item in tables}

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """The pairs of each contrast."""
        names = {arm.id: arm.intervention for arm in self.document.arms}
        by_names: dict[tuple[str | None, str | None], list[Pair]] = {}
        for pair in self.document.pairs:
            by_names.setdefault((names.get(pair.treated), names.get(pair.control)), []).append(pair)
        return {item.name: by_names.get((item.treated, item.control), []) for item in self.plan.contrasts}

    @property
    def primary(self) -> Estimate | None:
        """The estimate that the plan declares to decide."""
        return self.index.get((self.plan.primary.contrast, self.plan.primary.estimand, self.place))

    def family(self, contrast: str) -> str:
        """Return the family of a contrast; that of a name that the plan lacks is exploratory."""
        known = self.contrasts.get(contrast)
        return "exploratory" if known is None else known.family

    def unpaired(self, contrast: str) -> str:
        """Return how many of a contrast's pairs have a certificate that fails: `3 of 16 pairs`."""
        pairs = self.pairs.get(contrast, [])
        return f"{sum(pair.label == 'unpaired' for pair in pairs)} of {len(pairs)} pairs"

    def at_primary(self, family: str | None = None) -> list[Estimate]:
        """Return the estimates of all contrasts (of a family) at the primary estimand and place."""
        keys = ((name, self.plan.primary.estimand, self.place) for name in self.contrasts)
        found = [self.index[key] for key in keys if key in self.index]
        return [item for item in found if family is None or self.family(item.contrast) == family]


def verdict_of(found: Estimate) -> str:
    """Return the verdict in words: pairs that are equal bit for bit are more than equivalent, no seed is no number."""
    if not found.units and found.verdict != "unpaired":
        return "not estimated"
    return "bitwise equal" if found.bitwise_equal and found.verdict == "equivalent" else found.verdict


def bar_of(found: Estimate | Measured | None) -> Bar:
    """Return a value with its interval."""
    if found is None:
        return Bar(math.nan)
    interval = found.interval
    if interval is None:
        return Bar(value_of(found.value))
    return Bar(value_of(found.value), value_of(interval.low), value_of(interval.high))


def claim_of(study: Study, found: Estimate) -> Claim:
    """Return an estimate as a row."""
    verdict = verdict_of(found)
    known = found.interval if verdict != "bitwise equal" else None  # then there is nothing that it could miss
    test, interval = found.test, known or _NO_INTERVAL
    place = (found.observable, found.branch_step, found.horizon)
    return Claim(
        contrast=found.contrast,
        family=study.family(found.contrast),
        estimand=found.estimand,
        observable=found.observable,
        branch=found.branch_step,
        horizon=found.horizon,
        primary=found.estimand == study.plan.primary.estimand and place == study.place,
        effect=bar_of(found),
        floor=value_of(found.floor),
        seeds=found.units,
        streams=found.streams,
        p=value_of(test.p if test else None),
        smallest_p=value_of(test.smallest_p if test else None),
        adjusted_p=value_of(test.adjusted_p if test else None),
        adjustment=(test.adjustment or "") if test else "",
        margin=value_of(found.equivalence.margin if found.equivalence else None),
        equivalence_p=value_of(found.equivalence.p if found.equivalence else None),
        verdict=verdict,
        tone=words.VERDICT_TONES[verdict],
        method=known.method if known else "",
        coverage=value_of(interval.coverage),
        skewness=value_of(interval.skewness),
        warnings=found.warnings or (),
    )


_NO_INTERVAL: Final = Interval(low="nan", high="nan", level="nan", method="t")
