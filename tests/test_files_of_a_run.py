"""The files around a run: which code and data a replay loaded, directories, inputs that change, the run directory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import builders
from tests.tools import environment, verify
from tests.trainings import pack, recorded, replayed, statement_of
from trainmem_audit.documents.steplog import Folder
from trainmem_audit.errors import FormatError
from trainmem_audit.privacy import redact_argv
from trainmem_audit.recording.opened import OpenedFiles
from trainmem_audit.recording.places import Places
from trainmem_audit.replaying import child
from trainmem_audit.replaying.scratch import _make_folders, input_place

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


# The environment --------------------------------------------------------------------------------------------------


def test_a_variable_that_was_asked_for_is_imposed_and_shown(tmp_path: Path, home: Path) -> None:
    project = lay(tmp_path / "project", 'import os\nLR = float(os.environ.get("MY_LR", "0.1"))\n')
    run = record(project, home=home, options=("--env", "MY_LR", "--env", "MY_PLUGIN"), env={"MY_LR": "0.3"})
    done = verify(run, "--replay", "full", "--yes", "--allow-untrusted", home=home)
    assert done.document["replay"]["outcome"] == "match", done.stderr
    assert "MY_LR=0.3 python train.py" in done.stderr


@pytest.mark.parametrize(
    "name",
    ["LD_PRELOAD", "PATH", "PYTHONSTARTUP", "http_proxy", "HOME", "BASH_ENV", "ENV", "IFS", "TRAINMEM_AUDIT_HOME",
     "GIT_SSH_COMMAND", "DYLD_INSERT_LIBRARIES", "NODE_OPTIONS", "TORCH_EXTENSIONS_DIR", "A=B", "OMP_TOOL_LIBRARIES"],
)  # fmt: skip
def test_a_variable_that_loads_code_is_never_imposed(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name, raising=False)
    signed = builders.statement().predicate
    hostile = signed.environment.model_copy(update={"variables": {name: "/tmp/evil", "MY_LR": "0.3"}})
    manifest = signed.model_copy(update={"environment": hostile})
    assert child.chosen_variables(manifest) == ({"MY_LR": "0.3"}, [name])
    assert name not in child._environment(manifest)


def test_a_difference_without_a_recorded_variable_decides_nothing(tmp_path: Path, home: Path) -> None:
    project = lay(tmp_path / "project", 'import os\nLR = float(os.environ.get("MY_PLUGIN", "0.1"))\n')
    run = record(project, home=home, options=("--env", "MY_PLUGIN"), env={"MY_PLUGIN": "0.3"})
    code, verdict = replayed(run, home=home)
    assert (code, verdict["outcome"]) == (3, "inconclusive")
    assert "MY_PLUGIN" in verdict["reason"]
    assert any("MY_PLUGIN" in note for note in verdict["notes"])


# Directories ------------------------------------------------------------------------------------------------------

RELIES = """
import os, glob
os.rename("old.tmp", "kept.tmp")
os.remove("stale.txt")
here = sorted(os.listdir("data"))
assert here == ["a.txt", "b.txt", "sub"], here
assert glob.glob("logs/*.log") == ["logs/1.log"]
os.chdir("inner")
LR = 0.01 * len(here) + float(open("../data/" + here[0]).read())
os.chdir("..")
class Box:
    pass
