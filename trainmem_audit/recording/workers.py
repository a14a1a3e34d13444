"""Sees the random streams of forked loader workers: each writes their digests into memory that it shares with us.

A worker looks when it is ready for its first batch, after `worker_init_fn`, and again when it has fetched it: streams
that moved in between are those that its samples are drawn from. Two workers that start from one state give the same
augmentations. Nothing is drawn, no queue and no descriptor of the script's is used, and no frame of ours is on the
stack while code of the script runs.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Callable
from typing import Any

from torch.utils.data import get_worker_info

__all__ = ["MOST_WORKERS", "Slots", "watch_worker"]

MOST_WORKERS = 64
_SLOT = 8192
_LENGTH = struct.Struct("<I")
_MOST_LOOKS = 8
"""A worker that waits for its first batch is asked again every few seconds."""


class Slots:
    """One slot for each worker of an iterator, in anonymous memory that forked children share."""

    def __init__(self, workers: int) -> None:
        self._workers = min(workers, MOST_WORKERS)
        self._memory = mmap.mmap(-1, self._workers * _SLOT)
        self._taken: set[int] = set()

    def write(self, worker: int, report: dict[str, Any]) -> None:
        """Put the report of one worker into its slot, the length last."""
        data = json.dumps(report).encode()
        if worker < self._workers and len(data) <= _SLOT - _LENGTH.size:
            start = worker * _SLOT
            self._memory[start + _LENGTH.size : start + _LENGTH.size + len(data)] = data
            _LENGTH.pack_into(self._memory, start, len(data))

    def take(self, last: bool = False) -> dict[int, dict[str, Any]]:
        """Return the reports that are new and final, or with `last` those that there are."""
        found = {}
        for worker in range(self._workers):
            report = None if worker in self._taken else self._read(worker)
            if report is not None and (report["final"] or last):
                self._taken.add(worker)
                found[worker] = report
        return found

    @property
    def done(self) -> bool:
        """Whether every worker has given its report."""
        return len(self._taken) == self._workers

    def _read(self, worker: int) -> dict[str, Any] | None:
        start = worker * _SLOT
        (length,) = _LENGTH.unpack_from(self._memory, start)
        if not 0 < length <= _SLOT - _LENGTH.size:
            return None
        try:
            report: dict[str, Any] = json.loads(self._memory[start + _LENGTH.size : start + _LENGTH.size + length])
        except ValueError:  # it is being written
            return None
        return report


class _Watched:
    """Stands for the watchdog of a worker, which asks it before every batch whether the trainer is alive."""

    def __init__(self, watchdog: Any, digests: Callable[[], dict[str, str]], slots: Slots, worker: int) -> None:
        self._watchdog = watchdog
        self._digests: Callable[[], dict[str, str]] | None = digests
        self._slots = slots
        self._worker = worker
        self._start: dict[str, str] | None = None
        self._looks = 0

    def is_alive(self) -> Any:
        if self._digests is not None:
            try:
                self._look(self._digests)
            except Exception:  # a worker must not end by us
                self._digests = None
        return self._watchdog.is_alive()

    def _look(self, digests: Callable[[], dict[str, str]]) -> None:
        now = digests()
        self._looks += 1
        start = self._start = now if self._start is None else self._start
        consumed = [name for name, digest in now.items() if start.get(name, digest) != digest]
        final = bool(consumed) or self._looks == _MOST_LOOKS
        self._slots.write(self._worker, {"streams": start, "consumed": consumed, "final": final})
        if final:
            self._digests = None


def watch_worker(watchdog: Any, digests: Callable[[], dict[str, str]], slots: Slots | None) -> Any:
    """Return what a worker takes for its watchdog."""
    info = get_worker_info()
    if slots is None or info is None:
        return watchdog
    return _Watched(watchdog, digests, slots, info.id)
