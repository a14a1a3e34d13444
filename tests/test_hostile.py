"""Hostile or mistaken input to every command that reads a run: a message or findings, no traceback, no hang."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tools import Run, audit
from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.documents.manifest import PAYLOAD_TYPE
from trainmem_audit.envelope import seal
from trainmem_audit.keys import Signer

DEEP = b"[" * 100_000


def folder(path: Path, **files: bytes) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name.replace("__", ".")).write_bytes(data)
    return path


def no_such(path: Path) -> Path:
    return path / "no such run"


def empty_folder(path: Path) -> Path:
    return folder(path / "run")


def text_file(path: Path) -> Path:
    (path / "notes.txt").write_text("no zip")
    return path / "notes.txt"


def empty_zip(path: Path) -> Path:
    zipfile.ZipFile(path / "run.zip", "w").close()
    return path / "run.zip"


def torn_zip(path: Path) -> Path:
    (path / "run.zip").write_bytes(b"PK\x03\x04" + bytes(100) + b"PK\x05\x06" + b"\xff" * 18)
    return path / "run.zip"


def zip_that_climbs(path: Path) -> Path:
    with zipfile.ZipFile(path / "run.zip", "w") as target:
        target.writestr("../run.json", b"{}")
    return path / "run.zip"


def zip_bomb(path: Path) -> Path:
    with zipfile.ZipFile(path / "run.zip", "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("run.json", bytes(300 * 2**20))
    return path / "run.zip"


def link_inside(path: Path) -> Path:
    (folder(path / "run") / "run.json").symlink_to("/etc/passwd")
    return path / "run"


def fifo_inside(path: Path) -> Path:
    os.mkfifo(folder(path / "run") / "run.json")
    return path / "run"


def fifo(path: Path) -> Path:
    os.mkfifo(path / "run.json")
    return path / "run.json"


def device(path: Path) -> Path:
    return Path("/dev/null")


def garbage(path: Path) -> Path:
    return folder(path / "run", run__json=b"\x00garbage", steps__jsonl=b"\x00garbage\n")


def empty_files(path: Path) -> Path:
    return folder(path / "run", run__json=b"", steps__jsonl=b"", signer__pub=b"")


def deep_json(path: Path) -> Path:
    return folder(path / "run", run__json=DEEP, steps__jsonl=DEEP + b"\n")


def huge_numbers(path: Path) -> Path:
    number = b"1" * 10_000
    return folder(path / "run", run__json=b'{"payload":%b}' % number, steps__jsonl=b'{"chain":%b}\n' % number)


def signed(path: Path, payload: bytes, kind: str = PAYLOAD_TYPE) -> Path:
    signer = Signer.generate()
    return folder(path / "run", run__json=seal(payload, kind, signer), signer__pub=signer.public.openssh_line())


def signed_nothing(path: Path) -> Path:
    return signed(path, b"")


def signed_deep_json(path: Path) -> Path:
    return signed(path, b'{"_type":' * 900 + b"0" + b"}" * 900)


def signed_other_kind(path: Path) -> Path:
    return signed(path, canonical_bytes({"predicateType": "x"}), "text/plain")


BAD: list[Callable[[Path], Path]] = [
    no_such, empty_folder, text_file, empty_zip, torn_zip, zip_that_climbs, zip_bomb, link_inside, fifo_inside, fifo,
    device, garbage, empty_files, deep_json, huge_numbers, signed_nothing, signed_deep_json, signed_other_kind,
]  # fmt: skip


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_verify_says_what_is_wrong(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    told = audit("verify", make(tmp_path), cwd=tmp_path, home=tmp_path / "home", timeout=60)
    assert told.returncode in (1, 2), told.stderr
    assert "Traceback" not in told.stderr
    assert told.stdout.strip() or told.stderr.startswith("error: ")
    assert "verified" not in told.stdout.lower()
    assert (told.returncode == 1) == ("findings (" in told.stdout)


@pytest.mark.parametrize("verb", ["show", "report", "pack", "recover", "diff", "sign"])
@pytest.mark.parametrize(
    "make", [no_such, empty_files, deep_json, torn_zip, signed_deep_json], ids=lambda m: m.__name__
)
def test_no_command_answers_bad_input_with_a_traceback(tmp_path: Path, verb: str, make: Callable[[Path], Path]) -> None:
    bad = make(tmp_path)
    told = audit(verb, bad, *([bad] if verb == "diff" else []), cwd=tmp_path, home=tmp_path / "home", timeout=60)
    assert told.returncode in (1, 2), told.stdout + told.stderr
    assert "Traceback" not in told.stderr
    assert told.stderr.strip() or told.stdout.strip()


def test_run_json_alone_is_valid_and_misses_its_files(run: Run, tmp_path: Path) -> None:
    for name in ("order/rank-0.i64", "source/train.py", "steps.jsonl", "tensors.b3"):
        (run.path / name).unlink()
    told = audit("verify", run.path / "run.json", "--format", "json", cwd=tmp_path, home=run.home)
    document = json.loads(told.stdout)
    assert (told.returncode, document["signature"]["state"]) == (1, "self")
    assert [finding["code"] for finding in document["findings"]] == ["FILE-MISSING"] * 4 + ["LOG-MISSING"]


def test_a_log_without_run_json_is_told_how_to_go_on(run: Run, tmp_path: Path) -> None:
    (run.path / "run.json").unlink()
    told = audit("verify", run.path, cwd=tmp_path, home=run.home)
    assert (told.returncode, told.stdout) == (2, "")
    assert "recover" in told.stderr


def test_a_file_name_that_moves_the_cursor_is_not_shown_raw(run: Run, tmp_path: Path) -> None:
    run.write("\N{RIGHT-TO-LEFT OVERRIDE}nosj.nur", b"")
    told = audit("verify", run.path, cwd=tmp_path, home=run.home)
    assert told.returncode == 2
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in told.stdout + told.stderr
