"""A launched script as seen from outside: its step log read as it grows, its time limited, its process group ended.

What a replay and `twice` share. Not here: what is run and under which environment; that is the caller's.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trainmem_audit.errors import RecordingError, ReplayError
from trainmem_audit.interventions import MISSED
from trainmem_audit.privacy import last_line
from trainmem_audit.recording.launcher import interpreter_command
from trainmem_audit.steplog import STEP_FILE

__all__ = ["LaunchedRun"]

_POLL = 0.02
_GRACE = 5.0
_LAST_WAIT = 2.0
_CHUNK = 2**20
_TAIL = 16384
_MOST_OUTPUT = 2**30
_OURS = "trainmem-audit: "
_NO_STEP = f"{_OURS}no optimizer step was recorded"
_FOLLOWS = (_NO_STEP, f"{_OURS}{MISSED}")
"""How lines of ours begin that follow from a script's failure."""


class LaunchedRun:
    """A context manager around one running script that is being recorded; leaving it ends whatever still runs.

    Parameters
    ----------
    order, arguments:
        What the launcher is told (`recording.launcher.interpreter_command`).
    tree:
        The working directory.
    output:
        Where what the script prints goes.
    timeout:
        Seconds until waiting for it raises.
    name:
        What messages call it.
    """

    def __init__(
        self,
        order: dict[str, Any],
        arguments: list[str],
        *,
        tree: Path,
        environment: Mapping[str, str],
        output: Path,
        timeout: float,
        name: str,
    ) -> None:
        self.run_dir = Path(order["runDir"])
        self._output = output
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._name = name
        command, descriptor = interpreter_command(order, arguments)
        with output.open("wb") as file, os.fdopen(descriptor, "rb"):
            self._process = subprocess.Popen(
                command,
                pass_fds=(descriptor,),
                cwd=tree,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def exit_code(self) -> int | None:
        """The exit code, or `None` while it runs."""
        return self._process.poll()

    @property
    def group(self) -> int:
        """The id of its process group, which is of its own."""
        return self._process.pid

    def chunks(self) -> Iterator[bytes]:
        """Yield the step log as it grows, until the process has ended.

        Raises
        ------
        ReplayError
            If the time is up.
        """
        path = self.run_dir / STEP_FILE
        while not path.exists():
            if self._process.poll() is not None:
                return
            self._wait()
        with path.open("rb") as file:
            while True:
                self._check()
                ended = self._process.poll() is not None
                chunk = file.read(_CHUNK)
                if chunk:
                    yield chunk
                elif ended:
                    return
                else:
                    self._wait()

    def wait_for(self, path: Path) -> bool:
        """Wait until `path` is there; return whether it is, now that it is or the process has ended.

        Raises
        ------
        ReplayError
            If the time is up.
        """
        while not path.exists():
            if self._process.poll() is not None:
                return path.exists()
            self._wait()
        return True

    def end(self) -> None:
        """End the process and everything it started: asked first, then made to."""
        try:
            self._signal(signal.SIGTERM)
        finally:  # also when a second Ctrl-C cuts the grace short
            self._signal(signal.SIGKILL)
        self._process.poll()

    def _signal(self, sign: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)

    def last_words(self, hidden: Iterable[str] = ()) -> str:
        """Return the last line that the process printed (of ours, the whole message), and how it ended.

        `hidden` are texts that must not be in it.
        """
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAST_WAIT)  # its log is closed before it has ended
        code = self._process.poll()
        with self._output.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _TAIL))
            printed = file.read(_TAIL)
        message = last_line(printed, size <= _TAIL, hidden, _OURS)
        if message.startswith(_FOLLOWS) and code != RecordingError.exit_code:  # the script's own words say why
            before = printed[: min(at for text in _FOLLOWS if (at := printed.find(text.encode())) >= 0)]
            message = last_line(before, size <= _TAIL, hidden) or (message if message.startswith(_NO_STEP) else "")
        if message.startswith(_OURS):
            return message.removeprefix(_OURS).strip()
        return f"exit code {code}" + (f", last line: {message}" if message else "")

    def _wait(self) -> None:
        self._check()
        time.sleep(_POLL)

    def _check(self) -> None:
        """End a script that takes too long, or prints without end: its output would fill the disk.

        The size is watched, not limited (RLIMIT_FSIZE would hold for the script's checkpoints too).
        """
        if time.monotonic() > self._deadline:
            raise ReplayError(
                f"the {self._name} was ended after {self._timeout:.0f} s", remedy="allow more with --timeout SECONDS"
            )
        if self._output.stat().st_size > _MOST_OUTPUT:
            raise ReplayError(f"the {self._name} was ended: the script printed more than {_MOST_OUTPUT >> 20} MiB")
