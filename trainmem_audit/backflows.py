"""The recipe of the back-flow experiment: which stretches a run has, from which states they start, on which samples.

One run holds all repeats of one regime and seed. A repeat is a list of *stretches*, each a few optimizer steps with one
instrument, from weights and optimizer slots that an earlier stretch, or the base, has left (STANDARD § 6):

| stretch | weights of | optimizer of | instrument |
|---|---|---|---|
| `A`, `A2` | base | – (as a fresh one has it) | A, A′ |
| `AB`, `A2B` | `A`, `A2` | `A`, `A2` | B |
| `AB.twin`, `A2B.twin` | `A`, `A2` | `A2`, `A`: exchanged | B |
| `AB.common`, `A2B.common` | `A`, `A2` | the mean of both | B |
| `AB.break`, `A2B.break` | `A`, `A2` | – (made anew) | B |
| `B`, `BA`; `AB.k1`, `BA.k1`, … | base; `B`, … | carried | B, A; with fewer steps each |

The last row belongs to the diagnostics, which only some repeats have. Before a stretch interventions put the state in
place and redraw the random streams, the same for A and A′ and the same for every B: the log proves what was compared.
Everything here follows from plan and seed, so whoever reads a log knows what must stand in it. Not here: training
(`programs.backflow`), numbers (`witnesses`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainmem_audit.contract import start_seed
from trainmem_audit.documents.backflow import BackFlowPlan, Regime, Sense
from trainmem_audit.documents.interventions import Intervention, Moment
from trainmem_audit.errors import UsageError

__all__ = [
    "AUGMENT",
    "COSINES",
    "SIMILARITIES",
    "Cell",
    "Origin",
    "Placed",
    "Stretch",
    "acting",
    "base_id",
    "cells_of",
    "draw_samples",
    "key",
    "order_gaps",
    "stretches",
]

Indices = NDArray[np.int64]
Instrument = Literal["A", "A2", "B"]
AUGMENT: Final = "augment"
"""The random stream that augmentations draw from."""
COSINES: Final = ("cosine.AB", "cosine.A2B")
"""Cosine of the first gradient of B and the momentum that it meets, in each branch: one value each."""
SIMILARITIES: Final = ("cka.first", "cka.second")
"""Linear CKA of the penultimate features of both branches, after the first instruments and after B: one value each."""


class Origin(NamedTuple):
    """The state so many steps into a stretch; of no stretch: the base."""

    stretch: str = ""
    steps: int = 0


BASE: Final = Origin()


@dataclass(frozen=True)
class Stretch:
    """Some steps with one instrument, from the weights of one state and the optimizer's slots of another."""

    name: str
    instrument: Instrument
    steps: int
    weights: Origin = BASE
    slots: Origin = BASE
    then: Literal["", "reset", "equalise"] = ""
    other: Origin = BASE
    """With whose slots they are equalised."""


@dataclass(frozen=True)
class Placed:
    """A stretch in a run: in which repeat, and before which step it begins."""

    stretch: Stretch
    repeat: int
    begin: int
    begins: Mapping[str, int]
    """Where the stretches of this repeat begin."""

    @property
    def end(self) -> int:
        """The number of steps when it has ended."""
        return self.begin + self.stretch.steps

    def step_of(self, origin: Origin) -> int:
        """Return after how many steps of the run a state was there; 0 is the base."""
        return self.begins[origin.stretch] + origin.steps if origin.stretch else 0


@dataclass(frozen=True)
class Cell:
    """One regime in one sense of frozen BatchNorm, of a plan."""

    plan: BackFlowPlan
    name: str
    sense: Sense

    @property
    def regime(self) -> Regime:
        """The regime."""
        return self.plan.regimes[self.name]

    @property
    def label(self) -> str:
        """What reports call it."""
        return f"{self.name}, {self.sense}" if len(self.plan.batch_norm) > 1 else self.name

    @property
    def arm_name(self) -> str:
        """What its arms are called where others have the name of an intervention; no intervention can be called so."""
        return f"back-flow {self.name}, {self.sense}"

    def run_id(self, seed: int) -> str:
        """Return the name of its run of the seed at that place of the plan's list."""
        return f"back-flow.{self.name}.{self.sense}.s{seed}"

    def has_diagnostics(self, repeat: int) -> bool:
        """Tell whether a repeat has the stretches of the diagnostics."""
        return repeat < self.plan.diagnostic_repeats

    def placed(self) -> Iterator[Placed]:
        """Yield every stretch of the run, in order."""
        at = 0
        for repeat in range(self.plan.repeats):
            begins: dict[str, int] = {}
            for stretch in stretches(self.regime.steps, self.has_diagnostics(repeat)):
                begins[stretch.name] = at
                yield Placed(stretch, repeat, at, begins)
                at += stretch.steps

    def digested(self) -> frozenset[int]:
        """Return the numbers of steps after which the state is recorded: at the ends, and where stretches start."""
        found = set()
        for placed in self.placed():
            origins = (placed.stretch.weights, placed.stretch.slots, placed.stretch.other)
            found |= {placed.end, *(placed.step_of(origin) for origin in origins)}
        return frozenset(found)

    @property
    def steps(self) -> int:
        """How many steps the run takes."""
        return sum(placed.stretch.steps for placed in self.placed())


def cells_of(plan: BackFlowPlan | None) -> tuple[Cell, ...]:
    """Return every regime of a plan in every sense of frozen BatchNorm."""
    return () if plan is None else tuple(Cell(plan, name, sense) for name, sense in plan.cells())


