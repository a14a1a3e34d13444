"""L5: what the rules see of a study's directory: every record verified, every pair certified, all of it as one record.

The steps, in this order; the code carries the same numbers.

(1) *Plan.* `plan.json` is a plan in its canonical form; its SHA-256 is the digest that everything else must name.
(2) *Study log.* Canonical lines and chain; a signature over `study.json` binds plan and log, if there is one.
(3) *Arms.* Every run directory below `arms/` is verified like any run, and what rules need is gathered from its log.
(4) *Pairs.* For every contrast of the plan, each two arms of one seed, branch and noise stream: their certificate.
(5) *Estimates.* `estimates.json` is read, its signature judged, and all its numbers recomputed (`study.estimating`).

A file that is missing leaves out what it would have shown; a rule says then that it cannot decide. Nothing of the
author's is executed. Not here: the rules (`validators/`), and making of a study (`study`).
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from trainmem_audit.arrays import ArrayFile
from trainmem_audit.canonical import loads_strict
from trainmem_audit.checks import Outcome, evaluate, items_of
from trainmem_audit.compliance import record_of
from trainmem_audit.contract import stream_digest
from trainmem_audit.documents.checklist import Item
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.documents.contract import ContractStream
from trainmem_audit.documents.findings import Check, Finding, Replay, Signature, Verification
from trainmem_audit.documents.manifest import Manifest
from trainmem_audit.documents.pairing import Certificate, Clause, ClauseName
from trainmem_audit.documents.plan import Plan
from trainmem_audit.documents.record import Facts, Record
from trainmem_audit.documents.record_study import (
    ArmFacts,
    EstimatesFacts,
    PairFacts,
    ProbeFacts,
    StreamStart,
    StudyFacts,
    StudyLogFacts,
)
from trainmem_audit.documents.studies import StudyStatement
from trainmem_audit.envelope import Envelope, parse_envelope
from trainmem_audit.errors import FormatError, TrainmemAuditError
from trainmem_audit.gathering import Gatherer
from trainmem_audit.keys import PublicKey, parse_public_keys
from trainmem_audit.rundir import open_run
from trainmem_audit.runs import certify_runs
from trainmem_audit.steplog import iter_lines
from trainmem_audit.study.estimating import check_estimates
from trainmem_audit.study.layout import ARMS, ESTIMATES, PLAN_FILE, PROBE_FILE, STUDY_STATEMENT
from trainmem_audit.studylog import STUDY_FILE, ArmState, StudyLogReader, StudyLogSummary
from trainmem_audit.trust import judge
from trainmem_audit.verify import Examination, Policy, examine

__all__ = ["StudyExamination", "examine_study"]

MAX_BYTES: Final = 256 * 2**20
MOST_ARMS: Final = 100_000
_MOST_FINDINGS: Final = 1000
_CHUNK: Final = 2**20
_FEW: Final = 8
"""Fewer samples than these may well come in the same order twice by chance."""
_BY_CHANCE: Final = ("RandomSampler", "SubsetRandomSampler", "DistributedSampler")
_CLAUSES: Final[tuple[ClauseName, ...]] = ("prefix", "intervention", "order", "streams")
_STATES: Final = ("fail", "declared", "inconclusive", "pass", "not-applicable")
_EVIDENCE: Final = ("declared", "recorded", "cross-checked", "replayed")
_SIGNATURES: Final = ("invalid", "revoked", "not-checkable", "unknown-signer", "self", "trusted")
_ALONE: Final = ("TM-RNG-004", "TM-ORD-004", "TM-OPT-003", "TM-EXT-002")
"""Items of studies whose faults may show in the record of one arm."""


@dataclass
class StudyExamination:
    """What was found: the record that the rules of studies see, and what the others say of the arms' own records."""

    record: Record
    _worst: dict[str, tuple[str, Outcome, int]] = field(default_factory=dict)
    _records: int = 0

    def decide(self, item: Item) -> Outcome:
        """Return what an item comes to: for one of single runs, the worst of all records, and where."""
        worst = self._worst.get(item.id)
        if item.scope == "study":
            outcome = evaluate(item, self.record)
            return self._named(worst) if worst is not None and worst[1].state == "fail" else outcome
        if worst is None:
            return Outcome("inconclusive", "no record of an arm is there")
        return self._named(worst)

    def _named(self, worst: tuple[str, Outcome, int]) -> Outcome:
        name, outcome, count = worst
        if outcome.state in ("pass", "not-applicable"):
            return replace(outcome, message=f"{outcome.message} (in all {self._records} records, as in {name})")
        others = f" and {count - 1} more of {self._records} records" if count > 1 else ""
        where = f"{ARMS}/{name}: {outcome.where}" if outcome.where else f"{ARMS}/{name}"
        return replace(outcome, message=f"{outcome.message} (in {name}{others})", where=where)

    def take(self, name: str, record: Record, items: tuple[Item, ...]) -> None:
        """Judge the record of one arm by the items of single runs."""
        self._records += 1
        for item in items:
            if item.scope == "run" or item.id in _ALONE:
                self._fold(item.id, name, evaluate(item, record))

    def _fold(self, item: str, name: str, outcome: Outcome) -> None:
        known = self._worst.get(item)
        if known is None or _rank(outcome) < _rank(known[1]):
            self._worst[item] = (name, outcome, 1)
        elif known[1].state == outcome.state:
            self._worst[item] = (known[0], known[1], known[2] + 1)


