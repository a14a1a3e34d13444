"""Which files the script opened for reading, by an audit hook (PEP 578): its inputs.

The hook sees Python's `open` and `os.open`, so NumPy's and `torch.load`'s readers; readers written in C (safetensors,
some image libraries, `from_file`) pass it by, and `--input PATH` names their files. Files that the script wrote before
it read them are no inputs, nor is code.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from pathlib import Path

from trainmem_audit.documents.steplog import Input
from trainmem_audit.recording.facts import path_name

__all__ = ["OpenedFiles"]

_CODE = (".py", ".pyc", ".pyi", ".so", ".pth", ".dylib", ".pyd", ".typed")
_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib", "/run/")
_METADATA = (".dist-info/", ".egg-info/", "/__pycache__/")
MOST = 10_000
"""How many inputs are listed; a data set of more files is named by `--input` or said to be not recorded."""


class OpenedFiles:
    """Listens to the `open` events of this process until `active` is cleared (audit hooks cannot be removed)."""

    def __init__(self, cwd: Path, entry_directory: Path, ignored: Path) -> None:
        self.active = True
        self.too_many = False
        self._cwd = cwd
        self._entry_directory = entry_directory
        self._ignored = f"{ignored}{os.sep}"
        self._read: dict[str, None] = {}
        self._seen: set[str] = set()
        self._written: set[str] = set()
        self._pid = os.getpid()
        sys.addaudithook(self._hook)

    def add(self, path: Path) -> None:
        """Name an input by hand (`--input`)."""
        full = str(path.resolve())
        self._seen.add(full)
        self._read[full] = None

    def take(self) -> tuple[list[Input], list[str]]:
        """Return the inputs opened since the last call, with their digests, and what could not be read any more."""
        paths, self._read = list(self._read), {}
        found: list[Input] = []
        lost: list[str] = []
        for text in paths:
            path = Path(text)
            name = path_name(path, self._cwd, self._entry_directory)
            try:
                with path.open("rb", buffering=0) as file:
                    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                        continue
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    found.append(Input(path=name, sha256=digest, bytes=os.fstat(file.fileno()).st_size))
            except OSError:
                lost.append(f"input {name}: gone before its digest was taken")
        return found, lost

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
        if not isinstance(path, str) or os.getpid() != self._pid:
            return
        writes = any(letter in mode for letter in "wax+") if isinstance(mode, str) else False
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            writes = True
        if not writes and path.endswith(_CODE):
            return
        full = os.path.realpath(path)
        if full.startswith((self._ignored, *_SYSTEM)) or any(part in full for part in _METADATA):
            return
        if writes:
            self._written.add(full)
        elif full not in self._written and full not in self._seen and Path(full).is_file():
            if len(self._seen) < MOST:
                self._seen.add(full)
                self._read[full] = None
            else:
                self.too_many = True
