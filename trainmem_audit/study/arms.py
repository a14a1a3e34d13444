"""The directory of one arm: what its signed statement says of it, and whether all its bytes are what was signed.

Not here: the whole verification of a run (`verify`), which anybody can make of each arm.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trainmem_audit.canonical import loads_strict, sha256_hex
from trainmem_audit.documents.manifest import PAYLOAD_TYPE, Statement, is_listed
from trainmem_audit.envelope import parse_envelope, verifying_signatures
from trainmem_audit.errors import FormatError
from trainmem_audit.keys import PublicKey, parse_public_keys
from trainmem_audit.rundir import DirectoryReader, RunReader
from trainmem_audit.runs import MAX_ENVELOPE
from trainmem_audit.versions import read_statement

__all__ = ["ArmRecord", "read_arm", "require_intact"]


@dataclass(frozen=True)
class ArmRecord:
    """A signed arm: its statement, the SHA-256 of the payload that was signed, and the keys that signed it."""

    statement: Statement
    sha256: str
    keys: tuple[PublicKey, ...] = ()

    @property
    def run(self) -> str:
        """The id of the run."""
        return self.statement.predicate.run.id

    @property
    def steps(self) -> int:
        """How many steps were recorded."""
        return self.statement.predicate.step_logs[0].steps


def read_arm(reader: RunReader, arm: str, plan: str) -> ArmRecord:
    """Return the record of an arm, if it is signed by the key beside it, complete, and of that arm of that plan.

    Raises
    ------
    FormatError
        Saying which of these it is not.
    """
    envelope = parse_envelope(reader.read("run.json", MAX_ENVELOPE), "run.json")
    keys = parse_public_keys(reader.read("signer.pub", 2**16), "signer.pub")
    signed = tuple(key for key in keys if verifying_signatures(envelope, key))
    if envelope.payload_type != PAYLOAD_TYPE or not signed:
        raise FormatError("not signed by the key beside it", where=f"{reader.label}: run.json")
    statement = read_statement(envelope.payload, loads_strict(envelope.payload, "run.json")).statement
    manifest = statement.predicate
    named = None if manifest.arm is None else manifest.arm.id
    if manifest.plan != plan or named != arm:
        raise FormatError(
            "the record of another arm",
            where=f"{reader.label}: run.json",
            expected=f"{arm} of plan {plan[:12]}",
            got=f"{named} of plan {(manifest.plan or 'none')[:12]}",
        )
    if not manifest.step_logs[0].complete:
        raise FormatError("the record is not complete", where=f"{reader.label}: run.json")
    return ArmRecord(statement, sha256_hex(envelope.payload), signed)


def require_intact(directory: Path, arm: str, plan: str, sha256: str | None = None) -> ArmRecord:
    """Return the record of an arm after looking at every byte of its directory.

    Raises
    ------
    FormatError
        If a file is missing, changed or not listed, or the statement is not the one with that digest.
    """
    with DirectoryReader(directory) as reader:
        record = read_arm(reader, arm, plan)
        if sha256 is not None and record.sha256 != sha256:
            raise FormatError("another statement than the study log names", where=reader.label, expected=sha256)
        listed = {subject.name: subject.digest.sha256 for subject in record.statement.subject}
        if odd := sorted({name for name in reader.names() if is_listed(name)} - listed.keys()):
            raise FormatError("a file that was not signed", where=f"{reader.label}: {odd[0]}")
        for name, digest in listed.items():
            if name not in reader.names() or reader.sha256(name) != digest:
                raise FormatError("not the file that was signed", where=f"{reader.label}: {name}", expected=digest)
    return record
