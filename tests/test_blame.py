"""Acceptance: what was changed is named, at the right step and on the right component; harmless changes match."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tools import SCRIPTS, Verified, audit, verify

HOME = "home"


def points() -> str:
    """Return 200 labelled points as CSV."""
    rng = random.Random(0)
    rows = []
    for _ in range(200):
        values = [rng.gauss(0, 1) for _ in range(4)]
        rows.append(",".join(f"{value:.4f}" for value in values) + f",{int(sum(values) > 0)}\n")
    return "".join(rows)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with `run.zip`, recorded from `points.py`, and `data/data.csv`."""
    folder = tmp_path_factory.mktemp("blame")
    for name in ("author", "author/run", "data"):
        (folder / name).mkdir()
    (folder / "author" / "run").rmdir()
    (folder / "author" / "train.py").write_text((SCRIPTS / "points.py").read_text())
    for name in ("author", "data"):
        (folder / name / "data.csv").write_text(points())
    for command in (("record", "-q", "-d", "run", "train.py"), ("pack", "run", "-o", "../run.zip")):
        done = audit(*command, cwd=folder / "author", home=folder / HOME)
        assert done.returncode == 0, done.stderr
    return folder


def what_if(packed: Path, folder: Path, old: str, new: str, *options: str, data: str = points()) -> Verified:
    """Replay the run with `old` replaced by `new` in its script, and `data` as its data."""
    text = (SCRIPTS / "points.py").read_text()
    assert text.count(old) == 1
    for name, content in (("src/train.py", text.replace(old, new)), ("own/data.csv", data)):
        (folder / name).parent.mkdir()
        (folder / name).write_text(content)
    sides = ("--source", str(folder / "src"), "--data", str(folder / "own"))
    return verify(packed / "run.zip", "--replay", "full", "--yes", *sides, *options, home=packed / HOME)


def label_step(index: int) -> int:
    """Return the first step whose batch holds sample `index` of the data set, from the script's own arithmetic."""
    import torch
    from torch.utils.data import DataLoader, random_split

    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    train, _ = random_split(range(200), [160, 40])  # type: ignore[arg-type, var-annotated]
    loader: Any = DataLoader(train, batch_size=32, shuffle=True)
    torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.Linear(32, 2))  # draws what the model draws
    return next(step for step, batch in enumerate(loader) if index in batch.tolist())


@pytest.mark.parametrize(
    ("old", "new", "blame", "step"),
    [
        ("LR = 0.01", "LR = 0.02", "optimizer.hyper", 0),
        ("MOMENTUM = 0.9", "MOMENTUM = 0.8", "optimizer.hyper", 0),
        ("SEED = 3", "SEED = 4", "rng.torch.cpu", 0),
        ("BATCH = 32", "BATCH = 16", "order", 0),
        ("DROP = 0.2", "DROP = 0.3", "gradient path", 0),
        ("SHUFFLE = True", "SHUFFLE = False", "order", 0),
        ("NOISE = 0.1", "NOISE = 0.11", "order.content", 0),
        ("FLIP = False", "FLIP = True", "inputs", 0),
        ("nn.ReLU()", "nn.GELU()", "gradient path", 0),
        ("net.train()", "net.train(epoch < 1)", "rng.torch.cpu", 5),
        ("if FLIP:", "if epoch == 2:", "inputs", 10),
        ("nn.Linear(4, 32)", "nn.Linear(4, 32, bias=False)", "model.params", 0),
    ],
)
def test_a_changed_line_is_blamed_on_its_component(
    packed: Path, tmp_path: Path, old: str, new: str, blame: str, step: int
) -> None:
    found = what_if(packed, tmp_path, old, new, "--allow-changed-source", "--no-sizes")
    replay = found.document["replay"]
    assert found.code == 1
    assert replay["outcome"] == "mismatch"
    assert replay["whatIf"] is True
    assert re.fullmatch(r"\{cwd\}/train\.py:\d+", replay["changedFiles"][0])
    assert (replay["difference"]["blame"], replay["difference"]["step"]) == (blame, step)


def test_without_consent_to_changes_the_changed_file_is_named_and_nothing_runs(packed: Path, tmp_path: Path) -> None:
    found = what_if(packed, tmp_path, "LR = 0.01", "LR = 0.02")
    assert found.code == 2
    assert "{cwd}/train.py:" in found.stderr
    assert found.stdout == ""


@pytest.mark.parametrize("how", ["code", "data"])
def test_a_changed_label_is_blamed_on_content_where_its_sample_comes(packed: Path, tmp_path: Path, how: str) -> None:
    import torch
    from torch.utils.data import random_split

    torch.manual_seed(3)
    index = random_split(range(200), [160, 40])[0].indices[40]  # type: ignore[arg-type]
    rows = points().splitlines(keepends=True)
    flipped = "0" if rows[index].endswith(",1\n") else "1"
    rows[index] = rows[index][:-2] + flipped + "\n"
    change = "self.y = torch.tensor([int(r[-1]) for r in rows])"
    if how == "code":
        arguments = (change, change + f"; self.y[{index}] = {flipped}")
        found = what_if(packed, tmp_path, *arguments, "--allow-changed-source", "--no-sizes")
    else:
        options = ("--allow-changed-source", "--no-sizes")
        found = what_if(packed, tmp_path, change, change, *options, data="".join(rows))
    difference = found.document["replay"]["difference"]
    assert difference["blame"] == "order.content"
    assert difference["components"][0]["component"] == "order.content"
    assert difference["step"] == label_step(index)


def test_changed_data_is_refused_without_consent_and_named(packed: Path, tmp_path: Path) -> None:
    found = what_if(packed, tmp_path, "LR = 0.01", "LR = 0.01", data=points() + "0,0,0,0,1\n")
    assert found.code == 2
    assert "{cwd}/data.csv" in found.stderr


def test_missing_data_is_named_and_decides_nothing(packed: Path) -> None:
    found = verify(packed / "run.zip", "--replay", "full", "--yes", home=packed / HOME)
    assert found.code == 3
    assert found.document["replay"]["outcome"] == "not-run"
    assert "{cwd}/data.csv" in found.document["replay"]["reason"]
    assert "--data" in found.document["replay"]["reason"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"out.pt"', '"elsewhere.pt"'),
        ("print(epoch", "print(epoch, epoch"),
        ("NOISE = 0.1", "NOISE = 0.1  # as before"),
    ],
)
def test_a_harmless_change_matches_and_is_named(packed: Path, tmp_path: Path, old: str, new: str) -> None:
    found = what_if(packed, tmp_path, old, new, "--allow-changed-source")
    replay = found.document["replay"]
    assert (found.code, replay["outcome"], replay["whatIf"]) == (0, "match", True)
    assert replay["changedFiles"][0].startswith("{cwd}/train.py:")


def test_a_what_if_says_how_large_each_difference_is(packed: Path, tmp_path: Path) -> None:
    found = what_if(packed, tmp_path, "DROP = 0.2", "DROP = 0.25", "--allow-changed-source")
    components = {item["component"]: item for item in found.document["replay"]["difference"]["components"]}
    assert "difference" in components["loss"]["detail"]
    sizes = [tensor["size"] for tensor in components["optimizer.momentum"]["tensors"]]
    assert all(re.search(r"\d+ of \d+ elements, by at most .* ULP", size) for size in sizes)
