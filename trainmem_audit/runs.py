"""Reads the lines and side files of a run, and compares two runs: what `verify`, `diff` and a replay share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainmem_audit import versions
from trainmem_audit.canonical import loads_strict
from trainmem_audit.checkpoints import blamed
from trainmem_audit.divergence import Comparison, Group, TensorLookup, groups, tree_difference
from trainmem_audit.documents.checkpoints import Checkpoint, Parent
from trainmem_audit.documents.findings import Difference
from trainmem_audit.documents.manifest import Manifest, Statement, StepLog
from trainmem_audit.documents.pairing import Certificate
from trainmem_audit.documents.steplog import Inventory, Line, Observe, Snapshot, Step, parse_line
from trainmem_audit.envelope import MAX_BYTES, parse_envelope
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.observations import read_observation
from trainmem_audit.pairing import Arm, certify
from trainmem_audit.rundir import RunReader
from trainmem_audit.sidefiles import find_frame
from trainmem_audit.snapshots import SnapshotFile, SnapshotValues, snapshot_name
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE, LogReader, iter_lines

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "MAX_ENVELOPE",
    "around",
    "certify_runs",
    "compare",
    "observe_at",
    "open_snapshot",
    "open_values",
    "parent_of",
    "read_lines",
    "read_on",
    "read_statement",
    "resumed_at",
    "snapshot_at",
    "tensor_lookup",
    "values_at",
    "values_of_snapshot",
    "with_values",
]

_CHUNK = 2**20
MAX_ENVELOPE = MAX_BYTES
MAX_SNAPSHOT_VALUES = MAX_BYTES


def read_lines(reader: RunReader, signed: StepLog | None = None) -> Iterator[Line]:
    """Yield the checked lines of a run's step log; a torn last line is left out.

    Parameters
    ----------
    signed:
        What the statement says of the log, where that was verified before: the file may have been exchanged since.
        That shows at its end alone, so whoever stops earlier and needs to know reads on.

    Raises
    ------
    FormatError
        At the first line that is damaged, and at the end of a log that is not the signed one.
    UsageError
        If the run has no step log.
    """
    if STEP_FILE not in reader.names():
        raise UsageError("not a run", where=reader.label, expected=f"a {STEP_FILE}")
    log = LogReader(parse=_line_parser(reader))
    with reader.open(STEP_FILE) as file:
        for line, whole in iter_lines(iter(lambda: file.read(_CHUNK), b""), STEP_FILE):
            if whole:
                yield log.read(line)
    if log.summary.begin is None:
        raise FormatError("the step log is empty", where=STEP_FILE, expected="a `begin` line")
    if signed is not None and log.finish().merkle_root != signed.merkle_root:
        raise FormatError("the step log was exchanged after it was checked", where=STEP_FILE)


def read_on(lines: Iterator[Line]) -> None:
    """Read the rest of a log: its end alone shows that it is the signed one (`read_lines`)."""
    for _ in lines:
        pass


def _line_parser(reader: RunReader) -> Callable[[bytes, dict[str, Any], str], Line]:
    """Return what reads the lines of a run: by the version of its statement, if it has one that can be read."""
    try:
        return versions.line_parser(_reading(reader).log_choice) if "run.json" in reader.names() else parse_line
    except FormatError:
        return parse_line


def read_statement(reader: RunReader, data: bytes | None = None) -> Statement:
    """Return the statement of a run without checking its signature.

    Parameters
    ----------
    data:
        The bytes of `run.json` where they were read already: to read a file again is to read another file, maybe.

    Raises
    ------
    UsageError
        If the run has no `run.json`.
    FormatError
        If it cannot be read.
    VersionError
        If it is of a version that is not known.
    """
    if "run.json" not in reader.names():
        raise UsageError(
            "there is no run.json",
            where=reader.label,
            remedy="`trainmem-audit recover` closes a run that was killed" if STEP_FILE in reader.names() else "",
        )
    return _reading(reader, data).statement


def _reading(reader: RunReader, data: bytes | None = None) -> versions.Reading:
    envelope = parse_envelope(reader.read("run.json", MAX_ENVELOPE) if data is None else data, "run.json")
    return versions.read_statement(envelope.payload, loads_strict(envelope.payload, "statement"))


def tensor_lookup(reader: RunReader) -> TensorLookup:
    """Return what finds the tensor digests of a step in a run."""

    def lookup(step: int) -> bytes | None:
        if TENSOR_FILE not in reader.names():
            return None
        with reader.open(TENSOR_FILE) as file:
            return find_frame(file, step)

    return lookup


def open_snapshot(reader: RunReader, line: Snapshot) -> SnapshotFile:
    """Return the snapshot that a line of the log speaks of.

    Raises
    ------
    FormatError
        If it is missing, has another length than the log says, or is no snapshot.
    """
    if reader.size(line.file) != line.size:
        got = f"{reader.size(line.file)} bytes"
        raise FormatError("a snapshot of another length", where=line.file, expected=f"{line.size} bytes", got=got)
    return _snapshot(reader, line.file)


def observe_at(reader: RunReader, line: Observe) -> dict[str, np.ndarray[Any, Any]]:
    """Return the predictions of an `observe` line by head.

    Raises
    ------
    FormatError
        If the file is missing, has another length than the log says, or is no observation.
    """
    if reader.size(line.file) != line.size:
        got = f"{reader.size(line.file)} bytes"
        raise FormatError("an observation of another length", where=line.file, expected=f"{line.size} bytes", got=got)
    return read_observation(lambda: reader.open(line.file), line.size, line.file)


def open_values(reader: RunReader, line: Snapshot) -> SnapshotValues | None:
    """Return what is no tensor in the snapshot that a line of the log speaks of, where it was kept.

    Raises
    ------
    FormatError
        If it is missing, has another length than the log says, or is no such file.
    """
    if line.values is None:
        return None
    name = line.values.file
    if reader.size(name) != line.values.size:
        got = f"{reader.size(name)} bytes"
        raise FormatError("a file of another length", where=name, expected=f"{line.values.size} bytes", got=got)
    return SnapshotValues(reader.read(name, MAX_SNAPSHOT_VALUES), name)


def _snapshot(reader: RunReader, name: str, others: Mapping[str, SnapshotFile] | None = None) -> SnapshotFile:
    return SnapshotFile(lambda: reader.open(name), reader.size(name), name, others or {})


def snapshot_at(reader: RunReader, manifest: Manifest, step: int) -> SnapshotFile | None:
    """Return the snapshot of a step, if the run has one; what it holds is believed only by its digests."""
    stated = next((item for item in manifest.snapshots if item.step == step), None)
    if stated is None or stated.file != snapshot_name(step) or stated.file not in reader.names():
        return None
    unchanged = stated.unchanged or {}
    files = {
        earlier: _snapshot(reader, snapshot_name(earlier))
        for earlier in set(unchanged.values())
        if snapshot_name(earlier) in reader.names()
    }
    others = {component: files[earlier] for component, earlier in unchanged.items() if earlier in files}
    return _snapshot(reader, stated.file, others)


def values_of_snapshot(reader: RunReader, manifest: Manifest, step: int) -> SnapshotValues | None:
    """Return what is no tensor in the snapshot of a step, if the run has kept it; believed only by its digests."""
    stated = next((item for item in manifest.snapshots if item.step == step), None)
    if stated is None or stated.values is None or stated.values.file not in reader.names():
        return None
    return SnapshotValues(reader.read(stated.values.file, MAX_SNAPSHOT_VALUES), stated.values.file)


def values_at(path: Path) -> SnapshotFile:
    """Return the values that a replay wrote aside; the script could write there too."""
    return SnapshotFile(lambda: path.open("rb"), path.stat().st_size, path.name)


def _manifest(reader: RunReader) -> Manifest:
    return _reading(reader).statement.predicate


def with_values(difference: Difference, expected: RunReader, got: RunReader) -> Difference:
    """Return a difference with the values of the tensors that differ, if both runs kept those of that step."""
    sides = [snapshot_at(reader, _manifest(reader), difference.step) for reader in (expected, got)]
    if difference.stage == "end" or sides[0] is None or sides[1] is None:
        return difference
    from trainmem_audit.sizes import with_sizes  # it needs NumPy, which most verbs do not

    return with_sizes(difference, sides[0], sides[1])


def around(expected: Manifest, got: Manifest) -> dict[str, str]:
    """Return in what else two runs differ: command, code, inputs, environment, settings of torch; by what it is."""
    sides = [_surroundings(manifest) for manifest in (expected, got)]
    found = {name: tree_difference(*(side[name] for side in sides)) for name in sides[0]}
    return {name: text for name, text in found.items() if text}


def _surroundings(manifest: Manifest) -> dict[str, Any]:
    command = {name: value for name, value in manifest.command.to_json().items() if name != "hashSeed"}
    environment = manifest.environment.to_json()
    environment["variables"].pop("PYTHONHASHSEED", None)
    return {
        "command": command,
        "hash seed": {"PYTHONHASHSEED": manifest.command.hash_seed},
        "code": {item.path: item.sha256[:12] for item in manifest.files},
        "inputs": {item.path: item.sha256[:12] for item in manifest.inputs},
        "environment": environment,
        "settings of torch": manifest.numeric_profile,
    }


def parent_of(reader: RunReader) -> Parent | None:
    """Return which run a run says that it goes on from, by its statement, or by its log where it is not signed."""
    if "run.json" in reader.names():
        return read_statement(reader).predicate.run.parent
    return next((line.parent for line in read_lines(reader) if isinstance(line, Inventory) and line.parent), None)


def resumed_at(expected: RunReader, got: RunReader) -> int | None:
    """Return after how many steps of one run another one, which was resumed from a checkpoint, begins.

    `None` where it was not resumed, or both from the same steps on.
    """
    parents = [parent_of(reader) for reader in (expected, got)]
    before, after = (0 if parent is None else parent.steps for parent in parents)
    return after - before if after > before else None


def compare(expected: RunReader, got: RunReader, offset: int | None = None) -> tuple[Difference | None, int]:
    """Return the first difference of two recorded runs, and the number of steps of the first up to it.

    Parameters
    ----------
    offset:
        How many steps of `expected` come before the first of `got`, where that is a run that was resumed.

    Raises
    ------
    FormatError
        If either log is damaged.
    UsageError
        If `expected` has not so many steps.
    """
    found = tensor_lookup(got)
    shifted: TensorLookup = found if offset is None else lambda step: found(step - offset)
    comparison = Comparison(tensor_lookup(expected), shifted, resumed_at=offset)
    saved = _Saved(None if offset is None else parent_of(got))
    right = groups(read_lines(got))
    for group in groups(saved.watch(read_lines(expected))):
        if comparison.steps < (offset or 0) and isinstance(group.last, Step):
            comparison.skip(group)
            continue
        difference = comparison.feed(group, next(right, None))
        if difference is not None:
            return saved.blame(difference), comparison.steps
    if comparison.steps < (offset or 0):
        raise UsageError(
            "the other run begins later than this one ends", where=expected.label, expected=f"{offset} steps at least"
        )
    left_over = next(right, None)
    return (None if left_over is None else comparison.feed(Group(), left_over)), comparison.steps


def certify_runs(
    treated: RunReader, control: RunReader, prefix: RunReader | None = None, *, order_by_loss: bool = False
) -> Certificate:
    """Return the pairing certificate of two recorded arms (`pairing.certify`).

    Parameters
    ----------
    prefix:
        The run that both branched from, where they did and it is at hand.

    Raises
    ------
    FormatError
        If a log is damaged, or is not the one that the statement beside it was signed for.
    """
    with ExitStack() as files:
        arms = [_arm(reader, prefix, files) for reader in (treated, control)]
        return certify(*arms, order_by_loss=order_by_loss)


def _arm(reader: RunReader, prefix: RunReader | None, files: ExitStack) -> Arm:
    indices = files.enter_context(reader.open(ORDER_FILE)) if ORDER_FILE in reader.names() else None
    return Arm(_signed_lines(reader), None if prefix is None else _signed_lines(prefix), indices)


def _signed_lines(reader: RunReader) -> Iterator[Line]:
    signed = _manifest(reader).step_logs[0] if "run.json" in reader.names() else None
    return read_lines(reader, signed)


class _Saved:
    """Looks in a log for the checkpoint that another run has read, if any."""

    def __init__(self, parent: Parent | None) -> None:
        self._parent = parent
        self._checkpoint: Checkpoint | None = None

    def watch(self, lines: Iterator[Line]) -> Iterator[Line]:
        """Pass the lines on."""
        for line in lines:
            if self._parent is not None and isinstance(line, Inventory):
                for saved in line.checkpoints or ():
                    if saved.sha256 == self._parent.sha256:
                        self._checkpoint = saved
            yield line

    def blame(self, difference: Difference) -> Difference:
        """Name what that checkpoint does not hold, where it is known."""
        if self._parent is None or self._checkpoint is None:
            return difference
        return blamed(difference, self._checkpoint, self._parent.steps)
