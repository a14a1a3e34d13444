"""How sure one may be of a number, when the seed is the unit: intervals, exact tests, equivalence, families, power.

STANDARD § 5. What is given here are values per seed; probes, batches, repeats and horizons are no units and never come
in. Student's t on seed means, the same on the logarithm of what is positive, the jackknife over seeds for ratios of
means; bootstraps are left out because at these numbers of seeds they cover far too little.

Every test is a randomisation test. `seed_signs` flips the sign of whole seeds: exact where treated and control are
exchangeable in each seed. `stream_signs` exchanges treated and control in single noise streams, which makes the
law-level statistic exact at any number of streams, where flipping seeds is not (decision 0052). Draws come from a
required `rng` as soon as there are too many signs to go through all of them.

Nothing here crashes or says p = 0 at one or two seeds, without spread, or at values that are no numbers: what is wrong
stands in `notes`. Numbers that SciPy gives (quantiles and tails of t) are rounded to ten digits, so that releases of it
that differ in the last bit give the same bits here. Not here: what the values are (`estimands`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from trainmem_audit import elementary
from trainmem_audit.resources import data_file

__all__ = [
    "COVERAGE_FILE",
    "EXACT_UP_TO",
    "SAMPLED",
    "SKEWNESS_WARNING",
    "Interval",
    "Method",
    "Power",
    "SignTest",
    "Signs",
    "Tost",
    "Verdict",
    "benjamini_hochberg",
    "holm",
    "jackknife_t",
    "log_t_interval",
    "max_t",
    "power",
    "ratio_interval",
    "seed_signs",
    "sign_test",
    "simulated_coverage",
    "skewness",
    "smallest_p",
    "stream_signs",
    "t_interval",
    "tost",
    "verdict",
]

Floats = NDArray[np.float64]
Method = Literal["t", "log-t", "jackknife-t"]
Verdict = Literal["effect", "equivalent", "undecided", "unpaired"]

EXACT_UP_TO: Final = 2**14
"""The most sign vectors that are all gone through."""
SAMPLED: Final = 9999
"""How many are drawn where there are more; the observed one is added, so that p is never 0."""
SKEWNESS_WARNING: Final = 1.5
SMALLEST_UNITS_OF_A_SPREAD: Final = 2
_TIE: Final = 1e-9
"""What is as large as the observed one but for rounding counts as large; in units of the root of the sum of squares."""
COVERAGE_FILE: Final = "draft/coverage.json"


@dataclass(frozen=True)
class Interval:
    """An estimate and how far off it may be.

    `error` is its standard error on the scale of the method (the logarithm for `log-t`), with `units` − 1 degrees of
    freedom; `skewness` is that of the values, or of the jackknife's pseudo-values, on that scale. `low` and `high` are
    −inf and inf where one unit, or none, shows no spread.
    """

    estimate: float
    low: float
    high: float
    level: float
    method: Method
    units: int
    error: float
    skewness: float
    notes: tuple[str, ...] = ()

    @property
    def bounded(self) -> bool:
        """Return whether the interval says anything."""
        return not math.isnan(self.error)


@dataclass(frozen=True)
class Signs:
    """Sign vectors (draws, units, streams) of ±1, the observed one first. `exact`: all there are, else a sample.

    By its kind a seed has one sign (`streams` is 1), or one for each stream.
    """

    values: NDArray[np.int8]
    exact: bool

    @property
    def count(self) -> int:
        """Return how many there are, the observed one among them."""
        return len(self.values)

    @property
    def by_stream(self) -> bool:
        """Return whether streams are exchanged, not seeds."""
        return bool(self.values.shape[2] > 1)


@dataclass(frozen=True)
class SignTest:
    """A two-sided randomisation test: how often chance alone gives at least as much, and the least it can say."""

    method: Literal["sign-flip-exact", "sign-flip-sampled", "swap-exact", "swap-sampled"]
    p: float
    smallest: float
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tost:
    """Two one-sided t tests: `p` is the larger of the two, NaN where there is no spread to judge by."""

    margin: float
    p: float


@dataclass(frozen=True)
class Power:
    """The chance to find what the pilot found; `cautious` takes the pilot's spread at its upper 80 % limit."""

    estimated: float
    cautious: float
    smallest: float


