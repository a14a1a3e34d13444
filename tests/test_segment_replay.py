"""Replays of segments: what holds matches from every snapshot, what is forged or depends on more never does."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.forgeries import FORGERIES, JUMP, with_honest_source
from tests.shapes import ROOT, ZOO
from tests.tools import audit, record, verify
from tests.trainings import pack, replayed, replayed_here, statement_of
from trainmem_audit.errors import UsageError
from trainmem_audit.replaying import Draw, parse_mode
from trainmem_audit.segments import Segment, draw, segments_of

HERE = Path(__file__).parent / "segments"
NONCE = bytes(16)


def drawable(run_dir: Path) -> list[Segment]:
    """Return the segments of a run that are not always replayed."""
    manifest = statement_of(run_dir).predicate
    segments = segments_of([item.step for item in manifest.snapshots], manifest.step_logs[0].steps)
    return [segment for segment in segments if not segment.always]


def nonce_for(run_dir: Path, step: int) -> str:
    """Return a nonce that draws, alone, the segment of `step`."""
    head = bytes.fromhex(statement_of(run_dir).predicate.step_logs[0].chain_head)
    free = drawable(run_dir)
    nonces = (number.to_bytes(16, "big") for number in range(10_000))
    return next(
        nonce.hex()
        for nonce in nonces
        if (found := free[draw(head, nonce, len(free), 1)[0]]).first <= step <= found.last
    )


def replay_one(run_dir: Path, step: int, home: Path) -> tuple[int, dict[str, Any]]:
    """Replay the segment of `step`, and those that always are."""
    return replayed(run_dir, "--nonce", nonce_for(run_dir, step), home=home, mode="segments:1")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("honest")
    return record(HERE / "honest.py", here, home=here / "home", options=("--snapshots", "3", "--self-test"))


# Runs that come out -------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_segment_of_an_honest_run_matches(honest: Path, tmp_path: Path) -> None:
    segments = drawable(honest)
    assert [(item.first, item.last) for item in segments] == [(1, 3), (4, 6), (7, 9)]
    for segment in segments:
        code, verdict = replay_one(honest, segment.first, tmp_path)
        assert (code, verdict["outcome"], verdict["mode"]) == (0, "match", "segments:1"), verdict["reason"]
        told = verdict["segments"]
        assert {"first": segment.first, "last": segment.last, "always": False} in told["replayed"]
        assert verdict["stepsCompared"] + told["walked"] == 12
        assert (told["drawn"], told["drawnFrom"], told["total"]) == (1, 3, 5)


@pytest.mark.slow
def test_the_same_nonce_draws_the_same_segments_of_a_pack(honest: Path, tmp_path: Path) -> None:
    packed = pack(honest, tmp_path / "run.zip")
    first = replayed(packed, home=tmp_path, mode="segments:1")[1]
    again = replayed(packed, "--nonce", first["segments"]["nonce"], home=tmp_path, mode="segments:1")[1]
    assert (first["outcome"], again["segments"]) == ("match", first["segments"])


@pytest.mark.slow
def test_it_is_said_on_screen(honest: Path, tmp_path: Path) -> None:
    options = ("--replay", "segments:1", "--yes", "--allow-untrusted", "--nonce", NONCE.hex())
    done = audit("verify", honest, *options, cwd=tmp_path, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"1 of 3 segments drawn with nonce {NONCE.hex()}" in done.stdout
    assert "33.3 % if 1, 66.7 % if 2 are forged" in done.stdout
    assert "its own replay of the segment of steps" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "every", "arguments"),
    [
        (ROOT / "examples" / "digits" / "train.py", 8, ("--epochs", "1")),
        (ZOO / "charlm.py", 2, ()),
        (ZOO / "amp.py", 2, ()),
    ],
    ids=["digits", "char LM", "AMP with skipped steps"],
)
def test_every_segment_matches(script: Path, every: int, arguments: tuple[str, ...], tmp_path: Path) -> None:
    run = record(script, tmp_path, *arguments, home=tmp_path / "home", options=("--snapshots", str(every)))
    for segment in drawable(run):
        code, verdict = replay_one(run, segment.first, tmp_path / "home")
        assert (code, verdict["outcome"]) == (0, "match"), (segment, verdict["reason"])


# Runs of which it cannot be said ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_loop_that_is_closed_over_the_weights_is_inconclusive_and_its_prefix_matches(tmp_path: Path) -> None:
    options = ("--snapshots", "4")
    script = tmp_path / "longer.py"
    text = (ZOO / "dqn.py").read_text().replace("EPSILON = 0.3", "EPSILON = 0.1").replace("range(20)", "range(60)")
    script.write_text(text.replace("lr=0.01", "lr=0.1"))  # so that it learns to go the other way
    run = record(script, tmp_path, home=tmp_path / "home", options=options)
    code, verdict = replay_one(run, 45, tmp_path / "home")
    assert (code, verdict["outcome"]) == (3, "inconclusive")
    step = verdict["difference"]["step"]
    assert verdict["difference"]["blame"] in ("inputs", "rng.python")
    assert f"step {step}" in verdict["reason"] and "without its weights" in verdict["reason"]
    offered = verdict["reason"].rpartition("--replay ")[2]
    assert replayed(run, home=tmp_path / "home", mode=offered)[1]["outcome"] == "match"


@pytest.mark.slow
def test_memory_in_a_closure_is_inconclusive_and_never_a_mismatch(tmp_path: Path) -> None:
    options = ("--snapshots", "3", "--self-test")
    run = record(HERE / "closure.py", tmp_path, home=tmp_path / "home", options=options)
    tested = statement_of(run).predicate.segments
    assert tested is not None and not tested.supported and "memory that no snapshot holds" in tested.reason
    code, verdict = replay_one(run, 4, tmp_path / "home")
    assert (code, verdict["outcome"], verdict["difference"]["blame"]) == (3, "inconclusive", "optimizer.hyper")
    assert "memory that no snapshot holds" in verdict["reason"]
    assert replayed(run, home=tmp_path / "home", mode="prefix:9")[1]["outcome"] == "match"


@pytest.mark.slow
def test_a_run_without_snapshots_has_no_segments(run: Any) -> None:
    verdict = replayed_here(run.path, segments=Draw(2, NONCE))
    assert (verdict.outcome, verdict.mode, verdict.segments) == ("not-run", "segments:2", None)
    assert "--snapshots" in verdict.reason


# Forgeries ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forged_segment_never_matches_when_drawn_and_a_prefix_convicts(forgery: str, tmp_path: Path) -> None:
    source = (HERE / "honest.py").read_text()
    cheating = tmp_path / "cheating.py"
    cheating.write_text(source.replace("    # here\n", FORGERIES[forgery]))
    run = record(cheating, tmp_path, home=tmp_path / "home", options=("--snapshots", "3"))
    with_honest_source(run, source.encode())
    found = verify(run, "--allow-untrusted", home=tmp_path / "home")
    assert (found.code, found.document["record"], found.findings) == (0, "consistent", [])
    code, verdict = replay_one(run, JUMP, tmp_path / "home")
    assert (code, verdict["outcome"]) == (3, "inconclusive")
    assert "the segment is not what the script does" in verdict["reason"] or "the record is not" in verdict["reason"]
    code, verdict = replayed(run, home=tmp_path / "home", mode=f"prefix:{JUMP + 1}")
    assert (code, verdict["outcome"], verdict["difference"]["step"]) == (1, "mismatch", JUMP)


@pytest.mark.slow
def test_one_changed_bit_of_a_snapshot_is_refused_before_anything_runs(honest: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(honest, copy)
    path = copy / "snapshots" / "step-3.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, verdict = replayed(copy, home=tmp_path, mode="segments:3")
    assert (code, verdict["outcome"], verdict["mode"]) == (1, "not-run", "none")
    asked: list[str] = []
    options = {"segments": Draw(1, bytes.fromhex(nonce_for(copy, 4))), "consent": asked.append}
    later = replayed_here(copy, **options)  # as if it were changed after it was verified
    assert (later.outcome, asked) == ("not-run", [])
    assert "not what was signed" in later.reason


# The command line ---------------------------------------------------------------------------------------------------


def test_a_draw_is_read_and_drawn_anew_each_time() -> None:
    assert parse_mode("segments:3", NONCE.hex()) == Draw(3, NONCE)
    first, second = parse_mode("segments:3"), parse_mode("segments:3")
    assert isinstance(first, Draw) and isinstance(second, Draw) and first.nonce != second.nonce


@pytest.mark.parametrize(
    ("mode", "nonce"), [("segments:1", "00"), ("segments:1", "A" * 32), ("full", "0" * 32), ("prefix:3", "0" * 32)]
)
def test_a_nonce_that_draws_nothing_is_refused(mode: str, nonce: str) -> None:
    with pytest.raises(UsageError):
        parse_mode(mode, nonce)


def test_a_nonce_without_a_replay_and_a_self_test_without_snapshots_are_refused(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    done = audit("record", "--self-test", "train.py", cwd=tmp_path, home=tmp_path)
    assert (done.returncode, "--snapshots" in done.stderr) == (2, True)
    assert not (tmp_path / "run").exists()
