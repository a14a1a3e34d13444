"""The formats of `verify` and `check`: a public schema, an existing parser, and nothing that a hostile text forges."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft4Validator
from junitparser import JUnitXml, TestSuite

from tests import builders
from tests.records import record_of
from trainmem_audit.compliance import Terms, judge
from trainmem_audit.documents.checklist import Waiver
from trainmem_audit.documents.compliance import Compliance
from trainmem_audit.documents.findings import Verification
from trainmem_audit.formats import COMPLIANCE, VERIFICATION

SARIF = json.loads((Path(__file__).parent / "data" / "sarif" / "sarif-2.1.0-rtm.5.json").read_text("utf-8"))
VALIDATOR = Draft4Validator(SARIF, format_checker=Draft4Validator.FORMAT_CHECKER)
HOSTILE = "x\x1b[31m\n::error::forged\r\n<b>]]>&\u202e\ufffe\x00 \ud7ff %0A"
NO_REPLAY = {"outcome": "not-run", "mode": "none", "reason": "no replay was asked for", "stepsCompared": 0}
WAIVER = Waiver(id="TM-ENV-001", reason="the code is under review", who="an editor")

VERIFICATIONS = {
    "passed": builders.verification(),
    "not-run": builders.not_run(),
    "mismatch": builders.mismatch(),
    "broken": builders.broken(),
    "hostile": builders.with_hostile_strings(builders.broken(), HOSTILE),
}
PATCHES: dict[str, tuple[dict[str, Any], Terms]] = {
    "passed": ({}, Terms()),
    "paired": ({}, Terms("paired", "may")),
    "failed": ({"statement": {"predicate": {"files": []}}}, Terms()),
    "waived": ({"statement": {"predicate": {"files": []}}}, Terms(waivers=(WAIVER,))),
    "unreplayed": ({"verification": {"replay": NO_REPLAY}}, Terms(fail_on="should")),
    "unreadable": ({"statement": None, "facts": None, "verification": {"bytes": "broken", "exitCode": 1}}, Terms()),
    "hostile": ({"statement": {"predicate": {"environment": {"cpu": HOSTILE}, "declared": {"x": HOSTILE}}}}, Terms()),
}
CHECKS = {name: judge(record_of(patch), terms) for name, (patch, terms) in PATCHES.items()}


def written(form: str) -> list[tuple[str, Verification | Compliance, str]]:
    """Return every document in a format: its name, the document, the text."""
    found: list[tuple[str, Verification | Compliance, str]] = []
    found += [(f"verify-{name}", document, VERIFICATION[form](document)) for name, document in VERIFICATIONS.items()]
    found += [(f"check-{name}", document, COMPLIANCE[form](document)) for name, document in CHECKS.items()]
    return found


def test_both_verbs_have_the_same_formats() -> None:
    assert set(VERIFICATION) == set(COMPLIANCE) == {"text", "json", "sarif", "junit", "github"}


@pytest.mark.parametrize(("name", "document", "text"), written("sarif"), ids=lambda value: str(value)[:20])
def test_sarif_is_valid(name: str, document: Any, text: str) -> None:
    log = json.loads(text)
    VALIDATOR.validate(log)
    (run,) = log["runs"]
    assert run["invocations"][0]["exitCode"] == document.exit_code
    assert len({rule["id"] for rule in run["tool"]["driver"]["rules"]}) == len(run["tool"]["driver"]["rules"])
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert (result["kind"] == "fail") == (result["level"] != "none")
        assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]


def test_the_schema_of_sarif_refuses_what_is_none() -> None:
    log = json.loads(COMPLIANCE["sarif"](CHECKS["failed"]))
    log["runs"][0]["results"][0]["kind"] = "maybe"
    assert not VALIDATOR.is_valid(log)


def test_sarif_says_what_failed_what_is_open_and_what_was_waived() -> None:
    def results(name: str, rule: str) -> list[dict[str, Any]]:
        log = json.loads(COMPLIANCE["sarif"](CHECKS[name]))
        return [result for result in log["runs"][0]["results"] if result["ruleId"] == rule]

    (failed,) = results("failed", "TM-ENV-001")
    assert (failed["kind"], failed["level"]) == ("fail", "error")
    assert "no code is recorded" in failed["message"]["text"]
    (waived,) = results("waived", "TM-ENV-001")
    assert waived["suppressions"][0]["justification"] == "the code is under review (an editor)"
    (open_,) = results("unreplayed", "TM-VER-001")
    assert (open_["kind"], open_["level"]) == ("open", "none")


def test_sarif_names_file_and_line() -> None:
    finding = builders.findings()[0].model_copy(update={"code": "LOG", "where": "steps.jsonl:17"})
    log = json.loads(VERIFICATION["sarif"](builders.broken().model_copy(update={"findings": (finding,)})))
    places = {
        (place["artifactLocation"]["uri"], place["region"]["startLine"])
        for result in log["runs"][0]["results"]
        if result["ruleId"] == "LOG"
        for place in [result["locations"][0]["physicalLocation"]]
    }
    assert places == {("steps.jsonl", 17)}


@pytest.mark.parametrize(("name", "document", "text"), written("junit"), ids=lambda value: str(value)[:20])
def test_an_existing_parser_reads_junit(name: str, document: Any, text: str) -> None:
    parsed = JUnitXml.fromstring(text.encode())
    (suite,) = [item for item in parsed if isinstance(item, TestSuite)]
    cases = list(suite)
    bad = [case for case in cases if any(type(item).__name__ in ("Failure", "Error") for item in case.result)]
    skipped = [case for case in cases if case.is_skipped]
    assert suite.tests == len(cases)
    assert suite.failures + suite.errors == len(bad)
    assert suite.skipped == len(skipped)
    assert (document.exit_code == 0) == (not bad), f"{name}: the file and the exit code disagree"
    assert all(not case.is_passed or not case.result for case in cases)


def test_junit_tells_failures_errors_and_skips_apart() -> None:
    def kind(name: str, rule: str) -> str:
        (suite,) = JUnitXml.fromstring(COMPLIANCE["junit"](CHECKS[name]).encode())
        (case,) = [case for case in suite if str(case.name).startswith(rule)]
        return ", ".join(type(item).__name__ for item in case.result) or "passed"

    assert kind("failed", "TM-ENV-001") == "Failure"
    assert kind("waived", "TM-ENV-001") == "Skipped"
    assert kind("passed", "TM-ENV-001") == "passed"
    assert kind("passed", "TM-OPT-005") == "Skipped"
    assert kind("unreplayed", "TM-VER-001") == "Error"


ANNOTATION = re.compile(r"::(error|warning|notice) [^\n:]*::[^\n\r]*")


@pytest.mark.parametrize(("name", "document", "text"), written("github"), ids=lambda value: str(value)[:20])
def test_github_lines_are_annotations_and_one_summary(name: str, document: Any, text: str) -> None:
    *annotations, summary = text.split("\n")
    assert all(ANNOTATION.fullmatch(line) for line in annotations)
    assert not summary.startswith("::")
    errors = [line for line in annotations if line.startswith("::error")]
    assert (document.exit_code == 0) == (not errors), f"{name}: the annotations and the exit code disagree"
    assert "forged" not in "".join(line for line in text.split("\n") if line.startswith("::error::"))


@pytest.mark.parametrize("form", ["text", "sarif", "junit", "github"])
def test_nothing_that_is_not_ink_comes_out_of_a_hostile_record(form: str) -> None:
    for name, _, text in written(form):
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufffe]", text), (name, form)


def test_text_has_failures_first_and_evidence_by_mark_and_word() -> None:
    lines = COMPLIANCE["text"](CHECKS["failed"]).splitlines()
    items = [line for line in lines if re.match(r"  \S+ +TM-[A-Z]{3}-\d{3} ", line)]
    assert items[0].split()[:3] == ["FAIL", "TM-ENV-001", "MUST"]
    assert len(items) == len(CHECKS["failed"].items), "a line for each item"
    assert any("◕ cross-checked" in line for line in items)
    assert any("◔ recorded" in line for line in items)
    assert any("● replayed" in line for line in items)
    assert lines[-1].startswith("result:    not passed: failed: TM-ENV-001")


def test_json_is_the_document() -> None:
    for compliance in CHECKS.values():
        assert Compliance.model_validate_json(COMPLIANCE["json"](compliance)) == compliance
