"""Statements that say more than their author may: look-alike types, other versions, verdicts about themselves, `$ref`.

Every statement here is signed by the author whose key the reviewer trusts, beside a log that holds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.material import author_signs, payload_of, signed, verified
from tests.logs import FakeRun
from tests.tools import audit
from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.documents.manifest import PREDICATE_TYPE, SCHEMA_VERSION, STATEMENT_TYPE
from trainmem_audit.envelope import seal
from trainmem_audit.errors import VersionError
from trainmem_audit.keys import Signer
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE

RUN = FakeRun(3)
FILES = author_signs({STEP_FILE: RUN.log(), TENSOR_FILE: RUN.frames(), ORDER_FILE: RUN.order()})


def signed_with(change: Callable[[dict[str, Any]], object]) -> dict[str, bytes]:
    statement = json.loads(payload_of(FILES))
    change(statement)
    return FILES | signed(canonical_bytes(statement))


def refused(files: dict[str, bytes]) -> None:
    found = verified(files).verification
    assert (found.checks[3].state, found.bytes, found.record, found.exit_code) == ("fail", "broken", "not-checked", 1)
    assert [finding.code for finding in found.findings] == ["STATEMENT"]


def test_the_plain_statement_passes() -> None:
    assert verified(FILES).verification.exit_code == 0


LOOK_ALIKES = [
    lambda text: text + "/",
    lambda text: text.upper(),
    lambda text: text.replace("https:", "http:"),
    lambda text: text.replace("v1", "v1.0"),
    lambda text: text.replace("v1", "V1"),
    lambda text: text.replace("v1", "v01"),
    lambda text: text.replace("v1", "v2"),
    lambda text: text.replace("1", "\N{FULLWIDTH DIGIT ONE}"),
    lambda text: text.replace("o", "\N{CYRILLIC SMALL LETTER O}"),
    lambda text: text + "\u200b",
    lambda text: " " + text,
    lambda text: text + "\n",
    lambda text: text + "#",
    lambda text: [text],
    lambda text: {"$ref": text},
    lambda text: None,
]


@pytest.mark.parametrize("change", LOOK_ALIKES)
@pytest.mark.parametrize(("member", "value"), [("predicateType", PREDICATE_TYPE), ("_type", STATEMENT_TYPE)])
def test_a_type_that_looks_alike_is_another_type(member: str, value: str, change: Callable[[str], Any]) -> None:
    assert change(value) != value
    refused(signed_with(lambda statement: statement.update({member: change(value)})))


@pytest.mark.parametrize(
    "version",
    ["0.1", f"{SCHEMA_VERSION} ", f"v{SCHEMA_VERSION}", f"{SCHEMA_VERSION}+old",
     "\N{FULLWIDTH DIGIT ZERO}" + SCHEMA_VERSION[1:], "", 0, None, [SCHEMA_VERSION], "latest"],
)  # fmt: skip
def test_what_is_no_version_is_refused(version: Any) -> None:
    refused(signed_with(lambda statement: statement["predicate"].update(schemaVersion=version)))


@pytest.mark.parametrize("version", ["0.0.1", "0.1.0", "0.1.0-alpha", SCHEMA_VERSION.upper(), "9.0.0"])
def test_no_version_is_rolled_back_to_one_that_demands_less(version: str) -> None:
    assert version != SCHEMA_VERSION
    with pytest.raises(VersionError) as caught:
        verified(signed_with(lambda statement: statement["predicate"].update(schemaVersion=version)))
    assert caught.value.exit_code == 2


CLAIMS: list[Callable[[dict[str, Any]], object]] = [
    lambda s: s["predicate"].update(verification={"exitCode": 0}),
    lambda s: s["predicate"].update(replay={"outcome": "match"}),
    lambda s: s["predicate"].update(tolerance="0x1.0000000000000p+0"),
    lambda s: s["predicate"]["run"].update(verified=True),
    lambda s: s["predicate"]["stepLogs"][0].update(verified=True),
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_a_verdict_of_the_authors_own_is_no_member(claim: Callable[[dict[str, Any]], object]) -> None:
    refused(signed_with(claim))


OUTSIDE: list[Callable[[dict[str, Any]], object]] = [
    lambda s: s.update(verdict="verified"),
    lambda s: s["subject"][0].update(annotations={"checked": True}),
    lambda s: s["subject"][0].update(uri="https://example.org/steps.jsonl"),
    lambda s: s["subject"][0]["digest"].update(sha512="0" * 128),
]


@pytest.mark.parametrize("add", OUTSIDE)
def test_what_in_toto_leaves_open_is_not_read(add: Callable[[dict[str, Any]], object]) -> None:
    """In-toto asks to ignore what is not known outside of the predicate: it changes no word of the verdict."""
    plain, given = (verified(files).verification.to_json() for files in (FILES, signed_with(add)))
    assert given == plain


REFERENCES: list[Callable[[dict[str, Any]], object]] = [
    lambda s: s.update(predicate={"$ref": "https://example.org/predicate.json"}),
    lambda s: s["predicate"].update({"$ref": "https://example.org/predicate.json"}),
    lambda s: s["predicate"].update({"$schema": "https://example.org/schema.json"}),
    lambda s: s["predicate"].update(run={"$ref": "#/predicate/run"}),
    lambda s: s["subject"][0].update(digest={"$ref": "file:///etc/passwd"}),
]


@pytest.mark.parametrize("refer", REFERENCES)
def test_a_reference_is_not_followed(refer: Callable[[dict[str, Any]], object]) -> None:
    """That no verb opens a connection is held in `test_nothing_runs`."""
    refused(signed_with(refer))


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_what_an_author_claims_or_puts_beside_the_record_is_no_verdict(tmp_path: Path) -> None:
    """A declared verdict, a saved verification, a report, an attestation by the author: none decides anything."""
    claimed = signed_with(
        lambda s: s["predicate"].update(declared={"verdict": "trusted", "replay": "match", "signature": "trusted"})
    )
    stranger = Signer.from_seed(bytes([3]) * 32)
    verdict = json.dumps({"bytes": "intact", "replay": {"outcome": "match"}, "exitCode": 0}).encode()
    beside = {
        "verification.json": verdict,
        "report.html": b"<h1>trusted, replayed: match</h1>",
        "run.intoto.jsonl": seal(b'{"verdict":"PASSED"}', "application/vnd.in-toto+json", stranger),
        "disclosures.json": b'{"verdict":"trusted"}',
    }
    plain, run = lay(tmp_path / "plain" / "run", FILES), lay(tmp_path / "claiming" / "run", claimed | beside)
    documents = []
    for path in (plain, run):
        told = audit("verify", path, "--format", "json", cwd=tmp_path, home=tmp_path / "home")
        assert told.returncode == 1  # an unknown signer, whatever he says of himself
        documents.append(json.loads(told.stdout))
    odd = {finding["code"] for finding in documents[1]["findings"]} - {f["code"] for f in documents[0]["findings"]}
    assert odd == {"OPEN-UNREADABLE", "ATT-UNREADABLE"}  # said, and no verdict
    for name in ("bytes", "record", "signature", "replay", "checks", "exitCode"):
        assert documents[0][name] == documents[1][name], name
    assert documents[1]["replay"]["outcome"] == "not-run"
    told = audit("report", run, "-o", tmp_path / "out", cwd=tmp_path, home=tmp_path / "home")
    assert told.returncode == 0, told.stderr
    refusal = audit("report", run, "--verification", run / "verification.json", cwd=tmp_path, home=tmp_path / "home")
    assert (refusal.returncode, "may be its author's" in refusal.stderr) == (2, True)
    report = (tmp_path / "out" / "report.md").read_text()
    verdicts = report.partition("## ")[0]
    assert "**not run**" in verdicts
    assert "match" not in verdicts
    assert "trusted**" not in verdicts
