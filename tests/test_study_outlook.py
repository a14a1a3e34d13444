"""What `study plan` says before anything runs: arms, steps, p-values, power, warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.studying import STUDIES, study_directory
from tests.tools import audit
from trainmem_audit.canonical import float_text
from trainmem_audit.documents.estimates import Estimate, Estimates
from trainmem_audit.errors import UsageError
from trainmem_audit.study.outlook import Measured, outlook, outlook_text, power_lines, warnings
from trainmem_audit.study.plan import Declared, read_study


def declared(directory: Path, name: str, *changes: tuple[str, str]) -> Declared:
    path = study_directory(directory, STUDIES / "valid" / f"{name}.toml")
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return read_study(path)


def test_steps_of_a_script_are_whole_reruns(tmp_path: Path) -> None:
    """3 seeds, 1 branch after 4 steps, 2 streams, 5 treatments, last horizon 3."""
    found = outlook(declared(tmp_path, "small").plan)
    assert (found.arms, found.prefixes, found.at_least) == (30, 0, True)
    assert found.steps == 30 * (4 + 3)


def test_steps_of_a_program_share_their_prefix(tmp_path: Path) -> None:
    """2 seeds, branches after 4 and 8 steps, 4 streams of which one goes beyond horizon 3 to 30."""
    plan = declared(tmp_path, "everything").plan
    found = outlook(plan)
    arms = 2 * 2 * len(plan.treatments)
    assert (found.arms, found.prefixes, found.at_least) == (4 * arms, 2, False)
    assert found.steps == 2 * 8 + arms * (30 + 3 * 3)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ([("seeds = 3", "seeds = 5")], "it takes 6 seeds"),
        ([("seeds = 3", "seeds = 1")], "no interval and no test"),
        ([("seeds = 3", "seeds = [1, 2, 3]")], "neighbouring seeds"),
        ([("noise_streams = 2", "noise_streams = 1"), ("horizon = 1", 'horizon = 1\nestimand = "pathwise"')], "no law"),
        ([("noise_streams = 2", "noise_streams = 2\nfewer_streams = {after = 1, streams = 1}")], "beyond horizon 1"),
        ([], "disjoint"),
    ],
)
def test_what_a_plan_cannot_show_is_said(tmp_path: Path, changes: list[tuple[str, str]], said: str) -> None:
    assert any(said in warning for warning in warnings(declared(tmp_path, "small", *changes).plan))


def test_enough_seeds_are_no_reason_to_warn(tmp_path: Path) -> None:
    plan = declared(
        tmp_path, "small", ("seeds = 3", "seeds = 6"), ("[analysis]", 'disjoint = "made so"\n\n[analysis]')
    ).plan
    assert [warning for warning in warnings(plan) if "rerun" not in warning] == []


def test_the_outlook_names_all_that_was_filled_in(tmp_path: Path) -> None:
    study = declared(tmp_path, "small")
    text = outlook_text(study, Measured(0.010, 1000, 2.0), workers=2)
    assert study.plan.digest in text
    assert "time          at least 31.1 s with 2 workers, at 10.0 ms a step and 2.0 s a start" in text
    assert "for law effects (3 seeds × 2 streams)" in text
    assert "0.25 by flipping 3 seeds" in text
    for note in study.notes:
        assert note in text


def pilot(horizon: int, *values: float) -> Estimates:
    of: Any = Estimate.model_construct
    estimate = of(
        contrast="reset",
        estimand="law-effect",
        observable="total-variation",
        horizon=horizon,
        branch_step=4,
        units=len(values),
        per_unit=tuple(map(float_text, values)),
    )
    all_of: Any = Estimates.model_construct
    found: Estimates = all_of(estimates=(estimate,))
    return found


def test_power_follows_from_a_pilot(tmp_path: Path) -> None:
    plan = declared(tmp_path, "small", ("seeds = 3", "seeds = 8")).plan
    (strong,) = power_lines(plan, pilot(1, 0.9, 1.0, 1.1, 1.2, 0.8, 1.0))
    (weak,) = power_lines(plan, pilot(1, 0.9, -1.0, 1.1, -0.8, 1.0, -0.9))
    chances = [float(text.split()[1].rstrip(",")) for text in (strong, weak)]
    assert chances[0] > 0.99
    assert chances[1] < 0.2
    with pytest.raises(UsageError, match="says nothing"):
        list(power_lines(plan, pilot(2, 1.0, 1.0)))


def test_plan_needs_no_torch_and_starts_at_once(tmp_path: Path) -> None:
    """What it imports is counted, not its seconds."""
    study_directory(tmp_path, STUDIES / "valid" / "small.toml")
    (tmp_path / "without").mkdir()
    for name in ("torch", "scipy"):
        (tmp_path / "without" / f"{name}.py").write_text("raise ImportError('not here')\n")
    env = {"PYTHONPATH": str(tmp_path / "without")}
    done = audit("study", "plan", "study.toml", "--format", "json", cwd=tmp_path, home=tmp_path / "home", env=env)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["name"] == "momentum on a small model"
    text = audit("study", "plan", "study.toml", cwd=tmp_path, home=tmp_path / "home", env=env)
    assert "smallest p" in text.stdout, text.stderr


def test_a_mistake_is_a_message_and_exit_code_2(tmp_path: Path) -> None:
    study_directory(tmp_path, STUDIES / "invalid" / "unknown_member.toml")
    done = audit("study", "plan", "study.toml", cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 2
    assert "did you mean noiseStreams?" in done.stderr
    assert "Traceback" not in done.stderr
