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
from types import FrameType
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


def pin_clock(start: int, watch: bool = False) -> None:
    """Replace the clocks of `time` and `datetime`; `start` is the moment that they show first, in ns since 1970.

    With `watch` they stay what they are, and only who looks at them is noted.
    """
    clock = _Clock()

    def wall() -> int:
        return start + clock.look()

    def uptime() -> int:
        return _UPTIME + clock.look()

    sources: dict[str, Callable[[], int]] = {"time": wall, "monotonic": uptime, "perf_counter": uptime}
    sources |= {"process_time": clock.look, "thread_time": clock.look}
    for name, source in sources.items():
        _replace(name, None if watch else lambda source=source: source() / 1e9)
        _replace(f"{name}_ns", None if watch else source)
    gettime = {"clock_gettime": 1e9, "clock_gettime_ns": 1}
    for name, unit in gettime.items():
        _replace(
            name, None if watch else lambda kind, unit=unit: (wall if kind == time.CLOCK_REALTIME else uptime)() / unit
        )
    _pin_calendar(None if watch else wall)
    if not watch:
        _pin_sleep(clock)
    timeit.default_timer = time.perf_counter
    _pin_datetime(None if watch else wall)


def _replace(name: str, pinned: Callable[..., Any] | None) -> None:
    real = getattr(time, name, None)
    if real is None:
        return

    @functools.wraps(real)
    def clock(*args: Any) -> Any:
        if from_machinery(sys._getframe(1)):
            return real(*args)
        if name != "sleep":
            note_place("clock")
        return real(*args) if pinned is None else pinned(*args)

    setattr(time, name, clock)


def _pin_calendar(wall: Callable[[], int] | None) -> None:
    """`localtime`, `gmtime` and `ctime` take the current time unless given one; so do `asctime` and `strftime`."""
    local, utc, text, plain, formatted = time.localtime, time.gmtime, time.ctime, time.asctime, time.strftime

    def now(seconds: float | None) -> float | None:
        return wall() / 1e9 if seconds is None and wall is not None else seconds

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


def _pin_datetime(clock: Callable[[], int] | None) -> None:
    wall = clock or time.time_ns
    real_now, real_utcnow = vars(datetime.datetime)["now"], vars(datetime.datetime)["utcnow"]
    real_today = vars(datetime.date)["today"]

    def seen(frame: FrameType) -> bool:
        if from_machinery(frame):
            return False
        note_place("clock")
        return clock is not None

    def now(cls: Any, tz: Any = None) -> Any:
        return cls.fromtimestamp(wall() / 1e9, tz) if seen(sys._getframe(1)) else real_now.__get__(None, cls)(tz)

    def utcnow(cls: Any) -> Any:
        if seen(sys._getframe(1)):
            return cls.fromtimestamp(wall() / 1e9, datetime.UTC).replace(tzinfo=None)
        return real_utcnow.__get__(None, cls)()

    def today(cls: Any) -> Any:
        return cls.fromtimestamp(wall() / 1e9) if seen(sys._getframe(1)) else real_today.__get__(None, cls)()

    set_on_type(datetime.datetime, "now", classmethod(now))
    set_on_type(datetime.datetime, "utcnow", classmethod(utcnow))
    set_on_type(datetime.date, "today", classmethod(today))
