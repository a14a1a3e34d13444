"""Memory outside of modules and optimizers: what a loop carries, how it is read and put back, `Recorder.track`."""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainmem_audit import Recorder
from trainmem_audit.errors import UsageError
from trainmem_audit.sources.base import Source
from trainmem_audit.sources.entries import EntryTable
from trainmem_audit.sources.gradients import GradientSource, GradientWatch
from trainmem_audit.sources.liveness import bound_anew, carried_names, only_read, own_attributes
from trainmem_audit.sources.optimizers import OptimizerSource
from trainmem_audit.sources.restoring import copy_state, restore_state
from trainmem_audit.sources.tracked import TrackedSource

STEP = "here"
CARRIED = {
    "bound anew from itself": ("q = 0\nfor i in r:\n  here()\n  q = f(q)", {"q"}),
    "written before it is read": ("for i in r:\n  x = f(i)\n  here()\n  g(x)", set()),
    "only filled": ("log = []\nfor i in r:\n  here()\n  log.append(i)\n  log[i] = 2", set()),
    "read after the loop only": ("best = 0\nfor i in r:\n  here()\n  if i:\n    best = i\ng(best)", set()),
    "filled and read": ("log = []\nfor i in r:\n  here()\n  log.append(i)\n  g(log)", {"log"}),
    "begun anew in each round of an outer loop": (
        "for e in r:\n  hidden = f()\n  for i in r:\n    here()\n    hidden = g(hidden)",
        {"hidden"},
    ),
    "written on one way only": ("q = 0\nwhile True:\n  here()\n  if f():\n    q = 1\n  g(q)", {"q"}),
    "no loop": ("q = 0\nhere()\nq = f(q)", None),
}


def _at_the_step(body: str) -> tuple[CodeType, int]:
    text = "def train(r, f, g, here):\n" + "\n".join(f"  {line}" for line in body.split("\n"))
    names: dict[str, Any] = {}
    exec(compile(text, "train", "exec"), names)
    code = names["train"].__code__
    instructions = list(dis.get_instructions(code))
    loaded = next(at for at, item in enumerate(instructions) if item.argval == STEP)
    called = next(item for item in instructions[loaded:] if item.opname == "CALL")
    return code, called.offset


@pytest.mark.parametrize("name", CARRIED)
def test_a_variable_is_carried_when_the_next_round_may_read_it_first(name: str) -> None:
    body, expected = CARRIED[name]
    found = carried_names(*_at_the_step(body))
    assert (found if found is None else found - {"r", "f", "g", STEP}) == expected


def test_what_an_outer_loop_makes_anew_is_only_read() -> None:
    code, offset = _at_the_step("for e in r:\n  perm = f()\n  h = f()\n  for i in r:\n    here()\n    h = g(h, perm)")
    assert only_read(code, offset) - {"e", "i"} == {"perm"}


def test_what_a_closure_reads_is_bound_anew_before() -> None:
    code, offset = _at_the_step("q = f()\nfor i in r:\n  x = f()\n  h = lambda: g(x, q)\n  here(h)\n  q = h()")
    assert {"x", "h"} <= bound_anew(code, offset)


def test_attributes_are_bound_from_their_own_value_or_not() -> None:
    text = "def f(self, x):\n  self.batch = x\n  self.queue = cat([self.queue, x])\n  self.batch.sum()"
    names: dict[str, Any] = {}
    exec(compile(text, "f", "exec"), names)
    again, blind = own_attributes(names["f"].__code__)
    assert (set(again), set(blind)) == ({"queue"}, {"batch"})


class Ring:
    """A replay buffer of arrays, with pointer and size."""

    def __init__(self) -> None:
        self.states, self.rewards = np.zeros((6, 3), dtype=np.float32), np.zeros(6)
        self.ptr, self.size = 0, 0

    def store(self, value: float) -> None:
        self.states[self.ptr], self.rewards[self.ptr] = value, -value
        self.ptr, self.size = (self.ptr + 1) % 6, min(self.size + 1, 6)


