"""Ed25519 keys (RFC 8032) in OpenSSH's formats: reading, checking, making and storing them.

A key is named by its OpenSSH fingerprint `SHA256:…`, which is also the keyid of our envelopes. A passphrase
comes from the caller; nothing here asks for one. Not here: whom a key belongs to (`trust`), and what gets
signed (`envelope`).
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import stat
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import platformdirs
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_ssh_private_key,
)

from trainmem_audit.errors import KeyFileError

__all__ = [
    "PASSPHRASE_VARIABLE",
    "PublicKey",
    "Signer",
    "find_passphrase",
    "home",
    "is_encrypted",
    "is_keyid",
    "load_or_make_project_key",
    "make_anonymous_key",
    "own_keyids",
    "own_keys",
    "parse_public_keys",
    "project_key_path",
    "write_key",
]

PASSPHRASE_VARIABLE: Final = "TRAINMEM_AUDIT_PASSPHRASE"
HOME_VARIABLE: Final = "TRAINMEM_AUDIT_HOME"
MAX_SIGNERS: Final = 8

_P: Final = 2**255 - 19  # the field, RFC 8032 § 5.1
_L: Final = 2**252 + 27742317777372353535851937790883648493  # the order of the base point
_D: Final = -121665 * pow(121666, -1, _P) % _P
_BLOB_HEAD: Final = b"\x00\x00\x00\x0bssh-ed25519\x00\x00\x00\x20"  # RFC 8709 § 4
_LINE: Final = re.compile(rb"ssh-ed25519 ([A-Za-z0-9+/]{68})(?: [^\x00-\x1f\x7f]*)?\n?")
_KEYID: Final = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_ARMOUR: Final = (b"-----BEGIN OPENSSH PRIVATE KEY-----", b"-----END OPENSSH PRIVATE KEY-----")
_KDF_ROUNDS: Final = 24  # what ssh-keygen uses since OpenSSH 9.4
_MAX_KEY_FILE: Final = 64 * 1024


def is_keyid(text: str) -> bool:
    """Return whether `text` has the form of an OpenSSH fingerprint."""
    return _KEYID.fullmatch(text) is not None


def _is_point(raw: bytes) -> bool:
    """Return whether `raw` is the canonical encoding of a point of the curve (RFC 8032 § 5.1.3)."""
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    if y >= _P:
        return False
    x2 = (y * y - 1) * pow(_D * y * y + 1, -1, _P) % _P
    return x2 == 0 or pow(x2, (_P - 1) // 2, _P) == 1


def _has_small_order(raw: bytes) -> bool:
    """Return whether the point's order divides 8: doubled three times, it is the identity (y = 1)."""
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    for _ in range(3):
        y2 = y * y % _P
        x2 = (y2 - 1) * pow(_D * y2 + 1, -1, _P) % _P
        y = (y2 + x2) * pow(1 - _D * x2 * y2, -1, _P) % _P
    return y == 1


