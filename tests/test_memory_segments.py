"""A segment of every example of memory, replayed: `match`, or `inconclusive` for the reason that is true of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.memories import ROWS
from tests.memories.segments import SEGMENTS, WHY
from tests.shapes import Shape
from tests.specimens import put
from tests.test_segment_replay import drawable, replay_one
from tests.trainings import recorded

COMMANDS = {" ".join(row.command): row for row in ROWS}


def test_what_is_declared_is_of_an_example() -> None:
    assert not SEGMENTS.keys() - COMMANDS.keys()
    assert {*SEGMENTS.values()} <= WHY.keys()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_a_segment_of_every_memory_matches_or_says_why_not(command: str, tmp_path: Path) -> None:
    row: Shape = COMMANDS[command]
    for name in row.names:
        put(tmp_path / name, (row.folder / name).read_text())
    options = ("--snapshots", str(max(1, row.steps // 4)))
    done = recorded(tmp_path, *row.command, home=tmp_path / "home", options=("-d", "run", *options))
    assert done.returncode == 0, done.stderr.decode()
    segments = drawable(tmp_path / "run")
    code, verdict = replay_one(tmp_path / "run", segments[len(segments) // 2].first, tmp_path / "home")
    why = SEGMENTS.get(command)
    assert (code, verdict["outcome"]) == ((0, "match") if why is None else (3, "inconclusive")), verdict["reason"]
    if why is not None:
        assert WHY[why][0] in verdict["reason"]
        assert "--replay prefix:" in verdict["reason"]
