"""What a study claims, as functions of distances: no files, no chance, no judgement.

STANDARD § 5. Of one seed there are, after a shared prefix, R noise streams, and for each a control C_r and a treated
T_r with common random numbers. `SeedDistances` holds the distances among these 2R functions at one horizon, and gives

- **pathwise** P = mean over r of d(T_r, C_r): exact for these paths, never a claim about memory by itself;
- the **fork floor** F = mean over r < q of d(C_r, C_q), B = mean over r ≠ q of d(T_r, C_q), W = ½ [F + the same of T];
- the **law effect** E = B − W, whose expectation is 0 where the two laws are equal.

Then come what is made of those over seeds or horizons: dose response, memory time, washout, factorial effects, Shapley
values, order sensitivity, the back-flow witness (§ 6). Numbers per seed go on to `intervals`. All sums are exactly
rounded or run in a fixed order, so that all is the same everywhere. Not here: distances themselves (`distances`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from trainmem_audit import elementary
from trainmem_audit.errors import FormatError

__all__ = [
    "MOST_SOURCES",
    "BackFlow",
    "Decay",
    "SeedDistances",
    "area",
    "back_flow",
    "dose_response",
    "fit_decay",
    "interactions",
    "last_significant",
    "law_forms",
    "log_log_slope",
    "log_ratio",
    "main_effects",
    "order_variance",
    "seed_floor",
    "shapley",
    "washout",
]

Floats = NDArray[np.float64]
MOST_SOURCES: Final = 10
"""A factorial has two to the power of this many arms for each seed."""


@dataclass(frozen=True)
class SeedDistances:
    """Distances among the arms of one seed at one horizon.

    Parameters
    ----------
    across:
        (R, R): d(T_r, C_q), treated by row.
    control, treated:
        (R, R), symmetric, 0 on the diagonal: d(C_r, C_q) and d(T_r, T_q).
    """

    across: Floats
    control: Floats
    treated: Floats

    def __post_init__(self) -> None:
        shape = (len(self.across), len(self.across))
        if not shape[0] or any(matrix.shape != shape for matrix in (self.across, self.control, self.treated)):
            got = f"{self.across.shape}, {self.control.shape}, {self.treated.shape}"
            raise FormatError("distances of one seed are three matrices over its streams", expected="(R, R)", got=got)

    @property
    def streams(self) -> int:
        """Return R."""
        return len(self.across)

    @property
    def pathwise(self) -> float:
        """Return P."""
        return elementary.mean(np.diagonal(self.across).tolist())

    @property
    def floor(self) -> float:
        """Return F; NaN with one stream."""
        return elementary.mean(_upper(self.control))

    @property
    def treated_floor(self) -> float:
        """Return the fork floor among the treated; NaN with one stream."""
        return elementary.mean(_upper(self.treated))

    @property
    def between(self) -> float:
        """Return B; NaN with one stream."""
        return elementary.mean([*_upper(self.across), *_upper(self.across.T)])

    @property
    def within(self) -> float:
        """Return W; NaN with one stream."""
        return (self.floor + self.treated_floor) / 2

    @property
    def law_effect(self) -> float:
        """Return E = B − W, of one exactly rounded sum, so that it is exactly 0 where the arms are equal."""
        forms = law_forms(self)
        return elementary.total(forms[np.triu_indices(self.streams, 1)].tolist()) if self.streams > 1 else math.nan


def law_forms(distances: SeedDistances) -> Floats:
    """Return the (R, R) form whose entries r < q sum to E: what exchanging C_r and T_r turns into its negative.

    The entry is [d(T_r, C_q) + d(T_q, C_r) − d(C_r, C_q) − d(T_r, T_q)] / (R (R − 1)): with treated and control
    exchanged in stream r alone it changes its sign, and with both exchanged it keeps it. The diagonal is 0.
    """
    count = distances.streams
    cross = distances.across + distances.across.T
    forms: Floats = (cross - (distances.control + distances.treated)) / max(count * (count - 1), 1)
    np.fill_diagonal(forms, 0.0)
    return forms


def _upper(matrix: Floats) -> list[float]:
    found: list[float] = matrix[np.triu_indices(len(matrix), 1)].tolist()
    return found


def log_ratio(above: float, below: float) -> float:
    """Return log(above / below), for the specific effect log(P / K); NaN where one of them is not above 0."""
    if not (above > 0 and below > 0):
        return math.nan
    return elementary.log_of(above) - elementary.log_of(below)


def dose_response(full: float, half: float) -> float:
    """Return log₂ P(reset) / P(×0.5): 1 where distance grows with the dose, 0 where chaos has taken over."""
    return log_ratio(full, half) / elementary.log_of(2.0)


def seed_floor(pairs: Mapping[tuple[int, int], float]) -> tuple[float, dict[int, float]]:
    """Return the mean distance between the controls of different seeds, and the same without each seed.

    Parameters
    ----------
    pairs:
        Distance by (seed, other seed). The jackknife over seeds is taken from what is returned.
    """
    seeds = sorted({seed for pair in pairs for seed in pair})
    without = {seed: elementary.mean(d for pair, d in pairs.items() if seed not in pair) for seed in seeds}
    return elementary.mean(pairs.values()), without


# --- over horizons -----------------------------------------------------------------------------------------------

_TAUS: Final = 241
_REFINED: Final = 41
_ROUNDS: Final = 3
_CURVES_AT_ONCE: Final = 1024


@dataclass(frozen=True)
class Decay:
    """An exponential a·exp(−h/τ), fitted by least squares; `tau` in steps.

    `state`: `fitted`; `longer`: τ is beyond the last horizon (`tau` is infinite); `shorter`: the effect is gone so soon
    that only an upper bound is known (`tau` is that bound); `none`: no positive effect that could decay (`tau` is NaN).
    """

    tau: float
    amplitude: float
    state: Literal["fitted", "longer", "shorter", "none"]


def fit_decay(horizons: Sequence[int], curves: NDArray[Any]) -> list[Decay]:
    """Fit the memory time of each seed: curves (seeds, horizons) of E / F, never of a pathwise distance.

    The fit is by least squares on the curve itself, since E may be below 0: a grid over log τ from a quarter of the
    first horizon to a hundred times the last, refined; the amplitude is in closed form. Horizons of 0 steps are left
    out. A curve with a value that is no number has no fit.
    """
    steps = np.asarray([float(h) for h in horizons])
    keep = steps > 0
    steps, y = steps[keep], np.asarray(curves, np.float64).reshape(-1, len(keep))[:, keep]
    if len(steps) < 3:
        return [Decay(math.nan, math.nan, "none") for _ in y]
    found = (_fit(steps, y[start : start + _CURVES_AT_ONCE]) for start in range(0, len(y), _CURVES_AT_ONCE))
    return [decay for some in found for decay in some]


def _fit(steps: Floats, y: Floats) -> list[Decay]:
    low, high = float(elementary.log(steps.min() / 4)), float(elementary.log(steps.max() * 100))
    grid = low + (high - low) * np.arange(_TAUS)[None, :] / (_TAUS - 1)
    step = (high - low) / (_TAUS - 1)
    rows = np.arange(len(y))
    for _ in range(_ROUNDS):
        best = np.argmax(_gain(steps, y, grid)[0], axis=1)
        centre = np.broadcast_to(grid, (len(y), grid.shape[1]))[rows, best]
        grid = np.clip(centre[:, None] + step * np.linspace(-1, 1, _REFINED), low, high)
        step *= 2 / (_REFINED - 1)
    gains, amplitudes = _gain(steps, y, grid)
    best = np.argmax(gains, axis=1)
    found = zip(gains[rows, best], amplitudes[rows, best], elementary.exp(grid[rows, best]), y, strict=True)
    return [_decay(*row, float(steps.min()), float(steps.max())) for row in found]


def _gain(steps: Floats, y: Floats, log_taus: Floats) -> tuple[Floats, Floats]:
    """Return what a fit with each τ explains of the sum of squares, and its amplitude; summed in order."""
    rates = elementary.exp(-log_taus)
    cross: Floats = np.zeros((len(y), log_taus.shape[1]))
    square: Floats = np.zeros_like(rates)
    for number, step in enumerate(steps):
        falling = elementary.exp(-step * rates)
        cross += y[:, number, None] * falling
        square += falling * falling
    with np.errstate(all="ignore"):
        gains = np.where((cross > 0) & (square > 0), cross * cross / square, -np.inf)
        return np.where(np.isnan(gains), -np.inf, gains), cross / square


def _decay(gain: float, amplitude: float, tau: float, y: Floats, first: float, last: float) -> Decay:
    if not math.isfinite(gain) or not np.isfinite(y).all() or not amplitude > 0:
        return Decay(math.nan, math.nan, "none")
    if tau > last:
        return Decay(math.inf, float(amplitude), "longer")
    if tau < first / 4 * 1.001:
        return Decay(first / 4, float(amplitude), "shorter")
    return Decay(float(tau), float(amplitude), "fitted")


def last_significant(horizons: Sequence[int], p_values: Sequence[float], alpha: float) -> int | None:
    """Return the last horizon with an effect, of p-values that are adjusted over all horizons; none: `None`."""
    found = [h for h, p in zip(horizons, p_values, strict=True) if p <= alpha]
    return max(found, default=None)


def washout(horizons: Sequence[int], p_values: Sequence[float], alpha: float) -> int | None:
    """Return the horizon from which on Λ is within the margin at every one that was looked at; none: `None`.

    Parameters
    ----------
    p_values:
        Of the two one-sided tests at each horizon.
    """
    found = None
    for horizon, p in sorted(zip(horizons, p_values, strict=True), reverse=True):
        if not p <= alpha:
            break
        found = horizon
    return found


def area(horizons: Sequence[int], curve: Sequence[float]) -> float:
    """Return the area under E / F over the horizons, by trapezoids, in steps: for tails that no exponential fits."""
    points = sorted(zip(map(float, horizons), map(float, curve), strict=True))
    return elementary.total((b - a) * (x + y) / 2 for (a, x), (b, y) in pairwise(points))


# --- several sources ---------------------------------------------------------------------------------------------

Cells = Mapping[frozenset[str], float]


def main_effects(cells: Cells) -> dict[str, float]:
    """Return, of a factorial of signed functionals, each source's mean effect over all settings of the others.

    Parameters
    ----------
    cells:
        The functional by the set of sources that were intervened on; every set must be there.

    Raises
    ------
    FormatError
        If a cell is missing.
    """
    sources = _sources(cells)
    return {own: elementary.mean(cells[s | {own}] - cells[s] for s in _subsets(sources, own)) for own in sources}


def interactions(cells: Cells) -> dict[tuple[str, str], float]:
    """Return by how much two sources together do more than the sum of both, over all settings of the others.

    Raises
    ------
    FormatError
        If a cell is missing.
    """
    sources = _sources(cells)
    return {
        (a, b): elementary.mean(
            elementary.total([cells[s | {a, b}], -cells[s | {a}], -cells[s | {b}], cells[s]])
            for s in _subsets(sources, a, b)
        )
        for a, b in combinations(sources, 2)
    }


def shapley(cells: Cells) -> dict[str, float]:
    """Return each source's Shapley value, in the functional's unit; they sum to the change that all make together.

    Of signed functionals only: with a distance as value, a source that does nothing earns a part too.

    Raises
    ------
    FormatError
        If a cell is missing.
    """
    sources = _sources(cells)
    n = len(sources)
    weights = [math.factorial(k) * math.factorial(n - k - 1) / math.factorial(n) for k in range(n)]
    return {
        own: elementary.total(weights[len(s)] * (cells[s | {own}] - cells[s]) for s in _subsets(sources, own))
        for own in sources
    }


def _sources(cells: Cells) -> list[str]:
    sources = sorted({source for cell in cells for source in cell})
    if not 1 <= len(sources) <= MOST_SOURCES:
        raise FormatError("a factorial has sources", expected=f"1 to {MOST_SOURCES}", got=str(len(sources)))
    missing = [s for s in _subsets(sources) if s not in cells]
    if missing:
        raise FormatError("a factorial has an arm for every set of its sources", got=f"none for {sorted(missing[0])}")
    return sources


def _subsets(sources: Sequence[str], *without: str) -> list[frozenset[str]]:
    others = [source for source in sources if source not in without]
    return [frozenset(chosen) for size in range(len(others) + 1) for chosen in combinations(others, size)]


# --- order and back-flow -----------------------------------------------------------------------------------------


def order_variance(distances: NDArray[Any]) -> float:
    """Return the variance over K permutations of a window, from the (K, K) distances between what they lead to.

    Half the mean squared distance of two: of Euclidean distances that is the unbiased variance, summed over
    coordinates.
    """
    return elementary.mean(d * d / 2 for d in _upper(np.asarray(distances, np.float64)))


def log_log_slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the least-squares slope of log y against log x; NaN with fewer than two different x, or values ≤ 0."""
    logs = [(elementary.log_of(a), elementary.log_of(b)) for a, b in zip(x, y, strict=True)]
    if not logs or not all(math.isfinite(a) and math.isfinite(b) for a, b in logs):
        return math.nan
    middle, centre = elementary.mean(a for a, _ in logs), elementary.mean(b for _, b in logs)
    spread = elementary.total((a - middle) * (a - middle) for a, _ in logs)
    return elementary.total((a - middle) * (b - centre) for a, b in logs) / spread if spread > 0 else math.nan


