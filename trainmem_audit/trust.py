"""Whom a key belongs to: the trust file in OpenSSH's `allowed_signers` form, revoked keys, and the verdict on a signer.

The form is that of ssh-keygen(1), *ALLOWED SIGNERS*: `PRINCIPALS [OPTIONS] KEYTYPE BASE64 [COMMENT]`.
Certificates are refused; keys other than Ed25519 are kept and count for nothing, since they cannot have
signed a record. Revoked keys stand in a plain list, a key or a fingerprint a line, as OpenSSH's RevokedKeys takes it.

Not here: whether the bytes of an envelope have the right form (`envelope.form_findings`), and exit codes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from trainmem_audit.documents.findings import Signature
from trainmem_audit.envelope import Envelope, verifiers
from trainmem_audit.errors import FormatError, KeyFileError, UsageError
from trainmem_audit.keys import PublicKey, home, is_keyid
from trainmem_audit.rundir import write_atomic

__all__ = [
    "Entry",
    "Trust",
    "accepted",
    "add_signer",
    "judge",
    "parse_moment",
    "read_revoked",
    "read_trust",
    "remove_signer",
    "revoke",
    "revoked_path",
    "trust_path",
]

NAMESPACE: Final = "trainmem-audit"
"""What a `namespaces=` option must allow, if a line has one."""
MAX_BYTES: Final = 4 * 2**20

_LINE: Final = re.compile(
    r"""[ \t]*
    (?: "(?P<quoted>[^"]+)" | (?P<plain>[^\s"\#][^\s"]*) ) [ \t]+
    (?: (?P<options>(?:[^\s"]|"(?:[^"\\]|\\.)*")+) [ \t]+ )??
    (?P<kind>(?:ssh-|ecdsa-sha2-|sk-)[A-Za-z0-9@.-]+) [ \t]+
    (?P<blob>[A-Za-z0-9+/]+={0,2})
    (?: [ \t]+ (?P<comment>.*) )? [ \t]*""",
    re.VERBOSE,
)
_OPTION: Final = re.compile(r'([A-Za-z-]+)(?:="((?:[^"\\]|\\.)*)")?(?:,|\Z)')
_REVOKED: Final = re.compile(
    r"""[ \t]* (?: (?:key|hash|sha256) : [ \t]* )?
    (?: (?P<keyid>SHA256:[A-Za-z0-9+/]{43})
      | (?P<kind>(?:ssh-|ecdsa-sha2-|sk-)[A-Za-z0-9@.-]+) [ \t]+ (?P<blob>[A-Za-z0-9+/]+={0,2}) (?: [ \t]+ .* )? )
    [ \t]*""",
    re.VERBOSE,
)
_TIME: Final = re.compile(r"(\d{8})(\d{4}(?:\d\d)?)?(Z?)", re.ASCII)


@dataclass(frozen=True)
class Entry:
    """One line: patterns of principals, the key, and when and for what it counts."""

    principals: tuple[str, ...]
    key: PublicKey | None
    namespaces: tuple[str, ...] = ()
    valid_after: datetime | None = None
    valid_before: datetime | None = None

    def counts(self, at: datetime) -> bool:
        """Return whether the line says anything about a record judged at the time `at`."""
        if self.namespaces and not _matches(self.namespaces, NAMESPACE):
            return False
        early = self.valid_after is not None and at < self.valid_after
        late = self.valid_before is not None and at > self.valid_before
        return not (early or late)


@dataclass(frozen=True)
class Trust:
    """The entries of a trust file, none if it is absent; `revoked` are fingerprints, which outdo any entry."""

    entries: tuple[Entry, ...] = ()
    revoked: frozenset[str] = frozenset()

    def keys(self) -> tuple[PublicKey, ...]:
        """Return every Ed25519 key in the file, also those that do not count now."""
        return tuple(dict.fromkeys(entry.key for entry in self.entries if entry.key))

    def principals(self, key: PublicKey, at: datetime | None = None) -> tuple[str, ...]:
        """Return the principals (patterns as written) to whom `key` belongs at the time `at`, else now."""
        lines = self._lines(key, at)
        return tuple(dict.fromkeys(name for entry in lines for name in entry.principals if _names_one(entry, name)))

    def belongs(self, key: PublicKey, principal: str, at: datetime | None = None) -> bool:
        """Return whether `key` belongs to `principal` at the time `at`, wildcards and `!` as in OpenSSH."""
        return any(_matches(entry.principals, principal) for entry in self._lines(key, at))

    def _lines(self, key: PublicKey, at: datetime | None) -> list[Entry]:
        when = at or datetime.now(UTC)
        own = [] if key.keyid in self.revoked else self.entries
        return [entry for entry in own if entry.key == key and entry.counts(when)]


def _names_one(entry: Entry, name: str) -> bool:
    """Return whether a principal as written stands for somebody: it is no `!pattern`, and none takes it back."""
    return not name.startswith("!") and _matches(entry.principals, name)


def _matches(patterns: Iterable[str], name: str) -> bool:
    """Match as ssh_config(5), PATTERNS: `*`, `?`, and a matching `!pattern` says no whatever else matches."""
    found = False
    for pattern in patterns:
        body = re.escape(pattern.removeprefix("!")).replace(r"\*", ".*").replace(r"\?", ".")
        if re.fullmatch(body, name, re.DOTALL):
            if pattern.startswith("!"):
                return False
            found = True
    return found


def trust_path() -> Path:
    """Return where the trust file lies unless another is named."""
    return home() / "allowed_signers"


def read_trust(path: Path | None = None) -> Trust:
    """Return what the trust file says; without `path`, the default one, which may be absent.

    Raises
    ------
    FormatError
        Naming file and line, for a line that is malformed, holds a certificate authority, or an unusable key.
    UsageError
        If a named file is absent.
    """
    place = path or trust_path()
    if path is not None and not place.is_file():
        raise UsageError("no such trust file", where=str(place))
    lines = _read_lines(place)
    parsed = (_parse_line(line, f"{place.name}:{number}") for number, line in enumerate(lines, 1))
    return Trust(tuple(entry for entry in parsed if entry))


def revoked_path() -> Path:
    """Return where the list of revoked keys lies unless another is named."""
    return home() / "revoked_keys"


def read_revoked(path: Path | None = None) -> frozenset[str]:
    """Return the fingerprints of revoked keys; without `path` the default list, which may be absent.

    A line is a fingerprint `SHA256:…` or a public key, maybe after `key:`, `hash:` or `sha256:` as in ssh-keygen's KRL
    specifications; `#` begins a comment. Keys of other kinds than Ed25519 can have signed no record.

    Raises
    ------
    FormatError
        Naming file and line, for a line that is none of these: a revocation that cannot be read is not passed over.
    UsageError
        If a named file is absent.
    """
    place = path or revoked_path()
    if path is not None and not place.is_file():
        raise UsageError("no such list of revoked keys", where=str(place))
    if place.exists():
        with place.open("rb") as file:
            if file.read(6) == b"SSHKRL":
                raise FormatError(
                    "a binary KRL, which is not read here",
                    where=str(place),
                    expected="a fingerprint or a public key a line",
                    remedy="give the list that it was made of",
                )
    found = (_revoked_key(line, f"{place.name}:{number}") for number, line in enumerate(_read_lines(place), 1))
    return frozenset(keyid for keyid in found if keyid)


def revoke(path: Path, keyid: str) -> bool:
    """Add a fingerprint to a list of revoked keys; return whether that is new. Other lines stay."""
    if path.exists() and keyid in read_revoked(path):
        return False
    _write_lines(path, [*_read_lines(path), keyid])
    return True


def _revoked_key(line: str, where: str) -> str | None:
    plain = line.partition("#")[0].strip()
    if not plain:
        return None
    match = _REVOKED.fullmatch(plain)
    if not match:
        raise FormatError(
            "not a line of a list of revoked keys",
            where=where,
            expected="SHA256:… or ssh-ed25519 BASE64",
            got=ascii(line[:80]),
        )
    if match["keyid"]:
        return match["keyid"]
    return _parse_key(match["blob"], where).keyid if match["kind"] == "ssh-ed25519" else None


def parse_moment(text: str) -> datetime:
    """Return the time that `--at` names: RFC 3339 with its offset, or `YYYYMMDD[HHMM[SS]][Z]` as in a trust file."""
    if _TIME.fullmatch(text):
        return _parse_time(text, "--at") or datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        expected = "2026-03-01T12:00:00Z, or YYYYMMDD[HHMM[SS]][Z]"
        raise UsageError("not a time", where="--at", expected=expected, got=ascii(text[:40]))
    return moment.astimezone(UTC)


def _read_lines(path: Path) -> list[str]:
    """Return the lines of a trust file, none if it is absent."""
    if not path.exists():
        return []
    data = path.read_bytes()
    if len(data) > MAX_BYTES:
        raise FormatError("too long for a trust file", where=str(path), expected=f"at most {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError("not UTF-8", where=str(path), got=f"byte {error.start}") from None
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def _parse_line(line: str, where: str) -> Entry | None:
    if not line.strip() or line.lstrip(" \t").startswith("#"):
        return None
    match = _LINE.fullmatch(line)
    if not match:
        raise FormatError(
            "not a line of an allowed_signers file",
            where=where,
            expected="PRINCIPALS [OPTIONS] ssh-ed25519 BASE64 [COMMENT]",
            got=ascii(line[:80]),
        )
    options = _parse_options(match["options"] or "", where)
    key = None
    if match["kind"] == "ssh-ed25519":
        key = _parse_key(match["blob"], where)
    principals = tuple((match["quoted"] or match["plain"]).split(","))
    if not all(principal.removeprefix("!") for principal in principals):
        raise FormatError("an empty principal", where=where, got=ascii(line[:80]))
    return Entry(
        principals,
        key,
        tuple(options["namespaces"].split(",")) if "namespaces" in options else (),
        _parse_time(options.get("valid-after"), where),
        _parse_time(options.get("valid-before"), where),
    )


def _parse_key(blob: str, where: str) -> PublicKey:
    try:
        return PublicKey.from_openssh(f"ssh-ed25519 {blob}".encode(), where)
    except KeyFileError as error:
        raise FormatError(error.message, where=where, expected=error.expected, got=error.got) from None


def _parse_options(text: str, where: str) -> dict[str, str]:
    """Return the options; an unknown one is an error, since it could narrow what the line allows."""
    options: dict[str, str] = {}
    at = 0
    while at < len(text):
        match = _OPTION.match(text, at)
        name = match[1].lower() if match else ""
        if name == "cert-authority":
            raise FormatError(
                "certificate authorities are not supported",
                where=where,
                expected="the signer's own key",
                remedy="replace the line by one per signer, without cert-authority",
            )
        known = name in ("namespaces", "valid-after", "valid-before")
        if not match or not known or match[2] is None or name in options:
            raise FormatError(
                "an option that is unknown, empty or there twice",
                where=where,
                expected='namespaces="…", valid-after="…" or valid-before="…"',
                got=ascii(text[at : at + 60]),
            )
        options[name] = re.sub(r"\\(.)", r"\1", match[2])
        at = match.end()
    return options


def _parse_time(text: str | None, where: str) -> datetime | None:
    """Parse `YYYYMMDD[HHMM[SS]][Z]`, in local time without `Z` (ssh-keygen(1))."""
    if text is None:
        return None
    match = _TIME.fullmatch(text)
    digits = ((match[1] + (match[2] or "")) if match else "").ljust(14, "0")
    try:
        plain = datetime.strptime(digits, "%Y%m%d%H%M%S")
        return plain.replace(tzinfo=UTC) if match and match[3] else plain.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise FormatError("not a time", where=where, expected="YYYYMMDD[HHMM[SS]][Z]", got=ascii(text[:40])) from None


def check_principal(principal: str) -> str:
    """Return `principal` if it can stand in a trust file as itself.

    Raises
    ------
    UsageError
        If it is empty or unprintable, holds `"`, `,`, `*` or `?`, begins with `!`, or looks like a
        fingerprint.
    """
    bad = set(principal) & set('",*?') or principal.startswith(("!", "SHA256:"))
    if not principal.strip() or principal != principal.strip() or not principal.isprintable() or bad:
        raise UsageError(
            "not usable as a principal",
            got=ascii(principal[:80]),
            expected='printable text without " , * ? and not beginning with ! or SHA256:',
            remedy="an address (ann@example.org) or a label (submission-4711) will do",
        )
    return principal


def add_signer(path: Path, principal: str, key: PublicKey) -> bool:
    """Trust `key` as `principal`'s; return whether that is new. Other lines stay, comments too."""
    check_principal(principal)
    lines = _read_lines(path)
    for number, line in enumerate(lines, 1):
        entry = _parse_line(line, f"{path.name}:{number}")
        if entry == Entry((principal,), key):
            return False
    quote = '"' if re.search(r"\s", principal) or principal.startswith("#") else ""
    lines.append(f"{quote}{principal}{quote} {key.openssh_text()}")
    _write_lines(path, lines)
    return True


def remove_signer(path: Path, who: str) -> int:
    """Take out every line of the key (fingerprint) or of the principal `who`; return how many.

    Raises
    ------
    UsageError
        If a line names `who` beside other principals: which of them stays is for a person to say.
    """
    lines = _read_lines(path)
    kept = [line for n, line in enumerate(lines, 1) if not _names(line, who, f"{path.name}:{n}")]
    if len(kept) < len(lines):
        _write_lines(path, kept)
    return len(lines) - len(kept)


def _names(line: str, who: str, where: str) -> bool:
    entry = _parse_line(line, where)
    if entry is None:
        return False
    if is_keyid(who):
        return entry.key is not None and entry.key.keyid == who
    if who in entry.principals and len(entry.principals) > 1:
        raise UsageError(
            "the line names several principals",
            where=where,
            got=ascii(",".join(entry.principals)[:80]),
            remedy="edit the line, or remove the key by its fingerprint",
        )
    return entry.principals == (who,)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{line}\n" for line in lines).encode(), mode=0o600)


def judge(
    envelope: Envelope,
    signer_keys: Iterable[PublicKey],
    trust: Trust,
    own_keyids: Iterable[str] = (),
    *,
    signer: str | None = None,
    at: datetime | None = None,
    verified: Sequence[PublicKey | None] | None = None,
    at_hand: Sequence[PublicKey] | None = None,
) -> Signature:
    """Return the verdict on who signed the envelope (DESIGN § 2.2).

    1. Keys at hand are those of `signer.pub` and of the trust file; each is tried on each signature (DSSE).
    2. None verifies: `invalid` if a key of `signer.pub` is there or a keyid names a key at hand, else
    `not-checkable`. 3. `signer` (a fingerprint or principal) demands that one signer: any other, however
    trusted, is `unknown-signer`. 4. `self` for a key of this machine, also when it is in the trust file:
    nobody vouches for himself. 5. `trusted` if a line of the trust file counts for the key now, or if its
    fingerprint was demanded. 6. Of several signers the best is named: trusted, then self, then unknown. 7. A key
    that is revoked is `revoked`, whoever demands it and whatever else is allowed.

    `verified` is what `envelope.verifiers` says of the keys at hand, where that is known already; `at_hand` are these
    keys where they are others than those of (1).
    """
    published = tuple(signer_keys)
    at_hand = tuple(dict.fromkeys((*published, *trust.keys()) if at_hand is None else at_hand))  # (1)
    by = set(verifiers(envelope, at_hand) if verified is None else verified)
    signers = [key for key in at_hand if key in by]
    if not signers:
        return _unverified(envelope, published, at_hand)  # (2)
    own = frozenset(own_keyids)
    when = at or datetime.now(UTC)
    verdicts = [_judge_key(key, trust, own, signer, when) for key in signers]
    order = ("trusted", "self", "unknown-signer", "revoked")
    return min(verdicts, key=lambda verdict: order.index(verdict.state))  # (6)


def _unverified(envelope: Envelope, published: tuple[PublicKey, ...], at_hand: tuple[PublicKey, ...]) -> Signature:
    hints = [signature.keyid for signature in envelope.signatures if signature.keyid]
    named = {key.keyid for key in at_hand} & set(hints)
    hint = ascii(hints[0][:80])[1:-1] if hints else ""
    if published or named:
        detail = "no signature verifies: the statement was changed, or signed by another key than the one at hand"
        return Signature(state="invalid", keyid=hint, detail=detail)
    return Signature(
        state="not-checkable",
        keyid=hint,
        detail="no key is at hand: signer.pub is missing and the trust file does not hold the key",
    )


def _judge_key(key: PublicKey, trust: Trust, own: frozenset[str], signer: str | None, at: datetime) -> Signature:
    if key.keyid in trust.revoked:  # (7)
        detail = "a valid signature, but by a key that was revoked here: its holder may be anybody"
        return Signature(state="revoked", keyid=key.keyid, detail=detail)
    names = trust.principals(key, at)
    principal = ", ".join(names)
    if signer is not None and not _demanded(key, trust, signer, at):  # (3)
        detail = f"a valid signature, but not by the demanded signer {ascii(signer)[1:-1]}"
        return Signature(state="unknown-signer", keyid=key.keyid, principal=principal, detail=detail)
    if key.keyid in own:  # (4)
        detail = "signed with a key of this very machine"
        return Signature(state="self", keyid=key.keyid, principal=principal, detail=detail)
    if names or signer is not None:  # (5)
        detail = "the key is in the trust file" if names else "the fingerprint is the one that was demanded"
        return Signature(state="trusted", keyid=key.keyid, principal=principal, detail=detail)
    detail = "the signature is valid; nobody here vouches for its key"
    if key in set(trust.keys()):
        detail = "the key is in the trust file, but its line does not count now or not for this use"
    return Signature(state="unknown-signer", keyid=key.keyid, detail=detail)


def _demanded(key: PublicKey, trust: Trust, signer: str, at: datetime) -> bool:
    return key.keyid == signer if is_keyid(signer) else trust.belongs(key, signer, at)


def accepted(signature: Signature, *, signer: str | None, allow_untrusted: bool) -> bool:
    """Return whether verification may pass: `allow_untrusted` never overrides a demanded signer."""
    if signature.state == "unknown-signer":
        return allow_untrusted and signer is None
    return signature.state in ("trusted", "self")