@dataclass(frozen=True)
class PublicKey:
    """An Ed25519 public key that is safe to verify with.

    Raises
    ------
    KeyFileError
        If `raw` is not 32 bytes, not a canonically encoded point, or of small order: OpenSSL accepts
        forgeries under the eight points of small order (any message, no private key needed).
    """

    raw: bytes

    def __post_init__(self) -> None:
        """Refuse what must never verify anything."""
        if len(self.raw) != 32:
            raise KeyFileError("not an Ed25519 public key", expected="32 bytes", got=f"{len(self.raw)} bytes")
        if not _is_point(self.raw):
            raise KeyFileError("the public key is no point of Ed25519", expected="RFC 8032 § 5.1.3")
        if _has_small_order(self.raw):
            raise KeyFileError(
                "the public key has small order: anyone can forge its signatures",
                remedy="do not trust whoever gave it; ask for another key",
            )

    @classmethod
    def from_openssh(cls, line: bytes, where: str) -> PublicKey:
        """Return the key of one line `ssh-ed25519 BASE64[ comment]`, with or without its LF."""
        match = _LINE.fullmatch(line)
        if not match:
            raise KeyFileError(
                "not an Ed25519 public key",
                where=where,
                expected="one line `ssh-ed25519 BASE64`",
                got=ascii(line[:40].decode("latin-1")),
            )
        blob = base64.b64decode(match[1])
        if not blob.startswith(_BLOB_HEAD):
            raise KeyFileError("the key's data is not that of an Ed25519 key", where=where, expected="RFC 8709 § 4")
        try:
            return cls(blob[len(_BLOB_HEAD) :])
        except KeyFileError as error:
            error.where = where
            raise

    @property
    def keyid(self) -> str:
        """The OpenSSH fingerprint: `SHA256:` and the unpadded base64 of the SHA-256 of the key's blob."""
        digest = hashlib.sha256(_BLOB_HEAD + self.raw).digest()
        return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")

    def openssh_text(self) -> str:
        """Return `ssh-ed25519 BASE64`, without comment or line feed."""
        return "ssh-ed25519 " + base64.b64encode(_BLOB_HEAD + self.raw).decode()

    def openssh_line(self) -> bytes:
        """Return the line of `signer.pub`: no comment, since that would tell user and host; one LF."""
        return self.openssh_text().encode() + b"\n"

    def verify(self, signature: bytes, message: bytes) -> bool:
        """Return whether the key made `signature` over `message` (RFC 8032 § 5.1.7; S < L: not malleable)."""
        if len(signature) != 64 or int.from_bytes(signature[32:], "little") >= _L:
            return False
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except InvalidSignature:
            return False
        return True


def parse_public_keys(data: bytes, where: str) -> tuple[PublicKey, ...]:
    """Return the keys of a `signer.pub`: one line per signer, as `PublicKey.openssh_line` writes it.

    Raises
    ------
    KeyFileError
        For a comment (it could claim to be anybody), a blank line, a key twice, more than 8 keys, or no key.
    """
    lines = data.splitlines(keepends=True)
    if not 1 <= len(lines) <= MAX_SIGNERS:
        raise KeyFileError(
            "not a list of signers", where=where, expected=f"1 to {MAX_SIGNERS} lines", got=str(len(lines))
        )
    keys = tuple(PublicKey.from_openssh(line, f"{where}:{n}") for n, line in enumerate(lines, 1))
    for number, (key, line) in enumerate(zip(keys, lines, strict=True), 1):
        if line != key.openssh_line():
            raise KeyFileError(
                "not the plain form of the key",
                where=f"{where}:{number}",
                expected="`ssh-ed25519 BASE64` and a line feed, no comment",
                got=ascii(line.decode("latin-1")),
            )
    if len(set(keys)) != len(keys):
        raise KeyFileError("a key is there twice", where=where)
    return keys


