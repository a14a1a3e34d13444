"""Runs training scripts in a directory of their own: bare, recorded, and replayed from a pack."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.tools import SCRIPTS, audit, environment, verify
from trainmem_audit.documents.findings import Replay
from trainmem_audit.documents.manifest import Statement
from trainmem_audit.envelope import parse_envelope
from trainmem_audit.replaying import ReplayOptions, replay
from trainmem_audit.rundir import RunReader, open_run

__all__ = ["Ended", "bare", "lay_out", "pack", "recorded", "replayed", "replayed_here", "statement_of"]

_STAMP = re.compile(rb"^[IWE]\d{4} \d\d:\d\d:\d\d\.\d+ \d+ (?=torch/)|(?<=\] )\[\d+/\d+\] ", re.MULTILINE)
"""What torch puts before its log lines: time and process, and the number of a compilation."""


class Ended:
    """What a run left behind: exit code, both outputs and every file, with its own directory spelt `HERE`."""

    def __init__(self, done: subprocess.CompletedProcess[bytes], cwd: Path) -> None:
        self.code = done.returncode
        self.stdout = self._plain(done.stdout, cwd)
        errors = _STAMP.sub(b"", self._plain(done.stderr, cwd)).splitlines(keepends=True)
        self.stderr = b"".join(line for line in errors if not line.startswith(b"trainmem-audit: "))
        paths = (path for path in cwd.rglob("*") if not {"run", "__pycache__"} & {*path.relative_to(cwd).parts})
        self.files = {str(path.relative_to(cwd)): path.read_bytes() for path in paths if path.is_file()}

    @staticmethod
    def _plain(data: bytes, cwd: Path) -> bytes:
        return data.replace(bytes(cwd), b"HERE")

    def differs_from(self, other: Ended) -> list[str]:
        """Name what is not the same."""
        names = [name for name in ("code", "stdout", "stderr") if getattr(self, name) != getattr(other, name)]
        both = self.files.keys() | other.files.keys()
        return names + sorted(name for name in both if self.files.get(name) != other.files.get(name))


def lay_out(folder: Path, *names: str, text: Mapping[str, str] | None = None) -> Path:
    """Make `folder` with the named test scripts (and what they import), and files with the given text."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("ending.py", *names):
        shutil.copyfile(SCRIPTS / name, folder / name)
    for name, content in (text or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder


def bare(
    cwd: Path, *command: str, home: Path, env: Mapping[str, str] | None = None, given: bytes = b""
) -> subprocess.CompletedProcess[bytes]:
    """Run `python COMMAND` without us."""
    return _run([sys.executable, *command], cwd, home, env, given)


def recorded(
    cwd: Path,
    *command: str,
    home: Path,
    env: Mapping[str, str] | None = None,
    given: bytes = b"",
    options: Sequence[str] = (),
) -> subprocess.CompletedProcess[bytes]:
    """Run `trainmem-audit record COMMAND`; the run directory is `cwd/run`."""
    start = [sys.executable, "-m", "trainmem_audit", "record", "-q", *options]
    return _run([*start, *command], cwd, home, env, given)


def _run(
    command: list[str], cwd: Path, home: Path, env: Mapping[str, str] | None, given: bytes
) -> subprocess.CompletedProcess[bytes]:
    full = environment(home, **(env or {}))
    return subprocess.run(command, cwd=cwd, env=full, input=given, capture_output=True, timeout=300, check=False)


def pack(run_dir: Path, target: Path) -> Path:
    """Pack a run into `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    done = audit("pack", run_dir, "-o", target, cwd=run_dir.parent, home=target.parent / "nobody")
    assert done.returncode == 0, done.stderr
    return target


def replayed(path: Path, *options: str, home: Path, mode: str = "full") -> tuple[int, dict[str, Any]]:
    """Replay through the command line; return the exit code and the verdict on the replay."""
    found = verify(path, "--replay", mode, "--yes", "--allow-untrusted", *options, home=home)
    assert found.document, found.stderr
    return found.code, found.document["replay"]


def replayed_here(run_dir: Path, **options: Any) -> Replay:
    """Replay a run directory or a pack through the library, without measuring how large differences are."""
    with open_run(run_dir) as reader:
        agreed: dict[str, Any] = {"consent": lambda _: True, "secret": lambda _: "", "sizes": False}
        return replay(reader, _statement(reader), ReplayOptions(**(agreed | options)))


def statement_of(run_dir: Path) -> Statement:
    """Return the statement of a run directory or a pack."""
    with open_run(run_dir) as reader:
        return _statement(reader)


def _statement(reader: RunReader) -> Statement:
    envelope = parse_envelope(reader.read("run.json", 2**26), "run.json")
    statement: Statement = Statement.parse(envelope.payload, "statement")
    return statement
