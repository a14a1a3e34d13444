"""The runner: what it makes, keeps, moves aside and lists; processes of its own are in `test_study_executor`."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.studying import STUDIES, MemoryExecutor, TinyWork, study_directory, write_tiny
from tests.vectors import SEED
from trainmem_audit.canonical import loads_strict, sha256_hex
from trainmem_audit.documents.studies import StudyStatement
from trainmem_audit.envelope import parse_envelope, verifying_signatures
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.study.executor import LocalPool
from trainmem_audit.study.ledger import read_study_log, runner_lock, workers_lock
from trainmem_audit.study.plan import Declared, read_study
from trainmem_audit.study.runner import Outcome, Runner
from trainmem_audit.studylog import StudyLogSummary

SIGNER = Signer.from_seed(SEED)


@pytest.fixture
def declared(tmp_path: Path) -> Declared:
    (tmp_path / "declared").mkdir()
    path = study_directory(tmp_path / "declared", STUDIES / "valid" / "quiet_script.toml")
    path.write_text(path.read_text().replace("seeds = 3", "seeds = 1"))
    return read_study(path)


@pytest.fixture
def work(declared: Declared, tmp_path: Path) -> TinyWork:
    return TinyWork(declared.plan, tmp_path / "study")


def run(declared: Declared, work: TinyWork, executor: MemoryExecutor | None = None, *, retry: bool = False) -> Outcome:
    pool = executor or MemoryExecutor()
    runner = Runner(declared.plan, declared.directory, work.directory, SIGNER, retry=retry)
    return runner.run(1, 1, work, lambda threads: pool)


def log(work: TinyWork) -> StudyLogSummary:
    return read_study_log(work.directory / "study.jsonl").summary


def statement(work: TinyWork) -> StudyStatement:
    envelope = parse_envelope((work.directory / "study.json").read_bytes(), "study.json")
    assert verifying_signatures(envelope, SIGNER.public)
    parsed: StudyStatement = StudyStatement.parse(envelope.payload, "study.json")
    return parsed


def test_a_whole_study(declared: Declared, work: TinyWork) -> None:
    outcome = run(declared, work)
    assert set(outcome.finished) == set(work.arms())
    assert not outcome.failed
    said = statement(work)
    assert said.predicate.plan == declared.plan.digest == sha256_hex((work.directory / "plan.json").read_bytes())
    assert said.predicate.started == said.predicate.finished == len(work.arms()) == 4
    assert said.predicate.log.chain_head == log(work).chain_head
    listed = {subject.name: subject.digest.sha256 for subject in said.subject}
    assert listed.keys() == {
        "plan.json",
        "study.jsonl",
        "probe.safetensors",
        *(f"arms/{name}/run.json" for name in work.arms()),
    }
    assert all(sha256_hex((work.directory / name).read_bytes()) == digest for name, digest in listed.items())
    for name, finish in log(work).finished.items():
        envelope = parse_envelope((work.directory / "arms" / name / "run.json").read_bytes(), name)
        assert finish.statement == sha256_hex(envelope.payload)
        assert loads_strict(envelope.payload, name)["predicate"]["plan"] == declared.plan.digest


def test_a_study_that_is_there_is_left_alone(declared: Declared, work: TinyWork) -> None:
    run(declared, work)
    before = {path: path.read_bytes() for path in (work.directory / "arms").rglob("*") if path.is_file()}
    run(declared, work)
    assert {path: path.read_bytes() for path in (work.directory / "arms").rglob("*") if path.is_file()} == before
    assert log(work).started == 4
    assert statement(work).predicate.log.count == log(work).lines


def test_what_failed_is_kept_listed_and_tried_again_only_when_asked(declared: Declared, work: TinyWork) -> None:
    name = work.arms()[1]
    work.broken = {name}
    assert run(declared, work).failed == {name: "it is broken"}
    assert statement(work).predicate.failed == {name: "it is broken"}
    work.broken = set()
    assert run(declared, work).failed == {name: "it is broken"}
    assert log(work).started == 4
    assert not run(declared, work, retry=True).failed
    assert log(work).started == statement(work).predicate.started == 5
    assert statement(work).predicate.failed == {}


def test_a_reason_is_written_as_it_may_be_published(declared: Declared, work: TinyWork) -> None:
    work.broken = {work.arms()[0]}
    work.why = f"FileNotFoundError: {Path.home() / 'data' / 'x.csv'}"
    run(declared, work)
    (fail,) = log(work).failed.values()
    assert "x.csv" in fail.reason
    assert str(Path.home() / "data") not in fail.reason


def test_an_interrupted_study_goes_on(declared: Declared, work: TinyWork) -> None:
    half = work.arms()[2]
    outcome = run(declared, work, MemoryExecutor(dies_at=half))
    assert outcome.interrupted
    assert not (work.directory / "study.json").exists()
    assert not run(declared, work).interrupted
    said = log(work)
    assert set(said.finished) == set(work.arms())
    assert said.arms[half].attempts in (1, 2)
    assert said.started == statement(work).predicate.started


def test_an_arm_under_way_is_moved_aside_when_the_study_goes_on(declared: Declared, work: TinyWork) -> None:
    """As a kill leaves it: a `start` line, half a directory, no more."""
    name = work.arms()[0]
    run(declared, work)
    path = work.directory / "study.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]))
    for arm in work.arms()[1:]:
        shutil.rmtree(work.directory / "arms" / arm)
    (work.directory / "arms" / name / "run.json").unlink()
    run(declared, work)
    assert (work.directory / "failed" / f"{name}.1" / "steps.jsonl").exists()
    assert set(log(work).finished) == set(work.arms())
    told = [json.loads(line) for line in path.read_bytes().splitlines()]
    (fail,) = (line for line in told if line["t"] == "fail")
    assert fail["id"] == name
    assert fail["reason"] == "the study was interrupted"
    assert fail["retry"] is True


def test_a_directory_without_a_line_is_listed_and_moved_aside(declared: Declared, work: TinyWork) -> None:
    run(declared, work)
    write_tiny(work.directory / "arms" / "stray", "stray", declared.plan.digest)
    run(declared, work)
    assert "stray" in log(work).failed
    assert (work.directory / "failed" / "stray.1").is_dir()


@pytest.mark.parametrize("what", ["changed", "missing", "more", "resigned"])
def test_an_arm_that_is_not_what_was_signed_is_run_again(declared: Declared, work: TinyWork, what: str) -> None:
    run(declared, work)
    name = work.arms()[3]
    arm = work.directory / "arms" / name
    match what:
        case "changed":
            (arm / "tensors.b3").write_bytes((arm / "tensors.b3").read_bytes()[:-1] + b"\0")
        case "missing":
            (arm / "tensors.b3").unlink()
        case "more":
            (arm / "notes.txt").write_text("mine")
        case "resigned":
            shutil.rmtree(arm)
            write_tiny(arm, name, "0" * 64)
    run(declared, work)
    said = log(work)
    assert set(said.finished) == set(work.arms())
    assert said.arms[name].attempts == 2
    assert (work.directory / "failed" / f"{name}.1").is_dir()


def test_arms_whose_prefix_is_gone_are_run_again(declared: Declared, work: TinyWork) -> None:
    arms = [str(arm) for arm in declared.plan.arms()]
    work.needs = dict.fromkeys(arms, "prefix.s0")
    run(declared, work)
    (work.directory / "arms" / "prefix.s0" / "steps.jsonl").write_bytes(b"")
    run(declared, work)
    assert {state.attempts for state in log(work).arms.values()} == {2}
    assert "prefix.s0" in (work.directory / "study.jsonl").read_text()


def test_another_plan_is_refused(declared: Declared, work: TinyWork) -> None:
    run(declared, work)
    path = declared.directory / "study.toml"
    path.write_text(path.read_text().replace("0.05", "0.06"))
    with pytest.raises(UsageError, match="another plan"):
        run(read_study(path), work)


def test_a_directory_of_something_else_is_refused_and_left_alone(declared: Declared, work: TinyWork) -> None:
    work.directory.mkdir()
    (work.directory / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="holds something else"):
        run(declared, work)
    assert [path.name for path in work.directory.iterdir()] == ["thesis.tex"]


def test_a_damaged_study_log_is_refused(declared: Declared, work: TinyWork) -> None:
    run(declared, work)
    path = work.directory / "study.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"number":1', b'"number":2', 1))
    with pytest.raises(FormatError, match="chain is broken"):
        run(declared, work)


def test_two_runners_do_not_meet(declared: Declared, work: TinyWork) -> None:
    work.directory.mkdir()
    with runner_lock(work.directory), pytest.raises(UsageError, match="being run already"):
        run(declared, work)
    run(declared, work)


def test_a_runner_waits_for_the_workers_of_a_killed_one(
    declared: Declared, work: TinyWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainmem_audit.study.runner._PATIENCE", 0.1)
    work.directory.mkdir()
    with workers_lock(work.directory), pytest.raises(UsageError, match="being written"):
        run(declared, work)
    run(declared, work)


def test_threads_stay_what_they_were_when_the_study_began(declared: Declared, work: TinyWork) -> None:
    """The number decides bits, so arms of two sessions could not be compared."""
    asked: list[int] = []
    runner = Runner(declared.plan, declared.directory, work.directory, SIGNER)

    def make(threads: int) -> MemoryExecutor:
        asked.append(threads)
        return MemoryExecutor(dies_at=work.arms()[1] if len(asked) == 1 else "")

    assert runner.run(1, 3, work, make).interrupted
    runner.run(2, 1, work, make)
    assert asked == [3, 3]


# Processes -------------------------------------------------------------------------------------------------------


def pool(cwd: Path, workers: int = 1) -> LocalPool:
    return LocalPool(workers, {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}, cwd)


def told(pool: LocalPool) -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    while pool.pending:
        found += [(message.kind, message.value) for message in pool.wait(0.2)]
    return found


def test_jobs_run_in_processes_and_tell_what_they_do(tmp_path: Path) -> None:
    from trainmem_audit.study.executor import Job

    processes = pool(tmp_path, 2)
    try:
        for number in range(4):
            processes.submit(Job("tests.chores:add", (number, 1)))
        found = told(processes)
        assert sorted(value for kind, value in found if kind == "done") == [1, 2, 3, 4]
        assert sorted(value for kind, value in found if kind == "told") == [0, 1, 2, 3]
        for chore in ("refuse", "break_down"):
            processes.submit(Job(f"tests.chores:{chore}", None))
        assert {kind for kind, _ in told(processes)} == {"failed"}
    finally:
        processes.close()


def test_a_process_that_dies_takes_one_job_with_it(tmp_path: Path) -> None:
    from trainmem_audit.study.executor import Job

    processes = pool(tmp_path)
    try:
        processes.submit(Job("tests.chores:die", None))
        processes.submit(Job("tests.chores:add", (1, 1)))
        found = told(processes)
        assert ("died", "its process was ended by SIGKILL") in found
        assert ("done", 2) in found
    finally:
        processes.close()


def test_closing_ends_a_job_that_would_last(tmp_path: Path) -> None:
    from trainmem_audit.study.executor import Job

    processes = pool(tmp_path)
    processes.submit(Job("tests.chores:last", None))
    while not (messages := processes.wait(0.2)):
        pass
    (message,) = messages
    processes.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(message.value), 0)


def test_processes_do_not_outlive_whoever_started_them(tmp_path: Path) -> None:
    from trainmem_audit.study.executor import Job

    processes = pool(tmp_path)
    processes.submit(Job("tests.chores:last", None))
    while not (messages := processes.wait(0.2)):
        pass
    (message,) = messages
    worker = processes._workers[0]
    os.close(worker._held)  # as when this process is gone
    worker._held = os.open(os.devnull, os.O_RDONLY)
    while worker.process.poll() is None:
        time.sleep(0.02)
    processes.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(message.value), 0)
