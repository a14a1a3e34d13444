"""Segments of a run: where they lie, which of them a reviewer replays, and what that would find.

A segment goes from one snapshot to the next, or from and to an end of the run. Some are always replayed: the first, the
last, and those in which the run resumed. K of the others are drawn by what the author cannot foresee and anybody can
draw again (`schema/README.md` § Segments). Pure: not here is how a segment is replayed (`replaying.segments`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, comb
from typing import Final

from blake3 import blake3

from trainmem_audit.canonical import float_text, parse_float_text
from trainmem_audit.documents.findings import Detection, SegmentRange, Segments
from trainmem_audit.documents.manifest import SegmentSupport

__all__ = [
    "DRAW_CONTEXT",
    "FRACTIONS",
    "NONCE_BYTES",
    "Segment",
    "choose",
    "detection",
    "draw",
    "segment_lines",
    "segments_of",
    "stretches_of",
    "support_text",
    "verdict_of",
]

DRAW_CONTEXT: Final = "trainmem-audit 2026-11 draw of segments v1"
NONCE_BYTES: Final = 16
FRACTIONS: Final = (Fraction(1, 100), Fraction(1, 20), Fraction(1, 10), Fraction(1, 4), Fraction(1, 2))
"""Which parts of the segments that can be drawn are taken to be forged, where a verdict says what it would find."""
_SHOWN: Final = 12
_WORD: Final = 8
_WORDS: Final = 2**64


@dataclass(frozen=True)
class Segment:
    """The steps from `first` to `last`; `always` says that it is replayed without being drawn."""

    first: int
    last: int
    always: bool = False


def segments_of(snapshots: Iterable[int], steps: int, resumed: Collection[int] = ()) -> list[Segment]:
    """Return the segments of a run of so many steps, in their order.

    Parameters
    ----------
    snapshots:
        The steps after which the state was kept.
    resumed:
        The steps before which a saved state was loaded.
    """
    if steps <= 0:
        return []
    starts = [0, *sorted({step + 1 for step in snapshots if 0 <= step < steps - 1})]
    lasts = [start - 1 for start in starts[1:]] + [steps - 1]
    ends = (0, len(starts) - 1)
    return [
        Segment(first, last, number in ends or any(first <= step <= last for step in resumed))
        for number, (first, last) in enumerate(zip(starts, lasts, strict=True))
    ]


def draw(chain_head: bytes, nonce: bytes, total: int, count: int) -> list[int]:
    """Return the numbers of `count` of `total` things, in the order in which they are drawn; all, if there are fewer.

    A Fisher-Yates shuffle that stops early: the first of the draw stay the same however many are drawn. The words are
    64 bits, little-endian, of BLAKE3's extended output; one that would favour some things is passed over.
    """
    words = _words(chain_head + nonce)
    order = list(range(total))
    for at in range(min(count, total)):
        left = total - at
        limit = _WORDS - _WORDS % left
        word = next(word for word in words if word < limit)
        chosen = at + word % left
        order[at], order[chosen] = order[chosen], order[at]
    return order[: min(count, total)]


def _words(seed: bytes) -> Iterator[int]:
    hasher = blake3(seed, derive_key_context=DRAW_CONTEXT)
    at = 0
    while True:
        yield int.from_bytes(hasher.digest(length=_WORD, seek=at), "little")
        at += _WORD


def choose(segments: Sequence[Segment], chain_head: bytes, nonce: bytes, count: int) -> list[Segment]:
    """Return the segments to be replayed: those that always are, and `count` drawn of the others, in their order."""
    free = [segment for segment in segments if not segment.always]
    drawn = {free[number].first for number in draw(chain_head, nonce, len(free), count)}
    return [segment for segment in segments if segment.always or segment.first in drawn]


def detection(total: int, forged: int, drawn: int) -> Fraction:
    """Return with which probability at least one of `forged` among `total` is drawn: 1 - C(N - fN, K) / C(N, K)."""
    fewer, more = sorted((min(forged, total), min(drawn, total)))  # exchanged they give the same
    return 1 - Fraction(comb(total - more, fewer), comb(total, fewer))


def stretches_of(chosen: Sequence[Segment]) -> list[tuple[int, int]]:
    """Return first and last step of what is replayed in one go: segments that follow one another need one start."""
    stretches: list[tuple[int, int]] = []
    for segment in chosen:
        if stretches and stretches[-1][1] + 1 == segment.first:
            stretches[-1] = (stretches[-1][0], segment.last)
        else:
            stretches.append((segment.first, segment.last))
    return stretches


def verdict_of(segments: Sequence[Segment], chosen: Sequence[Segment], count: int, nonce: bytes) -> Segments:
    """Return what a verdict says of a choice of segments."""
    free = sum(not segment.always for segment in segments)
    drawn = min(count, free)
    forged = {fraction: max(1, ceil(fraction * free)) for fraction in FRACTIONS} if free else {}
    return Segments(
        total=len(segments),
        drawn=drawn,
        drawn_from=free,
        nonce=nonce.hex(),
        replayed=tuple(SegmentRange(first=item.first, last=item.last, always=item.always) for item in chosen),
        detection=tuple(
            Detection(
                forged=number,
                fraction=f"{fraction.numerator}/{fraction.denominator}",
                probability=float_text(float(detection(free, number, drawn))),
            )
            for fraction, number in forged.items()
        ),
    )


def support_text(support: SegmentSupport) -> str:
    """Return in words what the recorder says of its self-test."""
    tried = "" if support.first is None else f" of steps {support.first} to {support.last}"
    if support.supported:
        return f"its own replay of the segment{tried} came out"
    return f"segments cannot be replayed, says its own test{tried}: {support.reason}"


def segment_lines(segments: Segments) -> Iterator[str]:
    """Yield in words which segments were replayed, and what the draw would find."""
    always = sum(item.always for item in segments.replayed)
    yield (
        f"{segments.drawn} of {segments.drawn_from} segments drawn with nonce {segments.nonce}, "
        f"and {always} of {segments.total} that always are"
    )
    steps = " · ".join(f"{item.first} to {item.last}" for item in segments.replayed[:_SHOWN])
    more = f" · {len(segments.replayed) - _SHOWN} more" if len(segments.replayed) > _SHOWN else ""
    yield f"steps {steps}{more}; {segments.walked} steps were walked without gradients to get there"
    if segments.detection:
        chances = [f"{100 * parse_float_text(item.probability):.3g} % if {item.forged}" for item in segments.detection]
        told = ", ".join(dict.fromkeys(chances))
        yield f"probability that a forged one was drawn, of {segments.drawn_from} that can be: {told} are forged"
    else:
        yield "all segments are replayed, so nothing was left to the draw"