def base_id(seed: int) -> str:
    """Return the name of the run that trains the base of a seed."""
    return f"back-flow.base.s{seed}"


def stretches(k: int, diagnostics: bool) -> list[Stretch]:
    """Return the stretches of a repeat, in the order in which they are run."""
    a, other = Origin("A", k), Origin("A2", k)
    found = [
        Stretch("A", "A", k),
        Stretch("A2", "A2", k),
        Stretch("AB", "B", k, a, a),
        Stretch("A2B", "B", k, other, other),
        Stretch("AB.twin", "B", k, a, other),
        Stretch("A2B.twin", "B", k, other, a),
        Stretch("AB.common", "B", k, a, a, "equalise", other),
        Stretch("A2B.common", "B", k, other, other, "equalise", a),
        Stretch("AB.break", "B", k, a, a, "reset"),
        Stretch("A2B.break", "B", k, other, other, "reset"),
    ]
    if diagnostics:
        b = Origin("B", k)
        found += [Stretch("B", "B", k), Stretch("BA", "A", k, b, b)]
        for j in range(1, k):
            found.append(Stretch(f"AB.k{j}", "B", j, Origin("A", j), Origin("A", j)))
            found.append(Stretch(f"BA.k{j}", "A", j, Origin("B", j), Origin("B", j)))
    return found


def order_gaps(k: int) -> list[tuple[int, str, str]]:
    """Return the pairs AB, BA for every number of steps up to k, with that number."""
    return [(j, f"AB.k{j}", f"BA.k{j}") if j < k else (j, "AB", "BA") for j in range(1, k + 1)]


def acting(cell: Cell, seed: str, placed: Placed) -> tuple[Intervention, ...]:
    """Return what acts before a stretch, in order: weights, slots, what breaks the channel, random streams."""
    stretch = placed.stretch
    places = {"model": stretch.weights, "optimizer": stretch.slots}
    found = [_from_step(component, placed.step_of(origin)) for component, origin in places.items()]
    if stretch.then == "reset":
        found.append(Intervention(primitive="reset", component="optimizer"))
    elif stretch.then == "equalise":
        other = f"step-{placed.step_of(stretch.other)}"
        found.append(Intervention(primitive="equalise", component="optimizer.momentum", other=other))
    streams = key(seed, cell.name, placed.repeat, f"streams of {_family(stretch)}")
    return (*found, Intervention(primitive="fork", seed=str(streams), kept=("order",)))


def _from_step(component: str, step: int) -> Intervention:
    return Intervention(primitive="transplant", component=component, source=Moment(step=step))


def _family(stretch: Stretch) -> str:
    """Return the instrument without its prime: A and A′ differ in the augmentation alone."""
    return stretch.instrument[0]


def key(seed: str, regime: str, repeat: int, purpose: str) -> int:
    """Return the 63-bit key of what is drawn in a repeat; it does not depend on the sense of frozen BatchNorm."""
    return start_seed(seed, f"back-flow {regime} repeat {repeat} {purpose}")


def draw_samples(
    cell: Cell, seed: str, repeat: int, samples: int, classes: NDArray[Any] | None
) -> dict[Instrument, Indices]:
    """Return the samples of every step of the instruments, each (k, batch).

    A's are drawn without replacement, A′ has the same. Of B's the prescribed share is drawn from A's, and the rest from
    what A does not use, with A's number of samples of each class where the regime asks for it; then they are mixed.

    Parameters
    ----------
    samples:
        How many there are.
    classes:
        (samples,), the class of each, where it is needed.

    Raises
    ------
    UsageError
        If there are too few samples, or no classes where they are needed.
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(key(seed, cell.name, repeat, "samples"))))
    regime, where = cell.regime, f"back-flow: {cell.name}"
    count = regime.steps * cell.plan.batch
    if count > samples:
        raise _too_few(where, f"{count} samples for {regime.steps} steps of {cell.plan.batch}", samples)
    first = rng.permutation(samples)[:count]
    kept = rng.permutation(first)[: round(regime.shared * count)]
    left = rng.permutation(np.setdiff1d(np.arange(samples), first))
    missing = count - len(kept)
    if regime.same_classes and missing:
        rest = _of_same_classes(first, kept, left, classes, where)
    else:
        if missing > len(left):
            raise _too_few(where, f"{missing} samples that A does not use", len(left))
        rest = left[:missing]
    second = rng.permutation(np.concatenate([kept, rest]))
    shape = (regime.steps, cell.plan.batch)
    a, b = first.astype(np.int64).reshape(shape), second.astype(np.int64).reshape(shape)
    return {"A": a, "A2": a, "B": b}


def _of_same_classes(
    first: Indices, kept: Indices, left: Indices, classes: NDArray[Any] | None, where: str
) -> NDArray[Any]:
    if classes is None or classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer):
        raise UsageError("samples without classes", where=where, expected="a class for each sample, as integers")
    found = []
    for label in np.unique(classes[first]):
        wanted = int((classes[first] == label).sum() - (classes[kept] == label).sum())
        there = left[classes[left] == label]
        if wanted > len(there):
            raise _too_few(where, f"{wanted} samples of class {label} that A does not use", len(there))
        found.append(there[:wanted])
    return np.concatenate(found)


def _too_few(where: str, expected: str, got: int) -> UsageError:
    return UsageError("too few samples", where=where, expected=expected, got=str(got), remedy="a smaller batch")
