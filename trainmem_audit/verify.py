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

Beside the steps, openings of commitments are checked (`commitments`) and what others attested is judged
(`attestations`); the latter changes no verdict, but for a threshold of signers. The link of a resumed run to the record
of its parent is checked by `parentage`, where that is at hand.

The verdicts (bytes, signature, record, replay) follow from the steps and are never merged. No network, no torch,
nothing of the author's is executed, imported or unpickled before step 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from trainmem_audit.assemble import manifest_members
from trainmem_audit.attestations import Attested, Judges, examine_attestations, groups_of_people
from trainmem_audit.canonical import canonical_bytes, first_changed_line, loads_strict
from trainmem_audit.commitments import MAX_BYTES, closed, open_commitments, parse_disclosures
from trainmem_audit.contract import as_stated
from trainmem_audit.documents.attestations import FILE_NAME as ATTESTATIONS
from trainmem_audit.documents.common import Scalar
from trainmem_audit.documents.disclosures import FILE_NAME as DISCLOSURES
from trainmem_audit.documents.findings import Check, Finding, Opening, ParentLink, Replay, Signature, Verification
from trainmem_audit.documents.manifest import (
    PAYLOAD_TYPE,
    SCHEMA_VERSION,
    Manifest,
    Statement,
    is_listed,
)
from trainmem_audit.documents.steplog import Component, Line, Observe, Snapshot, Step
from trainmem_audit.envelope import Envelope, form_findings, parse_envelope, verifiers
from trainmem_audit.errors import FormatError, KeyFileError, TrainmemAuditError, UsageError, VersionError
from trainmem_audit.keys import PublicKey, parse_public_keys
from trainmem_audit.lineforms import FittingStep
from trainmem_audit.rundir import RunReader
from trainmem_audit.runs import MAX_ENVELOPE, observe_at, open_snapshot, open_values
from trainmem_audit.segments import support_text
from trainmem_audit.sidefiles import OrderFile, TensorFile
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE, LogReader, LogSummary, iter_lines
from trainmem_audit.trust import Trust, accepted, judge
from trainmem_audit.versions import Choice, Reading, line_parser, read_statement

__all__ = ["Examination", "Policy", "Replayer", "examine", "examine_signature"]

MAX_CODE = 64 * 2**20
_CHUNK = 2**20
_MOST_KEPT = 2**18
"""How many components may be kept in all snapshots together: the digests of each are held."""
_TITLES = ("envelope", "signature", "trust", "statement", "files", "step log", "side files")
_ABSENT: Any = object()
_NO_REASON = ("OPEN-UNREADABLE", "OPEN-UNKNOWN", "OPEN-TWICE", "OPEN-WRONG", "SIG-THRESHOLD")
"""Findings that are no reason not to replay: they are not about what was signed."""
_NOT_RUN = Replay(outcome="not-run", mode="none", reason="no replay was asked for")

Replayer = Callable[[Statement], Replay]
"""Replays the run whose statement was verified."""


@dataclass(frozen=True)
class Policy:
    """Whom to accept: the trust file, this machine's own keys, and what the caller demands or allows.

    `threshold` is how many trusted people must have signed or co-signed; `at` the time that the trust file is asked for
    (now, if left out). `attestations` and `disclosures` are files (name, bytes) that came apart from the run.
    """

    trust: Trust
    own_keyids: frozenset[str] = frozenset()
    own_keys: tuple[PublicKey, ...] = ()
    threshold: int = 0
    at: datetime | None = None
    attestations: tuple[tuple[str, bytes], ...] = ()
    disclosures: tuple[str, bytes] | None = None
    signer: str | None = None
    allow_untrusted: bool = False
    allow_changed_source: bool = False


