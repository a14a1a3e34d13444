"""The life of one recording: what happens before the script, right after its imports, at its end, and when we fail.

Both doors (`launcher`, `recorder`) drive this one class. Nothing that fails here reaches the script.
"""

from __future__ import annotations

import itertools
import os
import random
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from trainmem_audit import __version__
from trainmem_audit.assemble import recover, sign_run
from trainmem_audit.contract import root_of, start_seed
from trainmem_audit.documents.declared import DeclaredContract
from trainmem_audit.documents.manifest import CODE_ELSEWHERE, SegmentSupport, Statement
from trainmem_audit.documents.steplog import LOG_FORMAT, Seed, Stream
from trainmem_audit.errors import InterventionError, RecordingError, TrainmemAuditError
from trainmem_audit.interventions import MISSED
from trainmem_audit.keys import Signer
from trainmem_audit.privacy import is_unicode, known_identity, public_text
from trainmem_audit.recording.codefiles import CodeFiles
from trainmem_audit.recording.entropy import Entropy
from trainmem_audit.recording.facts import environment, numeric_profile, rng_canary
from trainmem_audit.recording.importing import after_import
from trainmem_audit.recording.opened import OpenedFiles
from trainmem_audit.recording.openings import Openings
from trainmem_audit.recording.parents import find_parent
from trainmem_audit.recording.places import Places
from trainmem_audit.recording.writer import LogWriter
from trainmem_audit.snapshots import DEFAULT_SNAPSHOT_BUDGET
from trainmem_audit.sources.twisters import numpy_stream, python_stream, restore_twister

if TYPE_CHECKING:
    from trainmem_audit.recording.acts import Acts
    from trainmem_audit.recording.session import Session

__all__ = ["DEFAULT_TENSOR_BUDGET", "Imposed", "Options", "Recording", "say"]

DEFAULT_TENSOR_BUDGET = 64 * 2**20
_MOST_SEARCHES = 8
"""How often the record is sought that a run goes on from: once for each time that inputs are told of."""


@dataclass(frozen=True)
class Imposed:
    """What a replay imposes: the recorded start states, the threads torch had right after its import, and the seeds.

    `same_code` is false in a what-if: the changed code may mean to pass another seed.
    """

    streams: dict[str, Stream]
    threads: int | None = None
    seeds: tuple[Seed, ...] = ()
    same_code: bool = True


@dataclass(frozen=True)
class Options:
    """How to record.

    Parameters
    ----------
    command:
        The members of `documents.steplog.Command`.
    nonce:
        32 hex digits, drawn by the caller: the run's id, and what unseeded generators start from.
    entry:
        The script's path, when there is one.
    directories:
        Directories elsewhere that the arguments name, and what the record calls them.
    may_move:
        Whether `run_dir` is a name of our choice, which the script may have if it wants it.
    facts:
        What the record commits to (`provenance.facts`); without them it commits to nothing, input places neither.
    anonymous:
        Whether the record will be handed in without a name.
    draw_starts:
        Whether to set the start states of the random streams (the launcher does; a library must not).
    starts:
        What single streams start from instead of the nonce (`twice` pins them so).
    parent:
        The record that this run goes on from, where it does not lie in the working directory.
    imposed:
        What to set instead, at replay.
    contract:
        What the author declares of random streams and order.
    dump:
        A step and the file to which the tensors of its state are written aside, at replay.
    forward:
        Which stretches are run for real, in a replay of segments (`FastForward.from_order`).
    threaded:
        Whether threads of ours write and digest (`LogWriter`).
    snapshot_every, snapshot_auto, snapshot_at, snapshot_budget:
        After which steps the state is kept: every so many (0 for none) or as the time allows, and these; bytes in all.
    study:
        What the run is within a study (`documents.steplog.Study`).
    observe:
        After which steps what is predicted for which probe (`Probing.from_order`).
    state_at:
        After which steps the state is digested; all of them if left out.
    """

    run_dir: Path
    cwd: Path
    command: dict[str, Any]
    nonce: str
    entry: Path | None = None
    copy_source: bool = True
    tensor_budget: int = DEFAULT_TENSOR_BUDGET
    variables: tuple[str, ...] = ()
    inputs: tuple[Path, ...] = ()
    directories: tuple[tuple[str, Path], ...] = ()
    may_move: bool = False
    facts: Mapping[str, Any] | None = None
    anonymous: bool = False
    draw_starts: bool = True
    starts: Mapping[str, str] = field(default_factory=dict)
    imposed: Imposed | None = None
    contract: DeclaredContract | None = None
    dump: tuple[int, Path] | None = None
    forward: Mapping[str, Any] | None = None
    threaded: bool = True
    parent: Path | None = None
    snapshot_every: int = 0
    snapshot_auto: bool = False
    snapshot_budget: int = DEFAULT_SNAPSHOT_BUDGET
    snapshot_at: frozenset[int] = frozenset()
    study: Mapping[str, Any] | None = None
    observe: Mapping[str, Any] | None = None
    state_at: frozenset[int] | None = None
    say: Callable[[str], None] = field(default=lambda text: say(text))


