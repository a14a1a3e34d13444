"""L5: small pictures as inline SVG: scales, ticks, text of known width, marks. Pure functions, no library, no script.

A `Canvas` collects elements; every text that enters one passes `safe_text` and is escaped, every number is finite and
rounded. Colours, dashes and fonts are classes, so that the page's style decides them (dark, light, print); a mark's
shape says what its colour says. Not here: what is drawn (`study_figures`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final, Literal, NamedTuple

from trainmem_audit.text import columns, safe_text

__all__ = [
    "FONT",
    "MARKS",
    "Canvas",
    "Mark",
    "Scale",
    "Tick",
    "finite",
    "fitted",
    "linear_scale",
    "log_scale",
    "number",
    "text_width",
    "thinned",
]

FONT: Final = 12
"""Size of a figure's text in pixels, as the style sheet has it."""
LARGEST: Final = 1e300
"""What is larger is drawn there: differences of drawn values must not overflow."""
_SMALLEST: Final = 1e-300
_DECADES_WITH_FACTORS: Final = 1.7
_ZERO_GAP: Final = 26
_NEAR: Final = 6
"""Pixels between two labels."""
Mark = Literal["circle", "square", "diamond", "up", "down", "cross", "plus", "bar"]
MARKS: Final[tuple[Mark, ...]] = ("circle", "square", "up", "diamond", "down", "plus", "cross")


class Tick(NamedTuple):
    """A place on an axis: the value, its pixel, what is written there."""

    value: float
    at: float
    label: str


# --- numbers and text --------------------------------------------------------------------------------------------


def finite(values: Iterable[float]) -> list[float]:
    """Return the values that are finite, no larger than can be drawn."""
    return [max(-LARGEST, min(LARGEST, value)) for value in values if math.isfinite(value)]


def number(value: float, digits: int = 3) -> str:
    """Return a number for people: `0.473`, `−12`, `4.2e−4`, `∞`, `—` for what is no number."""
    if math.isnan(value):
        return "—"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    text = f"{size:.{digits - 1}e}" if 0 < size < 1e-3 else f"{size:.{digits}g}"
    if "e" in text:
        mantissa, exponent = text.split("e")
        power = int(exponent)
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"{size:.0f}" if 0 <= power < 6 else f"{mantissa}e{power}"  # 1234 and not 1.23e3
    text = text.replace("-", "−")
    return f"−{text}" if value < 0 else text


_WIDTHS: Final = {
    **dict.fromkeys("ijlI'|!", 0.32),
    **dict.fromkeys(' .,:;ft()[]/\\-r"`', 0.4),
    **dict.fromkeys("mMW%@w−—∞≥≤→", 0.95),
    **dict.fromkeys("ABCDEFGHJKLNOPQRSTUVXYZ&", 0.73),
}


def text_width(text: str, size: float = FONT) -> float:
    """Return about how wide a text is in pixels, by the widest of the fonts that the page may be shown in."""
    return size * sum(_WIDTHS.get(char, 0.62) if char.isascii() else max(columns(char), 0.95) for char in text)


def fitted(text: str, width: float, size: float = FONT) -> str:
    """Return the text, made safe, cut off with `…` where it is wider than so many pixels."""
    text = safe_text(text)
    if text_width(text, size) <= width:
        return text
    room, kept = width - text_width("…", size), 0
    for char in text:
        room -= text_width(char, size)
        if room < 0:
            break
        kept += 1
    return text[:kept].rstrip() + "…"


# --- scales ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Maps values from [`low`, `high`] to pixels from `start` to `end`; what lies outside is put at the nearer end.

    On a logarithmic scale `zero` is the pixel of 0, apart from all others; without one 0 lies at the lower end.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    zero: float | None = None

    def at(self, value: float) -> float:
        """Return the pixel of a value, within the frame."""
        if self.log and value <= 0:
            return self.start if self.zero is None else self.zero
        value = max(self.low, min(self.high, value))
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return round(self.start + (value - low) / (high - low) * (self.end - self.start), 1)

    def holds(self, value: float) -> bool:
        """Return whether a value lies inside of the frame, so that it is drawn where it is."""
        return self.low <= value <= self.high or (self.log and value == 0 and self.zero is not None)

    def ticks(self, count: int = 5) -> list[Tick]:
        """Return about so many round values with their labels; 0 too where it has a place apart."""
        if not self.log:
            return self._labelled(*_nice(self.low, self.high, count))
        found = [Tick(value, self.at(value), number(value, 6)) for value in _decades(self.low, self.high, count)]
        return found if self.zero is None else [Tick(0.0, self.zero, "0"), *found]

    def ticks_at(self, values: Iterable[float]) -> list[Tick]:
        """Return ticks at given values."""
        return [Tick(value, self.at(value), number(value, 6)) for value in values if self.holds(value)]

    def _labelled(self, values: list[float], step: float) -> list[Tick]:
        size = max(abs(self.low), abs(self.high))
        plain = step >= 1e-4 and size < 1e6
        places = max(0, -math.floor(math.log10(step) + 1e-9))
        digits = max(1, math.ceil(math.log10(size / step) + 1e-9)) if size > 0 else 1
        labels = [f"{value:.{places}f}" if plain else number(value, min(digits + 1, 15)) for value in values]
        return [Tick(v, self.at(v), label.replace("-", "−")) for v, label in zip(values, labels, strict=True)]


