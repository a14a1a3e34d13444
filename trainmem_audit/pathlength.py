"""How far the weights went: distances between consecutive snapshots, and the length of the path through them.

The path of the parameters is the third source of training memory (STANDARD § 1, S3). It is measured from the record
alone, without torch: every snapshot is read once for each component, in pieces, and what was read must have the digest
that the step log gives. L2 norms over all tensors of a component, in float64.

The length is a lower bound of the true one: between two snapshots the weights went at least the straight line. Where
every step has a snapshot it is the length of the path through the states after the steps.

A record may be hostile: the pieces of the first snapshot and of the one before lie in files of our own meanwhile, so
that no file of the record is read again and again, whatever refers to it, and nothing grows with the number of steps.
Not here: the sums (`norms`, which needs NumPy and is loaded when there is something to measure), how it is shown
(`report`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from tempfile import SpooledTemporaryFile
from typing import IO, Final, NamedTuple

from blake3 import blake3

from trainmem_audit.canonical import canonical_bytes, component_digest
from trainmem_audit.documents.steplog import Component, Inventory, Line, Snapshot, Step
from trainmem_audit.errors import FormatError
from trainmem_audit.rundir import RunReader
from trainmem_audit.runs import open_snapshot

__all__ = ["Interval", "SnapshotStates", "WeightPath", "Weights", "measure_weights"]

_MOST_COMPONENTS: Final = 8
_MOST_INTERVALS: Final = 1000
_MOST_RETURNS: Final = 16
"""How often the weights may be those of an older snapshot than the one before: its file is then read once more."""
_IN_MEMORY: Final = 2**24
"""Bytes of each of three copies of a component that are held in memory; larger ones lie in temporary files."""


class Interval(NamedTuple):
    """From the snapshot before to that after `step`; a distance is `None` where the two hold different tensors.

    `relative` is the distance over the norm where it began, `from_first` the distance from the first snapshot,
    `length` the sum of all distances so far. Numbers may be infinite or NaN, as the weights may be.
    """

    step: int
    distance: float | None
    relative: float | None
    from_first: float | None
    length: float
    norm: float


@dataclass(frozen=True)
class WeightPath:
    """The path of one component through the snapshots of a run.

    `intervals` are all of them, or each `every`-th and the last where they are many. `broken` counts the intervals
    whose ends hold different tensors, and which add nothing to the length. `uncounted` are (dtype, tensors) that are no
    floating-point numbers. `problem` says why the path ends before the run does.
    """

    component: str
    first: int
    last: int
    snapshots: int
    first_norm: float
    last_norm: float
    length: float
    from_first: float | None
    whole: bool
    intervals: tuple[Interval, ...] = ()
    every: int = 1
    broken: int = 0
    uncounted: tuple[tuple[str, int], ...] = ()
    problem: str = ""

    @property
    def straightness(self) -> float | None:
        """Return the distance between both ends over the length: 1 for a straight line, near 0 for a walk in place."""
        if self.broken or self.from_first is None or not 0 < self.length < math.inf:
            return None
        return self.from_first / self.length


@dataclass(frozen=True)
class Weights:
    """The paths of the weights; `left_out` counts components beyond the first few, `problem` says why there is none."""

    paths: tuple[WeightPath, ...] = ()
    left_out: int = 0
    problem: str = ""


class _Kept(NamedTuple):
    """A component in a snapshot: where its tensors lie (there or in an earlier one), and what the log says of them."""

    step: int
    holder: Snapshot
    digest: str
    component: Component


class SnapshotStates:
    """Gathers from the lines of a log which snapshot holds which weights; needs no NumPy."""

    def __init__(self) -> None:
        self.kept: dict[str, list[_Kept]] = {}
        self.left_out: set[str] = set()
        self._components: dict[str, Component] = {}
        self._state: dict[str, str] = {}
        self._lines: dict[int, Snapshot] = {}

    def take(self, line: Line) -> None:
        """Add one line that the reader has checked."""
        match line:
            case Inventory():
                self._components |= line.components or {}
            case Step():
                self._state = line.state
            case Snapshot():
                self._take(line)

    def _take(self, line: Snapshot) -> None:
        self._lines[line.step] = line
        unchanged = line.unchanged or {}
        for name, digest in self._state.items():
            component = self._components[name]
            if component.source != "S3" or component.tensors is None:
                continue
            if name not in self.kept and len(self.kept) >= _MOST_COMPONENTS:
                self.left_out.add(name)
                continue
            holder = self._lines[unchanged.get(name, line.step)]
            self.kept.setdefault(name, []).append(_Kept(line.step, holder, digest, component))


def measure_weights(reader: RunReader, states: SnapshotStates) -> Weights | None:
    """Return how far the weights went, `None` for a record without snapshots of any; never raises for a bad file."""
    if not states.kept:
        return None
    try:
        paths = tuple(_Walk(reader, name).go(kept) for name, kept in states.kept.items())
    except OSError as error:
        return Weights(problem=f"there is no room for temporary files: {error.strerror or type(error).__name__}")
    return Weights(paths, len(states.left_out))


class _Walk:
    """Goes through the snapshots of one component."""

    def __init__(self, reader: RunReader, name: str) -> None:
        self._reader = reader
        self._name = name
        self._intervals: list[Interval] = []
        self._every = 1
        self._measured = 0
        self._broken = 0
        self._returns = 0
        self._whole = True

    def go(self, all_kept: list[_Kept]) -> WeightPath:
        first, last, problem = all_kept[0], all_kept[0], ""
        origin = latest = Interval(first.step, None, None, 0.0, 0.0, math.nan)
        with ExitStack() as stack:
            start, before, now = (stack.enter_context(SpooledTemporaryFile(_IN_MEMORY)) for _ in range(3))
            try:
                norm, _, _ = self._read(first, (start, before), None, None)
                origin = latest = origin._replace(norm=norm)
                for kept in all_kept[1:]:
                    if kept.digest == last.digest:
                        latest = self._next(latest, kept.step, latest.norm, 0.0, latest.from_first)
                    else:
                        self._count_return(kept)
                        sides = (before if _alike(kept, last) else None, start if _alike(kept, first) else None)
                        latest = self._next(latest, kept.step, *self._read(kept, (now,), *sides))
                        before, now = now, before
                    self._whole = self._whole and kept.step == last.step + 1
                    last = kept
            except FormatError as error:
                problem = f"{error.where}: {error.message}" + (f" (got {error.got})" if error.got else "")
        if latest is not origin and self._intervals[-1] is not latest:
            self._intervals.append(latest)
        return WeightPath(
            component=self._name,
            first=first.step,
            last=last.step,
            snapshots=self._measured + (0 if math.isnan(origin.norm) and problem else 1),
            first_norm=origin.norm,
            last_norm=latest.norm,
            length=latest.length,
            from_first=latest.from_first,
            whole=self._whole and not self._broken and not problem,
            intervals=tuple(self._intervals),
            every=self._every,
            broken=self._broken,
            uncounted=_uncounted(last),
            problem=problem,
        )

    def _next(
        self, latest: Interval, step: int, norm: float, distance: float | None, from_first: float | None
    ) -> Interval:
        """Add the interval that ends at `step`."""
        relative = distance / latest.norm if distance is not None and latest.norm else None
        length = latest.length + (distance or 0.0)
        interval = Interval(step, distance, relative, from_first, length, norm)
        self._measured += 1
        self._broken += distance is None
        if self._measured % self._every == 0:
            self._intervals.append(interval)
        if len(self._intervals) >= _MOST_INTERVALS:
            self._intervals = self._intervals[1::2]
            self._every *= 2
        return interval

    def _count_return(self, kept: _Kept) -> None:
        self._returns += kept.holder.step != kept.step
        if self._returns > _MOST_RETURNS:
            expected = f"at most {_MOST_RETURNS} snapshots of {self._name[:80]} that refer to an older one"
            raise FormatError("the weights go back too often", where=kept.holder.file, expected=expected)

    def _read(
        self, kept: _Kept, copies: tuple[IO[bytes], ...], before: IO[bytes] | None, start: IO[bytes] | None
    ) -> tuple[float, float | None, float | None]:
        """Return the norm and the distances from two others, and copy what is read; it must be what the log says."""
        from trainmem_audit.norms import Sums

        others = (before, start)
        for file in (*copies, *others):
            if file is not None:
                file.seek(0)
        sums = Sums()
        try:
            for dtype, piece in self._pieces(kept):
                for copy in copies:
                    copy.write(piece)
                sums.add(dtype, piece, *(None if other is None else other.read(len(piece)) for other in others))
        except ValueError as error:
            message = "the tensors have other sizes than the step log says"
            raise FormatError(message, where=kept.holder.file, got=str(error)[:200]) from None
        distances = [
            None if other is None else math.sqrt(squares) if squares >= 0 else math.nan
            for other, squares in zip(others, sums.from_others, strict=True)
        ]
        return math.sqrt(sums.squares) if sums.squares >= 0 else math.nan, distances[0], distances[1]

    def _pieces(self, kept: _Kept) -> Iterator[tuple[str, bytes]]:
        """Yield (dtype, piece) of all tensors.

        Raises
        ------
        FormatError
            At the end, if they have not the digest that the step log gives; what was yielded is then worth nothing.
        """
        tensors = kept.component.tensors or ()
        digests: list[bytes] = []
        hasher = blake3()
        file = open_snapshot(self._reader, kept.holder)
        for piece in file.pieces(self._name, (name for name, _, _ in tensors)):
            if piece:
                hasher.update(piece)
                yield tensors[len(digests)][1], piece
            else:
                digests.append(hasher.digest())
                hasher = blake3()
        if component_digest(canonical_bytes(tensors), digests).hex() != kept.digest:
            got = f"step {kept.step}, {self._name}"[:200]
            raise FormatError("weights that have not the digest of the step log", where=kept.holder.file, got=got)


def _alike(one: _Kept, other: _Kept) -> bool:
    return one.component.tensors == other.component.tensors


def _uncounted(kept: _Kept) -> tuple[tuple[str, int], ...]:
    from trainmem_audit.norms import COUNTED

    return tuple(sorted(Counter(dtype for _, dtype, _ in kept.component.tensors or () if dtype not in COUNTED).items()))
