"""The step log as a sequence: the links that hold it together, the rules of its order, and a summary of what it says.

`LogBuilder` makes the lines, `LogReader` takes them apart and checks them, both over the same `_Log`. Pure: bytes in,
lines or errors out. Not here: files (`rundir`), the meaning of a difference (`divergence`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trainmem_audit.canonical import CHAIN_START, chain_digest, line_bytes, split_line, value_digest
from trainmem_audit.contract import StreamCollector
from trainmem_audit.documents.common import Scalar
from trainmem_audit.documents.steplog import (
    Begin,
    Component,
    End,
    Epoch,
    Folder,
    Input,
    Inventory,
    Line,
    Loader,
    Seed,
    Snapshot,
    SourceFile,
    Step,
    Stream,
    parse_line,
)
from trainmem_audit.errors import FormatError
from trainmem_audit.merkle import MerkleTree
from trainmem_audit.snapshots import snapshot_name

__all__ = [
    "FRAME",
    "MAX_LINE",
    "ORDER_FILE",
    "STEP_FILE",
    "TENSOR_FILE",
    "LogBuilder",
    "LogReader",
    "LogSummary",
    "iter_lines",
]

STEP_FILE = "steps.jsonl"
TENSOR_FILE = "tensors.b3"
ORDER_FILE = "order/rank-0.i64"
FRAME = struct.Struct("<QI")
"""The head of a frame of `tensors.b3`: step (u64), number of digests (u32), little-endian. The digests of 32 bytes
follow, component by component in the order of their names, each in the order of its header."""
MAX_LINE = 16 * 2**20
"""The longest line that is read, in bytes; `inventory` lines of large models are the longest that we write."""
MOST_NAMES = 2**16
MOST_PARTS = 2**20
"""How much a log may introduce: names of one kind, and tensors or values of all components."""
_T = TypeVar("_T")


@dataclass
class LogSummary:
    """What a log says as a whole, gathered line by line, in memory that does not grow with the steps.

    Start states, loaders and files keep their first value; `components` keeps the latest header, `folders` too.
    """

    begin: Begin | None = None
    end: End | None = None
    steps: int = 0
    lines: int = 0
    bytes: int = 0
    chain_head: str = ""
    merkle_root: str = ""
    indexed_samples: int = 0
    components: dict[str, Component] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    profiles: dict[str, dict[str, Scalar]] = field(default_factory=dict)
    canary: dict[str, str] = field(default_factory=dict)
    loaders: dict[str, Loader] = field(default_factory=dict)
    inputs: dict[str, Input] = field(default_factory=dict)
    files: dict[str, SourceFile] = field(default_factory=dict)
    seeds: list[Seed] = field(default_factory=list)
    folders: dict[str, Folder] = field(default_factory=dict)
    moves: StreamCollector = field(default_factory=StreamCollector)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    _parts: int = 0

    def take(self, line: Line) -> None:
        """Add one line."""
        self.moves.take(line)
        match line:
            case Begin():
                self.begin = line
                self.streams.update(line.streams)
            case Inventory():
                self._appear(line)
            case Step():
                self.steps += 1
                if line.order is not None and line.order.index is not None:
                    self.indexed_samples += line.order.n
            case Snapshot():
                self.snapshots[line.file] = line
                self._bound(len(self.snapshots))
            case End():
                self.end = line
                self.profiles["end"] = line.profile or {}

    def _appear(self, line: Inventory) -> None:
        for name, component in (line.components or {}).items():
            old = self.components.get(name)
            self._parts += _parts(component) - (0 if old is None else _parts(old))
            self.components[name] = component
        _keep_first(self.streams, line.streams or {})
        _keep_first(self.loaders, line.loaders or {})
        self.canary.update(line.rng_canary or {})
        _keep_first(self.inputs, {item.path: item for item in line.inputs or ()})
        _keep_first(self.files, {item.path: item for item in line.files or ()})
        self.seeds += line.seeds or ()
        self.folders.update({item.path: item for item in line.folders or ()})
        known = (
            self.components,
            self.streams,
            self.loaders,
            self.canary,
            self.inputs,
            self.files,
            self.seeds,
            self.folders,
        )
        self._bound(max(len(names) for names in known))
        if line.profile is not None:
            self.profiles["firstStep" if "import" in self.profiles else "import"] = line.profile

    def _bound(self, names: int) -> None:
        if names > MOST_NAMES or self._parts > MOST_PARTS:
            raise FormatError(
                "the log introduces too many things",
                where=f"{STEP_FILE}:{self.lines}",
                expected=f"at most {MOST_NAMES} components, streams, loaders, inputs, files or snapshots",
            )


def _keep_first(known: dict[str, _T], new: dict[str, _T]) -> None:
    for name, item in new.items():
        known.setdefault(name, item)


def _parts(component: Component) -> int:
    """Return how much a component takes: its tensors, or its values in pieces of the length of a number."""
    return len(component.tensors or ()) + len(str(component.values or "")) // 16


class _Log:
    """The links over the lines so far (chain, Merkle tree) and what they say."""

    def __init__(self) -> None:
        self.summary = LogSummary()
        self._head = CHAIN_START
        self._tree = MerkleTree()

    def finish(self) -> LogSummary:
        """Return the summary, with the chain head and Merkle root of all lines so far."""
        self.summary.chain_head = self._head.hex()
        self.summary.merkle_root = self._tree.root().hex()
        return self.summary

    def _extend(self, head: bytes, line: bytes, parsed: Line) -> None:
        self._head = head
        self._tree.append(line)
        self.summary.lines += 1
        self.summary.bytes += len(line) + 1
        self.summary.take(parsed)


class LogBuilder(_Log):
    """Makes the lines of one log."""

    def line(self, members: dict[str, Any]) -> bytes:
        """Return the next line (without LF) for `members`, which have no `chain` yet.

        Raises
        ------
        FormatError
            If the members are no valid line: a log that could not be read again is never written.
        """
        body = line_bytes(members)
        head = chain_digest(self._head, body)
        line = b'{"chain":"' + head.hex().encode() + b'",' + body[1:]
        if members.get("t") != "step" or "values" in members:  # the others have no member that the model leaves open
            split_line(line, "the line to be written")
        self._extend(head, line, parse_line(line, members, "the line to be written"))
        return line


class LogReader(_Log):
    """Checks the lines of one log as they come: canonical form, chain, order of the lines, inventory."""

    def __init__(self, where: str = "steps.jsonl") -> None:
        super().__init__()
        self.where = where

    def read(self, line: bytes) -> Line:
        """Check and return the next line (without LF).

        Raises
        ------
        FormatError
            Naming file and line, if the line is not canonical, breaks the chain, or may not stand here.
        """
        where = f"{self.where}:{self.summary.lines + 1}"
        members, body = split_line(line, where)
        head = chain_digest(self._head, body)
        if head.hex() != members["chain"]:
            raise FormatError(
                "the chain is broken: this line or one before it was changed, added, removed or moved",
                where=where,
                expected=head.hex(),
                got=str(members["chain"])[:80],
            )
        parsed = parse_line(line, members, where)
        self._check_place(parsed, where)
        self._extend(head, line, parsed)
        return parsed

    def _check_place(self, line: Line, where: str) -> None:
        log = self.summary
        if (log.begin is None) != isinstance(line, Begin):
            raise FormatError("a log starts with one `begin` line", where=where, got=line.t)
        if log.end is not None:
            raise FormatError("nothing may follow the `end` line", where=where, got=line.t)
        match line:
            case Inventory():
                self._position(line.i, where)
                self._known(line.state or {}, log.components, where)
                self._known(line.draws or {}, log.streams, where)
                for worker in line.workers or ():
                    self._known((worker.loader,), log.loaders, where)
                    self._known((*worker.streams, *worker.consumed), log.streams, where)
            case Epoch():
                self._position(line.i, where)
                self._known((line.loader,), log.loaders, where)
                self._known(line.rng, log.streams, where)
            case Step():
                self._position(line.i, where)
                self._states(line, where)
            case Snapshot():
                self._position(line.i, where)
                if line.file != snapshot_name(line.step) or line.file in log.snapshots:
                    raise FormatError(
                        "a snapshot out of its place",
                        where=where,
                        expected=snapshot_name(line.step),
                        got=line.file[:80],
                    )
            case End():
                self._position(line.i, where)
                self._states(line, where)

    def _position(self, at: int, where: str) -> None:
        if at != self.summary.steps:
            raise FormatError(
                "the steps are not contiguous",
                where=where,
                expected=f"step {self.summary.steps}",
                got=f"step {at}",
            )

    def _states(self, line: Step | End, where: str) -> None:
        self._known(line.state, self.summary.components, where)
        self._known(line.rng, self.summary.streams, where)
        for name, values in (line.values or {}).items():
            if name not in line.state or value_digest(values).hex() != line.state[name]:
                raise FormatError("the values of a component do not have its digest", where=where, got=name)

    @staticmethod
    def _known(names: Iterable[str], inventory: dict[str, Any], where: str) -> None:
        for name in names:
            if name not in inventory:
                raise FormatError("a name that no inventory line introduced", where=where, got=name[:80])


def iter_lines(chunks: Iterable[bytes], where: str) -> Iterator[tuple[bytes, bool]]:
    """Yield (line without LF, whole) of a log; `whole` is false for a torn last line.

    Raises
    ------
    FormatError
        If a line is longer than `MAX_LINE`.
    """
    rest = b""
    count = 0
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            count += 1
            yield line, True
        if len(rest) > MAX_LINE:
            raise FormatError("a line is too long", where=f"{where}:{count + 1}", expected=f"at most {MAX_LINE} bytes")
    if rest:
        yield rest, False
