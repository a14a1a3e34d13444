"""The code that ran: the entry point and every imported module under the working directory or beside the entry.

Copied into `source/` (unless only digests are wanted), because a replay starts from these files.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from trainmem_audit.canonical import line_marks
from trainmem_audit.documents.steplog import SourceFile
from trainmem_audit.rundir import write_atomic

__all__ = ["CodeFiles"]


class CodeFiles:
    """Finds and copies code; each file once."""

    def __init__(self, run_dir: Path, cwd: Path, entry_directory: Path, copy: bool) -> None:
        self._run_dir = run_dir
        self._roots = {"{cwd}": cwd, "{script}": entry_directory}
        self._copy = copy
        self._seen: set[Path] = set()

    def entry(self, path: Path) -> list[SourceFile]:
        """Take the entry point."""
        return self._take(path, "entry")

    def imported(self) -> list[SourceFile]:
        """Take every module that was imported since the last call and lies in the author's tree."""
        found: list[SourceFile] = []
        for module in list(sys.modules.values()):
            file = getattr(module, "__file__", None)
            if isinstance(file, str) and file.endswith(".py"):
                found += self._take(Path(file), "imported")
        return found

    def _take(self, path: Path, role: str) -> list[SourceFile]:
        if path in self._seen:
            return []
        self._seen.add(path)
        name = self._name(path.resolve())
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
            target = self._run_dir / members["file"]
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, data)
        return [SourceFile.model_validate(members)]

    def _name(self, path: Path) -> str | None:
        if any(part.endswith("-packages") for part in path.parts) or path.is_relative_to(sys.prefix):
            return None
        if path.is_relative_to(self._run_dir) or path.is_relative_to(Path(__file__).parents[1]):
            return None
        for label, root in self._roots.items():
            if path.is_relative_to(root):
                return f"{label}/{path.relative_to(root).as_posix()}"
        return None


def source_name(path: str) -> str:
    """Return where a `{cwd}/…` or `{script}/…` path lies below `source/`."""
    label, rest = path.split("/", 1)
    return rest if label == "{cwd}" else f"_script/{rest}"
