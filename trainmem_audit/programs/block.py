"""Runs one seed of a study: the prefix, and every arm that leaves it, each as a recorded run.

The prefix is trained once; at each branch step the whole state is copied, and every arm starts from that copy, so an
arm is bit-equal to one that was trained from the start. Not here: which arms there are (the plan), and processes.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from trainmem_audit.canonical import sha256_hex
from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.manifest import Statement
from trainmem_audit.documents.steplog import Begin, Inventory, Step
from trainmem_audit.errors import ReplayError, TrainmemAuditError, UsageError
from trainmem_audit.intervening import Surroundings, apply, held_by
from trainmem_audit.interventions import fork_of
from trainmem_audit.keys import Signer
from trainmem_audit.privacy import known_identity, redact_argv
from trainmem_audit.programs.armlog import ArmLog, Setting
from trainmem_audit.programs.live import Live, State, entry_name, start_streams
from trainmem_audit.programs.probefile import probe_bytes
from trainmem_audit.programs.program import Program, find_factory, parse_arguments
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.runs import read_lines
from trainmem_audit.sources.base import Saved

__all__ = ["Arm", "Block", "Ended", "record_program", "run_block", "started"]


@dataclass(frozen=True)
class Arm:
    """One arm.

    Parameters
    ----------
    name:
        What the plan calls what acts in it.
    acting:
        What acts at the branch, in order.
    stream:
        Its noise stream; every random stream is redrawn for those after 0.
    horizons:
        After how many steps observations are taken; the last one ends it.
    """

    id: str
    name: str
    branch: int
    stream: int
    acting: tuple[Intervention, ...]
    horizons: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """All arms of one seed.

    Parameters
    ----------
    entry, arguments:
        The factory (`find_factory`) and its own arguments (`parse_arguments`); `{seed}` in one stands for the seed.
    seed:
        An integer, as text.
    directory:
        The directory that holds one run directory for each stretch.
    plan:
        SHA-256 of the plan's canonical form.
    arms:
        Those that are still to be run; the prefix is run again where others have been, and must come out the same.
    named:
        The interventions of the plan by name, for those that look at another arm.
    probe:
        SHA-256 of the file of the probe that the plan names (`probefile.probe_bytes`).
    thin:
        Digest the state of arms only around the branch and at the horizons.
    """

    entry: str
    arguments: tuple[str, ...]
    seed: str
    directory: Path
    plan: str
    prefix: str
    arms: tuple[Arm, ...]
    cwd: Path
    named: Mapping[str, tuple[Intervention, ...]] = field(default_factory=dict)
    thin: bool = True
    threads: int = 1
    probe: str = ""


@dataclass
class Ended:
    """What became of a stretch: how many steps it took, how long, and why it failed, if it did."""

    id: str
    steps: int
    seconds: float
    problem: str = ""


@dataclass(frozen=True)
class _Branch:
    """The state at a branch step, and what an arm's record says of where it comes from.

    `earlier` are the components so many steps before it, where some intervention goes back to them.
    """

    state: State
    run: str
    chain: str
    step: int
    earlier: Mapping[int, Mapping[str, Saved]]


def run_block(block: Block, signer: Signer) -> Iterator[Ended]:
    """Run the prefix and the arms; give each when it has ended.

    Raises
    ------
    UsageError
        If there is no such program, or its `step` is none.
    """
    arguments = [text.replace("{seed}", block.seed) for text in block.arguments]
    with started(block.entry, arguments, block.seed, block.directory, block.cwd, threads=block.threads) as (
        live,
        setting,
    ):
        found = sha256_hex(probe_bytes(live.program.probe)) if block.probe else ""
        if found != block.probe:
            remedy = "`study probe` writes it anew, for a new study"
            raise UsageError(
                "the probe of the program is not that of the plan", expected=block.probe, got=found, remedy=remedy
            )
        yield from _run(block, live, setting, signer)


def record_program(
    entry: str,
    arguments: Sequence[str],
    seed: str,
    steps: int,
    run_dir: Path,
    cwd: Path,
    signer: Signer,
    snapshot_at: Sequence[int] = (),
) -> Statement:
    """Record the first `steps` steps of a program, by itself.

    Raises
    ------
    UsageError
        If there is no such program, or its `step` is none.
    """
    with started(entry, arguments, seed, run_dir, cwd) as (live, setting):
        log = ArmLog(live, setting, run_dir, {}, copy_source=True, snapshot_at=snapshot_at)
        try:
            for _ in range(steps):
                log.step()
            return log.finish(signer)
        except BaseException:
            log.abandon()
            raise


@contextmanager
def started(
    entry: str,
    arguments: Sequence[str],
    seed: str,
    directory: Path,
    cwd: Path,
    program_of: Callable[[Any], Program] = lambda made: made,
    threads: int | None = None,
) -> Iterator[tuple[Live, Setting]]:
    """Give a program that is ready for its first step; `program_of` finds it in what the factory returns.

    The number of threads is `threads` meanwhile, if that is said.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(before if threads is None else threads)
    try:
        with _ready(entry, arguments, seed, directory, cwd, program_of) as found:
            yield found
    finally:
        torch.set_num_threads(before)


