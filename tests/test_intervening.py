"""The law of interventions: each touches what it names and nothing else, moves no stream, and does what it says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.digests import tensor_digest
from trainmem_audit.intervening import Applied, Surroundings, apply, held_by
from trainmem_audit.interventions import FORMS, may_change, parse
from trainmem_audit.recording.memory import Memory
from trainmem_audit.sources.base import Saved
from trainmem_audit.sources.restoring import copy_state, restore_state
from trainmem_audit.sources.streams import StreamSet
from trainmem_audit.sources.tracked import TrackedSource

ROOT = Path(__file__).resolve().parent.parent

Make = Callable[[nn.Module], torch.optim.Optimizer]
SGD: Make = lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, dampening=0.5)  # noqa: E731
ADAM: Make = lambda net: torch.optim.AdamW(net.parameters(), lr=0.01)  # noqa: E731


class Bank:
    """Keys in a ring of 8, with a pointer."""

    def __init__(self) -> None:
        self.keys = torch.zeros(8, 4)
        self.ptr = 0

    def enqueue(self, keys: torch.Tensor) -> None:
        for key in keys:
            self.keys[self.ptr] = key
            self.ptr = (self.ptr + 1) % 8


class Loop:
    """A training with every kind of memory: optimizer, BatchNorm, schedule, scaler, average, ring, replay buffer."""

    def __init__(self, make: Make = SGD, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 1))
        self.optimizer = make(self.net)
        self.schedule = lr_scheduler.StepLR(self.optimizer, 3, 0.5)
        self.average = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)  # type: ignore[no-untyped-call]
        self.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)
        self.ring, self.replay = Bank(), deque(maxlen=16)  # type: ignore[var-annotated]
        self.generator = torch.Generator().manual_seed(3)
        self.numbers = np.random.default_rng(5)
        self.streams = StreamSet()
        self.streams.add_generator("torch.generator", self.generator)
        self.streams.found("numpy.generator", self.numbers)
        self.streams.adopt()
        self.memory = Memory()
        self.memory.scheduler(self.schedule)
        self.memory.adopt(self.optimizer)
        self.memory.scaler(self.scaler)
        self.memory.teacher("teacher", self.average)
        self.memory.track(TrackedSource("ring", self.ring))
        self.memory.track(TrackedSource("replay", self.replay))
        self.memory.settle()
        self.start = copy_state(self.memory.sources())
        self.history: list[dict[str, Saved]] = []

    def step(self) -> float:
        x = torch.randn(6, 3, generator=self.generator)
        loss: torch.Tensor = (self.net(x) - x.sum(1, keepdim=True)).square().mean()
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.average.update_parameters(self.net)
        self.schedule.step()
        self.ring.enqueue(torch.cat([x[:3], x[:3, :1]], dim=1))
        self.replay.append((x[0].clone(), float(loss.item()), len(self.replay)))
        self.history.append(copy_state(self.memory.sources()))
        return float(loss.item())

    def surroundings(self) -> Surroundings:
        return Surroundings(
            earlier=lambda name, steps: held_by(self.history[-1 - steps], name),
            initial=lambda name: held_by(self.start, name),
            run=lambda moment, name: (None, held_by(self.history[moment.step], name)),
            arm=lambda arm, name: held_by(self.history[int(arm)], name),
            batches=lambda count: [lambda at=at: self.net(self.batch(at)) for at in range(count)],  # type: ignore[misc]
        )

    @staticmethod
    def batch(at: int) -> torch.Tensor:
        return torch.randn(6, 3, generator=torch.Generator().manual_seed(at))

    def do(self, text: str) -> Applied:
        return apply(parse(text)[0], self.memory, self.streams, self.surroundings())

    def digests(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for source in self.memory.sources():
            for item in source.components():
                if item.tensors is None:
                    found[item.name] = canonical_bytes(item.values)
                else:
                    found[item.name] = [(name, tensor_digest(tensor)) for name, tensor in item.tensors]
        return found

    def changed_by(self, text: str) -> set[str]:
        before = self.digests()
        self.do(text)
        after = self.digests()
        return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def trained(steps: int = 4, make: Make = SGD) -> Loop:
    loop = Loop(make)
    for _ in range(steps):
        loop.step()
    return loop


ACTS = {
    "carry": set(),
    "placebo": set(),
    "placebo:optimizer.momentum": set(),
    "reset:optimizer.momentum": {"optimizer.momentum"},
    "reset:optimizer": {"optimizer.momentum"},
    "reset:optimizer.hyper": {"optimizer.hyper"},
    "reset:model.params": {"model.params"},
    "reset:model.batchnorm": {"model.batchnorm"},
    "reset:teacher.params": {"teacher.params"},
    "reset:teacher.batchnorm": {"teacher.batchnorm"},
    "reset:teacher": {"teacher.params", "teacher.batchnorm", "teacher.buffers"},
    "reset:scheduler": {"scheduler"},
    "reset:scaler": {"scaler"},
    "reset:bank.ring": {"bank.ring"},
    "reset:bank.ring.numbers": {"bank.ring.numbers"},
    "reset:bank.replay": {"bank.replay"},
    "zero:optimizer.momentum": {"optimizer.momentum"},
    "zero:model.batchnorm/1.running_mean": {"model.batchnorm"},
    "zero:bank.ring": {"bank.ring"},
    "scale:optimizer.momentum:0.5": {"optimizer.momentum"},
    "scale:model.params/0:2": {"model.params"},
    "noise:optimizer.momentum:0.1:3": {"optimizer.momentum"},
    "noise:bank.replay:0.1:3": {"bank.replay"},
    "transplant:optimizer.momentum:#1": {"optimizer.momentum"},
    "transplant:optimizer:#1": {"optimizer.momentum"},
    "transplant:scheduler:#1": {"scheduler"},
    "transplant:bank.replay:#1": {"bank.replay"},
    "recalibrate:model.batchnorm:3": {"model.batchnorm"},
    "freeze:model.batchnorm": set(),
    "flush:bank.ring": {"bank.ring"},
    "flush:bank.ring:7": {"bank.ring"},
    "flush:bank.replay": {"bank.replay"},
    "shuffle:bank.ring:7": {"bank.ring"},
    "shuffle:bank.replay:7": {"bank.replay"},
    "truncate:bank.ring:2": {"bank.ring"},
    "truncate:bank.replay:2": {"bank.replay"},
    "age:bank.ring:2": {"bank.ring"},
    "age:bank.replay:2": {"bank.replay"},
    "decay:teacher.params:0.5": {"teacher.params"},
    "lag:teacher.params:2": {"teacher.params"},
    "swap:teacher.params:model.params": {"teacher.params", "model.params"},
    "equalise:optimizer.momentum:1": {"optimizer.momentum"},
    "equalise:model.batchnorm:1": {"model.batchnorm"},
    "fork:7": set(),
    "kick:0.001:7": {"model.params"},
    "butterfly:7": {"model.params"},
}
"""What each of them changes, of all that the training holds after four steps."""


@pytest.fixture(scope="module")
def shared() -> Loop:
    return trained()


@pytest.fixture
def loop(shared: Loop) -> Iterator[Loop]:
    """Give a training after four steps; what the test does to it is undone, as the law of the registry allows."""
    state, history = copy_state(shared.memory.sources()), len(shared.history)
    streams = {name: shared.streams.describe(name) for name in shared.streams.digests()}
    yield shared
    del shared.history[history:]
    if not shared.replay:
        shared.replay.append((torch.zeros(3), 0.0, 0))  # what its records are like cannot be told of an empty one
    assert restore_state(shared.memory.sources(), state) == []
    for name, stream in streams.items():
        assert stream is not None
        assert shared.streams.restore(name, stream) is None


@pytest.mark.parametrize("text", ACTS)
def test_an_intervention_touches_what_it_names_and_nothing_else(text: str, loop: Loop) -> None:
    streams = loop.streams.digests()
    assert loop.changed_by(text) == ACTS[text]
    assert all(may_change(parse(text)[0], name) for name in ACTS[text])
    moved = {name for name, digest in loop.streams.digests().items() if digest != streams[name]}
    assert streams.keys() == {"python", "numpy", "torch.cpu", "torch.generator", "numpy.generator"}
    assert moved == (streams.keys() if "fork" in text else set())
    assert np.isfinite(loop.step())


@pytest.mark.parametrize("text", ACTS)
def test_the_same_intervention_on_the_same_state_does_the_same(text: str, shared: Loop, loop: Loop) -> None:
    found = []
    state = copy_state(loop.memory.sources())
    for _ in range(2):
        loop.do(text)
        found.append((loop.digests(), loop.streams.digests()))
        if loop.replay:
            assert restore_state(loop.memory.sources(), state) == []
    assert found[0] == found[1]


def test_the_page_has_every_form() -> None:
    page = (ROOT / "docs" / "interventions.md").read_text("utf-8")
    forms = [form.replace("|", "\\|") for form in FORMS.values()]
    assert [form for form in forms if f"\n| `{form}` | " not in page] == []
