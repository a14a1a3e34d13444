"""The pictures of a study's report, drawn from plain numbers; what each shows also stands in the table below it.

A picture is as tall as what it holds; none is wider than a printed page. Colours are Okabe and Ito's, and every
difference of colour is one of shape or dash too. Values that are not finite are left out or shown as an arrow at the
edge. Not here: where the numbers come from (`page`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from trainmem_audit.figures import (
    Canvas,
    Mark,
    Scale,
    Tick,
    finite,
    fitted,
    linear_scale,
    log_scale,
    number,
    text_width,
    thinned,
)

__all__ = [
    "MOST_SEEDS_DRAWN",
    "VERDICTS",
    "Attributed",
    "Bar",
    "Flow",
    "ForestRow",
    "HorizonCurve",
    "SeedPair",
    "Segment",
    "Strip",
    "TimeRow",
    "attribution_picture",
    "curve_picture",
    "estimation_picture",
    "flow_picture",
    "forest_picture",
    "forest_scale_values",
    "memory_picture",
    "strip_picture",
]

WIDTH: Final = 720
MOST_SEEDS_DRAWN: Final = 400
_ROW: Final = 26
_TALL_ROW: Final = 34
_LABELS: Final = 210
_NUMBERS: Final = 224
_FAR: Final = 6
"""An end of an interval that is so many times as far out as all values is shown as an arrow."""
_AXIS: Final = 44
"""Height of ticks, their labels and the title below an axis."""


class Style(NamedTuple):
    """How something is drawn: the shape of its mark and its classes."""

    mark: Mark
    kind: str


VERDICTS: Final[dict[str, Style]] = {
    "effect": Style("circle", "dot c1"),
    "equivalent": Style("diamond", "open c3"),
    "bitwise equal": Style("plus", "stroke c3"),
    "undecided": Style("square", "open c4"),
    "unpaired": Style("cross", "stroke c2"),
    "descriptive": Style("circle", "dot c0"),
    "not estimated": Style("circle", "dot c0"),
}


class Bar(NamedTuple):
    """A value with its interval; NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def text(self) -> str:
        """Return it as text: `0.47 [0.31, 0.62]`."""
        return self.rounded(3)

    def rounded(self, digits: int) -> str:
        """Return it as text with so many digits."""
        value, low, high = (number(each, digits) for each in self)
        return value if math.isnan(self.low) and math.isnan(self.high) else f"{value} [{low}, {high}]"

    @property
    def short(self) -> str:
        """Return it as text that fits beside a picture, with fewer digits if need be."""
        return self.text if text_width(self.text) <= _NUMBERS else self.rounded(2)


# --- pieces ------------------------------------------------------------------------------------------------------


def _axis(canvas: Canvas, scale: Scale, y: float, title: str, ticks: Iterable[Tick] | None = None) -> None:
    """Draw a horizontal axis at `y`, with its title."""
    canvas.line(min(scale.start, scale.zero or scale.start), y, scale.end, y, "axis")
    for tick in thinned(scale.ticks() if ticks is None else ticks):
        canvas.line(tick.at, y, tick.at, y + 4, "axis")
        ends = tick.at + text_width(tick.label) / 2 > canvas.width
        canvas.text(canvas.width if ends else tick.at, y + 17, tick.label, anchor="end" if ends else "middle")
    middle = (min(scale.start, scale.zero or scale.start) + scale.end) / 2
    canvas.text(middle, y + 36, title, "label", "middle")


def _side_axis(canvas: Canvas, scale: Scale, left: float, right: float, count: int = 5) -> None:
    """Draw the labels of a vertical axis at `left`, and a faint line across for each."""
    for tick in thinned(scale.ticks(count), vertical=True):
        canvas.line(left, tick.at, right, tick.at, "grid")
        canvas.text(left - 7, tick.at + 4, tick.label, anchor="end")
    if scale.zero is not None:
        middle = (scale.zero + scale.start) / 2
        for shift in (-2, 2):
            canvas.line(left - 4, middle + shift + 2, left + 4, middle + shift - 2, "axis")


