"""One script: a package that seeds when it is imported, a head swapped in mid-run, an end by `os._exit`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.trainings import bare, lay_out, pack, recorded, replayed, statement_of

PACKAGE = {
    "lab/__init__.py": "import random, torch\nrandom.seed(0)\ntorch.manual_seed(0)\n",
    "lab/train.py": """
import os, torch
from torch import nn

model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))

def fit(optimizer):
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()

fit(torch.optim.SGD(model.parameters(), lr=0.1))
model[1] = nn.Linear(4, 2)
GAIN = 1
model[1].weight.data.mul_(GAIN)
fit(torch.optim.SGD(model[1].parameters(), lr=0.1))
print(model[1].weight.tolist(), flush=True)
os._exit(3)
""",
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("swapped"), text=PACKAGE)


def test_it_is_recorded_as_bare_replayed_and_blamed_on_the_new_head(here: Path, tmp_path: Path) -> None:
    expected = bare(here, "-m", "lab.train", home=tmp_path)
    done = recorded(here, "-m", "lab.train", home=tmp_path)
    assert (done.stdout, done.returncode) == (expected.stdout, 3), done.stderr
    run = statement_of(here / "run").predicate.run
    assert (run.outcome, run.exit_code) == ("exited", 3)
    packed = pack(here / "run", tmp_path / "run.zip")
    assert replayed(packed, home=tmp_path)[1]["outcome"] == "match"
    changed = {name: text.replace("GAIN = 1", "GAIN = 2") for name, text in PACKAGE.items()}
    source = lay_out(tmp_path / "changed", text=changed)
    options = ("--source", str(source), "--allow-changed-source", "--no-sizes")
    code, verdict = replayed(packed, *options, home=tmp_path)
    assert (code, verdict["whatIf"], verdict["outcome"]) == (1, True, "mismatch")
    assert (verdict["difference"]["step"], verdict["difference"]["blame"]) == (2, "model.params")
