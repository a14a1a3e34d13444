"""Packing: the signed files and nothing else, the same bytes every time, and no secret with them."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import time
import zipfile
from pathlib import Path

import pytest

from trainmem_audit import envelope as env
from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.packing import pack
from trainmem_audit.rundir import open_run

AUTHOR = Signer.from_seed(bytes(32))
TOKEN = "h" + "f_" + "aBcDe" * 7
FILES = {
    "source/train.py": b"import torch\nprint('hello')\n",
    "steps.jsonl": b'{"chain":"00"}\n' * 500,
    "tensors.b3": bytes(range(256)),
    "order/0.i64": bytes(800),
}


@pytest.fixture(autouse=True)
def person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "quentin"))
    monkeypatch.setenv("USER", "quentin")


def lay(folder: Path, files: dict[str, bytes], note: str = "") -> Path:
    """A run directory with these files, its statement cut down to what packing reads."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    subject = [{"name": n, "digest": {"sha256": hashlib.sha256(d).hexdigest()}} for n, d in sorted(files.items())]
    payload = canonical_bytes({"_type": "https://in-toto.io/Statement/v1", "note": note, "subject": subject})
    (folder / "run.json").write_bytes(env.seal(payload, "application/vnd.in-toto+json", AUTHOR))
    (folder / "signer.pub").write_bytes(AUTHOR.public.openssh_line())
    (folder / "disclosures.json").write_bytes(b'{"schemaVersion":"0.1.0-draft","disclosures":[]}\n')
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return lay(tmp_path / "run", FILES)


def test_a_pack_holds_the_signed_files_and_nothing_else(tmp_path: Path, run: Path) -> None:
    (run / "report.html").write_text("<html>")
    (run / "source" / "notes.txt").write_text("unlisted")
    result = pack(run, tmp_path / "run.zip")
    expected = sorted([*FILES, "run.json", "signer.pub", "disclosures.json"])
    assert list(result.files) == expected
    assert result.left_out == ("report.html", "source/notes.txt")
    assert result.secrets == ()
    assert result.bytes == (tmp_path / "run.zip").stat().st_size
    with open_run(tmp_path / "run.zip") as reader:
        assert list(reader.names()) == expected
        for name, data in FILES.items():
            assert reader.read(name, 10**6) == data


def test_later_attestations_go_along(tmp_path: Path, run: Path) -> None:
    (run / "run.intoto.jsonl").write_bytes(b"")
    assert "run.intoto.jsonl" in pack(run, tmp_path / "run.zip").files


def test_a_blind_pack_leaves_the_openings_out(tmp_path: Path, run: Path) -> None:
    result = pack(run, tmp_path / "run.zip", blind=True)
    assert "disclosures.json" not in result.files
    assert result.kept_back == ("disclosures.json",)
    assert result.left_out == ()


