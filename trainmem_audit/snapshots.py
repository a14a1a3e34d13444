"""Snapshots: the state after one step: its tensors in a file of the safetensors layout, the rest as JSON beside it.

Safetensors: eight bytes with the length of a header, the header (JSON: name → dtype, shape, offsets), the bytes of the
tensors one after another. A tensor is called `COMPONENT/NAME`. Pure over binary streams that may be hostile: nothing is
read that the length of the file does not bear out. The layout is made and read here, and not by the library, because
the recorder writes one tensor after another, of every dtype that torch has, and a verifier has no torch and reads a
snapshot in pieces. The JSON is one canonical line: `format`, `step`, `values` (of the components that have no tensors)
and `streams` (full states of the random streams). Not here: copying tensors (`recording.snapshots`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

from blake3 import blake3

from trainmem_audit.canonical import canonical_bytes, component_digest, line_bytes, loads_strict, value_digest
from trainmem_audit.contract import stream_digest
from trainmem_audit.documents.steplog import Component, Step, Stream
from trainmem_audit.errors import FormatError
from trainmem_audit.lineforms import FittingStep

__all__ = [
    "DEFAULT_SNAPSHOT_BUDGET",
    "Entry",
    "SnapshotFile",
    "SnapshotValues",
    "header_bytes",
    "snapshot_name",
    "values_bytes",
    "values_name",
]

_DTYPES = {
    "float64": ("F64", 8), "float32": ("F32", 4), "float16": ("F16", 2), "bfloat16": ("BF16", 2),
    "int64": ("I64", 8), "int32": ("I32", 4), "int16": ("I16", 2), "int8": ("I8", 1),
    "uint64": ("U64", 8), "uint32": ("U32", 4), "uint16": ("U16", 2), "uint8": ("U8", 1), "bool": ("BOOL", 1),
    "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1), "complex64": ("C64", 8),
}  # fmt: skip
_SIZES = dict(_DTYPES.values())
DEFAULT_SNAPSHOT_BUDGET = 4 * 2**30
"""How many bytes the snapshots of a record may take, unless its author says otherwise."""
_LENGTH = 8
_MOST_HEADER = 16 * 2**20
_MOST_TENSORS = 2**18
_CHUNK = 2**20
_METADATA = "__metadata__"
_VALUES_FORMAT = "trainmem-audit/snapshot-values/v1"


def snapshot_name(step: int) -> str:
    """Return where in a run directory the snapshot of the state after `step` lies."""
    return f"snapshots/step-{step}.safetensors"


def values_name(step: int) -> str:
    """Return where in a run directory the rest of that snapshot lies: what is no tensor."""
    return f"snapshots/step-{step}.json"


def values_bytes(step: int, values: Mapping[str, Any], streams: Mapping[str, Stream]) -> bytes:
    """Return the file of what is no tensor."""
    states = {name: stream.to_json() for name, stream in streams.items()}
    return line_bytes({"format": _VALUES_FORMAT, "step": step, "values": dict(values), "streams": states}) + b"\n"


class SnapshotValues:
    """What is no tensor in a snapshot that may be hostile.

    Raises
    ------
    FormatError
        If it is not the canonical form of such a file.
    """

    def __init__(self, data: bytes, where: str) -> None:
        members = loads_strict(data, where)
        expected = {"format", "step", "values", "streams"}
        if not isinstance(members, dict) or members.keys() != expected or members["format"] != _VALUES_FORMAT:
            raise FormatError("not the values of a snapshot", where=where, expected=" ".join(sorted(expected)))
        if not isinstance(members["values"], dict) or not isinstance(members["streams"], dict):
            raise FormatError("not the values of a snapshot", where=where, expected="objects")
        if canonical_bytes(members) + b"\n" != data:
            raise FormatError("a file that is not in its canonical form", where=where)
        self.step: Any = members["step"]
        self.values: dict[str, Any] = members["values"]
        self.streams = {
            name: Stream.parse(canonical_bytes(stream), f"{where}: {name[:80]}")
            for name, stream in members["streams"].items()
        }
        self._where = where

    def check(self, line: Step | FittingStep, components: dict[str, Component]) -> None:
        """Demand the state of a step: the values of every component without tensors, the states of all streams.

        Raises
        ------
        FormatError
            Naming what differs.
        """
        held = {name for name in line.state if components[name].tensors is None}
        same_step = type(self.step) is int and self.step == line.i
        if not same_step or held != self.values.keys() or self.streams.keys() - line.rng.keys():
            message = "not the values of the step"
            raise FormatError(message, where=self._where, expected=f"step {line.i}: {sorted(held)}"[:200])
        for name, values in self.values.items():
            if value_digest(values).hex() != line.state[name]:
                raise FormatError("values that have not the digest of the step log", where=self._where, got=name[:80])
        for name, stream in self.streams.items():
            if stream_digest(stream) != line.rng[name]:
                raise FormatError("a state that has not the digest of the step log", where=self._where, got=name[:80])


@dataclass(frozen=True)
class Entry:
    """A tensor of a snapshot: its dtype as torch names it, its shape, and its size in bytes."""

    component: str
    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def key(self) -> str:
        """What the file calls the tensor."""
        return f"{self.component}/{self.name}"

    def form(self) -> tuple[str, tuple[int, ...]]:
        """Return dtype and shape as the file states them: plain bytes for a dtype that safetensors has not."""
        known = _DTYPES.get(self.dtype)
        return ("U8", (self.bytes,)) if known is None else (known[0], self.shape)


def header_bytes(entries: Iterable[Entry], step: int) -> bytes:
    """Return what stands before the tensors, which follow in the order of `entries`, without gaps."""
    members: dict[str, Any] = {_METADATA: {"format": "trainmem-audit/snapshot/v1", "step": str(step)}}
    offset = 0
    for entry in entries:
        dtype, shape = entry.form()
        members[entry.key] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + entry.bytes]}
        offset += entry.bytes
    header = json.dumps(members, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(_LENGTH, "little") + header


_NO_OTHERS: Mapping[str, Any] = MappingProxyType({})


class SnapshotFile:
    """A snapshot that may be hostile.

    Parameters
    ----------
    open_file:
        Opens it, anew each time.
    size:
        Its length in bytes.
    others:
        The snapshots that hold the components that this one leaves out, because they are unchanged.

    Raises
    ------
    FormatError
        If the header is no header of safetensors, or does not cover the file without gaps.
    """

    def __init__(
        self,
        open_file: Callable[[], BinaryIO],
        size: int,
        where: str,
        others: Mapping[str, SnapshotFile] = _NO_OTHERS,
    ) -> None:
        self._open = open_file
        self._others = others
        self._where = where
        with open_file() as file:
            length = int.from_bytes(file.read(_LENGTH), "little")
            if not 0 < length <= min(_MOST_HEADER, size - _LENGTH):
                raise self._bad("the header has an impossible length", f"at most {_MOST_HEADER} bytes", f"{length}")
            members = loads_strict(file.read(length), where)
        self._start = _LENGTH + length
        self._places = self._judged(members, size - self._start)

    def _judged(self, members: Any, size: int) -> dict[str, tuple[str, tuple[int, ...], int, int]]:
        """Return dtype, shape, first and last offset of each tensor, in the order of the file."""
        if not isinstance(members, dict) or len(members) > _MOST_TENSORS:
            raise self._bad("the header is no object, or a huge one", "name → tensor", type(members).__name__)
        words = members.get(_METADATA, {})
        if not isinstance(words, dict) or not all(isinstance(text, str) for text in words.values()):
            raise self._bad("metadata that are no texts", "names and texts", ascii(words)[:80])
        places = {name: self._place(name, value) for name, value in members.items() if name != _METADATA}
        ordered = dict(sorted(places.items(), key=lambda item: item[1][2:]))
        end = 0
        for name, (_, _, first, last) in ordered.items():
            if first != end:
                raise self._bad("the tensors do not follow one another", f"{name[:80]} at {end}", f"at {first}")
            end = last
        if end != size:
            raise self._bad("the tensors do not fill the file", f"{size} bytes", f"{end} bytes")
        return ordered

    def _place(self, name: str, value: Any) -> tuple[str, tuple[int, ...], int, int]:
        match value:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(first), int(last)]} if len(value) == 3:
                counts = all(type(extent) is int and extent >= 0 for extent in (*shape, first, last))
                if counts and len(shape) <= 64 and dtype in _SIZES and last - first == math.prod(shape) * _SIZES[dtype]:
                    return dtype, tuple(shape), first, last
        raise self._bad("not a tensor", "dtype, shape and data_offsets that fit one another", ascii(name[:80]))

    def _bad(self, message: str, expected: str, got: str) -> FormatError:
        return FormatError(message, where=self._where, expected=expected, got=got)

    def size(self, component: str, name: str) -> int:
        """Return the bytes of one tensor, 0 if it is not there."""
        if component in self._others:
            return self._others[component].size(component, name)
        place = self._places.get(f"{component}/{name}")
        return 0 if place is None else place[3] - place[2]

    def tensor(self, component: str, name: str) -> bytes | None:
        """Return the bytes of one tensor, or `None` if it is not there."""
        if component in self._others:
            return self._others[component].tensor(component, name)
        key = f"{component}/{name}"
        return self.raw(key) if key in self._places else None

    def forms(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the dtype (as the file spells it) and the shape of every tensor by its full name, in file order."""
        return {key: place[:2] for key, place in self._places.items()}

    def raw(self, key: str) -> bytes:
        """Return the bytes of one tensor of `forms()`."""
        place = self._places[key]
        with self._open() as file:
            self._skip(file, self._start + place[2])
            data = file.read(place[3] - place[2])
        if len(data) != place[3] - place[2]:
            raise self._bad("the file is too short", f"{place[3]} bytes of tensors", "its end")
        return data

    def pieces(self, component: str, names: Iterable[str]) -> Iterator[bytes]:
        """Yield tensors of one component in pieces, in one reading of the file; an empty piece ends each tensor.

        The components that this snapshot leaves out are not looked for elsewhere.

        Raises
        ------
        FormatError
            If one is missing, or they do not lie in the order of `names`.
        """
        with self._open() as file:
            at = 0
            for name in names:
                place = self._places.get(f"{component}/{name}")
                if place is None:
                    raise self._bad("a tensor is missing", f"{component}/{name}"[:200], "none")
                _, _, first, last = place
                if self._start + first < at:
                    raise self._bad("the tensors do not lie in the order of the step log", f"{name[:80]!a} later", "")
                self._skip(file, self._start + first, at)
                at = self._start + last
                while first < last:
                    piece = file.read(min(last - first, _CHUNK))
                    if not piece:
                        raise self._bad("the file is too short", f"{last} bytes of tensors", "its end")
                    first += len(piece)
                    yield piece
                yield b""

    @staticmethod
    def _skip(file: BinaryIO, to: int, at: int = 0) -> None:
        if file.seekable():
            file.seek(to)
            return
        count = to - at
        while count and (skipped := len(file.read(min(count, _CHUNK)))):
            count -= skipped

    def check(
        self, line: Step | FittingStep, components: dict[str, Component], unchanged: Collection[str] = ()
    ) -> None:
        """Demand the state of a step: every tensor of it and no other, each component with its digest.

        Components in `unchanged` are in an earlier snapshot, and must not be here.

        Raises
        ------
        FormatError
            Naming what differs.
        """
        held = {
            name: components[name].tensors or ()
            for name in line.state
            if components[name].tensors is not None and name not in unchanged
        }
        wanted = {f"{component}/{name}" for component, tensors in held.items() for name, _, _ in tensors}
        if odd := sorted(wanted ^ self._places.keys()):
            got = "missing" if odd[0] in wanted else "not of this step"
            raise self._bad("not the tensors of the step", f"{len(wanted)} tensors", f"{odd[0][:80]!a} {got}")
        digests = self._digests()
        for component, tensors in held.items():
            for name, dtype, shape in tensors:
                key = f"{component}/{name}"
                form = _form(dtype, shape, self._places[key])
                if self._places[key][:2] != form:
                    stated = f"{self._places[key][0]}{list(self._places[key][1])}"
                    raise self._bad("a tensor of another form", f"{key[:80]!a} {form[0]}{list(form[1])}", stated)
            own = [digests[f"{component}/{name}"] for name, _, _ in tensors]
            if component_digest(canonical_bytes(tensors), own).hex() != line.state[component]:
                raise self._bad(
                    "the tensors do not give the digest of the step log",
                    line.state[component],
                    f"step {line.i}, {component}"[:200],
                )

    def _digests(self) -> dict[str, bytes]:
        """Return the tensor digests, all in one reading of the file."""
        found: dict[str, bytes] = {}
        with self._open() as file:
            self._skip(file, self._start)
            for key, (_, _, first, last) in self._places.items():
                hasher, left = blake3(), last - first
                while left and (data := file.read(min(left, _CHUNK))):
                    hasher.update(data)
                    left -= len(data)
                if left:
                    raise self._bad("the file is too short", f"{last} bytes of tensors", "its end")
                found[key] = hasher.digest()
        return found


def _form(dtype: str, shape: tuple[int, ...], place: tuple[str, tuple[int, ...], int, int]) -> Any:
    return Entry("", "", dtype, shape, place[3] - place[2]).form()
