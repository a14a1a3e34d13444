"""From which entropy the arms of a study start and fork: what pairs share, derived from plan and seed by a hash."""

from __future__ import annotations

from blake3 import blake3

from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.plan import ArmName, Plan

__all__ = ["HASH_SEED", "fork_of", "fork_seed", "start_nonce"]

HASH_SEED = "0"
"""PYTHONHASHSEED of every arm: the iteration order of sets is no part of what is studied."""
_START = "trainmem-audit 2026-11 start of the arms of a seed v1"
_FORK = "trainmem-audit 2026-11 fork of a noise stream v1"


def start_nonce(plan: Plan, seed: int) -> str:
    """Return 128 bits in hex: what generators that nobody seeded start from, in all arms of a seed."""
    return _derived(_START, plan.name, plan.seeds[seed])[:32]


def fork_seed(plan: Plan, seed: int, branch: int, stream: int) -> str:
    """Return the seed of 64 bits, as text, by which all random streams are redrawn at the branch."""
    return str(int(_derived(_FORK, plan.name, plan.seeds[seed], str(branch), str(stream))[:16], 16))


def fork_of(plan: Plan, arm: ArmName) -> Intervention:
    """Return the fork of an arm's noise stream: the same for all arms of that seed, branch and stream."""
    return Intervention(primitive="fork", seed=fork_seed(plan, arm.seed, arm.branch, arm.stream))


def _derived(context: str, *parts: str) -> str:
    """Return 256 bits in hex; parts are told apart by their lengths."""
    data = b"".join(len(part.encode()).to_bytes(8, "little") + part.encode() for part in parts)
    return blake3(data, derive_key_context=context).hexdigest()
