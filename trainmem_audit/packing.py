"""Makes one uploadable zip of a run directory: the signed files and nothing else, after a search for secrets.

The same run gives the same bytes under one version of zlib: sorted names, no times, no owners. Not here:
whether the signature holds or who signed (`verify`); but a file that is not what was signed is not packed.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainmem_audit.canonical import loads_strict, sha256_hex
from trainmem_audit.commitments import MAX_BYTES as MAX_OPENINGS
from trainmem_audit.commitments import parse_disclosures
from trainmem_audit.documents.attestations import FILE_NAME as ATTESTATIONS
from trainmem_audit.documents.disclosures import FILE_NAME as DISCLOSURES
from trainmem_audit.documents.disclosures import SCHEMA_VERSION, Disclosures
from trainmem_audit.documents.manifest import UNLISTED
from trainmem_audit.envelope import MAX_BYTES, parse_envelope
from trainmem_audit.errors import NEXT_LINE, FormatError, UsageError
from trainmem_audit.privacy import NAME_KIND, find_identity, find_secrets, identity
from trainmem_audit.rundir import DirectoryReader, RunReader, check_names

__all__ = ["PackResult", "Secret", "find_in_run", "pack"]

BINARY_SUFFIXES: Final = (".b3", ".i64", ".safetensors")
_NAMING: Final = frozenset({DISCLOSURES, ATTESTATIONS})
"""Files that are there to say who: searched for secrets only, and left out of a blind pack."""
_CHUNK: Final = 2**20
_OVERLAP: Final = 512  # longer than any token that is searched for
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold
_SHOWN: Final = 20


@dataclass(frozen=True)
class Secret:
    """Where something lies that should not be published, never what it is. Line 0 is the name of the file."""

    file: str
    line: int
    kind: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.kind}"


@dataclass(frozen=True)
class PackResult:
    """What was packed, what of the directory was left out, and what was let through although it was found.

    `kept_back` is what a blind pack leaves out, `opened` the commitments whose openings go along.
    """

    path: Path
    bytes: int
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    secrets: tuple[Secret, ...]
    kept_back: tuple[str, ...] = ()
    opened: tuple[str, ...] = ()


def pack(
    run_dir: Path, out: Path, *, allow_secrets: bool = False, allow_identity: bool = False, blind: bool | None = False
) -> PackResult:
    """Write the run in `run_dir` to the zip `out`, whole or not at all.

    Parameters
    ----------
    allow_secrets, allow_identity:
        Pack although something looks like a secret, or names this user or machine.
    blind:
        Leave out what names people: the openings of the salted commitments (DESIGN § 2.5) and what others attested.
        `run.json` is the same, so the signature still holds. `None`: as the run was recorded, blind with `--anonymous`.

    Raises
    ------
    UsageError
        If something that looks like a secret, or a name of this user or machine, is in a text file and not
        allowed; if `out` lies in the run directory or is a file that is no zip.
    FormatError
        If the directory is unsafe to read, or a signed file is missing or not what was signed.
    """
    _check_places(run_dir, out)
    with DirectoryReader(run_dir) as reader:
        data = reader.read("run.json", MAX_BYTES)
        digests = _signed_digests(reader, data)
        disclosures = _disclosures(reader)
        blind = disclosures.anonymous if blind is None else blind
        kept_back = tuple(name for name in reader.names() if blind and name in _NAMING)
        wanted = (set(digests) | UNLISTED) - set(kept_back)
        files = tuple(name for name in reader.names() if name in wanted)
        expected = {name: digests.get(name) or reader.sha256(name) for name in files}
        expected["run.json"] = sha256_hex(data)  # what was read and searched is what is packed
        found = find_in_run(reader, files)
        allowed = {True: allow_identity, False: allow_secrets}
        stopping = tuple(item for item in found if not allowed[item.kind == NAME_KIND])
        if stopping:
            raise _refusal(stopping)
        _write_zip(reader, expected, out)
        left_out = tuple(name for name in reader.names() if name not in wanted and name not in kept_back)
    opened = () if blind else tuple(item.name for item in disclosures.disclosures if item.value is not None)
    return PackResult(out, out.stat().st_size, files, left_out, found, kept_back, opened)


def _disclosures(reader: RunReader) -> Disclosures:
    """Return the openings in the run directory; a file that cannot be read is not packed, blind or not."""
    if DISCLOSURES not in reader.names():
        return Disclosures(schema_version=SCHEMA_VERSION, disclosures=())
    return parse_disclosures(reader.read(DISCLOSURES, MAX_OPENINGS), DISCLOSURES)


def _check_places(run_dir: Path, out: Path) -> None:
    if not (run_dir / "run.json").is_file():
        raise UsageError(
            "not a run directory",
            where=str(run_dir),
            expected="a directory with a run.json",
            remedy="a killed run is closed by: trainmem-audit recover",
        )
    if out.resolve().is_relative_to(run_dir.resolve()):
        raise UsageError(
            "the pack would lie in the run directory, as a file that nobody signed",
            where=str(out),
            remedy="choose a place outside of it",
        )
    if out.exists() and not (out.is_file() and zipfile.is_zipfile(out)):
        raise UsageError("the file is there and is no zip", where=str(out), remedy="choose another name")
    if not out.absolute().parent.is_dir():
        raise UsageError("no such folder", where=str(out.parent), remedy="make it first")


def _signed_digests(reader: RunReader, data: bytes) -> dict[str, str]:
    """Return what `run.json`, which holds `data`, lists: names to SHA-256. All of them must be there."""
    where = f"{reader.label}: run.json"
    envelope = parse_envelope(data, where)
    statement = loads_strict(envelope.payload, f"{where}: payload")
    try:
        digests = {_text(item["name"]): _text(item["digest"]["sha256"]) for item in statement["subject"]}
    except (KeyError, TypeError, ValueError):
        raise FormatError(
            "the statement lists no files with digests", where=where, expected="in-toto Statement v1"
        ) from None
    for name in check_names(digests, where):
        reader.size(name)
    return digests


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def find_in_run(reader: RunReader, files: tuple[str, ...]) -> tuple[Secret, ...]:
    """Return every secret, and every name of this user or machine, in the text files and in their names."""
    names = identity()
    found: list[Secret] = []
    for name in files:
        found += _search(name, name, 0, names)
        if not name.endswith(BINARY_SUFFIXES):
            for number, text in _pieces(reader, name):
                found += _search(text, name, number, () if name in _NAMING else names)
        if name == "run.json":
            payload = parse_envelope(reader.read(name, MAX_BYTES), name).payload
            found += _search(payload.decode("utf-8", "replace"), name, 1, names)
    return tuple(dict.fromkeys(found))


def _search(text: str, name: str, line: int, names: tuple[str, ...]) -> Iterator[Secret]:
    for kind, _, _ in (*find_secrets(text), *find_identity(text, names)):
        yield Secret(name, line, kind)


def _pieces(reader: RunReader, name: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) in bounded memory; pieces of an overlong line overlap."""
    number, tail = 1, b""
    with reader.open(name) as file:
        while piece := file.readline(_CHUNK):
            yield number, (tail + piece).decode("utf-8", "replace")
            ended = piece.endswith(b"\n")
            number += ended
            tail = b"" if ended else piece[-_OVERLAP:]


