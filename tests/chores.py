"""Jobs for the processes of a study, none of them of any use."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from trainmem_audit.errors import UsageError

__all__ = ["add", "break_down", "die", "last", "refuse"]

Tell = Callable[[Any], None]


def add(numbers: tuple[int, int], tell: Tell) -> int:
    """Tell the first number, return the sum."""
    tell(numbers[0])
    return sum(numbers)


def refuse(_: None, tell: Tell) -> None:
    """Raise an error on purpose."""
    raise UsageError("no")


def break_down(_: None, tell: Tell) -> None:
    """Raise any other."""
    raise ZeroDivisionError


def die(_: None, tell: Tell) -> None:
    """Be killed, as by a system that has no memory left."""
    os.kill(os.getpid(), signal.SIGKILL)


def last(_: None, tell: Tell) -> None:
    """Tell the id of the process and go on for long."""
    tell(os.getpid())
    time.sleep(600)
