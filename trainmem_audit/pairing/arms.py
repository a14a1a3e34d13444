"""An arm as the certificate reads it: its log cut into steps, each with the interventions that come before it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from trainmem_audit.contract import stream_digest
from trainmem_audit.documents.declared import DeclaredContract
from trainmem_audit.documents.interventions import Branch
from trainmem_audit.documents.steplog import Begin, Component, End, InterventionLine, Inventory, Line, Step
from trainmem_audit.errors import FormatError

__all__ = ["Arm", "Cut", "Side", "cuts"]

MOST_INTERVENTIONS = 64
"""How many interventions an arm may have before one step."""


@dataclass
class Arm:
    """What is read of an arm.

    Parameters
    ----------
    lines:
        The checked lines of its step log (`runs.read_lines`).
    prefix:
        Those of the run that it branched from, where it did and the run is at hand.
    indices:
        Its consumed sample indices (`order/rank-0.i64`), where there are any: read for the windows of order primitives.
    """

    lines: Iterable[Line]
    prefix: Iterable[Line] | None = None
    indices: BinaryIO | None = None


@dataclass
class Cut:
    """What a log says from one step to the next: interventions, what appeared, and the `step` or `end` line.

    `start` are the digests of components before the first update, `streams` those of new random streams.
    """

    begin: Begin | None = None
    interventions: list[InterventionLine] = field(default_factory=list)
    components: dict[str, Component] = field(default_factory=dict)
    start: dict[str, str] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    draws: dict[str, set[str]] = field(default_factory=dict)
    last: Step | End | None = None

    def take(self, line: Line) -> None:
        """Add one line."""
        match line:
            case Begin():
                self.begin = line
                self.streams |= {name: stream_digest(stream) for name, stream in line.streams.items()}
            case Inventory():
                self._appear(line)
            case InterventionLine():
                self.interventions.append(line)
                if len(self.interventions) > MOST_INTERVENTIONS:
                    most = f"at most {MOST_INTERVENTIONS}"
                    raise FormatError("too many interventions at one step", where=f"step {line.i}", expected=most)
            case Step() | End():
                self.last = line

    def _appear(self, line: Inventory) -> None:
        self.components.update(line.components or {})
        self.start.update(line.state or {})
        for name, stream in (line.streams or {}).items():
            self.streams.setdefault(name, stream_digest(stream))
        for name, purposes in (line.draws or {}).items():
            self.draws.setdefault(name, set()).update(purposes)


def cuts(lines: Iterable[Line]) -> Iterator[Cut]:
    """Cut a log; the last one has no `last` where the log just stops."""
    cut, ended = Cut(), False
    for line in lines:
        cut.take(line)
        if cut.last is not None:
            ended = isinstance(cut.last, End)
            yield cut
            cut = Cut()
    if not ended:
        yield cut


@dataclass
class Side:
    """What one arm has said so far."""

    contract: DeclaredContract | None = None
    branch: Branch | None = None
    components: dict[str, Component] = field(default_factory=dict)
    state: dict[str, str] = field(default_factory=dict)
    streams: dict[str, str] = field(default_factory=dict)
    purposes: dict[str, set[str]] = field(default_factory=dict)
    steps: int = 0
    batches: int = 0
    ended: bool = False

    def enter(self, cut: Cut) -> None:
        """Take what comes before the step of a cut."""
        if cut.begin is not None:
            self.contract = cut.begin.declared_contract
            self.branch = None if cut.begin.study is None else cut.begin.study.branch
        self.components.update(cut.components)
        if self.steps == 0:
            self.state |= cut.start
        for name, digest in cut.streams.items():
            self.streams.setdefault(name, digest)
        for name, purposes in cut.draws.items():
            self.purposes.setdefault(name, set()).update(purposes)

    def leave(self, cut: Cut) -> None:
        """Take the step itself."""
        if isinstance(cut.last, Step):
            self.steps += 1
            self.batches += cut.last.order.batches if cut.last.order is not None else 0
            self.streams |= cut.last.rng
            self.state = cut.last.state
        self.ended |= isinstance(cut.last, End)
