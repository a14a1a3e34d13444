"""Replays a run and gives the verdict: `match`, `mismatch` (with the first difference), `inconclusive` or `not-run`.

The order of things: what to run is assembled and checked; consent is asked for exactly that; the child runs; the canary
of its random generators is compared first; then its step log, group by group, until the first difference. A difference
of code that was not changed is tried once more: where two replays differ from one another too, nothing is decided.
"""

from __future__ import annotations

import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.divergence import Comparison, Group, groups
from trainmem_audit.documents.findings import Difference, Replay
from trainmem_audit.documents.manifest import Manifest, Statement
from trainmem_audit.documents.steplog import End, Inventory, Line
from trainmem_audit.errors import ConsentError, FormatError, ReplayError, UsageError
from trainmem_audit.privacy import REDACTED, without
from trainmem_audit.replaying.child import Child, chosen_variables
from trainmem_audit.replaying.loaded import loaded_by, unsigned
from trainmem_audit.replaying.outside import reads_from_outside
from trainmem_audit.replaying.programs import Part, part_of, parts_of
from trainmem_audit.replaying.scratch import Scratch, build_scratch, changed_code
from trainmem_audit.replaying.segments import Draw, SegmentReplay, SegmentsComparison
from trainmem_audit.rundir import RunReader, open_run
from trainmem_audit.runs import read_lines, read_on, snapshot_at, tensor_lookup, values_at
from trainmem_audit.segments import NONCE_BYTES
from trainmem_audit.sizes import with_sizes
from trainmem_audit.snapshots import SnapshotFile
from trainmem_audit.steplog import STEP_FILE, LogReader, LogSummary, iter_lines

__all__ = ["ReplayOptions", "parse_mode", "replay"]

_DECISIVE = {
    "torch": "another torch version",
    "cpuCapability": "another CPU instruction set",
    "threads": "another number of threads",
    "mkl": "torch built with or without MKL",
    "mkldnn": "torch with or without oneDNN",
    "cudaDevice": "another GPU",
    "cudaMultiprocessors": "a GPU with another number of multiprocessors",
    "cuda": "another CUDA version",
}
"""Settings of the numeric profile that change bits and cannot always be imposed."""
_MORE_LOG = 32 * 2**20
_LINE_COST = 1000
"""How much longer the log of the replay may be than twice the signed one; a line counts for some bytes more, since one
step after another is held in memory until it is whole."""
_FIXED = re.compile(r"[0-9a-f]{64}|[0-9.]{1,20}")
"""Texts of a verdict in which nothing can hide: digests and seconds."""


@dataclass(frozen=True)
class ReplayOptions:
    """How to replay.

    Parameters
    ----------
    steps:
        How many steps to compare; `None` for all, and the end of the run.
    segments:
        Which segments to replay instead.
    consent:
        Asked with the exact command before anything runs; nothing runs unless it returns True.
    secret:
        Gives the value of a redacted argument.
    progress:
        Told the number of steps that matched.
    sizes:
        Whether a what-if runs both programs once more to the step that differs, to say how large the differences are.
    timeout:
        Seconds; by default ten times what the recorded run took, and five minutes.
    """

    consent: Callable[[str], bool]
    secret: Callable[[str], str]
    steps: int | None = None
    segments: Draw | None = None
    source: Path | None = None
    data: tuple[Path, ...] = ()
    allow_changed_source: bool = False
    timeout: float | None = None
    sizes: bool = True
    progress: Callable[[int], None] = lambda _: None


def parse_mode(text: str, nonce: str | None = None) -> int | Draw | None:
    """Return the number of steps of `prefix:N`, the draw of `segments:K`, or `None` for `full`.

    Parameters
    ----------
    nonce:
        What decides the draw beside the run itself, in hex; drawn here where it is not given.

    Raises
    ------
    UsageError
        For anything else.
    """
    kind, _, count = text.partition(":")
    number = int(count) if count.isascii() and count.isdecimal() and len(count) < 16 else 0
    if kind == "segments" and number:
        return Draw(number, secrets.token_bytes(NONCE_BYTES) if nonce is None else _nonce(nonce))
    if nonce is not None:
        raise UsageError("a nonce decides which segments are drawn", where="--nonce", expected="--replay segments:K")
    if text == "full":
        return None
    if kind == "prefix" and number:
        return number
    expected = "full, prefix:N or segments:K"
    raise UsageError("unknown mode of replay", where="--replay", expected=expected, got=text[:40])


