"""The background thread that owns the files of a recording: step log, tensor digests, consumed indices.

Every write is one whole line or frame on an append-only descriptor, side files before the line that speaks of them: a
kill at any moment leaves a valid prefix. When writing fails the recording ends, loudly; training does not, and never
waits for a writer that is gone.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainmem_audit.errors import RecordingError
from trainmem_audit.recording.descriptors import above_standard
from trainmem_audit.steplog import FRAME, ORDER_FILE, STEP_FILE, TENSOR_FILE, LogBuilder, LogSummary

__all__ = ["LogWriter"]

_WAITING = 512
"""Lines that may wait for the writer before training waits for it."""
_GATHERED = 0.02
"""Seconds for which lines are gathered. A thread that wakes for each would take the interpreter from the training at
every step; a kill loses what was not written yet."""
_PATIENCE = 1.0
"""Seconds after which who waits for the writer looks whether it still lives."""


@dataclass
class _Item:
    members: dict[str, Any]
    digests: list[bytes] | None = None
    indices: bytes | None = None


class Thinning:
    """Which steps keep their tensor digests.

    All of them in the first half of the budget, then every 4th in the next quarter, every 16th in the next eighth, and
    so on: half of what is left each time, never more than the budget.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._used = 0
        self._stride = 1
        self._limit = budget // 2

    def keep(self, step: int, size: int) -> bool:
        """Tell whether `step`, whose frame has `size` bytes, keeps its digests, and count it if so."""
        if step % self._stride:
            return False
        while self._used + size > self._limit:
            if self._limit + size >= self._budget:
                return False
            self._limit += (self._budget - self._limit) // 2
            self._stride *= 4
            if step % self._stride:
                return False
        self._used += size
        return True


class LogWriter:
    """Writes one recording into `directory`, which must exist and hold no log yet.

    Parameters
    ----------
    on_failure:
        Called once, mostly from the writer's thread, with the error that ended the recording.
    threaded:
        Whether a thread writes; without one `put` does, so that objects lie at the same addresses in every run.

    Attributes
    ----------
    steps:
        The number of steps whose lines are in the file.
    """

    def __init__(
        self,
        directory: Path,
        tensor_budget: int,
        on_failure: Callable[[BaseException], None],
        threaded: bool = True,
    ) -> None:
        self._directory = directory
        self._moving = threading.Lock()
        self._builder = LogBuilder()
        self._thinning = Thinning(tensor_budget)
        self._on_failure = on_failure
        self._failed = False
        self._ended = False
        self.steps = 0
        self.before_step: Callable[[], None] | None = None
        self._log = self._open(STEP_FILE)
        self._tensors = self._open(TENSOR_FILE)
        self._order: int | None = None
        self._queue: queue.Queue[_Item | None] = queue.Queue(_WAITING)
        self.seconds = 0.0
        self._closing = threading.Event()
        self._threaded = threaded
        self._thread = threading.Thread(target=self._run, name="trainmem-audit-writer", daemon=True)

    def start(self, begin: dict[str, Any]) -> None:
        """Write the `begin` line before this returns, then start the thread."""
        self._write(_Item(begin))
        if self._threaded:
            self._thread.start()
        else:
            self._ended = True

    def put(self, members: dict[str, Any], digests: list[bytes] | None = None, indices: bytes | None = None) -> None:
        """Hand over one line; waits when the writer is far behind, does nothing after a failure.

        `before_step`, where set, is called first when the line is a step, and may put lines of its own.
        """
        if self.before_step is not None and members["t"] == "step":
            self.before_step()
        item = _Item(members, digests, indices)
        if not self._threaded:
            self._try_to_write(item)
            return
        while not self._failed and not self._handed_over(item):
            self._check_alive()

    def move(self, directory: Path) -> None:
        """Rename the directory; what is open stays open."""
        with self._moving:
            self._directory.rename(directory)
            self._directory = directory

    def close(self) -> LogSummary:
        """Write what is waiting, close the files, and return what the log says.

        Raises
        ------
        RecordingError
            If the recording had failed.
        """
        self._closing.set()
        while self._thread.is_alive() and not self._handed_over(None):
            pass
        if self._threaded:
            self._thread.join()
        self._check_alive()
        if not self._failed:
            try:
                self._settle()
            except (OSError, RecordingError) as error:
                self._break_off(error)
        for _, descriptor in self._open_files():
            with suppress(OSError):
                os.close(descriptor)
        if self._failed:
            raise RecordingError("the recording broke off", remedy="trainmem-audit recover closes what was written")
        return self._builder.finish()

    def _open(self, name: str) -> int:
        with self._moving:
            path = self._directory / name
            path.parent.mkdir(exist_ok=True)
            return above_standard(
                os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o666)
            )

    def _open_files(self) -> Iterator[tuple[str, int]]:
        yield STEP_FILE, self._log
        yield TENSOR_FILE, self._tensors
        if self._order is not None:
            yield ORDER_FILE, self._order

    def _handed_over(self, item: _Item | None) -> bool:
        try:
            self._queue.put(item, timeout=_PATIENCE)
        except queue.Full:
            return False
        return True

    def _check_alive(self) -> None:
        """Break off when the thread is gone and has not read the queue to its end."""
        if not self._ended and not self._thread.is_alive():
            self._break_off(RecordingError("the thread that writes the log has died"))

    def _settle(self) -> None:
        """Bring the files to the disk, and demand that they still are what the run directory holds under their names.

        A disk that is full may say so only now (delayed allocation, network file systems).
        """
        for name, descriptor in self._open_files():
            os.fsync(descriptor)
            written = os.fstat(descriptor)
            try:
                there = os.path.samestat(written, os.lstat(self._directory / name))
            except OSError:
                there = False
            if not there or (name == STEP_FILE and written.st_size != self._builder.summary.bytes):
                raise RecordingError(f"{name} was removed or changed while training ran", where=str(self._directory))

    def _break_off(self, error: BaseException) -> None:
        if not self._failed:
            self._failed = True
            self._on_failure(error)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._queue.empty():
                self._closing.wait(_GATHERED)
            self._try_to_write(item)
        self._ended = True

    def _try_to_write(self, item: _Item) -> None:
        if self._failed:
            return
        began = time.perf_counter()
        try:
            self._write(item)
        except BaseException as error:  # any failure ends the recording, none may end the training or the thread
            self._break_off(error)
        self.seconds += time.perf_counter() - began

    def _write(self, item: _Item) -> None:
        members = item.members
        if members["t"] == "inventory" and "i" not in members:
            members["i"] = self._builder.summary.steps
        line = self._builder.line(members)
        if item.indices:
            if self._order is None:
                self._order = self._open(ORDER_FILE)
            _write_all(self._order, item.indices)
        if item.digests:
            size = FRAME.size + 32 * len(item.digests)
            if self._thinning.keep(members["i"], size):
                _write_all(self._tensors, FRAME.pack(members["i"], len(item.digests)) + b"".join(item.digests))
        _write_all(self._log, line + b"\n")
        self.steps += members["t"] == "step"


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
