"""Verification: are the bytes what was signed, by whom, is the record consistent with itself, does a replay match?

The steps, in this order; the code carries the same numbers. A step that cannot be done leaves the later ones unchecked,
and says so.

(1) *Envelope.* `run.json` is a DSSE envelope in the one form in which we write it.
(2) *Signature.* A key at hand (`signer.pub`, the trust file) verifies it.
(3) *Trust.* Whose key that is: trusted, this machine's own, or unknown.
(4) *Statement.* The payload is canonical and an in-toto Statement with our predicate, of a version that we know.
(5) *Files.* Every file that the statement lists is there with its digest, and no other file is.
(6) *Step log.* Canonical lines, chain, Merkle root, contiguous steps; and the statement says what the log says.
(7) *Side files.* Tensor digests, sample indices and snapshots give the digests of the step log.
(8) *Replay*, only if asked for and agreed to: see `replaying`.

The verdicts (bytes, signature, record, replay) follow from the steps and are never merged. No network, no torch,
nothing of the author's is executed, imported or unpickled before step 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from trainmem_audit.assemble import manifest_members
from trainmem_audit.canonical import canonical_bytes, first_changed_line, loads_strict
from trainmem_audit.contract import as_stated
from trainmem_audit.documents.common import Scalar
from trainmem_audit.documents.findings import Check, Finding, Replay, Signature, Verification
from trainmem_audit.documents.manifest import (
    PAYLOAD_TYPE,
    PREDICATE_TYPE,
    SCHEMA_VERSION,
    Manifest,
    Statement,
    is_listed,
)
from trainmem_audit.documents.steplog import Component, Line, Snapshot, Step
from trainmem_audit.envelope import Envelope, form_findings, parse_envelope, verifiers
from trainmem_audit.errors import FormatError, KeyFileError, TrainmemAuditError, UsageError
from trainmem_audit.keys import PublicKey, parse_public_keys
from trainmem_audit.rundir import RunReader
from trainmem_audit.runs import MAX_ENVELOPE, open_snapshot
from trainmem_audit.sidefiles import OrderFile, TensorFile
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE, LogReader, LogSummary, iter_lines
from trainmem_audit.trust import Trust, accepted, judge

__all__ = ["Examination", "Policy", "Replayer", "examine", "examine_signature"]

MAX_CODE = 64 * 2**20
_CHUNK = 2**20
_TITLES = ("envelope", "signature", "trust", "statement", "files", "step log", "side files")
_ABSENT: Any = object()
_NOT_RUN = Replay(outcome="not-run", mode="none", reason="no replay was asked for")

Replayer = Callable[[Statement], Replay]
"""Replays the run whose statement was verified."""


@dataclass(frozen=True)
class Policy:
    """Whom to accept: the trust file, this machine's own keys, and what the caller demands or allows."""

    trust: Trust
    own_keyids: frozenset[str] = frozenset()
    signer: str | None = None
    allow_untrusted: bool = False
    allow_changed_source: bool = False


