"""From the recorded arms of a study to values per seed: the one place that reads predictions.

Reads lazily: of one seed, branch and horizon at a time, the predictions of one control and of one treated over the
noise streams, so that memory does not grow with seeds, arms or horizons. What is missing leaves its seed out of that
contrast, with the reason. Everything that follows (`estimation`) is made of what this returns, and never looks at a
prediction again. Not here: what an arm is on disk (`Arms` is implemented by what reads the study), and chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Final, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from trainmem_audit import distances, elementary
from trainmem_audit.canonical import canonical_bytes, parse_float_text, sha256_hex
from trainmem_audit.errors import FormatError
from trainmem_audit.estimands import BackFlow, SeedDistances, back_flow, law_forms, order_variance

__all__ = [
    "MOST_CELLS",
    "ArmKey",
    "Arms",
    "Contrast",
    "Design",
    "DistanceCell",
    "FunctionalCell",
    "Pairing",
    "Place",
    "Repeat",
    "SeedTables",
    "collect",
    "witness",
]

Floats = NDArray[np.float64]
Array = NDArray[Any]
Pairing = Literal["paired", "no-op", "unpaired"]

MOST_CELLS: Final = 20_000_000
"""The most seeds × branches × horizons × contrasts × observables × streams² of a plan: so many numbers are held."""
_ORDERED: Final = "permute-window"


class ArmKey(NamedTuple):
    """One arm: `seed` is the place of its seed among the plan's."""

    seed: int
    branch: int
    stream: int
    intervention: str

    def __str__(self) -> str:
        return f"{self.intervention}.s{self.seed}.b{self.branch}.r{self.stream}"


class Arms(Protocol):
    """The recorded arms of a study, as their reader gives them; it reads when it is asked."""

    @property
    def targets(self) -> Array | None:
        """Labels or values of the probe, where functionals need them."""

    def problem(self, arm: ArmKey) -> str:
        """Say why an arm cannot be used (`failed: …`, `excluded: …`, `was not run`); empty where it can."""

    def pairing(self, treated: ArmKey, control: ArmKey) -> Pairing:
        """Return the label of the pair's certificate."""

    def predictions(self, arm: ArmKey, horizon: int, head: str) -> Array | None:
        """Return the predictions that many steps after the branch; `None` where none were recorded."""


class Contrast(NamedTuple):
    """An intervention against its control."""

    name: str
    treated: str
    control: str
    family: str


class Place(NamedTuple):
    """Which observable, at which branch, after how many steps."""

    observable: str
    branch: int
    horizon: int


