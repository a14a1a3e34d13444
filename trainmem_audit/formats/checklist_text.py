"""A check as text for a terminal: the verification, then the items, failures first, then what it comes to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final

from trainmem_audit.documents.compliance import Compliance, ItemResult, State
from trainmem_audit.screen import result_text, verification_lines
from trainmem_audit.text import clip, safe_text

__all__ = ["EVIDENCE_MARKS", "LADDER", "ORDER", "compliance_text", "result_of"]

ORDER: Final[tuple[State, ...]] = ("fail", "declared", "inconclusive", "waived", "pass", "not-applicable")
"""The states, the worst first."""
EVIDENCE_MARKS: Final = {"declared": "○", "recorded": "◔", "cross-checked": "◕", "replayed": "●"}
"""The evidence ladder as marks: how much of it is filled is how far up it is."""
LADDER: Final = (
    ("declared", "the author says so"),
    ("recorded", "a recorder saw it, signed"),
    ("cross-checked", "recomputed from what is signed"),
    ("replayed", "it came out again"),
)
_MARKS: Final = {
    "fail": "FAIL",
    "declared": "!   ",
    "inconclusive": "?   ",
    "waived": "~   ",
    "pass": "ok  ",
    "not-applicable": "–   ",
}
_TITLE: Final = 78


def compliance_text(compliance: Compliance) -> str:
    """Return the verification and the checklist, failures first."""
    return "\n".join([*verification_lines(compliance.verification), "", *_checklist(compliance), *_result(compliance)])


def _checklist(compliance: Compliance) -> Iterator[str]:
    version = safe_text(compliance.checklist_version)
    yield f"checklist {version}, profile {safe_text(compliance.profile)}: {_counted(compliance)}"
    for state in ORDER:
        for item in compliance.items:
            if item.state == state:
                yield from _item(item)
    for waiver in compliance.unused_waivers:
        yield f"  a waiver that was not needed, is not of this profile or has expired: {waiver.id} ({_who(waiver.who)})"


def _counted(compliance: Compliance) -> str:
    count = Counter(item.state for item in compliance.items)
    return ", ".join(f"{count[state]} {state}" for state in ORDER if count[state])


def _item(item: ItemResult) -> Iterator[str]:
    tier = f"{EVIDENCE_MARKS[item.evidence]} {item.evidence}" if item.evidence else ""
    word = item.severity.upper()
    line = f"  {_MARKS[item.state]} {item.id} {word:<6} {tier:<15} {clip(item.title, _TITLE)}"
    yield line.rstrip()
    if item.state == "pass":
        return
    yield f"         {clip(safe_text(item.message), 300)}"
    if item.waiver is not None:
        until = f", until {item.waiver.expires}" if item.waiver.expires else ""
        reason = clip(safe_text(item.waiver.reason), 300)
        yield f"         waived ({item.waived}): {reason} ({_who(item.waiver.who)}{until})"
    if item.state not in ("fail", "declared", "inconclusive"):
        return
    pairs = (("where", item.where), ("expected", item.expected), ("got", item.got), ("remedy", item.remedy))
    for label, text in pairs:
        if text and (item.counts or label == "where"):
            yield f"         {label + ':':<9} {clip(safe_text(text), 300)}"


def _who(text: str) -> str:
    return clip(safe_text(text), 100)


def _result(compliance: Compliance) -> Iterator[str]:
    yield ""
    yield f"result:    {safe_text(result_of(compliance))}"


def result_of(compliance: Compliance) -> str:
    """Return in words what the exit code says, and why."""
    if compliance.exit_code == 0:
        return "passed"
    verification = compliance.verification
    reasons = [result_text(verification)] if verification.exit_code == compliance.exit_code else []
    wanted: tuple[State, ...] = ("fail", "declared") if compliance.exit_code == 1 else ("inconclusive",)
    words = {"fail": "failed", "declared": "only declared", "inconclusive": "undecided"}
    for state in wanted:
        named = [item.id for item in compliance.items if item.counts and item.state == state]
        if named:
            more = f" and {len(named) - 5} more" if len(named) > 5 else ""
            reasons.append(f"{words[state]}: {', '.join(named[:5])}{more}")
    head = "not passed" if compliance.exit_code == 1 else "undecided"
    return f"{head}: " + "; ".join(reason.removeprefix(f"{head}: ") for reason in reasons)