@dataclass
class Examination:
    """What was found, step by step; `verification` is the document that says it."""

    reader: RunReader
    policy: Policy
    statement: Statement | None = None
    log: LogSummary | None = None
    signature: Signature = field(
        default_factory=lambda: Signature(state="not-checkable", detail="the envelope could not be read")
    )
    findings: list[Finding] = field(default_factory=list)
    checks: dict[int, Check] = field(default_factory=dict)
    replay: Replay = _NOT_RUN

    @property
    def verification(self) -> Verification:
        """The three verdicts with all that led to them."""
        return Verification(
            name=self.reader.label,
            bytes=self._bytes(),
            record=self._record(),
            signature=self.signature,
            replay=self.replay,
            checks=tuple(
                self.checks.get(number)
                or Check(number=number, title=title, state="not-checked", detail="an earlier step failed")
                for number, title in enumerate(_TITLES, start=1)
            ),
            findings=tuple(self.findings),
            facts=self._facts(),
            exit_code=self._exit_code(),
        )

    def _state(self, number: int) -> str:
        return self.checks[number].state if number in self.checks else "not-checked"

    def _bytes(self) -> Any:
        states = {self._state(number) for number in (1, 2, 4, 5)}
        return "broken" if "fail" in states else "intact" if states == {"pass"} else "not-checked"

    def _record(self) -> Any:
        states = {self._state(6), self._state(7)}
        if "fail" in states:
            return "inconsistent"
        if states != {"pass"} or self.log is None:
            return "not-checked"
        return "consistent" if self.log.end is not None else "incomplete"

    def _exit_code(self) -> int:
        """Return the exit code of DESIGN § 8; precedence 2 > 1 > 3 > 0 (2 is raised, never reached here)."""
        errors = any(finding.severity == "error" for finding in self.findings)
        judged = self.signature.state in ("trusted", "self", "unknown-signer")
        accept = accepted(self.signature, signer=self.policy.signer, allow_untrusted=self.policy.allow_untrusted)
        refused = self.signature.state == "invalid" or (judged and not accept)
        if errors or refused or self.replay.outcome == "mismatch":
            return 1
        asked = self.replay is not _NOT_RUN
        undecided = self.replay.outcome in ("inconclusive", "not-run") and asked
        if self.signature.state == "not-checkable" or self._record() != "consistent" or undecided:
            return 3
        return 0

    def _facts(self) -> dict[str, Scalar]:
        if self.statement is None:
            return {}
        manifest = self.statement.predicate
        log = manifest.step_logs[0]
        return {
            "runId": manifest.run.id,
            "started": manifest.run.started,
            "outcome": manifest.run.outcome,
            "steps": log.steps,
            "chainHead": log.chain_head,
            "merkleRoot": log.merkle_root,
            "components": len(manifest.sources),
            "files": len(self.statement.subject),
        }


def examine(
    reader: RunReader,
    policy: Policy,
    replayer: Replayer | None = None,
    watch: Callable[[Line], None] = lambda _: None,
    indices: Callable[[bytes], None] = lambda _: None,
) -> Examination:
    """Verify the run behind `reader`.

    Parameters
    ----------
    replayer:
        Does step 8; only called when the earlier steps leave something to replay.
    watch:
        Sees every checked line of the step log once (for the curves of a report, and the facts of a check).
    indices:
        Sees the sample indices of the step that `watch` saw last, in pieces, before their digest is compared.

    Raises
    ------
    UsageError
        If there is no `run.json` to verify.
    """
    found = Examination(reader, policy)
    if "run.json" not in reader.names():
        raise UsageError(
            "there is no run.json to verify",
            where=reader.label,
            remedy="`trainmem-audit recover` closes a run that was killed" if STEP_FILE in reader.names() else "",
        )
    envelope = _check_signature(found)
    if envelope is not None and _check_statement(found, envelope):
        assert found.statement is not None
        _check_files(found, found.statement)
        _check_log(found, found.statement, watch, indices)
    if replayer is not None:
        found.replay = _replay(found, replayer)
    return found


def examine_signature(reader: RunReader, policy: Policy) -> Signature:
    """Do steps 1 to 3 alone."""
    found = Examination(reader, policy)
    _check_signature(found)
    return found.signature


def _pass(found: Examination, number: int, detail: str) -> None:
    found.checks[number] = Check(number=number, title=_TITLES[number - 1], state="pass", detail=detail)


def _fail(found: Examination, number: int, detail: str, findings: Iterable[Finding] = ()) -> None:
    found.findings += findings
    found.checks[number] = Check(number=number, title=_TITLES[number - 1], state="fail", detail=detail)


def _finding(code: str, error: TrainmemAuditError) -> Finding:
    return Finding(
        code=code,
        severity="error",
        where=error.where,
        message=error.message,
        expected=error.expected,
        got=error.got,
        remedy=error.remedy,
    )


