"""Runs the real command line as a person would, and makes damaged copies of a recorded run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from trainmem_audit.documents.steplog import Line
from trainmem_audit.rundir import DirectoryReader, RunReader
from trainmem_audit.trust import Trust
from trainmem_audit.verify import Examination, Policy, examine

__all__ = ["SCRIPTS", "Run", "Verified", "audit", "environment", "examined", "record", "verify"]

SCRIPTS = Path(__file__).parent / "scripts"
_OWN = ("TRAINMEM_AUDIT_", "OMP_", "MKL_", "PYTHONHASHSEED")


def environment(home: Path, **more: str) -> dict[str, str]:
    """Return this process's environment with keys and trust below `home`, and none of our variables but `more`."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith(_OWN)}
    return kept | {"TRAINMEM_AUDIT_HOME": str(home), "NO_COLOR": "1"} | more


def audit(
    *arguments: str | Path, cwd: Path, home: Path, env: dict[str, str] | None = None, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run `trainmem-audit` with `arguments` in `cwd`."""
    return subprocess.run(
        [sys.executable, "-m", "trainmem_audit", *map(str, arguments)],
        cwd=cwd,
        env=environment(home, **(env or {})),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def record(
    script: Path,
    cwd: Path,
    *arguments: str,
    home: Path,
    options: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> Path:
    """Copy `script` to `cwd/train.py`, record it with `arguments`, and return the run directory `cwd/run`."""
    shutil.copyfile(script, cwd / "train.py")
    done = audit("record", "-d", "run", *options, "train.py", *arguments, cwd=cwd, home=home, env=env)
    assert done.returncode == 0, done.stderr
    return cwd / "run"


class Verified(NamedTuple):
    """What `verify` said."""

    code: int
    document: dict[str, Any]
    stdout: str
    stderr: str

    @property
    def findings(self) -> list[str]:
        """Every finding as `CODE where`."""
        return [f"{finding['code']} {finding['where']}" for finding in self.document["findings"]]


def verify(path: Path, *options: str, home: Path) -> Verified:
    """Verify through the command line; `document` is empty when nothing was printed on stdout."""
    done = audit("verify", path, "--format", "json", *options, cwd=path.parent, home=home)
    document = json.loads(done.stdout) if done.stdout.strip() else {}
    return Verified(done.returncode, document, done.stdout, done.stderr)


def examined(
    reader: RunReader,
    *,
    allow_untrusted: bool = True,
    trust: Trust | None = None,
    watch: Callable[[Line], None] = lambda _: None,
) -> Examination:
    """Verify in this process, as a machine that has no keys of its own."""
    return examine(reader, Policy(trust=trust or Trust(()), allow_untrusted=allow_untrusted), watch=watch)


@dataclass(frozen=True)
class Run:
    """A copy of a recorded run that a test may damage."""

    path: Path
    home: Path

    def names(self) -> list[str]:
        """Return the names of all files."""
        return sorted(path.relative_to(self.path).as_posix() for path in self.path.rglob("*") if path.is_file())

    def read(self, name: str) -> bytes:
        """Return a file."""
        return (self.path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """Replace a file."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    def lines(self) -> list[bytes]:
        """Return the lines of the step log, each with its LF."""
        return self.read("steps.jsonl").splitlines(keepends=True)

    def examine(self) -> Examination:
        """Verify in this process."""
        with DirectoryReader(self.path) as reader:
            return examined(reader)

    def findings(self) -> list[str]:
        """Verify in this process and return every finding as `CODE where`."""
        return [f"{finding.code} {finding.where}" for finding in self.examine().findings]

    def damaged(self, name: str, versions: Iterator[bytes] | list[bytes]) -> Iterator[tuple[bytes, Examination]]:
        """Yield each version of a file with what verification says of the run that holds it; the file is put back."""
        original = self.read(name)
        try:
            for data in versions:
                self.write(name, data)
                yield data, self.examine()
        finally:
            self.write(name, original)
