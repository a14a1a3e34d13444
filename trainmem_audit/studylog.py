"""L2: the study log as a sequence: its chain, the rules of its order, and what it says of every arm.

`StudyLogBuilder` makes the lines, `StudyLogReader` checks them. The chain has a context of its own, so that a line of
one log cannot stand in the other. Pure: bytes in, lines or errors out. Not here: files and locks (`study.ledger`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from trainmem_audit.canonical import CHAIN_START, STUDY_CHAIN_CONTEXT, chain_digest, line_bytes, split_line
from trainmem_audit.documents.studies import (
    StudyBegin,
    StudyEnd,
    StudyFail,
    StudyFinish,
    StudyLine,
    StudyResume,
    StudyStart,
    parse_study_line,
)
from trainmem_audit.errors import FormatError
from trainmem_audit.merkle import MerkleTree

__all__ = ["MAX_STUDY_LINE", "STUDY_FILE", "ArmState", "StudyLogBuilder", "StudyLogReader", "StudyLogSummary"]

STUDY_FILE = "study.jsonl"
MAX_STUDY_LINE = 2**16
MOST_ARMS = 10**6


@dataclass
class ArmState:
    """What the log says of one arm: how many attempts, whether one is under way, how the last one came out."""

    attempts: int = 0
    running: bool = False
    finish: StudyFinish | None = None
    fail: StudyFail | None = None


@dataclass
class StudyLogSummary:
    """What a study log says as a whole; `end` is the last line if nothing came after it."""

    begin: StudyBegin | None = None
    end: StudyEnd | None = None
    arms: dict[str, ArmState] = field(default_factory=dict)
    lines: int = 0
    bytes: int = 0
    chain_head: str = ""
    merkle_root: str = ""

    @property
    def started(self) -> int:
        """How many attempts were ever started."""
        return sum(arm.attempts for arm in self.arms.values())

    @property
    def finished(self) -> dict[str, StudyFinish]:
        """The arms that are there."""
        return {name: arm.finish for name, arm in self.arms.items() if arm.finish is not None}

    @property
    def failed(self) -> dict[str, StudyFail]:
        """The arms whose last attempt came to nothing."""
        return {name: arm.fail for name, arm in self.arms.items() if arm.fail is not None}

    @property
    def running(self) -> tuple[str, ...]:
        """The arms whose last attempt has neither come out nor failed."""
        return tuple(name for name, arm in self.arms.items() if arm.running)


class _StudyLog:
    def __init__(self) -> None:
        self.summary = StudyLogSummary()
        self._head = CHAIN_START
        self._tree = MerkleTree()

    def finish(self) -> StudyLogSummary:
        """Return the summary, with the chain head and the Merkle root of all lines so far."""
        self.summary.chain_head = self._head.hex()
        self.summary.merkle_root = self._tree.root().hex()
        return self.summary

    def _link(self, body: bytes) -> bytes:
        return chain_digest(self._head, body, STUDY_CHAIN_CONTEXT)

    def _take(self, line: bytes, head: bytes, parsed: StudyLine, where: str) -> None:
        self._place(parsed, where)
        self._head = head
        self._tree.append(line)
        self.summary.lines += 1
        self.summary.bytes += len(line) + 1

    def _place(self, line: StudyLine, where: str) -> None:
        """Check that a line may stand here, and take in what it says."""
        log = self.summary
        if (log.begin is None) != isinstance(line, StudyBegin):
            raise FormatError("a study log starts with one `begin` line", where=where, got=line.t)
        if log.end is not None and not isinstance(line, StudyResume):
            raise FormatError("only `resume` may follow `end`", where=where, got=line.t)
        match line:
            case StudyBegin():
                log.begin = line
            case StudyStart():
                self._start(line, where)
            case StudyFinish():
                arm = self._arm(line, where)
                if not arm.running:
                    raise FormatError("an arm that was not started cannot finish", where=where, got=line.id[:80])
                arm.running, arm.finish = False, line
            case StudyFail():
                arm = self._arm(line, where)
                if not arm.running and arm.finish is None:
                    raise FormatError("an arm that was not started cannot fail", where=where, got=line.id[:80])
                arm.running, arm.finish, arm.fail = False, None, line
            case StudyResume():
                log.end = None
            case StudyEnd():
                self._end(line, where)

    def _start(self, line: StudyStart, where: str) -> None:
        arm = self.summary.arms.setdefault(line.id, ArmState())
        if len(self.summary.arms) > MOST_ARMS:
            raise FormatError("too many arms", where=where, expected=f"at most {MOST_ARMS}")
        if arm.running or arm.finish is not None or line.number != arm.attempts + 1:
            raise FormatError(
                "an attempt out of its place",
                where=where,
                expected=f"attempt {arm.attempts + 1}, once the one before it has failed",
                got=f"{line.id[:80]}, attempt {line.number}",
            )
        arm.attempts, arm.running, arm.fail = line.number, True, None

    def _arm(self, line: StudyFinish | StudyFail, where: str) -> ArmState:
        arm = self.summary.arms.get(line.id)
        if arm is None or arm.attempts != line.number:
            raise FormatError("an attempt that was not started", where=where, got=f"{line.id[:80]}, {line.number}")
        return arm

    def _end(self, line: StudyEnd, where: str) -> None:
        log = self.summary
        counts = len(log.finished), len(log.failed)
        if log.running or counts != (line.finished, line.failed):
            raise FormatError(
                "`end` does not say what the log says",
                where=where,
                expected=f"{counts[0]} finished, {counts[1]} failed, none under way",
                got=f"{line.finished} finished, {line.failed} failed, {len(log.running)} under way",
            )
        log.end = line


class StudyLogBuilder(_StudyLog):
    """Makes the lines of one log; `taken_up` goes on with one that was read."""

    @classmethod
    def taken_up(cls, reader: StudyLogReader) -> StudyLogBuilder:
        """Return the builder of the lines that come after those that `reader` has read."""
        builder = cls()
        builder.__dict__.update(reader.__dict__)
        return builder

    def line(self, members: dict[str, Any]) -> bytes:
        """Return the next line (without LF) for `members`, which have no `chain` yet.

        Raises
        ------
        FormatError
            If the members are no line that may stand here.
        """
        where = "the line to be written"
        body = line_bytes(members)
        head = self._link(body)
        line = b'{"chain":"' + head.hex().encode() + b'",' + body[1:]
        parsed = parse_study_line(line, split_line(line, where)[0], where)
        self._take(line, head, parsed, where)
        return line


class StudyLogReader(_StudyLog):
    """Checks the lines of one log as they come."""

    def __init__(self, where: str = STUDY_FILE) -> None:
        super().__init__()
        self._where = where

    def read(self, line: bytes) -> StudyLine:
        """Check and return the next line (without LF).

        Raises
        ------
        FormatError
            Naming file and line, if the line is not canonical, breaks the chain, or may not stand here.
        """
        where = f"{self._where}:{self.summary.lines + 1}"
        if len(line) > MAX_STUDY_LINE:
            raise FormatError("the line is too long", where=where, expected=f"at most {MAX_STUDY_LINE} bytes")
        members, body = split_line(line, where)
        head = self._link(body)
        if head.hex() != members["chain"]:
            raise FormatError(
                "the chain is broken: this line or one before it was changed, added, removed or moved",
                where=where,
                expected=head.hex(),
                got=str(members["chain"])[:80],
            )
        parsed = parse_study_line(line, members, where)
        self._take(line, head, parsed, where)
        return parsed
