"""Random streams of two arms side by side: which differ at a step although both arms should share them.

A stream that differs from the start, and that neither arm moves, feeds no noise into either: an unused generator that
starts from the operating system's entropy, say. It is let be until an arm draws from it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from trainmem_audit.documents.declared import DeclaredContract

__all__ = ["Exempt", "StreamPair"]


@dataclass(frozen=True)
class Exempt:
    """The streams that the arms need not share, as both their RNG contracts declare.

    `always`: independent, or uncontrolled. `later`: those shared until the branch. `windows`: keyed by the sample, so
    that they follow the batches inside of a window. `uncontrolled` caps the label.
    """

    always: frozenset[str]
    later: frozenset[str]
    windows: frozenset[str]
    uncontrolled: tuple[str, ...]

    @classmethod
    def of(cls, first: DeclaredContract | None, second: DeclaredContract | None) -> Exempt:
        """Read it from the contracts of two arms: both must exempt a stream, and either may call it uncontrolled."""
        pairings = [
            {name: stream.pairing for name, stream in (contract.streams or {}).items()} if contract else {}
            for contract in (first, second)
        ]
        left, right = pairings

        def both(*allowed: str) -> frozenset[str]:
            return frozenset(name for name in left if left[name] in allowed and right.get(name) in allowed)

        uncontrolled = sorted(name for side in pairings for name, pairing in side.items() if pairing == "uncontrolled")
        always = both("independent", "uncontrolled")
        later = both("independent", "uncontrolled", "shared-until-branch")
        return cls(always, later, both("sample-keyed"), tuple(dict.fromkeys(uncontrolled)))


@dataclass
class StreamPair:
    """Follows the digests of the streams of both arms.

    `alone` are the streams that one arm only has.
    """

    _last: tuple[dict[str, str], dict[str, str]] = field(default_factory=lambda: ({}, {}))
    _apart: set[str] = field(default_factory=set)

    def start(self, side: int, streams: Mapping[str, str]) -> None:
        """Take the states in which streams of an arm appeared."""
        for name, digest in streams.items():
            self._last[side].setdefault(name, digest)

    def differences(self, left: Mapping[str, str], right: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        """Give (stream, what is wrong with it) at a step of both arms."""
        for name in sorted(left.keys() | right.keys()):
            wrong = self._wrong(name, left.get(name), right.get(name))
            if wrong:
                yield name, wrong
        for known, now in zip(self._last, (left, right), strict=True):
            known.update(now)

    def _wrong(self, name: str, left: str | None, right: str | None) -> str:
        moved = [
            now is not None and name in known and known[name] != now
            for known, now in zip(self._last, (left, right), strict=True)
        ]
        if left is None or right is None:
            return "one arm alone has this stream, and draws from it" if any(moved) else ""
        if left == right:
            self._apart.discard(name)
            return ""
        first, second = (known.get(name) for known in self._last)
        if first is not None and first == second:
            self._apart.add(name)
            return f"{left[:16]} in one arm and {right[:16]} in the other: drawn from differently since it was equal"
        if not any(moved) and name not in self._apart:
            return ""  # it was never equal, and neither arm has moved it
        self._apart.add(name)
        return f"{left[:16]} in one arm and {right[:16]} in the other"