"""
SAVES = """
torch.save(model.state_dict(), "checkpoints/m.pt")
open("out/log.txt", "w").write("done")
"""


def test_directories_that_the_script_relies_on_are_there_again(tmp_path: Path, home: Path) -> None:
    files = {
        "checkpoints/.gitkeep": "", "out/before.txt": "x", "data/a.txt": "0.1", "data/b.txt": "never read",
        "data/sub/c.txt": "x", "inner/x": "", "logs/1.log": "x", "old.tmp": "x", "stale.txt": "x",
    }  # fmt: skip
    project = lay(tmp_path / "project", RELIES, **files)
    (project / "train.py").write_text((project / "train.py").read_text() + SAVES)
    original = shutil.copytree(project, tmp_path / "original")
    run = record(project, home=home)
    folders = {folder.path: folder for folder in statement_of(run).predicate.folders}
    assert folders["{cwd}/data"].names == ("a.txt", "b.txt", "sub/")
    assert set(folders) == {f"{{cwd}}{name}" for name in ("", "/checkpoints", "/data", "/inner", "/logs", "/out")}
    code, verdict = replayed(run, "--data", str(original), home=home)
    assert (code, verdict["outcome"]) == (0, "match"), verdict


@pytest.mark.parametrize(
    "folder",
    [
        {"path": "{cwd}/../x"}, {"path": "/tmp/x"}, {"path": "{home}/x"}, {"path": "{cwd}/a", "names": ("../x",)},
        {"path": "{cwd}/a", "names": ("b/c",)}, {"path": "{cwd}/a", "names": ("/",)}, {"path": "{site}/a\0"},
    ],
)  # fmt: skip
def test_a_hostile_directory_is_refused(tmp_path: Path, folder: dict[str, Any]) -> None:
    manifest = builders.statement().predicate.model_copy(update={"folders": (Folder(**folder),)})
    with pytest.raises(FormatError):
        _make_folders(tmp_path, manifest)
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


# Inputs that change -----------------------------------------------------------------------------------------------

RESUMES = """
import json, os, numpy as np
state = torch.load("state.pt")
state["lr"] *= 2
torch.save(state, "state.pt")
settings = json.load(open("settings.json"))
settings["runs"] += 1
open("settings.tmp", "w").write(json.dumps(settings))
os.replace("settings.tmp", "settings.json")
values = np.memmap("values.bin", dtype="f", shape=(4,), mode="r+")
values[:] += 1
future = float(open("future.txt").read())
linked = float(open("linked/x.txt").read())
LR = state["lr"] * settings["runs"] * float(values[0]) + future + linked
"""


def test_an_input_has_the_digest_of_what_was_read_though_it_was_written_over(tmp_path: Path, home: Path) -> None:
    project = lay(tmp_path / "project", RESUMES, **{"settings.json": '{"runs": 1}', "future.txt": "0.01"})
    torch.save({"lr": 0.01}, project / "state.pt")
    np.full(4, 0.5, "f").tofile(project / "values.bin")
    os.utime(project / "future.txt", (2e9, 2e9))
    (tmp_path / "big").mkdir()
    (tmp_path / "big/x.txt").write_text("0.02")
    (project / "linked").symlink_to(tmp_path / "big")
    original = shutil.copytree(project, tmp_path / "original")
    run = record(project, home=home)
    inputs = {item.path: item.sha256 for item in statement_of(run).predicate.inputs}
    names = ("future.txt", "linked/x.txt", "settings.json", "state.pt", "values.bin")
    expected = {f"{{cwd}}/{name}": hashlib.sha256((original / name).read_bytes()).hexdigest() for name in names}
    assert inputs == expected
    code, verdict = replayed(run, "--data", str(original), home=home)
    assert (code, verdict["outcome"]) == (0, "match"), verdict


def test_an_input_that_changes_before_its_digest_is_taken_is_said_to_be_unknown(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"before")
    opened = OpenedFiles(Places(tmp_path, tmp_path), tmp_path / "run")
    opened._files_left = 0  # as after a thousand files
    try:
        path.read_bytes()
        with opened.own_work():  # as a library written in C does, unseen
            path.write_bytes(b"after")
        found, lost = opened.take()
    finally:
        opened.active = False
    assert found == []
    assert lost == ["input {cwd}/data.bin: changed before its digest was taken"]


# The run directory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way", ['os.makedirs("run")', 'os.makedirs("run/deep")', 'os.path.exists("run") or os.mkdir("run")']
)
def test_a_script_that_makes_a_directory_called_run_has_it(tmp_path: Path, home: Path, way: str) -> None:
    project = lay(tmp_path / "project", f"import os\n{way}\nopen('run/mine.txt', 'w').write('x')\nLR = 0.1\n")
    done = recorded(project, "train.py", home=home)
    assert done.returncode == 0, done.stderr.decode()
    assert b"run-2" in done.stderr
    assert (project / "run/mine.txt").read_text() == "x"
    assert not (project / "run/run.json").exists()
    code, verdict = replayed(project / "run-2", home=home)
    assert (code, verdict["outcome"]) == (0, "match"), verdict


def test_what_a_script_writes_into_the_run_directory_is_not_signed(tmp_path: Path, home: Path) -> None:
    project = lay(tmp_path / "project", "LR = 0.1\n")
    text = (project / "train.py").read_text()
    (project / "train.py").write_text(text + "import os; os.system('echo x > run/weights.pt')\n")
    done = recorded(project, "train.py", home=home)
    assert done.returncode == 0
    assert b"NOT PART OF THE RECORD" in done.stderr
    assert b"weights.pt" in done.stderr
    assert "weights.pt" not in {subject.name for subject in statement_of(project / "run").subject}
    assert "FILE-UNLISTED weights.pt" in verify(project / "run", home=home).findings
    packed = pack(project / "run", tmp_path / "run.zip")
    assert verify(packed, "--allow-untrusted", home=home).findings == []


# Paths in batches -------------------------------------------------------------------------------------------------

HANDS_OUT_PATHS = """
from pathlib import Path
HERE = Path(__file__).resolve().parent
rows = [{"x": torch.ones(2), "path": str(HERE / "data" / f"{i}.npy"), "at": HERE / "data"} for i in range(3)]
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for batch in torch.utils.data.DataLoader(rows, batch_size=None):
    model(batch["x"]).sum().backward()
    optimizer.step()