def _rank(outcome: Outcome) -> tuple[int, int]:
    evidence = _EVIDENCE.index(outcome.evidence) if outcome.evidence is not None else 0
    return _STATES.index(outcome.state), evidence if outcome.state == "pass" else 0


def examine_study(
    directory: Path,
    policy: Policy,
    profile: str = "paired",
    say: Callable[[str], None] = lambda _: None,
) -> StudyExamination:
    """Verify a study's directory.

    Parameters
    ----------
    profile:
        By the items of which the record of each arm is judged.
    say:
        Is told of every record that was verified.

    Raises
    ------
    FormatError
        If `plan.json` is no plan.
    """
    return _Study(directory, policy, items_of(profile)).examine(say)


class _Study:
    def __init__(self, directory: Path, policy: Policy, items: tuple[Item, ...]) -> None:
        self._directory = directory
        self._policy = policy
        self._items = items
        self._merged = _Merged(directory.name or "study")
        self._keys: tuple[PublicKey, ...] = ()
        self._held_out = _HeldOut()
        self._folded = StudyExamination(Record(verification=self._merged.verification()))

    def examine(self, say: Callable[[str], None]) -> StudyExamination:
        plan, digest = self._plan()
        self._keys = self._published()
        log, summary = self._log(digest)
        estimates = self._estimates(say)
        self._held_out = self._probe()
        arms = self._arms(summary, say)
        stated = {} if estimates is None else {(p.treated, p.control): p.label for p in estimates.stated.pairs}
        facts = StudyFacts(
            plan=plan,
            plan_digest=digest,
            log=log,
            arms=arms,
            pairs=dict(self._pairs(plan, arms, stated)),
            probe=self._held_out.facts,
            estimates=estimates,
        )
        self._folded.record = Record(verification=self._merged.verification(), study=facts)
        return self._folded

    # (1) -----------------------------------------------------------------------------------------------------------

    def _plan(self) -> tuple[Plan, str]:
        data = _bytes(self._directory / PLAN_FILE, MAX_BYTES) or b""
        plan: Plan = Plan.parse(data, PLAN_FILE)
        if plan.canonical() != data:
            raise FormatError("a plan that is not in its canonical form", where=PLAN_FILE, expected="RFC 8785")
        return plan, hashlib.sha256(data).hexdigest()

    def _published(self) -> tuple[PublicKey, ...]:
        data = _bytes(self._directory / "signer.pub", 2**16)
        try:
            return () if data is None else parse_public_keys(data, "signer.pub")
        except TrainmemAuditError as error:
            self._merged.find("KEY-UNREADABLE", "signer.pub", error)
            return ()

    def _signed(self, name: str) -> tuple[bytes | None, bool]:
        """Return the payload of an envelope of the study's own, and whether any signature of it holds."""
        data = _bytes(self._directory / name, MAX_BYTES)
        if data is None:
            return None, False
        try:
            envelope: Envelope = parse_envelope(data, name)
        except FormatError as error:
            self._merged.find("ENV-UNREADABLE", name, error)
            return None, False
        policy = self._policy
        own, at = policy.own_keyids, policy.at
        signature = judge(envelope, self._keys, policy.trust, own, signer=policy.signer, at=at)
        self._merged.sign(name, signature)
        return envelope.payload, signature.state in ("trusted", "self", "unknown-signer")

    # (2) -----------------------------------------------------------------------------------------------------------

    def _log(self, digest: str) -> tuple[StudyLogFacts | None, StudyLogSummary]:
        reader = StudyLogReader()
        path = self._directory / STUDY_FILE
        if not path.is_file():
            return None, reader.finish()
        try:
            with path.open("rb") as file:
                for line, whole in iter_lines(iter(lambda: file.read(_CHUNK), b""), STUDY_FILE):
                    if whole:
                        reader.read(line)
        except FormatError as error:
            self._merged.find("LOG", STUDY_FILE, error)
            return None, reader.finish()
        summary = reader.finish()
        if summary.begin is None:
            return None, summary
        return (
            StudyLogFacts(
                plan=summary.begin.plan,
                began=summary.begin.time,
                chain_head=summary.chain_head,
                started=summary.started,
                failed_attempts=summary.started - len(summary.finished) - len(summary.running),
                ended=summary.end is not None,
                signed=self._binds(digest, summary),
            ),
            summary,
        )

    def _binds(self, digest: str, summary: StudyLogSummary) -> bool:
        payload, good = self._signed(STUDY_STATEMENT)
        if payload is None:
            return False
        try:
            loads_strict(payload, STUDY_STATEMENT)
            statement: StudyStatement = StudyStatement.parse(payload, STUDY_STATEMENT)
        except FormatError as error:
            self._merged.find("STATEMENT", STUDY_STATEMENT, error)
            return False
        bound = statement.predicate
        said = (bound.plan, bound.log.chain_head, bound.log.merkle_root)
        if said != (digest, summary.chain_head, summary.merkle_root):
            wrong = FormatError(
                "the statement does not bind the study log and the plan beside it",
                where=STUDY_STATEMENT,
                expected=summary.chain_head,
                got=bound.log.chain_head,
            )
            self._merged.find("LOG-STATEMENT", STUDY_STATEMENT, wrong)
            return False
        return good

    # (3) -----------------------------------------------------------------------------------------------------------

    def _arms(self, log: StudyLogSummary, say: Callable[[str], None]) -> dict[str, ArmFacts]:
        folder = self._directory / ARMS
        found_there = folder.iterdir() if folder.is_dir() else ()
        there = sorted(path.name for path in found_there if path.is_dir() and not path.is_symlink())
        if len(there) > MOST_ARMS:
            raise FormatError("too many arms", where=ARMS, expected=f"at most {MOST_ARMS}", got=str(len(there)))
        found = {name: self._missing(name, state) for name, state in log.arms.items() if name not in set(there)}
        for name in there:
            found[name] = self._arm(name, log.arms.get(name))
            say(name)
        return dict(sorted(found.items()))

    def _missing(self, name: str, state: ArmState) -> ArmFacts:
        if state.finish is not None:
            error = FormatError("the record of an arm that was finished is not there", where=f"{ARMS}/{name}")
            self._merged.find("FILE-MISSING", f"{ARMS}/{name}", error)
        return ArmFacts(id=name, **_outcome(state), damaged="not there" if state.finish is not None else "")

    def _arm(self, name: str, state: ArmState | None) -> ArmFacts:
        place = f"{ARMS}/{name}"
        try:
            with open_run(self._directory / ARMS / name) as reader:
                gatherer, trained = Gatherer(), _Trained(self._held_out.indices)

                def watch(chunk: bytes) -> None:
                    gatherer.indices(chunk)
                    trained.take(chunk)

                found = examine(reader, self._policy, None, gatherer.take, watch)
                record = record_of(found, gatherer)
        except TrainmemAuditError as error:
            self._merged.find("FILE-UNREADABLE", place, error)
            return ArmFacts(id=name, **_outcome(state), damaged=error.message)
        self._merged.take(place, found.verification)
        self._folded.take(name, record, self._items)
        damaged = next((finding.message for finding in found.findings if finding.severity == "error"), "")
        if record.statement is None:
            return ArmFacts(id=name, **_outcome(state), damaged=damaged or "no statement")
        return _arm_facts(name, state, found, record, damaged, trained.count(record.facts))

    # (4) -----------------------------------------------------------------------------------------------------------

    def _pairs(
        self, plan: Plan, arms: Mapping[str, ArmFacts], stated: Mapping[tuple[str, str], Any]
    ) -> Iterator[tuple[str, PairFacts]]:
        groups: dict[tuple[str, int | None, int | None], dict[str, str]] = {}
        runs = {arm.run: name for name, arm in arms.items() if arm.run is not None}
        for name, arm in arms.items():
            own = arm.name
            if own is not None and own.intervention is not None and arm.run is not None:
                groups.setdefault((own.seed, own.branch_step, own.stream), {})[own.intervention] = name
        seeds = {seed: number for number, seed in enumerate(plan.seeds)}
        for contrast in plan.contrasts:
            for (seed, branch, stream), members in groups.items():
                if contrast.treated not in members or contrast.control not in members or seed not in seeds:
                    continue
                treated, control = members[contrast.treated], members[contrast.control]
                branched = arms[treated].branch
                prefix = None if branched is None else runs.get(branched.run)
                yield (
                    f"{contrast.name}.s{seeds[seed]}.b{branch}.r{stream}",
                    PairFacts(
                        contrast=contrast.name,
                        treated=treated,
                        control=control,
                        certificate=self._certificate(treated, control, prefix),
                        stated=stated.get((treated, control)),
                    ),
                )

    def _certificate(self, treated: str, control: str, prefix: str | None) -> Certificate:
        folder = self._directory / ARMS
        try:
            with ExitStack() as runs:
                arms = [runs.enter_context(open_run(folder / name)) for name in (treated, control)]
                before = None if prefix is None else runs.enter_context(open_run(folder / prefix))
                return certify_runs(arms[0], arms[1], before)
        except TrainmemAuditError as error:
            clauses = (Clause(clause=name, state="inconclusive", detail=str(error)[:1000]) for name in _CLAUSES)
            return Certificate(certificate=tuple(clauses), label="unpaired")

    # (5) -----------------------------------------------------------------------------------------------------------

    def _probe(self) -> _HeldOut:
        path = self._directory / PROBE_FILE
        try:
            return _HeldOut.read(path) if path.is_file() and not path.is_symlink() else _HeldOut()
        except FormatError as error:
            self._merged.find("FILE-UNREADABLE", PROBE_FILE, error)
            return _HeldOut()

    def _estimates(self, say: Callable[[str], None]) -> EstimatesFacts | None:
        path = self._directory / ESTIMATES
        if not path.is_file():
            return None
        try:
            found = check_estimates(path, self._policy, say)
        except TrainmemAuditError as error:
            self._merged.find("ENV-UNREADABLE", ESTIMATES, error)
            return None
        self._merged.sign(ESTIMATES, found.signature)
        for problem in found.problems:
            self._merged.find("STATEMENT", ESTIMATES, FormatError(problem))
        if found.document is None:
            return None
        return EstimatesFacts(
            stated=found.document,
            signed=found.signature.state in ("trusted", "self", "unknown-signer"),
            recomputed=found.recomputed,
            different=tuple(found.differing),
        )


