"""What verification, replay and comparison say: results in the middle, one small reporter per format at the edge."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainmem_audit.documents.common import Count, Document, ExitCode, Extensions, FloatText, Name, Scalar
from trainmem_audit.documents.disclosures import Fact

__all__ = [
    "Attestation",
    "Check",
    "ComponentDifference",
    "Detection",
    "Difference",
    "Finding",
    "Opening",
    "ParentLink",
    "ParentOrder",
    "Replay",
    "SegmentRange",
    "Segments",
    "Signature",
    "TensorDifference",
    "Verification",
]


class Finding(Document):
    """Something that must be listed. `error` makes verification fail, `warning` does not."""

    code: str
    severity: Literal["error", "warning"]
    where: str
    message: str
    expected: str = ""
    got: str = ""
    remedy: str = ""


class Check(Document):
    """One numbered step of verification and what became of it."""

    number: Count
    title: str
    state: Literal["pass", "fail", "not-checked"]
    detail: str


class Signature(Document):
    """The verdict on the signature (DESIGN § 2.2). `self` is a key of this very machine: accepted, never trusted.

    `revoked`: a valid signature under a key that was revoked here. Nothing makes it pass.
    """

    state: Literal["trusted", "self", "unknown-signer", "not-checkable", "revoked", "invalid"]
    keyid: str = ""
    principal: str = ""
    detail: str


class Opening(Document):
    """A commitment of the record; `value` is what it stands for, where an opening that fits was at hand."""

    name: str
    opened: bool
    value: Fact = None


class Attestation(Document):
    """What somebody else has signed about this run, a line of `run.intoto.jsonl`.

    `signature` is the verdict on its signer alone. `counts` says whether it is about this very run, validly signed by
    somebody whom this machine trusts, and (a verdict) not by the run's own signers; `detail` says why not. `linked`: a
    co-signature that the run's own key has signed too, so that both belong to one person. `signers` are the keys that
    verify. `properties`, `mode` and `created` are the signer's words.
    """

    where: str
    kind: Literal["verdict", "co-signature", "other"]
    signature: Signature
    counts: bool
    detail: str
    signers: tuple[str, ...] = ()
    linked: bool = False
    created: str = ""
    properties: tuple[str, ...] = ()
    mode: str = ""


class TensorDifference(Document):
    """One tensor that differs: its name, dtype and shape, the digests of both sides, and where known the size.

    `size` says in words how many elements differ, by how much, and what the first of them is on both sides.
    """

    name: str
    dtype: str = ""
    shape: tuple[Count, ...] = ()
    expected: str
    got: str
    size: str = ""


class ComponentDifference(Document):
    """One component that differs at the first step that does.

    `cause` is its rank in the order of cause (0 first); `detail` gives the values of both sides and the size of the
    difference where the record holds values (hyper-parameters, losses, shapes).
    """

    component: str
    cause: Count
    stage: Literal["start", "step", "end"]
    expected: str
    got: str
    detail: str = ""
    tensors: tuple[TensorDifference, ...] = ()
    tensors_known: bool = False


class Difference(Document):
    """The first difference of two step logs: the step, every component that differs in the order of cause, the blame.

    `step` is the number of the first step that differs; `stage` says whether the difference was there before its update
    (`start`), in it (`step`) or only after the last one (`end`). `blame` is a component's name, or `gradient path` when
    everything that enters the step is equal and its result is not.
    """

    step: Count
    stage: Literal["start", "step", "end"]
    blame: str
    explanation: str
    components: tuple[ComponentDifference, ...]


class SegmentRange(Document):
    """A segment that was replayed, by its first and last step; `always` says that it was not drawn but always is."""

    first: Count
    last: Count
    always: bool = False


class Detection(Document):
    """If so many of the segments that can be drawn were forged (a fraction of them): how probably one was drawn."""

    forged: Count
    fraction: Annotated[str, Field(pattern=r"^[1-9][0-9]*/[1-9][0-9]*$")]
    probability: FloatText


class Segments(Document):
    """Which segments of a run were replayed, and what that would find.

    `total` are all segments, `drawn_from` those that are not always replayed, of which `drawn` were drawn from the
    run's chain head and the reviewer's `nonce`. `walked` are the steps that were run without the weights to get there:
    their order, content, inputs and random numbers were compared.
    """

    total: Count
    drawn: Count
    drawn_from: Count
    nonce: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    walked: Count = 0
    replayed: tuple[SegmentRange, ...] = ()
    detection: tuple[Detection, ...] = ()


class Replay(Document):
    """The verdict of a replay. A what-if (`what_if` true) is no verdict on the record."""

    outcome: Literal["match", "match-within-tolerance", "mismatch", "inconclusive", "not-run"]
    mode: str
    what_if: bool = False
    steps_compared: Count = 0
    seconds: str = ""
    reason: str = ""
    changed_files: tuple[str, ...] = ()
    difference: Difference | None = None
    segments: Segments | None = None
    notes: tuple[str, ...] = ()


class ParentOrder(Document):
    """The samples that a resumed run consumes, beside those that its parent did.

    `same` counts the steps, from the first on, that consume what the parent consumed at the same step when it went on
    itself; `differs` is the first that does not. `under_way` samples of an epoch had been consumed when the checkpoint
    was saved (`None` where that is not known), `repeated` of them are consumed again in the first epoch. `again` is an
    epoch of the parent whose order the first epoch has.
    """

    same: Count = 0
    differs: Count | None = None
    under_way: Count | None = None
    repeated: Count | None = None
    again: Name | None = None


class ParentLink(Document):
    """What the record of the parent at hand says of the link of a resumed run.

    `holds`: the checkpoint is one that the parent saved, and what can be compared goes on from it; `broken`: it is not,
    or the parent's record does not hold; `undecided`: nobody vouches for the parent, or the state is another.
    `compared` are the components that begin as the parent's step left them. `signature` is the verdict on the parent's.
    """

    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    steps: Count
    state: Literal["holds", "broken", "undecided"]
    detail: str
    signature: Literal["trusted", "self", "unknown-signer", "not-checkable", "revoked", "invalid", "unsigned"]
    compared: tuple[Name, ...] = ()
    order: ParentOrder | None = None


class Verification(Document):
    """The three verdicts, never merged: bytes, record, replay."""

    schema_version: Name
    name: str
    bytes: Literal["intact", "broken", "not-checked"]
    record: Literal["consistent", "incomplete", "inconsistent", "not-checked"]
    signature: Signature
    replay: Replay
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]
    facts: dict[Name, Scalar] = Field(default_factory=dict)
    commitments: tuple[Opening, ...] = ()
    attestations: tuple[Attestation, ...] = ()
    parent: ParentLink | None = None
    exit_code: ExitCode
    extensions: Extensions | None = None
