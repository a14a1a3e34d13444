"""The statement inside `run.json`: an in-toto Statement v1 whose predicate is our manifest (DESIGN § 2.2)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainmem_audit.documents.checkpoints import CheckpointSummary, Parent
from trainmem_audit.documents.common import (
    SCHEMA_VERSION,
    Count,
    Digest,
    Document,
    ExitCode,
    Extensions,
    Name,
    OpenDocument,
    RelPath,
    Scalar,
    Sequence,
    Timestamp,
)
from trainmem_audit.documents.contract import RngContract
from trainmem_audit.documents.interventions import Arm, Branch, Intervention
from trainmem_audit.documents.steplog import (
    MOST_FOLDERS,
    Command,
    Component,
    Environment,
    Folder,
    Input,
    KeptFile,
    LineText,
    Loader,
    Producer,
    Seed,
    SourceFile,
)

__all__ = [
    "BASE",
    "CODE_ELSEWHERE",
    "PAYLOAD_TYPE",
    "PREDICATE_TYPE",
    "SCHEMA_VERSION",
    "STATEMENT_TYPE",
    "UNLISTED",
    "DerivedFrom",
    "MadeIntervention",
    "Manifest",
    "Run",
    "SegmentSupport",
    "Snapshot",
    "Statement",
    "StepLog",
    "Subject",
    "is_listed",
]

BASE = "https://w3id.org/trainmem-audit"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = f"{BASE}/training-run/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"

CODE_ELSEWHERE = "code imported from outside of the working directory"
"""How an entry of `notRecorded` begins that names code of which the record has nothing."""
UNLISTED = frozenset({"run.json", "signer.pub", "disclosures.json", "run.intoto.jsonl"})
"""The files of a run directory that the statement does not list, beside those of `is_listed`."""


def is_listed(name: str) -> bool:
    """Tell whether the statement must list the file: all but the envelope, what others add later, and reports."""
    return name not in UNLISTED and ("/" in name or not name.startswith(("report.", "verification.")))


class Sha256(OpenDocument):
    """The digest set of a subject; ours holds SHA-256 alone, and nothing else is looked at."""

    sha256: Digest


class Subject(OpenDocument):
    """One file of the run directory."""

    name: RelPath
    digest: Sha256


class Run(Document):
    """Which run this is and how it ended; a killed run that was recovered has no `finished` and no `exit_code`."""

    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    started: Timestamp
    finished: Timestamp | None = None
    outcome: Literal["finished", "raised", "exited", "interrupted", "killed"]
    exit_code: ExitCode | None = None
    parent: Parent | None = None
    branch: Branch | None = None


class StepLog(Document):
    """One step log: how many lines, the last link of the chain, the Merkle root (RFC 9162 § 2.1.1) over the lines."""

    file: RelPath
    rank: Count
    count: Count
    steps: Count
    chain_head: Digest
    merkle_root: Digest
    complete: bool


class Snapshot(Document):
    """The state after a step, in files of the run directory; see the `snapshot` line of the log."""

    step: Count
    file: RelPath
    size: Count
    values: KeptFile | None = None
    unchanged: dict[Name, Count] | None = None


class MadeIntervention(Document):
    """One intervention, as its line in the log has it: after how many steps, what, and what it changed."""

    step: Count
    intervention: Intervention
    changed: Sequence[Name]
    note: LineText | None = None


class SegmentSupport(Document):
    """Whether segments of the run can be replayed, as the recorder found when it tried one; why not; which it was."""

    supported: bool
    reason: str = ""
    first: Count | None = None
    last: Count | None = None


class DerivedFrom(Document):
    """The document of an older version from which this one was migrated: its version, SHA-256 of its canonical form."""

    schema_version: Name
    sha256: Digest


class Manifest(Document):
    """The predicate. Everything in it that the step log also holds must agree with the log."""

    schema_version: Name
    checklist_version: Name
    producer: Producer
    run: Run
    command: Command
    environment: Environment
    numeric_profile: dict[Literal["import", "firstStep", "end"], dict[Name, Scalar]]
    rng_contract: RngContract
    seeds: Sequence[Seed] = ()
    canary: dict[Name, Digest]
    sources: dict[Name, Component]
    order: dict[Name, Loader]
    inputs: Sequence[Input]
    files: Sequence[SourceFile]
    folders: Annotated[Sequence[Folder], Field(max_length=MOST_FOLDERS)] = ()
    step_logs: Annotated[Sequence[StepLog], Field(min_length=1)]
    plan: Digest | None = None
    arm: Arm | None = None
    interventions: Annotated[Sequence[MadeIntervention], Field(min_length=1)] | None = None
    snapshots: Sequence[Snapshot] = ()
    checkpoints: Annotated[Sequence[CheckpointSummary], Field(min_length=1, max_length=2)] | None = None
    segments: SegmentSupport | None = None
    commitments: dict[Name, Digest] = Field(default_factory=dict)
    declared: dict[Name, str] = Field(default_factory=dict)
    not_recorded: Sequence[str] = ()
    derived_from: DerivedFrom | None = None
    extensions: Extensions | None = None


class Statement(OpenDocument):
    """The in-toto Statement v1; its predicate is closed, the rest of it is in-toto's and open."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")]
    subject: Sequence[Subject]
    predicate_type: Literal["https://w3id.org/trainmem-audit/training-run/v1"]
    predicate: Manifest