def _nonce(text: str) -> bytes:
    if re.fullmatch(f"[0-9a-f]{{{2 * NONCE_BYTES}}}", text) is None:
        raise UsageError("not a nonce", where="--nonce", expected=f"{2 * NONCE_BYTES} hex digits", got=text[:80])
    return bytes.fromhex(text)


def replay(reader: RunReader, statement: Statement, options: ReplayOptions) -> Replay:
    """Replay the run behind `reader`, whose statement was checked.

    Raises
    ------
    UsageError
        If the code at hand is not what was recorded (and a what-if was not asked for).
    ConsentError
        If nobody agreed to run it.
    """
    manifest = statement.predicate
    options = replace(options, secret=_Secrets(options.secret, manifest))
    mode = "full" if options.steps is None else f"prefix:{options.steps}"
    mode = mode if options.segments is None else options.segments.mode
    if manifest.command.kind == "library":
        reason = "the run was recorded from within a program (Recorder); only launched scripts can be replayed"
        return Replay(outcome="not-run", mode=mode, reason=reason)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="trainmem-replay-", ignore_cleanup_errors=True) as folder:
        root = Path(folder)
        try:
            segments, forward = _segments(root, reader, manifest, options.segments)
            parts = _parts(reader, manifest, options, forward)
            scratch = _scratch(root, reader, manifest, options)
        except ReplayError as error:
            reason = "; ".join(" ".join(line.split()) for line in str(error).splitlines())
            return Replay(outcome="not-run", mode=mode, reason=reason)
        _ask(manifest, scratch, options)
        what_if = options.allow_changed_source and bool(scratch.changed)
        if parts:
            verdict = _run_parts(root, scratch, reader, manifest, options, parts, segments)
        else:
            verdict = _run(root, scratch, reader, manifest, options, segments=segments, forward=forward)
        if verdict.outcome == "mismatch" and not scratch.changed:
            verdict = _confirm(root / "again", verdict, reader, manifest, options)
        found = verdict.difference
        if what_if and options.sizes and segments is None and found is not None and found.stage != "end":
            try:
                measured = _measure(root, scratch, reader, manifest, options, found)
            except (ReplayError, FormatError, ValueError, OSError):
                measured = found  # what was found stands, however large it is
            verdict = verdict.model_copy(update={"difference": measured})
    verdict = verdict.model_copy(
        update={
            "mode": mode,
            "segments": None if segments is None else segments.document(),
            "what_if": what_if,
            "changed_files": tuple(scratch.changed),
            "seconds": f"{time.monotonic() - began:.1f}",
            "notes": (*scratch.notes, *verdict.notes),
        }
    )
    typed = _typed(scratch, manifest)
    return Replay.model_validate_json(canonical_bytes(_hide(verdict.to_json(), typed))) if typed else verdict


def _segments(
    root: Path, reader: RunReader, manifest: Manifest, wanted: Draw | None
) -> tuple[SegmentReplay | None, dict[str, Any] | None]:
    """Return the replay of segments that is wanted, and what the child is told of it; nothing for another mode."""
    if wanted is None:
        return None, None
    try:
        segments = SegmentReplay(reader, manifest, wanted)
        return segments, segments.lay_out(root)
    except FormatError as error:
        raise ReplayError(f"the record was changed after it was checked: {error.message}") from None


def _parts(reader: RunReader, manifest: Manifest, options: ReplayOptions, forward: dict[str, Any] | None) -> list[Part]:
    """Return the stretches of a program that are run, each in a process of its own; none for a script."""
    if manifest.command.kind != "program":
        return []
    try:
        return [part_of(reader, manifest, options.steps)] if forward is None else parts_of(reader, manifest, forward)
    except FormatError as error:
        raise ReplayError(f"the record was changed after it was checked: {error.message}") from None


