"""What a replay of the middle segment of each example says: `match`, or why it decides nothing.

`tests/test_memory_segments.py` holds it to be true, and `docs/memory-sources.md` shows it.
"""

from __future__ import annotations

__all__ = ["SEGMENTS", "WHY"]

WHY: dict[str, tuple[str, str]] = {
    "weights": ("the inputs of step", "the loop is closed over the weights: its inputs are others while it is walked"),
    "gradients": ("NoneType", "the script looks at its gradients, of which there are none while it is walked"),
    "across": ("comes out differently", "computed before a step and used up after it, or in no snapshot"),
}
"""Words of the reason, and what they mean, by a short name."""

_CLOSED = ("gan.py", "hidden.py", "prioritized.py", "target.py", "trainer.py")
SEGMENTS: dict[str, str] = {
    **dict.fromkeys(_CLOSED, "weights"),
    **dict.fromkeys(("hebbian.py", "lbfgs.py"), "weights"),
    **dict.fromkeys(("sam.py", "sam.py --closure", "no_banks.py"), "gradients"),
    **dict.fromkeys(("moco.py", "replay_tuples.py", "schedules.py", "weighted.py"), "across"),
}
"""The short name of the reason, by the command of the example; those that are not here match."""