def _whisker(canvas: Canvas, scale: Scale, y: float, bar: Bar, kind: str) -> None:
    """Draw a horizontal interval, with an arrow where it goes on beyond the frame."""
    if math.isnan(bar.low) or math.isnan(bar.high):
        return
    low, high = scale.at(bar.low), scale.at(bar.high)
    canvas.line(low, y, high, y, f"whisker {kind}")
    for end, at, direction in ((bar.low, low, -1), (bar.high, high, 1)):
        if scale.holds(end):
            canvas.line(at, y - 4, at, y + 4, f"whisker {kind}")
        else:
            canvas.arrow(at, y, direction, f"fill {kind}")


def _point(
    canvas: Canvas, scale: Scale, y: float, value: float, style: Style, title: str = "", size: float = 4.5
) -> None:
    if not math.isnan(value):
        canvas.mark(scale.at(value), y, style.mark, style.kind, size, title)


def _label_width(labels: Iterable[str]) -> float:
    return min(_LABELS, max((text_width(label) for label in labels), default=0.0)) + 12


def _colour(style: Style) -> str:
    return style.kind.split()[-1]


# --- forest ------------------------------------------------------------------------------------------------------


class ForestRow(NamedTuple):
    """One contrast: its value with interval, the values of its seeds, and the word of its verdict."""

    label: str
    group: str
    bar: Bar
    seeds: tuple[float, ...]
    verdict: str


def forest_scale_values(rows: Sequence[ForestRow], margin: float) -> list[float]:
    """Return what a forest's axis must hold: all values, and ends of intervals that are not far beyond them."""
    core = [*finite(row.bar.value for row in rows), 0.0, *finite((margin, -margin))]
    low, high = min(core), max(core)
    span = high / 2 - low / 2
    ends = finite(end for row in rows for end in (*row.bar[1:], *row.seeds))
    return [*core, *(end for end in ends if low - _FAR * span <= end <= high + _FAR * span)]


def forest_picture(
    name: str, title: str, rows: Sequence[ForestRow], margin: float, axis: str, values: Sequence[float]
) -> str:
    """Draw contrasts below one another, grouped, with the zone of equivalence; `values` decide the axis."""
    groups = list(dict.fromkeys(row.group for row in rows))
    height = 12 + _ROW * len(rows) + 24 * len(groups) + _AXIS
    canvas = Canvas(WIDTH, height)
    left = _label_width([*(row.label for row in rows), *(f"{group}  " for group in groups)])
    numbers = min(_NUMBERS, max(text_width(row.bar.short) for row in rows)) + 14
    words = max(text_width(row.verdict) for row in rows)
    scale = linear_scale(values, left, WIDTH - numbers - words - 16)
    bottom = height - _AXIS
    if math.isfinite(margin) and margin > 0:
        canvas.rect(scale.at(-margin), 6, scale.at(margin), bottom, "zone")
        for edge in (-margin, margin):
            canvas.line(scale.at(edge), 6, scale.at(edge), bottom, "edge")
    canvas.line(scale.at(0), 6, scale.at(0), bottom, "axis")
    y = 6.0
    for group in groups:
        canvas.text(0, y + 17, group, "group")
        y += 24
        for row in rows:
            if row.group == group:
                _forest_row(canvas, scale, y + _ROW / 2, row, left, numbers)
                y += _ROW
    _axis(canvas, scale, bottom, axis)
    return canvas.svg(name, title, f"{len(rows)} contrasts with intervals; the same numbers stand in the table below.")


