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

_DIGEST: Final = rb"[0-9a-f]{64}"
_FLOAT: Final = rb"nan|-?inf|-?0x0\.0p\+0|-?0x[01]\.[0-9a-f]{13}p[+-](?:0|[1-9][0-9]{0,3})"
_COUNT: Final = rb"0|[1-9][0-9]{0,14}"
_TEXTS: Final = tuple((re.compile(kind), b'"(?:' + kind + b')"') for kind in (_DIGEST, _FLOAT))
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

    __slots__ = ("_components", "_digests", "_line", "i", "order")

    def __init__(
        self, line: bytes, i: int, order: Samples | None, components: tuple[str, ...], digests: list[bytes]
    ) -> None:
        self._line = line
        self._components = components
        self._digests = digests
        self.i = i
        self.order = order

    @property
    def state(self) -> dict[str, str]:
        """The component digests."""
        return {name: digest.decode() for name, digest in zip(self._components, self._digests, strict=True)}

    @property
    def model(self) -> Step:
        """The line as the whole check returns it."""
        step: Step = Step.parse(self._line, "a step line")
        return step


class LineForm:
    """The form of one step line, given the members that it was parsed to (in their order in the line).

    Its groups: the number of the step; digest and count of the samples, where there are indices; the digest of every
    component; the values, as they stand in the line.
    """

    def __init__(self, members: dict[str, Any]) -> None:
        self._indexed = "index" in members.get("order", ())
        self._components = tuple(members["state"])
        self._valued = tuple(self._components.index(name) for name in members.get("values", ()))
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
            order = Samples(index.decode(), int(n))
        digests = found[: len(self._components)]
        for place, values in zip(self._valued, found[len(self._components) :], strict=True):
            if canonical_value_digest(values).hex().encode() != digests[place]:
                return None
        return FittingStep(line, int(i), order, self._components, digests)

    def _pieces(self, members: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
        """Give the pattern of each member."""
        for name, member in members.items():
            match name:
                case "i":
                    yield name, b"(" + _COUNT + b")"
                case "order" if self._indexed:
                    groups = {"index": b'"(' + _DIGEST + b')"', "n": b"(" + _COUNT + b")"}
                    yield name, _object((part, groups.get(part) or _pattern(member[part])) for part in member)
                case "state":
                    yield name, _object((part, b'"(' + _DIGEST + b')"') for part in member)
                case "values":
                    yield name, _object((part, b"(" + _pattern(values) + b")") for part, values in member.items())
                case "chain" | "inputs" | "order" | "rng" | "scalars":
                    yield name, _pattern(member)
                case _:  # `t`, `optimizer`, `skipped`, and whatever may come: its very text
                    yield name, _literal(member)


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
        case int() if not isinstance(value, bool) and value >= 0:
            return b"(?:" + _COUNT + b")"
    return _literal(value)


def _literal(value: Any) -> bytes:
    return re.escape(line_bytes(value))
