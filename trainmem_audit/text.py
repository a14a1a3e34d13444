"""L0: text that came from a file, made fit to be shown; sizes and durations for people.

A record may be hostile: what it holds must not move the cursor, turn the reading direction or hide anything on
the reader's screen. Not here: escaping for HTML or Markdown (`report`), anything that is hashed or signed
(`canonical`).
"""

from __future__ import annotations

import json
import unicodedata
from typing import Any, Final

__all__ = ["clip", "columns", "duration_text", "json_text", "safe_text", "size_text"]

_UNSEEN_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp", "Zs"})
_UNSEEN: Final = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
"""Letters and marks that have no ink: fillers, joiners, the Braille blank."""
_MARKS_IN_A_ROW: Final = 4


def safe_text(text: str) -> str:
    r"""Return `text` on one line, with everything that does not show as ink written as ``\uXXXX``.

    These are control characters (line feed, tab and ESC too), format characters (bidi overrides, zero-width ones,
    tags), surrogates, unassigned code points, every space but U+0020, variation selectors, and combining marks
    after the fourth in a row. Doing it twice changes nothing; it cannot be undone: a backslash stays as it is.
    """
    if text.isascii() and text.isprintable():
        return text
    shown: list[str] = []
    marks = 0
    for char in text:
        category = unicodedata.category(char)
        marks = marks + 1 if category in ("Mn", "Me") else 0
        shown.append(_escape(char) if marks > _MARKS_IN_A_ROW or _is_unseen(char, category) else char)
    return "".join(shown)


def _is_unseen(char: str, category: str) -> bool:
    if char == " ":
        return False
    return category in _UNSEEN_CATEGORIES or char in _UNSEEN or _is_variation_selector(ord(char))


def _is_variation_selector(code: int) -> bool:
    return 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or 0x180B <= code <= 0x180F


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def json_text(value: Any) -> str:
    """Return JSON for a program that also a terminal can show: nothing but printable ASCII and line feeds."""
    return json.dumps(value, indent=2).replace("\x7f", "\\u007f")


def columns(text: str) -> int:
    """Return how many terminal columns `text` (made safe before) takes."""
    return sum(_width(char) for char in text)


def _width(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clip(text: str, limit: int) -> str:
    """Return `text` in at most `limit` columns, ending in ``…`` where something was cut off."""
    if columns(text) <= limit:
        return text
    kept: list[str] = []
    used = 0
    for char in text:
        used += _width(char)
        if used > limit - 1:
            break
        kept.append(char)
    return "".join(kept) + "…"


def size_text(count: int) -> str:
    """Return a number of bytes for people, in binary units: ``17 B``, ``1.5 KiB``, ``2.00 GiB``."""
    if count < 1024:
        return f"{count} B"
    size, units = count / 1024, ["KiB", "MiB", "GiB", "TiB", "PiB"]
    while size >= 1023.5 and len(units) > 1:
        size /= 1024
        del units[0]
    digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
    return f"{size:.{digits}f} {units[0]}"


def duration_text(seconds: float) -> str:
    """Return a duration for people: ``0.4 s``, ``12.3 s``, ``2 min 3 s``, ``1 h 2 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
