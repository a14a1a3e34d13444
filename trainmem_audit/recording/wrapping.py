"""Puts a function of ours in the place of one of torch's, and back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["wrap"]


def wrap(owner: Any, name: str, replacement: Callable[..., Any]) -> Callable[[], None]:
    """Replace a function of a module, or a method of a class, by `replacement(real, ...)`; return what puts it back."""
    real = vars(owner)[name]

    @functools.wraps(real)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return replacement(real, *args, **kwargs)

    setattr(owner, name, wrapped)
    return lambda: setattr(owner, name, real)
