"""The vectors of the standard: made by the script, and judged by schema, model and verifier as the index says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.schemas import READERS
from tests.tools import examined
from tests.vectors import FOLDER, MEND, RULES, generated
from trainmem_audit.canonical import canonical_bytes, loads_strict
from trainmem_audit.conformance import our_schemas
from trainmem_audit.documents.steplog import LINE_TYPES
from trainmem_audit.errors import FormatError, VersionError
from trainmem_audit.rundir import open_run

INDEX: dict[str, Any] = json.loads((FOLDER / "index.json").read_bytes()) if FOLDER.exists() else {}
DOCUMENTS = [entry for entry in INDEX.get("documents", []) if entry["schema"] != "json"]
TEXTS = [entry for entry in INDEX.get("documents", []) if entry["schema"] == "json"]


@cache
def made() -> dict[str, bytes]:
    return generated()


def test_the_folder_holds_what_the_script_makes() -> None:
    there = {path.relative_to(FOLDER).as_posix(): path.read_bytes() for path in FOLDER.rglob("*") if path.is_file()}
    there = {name: data for name, data in there.items() if not name.startswith(f"{RULES}/")}  # made by hand
    wrong = sorted(name for name in there.keys() | made().keys() if there.get(name) != made().get(name))
    assert not wrong, f"{wrong[:5]} and {max(len(wrong) - 5, 0)} more differ; mend it with: {MEND}"


def test_every_schema_has_valid_and_invalid_vectors() -> None:
    for name in set(our_schemas().names()) - {"common"}:
        verdicts = {entry["valid"] for entry in DOCUMENTS if entry["schema"] == name}
        assert verdicts == {True, False}, name


@pytest.mark.parametrize("entry", DOCUMENTS, ids=lambda entry: entry["file"])
def test_the_schema_says_what_the_index_says(entry: dict[str, Any]) -> None:
    """And where: one fault each."""
    document = loads_strict((FOLDER / entry["file"]).read_bytes(), entry["file"])
    found = our_schemas().findings(document, entry["schema"])
    assert {finding.where for finding in found} == ({entry["where"]} if "where" in entry else set())


@pytest.mark.parametrize("entry", [e for e in DOCUMENTS if e["schema"] in READERS], ids=lambda entry: entry["file"])
def test_the_model_says_the_same(entry: dict[str, Any]) -> None:
    data = canonical_bytes(json.loads((FOLDER / entry["file"]).read_bytes()))
    if entry["valid"]:
        READERS[entry["schema"]](data)
    else:
        with pytest.raises(FormatError):
            READERS[entry["schema"]](data)


@pytest.mark.parametrize("entry", TEXTS, ids=lambda entry: entry["file"])
def test_a_text_is_json_as_our_documents_are_or_is_refused(entry: dict[str, Any]) -> None:
    data = (FOLDER / entry["file"]).read_bytes()
    if entry["valid"]:
        assert canonical_bytes(loads_strict(data, "vector")) == data
    else:
        with pytest.raises(FormatError):
            canonical_bytes(loads_strict(data, "vector"))


@pytest.mark.parametrize("entry", INDEX.get("runs", []), ids=lambda entry: entry["path"])
def test_the_verifier_says_what_the_index_says(entry: dict[str, Any]) -> None:
    with open_run(FOLDER / entry["path"]) as reader:
        if "error" in entry:
            with pytest.raises(VersionError):
                examined(reader)
            return
        found = examined(reader).verification
    expected = {name: entry[name] for name in ("bytes", "record", "signature", "findings")}
    codes = sorted({finding.code for finding in found.findings})
    got = {"bytes": found.bytes, "record": found.record, "signature": found.signature.state, "findings": codes}
    assert got == expected, found.findings
    valid = Path(entry["path"]).parts[1] == "valid"
    assert found.exit_code == (1 if not valid else 3 if found.record == "incomplete" else 0)


OTHERS: tuple[Any, ...] = (None, True, False, 0, 1, -1, 2**53 - 1, "", "x", "0", "a" * 201, [], [0], {}, {"x": 0})


def changed(value: Any) -> Iterator[Any]:
    """Give a document with one change at a time: every value by others, every member left out or called otherwise."""
    if isinstance(value, dict):
        for name, member in value.items():
            rest = {other: kept for other, kept in value.items() if other != name}
            yield rest
            yield rest | {f"{name}x": member}
            for version in changed(member):
                yield rest | {name: version}
        yield value | {"another": 1}
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield value[:number] + value[number + 1 :]
            for version in changed(item):
                yield [*value[:number], version, *value[number + 1 :]]
        yield [*value, *value[:1]]
    yield from (other for other in OTHERS if type(other) is not type(value) or other != value)
    if isinstance(value, str):
        yield from (value + "\n", value.upper(), value + "0", value[1:])


def model_accepts(name: str, document: Any) -> bool:
    try:
        READERS[name](canonical_bytes(document))
    except FormatError:
        return False
    return True


FULL = {"statement/valid/finished.json", "verification/valid/mismatch.json", "step-log/valid/step-skipped.json"}
FULL |= {f"step-log/valid/{kind}.json" for kind in LINE_TYPES}
"""One document of each form, with as many members as it can have."""


@pytest.mark.parametrize("entry", [e for e in DOCUMENTS if e["file"] in FULL], ids=lambda entry: entry["file"])
def test_schema_and_model_judge_every_single_change_alike(entry: dict[str, Any]) -> None:
    document = json.loads((FOLDER / entry["file"]).read_bytes())
    verdicts = {True: 0, False: 0}
    for version in changed(document):
        found = our_schemas().findings(version, entry["schema"])
        accepted = model_accepts(entry["schema"], version)
        assert accepted == (not found), (found, json.dumps(version)[:2000])
        verdicts[accepted] += 1
    assert verdicts[False] > 10
