"""Modules that nobody trains: those that change after they were called are found, once; those that do not, never."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainings import statement_of
from trainmem_audit import Recorder
from trainmem_audit.keys import Signer
from trainmem_audit.sources.called import CalledModules


def in_place(module: nn.Linear) -> None:
    with torch.no_grad():
        module.weight.mul_(0.5)


def by_data(module: nn.Linear) -> None:
    module.weight.data.mul_(0.5)


def by_another_tensor(module: nn.Linear) -> None:
    module.weight.data = module.weight.data * 0.5


@pytest.mark.parametrize("after", [1, 9])
@pytest.mark.parametrize("change", [in_place, by_data, by_another_tensor])
def test_a_called_module_that_changes_is_found_once(change: Callable[[nn.Linear], None], after: int) -> None:
    called, module = CalledModules(), nn.Linear(2, 2)
    called.add(module)
    found = [called.changed(lambda _: False) for _ in range(after)]
    change(module)
    found += [called.changed(lambda _: False) for _ in range(2)]
    seen = [] if change is by_data and after == 9 else [module]  # the version counter does not tell of it
    assert found == [*[[]] * after, seen, []]


def test_a_module_that_is_followed_already_is_not_looked_at() -> None:
    called, module = CalledModules(), nn.Linear(2, 2)
    called.add(module)
    for _ in range(2):
        assert called.changed(lambda one: one is module) == []
        in_place(module)
    assert called.changed(lambda _: False) == []


def test_a_generator_that_is_called_long_before_it_is_trained_ends_as_a_model(tmp_path: Path) -> None:
    """As in a WGAN: its batch-norm statistics change while only the critic steps."""
    torch.manual_seed(0)
    critic, generator = nn.Linear(2, 1), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    steps = [torch.optim.SGD(module.parameters(), lr=0.1) for module in (critic, generator)]
    with Recorder(tmp_path / "run", signer=Signer.generate()):
        for _ in range(3):
            critic(generator(torch.randn(4, 2)).detach()).mean().backward()
            steps[0].step()
        critic(generator(torch.randn(4, 2))).mean().backward()
        steps[1].step()
    sources = statement_of(tmp_path / "run").predicate.sources
    assert {"teacher.batchnorm", "model2.params", "model2.batchnorm"} <= sources.keys()
    assert (sources["teacher.params"].source, sources["model2.params"].source) == ("S5", "S3")
