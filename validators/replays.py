"""VER: what a replay showed."""

from __future__ import annotations

from trainmem_audit.checks import Outcome, Rule, failed, inconclusive, passed
from trainmem_audit.documents.findings import Replay
from trainmem_audit.documents.record import Record

__all__ = ["RULES"]

_MATCHES = ("match", "match-within-tolerance")


def _independent_replay(record: Record) -> Outcome:
    """TM-VER-001: the whole run was replayed, and came out the same."""
    replay = record.verification.replay
    if (outcome := _undecided(replay)) is not None:
        return outcome
    if replay.outcome == "mismatch":
        return _mismatch(replay)
    if replay.mode != "full":
        return inconclusive(f"only a part was replayed: {replay.mode}", got=f"{replay.steps_compared} steps")
    return passed("replayed", f"{replay.outcome}, {replay.steps_compared} steps compared")


def _window_by_reviewer(record: Record) -> Outcome:
    """TM-VER-002: what was replayed was not chosen by the author: everything, or segments drawn by lot."""
    replay = record.verification.replay
    if (outcome := _undecided(replay)) is not None:
        return outcome
    if replay.outcome == "mismatch":
        return _mismatch(replay)
    if replay.mode != "full" and not replay.mode.startswith("segments:"):
        return inconclusive(f"an author can foresee what is replayed: {replay.mode}")
    return passed("replayed", f"{replay.mode}: {replay.outcome}")


def _undecided(replay: Replay) -> Outcome | None:
    if replay.what_if:
        return inconclusive("a what-if: changed code or data were replayed")
    if replay.outcome in ("inconclusive", "not-run"):
        return inconclusive(f"{replay.outcome}: {replay.reason}" if replay.reason else replay.outcome)
    return None


def _mismatch(replay: Replay) -> Outcome:
    difference = replay.difference
    where = "replay" if difference is None else f"step {difference.step}: {difference.blame}"
    got = "another result" if difference is None else difference.explanation
    return failed("replayed", "the replay came out differently", where=where, expected="the recorded digests", got=got)


RULES: dict[str, Rule] = {"TM-VER-001": _independent_replay, "TM-VER-002": _window_by_reviewer}