LR = 0.1
"""


def test_paths_in_a_batch_are_named_and_not_taken_for_content(tmp_path: Path, home: Path) -> None:
    run = record(lay(tmp_path / "project", HANDS_OUT_PATHS), home=home)
    code, verdict = replayed(run, home=home)
    assert (code, verdict["outcome"]) == (0, "match"), verdict


def test_a_text_is_named_only_if_it_is_a_path_of_the_run(tmp_path: Path) -> None:
    places = Places(tmp_path, tmp_path, [("big", tmp_path.parent / "big")])
    texts = {
        str(tmp_path / "a/b.npy"): "{cwd}/a/b.npy", str(tmp_path): "{cwd}", "/elsewhere/x": "/elsewhere/x",
        str(tmp_path.parent / "big/x"): "big/x", "a/b": "a/b", "": "", f"{tmp_path}-2/x": f"{tmp_path}-2/x",
    }  # fmt: skip
    assert {text: places.name_text(text) for text in texts} == texts


# Secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ("--token-dim", "16"), ("--token-dropout=0.1",), ("--author", "Somebody"), ("--authors=a,b",),
        ("token_dim=16",), ("--token-mixer", "attention"), ("--use-auth", "false"), ("--authority", "x"),
        ("--max-tokens", "512"),
    ],
)  # fmt: skip
def test_what_only_looks_like_the_name_of_a_secret_is_recorded(arguments: tuple[str, ...]) -> None:
    found = redact_argv(list(arguments), Path("/project"), ())
    assert [argument.prefix + (argument.text or "") for argument in found] == list(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--token", "abc1"), ("--hf-token=abc1",), ("--hfToken", "abc1"), ("--password", "1234"), ("--api-key", "abc1"),
        ("--db-password-for-me", "x"), ("--oauth", "abc1"), ("WANDB_API_KEY=abc1",), ("--token-for-hub", "abc1"),
    ],
)  # fmt: skip
def test_the_values_of_secret_names_are_kept_out(arguments: tuple[str, ...]) -> None:
    assert redact_argv(list(arguments), Path("/project"), ())[-1].redacted


def test_a_secret_comes_from_a_file_where_nobody_can_be_asked(tmp_path: Path, home: Path) -> None:
    project = lay(tmp_path / "project", "import sys\nLR = 0.1 * len(sys.argv[2])\n")
    run = record(project, "train.py", "--token", "abc123", home=home)
    done = verify(run, "--replay", "full", "--yes", "--allow-untrusted", home=home)
    assert done.code == 2
    assert "--secrets" in done.stderr
    (tmp_path / "secrets").write_text("--token=abc123\n")
    code, verdict = replayed(run, "--secrets", str(tmp_path / "secrets"), home=home)
    assert (code, verdict["outcome"]) == (0, "match"), verdict


# Data above the working directory ---------------------------------------------------------------------------------


def test_data_that_is_reached_by_climbing_is_there_again(tmp_path: Path, home: Path) -> None:
    project = tmp_path / "project"
    script = "exec(open('../helper.py').read())\nLR = helped(float(open('../data/lr.txt').read()))\n"
    lay(project / "src", script)
    lay(project, "", **{"data/lr.txt": "0.1", "helper.py": "def helped(x):\n    return 2 * x\n"})
    run = record(project / "src", home=home)
    inputs = [item.path for item in statement_of(run).predicate.inputs]
    assert sorted(inputs) == ["{parent}/data/lr.txt", "{parent}/helper.py"]
    code, verdict = replayed(run, "--data", str(project), home=home)
    assert (code, verdict["outcome"]) == (0, "match"), verdict


@pytest.mark.parametrize(
    "path",
    [
        "{parent}/../x",
        "{parent}/cwd-of-the-run/train.py",
        "{parent2}/above-1/x",
        "{parent4}/x",
        "{parent}",
        "{parent}//x",
    ],
)
def test_a_hostile_place_above_the_tree_is_refused(tmp_path: Path, path: str) -> None:
    with pytest.raises(FormatError):
        input_place(tmp_path / "above-3/above-2/above-1/cwd-of-the-run", path)
