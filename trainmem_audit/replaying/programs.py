"""What the child of a replay is told of a program: from where it starts, what acts there, which steps it logs.

A program is put back to a snapshot directly, where a script has to be walked there (`recording.forward`). Not here:
comparing (`replay`, `divergence`), running (`programs.child`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trainmem_audit.documents.manifest import Manifest
from trainmem_audit.documents.steplog import InterventionLine, Step
from trainmem_audit.errors import ReplayError
from trainmem_audit.rundir import RunReader
from trainmem_audit.runs import read_lines

__all__ = ["Part", "part_of", "parts_of"]


@dataclass(frozen=True)
class Part:
    """A stretch of a program's run: its steps, and what the child is told of it."""

    first: int
    last: int | None
    order: dict[str, Any]


def part_of(reader: RunReader, manifest: Manifest, steps: int | None) -> Part:
    """Return the whole run, or its first `steps` steps.

    Raises
    ------
    ReplayError
        If something acted in it that cannot be done again here.
    """
    acting, whole, total = _of_log(reader, manifest)
    branch = 0 if manifest.run.branch is None else manifest.run.branch.step
    count = total if steps is None else min(steps, total)
    return Part(0, None, {"first": branch, "state": None, "acting": acting, "steps": count, "whole": whole})


def parts_of(reader: RunReader, manifest: Manifest, forward: Mapping[str, Any]) -> list[Part]:
    """Return the stretches between snapshots that `SegmentReplay.lay_out` has laid out."""
    acting, whole, total = _of_log(reader, manifest)
    branch = 0 if manifest.run.branch is None else manifest.run.branch.step
    found = []
    for item in forward["stretches"]:
        first, last = item["first"], item["last"]
        count = (total if last is None else last + 1) - first
        shifted = None if whole is None else [step - first for step in whole if step >= first]
        order = {"first": first, "state": item.get("state"), "acting": [], "steps": count, "whole": shifted}
        if first == 0:
            order |= {"first": branch, "acting": acting}
        found.append(Part(first, last, order))
    return found


def _of_log(reader: RunReader, manifest: Manifest) -> tuple[list[Any], list[int] | None, int]:
    """Return what acted before the first step, the steps whose state is recorded (`None`: all), how many there are."""
    acting: list[Any] = []
    whole: list[int] = []
    total = 0
    for line in read_lines(reader, manifest.step_logs[0]):
        if isinstance(line, InterventionLine):
            if line.i:
                raise ReplayError("an intervention between the steps of a program is not replayed")
            if line.intervention.primitive in ("equalise", "transplant"):
                raise ReplayError(f"`{line.intervention.primitive}` needs another run, which is not in this record")
            acting.append(line.intervention.to_json())
        elif isinstance(line, Step):
            total += 1
            if line.state:
                whole.append(line.i)
    return acting, None if len(whole) == total else whole, total
