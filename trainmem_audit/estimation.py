"""From values per seed to the numbers of a study: every estimate, interval, test, verdict, curve and memory time.

`estimate` is what a study runs at its end and what those who check it run again: the same plan and the same arms give
the same bits. `differences` names where a signed document and a recomputed one part. What each estimand is stands in
`DEFINITIONS`, which goes into the document.

Which tests are adjusted together: the confirmatory contrasts at the primary's estimand, observable, branch and horizon
(max-T with shared signs, or Holm), all others by Benjamini and Hochberg, null players not at all. The margin holds for
the primary's estimand, and for E / F and Λ alike where it is one of these. Not here: reading arms (`seedtables`).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trainmem_audit import distances, elementary, intervals
from trainmem_audit import estimands as E
from trainmem_audit.canonical import float_text, sha256_hex
from trainmem_audit.documents import estimates as documents
from trainmem_audit.documents.estimates import (
    Attribution,
    BackFlow,
    Curve,
    DroppedSeed,
    Equivalence,
    Estimate,
    Estimates,
    Measured,
    MemoryTime,
    Method,
    SeedTable,
    SourceEffect,
)
from trainmem_audit.resources import data_file
from trainmem_audit.seedtables import Arms, Contrast, Design, DistanceCell, FunctionalCell, Place, SeedTables, collect

__all__ = ["DEFINITIONS", "Results", "back_flow_estimate", "differences", "estimate"]

Floats = NDArray[np.float64]

DEFINITIONS: Final[dict[str, str]] = {
    "pathwise": "P: distance of treated and control in one noise stream, mean over streams; geometric mean over seeds. "
    "Exact for these paths, never by itself a claim about memory.",
    "fork-floor": "F: distance of two controls in different noise streams; geometric mean over seeds.",
    "seed-floor": "Distance between the controls of different seeds in their first stream, mean over pairs of seeds.",
    "law-effect": "E over F, the ratio of the means over seeds: E = B - W, B the mean distance of treated and control "
    "in different streams, W the mean of both arms' own. Tested by exchanging treated and control in single streams.",
    "separation": "1 - W over B, the ratio of the sums over seeds. Tested as the law effect.",
    "specific": "Mean over seeds of log(P / K), K the pathwise distance of the declared kick.",
    "signed": "Mean over seeds of the functional of the treated minus that of the control, means over streams.",
    "dose-response": "Mean over seeds of log2 of P of a reset over P of the same component times one half.",
    "memory-time": "Geometric mean over seeds of tau in E / F = a exp(-h / tau), by least squares from the horizon "
    "with the highest mean on.",
    "order-sensitivity": "Half the mean squared distance of two permutations of a window; geometric mean over seeds.",
    "interaction": "What two sources change together beyond the sum of both, mean over all settings of the others.",
    "shapley": "Shapley value of a source in the change of a signed functional; the values sum to the total.",
    "back-flow": "D2 - D1: the distance after the second instrument minus that after the first ones. Descriptive.",
    "twin-witness": "Distance after the second instrument of the same weights with exchanged momentum.",
}
_LAW: Final = ("law-effect", "separation")
_OF_CONTROLS: Final = ("fork-floor", "seed-floor")
_OF_SEVERAL: Final = ("interaction", "shapley", "order-sensitivity")
_NULL_PLAYERS: Final = ("placebo", "kick", "butterfly")
_MOST_WARNINGS: Final = 20
_MOST_DIFFERENCES: Final = 100


@dataclass(frozen=True)
class Results:
    """What was computed, ready for `documents.estimates.Estimates`."""

    method: Method
    estimates: tuple[Estimate, ...]
    per_seed: tuple[SeedTable, ...]
    curves: tuple[Curve, ...]
    memory_times: tuple[MemoryTime, ...]
    attributions: tuple[Attribution, ...]

    def members(self) -> dict[str, Any]:
        """Return them by the names of that model's fields; what is empty is left out."""
        found: dict[str, Any] = {"method": self.method, "estimates": self.estimates}
        for name in ("per_seed", "curves", "memory_times", "attributions"):
            if getattr(self, name):
                found[name] = getattr(self, name)
        return found


def estimate(plan: Mapping[str, Any], arms: Arms) -> Results:
    """Return every number of a study.

    Parameters
    ----------
    plan:
        The JSON value of a valid plan (`plan.schema.json`).
    arms:
        Its recorded arms.

    Raises
    ------
    FormatError
        If the plan asks for more than can be computed, or predictions are not what the plan's task demands.
    """
    design = Design.of(plan)
    return _Estimator(design, collect(design, arms)).results()