class Recording:
    """One recording in this process; `start`, run the script, `finish`."""

    def __init__(self, options: Options) -> None:
        self.session: Session | None = None
        self._options = options
        self._failure: BaseException | None = None
        self._uninstall: Callable[[], None] = lambda: None
        self._pid = os.getpid()
        entry_directory = options.cwd if options.entry is None else options.entry.resolve().parent
        places = Places(options.cwd, entry_directory, options.directories)
        self._writer = LogWriter(options.run_dir, options.tensor_budget, self._fail, options.threaded)
        self._places = places
        self._code = CodeFiles(options.run_dir, places, options.copy_source, options.imposed is not None)
        if options.imposed is not None:  # a replay tells before each step what it has loaded, for whoever watches it
            self._writer.before_step = self._guard(self._log_loaded)
        known_identity()  # it reads files, which are no inputs of the script
        self._opened = OpenedFiles(places, options.run_dir, self._step_aside)
        self._openings = Openings(options.anonymous)
        self._known_streams: set[str] = set()
        imposed = options.imposed or Imposed({})
        self._entropy = Entropy(options.nonce, places, self._log_seed, imposed.seeds, imposed.same_code, options.starts)

    @property
    def run_dir(self) -> Path:
        """Where the record lies now (`Options.may_move`)."""
        return self._options.run_dir

    @property
    def writer_seconds(self) -> float:
        """Seconds that the writer's thread has worked."""
        return self._writer.seconds

    def start(self) -> None:
        """Write the `begin` line and wait for torch and NumPy to be imported."""
        options = self._options
        self._start_python()
        self._known_streams.add("python")
        contract = {} if options.contract is None else {"declaredContract": options.contract.to_json()}
        study = {} if options.study is None else {"study": dict(options.study)}
        root = root_of(options.starts)
        entropy = {} if root is None else {"rootEntropy": root}
        self._writer.start(
            {
                "t": "begin",
                "format": LOG_FORMAT,
                "nonce": options.nonce,
                "rank": 0,
                "world": 1,
                "started": _now(),
                "producer": {"name": "trainmem-audit", "version": __version__},
                "command": options.command,
                "environment": environment(self._places, options.variables, options.anonymous),
                "streams": {"python": python_stream().to_json()},
                "tensorBudget": options.tensor_budget,
                **contract,
                **entropy,
                **study,
            }
        )
        if options.facts or options.anonymous:
            self._commit(options.facts or {})
        for path in options.inputs:
            self._opened.add(path)
        if options.entry is not None:
            with self._opened.own_work():
                self._log_files(self._code.entry(options.entry))
        if options.draw_starts:
            self._entropy.watch_python()
        after_import("torch", self._guard(self._torch_imported))
        after_import("numpy.random", self._guard(self._numpy_imported))

    def finish(
        self,
        outcome: str,
        exit_code: int,
        signer: Signer | None,
        self_test: Callable[[Path], SegmentSupport] | None = None,
    ) -> Statement | None:
        """Close the log, and sign the run (`None` leaves it unsigned, as a replay does), after a `self_test` of it.

        Raises
        ------
        RecordingError
            If nothing was recorded, or the recording had failed; what there is has then been signed as incomplete.
        """
        if os.getpid() != self._pid:
            return None  # a child that the script forked ends here too
        self._opened.active = False
        members = self._guard(self._last)() or {}
        self._uninstall()
        if self._failure is None:
            end = {"t": "end", "i": 0, "finished": _now(), "outcome": outcome, "exitCode": exit_code, "rng": {}}
            lost = {"notRecorded": sorted(self._not_recorded(bool(members.get("state"))))}
            self._writer.put({**end, "state": {}, **lost, **members})
        try:
            summary = self._writer.close()
        except RecordingError:
            return self._finish_failed(signer)
        if summary.steps == 0:
            raise RecordingError(
                "no optimizer step was recorded",
                expected="at least one call of `optimizer.step()` of a torch optimizer in this process",
                remedy="trainers started in other processes are not followed; see `trainmem-audit record --help`",
            )
        if self._failure is not None:
            return self._finish_failed(signer)
        if signer is None:
            return None
        tested = None if self_test is None else self_test(self._options.run_dir)
        return sign_run(self._options.run_dir, summary, signer, segments=tested)

    def _finish_failed(self, signer: Signer | None) -> NoReturn:
        run_dir = self._options.run_dir
        broke_off = f"the recording broke off ({_detail(self._failure)})"
        if signer is None:
            raise RecordingError(broke_off, where=str(run_dir))
        try:
            steps = recover(run_dir, signer, "the recorder failed, the script went on").steps
        except (OSError, TrainmemAuditError) as error:
            raise RecordingError(
                f"{broke_off}, and what was written before could not be signed ({_detail(error)})",
                where=str(run_dir),
                remedy=f"if the directory is there: make room, then `trainmem-audit recover {run_dir}`",
            ) from None
        raise RecordingError(
            f"{broke_off}: {_kept(steps)}; what was written before is kept, signed as incomplete", where=str(run_dir)
        )

    # Imports -------------------------------------------------------------------------------------------------------

    def _torch_imported(self) -> None:
        import torch

        from trainmem_audit.recording.forward import FastForward
        from trainmem_audit.recording.hooks import install
        from trainmem_audit.recording.probing import Probing
        from trainmem_audit.recording.session import Session
        from trainmem_audit.recording.snapshots import SnapshotPlan
        from trainmem_audit.sources import batches
        from trainmem_audit.sources.streams import restore_torch, torch_stream

        batches.name_path = self._places.name_text
        imposed = self._options.imposed
        if imposed is not None:
            if imposed.threads is not None:
                torch.set_num_threads(imposed.threads)
            if "torch.cpu" in imposed.streams:
                restore_torch(imposed.streams["torch.cpu"], torch.default_generator)
        elif self._options.draw_starts:
            torch.default_generator.manual_seed(self._seed("torch.cpu"))
        self._known_streams.add("torch.cpu")
        start = torch_stream(torch.default_generator).to_json()
        profile = {"profile": numeric_profile(), "rngCanary": rng_canary(), "streams": {"torch.cpu": start}}
        self._writer.put({"t": "inventory", **profile})
        options = self._options
        kept = SnapshotPlan(
            lambda name: self.run_dir / name,
            self._opened.own_work,
            options.snapshot_every,
            options.snapshot_auto,
            options.snapshot_at,
            options.snapshot_budget,
        )
        self._snapshots = kept
        own = self._is_own_code
        at = None if options.state_at is None else options.state_at.__contains__
        acts = self._acts(options)
        self.session = Session(
            self._writer, self._known_streams, self._first_step, kept, options.dump, own, state_at=at, acts=acts
        )
        if options.observe is not None:
            self.session.probing = Probing.from_order(
                options.observe, lambda name: self.run_dir / name, self._opened.own_work
            )
        self.session.saved_file = self._saved_file
        if options.forward is not None:
            self.session.forward = FastForward.from_order(options.forward, self._opened.own_work)
        self._uninstall = install(self.session, self._fail)
        if self._options.draw_starts:
            self._entropy.found = self.session.on_generator
            self._entropy.watch_torch()

    def _acts(self, options: Options) -> Acts | None:
        from trainmem_audit.recording.acts import Acts

        texts = options.command.get("interventions") or ()
        try:
            with self._opened.own_work():
                return Acts(texts, options.cwd) if texts else None
        except TrainmemAuditError as error:
            raise InterventionError(" · ".join(texts), error) from None

    def _is_own_code(self, file: str) -> bool:
        """Tell whether a file of code lies in the author's tree."""
        path = Path(file)
        return path.is_absolute() and self._places.is_own(path) and not self._places.is_library(path)

    def _numpy_imported(self) -> None:
        imposed = self._options.imposed
        numpy_random = sys.modules["numpy.random"]
        if imposed is not None and "numpy" in imposed.streams:
            restore_twister(imposed.streams["numpy"])
        elif self._options.draw_starts:
            numpy_random.seed(self._seed("numpy") % 2**32)
        if self._options.draw_starts:
            self._entropy.watch_numpy()
        self._known_streams.add("numpy")
        self._writer.put({"t": "inventory", "streams": {"numpy": numpy_stream().to_json()}})

    def _start_python(self) -> None:
        imposed = self._options.imposed
        if imposed is not None and "python" in imposed.streams:
            restore_twister(imposed.streams["python"])
        elif self._options.draw_starts:
            random.seed(self._seed("python"))

    def _seed(self, stream: str) -> int:
        """Return the 63-bit seed that a stream starts from, derived from the nonce."""
        nonce = self._options.starts.get(stream, self._options.nonce)
        return start_seed(nonce, stream)

    def _log_seed(self, seed: Seed) -> None:
        if os.getpid() == self._pid:
            self._writer.put({"t": "inventory", "seeds": [seed.to_json()]})

    # The run directory --------------------------------------------------------------------------------------------

    def _step_aside(self, path: Path) -> None:
        """Give up the name of the run directory, in which the script is about to make `path`."""
        old = self._options.run_dir
        if not self._options.may_move:
            return
        new = free_name(old)
        self._writer.move(new)
        self._options = replace(self._options, run_dir=new)
        self._code.run_dir = new.resolve()
        self._opened.ignore(new)
        if path != old.resolve():  # the script has found a directory there, and goes on as if it were its own
            old.mkdir()
        self._opened.folders.made(str(old.resolve()))
        self._options.say(f"the script makes a directory of the name {old.name}, so the record lies in {new.name}")

    def _commit(self, facts: Mapping[str, Any]) -> None:
        """Commit to facts: first their openings are written aside, then their digests into the log."""
        with self._opened.own_work():
            digests = self._openings.add(facts, self._options.run_dir)
        if digests:
            self._writer.put({"t": "inventory", "commitments": digests})

    # Files ---------------------------------------------------------------------------------------------------------

    def _first_step(self) -> None:
        self._log_code()
        log_inputs = self._guard(self._log_inputs)
        if self._options.threaded:
            threading.Thread(target=log_inputs, name="trainmem-audit-inputs", daemon=True).start()
        else:
            log_inputs()

    def _last(self) -> dict[str, Any] | None:
        members = self.session.end() if self.session is not None and self.session.active else None
        for text in sorted(self.session.not_recorded if self.session is not None else ()):
            if text.startswith(MISSED):
                self._options.say(f"{text}, since the run had no such step")
        self._log_code()
        self._log_inputs(last=True)
        return members

    def _log_loaded(self) -> None:
        with self._opened.own_work():
            self._log_files([*self._code.newly_imported(), *self._code.read(self._opened.take_code())])
        self._log_inputs()

    _inputs_lock = threading.Lock()
    _lost_inputs: tuple[str, ...] = ()
    _parents_sought = 0

    def _log_inputs(self, last: bool = False) -> None:
        with self._inputs_lock:
            found, lost = self._opened.take()
            self._lost_inputs += tuple(lost)
            if found:
                self._writer.put({"t": "inventory", "inputs": [item.to_json() for item in found]})
                self._log_parent([item.sha256 for item in found if not item.path.startswith("{site}/")])
            if self._options.facts and (places := self._opened.take_places()):
                self._commit({"inputs": tuple(places)})
            if self._options.imposed is None and (folders := self._opened.take_folders(last)):
                self._writer.put({"t": "inventory", "folders": [item.to_json() for item in folders]})

    def _log_parent(self, digests: list[str]) -> None:
        """Write down which recorded run this one goes on from, when it has read a checkpoint of it."""
        options = self._options
        if options.imposed is not None or self._parents_sought >= _MOST_SEARCHES or not digests:
            return
        self._parents_sought += 1
        with self._opened.own_work():
            parent = find_parent(digests, options.cwd, options.run_dir, options.parent)
        if parent is not None:
            self._parents_sought = _MOST_SEARCHES
            self._writer.put({"t": "inventory", "parent": parent})

    def _saved_file(self, path: str) -> dict[str, Any]:
        """Return what the record tells of a file that the script has saved."""
        from trainmem_audit.recording.checkpoints import file_members

        with self._opened.own_work():
            key, real = self._places.locate(path)
            name = self._places.name(Path(key))
            return file_members(Path(real), name) if is_unicode(name) else {}

    def _log_code(self) -> None:
        with self._opened.own_work():
            self._log_files([*self._code.imported(), *self._code.read(self._opened.take_code())])

    def _log_files(self, files: list[Any]) -> None:
        if files:
            self._writer.put({"t": "inventory", "files": [file.to_json() for file in files]})

    def _not_recorded(self, state_known: bool) -> set[str]:
        missing = {*self._lost_inputs}
        if self.session is not None:
            missing |= self.session.not_recorded
            missing |= self._snapshots.thinned()
            late = sorted(step for step in self._options.snapshot_at if step >= self.session.steps)
            missing |= {f"the snapshot of step {step}: the run had no such step" for step in late}
            if not state_known:
                missing.add("the state after the last step: the script's objects were gone when it ended")
        if self._code.elsewhere:
            names = ", ".join(sorted(map(public_text, self._code.elsewhere))[:20])
            missing.add(f"{CODE_ELSEWHERE}: {names}")
        if self._opened.too_many:
            missing.add("inputs beyond the first 10000 files that the script opened")
        if self._options.anonymous:
            missing.add("packages that come from no index (--anonymous)")
        if self._options.facts is None:
            missing.add("commitments to commit, remote, author and places of data (--no-commitments)")
        if not self._options.copy_source:
            missing.add("copies of the code (--no-source): digests only")
        return missing

    # Failure -------------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """Say once, loudly, that recording has ended; training goes on."""
        if self._failure is None:
            self._failure = error
            self._uninstall_soon()
            with suppress(Exception):  # who cannot be told must not be stopped by it
                self._options.say(f"RECORDING BROKE OFF, training goes on without it: {_detail(error)}")

    def _uninstall_soon(self) -> None:
        if self.session is not None:
            self.session.active = False

    def _guard(self, action: Callable[[], Any]) -> Callable[[], Any]:
        def guarded() -> Any:
            try:
                return action()
            except Exception as error:  # the script must not notice
                self._fail(error)
                return None

        return guarded


def _detail(error: BaseException | None) -> str:
    return error.message if isinstance(error, TrainmemAuditError) else f"{type(error).__name__}: {error}"


def _kept(steps: int) -> str:
    return f"everything after step {steps - 1} is lost" if steps else "every step is lost"


def say(text: str) -> None:
    """Print a line on standard error, if there is one."""
    if sys.stderr is not None:  # else `print` would take stdout
        print(f"trainmem-audit: {text}", file=sys.stderr)


def free_name(path: Path) -> Path:
    """Return `path` with the first number after it that no file or directory has."""
    stem = path.name.rstrip("0123456789").removesuffix("-") or path.name
    numbers = (path.with_name(f"{stem}-{number}") for number in itertools.count(2))
    return next(candidate for candidate in numbers if not candidate.exists())


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
