"""How often intervals hold the truth and tests reject it, at so few seeds: the simulation study behind every interval.

    python benchmarks/coverage.py [--simulations N] [--population FILE] [--write]

Draws studies from populations whose truth is known, S = 2 … 30 seeds each, seeds alone or with R = 4 noise streams
inside, and counts. Everything is computed as `trainmem_audit.intervals` and `estimands` compute it (same formulas over
many studies at once; the tests compare the two), with the sign vectors and the fit of memory time taken from there.
Prints tables and writes `benchmarks/out/coverage.json`; `--write` writes what is committed: the figures, the page
`docs/coverage.md`, and `schema/draft/coverage.json`, which every interval of a report looks its own coverage up in.

`--population FILE` resamples studies from a JSON array of per-seed values of a real study, [v, …], or of numerators and
denominators, [[n, d], …], and prints the coverage of their mean and of their ratio: nothing is written.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from trainmem_audit.estimands import fit_decay
from trainmem_audit.intervals import Signs, benjamini_hochberg, holm, seed_signs, smallest_p, stream_signs

Floats = NDArray[np.float64]
Draw = Callable[[np.random.Generator, tuple[int, ...]], Floats]

ROOT: Final = Path(__file__).parents[1]
PAGE: Final = ROOT / "docs" / "coverage.md"
TABLE: Final = ROOT / "schema" / "draft" / "coverage.json"
RESULTS: Final = ROOT / "benchmarks" / "results" / "coverage.json"
REMEDY: Final = "mend it with: python benchmarks/coverage.py --page"

SEED: Final = 20261125
UNITS: Final = (2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 30)
SHOWN: Final = (3, 5, 8, 10, 20)
STREAMS: Final = 4
EDGES: Final = (3, 6, 9, 12, 15, 20, 30)
"""Upper ends of the bins of skewness (absolute), in tenths; the last bin is open."""
LEVEL: Final = 0.95
ALPHA: Final = 0.05
HORIZONS: Final = (1, 3, 10, 30, 100)


def _contaminated(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    wide = rng.random(shape) < 0.1
    return np.asarray(np.where(wide, 3.0, 1.0) * rng.normal(size=shape) / math.sqrt(1.8))


def _lognormal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    return (rng.lognormal(size=shape) - math.exp(0.5)) / math.sqrt((math.e - 1) * math.e)


DISTRIBUTIONS: Final[dict[str, Draw]] = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "uniform": lambda rng, shape: rng.uniform(-math.sqrt(3), math.sqrt(3), shape),
    "t5": lambda rng, shape: rng.standard_t(5, shape) / math.sqrt(5 / 3),
    "contaminated": _contaminated,
    "exponential": lambda rng, shape: rng.standard_exponential(shape) - 1,
    "lognormal": _lognormal,
}
"""All with mean 0 and variance 1. `contaminated`: one value in ten has three times the spread."""


def seeds_of(draw: Draw, rng: np.random.Generator, studies: int, units: int, nested: bool) -> Floats:
    """Return (studies, units) values of mean 0 and variance 1; nested: a seed's own part plus the mean of R streams."""
    if not nested:
        return draw(rng, (studies, units))
    own, streams = draw(rng, (studies, units)), draw(rng, (studies, units, STREAMS))
    return np.asarray((own + streams.mean(axis=2)) / math.sqrt(1 + 1 / STREAMS))


# --- intervals over many studies at once: rows are studies ---------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """Estimates, half widths and skewness of many studies."""

    estimate: Floats
    half: Floats
    skewness: Floats

    def covers(self, truth: float) -> NDArray[np.bool_]:
        """Return which intervals hold the truth; one that is not there holds nothing."""
        return np.asarray(np.abs(self.estimate - truth) <= self.half)


def t_rows(values: Floats, estimate: Floats | None = None) -> Rows:
    """Return Student's t interval of each row's mean, or around `estimate` with that spread."""
    units = values.shape[1]
    mean = values.mean(axis=1)
    error = values.std(axis=1, ddof=1) / math.sqrt(units)
    half = float(stdtrit(units - 1, 0.5 + LEVEL / 2)) * error
    return Rows(mean if estimate is None else estimate, half, skewness_rows(values))


