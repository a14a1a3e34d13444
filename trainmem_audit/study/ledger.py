"""The study log as a file, and the two locks of a study's directory.

One runner at a time: it holds `.lock`. The processes that write arms hold `.workers` together, so that a runner that
takes up a study waits until those of a killed one are gone. A torn last line is cut, every other damage is an error.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from trainmem_audit import __version__
from trainmem_audit.documents.studies import STUDY_LOG_FORMAT
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.steplog import iter_lines
from trainmem_audit.studylog import STUDY_FILE, StudyLogBuilder, StudyLogReader, StudyLogSummary

__all__ = ["Ledger", "read_study_log", "runner_lock", "workers_gone", "workers_lock"]

PRODUCER = {"name": "trainmem-audit", "version": __version__}
_RUNNER, _WORKERS = ".lock", ".workers"
_CHUNK = 2**20
_POLL = 0.05


def now() -> str:
    """Return the time as documents write it."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def read_study_log(path: Path) -> StudyLogReader:
    """Return the reader that has read all whole lines of a study log.

    Raises
    ------
    FormatError
        If it is damaged elsewhere than in its last line.
    """
    reader = StudyLogReader()
    with path.open("rb") as file:
        for line, whole in iter_lines(iter(lambda: file.read(_CHUNK), b""), STUDY_FILE):
            if whole:
                reader.read(line)
    reader.finish()
    return reader


class Ledger:
    """The log of one study, open for writing: every line is on the disk before the method returns."""

    def __init__(self, path: Path, builder: StudyLogBuilder) -> None:
        self._builder = builder
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)

    @classmethod
    def begin(cls, path: Path, plan: str, workers: int, threads: int) -> Self:
        """Begin a new log."""
        ledger = cls(path, StudyLogBuilder())
        identity = {"format": STUDY_LOG_FORMAT, "nonce": secrets.token_hex(16), "producer": PRODUCER, "plan": plan}
        ledger.put("begin", **identity, workers=workers, threads=threads)
        return ledger

    @classmethod
    def take_up(cls, path: Path, workers: int) -> Self:
        """Go on with a log; a torn last line is cut.

        Raises
        ------
        FormatError
            If it is damaged elsewhere than in its last line.
        """
        reader = read_study_log(path)
        if reader.summary.begin is None:
            raise FormatError("the study log has no line", where=path.name, remedy="remove the directory")
        if path.stat().st_size > reader.summary.bytes:
            os.truncate(path, reader.summary.bytes)
        ledger = cls(path, StudyLogBuilder.taken_up(reader))
        ledger.put("resume", workers=workers)
        return ledger

    @property
    def summary(self) -> StudyLogSummary:
        """What the log says so far."""
        return self._builder.finish()

    def put(self, kind: str, **members: Any) -> None:
        """Write a line of that type, with the time."""
        given = {name: value for name, value in members.items() if value is not None}
        line = self._builder.line({"t": kind, "time": now(), **given}) + b"\n"
        view = memoryview(line)
        while view:
            view = view[os.write(self._descriptor, view) :]
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


@contextmanager
def _locked(path: Path, how: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def runner_lock(directory: Path) -> Iterator[None]:
    """Be the one who runs the study in this directory.

    Raises
    ------
    UsageError
        If somebody else is.
    """
    try:
        lock = _locked(directory / _RUNNER, fcntl.LOCK_EX)
        lock.__enter__()
    except BlockingIOError:
        raise UsageError(
            "this study is being run already", where=str(directory), remedy="wait for it, or use another --dir"
        ) from None
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@contextmanager
def workers_lock(directory: Path) -> Iterator[None]:
    """Be one of those who write arms."""
    with _locked(directory / _WORKERS, fcntl.LOCK_SH):
        yield


def workers_gone(directory: Path, patience: float) -> bool:
    """Wait until nobody writes arms any more; return whether that is so."""
    deadline = time.monotonic() + patience
    while True:
        try:
            with _locked(directory / _WORKERS, fcntl.LOCK_EX):
                return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
