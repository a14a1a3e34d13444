"""Salted commitments: the digest of RFC 9901, openings that fit and that do not, and the file they lie in."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tools import SCRIPTS, Run, audit, record
from trainmem_audit.assemble import recover
from trainmem_audit.canonical import canonical_bytes, sha256_hex
from trainmem_audit.commitments import (
    MAX_BYTES,
    closed,
    commitment_digest,
    disclosures_bytes,
    draw_salt,
    open_commitments,
    parse_disclosures,
)
from trainmem_audit.conformance import our_schemas
from trainmem_audit.documents.disclosures import Disclosures
from trainmem_audit.documents.manifest import SCHEMA_VERSION
from trainmem_audit.errors import FormatError
from trainmem_audit.keys import Signer

VECTORS = Path(__file__).parent / "disclosures"
SALT = "A" * 22
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
values = st.one_of(
    st.none(),
    st.booleans(),
    texts,
    st.dictionaries(texts.filter(bool), texts, max_size=4),
    st.lists(st.tuples(texts, texts).map(list), max_size=4),
)


def document(*disclosures: dict[str, Any]) -> Disclosures:
    return Disclosures.model_validate_json(
        json.dumps({"schemaVersion": SCHEMA_VERSION, "disclosures": list(disclosures)})
    )


def opening(name: str = "author", value: Any = "Ann", salt: str = SALT) -> dict[str, Any]:
    return {"name": name, "salt": salt, "value": value}


def test_the_digest_is_that_of_rfc_9901() -> None:
    """§ 4.2.1 lists this spelling of the disclosure of its example; § 4.2.3 says how it is hashed, with another one."""
    ours = base64.urlsafe_b64encode(canonical_bytes(["_26bc4LT-ac6q2KI6cBW5es", "family_name", "Möbius"])).rstrip(b"=")
    assert ours == b"WyJfMjZiYzRMVC1hYzZxMktJNmNCVzVlcyIsImZhbWlseV9uYW1lIiwiTcO2Yml1cyJd"
    assert commitment_digest("_26bc4LT-ac6q2KI6cBW5es", "family_name", "Möbius") == sha256_hex(ours)
    theirs = b"WyJfMjZiYzRMVC1hYzZxMktJNmNCVzVlcyIsICJmYW1pbHlfbmFtZSIsICJNw7ZiaXVzIl0"
    expected = base64.urlsafe_b64decode("X9yH0Ajrdm1Oij4tWso9UzzKJvPoDxwmuEcO3XAdRC0=").hex()
    assert sha256_hex(theirs) == expected


def test_a_salt_has_128_bits_and_is_new_each_time() -> None:
    salts = {draw_salt() for _ in range(100)}
    assert len(salts) == 100
    assert all(len(base64.urlsafe_b64decode(salt + "==")) == 16 for salt in salts)


@given(texts.filter(bool), values)
def test_what_was_committed_to_opens_and_nothing_else_does(name: str, value: Any) -> None:
    commitments = {name: commitment_digest(SALT, name, value)}
    (shown,), findings = open_commitments(commitments, document(opening(name, value)))
    assert (shown.name, shown.opened, findings) == (name, True, ())
    assert json.loads(shown.model_dump_json())["value"] == value
    for wrong in (opening(name, f"{value}x"), opening(name, value, "B" * 22)):
        (shown,), (finding,) = open_commitments(commitments, document(wrong))
        assert (shown.opened, shown.value, finding.code, finding.severity) == (False, None, "OPEN-WRONG", "error")


def test_an_opening_of_a_name_that_is_not_committed_to_is_a_finding() -> None:
    shown, (finding,) = open_commitments({"cwd": "0" * 64}, document(opening()))
    assert finding.code == "OPEN-UNKNOWN"
    assert shown == closed({"cwd": "0" * 64})


def test_a_second_opening_of_one_name_is_a_finding_and_the_first_stands() -> None:
    commitments = {"author": commitment_digest(SALT, "author", "Ann")}
    (shown,), (finding,) = open_commitments(commitments, document(opening(), opening()))
    assert (shown.value, finding.code, finding.where) == ("Ann", "OPEN-TWICE", "disclosures.json: disclosures[1]")
    (shown,), findings = open_commitments(commitments, document(opening(value="Bob"), opening()))
    assert (shown.value, [item.code for item in findings]) == ("Ann", ["OPEN-WRONG"])


def test_names_are_part_of_what_is_committed_to() -> None:
    digest = commitment_digest(SALT, "author", "Ann")
    (shown,), (finding,) = open_commitments({"git.remote": digest}, document(opening("git.remote")))
    assert not shown.opened
    assert finding.code == "OPEN-WRONG"


def test_many_bad_openings_are_not_all_listed() -> None:
    _, findings = open_commitments({}, document(*[opening() for _ in range(5000)]))
    assert len(findings) == 100


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*/*.json")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_schema_and_model_agree_on_every_vector(path: Path) -> None:
    data = path.read_bytes()
    valid = path.parent.name == "valid"
    assert (not our_schemas().findings(json.loads(data), "disclosures")) == valid
    if valid:
        written = json.loads(disclosures_bytes(parse_disclosures(data)))
        assert written == {"anonymous": False} | json.loads(data)
    else:
        with pytest.raises(FormatError):
            parse_disclosures(data)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"{" * 5000,
        b'{"schemaVersion":"0.1.0-draft","disclosures":[],"disclosures":[]}',
        b'{"schemaVersion":"0.1.0-draft","disclosures":[],"extensions":{"a":1.5}}',
        b'{"schemaVersion":"0.1.0-draft","disclosures":[{"name":"a","salt":"AAAAAAAAAAAAAAAAAAAAAA","value":"\\ud800"}]}',
        b" " * (MAX_BYTES + 1),
        b'{"schemaVersion":"0.1.0-draft","disclosures":[' + b"0," * 2**19 + b"0]}",
    ],
    ids=range(8),
)
def test_a_hostile_file_is_refused_and_never_a_traceback(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_disclosures(data)


# --- a recorded run -------------------------------------------------------------------------------------------


def test_a_run_commits_to_the_same_names_whatever_is_known(run: Run) -> None:
    commitments = {item.name: item for item in run.examine().verification.commitments}
    names = {"author", "cwd", "git.commit", "git.diff", "git.dirty", "git.remote", "script"}
    assert commitments.keys() == names
    assert all(item.opened for item in commitments.values())
    assert str(commitments["script"].value).endswith("train.py")


def test_a_run_verifies_without_its_openings_and_nothing_of_them_is_elsewhere(run: Run) -> None:
    salts = [item.salt for item in parse_disclosures(run.read("disclosures.json")).disclosures]
    (run.path / "disclosures.json").unlink()
    found = run.examine().verification
    assert (found.bytes, found.record, found.findings, found.exit_code) == ("intact", "consistent", (), 0)
    assert not any(item.opened for item in found.commitments)
    everything = b"".join(run.read(name) for name in run.names()) + run.examine().payload
    assert not [salt for salt in salts if salt.encode() in everything]


def test_openings_can_be_published_one_by_one(run: Run) -> None:
    document = json.loads(run.read("disclosures.json"))
    document["disclosures"] = [item for item in document["disclosures"] if item["name"] == "script"]
    run.write("disclosures.json", json.dumps(document).encode())
    found = run.examine().verification
    assert [item.name for item in found.commitments if item.opened] == ["script"]
    assert found.exit_code == 0


def test_a_false_opening_fails_and_does_not_touch_the_other_verdicts(run: Run) -> None:
    document = json.loads(run.read("disclosures.json"))
    document["disclosures"][0]["value"] = "somebody else"
    run.write("disclosures.json", json.dumps(document).encode())
    found = run.examine().verification
    assert run.findings() == ["OPEN-WRONG disclosures.json: disclosures[0]"]
    assert (found.bytes, found.record, found.exit_code) == ("intact", "consistent", 1)


def test_a_file_that_is_none_is_a_finding(run: Run) -> None:
    run.write("disclosures.json", b"{}")
    assert run.findings() == ["OPEN-UNREADABLE disclosures.json: schemaVersion"]
    run.write("disclosures.json", b" " * (MAX_BYTES + 1))
    assert [text.split()[0] for text in run.findings()] == ["OPEN-UNREADABLE"]


def test_the_statement_cannot_drop_or_exchange_a_commitment(run: Run) -> None:
    """The log holds them too, under its chain."""
    line = next(line for line in run.lines() if b'"commitments"' in line)
    assert json.loads(line)["t"] == "inventory"
    examination = run.examine()
    assert examination.statement is not None
    assert json.loads(line)["commitments"] == examination.statement.predicate.commitments


def test_a_killed_run_opens_what_its_log_holds_and_nothing_else(run: Run) -> None:
    """An opening is on the disk before its digest is in the log; a kill may come between the two."""
    (run.path / "run.json").unlink()
    document = json.loads(run.read("disclosures.json"))
    document["disclosures"].append(opening("inputs", [["train.bin", "/data/train.bin"]]))
    run.write("disclosures.json", json.dumps(document, indent=2).encode())
    cut = recover(run.path, Signer.from_seed(bytes(32))).cut
    assert cut.keys() == {"disclosures.json"}
    found = run.examine().verification
    assert (found.bytes, found.findings) == ("intact", ())
    assert all(item.opened for item in found.commitments)
    assert "inputs" not in {item.name for item in found.commitments}


def test_recover_leaves_openings_that_fit_as_they_are(run: Run) -> None:
    before = run.read("disclosures.json")
    (run.path / "run.json").unlink()
    assert recover(run.path, Signer.from_seed(bytes(32))).cut == {}
    assert run.read("disclosures.json") == before


def test_a_run_can_do_without_commitments(tmp_path: Path) -> None:
    home = tmp_path / "home"
    path = record(SCRIPTS / "tiny.py", tmp_path, home=home, options=("--no-commitments",))
    assert not (path / "disclosures.json").exists()
    examination = Run(path, home).examine()
    assert examination.statement is not None
    assert examination.statement.predicate.commitments == {}
    assert any("--no-commitments" in text for text in examination.statement.predicate.not_recorded)
    assert examination.verification.exit_code == 0


def test_an_anonymous_run_takes_no_key_of_one_s_own(tmp_path: Path) -> None:
    done = audit("record", "--anonymous", "--key", "id", "train.py", cwd=tmp_path, home=tmp_path)
    assert (done.returncode, "--anonymous makes a fresh key" in done.stderr) == (2, True)
