"""Acceptance: a pack replays to `match` from another directory, in another process, with other threads around it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tools import SCRIPTS, Run, audit, environment, record
from trainmem_audit.errors import UsageError
from trainmem_audit.replaying import parse_mode

UNSEEDED = """
import random
import numpy as np
import torch

words = list({f"word{i}" for i in range(20)})
rng = np.random.default_rng()
model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5))
optimizer = torch.optim.Adam(model.parameters(), lr=random.uniform(0.01, 0.02))
data = torch.utils.data.TensorDataset(torch.randn(12, 3), torch.from_numpy(rng.normal(size=(12, 3))).float())
for x, y in torch.utils.data.DataLoader(data, batch_size=4, shuffle=True):
    loss = (model(x * len(words[0])) - y + float(np.random.rand())).pow(2).sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""
LIBRARY = """
import torch
from trainmem_audit import Recorder
from trainmem_audit.keys import Signer

model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with Recorder("run", signer=Signer.generate()):
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
"""


def replayed(run: Path, cwd: Path, home: Path, *options: str, **env: str) -> tuple[int, dict[str, object]]:
    """Verify and replay `run` from `cwd`; return the exit code and what is said of the replay."""
    cwd.mkdir(exist_ok=True)
    arguments: tuple[str | Path, ...] = (
        "verify",
        run,
        "--replay",
        "full",
        "--yes",
        "--allow-untrusted",
        "--format",
        "json",
        *options,
    )
    done = audit(*arguments, cwd=cwd, home=home, env=env)
    assert done.stdout, done.stderr
    found: dict[str, object] = json.loads(done.stdout)["replay"]
    return done.returncode, found


@pytest.mark.parametrize("threads", ["1", "4"])
def test_a_pack_replays_to_match_elsewhere_with_other_threads(run: Run, tmp_path: Path, threads: str) -> None:
    assert audit("pack", run.path, "-o", tmp_path / "run.zip", cwd=tmp_path, home=run.home).returncode == 0
    others = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONHASHSEED": "7", "OMP_DYNAMIC": "FALSE"}
    code, replay = replayed(tmp_path / "run.zip", tmp_path / "reviewer", tmp_path / "home", **others)
    assert (code, replay["outcome"], replay["stepsCompared"]) == (
        0,
        "match",
        sum(b'"t":"step"' in line for line in run.lines()),
    )
    assert list((tmp_path / "reviewer").iterdir()) == []


def test_a_script_without_any_seed_replays_to_match(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(UNSEEDED)
    path = record(tmp_path / "script.py", tmp_path, home=tmp_path / "home")
    assert replayed(path, tmp_path / "reviewer", tmp_path / "home")[1]["outcome"] == "match"


def test_a_run_recorded_by_the_library_says_that_it_cannot_be_replayed(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(LIBRARY)
    subprocess.run([sys.executable, "own.py"], cwd=tmp_path, check=True, env=environment(tmp_path / "home"))
    code, replay = replayed(tmp_path / "run", tmp_path / "reviewer", tmp_path / "home")
    assert (code, replay["outcome"]) == (3, "not-run")
    assert "Recorder" in str(replay["reason"])


def test_a_prefix_compares_so_many_steps(run: Run, tmp_path: Path) -> None:
    replay = replayed(run.path, tmp_path / "reviewer", run.home, "--replay", "prefix:2")[1]
    assert (replay["outcome"], replay["mode"], replay["stepsCompared"]) == ("match", "prefix:2", 2)


def test_without_consent_nothing_runs(run: Run, tmp_path: Path) -> None:
    done = audit("verify", run.path, "--replay", "full", cwd=tmp_path, home=run.home)
    assert done.returncode == 2
    assert "nobody agreed" in done.stderr
    assert "python train.py" in done.stderr


def test_time_that_is_up_ends_the_script_and_its_children(tmp_path: Path) -> None:
    path = record(SCRIPTS / "tiny.py", tmp_path, home=tmp_path / "home")
    code, replay = replayed(path, tmp_path / "reviewer", tmp_path / "home", "--timeout", "0.5")
    assert (code, replay["outcome"]) == (3, "inconclusive")
    assert "--timeout" in str(replay["reason"]) or "ended after" in str(replay["reason"])
    time.sleep(0.2)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert str(tmp_path) not in running


@pytest.mark.parametrize(
    "mode", ["", "half", "prefix", "prefix:0", "prefix:-1", "prefix:x", "segments:0", "segments:x"]
)
def test_an_unknown_mode_is_refused(mode: str) -> None:
    with pytest.raises(UsageError):
        parse_mode(mode)
