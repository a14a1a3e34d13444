"""The law of copy and restore for memory that is found by its path, and for carried gradients.

Such memory can be read only while the function runs whose variables hold it; so the loops here call back after each
round, as an optimizer's step does, and go through some batches twice: before and after what was copied is put back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.test_registry import seen
from trainmem_audit.sources.banks import BankWatch, NumbersSource
from trainmem_audit.sources.base import Saved, Source
from trainmem_audit.sources.gradients import GradientSource, GradientWatch
from trainmem_audit.sources.modules import ModuleSource
from trainmem_audit.sources.optimizers import OptimizerSource
from trainmem_audit.sources.restoring import copy_state, restore_state

FOUND, ON = 8, 4
"""Rounds before the copy, and rounds that are trained on from it, twice."""

Turn = Callable[[nn.Module, torch.optim.Optimizer], None]
Loop = Callable[[Iterable[torch.Tensor], Turn], None]


def _batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    first = [torch.randn(4, 3, generator=generator) for _ in range(FOUND)]
    again = [torch.randn(4, 3, generator=generator) for _ in range(ON)]
    return [*first, *again, *again]


def _net() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = nn.Linear(3, 3)
    return net, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)


def _update(net: nn.Module, optimizer: torch.optim.Optimizer, target: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    optimizer.zero_grad()
    y: torch.Tensor = net(x)
    (y - target).square().mean().backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return y.detach()


class Ring:
    """A replay buffer of arrays, a capacity, a pointer and a fill."""

    def __init__(self) -> None:
        self.capacity, self.ptr, self.size = 10, 0, 0
        self.states = np.zeros((self.capacity, 3), dtype=np.float32)
        self.rewards = np.zeros(self.capacity)

    def store(self, state: torch.Tensor) -> None:
        self.states[self.ptr], self.rewards[self.ptr] = state.numpy(), float(state.sum())
        self.ptr, self.size = (self.ptr + 1) % self.capacity, min(self.size + 1, self.capacity)


def queue_in_a_variable(batches: Iterable[torch.Tensor], turn: Turn) -> None:
    """Go on with a queue that is bound anew."""
    net, optimizer = _net()
    queue = torch.zeros(12, 3)
    for x in batches:
        y = _update(net, optimizer, queue.mean(0), x)
        queue = torch.cat([queue, y])[-12:]
        turn(net, optimizer)


def ring_of_arrays(batches: Iterable[torch.Tensor], turn: Turn) -> None:
    """Go on with the arrays and the numbers of an object."""
    net, optimizer = _net()
    ring = Ring()
    for x in batches:
        scale = float(ring.rewards[: ring.size].sum())
        y = _update(net, optimizer, torch.from_numpy(ring.states[ring.ptr]) * scale, x)
        ring.store(y[0])
        turn(net, optimizer)


def records_in_a_deque(batches: Iterable[torch.Tensor], turn: Turn) -> None:
    """Go on with tuples in a deque."""
    net, optimizer = _net()
    memory: deque[tuple[Any, ...]] = deque(maxlen=6)
    for x in batches:
        target = sum((state * reward for state, reward, _ in memory), torch.zeros(3))
        y = _update(net, optimizer, target, x)
        memory.append((y[0].clone(), float(y.sum()), len(memory)))
        turn(net, optimizer)


def average_in_a_dictionary(batches: Iterable[torch.Tensor], turn: Turn) -> None:
    """Go on with an average of the weights that is kept by hand."""
    net, optimizer = _net()
    average = {name: param.detach().clone() for name, param in net.named_parameters()}
    for x in batches:
        _update(net, optimizer, average["bias"], x)
        for name, param in net.named_parameters():
            average[name] = 0.8 * average[name] + 0.2 * param.detach()
        turn(net, optimizer)


def trace_of_an_object(batches: Iterable[torch.Tensor], turn: Turn) -> None:
    """Go on with a tensor that an object binds from its own value."""

    class Plastic:
        def __init__(self) -> None:
            self.trace = torch.zeros(3, 3)

        def follow(self, x: torch.Tensor, y: torch.Tensor) -> None:
            self.trace = 0.9 * self.trace + 0.1 * x.T @ y

    net, optimizer = _net()
    plastic = Plastic()
    for x in batches:
        y = _update(net, optimizer, x @ plastic.trace, x)
        plastic.follow(x, y)
        turn(net, optimizer)


LOOPS: dict[Loop, set[str]] = {
    queue_in_a_variable: {"bank.queue"},
    ring_of_arrays: {"bank.ring", "bank.ring.states", "bank.ring.rewards"},
    records_in_a_deque: {"bank.memory"},
    average_in_a_dictionary: {"bank.average"},
    trace_of_an_object: {"bank.plastic.trace"},
}


class Turns:
    """Looks after each round as the recorder does, copies, and puts back."""

    def __init__(self) -> None:
        self.watch = BankWatch(lambda file: file == __file__)
        self.trail: list[dict[str, Any]] = []
        self.problems: list[str] | None = None
        self._kept: dict[str, Saved] = {}
        self._there: dict[str, Any] = {}

    def __call__(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model = ModuleSource("model", net)
        own: list[Source] = [model, OptimizerSource("optimizer", optimizer, model.names().get)]
        round_ = len(self.trail) + 1
        if BankWatch.due(round_):
            known = [tensor for source in own for item in source.components() for _, tensor in item.tensors or ()]
            self.watch.look(known, net.parameters())
        sources = [*own, *self.watch.sources]
        self.trail.append(seen(sources))
        if round_ == FOUND:
            self._kept, self._there = copy_state(sources), seen(sources)
        elif round_ == FOUND + ON:
            assert seen(sources) != self._there
            self.problems = restore_state(sources, self._kept)
            assert seen(sources) == self._there


@pytest.mark.parametrize("loop", LOOPS, ids=lambda loop: loop.__name__)
def test_the_law_holds_for_memory_that_is_found_by_its_path(loop: Loop) -> None:
    turns = Turns()
    loop(_batches(), turns)
    assert {source.name for source in turns.watch.sources} == LOOPS[loop]
    numbers = {source.name for source in turns.watch.sources if isinstance(source, NumbersSource)}
    assert numbers == LOOPS[loop] & {"bank.ring"}
    assert turns.problems == []
    first, again = turns.trail[FOUND : FOUND + ON], turns.trail[FOUND + ON :]
    assert len(again) == ON and first == again
    assert all(before != after for before, after in pairwise(first))


def test_the_law_needs_what_is_found() -> None:
    """Without the memory the two continuations part: the law above is about it and not about the weights alone."""
    turns = Turns()
    turns.watch.look = lambda known, trained: None  # type: ignore[method-assign]
    queue_in_a_variable(_batches(), turns)
    assert turns.trail[FOUND : FOUND + ON] != turns.trail[FOUND + ON :]


def test_the_law_holds_for_carried_gradients() -> None:
    net, optimizer = _net()
    model = ModuleSource("model", net)
    slots = OptimizerSource("optimizer", optimizer, model.names().get)
    sources: list[Source] = [model, slots, GradientSource("model.grads", model.parameters)]
    watch, found, trail = GradientWatch(), False, []
    kept: dict[str, Saved] = {}
    for number, x in enumerate(_batches(), start=1):
        if number % ON == 2:  # else the last step's are added to
            optimizer.zero_grad()
        watch.before_backward([slots])
        net(x).square().mean().backward()
        optimizer.step()
        found |= watch.after_step(optimizer)
        trail.append(seen(sources))
        if number == FOUND:
            kept = copy_state(sources)
        elif number == FOUND + ON:
            assert trail[-1] != trail[FOUND - 1]
            assert restore_state(sources, kept) == []
            assert seen(sources) == trail[FOUND - 1]
    assert found
    assert trail[FOUND : FOUND + ON] == trail[FOUND + ON :]
    before, after = (item["model.grads"] for item in trail[FOUND - 2 : FOUND])
    assert before != after
