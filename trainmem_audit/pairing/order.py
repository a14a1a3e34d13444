"""The order of two arms after the branch: the same samples at equal steps, or equal multisets inside the windows."""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from blake3 import blake3

from trainmem_audit.documents.steplog import Order, Step
from trainmem_audit.errors import FormatError
from trainmem_audit.pairing.clauses import ClauseBuilder
from trainmem_audit.steplog import ORDER_FILE

__all__ = ["MOST_SAMPLES", "IndexFile", "Windows", "batch_difference"]

MOST_SAMPLES = 2**22
"""How many distinct samples, and how many distinct batches, of windows are held."""
_CHUNK = 2**20


def batch_difference(left: Step, right: Step) -> tuple[str, str] | None:
    """Return (name, what differs) of the batches of two steps, `None` where nothing does.

    Content is looked at where there are no indices, and where they are equal: the same samples with other values.
    """
    a, b = left.order, right.order
    if left.optimizer != right.optimizer:
        return "steps", f"{left.optimizer or 'the optimizer'} steps in one arm, {right.optimizer} in the other"
    if a is None or b is None:
        return None if a is b else ("order", "one arm alone consumed batches of a loader")
    if (a.n, a.batches) != (b.n, b.batches):
        return "order", f"{a.n} samples in {a.batches} batches in one arm, {b.n} in {b.batches} in the other"
    if a.index != b.index:
        return "order.index", "other samples"
    if a.content != b.content:
        return "order.content", "other batches" if a.index is None else "the same samples with other values"
    return None


class IndexFile:
    """The consumed sample indices of an arm, of which those inside of windows are read."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._skip = 0

    def pass_by(self, order: Order | None) -> None:
        """Leave out the indices of a step."""
        if order is not None and order.index is not None:
            self._skip += 8 * order.n

    def count(self, order: Order, into: Counter[int], sign: int) -> None:
        """Add `sign` to the count of each index of a step.

        Raises
        ------
        FormatError
            If they are not there, do not have the digest of the step log, or are too many.
        """
        for _ in self._pieces(self._skip):
            pass
        self._skip = 0
        hasher = blake3()
        for data in self._pieces(8 * order.n):
            hasher.update(data)
            values = array("q", data)
            if sys.byteorder == "big":
                values.byteswap()
            _add(into, values, sign)
        if hasher.hexdigest() != order.index:
            raise FormatError("the indices do not have the digest of the step log", where=ORDER_FILE)

    def _pieces(self, length: int) -> Iterator[bytes]:
        while length:
            data = self._file.read(min(length, _CHUNK))
            if not data or len(data) % 8:
                raise FormatError("the file is too short", where=ORDER_FILE, got="its end")
            yield data
            length -= len(data)


def _add(into: Counter[int], values: Sequence[int], sign: int) -> None:
    for value in values:
        into[value] += sign
        if into[value] == 0:
            del into[value]
    if len(into) > MOST_SAMPLES:
        most = f"at most {MOST_SAMPLES} that are apart"
        raise FormatError("the windows hold too many samples", where=ORDER_FILE, expected=most)


class Windows:
    """The windows of order primitives: which steps lie inside, and whether both arms saw the same samples there.

    A step lies inside if one of its batches does; the samples of all such steps together are compared. Equal batches
    in another order need no more than the log; where batches differ the indices decide.

    Parameters
    ----------
    files:
        The sample indices of the two arms, where they are at hand.
    """

    def __init__(self, files: tuple[BinaryIO | None, BinaryIO | None]) -> None:
        self._files = [None if file is None else IndexFile(file) for file in files]
        self._spans: set[tuple[int, int]] = set()
        self._batches: Counter[str] = Counter()
        self._samples: Counter[int] = Counter()
        self._unread = ""
        self._first: int | None = None
        self._last = 0
        self._moved = False

    def __bool__(self) -> bool:
        return bool(self._spans)

    def add(self, position: int, first: int, end: int) -> None:
        """Add the window [first, end) of batches, counted from the batch at `position` of the log."""
        self._spans.add((position + first, position + end))

    def hold(self, position: int, order: Order | None) -> bool:
        """Tell whether the batches of a step, the first of which is at `position`, lie inside."""
        end = position + (order.batches if order is not None else 1)
        return any(position < last and first < end for first, last in self._spans)

    def inside(self, left: Step, right: Step) -> None:
        """Count the samples of a step inside of the windows."""
        self._first = left.i if self._first is None else self._first
        self._last = left.i
        self._moved |= batch_difference(left, right) is not None
        for at, (step, sign) in enumerate(((left, 1), (right, -1))):
            if step.order is None or step.order.index is None:
                self._unread = self._unread or "steps without sample indices"
                continue
            self._count(at, step.order, step.order.index, sign)

    def _count(self, at: int, order: Order, index: str, sign: int) -> None:
        self._batches[index] += sign
        if self._batches[index] == 0:
            del self._batches[index]
        file = self._files[at]
        if file is None or self._unread:
            self._unread = self._unread or "the sample indices are not at hand"
            return
        try:
            file.count(order, self._samples, sign)
        except FormatError as error:
            self._unread = error.message
        if len(self._batches) > MOST_SAMPLES:
            self._unread = "the windows hold too many batches"
            self._batches = Counter({"": 1})

    def outside(self, left: Step, right: Step) -> None:
        """Pass by a step outside."""
        for file, step in zip(self._files, (left, right), strict=True):
            if file is not None and not self._unread:
                file.pass_by(step.order)

    def finish(self, clause: ClauseBuilder) -> bool:
        """Decide the windows, and return whether anything in them was at another place in one arm."""
        where = f"{len(self._spans)} windows, steps {self._first} to {self._last}"
        if self._first is None:
            clause.doubt(None, "order", "the logs have no step inside the windows")
            return False
        if not self._batches:
            clause.see()
            clause.remark(f"windows form: the same batches inside ({where})")
        elif self._unread:
            clause.doubt(self._first, "order.index", f"other batches inside the windows, and {self._unread} ({where})")
        elif self._samples:
            sample, count = min(self._samples.items())
            more = "more often" if count > 0 else "less often"
            detail = (
                f"sample {sample} is seen {more} in the treated arm, and {len(self._samples)} samples differ in all"
            )
            clause.fail(self._first, "order.index", f"another multiset inside the windows: {detail} ({where})")
        else:
            clause.see()
            clause.remark(f"windows form: the same multiset of samples inside ({where})")
        return self._moved
