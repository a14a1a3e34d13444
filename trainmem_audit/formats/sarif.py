"""SARIF 2.1.0 (OASIS): what code scanning reads.

Kinds follow § 3.27.9: `pass`, `fail`, `notApplicable`, `open` (not enough information to decide). A waived item is a
failure with an accepted suppression (§ 3.35). Steps whose findings say it already, and steps that were not run, are
left out. Every result has a physical location, since GitHub refuses those that have none.
"""

from __future__ import annotations

import json
from typing import Any, Final
from urllib.parse import quote

from trainmem_audit import __version__
from trainmem_audit.checks import load_checklist, load_codes
from trainmem_audit.formats.results import Result, Results, place

__all__ = ["sarif"]

_SCHEMA: Final = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_KINDS: Final = {
    "pass": "pass",
    "fail": "fail",
    "undecided": "open",
    "not-applicable": "notApplicable",
    "waived": "fail",
}


def sarif(results: Results) -> str:
    """Return the results as one SARIF log with one run."""
    shown = [result for result in results.results if result.state in _KINDS and not result.told]
    known = _descriptors()
    ids = sorted({result.id for result in shown})
    driver = {
        "name": "trainmem-audit",
        "version": __version__,
        "rules": [known.get(name) or {"id": name} for name in ids],
    }
    run = {
        "tool": {"driver": driver},
        "invocations": [{"executionSuccessful": True, "exitCode": results.exit_code}],
        "automationDetails": {"id": "trainmem-audit/"},
        "results": [_result(result, ids.index(result.id)) for result in shown],
    }
    return json.dumps({"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, ensure_ascii=False)


def _result(result: Result, index: int) -> dict[str, Any]:
    kind = _KINDS[result.state]
    text = "\n".join(part for part in (result.message, result.detail) if part)
    members: dict[str, Any] = {
        "ruleId": result.id,
        "ruleIndex": index,
        "kind": kind,
        "level": result.level if kind == "fail" else "none",
        "message": {"text": text or result.title},
        "locations": [_location(result)],
    }
    if result.state == "waived":
        members["suppressions"] = [{"kind": "external", "status": "accepted", "justification": result.justification}]
    return members


def _location(result: Result) -> dict[str, Any]:
    name, line = place(result)
    physical: dict[str, Any] = {"artifactLocation": {"uri": quote(name)}, "region": {"startLine": line or 1}}
    logical = [{"fullyQualifiedName": result.where}] if result.where else []
    return {"physicalLocation": physical, **({"logicalLocations": logical} if logical else {})}


def _descriptors() -> dict[str, dict[str, Any]]:
    """Return what SARIF calls a rule (§ 3.49), for every item, finding and step."""
    codes = load_codes()
    found = {item.id: _descriptor(item.id, item.title, item.why, item.remedy) for item in load_checklist().items}
    for entry in (*codes.findings, *codes.steps):
        found[entry.code] = _descriptor(entry.code, entry.title, entry.why, entry.remedy)
    return found


def _descriptor(name: str, title: str, why: str, remedy: str) -> dict[str, Any]:
    return {
        "id": name,
        "shortDescription": {"text": title},
        "fullDescription": {"text": why},
        "help": {"text": f"{why}\n{remedy}\nMore: trainmem-audit explain {name}"},
    }
