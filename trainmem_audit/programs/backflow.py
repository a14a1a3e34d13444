"""Runs the back-flow experiment of one seed: the base, and a recorded run for each regime that starts from it.

`backflows` says which stretches a run has. Here they are trained: before each, interventions put weights, optimizer
slots and random streams in place, so the log proves from which state it started; its steps are plain lines of the log;
the predictions at the ends of all stretches of a repeat are one observation. Not here: numbers (`witnesses`).

Every micro-step is one of SGD with the learning rate and momentum of the regime, the plan's weight decay and clipping,
on an augmented batch, in train mode. Running statistics of BatchNorm do not move, in the sense that the plan says.
Augmentations draw from a generator of their own, keyed by seed, repeat, instrument and step.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from trainmem_audit.backflows import (
    AUGMENT,
    COSINES,
    SIMILARITIES,
    Cell,
    Instrument,
    Placed,
    acting,
    base_id,
    draw_samples,
    key,
)
from trainmem_audit.canonical import parse_float_text
from trainmem_audit.documents.backflow import NO_AUGMENTATION, BackFlowPlan, Sense
from trainmem_audit.documents.interventions import Moment
from trainmem_audit.documents.steplog import Begin, End, Step
from trainmem_audit.errors import ReplayError, TrainmemAuditError, UsageError
from trainmem_audit.intervening import Surroundings, held_by
from trainmem_audit.keys import Signer
from trainmem_audit.programs.armlog import ArmLog, Setting
from trainmem_audit.programs.block import Ended, started
from trainmem_audit.programs.live import Live, State
from trainmem_audit.programs.order import Batch, Order
from trainmem_audit.programs.program import Program
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.runs import read_lines
from trainmem_audit.sources.base import Saved

__all__ = ["Augmentation", "BackFlowBlock", "InstrumentOrder", "Subject", "run_back_flow"]

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""Takes inputs (batch, …) and a generator that it may draw from, and returns inputs of the same shape."""


@dataclass
class Subject:
    """What the experiment is done to: a factory returns one, as it would return a program.

    Parameters
    ----------
    program:
        The training of the base. Its model and probe are those of the experiment; its optimizer is not used after that.
    inputs, targets:
        (n, …) and (n,) or (n, …): the training samples as they are before any augmentation.
    augmentations:
        By name; `none` is always there.
    loss:
        Takes outputs and targets of a batch, and returns their mean loss.
    last:
        The layer whose input the penultimate features are; the last linear layer if left out.
    """

    program: Program
    inputs: Tensor
    targets: Tensor
    augmentations: Mapping[str, Augmentation] = field(default_factory=dict)
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy
    last: nn.Module | None = None

    def augmentation(self, name: str) -> Augmentation:
        """Return an augmentation.

        Raises
        ------
        UsageError
            If there is none of this name.
        """
        if name == NO_AUGMENTATION:
            return lambda inputs, generator: inputs
        if name not in self.augmentations:
            known = ", ".join(sorted({NO_AUGMENTATION, *self.augmentations}))
            raise UsageError("no augmentation of this name", where="back-flow", expected=known, got=name)
        return self.augmentations[name]

    @property
    def classes(self) -> Any:
        """The class of each sample, (n,) int64, where the targets are classes; else `None`."""
        is_class = self.targets.ndim == 1 and not self.targets.is_floating_point()
        return self.targets.cpu().numpy() if is_class else None


@dataclass(frozen=True)
class BackFlowBlock:
    """All runs of one seed.

    Parameters
    ----------
    number, seed:
        The place of the seed among the plan's, and the seed, an integer as text.
    directory:
        The directory that holds one run directory for each run.
    digest:
        SHA-256 of the canonical form of the whole plan.
    cells:
        Those that are still to be run; the base is run again where it has been, and must come out the same.
    head:
        Whose predictions on the probe count.
    """

    plan: BackFlowPlan
    number: int
    seed: str
    directory: Path
    digest: str
    cells: tuple[Cell, ...]
    cwd: Path
    head: str = "model"
    threads: int = 1


