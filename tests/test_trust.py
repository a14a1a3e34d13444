"""Trust: the trust file as ssh-keygen reads it, and every verdict on a signer."""

from __future__ import annotations

import shutil
import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainmem_audit import envelope as env
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.keys import Signer, write_key
from trainmem_audit.trust import (
    Entry,
    Trust,
    accepted,
    add_signer,
    judge,
    read_trust,
    remove_signer,
    trust_path,
)

AUTHOR = Signer.from_seed(bytes(32))
REVIEWER = Signer.from_seed(bytes([7]) * 32)
STRANGER = Signer.from_seed(bytes([9]) * 32)
LINE = AUTHOR.public.openssh_text()
SEALED = env.seal(b"{}", "application/vnd.in-toto+json", AUTHOR)
ENVELOPE = env.parse_envelope(SEALED, "run.json")
CHANGED = env.Envelope(b"{ }", ENVELOPE.payload_type, ENVELOPE.signatures)
PUBLIC = (AUTHOR.public,)
KNOWN = Trust((Entry(("ann@example.org",), AUTHOR.public),))
NOBODY = Trust()
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def parsed(tmp_path: Path, text: str) -> Trust:
    path = tmp_path / "allowed_signers"
    path.write_text(text, encoding="utf-8")
    return read_trust(path)


@pytest.mark.parametrize(
    ("line", "principals"),
    [
        (f"ann@example.org {LINE}\n", ("ann@example.org",)),
        (f"submission-4711 {LINE} a comment, with words", ("submission-4711",)),
        (f'"Ann Example" {LINE}\r\n', ("Ann Example",)),
        (f'"#1" {LINE}\n', ("#1",)),
        (f"\tann,bob   {LINE}\n", ("ann", "bob")),
        (f'ann namespaces="git,trainmem-*" {LINE}\n', ("ann",)),
        (f'ann valid-after="20260101Z",valid-before="202612312359Z" {LINE}\n', ("ann",)),
        (f'ann namespaces="git" {LINE}\n', ()),
        (f'ann namespaces="*,!trainmem-audit" {LINE}\n', ()),
        (f'ann valid-after="20260301120001Z" {LINE}\n', ()),
        (f'ann valid-before="20260228Z" {LINE}\n', ()),
        (f"# {LINE}\n\n   \n", ()),
        ("", ()),
    ],
)
def test_to_whom_a_key_belongs(tmp_path: Path, line: str, principals: tuple[str, ...]) -> None:
    assert parsed(tmp_path, line).principals(AUTHOR.public, NOON) == principals


def test_a_line_without_z_is_in_local_time(tmp_path: Path) -> None:
    trust = parsed(tmp_path, f'ann valid-after="202603011200" {LINE}\n')
    local = datetime(2026, 3, 1, 12).astimezone()
    assert trust.entries[0].valid_after == local


def test_keys_of_other_kinds_are_kept_and_count_for_nothing(tmp_path: Path) -> None:
    trust = parsed(tmp_path, f"bob ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB\nann {LINE}\n")
    assert trust.keys() == PUBLIC


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"*@example.org cert-authority {LINE}", "certificate authorities"),
        (f'ann cert-authority,namespaces="x" {LINE}', "certificate authorities"),
        (f"ann CERT-AUTHORITY {LINE}", "certificate authorities"),
        (f"ann unknown {LINE}", "an option"),
        (f"ann namespaces {LINE}", "an option"),
        (f'ann namespaces="a",namespaces="b" {LINE}', "an option"),
        (f'ann valid-after="yesterday" {LINE}', "not a time"),
        (f'ann valid-after="20261301Z" {LINE}', "not a time"),
        (f'ann valid-after="2026010112345Z" {LINE}', "not a time"),
        (f'ann valid-after="" {LINE}', "not a time"),
        (LINE, "not a line"),
        ("ann ssh-ed25519", "not a line"),
        ("ann ssh-ed25519 AAAA", "not an Ed25519"),
        (f"ann,,bob {LINE}", "empty principal"),
        (f'"ann {LINE}', "not a line"),
        (
            "ann ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "small order",
        ),
    ],
)
def test_a_line_that_cannot_be_trusted_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        parsed(tmp_path, f"# a comment\n{line}\n")
    assert caught.value.where == "allowed_signers:2"


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match="not UTF-8"):
        read_trust(tmp_path / "t")


def test_an_absent_default_is_empty_and_an_absent_named_file_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINMEM_AUDIT_HOME", str(tmp_path / "none"))
    assert read_trust() == NOBODY
    with pytest.raises(UsageError, match="no such trust file"):
        read_trust(tmp_path / "none")


