"""SIGKILL at random moments: what is left is a valid prefix, `recover` closes it, `verify` finds it intact."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.logs import FakeRun
from tests.tools import SCRIPTS, Run, audit, environment, verify
from trainmem_audit.assemble import recover
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.steplog import ORDER_FILE, STEP_FILE, TENSOR_FILE, LogReader, iter_lines

SIGNER = Signer.generate()


def killed(run_dir: Path, log: bytes, frames: bytes = b"", order: bytes = b"") -> Path:
    """Write what a killed recorder left."""
    (run_dir / "order").mkdir(parents=True)
    for name, data in ((STEP_FILE, log), (TENSOR_FILE, frames), (ORDER_FILE, order)):
        (run_dir / name).write_bytes(data)
    return run_dir


# Every cut, by hand -----------------------------------------------------------------------------------------------

FAKE = FakeRun(ended=False)
LOG, FRAMES, ORDER = FAKE.log(), FAKE.frames(), FAKE.order()


@pytest.mark.parametrize("torn", [0, 1, 80, -1])
@pytest.mark.parametrize("lines", range(1, LOG.count(b"\n")))
def test_a_log_cut_anywhere_is_closed_at_its_last_whole_line(tmp_path: Path, lines: int, torn: int) -> None:
    whole = LOG.splitlines(keepends=True)
    path = killed(tmp_path / "run", b"".join(whole[:lines]) + whole[lines][:torn], FRAMES, ORDER)
    recovery = recover(path, SIGNER)
    found = Run(path, tmp_path).examine().verification
    assert (found.bytes, found.record, found.findings, found.exit_code) == ("intact", "incomplete", (), 3)
    assert recovery.steps == sum(b'"t":"step"' in line for line in whole[:lines])
    assert (path / ORDER_FILE).stat().st_size == 24 * recovery.steps
    assert (path / TENSOR_FILE).stat().st_size == len(FRAMES) // 4 * recovery.steps


@pytest.mark.parametrize("cut", [0, 1, 12, 200, 500])
def test_side_files_ahead_of_the_log_are_cut_to_it(tmp_path: Path, cut: int) -> None:
    lines = LOG.splitlines(keepends=True)[:-1]
    path = killed(tmp_path / "run", b"".join(lines), FRAMES[: len(FRAMES) - cut], ORDER[: len(ORDER) - min(cut, 24)])
    recovery = recover(path, SIGNER)
    assert recovery.cut.keys() <= {TENSOR_FILE, ORDER_FILE}
    assert Run(path, tmp_path).findings() == []


def test_what_is_complete_is_signed_as_complete(tmp_path: Path) -> None:
    """Killed between the last line and the signature."""
    run = FakeRun()
    path = killed(tmp_path / "run", run.log(), run.frames(), run.order())
    assert recover(path, SIGNER).statement.predicate.step_logs[0].complete
    assert Run(path, tmp_path).examine().verification.exit_code == 0


def test_what_write_atomic_leaves_when_killed_is_removed(tmp_path: Path) -> None:
    path = killed(tmp_path / "run", LOG, FRAMES, ORDER)
    (path / f".run.json.{'a' * 16}").write_bytes(b"{")
    (path / f".signer.pub.{'a' * 16}").write_bytes(b"")
    (path / "signer.pub").write_bytes(SIGNER.public.openssh_line())
    recover(path, SIGNER)
    assert Run(path, tmp_path).findings() == []


def test_a_copy_of_code_whose_line_was_not_written_any_more_is_cut_off(tmp_path: Path) -> None:
    path = killed(tmp_path / "run", LOG, FRAMES, ORDER)
    (path / "source").mkdir(exist_ok=True)
    (path / "source" / "late.py").write_bytes(b"x = 1\n")
    assert recover(path, SIGNER).cut == {"source/late.py": 6}
    assert Run(path, tmp_path).findings() == []


def test_where_the_recorder_failed_the_statement_does_not_say_killed(tmp_path: Path) -> None:
    path = killed(tmp_path / "run", LOG, FRAMES, ORDER)
    statement = recover(path, SIGNER, "the recorder failed, the script went on").statement
    assert statement.predicate.not_recorded == ("everything after step 3: the recorder failed, the script went on",)


def test_a_signed_run_is_not_closed_again(tmp_path: Path) -> None:
    path = killed(tmp_path / "run", LOG, FRAMES, ORDER)
    recover(path, SIGNER)
    with pytest.raises(UsageError, match="closed and signed already"):
        recover(path, SIGNER)


@pytest.mark.parametrize("log", [b"", b'{"chain":"00'], ids=["empty", "torn"])
def test_nothing_recorded_is_said_so(tmp_path: Path, log: bytes) -> None:
    path = killed(tmp_path / "run", log)
    with pytest.raises(UsageError, match="nothing was recorded"):
        recover(path, SIGNER)
    assert not (path / "run.json").exists()


def test_an_empty_run_directory_is_said_to_hold_nothing(tmp_path: Path) -> None:
    """Killed while Python was starting: the command line had made the directory, and the script had not begun."""
    (tmp_path / "run").mkdir()
    told = audit("recover", "run", cwd=tmp_path, home=tmp_path / "home")
    assert told.returncode == 2
    assert "nothing was recorded" in told.stderr


def test_a_directory_without_a_log_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    with pytest.raises(UsageError, match="not a run directory"):
        recover(tmp_path, SIGNER)


@pytest.mark.parametrize("at", [0, 3, 8])
def test_a_log_damaged_before_its_end_is_evidence_and_stays(tmp_path: Path, at: int) -> None:
    lines = LOG.splitlines(keepends=True)
    lines[at] = lines[at].replace(b'"t":', b'"T":')
    path = killed(tmp_path / "run", b"".join(lines)[:-5], FRAMES, ORDER)
    with pytest.raises(FormatError) as caught:
        recover(path, SIGNER)
    assert caught.value.where == f"steps.jsonl:{at + 1}"
    assert Run(path, tmp_path).lines() == (b"".join(lines)[:-5]).splitlines(keepends=True)
    assert not (path / "run.json").exists()


# Real kills -------------------------------------------------------------------------------------------------------


class Victim:
    """Recordings of a real script that are killed."""

    def __init__(self, where: Path) -> None:
        self.where = where
        self.home = where / "home"
        shutil.copyfile(SCRIPTS / "slow.py", where / "train.py")
        began = time.monotonic()
        done = audit("record", "-d", "whole", "train.py", cwd=where, home=self.home)
        self.seconds = time.monotonic() - began
        assert done.returncode == 0, done.stderr
        self.count = 0

    def killed(self, ready: Callable[[Path, float], bool]) -> Path:
        """Record until `ready(run directory, seconds)`, kill, and return the run directory."""
        self.count += 1
        path = self.where / f"run-{self.count}"
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "trainmem_audit", "record", "-q", "-d", path.name, "train.py"],
            cwd=self.where,
            env=environment(self.home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        while process.poll() is None and not ready(path, time.monotonic() - began):
            time.sleep(0.0005)
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        return path

    def check(self, path: Path) -> str:
        """Demand what must hold after a kill; return what the run was closed as."""
        steps, whole = prefix(path)
        if (path / "run.json").exists():
            assert verify(path, home=self.home).code == 0
            return "finished"
        told = audit("recover", path, cwd=self.where, home=self.home)
        assert "Traceback" not in told.stderr
        if not whole:
            assert told.returncode == 2
            assert not path.exists() or "nothing was recorded" in told.stderr
            return "nothing"
        assert told.returncode == 0, told.stderr
        found = verify(path, home=self.home)
        assert (found.document["bytes"], found.document["findings"]) == ("intact", [])
        complete = b'"t":"end"' in (path / STEP_FILE).read_bytes()
        assert (found.document["record"], found.code) == (("consistent", 0) if complete else ("incomplete", 3))
        assert f"{steps} steps recovered, signed as {'complete' if complete else 'incomplete'}" in told.stdout
        return "complete" if complete else "incomplete"


def prefix(path: Path) -> tuple[int, int]:
    """Read what a kill left of the step log; return steps and whole lines. Raises for anything but a valid prefix."""
    if not (path / STEP_FILE).exists():
        return 0, 0
    reader = LogReader()
    for line, whole in iter_lines([(path / STEP_FILE).read_bytes()], STEP_FILE):
        if whole:
            reader.read(line)
    summary = reader.finish()
    return summary.steps, summary.lines


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Victim:
    return Victim(tmp_path_factory.mktemp("kills"))


def size_of(path: Path, name: str) -> int:
    try:
        return (path / name).stat().st_size
    except OSError:
        return 0


def at_any_moment(victim: Victim, rng: random.Random) -> str:
    """Kill once at a random moment of the time that a whole recording takes."""
    moment = victim.seconds * rng.random()
    return victim.check(victim.killed(lambda _, seconds: seconds >= moment))


def at_size(victim: Victim, rng: random.Random) -> str:
    """Kill once when the log has grown to a random size: in the middle of training, however slow the machine."""
    target = rng.randrange(6000, size_of(victim.where / "whole", STEP_FILE))
    return victim.check(victim.killed(lambda path, _: size_of(path, STEP_FILE) >= target))


def after(victim: Victim, event: Callable[[Path], bool], wait: float) -> str:
    """Kill once `wait` seconds after something was first seen to have happened."""
    seen: list[float] = []

    def ready(path: Path, seconds: float) -> bool:
        if not seen and event(path):
            seen.append(seconds)
        return bool(seen) and seconds >= seen[0] + wait

    return victim.check(victim.killed(ready))


def while_starting(victim: Victim, rng: random.Random) -> str:
    """Kill once shortly after the directory was made: while Python starts, or while the first line is written."""
    return after(victim, Path.exists, rng.uniform(0, 0.6))


def while_closing(victim: Victim, rng: random.Random) -> str:
    """Kill once a few milliseconds after the last line: while files are digested and `run.json` is written."""

    def ended(path: Path) -> bool:
        if size_of(path, STEP_FILE) < size_of(victim.where / "whole", STEP_FILE) - 3000:
            return False
        return b'"t":"end"' in (path / STEP_FILE).read_bytes()[-3000:]

    return after(victim, ended, rng.uniform(0, 0.01))


def test_kills_in_training_leave_a_run_that_recovers(victim: Victim) -> None:
    rng = random.Random(1)
    assert [at_size(victim, rng) for _ in range(3)] == ["incomplete"] * 3


def test_kills_at_any_moment_leave_a_run_that_recovers(victim: Victim) -> None:
    rng = random.Random(2)
    while_starting(victim, rng)
    at_any_moment(victim, rng)
    while_closing(victim, rng)


@pytest.mark.slow
def test_fifty_kills(victim: Victim) -> None:
    """Acceptance 6."""
    rng = random.Random(3)
    found = [at_size(victim, rng) for _ in range(20)]
    found += [at_any_moment(victim, rng) for _ in range(10)]
    found += [while_starting(victim, rng) for _ in range(10)]
    found += [while_closing(victim, rng) for _ in range(10)]
    print(json.dumps({kind: found.count(kind) for kind in sorted(set(found))}))
    assert found.count("incomplete") >= 20


# A hostile directory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [STEP_FILE, TENSOR_FILE, ORDER_FILE, ".run.json." + "a" * 16])
@pytest.mark.parametrize("way", ["symlink", "hard link", "folder", "fifo"])
def test_recover_changes_no_file_elsewhere(tmp_path: Path, name: str, way: str) -> None:
    content = {STEP_FILE: LOG + b"torn", TENSOR_FILE: FRAMES + b"torn", ORDER_FILE: ORDER + bytes(80)}
    data = content.get(name, b"precious")
    path = killed(tmp_path / "run", content[STEP_FILE], content[TENSOR_FILE], content[ORDER_FILE])
    victim = tmp_path / "elsewhere" / Path(name).name
    victim.parent.mkdir()
    victim.write_bytes(data)
    (path / name).unlink(missing_ok=True)
    if way == "symlink":
        (path / name).symlink_to(victim)
    elif way == "hard link":
        (path / name).hardlink_to(victim)
    elif way == "folder":
        (path / "order" / "rank-0.i64").unlink(missing_ok=True)
        (path / "order").rmdir()
        (path / "order").symlink_to(victim.parent)
    else:
        os.mkfifo(path / name)
    hidden_link = way == "hard link" and name.startswith(".")  # the name in the run goes, the file stays
    if hidden_link:
        recover(path, SIGNER)
    else:
        with pytest.raises((FormatError, UsageError)):
            recover(path, SIGNER)
    assert victim.read_bytes() == data
    assert sorted(victim.parent.iterdir()) == [victim]
