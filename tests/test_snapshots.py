"""Snapshots: what lies in them is what the log says, other readers read them, nothing else passes for one."""

from __future__ import annotations

import io
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save

from tests.tools import SCRIPTS, audit, environment, record, verify
from tests.trainings import Ended, bare, lay_out, recorded, replayed, statement_of
from trainmem_audit.assemble import recover
from trainmem_audit.canonical import canonical_bytes, component_digest, float_text, value_digest
from trainmem_audit.digests import dtype_name, tensor_bytes, tensor_digest
from trainmem_audit.errors import FormatError
from trainmem_audit.keys import Signer
from trainmem_audit.recording.snapshots import SnapshotPlan, write_snapshot
from trainmem_audit.rundir import open_run
from trainmem_audit.runs import snapshot_at, values_at
from trainmem_audit.snapshots import SnapshotFile, SnapshotValues
from trainmem_audit.sources.base import Saved, Source
from trainmem_audit.sources.modules import ModuleSource
from trainmem_audit.sources.optimizers import OptimizerSource
from trainmem_audit.sources.restoring import read_tensors, restore_state
from trainmem_audit.sources.schedulers import SchedulerSource
from trainmem_audit.sources.streams import StreamSet

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool, torch.complex64, torch.complex128,
    torch.float8_e4m3fn, torch.float8_e5m2,
)  # fmt: skip


class Holder(torch.nn.Module):
    """Buffers of any kind."""

    def __init__(self, values: dict[str, torch.Tensor]) -> None:
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, value)


def written(path: Path, values: dict[str, torch.Tensor]) -> SnapshotFile:
    digests = [tensor_digest(value) for value in values.values()]
    holder = Holder(values)
    assert write_snapshot(path, [ModuleSource("model", holder)], 7, digests) == path.stat().st_size
    return values_at(path)


def snapshot_of(data: bytes) -> SnapshotFile:
    return SnapshotFile(lambda: io.BytesIO(data), len(data), "x")


# The layout -----------------------------------------------------------------------------------------------------


def test_safetensors_reads_what_was_written_for_every_dtype(tmp_path: Path) -> None:
    values = {
        str(dtype).replace("torch.", "a_"): torch.arange(12).reshape(3, 4).t().to(dtype)  # not contiguous
        for dtype in DTYPES
    } | {"empty": torch.zeros(0, 3), "single": torch.tensor(2.5)}
    ours = written(tmp_path / "a", values)
    with safe_open(tmp_path / "a", framework="pt") as theirs:
        assert theirs.metadata() == {"format": "trainmem-audit/snapshot/v1", "step": "7"}
        for name, value in values.items():
            read = theirs.get_tensor(f"model.buffers/{name}")
            assert tensor_bytes(read) == tensor_bytes(value) == ours.tensor("model.buffers", name), name
            if name != "a_complex128":  # which safetensors has not: plain bytes
                assert (read.dtype, read.shape) == (value.dtype, value.shape)


def test_what_safetensors_writes_is_read() -> None:
    data = save({"model.params/w": torch.ones(2, 3), "model.params/b": torch.zeros(3, dtype=torch.int64)})
    assert snapshot_of(data).tensor("model.params", "w") == tensor_bytes(torch.ones(2, 3))
    assert snapshot_of(data).tensor("model.params", "c") is None


def header(members: Any, data: bytes = b"") -> bytes:
    text = members if isinstance(members, bytes) else json.dumps(members).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(first: Any, last: Any, **more: Any) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [last - first if type(last) is int else 0], "data_offsets": [first, last]} | more


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "impossible length"),
        (b"\xff" * 16, "impossible length"),
        ((2**60).to_bytes(8, "little") + b"{}", "impossible length"),
        (header(b"{"), "not JSON"),
        (header(b"\x80\x04K\x01."), "not UTF-8"),  # a pickle
        (header(b"[]"), "no object"),
        (header(b'{"a":{"dtype":"U8"},"a":{"dtype":"U8"}}'), "occurs twice"),
        (header({"a": tensor(0, 2)}, b"x"), "do not fill the file"),
        (header({"a": tensor(0, 2)}, b"xyz"), "do not fill the file"),
        (header({"a": tensor(1, 3)}, b"xyz"), "do not follow one another"),
        (header({"a": tensor(0, 2), "b": tensor(1, 3)}, b"xyz"), "do not follow one another"),
        (header({"a": tensor(0, -1)}), "not a tensor"),
        (header({"a": tensor(0, 2, shape=[3])}, b"xy"), "not a tensor"),
        (header({"a": tensor(0, 2, shape=[-1, -2])}, b"xy"), "not a tensor"),
        (header({"a": tensor(0, 0, shape=[2**52, 2**52, 0, True])}), "not a tensor"),
        (header({"a": tensor(0, 2, shape=[2] + [1] * 64)}, b"xy"), "not a tensor"),
        (header({"a": tensor(0, 2, dtype="O")}, b"xy"), "not a tensor"),
        (header({"a": tensor(0, 2, more=1)}, b"xy"), "not a tensor"),
        (header({"a": tensor(0, 1.0)}, b"x"), "a JSON float"),
        (header({"a": tensor(True, False)}), "not a tensor"),
        (header({"a": [0, 2]}, b"xy"), "not a tensor"),
        (header({"__metadata__": {"step": 1}}), "no texts"),
        (header({"__metadata__": []}), "no texts"),
    ],
)
def test_what_is_no_snapshot_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(FormatError, match=says):
        snapshot_of(data)


