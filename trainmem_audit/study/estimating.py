"""`estimates.json`: every number of a study in one signed document, made from its records, and checked from them again.

What is checked, in this order; the code carries the same numbers:

(1) *Signature* and form of the envelope, and whose key it is.
(2) *Statement*: of this kind, of this plan, and each file that it lists is there with its digest.
(3) *Study*: plan, log and statement of the study agree; every arm is what was signed.
(4) *Numbers*: arms, certificates and all estimates come out again, bit for bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainmem_audit.canonical import canonical_bytes, loads_strict
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.documents.estimates import BoundStudyLog, Estimates
from trainmem_audit.documents.findings import Signature
from trainmem_audit.documents.manifest import PAYLOAD_TYPE, STATEMENT_TYPE
from trainmem_audit.documents.steplog import Producer
from trainmem_audit.documents.studies import ESTIMATES_PREDICATE_TYPE, EstimatesStatement
from trainmem_audit.envelope import form_findings, parse_envelope, seal
from trainmem_audit.errors import FormatError, TrainmemAuditError, UsageError
from trainmem_audit.estimation import Results, differences, estimate
from trainmem_audit.keys import PublicKey, Signer, parse_public_keys
from trainmem_audit.rundir import check_name, write_atomic
from trainmem_audit.runs import MAX_ENVELOPE
from trainmem_audit.study.evidence import StudyEvidence
from trainmem_audit.study.layout import ARMS, ESTIMATES, PLAN_FILE, PROBE_FILE, SIGNER_FILE, STUDY_STATEMENT
from trainmem_audit.study.ledger import PRODUCER
from trainmem_audit.studylog import STUDY_FILE
from trainmem_audit.trust import accepted, judge
from trainmem_audit.verify import Policy

__all__ = ["CheckedEstimates", "check_estimates", "read_estimates", "write_estimates"]

_MOST_SHOWN = 100


def write_estimates(directory: Path, signer: Signer) -> Estimates:
    """Compute every number of the study in `directory` and write them, signed, to its `estimates.json`.

    Raises
    ------
    UsageError
        If there is no finished study.
    FormatError
        If a record is not what was signed.
    """
    evidence = StudyEvidence(directory)
    document = _document(evidence, estimate(evidence.plan.to_json(), evidence))
    statement = EstimatesStatement.model_validate(
        {
            "_type": STATEMENT_TYPE,
            "subject": tuple(_subjects(evidence)),
            "predicateType": ESTIMATES_PREDICATE_TYPE,
            "predicate": document,
        }
    )
    write_atomic(directory / ESTIMATES, seal(canonical_bytes(statement.to_json()), PAYLOAD_TYPE, signer))
    if signer.public not in evidence.keys:
        keys = {key.openssh_line(): None for key in (*evidence.keys, signer.public)}
        write_atomic(directory / SIGNER_FILE, b"".join(keys))
    return document


def read_estimates(path: Path) -> Estimates:
    """Return what an `estimates.json` says, unchecked: for what is no claim, as the power of a study to come.

    Raises
    ------
    UsageError
        If it cannot be read.
    FormatError
        If it holds no estimates.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_ENVELOPE + 1)
    except OSError as error:
        raise UsageError("the estimates cannot be read", where=str(path), got=error.strerror or "") from None
    statement: EstimatesStatement = EstimatesStatement.parse(parse_envelope(data, path.name).payload, path.name)
    return statement.predicate


def _document(evidence: StudyEvidence, results: Results) -> Estimates:
    arms = tuple(evidence.arms())
    return Estimates(
        schema_version=SCHEMA_VERSION,
        producer=Producer.model_validate(PRODUCER),
        plan=evidence.plan.digest,
        study_log=BoundStudyLog(
            chain_head=evidence.log.chain_head,
            started=evidence.log.started,
            reported=sum(arm.outcome == "completed" for arm in arms),
        ),
        arms=arms,
        pairs=tuple(evidence.pairs()),
        back_flows=evidence.back_flows() or None,
        **results.members(),
    )


def _subjects(evidence: StudyEvidence) -> Iterator[dict[str, Any]]:
    names = [PLAN_FILE, STUDY_FILE, STUDY_STATEMENT]
    names += [PROBE_FILE] if (evidence.directory / PROBE_FILE).is_file() else []
    names += [f"{ARMS}/{name}/run.json" for name in sorted(evidence.log.finished)]
    for name in names:
        yield {"name": name, "digest": {"sha256": _sha256(evidence.directory / name)}}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass
