"""Memory sources: what is found in modules, optimizers, schedulers and streams, and that looking changes nothing."""

from __future__ import annotations

import copy
import gc
import random
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainmem_audit.sources.base import Labels, plain_value
from trainmem_audit.sources.batches import batch_digest, batch_size, index_bytes
from trainmem_audit.sources.modules import ModuleSource, find_roots
from trainmem_audit.sources.optimizers import OptimizerSource, learning_rates
from trainmem_audit.sources.schedulers import SchedulerSource
from trainmem_audit.sources.streams import StreamSet, restore_torch, torch_stream
from trainmem_audit.sources.twisters import numpy_digest, numpy_stream, python_digest, python_stream, restore_twister


class Net(nn.Module):
    """A model with parameters, BatchNorm statistics, and buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.register_buffer("queue", torch.zeros(2, 4))
        self.register_buffer("hidden", torch.zeros(1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, 4) to (N, 4)."""
        return self.body(x)  # type: ignore[no-any-return]


def names(source: Any) -> dict[str, list[str]]:
    """Return the tensor names (or value keys) of each component of a source."""
    return {
        component.name: [name for name, _ in component.tensors] if component.tensors else sorted(component.values)
        for component in source.components()
    }


def nameless(key: int) -> str | None:
    """Name no parameter: as if no module owned any."""
    return None


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 4)).sum().backward()
    optimizer.step()


def test_a_module_gives_parameters_batchnorm_and_buffers() -> None:
    assert names(ModuleSource("model", Net())) == {
        "model.params": ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"],
        "model.batchnorm": ["body.1.running_mean", "body.1.running_var", "body.1.num_batches_tracked"],
        "model.buffers": ["queue", "hidden"],
    }


def test_tied_weights_are_named_once() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert names(ModuleSource("model", model))["model.params"] == ["0.weight", "0.bias", "1.bias"]


def test_a_replaced_parameter_and_an_added_module_are_seen() -> None:
    model = Net()
    source = ModuleSource("model", model)
    list(source.components())
    model.body[0].weight = nn.Parameter(torch.full((4, 4), 7.0))
    (params, *_) = source.components()
    assert params.tensors is not None and params.tensors[0][1] is model.body[0].weight
    model.add_module("head", nn.Linear(4, 1))
    assert "head.weight" in names(source)["model.params"]


def test_a_source_keeps_no_model_alive() -> None:
    model = Net()
    source = ModuleSource("model", model)
    list(source.components())
    del model
    gc.collect()
    assert source.root is None
    assert list(source.components()) == []


def test_roots_are_the_outermost_owners_also_of_a_deep_copy() -> None:
    inner = Net()
    outer = nn.ModuleDict({"net": inner})
    copied = copy.deepcopy(inner)
    assert find_roots(list(inner.parameters())) == [outer]
    assert find_roots(list(copied.parameters())) == [copied]
    assert find_roots([torch.zeros(1, requires_grad=True)]) == []


@pytest.mark.parametrize(
    ("make", "slots"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), set()),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), {"optimizer.momentum"}),
        (lambda p: torch.optim.Adam(p), {"optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq"}),
        (
            lambda p: torch.optim.AdamW(p, amsgrad=True),
            {"optimizer.step", "optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.max_exp_avg_sq"},
        ),
        (lambda p: torch.optim.RMSprop(p), {"optimizer.step", "optimizer.square_avg"}),
        (lambda p: torch.optim.Adagrad(p), {"optimizer.step", "optimizer.sum"}),
    ],
)
def test_an_optimizer_gives_its_slots_by_name(make: Any, slots: set[str]) -> None:
    model = Net()
    optimizer = make(model.parameters())
    train_step(model, optimizer)
    source = OptimizerSource("optimizer", optimizer, ModuleSource("model", model).names().get)
    found = names(source)
    assert found.keys() == slots | {"optimizer.hyper"}
    for slot in slots:
        assert found[slot] == ["body.0.weight", "body.0.bias", "body.1.weight", "body.1.bias"]


def test_looking_at_an_optimizer_inserts_nothing_into_its_state() -> None:
    model = Net()
    optimizer = torch.optim.Adam(model.parameters())
    list(OptimizerSource("optimizer", optimizer, nameless).components())
    assert len(optimizer.state) == 0


