"""Arms of an unmodified script: each a whole rerun under the recorder, with the intervention injected at the branch.

Each runs in a fresh copy of the directory in which the study was declared, so that no arm meets the files of another.
All arms of a seed start from the same entropy, under the same hash seed and with the same number of threads; noise
stream 0 goes on as the script does, and in every other all random streams are redrawn at the branch, by a seed that
arms of the same seed, branch and stream share. Not here: when which arm is run (`runner`).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainmem_audit.assemble import read_log, sign_run
from trainmem_audit.canonical import sha256_hex
from trainmem_audit.contract import starts_from
from trainmem_audit.documents.plan import ArmName, Plan
from trainmem_audit.documents.steplog import Command
from trainmem_audit.errors import TrainmemAuditError
from trainmem_audit.interventions import fork_of, text_of
from trainmem_audit.keys import Signer
from trainmem_audit.privacy import redact_argv
from trainmem_audit.recording.process import LaunchedRun
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.steplog import STEP_FILE, LogSummary, iter_lines
from trainmem_audit.study.executor import Job
from trainmem_audit.study.layout import ARMS, PROBE_FILE, WORK
from trainmem_audit.study.ledger import workers_lock
from trainmem_audit.study.runner import Unit
from trainmem_audit.study.worker import GROUPS
from trainmem_audit.twice.tree import Trees

__all__ = ["HASH_SEED", "ScriptArm", "ScriptWork", "launch_order", "run_arm"]

HASH_SEED = "0"
"""PYTHONHASHSEED of every arm: the iteration order of sets is no part of what is studied."""

_TASK = f"{__name__}:run_arm"
_STEP = b',"t":"step"'
_NEVER = 10.0 * 365 * 86400
_EVERY = 50
_SEED = "{seed}"


@dataclass(frozen=True)
class ScriptArm:
    """What a worker needs to run one arm."""

    plan: bytes
    arm: ArmName
    directory: Path
    source: Path
    signer: bytes
    links: tuple[Path, ...]
    facts: Mapping[str, Any] | None
    contract: Mapping[str, Any] | None


class ScriptWork:
    """The arms of a plan whose program is a script or a module (`runner.Work`): a job for each."""

    def __init__(
        self,
        plan: Plan,
        source: Path,
        directory: Path,
        signer: Signer,
        links: tuple[Path, ...] = (),
        facts: Mapping[str, Any] | None = None,
        contract: Mapping[str, Any] | None = None,
    ) -> None:
        self._plan = plan
        self._common = {
            "plan": plan.canonical(),
            "directory": directory.absolute(),
            "source": source.absolute(),
            "signer": signer.seed(),
            "links": links,
            "facts": facts,
            "contract": contract,
        }

    def arms(self) -> tuple[str, ...]:
        """Return the ids of all arms."""
        return tuple(map(str, self._plan.arms()))

    def units(self, missing: Sequence[str], threads: int) -> Iterator[Unit]:
        """Yield a job for each missing arm."""
        wanted = set(missing)
        for arm in self._plan.arms():
            if str(arm) in wanted:
                yield Unit(Job(_TASK, ScriptArm(arm=arm, **self._common)), (str(arm),))  # type: ignore[arg-type]

    def unusable(self, missing: Sequence[str]) -> Mapping[str, str]:
        """Return nothing: reruns are independent of one another."""
        return {}


def run_arm(work: ScriptArm, tell: Callable[[Any], None]) -> None:
    """Run one arm and sign its record; tells `start`, `steps`, and `finish` or `fail`."""
    name = str(work.arm)
    with workers_lock(work.directory):
        tell(("start", name))
        try:
            reason = _run(work, lambda steps: tell(("steps", name, steps)))
        except TrainmemAuditError as error:
            reason = str(error)
        except OSError as error:
            reason = f"{error.strerror or error}: {error.filename or ''}"
        tell(("fail", name, reason) if reason else ("finish", name))


def _run(work: ScriptArm, count: Callable[[int], None]) -> str:
    """Run the script and sign what was recorded; return why it is not what the plan asks for, if so."""
    plan: Plan = Plan.parse(work.plan, "plan")
    run_dir = work.directory / ARMS / str(work.arm)
    run_dir.mkdir(parents=True)
    root = work.directory / WORK / f"{os.getpid()}-{secrets.token_hex(4)}"
    root.mkdir(parents=True)
    trees = Trees(root, work.source, work.links, (work.directory,))
    tree = trees.fresh()
    arguments = [text.replace(_SEED, plan.seeds[work.arm.seed]) for text in plan.program.arguments]
    with LaunchedRun(
        launch_order(work, plan, run_dir, tree, arguments),
        [trees.argument(text) for text in arguments],
        tree=tree,
        environment={**os.environ, "PYTHONHASHSEED": HASH_SEED, "PYTHONDONTWRITEBYTECODE": "1"},
        output=root / "output",
        timeout=_NEVER,
        name="script",
    ) as running:
        GROUPS.add(running.group)
        try:
            _watch(running, count)
            ended = running.exit_code
            said = running.last_words()
        finally:
            GROUPS.discard(running.group)
    with DirectoryReader(run_dir) as reader:
        log = read_log(reader)
    if log.begin is not None:
        sign_run(run_dir, log, Signer.from_seed(work.signer))
    if ended != 0:
        return f"the script failed: {said}"
    return _shortfall(plan, work.arm, log)


def _watch(running: LaunchedRun, count: Callable[[int], None]) -> None:
    steps = 0
    for line, whole in iter_lines(running.chunks(), STEP_FILE):
        if whole and _STEP in line:
            steps += 1
            if steps % _EVERY == 0:
                count(steps)


def _shortfall(plan: Plan, arm: ArmName, log: LogSummary) -> str:
    """Return what the record lacks of what the plan asks for, if anything."""
    needed = arm.branch + max(plan.horizons_of(arm.stream), default=0)
    if log.steps < needed:
        return f"the script took {log.steps} steps, and the plan needs {needed}"
    if log.end is None:
        return "its recording broke off"
    made = len(log.interventions)
    wanted = len(planned(plan, arm))
    return "" if made == wanted else f"{made} of {wanted} interventions were made"


def planned(plan: Plan, arm: ArmName) -> list[str]:
    """Return the text forms of all that is done at the branch of an arm: the fork of its stream, then what acts."""
    fork = fork_of(plan.seeds[arm.seed], arm.branch, arm.stream)
    return [text_of(item, arm.branch) for item in (*fork, *plan.acting(arm.intervention))]


def launch_order(work: ScriptArm, plan: Plan, run_dir: Path, tree: Path, arguments: list[str]) -> dict[str, Any]:
    """Return what the launcher must do to run an arm (`recording.launcher.interpreter_command`)."""
    program = plan.program
    kind = "module" if program.kind == "module" else "script"
    command = Command.model_validate(
        {
            "kind": kind,
            "entry": program.entry if kind == "module" else f"{{cwd}}/{program.entry}",
            "arguments": tuple(redact_argv(arguments, work.source)),
            "hash_seed": HASH_SEED,
            "interventions": tuple(planned(plan, work.arm)),
        }
    )
    target = program.entry if kind == "module" else str(tree / program.entry)
    return {
        "kind": kind,
        "entry": target,
        "argv0": program.entry if kind == "script" else target,
        "runDir": str(run_dir),
        "shownDir": str(work.arm),
        "cwd": str(tree),
        "nonce": secrets.token_hex(16),
        "command": command.to_json(),
        "quiet": True,
        "starts": starts_from(plan.seeds[work.arm.seed]),
        "facts": work.facts,
        "contract": work.contract,
        "study": {
            "plan": sha256_hex(work.plan),
            "arm": {
                "id": str(work.arm),
                "seed": plan.seeds[work.arm.seed],
                "stream": work.arm.stream,
                "branchStep": work.arm.branch,
                "intervention": work.arm.intervention,
            },
        },
        "observe": {
            "probe": str(work.directory / PROBE_FILE),
            "head": plan.probe.head,
            "steps": [work.arm.branch + horizon for horizon in plan.horizons_of(work.arm.stream)],
        },
        "stateAt": _state_at(plan, work.arm),
    }


def _state_at(plan: Plan, arm: ArmName) -> list[int] | None:
    """Return the steps after which the state is digested, or `None` for all of them."""
    if plan.state_digests != "branch-and-horizons":
        return None
    ends = [arm.branch, arm.branch + 1, *(arm.branch + horizon for horizon in plan.horizons_of(arm.stream))]
    return sorted({end - 1 for end in ends if end > 0})
