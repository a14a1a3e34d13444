"""Estimands: against sums written out, closed forms, and the laws that each has to keep."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.integrate import trapezoid

from trainmem_audit.errors import FormatError
from trainmem_audit.estimands import (
    MOST_SOURCES,
    SeedDistances,
    area,
    back_flow,
    dose_response,
    fit_decay,
    interactions,
    last_significant,
    law_forms,
    log_log_slope,
    log_ratio,
    main_effects,
    order_variance,
    seed_floor,
    shapley,
    washout,
)

points = arrays(np.float64, (8, 3), elements=st.floats(-5, 5))


def among(control: NDArray[Any], treated: NDArray[Any]) -> SeedDistances:
    def far(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.abs(a[:, None] - b[None, :]).sum(-1))

    return SeedDistances(far(treated, control), far(control, control), far(treated, treated))


def random_arms(streams: int, seed: int = 0, shift: float = 0.0) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(streams, 3)), rng.normal(size=(streams, 3)) + shift


@pytest.mark.parametrize("streams", [2, 3, 5])
def test_the_law_effect_is_its_definition(streams: int) -> None:
    control, treated = random_arms(streams)
    found = among(control, treated)
    pairs = [(r, q) for r in range(streams) for q in range(streams) if r != q]
    between = sum(np.abs(treated[r] - control[q]).sum() for r, q in pairs) / len(pairs)
    floor = sum(np.abs(control[r] - control[q]).sum() for r, q in pairs) / len(pairs)
    other = sum(np.abs(treated[r] - treated[q]).sum() for r, q in pairs) / len(pairs)
    assert found.pathwise == pytest.approx(np.abs(treated - control).sum(1).mean())
    assert (found.floor, found.treated_floor) == pytest.approx((floor, other))
    assert (found.between, found.within) == pytest.approx((between, (floor + other) / 2))
    assert found.law_effect == pytest.approx(between - (floor + other) / 2)


@given(points)
@settings(max_examples=50, deadline=None)
def test_equal_arms_have_a_law_effect_of_exactly_zero(arms: NDArray[Any]) -> None:
    found = among(arms, arms.copy())
    assert found.pathwise == 0
    assert found.law_effect == 0
    assert found.floor == found.treated_floor == found.within


@given(points, points, st.integers(0, 7))
@settings(max_examples=50, deadline=None)
def test_exchanging_one_stream_flips_its_entries_and_no_others(a: NDArray[Any], b: NDArray[Any], stream: int) -> None:
    before = law_forms(among(a, b))
    a[stream], b[stream] = b[stream].copy(), a[stream].copy()
    after = law_forms(among(a, b))
    signs = np.ones((8, 8))
    signs[stream], signs[:, stream] = -1, -1
    np.testing.assert_allclose(after, before * signs, atol=1e-12)


def test_the_expectation_is_zero_for_equal_laws_and_above_it_for_others() -> None:
    equal = [among(*random_arms(3, seed)).law_effect for seed in range(400)]
    moved = [among(*random_arms(3, seed, 1.0)).law_effect for seed in range(400)]
    assert abs(np.mean(equal)) < 4 * np.std(equal) / 20
    assert np.mean(moved) > 10 * np.std(moved) / 20


def test_one_stream_has_no_law() -> None:
    found = among(*random_arms(1))
    assert found.pathwise > 0
    assert all(math.isnan(v) for v in (found.floor, found.between, found.within, found.law_effect))


def test_matrices_of_different_sizes_are_refused() -> None:
    with pytest.raises(FormatError, match="three matrices"):
        SeedDistances(np.zeros((2, 2)), np.zeros((2, 2)), np.zeros((3, 3)))
    with pytest.raises(FormatError):
        SeedDistances(np.zeros((0, 0)), np.zeros((0, 0)), np.zeros((0, 0)))


def test_ratios_of_doses() -> None:
    assert dose_response(0.2, 0.1) == pytest.approx(1, rel=1e-15)
    assert dose_response(0.3, 0.3) == 0
    assert math.isnan(dose_response(0.3, 0.0))
    assert math.isnan(log_ratio(0.0, 1.0))
    assert log_ratio(math.e, 1.0) == pytest.approx(1)


def test_the_seed_floor_and_what_it_is_without_a_seed() -> None:
    pairs = {(0, 1): 1.0, (0, 2): 2.0, (1, 2): 6.0}
    assert seed_floor(pairs) == (3.0, {0: 6.0, 1: 2.0, 2: 1.0})


@pytest.mark.parametrize("tau", [0.8, 3.5, 40.0])
def test_the_decay_of_an_exponential_is_found(tau: float) -> None:
    horizons = [0, 1, 2, 3, 5, 10, 20, 30, 60, 100]
    (found,) = fit_decay(horizons, np.array([[0.7 * math.exp(-h / tau) for h in horizons]]))
    assert found.state == "fitted"
    assert (found.tau, found.amplitude) == pytest.approx((tau, 0.7), rel=2e-5)


def test_the_decay_is_the_least_squares_one() -> None:
    from scipy.optimize import curve_fit

    horizons = np.array([1, 3, 10, 30, 100])
    curves = 0.8 * np.exp(-horizons / 7) + np.random.default_rng(3).normal(0, 0.04, (6, 5))
    for curve, found in zip(curves, fit_decay(horizons.tolist(), curves), strict=True):
        best, _ = curve_fit(lambda h, a, tau: a * np.exp(-h / tau), horizons, curve, p0=(0.8, 7))
        assert (found.amplitude, found.tau) == pytest.approx(tuple(best), rel=1e-4)


def test_curves_without_a_time_are_told_apart() -> None:
    horizons = [1, 3, 10, 30]
    curves = np.array([[0.4, 0.4, 0.4, 0.4], [-0.1, -0.2, 0, 0], [1, 0, 0, 0], [1, np.nan, 0, 0], [0, 0, 0, 0]])
    found = fit_decay(horizons, curves)
    assert [decay.state for decay in found] == ["longer", "none", "shorter", "none", "none"]
    assert found[0].tau == math.inf
    assert found[2].tau == 0.25
    assert math.isnan(found[1].tau)
    assert fit_decay([1, 3], np.ones((1, 2)))[0].state == "none"


def test_the_last_significant_horizon_and_the_washout() -> None:
    horizons = [1, 3, 10, 30]
    assert last_significant(horizons, [0.01, 0.01, 0.2, 0.04], 0.05) == 30
    assert last_significant(horizons, [0.5, math.nan, 1, 1], 0.05) is None
    assert washout(horizons, [0.01, 0.4, 0.01, 0.01], 0.05) == 10
    assert washout(horizons, [0.01, 0.01, 0.01, 0.01], 0.05) == 1
    assert washout(horizons, [0.01, 0.01, 0.01, math.nan], 0.05) is None


def test_the_area_is_of_trapezoids() -> None:
    horizons, curve = [1, 3, 10], [0.8, 0.4, 0.1]
    assert area(horizons, curve) == pytest.approx(trapezoid(curve, horizons))
    assert area([3, 1, 10], [0.4, 0.8, 0.1]) == area(horizons, curve)


def cells(values: dict[str, float]) -> dict[frozenset[str], float]:
    return {frozenset(name): value for name, value in values.items()}


def test_a_factorial_of_two() -> None:
    found = cells({"": 1.0, "a": 3.0, "b": 4.0, "ab": 10.0})
    assert main_effects(found) == {"a": 4.0, "b": 5.0}
    assert interactions(found) == {("a", "b"): 4.0}
    assert shapley(found) == {"a": 4.0, "b": 5.0}


@given(st.lists(st.floats(-10, 10), min_size=16, max_size=16))
@settings(max_examples=50, deadline=None)
def test_shapley_values_keep_their_axioms(values: list[float]) -> None:
    names = [frozenset(s) for size in range(5) for s in itertools.combinations("abcd", size)]
    game = dict(zip(names, values, strict=True))
    found = shapley(game)
    assert sum(found.values()) == pytest.approx(game[frozenset("abcd")] - game[frozenset()], abs=1e-9)
    by_orders = dict.fromkeys("abcd", 0.0)
    for order in itertools.permutations("abcd"):
        for place, name in enumerate(order):
            by_orders[name] += (game[frozenset(order[: place + 1])] - game[frozenset(order[:place])]) / 24
    assert found == pytest.approx(by_orders, abs=1e-9)
    null = {s: game[s - {"d"}] for s in names}
    assert shapley(null)["d"] == 0
    assert main_effects(null)["d"] == 0
    assert all(value == 0 for pair, value in interactions(null).items() if "d" in pair)


def test_a_factorial_with_a_missing_arm_is_refused() -> None:
    for function in (main_effects, interactions, shapley):
        with pytest.raises(FormatError, match="an arm for every set"):
            function(cells({"": 0.0, "a": 1.0, "ab": 2.0}))
        with pytest.raises(FormatError, match="has sources"):
            function({frozenset(): 0.0})
        with pytest.raises(FormatError, match="has sources"):
            function({frozenset({str(i) for i in range(MOST_SOURCES + 1)}): 0.0})


def test_the_variance_over_orders_is_the_unbiased_one() -> None:
    x = np.random.default_rng(0).normal(size=(6, 4))
    far = np.linalg.norm(x[:, None] - x[None], axis=-1)
    assert order_variance(far) == pytest.approx(x.var(axis=0, ddof=1).sum())


def test_a_power_law_has_its_slope() -> None:
    rates = [0.01, 0.03, 0.1]
    assert log_log_slope(rates, [7 * rate**2 for rate in rates]) == pytest.approx(2)
    assert math.isnan(log_log_slope([0.1, 0.1], [1, 2]))
    assert math.isnan(log_log_slope([0.1, 0.2], [1, 0]))
    assert math.isnan(log_log_slope([], []))


def test_back_flow() -> None:
    found = back_flow([1, 3], [4, 6], [2, 2], [3, 5], [(1, 2), (3, 4)])
    assert (found.first, found.second, found.delta) == (2, 5, 3)
    assert (found.against_break, found.against_common, found.twin) == (3, 1, 2.5)
    assert math.isnan(back_flow([1], [2]).twin)


@given(points)
@settings(max_examples=20, deadline=None)
def test_equal_instruments_have_no_back_flow(ends: NDArray[Any]) -> None:
    """A = A′: every distance is of something and itself."""
    zero = [float(np.abs(end - end).sum()) for end in ends]
    found = back_flow(zero, zero, zero, zero, [(d, d) for d in zero])
    assert (found.delta, found.twin, found.against_break, found.against_common) == (0, 0, 0, 0)
