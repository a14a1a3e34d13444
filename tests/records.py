"""Records for rules, out of the language-neutral vectors: a base, and merge patches over it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from trainmem_audit.documents.record import Record

__all__ = ["BASE", "RULES", "STUDY", "patched", "record_of"]

RULES = Path(__file__).resolve().parent.parent / "schema" / "draft" / "vectors" / "rules"
BASE: Any = json.loads((RULES / "base.json").read_text("utf-8"))
STUDY: Any = {"verification": BASE["verification"], "study": json.loads((RULES / "study.json").read_text("utf-8"))}
"""What a study is patched over: its records together were verified, and it has no statement and log of its own."""


def patched(target: Any, patch: Any) -> Any:
    """Return `target` with a merge patch applied (RFC 7396)."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = patched(merged.get(key), value)
    return merged


def record_of(patch: Any) -> Record:
    """Return the base with a patch applied; that of a study, where the patch has one."""
    base = STUDY if "study" in patch else BASE
    parsed: Record = Record.parse(json.dumps(patched(base, patch)).encode(), "vector")
    return parsed
