"""Finds the recorded run that this one goes on from: whose log records a checkpoint that this run has read.

The digest of the file decides, nothing else: what a directory is called, or when it was made, is no evidence. The logs
of unsigned (killed) runs count too. The search is bounded. Not here: whether such a record is intact (`verify`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from trainmem_audit.canonical import split_line
from trainmem_audit.documents.steplog import Begin, Inventory, parse_line
from trainmem_audit.errors import FormatError
from trainmem_audit.steplog import MAX_LINE, STEP_FILE

__all__ = ["find_parent"]

_MOST_DIRECTORIES = 256
_MOST_BYTES = 2**30
"""How many directories are looked into, and how much of their logs is read."""
_MARK = b'"checkpoints":['


def find_parent(digests: Iterable[str], cwd: Path, own: Path, named: Path | None = None) -> dict[str, Any] | None:
    """Return the members of a `Parent`: the last checkpoint of a record that has one of these SHA-256 digests.

    Looked through are `named`, or the directories that lie in `cwd`; not `own`, the record that is being written.
    """
    wanted = [digest.encode() for digest in digests]
    found: dict[str, Any] | None = None
    left = _MOST_BYTES
    for log in _logs(cwd, own) if named is None else iter([named / STEP_FILE]):
        try:
            size = log.stat().st_size
            if not log.is_symlink() and size <= left:
                left -= size
                found = _in_log(log, wanted) or found
        except (OSError, FormatError):  # a foreign or damaged record is no parent
            continue
    return found


def _logs(cwd: Path, own: Path) -> Iterator[Path]:
    with os.scandir(cwd) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    for name in names[:_MOST_DIRECTORIES]:
        log = cwd / name / STEP_FILE
        if log.is_file() and (cwd / name).resolve() != own.resolve():
            yield log


def _in_log(log: Path, wanted: list[bytes]) -> dict[str, Any] | None:
    found: dict[str, Any] | None = None
    run = ""
    with log.open("rb") as file:
        while line := file.readline(MAX_LINE):
            if not run:
                begin = _parsed(line, log)
                if not isinstance(begin, Begin):
                    return None
                run = begin.nonce
            elif _MARK in line and any(digest in line for digest in wanted):
                inventory = _parsed(line, log)
                if isinstance(inventory, Inventory):
                    found = _parent(inventory, run, wanted) or found
    return found


def _parsed(line: bytes, log: Path) -> Any:
    body = line.removesuffix(b"\n")
    members, _ = split_line(body, log.name)
    return parse_line(body, members, log.name)


def _parent(line: Inventory, run: str, wanted: list[bytes]) -> dict[str, Any] | None:
    for saved in line.checkpoints or ():
        if saved.sha256 is not None and saved.sha256.encode() in wanted:
            return {"run": run, "chain": line.chain, "steps": line.i, "sha256": saved.sha256}
    return None
