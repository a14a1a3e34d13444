"""Batches: the digest of what a loader hands out, and of the indices it was drawn by (order, S2).

A batch is walked in its own order: mappings in insertion order, sequences by position. Each leaf adds its type, shape
and the digest of its bytes. Objects that are none of tensor, array, number, text or container add their type alone.
"""

from __future__ import annotations

import operator
from array import array
from collections.abc import Callable, Mapping
from pathlib import PurePath
from typing import Any

import torch
from blake3 import blake3

from trainmem_audit.canonical import content_digest, float_text
from trainmem_audit.digests import dtype_name, tensor_digest

__all__ = ["batch_digest", "batch_size", "index_bytes"]

_MAX_DEPTH = 64
name_path: Callable[[str], str] = str
"""Gives a text that is a path of this machine the name that a record has for it; set by a recording."""


def batch_digest(batch: Any) -> bytes:
    """Return the 32-byte content digest of a batch, or of the arguments of a forward."""
    parts: list[bytes] = []
    _leaves(batch, parts, ())
    return content_digest(parts)


def _leaves(value: Any, parts: list[bytes], inside: tuple[int, ...]) -> None:
    """Add the leaves of `value`; `inside` are the ids of what it lies in, so that nothing is walked within itself."""
    if isinstance(value, torch.Tensor):
        parts += (f"tensor {dtype_name(value)} {list(value.shape)};".encode(), tensor_digest(value))
    elif len(inside) > _MAX_DEPTH:
        parts.append(b"too deep;")
    elif id(value) in inside:
        parts.append(b"itself;")
    elif isinstance(value, Mapping):
        parts.append(f"mapping {len(value)};".encode())
        for key, member in value.items():
            parts.append(_text(str(key)))
            _leaves(member, parts, (*inside, id(value)))
    elif isinstance(value, (list, tuple)):
        parts.append(f"sequence {len(value)};".encode())
        for member in value:
            _leaves(member, parts, (*inside, id(value)))
    elif isinstance(value, bool | int | str | None):
        parts.append(_text(f"{type(value).__name__} {name_path(value) if isinstance(value, str) else value}"))
    elif isinstance(value, float):
        parts.append(_text(f"float {float_text(value)}"))
    elif isinstance(value, bytes):
        parts += (b"bytes;", blake3(value).digest())
    elif type(value).__module__ == "numpy" and hasattr(value, "tobytes") and value.dtype.hasobject:
        _leaves(value.tolist(), parts, (*inside, id(value)))  # the bytes of an array of objects are addresses
    elif type(value).__module__ == "numpy" and hasattr(value, "tobytes"):
        parts += (f"array {value.dtype.str} {list(value.shape)};".encode(), blake3(value.tobytes()).digest())
    elif isinstance(value, PurePath):
        parts.append(_text(f"path {name_path(str(value))}"))
    elif members := _attributes(value):
        parts.append(_text(f"object {type(value).__qualname__}"))
        _leaves(members, parts, (*inside, id(value)))
    else:
        parts.append(_text(f"opaque {type(value).__qualname__}"))


def _attributes(value: Any) -> dict[str, Any]:
    """Return what an object carries: its attributes and slots, without functions, modules and what Python keeps."""
    if isinstance(value, type) or callable(value):
        return {}
    slots = [name for kind in type(value).__mro__ for name in _slots(kind)]
    named = {name: getattr(value, name) for name in slots if hasattr(value, name)} | getattr(value, "__dict__", {})
    return {name: member for name, member in named.items() if isinstance(name, str) and not name.startswith("__")}


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _text(text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return f"{len(data)}:".encode() + data


def index_bytes(index: Any) -> bytes | None:
    """Return sample indices as consumed: int64, little-endian; `None` where a sampler yields no integers."""
    try:
        indices = [index] if hasattr(index, "__index__") and not hasattr(index, "__len__") else index
        return array("q", map(operator.index, indices)).tobytes()
    except (TypeError, OverflowError, ValueError):
        return None


def batch_size(batch: Any) -> int:
    """Return the number of samples of a batch: the length of its first tensor, else of its first container."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    if isinstance(batch, dict):
        return batch_size(next(iter(batch.values()))) if batch else 0
    if isinstance(batch, (list, tuple)):
        return batch_size(batch[0]) if batch and not isinstance(batch[0], (str, int, float)) else len(batch)
    return 1
