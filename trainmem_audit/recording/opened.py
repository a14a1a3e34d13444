"""Which files the script opened for reading, by an audit hook (PEP 578): its inputs, and code that it read as text.

The hook sees Python's `open` and `os.open`, so NumPy's and `torch.load`'s readers; readers written in C (safetensors,
some image libraries, `from_file`) pass it by, and `--input PATH` names their files. Forked workers report what they
open; spawned ones do not. What the run itself wrote is no input.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import sys
import tempfile
import threading
import time
from pathlib import Path

from trainmem_audit.documents.steplog import Input
from trainmem_audit.recording.places import Places

__all__ = ["OpenedFiles"]

_BINARY_CODE = (".pyc", ".so", ".dylib", ".pyd", ".typed", ".pyi")
_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib/", "/lib64/", "/run/")
_METADATA = (".dist-info/", ".egg-info/", "/__pycache__/", "/torchinductor_")  # the last: torch's compiled kernels
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PIECE = 2**20
MOST = 10_000
"""How many inputs are listed; a data set of more files is named by `--input` or said to be not recorded."""


class OpenedFiles:
    """Listens to the `open` events of this process until `active` is cleared (audit hooks cannot be removed)."""

    def __init__(self, places: Places, ignored: Path) -> None:
        self.active = True
        self.too_many = False
        self._places = places
        self._ignored = f"{ignored.resolve()}{os.sep}"
        self._lock = threading.Lock()
        self._read: dict[str, None] = {}
        self._code: dict[str, None] = {}
        self._seen: set[str] = set()
        self._written: set[str] = set()
        self._before_writing: dict[str, Input] = {}
        self._pid = os.getpid()
        self._started = time.time_ns()
        self._relay = _anonymous_file()
        self._relayed = 0
        fcntl.fcntl(self._relay, fcntl.F_SETFL, os.O_APPEND)
        sys.addaudithook(self._hook)

    def add(self, path: Path) -> None:
        """Name an input by hand (`--input`)."""
        full = str(path.resolve())
        self._seen.add(full)
        self._read[full] = None

    def take(self) -> tuple[list[Input], list[str]]:
        """Return the inputs opened since the last call, with their digests, and what could not be read any more."""
        with self._lock:
            self._take_relayed()
            paths, self._read = list(self._read), {}
        found: list[Input] = []
        lost: list[str] = []
        for path in paths:
            try:
                item = self._before_writing.pop(path, None) or self._digest(path)
            except OSError:
                lost.append(f"input {self._places.name(Path(path))}: gone before its digest was taken")
                continue
            if item is not None:
                found.append(item)
        return found, lost

    def take_code(self) -> list[Path]:
        """Return the `.py` files that were opened since the last call, by an import or as text."""
        with self._lock:
            self._take_relayed()
            paths, self._code = list(self._code), {}
        return [Path(path) for path in paths]

    def _digest(self, path: str) -> Input | None:
        with Path(path).open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return None
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return Input(path=self._places.name(Path(path)), sha256=digest, bytes=status.st_size)

    # The hook ------------------------------------------------------------------------------------------------------

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if event != "open" or not self.active:
            return
        try:
            self._note(args[0], args[1], args[2])
        except Exception:  # an audit hook that raises would change the script
            self.too_many = True

    def _note(self, path: object, mode: object, flags: object) -> None:
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str) or path.endswith(_BINARY_CODE):
            return
        full = os.path.realpath(path)
        if full in self._seen or any(part in full for part in _METADATA):
            writes = _writes(mode, flags)
            if writes and full in self._read and full not in self._before_writing and os.getpid() == self._pid:
                self._keep_digest(full)
            return
        if full.startswith((self._ignored, *_SYSTEM)) and not self._is_own(full):
            return
        if _writes(mode, flags):
            self._written.add(full)
        elif full not in self._written and self._is_input(full):
            self._remember(full)

    def _remember(self, full: str) -> None:
        if len(self._seen) >= MOST:
            self.too_many = True
            return
        self._seen.add(full)
        if os.getpid() != self._pid:
            os.write(self._relay, os.fsencode(full) + b"\0")
        else:
            self._sort(full)

    def _sort(self, full: str) -> None:
        (self._code if full.endswith(".py") else self._read)[full] = None

    def _is_own(self, full: str) -> bool:
        return not full.startswith(self._ignored) and self._places.is_own(Path(full))

    def _is_input(self, full: str) -> bool:
        """Tell whether there is a regular file that was last written before the run began.

        `torch.save` and libraries written in C are not seen when they write, so the file's own time is asked.
        """
        try:
            status = Path(full).stat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_mtime_ns < self._started

    def _keep_digest(self, full: str) -> None:
        """Take the digest of an input that the script is about to write over."""
        item = self._digest(full)
        if item is not None:
            self._before_writing[full] = item

    # Workers -------------------------------------------------------------------------------------------------------

    def _take_relayed(self) -> None:
        """Sort what forked children have reported."""
        while piece := os.pread(self._relay, _PIECE, self._relayed):
            whole = piece[: piece.rfind(b"\0") + 1]
            if not whole:
                return
            self._relayed += len(whole)
            for name in whole.split(b"\0")[:-1]:
                full = os.fsdecode(name)
                if full not in self._seen:
                    self._seen.add(full)
                    self._sort(full)


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str) and any(letter in mode for letter in "wax+"):
        return True
    return isinstance(flags, int) and bool(flags & _WRITING)


def _anonymous_file() -> int:
    with tempfile.TemporaryFile(buffering=0) as file:
        return os.dup(file.fileno())
