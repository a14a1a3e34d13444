"""The light verbs work without torch, and starting one loads nothing heavy.

Each command runs in an interpreter where importing torch fails, as on a machine that has none. What it had
loaded at its end comes back through a file.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_distribution import NOT_COPIED, ROOT, build

VERBS = ("verify", "check", "explain", "show", "pack", "report", "diff", "recover", "keygen", "trust", "sign", "record")
HEAVY = ("torch", "numpy", "cryptography", "jsonschema", "jinja2", "blake3")
"""What no `--help` may load. (Pydantic is not among them: typer itself imports it.)"""

WITHOUT_TORCH = """
import json, os, sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTorch())
sys.argv[0] = "trainmem-audit"
try:
    from trainmem_audit.__main__ import main
    code = main()
finally:
    with open(os.environ["LOADED"], "w") as file:
        json.dump(sorted({name.partition(".")[0] for name in sys.modules}), file)
sys.exit(code)
"""

SCRIPT = """
import torch
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
data = TensorDataset(torch.randn(12, 3), torch.randn(12, 1))
model = torch.nn.Linear(3, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for inputs, targets in DataLoader(data, batch_size=4, shuffle=True):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(inputs), targets).backward()
    optimizer.step()
"""


@dataclass(frozen=True)
class Outcome:
    code: int
    output: str
    loaded: frozenset[str]
    seconds: float


def run(home: Path, *arguments: str, cwd: Path | None = None) -> Outcome:
    """Run one command in an interpreter without torch."""
    home.mkdir(exist_ok=True)
    report = home / "loaded.json"
    start = time.perf_counter()
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *arguments],
        env=os.environ | {"TRAINMEM_AUDIT_HOME": str(home), "LOADED": str(report)},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    seconds = time.perf_counter() - start
    loaded = frozenset(json.loads(report.read_text()))
    return Outcome(process.returncode, process.stdout + process.stderr, loaded, seconds)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory that holds the recorded run `run/` of a tiny script (recording needs torch)."""
    where = tmp_path_factory.mktemp("recorded")
    (where / "train.py").write_text(SCRIPT)
    subprocess.run(
        [sys.executable, "-m", "trainmem_audit", "record", "train.py"],
        env=os.environ | {"TRAINMEM_AUDIT_HOME": str(where / "author")},
        cwd=where,
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=300,
    )
    return where


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), *((verb, "--help") for verb in VERBS)], ids=" ".join
)
def test_help_loads_nothing_heavy(arguments: tuple[str, ...], tmp_path: Path) -> None:
    outcome = run(tmp_path / "home", *arguments)
    assert outcome.code == 0, outcome.output
    assert outcome.output.strip()
    assert not outcome.loaded & set(HEAVY), f"loaded by `{' '.join(arguments)}`"


def test_verify_help_starts_fast(tmp_path: Path) -> None:
    """The promise is 0.5 s; a busy test machine gets more. `pytest -rP` shows the numbers."""
    seconds = sorted(run(tmp_path / "home", "verify", "--help").seconds for _ in range(5))
    print(f"verify --help: fastest {seconds[0]:.3f} s, median {seconds[2]:.3f} s of 5")
    assert seconds[0] < 3.0


def light_commands(tmp_path: Path) -> tuple[tuple[str, ...], ...]:
    pack, report = tmp_path / "run.zip", tmp_path / "report"
    return (
        ("pack", "run", "-o", str(pack)),
        ("verify", "run", "--allow-untrusted"),
        ("verify", str(pack), "--allow-untrusted", "--format", "json"),
        ("show", str(pack)),
        ("diff", "run", str(pack)),
        ("report", str(pack), "-o", str(report)),
        ("keygen", str(tmp_path / "key")),
        ("sign", "run", "--key", str(tmp_path / "key")),
        ("trust", "add", "submission-4711", "run/signer.pub"),
        ("trust", "list"),
        ("recover", "killed", "--key", str(tmp_path / "key")),
        ("verify", "run", "--signer", "submission-4711"),
    )


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    """Return a directory with `run/`, to be signed again, and `killed/`, to be recovered."""
    where = tmp_path / "there"
    shutil.copytree(recorded / "run", where / "run")
    shutil.copytree(recorded / "run", where / "killed")
    for name in ("run.json", "signer.pub"):
        (where / "killed" / name).unlink()
    log = where / "killed" / "steps.jsonl"
    log.write_bytes(log.read_bytes()[:-7])
    return where


def test_light_verbs_work_without_torch(copied: Path, tmp_path: Path) -> None:
    home, report = tmp_path / "reviewer", tmp_path / "report"
    for command in light_commands(tmp_path):
        outcome = run(home, *command, cwd=copied)
        assert outcome.code == 0, f"{' '.join(command)}\n{outcome.output}"
        assert "torch" not in outcome.loaded
    assert (report / "report.html").is_file()
    assert (report / "report.md").is_file()


@pytest.mark.slow
def test_light_verbs_work_in_an_environment_that_has_no_torch(copied: Path, tmp_path: Path) -> None:
    """The wheel, installed where its dependencies are and torch is not, and nothing of the checkout."""
    tree = tmp_path / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*NOT_COPIED))
    build(tree, tmp_path / "dist", "--wheel")
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    venv.EnvBuilder(symlinks=True).create(tmp_path / "venv")
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        name = path.name.lower()
        if not name.startswith(("torch", "functorch", "safetensors", "trainmem", "_trainmem", "__editable__")):
            (site / path.name).symlink_to(path)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    python = str(tmp_path / "venv" / "bin" / "python")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment["TRAINMEM_AUDIT_HOME"] = str(tmp_path / "home")

    def there(*command: str) -> subprocess.CompletedProcess[str]:
        arguments = [python, *command]
        return subprocess.run(arguments, cwd=copied, env=environment, capture_output=True, text=True, check=False)

    assert "No module named" in there("-c", "import torch").stderr
    assert str(site) in there("-c", "import trainmem_audit; print(trainmem_audit.__file__)").stdout
    for command in light_commands(tmp_path):
        done = there("-m", "trainmem_audit", *command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    for command in (("record", "train.py"), ("verify", "run", "--replay", "full", "--yes")):
        (copied / "train.py").touch()
        done = there("-m", "trainmem_audit", *command)
        assert done.returncode == 2
        assert "needs torch" in done.stderr
        assert "Traceback" not in done.stderr