def jackknife_rows(estimate: Floats, without: Floats) -> Rows:
    """Return the jackknife-t interval of each row, from the statistic without each seed."""
    units = without.shape[1]
    return t_rows(units * estimate[:, None] - (units - 1) * without, estimate)


def ratio_rows(above: Floats, below: Floats) -> Rows:
    """Return the jackknife-t interval of each row's ratio of sums."""
    n, d = above.sum(axis=1), below.sum(axis=1)
    return jackknife_rows(n / d, (n[:, None] - above) / (d[:, None] - below))


def pair_rows(distances: Floats) -> Rows:
    """Return the jackknife-t interval of the logarithm of the mean over pairs of seeds, (studies, S, S)."""
    units = distances.shape[1]
    whole, rows = distances.sum(axis=(1, 2)), distances.sum(axis=2)
    with np.errstate(all="ignore"):
        without = (whole[:, None] - 2 * rows) / ((units - 1) * (units - 2))
    return jackknife_rows(np.log(whole / (units * (units - 1))), np.log(without))


def skewness_rows(values: Floats) -> Floats:
    """Return G₁ of each row, 0 below three values."""
    units = values.shape[1]
    if units < 3 or not len(values):
        return np.zeros(len(values))
    centred = values - values.mean(axis=1, keepdims=True)
    second, third = (centred**2).mean(axis=1), (centred**3).mean(axis=1)
    with np.errstate(all="ignore"):
        found = third / second**1.5 * math.sqrt(units * (units - 1)) / (units - 2)
    return np.asarray(np.nan_to_num(found))


# --- what is simulated ---------------------------------------------------------------------------------------------


def populations(rng: np.random.Generator, studies: int, units: int) -> Iterator[tuple[str, bool, Floats]]:
    """Give (distribution, nested, values) of every population."""
    for nested in (False, True):
        for name, draw in DISTRIBUTIONS.items():
            yield name, nested, seeds_of(draw, rng, studies, units, nested)


Study = Callable[[Draw, np.random.Generator, int, int, bool], tuple[Rows, float]]


def _mean(draw: Draw, rng: np.random.Generator, studies: int, units: int, nested: bool) -> tuple[Rows, float]:
    """The mean of S differences."""
    return t_rows(seeds_of(draw, rng, studies, units, nested)), 0.0


def _log(draw: Draw, rng: np.random.Generator, studies: int, units: int, nested: bool) -> tuple[Rows, float]:
    """The geometric mean of positive values; what is drawn are their logarithms."""
    positive = np.exp(0.5 * seeds_of(draw, rng, studies, units, nested))
    return t_rows(np.log(positive)), 0.0


def _ratio(draw: Draw, rng: np.random.Generator, studies: int, units: int, nested: bool) -> tuple[Rows, float]:
    """E over F: the floor differs by a third between seeds, the effect is half of it, with noise."""
    below = np.exp(0.3 * rng.normal(size=(studies, units)))
    return ratio_rows(0.5 * below + 0.3 * seeds_of(draw, rng, studies, units, nested), below), 0.5


