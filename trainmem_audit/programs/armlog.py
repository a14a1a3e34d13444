"""The record of one stretch of a program: a prefix, or an arm that leaves it.

What is the same for all stretches in a process (software, machine, code, files that were read) is looked up once. Not
here: what is done in a stretch (`block`).
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from trainmem_audit import __version__
from trainmem_audit.assemble import sign_run
from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.manifest import Statement
from trainmem_audit.documents.steplog import LOG_FORMAT, Input, SourceFile
from trainmem_audit.errors import RecordingError
from trainmem_audit.intervening import Surroundings
from trainmem_audit.keys import Signer
from trainmem_audit.observations import observation_name
from trainmem_audit.programs.live import Live
from trainmem_audit.recording.codefiles import CodeFiles
from trainmem_audit.recording.facts import environment, numeric_profile, rng_canary
from trainmem_audit.recording.observing import write_observation
from trainmem_audit.recording.opened import OpenedFiles
from trainmem_audit.recording.places import Places
from trainmem_audit.recording.recording import DEFAULT_TENSOR_BUDGET
from trainmem_audit.recording.session import Session
from trainmem_audit.recording.snapshots import SnapshotPlan
from trainmem_audit.recording.writer import LogWriter
from trainmem_audit.sources.twisters import python_stream
from trainmem_audit.steplog import LogSummary

__all__ = ["ArmLog", "Setting"]


class Setting:
    """What all stretches of a process share.

    Parameters
    ----------
    directory:
        Where all of them are written; what lies there is no input of the program.
    entry:
        The file that the program is in, where it is one.
    command:
        The members of `documents.steplog.Command`.
    list_elsewhere:
        Whether to list modules from elsewhere too (as a replay does, to tell what ran).
    """

    def __init__(
        self,
        directory: Path,
        cwd: Path,
        entry: Path | None,
        command: Mapping[str, Any],
        list_elsewhere: bool = False,
    ) -> None:
        self.command = dict(command)
        self._list_elsewhere = list_elsewhere
        self._entry = entry
        self._places = Places(cwd, cwd if entry is None else entry.resolve().parent)
        self._opened = OpenedFiles(self._places, directory)
        self._environment = environment(self._places)
        self._canary: dict[str, str] | None = None
        self._inputs: list[Input] = []
        self._lost: set[str] = set()
        self._modules = 0
        self._code: tuple[list[SourceFile], set[str]] = ([], set())

    def close(self) -> None:
        """Watch files no more."""
        self._opened.active = False

    @property
    def canary(self) -> dict[str, str]:
        """What a generator of each kind draws from a fixed seed."""
        if self._canary is None:
            self._canary = rng_canary()
        return self._canary

    @property
    def environment(self) -> dict[str, Any]:
        """The members of `documents.steplog.Environment`."""
        return self._environment

    def own_work(self) -> Any:
        """Give what to be in while files of ours are opened."""
        return self._opened.own_work()

    def inputs(self) -> tuple[list[Input], set[str]]:
        """Return the files that were read so far, with their digests, and those of which there is none."""
        found, lost = self._opened.take()
        self._inputs += found
        self._lost |= set(lost)
        return list(self._inputs), set(self._lost)

    def code(self, run_dir: Path, copy: bool) -> tuple[list[SourceFile], set[str]]:
        """Return the code that runs, copied into `run_dir` or by its digests, and what was imported from elsewhere."""
        if not copy and self._modules == len(sys.modules):
            return self._code
        files = CodeFiles(run_dir, self._places, copy, self._list_elsewhere)
        with self._opened.own_work():
            entry = [] if self._entry is None else files.entry(self._entry)
            found = [*entry, *files.imported()], files.elsewhere
        if not copy:
            self._modules, self._code = len(sys.modules), found
        return found


class ArmLog:
    """One stretch that is being recorded, from the state that the program is in; `finish` signs it.

    Parameters
    ----------
    members:
        Further members of the `begin` line: `origin`, `plan`, `studyArm`.
    copy_source:
        Whether to copy the code, as one stretch of many does.
    state_at:
        After which of its steps the state is digested; all if left out.
    snapshot_at:
        After which of its steps the whole state is kept.
    """

    def __init__(
        self,
        live: Live,
        setting: Setting,
        run_dir: Path,
        members: Mapping[str, Any],
        copy_source: bool = False,
        state_at: Callable[[int], bool] | None = None,
        snapshot_at: Sequence[int] = (),
    ) -> None:
        self.run_dir = run_dir
        self.nonce = secrets.token_hex(16)
        self._live = live
        self._setting = setting
        self._copy = copy_source
        self._failure: BaseException | None = None
        self._elsewhere: set[str] = set()
        with setting.own_work():
            run_dir.mkdir(parents=True, exist_ok=True)
            self._writer = LogWriter(run_dir, DEFAULT_TENSOR_BUDGET, self._failed)
            self._writer.start(
                {
                    "t": "begin",
                    "format": LOG_FORMAT,
                    "nonce": self.nonce,
                    "rank": 0,
                    "world": 1,
                    "started": _now(),
                    "producer": {"name": "trainmem-audit", "version": __version__},
                    "command": setting.command,
                    "environment": setting.environment,
                    "streams": {"python": python_stream().to_json()},
                    "tensorBudget": DEFAULT_TENSOR_BUDGET,
                    **members,
                }
            )
        self._writer.put({"t": "inventory", "profile": numeric_profile(), "rngCanary": setting.canary})
        kept = SnapshotPlan(lambda name: run_dir / name, setting.own_work, at=frozenset(snapshot_at))
        self.session = Session(
            self._writer,
            {"python"},
            self._first_step,
            kept,
            memory=live.memory,
            streams=live.streams,
            state_at=state_at,
        )
        live.record(self.session)
        self.session.begin_known()

    def _failed(self, error: BaseException) -> None:
        self._failure = error

    def _first_step(self) -> None:
        files, self._elsewhere = self._setting.code(self.run_dir, self._copy)
        if files:
            self._writer.put({"t": "inventory", "files": [file.to_json() for file in files]})

    def put(self, members: dict[str, Any]) -> None:
        """Write a line."""
        self._writer.put(members)

    def step(self) -> None:
        """Take one step.

        Raises
        ------
        RecordingError
            If it could not be written down.
        """
        self._live.step()
        if self._failure is not None:
            raise RecordingError(f"the recording broke off ({self._failure})", where=self.run_dir.name)

    def intervene(self, intervention: Intervention, around: Surroundings) -> None:
        """Do an intervention, and write down what it did.

        Raises
        ------
        UsageError
            If it cannot be done.
        """
        self.session.intervene(intervention, around)

    def observe(self, heads: Mapping[str, torch.Tensor] | None = None) -> None:
        """Keep the predictions on the probe; or `heads`, where they were taken before."""
        steps = self.session.steps
        heads = self._live.observe() if heads is None else heads
        with self._setting.own_work():
            size = write_observation(self.run_dir / observation_name(steps), steps, heads)
        self._writer.put({"t": "observe", "i": steps, "file": observation_name(steps), "size": size})

    def finish(self, signer: Signer) -> Statement:
        """Close and sign the record.

        Raises
        ------
        RecordingError
            If it could not be written.
        """
        summary = self.end()
        with self._setting.own_work():
            return sign_run(self.run_dir, summary, signer)

    def end(self) -> LogSummary:
        """Close the record and leave it unsigned, as a replay does.

        Raises
        ------
        RecordingError
            If it could not be written.
        """
        members = self.session.end()
        self._live.record(None)
        inputs, lost = self._setting.inputs()
        if inputs:
            self._writer.put({"t": "inventory", "inputs": [item.to_json() for item in inputs]})
        missing = {*self.session.not_recorded, *lost}
        missing.add("commitments to commit, remote, author and places of data")
        if not self._copy:
            missing.add("copies of the code: digests only; the prefix of the study has them")
        end = {"t": "end", "finished": _now(), "outcome": "finished", "exitCode": 0, "notRecorded": sorted(missing)}
        self._writer.put({**end, **members})
        with self._setting.own_work():
            return self._writer.close()

    def abandon(self) -> None:
        """Close the files of a stretch that has failed; it stays as it is, unsigned."""
        self._live.record(None)
        with suppress(RecordingError), self._setting.own_work():
            self._writer.close()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