def _run_parts(
    root: Path,
    scratch: Scratch,
    reader: RunReader,
    manifest: Manifest,
    options: ReplayOptions,
    parts: list[Part],
    segments: SegmentReplay | None,
) -> Replay:
    """Run stretch after stretch of a program; the first that does not match ends it."""
    verdict = Replay(outcome="not-run", mode="")
    steps = 0
    for number, part in enumerate(parts):
        folder = root / f"part-{number}"
        folder.mkdir()
        own = options if part.last is None else replace(options, steps=part.last + 1)
        verdict = _run(folder, scratch, reader, manifest, own, part=part)
        compared = max(0, verdict.steps_compared - part.first)
        steps += compared
        verdict = verdict.model_copy(update={"steps_compared": steps})
        if verdict.outcome != "match":
            break
    if segments is not None and verdict.outcome == "mismatch" and verdict.difference is not None:
        reason = (
            f"step {verdict.difference.step} comes out differently from the snapshot before it "
            f"({verdict.difference.blame}): the program keeps memory that it does not name, or carries something from "
            "before its optimizer's step to after it, or the segment is not what it does; only a replay from the start "
            f"decides: --replay prefix:{verdict.difference.step + 1}"
        )
        return verdict.model_copy(update={"outcome": "inconclusive", "reason": reason})
    return verdict


def _scratch(root: Path, reader: RunReader, manifest: Manifest, options: ReplayOptions) -> Scratch:
    """Build the tree in which the run is replayed, as the reviewer wants it."""
    return build_scratch(
        root,
        reader,
        manifest,
        source=options.source,
        data=options.data,
        allow_changed=options.allow_changed_source,
        secret=options.secret,
    )


class _Secrets:
    """Asks for each redacted argument once, in their order, however often the tree is built."""

    def __init__(self, ask: Callable[[str], str], manifest: Manifest) -> None:
        self._ask = ask
        self._wanted = sum(argument.redacted is True for argument in manifest.command.arguments)
        self._given: list[str] = []
        self._calls = 0

    def __call__(self, prefix: str) -> str:
        at = self._calls % self._wanted
        self._calls += 1
        if at == len(self._given):
            self._given.append(self._ask(prefix))
        return self._given[at]


def _typed(scratch: Scratch, manifest: Manifest) -> list[str]:
    """Return the secrets that were typed for the redacted arguments."""
    recorded = zip(scratch.arguments, manifest.command.arguments, strict=True)
    return [word.removeprefix(argument.prefix) for word, argument in recorded if argument.redacted]


def _hide(value: Any, typed: list[str]) -> Any:
    """Return what a verdict says without the secrets that were typed for it; digests and names of fields stay."""
    if isinstance(value, str):
        return value if _FIXED.fullmatch(value) else without(value, typed)
    if isinstance(value, list):
        return [_hide(member, typed) for member in value]
    if isinstance(value, dict):
        return {
            name: member if name in ("outcome", "stage", "mode", "segments") else _hide(member, typed)
            for name, member in value.items()
        }
    return value


def _ask(manifest: Manifest, scratch: Scratch, options: ReplayOptions) -> None:
    entry = manifest.command.entry
    kind = manifest.command.kind
    program = ["-m", entry] if kind == "module" else [entry.split("/", 1)[-1]]
    program = ["-m", "trainmem_audit", "record", "--program", entry.split("/", 1)[-1]] if kind == "program" else program
    variables, refused = chosen_variables(manifest)
    scratch.notes += [
        f"the variable {name} is not imposed: its value was redacted, or programs may load code by it"
        for name in refused
    ]
    settings = [f"{name}={text}" for name, text in variables.items()]
    recorded = zip(scratch.arguments, manifest.command.arguments, strict=True)
    words = [
        shlex.quote(argument.prefix) * bool(argument.prefix) + "[redacted]" if argument.redacted else shlex.quote(word)
        for word, argument in recorded
    ]
    command = " ".join([shlex.join([*settings, "python", *program]), *words])
    if not options.consent(command):
        raise ConsentError(
            "the replay runs the author's code, and nobody agreed to that",
            where=command,
            remedy="read the code in source/, then answer yes, or pass --yes",
        )


