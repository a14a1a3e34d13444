"""L2: which version a document is of, what is done with it, and how an older one becomes a newer one.

A document says in `schemaVersion` for which version it was written. `choose` answers with the schema to apply:

- a version that we have: its own schema, for ever;
- a newer minor of a major that we have: the newest that we have. Members that it does not know are ignored and listed,
  and no verdict is better than *inconclusive*;
- anything else (an unknown major, a version before 1.0 or a draft that is not exactly ours): `VersionError`, and exit
  code 2.

`RELEASES` holds for each older version how its documents become those of the next. There is none yet. `migrate` makes
another document, which the signature of the old one does not cover, and which names its digest. Not here: signatures.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

from trainmem_audit.canonical import canonical_bytes, sha256_hex
from trainmem_audit.conformance import our_schemas, pointer
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.documents.manifest import PREDICATE_TYPE, Statement
from trainmem_audit.documents.steplog import LINE_TYPES, Line, Unknown, parse_line
from trainmem_audit.errors import FormatError, UsageError, VersionError

__all__ = [
    "RELEASES",
    "Choice",
    "Reading",
    "Release",
    "choose",
    "line_parser",
    "migrate",
    "read_statement",
    "upgrade",
    "version_of",
]

MOST_IGNORED: Final = 100
_SEMVER: Final = re.compile(r"(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})(-[0-9A-Za-z.-]{1,40})?")


@dataclass(frozen=True)
class Choice:
    """The version whose schema is applied; `newer` when the document was written for a later minor than we know."""

    version: str
    newer: bool = False


@dataclass(frozen=True)
class Release:
    """How a document of one version becomes one of the next: `change(schema name, document)` returns the new one."""

    following: str
    change: Callable[[str, dict[str, Any]], dict[str, Any]]


RELEASES: dict[str, Release] = {}
"""By the version that a document is of. A released version never leaves this table (`schema/README.md` § Versions)."""


class Reading(NamedTuple):
    """A statement as this version understands it, and the members (JSON pointers) that it does not know."""

    statement: Statement
    choice: Choice
    ignored: tuple[str, ...] = ()

    @property
    def log_choice(self) -> Choice:
        """The version of the step log: that of the statement, or of the older one from which it was migrated.

        Raises
        ------
        VersionError
            If that version is not known.
        """
        derived = self.statement.predicate.derived_from
        if derived is None:
            return self.choice
        return choose(derived.schema_version, our_schemas().versions, "predicate.derivedFrom.schemaVersion")


def choose(asked: str, known: Iterable[str], where: str = "schemaVersion") -> Choice:
    """Return which of the `known` versions a document that was written for `asked` is read with.

    Raises
    ------
    FormatError
        If `asked` is no version.
    VersionError
        If it is one that must not be guessed at.
    """
    known = tuple(known)
    match = _SEMVER.fullmatch(asked)
    if match is None:
        raise FormatError("not a version", where=where, expected="MAJOR.MINOR.PATCH", got=asked[:80])
    if asked in known:
        return Choice(asked)
    major, minor = int(match[1]), int(match[2])
    released = [version for version in known if "-" not in version and _numbers(version)[0] == major]
    if major and released and not match[4]:
        newest = max(released, key=_numbers)
        if (major, minor) >= _numbers(newest)[:2]:
            return Choice(newest, newer=(major, minor) > _numbers(newest)[:2])
    raise VersionError(
        "a version of the schema that this program does not know",
        where=where,
        expected=" or ".join(known),
        got=asked[:80],
        remedy="use a version of trainmem-audit that knows it",
    )


def _numbers(version: str) -> tuple[int, int, int]:
    major, minor, patch = version.partition("-")[0].split(".")
    return int(major), int(minor), int(patch)


def version_of(name: str, document: Any) -> str:
    """Return what a document says of its version: in its predicate for a statement, else at its top level.

    Raises
    ------
    FormatError
        If it says nothing.
    """
    where = "predicate.schemaVersion" if name == "statement" else "schemaVersion"
    holder = _holder(name, document) if isinstance(document, dict) else None
    version = holder.get("schemaVersion") if isinstance(holder, dict) else None
    if not isinstance(version, str):
        raise FormatError("no version of the schema", where=where, expected=SCHEMA_VERSION, got=str(version)[:80])
    return version


def _holder(name: str, document: dict[str, Any]) -> Any:
    return document.get("predicate") if name == "statement" else document


def upgrade(name: str, document: dict[str, Any], version: str) -> dict[str, Any]:
    """Return a document of an older version as one of the current version; the older one is not changed."""
    if name != "step-log":
        document = copy.deepcopy(document)
    while version != SCHEMA_VERSION:
        release = RELEASES.get(version)
        if release is None:
            raise VersionError("nothing is known of how to read that version", where=name, got=version)
        document, version = release.change(name, document), release.following
        if name != "step-log":
            holder = _holder(name, document)
            holder["schemaVersion"] = version
    return document


def read_statement(payload: bytes, members: Any, where: str = "statement") -> Reading:
    """Return the statement that `payload` (already parsed to `members`) holds, of whichever version it is.

    Raises
    ------
    FormatError
        If it is no statement of ours, or does not conform.
    VersionError
        If its version is not known.
    """
    kind = members.get("predicateType") if isinstance(members, dict) else None
    if kind != PREDICATE_TYPE:
        raise FormatError(
            "another kind of statement", where="predicateType", expected=PREDICATE_TYPE, got=str(kind)[:200]
        )
    choice = choose(version_of("statement", members), our_schemas().versions, "predicate.schemaVersion")
    if choice.version != SCHEMA_VERSION:
        _require_conforming(members, choice, where)
        members = upgrade("statement", members, choice.version)
        payload = canonical_bytes(members)
    if not choice.newer:
        return Reading(Statement.parse(payload, where), choice)
    statement: Statement = Statement.parse(payload, where, extra="ignore")
    ignored = _unread(members["predicate"], statement.predicate.to_json(), ("predicate",))
    return Reading(statement, choice, tuple(pointer(path) for path in islice(ignored, MOST_IGNORED)))


def _require_conforming(members: Any, choice: Choice, where: str) -> None:
    """An older document is held to the schema of its own version; one of a later minor has members that none knows."""
    found = [] if choice.newer else our_schemas().findings(members, "statement", choice.version)
    if found:
        raise FormatError(
            f"not a valid statement of version {choice.version}: {found[0].message}",
            where=f"{where}: {found[0].where}",
            expected=found[0].expected,
            got=found[0].got,
        )


def _unread(given: Any, read: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Give the path of every member of `given` that is not in what was read of it."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name, value in given.items():
            if name in read:
                yield from _unread(value, read[name], (*path, name))
            else:
                yield (*path, name)
    elif isinstance(given, list) and isinstance(read, list):
        for number, (one, other) in enumerate(zip(given, read, strict=False)):
            yield from _unread(one, other, (*path, number))


def line_parser(choice: Choice) -> Callable[[bytes, dict[str, Any], str], Line]:
    """Return what reads a line of a log of that version; of a type that is not known, `Unknown`."""

    def older(_: bytes, members: dict[str, Any], where: str) -> Line:
        current = upgrade("step-log", members, choice.version)
        return parse_line(canonical_bytes(current), current, where)

    def newer(line: bytes, members: dict[str, Any], where: str) -> Line:
        kind = members.get("t")
        if isinstance(kind, str) and kind not in LINE_TYPES:
            unknown: Unknown = Unknown.parse(line, where)
            return unknown
        return parse_line(line, members, where, extra="ignore")

    if choice.newer:
        return newer
    return parse_line if choice.version == SCHEMA_VERSION else older


def migrate(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of an older version as one of the current version that names the digest of the old.

    Raises
    ------
    FormatError
        If the old document does not conform to the schema of its own version.
    UsageError
        If there is nothing to migrate.
    VersionError
        If its version is not known.
    """
    version = version_of(name, document)
    choice = choose(version, our_schemas().versions)
    if choice.newer or choice.version == SCHEMA_VERSION:
        raise UsageError("the document is of the current version, or a newer one", where=name, got=version[:80])
    if "derivedFrom" in _holder(name, document):
        raise UsageError(
            "the document was migrated itself", where=name, remedy="migrate the one that it was derived from"
        )
    found = our_schemas().findings(document, name, choice.version)
    if found:
        raise FormatError(
            f"not a valid {name} of version {version}: {found[0].message}",
            where=found[0].where,
            expected=found[0].expected,
            got=found[0].got,
        )
    new = upgrade(name, document, choice.version)
    _holder(name, new)["derivedFrom"] = {"schemaVersion": version, "sha256": sha256_hex(canonical_bytes(document))}
    wrong = our_schemas().findings(new, name)
    if wrong:
        raise FormatError(
            f"the migrated {name} does not conform to version {SCHEMA_VERSION}: {wrong[0].message}",
            where=wrong[0].where,
            expected=wrong[0].expected,
            got=wrong[0].got,
        )
    return new
