"""From which entropy the arms of a study start and fork: what pairs share, derived from the seed by a hash.

A program and a script with the same seed start alike and fork alike, so their arms can be compared bit for bit.
"""

from __future__ import annotations

from trainmem_audit.contract import start_seed
from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.plan import ArmName, Plan

__all__ = ["HASH_SEED", "fork_of"]

HASH_SEED = "0"
"""PYTHONHASHSEED of every arm: the iteration order of sets is no part of what is studied."""


def fork_of(plan: Plan, arm: ArmName) -> tuple[Intervention, ...]:
    """Return what redraws the random streams of an arm: the same for all arms of a seed, branch and noise stream."""
    if arm.stream == 0:
        return ()
    key = start_seed(plan.seeds[arm.seed], f"noise stream {arm.stream} after step {arm.branch}")
    return (Intervention(primitive="fork", seed=str(key)),)
