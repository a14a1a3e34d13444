"""What the rules see of a study: its plan and log, each arm, the certificate of every pair, and the estimates.

Plain data, so that a vector can hold a whole study. All of it is read off the files of the study's directory
(`studycheck`); certificates and numbers are computed anew there, and what the author states is beside them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainmem_audit.documents.common import Count, Digest, Document, Name, Sequence, Timestamp
from trainmem_audit.documents.estimates import Estimates
from trainmem_audit.documents.interventions import Arm, Branch, Intervention
from trainmem_audit.documents.pairing import Certificate
from trainmem_audit.documents.plan import Plan

__all__ = [
    "ArmFacts",
    "EstimatesFacts",
    "InterventionFacts",
    "PairFacts",
    "ProbeFacts",
    "StreamStart",
    "StudyFacts",
    "StudyLogFacts",
]

Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
ValueState = Literal["as-said", "other", "unknown"]
Text = Annotated[str, Field(max_length=10_000)]


class InterventionFacts(Document):
    """One `intervention` line: what it changed, and what of that it does not name.

    `sources` are the classes S1 to S5 of the components that it names, by the names of these. `values` says of what it
    changed whether the digest is that of the value it says; `unknown` where no digest can be computed from the line.
    `moved` are random streams that it moved and must not.
    """

    step: Count
    intervention: Intervention
    changed: Sequence[Name] = ()
    not_named: Sequence[Name] = ()
    moved: Sequence[Name] = ()
    sources: dict[Name, Literal["S1", "S2", "S3", "S4", "S5"]] = Field(default_factory=dict)
    values: dict[Name, ValueState] = Field(default_factory=dict)


class StreamStart(Document):
    """What a random stream started from: the digest of its state, and the seeds that the script passed.

    `trained` says whether it was drawn from in training, `across` what the author declares of replicates.
    """

    algorithm: Name
    digest: Digest
    seeds: Sequence[Annotated[str, Field(max_length=400)]] = ()
    trained: bool = False
    across: Literal["shared", "independent"] | None = None


class ArmFacts(Document):
    """One arm, or a prefix that arms share, as its own record has it.

    `outcome` is what the study log says of it. The rest is read from a record that is there; `damaged` says what is
    wrong with it. `observed` are the steps after which predictions were kept, `orders` the digests of its reshuffled
    epochs. `on_probe` is how many of the probe's samples it was trained on, where that can be told.
    """

    id: Name
    outcome: Literal["completed", "failed", "running", "unknown"]
    reason: Text = ""
    damaged: Text = ""
    name: Arm | None = None
    plan: Digest | None = None
    run: Nonce | None = None
    statement: Digest | None = None
    started: Timestamp | None = None
    branch: Branch | None = None
    steps: Count = 0
    observed: Sequence[Count] = ()
    interventions: Sequence[InterventionFacts] = ()
    streams: dict[Name, StreamStart] = Field(default_factory=dict)
    orders: Sequence[Digest] = ()
    on_probe: Count | None = None


class PairFacts(Document):
    """A pair of the plan, and its certificate; `stated` is the label that `estimates.json` gives it."""

    contrast: Name
    treated: Name
    control: Name
    certificate: Certificate
    stated: Literal["paired", "no-op", "unpaired"] | None = None


class StudyLogFacts(Document):
    """The study log: for which plan, when it began, how many attempts were started; whether a signature binds it."""

    plan: Digest
    began: Timestamp
    chain_head: Digest
    started: Count
    failed_attempts: Count = 0
    ended: bool = False
    signed: bool = False


class ProbeFacts(Document):
    """The file of the probe, where it is at hand: its digest, and how many examples it has."""

    sha256: Digest | None = None
    size: Count | None = None


class EstimatesFacts(Document):
    """`estimates.json`: what it states, whether a signature holds, and whether its numbers were computed anew.

    `different` names the places that did not come out again: `perSeed[3].lawEffect[0]`, say, for a table of distances.
    """

    stated: Estimates
    signed: bool = False
    recomputed: bool = False
    different: Sequence[Text] = ()


class StudyFacts(Document):
    """A whole study. `plan_digest` is the SHA-256 of `plan.json`; arms by their ids, pairs by `CONTRAST.sN.bN.rN`."""

    plan: Plan
    plan_digest: Digest
    log: StudyLogFacts | None = None
    arms: dict[str, ArmFacts] = Field(default_factory=dict)
    pairs: dict[str, PairFacts] = Field(default_factory=dict)
    probe: ProbeFacts = ProbeFacts()
    estimates: EstimatesFacts | None = None
