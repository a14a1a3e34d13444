"""The content of Python containers as tensors: records in a deque or list by columns, dictionaries of tensors, arrays.

A replay memory is a sequence of records (tuples of numbers, arrays, tensors). Each field becomes one tensor with a row
for every record, padded with zeros to the capacity, so that its shape stays while the memory fills; `fill` says how
many rows there are. A record is read when it enters; it is held until the next look at the container, and what is
changed inside of it afterwards is not seen (a record is a tuple, and cannot be changed itself).
"""

from __future__ import annotations

import math
import operator
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["EntryTable", "array_tensor", "is_array", "tensors_below"]

_MOST_ENTRIES = 2**18
_MOST_FIELDS = 64
_LEAST_ROWS = 16


def is_array(value: Any) -> bool:
    """Tell whether a value is a NumPy array of numbers with more than one element."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and type(value) is numpy.ndarray and value.size > 1 and value.dtype.kind in "biufc"


def array_tensor(value: Any) -> torch.Tensor:
    """Return a tensor over the memory of an array, or over a copy where torch cannot lie there."""
    plain = value.flags.writeable and value.dtype.isnative and all(stride >= 0 for stride in value.strides)
    try:
        return torch.from_numpy(value if plain else value.astype(value.dtype.newbyteorder("="), copy=True))
    except TypeError:  # an element type that torch does not have: its bytes
        return torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8)


def tensors_below(value: Any) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors and arrays of a dictionary, list or deque that holds nothing else, larger than one element."""
    members = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    if not members or len(members) > 4096:
        return []
    found = []
    for key, member in members:
        if isinstance(member, torch.Tensor) and member.layout is torch.strided and not isinstance(key, torch.Tensor):
            if isinstance(member, torch.nn.Parameter) or member.grad_fn is not None:
                return []
            found.append((str(key), member.detach()))
        elif is_array(member):
            found.append((str(key), array_tensor(member)))
        else:
            return []
    return found if any(tensor.numel() > 1 for _, tensor in found) else []


class EntryTable:
    """The columns of one container, brought up to date at every look."""

    def __init__(self) -> None:
        self._entries: list[Any] = []
        self._columns: list[torch.Tensor] = []
        self._forms: list[tuple[torch.dtype, tuple[int, ...]]] = []
        self._capacity = 0
        self._holed = False

    @staticmethod
    def takes(value: Any) -> bool:
        """Tell whether a container holds records: tuples of numbers, arrays and tensors, in a deque or list."""
        if not value or len(value) > _MOST_ENTRIES:
            return False
        first = next((entry for entry in value if entry is not None), None)
        if not isinstance(first, tuple) or not 1 <= len(first) <= _MOST_FIELDS:
            return False
        heavy = any(isinstance(field, (torch.Tensor, tuple, list)) or is_array(field) for field in first)
        return (isinstance(value, deque) or heavy or len(first) > 3) and all(
            _form(field) is not None for field in first
        )

    @staticmethod
    def size(value: Any) -> int:
        """Return how many bytes the columns of a container would take."""
        record = _first_full(list(value)[:64]) if value else ()
        forms = [_form(field) or (torch.float64, ()) for field in record]
        width = sum(dtype.itemsize * math.prod(shape) for dtype, shape in forms)
        return width * (getattr(value, "maxlen", None) or _rows(len(value)))

    def tensors(self, value: Any) -> list[tuple[str, torch.Tensor]]:
        """Return the columns, and `fill`; nothing where the records are not all of one form.

        A place without a record (`[None] * capacity`, filled in turn) is a row of zeros, and `empty` tells it.
        """
        entries = list(value)
        capacity = getattr(value, "maxlen", None) or _rows(len(entries))
        if capacity != self._capacity or not self._entries:
            self._start(entries, capacity)
            changed: list[int] = list(range(len(entries)))
        else:
            changed = self._moved(entries)
        self._entries = entries
        for at in changed:
            if not self._write(at, entries[at]):
                self._entries = []
                return []
        for column in self._columns:
            column[len(entries) :] = 0
        named = [(str(field), column) for field, column in enumerate(self._columns)]
        self._holed |= any(entry is None for entry in entries)
        if self._holed:
            named.append(("empty", torch.tensor([entry is None for entry in entries])))
        return [*named, ("fill", torch.tensor([len(entries)]))]

    def _start(self, entries: list[Any], capacity: int) -> None:
        self._capacity = capacity
        forms = [_form(field) for field in _first_full(entries)]
        self._forms = [form if form is not None else (torch.float64, ()) for form in forms]
        self._columns = [torch.zeros((capacity, *shape), dtype=dtype) for dtype, shape in self._forms]

    def _moved(self, entries: list[Any]) -> list[int]:
        """Move the rows that have moved, and return which records are new."""
        old = self._entries
        shift = 0
        if entries[0] is not old[0]:
            shift = next((at for at, entry in enumerate(old) if entry is entries[0]), 0)
        if shift:
            for column in self._columns:
                column[: len(old) - shift] = column[shift : len(old)].clone()
        kept = len(old) - shift
        same = map(operator.is_, entries[:kept], old[shift:])
        changed = [at for at, equal in enumerate(same) if not equal]
        return [*changed, *range(min(kept, len(entries)), len(entries))]

    def _write(self, at: int, entry: Any) -> bool:
        if entry is None:
            for column in self._columns:
                column[at] = 0
            return True
        if not isinstance(entry, tuple) or len(entry) != len(self._columns):
            return False
        for field, column, (dtype, shape) in zip(entry, self._columns, self._forms, strict=True):
            if field is None:
                column[at] = 0
                continue
            form = _form(field)
            if form is None or form[1] != shape:
                return False
            row = torch.as_tensor(field.detach() if isinstance(field, torch.Tensor) else _plain(field))
            column[at] = row.to(dtype)
        return True

    def restore(self, live: Any, kept: Mapping[str, torch.Tensor]) -> Iterator[str]:
        """Fill the container with the records that were kept, each like the first that is there now."""
        pattern = next((entry for entry in live if entry is not None), None)
        if pattern is None:
            yield "holds no record now that would tell what its records are"
            return
        columns = [kept.get(str(field)) for field in range(len(pattern))]
        if any(column is None for column in columns) or "fill" not in kept:
            yield "its records have other fields now"
            return
        entries: list[Any] = []
        empty = kept.get("empty")
        for at in range(int(kept["fill"].item())):
            if empty is not None and empty[at]:
                entries.append(None)
                continue
            fields = [
                _like(old, column[at]) for old, column in zip(pattern, columns, strict=True) if column is not None
            ]
            entries.append(type(pattern)(*fields) if hasattr(pattern, "_fields") else tuple(fields))
        live.clear()
        live.extend(entries)
        self._entries = []


