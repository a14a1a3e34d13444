"""What the random streams are drawn from for: their states are looked at where one activity meets the next.

A stream that is elsewhere after a forward than before it was drawn from by dropout, say. The looks are few: through the
first steps, and around the first step of some later epochs. So a purpose that is seen is certain, and one that is never
seen is not excluded. Nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["DrawWatch", "forward_purpose", "numbers_of"]

_FIRST_STEPS = 4
_MOST_NUMBERS = 32
_EPOCHS = 8
_MOST_LOOKS = 2000
"""A look takes some 20 µs, so all of them cost at most a few hundredths of a second."""


class DrawWatch:
    """Attributes the moves of streams to purposes.

    Parameters
    ----------
    digests:
        Gives the digest of every known stream.
    """

    def __init__(self, digests: Callable[[], dict[str, str]]) -> None:
        self.looking = True
        self._digests = digests
        self._last = digests()
        self._epochs = 0
        self._left = _MOST_LOOKS
        self._seen: dict[str, set[str]] = {}
        self._new: dict[str, list[str]] = {}

    def look(self, purpose: str) -> None:
        """Attribute what moved since the last look to `purpose`."""
        digests, last = self._digests(), self._last
        for name, digest in digests.items():
            if last.get(name, digest) != digest and purpose not in self._seen.setdefault(name, set()):
                self._seen[name].add(purpose)
                self._new.setdefault(name, []).append(purpose)
        self._last = digests
        self._left -= 1
        self.looking = self._left > 0

    def epoch(self, digests: dict[str, str]) -> None:
        """Look again at the beginning of an epoch."""
        self._epochs += 1
        if not self.looking and self._epochs <= _EPOCHS and self._left > 0:
            self.looking, self._last = True, digests

    def step(self, number: int) -> dict[str, list[str]]:
        """Return what was newly seen when step `number` is done; in later steps of an epoch nobody looks."""
        self.looking = self.looking and number < _FIRST_STEPS
        new, self._new = self._new, {}
        return new


def forward_purpose(module: torch.nn.Module) -> str:
    """Return what a forward draws for: `dropout` if the module has such a layer that is active, else `sampling`."""
    layers = (part for part in module.modules() if isinstance(part, torch.nn.modules.dropout._DropoutNd))
    return "dropout" if any(layer.training and layer.p > 0 for layer in layers) else "sampling"


def numbers_of(dataset: Any) -> dict[str, Any]:
    """Return the plain numbers among the attributes of a data set, of what it wraps and of its transform.

    They are what an augmentation schedule changes, where it changes anything that can be seen. No code of the script's
    runs for it.
    """
    found: dict[str, Any] = {}
    _numbers(dataset, "", found, 0)
    return found


def _numbers(value: Any, prefix: str, found: dict[str, Any], depth: int) -> None:
    for name, member in list(getattr(value, "__dict__", {}).items())[:_MOST_NUMBERS]:
        if type(member) in (bool, int, float) and len(prefix + name) <= 200 and len(found) < _MOST_NUMBERS:
            found[prefix + name] = member
        elif name in ("dataset", "transform", "transforms", "target_transform") and depth < 4:
            members = member if isinstance(member, (list, tuple)) else (member,)
            for number, inner in enumerate(members):
                place = f"{prefix}{name}." if len(members) == 1 else f"{prefix}{name}.{number}."
                _numbers(inner, place, found, depth + 1)
