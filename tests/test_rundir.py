"""Reading a hostile run: names, links, special files and zips."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainmem_audit import rundir
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.rundir import check_name, check_names, open_run, write_atomic

FILES = {"run.json": b"{}\n", "source/train.py": b"print()\n", "steps.jsonl": b"x\n" * 1000}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return lay(tmp_path / "run")


def lay(folder: Path) -> Path:
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def zipped(path: Path, files: dict[str, bytes], prefix: str = "", method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(prefix + name, data)
    return path


def with_entry(path: Path, change: Callable[[zipfile.ZipInfo], None], data: bytes = b"x") -> Path:
    info = zipfile.ZipInfo("odd")
    change(info)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("run.json", b"{}")
        archive.writestr(info, data)
    return path


@pytest.mark.parametrize("kind", ["directory", "run.json", "zip", "zip with a folder", "zip with folder entries"])
def test_all_doors_show_the_same_run(tmp_path: Path, run: Path, kind: str) -> None:
    paths = {
        "directory": run,
        "run.json": run / "run.json",
        "zip": zipped(tmp_path / "a.zip", FILES),
        "zip with a folder": zipped(tmp_path / "b.zip", FILES, "run/"),
        "zip with folder entries": zipped(tmp_path / "c.zip", {"run/": b"", "run/source/": b""}),
    }
    with zipfile.ZipFile(paths["zip with folder entries"], "a") as archive:
        for name, data in FILES.items():
            archive.writestr(f"run/{name}", data)
    with open_run(paths[kind]) as reader:
        assert reader.names() == tuple(sorted(FILES))
        for name, data in FILES.items():
            assert reader.size(name) == len(data)
            assert reader.read(name, len(data)) == data
            assert reader.sha256(name) == hashlib.sha256(data).hexdigest()
            with reader.open(name) as file:
                assert b"".join(file) == data
        assert "run.json" in reader
        assert "elsewhere" not in reader


@pytest.mark.parametrize("packed", [False, True])
def test_a_missing_or_overlong_file_is_named(tmp_path: Path, run: Path, packed: bool) -> None:
    with open_run(zipped(tmp_path / "a.zip", FILES) if packed else run) as reader:
        for name in ("nowhere", "../run/run.json", "/etc/hostname"):
            with pytest.raises(FormatError, match="missing"):
                reader.open(name)
        with pytest.raises(FormatError, match="too long"):
            reader.read("steps.jsonl", 1999)


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        open_run(tmp_path / "nowhere")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(FormatError, match="not a run"):
        open_run(tmp_path / "text")


BAD_NAMES = [
    "",
    "/etc/passwd",
    "../up",
    "a/../b",
    "a/./b",
    "a//b",
    "a/",
    "..",
    "a\\b",
    "C:/x",
    "file:stream",
    "nul\0byte",
    "line\nfeed",
    "\x7f",
    "\u202eexe.gpj",
    "zero\u200bwidth",
    "e\u0301",  # é in two characters
    "trailing.",
    "trailing ",
    "dir./x",
    "a" * 241,
    "a/" * 32 + "b",
    "/".join(["a" * 200] * 6),
    "surrogate\udc80",
]


@pytest.mark.parametrize("name", BAD_NAMES, ids=ascii)
def test_an_unsafe_name_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="unsafe file name"):
        check_name(name, "a.zip")


@pytest.mark.parametrize(
    "name", ["run.json", "source/a b.py", "order/0.i64", ".hidden", "données/é.py", "a..b", "日本/x"]
)
def test_a_plain_name_is_allowed(name: str) -> None:
    assert check_name(name, "x") == name


@given(st.text(max_size=60))
def test_an_allowed_name_stays_below_the_folder(name: str) -> None:
    try:
        check_name(name, "x")
    except FormatError:
        return
    base = Path("/base")
    assert Path(os.path.normpath(base / name)).is_relative_to(base)
    assert "\\" not in name
    assert name.isascii() or name.encode()


@pytest.mark.parametrize(
    "names",
    [("a", "a"), ("a/x", "A/y"), ("x", "X"), ("straße", "STRASSE"), ("a", "a/b"), ("A", "a/b"), ("é", "É")],
)
def test_names_that_would_meet_are_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(FormatError, match="side by side"):
        check_names(names, "x")


def test_a_link_in_a_directory_is_refused(tmp_path: Path, run: Path) -> None:
    (tmp_path / "secret").write_text("s")
    for target in (tmp_path / "secret", tmp_path, "nowhere"):
        (run / "link").symlink_to(target)
        with pytest.raises(FormatError, match="a symbolic link") as caught:
            open_run(run)
        assert "link" in caught.value.where
        (run / "link").unlink()


def test_a_link_put_there_afterwards_is_not_followed(tmp_path: Path, run: Path) -> None:
    (tmp_path / "secret").write_text("s")
    with open_run(run) as reader:
        (run / "steps.jsonl").unlink()
        (run / "steps.jsonl").symlink_to(tmp_path / "secret")
        (run / "source").rename(tmp_path / "source")
        (run / "source").symlink_to(tmp_path / "source")
        for name in ("steps.jsonl", "source/train.py"):
            with pytest.raises(FormatError, match="cannot be read"):
                reader.open(name)


def test_a_fifo_is_refused_without_waiting(run: Path) -> None:
    with open_run(run) as reader:
        (run / "steps.jsonl").unlink()
        os.mkfifo(run / "steps.jsonl")
        with pytest.raises(FormatError, match="a special file"):
            reader.open("steps.jsonl")
    with pytest.raises(FormatError, match="a special file"):
        open_run(run)


def test_a_name_that_is_no_unicode_is_refused(run: Path) -> None:
    (run / os.fsdecode(b"\xff")).touch()
    with pytest.raises(FormatError, match="unsafe file name"):
        open_run(run)


def test_too_many_files_are_refused(run: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rundir, "MAX_FILES", 2)
    with pytest.raises(FormatError, match="too many"):
        open_run(run)
    with pytest.raises(FormatError, match="too many"):
        open_run(zipped(tmp_path / "a.zip", FILES))


@pytest.mark.parametrize("name", ["../evil", "/evil", "a/../../evil", "a\\..\\evil", "C:evil", "e\u0301", "x\x01"])
def test_zip_slip_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(FormatError, match="unsafe file name"):
        open_run(zipped(tmp_path / "a.zip", {"run.json": b"{}", name: b"x"}))


def test_a_nul_in_a_zip_name_does_not_shorten_it(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"run.json": b"{}", "steps.jsonlX.png": b"x"})
    path.write_bytes(path.read_bytes().replace(b"steps.jsonlX.png", b"steps.jsonl\0.png"))
    with pytest.raises(FormatError, match="unsafe file name"):
        open_run(path)


def test_a_duplicate_in_a_zip_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's own word on duplicate names
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            archive.writestr("run.json", b"{}")
            archive.writestr("run.json", b"[]")
    with pytest.raises(FormatError, match="twice"):
        open_run(tmp_path / "a.zip")


def test_two_spellings_in_a_zip_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="side by side"):
        open_run(zipped(tmp_path / "a.zip", {"run.json": b"{}", "RUN.json": b"[]"}))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR])
def test_a_special_entry_in_a_zip_is_refused(tmp_path: Path, kind: int) -> None:
    def change(info: zipfile.ZipInfo) -> None:
        info.external_attr = (kind | 0o777) << 16

    with pytest.raises(FormatError, match="no plain file"):
        open_run(with_entry(tmp_path / "a.zip", change, b"/etc/passwd"))


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_methods_are_refused(tmp_path: Path, method: int) -> None:
    def change(info: zipfile.ZipInfo) -> None:
        info.compress_type = method

    with pytest.raises(FormatError, match="compression method"):
        open_run(with_entry(tmp_path / "a.zip", change))


def patched(path: Path, offset_in_central: int, value: bytes, own: bool = True) -> Path:
    """Change a field of the last record of the directory (APPNOTE § 4.3.12), and of its entry's header (§ 4.3.7)."""
    data = bytearray(path.read_bytes())
    places = [bytes(data).rindex(b"PK\x01\x02") + offset_in_central]
    if own:
        places.append(bytes(data).rindex(b"PK\x03\x04") + offset_in_central - 2)
    for at in places:
        data[at : at + len(value)] = value
    path.write_bytes(data)
    return path


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    path = patched(zipped(tmp_path / "a.zip", {"run.json": b"{}"}), 8, b"\x01\x00")
    with pytest.raises(FormatError, match="encrypted"):
        open_run(path)