def _check_signature(found: Examination) -> Envelope | None:
    """Steps 1 to 3."""
    reader = found.reader
    try:  # (1)
        data = reader.read("run.json", MAX_ENVELOPE)
        envelope = parse_envelope(data, "run.json")
    except FormatError as error:
        found.signature = Signature(state="invalid", detail="the envelope cannot be read")
        _fail(found, 1, error.message, [_finding("ENV-UNREADABLE", error)])
        return None
    published: tuple[PublicKey, ...] = ()
    if "signer.pub" in reader.names():
        try:
            published = parse_public_keys(reader.read("signer.pub", 2**16), "signer.pub")
        except (FormatError, KeyFileError) as error:
            found.findings.append(_finding("KEY-UNREADABLE", error))
    trust = found.policy.trust
    verified = verifiers(envelope, dict.fromkeys((*published, *trust.keys())))
    form = form_findings(data, envelope, published, trust.keys(), verified=verified)
    found.findings += form
    wrong = [finding for finding in form if finding.severity == "error"]
    if envelope.payload_type != PAYLOAD_TYPE:
        wrong.append(_other("ENV-TYPE", "run.json: payloadType", "another type", PAYLOAD_TYPE, envelope.payload_type))
        found.findings.append(wrong[-1])
    if wrong:
        _fail(found, 1, wrong[0].message)
    else:
        _pass(found, 1, "one DSSE envelope, in its exact form")
    found.signature = judge(  # (2)
        envelope, published, trust, found.policy.own_keyids, signer=found.policy.signer, verified=verified
    )
    if found.signature.state == "invalid":
        _fail(found, 2, found.signature.detail, [_signature_finding(found.signature)])
        return envelope
    if found.signature.state == "not-checkable":
        return envelope
    _pass(found, 2, f"Ed25519, by {found.signature.keyid}")
    if found.signature.state == "unknown-signer":  # (3)
        _fail(found, 3, found.signature.detail)
    else:
        _pass(found, 3, found.signature.detail)
    return envelope


def _signature_finding(signature: Signature) -> Finding:
    return _other("SIG-INVALID", "run.json", signature.detail, "", signature.keyid)


def _other(code: str, where: str, message: str, expected: str, got: str) -> Finding:
    return Finding(
        code=code, severity="error", where=where, message=message, expected=_clipped(expected), got=_clipped(got)
    )


def _clipped(text: str) -> str:
    return text if len(text) <= 200 else text[:200] + "…"


def _check_statement(found: Examination, envelope: Envelope) -> bool:
    """Step 4; return whether the statement could be read."""
    try:
        members = loads_strict(envelope.payload, "statement")
        if canonical_bytes(members) != envelope.payload:
            raise FormatError("the payload is not its own canonical form", where="statement", expected="RFC 8785")
        _require_known(members)
        found.statement = Statement.parse(envelope.payload, "statement")
    except FormatError as error:
        _fail(found, 4, error.message, [_finding("STATEMENT", error)])
        return False
    run = found.statement.predicate.run
    _pass(found, 4, f"run {run.id[:12]}, {run.outcome}, {len(found.statement.subject)} files listed")
    return True


def _require_known(members: Any) -> None:
    """An unknown predicate type or major version ends here; there is no fall-back."""
    members = members if isinstance(members, dict) else {}
    kind = members.get("predicateType")
    if kind != PREDICATE_TYPE:
        raise FormatError(
            "another kind of statement", where="predicateType", expected=PREDICATE_TYPE, got=str(kind)[:200]
        )
    predicate = members.get("predicate")
    version = predicate.get("schemaVersion") if isinstance(predicate, dict) else None
    if version != SCHEMA_VERSION:
        raise FormatError(
            "a version of the schema that this program does not know",
            where="predicate.schemaVersion",
            expected=SCHEMA_VERSION,
            got=str(version)[:80],
            remedy="use the version of trainmem-audit that wrote it",
        )


def _check_files(found: Examination, statement: Statement) -> None:
    """Step 5."""
    reader = found.reader
    listed = {subject.name: subject.digest.sha256 for subject in statement.subject}
    present = {name for name in reader.names() if is_listed(name)}
    findings = [
        _other("FILE-UNLISTED", name, "a file that the statement does not list", "no such file", "a file")
        for name in sorted(present - listed.keys())
    ]
    findings += [
        _other("FILE-MISSING", name, "a file that the statement lists is missing", f"sha256 {listed[name]}", "no file")
        for name in sorted(listed.keys() - present)
    ]
    for name in sorted(listed.keys() & present):
        try:
            digest = reader.sha256(name)
        except FormatError as error:
            findings.append(_finding("FILE-UNREADABLE", error))
            continue
        if digest != listed[name]:
            message = "the file is not the one that was signed"
            where = _changed_place(reader, statement, name)
            findings.append(_other("FILE-CHANGED", where, message, f"sha256 {listed[name]}", f"sha256 {digest}"))
    if len(listed) != len(statement.subject):
        findings.append(_other("FILE-TWICE", "subject", "a file is listed twice", "each once", "twice"))
    for file in statement.predicate.files:
        if file.file is not None and listed.get(file.file) != file.sha256:
            message = "the list of code files and the list of files disagree"
            findings.append(_other("FILE-CODE", file.file, message, file.sha256, str(listed.get(file.file))))
    if findings:
        _fail(found, 5, f"{len(findings)} of {len(listed)} files are not as signed", findings)
    else:
        _pass(found, 5, f"{len(listed)} files, each with its SHA-256; no other file")


