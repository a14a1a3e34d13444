"""What others sign about a run: who may attest what, what it is worth, and what a hostile file of them costs."""

from __future__ import annotations

import base64
import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.test_keys import small_order_encodings
from tests.tools import Run, audit, verify
from trainmem_audit import attestations as att
from trainmem_audit import envelope as env
from trainmem_audit.attestations import append, beside, cosign, read_beside, verdict
from trainmem_audit.canonical import canonical_bytes, sha256_hex
from trainmem_audit.documents.attestations import VERDICT_TYPE, CosignatureStatement, VerdictStatement
from trainmem_audit.documents.findings import Attestation, Replay
from trainmem_audit.documents.manifest import PAYLOAD_TYPE
from trainmem_audit.errors import FormatError, KeyFileError, UsageError
from trainmem_audit.keys import PublicKey, Signer, write_key
from trainmem_audit.rundir import open_run
from trainmem_audit.trust import Entry, Trust
from trainmem_audit.verify import Examination, Policy, examine

REVIEWER = Signer.from_seed(bytes([1]) * 32)
SECOND = Signer.from_seed(bytes([2]) * 32)
ANN = Signer.from_seed(bytes([3]) * 32)
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
PEOPLE = {"rev@example.org": REVIEWER, "second@example.org": SECOND, "ann@example.org": ANN}


def entry(name: str, signer: Signer | PublicKey, **rest: Any) -> Entry:
    return Entry((name,), signer if isinstance(signer, PublicKey) else signer.public, **rest)


ALL = Trust(tuple(entry(name, signer) for name, signer in PEOPLE.items()))
"""A machine that trusts these three; whoever recorded the run is unknown to it."""


def looked_at(run: Run, trust: Trust = ALL, **policy: Any) -> Examination:
    with open_run(run.path) as reader:
        return examine(reader, Policy(trust=trust, allow_untrusted=True, **policy))


def author_of(run: Run) -> Signer:
    (path,) = (path for path in (run.home / "keys").iterdir() if path.suffix != ".pub")
    return Signer.load(path, None)


def attested(run: Run, trust: Trust = ALL, **policy: Any) -> list[Attestation]:
    return list(looked_at(run, trust, **policy).attested.attestations)


def codes(run: Run, trust: Trust = ALL) -> list[str]:
    found = looked_at(run, trust)
    assert all(finding.severity == "warning" for finding in found.findings), "nobody else's line fails a record"
    assert found.verification.exit_code == 0
    return [finding.code for finding in found.findings]


def attest(run: Run, signer: Signer = REVIEWER, replay: Replay | None = None) -> bytes:
    found = looked_at(run)
    if replay is not None:
        found.replay = replay
    line = verdict(found.payload, found.verification, signer, NOW)
    append(run.path / "run.intoto.jsonl", line)
    return line


def sign(run: Run, signer: Signer, original: Signer | None = None) -> bytes:
    found = looked_at(run)
    assert found.statement is not None
    keyids = [key.keyid for key in found.run_keys]
    line = cosign(found.payload, found.statement.predicate.run.id, keyids, signer, original, NOW)
    append(run.path / "run.intoto.jsonl", line)
    return line


