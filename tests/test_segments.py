"""Segments: where they lie, the draw against its own text and its vectors, detection against counting all draws."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.logs import FakeRun
from tests.vectors import FOLDER, draws
from trainmem_audit import segments as module
from trainmem_audit.canonical import float_text, parse_float_text
from trainmem_audit.divergence import groups
from trainmem_audit.documents.findings import Difference
from trainmem_audit.replaying.segments import SegmentsComparison
from trainmem_audit.segments import (
    Segment,
    choose,
    detection,
    draw,
    segment_lines,
    segments_of,
    stretches_of,
    verdict_of,
)

HEAD, NONCE = bytes(range(32)), bytes(range(16))
CONTEXT = "trainmem-audit 2026-11 draw of segments v1"


def drawn_by_the_text(seed: bytes, total: int, count: int) -> list[int]:
    """Do what `schema/README.md` § Segments says, word by word, over an output that is made at once."""
    output = blake3(seed, derive_key_context=CONTEXT).digest(length=8 * (2 * total + 16))
    words = [int.from_bytes(output[at : at + 8], "little") for at in range(0, len(output), 8)]
    order = list(range(total))
    drawn: list[int] = []
    while len(drawn) < min(count, total):
        n = total - len(drawn)
        word = words.pop(0)
        if word < 2**64 - 2**64 % n:
            a = len(drawn)
            order[a], order[a + word % n] = order[a + word % n], order[a]
            drawn.append(order[a])
    return drawn


@given(st.binary(min_size=32, max_size=32), st.binary(min_size=16, max_size=16), st.integers(0, 60), st.integers(0, 70))
def test_the_draw_is_what_its_text_says(head: bytes, nonce: bytes, total: int, count: int) -> None:
    drawn = draw(head, nonce, total, count)
    assert drawn == drawn_by_the_text(head + nonce, total, count)
    assert len(set(drawn)) == min(count, total)
    assert drawn == draw(head, nonce, total, count + 1)[: len(drawn)]


@pytest.mark.parametrize("name", sorted(draws()))
def test_the_vectors_of_the_draw(name: str) -> None:
    case = json.loads((FOLDER / name).read_bytes())
    head, nonce, count = bytes.fromhex(case["chainHead"]), bytes.fromhex(case["nonce"]), len(case["drawn"])
    assert draw(head, nonce, case["total"], count) == case["drawn"]
    assert drawn_by_the_text(head + nonce, case["total"], count) == case["drawn"]


def test_a_word_that_would_favour_some_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_words", lambda _: iter((2**64 - 1, 5, 1)))  # 2^64 = 1 (mod 3)
    assert draw(HEAD, NONCE, 3, 2) == [2, 0]


def test_all_are_drawn_equally_often() -> None:
    counts = [0] * 5
    for number in range(2000):
        for drawn in draw(HEAD, number.to_bytes(16, "big"), 5, 2):
            counts[drawn] += 1
    assert all(abs(count - 800) < 5 * (2000 * 0.4 * 0.6) ** 0.5 for count in counts)


@pytest.mark.parametrize("total", range(1, 8))
def test_the_probability_is_that_of_counting_all_draws(total: int) -> None:
    for forged in range(total + 1):
        for drawn in range(total + 1):
            all_draws = list(combinations(range(total), drawn))
            hits = sum(any(number < forged for number in each) for each in all_draws)
            assert detection(total, forged, drawn) == Fraction(hits, len(all_draws))


def test_the_probability_of_a_long_run_is_exact() -> None:
    assert detection(65536, 1, 3) == Fraction(3, 65536)
    assert detection(65536, 32768, 65536) == 1
    assert float(detection(65536, 6554, 30)) == pytest.approx(1 - 0.9**30, rel=1e-3)


def test_segments_lie_between_snapshots() -> None:
    assert segments_of([2, 5], 8) == [Segment(0, 2, always=True), Segment(3, 5), Segment(6, 7, always=True)]
    assert segments_of([7], 8) == [Segment(0, 7, always=True)]  # a snapshot after the last step begins none
    assert segments_of([], 8) == [Segment(0, 7, always=True)]
    assert segments_of([5, 2, 2, 99], 8) == segments_of([2, 5], 8)
    assert segments_of([0], 0) == []


def test_a_segment_in_which_the_run_resumed_is_always_replayed() -> None:
    assert [item.always for item in segments_of([1, 3, 5], 8, resumed=[4])] == [True, False, True, True]


def test_what_is_always_replayed_is_not_counted() -> None:
    segments = segments_of([1, 3, 5, 7], 10)
    chosen = choose(segments, HEAD, NONCE, 1)
    assert [item.always for item in chosen] == [True, False, True]
    assert choose(segments, HEAD, NONCE, 9) == segments


def test_segments_that_follow_one_another_are_one_stretch() -> None:
    assert stretches_of([Segment(0, 1), Segment(2, 3), Segment(6, 7)]) == [(0, 3), (6, 7)]


def test_a_verdict_says_what_the_draw_would_find() -> None:
    segments = segments_of(range(9, 200, 10), 210)
    found = verdict_of(segments, choose(segments, HEAD, NONCE, 3), 3, NONCE)
    assert (found.total, found.drawn, found.drawn_from, len(found.replayed)) == (21, 3, 19, 5)
    told = {item.fraction: (item.forged, parse_float_text(item.probability)) for item in found.detection}
    assert told["1/10"] == (2, float(1 - Fraction(17 * 16 * 15, 19 * 18 * 17)))
    assert told["1/100"] == (1, 3 / 19)
    text = "\n".join(segment_lines(found))
    assert NONCE.hex() in text and "15.8 % if 1," in text


def test_where_all_are_replayed_nothing_is_left_to_the_draw() -> None:
    segments = segments_of([4], 10)
    found = verdict_of(segments, choose(segments, HEAD, NONCE, 2), 2, NONCE)
    assert (found.drawn, found.drawn_from, found.detection) == (0, 0, ())
    assert "nothing was left" in "\n".join(segment_lines(found))


# The comparison -----------------------------------------------------------------------------------------------------


class Walked(FakeRun):
    """The rerun of a run of 12 steps, in which steps 6 and 7 are done for real, from the state after step 5."""

    def __init__(self) -> None:
        super().__init__(12)

    def step(self, i: int) -> dict[str, Any]:
        """Return a step line; without state, loss and values where it is walked."""
        members = super().step(i)
        if i not in (5, 6, 7):
            members |= {"state": {}, "scalars": {"loss": [float_text(9.0)], "lr": [float_text(0.5)]}}
            members.pop("values", None)
        return members


def compared(got: FakeRun) -> tuple[SegmentsComparison, Difference | None]:
    """Compare a run of 12 steps with a rerun of its segment 6 to 7."""
    comparison = SegmentsComparison([(6, 7)], 12, lambda _: None, lambda _: None)
    for expected, found in zip(groups(FakeRun(12).parsed()), groups(got.parsed()), strict=True):
        if comparison.done:
            break
        difference = comparison.feed(expected, found)
        if difference is not None:
            return comparison, difference
    return comparison, None


def test_what_is_walked_needs_no_state_and_what_is_real_does() -> None:
    comparison, difference = compared(Walked())
    assert difference is None and comparison.done and not comparison.uncompared
    assert (comparison.steps, comparison.walked, comparison.reached) == (2, 6, 8)


@pytest.mark.parametrize(
    ("what", "step", "kind"),
    [
        ("index", 2, "walked"), ("content", 3, "walked"), ("inputs", 1, "walked"), ("rng.torch.cpu", 4, "walked"),
        ("inputs", 5, "start"), ("model.params", 5, "start"), ("optimizer.momentum", 5, "start"),
        ("loss", 6, "real"), ("model.params", 7, "real"), ("rng.python", 7, "real"),
    ],
)  # fmt: skip
def test_what_differs_is_found_where_it_does(what: str, step: int, kind: str) -> None:
    comparison, difference = compared(Walked().change(step, what))
    assert difference is not None
    assert (difference.step, comparison.kind) == (step, kind)
    assert difference.components[0].component.endswith(what)


def test_the_state_of_a_walk_is_not_looked_at() -> None:
    comparison, difference = compared(Walked().change(8, "model.params").change(9, "index"))
    assert (difference, comparison.steps) == (None, 2)


def test_a_component_that_was_not_put_back_is_a_difference() -> None:
    class Lost(Walked):
        def step(self, i: int) -> dict[str, Any]:
            members = super().step(i)
            members["state"].pop("teacher.params", None)
            return members

    comparison, difference = compared(Lost())
    assert difference is not None
    assert (comparison.kind, difference.step) == ("start", 5)
    assert difference.components[0].component == "teacher.params"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"3": ["a", 5]}', ["a"]),
        (b'{"3": 7}', []),
        (b"[1]", []),
        (b"[" * 60_000, []),
        (b"\xff", []),
        (b'{"3": ["' + b"a" * 100_000 + b'"]}', []),
        (None, []),
    ],
)
def test_what_a_replay_says_of_itself_may_be_anything(tmp_path: Path, content: bytes | None, told: list[str]) -> None:
    """The script could have written that file: nothing in it is waited for, taken whole or trusted in its form."""
    pytest.importorskip("torch")
    from trainmem_audit.replaying.segments import SegmentReplay

    path = tmp_path / "problems.json"
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    replay = SegmentReplay.__new__(SegmentReplay)
    replay._problems = path
    assert replay._told(3) == told