def test_a_bomb_is_refused_by_what_it_declares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "FREE_TOTAL", 2**20)
    path = zipped(tmp_path / "a.zip", {"run.json": b"{}", "zeros": bytes(2**24)})
    with pytest.raises(FormatError, match="declares far more"):
        open_run(path)


def test_a_bomb_that_declares_little_yields_little(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"run.json": b"{}", "zeros": bytes(2**24)})
    patched(path, 24, struct.pack("<L", 1000))
    with open_run(path) as reader:
        with pytest.raises(FormatError):  # the CRC is that of the whole
            reader.read("zeros", 10**9)
        with pytest.raises(FormatError):
            reader.sha256("zeros")


def test_an_entry_that_declares_too_much_is_refused(tmp_path: Path) -> None:
    path = patched(zipped(tmp_path / "a.zip", {"run.json": b"{}"}), 24, struct.pack("<L", 10))
    with open_run(path) as reader, pytest.raises(FormatError):
        reader.read("run.json", 100)


@pytest.mark.parametrize(
    ("field", "value"),
    [(8, b"\x08\x00"), (10, b"\x00\x00"), (16, bytes(4)), (20, bytes(4)), (24, bytes(4)), (46, b"R")],
)
def test_a_directory_that_differs_from_an_entry_is_refused(tmp_path: Path, field: int, value: bytes) -> None:
    """Flags, method, checksum, sizes, name: else two programs unpack two different runs."""
    path = zipped(tmp_path / "a.zip", {"run.json": b"{}" * 99})
    with pytest.raises(FormatError):
        open_run(patched(path, field, value, own=False))


