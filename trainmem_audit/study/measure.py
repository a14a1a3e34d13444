"""What a step of a study's training costs when it is recorded, found by taking some: for `study plan --measure`.

Not here: the exact cost (a warm-up is short, and other work on the machine counts in).
"""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from pathlib import Path

from trainmem_audit.documents.plan import ArmName
from trainmem_audit.errors import UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.recording.process import LaunchedRun
from trainmem_audit.steplog import STEP_FILE, iter_lines
from trainmem_audit.study.outlook import Measured
from trainmem_audit.study.plan import Declared
from trainmem_audit.study.scripts import HASH_SEED, ScriptArm, launch_order
from trainmem_audit.twice.tree import Trees

__all__ = ["measure"]

_FIRST, _LAST = 5, 30
"""The steps between which time is taken: the first ones make caches and buffers."""
_TIMEOUT = 300.0
_STEP = b',"t":"step"'


def measure(declared: Declared, links: tuple[Path, ...] = ()) -> Measured:
    """Take some steps of the training, recorded in a directory that is removed again.

    Raises
    ------
    UsageError
        If it cannot be run, or takes too few steps.
    """
    with tempfile.TemporaryDirectory(prefix="study-", ignore_cleanup_errors=True) as folder:
        place = Path(folder).resolve()
        return (
            _of_program(declared, place)
            if declared.plan.program.kind == "factory"
            else _of_script(declared, place, links)
        )


def _of_program(declared: Declared, place: Path) -> Measured:
    """Record two stretches of different lengths: what both need to start drops out of the difference."""
    from trainmem_audit.programs.block import record_program

    plan, signer = declared.plan, Signer.from_seed(secrets.token_bytes(32))
    seed = plan.seeds[0]
    arguments = [text.replace("{seed}", seed) for text in plan.program.arguments]
    found = []
    for number, steps in enumerate((_FIRST, _FIRST, _LAST)):
        run_dir = place / str(number)
        began = time.monotonic()
        record_program(plan.program.entry, arguments, seed, steps, run_dir, declared.directory, signer)
        found.append((time.monotonic() - began, _size(run_dir)))
    (first, _), (short, small), (long, large) = found  # the first one imports what the others find
    seconds = max(0.0, long - short) / (_LAST - _FIRST)
    return Measured(seconds, max(0, large - small) / (_LAST - _FIRST), max(0.0, first - _FIRST * seconds))


def _of_script(declared: Declared, place: Path, links: tuple[Path, ...]) -> Measured:
    plan = declared.plan
    control = next(name for name, item in plan.interventions.items() if item.primitive == "carry")
    name = ArmName(0, plan.branch_steps[0], 0, control)
    arm = ScriptArm(plan.canonical(), name, place, declared.directory, b"", links, None, None)
    run_dir = place / "run"
    run_dir.mkdir()
    (place / "work").mkdir()
    trees = Trees(place / "work", declared.directory, links)
    tree = trees.fresh()
    arguments = [text.replace("{seed}", plan.seeds[0]) for text in plan.program.arguments]
    order = launch_order(arm, plan, run_dir, tree, arguments)
    order["command"].pop("interventions", None)
    order.pop("observe")
    began = time.monotonic()
    times: dict[int, float] = {}
    with LaunchedRun(
        order,
        [trees.argument(text) for text in arguments],
        tree=tree,
        environment={**os.environ, "PYTHONHASHSEED": HASH_SEED, "PYTHONDONTWRITEBYTECODE": "1"},
        output=place / "output",
        timeout=_TIMEOUT,
        name="script",
    ) as running:
        for line, whole in iter_lines(running.chunks(), STEP_FILE):
            if whole and _STEP in line:
                times[len(times)] = time.monotonic()
            if len(times) > _LAST:
                break
        size = _size(run_dir)
        said = running.last_words()
    last = len(times) - 1
    if last <= _FIRST:
        raise UsageError("too few steps to measure", where=plan.program.entry, expected=f"more than {_FIRST}", got=said)
    seconds = (times[last] - times[_FIRST]) / (last - _FIRST)
    return Measured(seconds, size / len(times), times[0] - began)


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
