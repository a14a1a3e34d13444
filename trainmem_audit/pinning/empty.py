"""NumPy arrays that are made without values get zeros (`settings.pin_empty` does the same for tensors)."""

from __future__ import annotations

import functools
import sys
from typing import Any

from trainmem_audit.pinning.callers import from_machinery, note_place

__all__ = ["pin_numpy_empty"]


def pin_numpy_empty(watch: bool = False) -> None:
    """Replace `numpy.empty` and `numpy.empty_like` by versions that fill; with `watch`, only note who calls them."""
    numpy: Any = sys.modules["numpy"]
    for name in ("empty", "empty_like"):
        setattr(numpy, name, _filled(getattr(numpy, name), watch))


def _filled(real: Any, watch: bool) -> Any:
    @functools.wraps(real)
    def filled(*args: Any, **kwargs: Any) -> Any:
        made = real(*args, **kwargs)
        if from_machinery(sys._getframe(1)):
            return made
        note_place("empty")
        if not watch and not made.dtype.hasobject:
            made[...] = made.dtype.type() if made.dtype.names is None else 0
        return made

    return filled
