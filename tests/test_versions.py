"""Versions: which schema is chosen, old files keep verifying, newer ones are undecided, unknown ones stop the reader.

The older and the newer version are made up, and exist in temporary directories only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.logs import MemoryReader
from tests.releases import FROZEN, ROOT, damage, freeze, make_older, older_line, older_statement, seal, younger
from tests.tools import audit, examined
from tests.vectors import SEED, Members, TinyRun
from trainmem_audit import versions
from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.cli import app
from trainmem_audit.conformance import Schemas, our_schemas
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.documents.manifest import PAYLOAD_TYPE
from trainmem_audit.envelope import seal as seal_envelope
from trainmem_audit.errors import FormatError, UsageError, VersionError
from trainmem_audit.keys import Signer
from trainmem_audit.runs import compare, read_lines, read_statement
from trainmem_audit.versions import Choice, Release, choose, migrate

OLD = "0.0.9"
RELEASED = ("1.0.0", "1.1.0", "1.4.2", "2.0.0", "0.1.0-draft")


@pytest.mark.parametrize(
    ("asked", "choice"),
    [
        ("1.0.0", Choice("1.0.0")),
        ("1.4.2", Choice("1.4.2")),
        ("2.0.0", Choice("2.0.0")),
        ("0.1.0-draft", Choice("0.1.0-draft")),
        ("1.4.3", Choice("1.4.2")),
        ("1.5.0", Choice("1.4.2", newer=True)),
        ("1.40.0", Choice("1.4.2", newer=True)),
        ("2.1.0", Choice("2.0.0", newer=True)),
    ],
)
def test_a_version_is_read_with(asked: str, choice: Choice) -> None:
    assert choose(asked, RELEASED) == choice


@pytest.mark.parametrize(
    "asked", ["3.0.0", "0.1.0", "0.1.1-draft", "0.2.0", "0.0.1", "1.2.0", "2.0.0-rc1", "1.5.0-draft", "999999999.0.0"]
)
def test_a_version_that_is_not_guessed_at(asked: str) -> None:
    with pytest.raises(VersionError):
        choose(asked, RELEASED)


@pytest.mark.parametrize("asked", ["", "1", "1.0", "v1.0.0", "01.0.0", "1.0.0\n", "1.0.0.0", "1.0.0-" + "x" * 99])
def test_what_is_no_version(asked: str) -> None:
    with pytest.raises(FormatError):
        choose(asked, RELEASED)


def test_every_release_is_as_it_was_frozen() -> None:
    wrong = {name: damage(path) for name, path in our_schemas().versions.items() if path.name != "draft"}
    assert not any(wrong.values()), wrong


def test_no_made_up_version_is_shipped() -> None:
    assert not versions.RELEASES
    assert set(our_schemas().versions) == {SCHEMA_VERSION}


def test_a_frozen_release_is_held(tmp_path: Path) -> None:
    folder = tmp_path / "1.0.0"
    freeze(ROOT / "draft", folder, "1.0.0")
    assert damage(folder) == []
    assert json.loads((folder / "plan.schema.json").read_text())["$id"].endswith("/schema/1.0.0/plan.schema.json")
    assert not re.findall(SCHEMA_VERSION, "".join(path.read_text() for path in folder.iterdir()))
    with pytest.raises(FileExistsError):
        freeze(ROOT / "draft", folder, "1.0.0")
    (folder / "plan.schema.json").write_text("{}")
    (folder / "common.schema.json").unlink()
    (folder / "notes.txt").touch()
    assert damage(folder) == ["common.schema.json is missing", "notes.txt was added", "plan.schema.json was changed"]


def test_others_can_check_a_frozen_release(tmp_path: Path) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    freeze(ROOT / "draft", tmp_path / "1.0.0", "1.0.0")
    done = subprocess.run(["sha256sum", "-c", "--strict", FROZEN], cwd=tmp_path / "1.0.0", check=False, timeout=60)
    assert done.returncode == 0


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give this program a past: version 0.0.9, which called two members otherwise."""
    make_older(tmp_path / "schema", OLD)
    schemas = Schemas(tmp_path / "schema")
    for module in ("versions", "conformance"):
        monkeypatch.setattr(f"trainmem_audit.{module}.our_schemas", lambda: schemas)
    monkeypatch.setitem(versions.RELEASES, OLD, Release(SCHEMA_VERSION, younger))
    return tmp_path


def old_run(**broken: Any) -> MemoryReader:
    """Return a run that was written when 0.0.9 was the current version."""
    return MemoryReader(older_run(**broken).files())


def older_run(**broken: Any) -> TinyRun:
    def statement(value: Members) -> None:
        old = older_statement(value, OLD)
        value.clear()
        value.update(old)

    return TinyRun(members=lambda lines: [older_line(line) for line in lines], statement=statement, **broken)


