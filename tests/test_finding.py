"""What is found beside modules and optimizers: samplers, averages, copies of the weights, teachers inside a model."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset, WeightedRandomSampler

from tests.memories import ROWS
from tests.memories.table import PAGE, SOURCES, page
from trainmem_audit.sources import copies
from trainmem_audit.sources.called import CalledModules
from trainmem_audit.sources.copies import CopySource, find_plain_copies
from trainmem_audit.sources.modules import ModuleSource, find_averages, find_roots, untrained_parts
from trainmem_audit.sources.samplers import SamplerSource

DATA = TensorDataset(torch.arange(8.0))


class Paced(Sampler[int]):
    """A sampler with a stage, a short and a long list, an array and a generator."""

    def __init__(self) -> None:
        self.stage = 1
        self.easy = [3, 1, 2]
        self.order = list(range(10_000))
        self.losses = np.ones(4)
        self.generator = torch.Generator()

    def __iter__(self) -> Any:
        return iter(self.easy)


def components(source: Any) -> dict[str, Any]:
    return {
        item.name: item.values if item.tensors is None else [name for name, _ in item.tensors]
        for item in source.components()
    }


def test_a_sampler_gives_its_plain_attributes_and_tensors() -> None:
    sampler = Paced()
    source = SamplerSource("sampler", loader := DataLoader(DATA, sampler=sampler))
    values = {"class": "Paced", "stage": 1, "easy": [3, 1, 2], "order": {"length": 10_000}}
    assert components(source) == {"sampler": {"sampler": values}, "sampler.tensors": ["sampler.losses"]}
    sampler.stage += 1
    assert components(source)["sampler"]["sampler"]["stage"] == 2
    del loader


def test_of_torchs_samplers_only_weights_are_memory() -> None:
    assert components(SamplerSource("sampler", DataLoader(DATA, batch_size=2, shuffle=True))) == {}
    loader = DataLoader(DATA, sampler=WeightedRandomSampler([1.0, 2.0], 4))
    assert components(SamplerSource("sampler", loader)) == {"sampler.tensors": ["sampler.weights"]}


def test_a_sampler_is_kept_alive_by_nobody() -> None:
    source = SamplerSource("sampler", DataLoader(DATA, sampler=Paced()))
    assert components(source) == {}


class Shadow:
    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = {name: param.detach().clone() for name, param in model.named_parameters()}
        self.params = list(model.parameters())
        self.other = [torch.zeros(3)]


def found_in(holder: Any, model: nn.Module) -> list[CopySource]:
    names = [name for name, _ in model.named_parameters()]
    return [
        source for source in find_plain_copies(list(model.parameters()), names) if source.is_held_by(holder, "shadow")
    ]


def test_a_copy_of_the_weights_counts_when_it_changes_also_by_another_tensor() -> None:
    model = nn.Linear(4, 2)
    holder = Shadow(model, 0.75)
    (source,) = found_in(holder, model)
    assert not source.changes()
    assert components(source) == {}
    holder.shadow["bias"] = holder.shadow["bias"] + 1
    assert source.changes()
    (component,) = source.components()
    assert (component.name, component.labels.lifetime_steps) == ("average.shadow", 4.0)
    assert component.tensors is not None
    assert [name for name, _ in component.tensors] == ["weight", "bias"]
    del holder
    assert components(source) == {}


def test_the_parameters_themselves_and_other_shapes_are_no_copies() -> None:
    model = nn.Linear(4, 2)
    holder = Shadow(model, 0.5)
    sources = find_plain_copies(list(model.parameters()), ["weight", "bias"])
    assert [source.attribute for source in sources if source.is_held_by(holder, source.attribute)] == ["shadow"]


class Pair(nn.Module):
    """An online network and its target in one module."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.target = copy.deepcopy(self.online).requires_grad_(False)


def test_an_untrained_part_is_a_teacher_when_its_parameters_change() -> None:
    model = Pair()
    trained = {id(param) for param in model.online.parameters()}
    assert untrained_parts(model, trained) == [model.target]
    watched = CalledModules(params_only=True)
    watched.add(model.target)
    assert watched.changed(lambda _: False) == []
    model.target(torch.randn(8, 4))  # moves its BatchNorm, as a frozen network's does
    assert watched.changed(lambda _: False) == []
    with torch.no_grad():
        next(model.target.parameters()).add_(1)
    assert watched.changed(lambda _: False) == [model.target]


def test_what_a_teacher_claims_the_model_leaves_out_until_it_is_released() -> None:
    model = Pair()
    source = ModuleSource("model", model)
    teacher = ModuleSource("teacher", model.target, trained=False)
    everything = components(source)
    source.claim(teacher.tensor_ids())
    assert all(name.startswith("online.") for family in components(source).values() for name in family)
    source.release(teacher.tensor_ids())
    assert components(source) == everything


class Average(nn.Module):
    """The shape of `ema-pytorch`: it holds the model that it averages."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.online_model = model
        self.ema_model = copy.deepcopy(model)
        self.beta, self.update_every = 0.75, 2
        self.register_buffer("step", torch.tensor(0))


def test_an_average_is_no_root_of_the_model_that_it_holds() -> None:
    model = nn.Linear(4, 2)
    average = Average(model)
    assert find_roots(list(model.parameters())) == [model]
    assert find_averages([model]) == [average]
    source = ModuleSource("teacher", average, ModuleSource("model", model).tensor_ids(), trained=False)
    assert components(source) == {
        "teacher.params": ["ema_model.weight", "ema_model.bias"],
        "teacher.buffers": ["step"],
        "teacher.attributes": {"beta": (0.75).hex(), "update_every": 2},
    }
    (params, *_) = source.components()
    assert params.labels.lifetime_steps == 8.0


@pytest.mark.parametrize(
    ("momenta", "lifetime", "steps"),
    [((0.25, 0.25), "meso", 4.0), ((None, None), "macro", None), ((0.25, None), "meso", None)],
)
def test_the_lifetime_of_running_statistics_is_one_over_their_momentum(
    momenta: tuple[float | None, ...], lifetime: str, steps: float | None
) -> None:
    model = nn.Sequential(*(nn.BatchNorm1d(4, momentum=momentum) for momentum in momenta))
    batchnorm = next(item for item in ModuleSource("model", model).components() if item.name == "model.batchnorm")
    assert (batchnorm.labels.lifetime, batchnorm.labels.lifetime_steps) == (lifetime, steps)


def test_statistics_are_those_of_every_batchnorm_that_tracks_some() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.SyncBatchNorm(4), nn.LayerNorm(4))
    names = components(ModuleSource("model", model))["model.batchnorm"]
    assert names == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]


def test_libraries_hold_no_copies() -> None:
    assert {"torch", "numpy", "trainmem_audit"} <= copies._LIBRARIES


def test_the_page_of_the_sources_is_made_from_the_rows() -> None:
    assert PAGE.read_text("utf-8") == page(ROWS), "python -m tests.memories writes it"


def test_every_row_is_an_example_of_some_source_or_a_variation() -> None:
    commands = {row.command[0] for row in ROWS}
    shown = {memory.example[0] for memory in SOURCES}
    assert shown <= commands
    for memory in SOURCES:
        assert memory.components or memory.instead
