"""Makes the runs of `search`: a fresh copy, the launcher with pins, the step log watched, the process group ended.

Runs are made one after the other, as the user's own would be. Nothing is signed. The environment is the user's, except
for what the pins need, and that no byte code is written, git takes no locks, and Weights & Biases stays offline.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from trainmem_audit.divergence import Comparison, Group, groups
from trainmem_audit.documents.findings import Difference
from trainmem_audit.documents.steplog import Command, Line, Step
from trainmem_audit.documents.twice import Place
from trainmem_audit.errors import FormatError, ReplayError, UsageError
from trainmem_audit.pinning.pins import PINS, WATCHED, can_fix_addresses, environment_of, start_nonces
from trainmem_audit.privacy import redact_argv
from trainmem_audit.recording.process import LaunchedRun
from trainmem_audit.rundir import open_run
from trainmem_audit.runs import tensor_lookup, values_at
from trainmem_audit.sizes import with_sizes
from trainmem_audit.steplog import STEP_FILE, LogReader, LogSummary, iter_lines
from trainmem_audit.twice.factors import Facts
from trainmem_audit.twice.search import Attempt, Pins, Verdict
from trainmem_audit.twice.tree import Trees

__all__ = ["Plan", "ScriptRunner"]

_CHUNK = 2**20
_STEP = b',"t":"step"'
_EVERYTHING = 2**53 - 1
_SECOND = 10**9
_UNUSABLE = 2


@dataclass(frozen=True)
class Plan:
    """What to run and how far.

    Parameters
    ----------
    target, module:
        A script's path, or a module's name if `module`.
    links:
        Paths in the working directory that are only read, and so not copied.
    steps:
        After how many steps a run is ended.
    timeout:
        Seconds for each run.
    keep:
        Where to keep the records.
    """

    target: str
    arguments: tuple[str, ...]
    cwd: Path
    module: bool = False
    links: tuple[Path, ...] = ()
    steps: int = 20
    timeout: float = 600.0
    keep: Path | None = None


class ScriptRunner:
    """A `search.Runner` of a real script; everything lies below `root`, which the caller removes."""

    def __init__(self, plan: Plan, root: Path, progress: Callable[[str], None] = lambda _: None) -> None:
        self._plan = plan
        self._root = root
        self._progress = progress
        self._trees = Trees(root, plan.cwd, plan.links)
        self._clock = time.time_ns() // _SECOND * _SECOND
        self._summaries: dict[int, LogSummary] = {}
        self._runs = 0
        self._places: dict[str, list[Place]] = {}
        self._watched = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how the runs were made."""
        return tuple(self._trees.notes)

    def run(self, pins: Pins, dump: int | None = None) -> Attempt:
        """Run the script from a fresh copy."""
        number = self._runs = self._runs + 1
        folder = self._folder(number)
        folder.mkdir(parents=True)
        tree = self._trees.fresh()
        order = self._order(folder, tree, pins, watch=dump is not None)
        if dump is not None:
            order["dump"] = [dump, str(folder / "dump")]
        try:
            with LaunchedRun(
                order,
                [self._trees.argument(text) for text in self._plan.arguments],
                tree=tree,
                environment=_environment(pins),
                output=folder / "output",
                timeout=self._plan.timeout,
                name="run",
            ) as running:
                stopped = self._watch(running, None if dump is None else folder / "dump")
        except ReplayError as error:
            stopped = f"{error.message}; {error.remedy}"
        self._note_places(folder / "places", tree)
        attempt = self._attempt(number, stopped, dump)
        self._watched |= dump is not None and not attempt.failed
        return attempt

    def compare(self, a: Attempt, b: Attempt) -> Verdict:
        """Compare two runs, for as many steps as were asked for."""
        folders = [self._folder(item.number) / "record" for item in (a, b)]
        with open_run(folders[0]) as left, open_run(folders[1]) as right:
            comparison = Comparison(tensor_lookup(left), tensor_lookup(right))
            sides = [groups(self._lines(item.number)) for item in (a, b)]
            return _compare(comparison, sides[0], sides[1], self._plan.steps)

    def measure(self, difference: Difference, a: Attempt, b: Attempt) -> Difference:
        """Return `difference` with the sizes of what differs in tensors."""
        paths = [self._folder(item.number) / "dump" for item in (a, b)]
        if not all(path.exists() for path in paths):
            return difference
        return with_sizes(difference, values_at(paths[0]), values_at(paths[1]))

    def facts(self) -> Facts:
        """Return what the runs so far tell about which factors can matter."""
        logs = list(self._summaries.values())
        profiles = [profile for log in logs for profile in log.profiles.values()]
        loaders = [loader for log in logs for loader in log.loaders.values()]
        return Facts(
            loaders=bool(loaders),
            workers=max((_whole(loader.settings.get("num_workers")) for loader in loaders), default=0),
            threads=max((_whole(profile.get("threads")) for profile in profiles), default=1),
            cuda=any("cudaDevice" in profile for profile in profiles),
            channels_last=any(self._mentions("channels_last", log) for log in logs),
            hash_fixed=os.environ.get("PYTHONHASHSEED", "random") not in ("random", ""),
            asked=frozenset(self._places) if self._watched else WATCHED,
            addresses=can_fix_addresses(),
        )

    def places(self, pins: Pins) -> tuple[Place, ...]:
        """Return the lines of the script that asked for what `pins` hold still."""
        return tuple(place for pin in PINS if pin in pins for place in self._places.get(pin, ()))

    # One run -------------------------------------------------------------------------------------------------------

    def _folder(self, number: int) -> Path:
        return self._root / "runs" / f"{number:03}"

    def _order(self, folder: Path, tree: Path, pins: Pins, watch: bool) -> dict[str, Any]:
        plan = self._plan
        (folder / "record").mkdir()
        seed = os.environ.get("PYTHONHASHSEED", "")
        command = Command(
            kind="module" if plan.module else "script",
            entry=Path(plan.target).name if not plan.module else plan.target,
            arguments=tuple(redact_argv(list(plan.arguments), plan.cwd)),
            hash_seed=environment_of(pins).get("PYTHONHASHSEED", seed if seed.isdecimal() else "random"),
        )
        target = plan.target if plan.module else self._trees.argument(plan.target)
        return {
            "kind": command.kind,
            "entry": target,
            "argv0": target,
            "runDir": str(folder / "record"),
            "shownDir": "record",
            "cwd": str(tree),
            "nonce": secrets.token_hex(16),
            "command": command.to_json(),
            "copySource": False,
            "tensorBudget": _EVERYTHING,
            "quiet": True,
            "starts": start_nonces(pins),
            "pins": {
                "names": sorted(pins),
                "clockStart": self._clock,
                "watch": watch,
                "places": str(folder / "places"),
                "root": str(tree),
            },
        }

    def _watch(self, running: LaunchedRun, dump: Path | None) -> str:
        """Wait until the run has made its steps; return why it stopped before, or nothing."""
        steps = 0
        for line, whole in iter_lines(running.chunks(), STEP_FILE):
            steps += whole and _STEP in line
            if whole and _STEP in line:
                self._progress(f"run {self._runs}: step {steps}")
            if steps >= self._plan.steps:
                if dump is not None:
                    running.wait_for(dump)
                return ""
        if running.exit_code == _UNUSABLE and not (running.run_dir / STEP_FILE).exists():
            raise UsageError("the script cannot be run", got=running.last_words())
        return "" if running.exit_code == 0 else f"the script failed: {running.last_words()}"

    def _attempt(self, number: int, stopped: str, dump: int | None) -> Attempt:
        """Say of what use a run is that has ended."""
        log = LogReader(f"run {number}")
        try:
            for line in self._raw_lines(number):
                log.read(line)
        except FormatError as error:
            return Attempt(number, failed=error.message)
        self._summaries[number] = log.summary
        self._keep(number)
        steps = log.summary.steps
        if steps == 0:
            return Attempt(number, failed=stopped or "the run ended before its first step")
        done = steps >= self._plan.steps or (log.summary.end is not None and not stopped)
        return Attempt(number, steps, stopped="" if done else stopped or "the run ended in mid-step", dumped=dump)

    def _raw_lines(self, number: int) -> Iterator[bytes]:
        path = self._folder(number) / "record" / STEP_FILE
        if not path.exists():
            return
        with path.open("rb") as file:
            for line, whole in iter_lines(iter(lambda: file.read(_CHUNK), b""), path.name):
                if whole:
                    yield line

    def _lines(self, number: int) -> Iterator[Line]:
        log = LogReader(f"run {number}")
        yield from map(log.read, self._raw_lines(number))

    def _keep(self, number: int) -> None:
        if self._plan.keep is not None:
            target = self._plan.keep / f"{number:03}"
            shutil.copytree(self._folder(number) / "record", target / "record")
            shutil.copyfile(self._folder(number) / "output", target / "output.txt")

    def _note_places(self, path: Path, tree: Path) -> None:
        if not path.exists():
            return
        for row in path.read_text(encoding="utf-8", errors="replace").splitlines():
            pin, line, name = row.split(" ", 2)
            known = self._places.setdefault(pin, [])
            if line == "0":
                continue  # not in the script's own code
            place = Place(file=name, line=int(line), text=_line_of(tree / name, int(line)))
            if place not in known:
                known.append(place)

    def _mentions(self, word: str, log: LogSummary) -> bool:
        own = [name.removeprefix("{cwd}/") for name in log.files if name.startswith("{cwd}/")]
        paths = [self._plan.cwd / name for name in own]
        return any(word in path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file())


def _environment(pins: Pins) -> dict[str, str]:
    return {
        "WANDB_MODE": "offline",
        **os.environ,
        "PYTHONDONTWRITEBYTECODE": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        **environment_of(pins),
    }


def _compare(comparison: Comparison, left: Iterator[Group], right: Iterator[Group], steps: int) -> Verdict:
    """Compare group by group. Streams that alone differ are noted and passed over: nothing has come of it yet."""
    idle: set[str] = set()
    equal = 0
    for expected in islice(left, steps):
        got = next(right, None)
        if expected.last is None or got is None or got.last is None:
            break  # one of them was ended here
        found = comparison.feed(expected, got)
        if found is not None and not all(item.component.startswith("rng.") for item in found.components):
            return Verdict(equal, found, tuple(sorted(idle)))
        idle |= {item.component for item in found.components} if found is not None else set()
        equal += isinstance(expected.last, Step)
    return Verdict(equal, None, tuple(sorted(idle)))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0


def _line_of(path: Path, number: int) -> str:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return lines[number - 1].strip()[:120] if 0 < number <= len(lines) else ""
