"""Reads a run from a directory or a zip that may be hostile, cuts torn files, and writes single files atomically.

A name is checked before it is used; no link is followed, nothing but a regular file is opened, and no zip
yields more than it declares. Not here: what any file means, which files belong to a run
(`documents.manifest`), and packing.
"""

from __future__ import annotations

import abc
import hashlib
import io
import itertools
import os
import secrets
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Final, Self, TypeVar, cast

from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.text import safe_text

__all__ = [
    "DirectoryReader",
    "RunReader",
    "ZipReader",
    "check_name",
    "check_names",
    "open_run",
    "write_atomic",
]

MAX_NAME: Final = 1024
MAX_PART: Final = 240
MAX_DEPTH: Final = 32
MAX_FILES: Final = 100_000
MAX_TOTAL: Final = 2**40
FREE_TOTAL: Final = 256 * 2**20
MAX_RATIO: Final = 100
"""A zip may declare 256 MiB, or a hundred times its size: text and indices stay far below that."""
MAX_DIRECTORY: Final = 32 * 2**20
"""The longest table of contents of a zip: `zipfile` takes a dozen times its length in memory."""

_T = TypeVar("_T")
_CHUNK: Final = 2**20
_PACKED_CHUNK: Final = 2**16
_LOCAL_HEADER: Final = struct.Struct("<4s2xHH4x3LHH")  # what stands before an entry's name: APPNOTE § 4.3.7
_DESCRIPTORS: Final = (struct.Struct("<3L"), struct.Struct("<LQQ"))  # what may follow an entry's data: APPNOTE § 4.3.9
_END_RECORD: Final = struct.Struct("<4s8xLLH")
_END_RECORD_64: Final = struct.Struct("<4s36xQ8x")
_END_LOCATOR: Final = 20
_IN_64_BITS: Final = 2**32 - 1
_SIZES_64: Final = 1
_UNICODE_PATH: Final = 0x7075
_HAS_DESCRIPTOR: Final = 8
_UTF_8: Final = 0x800
_MEANT_ALIKE: Final = 0x61 | _HAS_DESCRIPTOR | _UTF_8  # the flags that change how an entry is read: APPNOTE § 4.4.4
_DAMAGED: Final = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, OverflowError, RuntimeError, ValueError,
)  # fmt: skip
"""Every way in which `zipfile` fails over a damaged zip (NotImplementedError and UnicodeError among them)."""
_BAD_CATEGORIES: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
_WAYS: Final = (
    getattr(os, "O_NOFOLLOW", 0)
    | getattr(os, "O_NONBLOCK", 0)  # opening a FIFO must not wait for its writer
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
_READ_FLAGS: Final = os.O_RDONLY | _WAYS
_WRITE_FLAGS: Final = os.O_RDWR | _WAYS
_HAS_DIR_FD: Final = os.open in os.supports_dir_fd and os.scandir in os.supports_fd


def check_name(name: str, where: str) -> str:
    """Return `name` if it is safe and spelt the same everywhere: relative, forward slashes, NFC, printable.

    Raises
    ------
    FormatError
        Naming `where` and what is wrong with the name.
    """
    problem = _name_problem(name)
    if problem:
        raise FormatError(
            "an unsafe file name",
            where=where,
            got=f"{name[:200]!a}: {problem}",
            expected="a plain relative path",
        )
    return name


def _name_problem(name: str) -> str:
    parts = name.split("/")
    if any(unicodedata.category(char) in _BAD_CATEGORIES for char in name):
        return "a control or invisible character"
    if len(name.encode()) > MAX_NAME or len(parts) > MAX_DEPTH:
        return "too long or too deep"
    if "\\" in name or ":" in name:
        return "a backslash or colon"
    if not unicodedata.is_normalized("NFC", name):
        return "not in Unicode normal form C"
    return next((problem for part in parts if (problem := _part_problem(part))), "")


def _part_problem(part: str) -> str:
    if part in ("", ".", ".."):
        return "an empty part, `.` or `..`"
    if part[-1] in ". ":
        return "a part that ends in a dot or a space"
    return "a part that is too long" if len(part.encode()) > MAX_PART else ""


def check_names(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Return the names sorted, if each is safe and no two would meet on a file system that ignores case.

    Raises
    ------
    FormatError
        For an unsafe name, a duplicate, two spellings of one name (`a/X`, `A/x`), or a file used as a folder.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    ordered = sorted(names)
    for name in ordered:
        parts = check_name(name, where).split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            _same(folders.setdefault(_folded(folder), folder), folder, where)
        if _folded(name) in files:
            raise _twins(files[_folded(name)], name, where)
        files[_folded(name)] = name
    for key in sorted(files.keys() & folders.keys()):
        raise _twins(files[key], f"{folders[key]}/", where)
    return tuple(ordered)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def _same(known: str, name: str, where: str) -> None:
    if known != name:
        raise _twins(f"{known}/", f"{name}/", where)


def _twins(first: str, second: str, where: str) -> FormatError:
    return FormatError(
        "two names that cannot lie side by side everywhere",
        where=where,
        got=f"{first!a} and {second!a}",
        expected="names that differ in more than case",
    )


class RunReader(abc.ABC):
    """The files of one run, read only; a context manager. Hostile input raises FormatError everywhere."""

    label: str
    """What to call the run in messages."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """Return the names of all files, sorted by code point; folders are no files."""

    @abc.abstractmethod
    def size(self, name: str) -> int:
        """Return a file's size in bytes."""

    @abc.abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; the caller closes it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of what the reader holds."""

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def read(self, name: str, limit: int) -> bytes:
        """Return a whole file of at most `limit` bytes."""
        with self.open(name) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise FormatError("the file is too long", where=f"{self.label}: {name}", expected=f"at most {limit} bytes")
        return data

    def sha256(self, name: str) -> str:
        """Return a file's SHA-256 as lower-case hex, read in pieces."""
        hasher = hashlib.sha256()
        with self.open(name) as file:
            while piece := file.read(_CHUNK):
                hasher.update(piece)
        return hasher.hexdigest()

    def _missing(self, name: str) -> FormatError:
        return FormatError("the file is missing", where=f"{self.label}: {name}")


class DirectoryReader(RunReader):
    """A run directory. It is listed once; a file is opened part by part below the directory's descriptor."""

    def __init__(self, path: Path) -> None:
        self.label = safe_text(path.name or str(path))
        self._path = path
        self._sizes: dict[str, int] = {}
        self._seen = 0
        found: list[tuple[str, int]] = []
        self._scan(path, "", found)
        self._names = check_names((name for name, _ in found), self.label)
        self._sizes = dict(found)

    def _scan(self, folder: Path, prefix: str, found: list[tuple[str, int]]) -> None:
        try:
            with os.scandir(folder) as entries:
                few = itertools.islice(entries, MAX_FILES + 1 - self._seen)
                listed = [(entry.name, entry.stat(follow_symlinks=False)) for entry in few]
        except OSError as error:
            raise self._unreadable(prefix.rstrip("/"), error) from None
        self._seen += len(listed)
        if self._seen > MAX_FILES:
            raise FormatError("too many files and folders", where=self.label, expected=f"at most {MAX_FILES}")
        for base, status in listed:
            name = check_name(prefix + base, self.label)
            if stat.S_ISDIR(status.st_mode):
                self._scan(folder / base, f"{name}/", found)
            else:
                self._require_regular(status, name)
                found.append((name, status.st_size))

    def _require_regular(self, status: os.stat_result, name: str) -> None:
        if not stat.S_ISREG(status.st_mode):
            kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "a special file"
            raise FormatError(
                "not a plain file",
                where=f"{self.label}: {name}",
                got=kind,
                remedy="a run holds plain files only; links are not followed",
            )

    def _unreadable(self, name: str, error: OSError) -> FormatError:
        return FormatError(
            "cannot be read",
            where=f"{self.label}: {name}" if name else self.label,
            got=error.strerror or type(error).__name__,
        )

    def names(self) -> tuple[str, ...]:
        """Return the names as they were when the reader was made."""
        return self._names

    def size(self, name: str) -> int:
        """Return a file's size as it was when the reader was made."""
        if name not in self._sizes:
            raise self._missing(name)
        return self._sizes[name]

    def open(self, name: str) -> BinaryIO:
        """Open a file without following any link, and only if what was opened is a regular file."""
        return os.fdopen(self._checked(name, _READ_FLAGS), "rb")

    def truncate(self, name: str, size: int) -> None:
        """Cut a file, and no other that a link leads to or that has a second name elsewhere.

        For `recover`, which mends the record of a run that was killed; nothing else of a run is ever changed.
        """
        descriptor = self._checked(name, _WRITE_FLAGS)
        with os.fdopen(descriptor, "r+b") as file:
            if os.fstat(descriptor).st_nlink > 1:
                raise FormatError(
                    "not cut, since the file has another name elsewhere (a hard link)", where=f"{self.label}: {name}"
                )
            file.truncate(size)

    def remove(self, name: str) -> None:
        """Remove a file; folders on the way to it are no links."""
        self.size(name)
        folder, base = self._folder_below(name.split("/"))
        try:
            os.unlink(base, dir_fd=folder)
        finally:
            if folder is not None:
                os.close(folder)

    def _checked(self, name: str, flags: int) -> int:
        """Open a regular file and return its descriptor."""
        self.size(name)
        try:
            descriptor = self._open_below(name.split("/"), flags)
        except OSError as error:
            raise self._unreadable(name, error) from None
        try:
            self._require_regular(os.fstat(descriptor), name)
        except FormatError:
            os.close(descriptor)
            raise
        return descriptor

    def _open_below(self, parts: list[str], flags: int) -> int:
        folder, base = self._folder_below(parts)
        try:
            return os.open(base, flags, dir_fd=folder)
        finally:
            if folder is not None:
                os.close(folder)

    def _folder_below(self, parts: list[str]) -> tuple[int | None, str]:
        """Open the folder of a file part by part, following no link; return it and the file's name in it."""
        if not _HAS_DIR_FD:
            return None, str(self._path.joinpath(*parts))
        folder = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts[:-1]:
                inner = os.open(part, _READ_FLAGS | os.O_DIRECTORY, dir_fd=folder)
                os.close(folder)
                folder = inner
        except OSError:
            os.close(folder)
            raise
        return folder, parts[-1]

    def close(self) -> None:
        """Nothing is held open."""


class ZipReader(RunReader):
    """A run in a zip, at its top or in one top-level folder. The whole table of contents is judged first.

    `zipfile` reads the table of contents and nothing else. The entries are read here, so that all that a zip says in
    two places (directory, entry, descriptor, the end of the packed data) is one and the same: whoever unpacks it with
    another program gets the files that were checked.
    """

    def __init__(self, path: Path) -> None:
        self.label = safe_text(path.name)
        self._file = path.open("rb")
        self._starts: dict[int, int] = {}
        try:
            self._members = _guarded(self.label, self._judge, "not a readable zip")
            self._names = check_names(self._members, self.label)
        except FormatError:
            self._file.close()
            raise

    def _judge(self) -> dict[str, zipfile.ZipInfo]:
        archive_size = self._file.seek(0, os.SEEK_END)
        self._judge_end(archive_size)
        with zipfile.ZipFile(self._file) as archive:
            infos, start_dir = archive.infolist(), archive.start_dir
        if len(infos) > MAX_FILES:
            raise self._refused("too many entries", f"at most {MAX_FILES}", str(len(infos)))
        for info in infos:
            self._judge_entry(info)
        self._judge_layout(infos, start_dir)
        total = sum(info.file_size for info in infos)
        bound = min(MAX_TOTAL, max(FREE_TOTAL, MAX_RATIO * archive_size))
        if total > bound:
            raise self._refused("declares far more than it holds", f"at most {bound} bytes", f"{total} bytes")
        files = [info for info in infos if not info.is_dir()]
        twice = [name for name, count in Counter(info.filename for info in files).items() if count > 1]
        if twice:
            raise self._refused("an entry occurs twice", "unique names", ascii(twice[0][:200]))
        return self._without_top(files)

    def _judge_end(self, archive_size: int) -> None:
        """Look at the end of the zip before anybody believes it: nothing after it, and a directory of bounded length.

        APPNOTE § 4.3.14 to § 4.3.16.
        """
        at = archive_size - _END_RECORD.size
        magic, length, start, comment = self._at(at, _END_RECORD)
        if magic != b"PK\5\6" or comment:
            raise self._refused("something after the end of the zip", "a zip without comment", "a comment or more")
        if _IN_64_BITS in (length, start) and self._bytes(at - _END_LOCATOR, 4) == b"PK\6\7":
            _, length = self._at(at - _END_LOCATOR - _END_RECORD_64.size, _END_RECORD_64)
        if length > MAX_DIRECTORY:
            raise self._refused("too long a directory", f"at most {MAX_DIRECTORY} bytes", str(length))

    def _judge_entry(self, info: zipfile.ZipInfo) -> None:
        name = info.orig_filename
        check_name(name.removesuffix("/"), self.label)
        kind = stat.S_IFMT(info.external_attr >> 16)
        expected = stat.S_IFDIR if info.is_dir() else stat.S_IFREG
        if kind not in (0, expected):
            raise self._refused("an entry is no plain file", "files and folders", ascii(name[:200]))
        if info.flag_bits & 0x61:  # encrypted, patched, strongly encrypted: APPNOTE § 4.4.4
            raise self._refused("an entry is encrypted", "plain entries", ascii(name[:200]))
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise self._refused("a compression method not in use here", "stored or deflated", ascii(name[:200]))
        if _UNICODE_PATH in _extra_fields(info.extra):
            raise self._refused("an entry with a second name", "one name", ascii(name[:200]))
        if info.is_dir() and info.file_size:
            raise self._refused("a folder with content", "no bytes", ascii(name[:200]))

    def _judge_layout(self, infos: list[zipfile.ZipInfo], start_dir: int) -> None:
        """Demand the entries one after another, then the directory, then the end, and nothing between or beside them.

        So no entry shares bytes with another (the trick of the densest bombs), nothing lies hidden in the file, and
        whoever reads it from its beginning, without the directory, finds the same entries.
        """
        end = 0
        for info in sorted(infos, key=lambda info: info.header_offset):
            name = ascii(info.orig_filename[:200])
            if info.header_offset < end:
                raise self._refused("entries overlap", "one after another", name)
            if info.header_offset != end:
                what = "bytes that belong to no entry" if end else "bytes before the first entry"
                raise self._refused(what, "a zip and nothing else", f"something before {name}")
            start = self._starts[info.header_offset] = end + self._local_header(info, start_dir)
            end = start + info.compress_size
            if info.flag_bits & _HAS_DESCRIPTOR:
                end += self._descriptor(info, end)
        if start_dir != end:
            raise self._refused("bytes that belong to no entry", "the directory after the last entry", "before it")

    def _local_header(self, info: zipfile.ZipInfo, limit: int) -> int:
        """Return the length of an entry's own header, which must say what the directory says of the entry."""
        where = info.header_offset
        if not 0 <= where <= limit - _LOCAL_HEADER.size:
            raise self._refused("an entry lies outside of the zip", "entries before the directory", str(where))
        magic, flags, method, crc, packed, size, name_size, extra_size = self._at(where, _LOCAL_HEADER)
        if magic != b"PK\3\4":
            raise self._refused("an entry without its header", "PK 3 4", ascii(info.orig_filename[:200]))
        name = self._bytes(where + _LOCAL_HEADER.size, name_size)
        extra = _extra_fields(self._bytes(where + _LOCAL_HEADER.size + name_size, extra_size))
        if _IN_64_BITS in (packed, size):
            size, packed = struct.unpack_from("<QQ", extra.get(_SIZES_64, b"").ljust(16, b"\0"))
        alike = name == info.orig_filename.encode("utf-8" if flags & _UTF_8 else "cp437", "replace")
        alike = alike and not (flags ^ info.flag_bits) & _MEANT_ALIKE and method == info.compress_type
        if not info.flag_bits & _HAS_DESCRIPTOR:
            alike = alike and (crc, packed, size) == (info.CRC, info.compress_size, info.file_size)
        if not alike or _UNICODE_PATH in extra:
            got = ascii(info.orig_filename[:200])
            raise self._refused("the header of an entry says something else than the directory", "the same", got)
        return int(_LOCAL_HEADER.size + name_size + extra_size)

    def _descriptor(self, info: zipfile.ZipInfo, where: int) -> int:
        """Return the length of what follows the data of an entry that was written as a stream: checksum and sizes."""
        signed = 4 * (self._bytes(where, 4) == b"PK\7\x08")
        meant = (info.CRC, info.compress_size, info.file_size)
        for form in _DESCRIPTORS:
            said = self._bytes(where + signed, form.size)
            if len(said) == form.size and form.unpack(said) == meant:
                return signed + form.size
        got = ascii(info.orig_filename[:200])
        raise self._refused("what follows an entry says something else than the directory", "its sizes", got)

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset < 0:
            raise self._refused("too short", "a zip", f"{offset} bytes")
        self._file.seek(offset)
        return self._file.read(count)

    def _at(self, offset: int, form: struct.Struct) -> tuple[Any, ...]:
        return form.unpack(self._bytes(offset, form.size))

    def _without_top(self, files: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
        members = {info.filename: info for info in files}
        tops = {name.split("/", 1)[0] for name in members}
        top = f"{next(iter(tops))}/" if len(tops) == 1 else ""
        if "run.json" not in members and top and f"{top}run.json" in members:
            return {name.removeprefix(top): info for name, info in members.items()}
        return members

    def _refused(self, message: str, expected: str, got: str) -> FormatError:
        return FormatError(
            message,
            where=self.label,
            expected=expected,
            got=got,
            remedy="ask the author for a zip made by: trainmem-audit pack",
        )

    def names(self) -> tuple[str, ...]:
        """Return the names of the entries that are files."""
        return self._names

    def size(self, name: str) -> int:
        """Return the size that the entry declares; reading ends there."""
        return self._info(name).file_size

    def open(self, name: str) -> BinaryIO:
        """Open an entry; reading it to the end checks its length, its CRC, and that its packed data end with it."""
        info = self._info(name)
        member = _Member(self._bytes, self._starts[info.header_offset], info, f"{self.label}: {name}")
        return cast(BinaryIO, io.BufferedReader(member, _CHUNK))

    def _info(self, name: str) -> zipfile.ZipInfo:
        if name not in self._members:
            raise self._missing(name)
        return self._members[name]

    def close(self) -> None:
        """Close the zip."""
        self._file.close()


def _extra_fields(extra: bytes) -> dict[int, bytes]:
    """Return the extra fields of an entry by their kinds."""
    found: dict[int, bytes] = {}
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        found[kind] = extra[4 : 4 + length]
        extra = extra[4 + length :]
    return found


class _Member(io.RawIOBase):
    """One zip entry: yields exactly the declared bytes out of exactly the packed ones, or raises FormatError."""

    def __init__(self, read: Callable[[int, int], bytes], start: int, info: zipfile.ZipInfo, where: str) -> None:
        self._read = read
        self._at = start
        self._packed = info.compress_size
        self._left = info.file_size
        self._crc = 0
        self._declared_crc = info.CRC
        self._inflate = zlib.decompressobj(-15) if info.compress_type == zipfile.ZIP_DEFLATED else None
        self._where = where

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Read once; at the end length and checksum must be the declared ones."""
        data = _guarded(self._where, lambda: self._next(len(buffer))) if len(buffer) else b""
        self._left -= len(data)
        self._crc = zlib.crc32(data, self._crc)
        ended = not data and len(buffer) > 0
        if self._left < 0 or (ended and (self._left or self._packed or self._crc != self._declared_crc)):
            raise FormatError("the entry has another length or content than it declares", where=self._where)
        buffer[: len(data)] = data
        return len(data)

    def _next(self, most: int) -> bytes:
        if self._inflate is None:
            return self._take(most)
        while not self._inflate.eof:
            packed = self._inflate.unconsumed_tail or self._take(_PACKED_CHUNK)
            data = self._inflate.decompress(packed, most)
            if data:
                return data
            if not packed:
                raise EOFError("the packed data end too early")
        if self._inflate.unused_data:
            raise ValueError("something follows the packed data")
        return b""

    def _take(self, most: int) -> bytes:
        data = self._read(self._at, min(most, self._packed))
        if self._packed and not data:
            raise EOFError("the zip ends within the entry")
        self._at += len(data)
        self._packed -= len(data)
        return data


def _guarded(where: str, action: Callable[[], _T], message: str = "the zip entry is damaged") -> _T:
    """Run `action` with every way in which a damaged zip fails turned into FormatError."""
    try:
        return action()
    except _DAMAGED as error:
        raise FormatError(message, where=where, got=str(error)[:200]) from None


def open_run(path: Path) -> RunReader:
    """Return a reader of the run at `path`: a run directory, a `run.json` in one, or a zip.

    Raises
    ------
    UsageError
        If nothing is there.
    FormatError
        If what is there is none of the three, or unsafe to read.
    """
    if path.is_dir():
        return DirectoryReader(path)
    if not path.exists():
        raise UsageError("no such file or directory", where=str(path), expected="a run directory, a run.json or a zip")
    if path.name == "run.json" and path.is_file():
        return DirectoryReader(path.absolute().parent)
    if path.is_file() and zipfile.is_zipfile(path):
        return ZipReader(path)
    raise FormatError("not a run", where=str(path), expected="a run directory, a run.json or a zip")


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write `data` to `path` whole or not at all: aside in the same folder, to the disk, then renamed.

    `mode` is narrowed by the umask. An existing file is replaced.
    """
    aside = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(aside, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:  # named after what the caller knows
        raise type(error)(error.errno, error.strerror, str(path)) from None
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
