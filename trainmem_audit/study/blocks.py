"""Arms of a program: one job for each seed, which trains the prefix once and branches every arm from it in memory.

When a study is taken up, the prefix of a seed whose arms are not all there is trained again and must come out as it was
recorded; the arms that are there stay. Not here: how a program is branched (`programs.block`), and when (`runner`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainmem_audit.documents.plan import ArmName, Plan
from trainmem_audit.keys import Signer
from trainmem_audit.study.executor import Job
from trainmem_audit.study.layout import ARMS
from trainmem_audit.study.ledger import workers_lock
from trainmem_audit.study.runner import Unit

__all__ = ["BlockWork", "SeedBlock", "run_seed"]

_TASK = f"{__name__}:run_seed"


@dataclass(frozen=True)
class SeedBlock:
    """What a worker needs to run the arms of one seed."""

    plan: bytes
    seed: int
    arms: tuple[ArmName, ...]
    has_prefix: bool
    directory: Path
    source: Path
    signer: bytes
    threads: int


class BlockWork:
    """The arms of a plan whose program is a factory (`runner.Work`)."""

    def __init__(self, plan: Plan, source: Path, directory: Path, signer: Signer) -> None:
        self._plan = plan
        self._source = source.absolute()
        self._directory = directory.absolute()
        self._signer = signer

    def arms(self) -> tuple[str, ...]:
        """Return the ids of all arms, each seed's prefix before its arms."""
        return tuple(
            name
            for seed in range(len(self._plan.seeds))
            for name in (self._plan.prefix_id(seed), *map(str, self._of(seed)))
        )

    def units(self, missing: Sequence[str], threads: int) -> Iterator[Unit]:
        """Yield a job for each seed of which something is missing."""
        wanted = set(missing)
        for seed in range(len(self._plan.seeds)):
            prefix = self._plan.prefix_id(seed)
            arms = tuple(arm for arm in self._of(seed) if str(arm) in wanted)
            if not arms and prefix not in wanted:
                continue
            block = SeedBlock(
                self._plan.canonical(),
                seed,
                arms,
                prefix not in wanted,
                self._directory,
                self._source,
                self._signer.seed(),
                threads,
            )
            made = (*map(str, arms), *([prefix] if prefix in wanted else []))
            yield Unit(Job(_TASK, block), made)

    def unusable(self, missing: Sequence[str]) -> Mapping[str, str]:
        """Return the arms of every prefix that is to be made anew: they name the run that was there before."""
        gone = set(missing)
        return {
            str(arm): f"the run that it leaves, {self._plan.prefix_id(arm.seed)}, is not there any more"
            for arm in self._plan.arms()
            if self._plan.prefix_id(arm.seed) in gone
        }

    def _of(self, seed: int) -> Iterator[ArmName]:
        return (arm for arm in self._plan.arms() if arm.seed == seed)


def run_seed(work: SeedBlock, tell: Callable[[Any], None]) -> None:
    """Run prefix and arms of one seed; tells `start`, and `finish` or `fail`, for each."""
    from trainmem_audit.programs.block import Arm, Block, run_block

    plan: Plan = Plan.parse(work.plan, "plan")
    prefix = plan.prefix_id(work.seed)
    block = Block(
        entry=plan.program.entry,
        arguments=plan.program.arguments,
        seed=plan.seeds[work.seed],
        directory=work.directory / ARMS,
        plan=plan.digest,
        prefix=prefix,
        arms=tuple(
            Arm(
                str(arm),
                arm.intervention,
                arm.branch,
                arm.stream,
                plan.acting(arm.intervention),
                plan.horizons_of(arm.stream),
            )
            for arm in work.arms
        ),
        cwd=work.source,
        named={name: plan.acting(name) for name in (*plan.interventions, *(plan.combinations or {}))},
        probe=plan.probe.sha256,
        thin=plan.state_digests == "branch-and-horizons",
        threads=work.threads,
    )
    coming = iter([*([] if work.has_prefix else [prefix]), *map(str, work.arms)])

    def start_next() -> None:
        if (name := next(coming, None)) is not None:
            tell(("start", name))

    with workers_lock(work.directory):
        if not work.has_prefix:
            start_next()
        for ended in run_block(block, Signer.from_seed(work.signer)):
            if ended.id != prefix or not work.has_prefix:
                tell(("fail", ended.id, ended.problem) if ended.problem else ("finish", ended.id))
            start_next()