class CheckedEstimates:
    """What was found about an `estimates.json`: `problems` say where its study is not what was signed."""

    name: str
    signature: Signature
    document: Estimates | None = None
    problems: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    recomputed: bool = False
    policy: Policy | None = None

    @property
    def exit_code(self) -> int:
        """0 if all comes out again and the signer is accepted, else 1."""
        policy = self.policy
        accept = policy is not None and accepted(
            self.signature, signer=policy.signer, allow_untrusted=policy.allow_untrusted
        )
        return 0 if accept and self.recomputed and not self.problems and not self.differing else 1

    def to_json(self) -> dict[str, Any]:
        """Return it for a program to read."""
        numbers = "not-checked" if not self.recomputed else "differ" if self.differing else "recomputed"
        return {
            "name": self.name,
            "signature": self.signature.to_json(),
            "numbers": numbers,
            "problems": self.problems,
            "differing": self.differing,
            "exitCode": self.exit_code,
        }


def check_estimates(path: Path, policy: Policy, say: Callable[[str], None] = lambda _: None) -> CheckedEstimates:
    """Check an `estimates.json` against the study that it lies in.

    Raises
    ------
    FormatError
        If it is no envelope at all.
    """
    directory = path.absolute().parent
    with path.open("rb") as file:
        data = file.read(MAX_ENVELOPE + 1)
    envelope = parse_envelope(data, path.name)  # (1)
    published: tuple[PublicKey, ...] = ()
    if (directory / SIGNER_FILE).is_file():
        published = parse_public_keys((directory / SIGNER_FILE).read_bytes()[: 2**16], SIGNER_FILE)
    trust = policy.trust
    signature = judge(envelope, published, trust, policy.own_keyids, signer=policy.signer, at=policy.at)
    found = CheckedEstimates(path.name, signature, policy=policy)
    found.problems += [
        f"{item.where}: {item.message}"
        for item in form_findings(data, envelope, (), (*published, *trust.keys()), path.name)
        if item.severity == "error"
    ]
    try:
        found.document = _statement(envelope.payload, envelope.payload_type, directory, found)  # (2)
        evidence = StudyEvidence(directory)  # (3)
        if found.document.plan != evidence.plan.digest:
            raise FormatError("the estimates of another plan", where=path.name, expected=evidence.plan.digest)
        say("recomputing every number")
        results = estimate(evidence.plan.to_json(), evidence)  # (4)
        found.differing += _differing(found.document, _document(evidence, results), results)
        found.recomputed = True
    except (TrainmemAuditError, OSError) as error:
        found.problems.append(" ".join(str(error).split()))
    return found


def _statement(payload: bytes, payload_type: str, directory: Path, found: CheckedEstimates) -> Estimates:
    members = loads_strict(payload, found.name)
    kind = members.get("predicateType") if isinstance(members, dict) else None
    if payload_type != PAYLOAD_TYPE or kind != ESTIMATES_PREDICATE_TYPE:
        raise FormatError(
            "another kind of statement", where=found.name, expected=ESTIMATES_PREDICATE_TYPE, got=str(kind)[:200]
        )
    if canonical_bytes(members) != payload:
        found.problems.append(f"{found.name}: the payload is not in its canonical form")
    statement: EstimatesStatement = EstimatesStatement.parse(payload, found.name)
    for subject in statement.subject:
        file = directory.joinpath(*_safe(subject.name))
        if not file.is_file() or _sha256(file) != subject.digest.sha256:
            found.problems.append(f"{subject.name}: missing, or not the file that the estimates were made from")
    return statement.predicate


def _safe(name: str) -> list[str]:
    return check_name(name, "subject").split("/")


def _differing(signed: Estimates, ours: Estimates, results: Results) -> list[str]:
    """Return what does not come out again, by its place in the document."""
    found = []
    for name in ("study_log", "arms", "pairs", "back_flows"):
        a, b = getattr(signed, name), getattr(ours, name)
        if a == b:
            continue
        if isinstance(a, tuple) and isinstance(b, tuple):
            at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            found.append(f"{name}[{at}]")
        else:
            found.append(name)
    return [*found, *differences(signed, results)][:_MOST_SHOWN]
