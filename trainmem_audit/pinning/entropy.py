"""What a script asks the operating system for and gets another answer each time: random bytes, seeds, process ids.

Random bytes come from a fixed stream, one per process; a forked process gets its own by the order of forking. Seeding
"from entropy" (`random.seed()`, `random.Random()`, `torch.seed()`, `Generator.seed()`) takes them too. Process ids are
pinned for the script only, to numbers that no real process can have; `os.kill` with one of them means this process.
Not pinned: what C libraries draw by themselves. NumPy's unseeded generators start from the recorder's stream
(`recording.recording`), which is a pin of its own.
"""

from __future__ import annotations

import functools
import os
import random
import sys
import uuid
from collections.abc import Callable
from typing import Any

from blake3 import blake3

from trainmem_audit.pinning.callers import from_machinery, note_place, set_on_type
from trainmem_audit.recording.importing import after_import

__all__ = ["pin_entropy"]

_FIRST_PID = 2**23
"""Beyond the largest process id that Linux gives (2^22)."""
_REAL_PID = os.getpid


class _Bytes:
    """The stream of this process; `forked` starts that of a child."""

    def __init__(self, key: str, watch: bool) -> None:
        self.pid = os.getpid() if watch else _FIRST_PID
        self._watch = watch
        self._urandom = os.urandom
        self._key = key
        self._drawn = 0
        self._forks = 0

    def draw(self, size: int) -> bytes:
        note_place("entropy")
        if self._watch:
            return self._urandom(size)
        self._drawn += 1
        return blake3(f"{self._key} {self._drawn}".encode()).digest(length=size) if size else b""

    def number(self, bits: int) -> int:
        return int.from_bytes(self.draw(bits // 8), "little")

    def about_to_fork(self) -> None:
        self._forks += 1

    def forked(self) -> None:
        self._key = f"{self._key}/{self._forks}"
        self.pid = _REAL_PID() if self._watch else self.pid + self._forks
        self._drawn = self._forks = 0


def pin_entropy(key: str, watch: bool = False) -> None:
    """Replace the entropy of the operating system by the stream of `key`; with `watch`, only note who asks for it."""
    stream = _Bytes(key, watch)
    os.register_at_fork(before=stream.about_to_fork, after_in_child=stream.forked)
    _pin_bytes(stream)
    _pin_seeding(stream)
    _pin_process_id(stream)
    after_import("torch", lambda: _pin_torch(stream))


def _pin_bytes(stream: _Bytes) -> None:
    os.urandom = lambda size: stream.draw(size)
    if hasattr(os, "getrandom"):
        os.getrandom = lambda size, flags=0: stream.draw(size)
    random._urandom = os.urandom  # type: ignore[attr-defined]
    fresh = uuid.uuid1

    def uuid1(node: int | None = None, clock_seq: int | None = None) -> uuid.UUID:
        if node is not None or clock_seq is not None:
            return fresh(node, clock_seq)
        return uuid.UUID(bytes=stream.draw(16), version=1)

    uuid.uuid1 = uuid1


def _pin_seeding(stream: _Bytes) -> None:
    real = random.Random.seed

    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        real(self, stream.number(64) if a is None else a, version)

    random.Random.seed = functools.wraps(real)(seed)  # type: ignore[method-assign]
    random.seed = random._inst.seed


def _pin_process_id(stream: _Bytes) -> None:
    real_kill = os.kill

    def getpid() -> int:
        if from_machinery(sys._getframe(1)):
            return _REAL_PID()
        note_place("entropy")
        return stream.pid

    def kill(pid: int, sign: int) -> None:
        real_kill(_REAL_PID() if pid == stream.pid else pid, sign)

    os.getpid, os.kill = getpid, kill


def _pin_torch(stream: _Bytes) -> None:
    generator = sys.modules["torch"]._C.Generator
    real: Callable[..., Any] = generator.manual_seed

    def seed(self: Any) -> int:
        number = stream.number(56)
        real(self, number)
        return number

    set_on_type(generator, "seed", seed)
