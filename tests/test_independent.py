"""A writer that shares no code with us makes a run by the format description alone, and every verb takes it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tools import Run, audit, environment, verify

EXAMPLE = Path(__file__).parents[1] / "examples" / "independent"
WITHOUT_US = """
import runpy, sys

class NotOurs:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("trainmem_audit", "torch"):
            raise ModuleNotFoundError(f"{name} may not be imported here", name=name)

sys.meta_path.insert(0, NotOurs())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def write(where: Path, run: str, seed: int) -> Path:
    """Run a copy of the example, in which neither we nor torch can be imported."""
    script = str(where / "example" / "writer.py")
    command = [sys.executable, "-c", WITHOUT_US, script, run, "--seed", str(seed)]
    subprocess.run(command, cwd=where, env=environment(where / "home"), check=True, capture_output=True, timeout=120)
    return where / run


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the runs `one` and `same` of seed 0, and `other` of seed 1."""
    folder = tmp_path_factory.mktemp("independent")
    shutil.copytree(EXAMPLE, folder / "example", ignore=shutil.ignore_patterns("__pycache__"))
    for run, seed in (("one", 0), ("same", 0), ("other", 1)):
        write(folder, run, seed)
    return folder


def test_verify_accepts_it(where: Path) -> None:
    done = verify(where / "one", "--allow-untrusted", home=where / "home")
    assert (done.code, done.findings) == (0, []), done.stdout
    assert {check["state"] for check in done.document["checks"] if check["number"] != 3} == {"pass"}
    assert (done.document["bytes"], done.document["record"]) == ("intact", "consistent")
    assert done.document["signature"]["state"] == "unknown-signer"
    assert done.document["facts"]["steps"] == 28


def test_check_accepts_it(where: Path) -> None:
    done = audit("check", "one", "--allow-untrusted", cwd=where, home=where / "home")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "FAIL" not in done.stdout


def test_nobody_vouches_for_its_key(where: Path) -> None:
    assert verify(where / "one", home=where / "home").code == 1


def test_show_prints_what_it_says(where: Path) -> None:
    done = audit("show", where / "one", cwd=where, home=where / "home")
    assert done.returncode == 0, done.stderr
    for text in ("optimizer.momentum", "numpy.rng (PCG64)", "Generator.permutation", "moons.csv", "28, complete"):
        assert text in done.stdout


def test_report_draws_it(where: Path) -> None:
    done = audit("report", where / "one", "-o", where / "report", cwd=where, home=where / "home")
    assert done.returncode == 0, done.stderr
    page, text = ((where / "report" / name).read_text(encoding="utf-8") for name in ("report.html", "report.md"))
    for name in ("model.params", "optimizer.momentum", "optimizer.hyper", "numpy.rng", "moons.csv"):
        assert name in page
        assert name in text
    assert "<svg" in page


def test_diff_finds_equal_what_is_equal(where: Path) -> None:
    done = audit("diff", where / "one", where / "same", cwd=where, home=where / "home")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "equal: 28 steps" in done.stdout


def test_diff_blames_the_seed_for_another_run(where: Path) -> None:
    done = audit("diff", where / "one", where / "other", cwd=where, home=where / "home")
    assert done.returncode == 1, done.stderr
    assert "blame: rng.numpy.rng" in done.stdout


def test_pack_makes_a_zip_that_verifies(where: Path) -> None:
    done = audit("pack", where / "one", "-o", where / "one.zip", cwd=where, home=where / "home")
    assert done.returncode == 0, done.stderr
    assert verify(where / "one.zip", "--allow-untrusted", home=where / "home").code == 0


@pytest.mark.parametrize(
    ("name", "code"),
    [("steps.jsonl", "LOG"), ("tensors.b3", "SIDE"), ("order/rank-0.i64", "SIDE"), ("source/_script/writer.py", "")],
)
def test_a_changed_byte_is_found(where: Path, tmp_path: Path, name: str, code: str) -> None:
    run = Run(Path(shutil.copytree(where / "one", tmp_path / "run")), where / "home")
    data = bytearray(run.read(name))
    data[len(data) // 2] ^= 1
    run.write(name, bytes(data))
    codes = {finding.split()[0] for finding in run.findings()}
    assert codes == {"FILE-CHANGED", code} - {""}


def test_its_log_names_nothing_of_the_machine(where: Path) -> None:
    """What the description demands of paths: none is absolute."""
    log = (where / "one" / "steps.jsonl").read_text(encoding="utf-8")
    assert str(where) not in log
    assert str(Path.home()) not in log
    command = json.loads(log.splitlines()[0])["command"]
    assert command["entry"] == "{script}/writer.py"