@given(st.binary(max_size=80), st.integers(0, 200), st.integers(0, 255))
def test_no_damage_gives_anything_but_a_clear_error(junk: bytes, at: int, byte: int) -> None:
    whole = bytearray(save({"model.params/w": torch.ones(2, 3), "model.params/b": torch.zeros(3)}))
    whole[at % len(whole)] = byte
    for data in (bytes(whole), bytes(whole[:at]), header(junk), junk):
        try:
            found = snapshot_of(data)
        except FormatError:
            continue
        assert len(found.tensor("model.params", "w") or b"") in (0, 24)


def test_a_snapshot_whose_tensors_a_thread_has_changed_is_not_kept(tmp_path: Path) -> None:
    value = torch.ones(3)
    digest = tensor_digest(value)
    value[1] = 2
    holder = Holder({"x": value})
    assert write_snapshot(tmp_path / "a", [ModuleSource("model", holder)], 0, [digest]) is None
    assert list(tmp_path.iterdir()) == []


def test_which_steps_are_kept() -> None:
    plan = SnapshotPlan(Path, every=4, at=frozenset({5}))
    assert [step for step in range(10) if plan.wants(step)] == [0, 4, 5, 8]
    assert not any(SnapshotPlan(Path).wants(step) for step in range(10))


@given(st.integers(1, 5000), st.integers(1, 60), st.integers(1, 7))
def test_snapshots_stay_within_their_budget(budget: int, size: int, every: int) -> None:
    plan = SnapshotPlan(Path, every=every, budget=budget)
    taken = []
    for step in range(600):
        if plan.wants(step):
            taken.append(step)
            plan.wrote(step, {}, size, 0.0)
    assert sum(size for _ in taken[1:]) <= budget  # the first is taken whatever its size
    gaps = [b - a for a, b in itertools.pairwise(taken)]
    assert all(gap % every == 0 for gap in gaps)
    if size * 600 // every < budget // 2:
        assert taken == list(range(0, 600, every))
        assert plan.thinned() == set()
    assert bool(plan.thinned()) == (taken != list(range(0, 600, every)))  # whatever was left out is said
    if size * 4 < budget < size * (600 // every):
        assert gaps[-1] > gaps[0] or plan.thinned()


def test_what_an_interval_that_grew_left_out_is_said() -> None:
    plan = SnapshotPlan(Path, every=2, budget=100)

    def go_on(steps: range) -> list[int]:
        taken = []
        for step in steps:
            if plan.wants(step):
                taken.append(step)
                plan.wrote(step, {}, 10, 0.0)
        return taken

    assert go_on(range(34)) == [0, 2, 4, 6, 8, 10, 12, 16, 24, 32]
    grown = "the first of them that of step 14: not every 2 steps, but at last every 16, to keep within the budget of"
    assert plan.thinned() == {f"7 snapshots, {grown} 100 bytes"}
    assert go_on(range(34, 40)) == []
    used = "snapshots from step 34 on: the budget of 100 bytes is used"
    assert plan.thinned() == {f"10 snapshots, {grown} 100 bytes", used}


def test_what_auto_left_out_to_keep_the_budget_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("trainmem_audit.recording.snapshots.time.monotonic", lambda: now)
    plan = SnapshotPlan(Path, auto=True, budget=100)
    for step in range(50):
        now = step * 10.0
        if plan.wants(step):
            plan.wrote(step, {}, 30, 0.15)
        if step < 3:  # what the time does not allow was not asked for
            assert plan.thinned() == set()
    assert len(plan.thinned()) == 2
    used, said = sorted(plan.thinned(), key=lambda text: "times" in text)
    assert "times as rarely as asked for, to keep within the budget of 100 bytes" in said
    assert used.endswith("on: the budget of 100 bytes is used")


def test_a_record_says_which_snapshots_its_budget_left_out(tmp_path: Path) -> None:
    """The interval grew, and there was room to the end."""
    (tmp_path / "train.py").write_text(LONGER)
    options = ("--snapshots", "1", "--snapshot-budget", "1", "--snapshot-at", "15")
    done = recorded(tmp_path, "train.py", home=tmp_path / "home", options=options)
    assert done.returncode == 0, done.stderr
    manifest = statement_of(tmp_path / "run").predicate
    kept = [item.step for item in manifest.snapshots]
    assert kept[-1] == 15  # the last step, which the interval would leave out
    assert max(b - a for a, b in itertools.pairwise(kept)) > 1
    (said,) = [text for text in manifest.not_recorded if "snapshots" in text]
    missing = sorted(set(range(16)) - set(kept))
    assert said.startswith(f"{len(missing)} snapshots, the first of them that of step {missing[0]}: not every 1 steps")


LONGER = """
import torch
model = torch.nn.Linear(200, 100)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for step in range(16):
    optimizer.zero_grad()
    model(torch.randn(2, 200)).square().mean().backward()
    optimizer.step()
"""


def test_as_many_snapshots_as_a_hundredth_of_the_time_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("trainmem_audit.recording.snapshots.time.monotonic", lambda: now)
    plan = SnapshotPlan(Path, auto=True)
    taken = []
    for step in range(4000):
        now = step * 0.01
        if plan.wants(step):
            taken.append(step)
            plan.wrote(step, {}, 1000, 0.05)
    assert taken[0] == 0
    assert all(499 <= b - a <= 501 for a, b in itertools.pairwise(taken))  # 50 ms each, so one in five seconds


def test_what_has_not_changed_is_named_and_not_written_again() -> None:
    plan = SnapshotPlan(Path, every=1)
    plan.wrote(0, {"model.params": "a", "model.batchnorm": "b"}, 10, 0.0)
    assert plan.unchanged({"model.params": "c", "model.batchnorm": "b"}) == {"model.batchnorm": 0}
    plan.wrote(1, {"model.params": "c"}, 5, 0.0)
    assert plan.unchanged({"model.params": "c", "model.batchnorm": "b"}) == {"model.params": 1, "model.batchnorm": 0}


# In a record ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of `tiny.py` with snapshots of steps 0, 3 and 4."""
    cwd = tmp_path_factory.mktemp("kept")
    return record(
        SCRIPTS / "tiny.py",
        cwd,
        home=cwd / "home",
        options=("--snapshots", "3", "--snapshot-at", "4", "--snapshot-at", "9"),
    )


def test_a_record_keeps_the_state_that_it_has_digests_of(kept: Path) -> None:
    found = verify(kept, home=kept.parent / "home")
    assert (found.code, found.findings) == (0, [])
    assert found.document["checks"][6]["detail"].endswith("; 3 snapshots")
    names = sorted(path.name for path in (kept / "snapshots").glob("*.safetensors"))
    assert names == ["step-0.safetensors", "step-3.safetensors", "step-4.safetensors"]
    with safe_open(kept / "snapshots" / "step-4.safetensors", framework="pt") as values:
        assert {"model.params/0.weight", "model.batchnorm/1.running_mean", "optimizer.momentum/0.weight"} <= {
            *values.keys()
        }


def test_what_is_no_tensor_lies_beside(kept: Path) -> None:
    document = json.loads((kept / "snapshots" / "step-4.json").read_bytes())
    assert {"optimizer.hyper"} <= document["values"].keys()
    assert {"python", "torch.cpu"} <= document["streams"].keys()
    assert document["step"] == 4


FROZEN = """
import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
model[1].eval()
optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
for step in range(6):
    loss = model(torch.randn(5, 3)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
"""


def _frozen(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(FROZEN)
    done = recorded(tmp_path, "train.py", home=tmp_path / "home", options=("--snapshots", "2"))
    assert done.returncode == 0, done.stderr
    return tmp_path / "run"


def test_a_frozen_component_is_kept_once(tmp_path: Path) -> None:
    run = _frozen(tmp_path)
    first, *later = statement_of(run).predicate.snapshots
    assert first.unchanged is None
    assert [item.unchanged for item in later] == [{"model.batchnorm": 0}] * 2
    assert all(item.size < first.size for item in later)
    found = verify(run, home=tmp_path / "home")
    assert (found.code, found.findings) == (0, [])
    with open_run(run) as reader:
        snapshot = snapshot_at(reader, statement_of(run).predicate, 4)
        assert snapshot is not None
        assert snapshot.tensor("model.batchnorm", "1.running_mean") == bytes(16)
        assert snapshot.size("model.batchnorm", "1.running_mean") == 16


def test_training_goes_on_from_the_files_of_a_snapshot(tmp_path: Path) -> None:
    """Objects made anew, restored from the files, go the way that the log says."""
    run = _frozen(tmp_path)
    manifest = statement_of(run).predicate
    lines = [json.loads(line) for line in (run / "steps.jsonl").read_bytes().splitlines()]
    steps = {line["i"]: line for line in lines if line["t"] == "step"}
    with open_run(run) as reader:
        kept = snapshot_at(reader, manifest, 2)
        values = SnapshotValues(reader.read("snapshots/step-2.json", 2**20), "step-2.json")
        assert kept is not None
        saved = {name: Saved(values=value) for name, value in values.values.items()}
        for name in steps[2]["state"].keys() - saved.keys():
            saved[name] = Saved(read_tensors(kept, name, manifest.sources[name].tensors or ()))
    torch.manual_seed(1)
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)
    )
    model[1].eval()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.7)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    module = ModuleSource("model", model)
    sources: list[Source] = [module, OptimizerSource("optimizer", optimizer, module.names().get)]
    sources.append(SchedulerSource("scheduler", scheduler))
    assert restore_state(sources, saved) == []
    assert StreamSet().restore("torch.cpu", values.streams["torch.cpu"]) is None
    scheduler.step()
    for step in (3, 4, 5):
        loss = model(torch.randn(5, 3)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert steps[step]["scalars"]["loss"] == [float_text(float(loss.detach()))]
        for component in (item for source in sources for item in source.components()):
            if component.tensors is not None:
                header = [[name, dtype_name(tensor), list(tensor.shape)] for name, tensor in component.tensors]
                digests = [tensor_digest(tensor) for _, tensor in component.tensors]
                found = component_digest(canonical_bytes(header), digests)
            else:
                found = value_digest(component.values)
            assert found.hex() == steps[step]["state"][component.name], component.name
        scheduler.step()


def test_one_changed_value_beside_a_snapshot_is_found(kept: Path) -> None:
    path = kept / "snapshots" / "step-3.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole.replace(b'"step":3', b'"step":4'))
        found = verify(kept, home=kept.parent / "home")
    finally:
        path.write_bytes(whole)
    assert found.code == 1
    assert found.findings == ["FILE-CHANGED snapshots/step-3.json", "SIDE snapshots/step-3.json"]


@pytest.mark.parametrize("interval", ["often", "-1", "1.5"])
def test_an_interval_that_is_none_is_refused(tmp_path: Path, interval: str) -> None:
    (tmp_path / "train.py").write_text("pass")
    done = recorded(tmp_path, "train.py", home=tmp_path / "home", options=("--snapshots", interval))
    assert done.returncode == 2
    assert b"a number of steps, or auto" in done.stderr


def test_a_snapshot_that_was_asked_for_and_never_came_is_said(kept: Path) -> None:
    assert "the snapshot of step 9: the run had no such step" in statement_of(kept).predicate.not_recorded


def test_one_changed_bit_of_a_snapshot_is_found(kept: Path, tmp_path: Path) -> None:
    """Also when the author signs it so: the digests of the step log do not follow from it."""
    path = kept / "snapshots" / "step-3.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    whole = path.read_bytes()
    try:
        path.write_bytes(data)
        found = verify(kept, home=kept.parent / "home")
    finally:
        path.write_bytes(whole)
    assert found.code == 1
    assert found.findings == ["FILE-CHANGED snapshots/step-3.safetensors", "SIDE snapshots/step-3.safetensors"]


def test_keeping_values_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    alone = lay_out(tmp_path / "bare", "cnn.py")
    without = Ended(bare(alone, "cnn.py", home=alone / "nobody", env={"OMP_NUM_THREADS": "2"}), alone)
    cwd = lay_out(tmp_path / "here", "cnn.py")
    done = recorded(cwd, "cnn.py", home=tmp_path / "home", env={"OMP_NUM_THREADS": "2"}, options=("--snapshots", "1"))
    assert Ended(done, cwd).differs_from(without) == []
    assert len(list((cwd / "run" / "snapshots").iterdir())) > 5
    assert replayed(cwd / "run", home=tmp_path / "home")[1]["outcome"] == "match"


def test_recover_removes_a_snapshot_that_no_line_speaks_of(tmp_path: Path) -> None:
    run = record(SCRIPTS / "tiny.py", tmp_path, home=tmp_path / "home", options=("--snapshots", "2"))
    for name in ("run.json", "signer.pub"):
        (run / name).unlink()
    lines = (run / "steps.jsonl").read_bytes().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if b'"t":"snapshot"' in line)
    (run / "steps.jsonl").write_bytes(b"".join(lines[:last]))
    recovery = recover(run, Signer.from_seed(bytes(32)))
    assert "snapshots/step-4.safetensors" in recovery.cut
    assert [item.step for item in recovery.statement.predicate.snapshots] == [0, 2]
    assert verify(run, "--allow-untrusted", home=tmp_path / "home").document["record"] == "incomplete"


