"""Frozen releases of the schemas: how one is made, how it is held, and a made-up older one for the tests.

`python -m tests.releases 1.0.0` freezes `schema/draft/` as a release: a copy whose `$id`s and vectors name the version,
and `FROZEN.sha256`, which `sha256sum -c` reads and `tests/test_versions.py` holds for ever.

The made-up version is the draft with one member called otherwise. It exists in temporary directories only.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from trainmem_audit.documents.common import SCHEMA_VERSION

__all__ = ["FROZEN", "ROOT", "damage", "freeze", "make_older", "older_statement", "younger"]

ROOT = Path(__file__).resolve().parent.parent / "schema"
FROZEN = "FROZEN.sha256"
_RENAMED = {"numericProfile": "profileOfNumbers", "hashSeed": "seedOfHashes"}
"""What the made-up older version calls two members: one of the statement, one of both statement and log."""


def freeze(draft: Path, target: Path, version: str) -> None:
    """Make the folder of a release from the draft; a folder that is there is never touched."""
    target.mkdir(parents=True)
    for path in sorted(draft.glob("*.schema.json")):
        text = path.read_text("utf-8").replace(SCHEMA_VERSION, version)
        (target / path.name).write_text(text, "utf-8")
    seal(target)


def seal(folder: Path) -> None:
    """Write `FROZEN.sha256` over every other file."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    lines = [f"{_sha256(folder / name)}  {name}\n" for name in names if name != FROZEN]
    (folder / FROZEN).write_text("".join(lines), "utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def damage(folder: Path) -> list[str]:
    """Return what is not as it was frozen: files changed, gone, or added."""
    if not (folder / FROZEN).is_file():
        return [f"{FROZEN} is missing"]
    lines = (folder / FROZEN).read_text("utf-8").splitlines()
    frozen = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {FROZEN}
    wrong = [f"{name} is missing" for name in frozen.keys() - there]
    wrong += [f"{name} was added" for name in there - frozen.keys()]
    for name in frozen.keys() & there:
        if _sha256(folder / name) != frozen[name]:
            wrong.append(f"{name} was changed")
    return sorted(wrong)


def make_older(root: Path, version: str) -> None:
    """Make below `root` the draft and a made-up older version of it."""
    shutil.copytree(ROOT / "draft", root / "draft", ignore=shutil.ignore_patterns("vectors"))
    freeze(root / "draft", root / version, version)
    for path in (root / version).glob("*.schema.json"):
        path.write_text(_older_names(path.read_text("utf-8")), "utf-8")
    seal(root / version)


def _older_names(text: str) -> str:
    for new, old in _RENAMED.items():
        text = text.replace(f'"{new}"', f'"{old}"')
    return text


def older_statement(statement: dict[str, Any], version: str) -> dict[str, Any]:
    """Return a statement as that version wrote it."""
    older: dict[str, Any] = json.loads(_older_names(json.dumps(statement)))
    older["predicate"]["schemaVersion"] = version
    older["predicate"]["rngContract"]["contractVersion"] = version
    return older


def older_line(members: dict[str, Any]) -> dict[str, Any]:
    """Return a line of the log as that version wrote it."""
    older: dict[str, Any] = json.loads(_older_names(json.dumps(members)))
    return older


def younger(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """Return a document of the made-up version as one of the draft: what a `versions.Release` has to do."""
    if name == "statement":
        predicate = dict(document["predicate"])
        predicate["numericProfile"] = predicate.pop("profileOfNumbers")
        predicate["command"] = _younger_command(predicate["command"])
        predicate["rngContract"] = predicate["rngContract"] | {"contractVersion": SCHEMA_VERSION}
        return document | {"predicate": predicate}
    if "command" in document:
        return document | {"command": _younger_command(document["command"])}
    return document


def _younger_command(command: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in command.items() if name != "seedOfHashes"} | {
        "hashSeed": command["seedOfHashes"]
    }


if __name__ == "__main__":
    (asked,) = sys.argv[1:]
    if not re.fullmatch(r"\d+\.\d+\.\d+", asked):
        sys.exit("usage: python -m tests.releases MAJOR.MINOR.PATCH")
    freeze(ROOT / "draft", ROOT / asked, asked)
    print(f"{ROOT / asked}: frozen; SCHEMA_VERSION in trainmem_audit/documents/common.py comes next")
