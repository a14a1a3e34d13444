"""What a plan asks for, before anything runs: arms, steps, what its numbers of seeds and streams can and cannot show.

Not here: whether the plan is right (`study.plan`), and how long a step takes (`study.measure`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

from trainmem_audit.backflows import cells_of
from trainmem_audit.canonical import parse_float_text
from trainmem_audit.documents.estimates import Estimates
from trainmem_audit.documents.plan import Plan
from trainmem_audit.errors import UsageError
from trainmem_audit.intervals import power, smallest_p
from trainmem_audit.interventions import text_of
from trainmem_audit.study.plan import Declared
from trainmem_audit.text import duration_text, safe_text, size_text

__all__ = ["Measured", "Outlook", "outlook", "outlook_text", "warnings"]

_LABEL = 14


@dataclass(frozen=True)
class Measured:
    """What a step of the training costs when it is recorded: seconds, bytes on the disk; and seconds of each start."""

    seconds: float
    bytes: float
    start: float = 0.0


@dataclass(frozen=True)
class Outlook:
    """How much a plan asks for.

    Parameters
    ----------
    arms:
        Runs to be recorded, without the prefixes that programs share.
    prefixes:
        Runs that arms leave; none for a script, whose arms are whole reruns.
    steps:
        Steps in all. A script takes as many as it likes, so these are the least.
    """

    arms: int
    prefixes: int
    steps: int
    at_least: bool


def outlook(plan: Plan) -> Outlook:
    """Return how much a plan asks for."""
    lengths = {stream: max(plan.horizons_of(stream), default=0) for stream in range(plan.noise_streams)}
    arms = list(plan.arms())
    beyond = sum(lengths[arm.stream] for arm in arms)
    if plan.program.kind == "factory":
        prefixes = len(plan.seeds)
        return Outlook(len(arms), prefixes, prefixes * max(plan.branch_steps) + beyond, at_least=False)
    return Outlook(len(arms), 0, beyond + sum(arm.branch for arm in arms), at_least=True)


def warnings(plan: Plan) -> Iterator[str]:
    """Yield what the plan cannot show, a sentence each."""
    seeds, alpha = len(plan.seeds), parse_float_text(plan.analysis.alpha)
    if seeds == 1:
        yield "one seed: no interval and no test, since the seed is the unit"
    elif smallest_p(seeds) > alpha:
        needed = next(number for number in range(seeds, 64) if smallest_p(number) <= alpha)
        yield (
            f"{seeds} seeds: no test that flips the signs of seeds can come below p = {smallest_p(seeds):.4g}, "
            f"and alpha is {alpha:g}; it takes {needed} seeds"
        )
    if plan.noise_streams < 2:
        yield "one noise stream: no fork floor, so no law effect; what is measured holds for these paths only"
    elif plan.fewer_streams is not None and plan.fewer_streams.streams < 2:
        yield f"beyond horizon {plan.fewer_streams.after} there is one noise stream: pathwise distances only"
    numbers = [int(seed) for seed in plan.seeds]
    if seeds > 1 and all(abs(b - a) == 1 for a, b in itertools.pairwise(numbers)):
        yield "neighbouring seeds: `seed + epoch` of one may be that of another; `seeds = N` draws unrelated ones"
    if plan.probe.disjoint is None:
        yield "nothing is said of how the probe is known to be disjoint from training: [probe] disjoint"
    if plan.program.kind != "factory":
        yield "a script is rerun from its start for every arm; a program is branched, and so far cheaper"


def outlook_text(
    declared: Declared, measured: Measured | None = None, workers: int = 1, pilot: Estimates | None = None
) -> str:
    """Return what `study plan` prints; `pilot` are the estimates of a smaller study of the same kind."""
    powers = () if pilot is None else tuple(power_lines(declared.plan, pilot))
    return "\n".join(_lines(declared, measured, workers, powers))


def power_lines(plan: Plan, pilot: Estimates) -> Iterator[str]:
    """Yield the chance that each contrast is found where the primary looks, if the pilot saw it as it is.

    Raises
    ------
    UsageError
        If the pilot has nothing there.
    """
    primary, units = plan.primary, len(plan.seeds)
    alpha = parse_float_text(plan.analysis.alpha)
    found = [
        item
        for item in pilot.estimates
        if (item.estimand, item.observable, item.horizon) == (primary.estimand, primary.observable, primary.horizon)
    ]
    if not found:
        expected = f"{primary.estimand} on {primary.observable}, {primary.horizon} steps after the branch"
        raise UsageError("the pilot says nothing of what the plan asks", where="--pilot", expected=expected)
    for item in found:
        said = power([parse_float_text(text) for text in item.per_unit or ()], units, alpha)
        chance = (
            f"{said.estimated:.2f}, at the worst {said.cautious:.2f}" if not math.isnan(said.estimated) else "unknown"
        )
        yield f"{item.contrast}: {chance} with {units} seeds (pilot of {item.units}, branch {item.branch_step})"


def _smallest(plan: Plan) -> str:
    seeds, streams = len(plan.seeds), plan.noise_streams
    flipped = f"{smallest_p(seeds):.4g} by flipping {seeds} seeds"
    if streams < 2:
        return flipped
    return f"{smallest_p(seeds, streams):.4g} for law effects ({seeds} seeds × {streams} streams), {flipped} otherwise"


def _lines(declared: Declared, measured: Measured | None, workers: int, powers: tuple[str, ...]) -> Iterator[str]:
    plan = declared.plan
    found = outlook(plan)
    yield _row("study", plan.name)
    yield _row("plan", plan.digest)
    yield _row("program", " ".join([plan.program.kind, plan.program.entry, *plan.program.arguments]))
    yield _row(
        "arms",
        f"{found.arms} = {len(plan.seeds)} seeds × {len(plan.branch_steps)} branches × {plan.noise_streams} noise "
        f"streams × {len(plan.treatments)} treatments" + (f", and {found.prefixes} prefixes" * (found.prefixes > 0)),
    )
    for name in plan.treatments:
        yield _row("", f"{name}: {' + '.join(text_of(item) for item in plan.acting(name))}")
    yield _row("branches", f"after {_listed(plan.branch_steps)} steps; horizons {_listed(plan.horizons)}")
    yield _row("steps", f"{'at least ' * found.at_least}{found.steps}")
    yield _row("time", _time(found, measured, workers))
    yield _row("disk", "unknown" if measured is None else f"about {size_text(round(measured.bytes * found.steps))}")
    yield from (_row("back-flow", text) for text in _back_flow(plan))
    for item in plan.contrasts:
        yield _row("contrast", f"{item.name}: {item.treated} against {item.control}, {item.family}")
    primary = plan.primary
    yield _row(
        "primary",
        f"{primary.estimand} of {primary.contrast} on {primary.observable}, {primary.horizon} steps after "
        f"{primary.branch_step}; margin {parse_float_text(plan.analysis.equivalence_margin):g}",
    )
    yield _row("smallest p", _smallest(plan))
    yield from (_row("power", text) for text in powers)
    for note in declared.notes:
        yield _row("filled in", note)
    for warning in warnings(plan):
        yield _row("warning", warning)


def _back_flow(plan: Plan) -> Iterator[str]:
    part, seeds = plan.back_flow, len(plan.seeds)
    if part is None:
        return
    yield f"{part.entry}: {seeds} seeds, {part.repeats} repeats each, on a base of {part.base_steps} steps"
    for cell in cells_of(part):
        yield f"{cell.label}: {seeds * cell.steps} micro-steps of {part.batch} samples"


def _time(found: Outlook, measured: Measured | None, workers: int) -> str:
    if measured is None:
        return "unknown; --measure takes some steps to find out"
    runs = found.arms if found.prefixes == 0 else found.prefixes
    seconds = (measured.seconds * found.steps + measured.start * runs) / workers
    more = "at least " if found.at_least else "about "
    each = f"{1000 * measured.seconds:.1f} ms a step and {measured.start:.1f} s a start"
    return f"{more}{duration_text(seconds)} with {workers} workers, at {each}"


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def _row(label: str, text: str) -> str:
    return f"{label:<{_LABEL}}{safe_text(text)}"