def payload_of(line: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(base64.b64decode(json.loads(line)["payload"]))
    return value


MATCH = Replay(outcome="match", mode="full", steps_compared=6, seconds="1.0")


def test_a_verdict_of_somebody_trusted_counts_and_says_what_it_covers(run: Run) -> None:
    attest(run, replay=MATCH)
    (item,) = attested(run)
    assert (item.kind, item.counts, item.signature.state) == ("verdict", True, "trusted")
    assert item.signature.principal == "rev@example.org"
    assert (item.mode, item.created) == ("match, full, 6 steps", "2026-03-01T12:00:00Z")
    assert set(item.properties) == {
        "TRAINMEM_BYTES_INTACT", "TRAINMEM_RECORD_CONSISTENT", "TRAINMEM_REPLAY_MATCH", "TRAINMEM_REPLAY_FULL"
    }  # fmt: skip
    assert codes(run) == []


def test_a_verdict_is_a_simple_verification_result_of_in_toto(run: Run) -> None:
    """Field by field as in-toto's `spec/predicates/svr.md`, v0.1."""
    statement = payload_of(attest(run))
    found = looked_at(run)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["predicateType"] == VERDICT_TYPE == "https://in-toto.io/attestation/svr/v0.1"
    assert statement["subject"] == [{"name": "run.json", "digest": {"sha256": sha256_hex(found.payload)}}]
    predicate = statement["predicate"]
    assert predicate.keys() == {"verifier", "timeCreated", "properties"}
    assert predicate["verifier"]["id"].startswith("https://")
    assert predicate["verifier"]["result"]["replay"] == "not-run"


@pytest.mark.parametrize(
    ("replay", "wanted"),
    [
        (Replay(outcome="mismatch", mode="full", steps_compared=3), set()),
        (Replay(outcome="inconclusive", mode="full"), set()),
        (Replay(outcome="not-run", mode="none"), set()),
        (Replay(outcome="match", mode="prefix:3", steps_compared=3), {"TRAINMEM_REPLAY_MATCH"}),
        (MATCH, {"TRAINMEM_REPLAY_MATCH", "TRAINMEM_REPLAY_FULL"}),
    ],
    ids=lambda value: value.outcome + value.mode if isinstance(value, Replay) else "",
)
def test_only_what_passed_is_a_property_and_what_did_not_is_said(run: Run, replay: Replay, wanted: set[str]) -> None:
    attest(run, replay=replay)
    (item,) = attested(run)
    assert {name for name in item.properties if "REPLAY" in name} == wanted
    assert item.mode.startswith(f"{replay.outcome}, {replay.mode}")


def test_a_what_if_is_not_attested(run: Run) -> None:
    found = looked_at(run)
    found.replay = Replay(outcome="match", mode="full", what_if=True)
    with pytest.raises(UsageError, match="what-if"):
        verdict(found.payload, found.verification, REVIEWER)


def test_a_run_whose_signature_does_not_hold_is_not_attested(run: Run) -> None:
    (run.path / "signer.pub").write_bytes(ANN.public.openssh_line())
    found = looked_at(run)
    with pytest.raises(UsageError, match="nothing to attest"):
        verdict(found.payload, found.verification, REVIEWER)


def test_somebody_unknown_is_shown_and_counts_for_nothing(run: Run) -> None:
    attest(run)
    (item,) = attested(run, Trust())
    assert (item.counts, item.signature.state) == (False, "not-checkable")
    assert "not in the trust file" in item.detail
    assert codes(run, Trust()) == []


def test_my_own_verdict_is_mine_and_not_trusted(run: Run) -> None:
    attest(run)
    (item,) = attested(run, own_keys=(REVIEWER.public,), own_keyids=frozenset({REVIEWER.public.keyid}))
    assert (item.counts, item.signature.state) == (False, "self")


# --- against an adversary -------------------------------------------------------------------------------------


def test_the_author_attesting_himself_counts_for_nothing(run: Run) -> None:
    author = author_of(run)
    attest(run, author, MATCH)
    trusting = Trust((*ALL.entries, entry("author@example.org", author)))
    for trust in (ALL, trusting):
        (item,) = attested(run, trust)
        assert not item.counts
        assert "the author's own word" in item.detail
    assert codes(run) == ["ATT-OWN"]


def test_the_author_under_a_second_key_of_the_same_name_counts_for_nothing(run: Run) -> None:
    trust = Trust((entry("ann@example.org", author_of(run)), entry("ann@example.org", SECOND)))
    attest(run, SECOND, MATCH)
    (item,) = attested(run, trust)
    assert not item.counts
    assert "ann@example.org signed or co-signed" in item.detail


@pytest.mark.parametrize("linked", [False, True])
def test_a_cosigner_is_no_reviewer(run: Run, linked: bool) -> None:
    sign(run, REVIEWER, author_of(run) if linked else None)
    attest(run, REVIEWER, MATCH)
    items = {item.kind: item for item in attested(run)}
    assert not items["verdict"].counts
    assert items["co-signature"].linked == linked
    assert codes(run) == ["ATT-OWN"]


def test_the_run_s_own_signature_is_no_attestation(run: Run) -> None:
    run.write("run.intoto.jsonl", run.read("run.json"))
    assert attested(run) == []
    assert codes(run) == ["ATT-SUBJECT"]


def test_an_attestation_of_another_run_says_nothing_about_this_one(run: Run) -> None:
    line = attest(run, replay=MATCH)
    statement = payload_of(line)
    statement["subject"][0]["digest"]["sha256"] = "0" * 64
    other = env.seal(canonical_bytes(statement), PAYLOAD_TYPE, REVIEWER)
    run.write("run.intoto.jsonl", other)
    assert attested(run) == []
    assert codes(run) == ["ATT-SUBJECT"]


def moved(line: bytes, **changes: Any) -> bytes:
    """Give the line other members and the same signature."""
    return canonical_bytes(json.loads(line) | changes) + b"\n"


def test_a_signature_over_another_payload_is_reused_in_vain(run: Run) -> None:
    line = attest(run)
    statement = payload_of(line)
    statement["predicate"]["properties"].append("TRAINMEM_REPLAY_FULL")
    run.write("run.intoto.jsonl", moved(line, payload=base64.b64encode(canonical_bytes(statement)).decode()))
    (item,) = attested(run)
    assert (item.counts, item.signature.state) == (False, "invalid")
    assert codes(run) == ["ATT-FORM"]


def test_a_signature_of_a_cosignature_is_none_of_a_verdict(run: Run) -> None:
    signatures = json.loads(sign(run, REVIEWER))["signatures"]
    (run.path / "run.intoto.jsonl").unlink()
    run.write("run.intoto.jsonl", moved(attest(run, SECOND), signatures=signatures))
    (item,) = attested(run)
    assert (item.counts, item.signature.state) == (False, "invalid")


@pytest.mark.parametrize("kind", ["application/json", "application/vnd.in-toto+json ", "APPLICATION/VND.IN-TOTO+JSON"])
def test_another_payload_type_is_no_attestation(run: Run, kind: str) -> None:
    statement = payload_of(attest(run))
    for line in (
        env.seal(canonical_bytes(statement), kind, REVIEWER),
        moved(run.read("run.intoto.jsonl"), payloadType=kind),
    ):
        run.write("run.intoto.jsonl", line)
        assert attested(run) == []
        assert codes(run) == ["ATT-UNREADABLE"]


def test_a_verdict_claimed_under_somebody_else_s_keyid(run: Run) -> None:
    line = attest(run, SECOND)
    signature = json.loads(line)["signatures"][0] | {"keyid": REVIEWER.public.keyid}
    run.write("run.intoto.jsonl", moved(line, signatures=[signature]))
    (item,) = attested(run)
    assert item.signature.principal == "second@example.org"
    assert codes(run) == ["ATT-FORM"]
    (item,) = attested(run, Trust((entry("rev@example.org", REVIEWER),)))
    assert (item.counts, item.signature.state) == (False, "invalid")


def test_keys_of_small_order_verify_nothing(run: Run) -> None:
    """OpenSSL takes a zero signature under them for any message; they cannot get into a list of keys."""
    for raw in small_order_encodings():
        with pytest.raises(KeyFileError):
            PublicKey(raw)
    line = attest(run)
    signature = {"keyid": REVIEWER.public.keyid, "sig": base64.b64encode(bytes([1]) + bytes(63)).decode()}
    run.write("run.intoto.jsonl", moved(line, signatures=[signature]))
    assert [item.signature.state for item in attested(run)] == ["invalid"]


def test_a_malleated_signature_is_invalid(run: Run) -> None:
    line = attest(run)
    sig = base64.b64decode(json.loads(line)["signatures"][0]["sig"])
    order = 2**252 + 27742317777372353535851937790883648493
    high = sig[:32] + (int.from_bytes(sig[32:], "little") + order).to_bytes(32, "little")
    signature = {"keyid": REVIEWER.public.keyid, "sig": base64.b64encode(high).decode()}
    run.write("run.intoto.jsonl", moved(line, signatures=[signature]))
    assert [item.signature.state for item in attested(run)] == ["invalid"]


def test_the_same_line_twice_counts_once(run: Run) -> None:
    line = attest(run)
    assert append(run.path / "run.intoto.jsonl", line) is False
    run.write("run.intoto.jsonl", line * 3)
    assert len(attested(run)) == 1


def test_a_line_that_was_taken_out_leaves_no_trace(run: Run) -> None:
    """What cannot be noticed is said where attestations are shown (`docs/threat-model.md`)."""
    before = looked_at(run).verification
    attest(run)
    run.write("run.intoto.jsonl", b"")
    assert looked_at(run).verification == before


def test_one_s_own_file_of_verdicts_gives_no_trust(run: Run) -> None:
    """A key that lies in the run directory, in `signer.pub` say, makes nobody trusted."""
    author = author_of(run)
    attest(run, ANN, MATCH)
    (run.path / "signer.pub").write_bytes(author.public.openssh_line() + ANN.public.openssh_line())
    (item,) = attested(run, Trust())
    assert (item.counts, item.signature.state) == (False, "unknown-signer")


BAD: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda line: b"\n",
    "no-json": lambda line: b"hello\n",
    "no-envelope": lambda line: b"{}\n",
    "deep": lambda line: b"[" * 50_000 + b"\n",
    "a-number": lambda line: moved(line, payload=7),
    "no-signatures": lambda line: moved(line, signatures=[]),
    "too-many-signatures": lambda line: moved(line, signatures=json.loads(line)["signatures"] * 9),
    "payload-no-json": lambda line: env.seal(b"hello", PAYLOAD_TYPE, REVIEWER),
    "payload-a-list": lambda line: env.seal(b"[]", PAYLOAD_TYPE, REVIEWER),
    "payload-twice": lambda line: env.seal(b'{"subject":[],"subject":[]}', PAYLOAD_TYPE, REVIEWER),
    "no-subject": lambda line: env.seal(canonical_bytes(payload_of(line) | {"subject": []}), PAYLOAD_TYPE, REVIEWER),
    "no-predicate": lambda line: env.seal(
        canonical_bytes(payload_of(line) | {"predicate": {}}), PAYLOAD_TYPE, REVIEWER
    ),
    "torn": lambda line: line[:-1],
    "long": lambda line: env.seal(b'"' + b"x" * att.MAX_LINE + b'"', PAYLOAD_TYPE, REVIEWER),
    "nul": lambda line: b"\0" * 1000 + b"\n",
    "terminal": lambda line: b"\x1b]0;title\x07\n",
}