def _rows(count: int) -> int:
    """Return the rows of a container without a capacity of its own: the next power of two."""
    return max(_LEAST_ROWS, 1 << (count - 1).bit_length())


def _first_full(entries: list[Any]) -> tuple[Any, ...]:
    """Return a record without gaps: the first one, its `None`s filled from later ones."""
    full = [entry for entry in entries if isinstance(entry, tuple)]
    fields = list(full[0]) if full else []
    for entry in full[1:]:
        if all(field is not None for field in fields):
            break
        if isinstance(entry, tuple) and len(entry) == len(fields):
            fields = [other if field is None else field for field, other in zip(fields, entry, strict=True)]
    return tuple(fields)


def _form(field: Any) -> tuple[torch.dtype, tuple[int, ...]] | None:
    """Return dtype and shape of one field; `None` for what has no form as numbers."""
    if isinstance(field, torch.Tensor):
        return (field.dtype, tuple(field.shape)) if field.layout is torch.strided else None
    if field is None or isinstance(field, float):
        return torch.float64, ()
    if isinstance(field, (bool, int)):
        return (torch.int64, ()) if abs(field) < 2**63 else None
    if isinstance(field, (tuple, list)):
        numbers = all(isinstance(item, (bool, int, float)) for item in field)
        return (torch.float64, (len(field),)) if field and numbers else None
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(field, (numpy.ndarray, numpy.generic)) and field.dtype.kind in "biuf":
        return array_tensor(numpy.atleast_1d(field)).dtype, tuple(field.shape)
    return None


def _plain(field: Any) -> Any:
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(field, (numpy.ndarray, numpy.generic)):
        return array_tensor(numpy.atleast_1d(field)).reshape(field.shape)
    return field


def _like(old: Any, row: torch.Tensor) -> Any:
    """Return a row as a field of the kind that `old` is."""
    if isinstance(old, torch.Tensor):
        return row.clone().to(old.device)
    if isinstance(old, (tuple, list)):
        return type(old)(row.tolist())
    if isinstance(old, bool):
        return bool(row.item())
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(old, numpy.ndarray):
        return row.numpy().astype(old.dtype, copy=True)
    if numpy is not None and isinstance(old, numpy.generic):
        return old.dtype.type(row.item())
    return row.item()
