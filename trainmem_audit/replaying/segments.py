"""A replay of segments: which stretches are run for real, from what state, and what the comparison says.

The child (`recording.forward`) walks the script from its start without gradients, and puts the recorded state back
where a stretch begins. What is walked is compared too, but for what depends on the weights: order, content, inputs,
random numbers. The verdict is `match` or `inconclusive`, never `mismatch`: a script may keep memory that no snapshot
holds, and then it is not the record that is wrong. Only a replay from the start convicts.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from blake3 import blake3

from trainmem_audit.canonical import canonical_bytes, component_digest, loads_strict
from trainmem_audit.contract import stream_digest
from trainmem_audit.divergence import Comparison, Group, TensorLookup
from trainmem_audit.documents.findings import Difference, Segments
from trainmem_audit.documents.manifest import Manifest
from trainmem_audit.documents.steplog import Component, End, Inventory, Step
from trainmem_audit.errors import FormatError, ReplayError
from trainmem_audit.rundir import RunReader
from trainmem_audit.runs import read_lines, snapshot_at, values_of_snapshot
from trainmem_audit.segments import Segment, choose, draw, segments_of, stretches_of, verdict_of
from trainmem_audit.snapshots import Entry, SnapshotFile, header_bytes

__all__ = ["Draw", "SegmentReplay", "SegmentsComparison"]

_ATTEMPTS = 64
"""How many skipped attempts are told to the child, the last ones: a scaler is updated after each few."""
_MOST_TOLD = 2**16
_EXPLANATION = "The script was run up to this step without gradients; what that may mean stands in the reason."

_Kind = Literal["walked", "start", "real"]


def _read_some(path: Path) -> bytes:
    """Return the beginning of a regular file; a link, a FIFO or a device is an error and is not waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FormatError("not a regular file", where=path.name)
        return os.read(descriptor, _MOST_TOLD)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Draw:
    """Which segments are wanted: how many are drawn, and what the reviewer adds to the draw.

    `test` draws among the segments that begin with a snapshot, and adds the last, to which every reviewer walks: what a
    recorder tries out.
    """

    count: int
    nonce: bytes
    test: bool = False

    @property
    def mode(self) -> str:
        """The mode of replay as a verdict names it."""
        return f"segments:{self.count}"


@dataclass
class _Start:
    """What the log says of a step after which a snapshot is put back."""

    state: dict[str, str]
    rng: dict[str, str]
    tensors: dict[str, Any] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()


