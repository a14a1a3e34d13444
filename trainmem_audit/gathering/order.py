"""The order as consumed: for every epoch its digest, its distinct indices, and what its sampler and workers were told.

Memory is bounded: 1000 epochs, and the indices of those that are under way up to 2^22. Longer epochs still have a
digest. An epoch ends when the second after it, of the same loader, begins: a step may consume the last batch of one and
the first of the next.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from typing import Any

from blake3 import blake3

from trainmem_audit.documents.common import Scalar
from trainmem_audit.documents.record_order import EpochFacts, OrderFacts, ResumeFacts
from trainmem_audit.documents.steplog import Epoch, Inventory, Line, Order, Step

__all__ = ["MOST_EPOCHS", "MOST_INDICES", "OrderCollector"]

MOST_EPOCHS = 1000
MOST_INDICES = 2**22
_MOST_BATCHES = 2**16
_MOST_RESUMES = 1000
_HEAD = 16 * 8


@dataclass
class _Epoch:
    """An epoch under way."""

    facts: dict[str, Any]
    hasher: Any = field(default_factory=blake3)
    head: bytes = b""
    indices: array[int] | None = field(default_factory=lambda: array("q"))
    indexed: bool = True

    def finish(self) -> EpochFacts:
        """Return what is to be kept of it."""
        facts = self.facts
        if self.indexed and facts["samples"]:
            facts["digest"] = self.hasher.hexdigest()
            if len(self.head) == _HEAD:
                facts["head"] = blake3(self.head).hexdigest()
            if self.indices:
                facts |= {"distinct": len(set(self.indices))}
                facts |= {"smallest": min(self.indices), "largest": max(self.indices)}
                facts["ascending"] = all(index == at for at, index in enumerate(self.indices))
        return EpochFacts.model_validate(facts)


class OrderCollector:
    """Takes the lines, and the indices of each step after its line."""

    def __init__(self) -> None:
        self._done: list[EpochFacts] = []
        self._open: dict[str, list[_Epoch]] = {}
        self._latest: _Epoch | None = None
        self._beyond = 0
        self._unplaced = 0
        self._loose = b""
        self._unseen = 0
        self._resumes: list[ResumeFacts] = []
        self._kept = 0
        self._due: list[tuple[_Epoch | None, int]] = []
        self._batches: dict[str, str] = {}
        self._recurring = 0
        self._changed = 0
        self._unexplained: int | None = None
        self._data: dict[str, dict[str, Scalar]] = {}
        self._rng: dict[str, str] = {}
        self._moved = False
        self._workers_draw = False
        self._data_changed = False

    def take(self, line: Line) -> None:
        """Add one line."""
        match line:
            case Inventory():
                for item in line.resumed or ():
                    if len(self._resumes) < _MOST_RESUMES:
                        self._resumes.append(ResumeFacts(at=line.i, optimizer=item.optimizer, steps=item.steps))
                self._workers_draw |= any(worker.consumed for worker in line.workers or ())
            case Epoch():
                self._begin(line)
            case Step():
                self._step(line)

    def _begin(self, line: Epoch) -> None:
        if line.data is not None:
            self._data_changed |= line.loader in self._data
            self._data[line.loader] = line.data
        self._look(line.rng)
        if len(self._done) + sum(map(len, self._open.values())) >= MOST_EPOCHS:
            self._beyond += 1
            self._latest = None
            return
        under_way = self._open.setdefault(line.loader, [])
        while len(under_way) > 1:
            self._close(under_way.pop(0))
        self._latest = _Epoch(
            {
                "loader": line.loader,
                "epoch": line.epoch,
                "first": line.i,
                "steps": 0,
                "samples": 0,
                "segment": len(self._resumes),
                "sampler_epoch": line.sampler_epoch,
                "worker_seed": line.worker_seed,
                "data": self._data.get(line.loader),
            }
        )
        under_way.append(self._latest)

    def _close(self, epoch: _Epoch) -> None:
        self._kept -= len(epoch.indices or ())
        self._done.append(epoch.finish())
        epoch.indices = None

    def _step(self, line: Step) -> None:
        order = line.order
        self._look(line.rng)
        if order is not None:
            self._recur(line, order)
        elif line.inputs is None:
            self._unseen += 1
        self._moved = False
        self._due = []
        if order is None:
            return
        for epoch, samples in self._parts(order):
            if epoch is None:
                self._unplaced += self._beyond == 0
            else:
                facts = epoch.facts
                facts["samples"] += samples
                facts["steps"] += 1
                facts.setdefault("optimizer", line.optimizer)
                epoch.indexed &= order.index is not None
            if order.index is not None:
                self._due.append((epoch, 8 * samples))

    def _parts(self, order: Order) -> list[tuple[_Epoch | None, int]]:
        if order.parts is None:
            return [(self._latest, order.n)]
        return [(self._find(loader, epoch), samples) for loader, epoch, samples in order.parts]

    def _find(self, loader: str, number: int) -> _Epoch | None:
        return next((epoch for epoch in self._open.get(loader, ()) if epoch.facts["epoch"] == number), None)

    def _look(self, rng: dict[str, str]) -> None:
        self._moved |= any(self._rng.get(name, digest) != digest for name, digest in rng.items())
        self._rng.update(rng)

    def _recur(self, line: Step, order: Order) -> None:
        """Compare the content of a batch with that of the same indices earlier."""
        if order.index is None:
            return
        old = self._batches.get(order.index)
        if old is None:
            if len(self._batches) < _MOST_BATCHES:
                self._batches[order.index] = order.content
            return
        self._recurring += 1
        if old != order.content:
            self._changed += 1
            if not (self._moved or self._workers_draw or self._data_changed) and self._unexplained is None:
                self._unexplained = line.i

    def indices(self, chunk: bytes) -> None:
        """Add sample indices of the step that was taken last, in pieces."""
        while chunk and self._due:
            epoch, left = self._due[0]
            piece, chunk = chunk[:left], chunk[left:]
            if epoch is not None:
                self._add(epoch, piece)
            elif self._beyond == 0 and len(self._loose) < _HEAD:
                self._loose += piece[: _HEAD - len(self._loose)]
            if left > len(piece):
                self._due[0] = (epoch, left - len(piece))
            else:
                self._due.pop(0)

    def _add(self, epoch: _Epoch, piece: bytes) -> None:
        epoch.hasher.update(piece)
        if len(epoch.head) < _HEAD:
            epoch.head += piece[: _HEAD - len(epoch.head)]
        if epoch.indices is None:
            return
        count = len(piece) // 8
        if self._kept + count > MOST_INDICES or len(piece) % 8:
            self._kept -= len(epoch.indices)
            epoch.indices = None
            return
        values = array("q", piece)
        if sys.byteorder == "big":
            values.byteswap()
        epoch.indices.extend(values)
        self._kept += count

    def _tells(self) -> bool:
        """Whether the first indices outside of epochs are enough to tell one order from another."""
        in_sequence = b"".join(index.to_bytes(8, "little") for index in range(_HEAD // 8))
        return len(self._loose) == _HEAD and self._loose != in_sequence

    def finish(self) -> OrderFacts:
        """Return the facts, epochs in the order in which they began."""
        for epochs in self._open.values():
            for epoch in epochs:
                self._close(epoch)
        self._open.clear()
        return OrderFacts(
            epochs=tuple(sorted(self._done, key=lambda epoch: (epoch.first, epoch.loader, epoch.epoch))),
            beyond=self._beyond,
            unplaced=self._unplaced,
            unplaced_head=blake3(self._loose).hexdigest() if self._tells() else None,
            unseen=self._unseen,
            resumes=tuple(self._resumes),
            recurring=self._recurring,
            changed=self._changed,
            unexplained=self._unexplained,
        )
