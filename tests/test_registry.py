"""The law of every kind of component: copy, train on, restore, train on again: the two go the same way to the bit.

Also from the state of one process into objects made anew, as a segment is replayed.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from trainmem_audit.canonical import canonical_bytes
from trainmem_audit.digests import tensor_digest
from trainmem_audit.sources.base import Source
from trainmem_audit.sources.modules import ModuleSource
from trainmem_audit.sources.optimizers import OptimizerSource
from trainmem_audit.sources.restoring import copy_state, restore_state, write_tensor
from trainmem_audit.sources.scalers import ScalerSource
from trainmem_audit.sources.schedulers import SchedulerSource
from trainmem_audit.sources.streams import StreamSet


@dataclass
class Training:
    """A training that goes on whenever `step` is called; `sources` report all that it carries but random streams."""

    sources: list[Source]
    step: Callable[[], float]


def _data() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(7)
    while True:
        yield torch.randn(6, 3, generator=generator), torch.randn(6, 1, generator=generator)


BATCHES = [batch for batch, _ in zip(_data(), range(4), strict=False)]


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 1))


def training(
    make: Callable[[nn.Module], torch.optim.Optimizer],
    model: Callable[[], nn.Module] = _mlp,
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    average: bool = False,
    scaled: bool = False,
) -> Training:
    torch.manual_seed(0)
    net = model()
    optimizer = make(net)
    sources: list[Source] = [ModuleSource("model", net)]
    sources.append(OptimizerSource("optimizer", optimizer, lambda key: sources[0].names().get(key)))  # type: ignore[attr-defined]
    scheduler = schedule(optimizer) if schedule is not None else None
    if scheduler is not None:
        sources.append(SchedulerSource("scheduler", scheduler))
        inner = vars(scheduler).get("_schedulers", ())
        sources += [SchedulerSource(f"scheduler{number + 2}", item) for number, item in enumerate(inner)]
    teacher = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True) if average else None  # type: ignore[no-untyped-call]
    if teacher is not None:
        sources.append(ModuleSource("teacher", teacher, trained=False))
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2) if scaled else None
    if scaler is not None:
        sources.append(ScalerSource("scaler", scaler))
    count = 0

    def step() -> float:
        nonlocal count
        x, y = BATCHES[count % len(BATCHES)]
        count += 1

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = (net(x) - y).square().mean()
            (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]
            return loss

        if isinstance(optimizer, torch.optim.LBFGS):
            loss = optimizer.step(closure)  # type: ignore[no-untyped-call]
        else:
            loss = closure()
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
        if teacher is not None:
            teacher.update_parameters(net)
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss.item())
        elif scheduler is not None:
            scheduler.step()
        return float(loss.item())

    def at(number: int) -> None:
        nonlocal count
        count = number

    step.at = at  # type: ignore[attr-defined]
    return Training(sources, step)


def seen(sources: list[Source]) -> dict[str, Any]:
    """Return every component as the recorder would tell it: digests by tensor name, values as canonical JSON."""
    found: dict[str, Any] = {}
    for source in sources:
        for item in source.components():
            if item.tensors is None:
                found[item.name] = canonical_bytes(item.values)
            else:
                found[item.name] = [(name, str(t.dtype), t.stride(), tensor_digest(t)) for name, t in item.tensors]
    return found


def go_on(run: Training, steps: int) -> list[Any]:
    return [(run.step(), seen(run.sources)) for _ in range(steps)]


def holds(make: Callable[[], Training], before: int = 3) -> None:
    """Demand the law of a training: in the same objects after more steps, and in objects made anew."""
    run = make()
    go_on(run, before)
    kept = copy_state(run.sources)
    streams = torch.get_rng_state()
    there = seen(run.sources)
    expected = go_on(run, 4)
    assert seen(run.sources) != there
    for again in (run, make()):
        assert restore_state(again.sources, kept) == []
        assert seen(again.sources) == there
        torch.set_rng_state(streams)
        again.step.at(before)  # type: ignore[attr-defined]
        assert go_on(again, 4) == expected
    start = make()
    initial, begun = copy_state(start.sources), seen(start.sources)
    go_on(start, before)
    assert restore_state(start.sources, initial) == []  # what had not been made yet is taken away
    assert seen(start.sources) == begun


VARIANTS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=0.1),
    "SGD, momentum": lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, dampening=0.1),
    "SGD, Nesterov, foreach": lambda net: torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=True
    ),
    "SGD, fused": lambda net: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True),
    "Adam, amsgrad": lambda net: torch.optim.Adam(net.parameters(), lr=0.01, amsgrad=True),
    "Adam, fused": lambda net: torch.optim.Adam(net.parameters(), lr=0.01, fused=True),
    "Adam, foreach, maximize": lambda net: torch.optim.Adam(net.parameters(), lr=0.01, foreach=True, maximize=True),
    "Adam, tensor learning rate": lambda net: torch.optim.Adam(
        net.parameters(), lr=torch.tensor(0.01), capturable=False, foreach=False
    ),
    "RMSprop, centered, momentum": lambda net: torch.optim.RMSprop(
        net.parameters(), lr=0.01, centered=True, momentum=0.5
    ),
    "AdamW, groups": lambda net: torch.optim.AdamW(
        [{"params": [p]} if p.ndim > 1 else {"params": [p], "weight_decay": 0.0} for p in net.parameters()], lr=0.01
    ),
    "LBFGS, line search": lambda net: torch.optim.LBFGS(
        net.parameters(), lr=0.5, max_iter=3, history_size=4, line_search_fn="strong_wolfe"
    ),
    "LBFGS": lambda net: torch.optim.LBFGS(net.parameters(), lr=0.2, max_iter=2, history_size=3),
}
for _name in (
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
):
    VARIANTS[_name] = lambda net, kind=_name: getattr(torch.optim, kind)(net.parameters(), lr=0.01)  # type: ignore[misc]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_law_holds_for_every_optimizer(name: str) -> None:
    holds(lambda: training(VARIANTS[name]))


def test_the_law_holds_for_matrices_and_sparse_gradients() -> None:
    def matrices() -> Training:
        return training(
            lambda net: torch.optim.Muon([p for p in net.parameters() if p.ndim == 2], lr=0.02),
            lambda: nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False)),
        )

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3, sparse=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.table(x.argmax(1)).sum(1, keepdim=True)
            return found

    holds(matrices)
    holds(lambda: training(lambda net: torch.optim.SparseAdam(net.parameters(), lr=0.1), Table))


def test_every_optimizer_of_torch_is_tried() -> None:
    there = {name for name, item in vars(torch.optim).items() if inspect.isclass(item)} - {"Optimizer"}
    tried = {name.split(",")[0] for name in VARIANTS} | {"Muon", "SparseAdam"}
    assert there == tried


def _sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


SCHEDULES: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=3),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, total_iters=5),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 5),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 5),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.2, total_steps=20),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.StepLR(o, 1)], [2]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, total_iters=2), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_law_holds_for_every_schedule(name: str) -> None:
    holds(lambda: training(_sgd, schedule=SCHEDULES[name]))


def test_every_scheduler_of_torch_is_tried() -> None:
    classes = {name: item for name, item in vars(lr_scheduler).items() if inspect.isclass(item)}
    there = {name for name, item in classes.items() if issubclass(item, lr_scheduler.LRScheduler)}
    assert there - {"LRScheduler", "_LRScheduler"} == SCHEDULES.keys()


class Memory(nn.Module):
    """Running statistics of every kind, buffers in and out of `state_dict`, tied and oddly laid out weights."""

    def __init__(self, expanded: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(3)
        self.plain = nn.BatchNorm1d(3, momentum=None)
        self.frozen = nn.BatchNorm1d(3).eval()
        self.last = nn.Linear(3, 1)
        self.last.weight = nn.Parameter(torch.randn(3, 1).t())
        self.queue: torch.Tensor
        self.register_buffer("queue", torch.zeros(4, 3, dtype=torch.float64), persistent=False)
        self.pointer: torch.Tensor
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.long))
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.ones(1, 1).expand(2, 3) if expanded else torch.ones(2, 3))

    def train(self, mode: bool = True) -> Memory:
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.frozen(self.plain(self.norm(self.second(self.first(x)))))
        with torch.no_grad():
            at = int(self.pointer)
            self.queue[at] = x.mean(0).double()
            self.pointer[0] = (at + 1) % 4
            self.scale[0, :1].add_(0.125)
        out: torch.Tensor = self.last(x + self.queue.mean(0).float() * self.scale[0])
        return out


def test_the_law_holds_for_modules_averages_and_scalers() -> None:
    holds(lambda: training(_sgd, lambda: Memory(True), scaled=True))
    holds(lambda: training(_sgd, lambda: Memory(False), average=True))


def test_tensors_are_written_where_they_lie() -> None:
    base = torch.zeros(12)
    views = [base[1:7:2], base.as_strided((2, 2), (1, 2), 7), base[:1].expand(4), base.as_strided((3, 2), (1, 1))]
    for view in views:
        value = torch.zeros_like(view).contiguous() + 3.0
        place, stride = view.data_ptr(), view.stride()
        assert write_tensor(view, value) is None
        assert torch.equal(view, value)
        assert (view.data_ptr(), view.stride()) == (place, stride)
    with torch.inference_mode():
        inferred = torch.zeros(3)
    assert write_tensor(inferred, torch.ones(3)) is None
    assert inferred.sum() == 3
    assert write_tensor(base, torch.zeros(12, dtype=torch.float64)) == (
        "is torch.float32 [12] now, and was torch.float64 [12]"
    )


def test_the_law_holds_for_every_random_stream() -> None:
    streams = StreamSet()
    own: dict[str, Any] = {
        "random.random": random.Random(1),
        "numpy.generator": np.random.default_rng(2),
        "numpy.mt": np.random.Generator(np.random.MT19937(3)),
        "numpy.philox": np.random.Generator(np.random.Philox(4)),
        "torch.generator": torch.Generator().manual_seed(5),
    }
    for name, generator in own.items():
        streams.found(name, generator)
    streams.adopt()

    def draw() -> list[Any]:
        drawn: list[Any] = [random.gauss(0, 1), torch.randn(3).tolist(), np.random.standard_normal(3).tolist()]
        for generator in own.values():
            if isinstance(generator, random.Random):
                drawn.append(generator.gauss(0, 1))
            elif isinstance(generator, torch.Generator):
                drawn.append(torch.randn(3, generator=generator).tolist())
            else:
                drawn.append([generator.integers(0, 100, dtype="i4"), *generator.standard_normal(3).tolist()])
        return drawn

    draw()  # a cached second normal deviate is part of the state
    kept = {name: streams.describe(name) for name in streams.digests()}
    digests = streams.digests()
    assert kept.keys() >= own.keys() | {"python", "numpy", "torch.cpu"}
    expected = [draw(), draw()]
    for name, stream in kept.items():
        assert stream is not None
        assert streams.restore(name, stream) is None
    assert streams.digests() == digests
    assert [draw(), draw()] == expected
    python = kept["python"]
    assert python is not None
    assert streams.restore("gone", python) == "not there any more"
    assert "cannot be restored" in str(streams.restore("torch.cpu", python))


def test_what_cannot_be_put_back_is_named() -> None:
    run = training(_sgd, schedule=lambda o: lr_scheduler.LambdaLR(o, [lambda epoch: 0.5]))
    kept = copy_state(run.sources)
    other = training(lambda net: torch.optim.SGD(net[0].parameters(), lr=0.1), lambda: nn.Sequential(nn.Linear(3, 1)))  # type: ignore[index]
    problems = restore_state(other.sources, kept)
    assert any("model.params: 0.weight is torch.float32 [1, 3] now" in text for text in problems)
    assert any("model.params: 3.weight is not there any more" in text for text in problems)
    assert any("optimizer.hyper: group 0 has 2 parameters now, and 4 then" in text for text in problems)
    assert "scheduler: not there any more" in problems