class SegmentReplay:
    """One replay of segments, from the draw to the verdict.

    Raises
    ------
    ReplayError
        If the run has no snapshots between which segments could lie.
    """

    def __init__(self, reader: RunReader, manifest: Manifest, wanted: Draw) -> None:
        log = manifest.step_logs[0]
        self._reader = reader
        self._manifest = manifest
        self._wanted = wanted
        snapshots = [item.step for item in manifest.snapshots]
        self.segments = segments_of(snapshots, log.steps, list(_resumed(reader, manifest)))
        if len(self.segments) < 2:
            raise ReplayError(
                "the run has no snapshot before its last step, so there are no segments: record it with --snapshots, "
                "or replay it with --replay full or prefix:N"
            )
        self.chosen = self._chosen(bytes.fromhex(log.chain_head))
        self._problems = Path()
        self._comparison: SegmentsComparison | None = None

    def _chosen(self, chain_head: bytes) -> list[Segment]:
        if not self._wanted.test:
            return choose(self.segments, chain_head, self._wanted.nonce, self._wanted.count)
        inner = self.segments[1:-1]
        numbers = draw(chain_head, self._wanted.nonce, len(inner), self._wanted.count)
        return [*(inner[number] for number in sorted(numbers)), self.segments[-1]]

    def lay_out(self, root: Path) -> dict[str, Any]:
        """Write below `root` what each stretch begins with, checked against the signed log; return the child's order.

        Raises
        ------
        ReplayError
            If a snapshot is not what was verified: then nothing runs.
        """
        stretches, total = stretches_of(self.chosen), self._manifest.step_logs[0].steps
        starts = self._starts({first - 1 for first, _ in stretches if first > 0})
        folder = root / "starts"
        folder.mkdir()
        self._problems = folder / "problems.json"
        self._require_room(folder, starts)
        order: list[dict[str, Any]] = []
        for first, last in stretches:
            item: dict[str, Any] = {"first": first, "last": last if last + 1 < total else None}
            if first > 0:
                path = folder / f"step-{first - 1}.safetensors"
                start = starts[first - 1]
                self._write(path, first - 1, start)
                item |= {"state": str(path), "skipped": list(start.skipped)}
            order.append(item)
        return {"stretches": order, "problems": str(self._problems)}

    def comparison(self, expected: TensorLookup, got: TensorLookup) -> SegmentsComparison:
        """Return what compares the rerun with the log."""
        steps = self._manifest.step_logs[0].steps
        self._comparison = SegmentsComparison(stretches_of(self.chosen), steps, expected, got)
        return self._comparison

    def document(self) -> Segments:
        """Return what the verdict says of the segments."""
        found = verdict_of(self.segments, self.chosen, self._wanted.count, self._wanted.nonce)
        walked = 0 if self._comparison is None else self._comparison.walked
        return found.model_copy(update={"walked": walked})

    def undecided(self, difference: Difference) -> dict[str, Any]:
        """Return what a verdict says of a difference, which decides nothing here."""
        assert self._comparison is not None
        if self._comparison.kind != "real":  # what usually explains such a difference is not what happened
            difference = difference.model_copy(update={"explanation": _EXPLANATION})
        return {"outcome": "inconclusive", "reason": self._why(difference), "difference": difference}

    def _why(self, difference: Difference) -> str:
        """Return why a difference decides nothing, what may be behind it, and what would decide."""
        assert self._comparison is not None
        kind, step, first = self._comparison.kind, difference.step, difference.components[0]
        name = first.component
        outside = name in _ENTERS or name.startswith("rng.")
        if kind == "start" and not outside:
            problem = f"{name}: {first.detail or 'it is not what it was'}"
            told = next((text for text in self._told(step) if text.startswith(name)), problem)
            text = f"the state after step {step} could not be put back ({told})"
        elif kind != "real":
            text = (
                f"{_phrase(name, step)} when the script runs up to it without its weights: it depends on "
                "what is trained, or the record is not what the script does"
            )
        else:
            what = "the end of the run" if difference.stage == "end" else f"step {step}"
            text = (
                f"{what} comes out differently from the snapshot before it ({difference.blame}): the script keeps "
                "memory that no snapshot holds, or uses up after a step what it has computed before it, or the segment "
                "is not what the script does"
            )
        return f"{text}; only a replay from the start decides: {_decides(difference)}"

    def stopped(self, reason: str) -> str:
        """Return why a script that broke off decides nothing."""
        step = 0 if self._comparison is None else self._comparison.reached
        walked = self._comparison is not None and self._comparison.kind != "real"
        where = f"at step {step}, run without gradients" if walked else f"at step {step}"
        return f"{reason} ({where}); only a replay from the start decides: --replay prefix:{step + 1}"

    def _told(self, step: int) -> list[str]:
        """Return what the child says of what it could not put back; the script could write there too."""
        with suppress(OSError, FormatError):
            match loads_strict(_read_some(self._problems), "what the replay says"):
                case dict(told) if isinstance(texts := told.get(str(step)), list):
                    return [text[:300] for text in texts if isinstance(text, str)]
        return []

    def _starts(self, wanted: set[int]) -> dict[int, _Start]:
        """Return what the signed log says of the steps whose state is put back."""
        starts: dict[int, _Start] = {}
        components: dict[str, Component] = {}
        values: dict[str, Any] = {}
        skipped: deque[int] = deque(maxlen=_ATTEMPTS)
        for line in read_lines(self._reader, self._manifest.step_logs[0]):
            if isinstance(line, Inventory):
                components |= line.components or {}
                values |= {
                    name: item.values for name, item in (line.components or {}).items() if item.values is not None
                }
            elif isinstance(line, Step):
                values |= line.values or {}
                if line.skipped:
                    skipped.append(line.i)
                if line.i in wanted:
                    starts[line.i] = _start(line, components, values, tuple(skipped))
        return starts

    def _require_room(self, folder: Path, starts: dict[int, _Start]) -> None:
        """Refuse what would fill the disk: many snapshots may refer to one that holds what they leave out."""
        needed = sum(
            kept.size(component, name)
            for step, start in starts.items()
            for kept in (self._kept(step),)
            for component, tensors in start.tensors.items()
            for name, _, _ in tensors
        )
        if needed > (free := shutil.disk_usage(folder).free) // 2:
            raise ReplayError(
                f"the states at the starts of the segments take {needed} bytes, and there are {free} in the temporary "
                "directory (TMPDIR); draw fewer segments, or set it elsewhere"
            )

    def _kept(self, step: int) -> SnapshotFile:
        kept = snapshot_at(self._reader, self._manifest, step)
        if kept is None:
            raise ReplayError(f"the snapshot of step {step} is not there any more")
        return kept

    def _write(self, path: Path, step: int, start: _Start) -> None:
        """Write the state after a step, each component only if it has its digest in the log."""
        kept = self._kept(step)
        entries = [
            Entry(component, name, dtype, tuple(shape), kept.size(component, name))
            for component, tensors in start.tensors.items()
            for name, dtype, shape in tensors
        ]
        try:
            with path.open("wb") as file:
                file.write(header_bytes(entries, step))
                for component, tensors in start.tensors.items():
                    _copy(kept, component, tensors, start.state[component], file)
        except FormatError as error:
            raise ReplayError(f"the snapshot of step {step} is not what was signed: {error.message}") from None
        rest = {"tensors": start.tensors, "values": start.values, "streams": self._streams(step, start)}
        path.with_suffix(".json").write_bytes(canonical_bytes(rest))

    def _streams(self, step: int, start: _Start) -> dict[str, Any]:
        """Return the random streams after a step, each only if it has its digest in the log."""
        kept = values_of_snapshot(self._reader, self._manifest, step)
        found = {} if kept is None else kept.streams
        for name, stream in found.items():
            if stream_digest(stream) != start.rng.get(name):
                raise ReplayError(f"the snapshot of step {step} is not what was signed: {name} has another digest")
        return {name: stream.to_json() for name, stream in found.items()}


