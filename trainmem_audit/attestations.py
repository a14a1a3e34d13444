"""What others sign about a run: making it, reading it from a hostile file, and judging what it is worth.

Attestations lie in `run.intoto.jsonl`, a DSSE envelope a line, or in files that were sent. Anybody can add a line, and
take one out without a trace, so nothing here makes a record better or worse: a line that is no good is a warning. The
steps, for each line; the code carries the same numbers:

(1) It is one envelope, in its exact form, of in-toto's payload type.
(2) Its payload is a statement whose subject is the payload of *this* `run.json`.
(3) Keys at hand (the trust file, `signer.pub`, this machine's own) verify its signatures; which of them is trusted.
(4) A verdict by a key or a principal that signed or co-signed the run is the author's own word, and counts for nothing.

Not here: the verdict on the run's own signature (`trust.judge`), and exit codes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from trainmem_audit import __version__
from trainmem_audit.canonical import canonical_bytes, loads_strict, sha256_hex
from trainmem_audit.documents.attestations import (
    COSIGNATURE_TYPE,
    FILE_NAME,
    SUBJECT_NAME,
    VERDICT_TYPE,
    VERIFIER_ID,
    Cosignature,
    CosignatureStatement,
    DigestSet,
    Head,
    ResourceDescriptor,
    Verdict,
    VerdictStatement,
    Verifier,
    VerifierResult,
)
from trainmem_audit.documents.findings import Attestation, Finding, Signature, Verification
from trainmem_audit.documents.manifest import PAYLOAD_TYPE
from trainmem_audit.envelope import Envelope, add_signature, form_findings, parse_envelope, seal, verifiers
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.keys import PublicKey, Signer
from trainmem_audit.rundir import write_atomic
from trainmem_audit.trust import Trust, judge

__all__ = [
    "MAX_BYTES",
    "Attested",
    "Judges",
    "append",
    "beside",
    "cosign",
    "examine_attestations",
    "groups_of_people",
    "read_beside",
    "verdict",
]

MAX_BYTES: Final = 4 * 2**20
MAX_LINES: Final = 256
MAX_LINE: Final = 64 * 2**10
MAX_TRIED: Final = 16
"""A line is tried with the keys that its key ids name and this many others: a long trust file must not cost hours."""


# --- making ---------------------------------------------------------------------------------------------------


def verdict(payload: bytes, verification: Verification, signer: Signer, now: datetime | None = None) -> bytes:
    """Return a reviewer's signed verdict on the run whose `run.json` has this payload.

    Raises
    ------
    UsageError
        If there is nothing that could be attested: the signature is invalid or could not be checked, the statement was
        not read, edited code was replayed, or the reviewer's key signed the run.
    """
    signature, replay = verification.signature, verification.replay
    if signature.state in ("invalid", "not-checkable", "revoked") or not verification.facts:
        raise UsageError(
            "there is nothing to attest: the run's own signature does not hold, or its statement cannot be read",
            where=verification.name,
            got=signature.detail,
        )
    if replay.what_if:
        raise UsageError("a what-if is no verdict on the record, so it is not attested", remedy="replay it unchanged")
    result = VerifierResult(
        bytes=verification.bytes,
        record=verification.record,
        signature=signature.state,
        signer=signature.keyid,
        replay=replay.outcome,
        mode=replay.mode,
        steps=replay.steps_compared,
        findings=len(verification.findings),
        version=__version__,
    )
    predicate = Verdict(
        verifier=Verifier(id=VERIFIER_ID, result=result),
        time_created=_time(now),
        properties=tuple(_properties(verification)),
    )
    statement = VerdictStatement(subject=_subject(payload), predicate_type=VERDICT_TYPE, predicate=predicate)
    return seal(canonical_bytes(statement.to_json()), PAYLOAD_TYPE, signer)


def _properties(verification: Verification) -> Iterator[str]:
    """Yield what was verified and passed (svr names nothing else); `attestations.md` says what each means."""
    if verification.signature.state == "trusted":
        yield "TRAINMEM_SIGNER_TRUSTED"
    if verification.bytes == "intact":
        yield "TRAINMEM_BYTES_INTACT"
    if verification.record == "consistent":
        yield "TRAINMEM_RECORD_CONSISTENT"
    if verification.replay.outcome == "match":
        yield "TRAINMEM_REPLAY_MATCH"
        if verification.replay.mode == "full":
            yield "TRAINMEM_REPLAY_FULL"


def cosign(
    payload: bytes, run_id: str, signers: Sequence[str], signer: Signer, original: Signer | None, now: datetime | None
) -> bytes:
    """Return a co-signature: the holder of `signer` stands by this run as its author.

    `original` is the key that signed the run, where it is at hand: with its signature too the two are *linked*. Without
    it the co-signature says only that somebody claims the run, which anybody can.
    """
    keyid = signer.public.keyid
    predicate = Cosignature(run_id=run_id, key=keyid, signers=tuple(sorted(signers)), time_created=_time(now))
    statement = CosignatureStatement(subject=_subject(payload), predicate_type=COSIGNATURE_TYPE, predicate=predicate)
    line = seal(canonical_bytes(statement.to_json()), PAYLOAD_TYPE, signer)
    return line if original is None else add_signature(line, original, FILE_NAME)


def _subject(payload: bytes) -> tuple[ResourceDescriptor, ...]:
    return (ResourceDescriptor(name=SUBJECT_NAME, digest=DigestSet(sha256=sha256_hex(payload))),)


def _time(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# --- files ----------------------------------------------------------------------------------------------------


def beside(run: Path) -> Path:
    """Return where attestations of a run are written: in its directory, or beside its zip (`NAME.intoto.jsonl`)."""
    if run.is_dir():
        return run / FILE_NAME
    return run.with_name(FILE_NAME) if run.name == "run.json" else run.with_name(f"{run.stem}.intoto.jsonl")


def read_beside(path: Path) -> bytes:
    """Return a file of attestations; a link or anything else that is no plain file is refused.

    Raises
    ------
    FormatError
        If it is no plain file, or longer than `MAX_BYTES`.
    """
    if path.is_symlink() or not path.is_file():
        raise FormatError("not a plain file", where=str(path), expected="attestations, one envelope a line")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FormatError("too long for attestations", where=str(path), expected=f"at most {MAX_BYTES} bytes")
    return data


def append(path: Path, line: bytes) -> bool:
    """Add a line to the file at `path`, whole or not at all; return whether it is new. What is there stays as it is.

    Raises
    ------
    FormatError
        If what is there is no plain file or has no room.
    """
    with _locked(path.parent):
        there = read_beside(path) if os.path.lexists(path) else b""
        if line in there.splitlines(keepends=True):
            return False
        if there and not there.endswith(b"\n"):
            there += b"\n"  # a torn line stays what it is, and a line of its own
        if len(there) + len(line) > MAX_BYTES or there.count(b"\n") >= MAX_LINES:
            raise FormatError("no room for one more attestation", where=str(path), remedy="sort the file out by hand")
        write_atomic(path, there + line)
    return True


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep two writers on one machine from losing each other's line, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


# --- judging --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judges:
    """Who judges, and with what: the trust file, this machine's own keys, the time.

    `run_keys` are the keys that verify `run.json`, `published` those of its `signer.pub`.
    """

    trust: Trust
    own: tuple[PublicKey, ...]
    published: tuple[PublicKey, ...]
    run_keys: tuple[PublicKey, ...]
    at: datetime

    def at_hand(self) -> tuple[PublicKey, ...]:
        """Return every key that can be tried."""
        return tuple(dict.fromkeys((*self.run_keys, *self.published, *self.own, *self.trust.keys())))


@dataclass(frozen=True)
class Attested:
    """What the lines say, what is wrong with some, and the keys that co-signed the run, validly."""

    attestations: tuple[Attestation, ...] = ()
    findings: tuple[Finding, ...] = ()
    cosigners: tuple[PublicKey, ...] = ()


@dataclass(frozen=True)
class _Line:
    where: str
    head: Head
    body: VerdictStatement | CosignatureStatement | None
    verified: tuple[PublicKey, ...]
    signature: Signature


def examine_attestations(files: Iterable[tuple[str, bytes]], payload: bytes, judges: Judges) -> Attested:
    """Judge every line of these files (name, bytes) about the run whose `run.json` has this payload."""
    findings: list[Finding] = []
    lines: list[_Line] = []
    seen: set[bytes] = set()
    for name, data in files:
        for where, line in _split(name, data, findings):
            if line in seen:
                continue  # the same words of the same people, said twice
            seen.add(line)
            found = _read(where, line, payload, judges, findings)
            lines += [found] if found is not None else []
    cosigners = _cosigners(lines)
    authors = (*judges.run_keys, *cosigners)
    made = tuple(_judge(line, judges, authors) for line in lines)
    findings += [_warning("ATT-OWN", item.where, item.detail) for item in made if _is_own(item)]
    return Attested(made, tuple(findings), cosigners)


def _split(name: str, data: bytes, findings: list[Finding]) -> Iterator[tuple[str, bytes]]:
    if len(data) > MAX_BYTES:
        findings.append(_warning("ATT-UNREADABLE", name, f"longer than {MAX_BYTES} bytes; none of it was read"))
        return
    lines = data.split(b"\n", MAX_LINES)
    if rest := lines.pop():
        message = "the lines from here on were not read" if len(lines) == MAX_LINES else "the last line is torn"
        findings.append(_warning("ATT-UNREADABLE", f"{name}:{len(lines) + 1}", message, got=f"{len(rest)} bytes"))
    yield from ((f"{name}:{number}", line) for number, line in enumerate(lines, 1))


def _read(where: str, line: bytes, payload: bytes, judges: Judges, findings: list[Finding]) -> _Line | None:
    """Do steps 1 to 3 for one line; `None` with a finding if it is nothing that could be judged."""
    try:
        envelope, head, body = _parse(where, line)  # (1)
    except FormatError as error:
        findings.append(_warning("ATT-UNREADABLE", error.where or where, error.message, error.expected, error.got))
        return None
    digests = [item.digest.sha256 for item in head.subject]
    if sha256_hex(payload) not in digests:  # (2)
        expected, got = f"sha256 {sha256_hex(payload)}", " · ".join(str(digest) for digest in digests)[:200]
        message = "the attestation is about something else, so it says nothing about this run"
        findings.append(_warning("ATT-SUBJECT", where, message, expected, got))
        return None
    keys = _candidates(envelope, judges.at_hand())  # (3)
    by = verifiers(envelope, keys)
    verified = tuple(dict.fromkeys(key for key in by if key is not None))
    own = [key.keyid for key in judges.own]
    form = form_findings(line + b"\n", envelope, (), keys, where, by)
    if isinstance(body, CosignatureStatement):  # its words are those of the key that it names
        by = tuple(key if key is not None and key.keyid == body.predicate.key else None for key in by)
    signature = judge(envelope, (), judges.trust, own, at=judges.at, verified=by, at_hand=keys)
    if signature.state == "not-checkable":
        signature = signature.model_copy(update={"detail": "not checked: its key is not in the trust file"})
    findings += [
        item.model_copy(update={"severity": "warning", "code": "ATT-FORM"})
        for item in form
        if item.code != "ENV-UNCHECKED"
    ]
    return _Line(where, head, body, verified, signature)


def _parse(where: str, line: bytes) -> tuple[Envelope, Head, VerdictStatement | CosignatureStatement | None]:
    if len(line) > MAX_LINE:
        raise FormatError("too long for an attestation", where=where, expected=f"at most {MAX_LINE} bytes")
    envelope = parse_envelope(line, where)
    if envelope.payload_type != PAYLOAD_TYPE:
        raise FormatError("another payload type", where=where, expected=PAYLOAD_TYPE, got=envelope.payload_type[:200])
    loads_strict(envelope.payload, where)
    head: Head = Head.parse(envelope.payload, where)
    models: dict[str, type[VerdictStatement | CosignatureStatement]] = {
        VERDICT_TYPE: VerdictStatement,
        COSIGNATURE_TYPE: CosignatureStatement,
    }
    model = models.get(head.predicate_type)
    return envelope, head, None if model is None else model.parse(envelope.payload, where)


def _candidates(envelope: Envelope, keys: tuple[PublicKey, ...]) -> tuple[PublicKey, ...]:
    """Return the keys to try: those that are named (a hint, as DSSE says), and the first of the others."""
    named = {signature.keyid for signature in envelope.signatures}
    hinted = [key for key in keys if key.keyid in named]
    return (*hinted, *[key for key in keys if key.keyid not in named][:MAX_TRIED])


def _cosigners(lines: Sequence[_Line]) -> tuple[PublicKey, ...]:
    """Return the keys that co-signed: each in a statement that names it, and that it signed."""
    found = [
        key
        for line in lines
        if isinstance(line.body, CosignatureStatement)
        for key in line.verified
        if key.keyid == line.body.predicate.key
    ]
    return tuple(dict.fromkeys(found))


def _judge(line: _Line, judges: Judges, authors: Sequence[PublicKey]) -> Attestation:
    members: dict[str, Any] = {
        "where": line.where,
        "signature": line.signature,
        "signers": tuple(key.keyid for key in line.verified),
    }
    body = line.body
    trusted = line.signature.state == "trusted"
    if isinstance(body, CosignatureStatement):
        linked = _is_linked(line, body.predicate.key, judges)
        detail = _cosignature_detail(line, body.predicate.key, judges, linked)
        members |= {"linked": linked, "created": body.predicate.time_created}
        return Attestation(kind="co-signature", counts=trusted, detail=detail, **members)
    if isinstance(body, VerdictStatement):
        result = body.predicate.verifier.result
        ours = body.predicate.verifier.id == VERIFIER_ID and result is not None
        members |= {"created": body.predicate.time_created, "properties": body.predicate.properties}
        members |= {"mode": f"{result.replay}, {result.mode}, {result.steps} steps" if ours and result else ""}
        own = _own_word(line, judges, authors)  # (4)
        detail = own or line.signature.detail
        return Attestation(kind="verdict", counts=trusted and not own, detail=detail, **members)
    detail = f"a predicate that this program does not know: {line.head.predicate_type}"
    return Attestation(kind="other", counts=False, detail=detail, **members)


def _is_linked(line: _Line, keyid: str, judges: Judges) -> bool:
    """Return whether the named key and a key of the run have signed the same words, which name the first."""
    verified = set(line.verified)
    own = {key.keyid for key in judges.run_keys}
    return keyid in {key.keyid for key in verified} - own and bool(verified & set(judges.run_keys))


def _cosignature_detail(line: _Line, keyid: str, judges: Judges, linked: bool) -> str:
    if keyid not in {key.keyid for key in line.verified}:
        return line.signature.detail
    if linked:
        return "the key of the run has signed this too: both belong to one author"
    if keyid in {key.keyid for key in judges.run_keys}:
        return "by the key of the run itself: it adds nobody"
    return "the key of the run has not signed this: whoever it is claims the run"


_OWN: Final = "the author's own word: "


def _own_word(line: _Line, judges: Judges, authors: Sequence[PublicKey]) -> str:
    """Say why a verdict is the author's own, if it is: by one of the run's keys, or by one of the same principal."""
    if set(line.verified) & set(authors):
        return f"{_OWN}its key signed or co-signed the run"
    people = {name for key in authors for name in judges.trust.principals(key, judges.at)}
    own = people & {name for key in line.verified for name in judges.trust.principals(key, judges.at)}
    return f"{_OWN}{', '.join(sorted(own))} signed or co-signed the run" if own else ""


def _is_own(item: Attestation) -> bool:
    return item.kind == "verdict" and item.detail.startswith(_OWN)


def groups_of_people(keys: Iterable[PublicKey], trust: Trust, at: datetime) -> list[tuple[str, ...]]:
    """Return who stands behind these keys, for a threshold: the principals of each, joined where they share one.

    A key counts once, however often it signed; two keys of one principal count once, since a threshold asks for people.
    Keys that nobody here vouches for at that time, and revoked ones, count for nobody.
    """
    people: list[set[str]] = []
    for key in dict.fromkeys(keys):
        names = set(trust.principals(key, at))
        same = [group for group in people if group & names]
        people = [group for group in people if not group & names]
        people += [names.union(*same)] if names else []
    return [tuple(sorted(group)) for group in people]


def _warning(code: str, where: str, message: str, expected: str = "", got: str = "") -> Finding:
    return Finding(code=code, severity="warning", where=where, message=message, expected=expected, got=got)