def test_an_old_run_keeps_verifying(older: Path) -> None:
    found = examined(old_run())
    assert found.verification.findings == ()
    assert (found.verification.bytes, found.verification.record, found.verification.exit_code) == (
        "intact",
        "consistent",
        0,
    )
    assert found.statement is not None
    assert found.statement.predicate.numeric_profile["import"] == {"threads": 1}


def test_an_old_run_is_read_by_the_others(older: Path) -> None:
    assert read_statement(old_run()).predicate.command.hash_seed == "0"
    assert sum(line.t == "step" for line in read_lines(old_run())) == 2
    assert compare(old_run(), MemoryReader(TinyRun().files())) == (None, 2)


def test_an_old_run_is_held_to_its_own_schema(older: Path) -> None:
    """The member as the current version calls it was unknown then."""
    run = TinyRun(statement=lambda s: s["predicate"].update(schemaVersion=OLD))
    (finding,) = examined(MemoryReader(run.files())).verification.findings
    assert (finding.code, finding.where) == ("STATEMENT", "statement: /predicate/command/hashSeed")


def test_a_broken_old_run_is_found_out(older: Path) -> None:
    files = older_run().files()
    files["steps.jsonl"] = files["steps.jsonl"].replace(b'"n":2', b'"n":3', 1)
    codes = {finding.code for finding in examined(MemoryReader(files)).verification.findings}
    assert codes == {"FILE-CHANGED", "LOG"}


def test_a_migrated_statement_names_the_old_one(older: Path) -> None:
    payload = older_run().payload()
    old = json.loads(payload)
    kept = json.dumps(old)
    new = migrate("statement", old)
    assert json.dumps(old) == kept
    expected = {"schemaVersion": OLD, "sha256": hashlib.sha256(payload).hexdigest()}
    assert new["predicate"]["derivedFrom"] == expected
    assert new["predicate"]["schemaVersion"] == SCHEMA_VERSION
    assert our_schemas().findings(new, "statement") == ()
    assert (new["subject"], new["predicate"]["run"]) == (old["subject"], old["predicate"]["run"])


@pytest.mark.parametrize("name", ["plan", "estimates", "verification"])
def test_other_documents_say_their_version_at_the_top(older: Path, name: str) -> None:
    vector = next((ROOT / "draft" / "vectors" / name / "valid").iterdir())
    document = json.loads(vector.read_bytes()) | {"schemaVersion": OLD}
    if name == "verification":  # it is written anew, not migrated: it has no `derivedFrom`
        with pytest.raises(FormatError):
            migrate(name, document)
        return
    new = migrate(name, document)
    assert new["derivedFrom"]["sha256"] == hashlib.sha256(canonical_bytes(document)).hexdigest()
    assert {**new, "schemaVersion": OLD} == {**document, "derivedFrom": new["derivedFrom"]}


def test_what_is_not_migrated(older: Path) -> None:
    with pytest.raises(UsageError, match="of the current version"):
        migrate("statement", json.loads(TinyRun().payload()))
    with pytest.raises(VersionError):
        migrate("plan", {"schemaVersion": "9.0.0"})
    with pytest.raises(FormatError, match=f"not a valid plan of version {OLD}"):
        migrate("plan", {"schemaVersion": OLD})
    with pytest.raises(FormatError, match="no version"):
        migrate("plan", {})


