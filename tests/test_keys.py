"""Keys: OpenSSH's own tools agree with ours, and what OpenSSL would wrongly accept is refused."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from trainmem_audit import keys
from trainmem_audit.errors import KeyFileError
from trainmem_audit.keys import PublicKey, Signer

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is missing")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRAINMEM_AUDIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def small_order_encodings() -> list[bytes]:
    """All encodings of the eight torsion points, also those with y ≥ p and with the sign bit where x = 0.

    The points of order 8 solve d·y⁴ + 2y² = 1 (doubling them gives y = 0).
    """
    d = -121665 * pow(121666, -1, P) % P
    root = sqrt(1 + d)
    assert root is not None
    candidates = [sqrt((-1 + sign * root) * pow(d, -1, P) % P) for sign in (1, -1)]
    order_8 = [y for y in candidates if y is not None]
    assert order_8
    ys = {0, 1, P - 1, *order_8, *(P - y for y in order_8)}
    ys |= {y + P for y in ys if y + P < 2**255}
    return [(y | sign << 255).to_bytes(32, "little") for y in sorted(ys) for sign in (0, 1)]


def sqrt(square: int) -> int | None:
    """A square root modulo p = 8k + 5, if there is one."""
    square %= P
    root = pow(square, (P + 3) // 8, P)
    for candidate in (root, root * pow(2, (P - 1) // 4, P) % P):
        if candidate * candidate % P == square:
            return candidate
    return None


def ssh_keygen(*arguments: str) -> str:
    done = subprocess.run(["ssh-keygen", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@needs_ssh_keygen
def test_ssh_keygen_prints_the_keyid(tmp_path: Path) -> None:
    signer = Signer.generate()
    (tmp_path / "signer.pub").write_bytes(signer.public.openssh_line())
    assert ssh_keygen("-lf", str(tmp_path / "signer.pub")).split()[1] == signer.public.keyid


@needs_ssh_keygen
@pytest.mark.parametrize("passphrase", ["", "correct horse"])
def test_a_key_of_ssh_keygen_loads(tmp_path: Path, passphrase: str) -> None:
    path = tmp_path / "key"
    ssh_keygen("-q", "-t", "ed25519", "-N", passphrase, "-C", "someone@somewhere", "-f", str(path))
    signer = Signer.load(path, passphrase.encode() or None)
    public = PublicKey.from_openssh(path.with_suffix(".pub").read_bytes(), "key.pub")
    assert signer.public == public
    assert keys.is_encrypted(path) == bool(passphrase)


@needs_ssh_keygen
@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_ssh_keygen_reads_our_key(tmp_path: Path, passphrase: bytes | None) -> None:
    signer = Signer.generate()
    keys.write_key(tmp_path / "key", signer, passphrase)
    line = ssh_keygen("-y", "-P", (passphrase or b"").decode(), "-f", str(tmp_path / "key"))
    assert line.strip() == signer.public.openssh_text()


@needs_ssh_keygen
def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    ssh_keygen("-q", "-t", "ecdsa", "-N", "", "-f", str(tmp_path / "key"))
    with pytest.raises(KeyFileError, match="another kind"):
        Signer.load(tmp_path / "key", None)


def test_a_written_key_is_private_and_names_nobody(tmp_path: Path) -> None:
    path = tmp_path / "key"
    signer = Signer.from_seed(bytes(range(32)))
    keys.write_key(path, signer, None)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (tmp_path / "key.pub").read_bytes() == signer.public.openssh_line()
    assert Signer.load(path, b"not needed").seed() == bytes(range(32))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key", "key.pub"]


@pytest.mark.parametrize("taken", ["key", "key.pub"])
def test_no_key_is_overwritten(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    with pytest.raises(KeyFileError, match="never overwritten"):
        keys.write_key(tmp_path / "key", Signer.generate(), None)
    assert [p.name for p in tmp_path.iterdir()] == [taken]
    assert (tmp_path / taken).read_text() == "mine"


@pytest.mark.parametrize(("passphrase", "message"), [(None, "no passphrase"), (b"", "no passphrase"), (b"x", "wrong")])
def test_an_encrypted_key_needs_its_passphrase(tmp_path: Path, passphrase: bytes | None, message: str) -> None:
    keys.write_key(tmp_path / "key", Signer.generate(), b"right")
    with pytest.raises(KeyFileError, match=message) as caught:
        Signer.load(tmp_path / "key", passphrase)
    assert caught.value.remedy


def test_an_empty_passphrase_is_no_passphrase(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="unusable passphrase"):
        keys.write_key(tmp_path / "key", Signer.generate(), b"")


def test_a_long_passphrase_works(tmp_path: Path) -> None:
    signer = Signer.generate()
    keys.write_key(tmp_path / "key", signer, b"p" * 200)
    assert Signer.load(tmp_path / "key", b"p" * 200).seed() == signer.seed()


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    keys.write_key(tmp_path / "key", Signer.generate(), None)
    (tmp_path / "key").chmod(0o640)
    with pytest.raises(KeyFileError, match="read by others") as caught:
        Signer.load(tmp_path / "key", None)
    assert "chmod 600" in caught.value.remedy


@pytest.mark.parametrize("data", [b"", b"garbage", b"-----BEGIN OPENSSH PRIVATE KEY-----\n", b"\xff" * 70000])
def test_what_is_no_key_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "key").write_bytes(data)
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(KeyFileError, match="not a private key"):
        Signer.load(tmp_path / "key", None)


def test_every_truncation_of_a_key_is_refused(tmp_path: Path) -> None:
    keys.write_key(tmp_path / "key", Signer.generate(), None)
    whole = (tmp_path / "key").read_bytes()
    for length in range(len(whole) - 1):
        (tmp_path / "key").write_bytes(whole[:length])
        with pytest.raises(KeyFileError):
            Signer.load(tmp_path / "key", None)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="nowhere"):
        Signer.load(tmp_path / "nowhere", None)


def test_openssl_accepts_a_forgery_that_we_refuse() -> None:
    identity = (1).to_bytes(32, "little")
    forged = identity + bytes(32)
    Ed25519PublicKey.from_public_bytes(identity).verify(forged, b"anything")  # no exception: that is the trap
    with pytest.raises(KeyFileError, match="small order"):
        PublicKey(identity)


@pytest.mark.parametrize("raw", small_order_encodings(), ids=bytes.hex)
def test_a_key_of_small_order_is_refused(raw: bytes) -> None:
    with pytest.raises(KeyFileError):
        PublicKey(raw)


def test_all_small_order_points_are_tried() -> None:
    canonical = [raw for raw in small_order_encodings() if int.from_bytes(raw, "little") & (2**255 - 1) < P]
    assert len(canonical) == 10  # eight points, two of them (x = 0) with a second spelling of the sign
    refused = [raw for raw in canonical if keys._has_small_order(raw)]
    assert refused == canonical


@pytest.mark.parametrize("y", range(P, 2**255))
def test_a_key_beyond_the_field_is_refused(y: int) -> None:
    with pytest.raises(KeyFileError, match="no point"):
        PublicKey(y.to_bytes(32, "little"))


@pytest.mark.parametrize("length", [0, 31, 33, 64])
def test_a_key_of_wrong_length_is_refused(length: int) -> None:
    with pytest.raises(KeyFileError, match="32 bytes"):
        PublicKey(bytes([9]) * length)


@given(st.binary(min_size=32, max_size=32))
def test_random_bytes_are_a_point_exactly_when_x_exists(raw: bytes) -> None:
    y = int.from_bytes(raw, "little") & (2**255 - 1)
    d = -121665 * pow(121666, -1, P) % P
    exists = y < P and sqrt((y * y - 1) * pow(d * y * y + 1, -1, P)) is not None
    try:
        PublicKey(raw)
    except KeyFileError:
        assert not exists or keys._has_small_order(raw)
    else:
        assert exists


@given(st.binary(min_size=32, max_size=32), st.binary(max_size=200))
def test_what_is_signed_verifies_and_nothing_else_does(seed: bytes, message: bytes) -> None:
    signer = Signer.from_seed(seed)
    signature = signer.sign(message)
    assert signer.public.verify(signature, message)
    assert not signer.public.verify(signature, message + b"\0")
    assert not signer.public.verify(signature[:-1], message)
    assert not signer.public.verify(signature + b"\0", message)
    assert not signer.public.verify(b"", message)


@given(st.binary(min_size=32, max_size=32))
def test_a_malleated_signature_is_refused(seed: bytes) -> None:
    signer = Signer.from_seed(seed)
    signature = signer.sign(b"m")
    s = int.from_bytes(signature[32:], "little")
    for malleated in range(s + L, 2**256, L):
        assert not signer.public.verify(signature[:32] + malleated.to_bytes(32, "little"), b"m")


def test_vector_1_of_rfc_8032() -> None:
    """RFC 8032 § 7.1, TEST 1."""
    signer = Signer.from_seed(bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"))
    assert signer.public.raw.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert signer.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155")


@given(st.binary(min_size=32, max_size=32))
def test_a_line_reads_back(seed: bytes) -> None:
    public = Signer.from_seed(seed).public
    line = public.openssh_line()
    assert PublicKey.from_openssh(line, "x") == public
    assert PublicKey.from_openssh(line.rstrip() + b" a comment", "x") == public


GOOD = Signer.from_seed(bytes(32)).public.openssh_line()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b" " + GOOD,
        GOOD + b"\n",
        GOOD + GOOD,
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"ssh-ed25519 ", b"ssh-ed25519  "),
        GOOD.replace(b"ssh-ed25519", b"ssh-rsa"),
        GOOD[:-3] + b"\n",
        GOOD.replace(b"A", b"-", 1),
        GOOD[:-1] + b"= \n",
        GOOD[:-1] + b" comm\x00ent\n",
        b"ssh-ed25519 " + base64.b64encode(b"\x00\x00\x00\x0bssh-ed25518" + bytes(36)) + b"\n",
    ],
)
def test_what_is_no_line_of_a_key_is_refused(line: bytes) -> None:
    with pytest.raises(KeyFileError, match=r"signer\.pub"):
        PublicKey.from_openssh(line, "signer.pub")


def test_signer_pub_holds_plain_lines() -> None:
    other = Signer.generate().public
    assert keys.parse_public_keys(GOOD + other.openssh_line(), "signer.pub")[1] == other
    for data in (b"", GOOD + GOOD, GOOD[:-1], GOOD[:-1] + b" Ann\n", b"\n" + GOOD, GOOD + b"\n"):
        with pytest.raises(KeyFileError):
            keys.parse_public_keys(data, "signer.pub")


def test_one_project_has_one_key(tmp_path: Path) -> None:
    project = tmp_path / "my project"
    (project / "deep" / "er").mkdir(parents=True)
    (project / "pyproject.toml").touch()
    first, made = keys.load_or_make_project_key(project, None)
    again, made_again = keys.load_or_make_project_key(project / "deep" / "er", None)
    assert (made, made_again) == (True, False)
    assert first.seed() == again.seed()
    assert keys.own_keyids() == {first.public.keyid}
    assert keys.project_key_path(project).name.startswith("my_project-")
    assert keys.project_key_path(tmp_path) != keys.project_key_path(project)


def test_a_lost_public_half_is_written_again(tmp_path: Path) -> None:
    first, _ = keys.load_or_make_project_key(tmp_path, None)
    public = keys.project_key_path(tmp_path).with_name(keys.project_key_path(tmp_path).name + ".pub")
    public.unlink()
    keys.load_or_make_project_key(tmp_path, None)
    assert public.read_bytes() == first.public.openssh_line()
    public.write_bytes(GOOD)
    with pytest.raises(KeyFileError, match="not that of the private key"):
        keys.load_or_make_project_key(tmp_path, None)


def test_many_at_once_make_one_key(tmp_path: Path) -> None:
    seeds: list[bytes] = []
    gate = threading.Barrier(8)

    def make() -> None:
        gate.wait()
        seeds.append(keys.load_or_make_project_key(tmp_path, None)[0].seed())

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seeds) == 8
    assert len(set(seeds)) == 1


def test_an_anonymous_key_is_kept_and_is_ours(own_home: Path) -> None:
    signer, path = keys.make_anonymous_key(None)
    other, _ = keys.make_anonymous_key(None)
    assert signer.public != other.public
    assert Signer.load(path, None).seed() == signer.seed()
    (own_home / "keys" / "stray.pub").write_text("nothing\n")
    assert keys.own_keyids() == {signer.public.keyid, other.public.keyid}


def test_where_a_passphrase_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "phrase"
    file.write_bytes(b"first line\nsecond\n")
    environ = {keys.PASSPHRASE_VARIABLE: "from there"}
    assert keys.find_passphrase(file, environ) == b"first line"
    assert keys.find_passphrase(None, environ) == b"from there"
    assert keys.find_passphrase(None, {keys.PASSPHRASE_VARIABLE: ""}) is None
    file.write_bytes(b"")
    for bad in (file, tmp_path / "missing"):
        with pytest.raises(KeyFileError):
            keys.find_passphrase(bad, environ)


def test_a_signer_does_not_print_its_secret() -> None:
    signer = Signer.from_seed(os.urandom(32))
    assert repr(signer) == f"Signer({signer.public.keyid})"


def test_a_seed_has_32_bytes() -> None:
    with pytest.raises(KeyFileError, match="32 bytes"):
        Signer.from_seed(b"short")
