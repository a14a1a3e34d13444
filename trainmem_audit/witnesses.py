"""The back-flow experiment, read from its records: what the log proves of a run, and the numbers of all seeds.

`read_log` follows a step log against the recipe (`backflows`) and collects what is not as it must be. It proves

1. *interventions*: before every stretch those of the recipe acted, and nothing else anywhere;
2. *base*: A and A′ start from the same weights, with the optimizer as it was before the first step;
3. *carry*: B starts from weights and slots that A, or A′, has left; hyper-parameters never change;
4. *twins*: the same weights bit for bit, so that D1 is exactly 0, with the slots exchanged;
5. *common* and *break*: equal slots in both branches; slots as before the first step;
6. *samples* and *streams*: equal index digests and equal streams, step by step, for A and A′, and for every B (but for
   the generator of the augmentations, which A and A′ may draw from in other ways);
7. *BatchNorm*: running statistics never move.

`cell_witness` makes one witness of a seed from the predictions; `estimates` the numbers of the study. No torch. Not
here: reading files (`study.backflows`), distances (`distances`), intervals (`intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from trainmem_audit import distances, elementary
from trainmem_audit.backflows import AUGMENT, COSINES, SIMILARITIES, Cell, Placed, acting, order_gaps
from trainmem_audit.canonical import parse_float_text
from trainmem_audit.documents import estimates as documents
from trainmem_audit.documents.steplog import Begin, InterventionLine, Inventory, Line, Observe, Step
from trainmem_audit.errors import FormatError
from trainmem_audit.estimands import BackFlow
from trainmem_audit.estimation import back_flow_estimate
from trainmem_audit.seedtables import Repeat, witness

__all__ = ["CellLog", "Witness", "cell_witness", "estimates", "kinds_of", "picture", "read_log"]

Array = NDArray[Any]
Heads = Mapping[str, Array]
MARGIN: Final = 1e-3
"""The published margin within which Δ_BF counts as none."""
_MOST_PROBLEMS: Final = 20
_CORNERS: Final = ("A", "A2", "AB", "A2B")
_SIDES: Final = (("A", "AB"), ("A2", "A2B"), ("A", "A2B"), ("A2", "AB"))


def kinds_of(task: str) -> tuple[str, ...]:
    """Return the distances that are reported for a task, the primary one first."""
    return ("logit-l2",) if task == "regression" else ("total-variation", "jensen-shannon", "hellinger")


# --- what the log proves -------------------------------------------------------------------------------------------


@dataclass
class CellLog:
    """What the log of one run holds: `problems` are the clauses that it does not bear out.

    `observations` are those of the repeats, in order. `base` is the chain value and the state that it started from.
    """

    problems: list[str] = field(default_factory=list)
    observations: list[Observe] = field(default_factory=list)
    base_chain: str = ""
    base_state: dict[str, str] = field(default_factory=dict)

    def no(self, clause: str, placed: Placed | None, what: str) -> None:
        """Note what is not as it must be."""
        if len(self.problems) < _MOST_PROBLEMS:
            where = "" if placed is None else f" in repeat {placed.repeat}, {placed.stretch.name}"
            self.problems.append(f"{clause}: {what}{where}")


class _Reader:
    """Follows the lines of one run."""

    def __init__(self, cell: Cell, seed: str) -> None:
        self.found = CellLog()
        self._cell, self._seed = cell, seed
        self._coming = iter(cell.placed())
        self._now: Placed | None = None
        self._acted: list[InterventionLine] = []
        self._states: dict[int, dict[str, str]] = {}
        self._start: dict[str, dict[str, str]] = {}
        self._streams: dict[str, dict[str, str]] = {}
        self._indices: dict[tuple[str, int], str] = {}
        self._contents: dict[tuple[str, int], str] = {}
        self._drawn: dict[tuple[str, int], dict[str, str]] = {}
        self._done = 0

    def read(self, line: Line) -> None:
        match line:
            case Begin():
                branch = None if line.study is None else line.study.branch
                self.found.base_chain = "" if branch is None else branch.chain_head
            case Inventory() if self._done == 0 and line.state is not None and 0 not in self._states:
                self._states[0] = self.found.base_state = line.state
            case InterventionLine():
                self._acted.append(line)
            case Step():
                self._step(line)
            case Observe():
                self.found.observations.append(line)

    def finish(self) -> CellLog:
        if self._done != self._cell.steps or self._acted:
            self.found.no("interventions", None, f"the run ends after {self._done} of {self._cell.steps} steps")
        repeats = self._cell.plan.repeats
        if len(self.found.observations) != repeats:
            self.found.no("observations", None, f"{len(self.found.observations)} instead of {repeats}")
        return self.found

    # Stretches -----------------------------------------------------------------------------------------------------

    def _step(self, line: Step) -> None:
        if self._now is None or self._done == self._now.end:
            self._begin(next(self._coming, None))
        elif self._acted:
            self.found.no("interventions", self._now, "something acts within a stretch")
        self._acted = []
        self._done += 1
        placed = self._now
        if placed is None or line.i != self._done - 1 or line.skipped:
            self.found.no("steps", placed, f"step {line.i} is not one of the recipe")
            return
        self._samples(line, placed)
        self._draws(line, placed)
        if line.state:
            self._states[self._done] = line.state
            if _part(line.state, "model", ".batchnorm") != _part(self._states.get(0, {}), "model", ".batchnorm"):
                self.found.no("BatchNorm", placed, "running statistics have moved")
        elif self._done == placed.end:
            self.found.no("steps", placed, "the state at the end is not recorded")

    def _begin(self, placed: Placed | None) -> None:
        before, self._now = self._now, placed
        if placed is None:
            return
        if before is None or before.repeat != placed.repeat:
            self._states = {step: state for step, state in self._states.items() if step == 0}
            self._start, self._streams, self._indices, self._contents, self._drawn = {}, {}, {}, {}, {}
        expected = acting(self._cell, self._seed, placed)
        got = tuple(line.intervention for line in self._acted)
        if got != expected or any(line.i != placed.begin for line in self._acted):
            self.found.no("interventions", placed, "others acted than the recipe says")
            return
        self._state(placed, self._acted[-1].state.after)
        family = placed.stretch.instrument[0]
        streams = self._acted[-1].rng.after
        if self._streams.setdefault(family, streams) != streams:
            self.found.no("streams", placed, "random streams differ from those of the other branch")

    def _state(self, placed: Placed, after: dict[str, str]) -> None:
        """Check the state from which a stretch starts."""
        stretch, first = placed.stretch, self._states.get(0, {})
        self._start[stretch.name] = after
        weights, slots = (self._states.get(placed.step_of(origin)) for origin in (stretch.weights, stretch.slots))
        clause = "base" if not stretch.weights.stretch else "twins" if stretch.name.endswith(".twin") else "carry"
        if weights is None or _part(after, "model") != _part(weights, "model"):
            self.found.no(clause, placed, "the weights are not those that it is to start from")
        if after.get("optimizer.hyper") != first.get("optimizer.hyper"):
            self.found.no("carry", placed, "hyper-parameters have changed")
        if stretch.then == "reset":
            if _slots(after) != _slots(first):
                self.found.no("break", placed, "the optimizer is not as it was before the first step")
        elif stretch.then == "equalise":
            if _slots(after) != _slots(self._start.get("AB.common", {})):
                self.found.no("common", placed, "the branches have different slots")
        elif slots is None or _slots(after) != _slots(slots):
            self.found.no(clause, placed, "the slots are not those that it is to start with")

    def _samples(self, line: Step, placed: Placed) -> None:
        place, which = line.i - placed.begin, placed.stretch.instrument
        index = "" if line.order is None else line.order.index or ""
        if not index or self._indices.setdefault((which[0], place), index) != index:
            self.found.no("samples", placed, f"step {place} has other samples than in the other branch")
        content = "" if line.order is None else line.order.content
        if self._contents.setdefault((which, place), content) != content:
            self.found.no("samples", placed, f"step {place} has samples augmented in another way")

    def _draws(self, line: Step, placed: Placed) -> None:
        place, which = line.i - placed.begin, placed.stretch.instrument
        shared = {name: digest for name, digest in line.rng.items() if which == "B" or name != AUGMENT}
        if self._drawn.setdefault((which[0], place), shared) != shared:
            self.found.no("streams", placed, f"step {place} has drawn other random numbers than in the other branch")


def _part(state: Mapping[str, str], source: str, ending: str = "") -> dict[str, str]:
    return {name: d for name, d in state.items() if name.startswith(f"{source}.") and name.endswith(ending)}


def _slots(state: Mapping[str, str]) -> dict[str, str]:
    return {name: d for name, d in _part(state, "optimizer").items() if name != "optimizer.hyper"}


def read_log(lines: Iterable[Line], cell: Cell, seed: str) -> CellLog:
    """Return what the log of a run proves.

    Raises
    ------
    FormatError
        If a line cannot be read.
    """
    reader = _Reader(cell, seed)
    for line in lines:
        reader.read(line)
    return reader.finish()


# --- one seed ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Witness:
    """What one run says: the witness in each kind of distance, and the diagnostics, means over repeats.

    `equal`: A and A′ lead to the same bits throughout.
    """

    values: Mapping[str, BackFlow]
    equal: bool
    diagnostics: Mapping[str, float]


def cell_witness(cell: Cell, task: str, observe: Callable[[int], Heads]) -> Witness:
    """Return the witness of one run.

    Parameters
    ----------
    observe:
        Returns the predictions of a repeat by head; called once for each repeat and distance, so that memory does not
        grow with the repeats.

    Raises
    ------
    FormatError
        If a head is missing, or predictions are not what the task demands.
    """
    repeats = range(cell.plan.repeats)
    values, equal = {}, True
    for kind in kinds_of(task):
        values[kind], equal = witness(kind, task, (_repeat(observe(repeat), cell) for repeat in repeats))
    collected: dict[str, list[float]] = {}
    for repeat in repeats:
        for name, value in _diagnostics(observe(repeat), cell, repeat, task):
            collected.setdefault(name, []).append(value)
    return Witness(values, equal, {name: elementary.mean(found) for name, found in sorted(collected.items())})


def _repeat(heads: Heads, cell: Cell) -> Repeat:
    def both(ending: str) -> tuple[Array, Array]:
        return _head(heads, f"AB{ending}", cell), _head(heads, f"A2B{ending}", cell)

    first = _head(heads, "A", cell), _head(heads, "A2", cell)
    return Repeat(first, both(""), both(".break"), both(".common"), both(".twin"))


def _head(heads: Heads, name: str, cell: Cell) -> Array:
    if name not in heads:
        raise FormatError("predictions are missing", where=f"back-flow: {cell.name}", expected=f"a head {name}")
    return heads[name]


def _diagnostics(heads: Heads, cell: Cell, repeat: int, task: str) -> Iterator[tuple[str, float]]:
    kind = kinds_of(task)[0]
    corners = [_head(heads, name, cell) for name in _CORNERS]
    places = [(_CORNERS.index(one), _CORNERS.index(other)) for one, other in _SIDES]
    for (one, other), value in zip(_SIDES, distances.pairwise(kind, task, corners, places), strict=True):
        yield f"distance {one} to {other}", value
    for name in COSINES:
        if name in heads:
            yield "cosine of momentum and B's first gradient", _number(heads[name], name)
    for name, shown in zip(SIMILARITIES, ("CKA after A and A2", "CKA after AB and A2B"), strict=True):
        if name in heads:
            yield shown, _number(heads[name], name)
    for k, one, other in order_gaps(cell.regime.steps) if cell.has_diagnostics(repeat) else ():
        gap = distances.distance(kind, task, _head(heads, one, cell), _head(heads, other, cell))
        yield f"distance AB to BA, k = {k}", gap


def _number(array: Array, name: str) -> float:
    if array.shape != (1,):
        raise FormatError("not a single number", where=name, expected="(1,)", got=str(array.shape))
    return float(array[0])


# --- all seeds -----------------------------------------------------------------------------------------------------


def estimates(
    cell: Cell, seeds: Sequence[str], found: Sequence[Witness | str], task: str, alpha: float, digest: str
) -> Iterator[documents.BackFlow]:
    """Yield the numbers of one cell, for each distance.

    Parameters
    ----------
    seeds, found:
        For each seed of the plan its witness, or why there is none: such a seed is left out, and is said.
    digest:
        That of the plan: signs are drawn from it where there are too many seeds to go through all.
    """
    there = [item for item in found if isinstance(item, Witness)]
    names = sorted({name for item in there for name in item.diagnostics})
    dropped = tuple(
        documents.DroppedSeed(seed=seed, reason=item[:10_000])
        for seed, item in zip(seeds, found, strict=True)
        if isinstance(item, str)
    )
    for kind in kinds_of(task):
        rng = np.random.Generator(np.random.PCG64([int(digest, 16), 1]))
        nothing = BackFlow(math.nan, math.nan)
        diagnostics = {
            name: [item.diagnostics.get(name, math.nan) if isinstance(item, Witness) else math.nan for item in found]
            for name in names
        }
        made = back_flow_estimate(
            cell.label,
            kind,
            [item.values[kind] if isinstance(item, Witness) else nothing for item in found],
            rng,
            alpha=alpha,
            bitwise_equal=bool(there) and all(item.equal for item in there),
            diagnostics=diagnostics if kind == kinds_of(task)[0] else None,
            margin=MARGIN,
        )
        yield made.model_copy(update={"dropped": dropped}) if dropped else made


def picture(item: documents.BackFlow) -> dict[str, tuple[float, float]]:
    """Return a plane picture of the predictions A, A′, AB and A′B: classical scaling of their mean distances.

    The signs of the axes are chosen so that A lies to the left of AB, and A above A′. Empty without the distances.
    """
    sides = {("A", "A2"): item.first.value, ("AB", "A2B"): item.second.value}
    square = np.zeros((4, 4))
    for (one, other), text in sides.items():
        a, b = _CORNERS.index(one), _CORNERS.index(other)
        square[a, b] = square[b, a] = parse_float_text(text)
    for one, other in _SIDES:
        texts = (item.diagnostics or {}).get(f"distance {one} to {other}", ())
        known = [value for text in texts if math.isfinite(value := parse_float_text(text))]
        if not known:
            return {}
        a, b = _CORNERS.index(one), _CORNERS.index(other)
        square[a, b] = square[b, a] = elementary.mean(known)
    centre = np.eye(4) - 0.25
    values, vectors = np.linalg.eigh(-0.5 * centre @ (square * square) @ centre)
    plane = vectors[:, [3, 2]] * np.sqrt(np.maximum(values[[3, 2]], 0))
    plane[:, 0] *= -1 if plane[0, 0] > plane[2, 0] else 1
    plane[:, 1] *= -1 if plane[0, 1] < plane[1, 1] else 1
    return {name: (float(x), float(y)) for name, (x, y) in zip(_CORNERS, plane, strict=True)}
