"""The JSON Schemas: valid, described, closed, resolved from our own files, in agreement with the models."""

from __future__ import annotations

import copy
import json
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests import builders
from tests.schemas import PAIRS, Pair, differences, model_shape, schema_shape
from trainmem_audit.conformance import MOST_DEPTH, MOST_FINDINGS, MOST_VALUES, Schemas, our_schemas
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.errors import FormatError, UsageError

NAMES = our_schemas().names()
OPEN = {
    "statement": "an in-toto Statement",
    "statement/$defs/subject": "an in-toto ResourceDescriptor",
    "statement/$defs/subject/properties/digest": "an in-toto DigestSet",
    "step-log": "each type of line closes itself",
    "study": "an in-toto Statement",
    "study-estimates": "an in-toto Statement",
    "study-log": "each type of line closes itself",
}
"""What is open, and whose it is."""


def nodes(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Give every subschema with its place."""
    if not isinstance(schema, dict):
        return
    yield path, schema
    for key in ("properties", "$defs", "patternProperties"):
        for name, member in schema.get(key, {}).items():
            yield from nodes(member, f"{path}/{key}/{name}")
    for key in ("items", "additionalProperties", "propertyNames", "not", "if", "then", "else"):
        yield from nodes(schema.get(key), f"{path}/{key}")
    for key in ("allOf", "anyOf", "oneOf", "prefixItems"):
        for number, member in enumerate(schema.get(key, [])):
            yield from nodes(member, f"{path}/{key}/{number}")


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_valid_against_the_metaschema(name: str) -> None:
    schema = our_schemas().load(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"] == f"https://w3id.org/trainmem-audit/schema/{SCHEMA_VERSION}/{name}.schema.json"


@pytest.mark.parametrize("name", NAMES)
def test_every_property_and_definition_is_described(name: str) -> None:
    """A description says more than the name: it has words that are not in it."""
    poor = []
    schema = our_schemas().load(name)
    for path, node in nodes(schema):
        parent, _, own = path.rpartition("/")
        if parent.endswith(("/properties", "/$defs")) and not re.search(r"/(if|then|else|not)(/|$)", path):
            words = set(re.findall(r"[a-z]{2,}", node.get("description", "").lower()))
            if len(words - {own.lower(), "the", "an", "of", "its"}) < 2:
                poor.append(path)
    assert not poor, f"{name}: without a useful description: {poor}"
    assert len(schema["description"]) > 40


@pytest.mark.parametrize("name", NAMES)
def test_every_object_is_closed_or_known_to_be_open(name: str) -> None:
    loose = [
        f"{name}{path}"
        for path, node in nodes(our_schemas().load(name))
        if node.get("type") == "object" and "additionalProperties" not in node
    ]
    assert set(loose) == {place for place in OPEN if place.partition("/")[0] == name}


@pytest.mark.parametrize("name", NAMES)
def test_patterns_mean_the_same_everywhere(name: str) -> None:
    r"""Anchored, and without `\d`, `\w`, `\s`, `\b` and `.`, which are not the same in every language."""
    for path, node in nodes(our_schemas().load(name)):
        if "pattern" in node:
            assert node["pattern"].startswith("^"), path
            assert node["pattern"].endswith("$"), path
            assert not re.search(r"\\[dDwWsSbB]|(?<!\\)\.(?![^\[]*\])", node["pattern"]), path


@pytest.mark.parametrize("name", NAMES)
def test_integers_are_bounded_and_there_are_no_floats(name: str) -> None:
    for path, node in nodes(our_schemas().load(name)):
        assert node.get("type") != "number", f"{path}: a float is text"
        if node.get("type") == "integer":
            assert {"minimum", "maximum"} <= node.keys(), f"{path}: beyond 2^53 an integer is text"


@pytest.mark.parametrize("name", NAMES)
def test_every_reference_leads_into_our_own_files(name: str) -> None:
    for path, node in nodes(our_schemas().load(name)):
        if "$ref" in node:
            file, _, fragment = node["$ref"].partition("#")
            target: Any = our_schemas().load(file.removesuffix(".schema.json") or name)
            for step in fragment.split("/")[1:]:
                assert step in target, f"{name}{path}: {node['$ref']}"
                target = target[step]


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


DOCUMENTS: dict[str, dict[str, Any]] = {
    "statement": builders.statement_json(),
    "verification": builders.mismatch().to_json(),
}


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_document_is_checked_without_a_socket(name: str, no_network: None) -> None:
    assert not Schemas(our_schemas().root).findings(DOCUMENTS[name], name)


def test_a_reference_elsewhere_is_not_followed(tmp_path: Path, no_network: None) -> None:
    folder = tmp_path / "draft"
    folder.mkdir()
    schema = {"$id": "https://example.org/a", "$ref": "https://json-schema.example.com/other"}
    (folder / "a.schema.json").write_text(json.dumps(schema))
    with pytest.raises(FormatError, match="does not resolve"):
        Schemas(tmp_path).findings({}, "a")


@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_schema_and_model_say_the_same(pair: Pair) -> None:
    drifted = list(differences(schema_shape(pair.schema, pair.part), model_shape(pair.model)))
    assert not drifted, f"{pair} and {pair.model.__name__} drifted apart:\n" + "\n".join(drifted)


Drift = Callable[[dict[str, Any]], object]
DRIFTS: dict[str, tuple[Drift, str]] = {
    "a member is no longer required": (
        lambda p: p["properties"]["run"]["required"].remove("outcome"),
        "/properties/predicate/properties/run/required",
    ),
    "a member more": (
        lambda p: p["properties"]["run"]["properties"].update(host={"type": "string"}),
        "/properties/predicate/properties/run/properties/host",
    ),
    "a member less": (
        lambda p: p["properties"]["stepLogs"]["items"]["properties"].pop("merkleRoot"),
        "/properties/predicate/properties/stepLogs/items/properties/merkleRoot",
    ),
    "another type": (
        lambda p: p["properties"]["stepLogs"]["items"]["properties"].update(complete={"type": "string"}),
        "/properties/predicate/properties/stepLogs/items/properties/complete/type",
    ),
    "another enum": (
        lambda p: p["properties"]["run"]["properties"]["outcome"]["enum"].append('"lost"'),
        "/properties/predicate/properties/run/properties/outcome/enum",
    ),
    "another pattern": (
        lambda p: p["properties"]["run"]["properties"]["id"].update(pattern="^[0-9a-f]{31}$"),
        "/properties/predicate/properties/run/properties/id/pattern",
    ),
    "another bound": (
        lambda p: p["properties"]["run"]["properties"]["exitCode"].update(maximum=256),
        "/properties/predicate/properties/run/properties/exitCode/maximum",
    ),
    "an open object": (
        lambda p: p["properties"]["environment"].pop("additionalProperties"),
        "/properties/predicate/properties/environment/additionalProperties",
    ),
    "another name within a map": (
        lambda p: p["properties"]["sources"]["additionalProperties"]["properties"]["source"]["enum"].pop(),
        "/properties/predicate/properties/sources/additionalProperties/properties/source/enum",
    ),
    "one alternative less": (
        lambda p: p["properties"]["order"]["additionalProperties"]["properties"]["settings"]["additionalProperties"][
            "anyOf"
        ].pop(),
        "/properties/predicate/properties/order/additionalProperties/properties/settings/additionalProperties/anyOf",
    ),
}


@pytest.mark.parametrize("what", sorted(DRIFTS))
@pytest.mark.parametrize("side", ["schema", "model"])
def test_a_planted_drift_is_named(what: str, side: str) -> None:
    drift, where = DRIFTS[what]
    (pair,) = (pair for pair in PAIRS if pair.schema == "statement")
    schema, model = copy.deepcopy(schema_shape("statement")), copy.deepcopy(model_shape(pair.model))
    drift((schema if side == "schema" else model)["properties"]["predicate"])
    assert [text.partition(": ")[0] for text in differences(schema, model)] == [where]


def findings(document: Any, name: str = "statement") -> list[str]:
    return [finding.where for finding in our_schemas().findings(document, name)]


@pytest.mark.parametrize(
    "started",
    ["2026-02-30T00:00:00Z", "2026-11-24T24:00:00Z", "2026-11-24 09:12:30Z", "2026-11-24T09:12:30+01:00", "yesterday"],
)
def test_formats_are_asserted(started: str) -> None:
    document = builders.statement_json()
    document["predicate"]["run"]["started"] = started
    assert set(findings(document)) == {"/predicate/run/started"}


def test_a_format_without_a_checker_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "draft").mkdir()
    schema = {"$id": "https://example.org/a", "type": "string", "format": "phase-of-the-moon"}
    (tmp_path / "draft" / "a.schema.json").write_text(json.dumps(schema))
    with pytest.raises(FormatError, match="phase-of-the-moon"):
        Schemas(tmp_path).findings("x", "a")


def test_a_line_feed_at_the_end_is_part_of_a_text() -> None:
    """In Python `$` lets it pass; in ECMA-262, and so in JSON Schema, it does not."""
    document = builders.statement_json()
    document["predicate"]["run"]["id"] += "\n"
    assert findings(document) == ["/predicate/run/id"]


def test_our_validator_goes_on_behind_a_reference_to_a_whole_file() -> None:
    document = builders.statement_json()
    name = next(iter(document["predicate"]["rngContract"]["canary"]))
    document["predicate"]["rngContract"]["canary"][name] += "\n"
    assert findings(document) == [f"/predicate/rngContract/canary/{name}"]


def test_an_integer_is_not_a_float() -> None:
    document = builders.statement_json()
    document["predicate"]["stepLogs"][0]["rank"] = 0.0
    assert findings(document) == ["/predicate/stepLogs/0/rank"]


def test_a_finding_says_where_expected_and_got() -> None:
    document = builders.statement_json()
    document["predicate"]["run"]["outcome"] = "glorious"
    del document["predicate"]["command"]
    document["predicate"]["a/b~c"] = 1
    told = {finding.where: finding for finding in our_schemas().findings(document, "statement")}
    assert set(told) == {"/predicate/run/outcome", "/predicate/command", "/predicate/a~1b~0c"}
    assert told["/predicate/run/outcome"].got == "glorious"
    assert "killed" in told["/predicate/run/outcome"].expected
    assert (told["/predicate/command"].expected, told["/predicate/command"].got) == ("to be there", "nothing")
    assert told["/predicate/a~1b~0c"].message == "an unknown member"


def nested(depth: int, value: Any = 1) -> Any:
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("bag", "message"),
    [
        (nested(MOST_DEPTH), "nested too deep"),
        (nested(100_000), "nested too deep"),
        ([0] * MOST_VALUES, "too many values"),
    ],
)
def test_a_document_that_is_too_much_is_one_finding(bag: Any, message: str) -> None:
    document = builders.statement_json()
    document["predicate"]["extensions"] = {"org.example": bag}
    assert [finding.message for finding in our_schemas().findings(document, "statement")] == [message]


def test_as_deep_as_is_allowed() -> None:
    document = builders.statement_json()
    document["predicate"]["extensions"] = {"org.example": nested(MOST_DEPTH - 4)}
    assert findings(document) == []


def test_many_faults_are_not_all_told() -> None:
    document = builders.statement_json()
    document["subject"] = [{"name": "", "digest": {}}] * 10_000
    assert len(findings(document)) == MOST_FINDINGS
    document = builders.statement_json()
    document["predicate"].update({f"x{number}": "y" * 10_000 for number in range(10_000)})
    told = our_schemas().findings(document, "statement")
    assert len(told) == MOST_FINDINGS
    assert max(len(finding.got) for finding in told) < 300


@pytest.mark.parametrize("document", [None, True, 0, "", [], {}, {"predicate": []}, [[]] * 3])
@pytest.mark.parametrize("name", NAMES)
def test_another_kind_of_value_is_a_finding(name: str, document: Any) -> None:
    assert our_schemas().findings(document, name)


def test_an_unknown_schema_is_named() -> None:
    with pytest.raises(UsageError, match="no schema of that name"):
        our_schemas().findings({}, "../README")
    with pytest.raises(UsageError, match="no schemas of that version"):
        our_schemas().findings({}, "statement", "../draft")
