"""Attacks on a small real run: every changed, added, missing or moved byte fails, and the findings say where.

`Run.examine` verifies in this process as a machine that accepts any valid signature; the command line has its own
tests below.
"""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.logs import MemoryReader
from tests.tools import Run, examined, verify
from trainmem_audit.assemble import manifest_members
from trainmem_audit.canonical import CHAIN_START, canonical_bytes, chain_digest, line_marks, sha256_hex
from trainmem_audit.documents.manifest import PAYLOAD_TYPE
from trainmem_audit.envelope import seal
from trainmem_audit.errors import VersionError
from trainmem_audit.keys import Signer
from trainmem_audit.steplog import LogReader

LISTED = ("order/rank-0.i64", "source/train.py", "steps.jsonl", "tensors.b3")


def positions(data: bytes) -> range:
    """Return every position of a small file, and about 120 of a large one."""
    return range(0, len(data), 1 if len(data) < 600 else len(data) // 120)


def flips(data: bytes) -> Iterator[bytes]:
    """Yield the data with one bit of one byte flipped."""
    for at in positions(data):
        yield data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def additions_and_removals(data: bytes) -> Iterator[bytes]:
    """Yield the data with a byte too many or too few: at some places, at both ends."""
    for at in {*itertools.islice(positions(data), 3, None, 20), 0, len(data)}:
        yield data[:at] + b"x" + data[at:]
    for at in {*itertools.islice(positions(data), 3, None, 20), 0, len(data) - 1}:
        yield data[:at] + data[at + 1 :]


def files_named(findings: list[str]) -> set[str]:
    """Return the files that findings name as changed, without the line."""
    return {where.split(" ")[1].split(":")[0] for where in findings if where.startswith("FILE-")}


def resigned(run: Run, change: Callable[[dict[str, Any]], object], signer: Signer | None = None) -> list[str]:
    """Let the author himself sign another statement: apply `change` to it; return the findings."""
    statement = json.loads(base64.b64decode(json.loads(run.read("run.json"))["payload"]))
    change(statement)
    sign(run, canonical_bytes(statement), signer or Signer.generate())
    return run.findings()


def sign(run: Run, payload: bytes, signer: Signer) -> None:
    """Replace envelope and key."""
    run.write("run.json", seal(payload, PAYLOAD_TYPE, signer))
    run.write("signer.pub", signer.public.openssh_line())


def refresh(run: Run, statement: dict[str, Any]) -> None:
    """Make the list of files and everything that follows from the log say what the directory holds now."""
    for subject in statement["subject"]:
        subject["digest"]["sha256"] = sha256_hex(run.read(subject["name"]))
    log = LogReader()
    for line in run.lines():
        log.read(line[:-1])
    head = manifest_members(log.finish())["step_logs"][0]
    signed = statement["predicate"]["stepLogs"][0]
    signed |= {"count": head["count"], "steps": head["steps"], "complete": head["complete"]}
    signed |= {"chainHead": head["chain_head"], "merkleRoot": head["merkle_root"]}


def test_the_untouched_run_passes(run: Run) -> None:
    found = run.examine().verification
    assert (found.bytes, found.record, found.signature.state) == ("intact", "consistent", "unknown-signer")
    assert (found.findings, found.exit_code) == ((), 0)
    assert {subject.name for subject in run.examine().statement.subject} == set(LISTED)  # type: ignore[union-attr]


# Files of the statement -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("attack", [flips, additions_and_removals], ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("name", LISTED)
def test_a_changed_byte_fails_and_its_file_is_named(
    run: Run, name: str, attack: Callable[[bytes], Iterator[bytes]]
) -> None:
    for data, found in run.damaged(name, list(attack(run.read(name)))):
        findings = [f"{finding.code} {finding.where}" for finding in found.findings]
        assert found.verification.exit_code == 1, data
        assert found.verification.bytes == "broken"
        assert files_named(findings) == {name}


@pytest.mark.parametrize("name", LISTED)
def test_an_emptied_file_fails(run: Run, name: str) -> None:
    run.write(name, b"")
    assert run.examine().verification.exit_code == 1
    assert files_named(run.findings()) == {name}


@pytest.mark.parametrize("name", LISTED)
def test_a_missing_file_is_a_finding(run: Run, name: str) -> None:
    (run.path / name).unlink()
    assert run.examine().verification.exit_code == 1
    assert f"FILE-MISSING {name}" in run.findings()


@pytest.mark.parametrize("name", ["extra", "source/extra.py", ".hidden", "source/run.json", "order/rank-1.i64"])
def test_an_unlisted_file_is_a_finding(run: Run, name: str) -> None:
    run.write(name, b"")
    assert run.findings() == [f"FILE-UNLISTED {name}"]
    assert run.examine().verification.exit_code == 1


# The line ---------------------------------------------------------------------------------------------------------


def line_attacks(lines: list[bytes]) -> Iterator[tuple[str, int, list[bytes]]]:
    """Yield (what, number of the first bad line, lines) for every kind of damage at every line."""
    for at, line in enumerate(lines):
        rest = lines[at + 1 :]
        middle = len(line) // 2
        yield "flip", at + 1, [*lines[:at], line[:middle] + bytes([line[middle] ^ 1]) + line[middle + 1 :], *rest]
        yield "first byte", at + 1, [*lines[:at], b"[" + line[1:], *rest]
        yield "line feed", at + 1, [*lines[:at], line[:-1] + b" ", *rest]
        yield "carriage return", at + 1, [*lines[:at], line[:-1] + b"\r\n", *rest]
        yield "cut in two", at + 1, [*lines[:at], line[:middle] + b"\n" + line[middle:], *rest]
        yield "empty line before", at + 1, [*lines[:at], b"\n", line, *rest]
        yield "removed", at + 1, [*lines[:at], *rest]
        yield "twice", at + 2, [*lines[: at + 1], line, *rest]
        yield "truncated before", at + 1, lines[:at]
        if rest:
            yield "swapped", at + 1, [*lines[:at], rest[0], line, *rest[1:]]


def test_the_damaged_line_of_the_step_log_is_named(run: Run) -> None:
    attacks = list(line_attacks(run.lines()))
    versions = [b"".join(lines) for _, _, lines in attacks]
    for (what, number, _), (_, found) in zip(attacks, run.damaged("steps.jsonl", versions), strict=True):
        places = [finding.where for finding in found.findings]
        assert f"steps.jsonl:{number}" in places, (what, number, places)
        assert found.verification.record == "inconsistent"


def test_the_damaged_line_of_a_code_file_is_named(run: Run) -> None:
    lines = run.read("source/train.py").splitlines(keepends=True)
    attacks = [
        (what, number, b"".join(damaged))
        for what, number, damaged in line_attacks(lines)
        if b"".join(damaged) != b"".join(lines)  # two empty lines swapped
    ]
    versions = [data for _, _, data in attacks]
    for (what, number, _), (_, found) in zip(attacks, run.damaged("source/train.py", versions), strict=True):
        places = [finding.where for finding in found.findings]
        named = int(places[0].removeprefix("source/train.py:"))
        assert named >= number, (what, number, places)  # later only where equal lines follow one another
        if what in ("flip", "first byte", "carriage return"):
            assert named == number


@pytest.mark.parametrize(("step", "at"), [(0, 12), (0, 600), (3, 40), (5, 490)])
def test_the_step_of_a_damaged_tensor_digest_is_named(run: Run, step: int, at: int) -> None:
    data = bytearray(run.read("tensors.b3"))
    data[len(data) // 6 * step + at % (len(data) // 6)] ^= 4
    run.write("tensors.b3", bytes(data))
    assert f"SIDE tensors.b3: frame {step}" in run.findings()


@pytest.mark.parametrize("step", range(6))
def test_the_step_of_a_damaged_sample_index_is_named(run: Run, step: int) -> None:
    data = bytearray(run.read("order/rank-0.i64"))
    data[64 * step + 7] ^= 4
    run.write("order/rank-0.i64", bytes(data))
    findings = [finding for finding in run.examine().findings if finding.code == "SIDE"]
    assert [(finding.where, finding.got) for finding in findings] == [
        (f"order/rank-0.i64: byte {64 * step}", f"step {step}")
    ]


# run.json and signer.pub ------------------------------------------------------------------------------------------


def surrounding(data: bytes) -> range:
    """Return the positions of `run.json` behind the payload."""
    return range(data.index(b'","payloadType"'), len(data))


def refuse_every(run: Run, versions: Iterator[tuple[object, bytes]]) -> None:
    """Demand that each version of `run.json` fails, by an invalid signature or by a finding."""
    files = {name: run.read(name) for name in run.names()}
    for what, data in versions:
        found = examined(MemoryReader(files | {"run.json": data})).verification
        assert found.exit_code == 1, what
        assert found.findings or found.signature.state == "invalid", what


def flipped(data: bytes, places: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """Yield each place with the data that has one bit flipped there."""
    for at in places:
        yield at, data[:at] + bytes([data[at] ^ (1 << at % 7)]) + data[at + 1 :]


def test_run_json_holds_no_free_byte_behind_its_payload(run: Run) -> None:
    data = run.read("run.json")
    refuse_every(run, flipped(data, surrounding(data)))
    refuse_every(run, ((at, data[:at] + data[at + 1 :]) for at in surrounding(data)))
    refuse_every(run, ((at, data[:at] + b" " + data[at:]) for at in [*range(12), *surrounding(data), len(data)]))


def test_run_json_holds_no_free_byte_in_a_sample_of_its_payload(run: Run) -> None:
    data = run.read("run.json")
    refuse_every(run, flipped(data, [*range(40), *range(40, len(data), 23)]))


@pytest.mark.slow
def test_run_json_holds_no_free_byte(run: Run) -> None:
    data = run.read("run.json")
    refuse_every(run, flipped(data, range(len(data))))


def test_signer_pub_holds_no_free_byte(run: Run) -> None:
    data = run.read("signer.pub")
    versions = [bytes(damaged) for _, damaged in flipped(data, range(len(data)))]
    versions += [data[:at] + data[at + 1 :] for at in range(len(data))]
    versions += [data[:at] + b"A" + data[at:] for at in range(len(data))]
    for damaged, found in run.damaged("signer.pub", versions):
        assert found.verification.exit_code == 1, damaged


def test_a_run_without_its_public_key_cannot_be_checked(run: Run) -> None:
    (run.path / "signer.pub").unlink()
    found = run.examine().verification
    assert (found.signature.state, found.bytes, found.exit_code) == ("not-checkable", "not-checked", 3)


def test_another_run_json_does_not_fit(run: Run, tmp_path: Path) -> None:
    """The envelope of one run beside the files of another."""
    findings = resigned(run, lambda statement: statement["subject"].pop())
    assert findings == ["FILE-UNLISTED tensors.b3"]


# Attackers who know the format ------------------------------------------------------------------------------------


def relink(lines: list[bytes]) -> bytes:
    """Return a log whose chain was computed anew."""
    head, found = CHAIN_START, []
    for line in lines:
        body = b"{" + line[:-1].split(b",", 1)[1]
        head = chain_digest(head, body)
        found.append(b'{"chain":"' + head.hex().encode() + b'",' + body[1:] + b"\n")
    return b"".join(found)


def test_a_log_with_a_new_chain_and_the_old_statement_is_found(run: Run) -> None:
    lines = run.lines()
    lines[1:] = [line.replace(b'"threads":', b'"threadz":').replace(b'"n":8', b'"n":9') for line in lines[1:]]
    lines = [line for line in lines if b'"t":"end"' not in line]
    run.write("steps.jsonl", relink(lines))
    run.write("order/rank-0.i64", run.read("order/rank-0.i64") + bytes(48))
    findings = run.findings()
    assert "FILE-CHANGED steps.jsonl" in findings
    assert f"LOG steps.jsonl:{len(lines) + 1}" in findings
    assert "LOG-STATEMENT statement: predicate.stepLogs[0].chainHead" in findings
    assert "SIDE order/rank-0.i64: byte 0" in findings


def test_a_step_left_out_of_log_and_statement_is_found_by_its_number(run: Run) -> None:
    lines = [line for line in run.lines() if b'"i":3,' not in line or b'"t":"step"' not in line]
    run.write("steps.jsonl", relink(lines))
    findings = resigned(
        run, lambda statement: statement["subject"][2]["digest"].update(sha256=sha256_hex(relink(lines)))
    )
    at = next(number for number, line in enumerate(lines, 1) if b'"i":4,' in line)
    assert findings == [f"LOG steps.jsonl:{at}"]


def test_side_files_made_up_after_the_log_are_found(run: Run) -> None:
    """The author signs tensor digests and indices that the log does not bear out."""
    run.write("tensors.b3", run.read("tensors.b3")[:-1] + b"\0")
    assert resigned(run, lambda statement: refresh(run, statement)) == ["SIDE tensors.b3: frame 5"]


def test_a_signature_by_another_key_is_not_trusted(run: Run) -> None:
    findings = resigned(run, lambda _: None)
    assert findings == []
    found = run.examine().verification
    assert found.signature.state == "unknown-signer"
    told = verify(run.path, home=run.home)  # the author's own machine does not know this key either
    assert (told.code, told.document["signature"]["state"]) == (1, "unknown-signer")


def test_another_key_beside_the_old_signature_is_found(run: Run) -> None:
    run.write("signer.pub", Signer.generate().public.openssh_line())
    assert run.examine().signature.state == "invalid"
    assert run.examine().verification.exit_code == 1


@pytest.mark.parametrize("marks", [line_marks(b"x"), "A", "AAAAA", "AA=", ""])
def test_nonsense_for_line_marks_is_survived(run: Run, marks: str) -> None:
    """Marks that the author signed and that mean nothing: a changed file is still named."""

    def change(statement: dict[str, Any]) -> None:
        statement["predicate"]["files"][0]["lines"] = marks

    run.write("source/train.py", b"print()\n")
    assert any(finding.startswith("FILE-CHANGED source/train.py") for finding in resigned(run, change))


# The statement ----------------------------------------------------------------------------------------------------


def scalars(value: Any, path: str = "") -> Iterator[tuple[Any, Any, str]]:
    """Yield (container, key, path) of every scalar in a JSON value."""
    for key, member in value.items() if isinstance(value, dict) else enumerate(value):
        inner = f"{path}.{key}" if isinstance(value, dict) else f"{path}[{key}]"
        if isinstance(member, (dict, list)):
            yield from scalars(member, inner)
        else:
            yield value, key, inner


FREE = (".producer", ".declared", ".checklistVersion", ".notRecorded")


def test_whatever_statement_and_log_both_say_must_agree(run: Run) -> None:
    """Every scalar of the predicate is changed in turn, and signed so by the author."""
    original = json.loads(base64.b64decode(json.loads(run.read("run.json"))["payload"]))
    signer, tried, top = Signer.generate(), 0, set()
    for _, _, path in scalars(original["predicate"]):
        if path.startswith(FREE) or path == ".rngContract.derivation.function":  # another writer derives otherwise
            continue
        statement = json.loads(json.dumps(original))
        container, key = next((c, k) for c, k, p in scalars(statement["predicate"]) if p == path)
        container[key] = other(container[key])
        sign(run, canonical_bytes(statement), signer)
        if path == ".schemaVersion":
            with pytest.raises(VersionError):
                run.examine()
        else:
            assert run.examine().verification.exit_code == 1, path
        tried += 1
        top.add(path.split(".")[1].split("[")[0])
    empty = {"inputs", "folders", "snapshots"}  # it read no file, listed no directory and kept no snapshot
    assert top | empty == original["predicate"].keys() - {name[1:] for name in FREE}


def other(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return value[:-1] + ("0" if value[-1:] != "0" else "1") if isinstance(value, str) else "other"


@pytest.mark.parametrize("name", ["canary", "sources", "order", "rngContract", "files", "numericProfile"])
def test_members_left_out_of_the_statement_are_found(run: Run, name: str) -> None:
    def change(statement: dict[str, Any]) -> None:
        members = statement["predicate"][name]
        members = members["streams"] if name == "rngContract" else members
        members.pop(next(iter(members)) if isinstance(members, dict) else 0)

    findings = resigned(run, change)
    assert len(findings) == 1
    assert findings[0].startswith(f"LOG-STATEMENT statement: predicate.{name}")


def test_the_statement_may_not_hide_what_was_not_recorded(run: Run) -> None:
    lines = run.lines()
    end = json.loads(lines[-1])
    end["notRecorded"] = ["inputs of a worker"]
    lines[-1] = canonical_bytes(end) + b"\n"
    run.write("steps.jsonl", relink(lines))
    findings = resigned(run, lambda statement: refresh(run, statement))
    assert findings == ["LOG-STATEMENT statement: predicate.notRecorded"]


def test_the_author_may_declare_more_than_was_recorded(run: Run) -> None:
    def change(statement: dict[str, Any]) -> None:
        statement["predicate"]["declared"] = {"licence": "CC0"}
        statement["predicate"]["notRecorded"] += ["the weather"]

    assert resigned(run, change) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda s: s.update(predicateType="https://slsa.dev/provenance/v1"), "predicateType"),
        (lambda s: s.update(predicateType=None), "predicateType"),
        (lambda s: s.update(predicate=[]), "predicate.schemaVersion"),
        (lambda s: s["predicate"].update(schemaVersion="latest"), "predicate.schemaVersion"),
        (lambda s: s["predicate"].pop("schemaVersion"), "predicate.schemaVersion"),
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "statement: _type"),
        (lambda s: s["predicate"].update(verdict="verified"), "statement: predicate.verdict"),
        (lambda s: s["predicate"].update(stepLogs=[]), "statement: predicate.stepLogs"),
        (lambda s: s["subject"][0]["digest"].update(sha256="0" * 63), "statement: subject.0.digest.sha256"),
        (lambda s: s["subject"][0]["digest"].pop("sha256"), "statement: subject.0.digest.sha256"),
        (lambda s: s["predicate"].update(seeds=None), "statement: predicate.seeds"),
        (lambda s: s["predicate"]["run"].update(finished=None), "statement: predicate.run.finished"),
        (
            lambda s: s["predicate"]["run"].update(exit_code=0),
            "statement: predicate.run.exit_code",
        ),
    ],
)
def test_a_statement_of_another_kind_is_a_finding(
    run: Run, change: Callable[[dict[str, Any]], object], where: str
) -> None:
    assert resigned(run, change) == [f"STATEMENT {where}"]
    found = run.examine().verification
    assert (found.bytes, found.record, found.exit_code) == ("broken", "not-checked", 1)


