"""Kills recordings at random moments and checks what is left: `python -m tests.kills --count 1000 --seed 1`.

One process imports torch and forks a child for each kill; the child records a real script through the launcher, as
`record` does after its `exec`. Not here: kills of a fresh interpreter that still starts (`test_recover` has them).

Half of the kills come at a moment drawn from the time that a whole recording takes; the others when the log has grown
to a size that was drawn, and shortly after its last line, while the run is signed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch._dynamo  # what every optimizer imports when it is made: here once, before the forks

import trainmem_audit.recording.session  # noqa: F401  (likewise)
from tests.tools import SCRIPTS, examined
from trainmem_audit.assemble import recover
from trainmem_audit.cli.record import _order
from trainmem_audit.documents.steplog import Step
from trainmem_audit.errors import UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.recording.launcher import interpreter_command, main
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.steplog import STEP_FILE, LogReader, LogSummary, iter_lines

__all__ = ["STATES", "kill_many"]

STATES = ("before the first line", "in mid-log", "while signing", "after the end")
NONCE = "5" * 32
"""One for all, so that all recordings of a script have the same states."""
SNAPSHOTS = 3
"""After every so many steps the state is written too: a kill meets that as often as it lasts."""
SIGNER = Signer.from_seed(bytes(range(32)))
_POLL = 0.0002


@dataclass(frozen=True)
class Training:
    """A script with its arguments, and what a whole recording of it looks like."""

    name: str
    arguments: tuple[str, ...] = ()
    seconds: float = 0.0
    closing: float = 0.0
    size: int = 0
    states: tuple[Any, ...] = ()


TRAININGS = (
    Training("slow.py"),  # Adam, 120 steps
    Training("mlp.py", ("--workers", "2")),
    Training("tiny.py"),  # SGD, 6 steps
)


class Child:
    """A forked process that records a training in `folder`; leaving the context ends all that it started."""

    def __init__(self, training: Training, folder: Path) -> None:
        self.run_dir = folder / "run"
        self.run_dir.mkdir(parents=True)  # as the command line does
        for name in ("ending.py", training.name):
            shutil.copyfile(SCRIPTS / name, folder / name)
        self.began = time.monotonic()
        self.code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _record(training, folder)

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)  # loader workers outlive a killed training for seconds

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began

    def ended(self) -> bool:
        """Tell whether the process has ended by itself."""
        if self.code is None and os.waitpid(self.pid, os.WNOHANG)[0]:
            self.code = 0
        return self.code is not None

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Wait until `ready()`, or the process has ended."""
        while not self.ended() and not ready():
            time.sleep(_POLL)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.code = -signal.SIGKILL

    def size(self) -> int:
        """Return the size of the step log."""
        try:
            return (self.run_dir / STEP_FILE).stat().st_size
        except OSError:
            return 0

    def has_last_line(self) -> bool:
        """Tell whether the log has its `end` line."""
        with suppress(OSError), (self.run_dir / STEP_FILE).open("rb") as file:
            file.seek(max(0, self.size() - 4000))
            return b'"t":"end"' in file.read()
        return False


def _record(training: Training, folder: Path) -> NoReturn:
    """Do what the interpreter does that `record` becomes."""
    try:
        os.setsid()
        os.chdir(folder)
        with Path("out.txt").open("wb") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        reader, writer = os.pipe()
        os.write(writer, SIGNER.seed())
        os.close(writer)
        arguments = list(training.arguments)
        order = _order(training.name, arguments, False, Path("run"))
        _, descriptor = interpreter_command(
            order | {"nonce": NONCE, "seedFd": reader, "quiet": True, "snapshotEvery": SNAPSHOTS}, arguments
        )
        sys.argv = ["-c", str(descriptor)]
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def read_prefix(run_dir: Path) -> tuple[LogSummary, list[Any], bool]:
    """Read what there is of a log: summary, states by step, whether its end is torn. Raises for anything else."""
    reader = LogReader()
    states: list[Any] = []
    torn = False
    data = (run_dir / STEP_FILE).read_bytes() if (run_dir / STEP_FILE).exists() else b""
    for line, whole in iter_lines([data], STEP_FILE):
        torn = not whole
        if whole and isinstance(step := reader.read(line), Step):
            states.append((step.state, step.order, step.rng))
    return reader.finish(), states, torn


