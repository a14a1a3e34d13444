"""A study of an unmodified script, by the command line: reruns, their records, and that they agree with a program."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.studying import STUDIES, study_directory
from tests.tools import audit, environment, verify
from trainmem_audit.documents.steplog import InterventionLine, Line, Observe, Step
from trainmem_audit.programs.probefile import probe_bytes, probe_of
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.runs import observe_at, read_lines, read_statement
from trainmem_audit.study.ledger import read_study_log
from trainmem_audit.study.plan import read_study

PROGRAM = (
    ("null_players = false\n", ""),
    ('entry = "train.py"', 'entry = "twin.py:program"'),
    ('arguments = ["--seed", "{seed}", "--steps", "12"]\n', ""),
)


def declare(directory: Path, *changes: tuple[str, str]) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    path = study_directory(directory, STUDIES / "twins.toml")
    (directory / "probe.safetensors").write_bytes(probe_bytes(probe_of("twin.py:program", (), "11", directory)))
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


def run(path: Path, home: Path, *options: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = audit("study", "run", path.name, "--workers", "1", *options, cwd=path.parent, home=home)
    assert done.returncode == code, done.stderr
    return done


def lines_of(arm: Path) -> list[Line]:
    with DirectoryReader(arm) as reader:
        return list(read_lines(reader))


def after(arm: Path, steps: int) -> dict[str, str]:
    """Return the digests of weights, statistics and momentum after so many steps."""
    kinds = ("model.params", "model.batchnorm", "optimizer.momentum")
    (line,) = (line for line in lines_of(arm) if isinstance(line, Step) and line.i == steps - 1)
    return {name: line.state[name] for name in kinds}


def observed(arm: Path, steps: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    with DirectoryReader(arm) as reader:
        (line,) = (line for line in read_lines(reader) if isinstance(line, Observe) and line.i == steps)
        return observe_at(reader, line)["model"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Path:
    """Return the study of a script with one noise stream and one intervention."""
    changes = (
        ("noise_streams = 2", "noise_streams = 1"),
        ("horizon = 1\n", 'horizon = 1\nestimand = "pathwise"\n'),
        ('swapped = "swap_windows:order:0-2:2-4"\n', ""),
        ('swapped = "carry"\n', ""),
    )
    path = declare(tmp_path_factory.mktemp("one"), *changes)
    run(path, home)
    return path.parent / "study"


@pytest.mark.slow
def test_a_script_is_rerun_for_every_arm(one: Path, home: Path) -> None:
    plan = read_study(one.parent / "study.toml").plan
    log = read_study_log(one / "study.jsonl").summary
    assert set(log.finished) == {"carry.s0.b4.r0", "reset.s0.b4.r0"}
    for name in log.finished:
        with DirectoryReader(one / "arms" / name) as reader:
            manifest = read_statement(reader).predicate
        assert manifest.plan == plan.digest
        assert manifest.arm is not None
        assert (manifest.arm.id, manifest.arm.seed, manifest.arm.branch_step) == (name, "11", 4)
        assert manifest.run.branch is None
        (act,) = (line for line in lines_of(one / "arms" / name) if isinstance(line, InterventionLine))
        assert act.i == 4
        assert [line.i for line in lines_of(one / "arms" / name) if isinstance(line, Observe)] == [5, 10]
    carry, reset = (one / "arms" / f"{name}.s0.b4.r0" for name in ("carry", "reset"))
    assert after(carry, 4) == after(reset, 4)
    assert after(carry, 5) != after(reset, 5)
    assert not np.array_equal(observed(carry, 5), observed(reset, 5))
    assert not (one / ".work").exists()
    assert not (one.parent / "model.pt").exists()


@pytest.mark.slow
def test_arms_of_a_script_are_estimated(one: Path, home: Path) -> None:
    done = audit("study", "estimate", one, cwd=one.parent, home=home)
    assert done.returncode == 0, done.stderr
    assert "pairs: 1, of which 0 are unpaired" in done.stdout
    assert audit("verify", one / "estimates.json", cwd=one.parent, home=home).returncode == 0


@pytest.mark.slow
def test_observing_changes_nothing(one: Path, home: Path, tmp_path: Path) -> None:
    """The control of a study is bit-equal to the script recorded by itself, from the same entropy."""
    shutil.copyfile(one.parent / "train.py", tmp_path / "train.py")
    arguments = ("--seed", "11", "--steps", "12")
    done = audit("record", "-d", "run", "train.py", *arguments, cwd=tmp_path, home=home)
    assert done.returncode == 0, done.stderr
    assert after(tmp_path / "run", 12) == after(one / "arms" / "carry.s0.b4.r0", 12)


@pytest.mark.slow
def test_an_arm_of_a_script_replays(one: Path, home: Path) -> None:
    found = verify(one / "arms" / "reset.s0.b4.r0", "--replay", "full", "--yes", home=home)
    assert found.document["replay"]["outcome"] == "match", found.document


@pytest.mark.slow
def test_a_script_that_fails_is_listed_with_its_reason(home: Path, tmp_path: Path) -> None:
    changes = (("noise_streams = 2", "noise_streams = 1"), ("horizon = 1\n", 'horizon = 1\nestimand = "pathwise"\n'))
    path = declare(tmp_path / "short", *changes, ('"12"', '"7"'))
    done = run(path, home, code=3)
    assert "the script took 7 steps, and the plan needs 10" in done.stderr
    path = declare(tmp_path / "broken", *changes)
    (path.parent / "train.py").write_text("import torch\nraise SystemExit(5)\n")
    run(path, home, code=3)
    log = read_study_log(path.parent / "study" / "study.jsonl").summary
    assert set(log.failed) == {f"{name}.s0.b4.r0" for name in ("carry", "reset", "swapped")}
    assert all("exit code 5" in fail.reason or "no optimizer step" in fail.reason for fail in log.failed.values())


@pytest.mark.slow
def test_a_script_and_its_program_agree_bit_for_bit(home: Path, tmp_path: Path) -> None:
    script = declare(tmp_path / "script")
    program = declare(tmp_path / "program", *PROGRAM)
    for path in (script, program):
        run(path, home)
    for arm in read_study(script).plan.arms():
        reruns, branched = (path.parent / "study" / "arms" / str(arm) for path in (script, program))
        for horizon in (1, 6):
            assert after(reruns, arm.branch + horizon) == after(branched, horizon), (str(arm), horizon)
            assert np.array_equal(observed(reruns, arm.branch + horizon), observed(branched, horizon))


def started(path: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "trainmem_audit", "study", "run", path.name, "--workers", "2", "--threads", "1"]
    return subprocess.Popen(command, cwd=path.parent, env=environment(path.parent / "home"), stderr=subprocess.DEVNULL)


def finished_arms(study: Path) -> list[str]:
    log = study / "study.jsonl"
    if not log.exists():
        return []
    told = [json.loads(line) for line in log.read_bytes().splitlines() if line.endswith(b"}")]
    return [line["id"] for line in told if line["t"] == "finish"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["script", "program"])
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_study_goes_on_after_it_was_killed(kind: str, sign: signal.Signals, tmp_path: Path) -> None:
    """What comes out is what comes out undisturbed, and nothing that the killed one had started runs on."""
    changes = PROGRAM if kind == "program" else ()
    whole, cut = (declare(tmp_path / name, *changes) for name in ("whole", "cut"))
    run(whole, tmp_path / "home", "--threads", "1")
    study = cut.parent / "study"
    with started(cut) as process:
        while not finished_arms(study) and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(sign)
        process.wait()
    kept = {name: (study / "arms" / name / "run.json").read_bytes() for name in finished_arms(study)}
    assert kept
    assert not (study / "study.json").exists()
    run(cut, tmp_path / "home")
    log = read_study_log(study / "study.jsonl").summary
    plan = read_study(cut).plan
    assert {str(arm) for arm in plan.arms()} <= set(log.finished)
    assert all((study / "arms" / name / "run.json").read_bytes() == data for name, data in kept.items())
    for arm in map(str, plan.arms()):
        ours, theirs = (
            [(line.i, line.state, line.rng) for line in lines_of(path / "arms" / arm) if isinstance(line, Step)]
            for path in (study, whole.parent / "study")
        )
        assert ours == theirs, arm
    assert not _processes_in(cut.parent)


def _processes_in(directory: Path) -> list[str]:
    """Return the processes whose working directory is in `directory`."""
    found = []
    for entry in Path("/proc").iterdir() if Path("/proc").is_dir() else ():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                if (entry / "cwd").readlink().is_relative_to(directory):
                    found.append(entry.name)
            except OSError:
                continue
    return found
