"""What `check` says: the verification, and what became of every item of a profile."""

from __future__ import annotations

from typing import Any, Literal

from trainmem_audit.documents.checklist import Evidence, ItemId, Severity, Waiver
from trainmem_audit.documents.common import Document, Name
from trainmem_audit.documents.findings import Verification

__all__ = ["Compliance", "ItemResult", "State"]

State = Literal["pass", "fail", "not-applicable", "inconclusive", "declared", "waived"]


class ItemResult(Document):
    """What became of one item.

    `evidence` is what the state rests on, where it rests on any; `least_evidence` what the item demands. `counts` says
    whether the state keeps the record from passing at the `fail_on` of the check. A waived item keeps in `waived` the
    state that it would have, and names the waiver.
    """

    id: ItemId
    title: str
    severity: Severity
    state: State
    evidence: Evidence | None = None
    least_evidence: Evidence
    counts: bool
    message: str
    where: str = ""
    expected: str = ""
    got: str = ""
    remedy: str = ""
    waived: State | None = None
    waiver: Waiver | None = None


class Compliance(Document):
    """The verification and the items of a profile, in the order of the checklist."""

    schema_version: Name
    name: str
    profile: Name
    checklist_version: Name
    fail_on: Severity
    items: tuple[ItemResult, ...]
    unused_waivers: tuple[Waiver, ...] = ()
    verification: Verification
    exit_code: int
    extensions: dict[str, Any] | None = None
