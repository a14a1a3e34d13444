"""The step log as a sequence: the links that hold it together, the rules of its order, and a summary of what it says.

`LogBuilder` makes the lines, `LogReader` takes them apart and checks them, both over the same `_Log`. Pure: bytes in,
lines or errors out. Not here: files (`rundir`), the meaning of a difference (`divergence`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trainmem_audit.canonical import (
    CHAIN_START,
    chain_digest,
    line_body,
    line_bytes,
    line_chain,
    split_line,
    value_digest,
)
from trainmem_audit.contract import StreamCollector
from trainmem_audit.documents.checkpoints import Checkpoint, Parent
from trainmem_audit.documents.common import Scalar
from trainmem_audit.documents.steplog import (
    Begin,
    Component,
    End,
    Epoch,
    Folder,
    Input,
    InterventionLine,
    Inventory,
    Line,
    Loader,
    Observe,
    Seed,
    Snapshot,
    SourceFile,
    Step,
    Stream,
    parse_line,
)
from trainmem_audit.errors import FormatError
from trainmem_audit.lineforms import FittingStep, LineForms
from trainmem_audit.merkle import MerkleTree
from trainmem_audit.observations import observation_name
from trainmem_audit.snapshots import snapshot_name, values_name

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
"""How much a log may introduce: names of one kind, and of all things together what is kept of them (`_parts`)."""
_LONG = 64
"""How many characters of text count as one part: a log that introduces more than a statement can hold is refused."""
_T = TypeVar("_T")


@dataclass
class LogSummary:
    """What a log says as a whole, gathered line by line, in memory that does not grow with the steps.

    Start states, loaders and files keep their first value; `components` keeps the latest header, `folders` too.
    `checkpoints` keeps the last of each kind, with the steps before it and how many there were. `interventions` keeps
    the lines without the digests in them.
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
    observations: dict[str, Observe] = field(default_factory=dict)
    interventions: list[InterventionLine] = field(default_factory=list)
    commitments: dict[str, str] = field(default_factory=dict)
    checkpoints: dict[str, tuple[Checkpoint, int, int]] = field(default_factory=dict)
    parent: Parent | None = None
    _parts: int = 0

    def take(self, line: Line) -> None:
        """Add one line."""
        if isinstance(line, Step):
            self.take_step(line)
            return
        self.moves.take(line)
        match line:
            case Begin():
                self.begin = line
                self._keep_first(self.streams, line.streams)
            case Inventory():
                self._appear(line)
            case Snapshot():
                self.snapshots[line.file] = line
                self._bound(len(self.snapshots))
            case Observe():
                self.observations[line.file] = line
                self._bound(len(self.observations))
            case InterventionLine():
                self._parts += 1 + len(line.changed) + len(line.facts or {})
                nothing = line.state.model_copy(update={"before": {}, "after": {}})
                self.interventions.append(line.model_copy(update={"state": nothing, "rng": nothing, "values": None}))
                self._bound(len(self.interventions))
            case End():
                self.end = line
                self.profiles["end"] = line.profile or {}

    def take_step(self, line: Step | FittingStep) -> None:
        """Add one step line, of which its samples and random streams count here."""
        self.steps += 1
        self.moves.take_step(line.i, line.rng)
        order = line.order
        if order is not None and order.index is not None:
            self.indexed_samples += order.n

    def _appear(self, line: Inventory) -> None:
        for name, component in (line.components or {}).items():
            self._replace(self.components, name, component)
        self._keep_first(self.streams, line.streams or {})
        self._keep_first(self.loaders, line.loaders or {})
        self.canary.update(line.rng_canary or {})
        self._keep_first(self.inputs, {item.path: item for item in line.inputs or ()})
        self._keep_first(self.files, {item.path: item for item in line.files or ()})
        self.seeds += line.seeds or ()
        for folder in line.folders or ():
            self._replace(self.folders, folder.path, folder)
        self._keep_first(self.commitments, line.commitments or {})
        for saved in line.checkpoints or ():
            _, _, count = self.checkpoints.get(saved.kind, (saved, 0, 0))
            self._parts += len(saved.components) if count == 0 else 0
            self.checkpoints[saved.kind] = (saved, line.i, count + 1)
        self.parent = self.parent or line.parent
        known = (
            self.components,
            self.streams,
            self.loaders,
            self.canary,
            self.inputs,
            self.files,
            self.seeds,
            self.folders,
            self.commitments,
        )
        self._bound(max(len(names) for names in known))
        if line.profile is not None:
            self.profiles["firstStep" if "import" in self.profiles else "import"] = line.profile

    def _replace(self, known: dict[str, _T], name: str, item: _T) -> None:
        self._parts += _parts(item) - _parts(known.get(name))
        known[name] = item

    def _keep_first(self, known: dict[str, _T], new: dict[str, _T]) -> None:
        for name, item in new.items():
            if name not in known:
                self._replace(known, name, item)

    def _bound(self, names: int) -> None:
        if names > MOST_NAMES or self._parts > MOST_PARTS:
            raise FormatError(
                "the log introduces too many things",
                where=f"{STEP_FILE}:{self.lines}",
                expected=f"at most {MOST_NAMES} components, streams, loaders, inputs, files or snapshots",
            )


