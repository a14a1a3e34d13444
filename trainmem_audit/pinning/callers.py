"""Who calls: the script and the packages it uses, or those that need the real clock and process ids to work at all.

Python's own library, torch and this package count as the latter: they time out, poll and watch processes.
"""

from __future__ import annotations

import ctypes
import gc
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any

__all__ = ["from_machinery", "set_on_type"]

_PACKAGE = str(Path(__file__).resolve().parents[1])
_STDLIB = sysconfig.get_path("stdlib")


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


def set_on_type(owner: type, name: str, value: Any) -> None:
    """Set an attribute of a type that is written in C.

    A subclass in its place would be another type: pickles, `type(x) is …` and other C code would notice.
    """
    attributes = next(item for item in gc.get_referents(vars(owner)) if isinstance(item, dict))
    attributes[name] = value
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))
