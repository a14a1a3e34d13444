"""The GitHub Action: its shell steps are run as they are written, with what a runner gives them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.tools import Run, environment

ROOT = Path(__file__).resolve().parent.parent
ACTION = ROOT / ".github" / "actions" / "check" / "action.yml"
pytestmark = [
    pytest.mark.skipif(not ACTION.is_file(), reason="not in an sdist"),
    pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash"),
]


@pytest.fixture(scope="module")
def action() -> Any:
    return yaml.safe_load(ACTION.read_text("utf-8"))


def step(action: Any, name: str) -> Any:
    (found,) = [item for item in action["runs"]["steps"] if item["name"] == name]
    return found


def filled(text: str, inputs: dict[str, str]) -> str:
    """Return a value of `env` with its expressions replaced, as a runner does."""
    text = text.replace("${{ github.action_path }}", str(ACTION.parent))
    return re.sub(r"\$\{\{ inputs\.([a-z-]+) \}\}", lambda match: inputs[match[1]], text)


def run_step(action: Any, name: str, where: Path, home: Path, **given: str) -> subprocess.CompletedProcess[str]:
    """Run a shell step of the action with bash, as GitHub does: `bash --noprofile --norc -eo pipefail`."""
    wanted = step(action, name)
    inputs = {key: value.get("default", "") for key, value in action["inputs"].items()}
    inputs |= {key.replace("_", "-"): value for key, value in given.items()}
    script = where / "step.sh"
    script.write_text(wanted["run"])
    files = {key: str(where / key.lower()) for key in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    values = {key: filled(value, inputs) for key, value in wanted["env"].items()}
    return subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
        cwd=where,
        env=environment(home, RUNNER_TEMP=str(where), **files, **values),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """Return a directory in which the package is installed where the action expects it (this very checkout)."""
    programs = tmp_path / "trainmem-audit" / "bin"
    programs.mkdir(parents=True)
    program = programs / "trainmem-audit"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m trainmem_audit "$@"\n')
    program.chmod(0o755)
    return tmp_path


def output(where: Path) -> dict[str, str]:
    lines = (where / "github_output").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_inputs_reach_the_shell_as_variables_only(action: Any) -> None:
    """An expression inside a script would let an input run commands."""
    for item in action["runs"]["steps"]:
        assert "${{" not in item.get("run", "")
    assert set(action["inputs"]) >= {"run", "profile", "fail-on", "signer", "waivers", "sarif", "upload-sarif"}


def test_the_sarif_file_is_uploaded_whatever_the_check_said(action: Any) -> None:
    upload = step(action, "Upload")
    assert upload["uses"].startswith("github/codeql-action/upload-sarif@")
    assert "always()" in upload["if"]
    assert upload["with"]["sarif_file"] == "${{ inputs.sarif }}"


def test_the_check_of_a_sound_run(action: Any, runner: Path, run: Run) -> None:
    done = run_step(action, "Check", runner, run.home, run=str(run.path))
    assert done.returncode == int(output(runner)["exit-code"]), done.stderr
    assert done.returncode in (0, 3), done.stdout
    log = json.loads((runner / "trainmem-audit.sarif").read_text())
    assert log["runs"][0]["tool"]["driver"]["name"] == "trainmem-audit"
    assert "checklist" in (runner / "github_step_summary").read_text()
    assert "::error file=run.json,title=TM-ART" not in done.stdout


def test_the_check_of_a_damaged_run(action: Any, runner: Path, run: Run) -> None:
    run.write("tensors.b3", run.read("tensors.b3")[:-1])
    done = run_step(action, "Check", runner, run.home, run=str(run.path))
    assert done.returncode == 1
    assert output(runner)["exit-code"] == "1"
    assert "::error file=tensors.b3," in done.stdout
    assert (runner / "trainmem-audit.sarif").is_file()


def test_a_signer_that_is_demanded_and_not_there(action: Any, runner: Path, run: Run) -> None:
    done = run_step(action, "Check", runner, run.home, run=str(run.path), signer="SHA256:" + "A" * 43)
    assert done.returncode == 1
    assert "VERIFY-TRUST" in done.stdout


def test_what_is_no_run_ends_with_2(action: Any, runner: Path, tmp_path: Path) -> None:
    done = run_step(action, "Check", runner, tmp_path, run="$(touch forged); --profile")
    assert done.returncode == 2
    assert output(runner)["exit-code"] == "2"
    assert not (runner / "forged").exists()


@pytest.mark.slow
def test_the_package_installs_as_the_action_does_it(action: Any, tmp_path: Path) -> None:
    done = run_step(action, "Install", tmp_path, tmp_path)
    assert done.returncode == 0, done.stderr
    program = tmp_path / "trainmem-audit" / "bin" / "trainmem-audit"
    assert os.access(program, os.X_OK)
