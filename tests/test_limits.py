"""What a small hostile file can make us do: bounded memory (held by RLIMIT_AS), bounded work (counted)."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.fuzz.material import author_signs, relinked
from tests.logs import FakeRun, begin, component, written
from tests.tools import environment
from trainmem_audit import canonical, divergence, envelope, keys, rundir, steplog
from trainmem_audit.canonical import canonical_bytes, line_bytes, loads_strict, split_line
from trainmem_audit.documents.manifest import PAYLOAD_TYPE, Statement
from trainmem_audit.errors import FormatError
from trainmem_audit.keys import PublicKey, Signer
from trainmem_audit.steplog import LogReader
from trainmem_audit.trust import Entry, Trust, judge

SIGNER = Signer.from_seed(bytes(32))
MANY = 2_000_000
WITHIN_1_GIB = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
sys.argv = ["trainmem-audit", "verify", sys.argv[1]]
from trainmem_audit.cli import main
main()
"""


def empty_objects(count: int) -> bytes:
    return b"[" + b"{}," * (count - 1) + b"{}]"


def subjects(count: int) -> bytes:
    plain = canonical_bytes(builders.statement_json() | {"subject": []})
    return plain.replace(b'"subject":[]', b'"subject":' + empty_objects(count))


def named(count: int) -> bytes:
    members = b",".join(b'"k%d":{}' % number for number in range(count))
    sources = canonical_bytes(builders.statement_json()["predicate"]["sources"])
    return canonical_bytes(builders.statement_json()).replace(sources, b"{" + members + b"}")


