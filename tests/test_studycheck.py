"""`check` over the directory of a study: every record verified, every pair certified, every item decided."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.study_dirs import RESET, SIGNER, StudyDir
from tests.test_programs import PROGRAMS
from tests.tools import audit
from trainmem_audit.checks import items_of
from trainmem_audit.compliance import Terms, judge
from trainmem_audit.documents.compliance import ItemResult
from trainmem_audit.errors import FormatError
from trainmem_audit.study.layout import is_study
from trainmem_audit.studycheck import StudyExamination, examine_study
from trainmem_audit.trust import Trust
from trainmem_audit.verify import Policy

POLICY = Policy(trust=Trust(()), signer=SIGNER.public.keyid)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return StudyDir(tmp_path_factory.mktemp("study")).write()


def items(found: StudyExamination) -> dict[str, ItemResult]:
    return {item.id: item for item in judge(found.record, Terms("paired"), found.decide).items}


def states(found: StudyExamination) -> dict[str, str]:
    return {name: item.state for name, item in items(found).items()}


def test_a_study_is_known_by_its_plan(written: Path) -> None:
    assert is_study(written)
    assert not is_study(written / "arms" / RESET)


def test_everything_that_the_records_show_passes(written: Path) -> None:
    found = examine_study(written, POLICY)
    study = found.record.study
    assert study is not None
    assert (len(study.arms), len(study.pairs)) == (12, 8)
    assert {pair.certificate.label for pair in study.pairs.values()} == {"paired"}
    verification = found.record.verification
    assert (verification.bytes, verification.record, verification.findings) == ("intact", "consistent", ())
    assert verification.signature.state == "trusted"
    said = states(found)
    decided = {name: state for name, state in said.items() if name[3:6] in ("PTH", "RNG") or name == "TM-OPT-003"}
    assert set(decided.values()) <= {"pass", "not-applicable"}, decided
    assert said["TM-ART-003"] == said["TM-UNC-005"] == said["TM-EST-001"] == "pass"
    assert {name for name in said if name[3:6] == "UNC" and said[name] == "inconclusive"} == {
        "TM-UNC-001", "TM-UNC-002", "TM-UNC-003", "TM-UNC-004",
    }  # fmt: skip


def test_an_arm_that_draws_once_more_is_named(tmp_path: Path) -> None:
    study = StudyDir(tmp_path)
    study.arms[RESET].change(2, "rng.torch.cpu")
    item = items(examine_study(study.write(), POLICY))["TM-RNG-003"]
    assert item.state == "fail"
    assert item.where.startswith(f"{RESET} against control.s0.b4.r0, step 2, rng.torch.cpu")


def test_an_arm_of_another_plan_and_one_without_a_horizon_are_named(tmp_path: Path) -> None:
    study = StudyDir(tmp_path)
    study.arms[RESET].study["plan"] = "0" * 64
    study.arms["kick.s1.b4.r0"].observed = (1,)
    found = items(examine_study(study.write(), POLICY))
    assert (found["TM-ART-003"].state, found["TM-ART-003"].where) == ("fail", RESET)
    assert (found["TM-PTH-002"].state, found["TM-PTH-002"].where) == ("fail", "kick.s1.b4.r0, after step 3")


@pytest.mark.parametrize(("trained_on", "state"), [(0, "pass"), (1, "fail")])
def test_samples_of_the_probe_that_were_trained_on_are_counted(tmp_path: Path, trained_on: int, state: str) -> None:
    first = struct.unpack("<q", StudyDir(tmp_path).arms[RESET].indices(0)[:8])[0]
    found = examine_study(StudyDir(tmp_path, probe([first if trained_on else -2, -1])).write(), POLICY)
    assert found.record.study is not None
    assert found.record.study.arms[RESET].on_probe == trained_on
    assert states(found)["TM-PRB-001"] == state


def probe(indices: list[int]) -> bytes:
    """Return a probe file that says which samples it holds."""
    members = {
        "index": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]},
        "y": {"dtype": "I64", "shape": [2], "data_offsets": [16, 32]},
    }
    header = json.dumps(members).encode()
    return len(header).to_bytes(8, "little") + header + struct.pack("<4q", *indices, 0, 1)


def test_two_replicates_with_one_noise_are_found(tmp_path: Path) -> None:
    study = StudyDir(tmp_path)
    study.arms["prefix.s1"].noise = study.arms["prefix.s0"].noise
    assert items(examine_study(study.write(), POLICY))["TM-RNG-004"].state == "fail"


def test_a_damaged_arm_damages_the_study_and_nothing_passes(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(written, folder)
    path = folder / "arms" / RESET / "steps.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"loss"', b'"lost"', 1))
    found = examine_study(folder, POLICY)
    assert found.record.verification.bytes == "broken"
    assert found.record.verification.exit_code == 1
    assert f"arms/{RESET}: steps.jsonl" in [finding.where for finding in found.record.verification.findings]
    assert "pass" not in states(found).values()


def test_an_arm_that_is_gone_is_missed(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(written, folder)
    shutil.rmtree(folder / "arms" / RESET)
    found = examine_study(folder, POLICY)
    assert [finding.code for finding in found.record.verification.findings] == ["FILE-MISSING"]
    assert found.record.study is not None
    assert found.record.study.arms[RESET].damaged == "not there"
    assert len(found.record.study.pairs) == 7


@pytest.mark.parametrize("name", ["study.json", "study.jsonl"])
def test_a_study_log_that_is_not_what_was_signed(written: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "study"
    shutil.copytree(written, folder)
    path = folder / name
    data = path.read_bytes()
    path.write_bytes(
        data.replace(b"payload", b"paylaod", 1) if name == "study.json" else data.rpartition(b"\n{")[0] + b"\n"
    )
    found = examine_study(folder, POLICY)
    assert found.record.verification.findings
    assert states(found)["TM-ART-003"] == "inconclusive"


def test_a_plan_in_another_form_is_no_plan(written: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "plan.json").write_text(json.dumps(json.loads((written / "plan.json").read_bytes()), indent=1))
    with pytest.raises(FormatError, match="canonical"):
        examine_study(folder, POLICY)


def test_check_takes_the_directory_of_a_study(written: Path, tmp_path: Path) -> None:
    told = audit(
        "check", written, "--profile", "paired", "--signer", SIGNER.public.keyid, "--format", "json", "--quiet",
        cwd=tmp_path, home=tmp_path / "home",
    )  # fmt: skip
    assert told.stderr == ""
    said: dict[str, Any] = json.loads(told.stdout)
    assert {item["id"] for item in said["items"]} == {item.id for item in items_of("paired")}
    assert said["name"] == "study"
    assert told.returncode == said["exitCode"] != 0
    told = audit("check", written, "--replay", "full", cwd=tmp_path, home=tmp_path / "home")
    assert told.returncode == 2
    assert "one by one" in told.stderr


STUDY = """
name = "small"
task = "classification"
seeds = [3, 40]
noise_streams = 2
branch_steps = [7]
horizons = [1, 3]
observables = ["total-variation", "loss"]
program = { kind = "factory", entry = "noisy.py:program" }
interventions = { control = "carry", reset = "reset:optimizer.momentum", flushed = "flush:bank.queue" }
contrasts = { reset = "control", flushed = "control" }
analysis = { alpha = 0.05, equivalence_margin = 0.05 }
probe = { head = "model" }

[primary]
contrast = "reset"
estimand = "law-effect"
observable = "total-variation"
branch_step = 7
horizon = 3
"""


@pytest.mark.slow
def test_a_study_that_ran(tmp_path: Path) -> None:
    """Everything real: trained arms, signed records, estimates that come out again."""
    shutil.copyfile(PROGRAMS / "noisy.py", tmp_path / "noisy.py")
    (tmp_path / "study.toml").write_text(STUDY)
    for command in (("study", "run", "study.toml", "-w", "1", "-q"), ("study", "estimate", "study", "-q")):
        done = audit(*command, cwd=tmp_path, home=tmp_path / "home")
        assert done.returncode == 0, done.stderr
    told = audit(
        "check", "study", "--profile", "paired", "--format", "json", "-q", cwd=tmp_path, home=tmp_path / "home"
    )
    said = {item["id"]: item["state"] for item in json.loads(told.stdout)["items"]}
    study = {item.id for item in items_of("paired") if item.scope == "study"}
    undecided = {name for name in study if said[name] != "pass"}
    assert undecided <= {"TM-PTH-003", "TM-PRB-001", "TM-UNC-004"}, {name: said[name] for name in undecided}
    assert "fail" not in said.values(), said