@dataclass
class Examination:
    """What was found, step by step; `verification` is the document that says it."""

    reader: RunReader
    policy: Policy
    statement: Statement | None = None
    choice: Choice = field(default_factory=lambda: Choice(SCHEMA_VERSION))
    log_choice: Choice = field(default_factory=lambda: Choice(SCHEMA_VERSION))
    log: LogSummary | None = None
    signature: Signature = field(
        default_factory=lambda: Signature(state="not-checkable", detail="the envelope could not be read")
    )
    findings: list[Finding] = field(default_factory=list)
    checks: dict[int, Check] = field(default_factory=dict)
    replay: Replay = _NOT_RUN
    payload: bytes = b""
    run_keys: tuple[PublicKey, ...] = ()
    published: tuple[PublicKey, ...] = ()
    openings: tuple[Opening, ...] = ()
    attested: Attested = field(default_factory=Attested)
    parent: ParentLink | None = None

    @property
    def verification(self) -> Verification:
        """The three verdicts with all that led to them."""
        return Verification(
            schema_version=SCHEMA_VERSION,
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
            commitments=self.openings,
            attestations=self.attested.attestations,
            parent=self.parent,
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
        if states != {"pass"} or self.log is None or self.choice.newer:
            return "not-checked"
        return "consistent" if self.log.end is not None else "incomplete"

    def _exit_code(self) -> int:
        """Return the exit code of DESIGN § 8; precedence 2 > 1 > 3 > 0 (2 is raised, never reached here)."""
        errors = any(finding.severity == "error" for finding in self.findings)
        judged = self.signature.state in ("trusted", "self", "unknown-signer")
        accept = accepted(self.signature, signer=self.policy.signer, allow_untrusted=self.policy.allow_untrusted)
        refused = self.signature.state in ("invalid", "revoked") or (judged and not accept)
        if errors or refused or self.replay.outcome == "mismatch":
            return 1
        asked = self.replay is not _NOT_RUN
        undecided = self.replay.outcome in ("inconclusive", "not-run") and asked
        undecided |= self.parent is not None and self.parent.state == "undecided"
        if self.signature.state == "not-checkable" or self._record() != "consistent" or undecided:
            return 3
        return 0

    def _facts(self) -> dict[str, Scalar]:
        if self.statement is None:
            return {}
        manifest = self.statement.predicate
        log = manifest.step_logs[0]
        parent = manifest.run.parent
        gone_on: dict[str, Scalar] = {}
        if parent is not None:
            gone_on = {"parentRun": parent.run, "parentSteps": parent.steps}
        return gone_on | {
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
    watch: Callable[[Line], None] | None = None,
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
        _check_besides(found, found.statement)
        _check_files(found, found.statement)
        _check_log(found, found.statement, watch, indices)
    if replayer is not None:
        found.replay = _replay(found, replayer)
    return found


def examine_signature(reader: RunReader, policy: Policy, data: bytes | None = None) -> Examination:
    """Do steps 1 to 4 alone, and what stands beside; `data` is what `run.json` holds, where it was read already."""
    found = Examination(reader, policy)
    envelope = _check_signature(found, data)
    if envelope is not None and _check_statement(found, envelope):
        assert found.statement is not None
        _check_besides(found, found.statement)
    return found


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


def _check_signature(found: Examination, data: bytes | None = None) -> Envelope | None:
    """Steps 1 to 3."""
    reader = found.reader
    try:  # (1)
        data = reader.read("run.json", MAX_ENVELOPE) if data is None else data
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
    policy = found.policy
    found.signature = judge(  # (2)
        envelope, published, trust, policy.own_keyids, signer=policy.signer, at=policy.at, verified=verified
    )
    found.payload, found.published = envelope.payload, published
    found.run_keys = tuple(dict.fromkeys(key for key in verified if key is not None))
    found.findings += [_revoked(key) for key in found.run_keys if key.keyid in trust.revoked]
    if found.signature.state == "invalid":
        _fail(found, 2, found.signature.detail, [_signature_finding(found.signature)])
        return envelope
    if found.signature.state == "not-checkable":
        return envelope
    _pass(found, 2, f"Ed25519, by {found.signature.keyid}")
    if found.signature.state in ("unknown-signer", "revoked"):  # (3)
        _fail(found, 3, found.signature.detail)
    else:
        _pass(found, 3, found.signature.detail)
    return envelope


def _signature_finding(signature: Signature) -> Finding:
    return _other("SIG-INVALID", "run.json", signature.detail, "", signature.keyid)


def _revoked(key: PublicKey) -> Finding:
    return Finding(
        code="SIG-REVOKED",
        severity="warning",  # the state of the signature decides
        where="run.json",
        message="a signature by a key that was revoked here; it counts for nothing",
        got=key.keyid,
        remedy="ask the author for a record under another key, and how long the key was in other hands",
    )


def _check_besides(found: Examination, statement: Statement) -> None:
    """Check openings and attestations, and the threshold of signers."""
    reader, policy = found.reader, found.policy
    commitments = statement.predicate.commitments
    found.openings = closed(commitments)
    try:
        if (given := policy.disclosures or _beside(reader, DISCLOSURES)) is not None:
            found.openings, wrong = open_commitments(commitments, parse_disclosures(given[1], given[0]), given[0])
            found.findings += wrong
    except FormatError as error:
        found.findings.append(_finding("OPEN-UNREADABLE", error))
    at = policy.at or datetime.now(UTC)
    judges = Judges(policy.trust, policy.own_keys, found.published, found.run_keys, at)
    files = list(policy.attestations)
    try:
        files = [*filter(None, [_beside(reader, ATTESTATIONS)]), *files]
    except FormatError as error:
        found.findings.append(_finding("ATT-UNREADABLE", error).model_copy(update={"severity": "warning"}))
    found.attested = examine_attestations(files, found.payload, judges)
    found.findings += found.attested.findings
    people = groups_of_people((*found.run_keys, *found.attested.cosigners), policy.trust, at)
    if len(people) < policy.threshold:
        message = "too few trusted people have signed or co-signed the run"
        who = " · ".join("/".join(names) for names in people)
        got = f"{len(people)}: {who}" if people else "none"
        found.findings.append(_other("SIG-THRESHOLD", "run.json", message, f"at least {policy.threshold}", got))


def _beside(reader: RunReader, name: str) -> tuple[str, bytes] | None:
    return (name, reader.read(name, MAX_BYTES)) if name in reader.names() else None


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
        reading = read_statement(envelope.payload, members)
        log_choice = reading.log_choice
    except (FormatError, VersionError) as error:
        if isinstance(error, VersionError) and found.signature.state != "invalid":
            raise  # exit code 2: what somebody signed is not guessed at; what nobody signed is broken anyhow
        _fail(found, 4, error.message, [_finding("STATEMENT", error)])
        return False
    found.statement, found.choice, found.log_choice = reading.statement, reading.choice, log_choice
    if reading.choice.newer:
        found.findings.append(_newer(reading))
    run = found.statement.predicate.run
    _pass(found, 4, f"run {run.id[:12]}, {run.outcome}, {len(found.statement.subject)} files listed")
    return True


def _newer(reading: Reading) -> Finding:
    return Finding(
        code="STATEMENT-NEWER",
        severity="warning",
        where="statement: predicate.schemaVersion",
        message="written for a newer version: what this one does not know was ignored, so nothing is decided",
        expected=reading.choice.version,
        got=_clipped(" ".join([reading.statement.predicate.schema_version, *reading.ignored])),
        remedy="verify it with a newer trainmem-audit",
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
    found: Examination, statement: Statement, watch: Callable[[Line], None] | None, indices: Callable[[bytes], None]
) -> None:
    """Steps 6 and 7, in one pass over the files."""
    reader = found.reader
    if [log.file for log in statement.predicate.step_logs] != [STEP_FILE] or STEP_FILE not in reader.names():
        _fail(found, 6, "there is no step log", [_other("LOG-MISSING", STEP_FILE, "no step log", STEP_FILE, "none")])
        return
    kept = 0
    side = _SideFiles(reader, indices)
    with ExitStack() as stack:
        log = LogReader(parse=line_parser(found.log_choice))
        try:
            side.open(stack)
            file = stack.enter_context(reader.open(STEP_FILE))
            for raw, whole in iter_lines(iter(lambda: file.read(_CHUNK), b""), STEP_FILE):
                if not whole:
                    raise FormatError("the last line is torn", where=f"{STEP_FILE}:{log.summary.lines + 1}")
                line = log.check(raw)
                if watch is not None:
                    watch(line.model if isinstance(line, FittingStep) else line)
                if isinstance(line, FittingStep | Step):
                    kept += side.check(line, log)
                elif isinstance(line, Snapshot):
                    side.check_snapshot(line, log.summary.components)
                elif isinstance(line, Observe):
                    side.check_observation(line)
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
        if found.log.observations:
            snapshots += f"; {len(found.log.observations)} observations"
        if statement.predicate.segments is not None:
            snapshots += f"; {support_text(statement.predicate.segments)}"
        _pass(found, 7, f"tensor digests of {kept} of {found.log.steps} steps; {samples} sample indices{snapshots}")


class _SideFiles:
    """Step 7: checks the files beside the log until the first error."""

    def __init__(self, reader: RunReader, indices: Callable[[bytes], None]) -> None:
        self.error: FormatError | None = None
        self._reader = reader
        self._indices = indices
        self._last: Step | FittingStep | None = None
        self._tensors: TensorFile | None = None
        self._order: OrderFile | None = None
        self._kept: dict[tuple[str, int], str] = {}

    def open(self, stack: ExitStack) -> None:
        reader, names = self._reader, self._reader.names()
        try:
            if TENSOR_FILE in names:
                self._tensors = TensorFile(stack.enter_context(reader.open(TENSOR_FILE)))
            if ORDER_FILE in names:
                self._order = OrderFile(stack.enter_context(reader.open(ORDER_FILE)))
        except FormatError as error:
            self.error = error

    def check(self, line: Step | FittingStep, log: LogReader) -> bool:
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
            unchanged = line.unchanged or {}
            open_snapshot(self._reader, line).check(self._last, components, unchanged)
            for component, step in unchanged.items():
                if self._kept.get((component, step)) != self._last.state.get(component):
                    message, expected = "the state is not that of the snapshot referred to", f"as after step {step}"
                    raise FormatError(message, where=line.file, expected=expected, got=component[:80])
            if (values := open_values(self._reader, line)) is not None:
                values.check(self._last, components)
            if len(self._kept) > _MOST_KEPT:
                raise FormatError("too many components in snapshots", where=line.file, expected=f"at most {_MOST_KEPT}")
            self._kept |= {
                (name, line.step): digest for name, digest in self._last.state.items() if name not in unchanged
            }
        except FormatError as error:
            self.error = error

    def check_observation(self, line: Observe) -> None:
        """Check that predictions are there, of the length that the log says, in their form."""
        if self.error is None:
            try:
                observe_at(self._reader, line)
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
    free = {"producer", "declared", "notRecorded", "checklistVersion", "schemaVersion", "derivedFrom", "extensions"}
    free.add("segments")  # found after the log was closed
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
    errors = [finding for finding in found.findings if finding.severity == "error" and finding.code not in _NO_REASON]
    changed = [finding for finding in errors if finding.code == "FILE-CHANGED" and finding.where.startswith("source/")]
    if (
        found.statement is None
        or found.log is None
        or found.signature.state in ("invalid", "revoked")
        or len(errors) > len(changed)
    ):
        return Replay(outcome="not-run", mode="none", reason="the record does not hold, so there is nothing to replay")
    if changed and not found.policy.allow_changed_source:
        names = ", ".join(finding.where for finding in changed)
        return Replay(outcome="not-run", mode="none", reason=f"the code was changed after signing: {names}")
    return replayer(found.statement)