def run_back_flow(block: BackFlowBlock, signer: Signer) -> Iterator[Ended]:
    """Train the base and run the cells; give each when it has ended.

    Raises
    ------
    UsageError
        If there is no such factory, or it returns no `Subject`.
    """
    plan = block.plan
    arguments = [text.replace("{seed}", block.seed) for text in plan.arguments]
    held: list[Subject] = []

    def program_of(made: Any) -> Program:
        if not isinstance(made, Subject):
            expected = "trainmem_audit.programs.backflow.Subject"
            raise UsageError("not a subject", where=plan.entry, expected=expected, got=type(made).__name__)
        held.append(made)
        return made.program

    with started(plan.entry, arguments, block.seed, block.directory, block.cwd, program_of, block.threads) as (
        live,
        setting,
    ):
        began = time.perf_counter()
        base = _base(block, live, setting, signer)
        live.close()
        yield Ended(base_id(block.number), plan.base_steps, time.perf_counter() - began)
        for cell in block.cells:
            began, problem = time.perf_counter(), ""
            try:
                live.put_back(base.state)
                _Cell(block, cell, held[0], base, setting, signer).run()
            except (TrainmemAuditError, ArithmeticError, RuntimeError, ValueError) as error:
                problem = f"{type(error).__name__}: {error}"
            yield Ended(cell.run_id(block.number), cell.steps, time.perf_counter() - began, problem)


# --- the base ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Base:
    """The state after the base, and which run it is: its id, and the chain value of its last step."""

    state: State
    run: str
    chain: str


def _base(block: BackFlowBlock, live: Live, setting: Setting, signer: Signer) -> _Base:
    name, steps = base_id(block.number), block.plan.base_steps
    kept = block.directory / name
    again = (kept / "run.json").exists()
    run_dir = block.directory / f"{name}.again" if again else kept
    shutil.rmtree(run_dir, ignore_errors=True)
    study = {"plan": block.digest, "arm": {"id": name, "seed": block.seed}}
    log = ArmLog(live, setting, run_dir, {"study": study}, copy_source=True, state_at=lambda step: step == steps - 1)
    try:
        for _ in range(steps):
            log.step()
        state = live.copy()
        log.finish(signer)
    except BaseException:
        log.abandon()
        raise
    now = _end_of(run_dir)
    then = _end_of(kept) if again else now
    if again:
        shutil.rmtree(run_dir)
    if then[2:] != now[2:]:
        why = "what the program does does not follow from its seed"
        raise ReplayError(f"the base {name} comes out differently from its record: {why}")
    return _Base(state, then[0], then[1])


def _end_of(run_dir: Path) -> tuple[str, str, dict[str, str], dict[str, str]]:
    """Return the id of a run, the last link of its steps, and state and streams at its end."""
    run, chain = "", ""
    with DirectoryReader(run_dir) as reader:
        for line in read_lines(reader):
            if isinstance(line, Begin):
                run = line.nonce
            elif isinstance(line, Step):
                chain = line.chain
            elif isinstance(line, End):
                return run, chain, line.state, line.rng
    raise ReplayError(f"the record of {run_dir.name} has no end")


# --- one regime ----------------------------------------------------------------------------------------------------


