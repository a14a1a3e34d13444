"""ART: the bytes, the signature, the versions, the log as a whole, and what a record gives away."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from trainmem_audit.checks import Outcome, Rule, failed, inconclusive, not_applicable, passed
from trainmem_audit.documents.findings import Verification
from trainmem_audit.documents.manifest import SCHEMA_VERSION
from trainmem_audit.documents.record import Record

__all__ = ["RULES"]

_STEP_LOG = 6
_NEWER = "STATEMENT-NEWER"
"""The finding of a newer minor version, of which what is not known was ignored."""
_TRACES = {
    "a home directory": re.compile(r"/(?:home|Users)/[A-Za-z][\w.-]*|[A-Za-z]:\\Users\\\w"),
    "a mail address": re.compile(
        r"[A-Za-z0-9][\w.+-]{0,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,8}\.[A-Za-z]{2,}"
    ),
    "a user at a host": re.compile(r"[A-Za-z0-9][\w.+-]{0,64}@[A-Za-z0-9-]{1,63}:"),
    "a user or credentials in an address": re.compile(r"://[^\s/@]{1,255}@"),
}


def _signature_and_digests(record: Record) -> Outcome:
    """TM-ART-001: a signature verifies, and every file is the one that was signed."""
    verification = record.verification
    signature = verification.signature
    if signature.state == "invalid":
        where, expected = "run.json", "a signature by a key at hand"
        return failed("cross-checked", "no signature verifies", where=where, expected=expected, got=signature.detail)
    if verification.bytes == "broken":
        where, got = _first_error(verification, "FILE", "ENV", "STATEMENT", "SIG")
        expected = "the files that were signed, in their exact form"
        return failed("cross-checked", "the bytes are not what was signed", where=where, expected=expected, got=got)
    if signature.state == "not-checkable" or verification.bytes != "intact":
        return inconclusive("no key is at hand, or the files could not be compared", where="run.json")
    return passed("cross-checked", f"signed by {signature.keyid}, and every file has its digest")


def _versions_known(record: Record) -> Outcome:
    """TM-ART-002: the versions of schema and checklist are known."""
    if record.statement is None:
        for finding in record.verification.findings:
            if finding.code == "STATEMENT" and finding.where in ("predicateType", "predicate.schemaVersion"):
                expected, got = finding.expected, finding.got
                return failed("cross-checked", finding.message, where=finding.where, expected=expected, got=got)
        return inconclusive("the statement could not be read", where="run.json")
    for finding in record.verification.findings:
        if finding.code == _NEWER:
            return inconclusive(finding.message, where=finding.where, expected=finding.expected, got=finding.got)
    manifest = record.statement.predicate
    versions = {"schemaVersion": manifest.schema_version, "checklistVersion": manifest.checklist_version}
    for name, version in versions.items():
        if version != SCHEMA_VERSION:
            where = f"statement: predicate.{name}"
            message = "written by a version that this checker does not know"
            return failed("cross-checked", message, where=where, expected=SCHEMA_VERSION, got=version)
    return passed("cross-checked", f"schema and checklist are of version {SCHEMA_VERSION}")


def _plan_precedes_runs(record: Record) -> Outcome:
    """TM-ART-003: the plan of a study precedes its runs: it is in every arm's statement, and began the study log."""
    study = record.study
    if study is None:
        plan = record.manifest.plan
        if plan is None:
            return not_applicable("the statement names no plan: a run of its own, and no arm of a study")
        return inconclusive("whether the plan came first shows only beside the study log", got=f"plan {plan[:16]}")
    log, digest = study.log, study.plan_digest
    if log is None:
        return inconclusive("the study log is not at hand", where="study.jsonl")
    if log.plan != digest:
        return failed(
            "cross-checked", "the study log is of another plan", where="study.jsonl", expected=digest, got=log.plan
        )
    for arm in study.arms.values():
        if arm.run is not None and arm.plan != digest:
            message, got = "an arm does not name the plan", arm.plan or "no plan"
            return failed("cross-checked", message, where=arm.id, expected=digest, got=got)
        if arm.started is not None and _moment(arm.started) < _moment(log.began):
            message = "an arm was started before the plan was fixed"
            return failed("cross-checked", message, where=arm.id, expected=f"after {log.began}", got=arm.started)
    if not log.signed:
        return inconclusive("it would pass, but no signature binds the study log", where="study.json")
    return passed("cross-checked", f"the plan began the study log, and is named by all {len(study.arms)} arms")


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _steps_contiguous(record: Record) -> Outcome:
    """TM-ART-004: the steps are contiguous up to the end of the run."""
    verification, log = record.verification, record.log
    state = next((check.state for check in verification.checks if check.number == _STEP_LOG), "not-checked")
    if state == "fail" or not log.whole:
        where, got = _first_error(verification, "LOG")
        expected = "contiguous steps in an unbroken chain, as the statement says"
        return failed("cross-checked", "the step log does not hold", where=where, expected=expected, got=got)
    if not log.ended:
        message = f"the log breaks off after step {log.steps.count - 1}: it has no `end` line"
        return inconclusive(message, where="steps.jsonl")
    return _restarts_chained(record) or passed(
        "cross-checked", f"{log.steps.count} steps without a gap, up to the end of the run"
    )