def _run(
    root: Path,
    scratch: Scratch,
    reader: RunReader,
    manifest: Manifest,
    options: ReplayOptions,
    dump: tuple[int, Path] | None = None,
    *,
    segments: SegmentReplay | None = None,
    forward: dict[str, Any] | None = None,
    part: Part | None = None,
) -> Replay:
    seconds = _recorded_seconds(manifest)
    timeout = options.timeout if options.timeout is not None else 10 * seconds + 300
    same_code = not scratch.changed
    with Child(
        root,
        scratch.tree,
        manifest,
        scratch.arguments,
        timeout,
        dump=dump,
        same_code=same_code,
        forward=forward,
        program=None if part is None else part.order,
    ) as child:
        watcher = _Watcher(child, manifest, _typed(scratch, manifest), reader.size(STEP_FILE))
        lookups = (tensor_lookup(reader), lambda step: _fresh_lookup(child.run_dir, step))
        first = 0 if part is None else part.first
        comparison: Comparison | SegmentsComparison
        if segments is None:
            comparison = Comparison(*lookups, resumed_at=first or None)
            watcher.skips = first
        else:
            comparison = segments.comparison(*lookups)
        try:
            difference = watcher.compare(comparison, reader, options)
        except (ReplayError, FormatError) as error:
            return Replay(outcome="inconclusive", mode="", steps_compared=comparison.steps, reason=error.message)
        if dump is not None and difference is not None and difference.step == dump[0]:
            child.wait_for(dump[1])
        short = difference is None and options.steps is not None  # the last step compared is one before the count
        compared = comparison.steps - short
        if isinstance(comparison, SegmentsComparison):
            compared = comparison.reached
        if watcher.reason and segments is not None:
            watcher.reason = segments.stopped(watcher.reason)
        watcher.reason = watcher.reason or _unsigned(reader, manifest, scratch, watcher.summary, compared, difference)
        if watcher.reason:
            return Replay(
                outcome="inconclusive",
                mode="",
                steps_compared=comparison.steps,
                reason=watcher.reason,
                difference=difference,
            )
        notes = tuple(
            f"{seed.call} at {seed.site} got a number that changes from run to run; the recorded one was used"
            for seed in watcher.summary.seeds
            if seed.imposed
        )
    verdict = _verdict(difference, comparison.steps, watcher.summary, manifest, bool(scratch.changed), notes)
    if verdict.outcome == "mismatch" and segments is not None and difference is not None:
        verdict = verdict.model_copy(update=segments.undecided(difference))
    if verdict.outcome == "match" and comparison.uncompared:
        apart = ", ".join(f"{name} at {count}" for name, count in sorted(comparison.uncompared.items()))
        reason = (
            f"only one side holds these at some of the {comparison.steps} steps, so they were not compared: {apart}"
        )
        return verdict.model_copy(update={"outcome": "inconclusive", "reason": reason})
    return verdict


def _confirm(root: Path, first: Replay, reader: RunReader, manifest: Manifest, options: ReplayOptions) -> Replay:
    """Replay once more: only a program that reproduces itself here can be said not to reproduce its record."""
    root.mkdir()
    code = [(file.path, content) for file, content, _ in changed_code(reader, manifest, options.source)]
    reads = reads_from_outside(code)
    outside = (f"the code reads what no record holds: {'; '.join(reads)}",) if reads else ()
    try:
        scratch = _scratch(root, reader, manifest, options)
        found = first.difference if first.difference and first.difference.stage != "end" else None
        kept = snapshot_at(reader, manifest, found.step) if found else None
        dump = (found.step, root / "dump") if found and kept else None
        second = _run(root, scratch, reader, manifest, options, dump)
    except (UsageError, ReplayError, FormatError) as error:
        return first.model_copy(update={"notes": (*first.notes, f"no second replay: {error.message}", *outside)})
    if second.outcome == "mismatch" and _identity(second) == _identity(first):
        note = "a second replay came out as the first did, to the bit, and not as recorded"
        measured = _valued(first.difference, kept, dump)
        return first.model_copy(update={"notes": (*first.notes, note, *outside), "difference": measured})
    if second.outcome not in ("match", "mismatch"):
        note = f"the second replay decided nothing: {second.reason}"
        return first.model_copy(update={"notes": (*first.notes, note, *outside)})
    reason = "the program does not reproduce itself here: two replays of it differ from one another"
    named = f"; it reads {', '.join(reads)}" if reads else ", and its code does not show why"
    return first.model_copy(update={"outcome": "inconclusive", "reason": reason + named})


