"""The files around a run: which code and data a replay loaded, directories, inputs that change, the run directory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.tools import environment
from tests.trainings import recorded, replayed, statement_of

TRAIN = """
model = torch.nn.Linear(2, 1)
torch.nn.init.ones_(model.weight)
optimizer = torch.optim.SGD(model.parameters(), lr=LR)
for _ in range(3):
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
"""


def lay(folder: Path, script: str, **files: str) -> Path:
    """Make `folder` with `train.py` (`script` gives `LR`, then the training) and text files (`a__b` is `a/b`)."""
    for name, text in {"train.py": "import torch\n" + script + TRAIN, **files}.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def record(folder: Path, *command: str, home: Path, **more: Any) -> Path:
    """Record `train.py` in `folder`; return the run directory."""
    done = recorded(folder, *(command or ("train.py",)), home=home, **more)
    assert done.returncode == 0, done.stderr.decode()
    return folder / "run"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return where keys are kept."""
    return tmp_path / "home"


# Which code and data a replay loaded ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a project with a `src` layout that is installed editable, and the interpreter it is installed for."""
    root = tmp_path_factory.mktemp("installed")
    project = lay(root / "project", "from mypkg import LR\n")
    (project / "src/mypkg").mkdir(parents=True)
    (project / "src/mypkg/__init__.py").write_text("LR = 0.1\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / "venv"], check=True)
    site = next((root / "venv/lib").iterdir()) / "site-packages"
    paths = [entry for entry in sys.path if entry.endswith("-packages")]
    package = Path(__file__).parents[1]
    (site / "all.pth").write_text("\n".join([*paths, str(package), str(project / "src")]) + "\n")
    return project, root / "venv/bin/python"


def run_in(python: Path, cwd: Path, home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, "-m", "trainmem_audit", *map(str, arguments)],
        cwd=cwd, env=environment(home), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def test_an_edit_of_a_package_that_is_installed_from_the_tree_is_what_runs(
    installed: tuple[Path, Path], tmp_path: Path, home: Path
) -> None:
    project, python = installed
    done = run_in(python, project, home, "record", "-q", "-d", tmp_path / "run", "train.py")
    assert done.returncode == 0, done.stderr
    edited = tmp_path / "edited"
    shutil.copytree(tmp_path / "run/source", edited)
    (edited / "src/mypkg/__init__.py").write_text("LR = 0.5\n")
    options = ("--replay", "full", "--yes", "--allow-untrusted", "--format", "json", "--no-sizes")
    what_if = ("--source", edited, "--allow-changed-source")
    verdict = json.loads(run_in(python, tmp_path, home, "verify", "run", *options, *what_if).stdout)["replay"]
    assert (verdict["outcome"], verdict["difference"]["blame"]) == ("mismatch", "optimizer.hyper")
    same = json.loads(run_in(python, tmp_path, home, "verify", "run", *options).stdout)["replay"]
    assert same["outcome"] == "match"


LIVE = "import sys; sys.path.insert(0, {lib!r})\nfrom live import LR\n"


def test_code_of_the_tree_that_is_imported_by_its_absolute_path_is_not_replayed(tmp_path: Path, home: Path) -> None:
    project = tmp_path / "project"
    lay(project, LIVE.format(lib=str(project / "lib")), **{"lib__live.py": "LR = 0.1\n"})
    run = record(project, home=home)
    assert replayed(run, home=home)[1]["outcome"] == "match"  # the live tree still holds the signed bytes
    (project / "lib/live.py").write_text("LR = 0.2\n")
    code, verdict = replayed(run, home=home)
    assert (code, verdict["outcome"]) == (3, "inconclusive")
    assert "live.py" in verdict["reason"]
    edited = tmp_path / "edited"
    shutil.copytree(run / "source", edited)
    (edited / "lib/live.py").write_text("LR = 0.5\n")
    (project / "lib/live.py").write_text("LR = 0.1\n")
    code, verdict = replayed(run, "--source", str(edited), "--allow-changed-source", home=home)
    assert (code, verdict["outcome"]) == (3, "inconclusive")
    assert "lib/live.py" in verdict["reason"]


def test_code_that_the_record_does_not_hold_convicts_nobody(tmp_path: Path, home: Path) -> None:
    lib = tmp_path / "lib"
    lib.mkdir()
    (lib / "live.py").write_text("LR = 0.1\n")
    run = record(lay(tmp_path / "project", LIVE.format(lib=str(lib))), home=home)
    assert replayed(run, home=home)[1]["outcome"] == "match"
    (lib / "live.py").write_text("LR = 0.2\n")
    code, verdict = replayed(run, home=home)
    assert (code, verdict["outcome"]) == (3, "inconclusive")
    assert "live" in verdict["reason"]


def test_data_that_is_read_from_its_absolute_place_is_compared_there(tmp_path: Path, home: Path) -> None:
    data = tmp_path / "elsewhere/lr.txt"
    data.parent.mkdir()
    data.write_text("0.1")
    run = record(lay(tmp_path / "project", f"LR = float(open({str(data)!r}).read())\n"), home=home)
    given = ("--data", str(data.parent))
    assert replayed(run, *given, home=home)[1]["outcome"] == "match"
    shutil.copytree(data.parent, tmp_path / "copy")
    data.write_text("0.2")
    code, verdict = replayed(run, "--data", str(tmp_path / "copy"), home=home)
    assert (code, verdict["outcome"]) == (3, "inconclusive")
    assert "lr.txt" in verdict["reason"]


def test_data_of_the_tree_that_is_read_from_its_absolute_place_is_compared_there(tmp_path: Path, home: Path) -> None:
    project = tmp_path / "project"
    lay(project, f"LR = float(open({str(project / 'lr.txt')!r}).read())\n", **{"lr.txt": "0.1"})
    run = record(project, home=home)
    shutil.copytree(project, tmp_path / "copy")
    (project / "lr.txt").write_text("0.2")
    code, verdict = replayed(run, "--data", str(tmp_path / "copy"), home=home, mode="prefix:1")
    assert (code, verdict["outcome"]) == (3, "inconclusive")
    assert "lr.txt" in verdict["reason"]


def test_a_changed_input_that_is_used_is_still_a_what_if(tmp_path: Path, home: Path) -> None:
    project = lay(tmp_path / "project", "LR = float(open('lr.txt').read())\n", **{"lr.txt": "0.1"})
    run = record(project, home=home)
    (project / "lr.txt").write_text("0.2")
    options = ("--data", str(project), "--allow-changed-source", "--no-sizes")
    code, verdict = replayed(run, *options, home=home)
    assert (code, verdict["outcome"], verdict["whatIf"]) == (1, "mismatch", True)
    assert statement_of(run).predicate.inputs[0].path == "{cwd}/lr.txt"