def _pairs(draw: Draw, rng: np.random.Generator, studies: int, units: int, nested: bool) -> tuple[Rows, float]:
    """The seed floor: mean distance between the functions of different seeds, of six coordinates each."""
    studies = max(studies // 8, 1)
    z = seeds_of(draw, rng, studies * 6, units, nested).reshape(studies, 6, units)
    many = seeds_of(draw, rng, 400_000, 2, nested)
    truth = float(np.log(np.abs(many[:, 0] - many[:, 1]).mean()))
    return pair_rows(np.abs(z[..., None] - z[:, :, None, :]).mean(axis=1)), truth


def _times(draw: Draw, rng: np.random.Generator, studies: int, units: int, nested: bool) -> tuple[Rows, float]:
    """Memory time: E/F = 0.8 exp(−h/τ) + noise of 0.04 at five horizons; log τ is spread by 0.3 around log 5."""
    studies = max(studies // 8, 1)
    h = np.asarray(HORIZONS, np.float64)
    log_tau = math.log(5) + 0.3 * seeds_of(draw, rng, studies, units, nested)
    noise = 0.04 * draw(rng, (studies, units, len(h)))
    curves = 0.8 * np.exp(-h / np.exp(log_tau)[..., None]) + noise
    fits = fit_decay(HORIZONS, curves.reshape(-1, len(h)))
    logs = np.log([fit.tau if fit.state in ("fitted", "shorter") else np.nan for fit in fits])
    values = logs.reshape(studies, units)
    return t_rows(values[~np.isnan(values).any(axis=1)]), math.log(5)


KINDS: Final[dict[str, Study]] = {
    "t": _mean,
    "log-t": _log,
    "jackknife-t": _ratio,
    "jackknife-t-pairs": _pairs,
    "log-t-memory-time": _times,
}


def sizes_of(kind: str) -> tuple[int, ...]:
    """Return the numbers of seeds that a kind is simulated at."""
    return tuple(units for units in UNITS if units > 2 or kind != "jackknife-t-pairs")


def simulate_intervals(rng: np.random.Generator, studies: int) -> dict[str, list[dict[str, Any]]]:
    """Return the coverage of every kind of interval that a report shows, for the six populations."""
    found: dict[str, list[dict[str, Any]]] = {}
    for kind, study in KINDS.items():
        rows = found.setdefault(kind, [])
        for units in (units for units in SHOWN if units in sizes_of(kind)):
            for nested in (False, True):
                for name, draw in DISTRIBUTIONS.items():
                    covered = _coverage(*study(draw, rng, studies, units, nested))
                    rows.append({"distribution": name, "nested": nested, "units": units, "coverage": covered})
    return found


def _coverage(rows: Rows, truth: float) -> float:
    return float(rows.covers(truth).mean())


# --- by skewness ---------------------------------------------------------------------------------------------------


def gamma_of(skew: float) -> Draw:
    """Return a gamma distribution of mean 0, variance 1 and this skewness (above 0)."""
    shape_parameter = 4 / skew**2
    return lambda rng, shape: (rng.standard_gamma(shape_parameter, shape) - shape_parameter) * (skew / 2)


def lognormal_of(skew: float) -> Draw:
    """Return a shifted lognormal distribution of mean 0, variance 1 and this skewness (above 0)."""
    low, high = 0.0, 3.0
    for _ in range(80):
        sigma = (low + high) / 2
        below = (math.exp(sigma**2) + 2) * math.sqrt(math.expm1(sigma**2)) < skew
        low, high = (sigma, high) if below else (low, sigma)
    centre, spread = math.exp(sigma**2 / 2), math.sqrt(math.expm1(sigma**2) * math.exp(sigma**2))
    return lambda rng, shape: (rng.lognormal(sigma=sigma, size=shape) - centre) / spread


SKEWED: Final[dict[str, list[tuple[float, Draw]]]] = {
    "gamma": [(0.0, DISTRIBUTIONS["normal"]), *((skew, gamma_of(skew)) for skew in (0.5, 1.0, 1.5, 2.0))],
    "lognormal": [
        (0.0, DISTRIBUTIONS["normal"]),
        *((skew, lognormal_of(skew)) for skew in (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)),
    ],
}


def simulate_skewness(rng: np.random.Generator, studies: int) -> dict[str, dict[str, list[int]]]:
    """Return, by kind and S, the coverage in 1/10 000 for each bin of the sample's skewness.

    A sample of few seeds shows less skewness than its population has. So each family of populations is gone through
    from symmetry to strong skew, and a sample's skewness stands for the population of which it is the median. Quoted is
    the lower of two families at the upper end of the bin, never more than for less skewness.
    """
    found: dict[str, dict[str, list[int]]] = {}
    for kind, study in KINDS.items():
        for units in sizes_of(kind):
            curves = [_curve(study, family, rng, studies, units) for family in SKEWED.values()]
            ends = [edge / 10 for edge in EDGES] + [math.inf]
            cells = [min(float(np.interp(end, *curve)) for curve in curves) for end in ends]
            found.setdefault(kind, {})[str(units)] = [round(10_000 * cell) for cell in cells]
    return found


def _curve(
    study: Study, family: list[tuple[float, Draw]], rng: np.random.Generator, studies: int, units: int
) -> tuple[Floats, Floats]:
    """Return (median absolute skewness of the sample, coverage) along a family, both made monotone."""
    medians, coverages = [], []
    for _, draw in family:
        rows, truth = study(draw, rng, studies, units, False)
        medians.append(float(np.median(np.abs(rows.skewness))))
        coverages.append(_coverage(rows, truth))
    return np.maximum.accumulate(medians), np.minimum.accumulate(coverages)


# --- tests ---------------------------------------------------------------------------------------------------------


def rejections(statistics: Floats, signs: Signs) -> NDArray[np.bool_]:
    """Return which studies a sign test rejects: (studies, signs) sums, the observed one first."""
    as_large = np.abs(statistics) >= np.abs(statistics[:, :1]) * (1 - 1e-9)
    return np.asarray(as_large.mean(axis=1) <= ALPHA)


def simulate_tests(rng: np.random.Generator, studies: int) -> list[dict[str, Any]]:
    """Return how often each test rejects where there is nothing to find."""
    rows: list[dict[str, Any]] = []
    for units in SHOWN:
        signs = seed_signs(units, rng, sampled=1999)
        flips = signs.values[:, :, 0].T.astype(np.float64)
        least = smallest_p(units) if signs.exact else 1 / signs.count
        for name, nested, x in populations(rng, studies, units):
            size = float(rejections(x @ flips, signs).mean())
            rows.append({"test": "sign-flip", "distribution": name, "nested": nested, **_row(units, size, least)})
            t = x.mean(axis=1) / (x.std(axis=1, ddof=1) / math.sqrt(units))
            inside = float(_tost(x + 1.0, 1.0).mean())
            rows.append({"test": "tost", "distribution": name, "nested": nested, **_row(units, inside, 0.0)})
            wide = float((np.abs(t) >= float(stdtrit(units - 1, 1 - ALPHA / 2))).mean())
            rows.append({"test": "t", "distribution": name, "nested": nested, **_row(units, wide, 0.0)})
        rows += [
            {"test": test, "distribution": "normal", "nested": False, **_row(units, size, least)}
            for test, size in _families(rng, studies // 4, units, signs).items()
        ]
    return rows


def _row(units: int, size: float, least: float) -> dict[str, Any]:
    return {"units": units, "size": size, "smallestP": least}


def _tost(x: Floats, margin: float) -> NDArray[np.bool_]:
    """Return which studies find equivalence; their truth is the margin itself."""
    rows = t_rows(x)
    half = rows.half / float(stdtrit(x.shape[1] - 1, 0.5 + LEVEL / 2)) * float(stdtrit(x.shape[1] - 1, 1 - ALPHA))
    return np.asarray(np.abs(rows.estimate) + half <= margin)


def _families(rng: np.random.Generator, studies: int, units: int, signs: Signs) -> dict[str, float]:
    """Return how often any of four contrasts that share their control is found, where there is nothing to find."""
    x = (rng.normal(size=(studies, 4, units)) - rng.normal(size=(studies, 1, units))) / math.sqrt(2)
    flips = signs.values[:, :, 0].T.astype(np.float64)
    found = {"max-t": 0, "holm": 0, "benjamini-hochberg": 0}
    for study in x:
        z = np.abs(study @ flips) / np.sqrt((study**2).sum(axis=1, keepdims=True))
        raw = (z >= z[:, :1] * (1 - 1e-9)).mean(axis=1)
        adjusted = (z.max(axis=0)[None, :] >= z[:, :1] * (1 - 1e-9)).mean(axis=1)
        found["max-t"] += bool(adjusted.min() <= ALPHA)
        found["holm"] += min(holm(raw.tolist())) <= ALPHA
        found["benjamini-hochberg"] += min(benjamini_hochberg(raw.tolist())) <= ALPHA
    return {name: count / studies for name, count in found.items()}


def simulate_law(rng: np.random.Generator, studies: int) -> list[dict[str, Any]]:
    """Return how often the test of the law effect rejects for equal laws, and for laws that differ.

    A function is a mixture of `directions` normal variables, seen at twelve points of a probe; each seed has its own
    mean. Treated and control have independent noise (placebo with independent streams); `shift` moves the treated, in
    standard deviations of one direction.
    """
    rows: list[dict[str, Any]] = []
    for units in SHOWN:
        for streams in (2, 4):
            signs = stream_signs(units, streams, rng, sampled=999)
            upper = np.triu_indices(streams, 1)
            moved = signs.values.astype(np.float64)
            pairs = (moved[:, :, upper[0]] * moved[:, :, upper[1]]).reshape(signs.count, -1).T
            least = smallest_p(units, streams) if signs.exact else 1 / signs.count
            for directions, shift in ((1, 0.0), (3, 0.0), (10, 0.0), (10, 0.7)):
                forms = np.concatenate(
                    [_law_forms(rng, 250, units, streams, directions, shift) for _ in range(max(studies // 250, 1))]
                )
                entries = forms[:, :, upper[0], upper[1]]
                effects = entries.sum(axis=2)
                size = float(rejections(entries.reshape(len(forms), -1) @ pairs, signs).mean())
                by_seed = seed_signs(units, rng, sampled=999)
                flips = by_seed.values[:, :, 0].T.astype(np.float64)
                row = {"streams": streams, "directions": directions, "shift": shift, **_row(units, size, least)}
                seeds = float(rejections(effects @ flips, by_seed).mean())
                with np.errstate(all="ignore"):  # in one direction all E may be exactly 0
                    t = effects.mean(axis=1) / (effects.std(axis=1, ddof=1) / math.sqrt(units))
                by_t = float((np.abs(t) >= float(stdtrit(units - 1, 1 - ALPHA / 2))).mean())
                rows.append({**row, "bySeedSigns": seeds, "byT": by_t})
    return rows


def _law_forms(
    rng: np.random.Generator, studies: int, units: int, streams: int, directions: int, shift: float
) -> Floats:
    own = rng.normal(size=(studies, units, 1, directions))
    mixture = rng.normal(size=(studies, 1, directions, 12)) / math.sqrt(directions)
    move = np.zeros(directions)
    move[0] = shift * math.sqrt(directions)
    control, treated = (
        (own + rng.normal(size=(studies, units, streams, directions)) + extra) @ mixture for extra in (0.0, move)
    )

    def far(a: Floats, b: Floats) -> Floats:
        found: Floats = np.abs(a[:, :, :, None] - b[:, :, None]).mean(axis=-1)
        return found

    across = far(treated, control)
    both = across + across.transpose(0, 1, 3, 2) - far(control, control) - far(treated, treated)
    found: Floats = both / (streams * (streams - 1))
    return found


# --- what is written -----------------------------------------------------------------------------------------------


def run(studies: int) -> dict[str, Any]:
    """Simulate everything; return the figures."""
    began = time.perf_counter()
    children = np.random.default_rng(SEED).spawn(4)
    intervals = simulate_intervals(children[0], studies)
    by_skewness = simulate_skewness(children[3], studies)
    tests = simulate_tests(children[1], max(studies // 2, 4))
    law = simulate_law(children[2], max(studies // 4, 250))
    return {
        "seed": SEED,
        "studies": studies,
        "level": LEVEL,
        "skewnessTenths": list(EDGES),
        "seconds": round(time.perf_counter() - began, 1),
        "machine": {"machine": platform.machine(), "python": platform.python_version(), "numpy": np.__version__},
        "intervals": intervals,
        "bySkewness": by_skewness,
        "tests": tests,
        "law": law,
    }


def lookup(figures: dict[str, Any]) -> bytes:
    """Return the table that `intervals.simulated_coverage` reads."""
    document = {
        "about": "Coverage of nominal 95 % intervals, in 1/10000, by method, number of units and bin of the sample's "
        "absolute skewness (upper ends in tenths, the last bin open). Written by benchmarks/coverage.py.",
        "seed": figures["seed"],
        "studies": figures["studies"],
        "skewnessTenths": figures["skewnessTenths"],
        "methods": figures["bySkewness"],
    }
    return (json.dumps(document, indent=1) + "\n").encode()


METHODS: Final = {
    "t": "Student's t, mean over seeds",
    "log-t": "t on the logarithm",
    "jackknife-t": "jackknife-t, ratio of means",
    "jackknife-t-pairs": "jackknife-t, mean over pairs of seeds (seed floor)",
    "log-t-memory-time": "t on log τ, fitted from E/F of each seed",
}


def page(figures: dict[str, Any]) -> str:
    """Return the page: tables of coverage and size, and what they mean."""
    parts = [HEAD.format(studies=f"{figures['studies']:,}".replace(",", " "), seed=figures["seed"])]
    for nested, title in ((False, "One value for each seed"), (True, "Seeds with four noise streams inside")):
        parts.append(f"\n## {title}: coverage of nominal 95 % intervals, in %\n")
        for name, text in METHODS.items():
            rows = [row for row in figures["intervals"][name] if row["nested"] == nested]
            parts.append(f"\n**{text}**\n\n" + _grid(rows, "coverage"))
    parts.append(f"\n## By skewness of the sample\n{BY_SKEWNESS}\n")
    parts += [f"\n**{text}**\n\n" + _skewness_grid(figures, name) for name, text in METHODS.items()]
    parts.append(f"\n## Size of the tests at 5 %, in %\n{TESTS}\n")
    for test, text in (
        ("sign-flip", "Flipping seeds, exact (sampled above 15 seeds)"),
        ("tost", "Two one-sided tests, the truth at the margin"),
        ("t", "Student's t test, for comparison: no report shows it"),
    ):
        rows = [row for row in figures["tests"] if row["test"] == test and not row["nested"]]
        parts.append(f"\n**{text}**\n\n" + _grid(rows, "size"))
    families = [{**row, "distribution": row["test"]} for row in figures["tests"] if row["test"] in FAMILIES]
    parts.append(f"\n**Any of four contrasts with one control found**\n\n{_grid(families, 'size')}")
    parts.append(f"\n## The law effect\n{LAW}\n\n{_law_grid(figures['law'])}")
    return "".join(parts)


FAMILIES: Final = ("max-t", "holm", "benjamini-hochberg")
HEAD: Final = """# Simulated coverage

Written by `benchmarks/coverage.py --write`; {studies} studies for each cell of the first tables (fewer where a study
takes longer), seed {seed}. Nothing here is measured on a training run: these are draws from populations whose truth is
known. Every interval of a report quotes the cell of its own number of seeds and skewness
([`schema/draft/coverage.json`](../schema/draft/coverage.json)).

The populations have mean 0 and variance 1: normal, uniform, Student's t with 5 degrees of freedom, contaminated (one
value in ten has three times the spread), exponential and lognormal (the last two skewed by 2 and 6). For the ratio they
are the noise of the numerator, for pairs of seeds the coordinates of a function, for memory time both log τ and the
noise of the curve.
"""
BY_SKEWNESS: Final = """
What a report quotes. A sample of few seeds shows less skewness than its population has (three seeds: never above 1.73).
So a sample's skewness stands here for the population of which it is the median, in two families that go from the normal
distribution to strong skew (gamma up to 2, lognormal up to 6), and the lower coverage of the two counts. Two seeds show
no skewness at all, so that the strongest stands there.
"""
TESTS: Final = """
A sign test of so few seeds cannot reach 5 % below six seeds (smallest p: 25 % at three, 6.25 % at five); its size is
then 0. It tests that the differences are symmetric around 0, and for skewed ones it is no test of their mean: the last
two rows are what that costs.
"""
LAW: Final = """
Equal laws with independent noise in the two arms, and in the last rows laws that differ: how often the test of E
rejects at 5 %. E of a seed is a degenerate U-statistic, skewed to the right for R > 2, so that flipping the signs of
seeds is no exact test of it; exchanging treated and control in single streams is
([decision 0052](../schema/decisions/0052-streams-are-exchanged.md)), it finds more, and reports use it.
"""


def _grid(rows: list[dict[str, Any]], what: str) -> str:
    names = list(dict.fromkeys(row["distribution"] for row in rows))
    found = {(row["distribution"], row["units"]): row[what] for row in rows}
    units = [u for u in SHOWN if any((name, u) in found for name in names)]
    head = "| | " + " | ".join(f"S = {u}" for u in units) + " |\n|---" + "|---" * len(units) + "|\n"
    lines = [
        f"| {name} | " + " | ".join(f"{100 * found[name, u]:.1f}" if (name, u) in found else "–" for u in units) + " |"
        for name in names
    ]
    return head + "\n".join(lines) + "\n"


def _skewness_grid(figures: dict[str, Any], name: str) -> str:
    edges = [edge / 10 for edge in figures["skewnessTenths"]]
    titles = [f"to {edges[0]:g}", *(f"to {edge:g}" for edge in edges[1:]), f"above {edges[-1]:g}"]
    lines = ["| | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for units, cells in figures["bySkewness"][name].items():
        lines.append(f"| S = {units} | " + " | ".join(f"{c / 100:.1f}" for c in cells) + " |")
    return "\n".join(lines) + "\n"


def _law_grid(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| S | R | directions | shift | exchanging streams | flipping seeds | t test | smallest p |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["shift"], row["units"], row["streams"], row["directions"])):
        rates = " | ".join(f"{100 * row[key]:.1f}" for key in ("size", "bySeedSigns", "byT"))
        head = f"| {row['units']} | {row['streams']} | {row['directions']} | {row['shift']:g} | "
        lines.append(f"{head}{rates} | {row['smallestP']:.2g} |")
    return "\n".join(lines) + "\n"


def resample(values: list[Any], studies: int, rng: np.random.Generator) -> str:
    """Return the coverage over studies that are drawn from the values of a real one, as text."""
    x = np.asarray(values, np.float64)
    if x.ndim not in (1, 2) or (x.ndim == 2 and x.shape[1] != 2) or len(x) < 2 or not np.isfinite(x).all():
        raise SystemExit("a population is a JSON array of two or more finite numbers, or of pairs of them")
    lines = [f"{len(x)} values; coverage of nominal 95 % intervals, in %"]
    for units in SHOWN:
        chosen = x[rng.integers(0, len(x), (studies, units))]
        if x.ndim == 2:
            with np.errstate(all="ignore"):
                found = {"ratio": ratio_rows(chosen[..., 0], chosen[..., 1]).covers(x[:, 0].sum() / x[:, 1].sum())}
        else:
            found = {"t": t_rows(chosen).covers(float(x.mean()))}
            if (x > 0).all():
                found["log-t"] = t_rows(np.log(chosen)).covers(float(np.log(x).mean()))
        lines.append(f"S = {units:<3}" + "".join(f"{name:>8} {100 * hit.mean():.1f}" for name, hit in found.items()))
    return "\n".join(lines)


def main() -> None:
    """Simulate, print, write."""
    parser = argparse.ArgumentParser(description="simulated coverage of intervals and size of tests")
    parser.add_argument("--simulations", type=int, default=16_000, help="studies for each cell")
    parser.add_argument("--population", type=Path, help="resample a real study's values per seed instead")
    parser.add_argument("--write", action="store_true", help="write the committed figures, page and table")
    parser.add_argument("--page", action="store_true", help="write page and table anew from the committed figures")
    arguments = parser.parse_args()
    if arguments.population:
        values = json.loads(arguments.population.read_text(encoding="utf-8"))
        print(resample(values, arguments.simulations, np.random.default_rng(SEED)))
        return
    if arguments.page:
        figures = json.loads(RESULTS.read_text(encoding="utf-8"))
    else:
        figures = run(arguments.simulations)
        print(page(figures))
        out = RESULTS if arguments.write else ROOT / "benchmarks" / "out" / "coverage.json"
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print(f"{figures['seconds']} s; wrote {out}", file=sys.stderr)
    if arguments.write or arguments.page:
        PAGE.write_text(page(figures), encoding="utf-8")
        TABLE.write_bytes(lookup(figures))


if __name__ == "__main__":
    main()
