"""Who calls: the script and the packages it uses, or those that need the real clock and process ids to work at all.

Python's own library, torch and this package count as the latter: they time out, poll and watch processes.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["from_machinery", "note_place", "set_on_type", "write_places_to"]

_PACKAGE = str(Path(__file__).resolve().parents[1])
_OWN = str(Path(__file__).resolve().parent)
_STDLIB = sysconfig.get_path("stdlib")
_NOT_TRAINING = ("<frozen importlib", f"{_STDLIB}/multiprocessing/", f"{_STDLIB}/tempfile.py")
"""Who asks for entropy or the time without anything being trained by it: a package while it is imported (torch brings
many), names of semaphores and of temporary files; and the recorder."""


def from_machinery(frame: FrameType) -> bool:
    """Tell whether the code of `frame` belongs to Python's library, torch or this package."""
    return _is_machinery(frame.f_code.co_filename)


@lru_cache(maxsize=4096)
def _is_machinery(filename: str) -> bool:
    if filename.startswith("<frozen"):
        return True
    if "-packages/" in filename:
        return "-packages/torch/" in filename or filename.startswith(_PACKAGE)
    return filename.startswith((_STDLIB, _PACKAGE))


_seen: set[tuple[str, int, str]] = set()
_places: tuple[Path, str] | None = None


def write_places_to(path: Path, root: str) -> None:
    """From now on, write which lines of the code below `root` ask for what is pinned."""
    global _places
    _places = path, os.path.join(root, "")  # noqa: PTH118 (a prefix, with its slash)


def note_place(pin: str) -> None:
    """Note the line of the script's own code that is being run, once: `PIN LINE FILE`; `PIN 0 -` if there is none."""
    if _places is None:
        return
    path, root = _places
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not (name := frame.f_code.co_filename).startswith(root):
        if name.startswith(_NOT_TRAINING) or (name.startswith(_PACKAGE) and not name.startswith(_OWN)):
            return
        frame = frame.f_back
    place = (pin, 0, "-") if frame is None else (pin, frame.f_lineno, frame.f_code.co_filename[len(root) :])
    if place not in _seen:
        _seen.add(place)
        with path.open("a", encoding="utf-8") as file:  # in a worker process too
            file.write(f"{place[0]} {place[1]} {place[2]}\n")


def set_on_type(owner: type, name: str, value: Any) -> None:
    """Set an attribute of a type that is written in C.

    A subclass in its place would be another type: pickles, `type(x) is …` and other C code would notice.
    """
    attributes = next(item for item in gc.get_referents(vars(owner)) if isinstance(item, dict))
    attributes[name] = value
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))
