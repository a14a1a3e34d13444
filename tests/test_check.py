"""`check`, `explain` and waivers: what counts, the exit code, and that nothing is silent."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.records import record_of
from tests.tools import Run, audit, environment, record
from trainmem_audit import errors
from trainmem_audit.checks import Outcome, load_checklist, load_codes
from trainmem_audit.compliance import Terms, judge, parse_waivers
from trainmem_audit.documents.checklist import Waiver
from trainmem_audit.documents.compliance import Compliance, ItemResult
from trainmem_audit.errors import FormatError, TrainmemAuditError, UsageError
from trainmem_audit.explain import explain, known

ROOT = Path(__file__).resolve().parent.parent
WAIVERS = Path(__file__).parent / "data" / "waivers"
NO_CODE: dict[str, Any] = {"statement": {"predicate": {"files": []}}}
TEACHER: dict[str, Any] = {
    "statement": {
        "predicate": {
            "sources": {
                "teacher.params": {"source": "S5", "lifetime": "meso", "visibility": "checkpointed", "bytes": 0}
            },
            "declared": {"teacher.params.decay": "0.999"},
        }
    },
    "facts": {"components": {"teacher.params": {"first": 0, "last": 5, "steps": 6, "changes": 5, "copies": 0}}},
}


def result_of(compliance: Compliance, name: str) -> ItemResult:
    return next(item for item in compliance.items if item.id == name)


def only(monkeypatch: pytest.MonkeyPatch, *outcomes: tuple[str, str]) -> None:
    """Let the named items have these states and every other one pass."""
    states = dict(outcomes)

    def evaluate(item: Any, _: Any) -> Outcome:
        return Outcome(states.get(item.id, "pass"), "said by a test", "recorded")  # type: ignore[arg-type]

    monkeypatch.setattr("trainmem_audit.compliance.evaluate", evaluate)


# What counts, and the exit code -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "item", "fail_on", "code"),
    [
        ("pass", "TM-ENV-001", "may", 0),
        ("not-applicable", "TM-ENV-001", "may", 0),
        ("fail", "TM-ENV-001", "must", 1),
        ("fail", "TM-OPT-005", "must", 0),
        ("fail", "TM-OPT-005", "should", 1),
        ("fail", "TM-ART-005", "should", 0),
        ("fail", "TM-ART-005", "may", 1),
        ("declared", "TM-ENV-001", "must", 1),
        ("declared", "TM-OPT-005", "must", 0),
        ("inconclusive", "TM-ENV-001", "must", 3),
        ("inconclusive", "TM-OPT-005", "must", 0),
        ("inconclusive", "TM-OPT-005", "should", 3),
    ],
)
def test_the_exit_code(monkeypatch: pytest.MonkeyPatch, state: str, item: str, fail_on: Any, code: int) -> None:
    only(monkeypatch, (item, state))
    compliance = judge(record_of({}), Terms(fail_on=fail_on))
    assert compliance.exit_code == code
    assert result_of(compliance, item).counts == (code != 0)


@pytest.mark.parametrize(("verified", "code"), [(0, 1), (1, 1), (3, 1)])
def test_a_failure_outweighs_what_is_undecided(monkeypatch: pytest.MonkeyPatch, verified: int, code: int) -> None:
    only(monkeypatch, ("TM-ENV-001", "fail"), ("TM-ENV-002", "inconclusive"))
    record = record_of({"verification": {"exitCode": verified}})
    assert judge(record, Terms()).exit_code == code


@pytest.mark.parametrize("verified", [0, 1, 3])
def test_what_verify_says_stays(monkeypatch: pytest.MonkeyPatch, verified: int) -> None:
    only(monkeypatch)
    assert judge(record_of({"verification": {"exitCode": verified}}), Terms()).exit_code == verified


def test_no_item_ends_the_others() -> None:
    broken = judge(record_of({"statement": None, "facts": None, "verification": {"bytes": "broken"}}), Terms("paired"))
    assert [item.id for item in broken.items] == [item.id for item in load_checklist().items]


def test_what_is_merely_declared_is_not_green() -> None:
    result = result_of(judge(record_of(TEACHER), Terms()), "TM-MET-001")
    assert (result.state, result.evidence, result.counts) == ("declared", "declared", True)


# Waivers ----------------------------------------------------------------------------------------------------------


def waivers(name: str) -> tuple[Waiver, ...]:
    return parse_waivers((WAIVERS / name).read_bytes(), Path(name).name)


@pytest.mark.parametrize("name", ["valid/one.toml", "valid/one.json"])
def test_a_waiver_is_shown_and_hides_nothing(name: str) -> None:
    compliance = judge(record_of(NO_CODE), Terms(waivers=waivers(name), today="2026-11-25"))
    result = result_of(compliance, "TM-ENV-001")
    assert (result.state, result.waived, result.counts) == ("waived", "fail", False)
    assert result.waiver is not None
    assert result.waiver.reason
    assert result.waiver.who
    assert result.message == "no code is recorded"
    assert not compliance.unused_waivers


@pytest.mark.parametrize(
    ("patch", "today", "state"),
    [(NO_CODE, "2026-12-31", "waived"), (NO_CODE, "2027-01-01", "fail"), ({}, "2026-12-31", "pass")],
)
def test_a_waiver_ends_with_its_day_and_one_without_use_is_shown(patch: dict[str, Any], today: str, state: str) -> None:
    compliance = judge(record_of(patch), Terms(waivers=waivers("valid/one.toml"), today=today))
    assert result_of(compliance, "TM-ENV-001").state == state
    assert len(compliance.unused_waivers) == (state != "waived")


@pytest.mark.parametrize("path", sorted((WAIVERS / "invalid").iterdir()), ids=lambda path: path.name)
def test_a_faulty_waiver_is_an_error(path: Path) -> None:
    with pytest.raises(FormatError) as caught:
        parse_waivers(path.read_bytes(), path.name)
    assert path.name in str(caught.value)


# explain ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(known()))
def test_everything_can_be_explained(name: str) -> None:
    text = explain(name.lower())
    assert text.startswith(f"{name}  ")
    parts = {"why", "decided", "remedy", "example"} | ({"when", "source"} if name.startswith("TM-") else set())
    assert parts <= set(text.splitlines())
    assert max(map(len, text.splitlines()[1:])) <= 100


def test_every_code_and_every_kind_of_error_has_an_entry_and_no_other_has() -> None:
    code = "".join(path.read_text("utf-8") for path in (ROOT / "trainmem_audit").rglob("*.py"))
    used = set(re.findall(r'(?:_finding|_other|code=)\(?\s*"([A-Z]+(?:-[A-Z]+)?)"', code))
    codes = load_codes()
    listed = {entry.code for entry in codes.findings}
    assert used <= listed, f"in no entry of findings.json: {sorted(used - listed)}"
    unused = {name for name in listed if f'"{name}"' not in code}
    assert not unused, f"entries of findings.json that nothing finds: {sorted(unused)}"
    kinds = {name for name in errors.__all__ if name.endswith("Error")}
    assert {entry.code for entry in codes.errors} == kinds
    assert issubclass(getattr(errors, "FormatError"), TrainmemAuditError)  # noqa: B009


def test_what_is_unknown_gets_the_nearest() -> None:
    with pytest.raises(UsageError, match="FILE-CHANGED"):
        explain("FILE-CHANGE")


# The command line -------------------------------------------------------------------------------------------------


def test_check_of_a_recorded_run(run: Run) -> None:
    done = audit("check", run.path, "--format", "json", "--save", "saved.json", cwd=run.path.parent, home=run.home)
    compliance = Compliance.model_validate_json(done.stdout)
    assert done.returncode == compliance.exit_code
    assert json.loads((run.path.parent / "saved.json").read_text()) == json.loads(done.stdout)
    failed = [item.id for item in compliance.items if item.state in ("fail", "declared")]
    assert not failed, done.stdout
    assert compliance.verification.bytes == "intact"


def test_check_of_a_damaged_run_passes_nothing(run: Run) -> None:
    run.write("steps.jsonl", run.read("steps.jsonl").replace(b"finished", b"fin1shed", 1))
    done = audit("check", run.path, "--format", "json", "--profile", "paired", cwd=run.path.parent, home=run.home)
    compliance = Compliance.model_validate_json(done.stdout)
    assert done.returncode == compliance.exit_code == 1
    assert not [item.id for item in compliance.items if item.state == "pass"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--profile", "other"), "--profile"),
        (("--fail-on", "never"), "--fail-on"),
        (("--format", "xml"), "--format"),
        (("--waivers", "no-such-file.toml"), "--waivers"),
        (("--waivers", str(WAIVERS / "invalid" / "without-reason.toml")), "without-reason.toml"),
    ],
)
def test_what_cannot_be_used_ends_with_2(run: Run, options: tuple[str, ...], named: str) -> None:
    done = audit("check", run.path, *options, cwd=run.path.parent, home=run.home)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("form", ["sarif", "junit", "github"])
def test_the_exit_code_does_not_depend_on_the_format(run: Run, form: str) -> None:
    text = audit("verify", run.path, cwd=run.path.parent, home=run.home)
    other = audit("verify", run.path, "--format", form, cwd=run.path.parent, home=run.home)
    assert (text.returncode, other.returncode) == (0, 0)
    assert other.stdout.strip()


def test_explain_on_the_command_line(tmp_path: Path) -> None:
    done = audit("explain", "tm-ord-003", cwd=tmp_path, home=tmp_path)
    assert done.returncode == 0
    assert done.stdout.startswith("TM-ORD-003")
    listed = audit("explain", "all", cwd=tmp_path, home=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(known())
    unknown = audit("explain", "TM-XXX-999", cwd=tmp_path, home=tmp_path)
    assert unknown.returncode == 2


def test_the_description_of_a_check_names_every_member() -> None:
    described = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "check.md").read_text("utf-8")))
    for model in (Compliance, ItemResult, Waiver):
        members = {field.alias or name for name, field in model.model_fields.items()}
        assert not members - described, model


def test_the_waiver_of_the_documentation_is_one() -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / "check.md").read_text("utf-8"), re.M | re.S)
    (waiver,) = parse_waivers(block.encode(), "waivers.toml")
    assert waiver.expires == "2027-06-30"


def test_explain_and_check_start_without_torch(run: Run) -> None:
    program = "import sys; sys.modules['torch'] = None; from trainmem_audit.cli import main; main()"
    for arguments in (("check", str(run.path)), ("explain", "TM-ORD-003")):
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments],
            env=environment(run.home),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode in (0, 3), done.stderr
        assert done.stdout.strip()


def test_nothing_fails_in_the_digits_example(tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "examples" / "digits" / "train.py", tmp_path / "train.py")
    done = audit("record", "-d", "run", "train.py", "--epochs", "2", cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    done = audit("check", "run", "--format", "json", cwd=tmp_path, home=tmp_path / "home")
    items = Compliance.model_validate_json(done.stdout).items
    assert not [item for item in items if item.state in ("fail", "declared")]
    passed = {item.id for item in items if item.state == "pass"}
    assert {"TM-ENV-001", "TM-OPT-002", "TM-OPT-004", "TM-BUF-001", "TM-BUF-002", "TM-VIS-001"} <= passed


def test_a_parameter_group_that_joins_later_is_in_the_record(tmp_path: Path) -> None:
    run_dir = record(ROOT / "tests" / "zoo" / "finetune.py", tmp_path, home=tmp_path / "home")
    done = audit("check", run_dir, "--format", "json", cwd=tmp_path, home=tmp_path / "home")
    configuration = result_of(Compliance.model_validate_json(done.stdout), "TM-OPT-001")
    assert (configuration.state, configuration.message) == ("pass", "optimizer: Adam, 2 groups")