@contextmanager
def _ready(
    entry: str,
    arguments: Sequence[str],
    seed: str,
    directory: Path,
    cwd: Path,
    program_of: Callable[[Any], Program],
) -> Iterator[tuple[Live, Setting]]:
    factory, file = find_factory(entry, cwd)
    start_streams(seed)  # after the import, which may draw, and happens once in a process
    command = {
        "kind": "program",
        "entry": entry_name(entry, file, cwd),
        "arguments": [item.to_json() for item in redact_argv([f"seed={seed}", *arguments], cwd)],
        "hashSeed": os.environ.get("PYTHONHASHSEED", "random"),
    }
    known_identity()  # it reads files, which are no inputs of the program
    setting = Setting(directory, cwd, file, command)
    live = Live(lambda: program_of(factory(seed=int(seed), **parse_arguments(arguments))))
    try:
        yield live, setting
    finally:
        live.close()
        setting.close()


def _run(block: Block, live: Live, setting: Setting, signer: Signer) -> Iterator[Ended]:
    began = time.perf_counter()
    branches = _prefix(block, live, setting, signer)
    yield Ended(block.prefix, max(branches), time.perf_counter() - began)
    for arm in block.arms:
        began = time.perf_counter()
        problem = ""
        try:
            live.put_back(branches[arm.branch].state)
            _arm(block, arm, branches[arm.branch], live, setting, signer)
        except (TrainmemAuditError, ArithmeticError, RuntimeError, ValueError) as error:
            problem = f"{type(error).__name__}: {error}"
        yield Ended(arm.id, max(arm.horizons), time.perf_counter() - began, problem)


def _prefix(block: Block, live: Live, setting: Setting, signer: Signer) -> dict[int, _Branch]:
    """Train up to the last branch step; return the state at each.

    Where the prefix was recorded before, what comes out now must be what it says.
    """
    wanted = sorted({arm.branch for arm in block.arms})
    if not wanted:
        raise UsageError("a block without arms", where=block.prefix)
    kept = block.directory / block.prefix
    again = (kept / "run.json").exists()
    run_dir = _fresh(block.directory / f"{block.prefix}.again" if again else kept)
    study = {"plan": block.plan, "arm": {"id": block.prefix, "seed": block.seed}}
    log = ArmLog(live, setting, run_dir, {"study": study}, copy_source=True)
    found: dict[int, State] = {}
    looked_at = _looked_at(block)
    earlier: dict[int, dict[str, Saved]] = {}
    try:
        for step in range(wanted[-1] + 1):
            if step in wanted:
                found[step] = live.copy()
            if step in looked_at:
                earlier[step] = live.components()
            if step < wanted[-1]:
                log.step()
        log.finish(signer)
    except BaseException:
        log.abandon()
        raise
    now = _places(run_dir, wanted)
    then = _places(kept, wanted) if again else now
    if again:
        shutil.rmtree(run_dir)
    for step in wanted:
        if step not in then.steps or then.steps[step][1:] != now.steps[step][1:]:
            raise ReplayError(
                f"the prefix {block.prefix} comes out differently from its record at step {step}: "
                "what the program does does not follow from its seed"
            )
    return {
        step: _Branch(
            found[step],
            then.run,
            then.steps[step][0],
            step,
            {step - place: kept for place, kept in earlier.items() if place <= step},
        )
        for step in wanted
    }


