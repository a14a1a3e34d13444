"""The back-flow part of a study as further work of the runner: one job for each seed.

A job trains the base and then runs every regime from it. A base that is missing takes the runs that started from it
with it. Not here: what is run (`backflows`, `programs.backflow`), and its numbers (`study.witnessing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainmem_audit.backflows import base_id, cells_of
from trainmem_audit.documents.plan import Plan
from trainmem_audit.keys import Signer
from trainmem_audit.study.executor import Job
from trainmem_audit.study.layout import ARMS
from trainmem_audit.study.ledger import workers_lock
from trainmem_audit.study.runner import Unit, Work

__all__ = ["BackFlowWork", "SeedOfBackFlow", "run_back_flow_seed"]

_TASK = f"{__name__}:run_back_flow_seed"


@dataclass(frozen=True)
class SeedOfBackFlow:
    """What a worker needs to run the back-flow part of one seed."""

    plan: bytes
    seed: int
    runs: tuple[str, ...]
    has_base: bool
    directory: Path
    source: Path
    signer: bytes
    threads: int


class BackFlowWork:
    """The arms of a plan, and after them its back-flow part (`runner.Work`)."""

    def __init__(self, arms: Work, plan: Plan, source: Path, directory: Path, signer: Signer) -> None:
        self._arms = arms
        self._plan = plan
        self._source = source.absolute()
        self._directory = directory.absolute()
        self._signer = signer

    def arms(self) -> tuple[str, ...]:
        """Return the ids of all runs, each seed's base before its regimes."""
        own = (name for seed in range(len(self._plan.seeds)) for name in _names(self._plan, seed))
        return (*self._arms.arms(), *own)

    def units(self, missing: Sequence[str], threads: int) -> Iterator[Unit]:
        """Yield the jobs of the arms, and one for each seed whose back-flow part is not all there."""
        wanted = set(missing)
        yield from self._arms.units(missing, threads)
        for seed in range(len(self._plan.seeds)):
            made = tuple(name for name in _names(self._plan, seed) if name in wanted)
            if not made:
                continue
            base = base_id(seed)
            work = SeedOfBackFlow(
                self._plan.canonical(),
                seed,
                tuple(name for name in made if name != base),
                base not in made,
                self._directory,
                self._source,
                self._signer.seed(),
                threads,
            )
            yield Unit(Job(_TASK, work), made)

    def unusable(self, missing: Sequence[str]) -> Mapping[str, str]:
        """Return which other runs cannot stay, and why."""
        gone = set(missing)
        found = dict(self._arms.unusable(missing))
        for seed in range(len(self._plan.seeds)):
            if base_id(seed) in gone:
                reason = f"the run that it starts from, {base_id(seed)}, is not there any more"
                found |= dict.fromkeys(_names(self._plan, seed)[1:], reason)
        return found


def _names(plan: Plan, seed: int) -> list[str]:
    """Return the ids of the runs of a seed, its base first."""
    return [base_id(seed), *(cell.run_id(seed) for cell in cells_of(plan.back_flow))]


def run_back_flow_seed(work: SeedOfBackFlow, tell: Callable[[Any], None]) -> None:
    """Run the back-flow part of one seed; tells `start`, and `finish` or `fail`, for each run."""
    from trainmem_audit.programs.backflow import BackFlowBlock, run_back_flow

    plan: Plan = Plan.parse(work.plan, "plan")
    part = plan.back_flow
    assert part is not None
    base = base_id(work.seed)
    block = BackFlowBlock(
        part,
        work.seed,
        plan.seeds[work.seed],
        work.directory / ARMS,
        plan.digest,
        tuple(cell for cell in cells_of(plan.back_flow) if cell.run_id(work.seed) in work.runs),
        work.source,
        plan.probe.head,
        work.threads,
    )
    coming = iter([*([] if work.has_base else [base]), *(cell.run_id(work.seed) for cell in block.cells)])

    def start_next() -> None:
        if (name := next(coming, None)) is not None:
            tell(("start", name))

    with workers_lock(work.directory):
        if not work.has_base:
            start_next()
        for ended in run_back_flow(block, Signer.from_seed(work.signer)):
            if ended.id != base or not work.has_base:
                tell(("fail", ended.id, ended.problem) if ended.problem else ("finish", ended.id))
            start_next()
