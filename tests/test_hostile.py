"""Hostile or mistaken input to every command that reads a run: a message or findings, no traceback, no hang."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import builders
from tests.logs import begin
from tests.tools import Run, audit
from trainmem_audit.canonical import CHAIN_START, canonical_bytes, chain_digest, line_bytes
from trainmem_audit.documents.manifest import PAYLOAD_TYPE
from trainmem_audit.envelope import seal
from trainmem_audit.errors import NEXT_LINE, FormatError
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


ESCAPE = "\x1b]0;title\x07\x1b[2J\x9b31m"


def quoting(path: Path) -> Path:
    """A statement with a member whose name is an escape sequence: the message quotes it."""
    statement = builders.statement_json()
    statement["predicate"][ESCAPE] = 1
    return signed(path, canonical_bytes(statement))


def quoting_log(path: Path) -> Path:
    body = line_bytes(begin(**{f"z{ESCAPE}": 1}))
    chain = chain_digest(CHAIN_START, body).hex().encode()
    return folder(path / "run", steps__jsonl=b'{"chain":"' + chain + b'",' + body[1:] + b"\n")


@pytest.mark.parametrize("verb", ["verify", "show", "report", "pack", "diff", "recover"])
@pytest.mark.parametrize("make", [quoting, quoting_log, signed_other_kind], ids=lambda make: make.__name__)
def test_no_message_hands_an_escape_sequence_to_the_terminal(
    tmp_path: Path, verb: str, make: Callable[[Path], Path]
) -> None:
    bad = make(tmp_path)
    told = audit(verb, bad, *([bad] if verb == "diff" else []), cwd=tmp_path, home=tmp_path / "home", timeout=60)
    assert told.returncode in (1, 2), told.stdout + told.stderr
    assert not set("\x1b\x07\x9b") & set(told.stdout + told.stderr)


def test_a_message_quotes_on_one_line_and_not_for_ever() -> None:
    error = FormatError(
        "wrong", where="a\x1b[2J", got="x\nerror: all is well " + "y" * 10_000, remedy=f"one{NEXT_LINE}two"
    )
    lines = str(error).split("\n")
    assert lines[0] == r"a\u001b[2J: wrong"
    assert lines[1].startswith(r"  got:      x\u000aerror: all is well yyy")
    assert len(lines[1]) < 700
    assert lines[2:] == ["  remedy:   one", " " * 12 + "two"]
    assert error.got.startswith("x\nerror")


def told_of(tmp_path: Path, *arguments: str | Path) -> str:
    """Run a command that must refuse, and return what it says."""
    told = audit(*arguments, cwd=tmp_path, home=tmp_path / "home", timeout=60)
    assert told.returncode == 2, told.stdout + told.stderr
    assert "Traceback" not in told.stderr
    assert told.stderr.startswith(("error: ", "trainmem-audit: "))
    return told.stderr


def test_an_empty_or_unwritable_name_is_refused_in_words(tmp_path: Path, run: Run) -> None:
    assert "no file name" in told_of(tmp_path, "keygen", "")
    assert "an empty name" in told_of(tmp_path, "record", "-m", "")
    assert str(tmp_path) in told_of(tmp_path, "verify", run.path, "--save", tmp_path)


def test_a_script_whose_name_is_no_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "caf\udce9.py").write_text("")
    assert "not UTF-8" in told_of(tmp_path, "record", "caf\udce9.py")


@pytest.mark.parametrize("arguments", [["broken.py"], ["-m", "no.such.module"]])
def test_record_leaves_nothing_behind_when_it_refuses(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "broken.py").write_text("def")
    told_of(tmp_path, "record", *arguments)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_name_is_no_utf8_is_verified(run: Run, tmp_path: Path) -> None:
    odd = run.path.rename(tmp_path / "caf\udce9")
    told = audit("verify", odd, "--format", "json", "--save", "found.json", cwd=tmp_path, home=run.home)
    assert told.returncode == 0, told.stderr
    assert json.loads(told.stdout)["name"] == json.loads((tmp_path / "found.json").read_text())["name"] == r"caf\udce9"
    assert audit("show", odd, cwd=tmp_path, home=run.home).returncode == 0


def test_a_list_of_trust_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    told = audit("trust", "list", cwd=tmp_path, home=tmp_path / "home")
    assert (told.returncode, told.stdout) == (0, "")


def test_an_ordinary_public_key_with_a_comment_can_be_trusted(tmp_path: Path) -> None:
    key = Signer.generate().public
    (tmp_path / "ann.pub").write_text(f"{key.openssh_text()} ann@laptop\n")
    told = audit("trust", "add", "ann", "ann.pub", cwd=tmp_path, home=tmp_path / "home")
    assert (told.returncode, told.stdout) == (0, f"ann {key.keyid}\n")