def test_a_pack_has_the_same_bytes_whenever_and_wherever(tmp_path: Path, run: Path) -> None:
    pack(run, tmp_path / "a.zip")
    time.sleep(0.01)
    other = lay(tmp_path / "other" / "name", dict(reversed(FILES.items())))
    os.utime(other / "steps.jsonl", (0, 0))
    (other / "steps.jsonl").chmod(0o600)
    pack(other, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_a_pack_tells_no_time_and_no_owner(tmp_path: Path, run: Path) -> None:
    pack(run, tmp_path / "run.zip")
    with zipfile.ZipFile(tmp_path / "run.zip") as archive:
        assert archive.comment == b""
        for info in archive.infolist():
            assert info.date_time == (1980, 1, 1, 0, 0, 0)
            assert info.external_attr >> 16 == stat.S_IFREG | 0o644
            assert (info.extra, info.comment) == (b"", b"")
            assert info.compress_type == zipfile.ZIP_DEFLATED


SECRETS = [
    ("source/train.py", f"x = 1\ny = 2\nlogin('{TOKEN}')\n", "source/train.py:3", "Hugging Face token"),
    ("source/train.py", "open('/data')\n# by Quentin\n", "source/train.py:2", "name of this user or machine"),
    ("steps.jsonl", '{"a":1}\n{"b":"' + TOKEN + '"}\n', "steps.jsonl:2", "Hugging Face token"),
    ("source/quentin.py", "pass\n", "source/quentin.py:0", "name of this user or machine"),
    ("source/big.py", "x" * (2**20 - 10) + " " + TOKEN + "\n", "source/big.py:1", "Hugging Face token"),
]


@pytest.mark.parametrize(("name", "text", "place", "kind"), SECRETS)
def test_a_secret_stops_the_pack_and_is_not_repeated(
    tmp_path: Path, name: str, text: str, place: str, kind: str
) -> None:
    run = lay(tmp_path / "run", FILES | {name: text.encode()})
    with pytest.raises(UsageError) as caught:
        pack(run, tmp_path / "run.zip")
    assert f"{place}: {kind}" in str(caught.value)
    assert TOKEN not in str(caught.value)
    names = kind == "name of this user or machine"
    assert ("--allow-identity" if names else "--allow-secrets") in caught.value.remedy
    with pytest.raises(UsageError):  # to allow the one is not to allow the other
        pack(run, tmp_path / "run.zip", allow_secrets=names, allow_identity=not names)
    assert not (tmp_path / "run.zip").exists()
    result = pack(run, tmp_path / "run.zip", allow_secrets=not names, allow_identity=names)
    assert f"{place}: {kind}" in {str(secret) for secret in result.secrets}


def test_a_secret_in_the_statement_is_found(tmp_path: Path) -> None:
    run = lay(tmp_path / "run", FILES, note=TOKEN)
    with pytest.raises(UsageError, match=r"run\.json:1"):
        pack(run, tmp_path / "run.zip")


def test_many_secrets_are_counted(tmp_path: Path) -> None:
    run = lay(tmp_path / "run", {"source/a.py": f"{TOKEN}\n".encode() * 50})
    with pytest.raises(UsageError, match="and 30 more"):
        pack(run, tmp_path / "run.zip")


def test_a_secret_outside_of_the_signed_files_does_not_matter(tmp_path: Path, run: Path) -> None:
    (run / "scratch.txt").write_text(TOKEN)
    assert pack(run, tmp_path / "run.zip").left_out == ("scratch.txt",)


def test_a_changed_file_is_not_packed(tmp_path: Path, run: Path) -> None:
    (run / "steps.jsonl").write_bytes(FILES["steps.jsonl"][:-1] + b" ")
    (tmp_path / "run.zip").unlink(missing_ok=True)
    with pytest.raises(FormatError, match=r"steps\.jsonl: the file is not what was signed"):
        pack(run, tmp_path / "run.zip")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_a_missing_file_is_named(tmp_path: Path, run: Path) -> None:
    (run / "tensors.b3").unlink()
    with pytest.raises(FormatError, match=r"tensors\.b3: the file is missing"):
        pack(run, tmp_path / "run.zip")


def test_places_that_make_no_sense_are_refused(tmp_path: Path, run: Path) -> None:
    (tmp_path / "text").write_text("mine")
    for run_dir, out, message in (
        (run, run / "run.zip", "in the run directory"),
        (run, tmp_path / "text", "no zip"),
        (run, tmp_path / "nowhere" / "run.zip", "no such folder"),
        (tmp_path, tmp_path / "run.zip", "not a run directory"),
    ):
        with pytest.raises(UsageError, match=message):
            pack(run_dir, out)
    assert (tmp_path / "text").read_text() == "mine"


def test_a_pack_is_replaced_whole(tmp_path: Path, run: Path) -> None:
    first = pack(run, tmp_path / "run.zip")
    assert pack(run, tmp_path / "run.zip") == first


@pytest.mark.parametrize("payload", [b"{}", b"[]", b'{"subject":[{"name":1}]}', b'{"subject":[{"name":"../x"}]}'])
def test_a_statement_without_files_is_refused(tmp_path: Path, run: Path, payload: bytes) -> None:
    value = json.loads(payload)
    if isinstance(value, dict) and value.get("subject", [{}])[0].get("name") == "../x":
        value["subject"][0]["digest"] = {"sha256": "00"}
    (run / "run.json").write_bytes(env.seal(json.dumps(value).encode(), "application/vnd.in-toto+json", AUTHOR))
    with pytest.raises(FormatError):
        pack(run, tmp_path / "run.zip")
