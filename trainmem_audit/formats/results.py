"""What machines read of a verification or a check: one flat list of results, which each format writes its own way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from trainmem_audit.documents.checklist import Severity
from trainmem_audit.documents.compliance import Compliance, ItemResult
from trainmem_audit.documents.findings import Check, Finding, Verification
from trainmem_audit.text import clip, safe_text

__all__ = ["STEPS", "Level", "Result", "Results", "of_compliance", "of_verification", "place"]

STEPS: Final = (
    "VERIFY-ENVELOPE",
    "VERIFY-SIGNATURE",
    "VERIFY-TRUST",
    "VERIFY-STATEMENT",
    "VERIFY-FILES",
    "VERIFY-LOG",
    "VERIFY-SIDE",
    "VERIFY-REPLAY",
)
"""The numbered steps of verification, by name."""
Level = Literal["error", "warning", "note"]
State = Literal["pass", "fail", "undecided", "not-applicable", "not-run", "waived"]

_LEVELS: Final[dict[Severity, Level]] = {"must": "error", "should": "warning", "may": "note"}
_SIGNATURE, _TRUST, _LOG, _REPLAY = 2, 3, 6, 8
_FILES: Final = frozenset({"run.json", "run.intoto.jsonl", "signer.pub", "steps.jsonl", "tensors.b3"})
_PLACE: Final = re.compile(r"(?P<file>[^:]+?)(?::(?P<line>[1-9][0-9]{0,8}))?(?=$|:|\s)")
_LONGEST: Final = 600


@dataclass(frozen=True)
class Result:
    """One thing that was asked and what became of it; every text is safe to print.

    `counts` says whether it keeps the run from passing. `told` marks a step whose findings say it already.
    """

    id: str
    group: str
    title: str
    state: State
    level: Level
    counts: bool
    message: str
    where: str = ""
    detail: str = ""
    justification: str = ""
    told: bool = False


@dataclass(frozen=True)
class Results:
    """All results, what they are of, and how it ended."""

    name: str
    results: tuple[Result, ...]
    exit_code: int


def of_verification(verification: Verification) -> Results:
    """Return the steps and findings of a verification."""
    results = (*_steps(verification), *map(_finding, verification.findings))
    return Results(safe_text(verification.name), results, verification.exit_code)


def of_compliance(compliance: Compliance) -> Results:
    """Return the steps, the findings and the items of a check."""
    verified = of_verification(compliance.verification)
    return Results(verified.name, (*verified.results, *map(_item, compliance.items)), compliance.exit_code)


def _steps(verification: Verification) -> Iterator[Result]:
    errors = any(finding.severity == "error" for finding in verification.findings)
    for check in verification.checks:
        state = _step_state(check, verification)
        told = errors and check.state == "fail" and check.number != _TRUST
        counts = state in ("fail", "undecided")
        yield _step(check.number, check.title, state, counts, check.detail, told)
    replay = verification.replay
    outcomes: dict[str, State] = {"mismatch": "fail", "inconclusive": "undecided", "not-run": "undecided"}
    state = "not-run" if replay.mode == "none" and not replay.what_if else outcomes.get(replay.outcome, "pass")
    detail = " ".join(part for part in (replay.outcome, replay.reason) if part)
    if replay.difference is not None:
        detail += f": step {replay.difference.step}, {replay.difference.blame}: {replay.difference.explanation}"
    yield _step(_REPLAY, "replay", state, state in ("fail", "undecided"), detail, False)


def _step(number: int, title: str, state: State, counts: bool, detail: str, told: bool) -> Result:
    where = "steps.jsonl" if number >= _LOG else "run.json"
    level: Level = "error" if state == "fail" else "warning"
    return Result(
        STEPS[number - 1], "verification", _short(title), state, level, counts, _short(detail), where, told=told
    )


def _step_state(check: Check, verification: Verification) -> State:
    signature = verification.signature.state
    if check.number == _TRUST and signature == "unknown-signer":
        return "not-run" if verification.exit_code != 1 else "fail"  # it was accepted, by `--allow-untrusted`
    if check.number == _SIGNATURE and signature == "not-checkable":
        return "undecided"
    if check.number == _LOG and verification.record == "incomplete":
        return "undecided"
    states: dict[str, State] = {"pass": "pass", "fail": "fail"}
    return states.get(check.state, "not-run")


def _finding(finding: Finding) -> Result:
    error = finding.severity == "error"
    return Result(
        id=safe_text(finding.code),
        group="findings",
        title=_short(finding.message),
        state="fail",
        level="error" if error else "warning",
        counts=error,
        message=_short(finding.message),
        where=_short(finding.where),
        detail=_detail(finding.expected, finding.got, finding.remedy),
    )


def _item(item: ItemResult) -> Result:
    states: dict[str, State] = {
        "pass": "pass",
        "fail": "fail",
        "declared": "fail" if item.counts else "undecided",
        "inconclusive": "undecided",
        "not-applicable": "not-applicable",
        "waived": "waived",
    }
    word = "" if item.state in ("pass", "fail") else f"{item.state}: "
    waiver = item.waiver
    return Result(
        id=item.id,
        group=f"checklist.{item.id[3:6]}",
        title=item.title,
        state=states[item.state],
        level=_LEVELS[item.severity],
        counts=item.counts,
        message=_short(word + item.message),
        where=_short(item.where),
        detail=_detail(item.expected, item.got, item.remedy),
        justification="" if waiver is None else _short(f"{waiver.reason} ({waiver.who})"),
    )


def _detail(expected: str, got: str, remedy: str) -> str:
    pairs = (("expected", expected), ("got", got), ("remedy", remedy))
    return "\n".join(f"{label}: {_short(text)}" for label, text in pairs if text)


def _short(text: str) -> str:
    return clip(safe_text(text), _LONGEST)


def place(result: Result) -> tuple[str, int | None]:
    """Return the file that a result is about, and the line where it is known; `run.json` where it names no file."""
    found = _PLACE.match(result.where)
    if found is not None and (result.id.startswith("FILE-") or found["file"] in _FILES or "/" in found["file"]):
        name = found["file"]
        if not name.startswith(("{", "/")) and ".." not in name.split("/"):
            return name, int(found["line"]) if found["line"] else None
    return "run.json", None