def test_parameters_that_no_module_owns_are_a_component_of_the_optimizer() -> None:
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.1)
    assert names(OptimizerSource("optimizer", optimizer, nameless))["optimizer.params"] == ["0.0"]


def test_lifetimes_follow_the_formula() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.75)
    train_step(model, optimizer)
    source = OptimizerSource("optimizer", optimizer, nameless)
    lifetimes = {item.name: item.labels.lifetime_steps for item in source.components()}
    assert lifetimes["optimizer.momentum"] == 4.0


def test_hyper_parameters_follow_a_change_and_a_tensor_learning_rate() -> None:
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.5)
    source = OptimizerSource("optimizer", optimizer, nameless)

    def rate() -> str:
        values = {item.name: item.values for item in source.components()}
        found: str = values["optimizer.hyper"]["groups"][0]["lr"]
        return found

    assert rate() == (0.5).hex()
    optimizer.param_groups[0]["lr"] = 0.25
    assert rate() == (0.25).hex()
    optimizer.param_groups[0]["lr"] = torch.tensor(0.125)
    assert rate() == (0.125).hex()
    optimizer.param_groups[0]["lr"].fill_(0.0625)
    assert rate() == (0.0625).hex()
    assert learning_rates(optimizer) == (0.0625,)


def test_a_scheduler_gives_its_counters_and_not_its_optimizer() -> None:
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)
    (component,) = SchedulerSource("scheduler", scheduler).components()
    assert component.values["last_epoch"] == 0
    assert component.values["class"] == "StepLR"
    assert "optimizer" not in component.values


def test_a_plateau_scheduler_with_infinities_has_values() -> None:
    optimizer = torch.optim.SGD([torch.ones(2, requires_grad=True)], lr=0.5)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    (component,) = SchedulerSource("scheduler", scheduler).components()
    assert component.values["best"] == "inf"


def test_plain_values_leave_out_what_has_no_plain_form() -> None:
    value = {"f": print, "x": [1, 2.0, object()], "big": 2**60, "none": None, "array": np.float32(0.5)}
    assert plain_value(value) == {
        "x": [1, "0x1.0000000000000p+1"], "big": str(2**60), "none": None, "array": "0x1.0000000000000p-1"
    }  # fmt: skip


# Streams -----------------------------------------------------------------------------------------------------------


def test_digests_of_streams_draw_nothing() -> None:
    streams = StreamSet()
    before = (random.getstate(), np.random.get_state(legacy=False)["state"]["pos"], torch.get_rng_state())
    assert streams.digests() == streams.digests()
    assert before[:2] == (random.getstate(), np.random.get_state(legacy=False)["state"]["pos"])
    assert torch.equal(before[2], torch.get_rng_state())


def test_each_draw_changes_exactly_its_stream() -> None:
    streams = StreamSet()
    generator = torch.Generator()
    streams.add_generator("loader.generator", generator)
    draws: dict[str, Any] = {
        "python": random.random,
        "numpy": np.random.rand,
        "torch.cpu": lambda: torch.rand(1),
        "loader.generator": lambda: torch.rand(1, generator=generator),
    }
    for name, draw in draws.items():
        before = streams.digests()
        draw()
        after = streams.digests()
        assert {key for key in after if after[key] != before[key]} == {name}


@pytest.mark.parametrize("draws", [0, 1, 2, 623, 624, 625])
def test_twisters_are_restored_with_their_cached_normal(draws: int) -> None:
    random.seed(5)
    np.random.seed(5)
    for _ in range(draws):
        random.gauss(0, 1)
        np.random.randn()
    saved = (python_stream(), numpy_stream(), python_digest(random.getstate()), numpy_digest())
    expected = ([random.gauss(0, 1) for _ in range(3)], np.random.randn(3).tolist())
    restore_twister(saved[0])
    restore_twister(saved[1])
    assert (python_digest(random.getstate()), numpy_digest()) == saved[2:]
    assert ([random.gauss(0, 1) for _ in range(3)], np.random.randn(3).tolist()) == expected


def test_a_torch_stream_is_restored() -> None:
    generator = torch.Generator().manual_seed(1)
    torch.randn(3, generator=generator)
    saved = torch_stream(generator)
    expected = torch.randn(7, generator=generator)
    restore_torch(saved, generator)
    assert torch.equal(torch.randn(7, generator=generator), expected)