@dataclass(frozen=True, repr=False)
class Signer:
    """A private key, unlocked. Its `repr` shows the fingerprint only."""

    private: Ed25519PrivateKey

    def __repr__(self) -> str:
        return f"Signer({self.public.keyid})"

    @classmethod
    def generate(cls) -> Signer:
        """Return a fresh key from the operating system's entropy."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Signer:
        """Return the key of a 32-byte seed (RFC 8032 § 5.1.5)."""
        if len(seed) != 32:
            raise KeyFileError("not an Ed25519 seed", expected="32 bytes", got=f"{len(seed)} bytes")
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path, passphrase: bytes | None) -> Signer:
        """Return the key of an OpenSSH private key file; a passphrase that it does not need is ignored.

        Raises
        ------
        KeyFileError
            If the file cannot be read, is readable by others, is no Ed25519 key, or does not open with
            `passphrase`.
        """
        data = _read_private(path)
        encrypted = _is_encrypted(data, path)
        if encrypted and not passphrase:
            raise KeyFileError(
                "the key is encrypted and no passphrase was given",
                where=str(path),
                remedy=f"type it when asked, set {PASSPHRASE_VARIABLE}, or name a file that holds it",
            )
        try:
            private = load_ssh_private_key(data, passphrase if encrypted else None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise KeyFileError(
                "wrong passphrase, or a damaged key" if encrypted else "not a private key in OpenSSH format",
                where=str(path),
                got=str(error),
                remedy="try the passphrase again" if encrypted else "make one: trainmem-audit keygen",
            ) from None
        if not isinstance(private, Ed25519PrivateKey):
            raise KeyFileError(
                "the key is of another kind",
                where=str(path),
                expected="Ed25519",
                remedy="make one: trainmem-audit keygen",
            )
        return cls(private)

    def seed(self) -> bytes:
        """Return the 32 secret bytes, to hand an unlocked key to a child over a pipe (never argv)."""
        return self.private.private_bytes_raw()

    @property
    def public(self) -> PublicKey:
        """The public half."""
        return PublicKey(self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature (deterministic, RFC 8032 § 5.1.6)."""
        return self.private.sign(message)


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_MAX_KEY_FILE + 1)
    except OSError as error:
        raise KeyFileError(
            "the key cannot be read", where=str(path), got=error.strerror or type(error).__name__
        ) from None
    if sys.platform != "win32" and mode & 0o077:
        raise KeyFileError(
            "the private key can be read by others",
            where=str(path),
            expected="mode 0600",
            got=f"mode {stat.S_IMODE(mode):04o}",
            remedy=f"chmod 600 {path}",
        )
    if len(data) > _MAX_KEY_FILE:
        raise KeyFileError("not a private key in OpenSSH format", where=str(path), got="too long a file")
    return data


def _is_encrypted(data: bytes, path: Path) -> bool:
    """Read the cipher's name out of an `openssh-key-v1` file (OpenSSH's PROTOCOL.key § 1)."""
    text = data.strip()
    head, tail = _ARMOUR
    magic = b"openssh-key-v1\0"
    with suppress(ValueError):
        blob = base64.b64decode(text.removeprefix(head).removesuffix(tail), validate=False)
        if text.startswith(head) and text.endswith(tail) and blob.startswith(magic):
            return not blob[len(magic) :].startswith(b"\x00\x00\x00\x04none")
    raise KeyFileError(
        "not a private key in OpenSSH format",
        where=str(path),
        expected=head.decode(),
        remedy="make one: trainmem-audit keygen",
    )


def is_encrypted(path: Path) -> bool:
    """Return whether loading the key needs a passphrase, so that a caller knows when to ask for one."""
    return _is_encrypted(_read_private(path), path)


def find_passphrase(file: Path | None, environ: Mapping[str, str]) -> bytes | None:
    """Return the passphrase from the first line of `file`, else from the environment, else None."""
    if file is None:
        return environ.get(PASSPHRASE_VARIABLE, "").encode("utf-8", "surrogateescape") or None
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise KeyFileError(
            "the passphrase file cannot be read", where=str(file), got=error.strerror or type(error).__name__
        ) from None
    if not lines or not lines[0]:
        raise KeyFileError("the passphrase file is empty", where=str(file))
    return lines[0]


def write_key(path: Path, signer: Signer, passphrase: bytes | None) -> None:
    """Write the private key (OpenSSH format, mode 0600) to `path`, its public line to `path.pub`, both new.

    Raises
    ------
    KeyFileError
        If either file is there already (no key is ever overwritten), cannot be made, or `passphrase` is empty
        or longer than 1024 bytes.
    """
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        if not 1 <= len(passphrase) <= 1024:
            raise KeyFileError("an unusable passphrase", expected="1 to 1024 bytes", got=f"{len(passphrase)} bytes")
        builder = PrivateFormat.OpenSSH.encryption_builder().kdf_rounds(_KDF_ROUNDS)
        encryption = builder.build(passphrase)
    data = signer.private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, encryption)
    public = _public_path(path)
    if os.path.lexists(public):
        raise _exists(public)
    _create_new(path, data, 0o600)
    try:
        _create_new(public, signer.public.openssh_line(), 0o644)
    except KeyFileError:
        if not _holds(public, signer.public):  # else another process mended it before we wrote it
            path.unlink()
            raise