def test_adding_and_removing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINMEM_AUDIT_HOME", str(tmp_path / "home"))
    path = trust_path()
    assert add_signer(path, "ann@example.org", AUTHOR.public)
    assert not add_signer(path, "ann@example.org", AUTHOR.public)
    assert add_signer(path, "Bob of Example", REVIEWER.public)
    assert add_signer(path, "submission-4711", AUTHOR.public)
    path.write_text("# mine\n" + path.read_text())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_trust().principals(AUTHOR.public) == ("ann@example.org", "submission-4711")
    assert read_trust().principals(REVIEWER.public) == ("Bob of Example",)
    assert remove_signer(path, "nobody") == 0
    assert remove_signer(path, "Bob of Example") == 1
    assert remove_signer(path, AUTHOR.public.keyid) == 2
    assert path.read_text() == "# mine\n"


def test_removing_one_of_several_principals_is_left_to_a_person(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text(f"ann,bob {LINE}\n")
    with pytest.raises(UsageError, match="several principals"):
        remove_signer(path, "ann")
    assert remove_signer(path, AUTHOR.public.keyid) == 1


@pytest.mark.parametrize("name", ["", " ", " x", 'a"b', "a,b", "a*", "wh?", "!ann", "a\nb", "\u202eann", "SHA256:x"])
def test_what_cannot_be_a_principal(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="not usable as a principal"):
        add_signer(tmp_path / "t", name, AUTHOR.public)
    assert not (tmp_path / "t").exists()


printable = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]) | st.just(" "), min_size=1)