# Blame with values -----------------------------------------------------------------------------------------------

READS_ITS_RATE = """
import os
import torch
torch.manual_seed(0)
model = torch.nn.Linear(3, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
data = torch.randn(4, 3)
for step in range(4):
    optimizer.zero_grad()
    loss = model(data).square().sum() * (float(os.environ.get("SCALE", "1")) if step == 2 else 1)
    loss.backward()
    optimizer.step()
"""
SIZE = re.compile(
    r"\d+ of 6 elements, by at most \S+ \(the largest value is \S+\); first at \[0, 0\]: .* → .*, \d+ ULP"
)


def test_diff_of_two_runs_that_kept_the_step_gives_element_values_and_ulp(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name, scale in (("a", "1"), ("b", "1.0000001")):
        cwd = lay_out(tmp_path / name, text={"train.py": READS_ITS_RATE})
        options = ("--snapshots", "1") if name == "a" else ("--snapshot-at", "2")
        assert recorded(cwd, "train.py", home=home, env={"SCALE": scale}, options=options).returncode == 0
    done = audit("diff", "a/run", "b/run", cwd=tmp_path, home=home)
    assert (done.returncode, done.stderr) == (1, "")
    assert "step 2" in done.stdout
    assert SIZE.search(done.stdout), done.stdout
    found = json.loads(audit("diff", "a/run", "b/run", "--format", "json", cwd=tmp_path, home=home).stdout)
    sizes = [
        item["size"]
        for part in found["difference"]["components"]
        for item in part["tensors"]
        if item["name"] == "weight"
    ]
    assert len(sizes) == 2
    assert all(SIZE.fullmatch(size) for size in sizes)


def test_a_mismatch_of_a_step_that_the_record_keeps_gives_the_values_too(tmp_path: Path) -> None:
    cwd = lay_out(tmp_path / "author", text={"train.py": READS_ITS_RATE})
    done = recorded(cwd, "train.py", home=tmp_path / "home", env={"SCALE": "1.5"}, options=("--snapshots", "1"))
    assert done.returncode == 0
    _, found = replayed(cwd / "run", home=tmp_path / "home")
    assert found["outcome"] == "mismatch"
    difference = found["difference"]
    assert difference["step"] == 2
    sizes = [item["size"] for part in difference["components"] for item in part["tensors"] if item["name"] == "weight"]
    assert sizes
    assert all(SIZE.fullmatch(size) for size in sizes)


def test_values_are_given_too_where_the_cause_was_there_before_the_step(tmp_path: Path) -> None:
    """Another learning rate differs before the update, and the parameters after it."""
    home = tmp_path / "home"
    for name, rate in (("a", "0.1"), ("b", "0.1000001")):
        cwd = lay_out(tmp_path / name, text={"train.py": READS_ITS_RATE.replace("lr=0.1", f"lr={rate}")})
        assert recorded(cwd, "train.py", home=home, options=("--snapshots", "1")).returncode == 0
    done = audit("diff", "a/run", "b/run", cwd=tmp_path, home=home)
    assert "blame: optimizer.hyper" in done.stdout
    assert SIZE.search(done.stdout), done.stdout
    (tmp_path / "b" / "run" / "snapshots" / "step-0.safetensors").write_bytes(b"no snapshot")
    damaged = audit("diff", "a/run", "b/run", cwd=tmp_path, home=home)
    assert (damaged.returncode, "blame: optimizer.hyper" in damaged.stdout) == (1, True)
    assert "without values: " in damaged.stderr


def test_a_library_recording_keeps_values_too(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = READS_ITS_RATE.replace(
        "\nfor", "\nfrom trainmem_audit import Recorder\nwith Recorder('run', snapshots=2):\n  for"
    )
    program = re.sub(r"(?m)^    ", "      ", program)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(tmp_path / "home"),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "snapshots").glob("*.safetensors"))) == 2
    assert verify(tmp_path / "run", home=tmp_path / "home").code == 0
