"""Small pictures: scales, ticks, numbers and text, for any values that a file may hold."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.test_report import Page
from trainmem_audit.figures import (
    MARKS,
    Canvas,
    finite,
    fitted,
    linear_scale,
    log_scale,
    number,
    text_width,
    thinned,
)

VALUES = st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=30)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (0.4731, "0.473"),
        (-12.0, "−12"),
        (1234.5, "1234"),
        (123456.0, "123456"),
        (1234567.0, "1.23e6"),
        (0.00042, "4.2e−4"),
        (-1e-9, "−1e−9"),
        (1e300, "1e300"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "—"),
    ],
)
def test_a_number_as_people_read_it(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(-1e307, 1e307))
def test_a_number_keeps_its_size(value: float) -> None:
    read = float(number(value, 3).replace("−", "-"))
    assert read == pytest.approx(value, rel=6e-3, abs=5e-324)


@given(VALUES, st.booleans())
def test_every_scale_holds_its_values_and_keeps_their_order(values: list[float], log: bool) -> None:
    scale = log_scale(values, 10, 200, zero=True) if log else linear_scale(values, 10, 200)
    known = sorted(value for value in finite(values) if not log or value > 0)
    places = [scale.at(value) for value in known]
    assert places == sorted(places)
    assert all(10 <= place <= 200 for place in places)
    assert all(scale.holds(value) for value in known if not log or value > 1e-299)
    for tick in scale.ticks():
        assert 9.9 <= tick.at <= 200.1
        assert math.isfinite(tick.value)


@given(VALUES)
def test_what_lies_outside_of_a_scale_is_put_at_its_end(values: list[float]) -> None:
    scale = linear_scale([0.0, 1.0], 0, 100)
    for value in values:
        if not math.isnan(value):
            assert 0 <= scale.at(value) <= 100


def test_zero_has_a_place_apart_on_a_logarithmic_scale() -> None:
    scale = log_scale([0.0, 1e-3, 1.0], 200, 20, zero=True)
    assert scale.at(0) == 200
    assert scale.at(1e-3) < 180
    assert scale.ticks()[0].label == "0"
    assert scale.holds(0)
    assert not log_scale([1.0, 2.0], 0, 1).holds(0)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 1, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (-0.02, 0.06, ["−0.02", "0.00", "0.02", "0.04", "0.06"]),
        (0, 70, ["0", "20", "40", "60"]),
        (0, 1e300, ["0", "2e299", "4e299", "6e299", "8e299", "1e300"]),
        (0, 4e-9, ["0", "1e−9", "2e−9", "3e−9", "4e−9"]),
    ],
)
def test_ticks_are_round_and_their_labels_agree(low: float, high: float, labels: list[str]) -> None:
    assert [tick.label for tick in linear_scale([low, high], 0, 100, pad=0).ticks()] == labels


@given(st.floats(-1e12, 1e12), st.floats(1e-6, 1e6))
def test_no_two_ticks_have_the_same_label(middle: float, half: float) -> None:
    labels = [tick.label for tick in linear_scale([middle - half, middle + half], 0, 400).ticks()]
    assert len(set(labels)) == len(labels)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=40))
def test_labels_do_not_run_into_one_another(values: list[float]) -> None:
    scale = log_scale(values, 0, 300)
    kept = thinned(scale.ticks_at(values))
    for one, other in pairwise(kept):
        assert one.at + text_width(one.label) / 2 <= other.at - text_width(other.label) / 2
    assert kept


@given(st.text(st.characters(codec=None), max_size=80), st.floats(20, 400))
def test_a_text_is_cut_to_its_room(text: str, room: float) -> None:
    cut = fitted(text, room)
    assert text_width(cut) <= room
    assert cut.isprintable()


@given(st.text(st.characters(codec=None), max_size=60))
def test_a_picture_shows_any_text_and_obeys_none(text: str) -> None:
    canvas = Canvas(100, 50)
    canvas.text(1, 2, text, title=text)
    canvas.mark(3, 4, "circle", "dot", title=text)
    page = Page(canvas.svg("x", text, text))
    assert set(page.tags) == {"svg", "title", "desc", "text", "circle"}
    assert not any(name.startswith("on") for name, _ in page.attributes)


@given(st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4)), max_size=7))
def test_marks_lines_and_hatches_are_finite(points: list[tuple[float, float]]) -> None:
    canvas = Canvas(100, 50)
    canvas.path(points, "line")
    canvas.area(points, "band")
    for at, (x, y) in enumerate(points):
        canvas.mark(x, y, MARKS[at % len(MARKS)], "dot")
        canvas.hatch(0, 0, abs(x), abs(y), "hatch")
    svg = canvas.svg("x", "a picture", "of points")
    Page(svg)
    assert not re.search(r"nan|inf|e\+", svg)
    assert svg.count("<line") <= 200 * len(points)


def test_a_hatch_stays_inside_of_its_rectangle() -> None:
    canvas = Canvas(100, 50)
    canvas.hatch(10, 5, 90, 25, "hatch")
    lines = re.findall(r'x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"', canvas.svg("x", "", ""))
    assert len(lines) > 10
    for line in lines:
        x1, y1, x2, y2 = map(float, line)
        assert 10 <= x2 <= x1 <= 90
        assert 5 <= y1 <= y2 <= 25
