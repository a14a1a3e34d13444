"""The study log: what may follow what, and that no line can be taken out, moved, or put into another log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vectors import study_lines
from trainmem_audit.errors import FormatError
from trainmem_audit.steplog import LogReader
from trainmem_audit.study.ledger import Ledger, read_study_log
from trainmem_audit.studylog import MAX_STUDY_LINE, StudyLogBuilder, StudyLogReader

TIME = "2026-11-24T10:00:00Z"
BEGIN = {
    "t": "begin",
    "format": "trainmem-audit/study-log/v1",
    "nonce": "0" * 32,
    "time": TIME,
    "producer": {"name": "trainmem-audit", "version": "0"},
    "plan": "1" * 64,
    "workers": 1,
    "threads": 1,
}


def start(name: str = "a", number: int = 1) -> dict[str, Any]:
    return {"t": "start", "id": name, "number": number, "time": TIME}


def finish(name: str = "a", number: int = 1) -> dict[str, Any]:
    record = {"run": "0" * 32, "statement": "0" * 64, "steps": 3}
    return {"t": "finish", "id": name, "number": number, "time": TIME, **record}


def fail(name: str = "a", number: int = 1) -> dict[str, Any]:
    return {"t": "fail", "id": name, "number": number, "time": TIME, "reason": "it broke"}


def end(finished: int, failed: int) -> dict[str, Any]:
    return {"t": "end", "time": TIME, "finished": finished, "failed": failed}


RESUME = {"t": "resume", "time": TIME, "workers": 2}


def read(lines: list[bytes]) -> StudyLogReader:
    reader = StudyLogReader()
    for line in lines:
        reader.read(line)
    reader.finish()
    return reader


def built(*members: dict[str, Any]) -> StudyLogBuilder:
    builder = StudyLogBuilder()
    for item in (BEGIN, *members):
        builder.line(dict(item))
    return builder


@pytest.mark.parametrize(
    "members",
    [
        [end(0, 0)],
        [start(), finish(), end(1, 0)],
        [start(), fail(), end(0, 1)],
        [start(), fail(), start(number=2), finish(number=2), end(1, 0)],
        [start(), start("b"), finish("b"), finish(), end(2, 0)],
        [start(), finish(), end(1, 0), RESUME, fail(), start(number=2), finish(number=2), end(1, 0)],
        [start(), RESUME, fail(), RESUME, start(number=2)],
    ],
)
def test_what_may_follow_what(members: list[dict[str, Any]]) -> None:
    builder = built(*members)
    assert builder.finish().lines == 1 + len(members)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([BEGIN], "starts with one"),
        ([finish()], "not started"),
        ([fail()], "not started"),
        ([start(), start()], "attempt 2"),
        ([start(number=2)], "attempt 1"),
        ([start(), finish(), start(number=2)], "out of its place"),
        ([start(), finish(), finish()], "cannot finish"),
        ([start(), fail(), fail()], "cannot fail"),
        ([start(), fail(number=2)], "not started"),
        ([start(), end(0, 0)], "1 under way"),
        ([start(), finish(), end(0, 1)], "1 finished"),
        ([end(0, 0), start()], "only `resume`"),
    ],
)
def test_what_may_not(members: list[dict[str, Any]], said: str) -> None:
    builder = built(*members[:-1])
    with pytest.raises(FormatError) as caught:
        builder.line(dict(members[-1]))
    assert said in str(caught.value)


def test_what_a_log_says() -> None:
    summary = read(study_lines()).summary
    assert summary.started == 2
    assert list(summary.finished) == ["control.s0.b200.r0"]
    assert summary.failed["reset.s0.b200.r0"].reason == "the study was interrupted"
    assert summary.end is not None
    assert not summary.running


def changed(lines: list[bytes], at: int, how: str) -> list[bytes]:
    match how:
        case "left out":
            return [*lines[:at], *lines[at + 1 :]]
        case "twice":
            return [*lines[: at + 1], *lines[at:]]
        case "moved":
            return [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]]
    members = json.loads(lines[at]) | {"time": "2026-11-24T10:00:09Z"}
    return [*lines[:at], json.dumps(members, sort_keys=True, separators=(",", ":")).encode(), *lines[at + 1 :]]


@pytest.mark.parametrize("how", ["left out", "twice", "moved", "changed"])
@pytest.mark.parametrize("at", range(5))
def test_a_line_cannot_be_touched(at: int, how: str) -> None:
    lines = study_lines()
    with pytest.raises(FormatError):
        read(changed(lines, at, how))


def test_a_line_of_one_log_is_none_of_the_other() -> None:
    with pytest.raises(FormatError):
        LogReader().read(study_lines()[0])


def test_a_line_that_is_too_long_is_refused() -> None:
    with pytest.raises(FormatError, match="too long"):
        StudyLogReader().read(b"{" + b" " * MAX_STUDY_LINE + b"}")


@given(st.integers(0, 6), st.integers(0, 2000), st.binary(min_size=1, max_size=4))
def test_a_damaged_log_is_never_read_as_another(number: int, at: int, patch: bytes) -> None:
    lines = study_lines()
    line = bytearray(lines[number])
    line[at % len(line) : at % len(line) + len(patch)] = patch
    if bytes(line) == lines[number]:
        return
    with pytest.raises(FormatError):
        read([*lines[:number], bytes(line), *lines[number + 1 :]])


def test_a_torn_last_line_is_cut_and_the_log_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    path.write_bytes(b"\n".join(study_lines()) + b'\n{"chain":"00')
    ledger = Ledger.take_up(path, workers=1)
    ledger.put("start", id="reset.s0.b200.r0", number=2)
    ledger.close()
    summary = read_study_log(path).summary
    assert summary.running == ("reset.s0.b200.r0",)
    assert summary.lines == len(study_lines()) + 2


def test_damage_elsewhere_is_no_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "study.jsonl"
    lines = study_lines()
    path.write_bytes(b"\n".join([*lines[:2], lines[2][:-5], *lines[3:]]) + b"\n")
    with pytest.raises(FormatError, match=r"study\.jsonl:3"):
        Ledger.take_up(path, workers=1)