@dataclass(frozen=True)
class Design:
    """What of a plan decides the numbers (`plan.schema.json`), read from its JSON value.

    `digest` is the SHA-256 of its canonical form, from which every random draw is derived.
    """

    digest: str
    seeds: tuple[str, ...]
    streams: int
    fewer: tuple[int, int] | None
    branches: tuple[int, ...]
    horizons: tuple[int, ...]
    interventions: Mapping[str, Mapping[str, Any]]
    combinations: Mapping[str, tuple[str, ...]]
    contrasts: tuple[Contrast, ...]
    observables: Mapping[str, tuple[str, str]]
    primary: tuple[str, str, Place]
    head: str
    alpha: float
    margin: float
    adjustment: str
    kick: str

    @classmethod
    def of(cls, plan: Mapping[str, Any]) -> Design:
        """Return the design of a plan.

        Raises
        ------
        FormatError
            If it asks for more numbers than can be computed, or for an observable that its task does not have.
        """
        fewer = plan.get("fewerStreams")
        primary, analysis = plan["primary"], plan["analysis"]
        design = cls(
            digest=sha256_hex(canonical_bytes(plan)),
            seeds=tuple(plan["seeds"]),
            streams=plan["noiseStreams"],
            fewer=(fewer["after"], fewer["streams"]) if fewer else None,
            branches=tuple(sorted(set(plan["branchSteps"]))),
            horizons=tuple(sorted(set(plan["horizons"]))),
            interventions=plan["interventions"],
            combinations={name: tuple(parts) for name, parts in plan.get("combinations", {}).items()},
            contrasts=tuple(Contrast(c["name"], c["treated"], c["control"], c["family"]) for c in plan["contrasts"]),
            observables={name: (item["kind"], item["task"]) for name, item in plan["observables"].items()},
            primary=(
                primary["contrast"],
                primary["estimand"],
                Place(primary["observable"], primary["branchStep"], primary["horizon"]),
            ),
            head=plan["probe"]["head"],
            alpha=parse_float_text(analysis["alpha"]),
            margin=parse_float_text(analysis["equivalenceMargin"]),
            adjustment=analysis.get("adjustment", "max-t"),
            kick=analysis.get("kick", ""),
        )
        design.check()
        return design

    def check(self) -> None:
        """Refuse what cannot be computed."""
        counted = (self.seeds, self.branches, self.horizons, self.contrasts, self.observables)
        asked = math.prod(map(len, counted)) * self.streams**2  # fmt: skip
        if asked > MOST_CELLS:
            raise FormatError(
                "a plan that asks for too many numbers",
                expected=f"seeds × branches × horizons × contrasts × observables × streams² of at most {MOST_CELLS}",
                got=str(asked),
            )
        for name, (kind, task) in self.observables.items():
            if not distances.supports(kind, task):
                raise FormatError("an observable without a meaning", where=name, got=f"{kind} for {task}")
        if not 0 < self.alpha < 1:
            raise FormatError("alpha is a probability", expected="between 0 and 1", got=str(self.alpha))

    def streams_at(self, horizon: int) -> int:
        """Return how many noise streams reach a horizon."""
        return self.streams if self.fewer is None or horizon <= self.fewer[0] else min(self.fewer[1], self.streams)

    def places(self, kinds: Mapping[str, Any]) -> Iterator[Place]:
        """Yield every place of the observables that are of some kinds (distances, or functionals)."""
        for name, (kind, _) in self.observables.items():
            if kind in kinds:
                for branch in self.branches:
                    for horizon in self.horizons:
                        yield Place(name, branch, horizon)

    @property
    def treatments(self) -> tuple[str, ...]:
        """Return the names of everything that has arms, in a fixed order."""
        return tuple(sorted({name for c in self.contrasts for name in (c.treated, c.control)}))

    def primitive(self, name: str) -> str:
        """Return the primitive of an intervention; empty for a combination."""
        return str(self.interventions.get(name, {}).get("primitive", ""))

    def orders(self) -> list[tuple[str, ...]]:
        """Return the groups of two or more interventions that permute the same window with different seeds."""
        groups: dict[bytes, list[str]] = {}
        for name in self.treatments:
            if self.primitive(name) == _ORDERED:
                groups.setdefault(canonical_bytes(self.interventions[name]["windows"]), []).append(name)
        return [tuple(names) for names in groups.values() if len(names) > 1]


@dataclass
class DistanceCell:
    """Distances of a contrast at a place, a value per seed of the plan (NaN where it is left out).

    `forms` are the terms of the law effect (seeds, R, R), see `estimands.law_forms`. `equal` says that all pairs that
    are there are equal bit for bit. `dropped` gives the reason by seed.
    """

    streams: int
    pathwise: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    treated_floor: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    within: list[float] = field(default_factory=list)
    effect: list[float] = field(default_factory=list)
    forms: list[Floats] = field(default_factory=list)
    equal: bool = True
    paired: bool = True
    dropped: dict[int, str] = field(default_factory=dict)

    def add(self, found: SeedDistances | None) -> None:
        """Append the values of the next seed; `None`: it is left out."""
        lists = (self.pathwise, self.floor, self.treated_floor, self.between, self.within, self.effect)
        if found is None:
            values: Sequence[float] = [math.nan] * len(lists)
            self.forms.append(np.full((self.streams, self.streams), np.nan))
        else:
            values = (
                found.pathwise,
                found.floor,
                found.treated_floor,
                found.between,
                found.within,
                found.law_effect,
            )  # fmt: skip
            self.forms.append(law_forms(found))
        for numbers, value in zip(lists, values, strict=True):
            numbers.append(value)


