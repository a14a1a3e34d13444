"""The schemas beside the models that are written for them: one line for each, and how the two are compared.

A schema and a model are both written by hand. `differences` walks the two in step and names every path at which they
drifted apart; the vectors (`schema/draft/vectors/`) hold the rest, which needs code in a model.

To add a schema: put `NAME.schema.json` into `schema/draft/`, a line into `PAIRS` (several, where it has several forms;
none, where no code of ours reads it yet), one into `READERS` if a model reads it, and vectors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from trainmem_audit.canonical import loads_strict
from trainmem_audit.commitments import parse_disclosures
from trainmem_audit.conformance import our_schemas
from trainmem_audit.documents.checklist import Checklist, Codes
from trainmem_audit.documents.common import Document
from trainmem_audit.documents.compliance import Compliance
from trainmem_audit.documents.contract import RngContract
from trainmem_audit.documents.disclosures import Disclosures
from trainmem_audit.documents.estimates import Estimates
from trainmem_audit.documents.findings import Verification
from trainmem_audit.documents.interventions import Arm, Branch, Intervention
from trainmem_audit.documents.manifest import Statement
from trainmem_audit.documents.pairing import Clause
from trainmem_audit.documents.plan import Plan
from trainmem_audit.documents.steplog import LINE_TYPES, Line, parse_line
from trainmem_audit.documents.studies import (
    STUDY_LINE_TYPES,
    EstimatesStatement,
    StudyLine,
    StudyStatement,
    parse_study_line,
)
from trainmem_audit.errors import FormatError

__all__ = ["PAIRS", "READERS", "Pair", "differences", "model_shape", "schema_shape"]


@dataclass(frozen=True)
class Pair:
    """A schema, or the definition of it that `part` names, and the model that must say the same."""

    schema: str
    model: type[Document]
    part: str = ""

    def __str__(self) -> str:
        return f"{self.schema}{'#' * bool(self.part)}{self.part}"


PAIRS = (
    Pair("statement", Statement),
    Pair("verification", Verification),
    Pair("rng-contract", RngContract),
    Pair("disclosures", Disclosures),
    Pair("checklist", Checklist),
    Pair("findings", Codes),
    Pair("compliance", Compliance),
    Pair("common", Intervention, "intervention"),
    Pair("common", Branch, "branch"),
    Pair("common", Arm, "armOfPlan"),
    Pair("plan", Plan),
    Pair("study", StudyStatement),
    Pair("study-estimates", EstimatesStatement),
    Pair("estimates", Estimates),
    Pair("estimates", Clause, "clause"),
    *(Pair("step-log", model, kind) for kind, model in LINE_TYPES.items()),
    *(Pair("study-log", model, kind) for kind, model in STUDY_LINE_TYPES.items()),
)

READERS: dict[str, Callable[[bytes], object]] = {
    "statement": lambda data: Statement.parse(data, "vector"),
    "verification": lambda data: Verification.parse(data, "vector"),
    "rng-contract": lambda data: RngContract.parse(data, "vector"),
    "disclosures": parse_disclosures,
    "checklist": lambda data: Checklist.parse(data, "vector"),
    "findings": lambda data: Codes.parse(data, "vector"),
    "compliance": lambda data: Compliance.parse(data, "vector"),
    "plan": lambda data: Plan.parse(data, "vector"),
    "estimates": lambda data: Estimates.parse(data, "vector"),
    "step-log": lambda data: _read_line(data),
    "study-estimates": lambda data: EstimatesStatement.parse(data, "vector"),
    "study": lambda data: StudyStatement.parse(data, "vector"),
    "study-log": lambda data: _read_study_line(data),
}
"""What our code reads a document with; it raises `FormatError` where the document is not valid."""


def _read_line(data: bytes) -> Line:
    members = loads_strict(data, "vector")
    if not isinstance(members, dict):
        raise FormatError("a line is an object", where="vector")
    return parse_line(data, members, "vector")


def _read_study_line(data: bytes) -> StudyLine:
    members = loads_strict(data, "vector")
    if not isinstance(members, dict):
        raise FormatError("a line is an object", where="vector")
    return parse_study_line(data, members, "vector")


_TEXT = {"$comment", "$id", "$schema", "$defs", "default", "description", "examples", "format", "title"}
_ANYTHING = ("additionalProperties", True)
_BY_VECTORS = {"allOf", "oneOf", "if", "then", "else", "not"}
"""What a model says in code: the two are held together by vectors there."""


def schema_shape(name: str, part: str = "") -> Any:
    """Return what a schema demands, references followed, text left out."""
    documents = {f"{other}.schema.json": our_schemas().load(other) for other in our_schemas().names()}

    def shape(node: Any, document: str) -> Any:
        if "$ref" in node:
            file, _, fragment = node["$ref"].partition("#")
            target = file or document
            if fragment == "/$defs/anything":
                return {}  # no floats: held by the reader of JSON, before a model sees it
            found = documents[target]
            for step in fragment.split("/")[1:]:
                found = found[step]
            rest = {key: value for key, value in node.items() if key != "$ref"}
            return {**shape(found, target), **shape(rest, document)}
        return _shape(node, lambda inner: shape(inner, document))

    root = documents[f"{name}.schema.json"]
    return shape(root["$defs"][part] if part else root, f"{name}.schema.json")


def model_shape(model: type[Document]) -> Any:
    """Return what a model demands of JSON, in the same form."""
    root = model.model_json_schema(by_alias=True, mode="validation")

    def shape(node: Any) -> Any:
        if "$ref" in node:
            return shape(root["$defs"][node["$ref"].rpartition("/")[2]])
        return _shape(node, shape)

    return shape(root)


def _shape(node: dict[str, Any], inner: Callable[[Any], Any]) -> dict[str, Any]:
    found = {key: value for key, value in node.items() if key not in _TEXT | _BY_VECTORS}
    if "const" in found:
        found["enum"] = [found.pop("const")]
    if "enum" in found:
        found.pop("type", None)
        found["enum"] = sorted(map(json.dumps, found["enum"]))
    if found.get("items") is False:
        found["maxItems"] = len(found["prefixItems"])
        del found["items"]
    for pattern, member in found.pop("patternProperties", {}).items():  # how pydantic spells names with a pattern
        found["propertyNames"] = found.get("propertyNames", {}) | {"pattern": pattern}
        found["additionalProperties"] = member
    if isinstance(found.get("propertyNames"), dict):
        found["propertyNames"] = found["propertyNames"] | {"type": "string"}  # a name always is
    if "required" in found:
        found["required"] = sorted(found["required"])
    for key in ("items", "additionalProperties", "propertyNames"):
        if isinstance(found.get(key), dict):
            found[key] = inner(found[key])
    for key in ("prefixItems", "anyOf"):
        if key in found:
            found[key] = [inner(item) for item in found[key]]
    if "properties" in found:
        found["properties"] = {name: inner(member) for name, member in found["properties"].items()}
    return {key: value for key, value in found.items() if value not in ({}, []) and (key, value) != _ANYTHING}


def differences(schema: Any, model: Any, path: str = "") -> Iterator[str]:
    """Name every path at which a schema and a model say different things."""
    if isinstance(schema, dict) and isinstance(model, dict):
        for key in sorted(schema.keys() | model.keys()):
            yield from differences(schema.get(key), model.get(key), f"{path}/{key}")
    elif isinstance(schema, list) and isinstance(model, list) and len(schema) == len(model):
        for number, (one, other) in enumerate(zip(schema, model, strict=True)):
            yield from differences(one, other, f"{path}/{number}")
    elif schema != model or type(schema) is not type(model):
        yield f"{path}: the schema says {_short(schema)}, the model {_short(model)}"


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 120 else text[:120] + "…"