def _copy(kept: SnapshotFile, component: str, tensors: Any, digest: str, file: Any) -> None:
    digests = []
    for name, _, _ in tensors:
        data = kept.tensor(component, name)
        if data is None:
            raise FormatError(f"{component}/{name} is missing")
        digests.append(blake3(data).digest())
        file.write(data)
    if component_digest(canonical_bytes(tensors), digests).hex() != digest:
        raise FormatError(f"{component} has another digest")


def _start(line: Step, components: dict[str, Component], values: dict[str, Any], skipped: tuple[int, ...]) -> _Start:
    start = _Start(line.state, line.rng, skipped=skipped)
    for name in line.state:
        tensors = components[name].tensors
        if tensors is not None:
            start.tensors[name] = tensors
        elif name in values:
            start.values[name] = values[name]
    return start


def _resumed(reader: RunReader, manifest: Manifest) -> Iterator[int]:
    """Yield the steps before which an optimizer was given a saved state."""
    for line in read_lines(reader, manifest.step_logs[0]):
        if isinstance(line, Inventory) and line.resumed:
            yield line.i


_ENTERS = {
    "inputs": "the inputs of step {} are others",
    "order.index": "step {} gets other samples",
    "order.content": "the batch of step {} holds other values",
    "order": "the data loader of step {} is set up differently",
    "steps": "the run has another number of steps, and parts at step {}",
}
"""What enters a step, and is no state, beside random streams."""


def _phrase(component: str, step: int) -> str:
    if component.startswith("rng."):
        return f"step {step} draws other random numbers from {component.removeprefix('rng.')}"
    known = _ENTERS.get(component)
    return f"{component} differs at step {step}" if known is None else known.format(step)


def _decides(difference: Difference) -> str:
    return "--replay full" if difference.stage == "end" else f"--replay prefix:{difference.step + 1}"


