"""What a small hostile file can make us do: bounded memory (held by RLIMIT_AS), bounded work (counted)."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import builders
from tests.logs import begin, component, written
from tests.tools import environment
from trainmem_audit import canonical, envelope, keys, steplog
from trainmem_audit.canonical import canonical_bytes, loads_strict, split_line
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
    data = canonical_bytes(builders.statement_json() | {f"k{number}": 1 for number in range(5000)})
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
