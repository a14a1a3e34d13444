"""The script's threads one after another: a turn changes only where a thread waits, sleeps, ends, or after a step.

So the order in which they run is that of the program and not of the moment. Threads of Python's library, of torch and
of this package run freely, for nothing of the script's happens in them. Where threads wait for each other in a way that
is not seen here (pipes, busy loops), the turn would never change: after `_PATIENCE` seconds all run freely.
"""

from __future__ import annotations

import functools
import os
import queue
import sys
import threading
import time
from collections import deque
from typing import Any

from trainmem_audit.pinning.callers import note_place
from trainmem_audit.recording.importing import after_import

__all__ = ["pin_turns", "watch_threads"]

_PATIENCE = 30.0
_NAP = 0.0005
_new_lock = threading._allocate_lock  # type: ignore[attr-defined]
_monotonic = time.monotonic


class _Ticket:
    """A thread's place in the row; its gate opens when it is that thread's turn."""

    def __init__(self) -> None:
        self.done = False
        self.gate = _new_lock()
        self.gate.acquire()


class _Local(threading.local):
    ticket: _Ticket | None = None
    starting = False


class _Turns:
    def __init__(self) -> None:
        self.open = False
        self._local = _Local()
        self._mutex = _new_lock()
        self._row: deque[_Ticket] = deque()
        self._local.ticket = _Ticket()  # the main thread begins

    def mine(self) -> _Ticket | None:
        """Return the ticket of the calling thread, or `None` if it runs freely."""
        return None if self.open or self._local.starting else self._local.ticket

    def join_row(self) -> _Ticket:
        """Put a thread that is about to start at the end of the row."""
        ticket = _Ticket()
        with self._mutex:
            self._row.append(ticket)
        return ticket

    def run(self, ticket: _Ticket, action: Any) -> None:
        """Run `action` in its thread, in turns."""
        self._local.ticket = ticket
        self._wait(ticket)
        try:
            action()
        finally:
            self.leave()

    def give_way(self) -> bool:
        """Let all others have their turn first; return whether there was another."""
        ticket = self.mine()
        if ticket is None:
            return False
        with self._mutex:
            if not self._row:
                return False
            following = self._row.popleft()
            self._row.append(ticket)
        following.gate.release()
        self._wait(ticket)
        return True

    def leave(self) -> None:
        """Go out of the row for good."""
        ticket = self._local.ticket
        if ticket is None:
            return
        self._local.ticket = None
        ticket.done = True
        with self._mutex:
            following = self._row.popleft() if self._row else None
        if following is not None:
            following.gate.release()

    def started(self, thread: threading.Thread, start: Any) -> None:
        """Start a thread by `start`, waiting for it to be there without giving way."""
        self._local.starting = True
        try:
            start(thread)
        finally:
            self._local.starting = False

    def _wait(self, ticket: _Ticket) -> None:
        if not self.open and not ticket.gate.acquire(timeout=_PATIENCE):
            self.open = True  # whoever has the turn keeps it without end


class _Lock:
    """A lock that gives way while it waits."""

    def __init__(self, turns: _Turns) -> None:
        self._turns = turns
        self._lock = _new_lock()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._lock.acquire(False):
            return True
        if not blocking:
            return False
        until = None if timeout < 0 else _monotonic() + timeout
        while self._turns.mine() is not None:
            self._turns.give_way()
            if self._lock.acquire(True, _NAP):
                return True
            if until is not None and _monotonic() >= until:
                return False
        return bool(self._lock.acquire(True, -1 if until is None else max(0.0, until - _monotonic())))

    def release(self) -> None:
        self._lock.release()

    def locked(self) -> bool:
        return bool(self._lock.locked())

    def _at_fork_reinit(self) -> None:
        self._lock = _new_lock()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def watch_threads() -> None:
    """Only note where the script starts threads."""
    start = threading.Thread.start

    def started(self: Any) -> None:
        if not _runs_freely(self):
            note_place("turns")
        start(self)

    threading.Thread.start = functools.wraps(start)(started)  # type: ignore[method-assign]


def pin_turns() -> None:
    """Make the threads that the script starts from now on run in turns."""
    turns = _Turns()
    os.register_at_fork(after_in_child=lambda: setattr(turns, "open", True))
    names: Any = threading
    names.Lock = names._allocate_lock = lambda: _Lock(turns)
    names._CRLock = None  # locks that may be taken again are then made of the others
    queue.SimpleQueue = queue._PySimpleQueue  # type: ignore[attr-defined,misc]
    _pin_threads(turns)
    _pin_sleep(turns)
    after_import("torch", lambda: _change_after_steps(turns))


def _pin_threads(turns: _Turns) -> None:
    start, join, shutdown = threading.Thread.start, threading.Thread.join, threading._shutdown  # type: ignore[attr-defined]

    def started(self: Any) -> None:
        if turns.mine() is None or _runs_freely(self):
            turns.started(self, start)
            return
        note_place("turns")
        ticket = self._trainmem_ticket = turns.join_row()
        self.run = functools.partial(turns.run, ticket, self.run)
        turns.started(self, start)

    def joined(self: Any, timeout: float | None = None) -> None:
        ticket = getattr(self, "_trainmem_ticket", None)
        until = None if timeout is None else _monotonic() + timeout
        while ticket is not None and not ticket.done and turns.mine() is not None:
            if not turns.give_way():
                time.sleep(_NAP)
            if until is not None and _monotonic() >= until:
                return
        join(self, None if until is None else max(0.0, until - _monotonic()))

    def ended() -> None:
        turns.leave()  # the others go on, and Python waits for them
        shutdown()

    threading.Thread.start = functools.wraps(start)(started)  # type: ignore[method-assign]
    threading.Thread.join = functools.wraps(join)(joined)  # type: ignore[method-assign]
    threading._shutdown = ended  # type: ignore[attr-defined]


def _runs_freely(thread: threading.Thread) -> bool:
    """Tell whether a thread is one of the machinery's own: nothing of the script's happens in it."""
    target = getattr(thread, "_target", None)
    while isinstance(target, functools.partial):
        target = target.func
    code = target if target is not None and type(thread).run is threading.Thread.run else type(thread)
    module = (getattr(code, "__module__", None) or "").split(".")
    library = module[0] in sys.stdlib_module_names and module[0] != "concurrent"
    return module[0] != "__main__" and (library or module[0] in ("torch", "trainmem_audit"))


def _pin_sleep(turns: _Turns) -> None:
    real = time.sleep

    @functools.wraps(real)
    def sleep(seconds: float) -> None:
        turns.give_way()
        real(seconds)

    time.sleep = sleep  # type: ignore[assignment]


def _change_after_steps(turns: _Turns) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def stepped(*_: Any) -> None:
        turns.give_way()

    register_optimizer_step_post_hook(stepped)
