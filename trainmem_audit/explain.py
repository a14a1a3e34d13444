"""L5: what an id stands for: why it matters, how it is decided, how to mend it, with an example.

It takes every id of the checklist, every code of a finding, every step of verification and every kind of error. The
texts are data (`schema/draft/checklist.json`, `schema/draft/findings.json`); nothing is said here that is not there.
"""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator
from typing import Any, Final

from trainmem_audit.checks import load_checklist, load_codes
from trainmem_audit.documents.checklist import CodeEntry, Item
from trainmem_audit.errors import UsageError

__all__ = ["entry", "explain", "known"]

_WIDTH: Final = 100
_STATES: Final = (
    ("pass", "passes"),
    ("fail", "fail"),
    ("not-applicable", "not_applicable"),
    ("inconclusive", "inconclusive"),
)


def known() -> dict[str, Item | CodeEntry]:
    """Return everything that can be explained, by its id."""
    codes = load_codes()
    entries = {entry.code: entry for entry in (*codes.steps, *codes.findings, *codes.errors)}
    return {item.id: item for item in load_checklist().items} | entries


def entry(name: str) -> Item | CodeEntry:
    """Return what `name` stands for, in whatever case it is written.

    Raises
    ------
    UsageError
        Naming the nearest ids, if there is no such thing.
    """
    found = {key.lower(): value for key, value in known().items()}
    wanted = name.strip().lower()
    if wanted in found:
        return found[wanted]
    near = difflib.get_close_matches(wanted[:100], found, n=3)
    raise UsageError(
        "nothing has this id",
        where="explain",
        expected="an id of the checklist (TM-ORD-003), a code (FILE-CHANGED), or a kind of error (FormatError)",
        got=name[:60],
        remedy=f"did you mean {', '.join(key.upper() if '-' in key else key for key in near)}?" if near else "",
    )


def explain(name: str) -> str:
    """Return the explanation of an id as text."""
    found = entry(name)
    return "\n".join(_item(found) if isinstance(found, Item) else _code(found))


def _item(item: Item) -> Iterator[str]:
    yield f"{item.id}  {item.title}"
    severities = ", ".join(f"{severity.upper()} in profile {profile}" for profile, severity in item.severity.items())
    yield f"  {severities}; least evidence: {item.evidence}"
    yield from _part("why", item.why)
    yield from _part("when", item.selector or "always")
    yield ""
    yield "decided"
    decides: dict[str, Any] = item.decides.model_dump()
    for state, member in _STATES:
        if decides[member]:
            yield from _wrapped(f"{state + ':':<16}{decides[member]}", 16)
    yield from _part("remedy", item.remedy)
    yield from _part("example", item.example)
    yield from _part("source", item.section)


def _code(code: CodeEntry) -> Iterator[str]:
    yield f"{code.code}  {code.title}"
    parts = (("why", code.why), ("decided", code.decided), ("remedy", code.remedy), ("example", code.example))
    for label, text in parts:
        yield from _part(label, text)


def _part(label: str, text: str) -> Iterator[str]:
    yield ""
    yield label
    yield from _wrapped(text, 0)


def _wrapped(text: str, hanging: int) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="  " + " " * hanging)
