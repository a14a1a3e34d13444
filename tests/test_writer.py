"""The writer: what it keeps within a budget, and that a failure ends the recording and not the training."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainmem_audit.errors import RecordingError
from trainmem_audit.recording.writer import LogWriter, Thinning


@given(st.integers(0, 5000), st.integers(1, 64), st.integers(0, 3000))
def test_thinning_stays_within_its_budget(budget: int, size: int, steps: int) -> None:
    thinning = Thinning(budget)
    assert sum(size for step in range(steps) if thinning.keep(step, size)) <= budget


def test_thinning_keeps_every_step_of_the_first_half_and_then_ever_fewer() -> None:
    thinning = Thinning(1000)
    kept = [step for step in range(20_000) if thinning.keep(step, 10)]
    assert kept[:50] == list(range(50))
    gaps = [after - before for before, after in itertools.pairwise(kept)]
    assert gaps == sorted(gaps)
    assert kept[-1] > 1000


def begin() -> dict[str, Any]:
    return {
        "t": "begin", "format": "trainmem-audit/step-log/v1", "nonce": "0" * 32, "rank": 0, "world": 1,
        "started": "2026-01-01T00:00:00Z", "producer": {"name": "t", "version": "0"},
        "command": {"kind": "script", "entry": "{cwd}/t.py", "hashSeed": "0"},
        "environment": {
            "python": "3", "implementation": "C", "system": "L", "machine": "m", "cpu": "c", "cpuCount": 1,
            "packages": {}, "variables": {},
        },
        "streams": {}, "tensorBudget": 0,
    }  # fmt: skip


def test_a_line_that_could_not_be_read_again_ends_the_recording(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    writer = LogWriter(tmp_path, 0, failures.append)
    writer.start(begin())
    writer.put({"t": "step", "i": 0, "state": {}, "rng": {"python": "not a digest"}})
    writer.put({"t": "step", "i": 1, "state": {}, "rng": {}})
    with pytest.raises(RecordingError):
        writer.close()
    assert len(failures) == 1
    assert (tmp_path / "steps.jsonl").read_bytes().count(b"\n") == 1


def test_a_full_disk_ends_the_recording_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures: list[BaseException] = []
    writer = LogWriter(tmp_path, 0, failures.append)
    writer.start(begin())

    def full(descriptor: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainmem_audit.recording.writer.os.write", full)
    for step in range(2000):  # more than may wait: nothing blocks
        writer.put({"t": "step", "i": step, "state": {}, "rng": {}})
    with pytest.raises(RecordingError):
        writer.close()
    assert isinstance(failures[0], OSError)


@pytest.mark.parametrize("lines", [3, 2000])
def test_a_writer_whose_thread_is_gone_stops_no_training(
    lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when more lines come than may wait."""
    failures: list[BaseException] = []
    writer = LogWriter(tmp_path, 0, failures.append)
    monkeypatch.setattr(writer._thread, "_target", lambda: None)
    monkeypatch.setattr("trainmem_audit.recording.writer._PATIENCE", 0.01)
    writer.start(begin())
    for step in range(lines):
        writer.put({"t": "step", "i": step, "state": {}, "rng": {}})
    with pytest.raises(RecordingError, match="broke off"):
        writer.close()
    assert [str(failure) for failure in failures] == ["the thread that writes the log has died"]


@pytest.mark.parametrize("name", ["steps.jsonl", "tensors.b3"])
@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_a_file_that_is_no_longer_ours_ends_the_recording(name: str, change: str, tmp_path: Path) -> None:
    failures: list[BaseException] = []
    writer = LogWriter(tmp_path, 0, failures.append)
    writer.start(begin())
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if change == "replaced":
        (tmp_path / name).write_bytes(data)
    with pytest.raises(RecordingError, match="broke off"):
        writer.close()
    assert f"{name} was removed or changed" in str(failures[0])


def test_a_log_that_somebody_else_wrote_to_is_noticed(tmp_path: Path) -> None:
    failures: list[BaseException] = []
    writer = LogWriter(tmp_path, 0, failures.append)
    writer.start(begin())
    with (tmp_path / "steps.jsonl").open("ab") as file:
        file.write(b"a stray line\n")
    with pytest.raises(RecordingError, match="broke off"):
        writer.close()
    assert "steps.jsonl was removed or changed" in str(failures[0])


def test_an_existing_log_is_never_written_to(tmp_path: Path) -> None:
    (tmp_path / "steps.jsonl").write_text("mine")
    with pytest.raises(FileExistsError):
        LogWriter(tmp_path, 0, lambda _: None)
    assert (tmp_path / "steps.jsonl").read_text() == "mine"
