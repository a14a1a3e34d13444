"""What a checkpoint does not save is named from the record of the saving run, and by comparison with a resumed one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.tools import audit, verify
from tests.trainings import recorded, statement_of
from trainmem_audit.checkpoints import losses
from trainmem_audit.documents.checkpoints import Checkpoint
from trainmem_audit.documents.manifest import Manifest

SCRIPT = Path(__file__).parent / "resume" / "train.py"
SAVED, STEPS = 11, 20

LOST = {
    "none": [],
    "rng": ["rng.torch.cpu"],
    "teacher": ["teacher.params", "teacher.batchnorm"],
    "teacher-stale": ["teacher.params", "teacher.batchnorm"],
    "queue": ["model.buffers"],
    "sampler": ["order"],
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
