"""The code that ran: the entry point and every imported module under the working directory or beside the entry.

Copied into `source/` (unless only digests are wanted), because a replay starts from these files.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from trainmem_audit.canonical import line_marks
from trainmem_audit.documents.steplog import SourceFile
from trainmem_audit.recording.places import Places
from trainmem_audit.rundir import write_atomic

__all__ = ["ELSEWHERE", "CodeFiles"]

ELSEWHERE = "{elsewhere}/"
"""How a replay's own log names modules from outside of the tree; no record has such names."""
_SITE = frozenset({"sitecustomize", "usercustomize"})


class CodeFiles:
    """Finds and copies code; each file once.

    Parameters
    ----------
    list_elsewhere:
        Whether to list modules from elsewhere too (as a replay does, to tell what ran).
    """

    def __init__(self, run_dir: Path, places: Places, copy: bool, list_elsewhere: bool = False) -> None:
        self.elsewhere: set[str] = set()
        self._list_elsewhere = list_elsewhere
        self._listed: set[Path] = set()
        self._imported: set[tuple[str, str]] = set()
        self._modules = 0
        self.run_dir = run_dir.resolve()
        self._places = places
        self._copy = copy
        self._seen: set[Path] = set()

    def entry(self, path: Path) -> list[SourceFile]:
        """Take the entry point."""
        return self._take(path, "entry")

    def imported(self) -> list[SourceFile]:
        """Take every module that was imported since the last call and lies in the author's tree."""
        found: list[SourceFile] = []
        for name, module in list(sys.modules.items()):
            file = vars(module).get("__file__") if isinstance(module, ModuleType) else None
            if isinstance(file, str) and file.endswith(".py") and (name, file) not in self._imported:
                self._imported.add((name, file))
                path = Path(self._places.locate(file)[0])
                if name in _SITE or self._places.is_own(path) or self._places.is_library(path):
                    found += self._take(path, "imported")
                else:
                    self.elsewhere.add(name.partition(".")[0])
                    found += self._take_elsewhere(name, path) if self._list_elsewhere else []
        return found

    def newly_imported(self) -> list[SourceFile]:
        """Do as `imported`, unless the number of modules is what it was."""
        before, self._modules = self._modules, len(sys.modules)
        return self.imported() if self._modules != before else []

    def read(self, paths: Iterable[Path]) -> list[SourceFile]:
        """Take code that was opened by name: run as text, or imported in a worker."""
        return [file for path in paths for file in self._take(path, "read")]

    def _take_elsewhere(self, module: str, path: Path) -> list[SourceFile]:
        if path in self._listed:
            return []
        self._listed.add(path)
        name = module.replace(".", "/") + ("/__init__.py" if path.name == "__init__.py" else ".py")
        with suppress(OSError):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            return [SourceFile.model_validate({"path": ELSEWHERE + name, "role": "imported", "sha256": digest})]
        return []

    def _take(self, path: Path, role: str) -> list[SourceFile]:
        path = Path(self._places.locate(str(path))[0])
        if path in self._seen:
            return []
        self._seen.add(path)
        name = None if path.is_relative_to(self.run_dir) else self._places.code_name(path)
        if name is None:
            return []
        try:
            data = path.read_bytes()
        except OSError:
            return []
        digest = hashlib.sha256(data).hexdigest()
        members = {"path": name, "role": role, "sha256": digest}
        if self._copy:
            members["lines"] = line_marks(data)
            members["file"] = "source/" + source_name(name)
            target = self.run_dir / members["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, data)
        return [SourceFile.model_validate(members)]


def source_name(path: str) -> str:
    """Return where a `{cwd}/…` or `{script}/…` path lies below `source/`."""
    label, rest = path.split("/", 1)
    return rest if label == "{cwd}" else f"_script/{rest}"