@dataclass(frozen=True)
class BackFlow:
    """The two-instrument witness of one seed, means over its repeats (STANDARD § 6); what was not run is NaN.

    `first` is D1, `second` D2 with the state carried over; `after_break` and `after_common` are D2 with the optimizer
    made anew before B, and with both branches given the mean of their momenta; `twin` is W: same weights, exchanged
    momentum.
    """

    first: float
    second: float
    after_break: float = math.nan
    after_common: float = math.nan
    twin: float = math.nan

    @property
    def delta(self) -> float:
        """Return Δ_BF = D2 − D1: descriptive, since an expanding map gives it too."""
        return self.second - self.first

    @property
    def against_common(self) -> float:
        """Return Δ_BF (carry) − Δ_BF (common momentum); D1 is the same in both."""
        return self.second - self.after_common

    @property
    def against_break(self) -> float:
        """Return Δ_BF (carry) − Δ_BF (break), as published."""
        return self.second - self.after_break


def back_flow(
    first: Sequence[float],
    second: Sequence[float],
    after_break: Sequence[float] = (),
    after_common: Sequence[float] = (),
    twin: Sequence[tuple[float, float]] = (),
) -> BackFlow:
    """Return the witness of one seed from the distances of its repeats.

    Parameters
    ----------
    twin:
        For each repeat d(B(θ_A, m_A), B(θ_A, m_A′)) and d(B(θ_A′, m_A′), B(θ_A′, m_A)).
    """
    twins = [(a + b) / 2 for a, b in twin]
    return BackFlow(*(elementary.mean(values) for values in (first, second, after_break, after_common, twins)))