def _changed_place(reader: RunReader, statement: Statement, name: str) -> str:
    """Return `file:line` for a changed code file; for the step log and its side files steps 6 and 7 name the place."""
    marks = next((file.lines for file in statement.predicate.files if file.file == name and file.lines), None)
    if marks is None or reader.size(name) > MAX_CODE:
        return name
    return f"{name}:{first_changed_line(reader.read(name, MAX_CODE), marks)}"


def _check_log(
    found: Examination, statement: Statement, watch: Callable[[Line], None], indices: Callable[[bytes], None]
) -> None:
    """Steps 6 and 7, in one pass over the files."""
    reader = found.reader
    if [log.file for log in statement.predicate.step_logs] != [STEP_FILE] or STEP_FILE not in reader.names():
        _fail(found, 6, "there is no step log", [_other("LOG-MISSING", STEP_FILE, "no step log", STEP_FILE, "none")])
        return
    kept = 0
    side = _SideFiles(reader, indices)
    with ExitStack() as stack:
        log = LogReader()
        try:
            side.open(stack)
            file = stack.enter_context(reader.open(STEP_FILE))
            for raw, whole in iter_lines(iter(lambda: file.read(_CHUNK), b""), STEP_FILE):
                if not whole:
                    raise FormatError("the last line is torn", where=f"{STEP_FILE}:{log.summary.lines + 1}")
                line = log.read(raw)
                watch(line)
                if isinstance(line, Step):
                    kept += side.check(line, log)
                elif isinstance(line, Snapshot):
                    side.check_snapshot(line, log.summary.components)
        except FormatError as error:
            _fail(found, 6, error.message, [_finding("LOG", error)])
            return
        found.log = log.finish()
        side.finish()
    disagreements = [*_length(statement.predicate, found.log), *_disagreements(statement.predicate, found.log)]
    if disagreements:
        _fail(found, 6, "the statement does not say what the log says", disagreements)
    else:
        end = "complete" if found.log.end is not None else "INCOMPLETE: the run was killed, or its recorder failed"
        _pass(found, 6, f"{found.log.steps} steps in {found.log.lines} lines, chain and Merkle root hold; {end}")
    if side.error is not None:  # (7)
        _fail(found, 7, side.error.message, [_finding("SIDE", side.error)])
    else:
        samples = found.log.indexed_samples
        snapshots = f"; {len(found.log.snapshots)} snapshots" if found.log.snapshots else ""
        _pass(found, 7, f"tensor digests of {kept} of {found.log.steps} steps; {samples} sample indices{snapshots}")


class _SideFiles:
    """Step 7: checks the files beside the log until the first error."""

    def __init__(self, reader: RunReader, indices: Callable[[bytes], None]) -> None:
        self.error: FormatError | None = None
        self._reader = reader
        self._indices = indices
        self._last: Step | None = None
        self._tensors: TensorFile | None = None
        self._order: OrderFile | None = None

    def open(self, stack: ExitStack) -> None:
        reader, names = self._reader, self._reader.names()
        try:
            if TENSOR_FILE in names:
                self._tensors = TensorFile(stack.enter_context(reader.open(TENSOR_FILE)))
            if ORDER_FILE in names:
                self._order = OrderFile(stack.enter_context(reader.open(ORDER_FILE)))
        except FormatError as error:
            self.error = error

    def check(self, line: Step, log: LogReader) -> bool:
        """Check one step; return whether its tensor digests were kept."""
        self._last = line
        if self.error is not None:
            return False
        try:
            if line.order is not None and line.order.index is not None and self._order is None:
                raise FormatError("the sample indices are missing", where=ORDER_FILE)
            if self._order is not None:
                self._order.check(line, self._indices)
            return self._tensors is not None and self._tensors.check(line, log.summary.components)
        except FormatError as error:
            self.error = error
            return False

    def check_snapshot(self, line: Snapshot, components: dict[str, Component]) -> None:
        """Check the file of a snapshot, which holds the state of the step before its line."""
        if self.error is not None or self._last is None:
            return
        try:
            open_snapshot(self._reader, line).check(self._last, components)
        except FormatError as error:
            self.error = error

    def finish(self) -> None:
        try:
            for part in (self._tensors, self._order):
                if part is not None and self.error is None:
                    part.finish()
        except FormatError as error:
            self.error = error