@given(printable.filter(lambda s: s == s.strip() and not set(s) & set('",*?') and s[0] != "!"))
def test_any_other_string_is_one(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = tmp_path_factory.mktemp("trust") / "t"
    add_signer(path, name, AUTHOR.public)
    trust = read_trust(path)
    assert trust.principals(AUTHOR.public) == (name,)
    assert trust.belongs(AUTHOR.public, name)


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is missing")
@pytest.mark.parametrize("name", ["ann@example.org", "submission-4711", "Ann of Example"])
def test_ssh_keygen_reads_our_trust_file_as_we_do(tmp_path: Path, name: str) -> None:
    add_signer(tmp_path / "trust", name, AUTHOR.public)
    key = tmp_path / "key"
    write_key(key, AUTHOR, None)
    (tmp_path / "text").write_text("hello\n")
    sign = ["ssh-keygen", "-Y", "sign", "-n", "trainmem-audit", "-f", str(key), str(tmp_path / "text")]
    subprocess.run(sign, check=True, capture_output=True)
    find = [
        "ssh-keygen",
        "-Y",
        "find-principals",
        "-s",
        str(tmp_path / "text.sig"),
        "-f",
        str(tmp_path / "trust"),
    ]
    assert subprocess.run(find, check=True, capture_output=True, text=True).stdout.strip() == name


@pytest.mark.parametrize(
    ("patterns", "name", "expected"),
    [
        (("*@example.org",), "ann@example.org", True),
        (("*@example.org", "!ann@*"), "ann@example.org", False),
        (("!ann@*", "*"), "bob@example.org", True),
        (("a?n",), "ann", True),
        (("a.n",), "ann", False),
        (("ann",), "annika", False),
        (("!ann",), "bob", False),
    ],
)
def test_patterns_match_as_in_openssh(patterns: tuple[str, ...], name: str, expected: bool) -> None:
    assert Trust((Entry(patterns, AUTHOR.public),)).belongs(AUTHOR.public, name) is expected


def test_the_states() -> None:
    assert judge(ENVELOPE, PUBLIC, KNOWN).state == "trusted"
    assert judge(ENVELOPE, PUBLIC, KNOWN).principal == "ann@example.org"
    assert judge(ENVELOPE, PUBLIC, NOBODY).state == "unknown-signer"
    assert judge(ENVELOPE, PUBLIC, NOBODY, {AUTHOR.public.keyid}).state == "self"
    assert judge(ENVELOPE, (), NOBODY).state == "not-checkable"
    assert judge(ENVELOPE, (), KNOWN).state == "trusted"
    assert judge(CHANGED, PUBLIC, NOBODY).state == "invalid"
    assert judge(CHANGED, (), KNOWN).state == "invalid"
    assert judge(CHANGED, (), NOBODY).state == "not-checkable"
    assert judge(ENVELOPE, (STRANGER.public,), NOBODY).state == "invalid"
    for verdict in (
        judge(ENVELOPE, PUBLIC, KNOWN),
        judge(ENVELOPE, (), NOBODY),
        judge(CHANGED, PUBLIC, KNOWN),
    ):
        assert verdict.keyid == AUTHOR.public.keyid
        assert verdict.detail


def test_an_own_key_is_never_called_trusted() -> None:
    assert judge(ENVELOPE, PUBLIC, KNOWN, {AUTHOR.public.keyid}).state == "self"
    keyid = AUTHOR.public.keyid
    assert judge(ENVELOPE, PUBLIC, KNOWN, {keyid}, signer=keyid).state == "self"


def test_the_keyid_is_a_hint_only() -> None:
    for keyid in ("", "me", STRANGER.public.keyid):
        signature = env.EnvelopeSignature(ENVELOPE.signatures[0].sig, keyid)
        renamed = env.Envelope(ENVELOPE.payload, ENVELOPE.payload_type, (signature,))
        assert judge(renamed, PUBLIC, KNOWN).state == "trusted"


def test_the_payload_type_is_signed() -> None:
    other = env.Envelope(ENVELOPE.payload, "text/plain", ENVELOPE.signatures)
    assert judge(other, PUBLIC, KNOWN).state == "invalid"


def test_a_demanded_signer_is_exactly_that_one() -> None:
    keyid = AUTHOR.public.keyid
    assert judge(ENVELOPE, PUBLIC, NOBODY, signer=keyid).state == "trusted"
    assert judge(ENVELOPE, PUBLIC, KNOWN, signer="ann@example.org").state == "trusted"
    for wrong in (STRANGER.public.keyid, "bob@example.org", "", "*", "SHA256:"):
        verdict = judge(ENVELOPE, PUBLIC, KNOWN, {keyid}, signer=wrong)
        assert verdict.state == "unknown-signer"
        assert not accepted(verdict, signer=wrong, allow_untrusted=True)


def test_an_expired_key_is_unknown_and_says_why() -> None:
    late = Trust((Entry(("ann",), AUTHOR.public, valid_before=datetime(2026, 1, 1, tzinfo=UTC)),))
    verdict = judge(ENVELOPE, PUBLIC, late, at=NOON)
    assert verdict.state == "unknown-signer"
    assert "does not count now" in verdict.detail
    assert judge(ENVELOPE, PUBLIC, late, at=NOON, signer="ann").state == "unknown-signer"
    assert judge(ENVELOPE, PUBLIC, late, at=datetime(2025, 6, 1, tzinfo=UTC)).state == "trusted"


def test_of_several_signers_the_best_is_named() -> None:
    both = env.parse_envelope(env.add_signature(SEALED, REVIEWER), "run.json")
    published = (AUTHOR.public, REVIEWER.public)
    trust = Trust((Entry(("bob",), REVIEWER.public),))
    assert judge(both, published, trust).principal == "bob"
    assert judge(both, published, NOBODY, {REVIEWER.public.keyid}).keyid == REVIEWER.public.keyid
    assert judge(both, published, trust, signer=AUTHOR.public.keyid).keyid == AUTHOR.public.keyid


@pytest.mark.parametrize(
    ("state", "untrusted", "expected"),
    [
        ("trusted", False, True),
        ("self", False, True),
        ("unknown-signer", False, False),
        ("unknown-signer", True, True),
        ("not-checkable", True, False),
        ("invalid", True, False),
    ],
)
def test_what_is_accepted(state: str, untrusted: bool, expected: bool) -> None:
    verdict = judge(ENVELOPE, PUBLIC, NOBODY).model_copy(update={"state": state})
    assert accepted(verdict, signer=None, allow_untrusted=untrusted) is expected


@pytest.mark.parametrize("principals", ["!*,alice", "alice,!alice", "!alice"])
def test_a_name_that_its_own_line_takes_back_is_nobody(tmp_path: Path, principals: str) -> None:
    key = Signer.generate().public
    (tmp_path / "list").write_text(f"{principals} {key.openssh_text()}\n")
    assert read_trust(tmp_path / "list").principals(key) == ()


def test_a_negated_name_leaves_the_others(tmp_path: Path) -> None:
    key = Signer.generate().public
    (tmp_path / "list").write_bytes(b"\xef\xbb\xbf" + f"!bob@x,*@x,ann {key.openssh_text()}\n".encode())
    assert read_trust(tmp_path / "list").principals(key) == ("*@x", "ann")