class SegmentsComparison:
    """Compares a rerun of segments with the whole log, group by group (`divergence.Comparison`).

    A step is *walked* (what depends on no weights is compared), the *start* of a stretch (the state that was put back
    is compared too), or *real* (everything is).

    Attributes
    ----------
    steps, walked, reached:
        How many steps were compared for real, how many were walked, and the number of the next one.
    kind:
        What the step compared last was.
    """

    def __init__(self, stretches: list[tuple[int, int]], total: int, expected: TensorLookup, got: TensorLookup) -> None:
        self._stretches = stretches
        self._total = total
        self._lookups = (expected, got)
        self._known = (_Known(), _Known())
        self._comparison = Comparison(expected, got)
        self._gaps: dict[str, int] = {}
        self._fresh = True
        self.kind: _Kind = "real" if stretches[0][0] == 0 else "walked"
        self.steps = self.walked = self.reached = 0

    @property
    def uncompared(self) -> dict[str, int]:
        """What only one side held, by the number of steps (`Comparison.uncompared`)."""
        found = dict(self._gaps)
        for name, count in self._comparison.uncompared.items():
            found[name] = found.get(name, 0) + count
        return found

    @property
    def done(self) -> bool:
        """Whether all stretches were compared, and none goes to the end of the run."""
        return self._stretches[-1][1] + 1 == self.reached < self._total

    def feed(self, expected: Group, got: Group | None) -> Difference | None:
        """Compare the next group of both sides."""
        if expected.last is None or got is None or got.last is None:
            return self._comparison.feed(expected, got)
        kind = self._kind(expected)
        if kind != self.kind and kind != "real":
            self._begin()
        self.kind = kind
        sides = [self._side(known, group) for known, group in zip(self._known, (expected, got), strict=True)]
        self._fresh = False
        difference = self._comparison.feed(*sides)
        for known, group in zip(self._known, (expected, got), strict=True):
            known.take(group)
        if difference is None and isinstance(expected.last, Step):
            self.reached += 1
            self.steps += kind == "real"
            self.walked += kind != "real"
        return difference

    def _kind(self, group: Group) -> _Kind:
        assert group.last is not None
        step = group.last.i
        if isinstance(group.last, End):
            step -= 1  # it belongs to the last step
        if any(first <= step <= last for first, last in self._stretches):
            return "real"
        return "start" if any(first == step + 1 for first, _ in self._stretches) else "walked"

    def _begin(self) -> None:
        self._gaps = self.uncompared
        self._comparison = Comparison(*self._lookups)
        self._fresh = True

    def _side(self, known: _Known, group: Group) -> Group:
        """Return so much of a group as can be compared, and before it what was known when the comparison began."""
        if self.kind == "real":
            return group
        last = group.last
        state: dict[str, str] = {}
        if isinstance(last, Step):
            state = last.state if self.kind == "start" else {}
            last = last.model_copy(update={"state": state, "scalars": None, "skipped": None})
        elif isinstance(last, End):
            last = last.model_copy(update={"state": state})
        made = Group(epochs=group.epochs, last=last)
        introduced = known.with_group(group)
        fresh = introduced if self._fresh else _Known(group.streams, group.components, group.loaders)
        made.streams, made.loaders = fresh.streams, fresh.loaders
        made.components = {name: item for name, item in introduced.components.items() if name in state}
        return made


@dataclass
class _Known:
    """What one side has introduced so far: start states of streams (their digests), components, loaders."""

    streams: dict[str, str] = field(default_factory=dict)
    components: dict[str, Component] = field(default_factory=dict)
    loaders: dict[str, Any] = field(default_factory=dict)

    def with_group(self, group: Group) -> _Known:
        return _Known(group.streams | self.streams, self.components | group.components, self.loaders | group.loaders)

    def take(self, group: Group) -> None:
        for name, digest in group.streams.items():
            self.streams.setdefault(name, digest)
        self.components |= group.components
        self.loaders |= group.loaders
        if group.last is not None:
            for name, values in (group.last.values or {}).items():
                if name in self.components:
                    self.components[name] = self.components[name].model_copy(update={"values": values})
