"""The directories of the author's tree that were there before the run and that the script came to rely on.

It writes into them, enters, lists or removes them, so a replay has to make them; and where it listed them, their names.
Of files that were never opened only names are kept, within bounds. Not here: what files hold (`opened`).
"""

from __future__ import annotations

import os
import stat
import time
from contextlib import suppress
from pathlib import Path

from trainmem_audit.documents.steplog import MOST_FOLDERS, MOST_NAMES, Folder
from trainmem_audit.errors import FormatError
from trainmem_audit.privacy import find_identity, find_secrets, known_identity
from trainmem_audit.recording.places import Places
from trainmem_audit.rundir import check_name

__all__ = ["Folders", "Past"]

_MOST_NAMES_IN_ALL = 10_000
_SWEPT = 20_000
"""How many entries the last look at the tree takes in."""


class Past:
    """Tells what was there before the run: by what was seen written, and by the file's own times."""

    def __init__(self) -> None:
        self.written: set[str] = set()
        self._started = time.time_ns()

    def holds(self, full: str, status: os.stat_result) -> bool:
        """Tell whether a file was there as it is now.

        Libraries written in C are not seen when they write, so the file's own times are asked: the change time first,
        which nobody sets. A time in the future comes from another clock, and is not that of a write just now.
        """
        if full in self.written:
            return False
        early = min(status.st_ctime_ns, status.st_mtime_ns) < self._started
        return early or status.st_mtime_ns > time.time_ns()


class Folders:
    """Gathers directories; paths are absolute, with links resolved up to the last part."""

    def __init__(self, places: Places, past: Past) -> None:
        self._places = places
        self._past = past
        self._made: set[str] = set()
        self._names: dict[str, set[str]] = {}
        self._partial: set[str] = set()
        self._listed: set[str] = set()
        self._new: set[str] = set()
        self._names_left = _MOST_NAMES_IN_ALL
        self.run_dir = Path()

    def made(self, path: str) -> None:
        """Note a directory that the script is about to make; one that is there already has been relied on."""
        if Path(path).is_dir():
            self.used(path)
        else:
            self._made.add(path)
            self.used(str(Path(path).parent))

    def used(self, path: str) -> None:
        """Note that something is done in a directory; of one that the run made, its parent counts."""
        folder = Path(path)
        while str(folder) in self._made:
            folder = folder.parent
        if folder.is_dir():
            self._keep(str(folder))

    def listed(self, path: str) -> None:
        """Note the names that a directory held before the run."""
        name = None if path in self._made or path in self._listed else self._keep(path)
        if name is None:
            return
        self._listed.add(path)
        with suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                if not self._was_there(entry):
                    continue
                if not self._add(name, entry.name + ("/" if entry.is_dir() else "")):
                    break

    def removed(self, path: str) -> None:
        """Note a file that was there before the run and is about to be removed."""
        name = self._keep(str(Path(path).parent))
        if name is not None:
            self._add(name, Path(path).name)

    def take(self) -> list[Folder]:
        """Return the directories that are new or have more names than before."""
        new, self._new = sorted(self._new), set()
        return [
            Folder(path=name, names=tuple(sorted(self._names[name])), partial=True if name in self._partial else None)
            for name in new
        ]

    def sweep(self) -> None:
        """Look at the tree once more, for directories that libraries written in C wrote into."""
        left = _SWEPT
        todo = list(self._places.roots())
        while todo and left > 0:
            folder = todo.pop()
            fresh = False
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    left -= 1
                    if entry.is_dir(follow_symlinks=False):
                        if not entry.name.startswith((".", "__")) and not entry.name.endswith("-packages"):
                            todo.append(Path(entry.path))
                    elif not fresh and entry.is_file():
                        fresh = not self._past.holds(entry.path, entry.stat())
            if fresh:
                self.used(str(folder))

    def _keep(self, path: str) -> str | None:
        """Return the name of a directory of the tree, now known; `None` for others, and beyond the bound."""
        name = self._places.folder_name(Path(path))
        if Path(path).is_relative_to(self.run_dir) and self.run_dir.is_absolute():
            return None
        if name is None or (name not in self._names and len(self._names) >= MOST_FOLDERS):
            return None
        if name not in self._names:
            self._names[name] = set()
            self._new.add(name)
        return name

    def _add(self, folder: str, name: str) -> bool:
        """Add a name to a directory's; return whether there is room for more."""
        names = self._names[folder]
        self._new.add(folder)
        if len(names) >= MOST_NAMES or self._names_left <= 0:
            self._partial.add(folder)
            return False
        if _is_public(name):
            self._names_left -= name not in names
            names.add(name)
        else:
            self._partial.add(folder)
        return True

    def _was_there(self, entry: os.DirEntry[str]) -> bool:
        with suppress(OSError):
            status = entry.stat()
            if stat.S_ISDIR(status.st_mode):
                return entry.path not in self._made
            return self._past.holds(entry.path, status)
        return False


def _is_public(name: str) -> bool:
    """Tell whether a name may stand in a record, and can be made elsewhere."""
    try:
        check_name(name.rstrip("/"), "name")
    except FormatError:
        return False
    return not find_identity(name, known_identity()) and not find_secrets(name)
