"""The study log, line by line, and the statement that binds it (`schema/README.md` § studies).

A log is `begin`, then `start`, `finish` and `fail` for every attempt at an arm, `resume` where the study went on after
an interruption, `end` when nothing was left. `chain` sorts before every other member, as in the step log.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainmem_audit.documents.common import (
    Count,
    Digest,
    Document,
    Extensions,
    Flag,
    Name,
    OpenDocument,
    RelPath,
    Sequence,
    Timestamp,
)
from trainmem_audit.documents.estimates import Estimates
from trainmem_audit.documents.manifest import Subject
from trainmem_audit.documents.steplog import Producer
from trainmem_audit.errors import FormatError

__all__ = [
    "ESTIMATES_PREDICATE_TYPE",
    "STUDY_LINE_TYPES",
    "STUDY_LOG_FORMAT",
    "STUDY_PREDICATE_TYPE",
    "BoundLog",
    "EstimatesStatement",
    "StudyBegin",
    "StudyEnd",
    "StudyFail",
    "StudyFinish",
    "StudyLine",
    "StudyResume",
    "StudyStart",
    "StudyStatement",
    "StudySummary",
    "parse_study_line",
]

STUDY_LOG_FORMAT = "trainmem-audit/study-log/v1"
STUDY_PREDICATE_TYPE = "https://w3id.org/trainmem-audit/study/v1"
ESTIMATES_PREDICATE_TYPE = "https://w3id.org/trainmem-audit/study-estimates/v1"

Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Attempt = Annotated[int, Field(ge=1, le=2**53 - 1)]
Workers = Annotated[int, Field(ge=1, le=1000)]
Reason = Annotated[str, Field(min_length=1, max_length=10_000)]


class StudyBegin(Document):
    """The first line: which study, and with how many threads every arm computes."""

    kind: ClassVar[str] = "begin"
    chain: Digest
    t: Literal["begin"]
    format: Literal["trainmem-audit/study-log/v1"]
    nonce: Nonce
    time: Timestamp
    producer: Producer
    plan: Digest
    workers: Workers
    threads: Annotated[int, Field(ge=1, le=100_000)]
    extensions: Extensions | None = None


class StudyStart(Document):
    """Attempt `number` at the arm `id` begins."""

    kind: ClassVar[str] = "start"
    chain: Digest
    t: Literal["start"]
    id: Name
    number: Attempt
    time: Timestamp
    extensions: Extensions | None = None


class StudyFinish(Document):
    """The arm is there; `statement` is the SHA-256 of the payload of its `run.json`."""

    kind: ClassVar[str] = "finish"
    chain: Digest
    t: Literal["finish"]
    id: Name
    number: Attempt
    time: Timestamp
    run: Nonce
    statement: Digest
    steps: Count
    extensions: Extensions | None = None


class StudyFail(Document):
    """The attempt came to nothing, or what came of it is not usable any more; what there was lies in `kept`.

    `retry` says that nothing of the arm's own went wrong.
    """

    kind: ClassVar[str] = "fail"
    chain: Digest
    t: Literal["fail"]
    id: Name
    number: Attempt
    time: Timestamp
    reason: Reason
    retry: Flag | None = None
    kept: RelPath | None = None
    extensions: Extensions | None = None


class StudyResume(Document):
    """The study goes on."""

    kind: ClassVar[str] = "resume"
    chain: Digest
    t: Literal["resume"]
    time: Timestamp
    workers: Workers
    extensions: Extensions | None = None


class StudyEnd(Document):
    """Nothing is left to be started."""

    kind: ClassVar[str] = "end"
    chain: Digest
    t: Literal["end"]
    time: Timestamp
    finished: Count
    failed: Count
    extensions: Extensions | None = None


StudyLine = StudyBegin | StudyStart | StudyFinish | StudyFail | StudyResume | StudyEnd
STUDY_LINE_TYPES: dict[str, type[StudyLine]] = {
    model.kind: model for model in (StudyBegin, StudyStart, StudyFinish, StudyFail, StudyResume, StudyEnd)
}


def parse_study_line(line: bytes, members: dict[str, Any], where: str) -> StudyLine:
    """Return the model of a line that `canonical.split_line` has parsed to `members`.

    Raises
    ------
    FormatError
        If its type `t` is unknown or a member is wrong.
    """
    kind = members.get("t")
    model = STUDY_LINE_TYPES.get(kind) if isinstance(kind, str) else None
    if model is None:
        expected = " · ".join(STUDY_LINE_TYPES)
        raise FormatError("unknown type of line", where=where, expected=expected, got=repr(kind)[:40])
    parsed: StudyLine = model.parse(line, where)
    return parsed


class BoundLog(Document):
    """What binds a study log: how many lines, the last link, the Merkle root."""

    file: RelPath
    count: Count
    chain_head: Digest
    merkle_root: Digest


class StudySummary(Document):
    """The predicate of `study.json`; all of it follows from the log."""

    schema_version: Name
    producer: Producer
    id: Nonce
    plan: Digest
    began: Timestamp
    ended: Timestamp
    log: BoundLog
    started: Count
    finished: Count
    failed: dict[Name, Reason]
    extensions: Extensions | None = None


class StudyStatement(OpenDocument):
    """The in-toto Statement v1 around it; the predicate is closed, the rest of it is in-toto's and open."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Sequence[Subject]
    predicate_type: Literal["https://w3id.org/trainmem-audit/study/v1"]
    predicate: StudySummary


class EstimatesStatement(OpenDocument):
    """The in-toto Statement v1 in `estimates.json`."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Sequence[Subject]
    predicate_type: Literal["https://w3id.org/trainmem-audit/study-estimates/v1"]
    predicate: Estimates