@dataclass(frozen=True)
class _HeldOut:
    """The probe: what its file is, and which sample indices it has, where the file says so in an array `index`."""

    facts: ProbeFacts = field(default_factory=ProbeFacts)
    indices: frozenset[int] | None = None

    @classmethod
    def read(cls, path: Path) -> _HeldOut:
        """Read the file.

        Raises
        ------
        FormatError
            If it is no safetensors file.
        """
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            arrays = ArrayFile(file, path.stat().st_size, path.name)
            first = next((entry for name, entry in sorted(arrays.entries.items()) if name in ("x", "y")), None)
            size = first.shape[0] if first is not None and first.shape else None
            indices = arrays.array("index") if "index" in arrays.entries else None
        known = None if indices is None else frozenset(int(index) for index in indices.ravel())
        return cls(ProbeFacts(sha256=digest, size=size), known)


class _Trained:
    """Counts the samples of the probe among those that an arm consumed; `None` where it cannot be told."""

    def __init__(self, probe: frozenset[int] | None) -> None:
        self._probe = probe
        self._met: set[int] = set()

    def take(self, chunk: bytes) -> None:
        """Add sample indices, int64, little-endian."""
        if self._probe:
            self._met.update(index for (index,) in struct.iter_unpack("<q", chunk) if index in self._probe)

    def count(self, facts: Facts | None) -> int | None:
        """Return how many there were, if every step has its indices."""
        whole = facts is not None and facts.whole and facts.steps.with_index == facts.steps.count
        return len(self._met) if whole and self._probe is not None else None