def test_something_behind_the_packed_data_of_an_entry_is_refused(tmp_path: Path) -> None:
    """Deflated data say where they end; what follows within the entry would be an entry for who reads a stream."""
    path = tmp_path / "a.zip"
    packed = zlib.compress(b"{}", 6, -15) + b"more"
    zipped(path, {"run.json": packed}, method=zipfile.ZIP_STORED)
    for field, value in ((10, b"\x08\x00"), (16, struct.pack("<L", zlib.crc32(b"{}"))), (24, struct.pack("<L", 2))):
        patched(path, field, value)
    with open_run(path) as reader, pytest.raises(FormatError, match="damaged"):
        reader.read("run.json", 100)


def test_a_descriptor_that_says_something_else_is_refused(tmp_path: Path) -> None:
    path = streamed(tmp_path / "a.zip")
    data = path.read_bytes()
    at = data.index(b"PK\7\x08")
    for offset in range(4, 16):
        path.write_bytes(data[: at + offset] + bytes([data[at + offset] ^ 1]) + data[at + offset + 1 :])
        with pytest.raises(FormatError):
            open_run(path)


def test_a_directory_without_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rundir, "MAX_DIRECTORY", 100)
    with pytest.raises(FormatError, match="too long a directory"):
        open_run(zipped(tmp_path / "a.zip", FILES))


def test_overlapping_entries_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", {"run.json": b"{}", "b.json": b"{}"})
    with pytest.raises(FormatError, match="overlap"):
        open_run(patched(path, 42, struct.pack("<L", 0), own=False))


def test_a_zip_behind_another_file_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", FILES)
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    with pytest.raises(FormatError, match="before the first"):
        open_run(path)


def test_a_flipped_byte_of_a_zip_never_escapes_as_another_error(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a.zip", {"run.json": b"{}" * 20, "s/x.py": b"print()\n" * 20}).read_bytes()
    path = tmp_path / "b.zip"
    for at in range(len(whole)):
        for flip in (1, 0x80, 0xFF):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
            try:
                with open_run(path) as reader:
                    for name in reader.names():
                        reader.sha256(name)
            except FormatError:
                pass


def test_a_cut_zip_is_refused(tmp_path: Path) -> None:
    whole = zipped(tmp_path / "a.zip", FILES).read_bytes()
    for length in range(0, len(whole), 7):
        (tmp_path / "b.zip").write_bytes(whole[:length])
        with pytest.raises(FormatError):
            open_run(tmp_path / "b.zip")


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    write_atomic(path, b"old")
    write_atomic(path, b"new", mode=0o600)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def no_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, b"newer")
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_member_is_a_stream(tmp_path: Path) -> None:
    with open_run(zipped(tmp_path / "a.zip", FILES)) as reader:
        with reader.open("steps.jsonl") as file:
            assert isinstance(file, io.BufferedReader)
            assert file.readline() == b"x\n"
            assert file.read(3) == b"x\nx"
        assert file.closed