def _looked_at(block: Block) -> set[int]:
    """Return the steps to whose state some intervention goes back."""
    return {
        arm.branch - (item.steps or 0)
        for arm in block.arms
        for item in arm.acting
        if item.primitive in ("lag", "age") and (item.steps or 0) <= arm.branch
    }


@dataclass
class _Places:
    """Which run a prefix is; before each branch step the last link of its log, its state, its random streams."""

    run: str = ""
    steps: dict[int, tuple[str, dict[str, str], dict[str, str]]] = field(default_factory=dict)


def _places(run_dir: Path, wanted: Sequence[int]) -> _Places:
    found = _Places()
    with DirectoryReader(run_dir) as reader:
        done = 0
        for line in read_lines(reader):
            if isinstance(line, Begin):
                found.run = line.nonce
            if isinstance(line, Step):
                done = line.i + 1
            if isinstance(line, Step) and done in wanted:
                found.steps[done] = (line.chain, line.state, line.rng)
            elif isinstance(line, Inventory) and done == 0 and 0 in wanted:
                found.steps[0] = (line.chain, line.state or {}, {})
    return found


def _arm(block: Block, arm: Arm, branch: _Branch, live: Live, setting: Setting, signer: Signer) -> None:
    ends = max(arm.horizons)
    whole = {0, *(horizon - 1 for horizon in arm.horizons)}
    study = {
        "plan": block.plan,
        "arm": {
            "id": arm.id,
            "seed": block.seed,
            "stream": arm.stream,
            "branchStep": arm.branch,
            "intervention": arm.name,
        },
        "branch": {"run": branch.run, "chainHead": branch.chain, "step": branch.step},
    }
    state_at = whole.__contains__ if block.thin else None
    run_dir = _fresh(block.directory / arm.id)
    log = ArmLog(live, setting, run_dir, {"study": study}, state_at=state_at)
    try:
        around = _surroundings(block, arm, branch, live)
        for item in (*fork_of(block.seed, arm.branch, arm.stream), *arm.acting):
            log.intervene(item, around)
        for step in range(ends + 1):
            if step in arm.horizons:
                log.observe()
            if step < ends:
                log.step()
        log.finish(signer)
    except BaseException:
        log.abandon()
        raise


def _surroundings(block: Block, arm: Arm, branch: _Branch, live: Live) -> Surroundings:
    """Return what the interventions of an arm need beside the memory."""
    others = {name: _states_after(block, arm, acting, branch, live) for name, acting in _others(block, arm).items()}

    def earlier(component: str, steps: int) -> Mapping[str, Saved]:
        if steps not in branch.earlier:
            raise UsageError("the run is not that old", where=component, expected=f"at most {branch.step} steps back")
        return held_by(branch.earlier[steps], component)

    def other(name: str, component: str) -> Mapping[str, Saved]:
        if name not in others:
            raise UsageError("no intervention of this name", where=component, got=name)
        return held_by(others[name], component)

    return replace(surroundings(live), earlier=earlier, arm=other)


def surroundings(live: Live) -> Surroundings:
    """Return what interventions find beside the memory of a program by itself."""
    return Surroundings(
        order=live.program.order,
        initial=lambda component: held_by(live.initial, component),
        batches=live.passes,
    )


def _others(block: Block, arm: Arm) -> dict[str, tuple[Intervention, ...]]:
    names = [item.other for item in arm.acting if item.primitive == "equalise"]
    return {name: block.named[name] for name in names if name is not None and name in block.named}


def _states_after(
    block: Block, arm: Arm, acting: Sequence[Intervention], branch: _Branch, live: Live
) -> Mapping[str, Saved]:
    """Return the components of another arm right after its branch; the program is put back."""
    session = live.session
    live.record(None)
    for item in (*fork_of(block.seed, arm.branch, arm.stream), *acting):
        apply(item, live.memory, live.streams, surroundings(live))
    found = live.components()
    live.put_back(branch.state)
    live.record(session)
    return found


def _fresh(path: Path) -> Path:
    """Make room for a stretch that has been run before, or half."""
    shutil.rmtree(path, ignore_errors=True)
    return path