def _bytes(path: Path, most: int) -> bytes | None:
    if not path.is_file() or path.is_symlink():
        return None
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise FormatError("a file that is too long", where=path.name, expected=f"at most {most} bytes")
    return data


def _outcome(state: ArmState | None) -> dict[str, Any]:
    if state is None:
        return {"outcome": "unknown"}
    if state.finish is not None:
        return {"outcome": "completed"}
    if state.running:
        return {"outcome": "running"}
    return {"outcome": "failed", "reason": "" if state.fail is None else state.fail.reason}


def _arm_facts(
    name: str, state: ArmState | None, found: Examination, record: Record, damaged: str, on_probe: int | None
) -> ArmFacts:
    manifest, facts = record.manifest, record.facts
    if state is not None and state.finish is not None:
        signed = hashlib.sha256(found.payload).hexdigest()
        if signed != state.finish.statement:
            damaged = damaged or "another statement than the study log names"
    return ArmFacts(
        id=name,
        **_outcome(state),
        damaged=damaged,
        name=manifest.arm,
        plan=manifest.plan,
        run=manifest.run.id,
        statement=hashlib.sha256(found.payload).hexdigest(),
        started=manifest.run.started,
        branch=manifest.run.branch,
        steps=manifest.step_logs[0].steps,
        observed=() if facts is None else facts.observed,
        interventions=() if facts is None else facts.interventions,
        streams=_starts(manifest),
        orders=() if facts is None else _orders(manifest, facts),
        on_probe=on_probe,
    )