def _forest_row(canvas: Canvas, scale: Scale, y: float, row: ForestRow, left: float, numbers: float) -> None:
    style = VERDICTS[row.verdict]
    canvas.text(0, y + 4, fitted(row.label, left - 12), "label", title=row.label)
    for value in finite(row.seeds[:MOST_SEEDS_DRAWN]):
        if scale.holds(value):
            canvas.line(scale.at(value), y + 4, scale.at(value), y + 10, f"seed {_colour(style)}")
    _whisker(canvas, scale, y - 1, row.bar, _colour(style))
    _point(canvas, scale, y - 1, row.bar.value, style, f"{row.label}: {row.bar.text}")
    canvas.text(scale.end + numbers, y + 4, fitted(row.bar.short, numbers - 14), "label", "end", row.bar.text)
    canvas.text(scale.end + numbers + 12, y + 4, row.verdict)


# --- every seed --------------------------------------------------------------------------------------------------


class SeedPair(NamedTuple):
    """One seed: two numbers that belong together, and the effect made of them; NaN where it has none."""

    seed: str
    before: float
    after: float
    effect: float


def estimation_picture(
    name: str,
    title: str,
    pairs: Sequence[SeedPair],
    mean: Bar,
    floor: Bar | None,
    margin: float,
    words: tuple[str, str, str, str, str],
    verdict: str,
) -> str:
    """Draw every seed: at the left what is compared, joined, with the floor's band; at the right its effect.

    `words`: what stands below both sides of the left part, its axis, below the right part, and its axis.
    """
    canvas = Canvas(WIDTH, 330)
    top, bottom = 34, 288
    drawn = pairs[:MOST_SEEDS_DRAWN]
    joined = [pair for pair in drawn if math.isfinite(pair.before) and math.isfinite(pair.after)]
    if joined:
        _seed_lines(canvas, joined, floor, (70, 350, top, bottom), words)
    left = 450 if joined else 90
    _seed_effects(canvas, drawn, mean, margin, (left, WIDTH - 20, top, bottom), words, VERDICTS[verdict])
    left_out = len(pairs) - len([pair for pair in pairs if math.isfinite(pair.effect)])
    description = f"{len(pairs)} seeds, {left_out} of them without a value; all stand in the table below."
    return canvas.svg(name, title, description)


_Box = tuple[float, float, float, float]


def _seed_lines(canvas: Canvas, pairs: Sequence[SeedPair], floor: Bar | None, box: _Box, words: Sequence[str]) -> None:
    left, right, top, bottom = box
    values = [value for pair in pairs for value in (pair.before, pair.after)]
    ends = [] if floor is None else finite(floor)
    scale = linear_scale([*values, *ends], bottom, top)
    canvas.text(left - 50, 14, words[2], "label")
    _side_axis(canvas, scale, left, right)
    if floor is not None and math.isfinite(floor.value):
        if math.isfinite(floor.low) and math.isfinite(floor.high):
            canvas.rect(left, scale.at(floor.low), right, scale.at(floor.high), "band c0")
        canvas.line(left, scale.at(floor.value), right, scale.at(floor.value), "floor")
        canvas.text(right - 4, scale.at(floor.value) - 5, "floor", anchor="end")
    x1, x2 = left + 70, right - 70
    for pair in pairs:
        y1, y2 = scale.at(pair.before), scale.at(pair.after)
        canvas.line(x1, y1, x2, y2, "pair")
        canvas.mark(x1, y1, "circle", "open c0", 3.5, f"seed {pair.seed}: {number(pair.before)}")
        canvas.mark(x2, y2, "circle", "dot c1", 3.8, f"seed {pair.seed}: {number(pair.after)}")
    canvas.line(left, bottom, right, bottom, "axis")
    for x, word in ((x1, words[0]), (x2, words[1])):
        canvas.text(x, bottom + 18, fitted(word, 150), "label", "middle", word)