def edited(path: Path, change: Callable[[bytearray], None]) -> Path:
    """Change the bytes of a zip of `FILES`."""
    data = bytearray(zipped(path, FILES).read_bytes())
    change(data)
    path.write_bytes(data)
    return path


def with_a_comment(data: bytearray) -> None:
    data[-2:] = b"\x02\x00hi"


def with_something_after_it(data: bytearray) -> None:
    data += b"more"


def with_a_gap(data: bytearray) -> None:
    """Put an entry that the directory does not list before the directory."""
    end = data.rindex(b"PK\5\6")
    start = int.from_bytes(data[end + 16 : end + 20], "little")
    hidden = b"PK\3\4" + bytes(22) + b"\4\0\0\0evil"
    data[end + 16 : end + 20] = (start + len(hidden)).to_bytes(4, "little")
    data[start:start] = hidden


def with_an_offset_of_64_bits(offset: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        end = data.rindex(b"PK\5\6")
        start = int.from_bytes(data[end + 16 : end + 20], "little")
        length = int.from_bytes(data[start + 28 : start + 30], "little")
        extra = struct.pack("<HHQ", 1, 8, offset)
        data[start + 42 : start + 46] = b"\xff" * 4
        data[start + 30 : start + 32] = struct.pack("<H", len(extra))
        data[end + 12 : end + 16] = (end - start + len(extra)).to_bytes(4, "little")
        data[start + 46 + length : start + 46 + length] = extra

    return change


@pytest.mark.parametrize(
    "change",
    [
        with_a_comment,
        with_something_after_it,
        with_a_gap,
        *map(with_an_offset_of_64_bits, (2**64 - 1, 2**63, 2**63 - 1, 2**40)),
    ],
)
def test_a_zip_holds_its_entries_and_nothing_else(tmp_path: Path, change: Callable[[bytearray], None]) -> None:
    with pytest.raises((FormatError, UsageError)):
        open_run(edited(tmp_path / "a.zip", change))


def test_a_zip_whose_entry_has_a_second_name_is_refused(tmp_path: Path) -> None:
    def rename(info: zipfile.ZipInfo) -> None:
        info.extra = struct.pack("<HHBI", 0x7075, 9, 1, zlib.crc32(b"odd")) + b"evil"

    with pytest.raises(FormatError):
        open_run(with_entry(tmp_path / "a.zip", rename))


@pytest.mark.parametrize("name", list(FILES))
def test_an_entry_whose_own_name_is_no_utf8_is_refused(tmp_path: Path, name: str) -> None:
    def change(data: bytearray) -> None:
        at = data.index(name.encode())
        data[at - 30 + 7] |= 8  # the flag that says UTF-8: APPNOTE § 4.4.4, bit 11
        data[at] = 0xFF

    with pytest.raises(FormatError, match="says something else than the directory"):
        open_run(edited(tmp_path / "a.zip", change))


def streamed(path: Path) -> Path:
    """Write a zip of `FILES` into a stream that cannot go back: what is known late stands in descriptors."""

    class Stream(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            with path.open("ab") as file:
                return file.write(data)

    with zipfile.ZipFile(io.BufferedWriter(Stream()), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
    return path


def test_a_zip_from_a_stream_has_descriptors_and_is_read(tmp_path: Path) -> None:
    with open_run(streamed(tmp_path / "a.zip")) as reader:
        assert {name: reader.read(name, 10_000) for name in reader.names()} == FILES


def test_a_name_that_is_no_unicode_is_shown_as_text_can(tmp_path: Path) -> None:
    lay(tmp_path / "caf\udce9")
    with open_run(tmp_path / "caf\udce9") as reader:
        assert reader.label == r"caf\udce9"


def test_a_write_that_fails_names_the_path_that_was_asked_for(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        write_atomic(tmp_path, b"x")
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(FileNotFoundError) as missing:
        write_atomic(tmp_path / "none" / "x", b"x")
    assert missing.value.filename == str(tmp_path / "none" / "x")
