"""The law of copy and restore for wrappers, plain copies of the weights, packaged averages and samplers.

Copy, train on, restore, train on again: the two go the same way to the bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from ema_pytorch import EMA
from pytorch_optimizer import SAM, Lookahead
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

from tests.test_registry import BATCHES, Training, holds
from trainmem_audit.sources.base import Source
from trainmem_audit.sources.copies import find_plain_copies
from trainmem_audit.sources.modules import ModuleSource
from trainmem_audit.sources.optimizers import OptimizerSource, nested
from trainmem_audit.sources.samplers import SamplerSource


def trained(after: Callable[[nn.Module], tuple[list[Source], Callable[[], object]]], wrap: Any = None) -> Training:
    """Return a training of a small model; `after` gives more sources, and what is called after each step."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    base = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimizer: Any = base if wrap is None else wrap(net, base)
    model = ModuleSource("model", net)
    sources: list[Source] = [model]
    inner = None
    for number, item in enumerate(nested(optimizer)):
        name = f"optimizer{number + 1 if number else ''}"
        sources.append(OptimizerSource(name, item, lambda key: model.names().get(key), inner))
        inner = item
    more, do = after(net)
    count = 0

    def step() -> float:
        nonlocal count
        x, y = BATCHES[count % len(BATCHES)]
        count += 1

        def closure() -> Any:
            optimizer.zero_grad()
            loss: torch.Tensor = (net(x) - y).square().mean()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        loss = closure()
        optimizer.step(closure) if isinstance(optimizer, SAM) else optimizer.step()
        do()
        return float(loss.item())

    def at(number: int) -> None:
        nonlocal count
        count = number

    step.at = at  # type: ignore[attr-defined]
    return Training([*sources, *more], step)


def nothing(net: nn.Module) -> tuple[list[Source], Callable[[], object]]:
    return [], lambda: None


def test_the_law_holds_for_lookahead_and_sam() -> None:
    holds(lambda: trained(nothing, lambda net, base: Lookahead(base, k=2)))
    holds(lambda: trained(nothing, lambda net, base: SAM(net.parameters(), torch.optim.SGD, lr=0.1, momentum=0.9)))


def packaged(net: nn.Module) -> tuple[list[Source], Callable[[], object]]:
    average = EMA(net, beta=0.9, update_after_step=1, update_every=2)
    source = ModuleSource("teacher", average, ModuleSource("model", net).tensor_ids(), trained=False)
    return [source], average.update


def test_the_law_holds_for_the_average_of_a_package() -> None:
    holds(lambda: trained(packaged))


class Shadow:
    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.kept = [param.detach().clone() for param in net.parameters()]

    def update(self) -> None:
        self.kept = [0.9 * old + 0.1 * new.detach() for old, new in zip(self.kept, self.net.parameters(), strict=True)]


def shadowed(net: nn.Module) -> tuple[list[Source], Callable[[], object]]:
    shadow = Shadow(net)
    found = find_plain_copies(list(net.parameters()), [name for name, _ in net.named_parameters()])
    (source,) = [source for source in found if source.is_held_by(shadow, "kept")]
    source.name = "average.kept"  # there may be others yet, of an earlier training
    assert not source.changes()
    shadow.update()
    torch.nn.init.constant_(shadow.kept[0], 0.5)
    assert source.changes()
    return [source], shadow.update


def test_the_law_holds_for_a_shadow_of_the_weights() -> None:
    holds(lambda: trained(shadowed))


class Paced:
    def __init__(self) -> None:
        self.stage, self.seen, self.losses = 0, [1.5], torch.zeros(2)
        self.order = list(range(5000))

    def __iter__(self) -> Any:
        return iter(())

    def advance(self) -> None:
        self.stage += 1
        self.seen.append(self.seen[-1] / 3)
        self.losses += self.stage


def paced(net: nn.Module) -> tuple[list[Source], Callable[[], object]]:
    sampler = Paced()
    net.loader = loader = DataLoader(TensorDataset(torch.zeros(4)), sampler=sampler)  # type: ignore[assignment]
    return [SamplerSource("sampler", loader)], sampler.advance


def weighted(net: nn.Module) -> tuple[list[Source], Callable[[], object]]:
    sampler = WeightedRandomSampler([1.0] * 4, 4)
    net.loader = loader = DataLoader(TensorDataset(torch.zeros(4)), sampler=sampler)  # type: ignore[assignment]
    return [SamplerSource("sampler", loader)], lambda: sampler.weights.mul_(1.5)


def test_the_law_holds_for_samplers() -> None:
    holds(lambda: trained(paced))
    holds(lambda: trained(weighted))


def test_a_list_too_long_to_be_read_is_left_and_named_where_its_length_differs() -> None:
    sampler = Paced()
    loader = DataLoader(TensorDataset(torch.zeros(4)), sampler=sampler)
    source = SamplerSource("sampler", loader)
    saved = {
        item.name: copy.copy(item)
        for item in source.components()
        if item.tensors is None
    }  # fmt: skip
    sampler.order.append(7)
    (why,) = source.restore(saved)  # type: ignore[arg-type]
    assert "order has 5001 members now" in why
    assert len(sampler.order) == 5001
