"""Which files the script opened for reading, by an audit hook (PEP 578): its inputs, and code that it read as text.

The hook sees Python's `open` and `os.open`, so NumPy's and `torch.load`'s readers; readers written in C (safetensors,
some image libraries, `from_file`) pass it by, and `--input PATH` names their files. Forked workers report what they
open; spawned ones do not. What the run itself wrote is no input.

A digest is taken when a file is opened, while a budget lasts (the script may write over it a moment later, unseen by
us), else at the next `take`, or before the file is seen to be written over, moved or removed. Whether the file is still
the one that was opened is told by its inode, size and time; if not, the record says so and has no digest of it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainmem_audit.documents.steplog import Folder, Input
from trainmem_audit.privacy import is_unicode
from trainmem_audit.recording.descriptors import above_standard
from trainmem_audit.recording.folders import Folders, Past
from trainmem_audit.recording.places import Places

__all__ = ["OpenedFiles"]

_BINARY_CODE = (".pyc", ".so", ".dylib", ".pyd", ".typed", ".pyi")
_SYSTEM = ("/proc/", "/sys/", "/dev/", "/etc/", "/usr/", "/lib/", "/lib64/", "/run/")
_METADATA = (".dist-info/", ".egg-info/", "/__pycache__/", "/torchinductor_", "/.triton/cache/")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_PIECE = 2**20
_SMALL = 64 * 2**20
_AT_ONCE_FILES = 1000
_AT_ONCE_BYTES = 512 * 2**20
"""How many files, of how many bytes in all, are digested when they are opened: some tenths of a second in a run."""
MOST = 10_000
"""How many inputs are listed; a data set of more files is named by `--input` or said to be not recorded."""

_Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class _Opened:
    """An input as it was when it was opened: the path it went by, the file that this led to, its stamp.

    `name` is empty where the path alone says what the record calls it (that is looked up later).
    """

    path: str
    real: str
    stamp: _Stamp
    name: str = ""


class OpenedFiles:
    """Listens to the audit events of this process until `active` is cleared (audit hooks cannot be removed).

    Parameters
    ----------
    ignored:
        The run directory.
    on_run_directory:
        Called, before the script makes or writes something there, with the path that it is about to make.
    """

    def __init__(
        self, places: Places, ignored: Path, on_run_directory: Callable[[Path], None] = lambda path: None
    ) -> None:
        self.active = True
        self.too_many = False
        self.past = Past()
        self.folders = Folders(places, self.past)
        self._places = places
        self._on_run_directory = on_run_directory
        self.ignore(ignored)
        self._lock = threading.Lock()
        self._busy = threading.local()
        self._code: dict[str, None] = {}
        self._seen: set[str] = set()
        self._pending: dict[str, _Opened] = {}
        self._waiting: dict[str, set[str]] = {}
        self._found: list[Input] = []
        self._lost: list[str] = []
        self._elsewhere: dict[str, str] = {}
        self._files_left = _AT_ONCE_FILES
        self._bytes_left = _AT_ONCE_BYTES
        self._pid = os.getpid()
        self._relay = _anonymous_file()
        self._relayed = 0
        fcntl.fcntl(self._relay, fcntl.F_SETFL, os.O_APPEND)
        self._events: dict[str, Callable[..., None]] = {
            "open": self._on_open,
            "os.rename": self._on_rename,
            "os.remove": self._on_remove,
            "os.rmdir": self._on_rmdir,
            "os.truncate": self._on_truncate,
            "os.mkdir": self._on_mkdir,
            "os.chdir": self._on_chdir,
            "os.listdir": self._on_list,
            "os.scandir": self._on_list,
        }
        sys.addaudithook(self._hook)

    def ignore(self, run_dir: Path) -> None:
        """Take another directory for the run directory from now on."""
        self._ignored = f"{run_dir.resolve()}{os.sep}"
        self.folders.run_dir = run_dir.resolve()

    def add(self, path: Path) -> None:
        """Name an input by hand (`--input`)."""
        with self.own_work():
            key, real = self._places.locate(str(path))
            self._seen.add(key)
            status = _regular(real)
            if status is None:
                self._lost.append(f"input {self._places.name(Path(key))}: not there when the run began")
            else:
                self._wait(_Opened(key, real, _stamp(status)))

    def take(self) -> tuple[list[Input], list[str]]:
        """Return the inputs opened since the last call, with their digests, and those of which there is none."""
        with self.own_work():
            with self._lock:
                self._take_relayed()
                pending = list(self._pending.values())
            for opened in pending:
                self._digest(opened)
            found, self._found = self._found, []
            lost, self._lost = self._lost, []
        return found, lost

    def take_places(self) -> list[tuple[str, str]]:
        """Return the inputs since the last call whose names do not say where they lie, with their full paths."""
        places, self._elsewhere = self._elsewhere, {}
        return sorted((name, path) for name, path in places.items() if is_unicode(path))

    def take_code(self) -> list[Path]:
        """Return the `.py` files that were opened since the last call, by an import or as text."""
        with self._lock:
            self._take_relayed()
            paths, self._code = list(self._code), {}
        return [Path(path) for path in paths]

    def take_folders(self, last: bool = False) -> list[Folder]:
        """Return the directories that were relied on since the last call; `last` looks at the whole tree for more."""
        with self.own_work():
            if last:
                self.folders.sweep()
            return self.folders.take()

    # Digests -------------------------------------------------------------------------------------------------------

    def _wait(self, opened: _Opened) -> None:
        self._pending[opened.path] = opened
        self._waiting.setdefault(opened.real, set()).add(opened.path)

    def _digest(self, opened: _Opened) -> None:
        """Take the digest of an input, if it is still the file that the script opened."""
        if self._pending.pop(opened.path, None) is None:
            return  # another thread was quicker
        name = opened.name or self._places.name(Path(opened.path))
        try:
            with Path(opened.real).open("rb", buffering=0) as file:
                before = _stamp(os.fstat(file.fileno()))
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                same = before == opened.stamp == _stamp(os.fstat(file.fileno()))
        except OSError:
            self._lost.append(f"input {name}: gone before its digest was taken")
            return
        if same:
            self._found.append(Input(path=name, sha256=digest, bytes=opened.stamp[1]))
            if not name.startswith(("{cwd}/", "{script}/", "{site}/")):
                self._elsewhere.setdefault(name, opened.path)
        else:
            self._lost.append(f"input {name}: changed before its digest was taken")

    def _digest_before_change(self, real: str) -> None:
        """Take the digests of the inputs that lie at `real`, about to be written over, moved or removed."""
        if os.getpid() == self._pid:
            for path in self._waiting.pop(real, ()):
                if path in self._pending:
                    self._digest(self._pending[path])

    # The hook ------------------------------------------------------------------------------------------------------

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        handler = self._events.get(event)
        if handler is None or not self.active or getattr(self._busy, "now", False):
            return
        try:
            with self.own_work():
                handler(*args)
        except Exception:  # an audit hook that raises would change the script
            self.too_many = True

    @contextmanager
    def own_work(self) -> Iterator[None]:
        """Keep what we open and list ourselves from being taken for the script's."""
        before = getattr(self._busy, "now", False)
        self._busy.now = True
        try:
            yield
        finally:
            self._busy.now = before

    def _on_open(self, path: object, mode: object, flags: object) -> None:
        text = _text(path)
        if text is None or text.endswith(_BINARY_CODE):
            return
        writes = _writes(mode, flags)
        lexical = os.path.abspath(text)  # noqa: PTH100
        if not writes and lexical in self._seen:
            return
        key, real = self._places.locate(lexical)
        if any(part in real for part in _METADATA) or (real.startswith(_SYSTEM) and not self._places.is_own(Path(key))):
            return
        if f"{real}{os.sep}".startswith(self._ignored):
            if writes:
                self._meet(real)
        elif writes:
            self._write(key, real, flags if isinstance(flags, int) else 0)
        else:
            self._read(text, lexical, key, real)

    def _read(self, text: str, lexical: str, key: str, real: str) -> None:
        status = _regular(real)
        if status is None or key in self._seen or not self.past.holds(real, status):
            return
        if len(self._seen) >= MOST:
            self.too_many = True
            return
        self._seen |= {lexical, key}
        name = self._places.name_above(text, key) or ""
        if os.getpid() != self._pid:
            fields = (key, real, *map(str, _stamp(status)), name)
            os.write(self._relay, b"\0".join(map(os.fsencode, fields)) + b"\0\n\0")
        else:
            self._sort(_Opened(key, real, _stamp(status), name))

    def _sort(self, opened: _Opened, at_once: bool = False) -> None:
        if self._is_code(opened):
            self._code[opened.path] = None
            return
        self._wait(opened)
        size = opened.stamp[1]
        if at_once or (size <= min(_SMALL, self._bytes_left) and self._files_left > 0):
            self._files_left -= 1
            self._bytes_left -= size
            self._digest(opened)

    def _is_code(self, opened: _Opened) -> bool:
        return opened.path.endswith(".py") and not opened.name.startswith("{parent")  # that is no tree of ours

    def _write(self, key: str, real: str, flags: int) -> None:
        self._digest_before_change(real)
        keeps = flags & os.O_ACCMODE == os.O_RDWR and not flags & (os.O_TRUNC | os.O_EXCL)
        self._take_old(key, real, if_any=keeps)
        self.past.written.add(real)
        self.folders.used(str(Path(key).parent))

    def _take_old(self, key: str, real: str, if_any: bool = True) -> None:
        """Take a file that is about to change and that the script may read, or has moved, as an input."""
        status = _regular(real) if if_any and key not in self._seen else None
        if status is not None and status.st_size and self.past.holds(real, status) and os.getpid() == self._pid:
            self._seen.add(key)
            self._sort(_Opened(key, real, _stamp(status)), at_once=True)

    def _on_rename(self, source: object, target: object, *descriptors: object) -> None:
        old, new = self._entry(source, *descriptors[:1]), self._entry(target, *descriptors[1:])
        if old is None or new is None or self._is_ignored(new):
            return
        self._digest_before_change(old)
        self._digest_before_change(new)
        if not Path(old).is_dir():
            self._take_old(old, old)
        self.past.written |= {old, new}
        for path in (old, new):
            self.folders.used(str(Path(path).parent))

    def _on_remove(self, path: object, descriptor: object = -1) -> None:
        full = self._entry(path, descriptor)
        if full is None or self._is_ignored(full):
            return
        self._digest_before_change(full)
        status = _regular(full)
        if status is not None and full not in self._seen and self.past.holds(full, status):
            self.folders.removed(full)
        self.past.written.add(full)

    def _on_truncate(self, path: object, length: object) -> None:
        full = self._entry(path)
        if full is not None:
            self._write(full, full, os.O_RDWR)

    def _on_mkdir(self, path: object, mode: object, descriptor: object = -1) -> None:
        full = self._entry(path, descriptor)
        if full is not None and f"{full}{os.sep}".startswith(self._ignored):
            self._meet(full)
        if full is not None:
            self.folders.made(full)

    def _on_rmdir(self, path: object, descriptor: object = -1) -> None:
        full = self._entry(path, descriptor)
        if full is not None:
            self.folders.used(full)

    def _on_chdir(self, path: object) -> None:
        text = _text(path)
        if text is not None:
            self.folders.used(self._places.locate(text)[0])

    def _on_list(self, path: object = None) -> None:
        text = "." if path is None else _text(path)
        if text is not None and not _is_listed_by_imports() and os.getpid() == self._pid:
            self.folders.listed(self._places.locate(text)[0])

    def _entry(self, path: object, descriptor: object = -1) -> str | None:
        """Return the place of a directory's entry, which may be a link itself; `None` where it cannot be told."""
        text = _text(path)
        if text is None or (isinstance(descriptor, int) and descriptor >= 0):
            return None
        folder, name = os.path.split(os.path.abspath(text))  # noqa: PTH100
        return os.path.join(self._places.locate(folder)[0], name)  # noqa: PTH118

    def _is_ignored(self, full: str) -> bool:
        return f"{full}{os.sep}".startswith(self._ignored)

    def _meet(self, full: str) -> None:
        """The script is about to write where the record lies."""
        if os.getpid() == self._pid and threading.current_thread().name != "trainmem-audit-writer":
            self._on_run_directory(Path(full))

    # Workers -------------------------------------------------------------------------------------------------------

    def _take_relayed(self) -> None:
        """Sort what forked children have reported."""
        end = b"\0\n\0"
        while piece := os.pread(self._relay, _PIECE, self._relayed):
            whole = piece[: piece.rfind(end) + len(end)] if end in piece else b""
            if not whole:
                return
            self._relayed += len(whole)
            for report in whole.split(end)[:-1]:
                path, real, *stamp, name = map(os.fsdecode, report.split(b"\0"))
                if path not in self._seen:
                    self._seen.add(path)
                    opened = _Opened(path, real, (int(stamp[0]), int(stamp[1]), int(stamp[2])), name)
                    if self._is_code(opened):
                        self._code[path] = None
                    else:
                        self._wait(opened)


def _is_listed_by_imports() -> bool:
    """Tell whether it is the import system that lists a directory: no frame of anybody's is between it and the hook."""
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back  # type: ignore[assignment]
    name = "" if frame is None else frame.f_code.co_filename
    return name.startswith("<frozen importlib") or f"{os.sep}importlib{os.sep}" in name


def _text(path: object) -> str | None:
    path = os.fsdecode(path) if isinstance(path, bytes | os.PathLike) else path
    return path if isinstance(path, str) else None


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino


def _regular(path: str) -> os.stat_result | None:
    with suppress(OSError):
        status = os.stat(path)  # noqa: PTH116
        if stat.S_ISREG(status.st_mode):
            return status
    return None


def _writes(mode: object, flags: object) -> bool:
    if isinstance(mode, str) and any(letter in mode for letter in "wax+"):
        return True
    return isinstance(flags, int) and bool(flags & _WRITING)


def _anonymous_file() -> int:
    with tempfile.TemporaryFile(buffering=0) as file:
        return above_standard(os.dup(file.fileno()))