class BankLoss(nn.Module):
    """Keeps a feature for every sample in a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = torch.zeros(4, 2)


def _ring() -> tuple[Any, Callable[[float], None]]:
    ring = Ring()
    return ring, ring.store


def _records(make: Callable[[], Any]) -> tuple[Any, Callable[[float], None]]:
    memory = make()
    for value in range(3):
        memory.append((torch.full((1, 2), float(value)), value, float(value), np.full(2, value)))

    def push(value: float) -> None:
        memory.append((torch.full((1, 2), value), int(10 * value), value, np.full(2, int(value))))

    return memory, push


def _loss() -> tuple[Any, Callable[[float], None]]:
    loss = BankLoss()

    def remember(value: float) -> None:
        loss.memory[int(value) % 4] = value

    return loss, remember


def _dictionary() -> tuple[Any, Callable[[float], None]]:
    shadow = {"w": torch.zeros(2, 2), "b": torch.zeros(2)}

    def follow(value: float) -> None:
        for name in shadow:
            shadow[name] = 0.9 * shadow[name] + value

    return shadow, follow


MEMORIES: dict[str, Callable[[], tuple[Any, Callable[[float], None]]]] = {
    "arrays and numbers of an object": _ring,
    "a deque of records": lambda: _records(lambda: deque(maxlen=8)),
    "a list of records": lambda: _records(list),
    "a tensor of a module that is no buffer": _loss,
    "a dictionary of tensors": _dictionary,
}


def _seen(sources: list[Source]) -> list[Any]:
    kept = copy_state(sources)
    return [
        (name, {key: tensor.tolist() for key, tensor in (saved.tensors or {}).items()}, saved.values)
        for name, saved in sorted(kept.items())
    ]


@pytest.mark.parametrize("name", MEMORIES)
def test_the_law_holds_for_memory_that_is_tracked(name: str) -> None:
    memory, change = MEMORIES[name]()
    sources: list[Source] = [TrackedSource("it", memory)]
    for value in (1.0, 2.5, 3.0, 4.5):
        change(value)
    kept, there = copy_state(sources), _seen(sources)
    trail: list[list[Any]] = []
    for _ in range(2):
        trail.append([])
        for value in (5.0, 6.5, 7.0, 8.5, 9.0):
            change(value)
            trail[-1].append(_seen(sources))
        assert _seen(sources) != there
        assert restore_state(sources, kept) == []
        assert _seen(sources) == there
    assert trail[0] == trail[1]


def test_a_container_is_read_as_one_that_is_new() -> None:
    """What is brought up to date entry by entry says the same as what is read at once."""
    memory: deque[Any] = deque(maxlen=5)
    table = EntryTable()
    for value in range(23):
        memory.append((float(value), torch.full((2,), float(value))))
        if value % 7 == 3:
            memory[1] = (0.5, torch.zeros(2))
        if value == 16:
            memory.popleft()
        new = EntryTable().tensors(memory)
        assert [(n, t.tolist()) for n, t in table.tensors(memory)] == [(n, t.tolist()) for n, t in new]


def test_places_without_a_record_are_told() -> None:
    memory: list[Any] = [None] * 4
    memory[2] = (np.ones(2), 1)
    assert EntryTable.takes(memory)
    found = dict(EntryTable().tensors(memory))
    assert found["empty"].tolist() == [True, True, False, True]
    assert found["0"][2].tolist() == [1, 1]


def test_the_size_of_records_is_known_before_they_are_copied() -> None:
    memory: deque[Any] = deque(maxlen=100)
    memory.append((None, torch.zeros(2, 3), 1))
    memory.append((np.zeros(5, dtype=np.float32), torch.zeros(2, 3), 2))
    assert EntryTable.size(memory) == 100 * (5 * 4 + 6 * 4 + 8)
    assert sum(tensor.nbytes for name, tensor in EntryTable().tensors(memory) if name != "fill") == 100 * 52


@pytest.mark.parametrize("zeroed", ["before the backward", "every other step", "accumulated"])
def test_gradients_are_carried_when_the_next_backward_adds_to_them(zeroed: str) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    source = OptimizerSource("optimizer", optimizer, lambda _: None)
    watch, found = GradientWatch(), []
    for step in range(4):
        if zeroed != "every other step" or step % 2 == 0:
            optimizer.zero_grad()
        for _ in range(2 if zeroed == "accumulated" else 1):
            watch.before_backward([source])
            net(torch.randn(4, 3)).sum().backward()
        optimizer.step()
        found.append(watch.after_step(optimizer))
    assert found == [False, zeroed == "every other step", False, False]


def test_gradients_are_put_back() -> None:
    net = nn.Linear(3, 1)
    source = GradientSource("model.grads", net.named_parameters)
    net(torch.ones(1, 3)).sum().backward()
    kept, there = copy_state([source]), _seen([source])
    net(torch.ones(1, 3)).sum().backward()
    assert _seen([source]) != there
    assert restore_state([source], kept) == []
    assert _seen([source]) == there
    net.zero_grad()
    assert restore_state([source], kept) == []
    assert _seen([source]) == there


def test_what_is_tracked_is_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINMEM_AUDIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    net, held = nn.Linear(2, 1), [torch.zeros(3)]
    ring = Ring()
    recorder = Recorder("run", commitments=False)
    recorder.track("queue", lambda: held[0])
    with recorder:
        recorder.track("replay", ring)
        with pytest.raises(UsageError, match="tracked already"):
            recorder.track("queue", held[0])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for step in range(3):
            held[0] = torch.full((3,), float(step))
            ring.store(step)
            optimizer.zero_grad()
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()
    assert recorder.error is None and recorder.statement is not None
    sources = recorder.statement.predicate.sources
    assert [name for name in sources if name.startswith("bank")] == ["bank.queue", "bank.replay", "bank.replay.numbers"]
    assert {sources[name].source for name in sources if name.startswith("bank")} == {"S4"}


@pytest.mark.parametrize("memory", [object(), "text", 3, lambda: None, [object()]])
def test_what_cannot_be_digested_is_refused(memory: Any) -> None:
    with pytest.raises(UsageError, match="cannot be digested"):
        TrackedSource("it", memory)


def test_names_and_classes_are_checked() -> None:
    with pytest.raises(UsageError, match="not a name"):
        TrackedSource("a b", torch.zeros(2))
    with pytest.raises(UsageError, match="no such class"):
        TrackedSource("it", torch.zeros(2), source="S6")