def _seed_effects(
    canvas: Canvas, pairs: Sequence[SeedPair], mean: Bar, margin: float, box: _Box, words: Sequence[str], style: Style
) -> None:
    left, right, top, bottom = box
    effects = [(pair.seed, pair.effect) for pair in pairs if math.isfinite(pair.effect)]
    zone = (margin, -margin) if math.isfinite(margin) else ()
    scale = linear_scale([*(value for _, value in effects), *finite(mean), *zone], bottom, top, include=(0.0,))
    canvas.text(left - 50, 14, words[4], "label")
    _side_axis(canvas, scale, left, right)
    if zone:
        canvas.rect(left, scale.at(-margin), right, scale.at(margin), "zone")
    canvas.line(left, scale.at(0), right, scale.at(0), "axis")
    middle, at = (left + right) / 2 - 30, right - 45
    for x, (seed, value) in zip(_swarm([scale.at(value) for _, value in effects], middle), effects, strict=True):
        canvas.mark(x, scale.at(value), "circle", "dot c1", 3.8, f"seed {seed}: {number(value)}")
    if not math.isnan(mean.low):
        low, high = scale.at(mean.low), scale.at(mean.high)
        canvas.line(at, low, at, high, f"whisker {_colour(style)}")
        for end in (low, high):
            canvas.line(at - 5, end, at + 5, end, f"whisker {_colour(style)}")
    if not math.isnan(mean.value):
        canvas.mark(at, scale.at(mean.value), style.mark, style.kind, 5.5, mean.text)
    canvas.line(left, bottom, right, bottom, "axis")
    canvas.text(middle, bottom + 18, "seeds", "label", "middle")
    canvas.text(at, bottom + 18, words[3], "label", "middle")


def _swarm(heights: Sequence[float], middle: float, most: float = 75) -> list[float]:
    """Return places beside one another for points that would lie on top of each other."""
    placed: list[tuple[float, float]] = []
    found = []
    for y in heights:
        near = [x for x, other in placed if abs(other - y) < 8]
        shift, side = 0.0, 1
        while any(abs(middle + shift * side - x) < 8 for x in near) and shift <= most:
            side = -side
            shift += 8 if side < 0 else 0
        x = middle + min(shift, most) * side
        placed.append((x, y))
        found.append(x)
    return found


# --- horizons ----------------------------------------------------------------------------------------------------


class HorizonCurve(NamedTuple):
    """A contrast over the horizons, an entry for each, NaN where there is none."""

    horizons: tuple[int, ...]
    pathwise: tuple[float, ...]
    kick: tuple[float, ...]
    butterfly: tuple[float, ...]
    floor: tuple[float, ...]
    law: tuple[Bar, ...]


_CURVES: Final = (
    ("pathwise", "P, this intervention", Style("circle", "dot c2"), "line c2"),
    ("kick", "P, kick", Style("up", "open c4"), "line c4 d2"),
    ("butterfly", "P, butterfly", Style("down", "open c5"), "line c5 d3"),
    ("floor", "F, fork floor", Style("bar", "stroke c0"), "line c0 d4"),
)


def curve_picture(name: str, title: str, curve: HorizonCurve, margin: float, unit: str) -> str:
    """Draw pathwise distances beside those of the null players and the floor, and below them the law effect E / F."""
    law = any(math.isfinite(bar.value) for bar in curve.law)
    canvas = Canvas(WIDTH, 420 if law else 290)
    left, right = 66, WIDTH - 14
    across = log_scale(map(float, curve.horizons), left, right, zero=0 in curve.horizons, pad=0.02)
    shown = [item for item in _CURVES if finite(getattr(curve, item[0]))]
    values = finite(value for item in shown for value in getattr(curve, item[0]))
    up = log_scale(values, 236, 50, zero=any(value <= 0 for value in values))
    canvas.text(left - 60, 14, f"distance ({unit}), log scale", "label")
    _legend(canvas, shown, left, 34, right)
    _side_axis(canvas, up, left, right)
    for member, word, style, kind in shown:
        _curve_line(canvas, across, up, curve.horizons, getattr(curve, member), style, kind, word)
    ticks = across.ticks_at(map(float, sorted(set(curve.horizons))))
    if law:
        canvas.line(left, 246, right, 246, "grid")
        _law_panel(canvas, across, curve, margin, (left, right, 284, 376))
    _axis(canvas, across, 376 if law else 246, "steps after the branch, log scale", ticks)
    return canvas.svg(name, title, "Pathwise distances and the law effect over the horizons; see the table below.")


