"""Runs a study: every arm of the plan that is not there yet, on an executor, with the study log as its memory.

The steps, in this order; the code carries the same numbers:

(1) The directory is locked, and holds this plan or nothing.
(2) What the log says is compared with what lies there: an arm that is under way or damaged is moved aside and listed;
    one that is there stays. An arm that failed by itself stays failed, unless it is to be tried again.
(3) Jobs are handed to the executor, few at a time, and what they tell is written down before anything else happens.
(4) When nothing is left the log is ended, and a signed statement binds it, the plan and all arms.

A kill at any moment leaves a directory with which the same command goes on. Not here: how an arm is run (`scripts`,
`blocks`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.documents.manifest import PAYLOAD_TYPE, STATEMENT_TYPE
from trainmem_audit.documents.plan import Plan
from trainmem_audit.documents.studies import STUDY_PREDICATE_TYPE, StudyStatement
from trainmem_audit.envelope import seal
from trainmem_audit.errors import TrainmemAuditError, UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.privacy import public_line
from trainmem_audit.rundir import write_atomic
from trainmem_audit.study.arms import require_intact
from trainmem_audit.study.executor import Executor, Job, Message
from trainmem_audit.study.layout import ARMS, FAILED, OURS, PLAN_FILE, PROBE_FILE, SIGNER_FILE, STUDY_STATEMENT, WORK
from trainmem_audit.study.ledger import PRODUCER, Ledger, runner_lock, workers_gone
from trainmem_audit.studylog import STUDY_FILE, StudyLogSummary

__all__ = ["INTERRUPTED", "Outcome", "Progress", "Runner", "Unit", "Work", "cores"]

INTERRUPTED = "the study was interrupted"
_PATIENCE = 30.0
_TICK = 0.5
_LONGEST_REASON = 2000


@dataclass(frozen=True)
class Unit:
    """A job, and the arms that come of it."""

    job: Job
    arms: tuple[str, ...]


class Work(Protocol):
    """How the arms of a plan are run."""

    def arms(self) -> tuple[str, ...]:
        """Return the ids of all arms, shared prefixes too."""
        ...

    def units(self, missing: Sequence[str], threads: int) -> Iterator[Unit]:
        """Yield jobs that make the missing arms, each computed with so many threads."""
        ...

    def unusable(self, missing: Sequence[str]) -> Mapping[str, str]:
        """Return which other arms cannot stay when these are made anew, and why."""
        ...


@dataclass
class Progress:
    """How far a study is: arms by how they came out, and steps of those under way."""

    total: int
    finished: int = 0
    failed: int = 0
    kept: int = 0
    running: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a study ended: the arms that are there, and those that failed with the reasons of their last attempts."""

    finished: tuple[str, ...]
    failed: Mapping[str, str]
    interrupted: bool = False