@pytest.mark.parametrize("name", BAD)
def test_a_line_that_is_nothing_is_a_warning_and_the_others_count(run: Run, name: str) -> None:
    line = attest(run)
    run.write("run.intoto.jsonl", line + BAD[name](line))
    (item,) = attested(run)
    assert item.counts
    assert codes(run) == ["ATT-UNREADABLE"]


def test_a_file_that_is_too_long_is_not_read(run: Run) -> None:
    line = attest(run)
    run.write("run.intoto.jsonl", line + b"x" * 100 * 2**20)
    assert attested(run) == []
    assert codes(run) == ["ATT-UNREADABLE"]
    with pytest.raises(FormatError, match="too long"):
        append(run.path / "run.intoto.jsonl", line + b"\n")


def test_lines_beyond_the_last_that_is_read_are_said(run: Run) -> None:
    line = attest(run)
    run.write("run.intoto.jsonl", b"\n" * att.MAX_LINES + line)
    found = codes(run)
    assert found == ["ATT-UNREADABLE"] * 2  # equal lines are looked at once
    assert attested(run) == []
    with pytest.raises(FormatError, match="no room"):
        append(run.path / "run.intoto.jsonl", b"another line\n")


def test_a_long_trust_file_is_not_tried_out_on_every_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line costs at most the keys it names and `MAX_TRIED` others for each signature."""
    line = attest(run)
    signature = json.loads(line)["signatures"][0] | {"keyid": ""}
    lines = [moved(line, signatures=[signature | {"sig": base64.b64encode(bytes([n]) * 64).decode()}] * 8)
             for n in range(3)]  # fmt: skip
    run.write("run.intoto.jsonl", b"".join(lines))
    keys = [Signer.from_seed(n.to_bytes(32, "big")).public for n in range(300)]
    trust = Trust(tuple(entry(f"n{n}", key) for n, key in enumerate(keys)))
    tries = 0
    original = PublicKey.verify

    def counted(self: PublicKey, signature: bytes, message: bytes) -> bool:
        nonlocal tries
        tries += len(message) < 2000  # not the one of run.json
        return original(self, signature, message)

    monkeypatch.setattr(PublicKey, "verify", counted)
    assert len(attested(run, trust)) == 3
    assert tries <= 3 * 8 * (att.MAX_TRIED + 1)


def test_other_statements_are_shown_as_what_they_are(run: Run) -> None:
    statement = payload_of(attest(run)) | {"predicateType": "https://slsa.dev/verification_summary/v1"}
    run.write("run.intoto.jsonl", env.seal(canonical_bytes(statement), PAYLOAD_TYPE, REVIEWER))
    (item,) = attested(run)
    assert (item.kind, item.counts, item.signature.state) == ("other", False, "trusted")


def test_a_verdict_of_another_tool_is_read(run: Run) -> None:
    """Unknown members are ignored and a second subject does no harm (in-toto's parsing rules)."""
    statement = payload_of(attest(run))
    statement["subject"].insert(0, {"name": "paper.pdf", "digest": {"sha512": "00"}, "uri": "x"})
    statement["more"] = {"a": "b"}
    statement["predicate"] = {
        "verifier": {"id": "https://verifier.example/v2", "policy": {"uri": "x"}},
        "timeCreated": "2026-03-01T12:00:00Z",
        "properties": ["ORG_APPROVED"],
    }
    run.write("run.intoto.jsonl", env.seal(canonical_bytes(statement), PAYLOAD_TYPE, REVIEWER))
    (item,) = attested(run)
    assert (item.kind, item.counts, item.properties, item.mode) == ("verdict", True, ("ORG_APPROVED",), "")


def test_what_we_write_is_what_the_models_read(run: Run) -> None:
    for line, model in ((attest(run), VerdictStatement), (sign(run, ANN), CosignatureStatement)):
        payload = base64.b64decode(json.loads(line)["payload"])
        assert canonical_bytes(model.parse(payload, "x").to_json()) == payload


# --- co-signatures and thresholds -----------------------------------------------------------------------------


def test_a_linked_cosignature_is_signed_by_both_keys(run: Run) -> None:
    author = author_of(run)
    statement = payload_of(sign(run, ANN, author))
    (item,) = attested(run)
    assert (item.kind, item.linked, item.counts) == ("co-signature", True, True)
    assert set(item.signers) == {ANN.public.keyid, author.public.keyid}
    assert statement["predicate"]["signers"] == [author.public.keyid]
    assert item.signature.principal == "ann@example.org"
    assert codes(run) == []


def test_a_stranger_s_cosignature_claims_the_run_and_proves_nothing(run: Run) -> None:
    sign(run, ANN)
    (item,) = attested(run)
    assert not item.linked
    assert "claims the run" in item.detail


def test_the_link_cannot_be_taken_from_one_cosignature_to_another(run: Run) -> None:
    author = author_of(run)
    linked = json.loads(sign(run, ANN, author))["signatures"]
    claim = sign(run, SECOND)
    stolen = [item for item in linked if item["keyid"] == author.public.keyid]
    both = sorted([*json.loads(claim)["signatures"], *stolen], key=lambda item: item["keyid"])
    run.write("run.intoto.jsonl", moved(claim, signatures=both))
    (item,) = attested(run)
    assert (item.linked, item.counts) == (False, True)
    assert codes(run) == ["ATT-FORM"]


def test_nobody_cosigns_in_another_s_name(run: Run) -> None:
    """The words name the key; another key's signature under them is none of a co-signature."""
    run.write("run.intoto.jsonl", env.seal(canonical_bytes(payload_of(sign(run, ANN))), PAYLOAD_TYPE, SECOND))
    (item,) = attested(run)
    assert (item.linked, item.counts, item.signature.state) == (False, False, "invalid")
    assert people(run, 1, ALL) == "none"


def people(run: Run, threshold: int, trust: Trust, **policy: Any) -> str:
    """Return what a threshold finding says, or `met`."""
    found = [item for item in looked_at(run, trust, threshold=threshold, **policy).findings if item.severity == "error"]
    assert [item.code for item in found] in ([], ["SIG-THRESHOLD"])
    return found[0].got if found else "met"


def test_a_threshold_asks_for_people_and_not_for_signatures(run: Run) -> None:
    author = author_of(run)
    trust = Trust((*ALL.entries, entry("author", author)))
    assert people(run, 1, trust) == "met"
    assert people(run, 2, trust) == "1: author"
    sign(run, ANN)
    sign(run, ANN, author)
    assert people(run, 2, trust) == "met"
    assert people(run, 3, trust) == "2: author · ann@example.org"
    sign(run, SECOND)
    assert people(run, 3, trust) == "met"


def test_two_keys_of_one_principal_are_one_person(run: Run) -> None:
    sign(run, ANN)
    sign(run, SECOND)
    same = Trust((entry("ann@example.org", ANN), entry("ann@example.org", SECOND), entry("author", author_of(run))))
    assert people(run, 3, same) == "2: author · ann@example.org"
    chained = Trust(
        (Entry(("a", "b"), ANN.public), Entry(("b", "c"), SECOND.public), Entry(("c",), author_of(run).public))
    )
    assert people(run, 2, chained) == "1: a/b/c"
    wild = Trust((entry("*@lab.example", ANN), entry("*@lab.example", SECOND)))
    assert people(run, 2, wild) == "1: *@lab.example"


def test_verdicts_strangers_and_revoked_keys_meet_no_threshold(run: Run) -> None:
    attest(run, REVIEWER)
    assert people(run, 1, ALL) == "none"
    sign(run, ANN)
    assert people(run, 1, Trust()) == "none"
    assert people(run, 1, ALL) == "met"
    assert people(run, 1, replace(ALL, revoked=frozenset({ANN.public.keyid}))) == "none"


def test_a_threshold_holds_at_the_time_that_it_is_asked_for(run: Run) -> None:
    sign(run, ANN)
    year = Trust((entry("ann", ANN, valid_after=datetime(2026, 1, 1, tzinfo=UTC), valid_before=NOW),))
    assert people(run, 1, year, at=datetime(2026, 2, 1, tzinfo=UTC)) == "met"
    assert people(run, 1, year, at=datetime(2025, 2, 1, tzinfo=UTC)) == "none"
    assert people(run, 1, year, at=datetime(2027, 2, 1, tzinfo=UTC)) == "none"


def test_a_broken_cosignature_counts_for_nothing(run: Run) -> None:
    line = sign(run, ANN)
    run.write("run.intoto.jsonl", moved(line, signatures=json.loads(sign(run, SECOND))["signatures"]))
    assert people(run, 1, Trust((entry("ann", ANN),))) == "none"


# --- files ----------------------------------------------------------------------------------------------------


def test_where_attestations_lie(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert beside(tmp_path / "run") == tmp_path / "run" / "run.intoto.jsonl"
    assert beside(tmp_path / "run" / "run.json") == tmp_path / "run" / "run.intoto.jsonl"
    assert beside(tmp_path / "submission-7.zip") == tmp_path / "submission-7.intoto.jsonl"


def test_a_link_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "run.intoto.jsonl").symlink_to("mine")
    with pytest.raises(FormatError, match="not a plain file"):
        append(tmp_path / "run.intoto.jsonl", b"line\n")
    assert (tmp_path / "mine").read_text() == "mine"
    with pytest.raises(FormatError, match="not a plain file"):
        read_beside(tmp_path / "run.intoto.jsonl")


def test_a_torn_line_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "run.intoto.jsonl"
    path.write_bytes(b"torn")
    append(path, b"line\n")
    assert path.read_bytes() == b"torn\nline\n"


def test_writers_do_not_lose_each_other_s_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.intoto.jsonl"
    lines = [f"line {number}\n".encode() for number in range(40)]
    threads = [threading.Thread(target=append, args=(path, line)) for line in lines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)
    assert [item.name for item in tmp_path.iterdir()] == ["run.intoto.jsonl"]


# --- the command line -----------------------------------------------------------------------------------------


def key_file(folder: Path, name: str, signer: Signer) -> Path:
    write_key(folder / name, signer, None)
    return folder / name


def test_a_reviewer_attests_a_pack_and_a_chair_reads_it(run: Run, tmp_path: Path) -> None:
    """The way of `docs/attestations.md`: pack, verify and attest, hand over, judge with one's own trust file."""
    author, reviewer, chair = (tmp_path / name for name in ("author", "reviewer", "chair"))
    for folder in (reviewer, chair):
        folder.mkdir()
    done = audit("pack", run.path, "--blind", "-o", reviewer / "run.zip", cwd=tmp_path, home=author)
    assert done.returncode == 0, done.stderr
    before = (reviewer / "run.zip").read_bytes()
    key = key_file(reviewer, "id", REVIEWER)
    found = verify(reviewer / "run.zip", "--allow-untrusted", "--attest", "--key", str(key), home=reviewer / "home")
    assert found.code == 0, found.stderr
    assert f"wrote it to {reviewer / 'run.intoto.jsonl'}" in found.stderr
    assert (reviewer / "run.zip").read_bytes() == before
    shutil.copy(reviewer / "run.zip", chair)
    shutil.copy(reviewer / "run.intoto.jsonl", chair / "from-reviewer-2.jsonl")
    (chair / "trust").write_text(f"reviewer-2 {REVIEWER.public.openssh_text()}\n")
    options = ("--trust-file", "trust", "--attestations", "from-reviewer-2.jsonl")
    done = audit("verify", "run.zip", "--allow-untrusted", *options, cwd=chair, home=chair / "home")
    assert done.returncode == 0, done.stderr
    assert "verdict by reviewer-2 · " + REVIEWER.public.keyid + ": trusted" in done.stdout
    assert "counts: yes" in done.stdout
    assert "reviewer-2" in audit("show", "run.zip", *options, cwd=chair, home=chair / "home").stdout
    done = audit("report", "run.zip", *options, cwd=chair, home=chair / "home")
    for name in done.stdout.split():
        text = (chair / name).read_text()
        assert "What others attested" in text
        assert "reviewer-2" in text


def test_attesting_writes_beside_and_changes_no_file_of_the_author(run: Run, tmp_path: Path) -> None:
    key = key_file(tmp_path, "id", REVIEWER)
    before = {name: run.read(name) for name in run.names()}
    found = verify(run.path, "--allow-untrusted", "--attest", "--key", str(key), home=tmp_path / "home")
    assert found.code == 0, found.stderr
    assert {name: run.read(name) for name in run.names() if name != "run.intoto.jsonl"} == before
    found = verify(run.path / "run.json", "--allow-untrusted", "--attest", "--key", str(key), home=tmp_path / "home")
    assert found.code == 0, found.stderr
    assert {name: run.read(name) for name in run.names() if name != "run.intoto.jsonl"} == before


def test_the_author_cannot_attest_his_own_run(run: Run, tmp_path: Path) -> None:
    (key,) = (path for path in (run.home / "keys").iterdir() if path.suffix != ".pub")
    found = verify(run.path, "--attest", "--key", str(key), home=tmp_path / "home")
    assert found.code == 2
    assert "nobody is his own reviewer" in found.stderr
    assert "run.intoto.jsonl" not in run.names()


def test_nobody_attests_on_the_machine_that_recorded(run: Run, tmp_path: Path) -> None:
    """Another key of the author's is as much the author's."""
    key = key_file(tmp_path, "id", REVIEWER)
    found = verify(run.path, "--attest", "--key", str(key), home=run.home)
    assert (found.code, "run.intoto.jsonl" in run.names()) == (2, False)


def test_a_file_beside_a_pack_that_is_too_long_stops_nothing(run: Run, tmp_path: Path) -> None:
    done = audit("pack", run.path, "--blind", "-o", tmp_path / "x.zip", cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    (tmp_path / "x.intoto.jsonl").write_bytes(b"x" * (att.MAX_BYTES + 1))
    found = verify(tmp_path / "x.zip", "--allow-untrusted", home=tmp_path / "home")
    assert (found.code, found.findings) == (0, ["ATT-UNREADABLE x.intoto.jsonl"])


def test_openings_that_came_apart_from_a_blind_pack(run: Run, tmp_path: Path) -> None:
    """At camera-ready: `disclosures.json` beside the zip, or a part of it."""
    done = audit("pack", run.path, "--blind", "-o", tmp_path / "x.zip", cwd=tmp_path, home=tmp_path / "home")
    assert "left out of a blind pack: disclosures.json" in done.stderr
    options = ("--disclosures", str(run.path / "disclosures.json"))
    for more, opened in (((), False), (options, True)):
        found = verify(tmp_path / "x.zip", "--allow-untrusted", *more, home=tmp_path / "home")
        assert found.code == 0
        assert {item["opened"] for item in found.document["commitments"]} == {opened}
        shown = audit("show", tmp_path / "x.zip", *more, cwd=tmp_path, home=tmp_path / "home").stdout
        assert ("7 opened" if opened else "0 opened") in shown
    (tmp_path / "false.json").write_bytes(
        (run.path / "disclosures.json").read_bytes().replace(b"train.py", b"other.py")
    )
    found = verify(
        tmp_path / "x.zip", "--allow-untrusted", "--disclosures", str(tmp_path / "false.json"), home=tmp_path
    )
    assert (found.code, found.findings[0].split()[0]) == (1, "OPEN-WRONG")


def test_sign_links_a_name_to_an_anonymous_key(run: Run, tmp_path: Path) -> None:
    key = key_file(tmp_path, "id", ANN)
    before = {name: run.read(name) for name in run.names()}
    done = audit("sign", run.path, "--key", key, cwd=tmp_path, home=run.home)
    assert done.returncode == 0, done.stderr
    assert "and by the run's own key" in done.stdout
    assert {name: run.read(name) for name in run.names() if name != "run.intoto.jsonl"} == before
    (item,) = attested(run)
    assert (item.linked, item.counts) == (True, True)
    other = key_file(tmp_path, "other", SECOND)
    done = audit("sign", run.path, "--key", other, cwd=tmp_path, home=tmp_path / "elsewhere")
    assert "not by the run's own key" in done.stdout
    assert [item.linked for item in attested(run)] == [True, False]
    (own,) = (path for path in (run.home / "keys").iterdir() if path.suffix != ".pub")
    done = audit("sign", run.path, "--key", own, cwd=tmp_path, home=run.home)
    assert "has signed it already" in done.stdout
    assert len(attested(run)) == 2


def test_thresholds_times_and_revocation_on_the_command_line(run: Run, tmp_path: Path) -> None:
    author = author_of(run)
    lines = [f'ann valid-after="20260101Z",valid-before="20260401Z" {author.public.openssh_text()}']
    (tmp_path / "trust").write_text("\n".join([*lines, f"second {SECOND.public.openssh_text()}", ""]))
    trust = ("--trust-file", str(tmp_path / "trust"))
    home = tmp_path / "home"
    assert verify(run.path, *trust, "--at", "2026-03-01T00:00:00Z", home=home).code == 0
    assert verify(run.path, *trust, "--at", "20260301Z", home=home).code == 0
    assert verify(run.path, *trust, "--at", "2026-06-01T00:00:00+02:00", home=home).code == 1
    for bad in ("yesterday", "2026-03-01", "2026-03-01T00:00:00"):
        found = verify(run.path, *trust, "--at", bad, home=home)
        assert (found.code, "not a time" in found.stderr) == (2, True)
    at = ("--at", "20260301Z")
    found = verify(run.path, *trust, *at, "--threshold", "2", home=home)
    assert (found.code, found.findings) == (1, ["SIG-THRESHOLD run.json"])
    sign(run, SECOND)
    assert verify(run.path, *trust, *at, "--threshold", "2", home=home).code == 0
    (tmp_path / "revoked").write_text(f"# stolen\n{author.public.keyid}\n")
    revoked = ("--revoked", str(tmp_path / "revoked"))
    for more in (("--allow-untrusted",), ("--signer", author.public.keyid), ()):
        found = verify(run.path, *trust, *at, *revoked, *more, home=home)
        assert (found.code, found.document["signature"]["state"]) == (1, "revoked")
        assert found.findings == ["SIG-REVOKED run.json"]
        assert "revoked" in found.document["signature"]["detail"]
    done = audit("trust", "revoke", author.public.keyid, cwd=tmp_path, home=home)
    assert done.returncode == 0, done.stderr
    assert verify(run.path, *trust, *at, home=home).document["signature"]["state"] == "revoked"
    assert "REVOKED" in audit("show", run.path, cwd=tmp_path, home=home).stdout
    done = audit("report", run.path, "-o", tmp_path / "report", cwd=tmp_path, home=home)
    assert "revoked key" in (tmp_path / "report" / "report.md").read_text()
