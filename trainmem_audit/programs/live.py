"""A program that runs: its memory and streams, its whole state to copy and put back, its steps and observations."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim.lr_scheduler import LRScheduler

from trainmem_audit.contract import start_seed
from trainmem_audit.documents.steplog import Stream
from trainmem_audit.errors import ReplayError, UsageError
from trainmem_audit.programs.order import Batch, OrderSource
from trainmem_audit.programs.program import Program
from trainmem_audit.recording.hooks import install
from trainmem_audit.recording.memory import Memory
from trainmem_audit.recording.observing import aside, read_streams, write_streams
from trainmem_audit.recording.session import Session
from trainmem_audit.sources.base import Saved
from trainmem_audit.sources.restoring import copy_state
from trainmem_audit.sources.streams import StreamSet
from trainmem_audit.sources.tracked import TrackedSource

__all__ = ["Live", "State", "start_streams"]


@dataclass(frozen=True)
class State:
    """All that a program carries from one step to the next."""

    components: dict[str, Saved]
    streams: dict[str, Stream]
    order: object
    gradients: dict[int, torch.Tensor]
    modes: dict[int, bool]


class _Relay:
    """Stands where a session stands, for whichever one records now: the hooks are installed once for a process."""

    def __init__(self) -> None:
        self.__dict__["current"] = None

    def __getattr__(self, name: str) -> Any:
        current = self.__dict__["current"]
        if current is None:
            return _IDLE.get(name, _nothing)
        return getattr(current, name)

    def __setattr__(self, name: str, value: Any) -> None:
        current = self.__dict__["current"]
        if current is not None:
            setattr(current, name, value)


def _nothing(*_: object) -> None:
    """Do what nobody records."""


_IDLE: Mapping[str, Any] = {"active": False, "looking": False, "forward": None, "not_recorded": frozenset()}


def start_streams(seed: str) -> None:
    """Set the global random streams to what follows from a seed, before the factory is called, which may set others."""
    random.seed(start_seed(seed, "python"))
    torch.default_generator.manual_seed(start_seed(seed, "torch.cpu"))
    np.random.seed(start_seed(seed, "numpy") % 2**32)


class Live:
    """A program in this process.

    Parameters
    ----------
    make:
        Returns the program; called once.

    Raises
    ------
    UsageError
        If it returns none.
    """

    def __init__(self, make: Callable[[], Program]) -> None:
        self.failure: BaseException | None = None
        self._relay = _Relay()
        self._uninstall = install(self._relay, self._failed)  # type: ignore[arg-type]
        made = make()
        program = getattr(made, "program", made)  # what a back-flow factory returns holds one
        if not isinstance(program, Program):
            raise UsageError("not a program", expected="trainmem_audit.programs.Program", got=type(program).__name__)
        self.program = program
        self.memory = Memory()
        self.streams = StreamSet()
        for optimizer in program.optimizers:
            self.memory.adopt(optimizer)
        self.memory.track(OrderSource(program.order))
        for name, item in program.components.items():
            self._name(name, item)
        self.streams.adopt()
        self.initial = self.components()

    def close(self) -> None:
        """Take the hooks out."""
        self._uninstall()

    def _failed(self, error: BaseException) -> None:
        self.failure = error

    def _name(self, name: str, item: Any) -> None:
        if isinstance(item, torch.nn.Module):
            self.memory.teacher(name, item)
        elif isinstance(item, GradScaler):
            self.memory.scaler(item)
        elif isinstance(item, LRScheduler):
            pass  # found by the optimizer that it schedules
        elif isinstance(item, (torch.Generator, random.Random)) or type(item).__name__ == "Generator":
            self.streams.found(name, item)
        else:
            self.memory.track(TrackedSource(name, item))

    # Steps ---------------------------------------------------------------------------------------------------------

    def record(self, session: Session | None) -> None:
        """Let `session` record from now on; nobody, without one."""
        self.failure = None
        self._relay.__dict__["current"] = session

    @property
    def session(self) -> Session | None:
        """Who records now."""
        found: Session | None = self._relay.__dict__["current"]
        return found

    def step(self) -> None:
        """Take one step.

        Raises
        ------
        UsageError
            If the program's `step` is not one attempt of `optimizer.step()`.
        RecordingError
            If it could not be recorded.
        """
        session = self.session
        before = 0 if session is None else session.steps
        batch = next(self.program.order)
        if session is not None:
            session.on_batch(None, list(batch.indices), batch.data)
        self.program.step(batch)
        if self.failure is not None:
            raise self.failure
        if session is not None and session.steps != before + 1:
            raise UsageError(
                "a step of the program is not one step of training",
                where="Program.step",
                expected="exactly one attempt of optimizer.step()",
                got=f"{session.steps - before}",
            )

    def observe(self) -> dict[str, torch.Tensor]:
        """Return the predictions on the probe, by head; what was drawn for it is taken back."""
        program, session = self.program, self.session
        modules = [program.model, *(item for item in program.components.values() if isinstance(item, torch.nn.Module))]
        self.record(None)
        try:
            with aside(self.streams, modules):
                if program.observe is None:
                    return {"model": program.model(program.probe.inputs).detach().clone()}
                return {name: value.detach().clone() for name, value in program.observe().items()}
        finally:
            self.record(session)

    def passes(self, count: int) -> Iterator[Callable[[], object]]:
        """Give forward passes over the next batches, for statistics; order and random streams are put back.

        Raises
        ------
        UsageError
            If the program does not say how a batch is passed, and it cannot be told from the batch.
        """
        order, before = self.program.order.copy(), read_streams(self.streams)
        try:
            for _ in range(count):
                yield partial(self._pass, next(self.program.order))
        finally:
            self.program.order.put_back(order)
            write_streams(self.streams, before)

    def _pass(self, batch: Batch) -> object:
        if self.program.forward is not None:
            return self.program.forward(batch)
        first = batch.data[0] if isinstance(batch.data, (list, tuple)) and batch.data else batch.data
        if not isinstance(first, torch.Tensor):
            raise UsageError(
                "it is not known how a batch is passed through the model",
                where="Program.forward",
                expected="a function of a batch",
                got=type(batch.data).__qualname__,
            )
        return self.program.model(first)

    # State ---------------------------------------------------------------------------------------------------------

    def components(self) -> dict[str, Saved]:
        """Return a copy of every component but the order."""
        self.memory.settle()
        with torch._C.DisableTorchFunction():
            found = copy_state(self.memory.sources())
        found.pop(OrderSource.name)
        return found

    def copy(self) -> State:
        """Return the whole state."""
        components = self.components()
        self.streams.adopt()
        return State(
            components,
            read_streams(self.streams),
            self.program.order.copy(),
            {id(param): param.grad.detach().clone() for param in self._parameters() if param.grad is not None},
            {id(part): part.training for part in self._parts()},
        )

    def put_back(self, state: State) -> None:
        """Return to a state that `copy` gave.

        Raises
        ------
        ReplayError
            If something cannot be put back: then nothing that follows would be a branch of it.
        """
        problems = self.memory.put_back(state.components)
        problems += write_streams(self.streams, state.streams)
        self.program.order.put_back(state.order)
        with torch.no_grad():
            for param in self._parameters():
                kept = state.gradients.get(id(param))
                if kept is None or param.grad is None or param.grad.shape != kept.shape:
                    param.grad = None if kept is None else kept.clone()
                else:
                    param.grad.detach().copy_(kept)
        for part in self._parts():
            part.training = state.modes.get(id(part), part.training)
        if problems:
            raise ReplayError(f"the program cannot be branched: {'; '.join(problems[:3])}")

    def _parameters(self) -> Sequence[torch.Tensor]:
        groups = (group for optimizer in self.program.optimizers for group in optimizer.param_groups)
        return [param for group in groups for param in group["params"]]

    def _parts(self) -> Sequence[torch.nn.Module]:
        others = [item for item in self.program.components.values() if isinstance(item, torch.nn.Module)]
        return [part for module in (self.program.model, *others) for part in module.modules()]


def entry_name(entry: str, file: Path | None, cwd: Path) -> str:
    """Return how the record names a program: its path below the working directory, or its base name, and the function.

    A module keeps its name.
    """
    name, _, function = entry.rpartition(":")
    if not name.endswith(".py") or file is None:
        return entry
    path = file.resolve()
    shown = f"{{cwd}}/{path.relative_to(cwd).as_posix()}" if path.is_relative_to(cwd) else f"{{script}}/{path.name}"
    return f"{shown}:{function}"