def _refusal(found: tuple[Secret, ...]) -> UsageError:
    names = [item for item in found if item.kind == NAME_KIND]
    remedies = []
    if len(names) < len(found):
        remedies.append("take the secret out of the script, revoke it, and record again (or --allow-secrets)")
    if names:
        remedies.append("for a blind review take your name out and record again; else --allow-identity")
    shown = NEXT_LINE.join(str(secret) for secret in found[:_SHOWN])
    more = f"{NEXT_LINE}and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return UsageError(
        "the run holds what should not be published; nothing was packed",
        where=str(found[0]).rsplit(": ", 1)[0],
        got=shown + more,
        remedy=NEXT_LINE.join(remedies),
    )


def _write_zip(reader: RunReader, digests: dict[str, str], out: Path) -> None:
    aside = out.with_name(f".{out.name[:100]}.{secrets.token_hex(8)}")
    try:
        with aside.open("xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
                for name, digest in digests.items():
                    _add(archive, reader, name, digest)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)


def _add(archive: zipfile.ZipFile, reader: RunReader, name: str, expected: str) -> None:
    """Copy one file, hashed on its way; `expected` is its digest, the signed one where it has one."""
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # unix, whatever this machine is
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.file_size = reader.size(name)
    hasher = hashlib.sha256()
    with reader.open(name) as source, archive.open(info, "w") as target:
        while piece := source.read(_CHUNK):
            hasher.update(piece)
            target.write(piece)
    if hasher.hexdigest() != expected:
        raise FormatError(
            "the file is not what was signed",
            where=f"{reader.label}: {name}",
            expected=f"sha256 {expected}",
            got=f"sha256 {hasher.hexdigest()}",
            remedy="restore it, or record the run again",
        )
