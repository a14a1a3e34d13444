"""The back-flow part of a study, read from its records: which runs it has, and their numbers.

A run whose log does not bear out the recipe, or does not start where its base ends, is left out and said. No torch. Not
here: what must stand in a log and what is computed (`witnesses`).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainmem_audit.backflows import Cell, base_id, cells_of
from trainmem_audit.canonical import parse_float_text, sha256_hex
from trainmem_audit.documents import estimates as documents
from trainmem_audit.documents.backflow import BackFlowPlan
from trainmem_audit.documents.plan import Plan
from trainmem_audit.documents.steplog import End, Step
from trainmem_audit.errors import FormatError
from trainmem_audit.observations import read_observation
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.runs import read_lines
from trainmem_audit.study.arms import ArmRecord
from trainmem_audit.study.layout import ARMS
from trainmem_audit.witnesses import CellLog, Witness, cell_witness, estimates, read_log

__all__ = ["back_flow_arms", "back_flow_estimates", "summary_line"]

_MOST_OBSERVED = 2**30
_MOST_RUNS = 100_000
Record = Callable[[str], ArmRecord | str]


def back_flow_arms(plan: Plan) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the id of every run of the back-flow part, and its members of `documents.estimates.Arm`."""
    part = plan.back_flow
    if part is None:
        return
    for number, seed in enumerate(plan.seeds):
        yield base_id(number), {"seed": seed}
        for cell in cells_of(plan.back_flow):
            yield cell.run_id(number), {"seed": seed, "branch_step": part.base_steps, "intervention": cell.arm_name}


def back_flow_estimates(plan: Plan, directory: Path, record: Record) -> tuple[documents.BackFlow, ...]:
    """Return the numbers of the back-flow part of a study from the records in its directory.

    Parameters
    ----------
    record:
        Returns the record of a run, looked at in full, or why there is none that can be used.

    Raises
    ------
    FormatError
        If a file is not what was signed, or predictions are not what the plan demands.
    """
    part, found = plan.back_flow, []
    if part is None:
        return ()
    cells = cells_of(part)
    if len(plan.seeds) * len(cells) > _MOST_RUNS:
        got = f"{len(plan.seeds)} seeds × {len(cells)}"
        raise FormatError("a plan that asks for too many runs", expected=f"at most {_MOST_RUNS}", got=got)
    task = next(iter(plan.observables.values())).task
    alpha = parse_float_text(plan.analysis.alpha)
    bases = [_base(directory, record, seed, part) for seed in range(len(plan.seeds))]
    for cell in cells:
        seeds = [
            base if isinstance(base, str) else _witness(cell, seed, plan, base, directory, record, task)
            for seed, base in enumerate(bases)
        ]
        found += list(estimates(cell, plan.seeds, seeds, task, alpha, plan.digest))
    return tuple(found)


def summary_line(item: documents.BackFlow) -> str:
    """Return what a terminal shows of one regime: the twin witness first, then the contrasts, with their intervals."""
    left_out = f", {len(item.dropped)} left out" if item.dropped else ""
    seeds = f"({item.delta.units} seeds{left_out})"
    if item.bitwise_equal:
        return f"{item.name}: bitwise equal, before B and after it {seeds}"
    parts = [f"D1 {_shown(item.first)}"]
    if item.twin is not None:
        parts.append(f"twin witness {_shown(item.twin)}")
    if item.twin_ratio is not None:
        parts.append(f"= D1 × {_shown(item.twin_ratio)}")
    for name, value in (("common", item.against_common), ("break", item.against_break)):
        if value is not None:
            parts.append(f"Δ - Δ({name}) {_shown(value)}")
    return f"{item.name}: {'; '.join(parts)} {seeds}"


def _shown(value: documents.Measured) -> str:
    number = f"{parse_float_text(value.value):.3g}"
    if value.interval is None:
        return number
    low, high = (parse_float_text(text) for text in (value.interval.low, value.interval.high))
    return f"{number} [{low:.3g}, {high:.3g}]"


@dataclass(frozen=True)
class _BaseEnd:
    """The last step of a base: its chain value, and the state that it left."""

    chain: str
    state: Mapping[str, str]


def _base(directory: Path, record: Record, seed: int, part: BackFlowPlan) -> _BaseEnd | str:
    name = base_id(seed)
    known = record(name)
    if isinstance(known, str):
        return f"{name}: {known}"
    chain, done = "", 0
    with DirectoryReader(directory / ARMS / name) as reader:
        for line in read_lines(reader):
            if isinstance(line, Step):
                chain, done = line.chain, line.i + 1
            elif isinstance(line, End):
                if done != part.base_steps:
                    return f"{name}: {done} steps instead of {part.base_steps}"
                return _BaseEnd(chain, line.state)
    return f"{name}: its log has no end"


def _witness(
    cell: Cell, seed: int, plan: Plan, base: _BaseEnd, directory: Path, record: Record, task: str
) -> Witness | str:
    name = cell.run_id(seed)
    known = record(name)
    if isinstance(known, str):
        return f"{name}: {known}"
    signed = {subject.name: subject.digest.sha256 for subject in known.statement.subject}
    with DirectoryReader(directory / ARMS / name) as reader:
        log = read_log(read_lines(reader), cell, plan.seeds[seed])
        problems = [*log.problems, *_against_base(log, base)]
        if problems:
            return f"unpaired: {problems[0]}"

        def observe(repeat: int) -> Mapping[str, Any]:
            line = log.observations[repeat]
            data = reader.read(line.file, _MOST_OBSERVED)
            if sha256_hex(data) != signed.get(line.file):
                raise FormatError("not the file that was signed", where=f"{name}: {line.file}")
            return read_observation(lambda: io.BytesIO(data), len(data), f"{name}: {line.file}")

        return cell_witness(cell, task, observe)


def _against_base(log: CellLog, base: _BaseEnd) -> Iterator[str]:
    """Yield where a run did not start from the end of the base: link of its log, weights."""
    if log.base_chain != base.chain:
        yield "base: the run names another step as that which it starts from"
    start, end = (
        {name: digest for name, digest in state.items() if name.startswith("model.")}
        for state in (log.base_state, base.state)
    )
    if start != end:
        yield "base: the run starts from other weights"
