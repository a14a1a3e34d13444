"""The forms of step lines: how a line that is like one before it is checked without parsing it again.

A training loop writes the same line over and over, in which only digests, counts and floats change. When a `step` line
has passed the whole check (`steplog`), its *form* is that line with those leaves left open. A later line that fits the
form is canonical and valid for the reasons for which the first one was:

- What is not open is equal byte for byte: members and their order, names, strings, booleans, punctuation. The names
  were introduced before, and none is ever withdrawn.
- What is open stands where the model takes any value of its kind, and is spelt as RFC 8785 spells it: a digest is
  64 hex digits, a count has at most 15 digits and no zero in front, a float is what `float.hex` writes.
- The values of a component are hashed as they stand in the line, and have the digest that `state` gives.

Left to the reader: the chain, and the number of the step. A line that fits no form is not wrong; it goes through the
whole check, which alone makes errors. So a form may be too narrow, and must never be too wide.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from trainmem_audit.canonical import canonical_value_digest, line_bytes
from trainmem_audit.documents.steplog import Step

__all__ = ["FittingStep", "LineForm", "LineForms", "Samples"]

_OPEN: Final = frozenset({"chain", "i", "inputs", "order", "rng", "scalars", "state", "values"})
"""The members of a step line whose leaves may change; of all others the form holds the very text."""
_KINDS: Final = (
    rb"[0-9a-f]{64}",
    rb"nan|-?inf|-?0x0\.0p\+0|-?0x[01]\.[0-9a-f]{13}p[+-](?:0|[1-9][0-9]{0,3})",
)
_TEXTS: Final = tuple((re.compile(kind), b'"(?:' + kind + b')"') for kind in _KINDS)
_COUNT: Final = b"(?:0|[1-9][0-9]{0,14})"
_LONGEST: Final = 2**15
_KEPT: Final = 8
_LEARNT: Final = 64
"""How long a line may be that gives a form, how many forms are tried, and how many are made for one log: a hostile one
may have another form in every line."""


@dataclass(slots=True)
class Samples:
    """The samples of a step, as `documents.steplog.Order` has them."""

    index: str | None
    n: int


class FittingStep:
    """A step line that fits a form. The side files are checked with what it holds; its model is made on demand."""

    __slots__ = ("_line", "_model", "i", "order")

    def __init__(self, line: bytes, i: int, order: Samples | None) -> None:
        self._line = line
        self._model: Step | None = None
        self.i = i
        self.order = order

    @property
    def model(self) -> Step:
        """The line as every other reader of it makes it."""
        if self._model is None:
            self._model = Step.parse(self._line, "a step line")
        return self._model

    @property
    def state(self) -> dict[str, str]:
        """The component digests."""
        return self.model.state


class LineForm:
    """The form of one step line, given the members that it was parsed to (in their order in the line)."""

    def __init__(self, members: dict[str, Any]) -> None:
        self._indexed = "index" in members.get("order", ())
        self._valued = tuple(members.get("values", ()))
        self._match = re.compile(_object(self._pieces(members))).fullmatch

    def fit(self, line: bytes) -> FittingStep | None:
        """Return the step if the line fits and its values have their digests."""
        match = self._match(line)
        if match is None:
            return None
        i, *found = match.groups()
        order = None
        if self._indexed:
            index, n, *found = found
            order = Samples(index[1:-1].decode(), int(n))
        for state, values in zip(found, found[len(self._valued) :], strict=False):
            if canonical_value_digest(values).hex().encode() != state[1:-1]:
                return None
        return FittingStep(line, int(i), order)

    def _pieces(self, members: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Give the pattern of each member; groups are the number, index and count of the samples, states, values."""
        for name, member in members.items():
            if name not in _OPEN:
                yield name, _literal(member)
            elif name == "i":
                yield name, _group(_pattern(member))
            elif name == "order":
                yield name, _object(self._captured(member, ("index", "n") if self._indexed else ()))
            elif name in ("state", "values"):
                yield name, _object(self._captured(member, self._valued))
            else:
                yield name, _pattern(member)

    @staticmethod
    def _captured(members: dict[str, Any], names: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
        for name, member in members.items():
            yield name, _group(_pattern(member)) if name in names else _pattern(member)


class LineForms:
    """The forms of a log, the one that fitted last first."""

    def __init__(self) -> None:
        self._forms: list[LineForm] = []
        self._learnt = 0

    def fit(self, line: bytes) -> FittingStep | None:
        """Return the step if the line fits any form."""
        for at, form in enumerate(self._forms):
            step = form.fit(line)
            if step is not None:
                if at:
                    self._forms.insert(0, self._forms.pop(at))
                return step
        return None

    def learn(self, line: bytes, members: dict[str, Any]) -> None:
        """Add the form of a step line that has passed the whole check."""
        if len(line) <= _LONGEST and self._learnt < _LEARNT:
            self._learnt += 1
            self._forms.insert(0, LineForm(members))
            del self._forms[_KEPT:]


def _object(pieces: Iterator[tuple[str, bytes]]) -> bytes:
    return rb"\{" + b",".join(_literal(name) + b":" + pattern for name, pattern in pieces) + rb"\}"


def _pattern(value: Any) -> bytes:
    """Return the pattern of a value with its leaves left open."""
    match value:
        case dict():
            return _object((name, _pattern(member)) for name, member in value.items())
        case list():
            return rb"\[" + b",".join(map(_pattern, value)) + rb"\]"
        case str():
            text = value.encode()
            return next((pattern for kind, pattern in _TEXTS if kind.fullmatch(text)), _literal(value))
        case int() if not isinstance(value, bool) and 0 <= value < 10**15:
            return _COUNT
    return _literal(value)


def _literal(value: Any) -> bytes:
    return re.escape(line_bytes(value))


def _group(pattern: bytes) -> bytes:
    return b"(" + pattern + b")"
