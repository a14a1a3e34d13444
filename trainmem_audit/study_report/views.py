"""What stands in the report of a study, as plain values: the templates, the pictures and `report.json` share them.

Not here: how they are made (`page`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from trainmem_audit.study_report.pictures import (
    Attributed,
    Bar,
    Flow,
    ForestRow,
    HorizonCurve,
    SeedPair,
    Strip,
    TimeRow,
)

__all__ = [
    "ArmProblem",
    "AttributionPlot",
    "Certified",
    "Claim",
    "CurvePlot",
    "FlowTable",
    "Forest",
    "Memory",
    "Page",
    "SeedPlot",
    "StripPlot",
    "Verdict",
]


class Verdict(NamedTuple):
    """A question on the whole study, answered in a word and a sentence."""

    question: str
    tone: str
    word: str
    sentence: str


class Claim(NamedTuple):
    """One estimate as a row of a table."""

    contrast: str
    family: str
    estimand: str
    observable: str
    branch: int
    horizon: int
    primary: bool
    """Whether it is at the place and of the estimand that the plan declares, so that it is adjusted with its family."""
    effect: Bar
    floor: float
    seeds: int
    streams: int | None
    p: float
    smallest_p: float
    adjusted_p: float
    adjustment: str
    margin: float
    equivalence_p: float
    verdict: str
    tone: str
    method: str
    coverage: float
    skewness: float
    warnings: tuple[str, ...]

    @property
    def in_floors(self) -> float:
        """Return the effect in units of the fork floor: E / F is in them by itself, a distance is divided by F."""
        if self.estimand == "law-effect":
            return self.effect.value
        return self.effect.value / self.floor if self.estimand == "pathwise" and self.floor > 0 else math.nan


class SeedPlot(NamedTuple):
    """The seeds of one claim."""

    claim: Claim
    pairs: tuple[SeedPair, ...]
    floor: Bar | None
    before: str
    after: str
    quantity: str
    dropped: tuple[tuple[str, str], ...]


class CurvePlot(NamedTuple):
    """One contrast over the horizons."""

    contrast: str
    observable: str
    branch: int
    curve: HorizonCurve


class Forest(NamedTuple):
    """Several contrasts below one another."""

    title: str
    axis: str
    margin: float
    rows: tuple[ForestRow, ...]


class Memory(NamedTuple):
    """Memory times of the contrasts at one branch; `areas` go with the rows."""

    branch: int
    observable: str
    rows: tuple[TimeRow, ...]
    areas: tuple[Bar, ...]
    warnings: tuple[tuple[str, ...], ...]


class FlowTable(NamedTuple):
    """Back-flow in one observable: the settings, and for each what carries a claim."""

    observable: str
    rows: tuple[Flow, ...]
    contrasts: tuple[tuple[tuple[str, Bar, float], ...], ...]
    """For each setting its contrasts: name, value, p."""
    diagnostics: tuple[tuple[tuple[str, float], ...], ...]
    notes: tuple[tuple[str, ...], ...]
    """For each setting: equivalence where it was tested, and the seeds that are left out."""


class AttributionPlot(NamedTuple):
    """A factorial at one horizon."""

    control: str
    observable: str
    branch: int
    horizon: int
    total: Bar
    rows: tuple[Attributed, ...]
    shares: tuple[float, ...]
    seeds: int


class Certified(NamedTuple):
    """The pairs of one contrast: how many of each label, and what broke first."""

    contrast: str
    paired: int
    no_op: int
    unpaired: int
    broken: tuple[str, ...]


class StripPlot(NamedTuple):
    """A pair of a contrast."""

    contrast: str
    strip: Strip


class ArmProblem(NamedTuple):
    """An arm that is not in the numbers."""

    arm: str
    outcome: str
    reason: str


@dataclass(frozen=True)
class Page:
    """Everything that the report shows. A tuple that was cut short says how much is missing in the member after it."""

    name: str
    question: str
    plan: str
    log: str
    facts: tuple[tuple[str, str], ...]
    verdicts: tuple[Verdict, ...]
    doubts: tuple[str, ...]
    headline: str
    headline_verdict: str
    headline_tone: str
    primary: str
    quotable: tuple[str, ...]
    margin: float
    alpha: float
    claims: tuple[Claim, ...]
    claims_left: int
    signed: tuple[Claim, ...]
    others: tuple[Claim, ...]
    others_left: int
    seeds: tuple[SeedPlot, ...]
    curves: tuple[CurvePlot, ...]
    curves_left: int
    memory: tuple[Memory, ...]
    forests: tuple[Forest, ...]
    flows: tuple[FlowTable, ...]
    attributions: tuple[AttributionPlot, ...]
    attributions_left: int
    certificates: tuple[Certified, ...]
    strips: tuple[StripPlot, ...]
    interventions: tuple[tuple[str, str], ...]
    contrasts: tuple[tuple[str, str, str, str], ...]
    arm_problems: tuple[ArmProblem, ...]
    arm_problems_left: int
    not_shown: tuple[str, ...]
    methods: tuple[tuple[str, str], ...]
    definitions: tuple[tuple[str, str], ...]
