"""The schemas of checklist, codes and checks: what we ship and what we write is valid, formats asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from referencing import Registry, Resource

from tests.test_formats import CHECKS
from trainmem_audit.formats import COMPLIANCE

DRAFT = Path(__file__).resolve().parent.parent / "schema" / "draft"
OURS = ("checklist", "compliance", "findings")
pytestmark = pytest.mark.skipif(
    not (DRAFT / "common.schema.json").is_file(), reason="the schemas that these refer to are not there"
)


def schema(name: str) -> Any:
    return json.loads((DRAFT / f"{name}.schema.json").read_text("utf-8"))


def validator(name: str) -> Draft202012Validator:
    documents = [json.loads(path.read_text("utf-8")) for path in sorted(DRAFT.glob("*.schema.json"))]
    registry = Registry().with_resources((item["$id"], Resource.from_contents(item)) for item in documents)
    return Draft202012Validator(schema(name), registry=registry, format_checker=Draft202012Validator.FORMAT_CHECKER)


@pytest.mark.parametrize("name", OURS)
def test_a_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(schema(name))
    assert schema(name)["$id"].endswith(f"/0.1.0-draft/{name}.schema.json")


@pytest.mark.parametrize("name", ["checklist", "findings"])
def test_what_we_ship_is_valid(name: str) -> None:
    document = json.loads((DRAFT / f"{name}.json").read_text("utf-8"))
    validator(name).validate(document)
    assert document["$schema"] == schema(name)["$id"]


@pytest.mark.parametrize("name", sorted(CHECKS))
def test_what_check_writes_is_valid(name: str) -> None:
    validator("compliance").validate(json.loads(COMPLIANCE["json"](CHECKS[name])))


@pytest.mark.parametrize("change", [{"state": "green"}, {"evidence": "hearsay"}, {"more": 1}, {"id": "TM-1"}])
def test_what_is_wrong_is_refused(change: dict[str, Any]) -> None:
    document = json.loads(COMPLIANCE["json"](CHECKS["failed"]))
    document["items"][0] |= change
    assert not validator("compliance").is_valid(document)
