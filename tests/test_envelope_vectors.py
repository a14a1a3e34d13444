"""Envelopes as files, each with one fault and named after it: what any verifier of this format must say of them.

Made by hand over the payload `{"a":"é ~~~ ??? "}` with the Ed25519 keys whose seeds are 32 bytes 00 (the author, whose
key is in `signer.pub`) and 32 bytes 09 (a stranger). `expected.json` says what is found: `refused`, or a finding.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fuzz.material import AUTHOR
from tests.logs import MemoryReader
from tests.tools import examined
from trainmem_audit.envelope import form_findings, parse_envelope, verifying_signatures
from trainmem_audit.errors import FormatError

ENVELOPES = Path(__file__).parent / "envelopes"
EXPECTED = json.loads((ENVELOPES / "expected.json").read_text())
INVALID = sorted((ENVELOPES / "invalid").iterdir())


@pytest.mark.parametrize("path", sorted((ENVELOPES / "valid").iterdir()), ids=lambda path: path.stem)
def test_a_valid_envelope_has_no_fault(path: Path) -> None:
    data = path.read_bytes()
    envelope = parse_envelope(data, "run.json")
    assert verifying_signatures(envelope, AUTHOR.public)
    assert all(finding.severity == "warning" for finding in form_findings(data, envelope, (AUTHOR.public,)))


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_the_fault_of_an_envelope_is_found(path: Path) -> None:
    data, expected = path.read_bytes(), EXPECTED[path.stem]
    if expected == "refused":
        with pytest.raises(FormatError, match=r"run\.json"):
            parse_envelope(data, "run.json")
    else:
        codes = {finding.code for finding in form_findings(data, parse_envelope(data, "x"), (AUTHOR.public,))}
        assert expected in codes


@pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)
def test_a_run_with_such_an_envelope_does_not_pass(path: Path) -> None:
    """With and without the key: step 1 or 2 fails, and the statement is not vouched for."""
    files = {"run.json": path.read_bytes(), "signer.pub": AUTHOR.public.openssh_line()}
    found = examined(MemoryReader(files)).verification
    assert (found.bytes, found.exit_code) == ("broken", 1)
    assert {found.checks[0].state, found.checks[1].state} & {"fail"}
    alone = examined(MemoryReader({"run.json": path.read_bytes()})).verification
    assert alone.exit_code in (1, 3)
    assert alone.signature.state in ("invalid", "not-checkable")


def test_each_file_has_an_expectation() -> None:
    assert {path.stem for path in INVALID} == EXPECTED.keys()