class Runner:
    """One study in one directory.

    Parameters
    ----------
    plan:
        What to run.
    source:
        Where the plan was declared.
    directory:
        Where everything of the study lies; made if it is not there.
    signer:
        Who signs arms and study.
    retry:
        Whether arms that failed by themselves are tried again.
    say, show:
        Told what happens, a sentence each, and how far it is.
    """

    def __init__(
        self,
        plan: Plan,
        source: Path,
        directory: Path,
        signer: Signer,
        *,
        retry: bool = False,
        say: Callable[[str], None] = lambda _: None,
        show: Callable[[Progress], None] = lambda _: None,
    ) -> None:
        self._plan = plan
        self._source = source
        self._directory = directory
        self._signer = signer
        self._retry = retry
        self._say = say
        self._show = show
        self._log: Ledger

    def run(
        self,
        workers: int,
        threads: int,
        work: Work,
        executor: Callable[[int], Executor],
    ) -> Outcome:
        """Run what is missing.

        Parameters
        ----------
        workers:
            How many jobs are handed out at once.
        threads:
            How many threads an arm computes with, where the study is begun now.
        work:
            How the arms are run.
        executor:
            Makes the executor, given the number of threads.

        Raises
        ------
        UsageError
            If the directory is in use, or holds another study or something else.
        FormatError
            If its study log is damaged.
        """
        self._require_ours()
        self._directory.mkdir(parents=True, exist_ok=True)
        with runner_lock(self._directory):  # (1)
            if not workers_gone(self._directory, _PATIENCE):
                remedy = "end what still runs of it"
                raise UsageError("arms of this study are being written", where=str(self._directory), remedy=remedy)
            self._adopt()
            path = self._directory / STUDY_FILE
            is_new = not path.exists() or path.stat().st_size == 0
            digest = self._plan.digest
            self._log = Ledger.begin(path, digest, workers, threads) if is_new else Ledger.take_up(path, workers)
            try:
                return self._run(workers, work, executor)
            finally:
                self._log.close()
                shutil.rmtree(self._directory / WORK, ignore_errors=True)

    # (1) The directory ---------------------------------------------------------------------------------------------

    def _require_ours(self) -> None:
        """Refuse a directory of something else before anything is written into it."""
        if not self._directory.exists():
            return
        if not self._directory.is_dir():
            raise UsageError("not a directory", where=str(self._directory), remedy="another --dir")
        odd = sorted(path.name for path in self._directory.iterdir() if path.name not in OURS)
        if odd and not (self._directory / PLAN_FILE).exists():
            raise UsageError("holds something else", where=str(self._directory), got=odd[0], remedy="another --dir")

    def _adopt(self) -> None:
        """Write the plan, or demand that it is the one that lies there."""
        path = self._directory / PLAN_FILE
        canonical = self._plan.canonical()
        if not path.exists():
            write_atomic(path, canonical)
        elif (there := path.read_bytes()) != canonical:
            raise UsageError(
                "the directory holds a study of another plan",
                where=str(self._directory),
                expected=f"plan {self._plan.digest}",
                got=f"plan {hashlib.sha256(there).hexdigest()}",
                remedy="another --dir; a plan is not changed once it runs (the digest of the code is a part of it)",
            )
        self._copy_probe()

    def _copy_probe(self) -> None:
        probe = self._plan.probe
        target = self._directory / PROBE_FILE
        if probe.file is None or target.exists():
            return
        data = (self._source / probe.file).read_bytes()
        if hashlib.sha256(data).hexdigest() != probe.sha256:
            raise UsageError("not the probe of the plan", where=probe.file, expected=probe.sha256)
        write_atomic(target, data)

    # (2) What is there ---------------------------------------------------------------------------------------------

    def _run(self, workers: int, work: Work, executor: Callable[[int], Executor]) -> Outcome:
        log = self._log.summary
        assert log.begin is not None
        if log.begin.plan != self._plan.digest:
            raise UsageError("the study log is of another plan", where=STUDY_FILE, expected=self._plan.digest)
        shutil.rmtree(self._directory / WORK, ignore_errors=True)
        self._settle(work)
        summary = self._log.summary
        missing = [name for name in work.arms() if self._is_missing(name, summary)]
        progress = Progress(len(work.arms()), len(summary.finished), len(summary.failed))
        self._show(progress)
        interrupted = False
        if missing:
            pool = executor(log.begin.threads)
            try:
                self._hand_out(pool, workers, work, missing, progress)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                pool.close()
        if interrupted:
            self._say("interrupted; the same command goes on from here")
        elif self._log.summary.end is None:
            self._end()
        return self._outcome(interrupted)

    def _settle(self, work: Work) -> None:
        summary = self._log.summary
        for name in summary.running:
            self._fail(name, INTERRUPTED, again=True)
        for name, finish in list(summary.finished.items()):
            try:
                require_intact(self._directory / ARMS / name, name, self._plan.digest, finish.statement)
            except (TrainmemAuditError, OSError) as error:
                self._fail(name, f"its record is not what was signed: {_one_line(error)}", again=True)
        self._sweep()
        summary = self._log.summary
        missing = [name for name in work.arms() if self._is_missing(name, summary)]
        for name, reason in work.unusable(missing).items():
            if name in summary.finished:
                self._fail(name, reason, again=True)

    def _sweep(self) -> None:
        """List what lies there without a line: a kill came between the two."""
        known = self._log.summary.finished
        folder = self._directory / ARMS
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name not in known:
                self._start(path.name)
                self._fail(path.name, INTERRUPTED, again=True)

    def _is_missing(self, name: str, summary: StudyLogSummary) -> bool:
        if name in summary.finished:
            return False
        fail = summary.failed.get(name)
        return fail is None or bool(fail.retry) or self._retry

    # (3) Jobs ------------------------------------------------------------------------------------------------------

    def _hand_out(self, pool: Executor, workers: int, work: Work, missing: list[str], progress: Progress) -> None:
        begin = self._log.summary.begin
        assert begin is not None
        units = work.units(missing, begin.threads)
        open_units: dict[int, Unit] = {}
        progress.failed -= sum(name in self._log.summary.failed for name in missing)
        progress.kept = progress.finished + progress.failed
        while True:
            while pool.pending < workers and (unit := next(units, None)) is not None:
                open_units[pool.submit(unit.job)] = unit
            if not open_units:
                return
            for message in pool.wait(_TICK):
                self._hear(message, open_units, progress)
            self._show(progress)

    def _hear(self, message: Message, open_units: dict[int, Unit], progress: Progress) -> None:
        if not message.is_last:
            self._told(message.value, progress)
            return
        unit = open_units.pop(message.job)
        summary = self._log.summary
        reason = "it did not come out" if message.kind == "done" else str(message.value)
        for name in unit.arms:
            arm = summary.arms.get(name)
            if arm is None or (not arm.running and arm.finish is None and name not in summary.failed):
                self._start(name)
            if arm is None or arm.running:
                self._failed(name, reason, progress)

    def _told(self, told: Any, progress: Progress) -> None:
        """Write down what a job tells: (`start` | `finish`, arm), (`fail`, arm, reason), (`steps`, arm, number)."""
        match told:
            case ("start", str(name)):
                self._start(name)
                progress.running[name] = 0
            case ("steps", str(name), int(steps)):
                progress.running[name] = steps
            case ("finish", str(name)):
                self._finish(name, progress)
            case ("fail", str(name), str(reason)):
                self._failed(name, reason, progress)

    def _start(self, name: str) -> None:
        arm = self._log.summary.arms.get(name)
        self._log.put("start", id=name, number=1 if arm is None else arm.attempts + 1)

    def _finish(self, name: str, progress: Progress) -> None:
        try:
            record = require_intact(self._directory / ARMS / name, name, self._plan.digest)
        except (TrainmemAuditError, OSError) as error:
            self._failed(name, f"its record cannot be used: {_one_line(error)}", progress)
            return
        number = self._log.summary.arms[name].attempts
        self._log.put("finish", id=name, number=number, run=record.run, statement=record.sha256, steps=record.steps)
        progress.running.pop(name, None)
        progress.finished += 1

    def _failed(self, name: str, reason: str, progress: Progress) -> None:
        self._fail(name, reason)
        progress.running.pop(name, None)
        progress.failed += 1
        self._say(f"{name} failed: {reason}")

    def _fail(self, name: str, reason: str, again: bool = False) -> None:
        """Move aside what there is of an arm, then list it as failed."""
        number = self._log.summary.arms[name].attempts
        kept = f"{FAILED}/{name}.{number}"
        source = self._directory / ARMS / name
        target = self._directory / kept
        if source.exists():
            target.parent.mkdir(exist_ok=True)
            source.rename(target)
        shown = public_line(" ".join(reason.split()))[:_LONGEST_REASON] or "no reason was given"  # it is published
        there = kept if target.exists() else None
        self._log.put("fail", id=name, number=number, reason=shown, retry=again or None, kept=there)

    # (4) The end ---------------------------------------------------------------------------------------------------

    def _end(self) -> None:
        summary = self._log.summary
        self._log.put("end", finished=len(summary.finished), failed=len(summary.failed))
        payload = canonical_bytes(self._statement(self._log.summary).to_json())
        write_atomic(self._directory / SIGNER_FILE, self._signer.public.openssh_line())
        write_atomic(self._directory / STUDY_STATEMENT, seal(payload, PAYLOAD_TYPE, self._signer))

    def _statement(self, summary: StudyLogSummary) -> StudyStatement:
        assert summary.begin is not None
        assert summary.end is not None
        return StudyStatement.model_validate(
            {
                "_type": STATEMENT_TYPE,
                "subject": tuple(self._subjects(summary.finished)),
                "predicateType": STUDY_PREDICATE_TYPE,
                "predicate": {
                    "schemaVersion": SCHEMA_VERSION,
                    "producer": PRODUCER,
                    "id": summary.begin.nonce,
                    "plan": summary.begin.plan,
                    "began": summary.begin.time,
                    "ended": summary.end.time,
                    "log": {
                        "file": STUDY_FILE,
                        "count": summary.lines,
                        "chainHead": summary.chain_head,
                        "merkleRoot": summary.merkle_root,
                    },
                    "started": summary.started,
                    "finished": len(summary.finished),
                    "failed": {name: fail.reason for name, fail in summary.failed.items()},
                },
            }
        )

    def _subjects(self, finished: Iterable[str]) -> Iterator[dict[str, Any]]:
        names = [PLAN_FILE, STUDY_FILE, *([PROBE_FILE] if (self._directory / PROBE_FILE).exists() else [])]
        for name in [*names, *(f"{ARMS}/{arm}/run.json" for arm in sorted(finished))]:
            with (self._directory / name).open("rb") as file:
                yield {"name": name, "digest": {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}}

    def _outcome(self, interrupted: bool) -> Outcome:
        summary = self._log.summary
        failed = {name: fail.reason for name, fail in summary.failed.items()}
        return Outcome(tuple(summary.finished), failed, interrupted)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def cores() -> int:
    """Return how many processors this process may use."""
    with suppress(AttributeError):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