def linear_scale(
    values: Iterable[float], start: float, end: float, *, include: Sequence[float] = (), pad: float = 0.05
) -> Scale:
    """Return a scale that holds every finite value, and those to include, with a margin."""
    known = finite([*values, *include])
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    least = max(abs(low), abs(high)) * 1e-9 or 1.0  # closer than that, ticks would not be told apart
    if high - low < least:
        middle, half = (low + high) / 2, max(abs(low), abs(high)) * 0.1 or 1.0
        low, high = middle - half, middle + half
    room = (high - low) * pad
    return Scale(low - room, high + room, start, end)


def log_scale(values: Iterable[float], start: float, end: float, *, zero: bool = False, pad: float = 0.05) -> Scale:
    """Return a logarithmic scale that holds every positive finite value; 0 gets a place apart where `zero`."""
    known = [max(value, _SMALLEST) for value in finite(values) if value > 0]
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    if high / low < 1.05:
        low, high = low / 2, high * 2
    factor = math.exp((math.log(high) - math.log(low)) * pad)
    inner = start + math.copysign(_ZERO_GAP, end - start) if zero else start
    low, high = max(low / factor, _SMALLEST), min(high * factor, LARGEST)
    return Scale(low, high, inner, end, log=True, zero=start if zero else None)


def _nice(low: float, high: float, count: int) -> tuple[list[float], float]:
    """Return about `count` multiples of 1, 2 or 5 times a power of ten within [`low`, `high`], and their distance."""
    raw = high / count - low / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.8)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step + 0.0 for index in range(first, last + 1)][:100], step


