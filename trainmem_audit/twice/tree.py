"""A fresh copy of the working directory for every run, always at the same place, so that no run meets another's files.

What lies around the working directory is linked, so that `../data` leads where it led. Version control and virtual
environments are linked too; caches and recorded runs are left out. Large files, and directories of very many files,
are copied once and linked into each run's copy; what a run changed in those is copied anew. What the user names as
read-only is linked where it is. Nothing is written to the user's directory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainmem_audit.errors import UsageError
from trainmem_audit.steplog import STEP_FILE, TENSOR_FILE
from trainmem_audit.text import size_text

__all__ = ["Trees"]

_LINKED = frozenset({".git", ".hg", ".svn", "node_modules"})
_LEFT_OUT = frozenset(
    {"__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".tox", ".nox", ".ipynb_checkpoints"}
)
_LARGE = 16 * 2**20
_MANY = 2000
_MOST_BYTES = 8 * 2**30


@dataclass
class _Plan:
    """What to do with each entry of the working directory, by its path in it."""

    directories: list[Path] = field(default_factory=list)
    copied: list[Path] = field(default_factory=list)
    shared: list[Path] = field(default_factory=list)
    linked: list[Path] = field(default_factory=list)
    symlinks: list[Path] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)


class Trees:
    """Makes the copies below `root`.

    Parameters
    ----------
    links:
        Paths in the working directory that the script only reads.
    left_out:
        Directories in it that are no part of any copy.

    Raises
    ------
    UsageError
        If the working directory is too large to copy.
    """

    def __init__(self, root: Path, cwd: Path, links: tuple[Path, ...] = (), left_out: tuple[Path, ...] = ()) -> None:
        self.tree = root / "tree" / cwd.relative_to(cwd.anchor)
        self._top = root / "tree"
        self._store = root / "store"
        self._root = root
        self._cwd = cwd
        self._links = {_inside(link, cwd) for link in links}
        self._left_out = {root, *left_out}
        self._plan = _Plan()
        self._survey(Path())
        self._refuse_too_large()
        self._marks: dict[Path, frozenset[tuple[str, int, int]]] = {}

    @property
    def notes(self) -> list[str]:
        """What of the working directory is not copied for each run."""
        named = ", ".join(str(path) for path in self._plan.shared[:5])
        more = f" and {len(self._plan.shared) - 5} more" if len(self._plan.shared) > 5 else ""
        found = [f"large, so the runs share one copy: {named}{more}"] if self._plan.shared else []
        leading_out = [path for path in self._plan.symlinks if not _within(self._cwd / path, self._cwd)]
        if leading_out:
            found.append(f"links out of the working directory, followed as they are: {_names(leading_out)}")
        return found

    def fresh(self) -> Path:
        """Make the copy anew and return it."""
        shutil.rmtree(self._top, ignore_errors=True)
        self._link_surroundings()
        plan = self._plan
        for path in plan.directories:
            (self.tree / path).mkdir(parents=True, exist_ok=True)
        for path in plan.copied:
            _copy(self._cwd / path, self.tree / path)
        for path in plan.linked:
            (self.tree / path).symlink_to(self._cwd / path)
        for path in plan.shared:
            (self.tree / path).symlink_to(self._shared(path))
        for path in plan.symlinks:
            self._relink(path)
        for path in reversed(plan.directories):
            status = (self._cwd / path).stat()
            os.utime(self.tree / path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return self.tree

    def argument(self, text: str) -> str:
        """Return an argument of the script with a path in the working directory led into the copy."""
        prefix, equals, value = text.partition("=") if text.startswith("-") else ("", "", text)
        own = str(self._cwd)
        if value == own or value.startswith(own + os.sep):
            return f"{prefix}{equals}{self.tree}{value[len(own) :]}"
        return text

    # The survey ----------------------------------------------------------------------------------------------------

    def _survey(self, where: Path) -> None:
        self._plan.directories.append(where)
        entries = sorted(os.scandir(self._cwd / where), key=lambda entry: entry.name)
        for entry in entries:
            path = where / entry.name
            if path in self._links:
                self._plan.linked.append(path)
            elif entry.is_symlink():
                self._plan.symlinks.append(path)
            elif entry.is_dir():
                self._survey_directory(path, entry.name)
            elif not entry.is_file():
                continue  # a socket, a pipe
            elif not os.access(self._cwd / path, os.R_OK):
                self._plan.linked.append(path)
            else:
                self._take(path, entry.stat().st_size, large=entry.stat().st_size > _LARGE)

    def _survey_directory(self, path: Path, name: str) -> None:
        full = self._cwd / path
        if full in self._left_out or name in _LEFT_OUT or _is_run(full):
            return
        if name in _LINKED or (full / "pyvenv.cfg").is_file() or not os.access(full, os.R_OK | os.X_OK):
            self._plan.linked.append(path)
        elif _has_many_files(full) and not self._root.is_relative_to(full):
            self._take(path, sum(size for _, size, _ in _contents(full)), large=True)
        else:
            self._survey(path)

    def _take(self, path: Path, size: int, *, large: bool) -> None:
        (self._plan.shared if large else self._plan.copied).append(path)
        top = path.parts[0]
        self._plan.sizes[top] = self._plan.sizes.get(top, 0) + size

    def _refuse_too_large(self) -> None:
        total = sum(self._plan.sizes.values())
        limit = min(_MOST_BYTES, shutil.disk_usage(self._root).free // 2)
        if total <= limit:
            return
        largest = max(self._plan.sizes, key=lambda name: self._plan.sizes[name])
        raise UsageError(
            "the working directory is too large to copy",
            where=str(self._cwd),
            expected=f"at most {size_text(limit)}",
            got=f"{size_text(total)}, of which {largest} has {size_text(self._plan.sizes[largest])}",
            remedy=f"--link {largest} if the script only reads it, or TMPDIR on a larger disk",
        )

    # The copy ------------------------------------------------------------------------------------------------------

    def _link_surroundings(self) -> None:
        """Link what lies beside the working directory and beside each directory above it."""
        here, there = Path(self._cwd.anchor), self._top
        there.mkdir(parents=True)
        for part in self._cwd.relative_to(here).parts:
            for name in _listing(here):
                if name != part:
                    (there / name).symlink_to(here / name)
            here, there = here / part, there / part
            there.mkdir()

    def _shared(self, path: Path) -> Path:
        """Return the one copy of a large file or directory, made anew if a run has changed it."""
        target = self._store / path
        if path not in self._marks or _marks(target) != self._marks[path]:
            if target.is_dir():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            source = self._cwd / path
            if source.is_dir():
                shutil.copytree(source, target, symlinks=True)
            else:
                _copy(source, target)
            self._marks[path] = _marks(target)
        return target

    def _relink(self, path: Path) -> None:
        source = self._cwd / path
        goal = source.readlink()
        if goal.is_absolute() and goal.is_relative_to(self._cwd):
            goal = self.tree / goal.relative_to(self._cwd)
        (self.tree / path).symlink_to(goal)


def _inside(link: Path, cwd: Path) -> Path:
    full = link if link.is_absolute() else cwd / link
    if not full.exists() or not full.is_relative_to(cwd) or full == cwd:
        raise UsageError("no such path in the working directory", where=f"--link {link}")
    return full.relative_to(cwd)


def _names(paths: list[Path]) -> str:
    more = f" and {len(paths) - 5} more" if len(paths) > 5 else ""
    return ", ".join(str(path) for path in paths[:5]) + more


def _within(link: Path, cwd: Path) -> bool:
    return link.resolve().is_relative_to(cwd)


def _is_run(directory: Path) -> bool:
    return (directory / STEP_FILE).is_file() and (directory / TENSOR_FILE).is_file()


def _listing(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208 (names)
    except OSError:
        return []  # a directory that may be passed through and not read


def _has_many_files(directory: Path) -> bool:
    """Tell whether a directory directly holds very many files and no code."""
    names = _listing(directory)
    return len(names) > _MANY and not any(name.endswith(".py") for name in names)


def _contents(path: Path) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and time of change of a file, or of everything below a directory."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                status = os.lstat(os.path.join(folder, name))  # noqa: PTH118 (many)
                yield os.path.join(folder, name), status.st_size, status.st_mtime_ns  # noqa: PTH118
    elif path.exists():
        status = path.stat()
        yield str(path), status.st_size, status.st_mtime_ns


def _marks(path: Path) -> frozenset[tuple[str, int, int]]:
    return frozenset(_contents(path))


def _copy(source: Path, target: Path) -> None:
    """Copy content, mode and times."""
    try:
        shutil.copy2(source, target)
    except OSError as error:
        raise UsageError(
            "a file of the working directory cannot be copied", where=str(source), got=str(error)
        ) from None