@pytest.mark.parametrize(
    "payload", [subjects(MANY), subjects(canonical.MOST_VALUES // 2 - 5000), named(MANY), named(200_000)]
)
def test_a_small_zip_does_not_take_a_gigabyte(tmp_path: Path, payload: bytes) -> None:
    """Nothing here is larger than a few kilobytes as a zip."""
    with zipfile.ZipFile(tmp_path / "run.zip", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("run.json", envelope.seal(payload, PAYLOAD_TYPE, SIGNER))
        target.writestr("signer.pub", SIGNER.public.openssh_line())
    told = subprocess.run(
        [sys.executable, "-c", WITHIN_1_GIB, str(tmp_path / "run.zip")],
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode == 1, told.stderr[-500:]
    assert "findings (" in told.stdout


def test_json_with_too_many_values_is_not_parsed() -> None:
    most = canonical.MOST_VALUES
    assert len(loads_strict(b"[" + b"1," * (most - 2) + b"1]", "x")) == most - 1
    for text in (b"[" + b"1," * most + b"1]", empty_objects(most), b'{"a":' + b"[" * most):
        with pytest.raises(FormatError, match="too many values"):
            loads_strict(text, "x")
        with pytest.raises(FormatError, match="too many values"):
            split_line(text, "x")


def test_of_a_list_only_the_first_bad_item_is_told() -> None:
    data = canonical_bytes(builders.statement_json() | {"subject": [{}] * 1000})
    with pytest.raises(FormatError) as caught:
        Statement.parse(data, "statement")
    assert caught.value.where == "statement: subject.0.name"


def test_very_many_errors_are_counted_and_not_listed() -> None:
    statement = builders.statement_json()
    statement["predicate"] |= {f"k{number}": 1 for number in range(5000)}  # outside of it they are ignored
    data = canonical_bytes(statement)
    with pytest.raises(FormatError) as caught:
        Statement.parse(data, "statement")
    assert caught.value.got == "5000 errors"


def inventories(**members: Any) -> list[bytes]:
    return written([begin(), {"t": "inventory", "i": 0, **members}])


@pytest.mark.parametrize(
    "members",
    [
        {"inputs": [{"path": f"f{n}", "sha256": "0" * 64, "bytes": 0} for n in range(9)]},
        {"rngCanary": {f"n{n}": "0" * 64 for n in range(9)}},
        {"components": {"a": component(tensors=[[f"t{n}", "float32", [1]] for n in range(9)])}},
        {"components": {"a": component(values={"x": ["0" * 16] * 9})}},
    ],
)
def test_a_log_introduces_no_more_than_memory_holds(members: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    lines = inventories(**members)
    monkeypatch.setattr(steplog, "MOST_NAMES", 8)
    monkeypatch.setattr(steplog, "MOST_PARTS", 8)
    reader = LogReader()
    reader.read(lines[0])
    with pytest.raises(FormatError, match="too many things") as caught:
        reader.read(lines[1])
    assert caught.value.where == "steps.jsonl:2"


def test_what_an_earlier_line_introduced_is_neither_copied_nor_replaced() -> None:
    """Copying all of it at every line would take quadratic time."""
    one = {"path": "a", "sha256": "0" * 64, "bytes": 0}
    lines = written(
        [
            begin(),
            {"t": "inventory", "i": 0, "inputs": [one]},
            {"t": "inventory", "i": 0, "inputs": [one | {"bytes": 1}, one | {"path": "b"}]},
        ]
    )
    reader = LogReader()
    for line in lines[:2]:
        reader.read(line)
    known = reader.summary.inputs
    reader.read(lines[2])
    assert reader.summary.inputs is known
    assert [(name, item.bytes) for name, item in known.items()] == [("a", 0), ("b", 0)]


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Count what is hashed: the fingerprints of the keys that are tried."""
    tried: list[str] = []
    verify = PublicKey.verify

    def counted(key: PublicKey, signature: bytes, message: bytes) -> bool:
        tried.append(key.keyid)
        return verify(key, signature, message)

    monkeypatch.setattr(PublicKey, "verify", counted)
    yield tried


def test_the_key_that_a_keyid_names_is_tried_first_and_alone(verified: list[str]) -> None:
    others = [Signer.generate().public for _ in range(20)]
    sealed = envelope.parse_envelope(envelope.seal(b"{}", "x", SIGNER), "x")
    found = envelope.verifiers(sealed, [*others, SIGNER.public])
    assert (found, verified) == ((SIGNER.public,), [SIGNER.public.keyid])


def test_the_attempts_to_verify_are_bounded_by_what_they_hash(
    verified: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [Signer.generate().public for _ in range(100)]
    sealed = envelope.parse_envelope(envelope.seal(b"{}", "x", SIGNER), "x")
    assert envelope.verifiers(sealed, others) == (None,)
    assert len(verified) == 100
    monkeypatch.setattr(envelope, "_MOST_HASHED", 1)
    verified.clear()
    assert envelope.verifiers(sealed, others) == (None,)
    assert len(verified) == 64


def test_findings_and_verdict_share_one_round_of_verifying(verified: list[str]) -> None:
    data = envelope.seal(b"{}", "x", SIGNER)
    sealed = envelope.parse_envelope(data, "x")
    trust = Trust((Entry(("ann",), SIGNER.public),))
    known = envelope.verifiers(sealed, trust.keys())
    assert envelope.form_findings(data, sealed, (SIGNER.public,), trust.keys(), verified=known) == ()
    assert judge(sealed, (SIGNER.public,), trust, verified=known).principal == "ann"
    assert len(verified) == 1


def test_an_envelope_holds_few_signatures_and_a_small_payload() -> None:
    many = {"keyid": "", "sig": base64.b64encode(bytes(64)).decode()}
    members = {"payload": "", "payloadType": "x", "signatures": [many] * (envelope.MAX_SIGNATURES + 1)}
    with pytest.raises(FormatError, match="signatures"):
        envelope.parse_envelope(json.dumps(members).encode(), "x")
    long = {"payload": "A" * (4 * (envelope.MAX_PAYLOAD // 3 + 1)), "payloadType": "x", "signatures": [many]}
    with pytest.raises(FormatError, match="payload is too long"):
        envelope.parse_envelope(json.dumps(long).encode(), "x")
    assert keys.MAX_SIGNERS <= envelope.MAX_SIGNATURES


@pytest.mark.parametrize(
    "argument",
    [{}, {"prefix": "--x="}, {"text": "--safe", "path": "{cwd}/evil"}, {"text": "x", "redacted": True},
     {"text": "a\0b"}, {"prefix": "a\0", "text": "b"}],
)  # fmt: skip
def test_an_argument_has_exactly_one_form_and_can_stand_on_a_command_line(argument: dict[str, Any]) -> None:
    members = builders.statement_json()
    members["predicate"]["command"]["arguments"] = [argument]
    with pytest.raises(FormatError, match="not a valid Statement"):
        Statement.parse(canonical_bytes(members), "statement")


def test_an_empty_argument_is_one() -> None:
    members = builders.statement_json()
    members["predicate"]["command"]["arguments"] = [{"text": ""}]
    Statement.parse(canonical_bytes(members), "statement")


# What a log, a folder and a table of contents can make us hold ----------------------------------------------------

WITHIN_1_GIB_AND_A_MINUTE = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
sys.argv = ["trainmem-audit", *json.loads(sys.argv[1])]
from trainmem_audit.cli import main
main()
"""


def bounded(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a verb that may take a GiB and a minute of the processor; it must end by itself, and in words."""
    told = subprocess.run(
        [sys.executable, "-c", WITHIN_1_GIB_AND_A_MINUTE, json.dumps(arguments)],
        env=environment(tmp_path / "home"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert told.returncode in (0, 1, 2, 3), told.stderr[-500:]
    assert "Traceback" not in told.stderr
    assert "MemoryError" not in told.stderr
    return told


def many_settings(line: int) -> dict[str, Any]:
    loader = {"kind": "x", "dataset": "x", "sampler": "x", "settings": {f"{n:x}": 1 for n in range(50_000)}}
    return {"loaders": {f"loader-{line}": loader}}


def long_shapes(line: int) -> dict[str, Any]:
    return {"components": {f"c{line}": component(tensors=[["t", "float32", [1] * 250_000]])}}


def many_folders(line: int) -> dict[str, Any]:
    folders = [{"path": f"{{cwd}}/{line}-{n}", "names": [f"{m:x}" for m in range(1000)]} for n in range(100)]
    return {"folders": folders}


def long_states(line: int) -> dict[str, Any]:
    stream = {"library": "python", "algorithm": "x", "device": "cpu", "state": "A" * 2**20}
    return {"streams": {f"s{line}-{n}": stream for n in range(8)}}


INTRODUCING = [
    ("verify", many_settings), ("verify", long_shapes), ("verify", many_folders), ("verify", long_states),
    ("diff", many_folders),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "make"), INTRODUCING)
def test_a_log_introduces_no_more_than_a_gigabyte_holds(tmp_path: Path, verb: str, make: Any) -> None:
    """As a zip none of these logs has more than a few megabytes, and each could go on for ever."""
    members = [
        begin(),
        *({"t": "inventory", "i": 0, **make(line)} for line in range(12 if make is long_states else 40)),
    ]
    log = relinked(b"".join(line_bytes(line) + b"\n" for line in members))
    payload = canonical_bytes(builders.statement_json())
    with zipfile.ZipFile(tmp_path / "run.zip", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("run.json", envelope.seal(payload, PAYLOAD_TYPE, SIGNER))
        target.writestr("signer.pub", SIGNER.public.openssh_line())
        target.writestr("steps.jsonl", log)
    told = bounded(tmp_path, verb, *["run.zip"] * (1 + (verb == "diff")))
    assert "too many things" in told.stdout + told.stderr


def test_epochs_without_a_step_are_not_gathered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "MOST_EPOCHS", 10)
    loader = {"kind": "x", "dataset": "x", "sampler": "x", "settings": {}}
    epoch = {"t": "epoch", "i": 0, "epoch": 0, "loader": "l", "rng": {"python": "0" * 64}}
    lines = written([begin(), {"t": "inventory", "i": 0, "loaders": {"l": loader}}, *[epoch] * 6])
    reader = LogReader()
    with pytest.raises(FormatError, match="too many epochs"):
        list(divergence.groups(map(reader.read, lines)))


def test_what_is_said_again_between_two_steps_is_held_once() -> None:
    said = {"t": "inventory", "i": 0, "components": {"a": component(values={"x": "0" * 1000})}}
    reader = LogReader()
    (group,) = divergence.groups(map(reader.read, written([begin(), *[said] * 1000])))
    assert len(group.components) == 1


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_directory_with_very_many_entries_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rundir, "MAX_FILES", 20)
    for number in range(21):
        (tmp_path / f"{number}").mkdir() if kind == "folder" else (tmp_path / f"{number}").touch()
    with pytest.raises(FormatError, match="too many files and folders"):
        rundir.open_run(tmp_path)


def test_a_zip_with_millions_of_entries_takes_no_gigabyte(tmp_path: Path) -> None:
    """A table of contents of 90 MB, every entry the same empty one."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    count = 90 * 2**20 // len(entry)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, count * len(entry), 0, 0)
    with (tmp_path / "run.zip").open("wb") as file:
        for _ in range(100):
            file.write(entry * (count // 100))
        file.write(entry * (count - count // 100 * 100) + end)
    told = bounded(tmp_path, "verify", "run.zip")
    assert told.returncode == 2
    assert "too long a directory" in told.stderr


def test_a_saved_verification_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "saved.json").open("wb") as file:
        file.truncate(2**33)
    run = FakeRun(2)
    for name, data in author_signs({"steps.jsonl": run.log(), "order/rank-0.i64": run.order()}).items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(data)
    told = bounded(tmp_path, "report", "run", "--verification", "saved.json")
    assert told.returncode == 2
    assert "too long" in told.stderr


SLOW_TEXTS = {
    "spaces": " " * 2**19,
    "equals": "a=" * 2**18,
    "dots": "a." * 2**18,
    "slashes": "/a" * 2**18,
    "flags": "--token " * 2**16,
    "urls": "https://" * 2**16,
    "letters": "A" * 2**19,
    "quotes": "'\"" * 2**18,
    "dashes": "-" * 2**19,
    "at": "a@" * 2**18,
}


def test_the_search_for_secrets_ends_whatever_the_text(tmp_path: Path) -> None:
    """Patterns over hostile text: half a megabyte on one line for each kind of repetition."""
    run = FakeRun(2)
    texts = {f"source/{name}.py": text.encode() for name, text in SLOW_TEXTS.items()}
    files = author_signs({"steps.jsonl": run.log(), "order/rank-0.i64": run.order(), **texts})
    for name, data in files.items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_bytes(data)
    told = bounded(tmp_path, "pack", "run")
    assert told.returncode in (0, 2)
