"""Writes the tensors of one step aside, for a replay that says how large a difference is. Never part of a record."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from trainmem_audit.digests import tensor_bytes
from trainmem_audit.rundir import write_atomic
from trainmem_audit.sources.base import Source

__all__ = ["write_dump"]


def write_dump(path: Path, sources: Iterable[Source]) -> None:
    """Write the bytes of every tensor to `path`, and where each lies ([offset, bytes]) to `path` with `.json`, last."""
    index: dict[str, dict[str, tuple[int, int]]] = {}
    with path.open("wb") as file:
        for source in sources:
            for component in source.components():
                for name, tensor in component.tensors or ():
                    data = tensor_bytes(tensor)
                    index.setdefault(component.name, {})[name] = (file.tell(), len(data))
                    file.write(data)
    write_atomic(path.with_suffix(".json"), json.dumps(index).encode())
