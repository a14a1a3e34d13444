"""Salted commitments: digests that stand in a signed statement for what is only told later, or never.

As in SD-JWT (RFC 9901 § 4.2): a *disclosure* is the array [salt, name, value] as JSON in base64url, a *digest* the
SHA-256 of that text. Where SD-JWT keeps the array as it was spelt, ours has one spelling (RFC 8785), and the digest is
written in hex like every other of ours. Without the salt (128 random bits) no guess of a value can be checked.

Not here: which facts a recording commits to (`recording.provenance`).
"""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from typing import Any, Final

from trainmem_audit.canonical import canonical_bytes, loads_strict
from trainmem_audit.documents.disclosures import FILE_NAME, Disclosure, Disclosures
from trainmem_audit.documents.findings import Finding, Opening
from trainmem_audit.errors import FormatError

__all__ = [
    "MAX_BYTES",
    "closed",
    "commitment_digest",
    "disclosures_bytes",
    "draw_salt",
    "open_commitments",
    "parse_disclosures",
]

MAX_BYTES: Final = 16 * 2**20
"""The longest `disclosures.json` that is read."""
_SHOWN: Final = 100


def draw_salt() -> str:
    """Return 128 bits of the operating system's entropy in base64url (RFC 9901 § 9.3)."""
    return secrets.token_urlsafe(16)


def commitment_digest(salt: str, name: str, value: Any) -> str:
    """Return the digest that stands in the statement (RFC 9901 § 4.2.3)."""
    disclosure = base64.urlsafe_b64encode(canonical_bytes([salt, name, value])).rstrip(b"=")
    return hashlib.sha256(disclosure).hexdigest()


def disclosures_bytes(disclosures: Disclosures) -> bytes:
    """Return the file: JSON that a person can read and cut down, since its own bytes are signed nowhere."""
    value = disclosures.model_dump(mode="json", by_alias=True)
    if value["extensions"] is None:
        del value["extensions"]  # a member without a value is left out; the `null` of an opening is a value
    return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode()


def parse_disclosures(data: bytes, where: str = FILE_NAME) -> Disclosures:
    """Return what a file of openings says.

    Raises
    ------
    FormatError
        If it is no such file, or longer than `MAX_BYTES`.
    """
    if len(data) > MAX_BYTES:
        raise FormatError("too long", where=where, expected=f"at most {MAX_BYTES} bytes")
    loads_strict(data, where)
    parsed: Disclosures = Disclosures.parse(data, where)
    return parsed


def open_commitments(
    commitments: Mapping[str, str], disclosures: Disclosures, where: str = FILE_NAME
) -> tuple[tuple[Opening, ...], tuple[Finding, ...]]:
    """Return each commitment, opened where an opening fits it, and a finding for each opening that fits none.

    - `OPEN-UNKNOWN`: the statement has no commitment of that name.
    - `OPEN-WRONG`: the opening does not give the digest that was signed.
    - `OPEN-TWICE`: there is an opening of that name already. The first that fits stands.
    """
    opened: dict[str, Disclosure] = {}
    findings: list[Finding] = []
    for number, item in enumerate(disclosures.disclosures):
        place = f"{where}: disclosures[{number}]"
        signed = commitments.get(item.name)
        digest = _digest_of(item)
        if signed is None:
            findings.append(_finding("OPEN-UNKNOWN", place, "the statement has no commitment of this name", "", item))
        elif item.name in opened:
            findings.append(_finding("OPEN-TWICE", place, "an opening of this name is there already", "one", item))
        elif digest != signed:
            message = "the opening is not of what was committed to"
            findings.append(_finding("OPEN-WRONG", place, message, f"sha256 {signed}", item, f"sha256 {digest}"))
        else:
            opened[item.name] = item
    shown = tuple(
        Opening(name=name, opened=name in opened, value=opened[name].value if name in opened else None)
        for name in sorted(commitments)
    )
    return shown, tuple(findings[:_SHOWN])


def closed(commitments: Mapping[str, str]) -> tuple[Opening, ...]:
    """Return the commitments of a record of which nothing was opened."""
    return tuple(Opening(name=name, opened=False) for name in sorted(commitments))


def _digest_of(item: Disclosure) -> str:
    try:
        return commitment_digest(item.salt, item.name, item.to_json().get("value"))
    except FormatError:  # a value that has no canonical form was never committed to
        return "none"


def _finding(code: str, where: str, message: str, expected: str, item: Disclosure, got: str = "") -> Finding:
    return Finding(
        code=code,
        severity="error",
        where=where,
        message=message,
        expected=expected,
        got=got or item.name,
        remedy="believe none of it; ask the author for the openings of this very run",
    )


def fact_text(value: Any) -> str:
    """Return the value of an opened commitment on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {text}" for name, text in value.items())
    if isinstance(value, (list, tuple)):
        shown = "; ".join(f"{name}: {text}" for name, text in value[:5])
        return f"{shown}; and {len(value) - 5} more" if len(value) > 5 else shown
    return {None: "not known", True: "yes", False: "no"}.get(value, str(value))
