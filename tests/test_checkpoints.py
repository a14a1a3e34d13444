"""What a checkpoint does not save is named from the record of the saving run, and by comparison with a resumed one."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from tests.logs import begin, component, digest, read_all, written
from tests.tools import audit, verify
from tests.trainings import bare, recorded, statement_of
from trainmem_audit.checkpoints import losses, summary_text
from trainmem_audit.digests import tensor_digest
from trainmem_audit.documents.checkpoints import MOST_CHECKPOINTS, Checkpoint
from trainmem_audit.documents.manifest import Manifest
from trainmem_audit.errors import FormatError
from trainmem_audit.recording.checkpoints import CheckpointWatch
from trainmem_audit.recording.order import EpochStart
from trainmem_audit.recording.parents import find_parent
from trainmem_audit.sources.base import Source
from trainmem_audit.sources.modules import ModuleSource
from trainmem_audit.sources.optimizers import OptimizerSource
from trainmem_audit.sources.schedulers import SchedulerSource
from trainmem_audit.sources.streams import StreamSet

SCRIPT = Path(__file__).parent / "resume" / "train.py"
SAVED, STEPS = 11, 20

LOST = {
    "none": [],
    "rng": ["rng.torch.cpu"],
    "teacher": ["teacher.params", "teacher.batchnorm"],
    "teacher-stale": ["teacher.params", "teacher.batchnorm"],
    "queue": ["model.buffers"],
    "sampler": ["order", "sampler"],
    "scheduler": ["scheduler"],
    "scaler": ["scaler"],
    "batchnorm": ["model.batchnorm"],
}
"""What is planted, and what is lost by it: the first of them is what the comparison blames."""
FAST = ("none", "rng")


class Resumed(NamedTuple):
    """A run that went through and saved on its way, and one that was resumed from what it saved."""

    folder: Path
    home: Path

    def manifest(self, name: str) -> Manifest:
        return statement_of(self.folder / name).predicate

    def saved(self) -> Checkpoint:
        (checkpoint,) = self.manifest("full").checkpoints or ()
        return checkpoint

    def difference(self) -> dict[str, object]:
        done = audit("diff", "full", "resumed", "--format", "json", cwd=self.folder, home=self.home)
        assert done.returncode in (0, 1), done.stderr
        return dict(json.loads(done.stdout))


def resume(folder: Path, home: Path, planted: str) -> Resumed:
    folder.mkdir(parents=True)
    shutil.copyfile(SCRIPT, folder / "train.py")
    for name, env in (("full", {}), ("resumed", {"RESUME": "checkpoint.pt", "SEED": "5"})):
        done = recorded(folder, "train.py", home=home, env={"DROP": planted, **env}, options=("-d", name))
        assert done.returncode == 0, done.stderr.decode()
    return Resumed(folder, home)


def planted(name: str) -> object:
    return pytest.param(name, marks=() if name in FAST else (pytest.mark.slow,))


@pytest.fixture(scope="module", params=[planted(name) for name in LOST])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Resumed]:
    folder = tmp_path_factory.mktemp(request.param)
    return request.param, resume(folder / "here", folder / "home", request.param)


def test_the_record_of_the_saving_run_names_what_is_lost(case: tuple[str, Resumed]) -> None:
    name, runs = case
    saved = runs.saved()
    assert (saved.kind, saved.file) == ("state", "{cwd}/checkpoint.pt")
    assert [loss.name for loss in losses(saved)] == LOST[name]


def test_visibility_is_what_was_measured(case: tuple[str, Resumed]) -> None:
    name, runs = case
    labels = {key: item.visibility for key, item in runs.manifest("full").sources.items()}
    lost = {loss for loss in LOST[name] if loss in labels}
    assert {key for key in lost if labels[key] == "in-process"} == lost
    assert all(labels[key] == "checkpointed" for key in ("model.params", "optimizer.exp_avg"))


def test_a_resumed_run_names_its_parent_by_the_digest_of_the_checkpoint(case: tuple[str, Resumed]) -> None:
    _, runs = case
    full, parent = runs.manifest("full"), runs.manifest("resumed").run.parent
    assert parent is not None and full.run.parent is None
    assert (parent.run, parent.steps, parent.sha256) == (full.run.id, SAVED, runs.saved().sha256)
    line = next(line for line in (runs.folder / "full/steps.jsonl").read_text().splitlines() if '"checkpoints"' in line)
    assert json.loads(line)["chain"] == parent.chain


def test_the_comparison_blames_what_was_lost(case: tuple[str, Resumed]) -> None:
    name, runs = case
    found = runs.difference()
    assert found["resumedAt"] == SAVED
    if not LOST[name]:
        assert (found["equal"], found["stepsEqual"]) == (True, STEPS - SAVED)
        return
    difference = found["difference"]
    assert isinstance(difference, dict)
    assert (difference["blame"], difference["step"]) == (LOST[name][0], SAVED)
    assert f"{LOST[name][0]} was not in the checkpoint" in difference["explanation"]


def test_both_records_hold(case: tuple[str, Resumed]) -> None:
    _, runs = case
    for name in ("full", "resumed"):
        found = verify(runs.folder / name, "--allow-untrusted", home=runs.home)
        assert (found.code, found.findings) == (0, []), found.stdout


@pytest.mark.slow
def test_what_is_saved_is_what_a_bare_run_saves(tmp_path: Path) -> None:
    saved = []
    for name, run in (("bare", bare), ("recorded", recorded)):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copyfile(SCRIPT, folder / "train.py")
        done = run(folder, "train.py", home=tmp_path / "home")
        assert done.returncode == 0, done.stderr.decode()
        saved.append((folder / "checkpoint.pt").read_bytes())
    assert saved[0] == saved[1]


# The log -----------------------------------------------------------------------------------------------------------


def _parent(sha256: str) -> dict[str, Any]:
    return {"t": "inventory", "i": 0, "parent": {"run": "0" * 32, "chain": digest("c"), "steps": 3, "sha256": sha256}}


def _read(path: str, sha256: str) -> dict[str, Any]:
    return {"t": "inventory", "i": 0, "inputs": [{"path": path, "sha256": sha256, "bytes": 1}]}


def test_a_parent_stands_only_where_its_checkpoint_was_read() -> None:
    own, other = digest("checkpoint"), digest("another file")
    summary = read_all(written([begin(), _read("{cwd}/c.pt", own), _parent(own)])).summary
    assert summary.parent is not None and summary.parent.steps == 3
    for lines in ([_parent(own)], [_read("{cwd}/c.pt", other), _parent(own)]):
        with pytest.raises(FormatError, match="has not read"):
            read_all(written([begin(), *lines]))
    with pytest.raises(FormatError, match="one run"):
        read_all(written([begin(), _read("{cwd}/c.pt", own), _parent(own), _parent(own)]))


def test_a_checkpoint_speaks_only_of_what_the_log_introduced() -> None:
    saved = {"kind": "state", "components": {"model.params": {"verdict": "absent"}}, "streams": {}}
    line = {"t": "inventory", "i": 0, "checkpoints": [saved]}
    with pytest.raises(FormatError, match="no inventory line"):
        read_all(written([begin(), line]))
    known = {"t": "inventory", "i": 0, "components": {"model.params": component("S3")}}
    assert read_all(written([begin(), known, line])).summary.checkpoints["state"][1:] == (0, 1)


def test_a_foreign_or_damaged_log_is_no_parent(tmp_path: Path) -> None:
    own, saved = digest("checkpoint"), {"kind": "state", "file": "c.pt", "components": {}, "streams": {}}
    line = {"t": "inventory", "i": 0, "checkpoints": [{**saved, "sha256": own}]}
    lines = written([begin(), line])
    for name, data in (("good", lines), ("damaged", [lines[0], lines[1][:-9]]), ("foreign", [b"no json", lines[1]])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "steps.jsonl").write_bytes(b"".join(item + b"\n" for item in data))
    found = find_parent([own], tmp_path, tmp_path / "own")
    assert found is not None and found["chain"] == json.loads(lines[1])["chain"]
    assert find_parent([own], tmp_path, tmp_path / "good") is None
    assert find_parent([digest("another")], tmp_path, tmp_path / "own") is None


# In this process ---------------------------------------------------------------------------------------------------


class Taught:
    """A model and its teacher with everything that is compared, as it is after a few steps."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
        self.teacher = copy.deepcopy(self.model)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 1)
        source = ModuleSource("model", self.model)
        sources = [source, ModuleSource("teacher", self.teacher, trained=False)]
        optimizer = OptimizerSource("optimizer", self.optimizer, source.names().get)
        self.sources: list[Source] = [*sources, optimizer, SchedulerSource("scheduler", self.scheduler)]
        self.watch = CheckpointWatch()
        self.streams = StreamSet()
        self.watch.see_streams(self.streams.digests())
        self._see(initial=True)
        for _ in range(3):
            self.optimizer.zero_grad()
            self.model(torch.randn(8, 3)).square().mean().backward()
            self.optimizer.step()
            self.scheduler.step()
            for old, new in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
                old.data.lerp_(new.data, 0.5)
            self._see(initial=False)
        np.random.random()
        random.random()

    def _see(self, initial: bool) -> None:
        for source in self.sources:
            for state in source.components():
                tensors = state.tensors
                digests = None if tensors is None else [tensor_digest(tensor) for _, tensor in tensors]
                self.watch.begins(state, digests, initial)

    def whole(self) -> dict[str, Any]:
        named = ("model", "teacher", "optimizer", "scheduler")
        states = {name: getattr(self, name).state_dict() for name in named}
        rng = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}
        return states | {"rng": rng}

    def compared(self, value: Any, epoch: EpochStart | None = None) -> Checkpoint | None:
        members = self.watch.compare(value, self.sources, lambda _: True, self.streams.digests(), epoch)
        return None if members is None else Checkpoint.model_validate_json(json.dumps(members), by_alias=True)

    def lost(self, value: Any, epoch: EpochStart | None = None) -> list[str]:
        checkpoint = self.compared(value, epoch)
        assert checkpoint is not None and checkpoint.kind == "state"
        return [loss.name for loss in losses(checkpoint)]