@dataclass
class FunctionalCell:
    """A functional of both arms at a place: means over streams, a value per seed (NaN where it is left out)."""

    streams: int
    control: list[float] = field(default_factory=list)
    treated: list[float] = field(default_factory=list)
    equal: bool = True
    paired: bool = True
    dropped: dict[int, str] = field(default_factory=dict)

    @property
    def change(self) -> list[float]:
        """Return treated − control."""
        return [t - c for t, c in zip(self.treated, self.control, strict=True)]


@dataclass
class SeedTables:
    """All values per seed.

    `functionals` by intervention, not by contrast, are what factorials are made of; `seed_pairs` are distances between
    the controls of two seeds, `orders` variances over permutations, by group.
    """

    distances: dict[tuple[str, Place], DistanceCell] = field(default_factory=dict)
    signed: dict[tuple[str, Place], FunctionalCell] = field(default_factory=dict)
    functionals: dict[tuple[str, Place], list[float]] = field(default_factory=dict)
    seed_pairs: dict[tuple[str, Place], dict[tuple[int, int], float]] = field(default_factory=dict)
    orders: dict[tuple[tuple[str, ...], Place], list[float]] = field(default_factory=dict)


def collect(design: Design, arms: Arms) -> SeedTables:
    """Return the values of every seed, for every contrast, observable, branch and horizon of a plan.

    Raises
    ------
    FormatError
        If predictions have not the shape that the task demands, or the probe has no targets for a functional.
    """
    if arms.targets is None and any(kind in distances.FUNCTIONALS for kind, _ in design.observables.values()):
        raise FormatError("a functional needs the probe's targets", expected="labels or values of the probe")
    tables = SeedTables()
    for branch in design.branches:
        for horizon in design.horizons:
            reader = _Reader(design, arms, branch, horizon)
            for seed in range(len(design.seeds)):
                reader.seed(tables, seed)
            reader.across_seeds(tables)
    return tables