# --- intervals ---------------------------------------------------------------------------------------------------


def t_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Return Student's t interval for the mean of the values, one for each seed."""
    kept, notes = _finite(values)
    return _student(elementary.mean(kept), kept, level, "t", notes)


def log_t_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Return the t interval of the mean logarithm, taken back: for the geometric mean of positive values.

    A value of infinity is one that is longer than could be seen: then the estimate and the upper end are infinite, and
    the lower end is that of the others, or −inf where fewer than two are left.
    """
    numbers = [float(value) for value in values]
    endless = sum(value == math.inf for value in numbers)
    kept, notes = _finite(value for value in numbers if value != math.inf)
    positive = [value for value in kept if value > 0]
    if len(positive) < len(kept):
        notes += (f"{_some(len(kept) - len(positive), len(numbers))} not above 0 and left out: it has no logarithm",)
    logs = elementary.log(positive).tolist() if positive else []
    found = _student(elementary.mean(logs), logs, level, "log-t", notes)
    low, high = (0.0 if math.isinf(end) and end < 0 else elementary.exp_of(end) for end in (found.low, found.high))
    estimate = elementary.exp_of(found.estimate)
    if endless:
        notes = (*found.notes, f"{_some(endless, len(numbers))} longer than could be seen")
        return _with(found, math.inf, low, math.inf, notes)
    return _with(found, estimate, low, high, found.notes)


def ratio_interval(
    numerators: Sequence[float], denominators: Sequence[float], level: float = 0.95, *, log: bool = False
) -> Interval:
    """Return the jackknife-t interval over seeds for the ratio of two sums: Σ numerators / Σ denominators.

    Parameters
    ----------
    log:
        Whether both are positive, so that the jackknife is of the ratio's logarithm; the estimate is taken back.
    """
    pairs = [(float(n), float(d)) for n, d in zip(numerators, denominators, strict=True)]
    kept = [(n, d) for n, d in pairs if math.isfinite(n) and math.isfinite(d)]
    notes = () if len(kept) == len(pairs) else (f"{_some(len(pairs) - len(kept), len(pairs))} not finite and left out",)

    def ratio(rows: list[tuple[float, float]]) -> float:
        below = elementary.total(d for _, d in rows)
        return elementary.total(n for n, _ in rows) / below if rows and below else math.nan

    without = [ratio(kept[:i] + kept[i + 1 :]) for i in range(len(kept))]
    return jackknife_t(ratio(kept), without if len(kept) > 1 else [], len(kept), level, log=log, notes=notes)


def jackknife_t(
    estimate: float,
    leave_one_out: Sequence[float],
    units: int,
    level: float = 0.95,
    *,
    log: bool = False,
    notes: tuple[str, ...] = (),
) -> Interval:
    """Return the jackknife-t interval of any statistic of the seeds.

    Parameters
    ----------
    estimate, leave_one_out:
        The statistic of all seeds, and without each of them in turn.
    log:
        Whether it is positive and is looked at on the logarithm.
    """
    if log:
        found = jackknife_t(
            elementary.log_of(estimate), elementary.log(leave_one_out).tolist(), units, level, notes=notes
        )
        low, high = (0.0 if end == -math.inf else elementary.exp_of(end) for end in (found.low, found.high))
        return _with(found, estimate, low, high, found.notes)
    if not math.isfinite(estimate) or not all(math.isfinite(value) for value in leave_one_out):
        return _nothing(estimate, "jackknife-t", level, units, (*notes, "the ratio has no value without some seed"))
    pseudo = [units * estimate - (units - 1) * value for value in leave_one_out]
    return _student(estimate, pseudo if units > 1 else [estimate] * units, level, "jackknife-t", notes)


def skewness(values: Iterable[float]) -> float:
    """Return the sample skewness G₁ (unbiased under normality: 0); NaN below three values or without spread."""
    numbers = [float(value) for value in values]
    n = len(numbers)
    if n < 3 or min(numbers) == max(numbers):
        return math.nan
    centre = elementary.mean(numbers)
    scale = max(abs(value - centre) for value in numbers)
    if not 0 < scale < math.inf:
        return math.nan
    z = [(value - centre) / scale for value in numbers]
    second, third = elementary.mean(x * x for x in z), elementary.mean(x * x * x for x in z)
    return third / (second * math.sqrt(second)) * math.sqrt(n * (n - 1)) / (n - 2)


def _student(estimate: float, values: list[float], level: float, method: Method, notes: tuple[str, ...]) -> Interval:
    units = len(values)
    if not units:
        return _nothing(math.nan, method, level, 0, (*notes, "no unit is left"))
    if units < SMALLEST_UNITS_OF_A_SPREAD:
        return _nothing(estimate, method, level, units, (*notes, "one unit shows no spread, so there is no interval"))
    error = _standard_error(values)
    skew = skewness(values)
    if error == 0:
        notes += ("all units have the same value: there is no spread to judge by",)
    elif abs(skew) > SKEWNESS_WARNING:
        notes += (f"skewness {skew:.1f}: the interval covers less than its level",)
    half = _quantile(level, units - 1) * error
    return Interval(estimate, estimate - half, estimate + half, level, method, units, error, skew, notes)


def _nothing(estimate: float, method: Method, level: float, units: int, notes: tuple[str, ...]) -> Interval:
    return Interval(estimate, -math.inf, math.inf, level, method, units, math.nan, math.nan, notes)


def _with(found: Interval, estimate: float, low: float, high: float, notes: tuple[str, ...]) -> Interval:
    return Interval(estimate, low, high, found.level, found.method, found.units, found.error, found.skewness, notes)


def _finite(values: Iterable[float]) -> tuple[list[float], tuple[str, ...]]:
    numbers = [float(value) for value in values]
    kept = [value for value in numbers if math.isfinite(value)]
    lost = len(numbers) - len(kept)
    return kept, (f"{_some(lost, len(numbers))} not finite and left out",) if lost else ()


def _some(part: int, whole: int) -> str:
    return f"{part} of {whole} values {'is' if part == 1 else 'are'}"


def _standard_error(values: list[float]) -> float:
    centre = elementary.mean(values)
    if min(values) == max(values):
        return 0.0
    squares = elementary.total((value - centre) * (value - centre) for value in values)
    return math.sqrt(squares / (len(values) - 1) / len(values))


def _quantile(level: float, freedom: int) -> float:
    """Return the two-sided critical value of Student's t."""
    from scipy.special import stdtrit

    return _ten_digits(float(stdtrit(freedom, 0.5 + level / 2)))