@pytest.fixture
def taught() -> Iterator[Taught]:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    yield Taught()
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


@pytest.mark.parametrize("form", ["aliases", "copies", "objects", "through a file"])
def test_a_whole_checkpoint_loses_nothing_in_whatever_form(taught: Taught, form: str) -> None:
    value: Any = taught.whole()
    if form == "copies":
        value = copy.deepcopy(value)
    elif form == "objects":
        value |= {"model": taught.model, "teacher": taught.teacher, "scheduler": taught.scheduler}
    elif form == "through a file":
        file = io.BytesIO()
        torch.save(value, file)
        file.seek(0)
        value = torch.load(file, weights_only=False)
    assert taught.lost(value) == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("teacher", ["teacher.params"]),
        ("optimizer", ["optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.hyper", "optimizer.step"]),
        ("scheduler", ["scheduler"]),
        ("rng", ["rng.torch.cpu", "rng.numpy", "rng.python"]),
    ],
)
@pytest.mark.parametrize("copied", [False, True])
def test_what_is_left_out_is_lost(taught: Taught, name: str, expected: list[str], copied: bool) -> None:
    value = {key: member for key, member in taught.whole().items() if key != name}
    assert taught.lost(copy.deepcopy(value) if copied else value) == expected


def test_a_student_that_is_saved_twice_is_no_teacher(taught: Taught) -> None:
    checkpoint = taught.compared(taught.whole() | {"teacher": taught.model.state_dict()})
    assert checkpoint is not None
    assert checkpoint.components["teacher.params"].verdict == "stale"
    assert checkpoint.components["model.params"].verdict == "whole"