class _Reader:
    """Reads what belongs to one branch and horizon."""

    def __init__(self, design: Design, arms: Arms, branch: int, horizon: int) -> None:
        self._design = design
        self._arms = arms
        self._branch = branch
        self._horizon = horizon
        self._streams = design.streams_at(horizon)
        self._means: dict[tuple[str, str], float] = {}
        self._distances = {n: k for n, k in design.observables.items() if k[0] in distances.DISTANCES}
        self._functionals = {n: k for n, k in design.observables.items() if k[0] in distances.FUNCTIONALS}

    def seed(self, tables: SeedTables, seed: int) -> None:
        """Add the values of one seed."""
        self._means.clear()
        for control in dict.fromkeys(contrast.control for contrast in self._design.contrasts):
            held, reason = self._all(seed, control)
            among = self._among(held)
            for contrast in self._design.contrasts:
                if contrast.control == control:
                    self._contrast(tables, seed, contrast, held, reason, among)
        for name in self._design.treatments if self._functionals else ():
            if (name, next(iter(self._functionals))) not in self._means:
                held, _ = self._all(seed, name)
                for observable in self._functionals:
                    self._mean(observable, name, held)
            for observable in self._functionals:
                values = tables.functionals.setdefault((name, self._place(observable)), [])
                values.append(self._means[name, observable])
        for group in self._design.orders():
            self._order(tables, seed, group)

    def across_seeds(self, tables: SeedTables) -> None:
        """Add the distances between the controls of different seeds, in the first noise stream."""
        seeds = range(len(self._design.seeds))
        for control in dict.fromkeys(contrast.control for contrast in self._design.contrasts):
            for first in seeds if self._distances else ():
                one = self._one(ArmKey(first, self._branch, 0, control))
                for second in _partners(first, len(seeds)) if one is not None else ():
                    other = self._one(ArmKey(second, self._branch, 0, control))
                    if one is not None and other is not None:
                        for name, (kind, task) in self._distances.items():
                            pairs = tables.seed_pairs.setdefault((control, self._place(name)), {})
                            pairs[first, second] = distances.distance(kind, task, one, other)

    def _place(self, observable: str) -> Place:
        return Place(observable, self._branch, self._horizon)

    def _one(self, arm: ArmKey) -> Array | None:
        return self._usable(arm)[0]

    def _usable(self, arm: ArmKey) -> tuple[Array | None, str]:
        """Return an arm's predictions, or why there are none that can be used."""
        problem = self._arms.problem(arm)
        if problem:
            return None, f"{arm} {problem}"
        found = self._arms.predictions(arm, self._horizon, self._design.head)
        if found is None:
            return None, f"{arm} has no predictions of {self._design.head} after {self._horizon} steps"
        if np.isnan(found).any():
            return None, f"{arm} predicts NaN after {self._horizon} steps"
        return found, ""

    def _all(self, seed: int, name: str) -> tuple[list[Array], str]:
        """Return the predictions of all streams; none of them, and why, where one is missing."""
        held: list[Array] = []
        for stream in range(self._streams):
            arm = ArmKey(seed, self._branch, stream, name)
            found, reason = self._usable(arm)
            if found is None:
                return [], reason
            held.append(found)
        return held, ""

    def _contrast(
        self,
        tables: SeedTables,
        seed: int,
        contrast: Contrast,
        control: list[Array],
        reason: str,
        among: Mapping[str, Floats],
    ) -> None:
        treated, missing = self._all(seed, contrast.treated) if control else ([], "")
        reason = reason or missing
        paired = not treated or all(self._paired(seed, stream, contrast) for stream in range(self._streams))
        equal = all(distances.bit_equal(t, c) for t, c in zip(treated, control if treated else [], strict=True))
        own = self._among(treated)
        for name in self._distances:
            cell = tables.distances.setdefault((contrast.name, self._place(name)), DistanceCell(self._streams))
            _judge(cell, seed, equal, paired, reason)
            cell.add(SeedDistances(self._across(name, treated, control), among[name], own[name]) if treated else None)
        for name in self._functionals:
            signed = tables.signed.setdefault((contrast.name, self._place(name)), FunctionalCell(self._streams))
            _judge(signed, seed, equal, paired, reason)
            signed.control.append(self._mean(name, contrast.control, control) if treated else math.nan)
            signed.treated.append(self._mean(name, contrast.treated, treated))

    def _paired(self, seed: int, stream: int, contrast: Contrast) -> bool:
        treated, control = (ArmKey(seed, self._branch, stream, name) for name in (contrast.treated, contrast.control))
        return self._arms.pairing(treated, control) != "unpaired"

    def _among(self, held: list[Array]) -> dict[str, Floats]:
        """Return the distances among the streams of one intervention, by observable."""
        return {name: self._matrix(name, held) for name in self._distances}

    def _matrix(self, observable: str, held: list[Array]) -> Floats:
        matrix = np.zeros((len(held), len(held)))
        pairs = list(combinations(range(len(held)), 2))
        for (r, q), far in zip(pairs, self._pairwise(observable, held, pairs), strict=True):
            matrix[r, q] = matrix[q, r] = far
        return matrix

    def _across(self, observable: str, treated: list[Array], control: list[Array]) -> Floats:
        """Return the distances of every treated (row) from every control."""
        count = len(treated)
        pairs = [(r, count + q) for r in range(count) for q in range(len(control))]
        return np.array(self._pairwise(observable, [*treated, *control], pairs)).reshape(count, len(control))

    def _pairwise(self, observable: str, held: list[Array], pairs: list[tuple[int, int]]) -> list[float]:
        return distances.pairwise(*self._distances[observable], held, pairs)

    def _mean(self, observable: str, name: str, held: list[Array]) -> float:
        """Return the mean of a functional over the streams of an intervention, computed once for each seed."""
        if (name, observable) not in self._means:
            self._means[name, observable] = self._functional(observable, held)
        return self._means[name, observable]

    def _functional(self, observable: str, held: list[Array]) -> float:
        targets = self._arms.targets
        if not held or targets is None:
            return math.nan
        kind, task = self._functionals[observable]
        return elementary.mean(distances.functional(kind, task, one, targets) for one in held)

    def _order(self, tables: SeedTables, seed: int, group: tuple[str, ...]) -> None:
        """Add the variance over the permutations of a window: within each stream, then the mean over streams."""
        found: dict[str, list[float]] = {name: [] for name in self._distances}
        for stream in range(self._streams):
            held = [self._one(ArmKey(seed, self._branch, stream, name)) for name in group]
            there = [one for one in held if one is not None]
            for name, values in found.items():
                values.append(order_variance(self._matrix(name, there)) if len(there) == len(group) else math.nan)
        for name, values in found.items():
            tables.orders.setdefault((group, self._place(name)), []).append(elementary.mean(values))


