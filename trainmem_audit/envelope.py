"""DSSE 1.0 envelopes: reading them to the letter, writing them in one exact form, and telling the two apart.

The verdict on a signature follows DSSE (github.com/secure-systems-lab/dsse, `protocol.md` and `envelope.md`,
v1.0): a keyid is a hint, both base64 alphabets are accepted, unknown members are ignored. Separately,
`form_findings` lists every deviation of the bytes from what `seal` writes, so that no byte of a file of ours
is free (DESIGN § 2.2).

Not here: what a payload means (`documents`), and whether a signer is trusted (`trust`).
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from trainmem_audit.canonical import canonical_bytes, loads_strict
from trainmem_audit.documents.findings import Finding
from trainmem_audit.errors import FormatError
from trainmem_audit.keys import PublicKey, Signer, is_keyid

__all__ = [
    "Envelope",
    "EnvelopeSignature",
    "add_signature",
    "form_findings",
    "pae",
    "parse_envelope",
    "seal",
    "verifiers",
    "verifying_signatures",
]

MAX_PAYLOAD: Final = 16 * 2**20
MAX_BYTES: Final = 24 * 2**20
MAX_SIGNATURES: Final = 8

_MOST_HASHED: Final = 2**32

_STANDARD: Final = re.compile(r"[A-Za-z0-9+/]*={0,2}")
_URL_SAFE: Final = re.compile(r"[A-Za-z0-9_-]*={0,2}")


@dataclass(frozen=True)
class EnvelopeSignature:
    """One signature; `keyid` is a hint and may be empty (DSSE: unset and empty are the same)."""

    sig: bytes
    keyid: str = ""


@dataclass(frozen=True)
class Envelope:
    """A payload, its type, and the signatures over both."""

    payload: bytes
    payload_type: str
    signatures: tuple[EnvelopeSignature, ...]

    def signed_bytes(self) -> bytes:
        """Return what the signatures are over."""
        return pae(self.payload_type, self.payload)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding (DSSE `protocol.md`, *Signature Definition*)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def parse_envelope(data: bytes, where: str) -> Envelope:
    """Return the envelope that hostile bytes hold; that they parse says nothing about their signatures.

    Raises
    ------
    FormatError
        Naming `where` and the member, if the bytes are no DSSE envelope, or more than 24 MiB or 8
        signatures, or hold a payload of more than 16 MiB.
    """
    if len(data) > MAX_BYTES:
        raise FormatError("too long", where=where, expected=f"at most {MAX_BYTES} bytes", got=str(len(data)))
    members = _object(loads_strict(data, where), where)
    payload_type = _text(members, "payloadType", where)
    if not payload_type:
        raise FormatError("an empty payloadType", where=where, expected="a media type")
    payload = _base64(_text(members, "payload", where), f"{where}: payload")
    if len(payload) > MAX_PAYLOAD:
        raise FormatError("the payload is too long", where=where, expected=f"at most {MAX_PAYLOAD} bytes")
    signatures = members.get("signatures")
    if not isinstance(signatures, list) or not 1 <= len(signatures) <= MAX_SIGNATURES:
        raise FormatError("no usable `signatures`", where=where, expected=f"a list of 1 to {MAX_SIGNATURES} signatures")
    return Envelope(
        payload,
        payload_type,
        tuple(_signature(item, f"{where}: signatures[{n}]") for n, item in enumerate(signatures)),
    )


def _signature(item: Any, where: str) -> EnvelopeSignature:
    members = _object(item, where)
    keyid = _text(members, "keyid", where) if "keyid" in members else ""
    sig = _base64(_text(members, "sig", where), f"{where}.sig")
    if not sig:
        raise FormatError("an empty signature", where=where)
    return EnvelopeSignature(sig, keyid)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise FormatError("not a JSON object", where=where, got=type(value).__name__)
    return value


def _text(members: dict[str, Any], name: str, where: str) -> str:
    value = members.get(name)
    if not isinstance(value, str):
        raise FormatError(f"`{name}` is missing or no string", where=where, expected="a DSSE 1.0 envelope")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FormatError(f"`{name}` holds a lone surrogate", where=where) from None
    return value


def _base64(text: str, where: str) -> bytes:
    """Decode either alphabet of RFC 4648 (§ 4, § 5), never mixed, without garbage; padding may be missing."""
    if _STANDARD.fullmatch(text):
        altchars = b"+/"
    elif _URL_SAFE.fullmatch(text):
        altchars = b"-_"
    else:
        raise FormatError("not base64", where=where, expected="RFC 4648 § 4 or § 5")
    padded = text if text.endswith("=") else text + "=" * (-len(text) % 4)
    try:
        return base64.b64decode(padded, altchars=altchars, validate=True)
    except binascii.Error as error:
        raise FormatError("not base64", where=where, got=str(error)) from None


def _exact_form(envelope: Envelope) -> bytes:
    """Return what we write: the RFC 8785 form of these members only, signatures sorted by keyid, one LF."""
    signatures = [
        {"keyid": signature.keyid, "sig": base64.b64encode(signature.sig).decode()}
        for signature in sorted(envelope.signatures, key=lambda s: (s.keyid, s.sig))
    ]
    value = {
        "payload": base64.b64encode(envelope.payload).decode(),
        "payloadType": envelope.payload_type,
        "signatures": signatures,
    }
    return canonical_bytes(value) + b"\n"


def _sign(payload: bytes, payload_type: str, signer: Signer) -> EnvelopeSignature:
    return EnvelopeSignature(signer.sign(pae(payload_type, payload)), signer.public.keyid)


def seal(payload: bytes, payload_type: str, signer: Signer) -> bytes:
    """Return a signed envelope in its exact form: a payload, a type and a key give the same bytes always."""
    return _exact_form(Envelope(payload, payload_type, (_sign(payload, payload_type, signer),)))


def add_signature(data: bytes, signer: Signer, where: str = "run.json") -> bytes:
    """Return the envelope with the signature of one more key; the same bytes if that key has signed already.

    Payload and earlier signatures stay as they are. The caller verifies first: signing says nothing about the
    rest.

    Raises
    ------
    FormatError
        If the bytes are not in the exact form: a file that somebody else wrote is not rewritten.
    """
    envelope = parse_envelope(data, where)
    if _exact_form(envelope) != data:
        raise FormatError(
            "not in the form that we write, so nothing is added to it",
            where=where,
            remedy="take the file as its author published it",
        )
    new = _sign(envelope.payload, envelope.payload_type, signer)
    others = tuple(s for s in envelope.signatures if s.keyid != new.keyid)
    return _exact_form(Envelope(envelope.payload, envelope.payload_type, (*others, new)))


def verifiers(envelope: Envelope, keys: Iterable[PublicKey]) -> tuple[PublicKey | None, ...]:
    """Return for each signature the key of `keys` that verifies it, the one that its keyid names tried first.

    A keyid is a hint only (DSSE), so the other keys are tried too: as long as all attempts together hash no more than a
    few gigabytes, and 64 at least.
    """
    message = envelope.signed_bytes()
    named = {key.keyid: key for key in keys}
    left = max(64, _MOST_HASHED // (len(message) or 1))
    found: list[PublicKey | None] = []
    for signature in envelope.signatures:
        hinted = named.get(signature.keyid)
        ordered = [*filter(None, [hinted]), *(key for key in named.values() if key is not hinted)][:left]
        match = next((n for n, key in enumerate(ordered) if key.verify(signature.sig, message)), None)
        left -= len(ordered) if match is None else match + 1
        found.append(None if match is None else ordered[match])
    return tuple(found)


def verifying_signatures(envelope: Envelope, key: PublicKey) -> tuple[EnvelopeSignature, ...]:
    """Return the signatures that `key` verifies, whatever their keyids say (DSSE: a keyid is a hint only)."""
    message = envelope.signed_bytes()
    return tuple(signature for signature in envelope.signatures if key.verify(signature.sig, message))


def form_findings(
    data: bytes,
    envelope: Envelope,
    signer_keys: Sequence[PublicKey],
    other_keys: Iterable[PublicKey] = (),
    where: str = "run.json",
    verified: Sequence[PublicKey | None] | None = None,
) -> tuple[Finding, ...]:
    """Return every deviation of `data` from the form in which we write an envelope.

    `signer_keys` are those of `signer.pub`, each of which must have signed; `other_keys` (of a trust file)
    need not. `verified` is what `verifiers` says of all these keys, where that is known already.

    - `ENV-FORM` error: other bytes than the exact form (a member more, white space, another base64 spelling,
      no LF …), or two signatures under one keyid.
    - `ENV-KEYID` error: a keyid that is not the fingerprint of the key that verifies, or no fingerprint at
      all.
    - `ENV-SIGNATURE` error: a keyid names a key at hand, under which the signature does not verify.
    - `ENV-SIGNER` error: a key of `signer.pub` signed nothing here (a signature was taken out or exchanged).
    - `ENV-UNCHECKED` warning: no key at hand for a signature, so it was not checked.
    """
    keys = {key.keyid: key for key in (*signer_keys, *other_keys)}
    if verified is None:
        verified = verifiers(envelope, keys.values())
    findings = [*_byte_findings(data, envelope, where)]
    for number, (signature, key) in enumerate(zip(envelope.signatures, verified, strict=True)):
        findings += _signature_findings(signature, key, keys, f"{where}: signatures[{number}]")
    signed = {key.keyid for key in verified if key}
    findings += [
        Finding(
            code="ENV-SIGNER",
            severity="error",
            where="signer.pub",
            message="a key of signer.pub signed nothing in this envelope",
            expected=f"a signature by {key.keyid}",
            got=" · ".join(sorted(signed)) or "none that verifies",
            remedy="take run.json and signer.pub as their author published them, both",
        )
        for key in signer_keys
        if key.keyid not in signed
    ]
    return tuple(findings)


def _byte_findings(data: bytes, envelope: Envelope, where: str) -> Iterator[Finding]:
    exact = _exact_form(envelope)
    if data != exact:
        pairs = zip(data, exact, strict=False)
        shorter = min(len(data), len(exact))
        at = next((n for n, (got, expected) in enumerate(pairs) if got != expected), shorter)
        yield Finding(
            code="ENV-FORM",
            severity="error",
            where=f"{where}: byte {at}",
            message="the envelope is not in the one form in which trainmem-audit writes it",
            expected=_glimpse(exact, at),
            got=_glimpse(data, at),
            remedy="take the file as its author published it",
        )
    keyids = [signature.keyid for signature in envelope.signatures]
    for keyid in sorted({keyid for keyid in keyids if keyids.count(keyid) > 1}):
        yield Finding(
            code="ENV-FORM",
            severity="error",
            where=where,
            message="several signatures under one keyid",
            expected="one",
            got=ascii(keyid[:80]),
        )


def _glimpse(data: bytes, at: int) -> str:
    return ascii(data[at : at + 24].decode("latin-1")) if at < len(data) else "the end of the file"


def _signature_findings(
    signature: EnvelopeSignature, key: PublicKey | None, keys: dict[str, PublicKey], where: str
) -> Iterator[Finding]:
    got = ascii(signature.keyid[:80])
    if key and signature.keyid != key.keyid:
        yield Finding(
            code="ENV-KEYID",
            severity="error",
            where=where,
            message="the keyid is not the fingerprint of the key that verifies",
            expected=key.keyid,
            got=got,
        )
    elif not key and signature.keyid in keys:
        yield Finding(
            code="ENV-SIGNATURE",
            severity="error",
            where=where,
            message="the signature does not verify under the key that its keyid names",
            expected=f"a signature by {signature.keyid}",
            got="one by another key, or over other bytes",
        )
    elif not key and not is_keyid(signature.keyid):
        yield Finding(
            code="ENV-KEYID",
            severity="error",
            where=where,
            message="the keyid is no fingerprint, and no key at hand verifies the signature",
            expected="SHA256: and 43 characters of base64",
            got=got,
        )
    elif not key:
        yield Finding(
            code="ENV-UNCHECKED",
            severity="warning",
            where=where,
            message="the signature was not checked: its key is not at hand",
            expected=f"the key {signature.keyid} in signer.pub or the trust file",
            remedy="get the key from its owner, then: trainmem-audit trust",
        )