def differences(signed: Estimates, recomputed: Results) -> list[str]:
    """Return the places at which a document does not say what was recomputed; versions of software may differ."""
    members = signed.to_json()
    found: list[str] = []
    for name in ("method", "estimates", "perSeed", "curves", "memoryTimes", "attributions"):
        value = getattr(recomputed, {"perSeed": "per_seed", "memoryTimes": "memory_times"}.get(name, name))
        ours: Any = value.to_json() if isinstance(value, Method) else [item.to_json() for item in value] or None
        found += _differences(members.get(name), ours, name)
    found = [path for path in found if not path.startswith("method.software")]
    return found[:_MOST_DIFFERENCES]


def _differences(theirs: Any, ours: Any, path: str) -> Iterator[str]:
    if isinstance(theirs, dict) and isinstance(ours, dict):
        for name in sorted(theirs.keys() | ours.keys()):
            yield from _differences(theirs.get(name), ours.get(name), f"{path}.{name}")
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
            yield from _differences(one, other, f"{path}[{number}]")
    elif theirs != ours:
        yield path


# --- one number ----------------------------------------------------------------------------------------------------


@dataclass
class _Draft:
    """An estimate before its family is adjusted."""

    contrast: Contrast
    estimand: str
    place: Place
    interval: intervals.Interval
    per_unit: Sequence[float]
    streams: int
    paired: bool
    equal: bool = False
    claim: bool = True
    terms: Any = None
    test: intervals.SignTest | None = None
    tost: intervals.Tost | None = None
    floor: float = math.nan
    coverage_kind: str = ""
    warnings: tuple[str, ...] = ()
    adjusted: float = math.nan
    adjustment: str = ""


def _document_interval(found: intervals.Interval, kind: str = "") -> documents.Interval | None:
    """Return the interval as a document, with the coverage simulated for it; none where there is no spread."""
    if not found.bounded:
        return None
    coverage = intervals.simulated_coverage(kind or found.method, found.units, found.skewness)
    at_level = abs(found.level - 0.95) < 1e-9  # the table is of nominal 95 %
    return documents.Interval(
        low=float_text(found.low),
        high=float_text(found.high),
        level=float_text(found.level),
        method=found.method,
        coverage=float_text(coverage) if at_level and not math.isnan(coverage) else None,
        skewness=None if math.isnan(found.skewness) else float_text(found.skewness),
    )


def _document_test(test: intervals.SignTest, adjusted: float = math.nan, adjustment: str = "") -> documents.Test:
    named: Any = {"adjustment": adjustment} if adjustment else {}
    if not math.isnan(adjusted):
        named["adjusted_p"] = float_text(adjusted)
    return documents.Test(method=test.method, p=float_text(test.p), smallest_p=float_text(test.smallest), **named)


def _measured(
    found: intervals.Interval,
    per_unit: Sequence[float] = (),
    test: intervals.SignTest | None = None,
    kind: str = "",
    warnings: Iterable[str] = (),
) -> Measured:
    notes = _warnings(found.notes, test.notes if test else (), warnings)
    return Measured(
        value=float_text(found.estimate),
        units=found.units,
        per_unit=_texts(per_unit) if per_unit else None,
        interval=_document_interval(found, kind),
        test=_document_test(test) if test else None,
        warnings=notes or None,
    )


def _texts(values: Iterable[float]) -> tuple[str, ...]:
    return tuple(float_text(float(value)) for value in values)


def _warnings(*lists: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for texts in lists for text in texts))[:_MOST_WARNINGS]


def _over(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b if b else math.nan for a, b in zip(above, below, strict=True)]