def test_migrate_on_the_command_line(older: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, data in older_run().files().items():
        (older / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (older / "run" / name).write_bytes(data)
    monkeypatch.chdir(older)
    monkeypatch.setenv("TRAINMEM_AUDIT_HOME", str(older / "home"))
    before = (older / "run" / "run.json").read_bytes()
    old_payload = base64.b64decode(json.loads(before)["payload"])

    assert CliRunner().invoke(app, ["migrate", "run/run.json", "-o", "bare.json"]).exit_code == 0
    bare = json.loads((older / "bare.json").read_bytes())
    assert bare["predicate"]["derivedFrom"]["sha256"] == hashlib.sha256(old_payload).hexdigest()

    assert CliRunner().invoke(app, ["migrate", "run/run.json", "-o", "signed.json", "--sign"]).exit_code == 0
    assert (older / "run" / "run.json").read_bytes() == before
    signed = json.loads((older / "signed.json").read_bytes())
    assert json.loads(base64.b64decode(signed["payload"])) == bare
    again = CliRunner().invoke(app, ["migrate", "run/run.json", "-o", "signed.json"])
    assert isinstance(again.exception, UsageError)

    home = next((older / "home").rglob("*.pub")).read_bytes().split()[:2]
    files = older_run().files() | {"run.json": (older / "signed.json").read_bytes()}
    files["signer.pub"] = b" ".join(home) + b"\n"
    codes = [finding.code for finding in examined(MemoryReader(files)).verification.findings]
    assert codes == []


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let this program be of version 1.2.0, so that 1.3.0 is a newer minor."""
    freeze(ROOT / "draft", tmp_path / "schema" / "1.2.0", "1.2.0")
    schemas = Schemas(tmp_path / "schema")
    monkeypatch.setattr(Schemas, "names", _names_of("1.2.0"))
    for module in ("versions", "verify", "assemble"):
        monkeypatch.setattr(f"trainmem_audit.{module}.SCHEMA_VERSION", "1.2.0")
    for module in ("versions", "conformance"):
        monkeypatch.setattr(f"trainmem_audit.{module}.our_schemas", lambda: schemas)
    return tmp_path


def _names_of(current: str) -> Any:
    real = Schemas.names
    return lambda self, version=current: real(self, version)


def of_version(version: str, **more: Any) -> TinyRun:
    def statement(value: Members) -> None:
        value["predicate"].update(schemaVersion=version, **more)

    return TinyRun(statement=statement)


def test_the_current_release_verifies(newer: Path) -> None:
    assert examined(MemoryReader(of_version("1.2.0").files())).verification.exit_code == 0


def test_a_newer_minor_is_undecided(newer: Path) -> None:
    """What is not known is ignored and listed: members of the predicate and of lines, types of lines."""
    run = of_version("1.3.0", weather={"sky": "blue"})
    sky = {"sky": "blue"}
    run.members = lambda lines: [*lines[:3], {"t": "weather"} | sky, *(line | sky for line in lines[3:])]
    found = examined(MemoryReader(run.files())).verification
    (finding,) = found.findings
    assert (finding.code, finding.severity, finding.got) == ("STATEMENT-NEWER", "warning", "1.3.0 /predicate/weather")
    assert (found.bytes, found.record, found.exit_code) == ("intact", "not-checked", 3)


def test_a_newer_minor_does_not_excuse_a_fault(newer: Path) -> None:
    run = of_version("1.3.0")
    run.lines = lambda lines: [*lines[:5], lines[5].replace(b'"n":2', b'"n":3'), *lines[6:]]
    found = examined(MemoryReader(run.files())).verification
    assert (found.record, found.exit_code) == ("inconsistent", 1)
    wrong = of_version("1.3.0", run={"id": "0"})
    assert examined(MemoryReader(wrong.files())).verification.exit_code == 1


def test_members_that_are_known_are_still_strict_in_a_newer_minor(newer: Path) -> None:
    run = of_version("1.3.0")
    run.members = lambda lines: [*lines[:-1], lines[-1] | {"exitCode": "0"}]
    (finding,) = (f for f in examined(MemoryReader(run.files())).verification.findings if f.severity == "error")
    assert finding.code == "LOG"


@pytest.mark.parametrize("verb", ["verify", "show", "report", "diff"])
def test_an_unknown_major_stops_every_verb_that_judges(tmp_path: Path, verb: str) -> None:
    run = tmp_path / "run"
    shutil.copytree(ROOT / "draft" / "vectors" / "runs" / "invalid" / "unknown-major-version", run)
    done = audit(verb, run, *([run] if verb == "diff" else []), cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "9.0.0" in done.stderr


def test_a_signature_does_not_help_an_unknown_version() -> None:
    files = TinyRun().files()
    statement = json.loads(TinyRun().payload())
    statement["predicate"]["schemaVersion"] = "0.2.0"
    files["run.json"] = seal_envelope(canonical_bytes(statement), PAYLOAD_TYPE, Signer.from_seed(SEED))
    with pytest.raises(VersionError):
        examined(MemoryReader(files))


def test_a_version_that_nobody_signed_is_a_broken_signature() -> None:
    """Whoever changes the version in a file of somebody else gets no other exit code by it."""
    files = TinyRun().files()
    envelope = json.loads(files["run.json"])
    payload = base64.b64decode(envelope["payload"]).replace(
        b'"schemaVersion":"0.1.0-draft"', b'"schemaVersion":"9.0.0"'
    )
    envelope["payload"] = base64.b64encode(payload).decode()
    files["run.json"] = canonical_bytes(envelope) + b"\n"
    found = examined(MemoryReader(files)).verification
    assert (found.signature.state, found.bytes, found.exit_code) == ("invalid", "broken", 1)
    assert "STATEMENT" in {finding.code for finding in found.findings}


def test_a_damaged_list_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert damage(tmp_path) == [f"{FROZEN} is missing"]
    seal(tmp_path)
    assert damage(tmp_path) == []
