"""Where the jobs of a study run: an interface of four methods, and the processes of one machine behind it.

A job names a function and its argument; what the function tells on its way, and how it ended, comes back as messages.
A process that dies takes its job with it and is replaced; when whoever started the pool is gone, its processes end by
themselves. Not here: what a job is (`scripts`, `blocks`), and in which order jobs come (`runner`).
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal, Protocol

__all__ = ["Executor", "Job", "LocalPool", "Message"]

_BOOT = "from trainmem_audit.study.worker import main; main()"
_GRACE = 5.0


@dataclass(frozen=True)
class Job:
    """A function as `MODULE:NAME`, called with the argument and a function that tells the submitter something.

    Argument and what is told must be picklable.
    """

    task: str
    argument: Any


@dataclass(frozen=True)
class Message:
    """What came of a job so far: it told something, is done, failed (`value` says why), or its process died."""

    job: int
    kind: Literal["told", "done", "failed", "died"]
    value: Any = None

    @property
    def is_last(self) -> bool:
        """Whether the job is over."""
        return self.kind != "told"


class Executor(Protocol):
    """Runs jobs somewhere, several at once."""

    def submit(self, job: Job) -> int:
        """Take a job; return its number."""
        ...

    def wait(self, timeout: float) -> list[Message]:
        """Wait at most `timeout` seconds for something to be told; return all that was."""
        ...

    @property
    def pending(self) -> int:
        """How many jobs are not over."""
        ...

    def close(self) -> None:
        """End everything, finished or not."""
        ...


class _Worker:
    """One process and the two pipes to it; the second is only held: its end tells the process that we are gone."""

    def __init__(self, environment: Mapping[str, str], cwd: Path) -> None:
        self.connection, theirs = Pipe()
        watched, self._held = os.pipe()
        self.job: int | None = None
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), str(watched)],
                pass_fds=(theirs.fileno(), watched),
                env=dict(environment),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        os.close(watched)

    def give(self, number: int, job: Job) -> None:
        self.job = number
        self.connection.send_bytes(pickle.dumps(job))

    def end(self) -> None:
        """End the process: once what it watches is closed it ends what it has started, then itself; else by force."""
        os.close(self._held)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.connection.close()


class LocalPool:
    """Processes of this machine; each is started when there is something for it to do.

    Parameters
    ----------
    workers:
        How many at most.
    environment:
        Their environment variables, all of them.
    cwd:
        Their working directory.
    """

    def __init__(self, workers: int, environment: Mapping[str, str], cwd: Path) -> None:
        self._most = workers
        self._environment = environment
        self._cwd = cwd
        self._workers: list[_Worker] = []
        self._waiting: deque[tuple[int, Job]] = deque()
        self._submitted = 0

    @property
    def pending(self) -> int:
        """How many jobs are not over."""
        return len(self._waiting) + sum(worker.job is not None for worker in self._workers)

    def submit(self, job: Job) -> int:
        """Take a job; return its number."""
        number = self._submitted
        self._submitted += 1
        self._waiting.append((number, job))
        self._hand_out()
        return number

    def wait(self, timeout: float) -> list[Message]:
        """Wait for something to be told; return all that was."""
        busy = {worker.connection: worker for worker in self._workers if worker.job is not None}
        ready = wait(list(busy), timeout) if busy else []
        messages = [message for one in ready if isinstance(one, Connection) for message in self._read(busy[one])]
        self._hand_out()
        return messages

    def close(self) -> None:
        """End all processes, whatever they are doing."""
        self._waiting.clear()
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.end()

    def _read(self, worker: _Worker) -> list[Message]:
        messages = []
        number = worker.job
        assert number is not None
        try:
            while worker.job is not None and worker.connection.poll():
                kind, value = pickle.loads(worker.connection.recv_bytes())
                messages.append(Message(number, kind, value))
                if messages[-1].is_last:
                    worker.job = None
        except (EOFError, OSError):
            self._workers.remove(worker)
            worker.end()
            messages.append(Message(number, "died", _how_it_ended(worker.process.returncode)))
        return messages

    def _hand_out(self) -> None:
        while self._waiting:
            idle = next((worker for worker in self._workers if worker.job is None), None)
            if idle is None:
                if len(self._workers) >= self._most:
                    return
                idle = _Worker(self._environment, self._cwd)
                self._workers.append(idle)
            number, job = self._waiting.popleft()
            try:
                idle.give(number, job)
            except OSError:  # it died while it had nothing to do
                self._workers.remove(idle)
                idle.end()
                self._waiting.appendleft((number, job))


def _how_it_ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its process ended with exit code {code}"
    with suppress(ValueError):
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process was ended by signal {-code}"