def _legend(canvas: Canvas, items: Sequence[tuple[str, str, Style, str]], left: float, y: float, right: float) -> None:
    x = left
    for _, word, style, kind in items:
        canvas.line(x, y, x + 28, y, kind)
        canvas.mark(x + 14, y, style.mark, style.kind, 4)
        canvas.text(x + 34, y + 4, word)
        x = min(x + 52 + text_width(word), right)


def _curve_line(
    canvas: Canvas,
    across: Scale,
    up: Scale,
    horizons: Sequence[int],
    values: Sequence[float],
    style: Style,
    kind: str,
    word: str,
) -> None:
    """Draw a line through what is known, broken where it is not."""
    run: list[tuple[float, float]] = []
    for horizon, value in zip(horizons, values, strict=True):
        if not math.isfinite(value):
            canvas.path(run, kind)
            run = []
            continue
        run.append((across.at(horizon), up.at(value)))
    canvas.path(run, kind)
    for horizon, value in zip(horizons, values, strict=True):
        if math.isfinite(value):
            said = f"{word}, {horizon}: {number(value)}"
            canvas.mark(across.at(horizon), up.at(value), style.mark, style.kind, 3.6, said)


def _law_panel(canvas: Canvas, across: Scale, curve: HorizonCurve, margin: float, box: _Box) -> None:
    left, right, top, bottom = box
    known = [(h, bar) for h, bar in zip(curve.horizons, curve.law, strict=True) if math.isfinite(bar.value)]
    values = [bar.value for _, bar in known]
    span = max([abs(value) for value in values], default=1.0)
    ends = [end for _, bar in known for end in finite(bar[1:]) if abs(end) <= _FAR * span]
    zone = (-margin, margin) if math.isfinite(margin) else ()
    up = linear_scale([*values, *ends, *zone], bottom, top, include=(0.0,))
    canvas.text(left - 60, top - 12, "law effect E / F", "label")
    _side_axis(canvas, up, left, right, 4)
    if zone:
        canvas.rect(left, up.at(-margin), right, up.at(margin), "zone")
    canvas.line(left, up.at(0), right, up.at(0), "axis")
    bounded = [(h, bar) for h, bar in known if not math.isnan(bar.low)]
    upper = [(across.at(h), up.at(bar.high)) for h, bar in bounded]
    lower = [(across.at(h), up.at(bar.low)) for h, bar in bounded]
    canvas.area([*upper, *lower[::-1]], "band c1")
    canvas.path([(across.at(h), up.at(bar.value)) for h, bar in known], "line c1")
    for h, bar in known:
        canvas.mark(across.at(h), up.at(bar.value), "square", "dot c1", 4, f"{h}: {bar.text}")


# --- memory time -------------------------------------------------------------------------------------------------


class TimeRow(NamedTuple):
    """How long a law effect lasts: the time constant (infinite: longer than `to`), and what needs no exponential."""

    label: str
    tau: Bar
    to: int
    last_significant: int | None
    washout: int | None

    @property
    def text(self) -> str:
        """Return the time constant as text."""
        if math.isnan(self.tau.value):
            return "no decay to fit"
        if math.isinf(self.tau.value):
            least = f" (at least {number(self.tau.low)})" if math.isfinite(self.tau.low) and self.tau.low > 0 else ""
            return f"longer than {self.to}{least}"
        return self.tau.text


_TAU: Final = Style("circle", "dot c1")
_LAST: Final = Style("down", "open c2")
_WASHED: Final = Style("square", "open c3")


