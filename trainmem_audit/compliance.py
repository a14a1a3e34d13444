"""L5: `check`: what the checklist says of a run that was verified, waivers and exit code included.

Verification and checklist are two questions about one record: neither hides the other, and the exit code is the worse
of both. Waivers come from whoever checks, by a file; each is shown, and one that is not needed is shown too. Not here:
the rules (`validators/`), what a rule sees (`gathering`), how it is printed (`formats`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final, get_args

from trainmem_audit.canonical import loads_strict
from trainmem_audit.checks import Outcome, evaluate, items_of, load_checklist
from trainmem_audit.documents.checklist import Item, Severity, Waiver
from trainmem_audit.documents.compliance import Compliance, ItemResult, State
from trainmem_audit.documents.manifest import SCHEMA_VERSION
from trainmem_audit.documents.record import Record
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.gathering import Gatherer
from trainmem_audit.text import safe_text
from trainmem_audit.verify import Examination

__all__ = ["SEVERITIES", "Terms", "judge", "parse_waivers", "read_waivers", "record_of"]

SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
"""From the most severe down."""
_WAIVABLE: Final = ("fail", "declared", "inconclusive")
_MAX_WAIVERS: Final = 2**20


@dataclass(frozen=True)
class Terms:
    """What a check asks for: the profile, the severity from which a state counts, waivers, and the day they hold on."""

    profile: str = "core"
    fail_on: Severity = "must"
    waivers: tuple[Waiver, ...] = ()
    today: str = "0000-00-00"


def record_of(found: Examination, gatherer: Gatherer) -> Record:
    """Return what rules see of a run that was examined while `gatherer` took its lines."""
    return Record(
        verification=found.verification,
        statement=found.statement,
        facts=gatherer.finish(whole=found.log is not None),
        disclosed="disclosures.json" in found.reader.names(),
    )


def judge(record: Record, terms: Terms, decide: Callable[[Item], Outcome] | None = None) -> Compliance:
    """Evaluate every item of the profile; no item ends the others.

    Parameters
    ----------
    decide:
        What an item comes to, where that is more than what its rule says of `record`: over all records of a study.
    """
    decide = decide or (lambda item: evaluate(item, record))
    waivers = {waiver.id: waiver for waiver in terms.waivers if _holds(waiver, terms.today)}
    items = tuple(_result(item, decide(item), terms, waivers.get(item.id)) for item in items_of(terms.profile))
    used = {result.id for result in items if result.waiver is not None}
    verification = record.verification
    return Compliance(
        schema_version=SCHEMA_VERSION,
        name=verification.name,
        profile=terms.profile,
        checklist_version=load_checklist().version,
        fail_on=terms.fail_on,
        items=items,
        unused_waivers=tuple(waiver for waiver in terms.waivers if waiver.id not in used),
        verification=verification,
        exit_code=_exit_code(items, verification.exit_code),
    )


def _holds(waiver: Waiver, today: str) -> bool:
    return waiver.expires is None or today <= waiver.expires


def _result(item: Item, outcome: Outcome, terms: Terms, waiver: Waiver | None) -> ItemResult:
    severity = item.severity[terms.profile]
    state: State = outcome.state
    waived = state if waiver is not None and state in _WAIVABLE else None
    if waived is not None:
        state = "waived"
    return ItemResult(
        id=item.id,
        title=item.title,
        severity=severity,
        state=state,
        evidence=outcome.evidence,
        least_evidence=item.evidence,
        counts=_counts(state, severity, terms.fail_on),
        message=outcome.message,
        where=outcome.where,
        expected=outcome.expected,
        got=outcome.got,
        remedy=_remedy(item, outcome),
        waived=waived,
        waiver=waiver if waived is not None else None,
    )


def _remedy(item: Item, outcome: Outcome) -> str:
    return item.remedy if outcome.state in _WAIVABLE else ""


def _counts(state: State, severity: Severity, fail_on: Severity) -> bool:
    return state in _WAIVABLE and SEVERITIES.index(severity) <= SEVERITIES.index(fail_on)


def _exit_code(items: Iterable[ItemResult], verified: int) -> int:
    """Return the exit code of DESIGN § 8 from what counts and what `verify` gives; precedence 1 > 3 > 0."""
    states = {item.state for item in items if item.counts}
    if verified == 1 or states & {"fail", "declared"}:
        return 1
    return 3 if verified == 3 or "inconclusive" in states else 0


# --- waivers --------------------------------------------------------------------------------------------------


def read_waivers(path: Path) -> tuple[Waiver, ...]:
    """Return the waivers in a file: TOML where its name ends so, else JSON.

    Raises
    ------
    UsageError
        If the file cannot be read.
    FormatError
        If a waiver has no reason, nobody who answers for it, or an id that the checklist does not have.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_WAIVERS + 1)
    except OSError as error:
        raise UsageError("the waivers cannot be read", where=f"--waivers {path}", got=str(error.strerror)) from None
    if len(data) > _MAX_WAIVERS:
        raise UsageError(
            "the file of waivers is too large", where=f"--waivers {path}", expected=f"{_MAX_WAIVERS} bytes"
        )
    return parse_waivers(data, path.name)


def parse_waivers(data: bytes, name: str) -> tuple[Waiver, ...]:
    """Return the waivers that `data` holds; `name` says what it is, and where a fault lies (`read_waivers`)."""
    members = _parsed(data, name)
    if not isinstance(members, dict) or set(members) != {"waivers"} or not isinstance(members["waivers"], list):
        raise FormatError("no list of waivers", where=name, expected="one member `waivers`, a list of tables")
    found: dict[str, Waiver] = {}
    known = {item.id for item in load_checklist().items}
    for number, member in enumerate(members["waivers"]):
        waiver = _waiver(member, f"{name}: waivers[{number}]")
        where = f"{name}: waivers[{number}].id"
        if waiver.id not in known:
            raise FormatError("no item of the checklist has this id", where=where, got=waiver.id)
        if waiver.id in found:
            raise FormatError("an item is waived twice", where=where, got=waiver.id)
        found[waiver.id] = waiver
    return tuple(found.values())


def _parsed(data: bytes, name: str) -> Any:
    if not name.endswith(".toml"):
        return loads_strict(data, name)
    try:
        return tomllib.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError("not TOML", where=name, got=safe_text(str(error))[:200]) from None


def _waiver(member: Any, where: str) -> Waiver:
    if not isinstance(member, dict):
        raise FormatError("not a waiver", where=where, expected="a table with id, reason, who")
    for name in ("id", "reason", "who"):
        if not str(member.get(name, "")).strip():
            remedy = "say why, and who answers for it" if name != "id" else ""
            raise FormatError(f"a waiver without `{name}`", where=where, expected="id, reason, who", remedy=remedy)
    expires = member.get("expires")
    if isinstance(expires, date):  # a local date of TOML
        member = member | {"expires": expires.isoformat()[:10]}
    try:
        waiver = Waiver.model_validate(member)
        if waiver.expires is not None:
            date.fromisoformat(waiver.expires)
    except ValueError as error:
        detail = str(error).splitlines()[-1] if not hasattr(error, "errors") else error.errors()[0]["msg"]
        raise FormatError("not a waiver", where=where, expected="id, reason, who, expires", got=detail[:200]) from None
    return waiver