def test_what_in_toto_adds_to_its_statement_is_not_looked_at(run: Run) -> None:
    def change(statement: dict[str, Any]) -> None:
        statement["later"] = {"verdict": "verified"}
        statement["subject"][0]["mediaType"] = "text/plain"
        statement["subject"][0]["digest"]["md5"] = "0" * 32

    assert resigned(run, change) == []


def test_extensions_change_nothing(run: Run) -> None:
    assert resigned(run, lambda s: s["predicate"].update(extensions={"org.example/verdict": "verified"})) == []
    wrong = resigned(run, lambda s: s["predicate"].update(extensions={"verdict": "verified"}))
    assert wrong == ["STATEMENT statement: predicate.extensions.verdict.[key]"]


@pytest.mark.parametrize(
    "respell",
    [
        lambda payload: payload + b"\n",
        lambda payload: b" " + payload,
        lambda payload: payload.replace(b'"_type":', b'"_type": '),
        lambda payload: payload[:-1] + b',"_type":"https://in-toto.io/Statement/v1"}',
        lambda payload: payload.replace(b'"count":', b'"count":0'),
        lambda payload: payload.replace(b'"rank":0', b'"rank":0.0'),
        lambda payload: b"[" * 100_000,
        lambda payload: b'{"a":' * 400 + b"0" + b"}" * 400,
        lambda payload: b"",
        lambda payload: b"\xff\xfe",
        lambda payload: b"[]",
        lambda payload: b"null",
    ],
)
def test_a_statement_that_is_not_canonical_is_a_finding(run: Run, respell: Callable[[bytes], bytes]) -> None:
    payload = base64.b64decode(json.loads(run.read("run.json"))["payload"])
    sign(run, respell(payload), Signer.generate())
    assert [finding.split(" ")[0] for finding in run.findings()] == ["STATEMENT"]
    assert run.examine().verification.exit_code == 1


