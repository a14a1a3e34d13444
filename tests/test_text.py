"""What is shown of a hostile string, and sizes and durations for people."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainmem_audit.text import clip, columns, duration_text, safe_text, size_text

ANY_TEXT = st.text(st.characters(codec=None))  # surrogates too


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("model.params", "model.params"),
        ("naïve café 日本 🙂", "naïve café 日本 🙂"),
        ("a\nb\r\tc\x00", r"a\u000ab\u000d\u0009c\u0000"),
        ("\x1b[31mred\x1b[0m", r"\u001b[31mred\u001b[0m"),
        ("\x9b31m", r"\u009b31m"),
        ("abc\u202etxt.exe", r"abc\u202etxt.exe"),
        ("\u2066x\u2069\u200b\u200d\ufeff", r"\u2066x\u2069\u200b\u200d\ufeff"),
        ("\u2028\u2029\u00a0", r"\u2028\u2029\u00a0"),
        ("\U000e0041", r"\U000e0041"),
        ("\ud800", r"\ud800"),
        ("x\ufe0f\u3164", r"x\ufe0f\u3164"),
        ("e" + "\u0301" * 6, "e" + "\u0301" * 4 + r"\u0301\u0301"),
        ("C:\\new", "C:\\new"),
        ("", ""),
    ],
)
def test_safe_text(text: str, shown: str) -> None:
    assert safe_text(text) == shown


@given(ANY_TEXT)
def test_what_is_shown_is_ink_on_one_line(text: str) -> None:
    shown = safe_text(text)
    assert all(char == " " or unicodedata.category(char)[0] not in "CZ" for char in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode("utf-8")


@given(ANY_TEXT)
def test_doing_it_twice_changes_nothing(text: str) -> None:
    assert safe_text(safe_text(text)) == safe_text(text)


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"])))
def test_plain_text_stays_as_it_is(text: str) -> None:
    assert safe_text(text) == text


@given(ANY_TEXT, st.integers(1, 120))
def test_clip_keeps_the_limit(text: str, limit: int) -> None:
    shown = safe_text(text)
    cut = clip(shown, limit)
    assert columns(cut) <= limit
    assert cut == shown or cut.endswith("…")


def test_wide_characters_take_two_columns() -> None:
    assert columns("日本") == 4
    assert clip("日本語", 4) == "日…"


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (10 * 1024, "10.0 KiB"),
        (2**20 - 1, "1.00 MiB"),
        (89 * 2**20, "89.0 MiB"),
        (500 * 2**30, "500 GiB"),
        (2**53 - 1, "8.00 PiB"),
    ],
)
def test_size_text(count: int, shown: str) -> None:
    assert size_text(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0.0 s"), (12.34, "12.3 s"), (59.96, "1 min 0 s"), (123.4, "2 min 3 s"), (7384.0, "2 h 3 min")],
)
def test_duration_text(seconds: float, shown: str) -> None:
    assert duration_text(seconds) == shown
