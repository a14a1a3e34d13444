"""Distances and functionals: against SciPy and plain formulas, and the laws that a distance keeps."""

from __future__ import annotations

import math
from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.spatial.distance import jensenshannon
from scipy.special import log_softmax, softmax

from trainmem_audit import elementary
from trainmem_audit.distances import (
    DISTANCES,
    FUNCTIONALS,
    TASKS,
    bit_equal,
    distance,
    functional,
    linear_cka,
    pairwise,
    supports,
)
from trainmem_audit.errors import FormatError

PROBABILITY = [kind for kind in DISTANCES if kind != "logit-l2"]
logits = arrays(np.float32, (5, 4), elements=st.floats(-50, 50, width=32))


def drawn(*shape: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(seed)
    one, other = rng.normal(0, 3, (2, *shape)).astype(np.float32)
    return one, other


def by_scipy(kind: str, a: NDArray[Any], b: NDArray[Any]) -> NDArray[Any]:
    """Return the distance of each row, by other means than ours."""
    p, q = softmax(a.astype(np.float64), axis=1), softmax(b.astype(np.float64), axis=1)
    each: dict[str, Any] = {
        "total-variation": lambda: np.maximum(p - q, 0).sum(1),
        "jensen-shannon": lambda: jensenshannon(p, q, base=2, axis=1) ** 2,
        "hellinger": lambda: np.sqrt(np.maximum(1 - np.sqrt(p * q).sum(1), 0)),
        "logit-l2": lambda: np.linalg.norm(a.astype(np.float64) - b, axis=1),
        "disagreement": lambda: p.argmax(1) != q.argmax(1),
    }
    return np.asarray(each[kind](), np.float64)


@pytest.mark.parametrize("kind", DISTANCES)
def test_classification_is_what_scipy_says(kind: str) -> None:
    a, b = drawn(300, 7)
    assert distance(kind, "classification", a, b) == pytest.approx(by_scipy(kind, a, b).mean(), rel=1e-12)


@pytest.mark.parametrize("kind", DISTANCES)
def test_a_language_model_is_its_tokens(kind: str) -> None:
    a, b = drawn(6, 11, 30)
    tokens = by_scipy(kind, a.reshape(66, 30), b.reshape(66, 30))
    assert distance(kind, "language-model", a, b) == pytest.approx(tokens.mean(), rel=1e-12)


@pytest.mark.parametrize("kind", DISTANCES)
def test_pieces_of_a_large_prediction_add_up(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = drawn(40, 9)
    whole = distance(kind, "classification", a, b)
    monkeypatch.setattr("trainmem_audit.distances._AT_ONCE", 27)
    assert distance(kind, "classification", a, b) == whole


@pytest.mark.parametrize("kind", DISTANCES)
def test_how_an_array_lies_in_memory_does_not_matter(kind: str) -> None:
    a, b = drawn(40, 33)
    apart = np.zeros((40, 66), np.float32)
    apart[:, ::2] = b
    expected = distance(kind, "classification", a, b)
    assert distance(kind, "classification", np.asfortranarray(a), apart[:, ::2]) == expected


def test_many_pairs_are_each_their_distance() -> None:
    arms = [drawn(20, 4, seed=seed)[0] for seed in range(4)]
    pairs = [(0, 1), (3, 2), (1, 1)]
    for kind in DISTANCES:
        found = pairwise(kind, "classification", arms, pairs)
        assert found == [distance(kind, "classification", arms[i], arms[j]) for i, j in pairs]
        assert pairwise(kind, "classification", arms, []) == []


def test_known_values() -> None:
    """Worked by hand: p = (½, ½) against q = (1, 0), and two certain opposites."""
    even, first, second = (np.array([row], np.float32) for row in ([0, 0], [800, 0], [0, 800]))
    assert distance("total-variation", "classification", even, first) == 0.5
    assert distance("hellinger", "classification", even, first) == pytest.approx(
        math.sqrt(1 - math.sqrt(0.5)), rel=1e-15
    )
    bits = 0.5 * (0.5 * math.log2(2 / 3) + 0.5 * math.log2(2) + math.log2(4 / 3))
    assert distance("jensen-shannon", "classification", even, first) == pytest.approx(bits, rel=1e-14)
    for kind in PROBABILITY:
        assert distance(kind, "classification", first, second) == 1.0
    assert distance("logit-l2", "classification", first, second) == pytest.approx(800 * math.sqrt(2))


def test_one_logit_is_two_classes() -> None:
    one, other = drawn(50, 1)
    expected = np.abs(1 / (1 + np.exp(-one.astype(np.float64))) - 1 / (1 + np.exp(-other.astype(np.float64)))).mean()
    for a, b in ((one, other), (one[:, 0], other[:, 0])):
        assert distance("total-variation", "classification", a, b) == pytest.approx(expected, rel=1e-12)


def test_regression_is_the_root_mean_square() -> None:
    for shape in ((70,), (70, 3)):
        a, b = drawn(*shape)
        difference = a.astype(np.float64) - b
        assert distance("logit-l2", "regression", a, b) == pytest.approx(np.sqrt((difference**2).mean()), rel=1e-14)
        assert functional("loss", "regression", a, b) == pytest.approx((difference**2).mean(), rel=1e-14)


@given(logits, logits)
@settings(max_examples=60, deadline=None)
def test_distances_are_symmetric_bit_for_bit_and_in_range(a: NDArray[Any], b: NDArray[Any]) -> None:
    for kind in DISTANCES:
        there = distance(kind, "classification", a, b)
        assert there == distance(kind, "classification", b, a)
        assert there >= 0
        assert kind == "logit-l2" or there <= 1


@given(logits, logits, logits)
@settings(max_examples=60, deadline=None)
def test_the_triangle_inequality_holds(a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]) -> None:
    for kind in ("total-variation", "hellinger", "logit-l2", "disagreement"):
        ab, bc, ac = (distance(kind, "classification", x, y) for x, y in ((a, b), (b, c), (a, c)))
        assert ac <= ab + bc + 1e-9


@given(logits, st.integers(0, 3), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_zero_is_equality(a: NDArray[Any], column: int, row: int) -> None:
    for kind in DISTANCES:
        assert distance(kind, "classification", a, a.copy()) == 0
    other = a * np.float32(0)
    changed = other.copy()
    changed[row, column] += np.float32(1e-6)
    for kind in ("total-variation", "jensen-shannon", "hellinger", "logit-l2"):
        assert distance(kind, "classification", other, changed) > 0


@given(logits, logits, st.permutations(range(5)), st.permutations(range(4)))
@settings(max_examples=60, deadline=None)
def test_the_order_of_examples_and_classes_does_not_matter(
    a: NDArray[Any], b: NDArray[Any], rows: list[int], columns: list[int]
) -> None:
    for kind in DISTANCES:
        there = distance(kind, "classification", a, b)
        assert distance(kind, "classification", a[rows], b[rows]) == there
        if kind != "disagreement":  # ties are broken by the order of classes
            assert distance(kind, "classification", a[:, columns], b[:, columns]) == pytest.approx(there, abs=1e-12)


def test_small_differences_are_seen_to_all_digits() -> None:
    """JS ≈ Σ δ²/(8 p ln 2): the usual formula is lost in rounding here."""
    a, b = np.zeros((1, 4), np.float64), np.array([[1e-7, 0, 0, 0]])
    assert distance("jensen-shannon", "classification", a, b) == pytest.approx(3e-14 / 16 / 8 / math.log(2), rel=1e-6)


def test_functionals_are_what_plain_formulas_say() -> None:
    predictions, _ = drawn(500, 6)
    labels = np.random.default_rng(1).integers(0, 6, 500)
    logs = log_softmax(predictions.astype(np.float64), axis=1)
    assert functional("loss", "classification", predictions, labels) == pytest.approx(
        -logs[np.arange(500), labels].mean(), rel=1e-13
    )
    right = predictions.argmax(1) == labels
    assert functional("accuracy", "classification", predictions, labels) == right.mean()
    confidence = np.exp(logs).max(1)
    expected = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert functional("calibration-error", "classification", predictions, labels) == pytest.approx(expected, rel=1e-12)


def test_the_loss_of_a_language_model_is_per_token_without_padding() -> None:
    predictions, _ = drawn(3, 5, 8)
    labels = np.random.default_rng(2).integers(0, 8, (3, 5))
    labels[2, 3:] = -1
    logs = log_softmax(predictions.astype(np.float64), axis=2)
    expected = -np.mean([logs[i, t, labels[i, t]] for i in range(3) for t in range(5) if labels[i, t] >= 0])
    assert functional("loss", "language-model", predictions, labels) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("kind", DISTANCES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_run_that_diverged_gives_nan_and_no_crash(kind: str, bad: float) -> None:
    a, b = drawn(4, 3)
    a[1, 2] = bad
    found = distance(kind, "classification", a, b)
    assert math.isnan(found) or (np.isinf(bad) and kind in ("disagreement", "logit-l2"))
    assert math.isnan(functional("accuracy", "classification", a, np.zeros(4, np.int64))) or np.isinf(bad)


@pytest.mark.parametrize("kind", [*DISTANCES, *FUNCTIONALS])
@pytest.mark.parametrize("task", [*TASKS, "ranking"])
def test_what_has_no_meaning_is_refused(kind: str, task: str) -> None:
    shape = {"regression": (4, 2), "language-model": (4, 2, 3)}.get(task, (4, 3))
    a, b = drawn(*shape)
    if kind in DISTANCES and supports(kind, task):
        assert distance(kind, task, a, b) > 0 or kind == "disagreement"
    elif kind in DISTANCES:
        with pytest.raises(FormatError):
            distance(kind, task, a, b)
    elif not supports(kind, task):
        with pytest.raises(FormatError):
            functional(kind, task, a, b)


@pytest.mark.parametrize(
    ("task", "one", "other"),
    [
        ("classification", np.zeros((3, 2)), np.zeros((2, 2))),
        ("classification", np.zeros((3, 2, 2)), np.zeros((3, 2, 2))),
        ("classification", np.zeros((0, 2)), np.zeros((0, 2))),
        ("language-model", np.zeros((3, 2)), np.zeros((3, 2))),
        ("classification", np.zeros((3, 2), np.complex128), np.zeros((3, 2), np.complex128)),
    ],
)
def test_shapes_that_are_none_are_refused(task: str, one: NDArray[Any], other: NDArray[Any]) -> None:
    with pytest.raises(FormatError):
        distance("total-variation", task, one, other)


@pytest.mark.parametrize("labels", [np.zeros(3, np.int64), np.full(4, 3), np.zeros(4), np.zeros((4, 1), np.int64)])
def test_labels_that_do_not_belong_are_refused(labels: NDArray[Any]) -> None:
    with pytest.raises(FormatError):
        functional("loss", "classification", drawn(4, 3)[0], labels)


def test_bit_equality_sees_the_sign_of_zero() -> None:
    assert bit_equal(np.array([np.nan]), np.array([np.nan]))
    assert not bit_equal(np.array([0.0]), np.array([-0.0]))
    assert not bit_equal(np.zeros(2, np.float32), np.zeros(2, np.float64))


def test_linear_cka() -> None:
    x, y = drawn(60, 5)
    turned = x @ np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0]
    assert linear_cka(x, 3 * turned + 1) == pytest.approx(1, abs=1e-6)
    centre = np.eye(60) - 1 / 60
    k, m = centre @ (x @ x.T) @ centre, centre @ (y @ y.T) @ centre
    assert linear_cka(x, y) == pytest.approx((k * m).sum() / np.linalg.norm(k) / np.linalg.norm(m), rel=1e-4)
    assert math.isnan(linear_cka(x, np.ones((60, 2))))
    with pytest.raises(FormatError):
        linear_cka(x, y[:3])


def ulps(got: float, exact: Decimal) -> float:
    return float(abs(Decimal(got) - exact) / Decimal(math.ulp(float(exact))))


@given(st.floats(-700, 700))
@settings(max_examples=200, deadline=None)
def test_the_exponential_is_within_two_ulps(x: float) -> None:
    getcontext().prec = 50
    assert ulps(elementary.exp_of(x), Decimal(x).exp()) < 2


@given(st.floats(min_value=5e-324, max_value=1.7e308))
@settings(max_examples=200, deadline=None)
def test_the_logarithm_is_within_two_ulps(x: float) -> None:
    getcontext().prec = 50
    exact = Decimal(x).ln()
    assert elementary.log_of(x) == 0 if exact == 0 else ulps(elementary.log_of(x), exact) < 2


def test_the_ends_of_the_elementary_functions() -> None:
    inf, nan = math.inf, math.nan
    np.testing.assert_array_equal(elementary.exp([-inf, -800, 0, 710, inf, nan]), [0, 0, 1, inf, inf, nan])
    np.testing.assert_array_equal(elementary.log([0, 1, inf, -1, nan]), [-inf, 0, inf, nan, nan])
    assert elementary.total([1e308, 1e308]) == inf
    assert elementary.total([-1e308, -1e308]) == -inf
    assert elementary.total([inf, 1]) == inf
    assert math.isnan(elementary.total([inf, -inf]))
    assert math.isnan(elementary.mean([]))
    assert elementary.mean([0.1] * 10) == 0.1
