"""How a path may be named in a record: `{cwd}/…`, `{script}/…`, `{site}/…`, `ARGUMENT/…`, else its base name.

The rest of a path would tell who and where (DESIGN § 2.5), and a replay maps the names to its scratch copy.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from trainmem_audit.privacy import find_identity, known_identity

__all__ = ["MOST_LEVELS", "Places", "argument_directories"]

MOST_LEVELS = 3
"""How far above the working directory a file still has a name of its own."""
_PACKAGE = Path(__file__).resolve().parents[1]


class Places:
    """The directories of one run.

    Parameters
    ----------
    cwd, entry_directory:
        Where the run was started, and where its script lies.
    named:
        Directories elsewhere that an argument names, with what the record calls them.
    """

    def __init__(self, cwd: Path, entry_directory: Path, named: Iterable[tuple[str, Path]] = ()) -> None:
        self._cwd = cwd.resolve()
        entry_directory = entry_directory.resolve()
        self._own = [("{cwd}", self._cwd)]
        if not entry_directory.is_relative_to(self._cwd):
            self._own.append(("{script}", entry_directory))
        self._prefixes = tuple(f"{str(root).rstrip(os.sep)}{os.sep}" for _, root in self._own)
        self._named = [(label, path.resolve()) for label, path in named]
        libraries = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib")}
        self._foreign = [path for path in libraries if not self._cwd.is_relative_to(path)]

    def search_entries(self, entries: Iterable[str]) -> list[str]:
        """Return the names of those directories of a module search path that lie in the author's tree."""
        paths = [Path(entry).resolve() for entry in entries if entry]
        own = [path for path in paths if path.is_dir() and self.is_own(path) and not self.is_library(path)]
        names = [label if path == root else _below([(label, root)], path) for path in own for label, root in self._own]
        return list(dict.fromkeys(name for name in names if name))

    def is_own(self, path: Path) -> bool:
        """Tell whether a resolved path lies in the working directory or beside the script."""
        return any(path.is_relative_to(root) for _, root in self._own)

    def is_library(self, path: Path) -> bool:
        """Tell whether a resolved path belongs to Python, to an installed package or to this package."""
        installed = any(part.endswith("-packages") for part in path.parts)
        return installed or path.is_relative_to(_PACKAGE) or any(path.is_relative_to(root) for root in self._foreign)

    def roots(self) -> list[Path]:
        """Return the working directory, and where the script lies if that is elsewhere."""
        return [root for _, root in self._own]

    def locate(self, path: str) -> tuple[str, str]:
        """Return the path by which a file is known and the file that it leads to, both absolute.

        A path through a linked directory of the author's tree stays as it is: a replay is asked for the same path.
        """
        lexical = os.path.abspath(path)  # noqa: PTH100
        real = os.path.realpath(path)
        if lexical == real or not lexical.startswith(self._prefixes) or os.path.realpath(lexical) != real:
            return real, real
        if real.startswith(self._prefixes[1:]):  # the script itself was started through the link
            return real, real
        return lexical, real

    def folder_name(self, path: Path) -> str | None:
        """Return the name of a directory of the author's tree, `{cwd}` itself included; `None` for any other."""
        root = next((label for label, root in self._own if path == root), None)
        return root or (None if self.is_library(path) else _below(self._own, path))

    def code_name(self, path: Path) -> str | None:
        """Return the name of the author's code at a resolved path, or `None` if it is not the author's."""
        return None if self.is_library(path) else _below(self._own, path)

    def name(self, path: Path) -> str:
        """Return the name of a file at a resolved path."""
        site = [("{site}", Path(entry)) for entry in sys.path if entry.endswith("-packages")]
        return _below(site, path) or _below(self._own, path) or _below(self._named, path) or path.name

    def name_above(self, text: str, path: str) -> str | None:
        """Return the name of a file that a relative path reaches by climbing out of the working directory.

        It is `{parent}/…`, `{parent2}/…` or `{parent3}/…`: the script says no more than that either.
        """
        if os.path.isabs(text) or path.startswith(self._prefixes) or self.is_library(Path(path)):  # noqa: PTH117
            return None
        steps = Path(os.path.relpath(path, self._cwd)).parts
        levels = steps.count("..")
        rest = "/".join(steps[levels:])
        if not 1 <= levels <= MOST_LEVELS or not rest or find_identity(rest, known_identity()):
            return None
        return f"{{parent{levels if levels > 1 else ''}}}/{rest}"

    def name_text(self, text: str) -> str:
        """Return the name of a text that is an absolute path below the run's directories; any other as it is."""
        if not text.startswith(os.sep):
            return text
        lexical = Path(os.path.normpath(text))
        return _below([*self._own, *self._named], lexical) or next(
            (label for label, root in self._own if lexical == root), text
        )


def _below(roots: Sequence[tuple[str, Path]], path: Path) -> str | None:
    for label, root in roots:
        if path.is_relative_to(root) and path != root:
            return f"{label}/{path.relative_to(root).as_posix()}"
    return None


def argument_directories(arguments: Sequence[str], recorded: Sequence[dict[str, Any]]) -> list[tuple[str, Path]]:
    """Return the directories outside of the working directory that arguments name, with their recorded names.

    Parameters
    ----------
    arguments, recorded:
        The arguments as given, and as the record has them (`documents.steplog.Argument`).
    """
    found: list[tuple[str, Path]] = []
    for text, argument in zip(arguments, recorded, strict=False):
        label = argument.get("path", "")
        path = Path(text.removeprefix(argument.get("prefix", ""))).expanduser()
        if label and not label.startswith("{") and path.is_dir():
            found.append((label.rstrip("/"), path))
    return found