def _starts(manifest: Manifest) -> dict[str, StreamStart]:
    contract = manifest.rng_contract
    declared = (contract.declared.streams if contract.declared is not None else None) or {}

    def start(name: str, stream: ContractStream) -> StreamStart:
        said, moved = declared.get(name), stream.consumed
        across = None if said is None else said.across_replicates
        if said is not None and across is None and said.pairing == "independent":
            across = "independent"
        return StreamStart(
            algorithm=stream.algorithm,
            digest=stream_digest(stream),
            seeds=stream.seeds or (),
            trained=moved is not None and moved.steps + moved.epochs + moved.workers > 0,
            across=across,
        )

    return {name: start(name, stream) for name, stream in contract.streams.items()}


def _orders(manifest: Manifest, facts: Facts) -> tuple[str, ...]:
    """Return the digests of the epochs that were shuffled, and are long enough to tell; of a program how it begins."""
    loose = (facts.order.unplaced_head,) if facts.order.unplaced_head is not None and not manifest.order else ()
    return loose + tuple(
        epoch.digest
        for epoch in facts.order.epochs
        if epoch.digest is not None
        and epoch.samples >= _FEW
        and not epoch.ascending
        and epoch.loader in manifest.order
        and manifest.order[epoch.loader].sampler in _BY_CHANCE
    )


