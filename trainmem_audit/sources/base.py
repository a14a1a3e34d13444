"""What every kind of component gives to the recorder: its labels, and its tensors or values right now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from trainmem_audit.canonical import float_text
from trainmem_audit.privacy import REDACTED, is_secret_value, public_text

__all__ = ["ComponentState", "Labels", "NamedSource", "Saved", "Source", "plain_value"]


@dataclass(frozen=True)
class Labels:
    """The labels of STANDARD § 1. `lifetime_steps` where a formula gives it, e.g. 1/(1-β)."""

    source: str
    lifetime: str
    visibility: str = "unknown"
    lifetime_steps: float | None = None


@dataclass(frozen=True)
class ComponentState:
    """A component at one moment: either named tensors (aliases, not copies) or a tree of plain values."""

    name: str
    labels: Labels
    tensors: list[tuple[str, torch.Tensor]] | None = None
    values: Any = None


@dataclass(frozen=True)
class Saved:
    """What was kept of one component: its tensors by the names that `components()` gives them, or its plain values."""

    tensors: Mapping[str, torch.Tensor] | None = None
    values: Any = None


class Source(Protocol):
    """A live source of memory."""

    def components(self) -> Iterable[ComponentState]:
        """Give the components as they are now; nothing when the objects are gone."""
        ...

    def restore(self, saved: Mapping[str, Saved]) -> Iterable[str]:
        """Put components back to what `saved` holds of them; give what could not be put back, and why."""
        ...


class NamedSource(Source, Protocol):
    """A source that a program names itself."""

    name: str


_SKIP = object()


def plain_value(value: Any) -> Any:
    """Return `value` as a tree of strings, integers, booleans and `None`, with floats as hex text.

    What has no plain form (functions, modules, objects) is left out of its container. A text that tells who or where,
    or looks like a secret, becomes `{redacted}` (`privacy.public_text`).
    """
    plain = _plain(value)
    return None if plain is _SKIP else plain


def _plain_member(key: str, value: Any) -> Any:
    """Return the plain value of a member; a text under the name of a secret (`api_key`) is none to be recorded."""
    plain = _plain(value)
    if isinstance(value, str) and is_secret_value(key, value):
        return REDACTED
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return public_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return float_text(value)
    if isinstance(value, torch.Tensor):
        return _plain(value.detach().item()) if value.numel() == 1 else _SKIP
    if isinstance(value, dict):
        members = ((public_text(str(key)), _plain_member(str(key), member)) for key, member in value.items())
        return {key: member for key, member in members if member is not _SKIP}
    if isinstance(value, (list, tuple, set, frozenset)):
        items = sorted(value, key=repr) if isinstance(value, (set, frozenset)) else value
        return [member for member in map(_plain, items) if member is not _SKIP]
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return _plain(value.item())  # a NumPy scalar
    return _SKIP
