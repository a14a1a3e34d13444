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
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from trainmem_audit.canonical import canonical_value_digest, line_bytes
from trainmem_audit.documents.steplog import Step

__all__ = ["FittingStep", "LineForm", "LineForms", "Samples"]

_HEX: Final = b"0123456789abcdef"
_DIGEST: Final = b'"(.{64})"'
"""Any 64 bytes: that they are hex digits is looked at for all digests of a line at once, which is much faster."""
_FLOAT: Final = rb"nan|-?inf|-?0x0\.0p\+0|-?0x[01]\.[0-9a-f]{13}p[+-](?:0|[1-9][0-9]{0,3})"
_COUNT: Final = rb"0|[1-9][0-9]{0,14}"
_is_float: Final = re.compile(_FLOAT).fullmatch
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

    __slots__ = ("_form", "_match", "i", "order")

    def __init__(self, form: LineForm, match: re.Match[bytes]) -> None:
        self._form = form
        self._match = match
        self.i = int(match[form.i])
        self.order = Samples(match[form.index].decode(), int(match[form.n])) if form.index else None

    @property
    def state(self) -> dict[str, str]:
        """The component digests."""
        return {name: self._match[group].decode() for name, group in self._form.state.items()}

    @property
    def rng(self) -> dict[str, str]:
        """The digests of the random streams."""
        return {name: self._match[group].decode() for name, group in self._form.rng.items()}

    @property
    def model(self) -> Step:
        """The line as the whole check returns it."""
        step: Step = Step.parse(self._match.string, "a step line")
        return step


class LineForm:
    """The form of one step line, given the members that it was parsed to (in their order in the line).

    It is a pattern, and the numbers of its groups: of all digests, of the step's number, of digest and count of the
    samples (0 where there are no indices), of the digests of components and streams, and of values with their digests.
    """

    def __init__(self, members: dict[str, Any]) -> None:
        self.i = self.index = self.n = self._groups = 0
        self.state: dict[str, int] = {}
        self.rng: dict[str, int] = {}
        self._digests: list[int] = []  # never empty: there is the chain
        self._values: list[tuple[int, int]] = []
        pattern = _object((name, self._member(name, member)) for name, member in members.items())
        self._match = re.compile(pattern, re.DOTALL).fullmatch

    def fit(self, line: bytes) -> FittingStep | None:
        """Return the step if the line fits and its values have their digests."""
        match = self._match(line)
        if match is None or b"".join(match.group(0, *self._digests)[1:]).translate(None, _HEX):
            return None
        for state, values in self._values:
            if canonical_value_digest(match[values]).hex().encode() != match[state]:
                return None
        return FittingStep(self, match)

    def _member(self, name: str, member: Any) -> bytes:
        """Return the pattern of a member of the line; the groups are numbered as they come."""
        match name:
            case "chain" | "inputs":
                return self._digest()
            case "i":
                self.i, pattern = self._group(_COUNT)
                return pattern
            case "order":
                return _object((part, self._sample(part, value)) for part, value in member.items())
            case "rng":
                return _object((stream, self._named(self.rng, stream)) for stream in member)
            case "state":
                return _object((component, self._named(self.state, component)) for component in member)
            case "values":
                return _object((component, self._value(component, values)) for component, values in member.items())
            case "scalars":
                return _pattern(member)
        return _literal(member)  # `t`, `optimizer`, `skipped`, and whatever may come: its very text

    def _group(self, pattern: bytes) -> tuple[int, bytes]:
        self._groups += 1
        return self._groups, b"(" + pattern + b")"

    def _digest(self) -> bytes:
        self._groups += 1
        self._digests.append(self._groups)
        return _DIGEST

    def _named(self, groups: dict[str, int], name: str) -> bytes:
        pattern = self._digest()
        groups[name] = self._groups
        return pattern

    def _value(self, component: str, values: Any) -> bytes:
        group, pattern = self._group(_pattern(values))
        self._values.append((self.state[component], group))
        return pattern

    def _sample(self, part: str, member: Any) -> bytes:
        match part:
            case "n":
                self.n, pattern = self._group(_COUNT)
                return pattern
            case "index":
                pattern = self._digest()
                self.index = self._groups
                return pattern
            case "content":
                return self._digest()
            case "batches":
                return _pattern(member)
        return _literal(member)


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


def _object(pieces: Iterable[tuple[str, bytes]]) -> bytes:
    return rb"\{" + b",".join(_literal(name) + b":" + pattern for name, pattern in pieces) + rb"\}"


def _pattern(value: Any) -> bytes:
    """Return the pattern of a value in which floats and counts are left open."""
    match value:
        case dict():
            return _object((name, _pattern(member)) for name, member in value.items())
        case list():
            return rb"\[" + b",".join(map(_pattern, value)) + rb"\]"
        case str() if _is_float(value.encode()):
            return b'"(?:' + _FLOAT + b')"'
        case int() if not isinstance(value, bool) and value >= 0:
            return b"(?:" + _COUNT + b")"
    return _literal(value)


def _literal(value: Any) -> bytes:
    return re.escape(line_bytes(value))