def _upper_tail(t: float, freedom: int) -> float:
    from scipy.special import stdtr

    return _ten_digits(float(stdtr(freedom, -t)))


def _ten_digits(value: float) -> float:
    return float(f"{value:.9e}")


# --- tests -------------------------------------------------------------------------------------------------------


def seed_signs(
    units: int, rng: np.random.Generator, *, exact_up_to: int = EXACT_UP_TO, sampled: int = SAMPLED
) -> Signs:
    """Return sign vectors that flip whole seeds; one of each two opposite ones, as tests are two-sided."""
    return _signs(units, 1, max(units - 1, 0), rng, exact_up_to, sampled)


def stream_signs(
    units: int, streams: int, rng: np.random.Generator, *, exact_up_to: int = EXACT_UP_TO, sampled: int = SAMPLED
) -> Signs:
    """Return sign vectors that exchange treated and control in single streams; the first of a seed stays, as only
    products of two signs matter (see `law_forms` in `estimands`)."""
    return _signs(units, streams, units * (streams - 1), rng, exact_up_to, sampled)


def _signs(units: int, streams: int, free: int, rng: np.random.Generator, exact_up_to: int, sampled: int) -> Signs:
    by_stream = streams > 1
    if free <= math.log2(exact_up_to):
        numbers = np.arange(2**free)[:, None]
        bits = ((numbers >> np.arange(free)[None, :]) & 1).astype(np.int8)
        exact = True
    else:
        # raw words, since NumPy promises only of those that they stay the same from release to release
        needed = (sampled + 1) * free
        words = np.asarray(rng.bit_generator.random_raw(-(-needed // 64)), "<u8")
        flat = np.unpackbits(words.view(np.uint8), bitorder="little")[:needed]
        bits = flat.reshape(sampled + 1, free).astype(np.int8)  # a wider type would cost gigabytes
        bits[0] = 0
        exact = False
    signs = np.ones((len(bits), units, streams), np.int8)
    moved = 1 - 2 * bits
    if by_stream:
        signs[:, :, 1:] = moved.reshape(len(bits), units, streams - 1)
    elif free:
        signs[:, 1:, 0] = moved
    return Signs(signs, exact)


def smallest_p(units: int, streams: int = 1, *, exact_up_to: int = EXACT_UP_TO, sampled: int = SAMPLED) -> float:
    """Return the smallest p that so many seeds can give; `streams` above 1 for the law-level test."""
    free = units * (streams - 1) if streams > 1 else max(units - 1, 0)
    if free > math.log2(exact_up_to):
        return 1 / (sampled + 1)
    return min(1.0, (2.0 if streams == 2 else 1.0) / 2.0**free)


def sign_test(values: NDArray[Any] | Sequence[float], signs: Signs) -> SignTest:
    """Test that the values have no tendency: their sum against that under every sign vector, two-sided.

    Parameters
    ----------
    values:
        (units,) values of seeds, or, with signs by stream, (units, streams, streams) forms: symmetric, of which the sum
        is tested, an entry changing its sign with the product of two streams' signs. A unit with a NaN counts as 0.
    """
    (found,) = max_t([values], signs)
    return found


def max_t(family: Sequence[NDArray[Any] | Sequence[float]], signs: Signs) -> list[SignTest]:
    """Test a family together: each against the largest of all under shared sign vectors (Westfall and Young's max-T).

    Sums are divided by the root of the sum of squares, which no sign changes: an order equal to that of |t|.
    """
    statistics = [_statistics(values, signs) for values in family]
    if not statistics:
        return []
    largest = np.maximum.reduce(statistics)
    units, streams = signs.values.shape[1:]
    kind: Any = ("swap" if signs.by_stream else "sign-flip") + ("-exact" if signs.exact else "-sampled")
    tests = []
    for values, own in zip(family, statistics, strict=True):
        there = int((~np.isnan(np.asarray(values, np.float64).reshape(units, -1)).any(axis=1)).sum())
        p = float(np.count_nonzero(largest >= own[0] - _TIE)) / signs.count
        least = smallest_p(there, streams, exact_up_to=2**62) if signs.exact else 1 / signs.count
        notes = () if own[0] > 0 else ("every difference is exactly 0: there is nothing to test",)
        tests.append(SignTest(kind, p, least, notes))
    return tests


def _statistics(values: NDArray[Any] | Sequence[float], signs: Signs) -> Floats:
    """Return |sum| under each sign vector, over the root of the sum of squares; zeros where all is 0."""
    x = np.asarray(values, np.float64)
    x = np.where(np.isnan(x).reshape(len(x), -1).any(axis=1).reshape(-1, *([1] * (x.ndim - 1))), 0.0, x)
    norm = math.sqrt(elementary.total(np.square(x / (np.abs(x).max(initial=0.0) or 1.0)).ravel().tolist()))
    norm *= float(np.abs(x).max(initial=0.0))
    sums = np.zeros(signs.count)
    if norm == 0 or not math.isfinite(norm):
        return sums
    for unit in range(len(x)):
        own = signs.values[:, unit].astype(np.float64)
        sums += ((own @ x[unit]) * own).sum(axis=1) if signs.by_stream else own[:, 0] * x[unit]
    found: Floats = np.abs(sums) / norm
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p-values; a NaN is no member of the family and stays one."""
    return _stepwise(p_values, descending=False)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Return Benjamini and Hochberg's adjusted p-values (false discovery rate); a NaN stays one, outside the family."""
    return _stepwise(p_values, descending=True)


def _stepwise(p_values: Sequence[float], *, descending: bool) -> list[float]:
    adjusted = [math.nan] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    count = len(order)
    bound = 1.0 if descending else 0.0
    ranks = range(count - 1, -1, -1) if descending else range(count)
    for rank in ranks:
        own = p_values[order[rank]]
        bound = min(bound, own * count / (rank + 1)) if descending else max(bound, own * (count - rank))
        adjusted[order[rank]] = min(1.0, bound)
    return adjusted


def tost(interval: Interval, margin: float) -> Tost:
    """Test that the quantity lies within ±margin, by two one-sided t tests with the interval's standard error.

    Without spread p is NaN: such arms are bitwise equal or there is one seed, and neither is a matter of chance.
    """
    if not (interval.error > 0 and math.isfinite(interval.estimate)) or interval.units < SMALLEST_UNITS_OF_A_SPREAD:
        return Tost(margin, math.nan)
    nearest = (margin - abs(interval.estimate)) / interval.error
    return Tost(margin, _upper_tail(nearest, interval.units - 1))


def verdict(*, paired: bool, bitwise_equal: bool, p: float, equivalence: float, alpha: float) -> Verdict:
    """Return the verdict: what lies within the margin is equivalent, whether or not it can be told from 0.

    Parameters
    ----------
    p, equivalence:
        The p-values of the test of no effect (adjusted) and of the two one-sided tests; NaN where there is none.
    """
    if not paired:
        return "unpaired"
    if bitwise_equal or equivalence <= alpha:
        return "equivalent"
    return "effect" if p <= alpha else "undecided"


def power(pilot: Sequence[float], units: int, alpha: float = 0.05) -> Power:
    """Return the chance that so many seeds find an effect of the pilot's size and spread (noncentral t, two-sided).

    0 where so few seeds cannot reach alpha by flipping signs; NaN where the pilot shows no spread.
    """
    from scipy.special import chdtri

    kept, _ = _finite(pilot)
    least = smallest_p(units)
    if len(kept) < SMALLEST_UNITS_OF_A_SPREAD or not _standard_error(kept) or units < SMALLEST_UNITS_OF_A_SPREAD:
        return Power(math.nan, math.nan, least)
    if least > alpha:
        return Power(0.0, 0.0, least)
    spread = _standard_error(kept) * math.sqrt(len(kept))
    widened = spread * math.sqrt((len(kept) - 1) / float(chdtri(len(kept) - 1, 0.8)))
    effect = abs(elementary.mean(kept))
    return Power(_chance(effect / spread, units, alpha), _chance(effect / widened, units, alpha), least)


def _chance(size: float, units: int, alpha: float) -> float:
    from scipy.special import nctdtr

    critical, shift = _quantile(1 - alpha, units - 1), min(size * math.sqrt(units), 35.0)
    below, beyond = (float(nctdtr(units - 1, shift, at)) for at in (critical, -critical))
    missed = 0.0 if math.isnan(below) and shift > critical else below  # so far out that SciPy's series gives up
    return _ten_digits(1 - missed + (0.0 if math.isnan(beyond) else beyond))


# --- simulated coverage ------------------------------------------------------------------------------------------


def simulated_coverage(method: str, units: int, skew: float) -> float:
    """Return the coverage that a nominal 95 % interval had in simulations with so many seeds and such a skewness.

    The mean over the simulated populations, of samples whose skewness fell into the same bin (`benchmarks/coverage.py`
    writes the table). Between two simulated numbers of seeds the smaller one counts. NaN where nothing was simulated.
    """
    table = _coverage_table()
    bins = table["methods"].get(method, {})
    known = [number for number in map(int, bins) if number <= units]
    if not known:
        return math.nan
    row = bins[str(max(known))]
    size = 0.0 if math.isnan(skew) else abs(skew)
    chosen = next((i for i, edge in enumerate(table["skewnessTenths"]) if size <= edge / 10), len(row) - 1)
    filled = [i for i, cell in enumerate(row) if cell >= 0]
    nearest = min(filled, key=lambda i: abs(i - min(chosen, len(row) - 1)), default=None)
    return math.nan if nearest is None else row[nearest] / 10_000


@cache
def _coverage_table() -> dict[str, Any]:
    table: dict[str, Any] = json.loads(data_file("schema", COVERAGE_FILE).read_bytes())
    return table
