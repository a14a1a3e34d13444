"""What others sign about a run, line by line in `run.intoto.jsonl`: verdicts and co-signatures.

Both are in-toto Statements v1. A verdict has the predicate *simple verification result* (in-toto's `svr`, v0.1), so
that other tools read it too. What we read may come from such tools: in-toto's parsing rules say that unknown members
are ignored, so these models, unlike all others, let them pass. Not here: signatures, and who may attest what
(`attestations`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from trainmem_audit.documents.common import Count, Digest, Document, Name, Sequence, Timestamp
from trainmem_audit.documents.manifest import BASE

__all__ = [
    "COSIGNATURE_TYPE",
    "FILE_NAME",
    "SUBJECT_NAME",
    "VERDICT_TYPE",
    "VERIFIER_ID",
    "Cosignature",
    "CosignatureStatement",
    "DigestSet",
    "Head",
    "ResourceDescriptor",
    "Verdict",
    "VerdictStatement",
    "Verifier",
    "VerifierResult",
]

FILE_NAME = "run.intoto.jsonl"
VERDICT_TYPE = "https://in-toto.io/attestation/svr/v0.1"
COSIGNATURE_TYPE = f"{BASE}/co-signature/v1"
VERIFIER_ID = f"{BASE}/verify/v1"
SUBJECT_NAME = "run.json"
"""The subject is the payload of `run.json`: the statement itself, without its signatures."""
_Text = Annotated[str, Field(max_length=400)]


class _Open(Document):
    model_config = ConfigDict(extra="ignore")


class DigestSet(_Open):
    """The digests of a subject; SHA-256 is the one that we compare."""

    sha256: Digest | None = None


class ResourceDescriptor(_Open):
    """What a statement is about."""

    name: Annotated[str, Field(max_length=400)] = ""
    digest: DigestSet


class Head(_Open):
    """What every in-toto Statement has, whatever its predicate."""

    type: Annotated[Literal["https://in-toto.io/Statement/v1"], Field(alias="_type")] = (
        "https://in-toto.io/Statement/v1"
    )
    subject: Annotated[Sequence[ResourceDescriptor], Field(min_length=1, max_length=64)]
    predicate_type: _Text


class VerifierResult(_Open):
    """Our verdict in full, also where it did not pass: an extension of `verifier`, as svr allows.

    `signature` and `signer` are how the reviewer saw the run's own signature; `replay` is the outcome, `mode` which
    part of the run was replayed, `steps` how many steps were compared.
    """

    bytes: _Text
    record: _Text
    signature: _Text
    signer: _Text = ""
    replay: _Text
    mode: _Text
    steps: Count
    findings: Count = 0
    version: _Text


class Verifier(_Open):
    """Who verified: `id` names our program and the meaning of its properties, the signature says who ran it."""

    id: _Text
    result: VerifierResult | None = None


class Verdict(_Open):
    """The predicate of a verdict; `properties` are those that were verified, and none that was not."""

    verifier: Verifier
    time_created: Timestamp
    properties: Annotated[Sequence[Annotated[str, Field(max_length=200)]], Field(max_length=64)]


class VerdictStatement(Head):
    """A statement with a verdict."""

    predicate: Verdict


class Cosignature(_Open):
    """The predicate of a co-signature: a run, the keys that had signed it then, and the key that stands by it now.

    That `key` is named is what a link rests on: the run's own key, where it signs too, signs the name of the other.
    Else its signature could be lifted off and put beside anybody's. `scope` is `author`.
    """

    run_id: Name
    key: Annotated[str, Field(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]
    signers: Annotated[Sequence[Name], Field(max_length=8)]
    scope: Literal["author"] = "author"
    time_created: Timestamp


class CosignatureStatement(Head):
    """A statement with a co-signature."""

    predicate: Cosignature