class InstrumentOrder(Order):
    """The scripted order of one run: an epoch for each stretch, with the samples of its instrument.

    A batch is augmented when it is fetched, from a generator that is seeded anew for it.

    Raises
    ------
    UsageError
        If there are too few samples, or an augmentation is not known.
    """

    def __init__(self, cell: Cell, seed: str, subject: Subject) -> None:
        super().__init__()
        regime = cell.regime
        self.samples = len(subject.targets)
        self.generator = torch.Generator()
        self._cell, self._seed, self._subject = cell, seed, subject
        self._placed = list(cell.placed())
        names = {"A": regime.first, "A2": regime.other, "B": regime.second}
        self._augmentations = {which: subject.augmentation(name) for which, name in names.items()}
        self._drawn: tuple[int, dict[Instrument, Any]] = (-1, {})

    def draw(self, epoch: int, forks: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Return the batches of a stretch; nothing is drawn from the streams of the training."""
        placed = self._placed[epoch]
        if self._drawn[0] != placed.repeat:
            drawn = draw_samples(self._cell, self._seed, placed.repeat, self.samples, self._subject.classes)
            self._drawn = (placed.repeat, drawn)
        batches = self._drawn[1][placed.stretch.instrument][: placed.stretch.steps]
        return [tuple(int(index) for index in batch) for batch in batches]

    def fetch(self, indices: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return augmented inputs and targets."""
        epoch, position, _ = self.place
        placed = self._placed[epoch]
        which = placed.stretch.instrument
        purpose = f"augmentation of {which[0]}, step {position}"
        self.generator.manual_seed(key(self._seed, self._cell.name, placed.repeat, purpose))
        rows = torch.tensor(indices)
        inputs = self._augmentations[which](self._subject.inputs[rows], self.generator)
        return inputs, self._subject.targets[rows]


class _Cell:
    """One run: a regime in one sense of frozen BatchNorm, from the base of a seed."""

    def __init__(
        self, block: BackFlowBlock, cell: Cell, subject: Subject, base: _Base, setting: Setting, signer: Signer
    ) -> None:
        self._block, self._cell, self._subject = block, cell, subject
        self._base, self._setting, self._signer = base, setting, signer
        self._states: dict[int, dict[str, Saved]] = {}
        self._placed = {repeat: list(items) for repeat, items in groupby(cell.placed(), lambda item: item.repeat)}
        self._features: list[Tensor] = []
        self._model = subject.program.model
        self._norms = [part for part in self._model.modules() if isinstance(part, _NormBase)]

    def run(self) -> None:
        """Run all repeats and sign the record."""
        live = Live(self._program)
        run_dir = self._block.directory / self._cell.run_id(self._block.number)
        shutil.rmtree(run_dir, ignore_errors=True)
        digested = self._cell.digested()
        try:
            members = {"study": self._study()}
            log = ArmLog(live, self._setting, run_dir, members, state_at=lambda step: step + 1 in digested)
            try:
                self._states = {0: live.components()}
                for repeat in range(self._block.plan.repeats):
                    self._repeat(repeat, live, log)
                log.finish(self._signer)
            except BaseException:
                log.abandon()
                raise
        finally:
            live.close()

    def _study(self) -> dict[str, Any]:
        block, base = self._block, self._base
        arm = {
            "id": self._cell.run_id(block.number),
            "seed": block.seed,
            "stream": 0,
            "branchStep": block.plan.base_steps,
            "intervention": self._cell.arm_name,
        }
        branch = {"run": base.run, "chainHead": base.chain, "step": block.plan.base_steps}
        return {"plan": block.digest, "arm": arm, "branch": branch}

    def _program(self) -> Program:
        """Return the program whose steps are micro-steps."""
        plan, regime, base = self._block.plan, self._cell.regime, self._subject.program
        weights = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(
            weights,
            lr=parse_float_text(regime.lr),
            momentum=parse_float_text(regime.momentum),
            weight_decay=parse_float_text(plan.weight_decay),
        )
        clip = parse_float_text(plan.clip)
        order = InstrumentOrder(self._cell, self._block.seed, self._subject)

        def step(batch: Batch) -> None:
            inputs, targets = batch.data
            optimizer.zero_grad()
            with _frozen(self._norms, self._cell.sense):
                loss = self._subject.loss(self._model(inputs), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, clip)
            optimizer.step()

        self._model.train()
        return Program(self._model, optimizer, order, step, base.probe, {AUGMENT: order.generator}, base.observe)

    def _repeat(self, repeat: int, live: Live, log: ArmLog) -> None:
        """Run the stretches of a repeat, and keep the predictions at their ends."""
        self._states = {0: self._states[0]}
        placed = self._placed[repeat]
        wanted = {item.step_of(origin) for item in placed for origin in _origins(item)}
        heads: dict[str, Tensor] = {}
        features: dict[str, Tensor] = {}
        for item in placed:
            name = item.stretch.name
            for act in acting(self._cell, self._block.seed, item):
                log.intervene(act, self._surroundings())
            cosine = self._steps(item, live, log, wanted)
            if cosine is not None:
                heads[f"cosine.{name}"] = cosine
            with self._watching():
                heads[name] = self._predictions(live)
            if name in ("A", "A2", "AB", "A2B") and self._features:
                features[name] = self._features[-1].flatten(1).double()
        if features:
            pairs = (("A", "A2"), ("AB", "A2B"))
            heads |= {
                name: linear_cka(features[one], features[other]).reshape(1)
                for name, (one, other) in zip(SIMILARITIES, pairs, strict=True)
            }
        log.observe(heads)

    def _steps(self, item: Placed, live: Live, log: ArmLog, wanted: set[int]) -> Tensor | None:
        """Take the steps of a stretch; return the cosine of momentum and first gradient where it is wanted."""
        momentum = _momentum(live) if f"cosine.{item.stretch.name}" in COSINES else None
        cosine = None
        for number in range(item.begin + 1, item.end + 1):
            log.step()
            if number == item.begin + 1 and momentum is not None:
                cosine = nn.functional.cosine_similarity(_gradient(live), momentum, dim=0).reshape(1)
            if number in wanted:
                self._states[number] = live.components()
        return cosine

    def _surroundings(self) -> Surroundings:
        def at(step: int, component: str) -> Mapping[str, Saved]:
            return held_by(self._states[step], component)

        def moment(moment: Moment, component: str) -> tuple[str | None, Mapping[str, Saved]]:
            return None, at(moment.step, component)

        def other(name: str, component: str) -> Mapping[str, Saved]:
            return at(int(name.removeprefix("step-")), component)

        return Surroundings(run=moment, arm=other)

    def _predictions(self, live: Live) -> Tensor:
        heads = live.observe()
        if self._block.head not in heads:
            expected = ", ".join(sorted(heads))
            raise UsageError("no such head", where="back-flow", expected=expected, got=self._block.head)
        return heads[self._block.head]

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Keep what the last layer is given meanwhile."""
        self._features = []
        layers = [part for part in self._model.modules() if isinstance(part, nn.Linear)]
        last = self._subject.last or (layers[-1] if layers else None)
        if last is None:
            yield
            return
        handle = last.register_forward_pre_hook(lambda _, given: self._features.append(given[0].detach()))
        try:
            yield
        finally:
            handle.remove()


def _origins(item: Placed) -> tuple[Any, ...]:
    return (item.stretch.weights, item.stretch.slots, item.stretch.other)


@contextmanager
def _frozen(norms: Sequence[nn.Module], sense: Sense) -> Iterator[None]:
    """Keep running statistics where they are: use those of the batch, or use the running ones, as in eval mode.

    Only around a forward pass, so that the recorder sees the modules as they are at every other time.
    """
    name = "training" if sense == "eval-mode" else "track_running_stats"
    before = [(part, getattr(part, name)) for part in norms]
    for part, _ in before:
        setattr(part, name, False)
    try:
        yield
    finally:
        for part, value in before:
            setattr(part, name, value)


def _momentum(live: Live) -> Tensor | None:
    """Return a copy of the momentum of all weights in a row, (weights,) float64; `None` where there is none."""
    (optimizer,) = live.program.optimizers
    slots = [optimizer.state.get(weight, {}).get("momentum_buffer") for weight in _weights(live)]
    there = [slot for slot in slots if slot is not None]
    return _row(there) if len(there) == len(slots) else None


def _gradient(live: Live) -> Tensor:
    return _row([torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in _weights(live)])


def _weights(live: Live) -> list[Tensor]:
    return [weight for group in live.program.optimizers[0].param_groups for weight in group["params"]]


def _row(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


def linear_cka(one: Tensor, other: Tensor) -> Tensor:
    """Return the linear CKA of two sets of features on the same examples, (n, d) each: a number from 0 to 1.

    Kornblith et al. (2019), with centred features; NaN where a set of features does not vary.
    """
    x, y = (features - features.mean(0) for features in (one, other))
    return (y.T @ x).square().sum() / ((x.T @ x).square().sum().sqrt() * (y.T @ y).square().sum().sqrt())