def measured(training: Training, folder: Path) -> Training:
    """Record once to the end."""
    with Child(training, folder) as child:
        child.wait_until(child.has_last_line)
        last_line = child.seconds
        child.wait_until(lambda: (child.run_dir / "run.json").exists())
        seconds = child.seconds
        child.wait_until(lambda: False)
        summary, states, _ = read_prefix(child.run_dir)
        assert summary.end is not None, (folder / "out.txt").read_text()
        size = child.size()
    return Training(training.name, training.arguments, seconds, seconds - last_line, size, tuple(states))


def kill_one(training: Training, folder: Path, rng: random.Random) -> tuple[str, bool]:
    """Kill one recording and check what is left; return the state it was in, and whether its last line was torn."""
    with Child(training, folder) as child:
        way = rng.choices(("time", "size", "closing"), (50, 30, 20))[0]
        if way == "time":
            moment = rng.uniform(0, 1.1 * training.seconds)
            child.wait_until(lambda: child.seconds >= moment)
        elif way == "size":
            target = rng.randrange(training.size)
            child.wait_until(lambda: child.size() > target)
        else:
            child.wait_until(child.has_last_line)
            moment = child.seconds + rng.uniform(0, 1.3 * training.closing)
            child.wait_until(lambda: child.seconds >= moment)
        child.kill()
        return check(training, child)


def check(training: Training, child: Child) -> tuple[str, bool]:
    """Demand a valid prefix of the whole run that closes without repair; return the state and whether it was torn."""
    summary, states, torn = read_prefix(child.run_dir)
    assert tuple(states) == training.states[: len(states)], "not a prefix of the whole run"
    signed = (child.run_dir / "run.json").exists()
    if summary.begin is None:
        assert not signed
        try:
            recover(child.run_dir, SIGNER)
        except UsageError as error:
            assert "nothing was recorded" in str(error)
        return STATES[0], torn
    state = STATES[3] if signed else STATES[2] if summary.end is not None else STATES[1]
    if not signed:
        assert recover(child.run_dir, SIGNER).steps == len(states)
    with DirectoryReader(child.run_dir) as reader:
        found = examined(reader).verification
    expected = ("intact", "incomplete" if summary.end is None else "consistent", ())
    assert (found.bytes, found.record, found.findings) == expected, found
    return state, torn


def kill_many(count: int, seed: int, where: Path) -> dict[str, dict[str, int]]:
    """Kill `count` recordings; return how many of each script were in which state. Raises at the first bad one."""
    rng = random.Random(seed)
    torch.set_num_threads(1)
    found: dict[str, Counter[str]] = {training.name: Counter() for training in TRAININGS}
    gc.collect()
    gc.freeze()
    trainings = [measured(training, where / f"whole-{training.name}") for training in TRAININGS]
    for number in range(count):
        training = trainings[number % len(trainings)]
        folder = where / f"{number}"
        try:
            state, torn = kill_one(training, folder, rng)
        except Exception as error:
            error.add_note(f"kill {number} with seed {seed}; what was left is in {folder}")
            raise
        found[training.name][state] += 1
        found[training.name]["with a torn last line"] += torn
        shutil.rmtree(folder, ignore_errors=True)
        if (number + 1) % 50 == 0:
            print(f"{number + 1} kills: {json.dumps(found)}", file=sys.stderr, flush=True)
    return {name: dict(sorted(counts.items())) for name, counts in found.items()}


def _main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--where", type=Path, default=None, help="a directory to work in, kept")
    args = parser.parse_args()
    where = args.where or Path(tempfile.mkdtemp(prefix="kills-"))
    began = time.monotonic()
    found = kill_many(args.count, args.seed, where)
    print(json.dumps({"kills": args.count, "seconds": round(time.monotonic() - began), **found}))
    if args.where is None:
        shutil.rmtree(where)


if __name__ == "__main__":
    _main()