def _parts(item: object) -> int:
    """Return how much of a thing is kept, in units of about a tensor: names and values by number and by length."""
    match item:
        case Component():
            tensors = sum(1 + len(name) // _LONG + len(shape) // 8 for name, _, shape in item.tensors or ())
            return tensors + len(str(item.values or "")) // 16
        case Loader():
            return sum(1 + len(str(value)) // _LONG for value in item.settings.values())
        case Folder():
            return len(item.names) // 2 + sum(map(len, item.names)) // _LONG
        case Stream():
            return len(item.state) // _LONG
        case SourceFile():
            return len(item.lines or "") // _LONG
    return 0


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

    def _extend(self, head: bytes, line: bytes) -> None:
        self._head = head
        self._tree.append(line)
        self.summary.lines += 1
        self.summary.bytes += len(line) + 1


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
        # the others have no member that the model leaves open
        if members.get("t") != "step" or {"values", "extensions"} & members.keys():
            split_line(line, "the line to be written")
        parsed = parse_line(line, members, "the line to be written")
        self._extend(head, line)
        self.summary.take(parsed)
        return line


class LogReader(_Log):
    """Checks the lines of one log as they come: canonical form, chain, order of the lines, inventory."""

    def __init__(
        self, where: str = "steps.jsonl", parse: Callable[[bytes, dict[str, Any], str], Line] = parse_line
    ) -> None:
        super().__init__()
        self.where = where
        self._forms = LineForms()
        self._parse = parse

    def read(self, line: bytes) -> Line:
        """Check and return the next line (without LF).

        Raises
        ------
        FormatError
            Naming file and line, if the line is not canonical, breaks the chain, or may not stand here.
        """
        checked = self.check(line)
        return checked.model if isinstance(checked, FittingStep) else checked

    def check(self, line: bytes) -> Line | FittingStep:
        """Do what `read` does, without making the models of step lines that are like one before them."""
        return self._check_fitting(line) or self._check_whole(line)

    def _check_fitting(self, line: bytes) -> FittingStep | None:
        """Check a step line against the forms of those before; `None` leaves it to the whole check."""
        step = self._forms.fit(line)
        if step is None or step.i != self.summary.steps or self.summary.end is not None:
            return None
        head = chain_digest(self._head, line_body(line))
        if head.hex().encode() != line_chain(line):
            return None
        self._extend(head, line)
        self.summary.take_step(step)
        return step

    def _check_whole(self, line: bytes) -> Line:
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
        parsed = self._parse(line, members, where)
        self._check_place(parsed, where)
        self._extend(head, line)
        self.summary.take(parsed)
        if isinstance(parsed, Step) and self._parse is parse_line:  # a form reads lines of this version only
            self._forms.learn(line, members)
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
                for saved in line.checkpoints or ():
                    self._known(saved.components, log.components, where)
                    self._known(saved.streams, log.streams, where)
                self._check_parent(line, where)
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
                self._references(line, where)
            case InterventionLine():
                self._position(line.i, where)
                self._acted(line, where)
            case Observe():
                self._position(line.i, where)
                if line.file != observation_name(line.i) or line.file in log.observations:
                    message, expected = "an observation out of its place", observation_name(line.i)
                    raise FormatError(message, where=where, expected=expected, got=line.file[:80])
            case End():
                self._position(line.i, where)
                self._states(line, where)

    def _check_parent(self, line: Inventory, where: str) -> None:
        if line.parent is None:
            return
        if self.summary.parent is not None:
            raise FormatError("a run goes on from one run", where=where, got="a second parent")
        if all(item.sha256 != line.parent.sha256 for item in self.summary.inputs.values()):
            raise FormatError(
                "a parent whose checkpoint this run has not read",
                where=where,
                expected="a digest among the inputs that the log named before",
                got=line.parent.sha256,
            )

    def _position(self, at: int, where: str) -> None:
        if at != self.summary.steps:
            raise FormatError(
                "the steps are not contiguous",
                where=where,
                expected=f"step {self.summary.steps}",
                got=f"step {at}",
            )

    def _references(self, line: Snapshot, where: str) -> None:
        """Demand that a snapshot names its own other file, and earlier snapshots that hold what it leaves out."""
        if line.values is not None and line.values.file != values_name(line.step):
            expected, got = values_name(line.step), line.values.file[:80]
            raise FormatError("a snapshot out of its place", where=where, expected=expected, got=got)
        for component, step in (line.unchanged or {}).items():
            earlier = self.summary.snapshots.get(snapshot_name(step))
            if earlier is None or component in (earlier.unchanged or {}):
                message = "a snapshot refers to one that does not hold the component"
                raise FormatError(message, where=where, expected="an earlier snapshot", got=f"{component[:80]}: {step}")

    def _states(self, line: Step | End, where: str) -> None:
        self._known(line.state, self.summary.components, where)
        self._known(line.rng, self.summary.streams, where)
        self._have_digests(line.values, line.state, where)

    def _acted(self, line: InterventionLine, where: str) -> None:
        """Demand that the names of an intervention are known, and that `changed` says what the digests say."""
        before, after = line.state.before, line.state.after
        for states in (before, after):
            self._known(states, self.summary.components, where)
        for rng in (line.rng.before, line.rng.after):
            self._known(rng, self.summary.streams, where)
        differ = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
        named = {*line.changed}
        if odd := sorted(named - differ):
            raise FormatError("a component that did not change is called changed", where=where, got=odd[0][:80])
        if differ and not named:
            message, got = "an intervention that changed something says that it did not", sorted(differ)[0][:80]
            raise FormatError(message, where=where, expected="a component in `changed`", got=got)
        self._have_digests(line.values, after, where)

    @staticmethod
    def _have_digests(values: dict[str, Any] | None, state: dict[str, str], where: str) -> None:
        for name, value in (values or {}).items():
            if name not in state or value_digest(value).hex() != state[name]:
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
