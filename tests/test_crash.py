"""Whatever happens to the recorder, training goes on or ends as it would have; what is left is a valid prefix.

Real causes: a limit on the size of files, a disk of a few pages, rights taken away, a writer's thread that is made to
die, a directory removed, standard error closed, SIGKILL. Kills of starting interpreters are in `test_recover`.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest

from tests.logs import FakeRun
from tests.tools import environment, examined
from trainmem_audit.assemble import recover
from trainmem_audit.keys import Signer
from trainmem_audit.rundir import DirectoryReader

ROOT = Path(__file__).resolve().parent.parent
SIGNER = Signer.generate()
STEPS = 150
TRAINING = f"""
import os, pathlib, shutil, sys
print("begun", flush=True)
import torch
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
optimizer = torch.optim.Adam(model.parameters())
for step in range({STEPS}):
    if step == 40 and "remove" in sys.argv:
        shutil.rmtree("run", ignore_errors=True)
    optimizer.zero_grad()
    loss = model(torch.randn(4, 3)).square().mean()
    loss.backward()
    optimizer.step()
    print(step, loss.item())
print(torch.get_rng_state().sum())
pathlib.Path("weights.txt").write_text(str([p.tolist() for p in model.parameters()]))
sys.exit(int(sys.argv[1]))
"""
WRITER_DIES = """
import os, threading
write, calls = os.write, []

def dying(descriptor, data):
    if threading.current_thread().name == "trainmem-audit-writer" and descriptor > 2:
        calls.append(1)
        if len(calls) > 90:
            raise SystemExit("planted")
    return write(descriptor, data)

os.write = dying
"""


class Ended:
    """What a run printed, wrote and ended with."""

    def __init__(self, cwd: Path, done: subprocess.CompletedProcess[str]) -> None:
        self.code = done.returncode
        self.stdout = done.stdout
        self.stderr = done.stderr or ""
        self.weights = (cwd / "weights.txt").read_text() if (cwd / "weights.txt").exists() else ""


def start(
    cwd: Path,
    *command: str,
    env: dict[str, str] | None = None,
    before: Callable[[], None] | None = None,
    stderr: int | IO[bytes] = subprocess.PIPE,
) -> Ended:
    """Run `python COMMAND` on `TRAINING`, in `cwd`; `before` runs in the process before Python does."""
    cwd.mkdir(exist_ok=True)
    if os.access(cwd, os.W_OK) and not (cwd / "train.py").exists():
        (cwd / "train.py").write_text(TRAINING)
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env=environment(cwd.parent / "home", **(env or {})),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=before,
    )
    return Ended(cwd, done)


def record(cwd: Path, *script: str, options: tuple[str, ...] = ("-d", "run"), **more: Any) -> Ended:
    """Record `TRAINING` into `cwd/run`."""
    return start(cwd, "-m", "trainmem_audit", "record", *options, "train.py", *script, **more)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """Return what the training prints and writes without us."""
    ended = start(tmp_path_factory.mktemp("bare") / "here", "train.py", "0")
    assert ended.code == 0
    return ended


def same_training(ended: Ended, bare: Ended) -> bool:
    return (ended.stdout, ended.weights) == (bare.stdout, bare.weights)


def steps_of_prefix(run_dir: Path) -> int:
    """Demand an intact, incomplete record; return its steps."""
    with DirectoryReader(run_dir) as reader:
        examination = examined(reader)
    found = examination.verification
    assert (found.bytes, found.record, found.findings, found.exit_code) == ("intact", "incomplete", (), 3)
    assert examination.statement is not None
    steps: int = examination.statement.predicate.step_logs[0].steps
    return steps


# A full disk ------------------------------------------------------------------------------------------------------


def limit_files(size: int) -> Callable[[], None]:
    """Return what makes every write beyond `size` bytes of a file fail; Python ignores the signal of it."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_files_that_cannot_grow_end_the_recording_and_not_the_training(bare: Ended, tmp_path: Path) -> None:
    ended = record(tmp_path / "here", "0", before=limit_files(60_000))
    assert same_training(ended, bare)
    assert ended.code == 3
    steps = steps_of_prefix(tmp_path / "here" / "run")
    assert 0 < steps < STEPS
    assert "RECORDING BROKE OFF, training goes on without it: OSError: [Errno 27] File too large" in ended.stderr
    assert f"everything after step {steps - 1} is lost" in ended.stderr
    assert "Traceback" not in ended.stderr


