"""`doctor`: what this machine can do, found by looking and by two small layers; nothing is changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tools import audit, environment
from trainmem_audit.recording.trials import trials


def test_this_machine_can_verify_record_and_replay(tmp_path: Path) -> None:
    done = audit("doctor", cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "this machine can verify, record, replay"
    assert torch.__version__ in done.stdout
    assert "convolution" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_named_with_its_remedy(tmp_path: Path) -> None:
    done = audit("doctor", "--format", "json", cwd=tmp_path, home=tmp_path / "home", env={"OMP_DYNAMIC": "true"})
    found = json.loads(done.stdout)
    assert (done.returncode, found["verify"], found["record"], found["replay"]) == (3, True, False, False)
    missing = [item for item in found["symptoms"] if item["state"] == "missing"]
    assert [(item["name"], item["value"]) for item in missing] == [("OMP_DYNAMIC", "true")]
    assert missing[0]["remedy"]


def test_without_torch_it_says_that_it_can_verify(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "class NoTorch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'torch':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, NoTorch())\n"
        "import importlib.util\n"
        "real = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'torch' else real(name, *rest)\n"
        "sys.argv = ['trainmem-audit', 'doctor']\n"
        "from trainmem_audit.__main__ import main\n"
        "main()\n"
    )
    env = environment(tmp_path) | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1] == "this machine can verify, NOT record, NOT replay"
    assert "MISS torch" in done.stdout


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    done = audit("doctor", "--format", "yaml", cwd=tmp_path, home=tmp_path / "home")
    assert (done.returncode, "text or json" in done.stderr) == (2, True)


def test_trials_leave_threads_random_states_and_grad_mode_as_they_were() -> None:
    before = torch.get_num_threads(), torch.get_rng_state(), torch.is_grad_enabled()
    found = trials()
    assert torch.get_num_threads() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.is_grad_enabled() is before[2]
    assert all(layer["repeats"] for layer in found.values())
    assert found["convolution"].keys() == {"repeats", "threads", "memory format"}


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one processor: torch starts no second thread")
def test_threads_change_the_bits_of_a_convolution() -> None:
    assert trials()["convolution"]["threads"]