def test_what_is_saved_from_before_the_last_update_is_stale(taught: Taught) -> None:
    value = taught.whole() | {"rng": {"torch": torch.get_rng_state()}}
    value["teacher"] = {name: tensor + 1 for name, tensor in taught.teacher.state_dict().items()}
    value["scheduler"] = value["scheduler"] | {"last_epoch": 1}
    torch.rand(1)
    checkpoint = taught.compared(value)
    assert checkpoint is not None
    verdicts = {name: held.verdict for name, held in checkpoint.components.items()}
    assert (verdicts["teacher.params"], verdicts["scheduler"]) == ("stale", "stale")
    assert checkpoint.streams["torch.cpu"] == "stale"


def test_missing_tensors_are_named(taught: Taught) -> None:
    value = taught.whole()
    value["teacher"] = {name: item for name, item in value["teacher"].items() if not name.startswith("2.")}
    checkpoint = taught.compared(value)
    assert checkpoint is not None
    held = checkpoint.components["teacher.params"]
    assert (held.verdict, held.missing, held.missing_count) == ("part", ("2.weight", "2.bias"), 2)


def test_weights_alone_raise_no_alarm_and_other_things_are_no_checkpoint(taught: Taught) -> None:
    checkpoint = taught.compared(taught.model.state_dict())
    assert checkpoint is not None
    assert (checkpoint.kind, losses(checkpoint)) == ("weights", [])
    assert summary_text(checkpoint).startswith("weights alone")
    assert taught.compared({"predictions": torch.zeros(7), "accuracy": 0.5}) is None


