"""Intervals, tests, families, equivalence: against SciPy, by counting, and where there is little to go on."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from trainmem_audit.estimands import SeedDistances, law_forms
from trainmem_audit.intervals import (
    Signs,
    benjamini_hochberg,
    holm,
    jackknife_t,
    log_t_interval,
    max_t,
    power,
    ratio_interval,
    seed_signs,
    sign_test,
    skewness,
    smallest_p,
    stream_signs,
    t_interval,
    tost,
    verdict,
)

FEW = [0.3, 0.9, 0.1, 1.4, 0.2]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_the_t_interval_is_scipy_s(level: float) -> None:
    found = t_interval(FEW, level)
    expected = stats.t.interval(level, 4, np.mean(FEW), stats.sem(FEW))
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-8)
    assert found.skewness == pytest.approx(stats.skew(FEW, bias=False), rel=1e-12)
    assert (found.units, found.method, found.notes) == (5, "t", ())


def test_the_log_interval_is_that_of_the_logarithms() -> None:
    found, logs = log_t_interval(FEW), t_interval(np.log(FEW))
    assert (found.low, found.high) == pytest.approx((math.exp(logs.low), math.exp(logs.high)))
    assert found.estimate == pytest.approx(stats.gmean(FEW))


def test_the_jackknife_of_a_mean_is_the_t_interval() -> None:
    found, expected = ratio_interval(FEW, [1.0] * 5), t_interval(FEW)
    assert (found.estimate, found.low, found.high) == pytest.approx((expected.estimate, expected.low, expected.high))


def test_the_jackknife_of_a_ratio_is_the_textbook_s() -> None:
    above, below = np.array(FEW), np.array([1.0, 1.3, 0.8, 2.0, 1.1])
    whole = above.sum() / below.sum()
    without = (above.sum() - above) / (below.sum() - below)
    error = math.sqrt(4 / 5 * ((without - without.mean()) ** 2).sum())
    found = ratio_interval(FEW, below.tolist())
    assert found.estimate == pytest.approx(whole)
    assert found.error == pytest.approx(error)
    assert found.high - found.estimate == pytest.approx(stats.t.ppf(0.975, 4) * error)
    logs = ratio_interval(FEW, below.tolist(), log=True)
    assert logs.estimate == pytest.approx(whole)
    assert logs.low < whole < logs.high
    assert math.log(logs.high / whole) == pytest.approx(math.log(whole / logs.low))


@pytest.mark.parametrize("interval", [t_interval, log_t_interval])
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], "no unit is left"),
        ([0.4], "one unit shows no spread"),
        ([0.4, 0.4, 0.4], "the same value"),
        ([0.4, math.nan, 0.5], "1 of 3 values is not finite"),
        ([0.4, -math.inf, math.nan], "2 of 3 values are not finite"),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 90.0], "skewness 2.8"),
    ],
)
def test_what_is_wrong_is_said_in_words(interval: Any, values: list[float], words: str) -> None:
    found = interval(values)
    assert any(words in note for note in found.notes)
    assert found.bounded == (found.units > 1)
    assert math.isnan(tost(found, 0.1).p) == (not found.units > 1 or found.error == 0)


def test_a_logarithm_of_what_is_not_positive() -> None:
    found = log_t_interval([0.5, 0.0, 0.7])
    assert "1 of 3 values is not above 0" in found.notes[0]
    assert found.units == 2


def test_a_time_that_is_longer_than_was_seen_makes_the_upper_end_infinite() -> None:
    found = log_t_interval([3.0, 5.0, math.inf])
    assert (found.estimate, found.high) == (math.inf, math.inf)
    assert found.low == log_t_interval([3.0, 5.0]).low
    assert "1 of 3 values is longer than could be seen" in found.notes
    none = log_t_interval([math.inf, math.inf])
    assert (none.low, none.estimate, none.high, none.units) == (0.0, math.inf, math.inf, 0)


def test_a_ratio_of_nothing_has_no_value() -> None:
    for above, below in (([1.0, 2.0], [0.0, 0.0]), ([], []), ([1.0, 1.0], [1.0, 0.0])):
        found = ratio_interval(above, below)
        assert not found.bounded
        assert found.notes
    kept = ratio_interval([1.0, 2.0, math.nan], [1.0, 1.0, 1.0])
    assert (kept.estimate, kept.units) == (1.5, 2)


def test_the_jackknife_of_one_unit_has_no_interval() -> None:
    assert not jackknife_t(0.3, [], 1).bounded


@given(st.lists(st.floats(-1e300, 1e300), max_size=12))
@settings(max_examples=100, deadline=None)
def test_an_interval_of_anything_holds_its_estimate(values: list[float]) -> None:
    for found in (t_interval(values), log_t_interval(values), ratio_interval(values, [abs(v) + 1 for v in values])):
        if not math.isnan(found.estimate) and not math.isnan(found.low):
            assert found.low <= found.estimate <= found.high
    assert math.isnan(skewness(values)) or abs(skewness(values)) < 12


@pytest.mark.parametrize("units", [2, 3, 5, 8, 10])
def test_flipping_seeds_is_scipy_s_permutation_test(units: int) -> None:
    values = rng(units).normal(0.4, 1, units)
    expected = stats.permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf)
    found = sign_test(values, seed_signs(units, rng()))
    assert found.method == "sign-flip-exact"
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.smallest == 2.0 ** (1 - units) == smallest_p(units)


def test_the_smallest_p_is_attained_and_never_zero() -> None:
    for units in (1, 2, 3, 8):
        assert sign_test([1.0 + i for i in range(units)], seed_signs(units, rng())).p == smallest_p(units) > 0
    found = sign_test([1.0] * 30, seed_signs(30, rng(), sampled=999))
    assert (found.method, found.p, found.smallest) == ("sign-flip-sampled", 1 / 1000, 1 / 1000)


def test_exact_zeros_and_missing_units() -> None:
    nothing = sign_test([0.0, 0.0, 0.0], seed_signs(3, rng()))
    assert nothing.p == 1
    assert "exactly 0" in nothing.notes[0]
    found = sign_test([1.0, math.nan, 2.0, 3.0], seed_signs(4, rng()))
    assert found.p == found.smallest == smallest_p(3)


def law(treated: NDArray[Any], control: NDArray[Any]) -> SeedDistances:
    def far(a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
        return np.asarray(np.abs(a[:, None] - b[None, :]).sum(-1))

    return SeedDistances(far(treated, control), far(control, control), far(treated, treated))


@pytest.mark.parametrize("streams", [2, 3, 4])
def test_exchanging_streams_is_what_it_says(streams: int) -> None:
    """By exchanging the arms themselves, in every way, and computing E anew."""
    arms = rng(streams).normal(size=(2, 3, streams, 2)) + np.array([0.8, 0])[:, None, None, None]
    observed = sum(law(*arms[:, s]).law_effect for s in range(3))
    count = total = 0
    for flips in itertools.product([False, True], repeat=3 * streams):
        mask = np.array(flips).reshape(3, streams)
        moved = np.where(mask[None, :, :, None], arms[::-1], arms)
        effect = sum(law(*moved[:, s]).law_effect for s in range(3))
        count += abs(effect) >= abs(observed) * (1 - 1e-9)
        total += 1
    forms = np.array([law_forms(law(*arms[:, s])) for s in range(3)])
    found = sign_test(forms, stream_signs(3, streams, rng()))
    assert found.method == "swap-exact"
    assert found.p == pytest.approx(count / total)
    assert found.smallest == smallest_p(3, streams)


def test_two_streams_are_the_seeds_flipped() -> None:
    arms = rng(5).normal(size=(2, 6, 2, 3)) + np.array([0.5, 0])[:, None, None, None]
    each = [law(*arms[:, s]) for s in range(6)]
    by_stream = sign_test(np.array([law_forms(one) for one in each]), stream_signs(6, 2, rng()))
    assert by_stream.p == sign_test([one.law_effect for one in each], seed_signs(6, rng())).p


def test_sampled_signs_need_their_generator_and_repeat() -> None:
    one, same, other = (stream_signs(8, 4, rng(seed)) for seed in (1, 1, 2))
    assert not one.exact
    assert np.array_equal(one.values, same.values)
    assert not np.array_equal(one.values, other.values)
    assert (one.values[0] == 1).all()
    assert abs(float(one.values[1:, :, 1:].mean())) < 0.01
    assert set(np.unique(one.values)) == {-1, 1}


def test_max_t_is_no_less_than_each_and_than_bonferroni_no_more() -> None:
    family = [rng(seed).normal(shift, 1, 8) for seed, shift in enumerate((0.0, 1.5, 0.7))]
    signs = seed_signs(8, rng())
    together = max_t(family, signs)
    for values, adjusted in zip(family, together, strict=True):
        raw = sign_test(values, signs).p
        assert raw <= adjusted.p <= min(1, 3 * raw) + 1e-12
    same = max_t([family[1], family[1]], signs)
    assert same[0].p == sign_test(family[1], signs).p
    assert max_t([], signs) == []


def test_max_t_by_hand() -> None:
    family = [np.array([1.0, 2.0, 2.5]), np.array([1.0, 1.0, -0.5])]
    every = list(itertools.product([1, -1], repeat=3))
    z = [[abs(np.dot(f, s)) / np.linalg.norm(f) for s in every] for f in family]
    expected = [np.mean([max(z[0][i], z[1][i]) >= own[0] - 1e-12 for i in range(8)]) for own in z]
    assert [test.p for test in max_t(family, seed_signs(3, rng()))] == pytest.approx(expected)


def test_sign_vectors_may_be_given() -> None:
    signs = Signs(np.ones((1, 4, 1), np.int8), exact=True)
    assert sign_test([1, 2, 3, 4], signs).p == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
@settings(max_examples=80, deadline=None)
def test_adjusted_p_values(p_values: list[float]) -> None:
    found = benjamini_hochberg(p_values)
    assert found == pytest.approx(stats.false_discovery_control(p_values).tolist(), abs=1e-12)
    steps, largest = [], 0.0
    for rank, p in enumerate(sorted(p_values)):
        largest = max(largest, p * (len(p_values) - rank))
        steps.append(min(1.0, largest))
    assert sorted(holm(p_values)) == pytest.approx(steps)


def test_a_test_that_was_not_made_is_no_member_of_a_family() -> None:
    for adjust in (holm, benjamini_hochberg):
        found = adjust([0.01, math.nan, 0.04])
        assert math.isnan(found[1])
        assert (found[0], found[2]) == (0.02, 0.04)
        assert adjust([]) == []


def test_two_one_sided_tests_are_scipy_s() -> None:
    found = tost(t_interval(FEW), 1.5).p
    below = stats.ttest_1samp(FEW, -1.5, alternative="greater").pvalue
    above = stats.ttest_1samp(FEW, 1.5, alternative="less").pvalue
    assert found == pytest.approx(max(below, above), rel=1e-8)
    assert tost(t_interval(FEW), 0.1).p > 0.5


@pytest.mark.parametrize(
    ("paired", "bitwise", "p", "equivalence", "expected"),
    [
        (False, True, 0.001, 0.001, "unpaired"),
        (True, True, math.nan, math.nan, "equivalent"),
        (True, False, 0.001, 0.3, "effect"),
        (True, False, 0.001, 0.01, "equivalent"),
        (True, False, 0.2, 0.01, "equivalent"),
        (True, False, 0.2, 0.3, "undecided"),
        (True, False, math.nan, math.nan, "undecided"),
    ],
)
def test_verdicts(paired: bool, bitwise: bool, p: float, equivalence: float, expected: str) -> None:
    found = verdict(paired=paired, bitwise_equal=bitwise, p=p, equivalence=equivalence, alpha=0.05)
    assert found == expected


def test_power_is_what_t_tests_find() -> None:
    pilot = [0.4, 0.9, 1.1, 0.2]
    found = power(pilot, 10)
    draws = rng(1).normal(np.mean(pilot), np.std(pilot, ddof=1), (20_000, 10))
    rejected = (stats.ttest_1samp(draws, 0, axis=1).pvalue <= 0.05).mean()
    assert found.estimated == pytest.approx(rejected, abs=0.01)
    assert found.cautious < found.estimated
    assert power(pilot, 5).estimated == 0
    assert power(pilot, 5).smallest > 0.05
    assert math.isnan(power([0.5], 8).estimated)
    assert math.isnan(power([0.5, 0.5], 8).estimated)
    assert power([100.0, 101.0], 50).estimated == 1