def _restarts_chained(record: Record) -> Outcome | None:
    """Judge what came before the first step, in another record; `None` where nothing did."""
    named, link = record.manifest.run.parent, record.verification.parent
    count = record.log.steps.count
    if link is not None:
        after = f"run {link.run[:12]}, after {link.steps} steps"
        if link.state == "broken":
            message = "the run does not go on from the one that it names"
            return failed("cross-checked", message, where="run.parent", expected=after, got=link.detail)
        if link.state == "undecided":
            return inconclusive(link.detail, where="run.parent")
        return passed("cross-checked", f"{count} steps without a gap, chained to those of {after}")
    if named is not None:
        message = (
            f"{count} steps without a gap; the {named.steps} before them are in the record of run {named.run[:12]}"
        )
        return inconclusive(f"{message}, which is not at hand (--parent)", where="run.parent")
    if record.manifest.run.branch is not None:
        return None  # an arm goes on from the state of its prefix, whose chain it names: for the pair's certificate
    before = [item for item in record.log.order.resumes if item.steps is not None and item.steps > item.at]
    if before:
        message = f"a state with {before[0].steps} steps behind it was loaded, and no record of them is named"
        return inconclusive(message, where=f"step {before[0].at}")
    return None


def _anonymised(record: Record) -> Outcome:
    """TM-ART-005: nothing in an anonymous statement tells who or where."""
    if record.disclosed:
        return not_applicable("the openings of the commitments are there: the record is open on purpose")
    for path, text in _texts(record.manifest.to_json(), "predicate"):
        for kind, pattern in _TRACES.items():
            if pattern.search(text):
                message = "the statement holds what tells who or where"
                return failed("cross-checked", message, where=f"statement: {path}", expected="nothing of it", got=kind)
    return passed("cross-checked", "no text of the statement holds a home directory, an address or credentials")


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield every text of a document with its path, names of members included."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, member in value.items():
            yield path, key
            yield from _texts(member, f"{path}.{key}" if len(path) < 200 else path)
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _texts(member, f"{path}[{index}]" if len(path) < 200 else path)


def _first_error(verification: Verification, *codes: str) -> tuple[str, str]:
    """Return where the first error with one of these codes lies, and what it says."""
    for finding in verification.findings:
        if finding.severity == "error" and finding.code.startswith(codes):
            return finding.where, finding.message
    return "run.json", "see the findings of `verify`"


RULES: dict[str, Rule] = {
    "TM-ART-001": _signature_and_digests,
    "TM-ART-002": _versions_known,
    "TM-ART-003": _plan_precedes_runs,
    "TM-ART-004": _steps_contiguous,
    "TM-ART-005": _anonymised,
}
