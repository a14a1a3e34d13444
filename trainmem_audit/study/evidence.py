"""The records of a finished study, read for its numbers: nothing is taken from a file whose digest was not signed.

Implements `seedtables.Arms` over the directory of a study. Each arm is looked at in full when it is first asked for;
predictions are read one file at a time. No torch. Not here: the numbers (`estimation`).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from trainmem_audit.arrays import ArrayFile
from trainmem_audit.canonical import loads_strict, sha256_hex
from trainmem_audit.documents import estimates as documents
from trainmem_audit.documents.manifest import PAYLOAD_TYPE
from trainmem_audit.documents.plan import ArmName, Plan
from trainmem_audit.documents.studies import STUDY_PREDICATE_TYPE, StudyStatement
from trainmem_audit.envelope import parse_envelope, verifying_signatures
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.keys import PublicKey, parse_public_keys
from trainmem_audit.observations import observation_name, read_observation
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.runs import MAX_ENVELOPE, certify_runs
from trainmem_audit.seedtables import ArmKey, Pairing
from trainmem_audit.study.arms import ArmRecord, require_intact
from trainmem_audit.study.layout import ARMS, PLAN_FILE, PROBE_FILE, SIGNER_FILE, STUDY_STATEMENT
from trainmem_audit.study.ledger import read_study_log
from trainmem_audit.study.plan import read_plan
from trainmem_audit.study.witnessing import back_flow_arms, back_flow_estimates
from trainmem_audit.studylog import STUDY_FILE, StudyLogSummary

__all__ = ["StudyEvidence"]

_MOST_OBSERVED = 2**30
_MOST_PROBE = 2**32


class StudyEvidence:
    """The study in a directory, its log and statement checked.

    Raises
    ------
    UsageError
        If there is no finished study.
    FormatError
        If plan, log and statement do not agree, or are not what was signed.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        for name in (PLAN_FILE, STUDY_FILE, STUDY_STATEMENT, SIGNER_FILE):
            if not (directory / name).is_file():
                remedy = "`study run` ends a study; it goes on where it stopped"
                raise UsageError("not a finished study", where=str(directory), expected=f"a file {name}", remedy=remedy)
        self.plan: Plan = read_plan(directory / PLAN_FILE)
        self.log: StudyLogSummary = read_study_log(directory / STUDY_FILE).summary
        self.keys = parse_public_keys((directory / SIGNER_FILE).read_bytes()[: 2**16], SIGNER_FILE)
        self.statement = self._signed_statement()
        self._check_statement()
        self._records: dict[str, ArmRecord | str] = {}
        self._pairs: dict[tuple[ArmName, ArmName], documents.Pair] = {}

    # The study -----------------------------------------------------------------------------------------------------

    def _signed_statement(self) -> StudyStatement:
        with (self.directory / STUDY_STATEMENT).open("rb") as file:
            envelope = parse_envelope(file.read(MAX_ENVELOPE + 1), STUDY_STATEMENT)
        if envelope.payload_type != PAYLOAD_TYPE or not _is_signed(envelope, self.keys):
            raise FormatError("not signed by the key beside it", where=STUDY_STATEMENT)
        members = loads_strict(envelope.payload, STUDY_STATEMENT)
        if not isinstance(members, dict) or members.get("predicateType") != STUDY_PREDICATE_TYPE:
            raise FormatError("another kind of statement", where=STUDY_STATEMENT, expected=STUDY_PREDICATE_TYPE)
        statement: StudyStatement = StudyStatement.parse(envelope.payload, STUDY_STATEMENT)
        return statement

    def _check_statement(self) -> None:
        """Demand that the statement says what the log says, and that the study's own files are those it lists."""
        said, log = self.statement.predicate, self.log
        if log.begin is None or log.end is None:
            raise FormatError("the study log has no end", where=STUDY_FILE, remedy="`study run` goes on with it")
        agree = (
            (said.plan, self.plan.digest),
            (log.begin.plan, self.plan.digest),
            (said.id, log.begin.nonce),
            (said.log.chain_head, log.chain_head),
            (said.log.merkle_root, log.merkle_root),
            (str(said.log.count), str(log.lines)),
            (str(said.started), str(log.started)),
            (str(said.finished), str(len(log.finished))),
            (str(sorted(said.failed)), str(sorted(log.failed))),
        )
        for signed, found in agree:
            if signed != found:
                raise FormatError(
                    "plan, log and statement of the study do not agree",
                    where=STUDY_STATEMENT,
                    expected=signed[:200],
                    got=found[:200],
                )
        listed = {subject.name: subject.digest.sha256 for subject in self.statement.subject}
        for name in (PLAN_FILE, STUDY_FILE, *([PROBE_FILE] if PROBE_FILE in listed else [])):
            with (self.directory / name).open("rb") as file:
                if sha256_hex(file.read(_MOST_PROBE)) != listed.get(name):
                    raise FormatError(
                        "not the file that was signed", where=name, expected=listed.get(name, "a subject")
                    )

    # seedtables.Arms -----------------------------------------------------------------------------------------------

    @property
    def targets(self) -> NDArray[Any] | None:
        """The probe's labels or values."""
        path = self.directory / PROBE_FILE
        if not path.is_file():
            return None
        with path.open("rb") as opened:
            data = opened.read(_MOST_PROBE)
        if sha256_hex(data) != self.plan.probe.sha256:
            raise FormatError("not the probe of the plan", where=PROBE_FILE, expected=self.plan.probe.sha256)
        file = ArrayFile(io.BytesIO(data), len(data), PROBE_FILE)
        return file.array("y") if "y" in file.entries else None

    def problem(self, arm: ArmKey) -> str:
        """Say why an arm cannot be used."""
        found = self.record(str(arm))
        return found if isinstance(found, str) else ""

    def pairing(self, treated: ArmKey, control: ArmKey) -> Pairing:
        """Return the label of the pair's certificate."""
        return self.pair(ArmName(*treated), ArmName(*control)).label

    def predictions(self, arm: ArmKey, horizon: int, head: str) -> NDArray[Any] | None:
        """Return the predictions of a head that many steps after the branch."""
        record = self.record(str(arm))
        if isinstance(record, str):
            return None
        is_rerun = record.statement.predicate.run.branch is None
        name = observation_name(arm.branch + horizon if is_rerun else horizon)
        signed = {subject.name: subject.digest.sha256 for subject in record.statement.subject}
        if name not in signed:
            return None
        with DirectoryReader(self.directory / ARMS / str(arm)) as reader:
            data = reader.read(name, _MOST_OBSERVED)
        if sha256_hex(data) != signed[name]:
            raise FormatError("not the file that was signed", where=f"{arm}: {name}", expected=signed[name])
        return read_observation(lambda: io.BytesIO(data), len(data), f"{arm}: {name}").get(head)

    # Arms and pairs ------------------------------------------------------------------------------------------------

    def record(self, name: str) -> ArmRecord | str:
        """Return the record of an arm, or why there is none that can be used."""
        if name not in self._records:
            self._records[name] = self._read(name)
        return self._records[name]

    def _read(self, name: str) -> ArmRecord | str:
        finish = self.log.finished.get(name)
        if finish is None:
            fail = self.log.failed.get(name)
            return "was not run" if fail is None else f"failed: {fail.reason}"
        record = require_intact(self.directory / ARMS / name, name, self.plan.digest, finish.statement)
        if not set(record.keys) & set(self.keys):
            raise FormatError("signed by another key than the study", where=name)
        return record

    def pair(self, treated: ArmName, control: ArmName) -> documents.Pair:
        """Return the certificate of two arms, read off their logs once."""
        key = treated, control
        if key not in self._pairs:
            with ExitStack() as runs:
                left, right = (runs.enter_context(DirectoryReader(self.directory / ARMS / str(arm))) for arm in key)
                prefix = self.directory / ARMS / self.plan.prefix_id(treated.seed)
                before = runs.enter_context(DirectoryReader(prefix)) if prefix.is_dir() else None
                found = certify_runs(left, right, before)
            self._pairs[key] = documents.Pair(
                treated=str(treated), control=str(control), certificate=found.certificate, label=found.label
            )
        return self._pairs[key]

    def arms(self) -> Iterator[documents.Arm]:
        """Yield every arm that was ever started, in the order of the plan, prefixes first."""
        names = {str(arm): arm for arm in self.plan.arms()}
        prefixes = {self.plan.prefix_id(seed): seed for seed in range(len(self.plan.seeds))}
        for name in (*prefixes, *names):
            if name in self.log.arms:
                arm = names.get(name)
                members: dict[str, Any] = {"seed": self.plan.seeds[prefixes[name] if arm is None else arm.seed]}
                if arm is not None:
                    members |= {"stream": arm.stream, "branch_step": arm.branch, "intervention": arm.intervention}
                yield self._arm(name, members)
        for name, members in back_flow_arms(self.plan):
            if name in self.log.arms:
                yield self._arm(name, members)

    def back_flows(self) -> tuple[documents.BackFlow, ...]:
        """Return the numbers of the back-flow part."""
        return back_flow_estimates(self.plan, self.directory, self.record)

    def _arm(self, name: str, about: dict[str, Any]) -> documents.Arm:
        found = self.record(name)
        members = {"id": name, **about}
        if isinstance(found, str):
            return documents.Arm(**members, outcome="failed", reason=found.removeprefix("failed: "))
        branch = found.statement.predicate.run.branch
        prefix = None if branch is None else branch.chain_head
        return documents.Arm(**members, run=found.run, statement=found.sha256, prefix=prefix, outcome="completed")

    def pairs(self) -> Iterator[documents.Pair]:
        """Yield the certificate of every pair of arms that some contrast compares."""
        plan = self.plan
        for seed in range(len(plan.seeds)):
            for branch in plan.branch_steps:
                for stream in range(plan.noise_streams):
                    for treated, control in dict.fromkeys((item.treated, item.control) for item in plan.contrasts):
                        arms = [ArmName(seed, branch, stream, name) for name in (treated, control)]
                        if not any(isinstance(self.record(str(arm)), str) for arm in arms):
                            yield self.pair(*arms)


def _is_signed(envelope: Any, keys: tuple[PublicKey, ...]) -> bool:
    return any(verifying_signatures(envelope, key) for key in keys)
