"""L2: the arrays in a safetensors file that may be hostile: probes and observations, read without torch.

Eight bytes with the length of a header, the header (JSON: name → dtype, shape, offsets), then the bytes of the arrays.
Nothing is read that the length of the file does not bear out. Not here: snapshots, whose files name components too
(`snapshots`), and dtypes that NumPy has not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainmem_audit.canonical import loads_strict
from trainmem_audit.errors import FormatError

__all__ = ["ArrayEntry", "ArrayFile", "array_bytes"]

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip
_LENGTH = 8
_MOST_HEADER = 2**20
_MOST_ARRAYS = 4096
_MOST_DIMENSIONS = 16
_METADATA = "__metadata__"


@dataclass(frozen=True)
class ArrayEntry:
    """Where an array lies: its dtype as the file names it, its shape, and its bytes from `start` to `stop`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int


class ArrayFile:
    """An open safetensors file.

    Parameters
    ----------
    file:
        At its beginning; it must be seekable.
    size:
        How many bytes it has.
    where:
        What messages call it.

    Raises
    ------
    FormatError
        If it is no such file, or an array of it would not lie within it.
    """

    def __init__(self, file: BinaryIO, size: int, where: str) -> None:
        self._file, self._where = file, where
        length = int.from_bytes(file.read(_LENGTH), "little")
        if size < _LENGTH or length > min(_MOST_HEADER, size - _LENGTH):
            raise self._no(f"a header of at most {_MOST_HEADER} bytes, within the file", f"{length} bytes")
        members = loads_strict(file.read(length), where)
        if not isinstance(members, dict) or len(members) > _MOST_ARRAYS:
            raise self._no(f"at most {_MOST_ARRAYS} arrays by name", type(members).__name__)
        self._start = _LENGTH + length
        room = size - self._start
        self.entries = {name: self._entry(name, member, room) for name, member in members.items() if name != _METADATA}

    def array(self, name: str) -> NDArray[Any]:
        """Return an array, C-contiguous.

        Raises
        ------
        FormatError
            If there is none of that name, or the file is shorter than it was.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise self._no(f"an array `{name[:80]}`", " ".join(sorted(self.entries))[:200] or "no array")
        self._file.seek(self._start + entry.start)
        data = self._file.read(entry.stop - entry.start)
        if len(data) != entry.stop - entry.start:
            raise self._no("a whole file", "a shorter one")
        return np.frombuffer(data, dtype=_DTYPES[entry.dtype]).reshape(entry.shape)

    def _entry(self, name: str, member: Any, room: int) -> ArrayEntry:
        if not isinstance(member, dict) or member.keys() != {"dtype", "shape", "data_offsets"}:
            raise self._no(f"dtype, shape and data_offsets of `{name[:80]}`", "something else")
        dtype, shape, offsets = member["dtype"], member["shape"], member["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise self._no(" ".join(_DTYPES), f"{str(dtype)[:20]} of `{name[:80]}`")
        if not _are_counts(shape) or len(shape) > _MOST_DIMENSIONS or not _are_counts(offsets) or len(offsets) != 2:
            raise self._no(f"counts for the shape and offsets of `{name[:80]}`", "something else")
        start, stop = offsets
        if not start <= stop <= room or stop - start != math.prod(shape) * np.dtype(_DTYPES[dtype]).itemsize:
            raise self._no(f"bytes for the shape of `{name[:80]}`, within the file", f"{start} to {stop}")
        return ArrayEntry(dtype, tuple(shape), start, stop)

    def _no(self, expected: str, got: str) -> FormatError:
        return FormatError("not a safetensors file of arrays", where=self._where, expected=expected, got=got)


def array_bytes(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the file that holds some arrays, in the order of their names.

    Raises
    ------
    FormatError
        If one has another dtype than such a file can hold.
    """
    names = {np.dtype(ours): name for name, ours in _DTYPES.items()}
    members: dict[str, Any] = {}
    parts: list[bytes] = []
    offset = 0
    for name, array in sorted(arrays.items()):
        known = names.get(array.dtype.newbyteorder("<"))
        if known is None:
            raise FormatError(
                "no dtype of such a file", where=name[:80], expected=" ".join(_DTYPES), got=str(array.dtype)
            )
        parts.append(np.ascontiguousarray(array).astype(_DTYPES[known], copy=False).tobytes())
        stop = offset + len(parts[-1])
        members[name] = {"dtype": known, "shape": list(array.shape), "data_offsets": [offset, stop]}
        offset = stop
    header = json.dumps(members, separators=(",", ":")).encode()
    header += b" " * (-len(header) % _LENGTH)
    return len(header).to_bytes(_LENGTH, "little") + header + b"".join(parts)


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int and number >= 0 for number in value)
