"""Writes the tensors of the state after one step to a file: a snapshot of a record, or values that a replay wants."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from blake3 import blake3

from trainmem_audit.digests import dtype_name, tensor_bytes
from trainmem_audit.documents.steplog import Stream
from trainmem_audit.snapshots import DEFAULT_SNAPSHOT_BUDGET, Entry, header_bytes, values_bytes
from trainmem_audit.sources.base import Source

__all__ = ["SnapshotPlan", "whole_file", "write_snapshot", "write_values"]

_AUTO_SHARE = 0.01


@dataclass
class SnapshotPlan:
    """Which steps get a snapshot: every so many (0 for none) or as the time allows, and single ones.

    The budget is kept as that of tensor digests is: whenever half of what is left of it is used, the interval doubles.
    Single steps that were asked for are written all the same.

    Parameters
    ----------
    place:
        Gives the path of a file of the record.
    own_work:
        What to be in while it is written, so that it is taken for no output of the script.
    every:
        The interval in steps; `auto` instead writes whenever snapshots have taken less than a hundredth of the time.
    budget:
        How many bytes all snapshots may take.
    """

    place: Callable[[str], Path]
    own_work: Callable[[], AbstractContextManager[object]] = nullcontext
    every: int = 0
    auto: bool = False
    at: frozenset[int] = frozenset()
    budget: int = DEFAULT_SNAPSHOT_BUDGET
    _used: int = 0
    _limit: int = 0
    _largest: int = 0
    _doublings: int = 0
    _left_out: int = 0
    _first_left_out: int = 0
    _exhausted: int | None = None
    _spent: float = 0.0
    _began: float | None = None
    _kept: dict[str, tuple[str, int]] = field(default_factory=dict)

    def wants(self, step: int) -> bool:
        """Tell whether the state after `step` is to be kept."""
        if step in self.at:
            return True
        if not (self.auto or (self.every > 0 and step % self.every == 0)):
            return False
        now = time.monotonic()
        if self._began is None:
            self._began, self._limit = now, self.budget // 2
        if self.auto and self._spent > _AUTO_SHARE * (now - self._began):
            return False
        wanted = self._affordable(step) and self._is_due(step, now - self._began)
        if not wanted:
            self._first_left_out = self._first_left_out if self._left_out else step
            self._left_out += 1
        return wanted

    def _affordable(self, step: int) -> bool:
        if self._used + self._largest > self.budget:
            self._exhausted = step if self._exhausted is None else self._exhausted
            return False
        while self._used > self._limit:
            self._limit += max(1, (self.budget - self._limit) // 2)
            self._doublings += 1
        return True

    def _is_due(self, step: int, seconds: float) -> bool:
        """Tell whether a snapshot is due by the interval as it has grown."""
        if self.auto:
            return self._spent * (1 << self._doublings) <= _AUTO_SHARE * seconds
        return step % (self.every << self._doublings) == 0

    def thinned(self) -> set[str]:
        """Return what the record has to say of snapshots that were asked for and left out to keep the budget."""
        if not self._left_out:
            return set()
        said, times = set(), 1 << self._doublings
        keep = f"to keep within the budget of {self.budget} bytes"
        if self.auto and times > 1:
            said.add(
                f"snapshots from step {self._first_left_out} on: up to {times} times as rarely as asked for, {keep}"
            )
        elif times > 1:
            every = f"not every {self.every} steps, but at last every {self.every * times}"
            said.add(
                f"{self._left_out} snapshots, the first of them that of step {self._first_left_out}: {every}, {keep}"
            )
        if self._exhausted is not None:
            said.add(f"snapshots from step {self._exhausted} on: the budget of {self.budget} bytes is used")
        return said

    def unchanged(self, state: Mapping[str, str]) -> dict[str, int]:
        """Return the components that an earlier snapshot holds as they are now, with its step."""
        return {name: kept[1] for name, digest in state.items() if (kept := self._kept.get(name)) and kept[0] == digest}

    def wrote(self, step: int, state: Mapping[str, str], size: int, seconds: float) -> None:
        """Note a snapshot of `size` bytes that holds these components."""
        self._used += size
        self._largest = max(self._largest, size)
        self._spent += seconds
        self._kept |= {name: (digest, step) for name, digest in state.items()}


def write_snapshot(
    path: Path, sources: Iterable[Source], step: int, digests: Sequence[bytes], leave_out: Container[str] = ()
) -> int | None:
    """Write the tensors of all components, one after another, whole or not at all; return the bytes written.

    `digests` are theirs, in the order of `tensors.b3`; the components in `leave_out` are not written. Where another
    thread of the script has changed a tensor since they were taken, nothing is kept, and `None` returned.
    """
    tensors = [
        (component.name, name, tensor)
        for source in sources
        for component in source.components()
        for name, tensor in component.tensors or ()
    ]
    tensors.sort(key=lambda item: item[0])  # the order of `tensors.b3`
    written = [(item, digest) for item, digest in zip(tensors, digests, strict=True) if item[0] not in leave_out]
    entries = [
        Entry(component, name, dtype_name(tensor), tuple(tensor.shape), tensor.numel() * tensor.element_size())
        for (component, name, tensor), _ in written
    ]
    path.parent.mkdir(exist_ok=True)
    with suppress(_ChangedError), whole_file(path, step) as file:
        file.write(header_bytes(entries, step))
        for (_, _, tensor), digest in written:
            data = tensor_bytes(tensor)
            if blake3(data).digest() != digest:
                raise _ChangedError
            file.write(data)
        return file.tell()
    return None


def write_values(path: Path, step: int, values: Mapping[str, Any], streams: Mapping[str, Stream]) -> int:
    """Write what is no tensor, whole or not at all; return the bytes written."""
    data = values_bytes(step, values, streams)
    path.parent.mkdir(exist_ok=True)
    with whole_file(path, step) as file:
        file.write(data)
    return len(data)


class _ChangedError(Exception):
    """A tensor is not what it was when its digest was taken."""


@contextmanager
def whole_file(path: Path, step: int) -> Iterator[BinaryIO]:
    """Give a file that gets its name when all of it is on the disk."""
    aside = path.with_name(f".{path.name}.{step:016x}")  # what `recover` removes; no random number is drawn
    try:
        with aside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