# All records as one verification ----------------------------------------------------------------------------------


class _Merged:
    """The verification of many records: of each verdict the worst."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._findings: list[Finding] = []
        self._more = 0
        self._signature: Signature | None = None
        self._checks: dict[int, Check] = {}
        self._states: dict[str, set[str]] = {"bytes": set(), "record": set()}
        self._codes: set[int] = set()
        self._count = 0

    def take(self, place: str, verification: Verification) -> None:
        """Add the verification of one arm."""
        self._count += 1
        self._states["bytes"].add(verification.bytes)
        self._states["record"].add(verification.record)
        self._codes.add(verification.exit_code)
        self.sign(place, verification.signature)
        for finding in verification.findings:
            self._add(finding.model_copy(update={"where": f"{place}: {finding.where}"}))
        for check in verification.checks:
            known = self._checks.get(check.number)
            order = ("fail", "not-checked", "pass")
            if known is None or order.index(check.state) < order.index(known.state):
                self._checks[check.number] = check.model_copy(update={"detail": f"{place}: {check.detail}"})

    def sign(self, place: str, signature: Signature) -> None:
        """Add the verdict on one signature."""
        known = self._signature
        if known is None or _SIGNATURES.index(signature.state) < _SIGNATURES.index(known.state):
            self._signature = signature.model_copy(update={"detail": f"{place}: {signature.detail}"})

    def find(self, code: str, where: str, error: TrainmemAuditError) -> None:
        """Add what is wrong with a file of the study's own."""
        self._codes.add(1)
        self._add(
            Finding(
                code=code,
                severity="error",
                where=error.where or where,
                message=error.message,
                expected=error.expected,
                got=error.got[:200],
                remedy=error.remedy,
            )
        )

    def _add(self, finding: Finding) -> None:
        if len(self._findings) < _MOST_FINDINGS:
            self._findings.append(finding)

    def verification(self) -> Verification:
        """Return all of it."""
        signature = self._signature or Signature(state="not-checkable", detail="nothing is signed")
        codes = self._codes or {3}
        refused = signature.state in ("invalid", "revoked")
        return Verification(
            schema_version=SCHEMA_VERSION,
            name=self._name,
            bytes=_worst(self._states["bytes"], ("broken", "not-checked", "intact")),
            record=_worst(self._states["record"], ("inconsistent", "not-checked", "incomplete", "consistent")),
            signature=signature,
            replay=Replay(outcome="not-run", mode="none", reason="the arms of a study are replayed one by one"),
            checks=tuple(self._check(check) for _, check in sorted(self._checks.items())),
            findings=tuple(self._findings),
            facts={"records": self._count},
            exit_code=1 if 1 in codes or refused else max(codes),
        )

    def _check(self, check: Check) -> Check:
        if check.state == "pass":
            return check.model_copy(update={"detail": f"{self._count} records"})
        return check


def _worst(states: set[str], order: tuple[str, ...]) -> Any:
    return next((state for state in order if state in states), "not-checked")