def memory_picture(name: str, title: str, rows: Sequence[TimeRow]) -> str:
    """Draw time constants with intervals, the last significant horizon and the washout, on a logarithmic axis."""
    height = 40 + _TALL_ROW * len(rows) + _AXIS
    canvas = Canvas(WIDTH, height)
    left = _label_width(row.label for row in rows)
    numbers = min(_NUMBERS, max(text_width(row.text) for row in rows)) + 14
    moments = [float(h) for row in rows for h in (row.to, row.last_significant, row.washout) if h is not None]
    shortest = min([*moments, *(row.tau.value for row in rows if row.tau.value > 0)])
    near = [end for row in rows for end in row.tau if shortest / 4 <= end <= 4 * max(moments)]
    scale = log_scale([*moments, *near], left, WIDTH - numbers)
    items = (
        ("τ with interval", _TAU),
        ("last significant horizon", _LAST),
        ("within the margin from here on", _WASHED),
    )
    x = left
    for word, style in items:
        canvas.mark(x + 6, 14, style.mark, style.kind, 4)
        canvas.text(x + 16, 18, word)
        x += 34 + text_width(word)
    bottom = height - _AXIS
    for tick in thinned(scale.ticks()):
        canvas.line(tick.at, 28, tick.at, bottom, "grid")
    for index, row in enumerate(rows):
        _time_row(canvas, scale, 32 + _TALL_ROW * (index + 0.5), row, left, numbers)
    _axis(canvas, scale, bottom, "steps, log scale")
    return canvas.svg(name, title, "Time constants of the law effect; the same numbers stand in the table below.")


def _time_row(canvas: Canvas, scale: Scale, y: float, row: TimeRow, left: float, numbers: float) -> None:
    canvas.text(0, y + 4, fitted(row.label, left - 12), "label", title=row.label)
    if math.isinf(row.tau.value):
        known = row.tau.low if math.isfinite(row.tau.low) and row.tau.low > 0 else float(row.to)
        canvas.line(scale.at(known), y, scale.end, y, "whisker c1")
        canvas.arrow(scale.end, y, 1, "fill c1")
    else:
        _whisker(canvas, scale, y, row.tau, "c1")
        _point(canvas, scale, y, row.tau.value, _TAU, row.text)
    for value, style, shift in ((row.last_significant, _LAST, -7), (row.washout, _WASHED, 7)):
        if value is not None:
            canvas.mark(scale.at(max(value, scale.low)), y + shift, style.mark, style.kind, 3.4, str(value))
    canvas.text(WIDTH, y + 4, fitted(row.text, numbers - 14), "label", "end", row.text)


# --- back-flow ---------------------------------------------------------------------------------------------------


class Flow(NamedTuple):
    """One setting of the two instruments: both distances and the twin witness."""

    label: str
    first: Bar
    second: Bar
    twin: Bar | None
    bitwise_equal: bool


def flow_picture(name: str, title: str, rows: Sequence[Flow], unit: str) -> str:
    """Draw for each setting the distance after the first instruments, joined to that after the second, and the twin."""
    height = 40 + _TALL_ROW * len(rows) + _AXIS
    canvas = Canvas(WIDTH, height)
    left = _label_width(row.label for row in rows)
    bars = [bar for row in rows for bar in (row.first, row.second, row.twin) if bar is not None]
    scale = linear_scale([*(bar.value for bar in bars), *_near(bars)], left, WIDTH - 14, include=(0.0,))
    styles = (
        ("D1, after A and A′", Style("circle", "open c0")),
        ("D2, after B", Style("circle", "dot c1")),
        ("twin witness W", Style("diamond", "dot c2")),
    )
    x = left
    for word, style in styles:
        canvas.mark(x + 6, 14, style.mark, style.kind, 4)
        canvas.text(x + 16, 18, word)
        x += 34 + text_width(word)
    bottom = height - _AXIS
    for tick in thinned(scale.ticks()):
        canvas.line(tick.at, 28, tick.at, bottom, "grid")
    for index, row in enumerate(rows):
        y = 36 + _TALL_ROW * (index + 0.5)
        canvas.text(0, y + 4, fitted(row.label, left - 12), "label", title=row.label)
        if row.bitwise_equal:
            canvas.text(scale.at(0) + 14, y + 4, "equal bit for bit: all exactly 0")
        if math.isfinite(row.first.value) and math.isfinite(row.second.value):
            canvas.line(scale.at(row.first.value), y - 5, scale.at(row.second.value), y - 5, "joint c1")
        for bar, (_, style), at in zip((row.first, row.second, row.twin), styles, (y - 5, y - 5, y + 8), strict=True):
            if bar is not None and not (row.bitwise_equal and style.mark == "diamond"):
                if style.mark == "diamond":
                    _whisker(canvas, scale, at, bar, _colour(style))
                _point(canvas, scale, at, bar.value, style, bar.text)
    _axis(canvas, scale, bottom, f"distance ({unit})")
    return canvas.svg(name, title, "Distances after the first and the second instrument; see the table below.")


