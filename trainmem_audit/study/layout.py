"""What lies where in the directory of a study."""

from __future__ import annotations

from pathlib import Path

__all__ = [
    "ARMS",
    "ESTIMATES",
    "FAILED",
    "OURS",
    "PLAN_FILE",
    "PROBE_FILE",
    "SIGNER_FILE",
    "STUDY_STATEMENT",
    "WORK",
    "is_study",
]

PLAN_FILE = "plan.json"
"""The plan in its canonical form: its SHA-256 is the plan's digest."""
STUDY_STATEMENT = "study.json"
SIGNER_FILE = "signer.pub"
PROBE_FILE = "probe.safetensors"
ESTIMATES = "estimates.json"
ARMS = "arms"
"""The run directory of each arm that is there, by its id; shared prefixes too."""
FAILED = "failed"
"""What there is of attempts that came to nothing, `ID.NUMBER`."""
WORK = ".work"
"""Copies of the author's tree while arms run."""
OURS = frozenset(
    {PLAN_FILE, "study.jsonl", STUDY_STATEMENT, SIGNER_FILE, PROBE_FILE, ESTIMATES, ARMS, FAILED, WORK}
    | {".lock", ".workers"}
)
"""The names in a study's directory, beside reports."""


def is_study(path: Path) -> bool:
    """Tell whether a path is the directory of a study."""
    return path.is_dir() and (path / PLAN_FILE).is_file() and not (path / "run.json").exists()
