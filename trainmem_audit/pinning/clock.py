"""A clock that goes by questions asked: every look at it is one millisecond after the last, in every run the same.

Each thread has a clock of its own, so that threads do not move each other's. Sleeping takes its time on it. Not
pinned: clocks read by C code (`numpy.datetime64("now")`, `pandas.Timestamp.now`), and times of files.
"""

from __future__ import annotations

import datetime
import functools
import sys
import threading
import time
import timeit
from collections.abc import Callable
from typing import Any

from trainmem_audit.pinning.callers import from_machinery, note_place, set_on_type

__all__ = ["pin_clock"]

_STEP = 1_000_000
_UPTIME = 1000 * 10**9


class _Clock(threading.local):
    """Nanoseconds since the start, per thread."""

    def __init__(self) -> None:
        self.elapsed = 0

    def look(self) -> int:
        self.elapsed += _STEP
        return self.elapsed


def pin_clock(start: int) -> None:
    """Replace the clocks of `time` and `datetime`; `start` is the moment that they show first, in ns since 1970."""
    clock = _Clock()

    def wall() -> int:
        return start + clock.look()

    def uptime() -> int:
        return _UPTIME + clock.look()

    sources: dict[str, Callable[[], int]] = {"time": wall, "monotonic": uptime, "perf_counter": uptime}
    sources |= {"process_time": clock.look, "thread_time": clock.look}
    for name, source in sources.items():
        _replace(name, lambda source=source: source() / 1e9)
        _replace(f"{name}_ns", source)
    _replace("clock_gettime", lambda kind: (wall if kind == time.CLOCK_REALTIME else uptime)() / 1e9)
    _replace("clock_gettime_ns", lambda kind: (wall if kind == time.CLOCK_REALTIME else uptime)())
    _pin_calendar(wall)
    _pin_sleep(clock)
    timeit.default_timer = time.perf_counter
    _pin_datetime(wall)


def _replace(name: str, pinned: Callable[..., Any], owner: Any = time) -> None:
    real = getattr(owner, name, None)
    if real is None:
        return

    @functools.wraps(real)
    def clock(*args: Any) -> Any:
        if from_machinery(sys._getframe(1)):
            return real(*args)
        if name != "sleep":
            note_place("clock")
        return pinned(*args)

    setattr(owner, name, clock)


def _pin_calendar(wall: Callable[[], int]) -> None:
    """`localtime`, `gmtime` and `ctime` take the current time unless given one; so do `asctime` and `strftime`."""
    local, utc, text, plain, formatted = time.localtime, time.gmtime, time.ctime, time.asctime, time.strftime

    def now(seconds: float | None) -> float:
        return wall() / 1e9 if seconds is None else seconds

    _replace("localtime", lambda seconds=None: local(now(seconds)))
    _replace("gmtime", lambda seconds=None: utc(now(seconds)))
    _replace("ctime", lambda seconds=None: text(now(seconds)))
    _replace("asctime", lambda moment=None: plain(local(now(None)) if moment is None else moment))
    _replace("strftime", lambda form, moment=None: formatted(form, local(now(None)) if moment is None else moment))


def _pin_sleep(clock: _Clock) -> None:
    sleep = time.sleep

    def pinned(seconds: float) -> None:
        sleep(seconds)
        clock.elapsed += round(seconds * 1e9)

    _replace("sleep", pinned)


def _pin_datetime(wall: Callable[[], int]) -> None:
    real_now, real_utcnow = vars(datetime.datetime)["now"], vars(datetime.datetime)["utcnow"]
    real_today = vars(datetime.date)["today"]

    def now(cls: Any, tz: Any = None) -> Any:
        if from_machinery(sys._getframe(1)):
            return real_now.__get__(None, cls)(tz)
        note_place("clock")
        return cls.fromtimestamp(wall() / 1e9, tz)

    def utcnow(cls: Any) -> Any:
        if from_machinery(sys._getframe(1)):
            return real_utcnow.__get__(None, cls)()
        note_place("clock")
        return cls.fromtimestamp(wall() / 1e9, datetime.UTC).replace(tzinfo=None)

    def today(cls: Any) -> Any:
        if from_machinery(sys._getframe(1)):
            return real_today.__get__(None, cls)()
        note_place("clock")
        return cls.fromtimestamp(wall() / 1e9)

    set_on_type(datetime.datetime, "now", classmethod(now))
    set_on_type(datetime.datetime, "utcnow", classmethod(utcnow))
    set_on_type(datetime.date, "today", classmethod(today))