def test_python_digests_are_cached_and_still_exact() -> None:
    streams = StreamSet()
    rng = random.Random(0)
    for _ in range(300):
        act: Any = rng.choice(
            [random.random, lambda: random.gauss(0, 1), lambda: random.seed(rng.randrange(3)), lambda: None]
        )
        act()
        assert streams.digests()["python"] == python_digest(random.getstate())


# Batches -----------------------------------------------------------------------------------------------------------


def test_a_batch_digest_sees_values_types_shapes_names_and_order() -> None:
    x, y = torch.arange(6.0).reshape(2, 3), torch.tensor([0, 1])
    variants: list[Any] = [
        [x, y], [y, x], (x + 0, y + 1), [x.double(), y], [x.reshape(3, 2), y], {"x": x, "y": y}, {"y": x, "x": y},
        [x, [y]], [x, y, 1], [x, y, True], [x, y, 1.0], [x, y, "1"], [x, y, None], [x, y, b"1"], [x, y, np.ones(2)],
    ]  # fmt: skip
    assert len({batch_digest(item) for item in variants}) == len(variants)
    assert batch_digest([x, y]) == batch_digest((x.clone(), y.clone()))


def test_a_batch_that_holds_itself_is_digested() -> None:
    loop: dict[str, Any] = {}
    loop["again"] = loop
    assert len(batch_digest(loop)) == 32


@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_indices_are_little_endian_int64(indices: list[int]) -> None:
    expected = b"".join(index.to_bytes(8, "little", signed=True) for index in indices)
    assert index_bytes(indices) == expected
    assert index_bytes(np.array(indices, dtype=np.int64)) == expected


@pytest.mark.parametrize(
    ("index", "size"), [(5, 8), (np.int64(5), 8), ([torch.tensor(3)], 8), ("ab", None), (None, None)]
)
def test_other_kinds_of_index(index: Any, size: int | None) -> None:
    found = index_bytes(index)
    assert (None if found is None else len(found)) == size


@pytest.mark.parametrize(
    ("batch", "size"),
    [(torch.zeros(4, 2), 4), ([torch.zeros(4, 2), 1], 4), ({"a": torch.zeros(3)}, 3), (["a", "b"], 2), ([], 0), (7, 1)],
)
def test_the_size_of_a_batch(batch: Any, size: int) -> None:
    assert batch_size(batch) == size


def test_twisters_need_no_torch() -> None:
    code = "import sys; import trainmem_audit.sources.twisters; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Labels -----------------------------------------------------------------------------------------------------------


def labels(root: nn.Module, trained: bool = True) -> dict[str, Labels]:
    source = ModuleSource("model", root, trained=trained)
    return {component.name.partition(".")[2]: component.labels for component in source.components()}


def test_a_buffer_that_no_state_dict_holds_is_in_process() -> None:
    net = Net()
    assert labels(net)["buffers"].visibility == "in-process"
    del net.hidden
    assert labels(net)["buffers"].visibility == "checkpointed"
    assert labels(net)["params"] == Labels("S3", "macro", "checkpointed")


SWA: Any = torch.optim.swa_utils


@pytest.mark.parametrize(
    ("options", "lifetime", "steps"),
    [
        ({}, "macro", None),
        ({"avg_fn": SWA.get_swa_avg_fn()}, "macro", None),
        ({"multi_avg_fn": SWA.get_ema_multi_avg_fn(0.75)}, "meso", 4.0),
        ({"avg_fn": SWA.get_ema_avg_fn(0.5)}, "meso", 2.0),
        ({"avg_fn": lambda average, value, count: value}, "meso", None),
    ],
)
def test_the_decay_of_an_average_of_torch_is_read(options: Any, lifetime: str, steps: float | None) -> None:
    average = torch.optim.swa_utils.AveragedModel(Net(), **options)
    assert labels(average, trained=False)["params"] == Labels("S5", lifetime, "checkpointed", steps)


def test_a_teacher_of_the_scripts_own_has_no_decay() -> None:
    assert labels(Net(), trained=False)["params"] == Labels("S5", "meso", "checkpointed")
