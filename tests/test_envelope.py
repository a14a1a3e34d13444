"""Envelopes: DSSE to the letter, one exact form, and no byte that can change unseen."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope as OtherEnvelope
from securesystemslib.signer import Key, SSlibKey  # type: ignore[attr-defined]

from trainmem_audit import envelope as env
from trainmem_audit.documents.findings import Finding
from trainmem_audit.errors import FormatError
from trainmem_audit.keys import PublicKey, Signer

TYPE = "application/vnd.in-toto+json"
AUTHOR = Signer.from_seed(bytes(32))
REVIEWER = Signer.from_seed(bytes([7]) * 32)
STRANGER = Signer.from_seed(bytes([9]) * 32)
SEALED = env.seal(b'{"a":"\xc3\xa9 ~~~ ??? "}', TYPE, AUTHOR)


def members(data: bytes = SEALED) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(data)
    return parsed


def findings(data: bytes, *keys: PublicKey) -> tuple[Finding, ...]:
    return env.form_findings(data, env.parse_envelope(data, "run.json"), keys or (AUTHOR.public,))


def codes(data: bytes, *keys: PublicKey) -> list[str]:
    return [finding.code for finding in findings(data, *keys)]


def noticed(data: bytes, *keys: PublicKey) -> bool:
    """Whether the bytes are unreadable, not signed by every key, or a finding."""
    try:
        envelope = env.parse_envelope(data, "run.json")
    except FormatError:
        return True
    if not all(env.verifying_signatures(envelope, key) for key in keys):
        return True
    return any(finding.severity == "error" for finding in env.form_findings(data, envelope, keys))


def test_pae_of_the_protocol() -> None:
    """DSSE `protocol.md` v1.0, its worked example."""
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert env.pae("http://example.com/HelloWorld", b"hello world") == expected


def test_pae_counts_bytes() -> None:
    assert env.pae("é", b"\xff") == b"DSSEv1 2 \xc3\xa9 1 \xff"


@given(st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=30), st.binary(max_size=300))
def test_what_is_sealed_reads_back_verifies_and_has_the_exact_form(kind: str, payload: bytes) -> None:
    data = env.seal(payload, kind, AUTHOR)
    envelope = env.parse_envelope(data, "x")
    assert (envelope.payload, envelope.payload_type) == (payload, kind)
    assert len(env.verifying_signatures(envelope, AUTHOR.public)) == 1
    assert not env.verifying_signatures(envelope, STRANGER.public)
    assert not env.form_findings(data, envelope, (AUTHOR.public,))


@given(st.text(st.characters(codec="utf-8")), st.binary(), st.text(st.characters(codec="utf-8")), st.binary())
def test_pae_is_injective(kind: str, payload: bytes, other_kind: str, other_payload: bytes) -> None:
    """DSSE: no two pairs of type and payload are signed as the same bytes."""
    same = env.pae(kind, payload) == env.pae(other_kind, other_payload)
    assert same == ((kind, payload) == (other_kind, other_payload))


def test_sealing_is_deterministic_and_ends_in_one_line_feed() -> None:
    assert env.seal(b"x", TYPE, AUTHOR) == env.seal(b"x", TYPE, AUTHOR)
    assert SEALED.endswith(b"]}\n")
    assert list(members()) == ["payload", "payloadType", "signatures"]


def test_securesystemslib_verifies_it() -> None:
    data = env.add_signature(SEALED, REVIEWER)
    other = OtherEnvelope.from_dict(json.loads(data))
    keys: list[Key] = [
        SSlibKey(signer.public.keyid, "ed25519", "ed25519", {"public": signer.public.raw.hex()})
        for signer in (AUTHOR, REVIEWER)
    ]
    assert sorted(other.verify(keys, 2)) == sorted(key.keyid for key in keys)


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80])
def test_no_byte_can_change_unseen(flip: int) -> None:
    for at in range(len(SEALED)):
        changed = SEALED[:at] + bytes([SEALED[at] ^ flip]) + SEALED[at + 1 :]
        assert noticed(changed, AUTHOR.public), f"byte {at}: {changed[max(0, at - 10) : at + 10]!r}"


@pytest.mark.slow
def test_no_byte_can_become_any_other_unseen() -> None:
    data = env.seal(b"s", "t", AUTHOR)
    for at in range(len(data)):
        for value in set(range(256)) - {data[at]}:
            assert noticed(data[:at] + bytes([value]) + data[at + 1 :], AUTHOR.public), (at, value)


def test_no_byte_can_go_or_come_unseen() -> None:
    for at in range(len(SEALED)):
        assert noticed(SEALED[:at] + SEALED[at + 1 :], AUTHOR.public)
        assert noticed(SEALED[:at] + b" " + SEALED[at:], AUTHOR.public)
        assert noticed(SEALED[:at] + SEALED[at : at + 1] + SEALED[at:], AUTHOR.public)
    assert noticed(SEALED + b"\n", AUTHOR.public)


def test_no_byte_of_two_signatures_can_change_unseen() -> None:
    data = env.add_signature(SEALED, REVIEWER)
    for at in range(len(data)):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        assert noticed(changed, AUTHOR.public, REVIEWER.public), at


def test_a_second_signature_is_in_form_and_the_first_stays() -> None:
    data = env.add_signature(SEALED, REVIEWER)
    assert codes(data, AUTHOR.public, REVIEWER.public) == []
    assert members(data)["payload"] == members()["payload"]
    assert members()["signatures"][0] in members(data)["signatures"]
    assert env.add_signature(data, REVIEWER) == env.add_signature(data, AUTHOR) == data
    keyids = [signature["keyid"] for signature in members(data)["signatures"]]
    assert keyids == sorted(keyids)


def test_a_second_signature_without_its_key_is_a_warning() -> None:
    found = findings(env.add_signature(SEALED, REVIEWER), AUTHOR.public)
    assert [(finding.code, finding.severity) for finding in found] == [("ENV-UNCHECKED", "warning")]


def test_a_key_of_a_trust_file_checks_too_and_need_not_have_signed() -> None:
    data = env.add_signature(SEALED, REVIEWER)
    envelope = env.parse_envelope(data, "run.json")
    others = (REVIEWER.public, STRANGER.public)
    assert env.form_findings(data, envelope, (AUTHOR.public,), others) == ()


def test_a_key_of_signer_pub_that_signed_nothing_is_an_error() -> None:
    assert codes(SEALED, AUTHOR.public, REVIEWER.public) == ["ENV-SIGNER"]


def test_a_signature_under_anothers_name_is_an_error() -> None:
    value = members(env.add_signature(SEALED, REVIEWER))
    value["signatures"][0]["sig"], value["signatures"][1]["sig"] = (
        value["signatures"][1]["sig"],
        value["signatures"][0]["sig"],
    )
    assert codes(written(value), AUTHOR.public, REVIEWER.public) == ["ENV-KEYID", "ENV-KEYID"]


def written(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def changed(**replacements: Any) -> bytes:
    return written(members() | replacements)


def resigned(**replacements: Any) -> bytes:
    return changed(signatures=[members()["signatures"][0] | replacements])


PAYLOAD: str = members()["payload"]
URL_SAFE = PAYLOAD.replace("+", "-").replace("/", "_")


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (json.dumps(members()).encode(), "ENV-FORM"),
        (SEALED[:-1], "ENV-FORM"),
        (SEALED[:-1] + b" ", "ENV-FORM"),
        (changed(extra=1), "ENV-FORM"),
        (resigned(extra="x"), "ENV-FORM"),
        (resigned(keyid=""), "ENV-KEYID"),
        (resigned(keyid=STRANGER.public.keyid), "ENV-KEYID"),
        (changed(payload=URL_SAFE), "ENV-FORM"),
        (changed(payload=PAYLOAD.rstrip("=")), "ENV-FORM"),
        (changed(signatures=members()["signatures"] * 2), "ENV-FORM"),
        (written({k: v for k, v in members().items() if k != "x"}).replace(b"vnd", b"v\\u006ed"), "ENV-FORM"),
    ],
)
def test_a_valid_signature_in_another_form_verifies_and_is_a_finding(data: bytes, code: str) -> None:
    envelope = env.parse_envelope(data, "run.json")
    assert env.verifying_signatures(envelope, AUTHOR.public)
    assert code in codes(data)


def test_the_test_payload_shows_the_alphabets() -> None:
    assert PAYLOAD != URL_SAFE
    assert PAYLOAD.endswith("=")


def test_a_bad_signature_under_a_key_at_hand_is_an_error() -> None:
    data = resigned(sig=base64.b64encode(bytes(64)).decode())
    assert set(codes(data)) == {"ENV-SIGNATURE", "ENV-SIGNER"}
    assert codes(resigned(keyid="me", sig="AAAA"), STRANGER.public) == ["ENV-KEYID", "ENV-SIGNER"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff{}",
        b"{}",
        SEALED.replace(b'"payload":', b'"payload":"eA==","payload":'),
        changed(payload=1),
        changed(payload="AA*A"),
        changed(payload="A A="),
        changed(payload="AAAA\n"),
        changed(payload="+-AA"),
        changed(payload="A"),
        changed(payload="AA="),
        changed(payload="AA==="),
        changed(payload="AAAAA==="),
        changed(payloadType=""),
        changed(payloadType=None),
        SEALED.replace(b"vnd", b"\\ud800"),
        changed(signatures=[]),
        changed(signatures={}),
        changed(signatures=["x"]),
        changed(signatures=members()["signatures"] * 65),
        resigned(sig=""),
        resigned(sig=None),
        resigned(keyid=None),
        resigned(keyid=7),
        b"[" * 100_000,
    ],
)
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"run\.json"):
        env.parse_envelope(data, "run.json")


def test_an_endless_envelope_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "MAX_BYTES", len(SEALED) - 1)
    with pytest.raises(FormatError, match="too long"):
        env.parse_envelope(SEALED, "run.json")


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        env.parse_envelope(data, "x")


def test_nothing_is_added_to_a_foreign_form() -> None:
    with pytest.raises(FormatError, match="not in the form"):
        env.add_signature(SEALED + b"\n", REVIEWER)