_MOST_PARTNERS: Final = 16


def _partners(seed: int, seeds: int) -> list[int]:
    """Return the later seeds that a seed is compared with: all of them, or the next few around where seeds are many."""
    if seeds <= 2 * _MOST_PARTNERS + 1:
        return list(range(seed + 1, seeds))
    return [(seed + step) % seeds for step in range(1, _MOST_PARTNERS + 1)]


def _judge(cell: DistanceCell | FunctionalCell, seed: int, equal: bool, paired: bool, reason: str) -> None:
    cell.paired = cell.paired and paired
    if reason:
        cell.dropped[seed] = reason
    else:
        cell.equal = cell.equal and equal


# --- back-flow -----------------------------------------------------------------------------------------------------


class Repeat(NamedTuple):
    """Predictions of one repeat of the two-instrument experiment, two branches A and A′ in each field (STANDARD § 6).

    `first`: after A and A′. `second`: after B, with the state carried over. `broken`: with the optimizer made anew
    before B. `common`: with the mean of both momenta in both branches. `twins`: B(θ_A, m_A′) and B(θ_A′, m_A).
    """

    first: tuple[Array, Array]
    second: tuple[Array, Array]
    broken: tuple[Array, Array] | None = None
    common: tuple[Array, Array] | None = None
    twins: tuple[Array, Array] | None = None


def witness(kind: str, task: str, repeats: Iterable[Repeat]) -> tuple[BackFlow, bool]:
    """Return the witness of one seed from its repeats, which may be read one by one, and whether A and A′ are equal.

    They are equal where the predictions after both are the same bits in every repeat, after the first instruments and
    after the second: then there is nothing to test.

    Raises
    ------
    FormatError
        If the kind is no distance for this task, or shapes differ.
    """
    first: list[float] = []
    second: list[float] = []
    broken: list[float] = []
    common: list[float] = []
    twins: list[tuple[float, float]] = []
    equal = True
    for repeat in repeats:
        for pair, into in zip(repeat, (first, second, broken, common), strict=False):
            if pair is not None:
                into.append(distances.distance(kind, task, *pair))
        if repeat.twins is not None:
            four = [*repeat.second, *repeat.twins]
            carried, crossed = distances.pairwise(kind, task, four, [(0, 2), (1, 3)])
            twins.append((carried, crossed))
        equal = equal and all(distances.bit_equal(*pair) for pair in (repeat.first, repeat.second))
    return back_flow(first, second, broken, common, twins), equal and bool(first)
