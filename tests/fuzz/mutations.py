"""Bytes as a program of changes to the files of a run, so that a fuzzer of bytes can look for the one that goes unseen.

Every input is a program, and a longer one does what its beginning does first: small changes of the input are small
changes of the run.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz.material import Files

__all__ = ["OPERATIONS", "Choices", "mutated"]

NAMES = ("extra", "source/extra.py", "order/rank-1.i64", "RUN.json", "steps.jsonl ", "report.html", "disclosures.json")
LONGEST = 2**18
TOKENS = (
    b" ", b"\n", b"\r\n", b"\0", b"\xef\xbb\xbf", b"{}", b"[]", b"null", b'"', b",", b"0", b"-0", b"1.0", b"1e9",
    b"NaN", b'"a":1,', b"\\u0061", b"=", b"==", b"\xed\xa0\x80",
)  # fmt: skip


class Choices:
    """Bytes as a source of choices; when they are used up, every choice is the first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, count: int) -> bytes:
        """Return the next bytes, fewer at the end."""
        taken = self._data[self._at : self._at + count]
        self._at += count
        return taken

    def number(self, below: int) -> int:
        """Return a number in range(below), 0 for an empty range."""
        if below <= 1:
            return 0
        width = 1 if below <= 2**8 else 2 if below <= 2**16 else 4
        return int.from_bytes(self.take(width), "little") % below

    def span(self, length: int) -> tuple[int, int]:
        """Return the ends of a part of something, mostly a short one."""
        start = self.number(length + 1)
        return start, min(length, start + 1 + self.number(64))

    def rest(self) -> bytes:
        """Return all that is left."""
        return self.take(len(self._data))


def _flip(data: bytes, _: bytes, choices: Choices) -> bytes:
    at = choices.number(len(data))
    return data[:at] + bytes([data[at] ^ (1 << choices.number(8))]) + data[at + 1 :] if data else b"\0"


def _set(data: bytes, _: bytes, choices: Choices) -> bytes:
    at = choices.number(len(data))
    return data[:at] + choices.take(1) + data[at + 1 :]


def _insert(data: bytes, _: bytes, choices: Choices) -> bytes:
    at = choices.number(len(data) + 1)
    return data[:at] + choices.take(1 + choices.number(16)) + data[at:]


def _insert_token(data: bytes, _: bytes, choices: Choices) -> bytes:
    at = choices.number(len(data) + 1)
    return data[:at] + TOKENS[choices.number(len(TOKENS))] + data[at:]


def _delete(data: bytes, _: bytes, choices: Choices) -> bytes:
    start, end = choices.span(len(data))
    return data[:start] + data[end:]


def _repeat(data: bytes, _: bytes, choices: Choices) -> bytes:
    start, end = choices.span(len(data))
    return data[:end] + data[start:]


def _truncate(data: bytes, _: bytes, choices: Choices) -> bytes:
    return data[: choices.number(len(data) + 1)]


def _splice(data: bytes, other: bytes, choices: Choices) -> bytes:
    start, end = choices.span(len(other))
    at = choices.number(len(data) + 1)
    return data[:at] + other[start:end] + data[at + (end - start) * choices.number(2) :]


def _whole(data: bytes, other: bytes, choices: Choices) -> bytes:
    return (other, b"", data + other, data + data)[choices.number(4)]


def _lines(data: bytes, other: bytes, choices: Choices) -> bytes:
    lines, others = data.splitlines(keepends=True), other.splitlines(keepends=True)
    at, to = choices.number(len(lines)), choices.number(len(lines))
    match choices.number(6):
        case 0:
            lines = lines[:at] + lines[at + 1 :]
        case 1:
            lines = lines[:at]
        case 2:
            lines[at:at] = lines[to : to + 1]
        case 3 if lines:
            lines[at], lines[to] = lines[to], lines[at]
        case 4:
            lines[at:at] = others[to : to + 1]
        case _:
            lines = lines[:at] + others[to:]
    return b"".join(lines)


def _other_case(data: bytes, _: bytes, choices: Choices) -> bytes:
    start, end = choices.span(len(data))
    return data[:start] + data[start:end].swapcase() + data[end:]


OPERATIONS: tuple[Callable[[bytes, bytes, Choices], bytes], ...] = (
    _flip, _set, _insert, _insert_token, _delete, _repeat, _truncate, _splice, _whole, _lines, _other_case,
)  # fmt: skip
"""What can be done to the bytes of one file, given those of the same file of another run."""


def mutated(files: Files, other: Files, program: bytes) -> Files:
    """Return the files as the program leaves them."""
    found = dict(files)
    choices = Choices(program)
    while choices:
        names = sorted(found)
        if not names:
            break
        name = names[choices.number(len(names))]
        operation = choices.number(len(OPERATIONS) + 4)
        if operation < len(OPERATIONS):
            changed = OPERATIONS[operation](found[name], other.get(name, b""), choices)
            found[name] = changed[:LONGEST]  # else a program that doubles a file finds that memory is finite
        elif operation == len(OPERATIONS):
            del found[name]
        elif operation == len(OPERATIONS) + 1:
            found[NAMES[choices.number(len(NAMES))]] = choices.take(4)
        elif operation == len(OPERATIONS) + 2:
            to = names[choices.number(len(names))]
            found[name], found[to] = found[to], found[name]
        else:
            found.update({key: other[key] for key in ("run.json", "signer.pub") if key in other})
    return found