def _valued(found: Difference | None, kept: SnapshotFile | None, dump: tuple[int, Path] | None) -> Difference | None:
    """Return the difference with the values of both sides, where the record keeps a snapshot of that very step."""
    if found is None or kept is None or dump is None or not dump[1].exists():
        return found
    try:
        return with_sizes(found, kept, values_at(dump[1]))
    except (FormatError, OSError):
        return found  # the script could write there too


def _identity(verdict: Replay) -> object:
    found = verdict.difference
    return found and (found.step, found.stage, [(item.component, item.got) for item in found.components])


def _unsigned(
    reader: RunReader,
    manifest: Manifest,
    scratch: Scratch,
    found: LogSummary,
    steps: int,
    difference: Difference | None,
) -> str:
    """Return why what ran was not what was signed (`loaded.unsigned`)."""
    lines = read_lines(reader, manifest.step_logs[0])
    try:
        required = loaded_by(lines, steps)
        read_on(lines)
    except FormatError as error:
        return error.message
    refused = chosen_variables(manifest)[1]
    return unsigned(manifest, scratch.placed, found, required, difference is not None, refused)


def _measure(
    root: Path, scratch: Scratch, reader: RunReader, manifest: Manifest, options: ReplayOptions, found: Difference
) -> Difference:
    """Run the signed and the changed program to the step that differs, and compare the values of the tensors."""
    timeout = options.timeout if options.timeout is not None else 10 * _recorded_seconds(manifest) + 300
    dumps = []
    for side in ("signed", "changed"):
        folder = root / side
        folder.mkdir()
        path = folder / "dump"
        try:
            tree = build_scratch(
                folder,
                reader,
                manifest,
                source=None if side == "signed" else options.source,
                data=options.data,
                allow_changed=side == "changed",
                secret=options.secret,
            )
        except (UsageError, ReplayError):
            return found  # the signed code or data is not at hand
        with Child(folder, tree.tree, manifest, tree.arguments, timeout, dump=(found.step, path)) as child:
            if not child.wait_for(path):
                return found
        dumps.append(values_at(path))
    return with_sizes(found, dumps[0], dumps[1])


def _fresh_lookup(run_dir: Path, step: int) -> bytes | None:
    with open_run(run_dir) as reader:
        return tensor_lookup(reader)(step)


class _Watcher:
    """Compares the growing log of the child with the signed one."""

    def __init__(self, child: Child, manifest: Manifest, typed: list[str], size: int) -> None:
        self.reason = ""
        self.skips = 0
        self._typed = typed
        self._left = 2 * (size + _LINE_COST * manifest.step_logs[0].count) + _MORE_LOG
        self._child = child
        self._manifest = manifest
        self._log = LogReader("the replay's log")
        self._end: End | None = None

    @property
    def summary(self) -> LogSummary:
        return self._log.summary

    def compare(
        self, comparison: Comparison | SegmentsComparison, reader: RunReader, options: ReplayOptions
    ) -> Difference | None:
        """Return the first difference; `reason` says why the replay could decide nothing."""
        signed = read_lines(reader, self._manifest.step_logs[0])
        difference = self._compare(comparison, groups(signed), options)
        read_on(signed)
        return difference

    def _compare(
        self, comparison: Comparison | SegmentsComparison, signed: Iterator[Group], options: ReplayOptions
    ) -> Difference | None:
        found = groups(self._lines())
        for expected in signed:
            if expected.last is None or (options.steps is not None and comparison.steps >= options.steps):
                return None
            if isinstance(comparison, SegmentsComparison) and comparison.done:
                return None
            if isinstance(comparison, Comparison) and comparison.steps < self.skips:
                comparison.skip(expected)
                continue
            if isinstance(expected.last, End) and expected.last.outcome == "interrupted":
                return None  # a replay would go on: nobody interrupts it
            got = next(found, None)
            if self.reason:
                return None
            if self._stopped_badly(got is None or got.last is None, expected.last):
                self.reason = f"the script did not get as far when replayed: {self._child.last_words(self._typed)}"
                return None
            difference = comparison.feed(expected, got)
            if difference is not None:
                return difference
            options.progress(comparison.steps)
        return None

    def _lines(self) -> Iterator[Line]:
        for raw, whole in iter_lines(self._child.chunks(), "the replay's log"):
            if not whole:
                return
            self._left -= len(raw) + _LINE_COST
            if self._left < 0:
                raise ReplayError("the script logs far more than it did when it was recorded, and was ended")
            line = self._log.read(raw)
            if isinstance(line, Inventory) and line.rng_canary is not None:
                self._compare_canary(line.rng_canary)
                if self.reason:
                    return
            if isinstance(line, End):
                self._end = line
            yield line

    def _compare_canary(self, here: dict[str, str]) -> None:
        differ = sorted(name for name, digest in self._manifest.canary.items() if here.get(name) != digest)
        if differ:
            names = ", ".join(differ)
            self.reason = f"the random generators here draw other values ({names}), so nothing can be decided"

    def _stopped_badly(self, stopped: bool, expected: object) -> bool:
        """Tell whether the script died or raised where the recorded one went on: a missing file, not a difference."""
        if stopped:
            return True
        same = isinstance(expected, End) and expected.outcome == "raised"
        return self._end is not None and self._end.outcome == "raised" and not same


