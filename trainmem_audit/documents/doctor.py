"""What `doctor` says of a machine."""

from __future__ import annotations

from typing import Literal

from trainmem_audit.documents.common import Document

__all__ = ["Diagnosis", "Symptom"]


class Symptom(Document):
    """One thing that was looked at: `ok`, `note` (it decides bits, and a replay must match it), `missing`."""

    topic: Literal["verify", "record", "replay", "device", "numerics"]
    state: Literal["ok", "note", "missing"]
    name: str
    value: str
    remedy: str = ""


class Diagnosis(Document):
    """What a machine can do, and what was looked at."""

    verify: bool
    record: bool
    replay: bool
    symptoms: tuple[Symptom, ...]