def test_tied_weights_are_no_moments() -> None:
    """Saved under two names, of which one is matched; the other has the shape of the moments."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    model[1].weight = model[0].weight
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.arange(5)).square().mean().backward()
    source = ModuleSource("model", model)
    watch = CheckpointWatch()
    for state in source.components():
        watch.begins(state, [tensor_digest(tensor) for _, tensor in state.tensors or ()], initial=True)
    optimizer.step()
    sources: list[Source] = [source, OptimizerSource("optimizer", optimizer, source.names().get)]
    for item in sources[1].components():
        watch.begins(item, None, initial=False)
    for value in (model.state_dict(), copy.deepcopy(model.state_dict())):
        members = watch.compare(value, sources, lambda _: True, {}, None)
        assert members is not None
        assert (members["kind"], members["components"]["optimizer.exp_avg"]["verdict"]) == ("weights", "absent")
        assert members["components"]["model.params"]["verdict"] == "whole"


DUMPS = """
import pickle
import numpy as np
import torch
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for step in range(4):
    model(torch.randn(4, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    if step == 1:
        with open("state.pkl", "wb") as file:
            pickle.dump({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    if step == 2:
        np.savez("weights", **{name: tensor.numpy() for name, tensor in model.state_dict().items()})
    with open("log.pkl", "wb") as file:
        pickle.dump({"losses": [0.5] * step, "table": np.zeros((7, 7))}, file)
    np.save("predictions", np.zeros((4, 2)))
np.save("weight.npy", model.weight.detach().numpy())
"""


@pytest.mark.slow
def test_pickles_and_arrays_that_hold_memory_are_checkpoints_and_other_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(DUMPS)
    done = recorded(tmp_path, "train.py", home=tmp_path / "home", options=("-d", "run"))
    assert done.returncode == 0, done.stderr.decode()
    lines = [json.loads(line) for line in (tmp_path / "run" / "steps.jsonl").read_text().splitlines()]
    found = [(line["i"], saved) for line in lines for saved in line.get("checkpoints", ())]
    assert [(step, saved["kind"], saved["file"]) for step, saved in found] == [
        (2, "state", "{cwd}/state.pkl"),
        (3, "weights", "{cwd}/weights.npz"),
        (4, "weights", "{cwd}/weight.npy"),
    ]
    for _, saved in found[:2]:
        assert saved["components"]["model.params"]["verdict"] == "whole"
        assert (
            hashlib.sha256((tmp_path / saved["file"].removeprefix("{cwd}/")).read_bytes()).hexdigest()
            == saved["sha256"]
        )


@pytest.mark.parametrize(
    ("given", "ended", "extra", "verdict"),
    [
        (3, False, {}, "absent"),
        (3, False, {"batch": 3}, "maybe"),
        (3, False, {"samples": 24}, "maybe"),
        (3, False, {"epoch": 3}, "absent"),
        (3, True, {}, "whole"),
        (8, False, {}, "whole"),
    ],
)
def test_the_position_in_an_epoch(taught: Taught, given: int, ended: bool, extra: Any, verdict: str) -> None:
    data = [0] * 64
    description = {"settings": {"batch_size": 8, "samples": len(data)}}
    epoch = EpochStart(lambda: None, description, taught.streams.digests())  # type: ignore[arg-type]
    epoch.given, epoch.ended = given, ended
    checkpoint = taught.compared(taught.whole() | extra, epoch)
    assert checkpoint is not None and checkpoint.order == verdict


def test_no_method_of_the_script_is_called_and_nothing_changes(taught: Taught) -> None:
    class Loud(dict):  # type: ignore[type-arg]
        def __getattribute__(self, name: str) -> Any:
            raise AssertionError(name)

        def __iter__(self) -> Any:
            raise AssertionError

        items = keys = values = __iter__

    value = Loud(taught.whole())
    before = [tensor.clone() for tensor in taught.model.state_dict().values()], taught.streams.digests()
    checkpoint = taught.compared([value])
    assert checkpoint is not None and losses(checkpoint) == []
    assert taught.streams.digests() == before[1]
    assert all(map(torch.equal, taught.model.state_dict().values(), before[0]))


def test_an_object_that_is_too_large_is_looked_through_in_part_and_blames_nothing(taught: Taught) -> None:
    checkpoint = taught.compared([taught.optimizer.state_dict(), [list(range(1000))] * 1, [[0] * 2**17]])
    assert checkpoint is not None and checkpoint.partial
    assert {held.verdict for held in checkpoint.components.values()}.isdisjoint({"absent"})


def test_of_very_many_checkpoints_few_are_kept() -> None:
    watch = CheckpointWatch()
    kept = sum(watch.wants() for _ in range(100_000))
    assert kept <= MOST_CHECKPOINTS
    assert kept + watch.left_out == 100_000