def _near(bars: Sequence[Bar]) -> list[float]:
    """Return the ends of intervals that are not far beyond all values."""
    largest = max((abs(value) for value in finite(bar.value for bar in bars)), default=0.0)
    return [end for bar in bars for end in finite(bar[1:]) if abs(end) <= _FAR * largest]


# --- alignment ---------------------------------------------------------------------------------------------------


class Segment(NamedTuple):
    """What a certificate proves of one row between two steps; `fails` from the step `at` on."""

    first: int
    last: int
    state: str
    at: int | None = None


class Strip(NamedTuple):
    """What a pair of arms shares step by step; `windows` are those of an order primitive, as steps."""

    treated: str
    control: str
    label: str
    branch: int
    last: int
    components: tuple[Segment, ...]
    order: tuple[Segment, ...]
    streams: tuple[Segment, ...]
    named: str
    windows: tuple[tuple[int, int], ...] = ()
    comment: str = ""


_STATES: Final = {
    "holds": "equal, bit for bit",
    "fails": "not equal",
    "inconclusive": "cannot be decided",
    "apart": "free to differ: the effect",
}


def strip_picture(name: str, title: str, strip: Strip) -> str:
    """Draw which of components, order and streams of two arms are equal at which steps, and where they branch."""
    rows = (("components", strip.components), ("order", strip.order), ("random streams", strip.streams))
    canvas = Canvas(WIDTH, 34 + 34 * len(rows) + 40 + _AXIS)
    left = 126
    scale = linear_scale((0, max(strip.last, 1)), left, WIDTH - 14, pad=0)
    bottom = 38 + 34 * len(rows)
    for index, (word, segments) in enumerate(rows):
        y = 34 + 34 * index
        canvas.text(0, y + 15, word, "label")
        for segment in segments:
            _segment(canvas, scale, y, y + 22, segment)
        if word == "order":
            for first, to in strip.windows:
                canvas.rect(scale.at(first), y + 5, max(scale.at(to), scale.at(first) + 2), y + 17, "window")
    at = scale.at(strip.branch)
    canvas.line(at, 24, at, bottom, "branch")
    side, shift, room = ("end", -6, at - 6) if at > WIDTH / 2 else ("start", 6, WIDTH - at - 6)
    text = f"branch at step {strip.branch}: {strip.named}"
    canvas.text(at + shift, 18, fitted(text, room), "label", side, text)
    _axis(canvas, scale, bottom, "step", (tick for tick in scale.ticks(8) if tick.value == int(tick.value)))
    _strip_legend(canvas, rows, left, bottom + 62, bool(strip.windows))
    return canvas.svg(name, title, f"{strip.treated} and {strip.control}: {strip.label}.")


