"""L5: how a verification and a check are printed: one small reporter for each format, chosen from a dict.

The exit code does not depend on the format. Everything that comes from a record is made safe to show before it is
written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from trainmem_audit.documents.compliance import Compliance
from trainmem_audit.documents.findings import Verification
from trainmem_audit.formats.checklist_text import compliance_text
from trainmem_audit.formats.github import github
from trainmem_audit.formats.junit import junit
from trainmem_audit.formats.results import Results, of_compliance, of_verification
from trainmem_audit.formats.sarif import sarif
from trainmem_audit.screen import FORMATS as _SCREEN

__all__ = ["COMPLIANCE", "VERIFICATION"]

_MACHINES: Final[dict[str, Callable[[Results], str]]] = {"github": github, "junit": junit, "sarif": sarif}


def _json(compliance: Compliance) -> str:
    return compliance.model_dump_json(by_alias=True, exclude_none=True, indent=2)


def _of_verification(write: Callable[[Results], str]) -> Callable[[Verification], str]:
    return lambda verification: write(of_verification(verification))


def _of_compliance(write: Callable[[Results], str]) -> Callable[[Compliance], str]:
    return lambda compliance: write(of_compliance(compliance))


VERIFICATION: Final[dict[str, Callable[[Verification], str]]] = {
    **_SCREEN,
    **{name: _of_verification(write) for name, write in _MACHINES.items()},
}
"""How `verify` can print."""
COMPLIANCE: Final[dict[str, Callable[[Compliance], str]]] = {
    "json": _json,
    "text": compliance_text,
    **{name: _of_compliance(write) for name, write in _MACHINES.items()},
}
"""How `check` can print."""