def _verdict(
    difference: Difference | None,
    steps: int,
    log: LogSummary,
    manifest: Manifest,
    what_if: bool,
    notes: tuple[str, ...],
) -> Replay:
    if difference is None:
        if not manifest.step_logs[0].complete:
            notes = (*notes, f"the record ends after {manifest.step_logs[0].steps} steps, and so does the comparison")
        if manifest.run.outcome == "interrupted":
            notes = (*notes, f"the run was interrupted after {steps} steps, and so the comparison ends there")
        return Replay(outcome="match", mode="", steps_compared=steps, notes=notes)
    hidden = _hidden(difference, manifest)
    if hidden:
        reason = f"names or values of {', '.join(hidden)} were redacted when recorded, so they cannot be compared here"
        return Replay(
            outcome="inconclusive", mode="", steps_compared=steps, reason=reason, difference=difference, notes=notes
        )
    gaps = _gaps(manifest, log)
    if gaps and not what_if:
        reason = f"the numeric profile could not be imposed here ({'; '.join(gaps)}), so a difference decides nothing"
        return Replay(
            outcome="inconclusive", mode="", steps_compared=steps, reason=reason, difference=difference, notes=notes
        )
    notes += tuple(f"the numeric profile could not be imposed here: {gap}" for gap in gaps)
    return Replay(outcome="mismatch", mode="", steps_compared=steps, difference=difference, notes=notes)


def _hidden(difference: Difference, manifest: Manifest) -> list[str]:
    """Return the components that differ, if each of them holds something redacted: what tells who and where.

    That is other text on another machine. One component more that differs is a difference of its own.
    """
    held = {
        name
        for name, component in manifest.sources.items()
        if REDACTED in str(component.tensors) or REDACTED in str(component.values)
    }
    named = {component.component for component in difference.components}
    return sorted(named) if named <= held else []


def _gaps(manifest: Manifest, log: LogSummary) -> list[str]:
    """Return which decisive settings right after the import of torch could not be made what they were."""
    recorded, here = manifest.numeric_profile.get("import", {}), log.profiles.get("import", {})
    return [
        f"{meaning}: recorded {recorded.get(name)}, here {here.get(name)}"
        for name, meaning in _DECISIVE.items()
        if recorded.get(name) != here.get(name)
    ]


def _recorded_seconds(manifest: Manifest) -> float:
    from datetime import datetime

    if manifest.run.finished is None:
        return 3600.0
    try:
        started, finished = (datetime.fromisoformat(text) for text in (manifest.run.started, manifest.run.finished))
    except ValueError:
        return 3600.0
    return min(max((finished - started).total_seconds(), 0.0), 30 * 86400.0)
