"""ART: the bytes, the signature, the versions and the log as a whole."""

from __future__ import annotations

from trainmem_audit.checks import Outcome, Rule, failed, inconclusive, passed
from trainmem_audit.documents.record import Record

__all__ = ["RULES"]


def _signature_and_digests(record: Record) -> Outcome:
    """TM-ART-001: a signature verifies, and every file is the one that was signed."""
    verification = record.verification
    signature = verification.signature
    if signature.state == "invalid":
        return failed(
            "cross-checked",
            "the signature does not verify",
            where="run.json",
            expected="a signature by a key at hand",
            got=signature.detail,
        )
    if verification.bytes == "broken":
        return failed(
            "cross-checked",
            "the files are not those that were signed",
            where=next((item.where for item in verification.findings if item.severity == "error"), "run.json"),
            expected="every file with its digest",
            got=f"{len(verification.findings)} findings",
        )
    if signature.state == "not-checkable" or verification.bytes != "intact":
        return inconclusive("no key is at hand, or the files could not be compared", where="run.json")
    return passed("cross-checked", f"signed by {signature.keyid}, every file has its digest")


RULES: dict[str, Rule] = {"TM-ART-001": _signature_and_digests}