def _public_path(path: Path) -> Path:
    return path.with_name(path.name + ".pub")


def _holds(path: Path, public: PublicKey) -> bool:
    try:
        return PublicKey.from_openssh(path.read_bytes(), path.name) == public
    except (KeyFileError, OSError):
        return False


def _exists(path: Path) -> KeyFileError:
    return KeyFileError(
        "the file is there already, and a key is never overwritten",
        where=str(path),
        remedy="choose another name, or move the old key away",
    )


def _create_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that must not exist. It appears whole: written aside (O_EXCL), then linked to its name."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        _write_exclusive(aside, data, mode)
        try:
            os.link(aside, path)
        except FileExistsError:
            raise _exists(path) from None
        except OSError:  # a file system without hard links
            _write_exclusive(path, data, mode)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise KeyFileError(
            "the key cannot be written", where=str(path), got=error.strerror or type(error).__name__
        ) from None
    finally:
        aside.unlink(missing_ok=True)


def _write_exclusive(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def home() -> Path:
    """Return the folder of keys and trust file: `TRAINMEM_AUDIT_HOME`, else where settings lie."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else Path(platformdirs.user_config_dir("trainmem-audit"))


def _key_folder() -> Path:
    folder = home() / "keys"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise KeyFileError(
            "the folder of keys cannot be made",
            where=str(folder),
            got=error.strerror or type(error).__name__,
            remedy=f"set {HOME_VARIABLE} to a folder that you can write to",
        ) from None
    return folder


def project_key_path(directory: Path) -> Path:
    """Return where the key of the project around `directory` lies.

    The project's root is the nearest folder upwards with `.git` or `pyproject.toml`, else `directory` itself.
    """
    start = directory.resolve()
    marks = (".git", "pyproject.toml")
    root = next((d for d in (start, *start.parents) if any((d / mark).exists() for mark in marks)), start)
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", root.name) or "root"
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:8]
    return home() / "keys" / f"{name[:64]}-{digest}"


def load_or_make_project_key(directory: Path, passphrase: bytes | None) -> tuple[Signer, bool]:
    """Return the project's key, made now if there is none; the flag says so, and the caller says it aloud."""
    path = project_key_path(directory)
    _key_folder()
    if not os.path.lexists(path):
        signer = Signer.generate()
        try:
            write_key(path, signer, passphrase)
        except KeyFileError:
            if not os.path.lexists(path):  # else another process made it first
                raise
        else:
            return signer, True
    signer = Signer.load(path, passphrase)
    _mend_public(path, signer)
    return signer, False


def _mend_public(path: Path, signer: Signer) -> None:
    """Write a missing `.pub` again; refuse one that belongs to another key."""
    public = _public_path(path)
    if not public.exists():
        with suppress(KeyFileError):  # another process was faster
            _create_new(public, signer.public.openssh_line(), 0o644)
    if not _holds(public, signer.public):
        raise KeyFileError("the public key is not that of the private key", where=str(public))


def make_anonymous_key(passphrase: bytes | None) -> tuple[Signer, Path]:
    """Make a key for one run (`--anonymous`) and keep it, so that its owner can prove authorship later."""
    signer = Signer.generate()
    path = _key_folder() / f"anonymous-{hashlib.sha256(signer.public.raw).hexdigest()[:16]}"
    write_key(path, signer, passphrase)
    return signer, path


def own_keys() -> dict[PublicKey, Path]:
    """Return this machine's own keys and where their private halves lie; a file there that is no such key is no key."""
    found: dict[PublicKey, Path] = {}
    for public in sorted((home() / "keys").glob("*.pub")):
        with suppress(KeyFileError, OSError):
            found[PublicKey.from_openssh(public.read_bytes(), str(public))] = public.with_suffix("")
    return found


def own_keyids() -> set[str]:
    """Return the fingerprints of this machine's own keys."""
    return {key.keyid for key in own_keys()}