def _length(manifest: Manifest, log: LogSummary) -> list[Finding]:
    """Name the place where whole lines were taken off the end of the log, or added to it."""
    signed = manifest.step_logs[0].count
    if log.lines == signed:
        return []
    where = f"{STEP_FILE}:{min(log.lines, signed) + 1}"
    message = "lines are missing at the end" if log.lines < signed else "lines were added at the end"
    return [_other("LOG", where, message, f"{signed} lines", f"{log.lines} lines")]


def _disagreements(manifest: Manifest, log: LogSummary) -> list[Finding]:
    """Compare what the statement says with what follows from the log."""
    try:
        derived = Manifest.model_validate(manifest_members(log)).to_json()
    except (FormatError, ValueError) as error:
        return [_other("LOG-STATEMENT", STEP_FILE, "no statement follows from the log", "one", str(error))]
    signed = manifest.to_json()
    derived["rngContract"] = as_stated(derived["rngContract"], signed["rngContract"])
    free = {"producer", "declared", "notRecorded", "checklistVersion"}
    names = sorted(name for name in (derived.keys() | signed.keys()) - free if derived.get(name) != signed.get(name))
    message = "the statement does not say what the log says"
    findings = [
        _other(
            "LOG-STATEMENT", *_first_difference(derived.get(name, _ABSENT), signed.get(name, _ABSENT), name, message)
        )
        for name in names
    ]
    if unsaid := sorted(set(derived["notRecorded"]) - set(signed["notRecorded"])):
        where = "statement: predicate.notRecorded"
        findings.append(_other("LOG-STATEMENT", where, message, unsaid[0], "nothing of it"))
    return findings


def _first_difference(log: Any, signed: Any, path: str, message: str) -> tuple[str, str, str, str]:
    """Return the innermost member that differs: where, message, expected, got."""
    if isinstance(log, dict) and isinstance(signed, dict):
        name = min(n for n in log.keys() | signed.keys() if log.get(n, _ABSENT) != signed.get(n, _ABSENT))
        return _first_difference(log.get(name, _ABSENT), signed.get(name, _ABSENT), f"{path}.{name}", message)
    if isinstance(log, list) and isinstance(signed, list) and len(log) == len(signed):
        at = next(at for at, (a, b) in enumerate(zip(log, signed, strict=True)) if a != b)
        return _first_difference(log[at], signed[at], f"{path}[{at}]", message)
    expected, got = ("absent" if value is _ABSENT else canonical_bytes(value).decode() for value in (log, signed))
    return f"statement: predicate.{path[:200]}", message, expected, got


def _replay(found: Examination, replayer: Replayer) -> Replay:
    """Step 8: only a record that holds is replayed; changed source may be, as a what-if."""
    errors = [finding for finding in found.findings if finding.severity == "error"]
    changed = [finding for finding in errors if finding.code == "FILE-CHANGED" and finding.where.startswith("source/")]
    if found.statement is None or found.log is None or found.signature.state == "invalid" or len(errors) > len(changed):
        return Replay(outcome="not-run", mode="none", reason="the record does not hold, so there is nothing to replay")
    if changed and not found.policy.allow_changed_source:
        names = ", ".join(finding.where for finding in changed)
        return Replay(outcome="not-run", mode="none", reason=f"the code was changed after signing: {names}")
    return replayer(found.statement)