def _known(values: Sequence[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


# --- all of them ---------------------------------------------------------------------------------------------------


@dataclass
class _Estimator:
    """Makes the numbers of one study."""

    design: Design
    tables: SeedTables
    drafts: list[_Draft] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.level = 1 - self.design.alpha
        self.units = len(self.design.seeds)
        self._signs: dict[int, intervals.Signs] = {}
        self._floors_done: set[tuple[str, str, Place]] = set()
        self.times: list[MemoryTime] = []
        self.attributions: list[Attribution] = []

    def results(self) -> Results:
        """Return everything."""
        for contrast in self.design.contrasts:
            for place in self.design.places(distances.DISTANCES):
                self._distances(contrast, place)
            for place in self.design.places(distances.FUNCTIONALS):
                self._signed(contrast, place)
            for observable, branch in self._lines():
                self._memory_time(contrast, observable, branch)
        self._orders()
        self._factorials()
        self._adjust()
        return Results(
            method=self._method(),
            estimates=tuple(self._estimate(draft) for draft in self.drafts),
            per_seed=tuple(self._seed_tables()),
            curves=tuple(self._curves()),
            memory_times=tuple(self.times),
            attributions=tuple(self.attributions),
        )

    def signs(self, streams: int = 1) -> intervals.Signs:
        """Return the sign vectors that all tests share, of seeds or of streams; drawn from the plan's digest."""
        if streams not in self._signs:
            rng = np.random.Generator(np.random.PCG64([int(self.design.digest, 16), streams]))
            if streams > 1:
                self._signs[streams] = intervals.stream_signs(self.units, streams, rng)
            else:
                self._signs[streams] = intervals.seed_signs(self.units, rng)
        return self._signs[streams]

    def _lines(self) -> Iterator[tuple[str, int]]:
        for name, (kind, _) in self.design.observables.items():
            if kind in distances.DISTANCES:
                for branch in self.design.branches:
                    yield name, branch

    # Distances -------------------------------------------------------------------------------------------------------

    def _distances(self, contrast: Contrast, place: Place) -> None:
        cell = self.tables.distances[contrast.name, place]
        floor = elementary.mean(_known(cell.floor))
        equal = _is_equal(cell, self.units)
        found = self._positive(cell.pathwise, equal)
        self._add(contrast, "pathwise", place, cell, found, cell.pathwise, floor=floor, claim=False)
        if cell.streams > 1:
            self._law(contrast, place, cell, floor, equal)
        self._floors(contrast, place, cell)
        if not equal:
            self._specific(contrast, place, cell)
            self._dose(contrast, place, cell)

    def _positive(self, values: Sequence[float], equal: bool = False) -> intervals.Interval:
        """Return log-t for what is positive; where pairs are equal bit for bit there is a mean of zeros."""
        known = _known(values)
        return intervals.t_interval(known, self.level) if equal else intervals.log_t_interval(known, self.level)

    def _law(self, contrast: Contrast, place: Place, cell: DistanceCell, floor: float, equal: bool) -> None:
        test = None if equal else intervals.sign_test(np.array(cell.forms), self.signs(cell.streams))
        for estimand, below in (("law-effect", cell.floor), ("separation", cell.between)):
            found = self._ratio(cell.effect, below, equal)
            self._add(
                contrast, estimand, place, cell, found, _over(cell.effect, below), floor=floor,
                test=test, terms=np.array(cell.forms),
            )  # fmt: skip

    def _ratio(self, above: Sequence[float], below: Sequence[float], equal: bool = False) -> intervals.Interval:
        pairs = [(a, b) for a, b in zip(above, below, strict=True) if not (math.isnan(a) or math.isnan(b))]
        if equal and not any(b for _, b in pairs):  # no noise either: 0 over 0, and the effect is exactly 0
            return intervals.jackknife_t(0.0, [0.0] * len(pairs), len(pairs), self.level)
        return intervals.ratio_interval([a for a, _ in pairs], [b for _, b in pairs], self.level)

    def _floors(self, contrast: Contrast, place: Place, cell: DistanceCell) -> None:
        """The fork floor and the seed floor belong to a control: once for each, under its first contrast."""
        for estimand in ("fork-floor", "seed-floor"):
            key = (estimand, contrast.control, place)
            if key in self._floors_done:
                continue
            self._floors_done.add(key)
            if estimand == "fork-floor" and cell.streams > 1:
                silent = not any(_known(cell.floor))
                found = self._positive(cell.floor, silent)
                self._add(contrast, estimand, place, cell, found, cell.floor, claim=False)
            pairs = self.tables.seed_pairs.get((contrast.control, place), {})
            if estimand == "seed-floor" and pairs:
                self._seed_floor(contrast, place, cell, pairs)

    def _seed_floor(
        self, contrast: Contrast, place: Place, cell: DistanceCell, pairs: Mapping[tuple[int, int], float]
    ) -> None:
        whole, without = E.seed_floor(pairs)
        per_unit = [elementary.mean(d for pair, d in pairs.items() if seed in pair) for seed in range(self.units)]
        left = [without[seed] for seed in sorted(without)]
        count = len(without)
        notes = () if count > 2 else ("two seeds are one pair, which has no spread",)
        if count > 2:
            found = intervals.jackknife_t(whole, left, count, self.level, log=True)
        else:
            found = intervals.jackknife_t(whole, [], min(count, 1), self.level)
        self._add(
            contrast, "seed-floor", place, cell, found, per_unit, claim=False, streams=1,
            coverage_kind="jackknife-t-pairs", warnings=notes,
        )  # fmt: skip

    def _specific(self, contrast: Contrast, place: Place, cell: DistanceCell) -> None:
        kick = self._null("kick", contrast.control)
        if kick is None or kick.name == contrast.name:
            return
        other = self.tables.distances[kick.name, place]
        logs = [E.log_ratio(p, k) for p, k in zip(cell.pathwise, other.pathwise, strict=True)]
        self._add(contrast, "specific", place, cell, self._mean(logs), logs, also_paired=other.paired, signed=True)

    def _dose(self, contrast: Contrast, place: Place, cell: DistanceCell) -> None:
        half = self._half(contrast)
        if half is not None:
            other = self.tables.distances[half.name, place]
            logs = [E.dose_response(p, h) for p, h in zip(cell.pathwise, other.pathwise, strict=True)]
            found = self._mean(logs)
            self._add(contrast, "dose-response", place, cell, found, logs, also_paired=other.paired, claim=False)

    def _half(self, contrast: Contrast) -> Contrast | None:
        """Return the contrast that scales by one half what this one resets."""
        own = self.design.interventions.get(contrast.treated, {})
        if own.get("primitive") not in ("reset", "zero"):
            return None
        wanted = {"primitive": "scale", "component": own.get("component"), "factor": float_text(0.5)}
        same = (c for c in self.design.contrasts if c.control == contrast.control)
        return next((c for c in same if dict(self.design.interventions.get(c.treated, {})) == wanted), None)

    def _null(self, primitive: str, control: str) -> Contrast | None:
        """Return the contrast of a null player with this control; of several kicks, that of the declared size."""
        same = [c for c in self.design.contrasts if c.control == control]
        found = [c for c in same if self.design.primitive(c.treated) == primitive]
        declared = [c for c in found if self.design.interventions[c.treated].get("sigma") == self.design.kick]
        return next(iter(declared or found), None)

    def _mean(self, values: Sequence[float]) -> intervals.Interval:
        return intervals.t_interval(_known(values), self.level)

    # Functionals -----------------------------------------------------------------------------------------------------

    def _signed(self, contrast: Contrast, place: Place) -> None:
        cell = self.tables.signed[contrast.name, place]
        self._add(contrast, "signed", place, cell, self._mean(cell.change), cell.change, signed=True)

    def _factorials(self) -> None:
        for control, sources, arms in _factorials(self.design):
            for place in self.design.places(distances.FUNCTIONALS):
                self._factorial(control, sources, arms, place)

    def _factorial(
        self, control: str, sources: tuple[str, ...], arms: Mapping[frozenset[str], str], place: Place
    ) -> None:
        values = {cell: self.tables.functionals[name, place] for cell, name in arms.items()}
        seeds = range(self.units)
        whole = [not any(math.isnan(numbers[seed]) for numbers in values.values()) for seed in seeds]
        cells = [{cell: numbers[seed] for cell, numbers in values.items()} if whole[seed] else None for seed in seeds]
        total = [c[frozenset(sources)] - c[frozenset()] if c else math.nan for c in cells]
        mains = [E.main_effects(c) if c else {} for c in cells]
        pairs = [E.interactions(c) if c else {} for c in cells]
        values_of = [E.shapley(c) if c else {} for c in cells]
        effects = [self._source("main", (s,), [m.get(s, math.nan) for m in mains]) for s in sources]
        over_all = self._mean(total)
        for pair in combinations(sources, 2):
            numbers = [p.get(pair, math.nan) for p in pairs]
            effects.append(self._source("interaction", pair, numbers))
            self._contribution("interaction", arms[frozenset(pair)], control, place, numbers)
        for source in sources:
            numbers = [v.get(source, math.nan) for v in values_of]
            found = self._source("shapley", (source,), numbers)
            effects.append(_with_share(found, elementary.mean(_known(numbers)), over_all))
            self._contribution("shapley", arms[frozenset({source})], control, place, numbers)
        nulls = tuple(s for s in sources if self.design.primitive(s) in _NULL_PLAYERS)
        missing = self.units - sum(whole)
        left = (f"{missing} of {self.units} seeds lack an arm of the factorial and are left out",) if missing else ()
        self.attributions.append(
            Attribution(
                control=control,
                sources=sources,
                null_players=nulls or None,
                observable=place.observable,
                branch_step=place.branch,
                horizon=place.horizon,
                total=_measured(over_all, total, self._test(total), warnings=left),
                effects=tuple(effects),
            )
        )

    def _contribution(self, estimand: str, arm: str, control: str, place: Place, values: Sequence[float]) -> None:
        """Put it among the estimates too, under the contrast of that source, or of the two together."""
        contrast = next(c for c in self.design.contrasts if (c.treated, c.control) == (arm, control))
        cell = self.tables.signed[contrast.name, place]
        self._add(contrast, estimand, place, cell, self._mean(values), values, signed=True)

    def _source(self, kind: Any, sources: tuple[str, ...], values: Sequence[float]) -> SourceEffect:
        effect = _measured(self._mean(values), values, self._test(values))
        return SourceEffect(kind=kind, sources=sources, effect=effect)

    def _test(self, values: Sequence[float]) -> intervals.SignTest:
        return intervals.sign_test(values, self.signs())

    # Over horizons ---------------------------------------------------------------------------------------------------

    def _memory_time(self, contrast: Contrast, observable: str, branch: int) -> None:
        """Fit the decay of E / F, find the last significant horizon and the washout, and measure the area."""
        if contrast.family == "null-player":
            return
        cells = {h: self.tables.distances[contrast.name, Place(observable, branch, h)] for h in self.design.horizons}
        law = {h: cell for h, cell in cells.items() if h > 0 and cell.streams > 1 and _known(cell.effect)}
        if len(law) < 3 or all(cell.equal for cell in law.values()):
            return
        curves = np.array([_over(cell.effect, cell.floor) for cell in law.values()]).T
        horizons = list(law)
        means = [intervals.ratio_interval(cell.effect, cell.floor).estimate for cell in law.values()]
        peak = max(range(len(means)), key=lambda i: means[i] if not math.isnan(means[i]) else -math.inf)
        start = min(peak, len(horizons) - 3)
        fits = E.fit_decay(horizons[start:], curves[:, start:])
        taus = [fit.tau for fit in fits]
        tau = intervals.log_t_interval(_known(taus), self.level)
        warnings = _fit_warnings(fits, horizons, peak, start)
        place = Place(observable, branch, horizons[-1])
        cell = law[horizons[-1]]
        self._add(
            contrast, "memory-time", place, cell, tau, taus, claim=False, coverage_kind="log-t-memory-time",
            warnings=warnings,
        )  # fmt: skip
        areas = [E.area(horizons, row.tolist()) for row in curves]
        self.times.append(
            MemoryTime(
                contrast=contrast.name,
                observable=observable,
                branch_step=branch,
                first=horizons[start],
                to=horizons[-1],
                tau=_measured(tau, taus, kind="log-t-memory-time", warnings=warnings),
                states=tuple(fit.state for fit in fits),
                last_significant=self._last_significant(law),
                washout=E.washout(horizons, [self._washed(c) for c in law.values()], self.design.alpha),
                area=_measured(self._mean(areas), areas),
            )
        )

    def _last_significant(self, law: Mapping[int, DistanceCell]) -> int | None:
        streams = max(cell.streams for cell in law.values())
        family = []
        for cell in law.values():
            forms = np.zeros((self.units, streams, streams))
            forms[:, : cell.streams, : cell.streams] = np.array(cell.forms)
            family.append(forms)
        tests = intervals.max_t(family, self.signs(streams))
        return E.last_significant(list(law), [test.p for test in tests], self.design.alpha)

    def _washed(self, cell: DistanceCell) -> float:
        """Return p of the two one-sided tests on Λ; 0 where all pairs are equal bit for bit."""
        if cell.equal:
            return 0.0
        return intervals.tost(self._ratio(cell.effect, cell.between), self.design.margin).p

    def _orders(self) -> None:
        for (group, place), values in self.tables.orders.items():
            contrast = next((c for c in self.design.contrasts if c.treated in group), None)
            if contrast is not None and place.observable in self.design.observables:
                cell = self.tables.distances[contrast.name, place]
                found = self._positive(values)
                notes = (f"over the permutations {', '.join(group)}",)
                self._add(contrast, "order-sensitivity", place, cell, found, values, claim=False, warnings=notes)

    # Judgement -------------------------------------------------------------------------------------------------------

    def _add(
        self,
        contrast: Contrast,
        estimand: str,
        place: Place,
        cell: DistanceCell | FunctionalCell,
        found: intervals.Interval,
        per_unit: Sequence[float],
        *,
        also_paired: bool = True,
        signed: bool = False,
        warnings: Iterable[str] = (),
        streams: int = 0,
        **rest: Any,
    ) -> None:
        """Keep an estimate until its family is complete."""
        of_pairs = estimand not in _OF_CONTROLS
        equal = of_pairs and estimand not in _OF_SEVERAL and _is_equal(cell, self.units)
        if equal:
            per_unit = [math.nan if seed in cell.dropped else 0.0 for seed in range(self.units)]
        paired = not of_pairs or (cell.paired and also_paired)
        draft = _Draft(contrast, estimand, place, found, per_unit, streams or cell.streams, paired, equal, **rest)
        if signed and not equal:
            draft.terms, draft.test = per_unit, self._test(per_unit)
        primary = self.design.primary[1]
        if draft.claim and not equal and (estimand == primary or (estimand in _LAW and primary in _LAW)):
            draft.tost = intervals.tost(found, self.design.margin)
        reasons = [f"seed {self.design.seeds[s]} is left out: {why}" for s, why in list(cell.dropped.items())[:8]]
        lost = sum(math.isnan(value) for seed, value in enumerate(per_unit) if seed not in cell.dropped)
        if lost:
            reasons.append(f"{lost} of {self.units} seeds have no value here and are left out")
        draft.warnings = _warnings(warnings, reasons, _notes(draft, self.design.alpha))
        self.drafts.append(draft)

    def _adjust(self) -> None:
        """Adjust p-values within their families."""
        tested = [draft for draft in self.drafts if draft.claim and draft.test is not None]
        confirmatory = [draft for draft in tested if self._is_confirmatory(draft)]
        how = self.design.adjustment
        ps = [draft.test.p for draft in confirmatory if draft.test]
        if how == "max-t" and confirmatory:
            streams = confirmatory[0].streams if confirmatory[0].estimand in _LAW else 1
            ps = [test.p for test in intervals.max_t([d.terms for d in confirmatory], self.signs(streams))]
        elif how == "holm":
            ps = intervals.holm(ps)
        for draft, p in zip(confirmatory, ps, strict=True):
            draft.adjusted, draft.adjustment = p, how
        others = [d for d in tested if not self._is_confirmatory(d) and d.contrast.family != "null-player"]
        for draft, p in zip(others, intervals.benjamini_hochberg([d.test.p for d in others if d.test]), strict=True):
            draft.adjusted, draft.adjustment = p, "benjamini-hochberg"
        for draft in tested:
            if not draft.adjustment:
                draft.adjusted, draft.adjustment = (draft.test.p if draft.test else math.nan), "none"

    def _is_confirmatory(self, draft: _Draft) -> bool:
        _, estimand, place = self.design.primary
        return draft.contrast.family == "confirmatory" and draft.estimand == estimand and draft.place == place

    def _estimate(self, draft: _Draft) -> Estimate:
        verdict: Any = "descriptive"
        if draft.claim or draft.equal or not draft.paired:
            verdict = intervals.verdict(
                paired=draft.paired,
                bitwise_equal=draft.equal,
                p=draft.adjusted,
                equivalence=draft.tost.p if draft.tost else math.nan,
                alpha=self.design.alpha,
            )
        return Estimate(
            contrast=draft.contrast.name,
            estimand=draft.estimand,  # type: ignore[arg-type]  # one of the words of `DEFINITIONS`
            observable=draft.place.observable,
            branch_step=draft.place.branch,
            horizon=draft.place.horizon,
            value=float_text(draft.interval.estimate),
            floor=None if math.isnan(draft.floor) else float_text(draft.floor),
            units=draft.interval.units,
            streams=draft.streams,
            per_unit=_texts(draft.per_unit),
            interval=_document_interval(draft.interval, draft.coverage_kind),
            test=_document_test(draft.test, draft.adjusted, draft.adjustment) if draft.test else None,
            equivalence=Equivalence(margin=float_text(draft.tost.margin), p=float_text(draft.tost.p))
            if draft.tost
            else None,
            bitwise_equal=True if draft.equal else None,
            verdict=verdict,
            warnings=draft.warnings or None,
        )

    # Tables ----------------------------------------------------------------------------------------------------------

    def _seed_tables(self) -> Iterator[SeedTable]:
        for (contrast, place), cell in self.tables.distances.items():
            law = cell.streams > 1
            yield SeedTable(
                **self._head(contrast, place, cell),
                pathwise=_texts(cell.pathwise),
                fork_floor=_texts(cell.floor) if law else None,
                treated_floor=_texts(cell.treated_floor) if law else None,
                between=_texts(cell.between) if law else None,
                within=_texts(cell.within) if law else None,
                law_effect=_texts(cell.effect) if law else None,
            )
        for (contrast, place), signed in self.tables.signed.items():
            head = self._head(contrast, place, signed)
            yield SeedTable(**head, control=_texts(signed.control), treated=_texts(signed.treated))

    def _head(self, contrast: str, place: Place, cell: DistanceCell | FunctionalCell) -> dict[str, Any]:
        dropped = tuple(DroppedSeed(seed=self.design.seeds[s], reason=why[:10_000]) for s, why in cell.dropped.items())
        return {
            "contrast": contrast,
            "observable": place.observable,
            "branch_step": place.branch,
            "horizon": place.horizon,
            "streams": cell.streams,
            "dropped": dropped or None,
        }

    def _curves(self) -> Iterator[Curve]:
        for contrast in self.design.contrasts:
            for observable, branch in self._lines():
                yield self._curve(contrast, observable, branch)

    def _curve(self, contrast: Contrast, observable: str, branch: int) -> Curve:
        def along(name: str) -> list[DistanceCell]:
            places = [Place(observable, branch, horizon) for horizon in self.design.horizons]
            return [self.tables.distances[name, place] for place in places]

        def means(cells: Iterable[DistanceCell], what: str) -> tuple[str, ...]:
            return _texts(elementary.mean(_known(getattr(cell, what))) for cell in cells)

        own = along(contrast.name)
        law = [self._ratio(cell.effect, cell.floor, cell.equal) for cell in own]
        nulls = {name: self._null(name, contrast.control) for name in ("kick", "butterfly")}
        several = any(cell.streams > 1 for cell in own)
        return Curve(
            contrast=contrast.name,
            observable=observable,
            branch_step=branch,
            horizons=self.design.horizons,
            pathwise=means(own, "pathwise"),
            fork_floor=means(own, "floor") if several else None,
            law_effect=_texts(found.estimate for found in law) if several else None,
            law_low=_texts(found.low for found in law) if several else None,
            law_high=_texts(found.high for found in law) if several else None,
            **{name: means(along(null.name), "pathwise") for name, null in nulls.items() if null is not None},
        )

    def _method(self) -> Method:
        import scipy

        adjustment: Any = self.design.adjustment
        return Method(
            alpha=float_text(self.design.alpha),
            level=float_text(self.level),
            equivalence_margin=float_text(self.design.margin),
            confirmatory=adjustment,
            exploratory="benjamini-hochberg",
            exact_up_to=intervals.EXACT_UP_TO,
            sampled=intervals.SAMPLED,
            calibration_bins=distances.CALIBRATION_BINS,
            coverage_table=sha256_hex(data_file("schema", intervals.COVERAGE_FILE).read_bytes()),
            definitions=DEFINITIONS,
            software={"numpy": np.__version__, "python": platform.python_version(), "scipy": scipy.__version__},
        )


def _is_equal(cell: DistanceCell | FunctionalCell, seeds: int) -> bool:
    """Return whether there are pairs, and all of them are equal bit for bit."""
    return cell.equal and len(cell.dropped) < seeds


def _with_share(found: SourceEffect, value: float, total: intervals.Interval) -> SourceEffect:
    """Return it with its share of the total, where the total's interval excludes 0."""
    told = total.bounded and (total.low > 0 or total.high < 0)
    return found.model_copy(update={"share": float_text(value / total.estimate)}) if told else found


def _notes(draft: _Draft, alpha: float) -> list[str]:
    notes = list(draft.interval.notes)
    if draft.test is not None:
        notes += draft.test.notes
        if draft.test.smallest > alpha and draft.claim:
            notes.append(f"{draft.interval.units} seeds cannot give a smaller p than {draft.test.smallest:.2g}")
    if draft.equal:
        notes.append("all pairs are equal bit for bit: the effect is exactly 0")
    if not draft.paired:
        notes.append("a pairing certificate failed: this is no effect of the intervention")
    return notes


def _fit_warnings(fits: Sequence[E.Decay], horizons: Sequence[int], peak: int, start: int) -> list[str]:
    counts = {state: sum(fit.state == state for fit in fits) for state in ("longer", "shorter", "none")}
    notes = []
    if start:
        notes.append(f"fitted from {horizons[start]} steps on: before, the effect grows")
    if start < peak:
        notes.append("the effect is highest near the last horizon: its decay was not seen")
    if counts["longer"]:
        notes.append(f"{counts['longer']} of {len(fits)} seeds: longer than {horizons[-1]} steps")
    if counts["shorter"]:
        notes.append(f"{counts['shorter']} of {len(fits)} seeds: shorter than the horizons can tell")
    if counts["none"]:
        notes.append(f"{counts['none']} of {len(fits)} seeds: no effect that decays; left out")
    return notes


def _factorials(design: Design) -> Iterator[tuple[str, tuple[str, ...], dict[frozenset[str], str]]]:
    """Yield (control, sources, arm by set of sources) for every largest combination of which all parts have arms."""
    for control in dict.fromkeys(contrast.control for contrast in design.contrasts):
        arms = {frozenset[str](): control}
        for contrast in design.contrasts:
            if contrast.control == control:
                parts = design.combinations.get(contrast.treated, (contrast.treated,))
                if len(set(parts)) == len(parts):
                    arms.setdefault(frozenset(parts), contrast.treated)
        done: list[frozenset[str]] = []
        for cell in sorted(arms, key=lambda c: (-len(c), sorted(c))):
            if not 2 <= len(cell) <= E.MOST_SOURCES or any(cell <= other for other in done):
                continue
            sources = tuple(sorted(cell))
            subsets = [frozenset(s) for size in range(len(sources) + 1) for s in combinations(sources, size)]
            if all(subset in arms for subset in subsets):
                done.append(cell)
                yield control, sources, {subset: arms[subset] for subset in subsets}


# --- back-flow -----------------------------------------------------------------------------------------------------


def back_flow_estimate(
    name: str,
    observable: str,
    seeds: Sequence[E.BackFlow],
    rng: np.random.Generator,
    *,
    alpha: float = 0.05,
    bitwise_equal: bool = False,
    diagnostics: Mapping[str, Sequence[float]] | None = None,
    margin: float | None = None,
) -> BackFlow:
    """Return the back-flow witness of one setting over its seeds (STANDARD § 6).

    Parameters
    ----------
    seeds:
        One witness for each seed: repeats are no units, and are averaged before.
    rng:
        For sign vectors, where there are too many seeds to go through all.
    bitwise_equal:
        Whether both first instruments led to the same bits in every repeat, so that there is nothing to test.
    diagnostics:
        Further values per seed, by name.
    margin:
        Of two one-sided tests of Δ_BF, where they are asked for and the instruments are not equal bit for bit.
    """
    signs = intervals.seed_signs(len(seeds), rng)
    level = 1 - alpha

    def exact(values: list[float]) -> Measured:
        known = _known(values)
        return Measured(value=float_text(elementary.mean(known)), units=len(known), per_unit=_texts(values))

    def change(values: list[float]) -> Measured | None:
        if not _known(values):
            return None
        if bitwise_equal:
            return exact(values)
        return _measured(intervals.t_interval(_known(values), level), values, intervals.sign_test(values, signs))

    def positive(values: list[float]) -> Measured | None:
        known = _known(values)
        if not known:
            return None
        if bitwise_equal:
            return exact(values)
        made = intervals.log_t_interval if min(known) > 0 else intervals.t_interval
        return _measured(made(known, level), values)

    first, second, twin = ([getattr(seed, what) for seed in seeds] for what in ("first", "second", "twin"))
    d1, d2, delta = positive(first), positive(second), change([seed.delta for seed in seeds])
    if d1 is None or d2 is None or delta is None:
        nothing = intervals.t_interval([], level)
        d1, d2, delta = (value or _measured(nothing) for value in (d1, d2, delta))
    ratio = intervals.ratio_interval(twin, first, level) if _known(twin) and not bitwise_equal else None
    deltas = _known([seed.delta for seed in seeds])
    tost = None
    if margin is not None and deltas and not bitwise_equal:
        tost = intervals.tost(intervals.t_interval(deltas, level), margin)
    return BackFlow(
        name=name,
        observable=observable,
        first=d1,
        second=d2,
        delta=delta,
        twin=positive(twin),
        twin_ratio=_measured(ratio, _over(twin, first)) if ratio else None,
        against_common=change([seed.against_common for seed in seeds]),
        against_break=change([seed.against_break for seed in seeds]),
        equivalence=Equivalence(margin=float_text(tost.margin), p=float_text(tost.p)) if tost else None,
        bitwise_equal=True if bitwise_equal else None,
        diagnostics={key: _texts(values) for key, values in diagnostics.items()} if diagnostics else None,
    )
