"""`trainmem-audit twice` on real scripts: the cause of a difference is found by experiment; a clean script is equal.

What is marked slow runs some ten to thirty times; the search itself is tested in `test_twice_search`.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.tools import SCRIPTS, audit, environment
from trainmem_audit.documents.twice import Twice
from trainmem_audit.pinning.pins import can_fix_addresses

CASES = SCRIPTS / "twice"


def twice(tmp_path: Path, script: str, *options: str, env: dict[str, str] | None = None) -> Twice:
    """Run `twice` on one of the scripts, in a directory that holds only it."""
    cwd = tmp_path / "project"
    cwd.mkdir(exist_ok=True)
    shutil.copyfile(CASES / script, cwd / script)
    done = audit("twice", "--format", "json", *options, script, cwd=cwd, home=tmp_path / "home", env=env, timeout=900)
    found: Twice = Twice.parse(done.stdout.encode(), done.stderr)
    assert done.returncode == found.exit_code
    assert not (tmp_path / "home").exists()  # no key is made
    return found


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


# Equal ------------------------------------------------------------------------------------------------------------


def test_a_clean_script_is_equal_and_its_directory_untouched(tmp_path: Path) -> None:
    """It prints the time and its process id, writes files named by the time, and resumes from its own checkpoint."""
    cwd = tmp_path / "project"
    (cwd / "out").mkdir(parents=True)
    shutil.copyfile(CASES / "clean.py", cwd / "clean.py")
    before = tree(cwd)
    keep, home = tmp_path / "kept", tmp_path / "home"
    done = audit("twice", "--steps", "9", "--keep", keep, "clean.py", cwd=cwd, home=home, env={"TMPDIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "equal: 9 steps, bit for bit" in done.stdout
    assert "random stream python is not seeded" in done.stdout  # and nothing came of it
    assert tree(cwd) == before
    assert not list(tmp_path.glob("twice-*"))
    first, second = ((keep / name / "output.txt").read_text() for name in ("001", "002"))
    assert first != second  # these runs are as the user's own: another time, another process
    assert (
        "first difference: step" in audit("diff", *(keep / f"{n:03}/record" for n in (1, 2)), cwd=cwd, home=home).stdout
    )
    assert not home.exists()


# Causes -----------------------------------------------------------------------------------------------------------


def test_a_learning_rate_by_the_clock(tmp_path: Path) -> None:
    """The whole way in one case: difference, experiments, proof, places in the script, lines to add."""
    found = twice(tmp_path, "clock_rate.py", "--steps", "4")
    assert [cause.factor for cause in found.causes] == ["clock"]
    assert found.proven
    assert found.difference is not None
    assert (found.difference.step, found.difference.blame) == (1, "optimizer.hyper")
    assert any(tensor.size for item in found.difference.components for tensor in item.tensors)
    assert found.experiments[-1].outcome == "equal"
    assert found.experiments[-1].runs >= 6
    assert {place.line for place in found.causes[0].places} == {8, 15}
    skipped = {item.factors[0] for item in found.experiments if item.outcome == "skipped"}
    assert {"order of the script's threads", "entropy and process id", "loader workers"} <= skipped


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "cause", "line"),
    [
        ("shuffle.py", "start of torch's generators", "torch.manual_seed(0)"),
        ("augment.py", "NumPy generators without a seed", "loader = DataLoader(..., worker_init_fn=seed_worker)"),
        ("accumulate.py", "number of threads", "torch.use_deterministic_algorithms(True)"),
        ("chosen_threads.py", "number of threads", "torch.set_num_threads(1)"),
        ("hashing.py", "hash seed", "export PYTHONHASHSEED=0"),
        ("race.py", "order of the script's threads", "thread.join()"),
        ("clock_seed.py", "clock", "seed = 0  # not the time"),
        ("entropy.py", "entropy and process id", "seed = 0  # a number that is written down"),
    ],
)
def test_the_cause_is_found(tmp_path: Path, script: str, cause: str, line: str) -> None:
    found = twice(tmp_path, script, "--runs", "4")
    assert [item.factor for item in found.causes] == [cause]
    assert found.proven
    assert line in [text for item in found.causes for remedy in item.remedies for text in remedy.lines]
    assert found.exit_code == 1


@pytest.mark.slow
@pytest.mark.skipif(not can_fix_addresses(), reason="the system does not let a process fix its addresses")
def test_the_order_of_a_set_of_objects(tmp_path: Path) -> None:
    assert [item.factor for item in twice(tmp_path, "addresses.py").causes] == ["memory addresses"]


@pytest.mark.slow
def test_two_causes_of_which_none_alone_is_enough(tmp_path: Path) -> None:
    found = twice(tmp_path, "several.py")
    assert {item.factor for item in found.causes} == {"clock", "start of Python's random"}
    assert found.proven


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "line", "added"),
    [
        ("shuffle.py", "import torch\n", "torch.manual_seed(0)\n"),
        ("augment.py", "default_rng()", "default_rng(0)"),
        ("hashing.py", "enumerate(set(words))", "enumerate(sorted(set(words)))"),
        ("accumulate.py", "torch.set_num_threads(2)\n", "torch.use_deterministic_algorithms(True)\n"),
    ],
)
def test_the_lines_that_are_printed_mend_the_script(tmp_path: Path, script: str, line: str, added: str) -> None:
    cwd = tmp_path / "project"
    cwd.mkdir()
    text = (CASES / script).read_text()
    (cwd / script).write_text(text.replace(line, line + added if added.endswith("\n") else added, 1))
    done = audit("twice", "-q", "--runs", "4", script, cwd=cwd, home=tmp_path / "home")
    assert done.returncode == 0, done.stdout


# What cannot be decided, or run -----------------------------------------------------------------------------------


def write(tmp_path: Path, text: str) -> Path:
    (tmp_path / "train.py").write_text(text)
    return tmp_path


def test_a_script_that_raises_is_undecided_and_says_why(tmp_path: Path) -> None:
    text = (CASES / "clock_rate.py").read_text().replace("0.1 / (1 + perf_counter() - start", "1 / 0 + (1")
    done = audit("twice", "-q", "train.py", cwd=write(tmp_path, text), home=tmp_path / "home")
    assert done.returncode == 3
    assert "ZeroDivisionError" in done.stdout
    assert not done.stderr


def test_a_script_without_a_step_is_undecided(tmp_path: Path) -> None:
    done = audit("twice", "train.py", cwd=write(tmp_path, "print('no torch here')"), home=tmp_path / "home")
    assert done.returncode == 3
    assert "no optimizer step was recorded" in done.stdout


def test_a_run_that_takes_too_long_is_undecided(tmp_path: Path) -> None:
    text = "import time\ntime.sleep(60)"
    done = audit("twice", "--timeout", "1", "train.py", cwd=write(tmp_path, text), home=tmp_path / "home")
    assert done.returncode == 3
    assert "ended after 1 s" in done.stdout


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("nothing.py",), "no such script"),
        (("-m", "no.such.module"), "no module with Python source"),
        (("broken.py",), "does not compile"),
        (("--format", "yaml", "train.py"), "unknown format"),
        (("--keep", ".", "train.py"), "not empty"),
        (("--link", "nowhere", "train.py"), "no such path"),
        (("--runs", "1", "train.py"), "--runs"),
    ],
)
def test_what_cannot_be_run_is_said_without_a_traceback(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    write(tmp_path, "pass")
    (tmp_path / "broken.py").write_text("def (")
    done = audit("twice", *options, cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_all_processes(tmp_path: Path, sign: signal.Signals) -> None:
    text = (
        "import multiprocessing, os, time\nfrom pathlib import Path\n"
        "multiprocessing.get_context('fork').Process(target=time.sleep, args=(100,)).start()\n"
        f"Path({str(tmp_path / 'started')!r}).write_text(str(os.getpid()))\ntime.sleep(100)\n"
    )
    command = [sys.executable, "-m", "trainmem_audit", "twice", "train.py"]
    process = subprocess.Popen(
        command,
        cwd=write(tmp_path, text),
        env=environment(tmp_path / "home", TMPDIR=str(tmp_path)),
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(sign)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "all runs were ended" in said
    assert "Traceback" not in said
    group = (tmp_path / "started").read_text()  # the run led its own
    rows = subprocess.run(["ps", "-e", "-o", "pgid=,stat="], capture_output=True, text=True, check=True).stdout
    left = [row for row in map(str.split, rows.splitlines()) if row[0] == group and not row[1].startswith("Z")]
    assert not left
    assert not list(tmp_path.glob("twice-*"))


def test_json_is_the_document(tmp_path: Path) -> None:
    done = audit("twice", "--format", "json", "train.py", cwd=write(tmp_path, "pass"), home=tmp_path / "home")
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["verdict"] == "undecided"
    assert document["exitCode"] == done.returncode == 3
