"""Writes the tensors of the state after one step to a file: a snapshot of a record, or values that a replay wants."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3

from trainmem_audit.digests import dtype_name, tensor_bytes
from trainmem_audit.snapshots import Entry, header_bytes
from trainmem_audit.sources.base import Source

__all__ = ["SnapshotPlan", "write_snapshot"]


@dataclass(frozen=True)
class SnapshotPlan:
    """Which steps get a snapshot: every so many (0 for none), and single ones.

    Parameters
    ----------
    place:
        Gives the path of a file of the record.
    own_work:
        What to be in while it is written, so that it is taken for no output of the script.
    """

    place: Callable[[str], Path]
    own_work: Callable[[], AbstractContextManager[object]] = nullcontext
    every: int = 0
    at: frozenset[int] = frozenset()

    def wants(self, step: int) -> bool:
        """Tell whether the state after `step` is to be kept."""
        return step in self.at or (self.every > 0 and step % self.every == 0)


def write_snapshot(path: Path, sources: Iterable[Source], step: int, digests: Sequence[bytes]) -> int | None:
    """Write the tensors of all components, one after another, whole or not at all; return the bytes written.

    `digests` are theirs, in the order of `tensors.b3`. Where another thread of the script has changed one since they
    were taken, nothing is kept, and `None` returned.
    """
    tensors = [
        (component.name, name, tensor)
        for source in sources
        for component in source.components()
        for name, tensor in component.tensors or ()
    ]
    tensors.sort(key=lambda item: item[0])  # the order of `tensors.b3`
    entries = [
        Entry(component, name, dtype_name(tensor), tuple(tensor.shape), tensor.numel() * tensor.element_size())
        for component, name, tensor in tensors
    ]
    path.parent.mkdir(exist_ok=True)
    aside = path.with_name(f".{path.name}.{step:016x}")  # what `recover` removes; no random number is drawn
    try:
        with aside.open("xb") as file:
            file.write(header_bytes(entries, step))
            for (_, _, tensor), digest in zip(tensors, digests, strict=True):
                data = tensor_bytes(tensor)
                if blake3(data).digest() != digest:
                    return None
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return size