def _segment(canvas: Canvas, scale: Scale, top: float, bottom: float, segment: Segment) -> None:
    first, last = scale.at(segment.first), scale.at(segment.last)
    last = max(last, first + 2)
    if segment.state != "fails" or segment.at is None:
        _block(canvas, first, top, last, bottom, segment.state)
        return
    at = min(scale.at(segment.at), last - 2)
    if at > first:
        _block(canvas, first, top, at, bottom, "holds")
    _block(canvas, max(at, first), top, last, bottom, "fails")
    canvas.mark(max(at, first), (top + bottom) / 2, "cross", "stroke c2", 6, f"step {segment.at}")
    word = f"step {segment.at}"
    right = at + 14 + text_width(word) < scale.end
    canvas.text(at + 12 if right else at - 12, top + 15, word, "label halo", "start" if right else "end")


def _block(canvas: Canvas, x1: float, y1: float, x2: float, y2: float, state: str) -> None:
    canvas.rect(x1, y1, x2, y2, f"block {state}")
    if state in ("fails", "inconclusive"):
        canvas.hatch(x1, y1, x2, y2, f"hatch {state}", 6 if state == "fails" else 12)


def _strip_legend(
    canvas: Canvas, rows: Sequence[tuple[str, tuple[Segment, ...]]], left: float, y: float, windows: bool
) -> None:
    present = {segment.state for _, segments in rows for segment in segments}
    present |= {"holds"} if "fails" in present else set()
    x = left - 100.0
    for state, word in _STATES.items():
        if state in present:
            _block(canvas, x, y - 10, x + 22, y + 2, state)
            canvas.text(x + 28, y, word)
            x += 46 + text_width(word)
    if windows:
        canvas.rect(x, y - 9, x + 22, y + 1, "window")
        canvas.text(x + 28, y, "same samples, other order")


# --- attribution -------------------------------------------------------------------------------------------------


class Attributed(NamedTuple):
    """What a source, or two together, contribute; `kind`: total, shapley, main or interaction."""

    label: str
    kind: str
    bar: Bar
    null: bool


def attribution_picture(name: str, title: str, rows: Sequence[Attributed], axis: str) -> str:
    """Draw contributions as bars from 0 with intervals; a null player's is hatched."""
    height = 12 + _ROW * len(rows) + _AXIS
    canvas = Canvas(WIDTH, height)
    left = _label_width(row.label for row in rows)
    numbers = min(_NUMBERS, max(text_width(row.bar.short) for row in rows)) + 14
    bars = [row.bar for row in rows]
    values = [*(bar.value for bar in bars), *_near(bars)]
    scale = linear_scale(values, left, WIDTH - numbers, include=(0.0,))
    bottom = height - _AXIS
    for tick in thinned(scale.ticks()):
        canvas.line(tick.at, 4, tick.at, bottom, "grid")
    for index, row in enumerate(rows):
        _attributed(canvas, scale, 6 + _ROW * (index + 0.5), row, left)
        canvas.text(WIDTH, 10 + _ROW * (index + 0.5), fitted(row.bar.short, numbers - 14), "label", "end", row.bar.text)
    canvas.line(scale.at(0), 4, scale.at(0), bottom, "axis")
    _axis(canvas, scale, bottom, axis)
    return canvas.svg(name, title, "Contributions of each source; the same numbers stand in the table below.")


def _attributed(canvas: Canvas, scale: Scale, y: float, row: Attributed, left: float) -> None:
    canvas.text(0, y + 4, fitted(row.label, left - 12), "label", title=row.label)
    if math.isnan(row.bar.value):
        return
    ends = sorted((scale.at(0), scale.at(row.bar.value)))
    kind = "null" if row.null else {"total": "c0", "interaction": "c5"}.get(row.kind, "c1")
    canvas.rect(ends[0], y - 8, ends[1], y + 8, f"bar {kind}", row.bar.text)
    if row.null:
        canvas.hatch(ends[0], y - 8, ends[1], y + 8, "hatch inconclusive", 6)
    _whisker(canvas, scale, y, row.bar, "ink")
