"""The light verbs work without torch, and starting one loads nothing heavy.

Each command runs in an interpreter where importing torch fails, as on a machine that has none. What it had
loaded at its end comes back through a file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

VERBS = ("verify", "show", "pack", "report", "diff", "recover", "keygen", "trust", "sign", "record")
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


def test_light_verbs_work_without_torch(recorded: Path, tmp_path: Path) -> None:
    home = tmp_path / "reviewer"
    pack, report = tmp_path / "run.zip", tmp_path / "report"
    commands = (
        ("pack", "run", "-o", str(pack)),
        ("verify", "run", "--allow-untrusted"),
        ("verify", str(pack), "--allow-untrusted", "--format", "json"),
        ("show", str(pack)),
        ("diff", "run", str(pack)),
        ("report", str(pack), "-o", str(report)),
    )
    for command in commands:
        outcome = run(home, *command, cwd=recorded)
        assert outcome.code == 0, f"{' '.join(command)}\n{outcome.output}"
        assert "torch" not in outcome.loaded
    assert (report / "report.html").is_file()
    assert (report / "report.md").is_file()