ON_A_SMALL_DISK = """
mkdir run && mount -t tmpfs -o size=96k none run || exit 99
"$0" -m trainmem_audit record -d run train.py 4
code=$?
cp -r run kept
exit $code
"""


def test_a_full_disk_ends_the_recording_and_not_the_training(bare: Ended, tmp_path: Path) -> None:
    """The record cannot be signed where there is no room: it says so, and `recover` does it elsewhere."""
    here = tmp_path / "here"
    here.mkdir()
    (here / "train.py").write_text(TRAINING)
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", ON_A_SMALL_DISK, sys.executable]
    try:
        done = subprocess.run(
            command, cwd=here, env=environment(tmp_path / "home"), capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("there is no `unshare` here")
    if done.returncode == 99 or done.stderr.startswith("unshare:"):
        pytest.skip("no file system may be mounted here")
    ended = Ended(here, done)
    assert same_training(ended, bare)
    assert ended.code == 4, ended.stderr  # the script's own
    assert "RECORDING BROKE OFF, training goes on without it: OSError: [Errno 28] No space left" in ended.stderr
    assert "Traceback" not in ended.stderr
    if not (here / "kept" / "run.json").exists():
        assert "could not be signed" in ended.stderr
        assert "trainmem-audit recover" in ended.stderr
        recover(here / "kept", SIGNER)
    assert 0 < steps_of_prefix(here / "kept") < STEPS


# No right to write ------------------------------------------------------------------------------------------------


def mortal() -> None:
    """Give up root's right to write against the permission bits, from the next program on."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE


@pytest.mark.parametrize(
    ("where", "options"),
    [
        ("the working directory", ()),
        ("the run directory", ("-d", "run")),
        ("below a file", ("-d", "train.py/run")),
        ("no room for the first line", ("-d", "run")),
    ],
)
def test_a_record_that_cannot_begin_is_told_before_the_script_begins(
    where: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "train.py").write_text(TRAINING)
    before = mortal
    if where == "the working directory":
        here.chmod(0o555)
    elif where == "the run directory":
        (here / "run").mkdir(0o555)
    elif where == "no room for the first line":
        before = limit_files(4000)
    ended = record(here, "0", options=options, before=before)
    here.chmod(0o755)
    assert ended.code == 2, ended.stderr
    assert ended.stdout == ended.weights == ""
    assert "Traceback" not in ended.stderr
    reason = {"below a file": "Not a directory", "no room for the first line": "File too large"}
    assert reason.get(where, "Permission denied") in ended.stderr
    made_before = {"run"} if where == "the run directory" else set()
    assert {path.name for path in here.iterdir()} == {"train.py"} | made_before


# What fails in mid-run --------------------------------------------------------------------------------------------


def test_a_writer_that_dies_leaves_a_prefix(bare: Ended, tmp_path: Path) -> None:
    (tmp_path / "planted").mkdir()
    (tmp_path / "planted" / "sitecustomize.py").write_text(WRITER_DIES)
    ended = record(tmp_path / "here", "4", env={"PYTHONPATH": str(tmp_path / "planted")})
    assert same_training(ended, bare)
    assert ended.code == 4
    steps = steps_of_prefix(tmp_path / "here" / "run")
    assert 0 < steps < STEPS
    assert "RECORDING BROKE OFF, training goes on without it: SystemExit: planted" in ended.stderr
    assert f"everything after step {steps - 1} is lost" in ended.stderr


def test_a_run_directory_removed_in_mid_run_is_told(bare: Ended, tmp_path: Path) -> None:
    ended = record(tmp_path / "here", "0", "remove")
    assert same_training(ended, bare)
    assert ended.code == 3
    assert "RECORDING BROKE OFF" in ended.stderr
    assert "could not be signed" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "here" / "run").exists()


def test_with_standard_error_closed_nothing_of_ours_is_printed_elsewhere(bare: Ended, tmp_path: Path) -> None:
    """Its number is not taken by the step log, in which what C code prints would end up."""

    def before() -> None:
        limit_files(60_000)()
        os.close(2)

    ended = record(tmp_path / "here", "0", before=before)
    assert same_training(ended, bare)
    assert ended.code == 3
    assert 0 < steps_of_prefix(tmp_path / "here" / "run") < STEPS


@pytest.mark.slow
def test_a_standard_error_that_takes_nothing_changes_no_exit_code(bare: Ended, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = record(tmp_path / "here", "4", before=limit_files(60_000), stderr=full)
    assert same_training(ended, bare)
    assert ended.code == 4
    assert 0 < steps_of_prefix(tmp_path / "here" / "run") < STEPS


# SIGKILL ----------------------------------------------------------------------------------------------------------

AT_EVERY_CALL = """
import os, shutil, signal, sys
from pathlib import Path
from trainmem_audit.assemble import recover
from trainmem_audit.keys import Signer

names = ("open", "ftruncate", "write", "fsync", "replace", "unlink")
pristine, signer = Path("pristine"), Signer.generate()
for number in range(1000):
    run_dir = Path(f"killed-{number}")
    shutil.copytree(pristine, run_dir)
    child = os.fork()
    if child == 0:
        left = [number]
        def killing(call):
            def called(*args, **keys):
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return call(*args, **keys)
            return called
        for name in names:
            setattr(os, name, killing(getattr(os, name)))
        recover(run_dir, signer)
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def test_killed_at_any_call_of_the_closing_a_run_is_closed_by_the_next(tmp_path: Path) -> None:
    """Also between `signer.pub` and `run.json`, and while either is written: by another key, to make it hard."""
    fake = FakeRun(ended=False)
    (tmp_path / "pristine" / "order").mkdir(parents=True)
    for name, data in (("steps.jsonl", fake.log() + b"torn"), ("tensors.b3", fake.frames() + b"torn")):
        (tmp_path / "pristine" / name).write_bytes(data)
    (tmp_path / "pristine" / "order" / "rank-0.i64").write_bytes(fake.order() + b"torn")
    env = environment(tmp_path / "home", PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", AT_EVERY_CALL], cwd=tmp_path, env=env, check=False)
    assert done.returncode == 0
    left = []
    for path in sorted(tmp_path.glob("killed-*")):
        names = {file.name for file in path.iterdir()}
        left.append((("signer.pub" in names), any(name.startswith(".run.json.") for name in names)))
        if "run.json" not in names:
            recover(path, SIGNER)
        assert steps_of_prefix(path) == 4
    assert {(False, False), (True, False), (True, True)} <= set(left)


def kills(count: int, seed: int, where: Path) -> dict[str, Any]:
    """Kill that many recordings (`tests.kills`, which checks each); return the counts."""
    command = [sys.executable, "-m", "tests.kills", "--count", str(count), "--seed", str(seed), "--where", str(where)]
    env = environment(where / "home", OMP_NUM_THREADS="1")
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts: dict[str, Any] = json.loads(done.stdout)
    print(done.stdout)
    return counts


def test_kills_at_random_moments(tmp_path: Path) -> None:
    counts = kills(6, 3, tmp_path)
    assert counts["kills"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_five_hundred_kills(seed: int, tmp_path: Path) -> None:
    """A thousand in all; every state is met."""
    from tests.kills import STATES, TRAININGS

    counts = kills(500, seed, tmp_path)
    for state in STATES:
        assert sum(counts[training.name].get(state, 0) for training in TRAININGS) > 0, state


LIBRARY = """
import shutil
import torch
from trainmem_audit import Recorder
model = torch.nn.Linear(2, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with Recorder("run") as recorder:
    for step in range(STEPS):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    BREAK
print("the training goes on", recorder.statement, type(recorder.error).__name__)
"""


@pytest.mark.parametrize(
    ("steps", "breaks", "says"),
    [("3", "shutil.rmtree('run')", "broke off"), ("0", "pass", "no optimizer step was recorded")],
)
def test_what_comes_after_a_failed_recorder_block_runs_all_the_same(
    tmp_path: Path, steps: str, breaks: str, says: str
) -> None:
    program = LIBRARY.replace("STEPS", steps).replace("BREAK", breaks)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "the training goes on None RecordingError\n"), done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