def test_a_statement_that_lists_a_file_twice_is_a_finding(run: Run) -> None:
    assert resigned(run, lambda s: s["subject"].append(s["subject"][0])) == ["FILE-TWICE subject"]


def test_a_statement_without_the_step_log_is_a_finding(run: Run) -> None:
    findings = resigned(run, lambda s: s["predicate"]["stepLogs"][0].update(file="other.jsonl"))
    assert findings == ["LOG-MISSING steps.jsonl"]


def test_code_that_the_statement_gives_two_digests_is_a_finding(run: Run) -> None:
    findings = resigned(run, lambda s: s["predicate"]["files"][0].update(sha256="0" * 64))
    assert "FILE-CODE source/train.py" in findings


# The command line -------------------------------------------------------------------------------------------------


def test_verify_says_file_and_line_and_exits_with_1(run: Run) -> None:
    data = run.read("steps.jsonl")
    run.write("steps.jsonl", data.replace(b'"batches":1', b'"batches":2', 1))
    told = verify(run.path, home=run.home)
    at = next(number for number, line in enumerate(run.lines(), 1) if b'"batches":2' in line)
    assert (told.code, told.document["bytes"], told.document["record"]) == (1, "broken", "inconsistent")
    assert told.findings == ["FILE-CHANGED steps.jsonl", f"LOG steps.jsonl:{at}"]


@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_verify_refuses_a_changed_run_json(run: Run, count: int) -> None:
    data = run.read("run.json")
    for at in range(5, len(data), len(data) // count):
        run.write("run.json", data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        told = verify(run.path, home=run.home)
        assert told.code == 1, at
        assert "Traceback" not in told.stderr