def _decades(low: float, high: float, count: int) -> list[float]:
    """Return powers of ten, and 2 and 5 times them where there are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if math.log10(high) - math.log10(low) <= _DECADES_WITH_FACTORS else (1,)
    every = max(1, -(-(last - first + 1) // (count + 1)))
    powers = range(max(first, -300) + (-max(first, -300)) % every, last + 1, every)
    return [tick for power in powers for factor in factors if low <= (tick := float(f"{factor}e{power}")) <= high]


def thinned(ticks: Iterable[Tick], *, vertical: bool = False) -> list[Tick]:
    """Return the ticks whose labels do not run into that of one before."""
    kept: list[Tick] = []
    for tick in sorted(ticks, key=lambda tick: tick.at):
        if not kept or tick.at - kept[-1].at >= _needed(kept[-1], tick, vertical):
            kept.append(tick)
    return kept


def _needed(one: Tick, other: Tick, vertical: bool) -> float:
    return FONT + 2 if vertical else (text_width(one.label) + text_width(other.label)) / 2 + _NEAR


# --- drawing -----------------------------------------------------------------------------------------------------


class Canvas:
    """Collects the elements of one picture, `width` × `height` pixels."""

    def __init__(self, width: float, height: float) -> None:
        self.width = width
        self.height = height
        self._parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a straight line."""
        self._add("line", kind, x1=x1, y1=y1, x2=x2, y2=y2)

    def rect(self, x1: float, y1: float, x2: float, y2: float, kind: str, title: str = "") -> None:
        """Draw a rectangle between two corners."""
        self._add("rect", kind, title, x=min(x1, x2), y=min(y1, y2), width=abs(x2 - x1), height=abs(y2 - y1))

    def path(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """Draw a line through points; nothing where there are fewer than two."""
        self._points("polyline", points, kind, 2)

    def area(self, points: Iterable[tuple[float, float]], kind: str) -> None:
        """Fill what points enclose; nothing where there are fewer than three."""
        self._points("polygon", points, kind, 3)

    def text(self, x: float, y: float, text: str, kind: str = "", anchor: str = "start", title: str = "") -> None:
        """Write a text, made safe; `title` shows where the pointer rests."""
        inner = f"<title>{_safe(title)}</title>" if title else ""
        attributes = f' class="{kind}"' if kind else ""
        if anchor != "start":
            attributes += f' text-anchor="{anchor}"'
        self._parts.append(f'<text{attributes} x="{_px(x)}" y="{_px(y)}">{inner}{_safe(text)}</text>')

    def mark(self, x: float, y: float, mark: Mark, kind: str, size: float = 4, title: str = "") -> None:
        """Draw a mark around a point."""
        if mark == "circle":
            self._add("circle", kind, title, cx=x, cy=y, r=size)
            return
        d = " ".join(f"{'M' if pen else 'L'}{_px(x + dx * size)} {_px(y + dy * size)}" for pen, dx, dy in _SHAPES[mark])
        closed = "" if mark in ("cross", "plus", "bar") else "Z"
        inner = f"<title>{_safe(title)}</title>" if title else ""
        self._parts.append(f'<path class="{kind}" d="{d}{closed}">{inner}</path>')

    def arrow(self, x: float, y: float, direction: int, kind: str) -> None:
        """Draw the head of an arrow that points to the right (1) or to the left (−1)."""
        self.area([(x, y), (x - 7 * direction, y - 4), (x - 7 * direction, y + 4)], kind)

    def hatch(self, x1: float, y1: float, x2: float, y2: float, kind: str, step: float = 6) -> None:
        """Draw diagonals inside of a rectangle."""
        for a, b in _diagonals(x1, y1, x2, y2, step):
            self.line(*a, *b, kind)

    def svg(self, name: str, title: str, description: str) -> str:
        """Return the picture; `name` is of our own making and unique on the page."""
        size = (
            f'width="{_px(self.width)}" height="{_px(self.height)}" viewBox="0 0 {_px(self.width)} {_px(self.height)}"'
        )
        return "\n".join(
            [
                f'<svg class="fig" {size} role="img" aria-labelledby="{name}-t {name}-d">',
                f'<title id="{name}-t">{_safe(title)}</title><desc id="{name}-d">{_safe(description)}</desc>',
                *self._parts,
                "</svg>",
            ]
        )

    def _add(self, tag: str, kind: str, title: str = "", **numbers: float) -> None:
        attributes = " ".join(f'{name}="{_px(value)}"' for name, value in numbers.items())
        end = f"><title>{_safe(title)}</title></{tag}>" if title else "/>"
        self._parts.append(f'<{tag} class="{kind}" {attributes}{end}')

    def _points(self, tag: str, points: Iterable[tuple[float, float]], kind: str, least: int) -> None:
        known = list(points)
        if len(known) >= least:
            self._parts.append(f'<{tag} class="{kind}" points="{" ".join(f"{_px(x)},{_px(y)}" for x, y in known)}"/>')


_SHAPES: Final[dict[Mark, tuple[tuple[bool, float, float], ...]]] = {
    "square": ((True, -0.9, -0.9), (False, 0.9, -0.9), (False, 0.9, 0.9), (False, -0.9, 0.9)),
    "diamond": ((True, 0, -1.25), (False, 1.25, 0), (False, 0, 1.25), (False, -1.25, 0)),
    "up": ((True, 0, -1.15), (False, 1.1, 0.85), (False, -1.1, 0.85)),
    "down": ((True, 0, 1.15), (False, 1.1, -0.85), (False, -1.1, -0.85)),
    "cross": ((True, -0.9, -0.9), (False, 0.9, 0.9), (True, -0.9, 0.9), (False, 0.9, -0.9)),
    "plus": ((True, -1.1, 0), (False, 1.1, 0), (True, 0, -1.1), (False, 0, 1.1)),
    "bar": ((True, 0, -1.4), (False, 0, 1.4)),
}
"""Marks as strokes around (0, 0): whether the pen is lifted before, and where it goes."""


def _diagonals(
    x1: float, y1: float, x2: float, y2: float, step: float
) -> Iterator[tuple[tuple[float, float], tuple[float, float]]]:
    """Yield the ends of lines of slope 1 within a rectangle; few, however wide it is."""
    width, height = x2 - x1, y2 - y1
    if width <= 0 or height <= 0:
        return
    step = max(step, (width + height) / 200)
    count = int((width + height) / step)
    for index in range(1, count + 1):
        shift = index * step
        a = (x1 + shift, y1) if shift <= width else (x2, y1 + shift - width)
        b = (x1, y1 + shift) if shift <= height else (x1 + shift - height, y2)
        yield a, b


def _safe(text: str) -> str:
    return escape(safe_text(text), quote=True)


def _px(value: float) -> str:
    return f"{round(value, 1):g}"
