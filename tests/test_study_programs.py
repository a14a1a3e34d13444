"""A whole study of a real program: arms in memory, estimates from the records alone, and every forgery of them seen."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.studying import STUDIES, MemoryExecutor
from tests.tools import audit, examined
from tests.vectors import SEED
from trainmem_audit.canonical import canonical_bytes, float_text, loads_strict
from trainmem_audit.documents.estimates import Estimate, Estimates
from trainmem_audit.documents.manifest import PAYLOAD_TYPE, Statement
from trainmem_audit.documents.steplog import Step
from trainmem_audit.envelope import parse_envelope, seal
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.programs.probefile import probe_bytes, probe_of
from trainmem_audit.rundir import DirectoryReader, open_run
from trainmem_audit.runs import read_lines, read_statement
from trainmem_audit.study.blocks import BlockWork
from trainmem_audit.study.estimating import check_estimates, write_estimates
from trainmem_audit.study.ledger import read_study_log
from trainmem_audit.study.plan import Declared, read_study
from trainmem_audit.study.runner import Outcome, Runner
from trainmem_audit.trust import Trust
from trainmem_audit.verify import Policy

SIGNER = Signer.from_seed(SEED)
OTHER = Signer.from_seed(bytes(32))
POLICY = Policy(trust=Trust(()), allow_untrusted=True)
NOISY = Path(__file__).parent / "programs" / "noisy.py"


def declare(directory: Path, *changes: tuple[str, str]) -> Declared:
    text = (STUDIES / "program.toml").read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    directory.mkdir(exist_ok=True)
    shutil.copyfile(NOISY, directory / "program.py")
    (directory / "study.toml").write_text(text)
    probe = probe_of("program.py:program", (), "0", directory)
    (directory / "probe.safetensors").write_bytes(probe_bytes(probe))
    return read_study(directory / "study.toml")


def run(declared: Declared, directory: Path, executor: MemoryExecutor | None = None) -> Outcome:
    work = BlockWork(declared.plan, declared.directory, directory, SIGNER)
    runner = Runner(declared.plan, declared.directory, directory, SIGNER)
    return runner.run(1, 1, work, lambda threads: executor or MemoryExecutor())


@pytest.fixture(scope="module")
def declared(tmp_path_factory: pytest.TempPathFactory) -> Declared:
    return declare(tmp_path_factory.mktemp("declared"))


@pytest.fixture(scope="module")
def finished(declared: Declared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a study that was run and estimated."""
    directory = tmp_path_factory.mktemp("whole") / "study"
    outcome = run(declared, directory)
    assert not outcome.failed
    write_estimates(directory, SIGNER)
    return directory


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "study"))


def statement_of(arm: Path) -> Statement:
    with DirectoryReader(arm) as reader:
        return read_statement(reader)


def estimates_of(directory: Path) -> Estimates:
    payload = parse_envelope((directory / "estimates.json").read_bytes(), "estimates.json").payload
    found: Estimates = Estimates.parse(canonical_bytes(loads_strict(payload, "")["predicate"]), "estimates.json")
    return found


def pick(document: Estimates, contrast: str, estimand: str, observable: str, horizon: int) -> Estimate:
    (found,) = (
        item
        for item in document.estimates
        if (item.contrast, item.estimand, item.observable, item.horizon) == (contrast, estimand, observable, horizon)
    )
    return found


def states(arm: Path) -> list[tuple[int, dict[str, str], dict[str, str]]]:
    with DirectoryReader(arm) as reader:
        return [(line.i, line.state, line.rng) for line in read_lines(reader) if isinstance(line, Step)]


def test_every_arm_is_a_record_of_its_own(declared: Declared, finished: Path) -> None:
    plan = declared.plan
    prefix = statement_of(finished / "arms" / "prefix.s0").predicate
    for arm in plan.arms():
        manifest = statement_of(finished / "arms" / str(arm)).predicate
        assert manifest.plan == plan.digest
        assert manifest.arm is not None
        assert (manifest.arm.id, manifest.arm.seed) == (str(arm), plan.seeds[arm.seed])
        assert manifest.run.branch is not None
        assert manifest.run.branch.step == arm.branch
        if arm.seed == 0:
            assert manifest.run.branch.run == prefix.run.id
        names = [subject.name for subject in statement_of(finished / "arms" / str(arm)).subject]
        wanted = {f"observations/step-{horizon}.safetensors" for horizon in plan.horizons_of(arm.stream)}
        assert wanted == {name for name in names if name.startswith("observations/")}


@pytest.mark.parametrize("arm", ["prefix.s0", "carry.s0.b3.r0", "both.s1.b3.r1"])
def test_verify_accepts_an_arm(finished: Path, arm: str) -> None:
    with open_run(finished / "arms" / arm) as reader:
        found = examined(reader).verification
    assert (found.bytes, found.record, found.findings) == ("intact", "consistent", ())


def test_the_state_is_digested_around_the_branch_and_at_the_horizons_only(declared: Declared, finished: Path) -> None:
    digested = [step for step, state, _ in states(finished / "arms" / "carry.s0.b3.r0") if state]
    assert digested == [0, 1, 3]
    assert all(rng for _, _, rng in states(finished / "arms" / "carry.s0.b3.r0"))
    assert all(state for _, state, _ in states(finished / "arms" / "prefix.s0"))


def test_a_placebo_has_no_effect_and_says_so(finished: Path) -> None:
    document = estimates_of(finished)
    for estimand, observable in (("pathwise", "total-variation"), ("signed", "loss")):
        found = pick(document, "placebo", estimand, observable, 4)
        assert found.value == float_text(0.0)
        assert found.bitwise_equal
        assert found.verdict == "equivalent"
    assert {pair.label for pair in document.pairs if pair.treated.startswith("placebo")} == {"no-op"}
    assert {pair.label for pair in document.pairs if pair.treated.startswith("reset")} == {"paired"}
    reset = pick(document, "reset", "pathwise", "total-variation", 1)
    assert float.fromhex(reset.value) > 0


def test_all_that_was_started_is_listed(declared: Declared, finished: Path) -> None:
    document = estimates_of(finished)
    assert {arm.id for arm in document.arms} == {
        *map(str, declared.plan.arms()),
        *(declared.plan.prefix_id(seed) for seed in range(len(declared.plan.seeds))),
    }
    assert document.study_log.started == document.study_log.reported == len(document.arms)


def test_the_numbers_come_out_again(finished: Path) -> None:
    found = check_estimates(finished / "estimates.json", POLICY)
    assert (found.recomputed, found.problems, found.differing, found.exit_code) == (True, [], [], 0)
    before = (finished / "estimates.json").read_bytes()
    write_estimates(finished, SIGNER)
    assert (finished / "estimates.json").read_bytes() == before, "the same records, key and plan: the same bytes"


def test_a_signer_that_nobody_knows_is_not_accepted(finished: Path) -> None:
    assert check_estimates(finished / "estimates.json", Policy(trust=Trust(()))).exit_code == 1


Change = Callable[[dict[str, Any]], object]


def _first(estimates: dict[str, Any], **members: Any) -> None:
    estimates["estimates"][0].update(members)


FAST = ("a pair that is paired",)
FORGED: dict[str, tuple[Change, str]] = {
    "a value": (lambda e: _first(e, value=float_text(0.25)), "estimates[0].value"),
    "a verdict": (lambda e: _first(e, verdict="effect"), "estimates[0].verdict"),
    "an estimate less": (lambda e: e["estimates"].pop(), "estimates"),
    "an arm less": (lambda e: e["arms"].pop(), "arms["),
    "a pair that is paired": (lambda e: e["pairs"][0].update(label="no-op"), "pairs[0]"),
    "a value of a seed": (lambda e: e["perSeed"][0]["pathwise"].__setitem__(0, float_text(1.0)), "perSeed[0]"),
    "an arm that was not started": (lambda e: e["studyLog"].update(started=1), "study_log"),
    "another margin": (lambda e: e["method"].update(equivalenceMargin=float_text(9.0)), "method.equivalenceMargin"),
}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what in FAST else pytest.mark.slow) for what in sorted(FORGED)]
)
def test_a_forged_number_is_named(copied: Path, what: str) -> None:
    """The forger holds the key: what he signs does not come out again all the same."""
    change, where = FORGED[what]
    path = copied / "estimates.json"
    statement = json.loads(parse_envelope(path.read_bytes(), "").payload)
    change(statement["predicate"])
    path.write_bytes(seal(canonical_bytes(statement), PAYLOAD_TYPE, SIGNER))
    found = check_estimates(path, POLICY)
    assert found.exit_code == 1
    assert found.recomputed
    assert any(item.startswith(where) for item in found.differing), found.differing


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


DAMAGED: dict[str, Callable[[Path], object]] = {
    "an observation": lambda study: _flip(study / "arms" / "reset.s0.b3.r0" / "observations" / "step-1.safetensors"),
    "a step log": lambda study: _flip(study / "arms" / "carry.s1.b3.r1" / "steps.jsonl"),
    "an arm that is gone": lambda study: shutil.rmtree(study / "arms" / "half.s0.b3.r0"),
    "the probe": lambda study: _flip(study / "probe.safetensors"),
    "the plan": lambda study: _flip(study / "plan.json"),
    "the study log": lambda study: (study / "study.jsonl").write_bytes(b""),
    "a line less in the study log": lambda study: _cut(study / "study.jsonl"),
    "the study's statement": lambda study: _resign(study / "study.json"),
    "an arm of another key": lambda study: _resign_arm(study / "arms" / "reset.s0.b3.r0"),
    "an arm in the place of another": lambda study: _exchange(study / "arms", "reset.s0.b3.r0", "reset.s1.b3.r0"),
}


def _cut(path: Path) -> None:
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _resign(path: Path) -> None:
    statement = json.loads(parse_envelope(path.read_bytes(), "").payload)
    statement["predicate"]["started"] -= 1
    path.write_bytes(seal(canonical_bytes(statement), PAYLOAD_TYPE, SIGNER))


def _resign_arm(arm: Path) -> None:
    payload = parse_envelope((arm / "run.json").read_bytes(), "").payload
    (arm / "run.json").write_bytes(seal(payload, PAYLOAD_TYPE, OTHER))
    (arm / "signer.pub").write_bytes(OTHER.public.openssh_line())


def _exchange(arms: Path, a: str, b: str) -> None:
    (arms / a).rename(arms / "aside")
    (arms / b).rename(arms / a)
    (arms / "aside").rename(arms / b)


@pytest.mark.parametrize("what", sorted(DAMAGED))
def test_a_damaged_study_gives_no_numbers(copied: Path, what: str) -> None:
    DAMAGED[what](copied)
    found = check_estimates(copied / "estimates.json", POLICY)
    assert found.exit_code == 1
    assert found.problems
    assert not found.recomputed
    with pytest.raises((FormatError, UsageError)):
        write_estimates(copied, SIGNER)


def test_what_is_no_envelope_is_refused(copied: Path) -> None:
    (copied / "estimates.json").write_bytes(b"{}")
    with pytest.raises(FormatError):
        check_estimates(copied / "estimates.json", POLICY)
    data = json.loads((copied / "study.json").read_bytes())
    (copied / "estimates.json").write_bytes(canonical_bytes(data))
    found = check_estimates(copied / "estimates.json", POLICY)
    assert any("another kind of statement" in problem for problem in found.problems)
    assert base64.b64decode(data["payload"])


@pytest.mark.slow
def test_a_study_that_is_not_finished_gives_no_numbers(declared: Declared, tmp_path: Path) -> None:
    run(declared, tmp_path / "study", MemoryExecutor(dies_at="reset.s0.b3.r0"))
    with pytest.raises(UsageError, match="not a finished study"):
        write_estimates(tmp_path / "study", SIGNER)


@pytest.mark.slow
def test_an_interrupted_study_comes_out_as_one_that_was_not(declared: Declared, finished: Path, tmp_path: Path) -> None:
    """Arms that are there are kept; the prefix is trained again and comes out as it was recorded."""
    directory = tmp_path / "study"
    first = run(declared, directory, MemoryExecutor(dies_at="reset.s0.b3.r0"))
    assert first.interrupted
    assert first.finished
    kept = {name: (directory / "arms" / name / "run.json").read_bytes() for name in first.finished}
    second = run(declared, directory)
    assert set(second.finished) == {arm.id for arm in estimates_of(finished).arms}
    assert all((directory / "arms" / name / "run.json").read_bytes() == data for name, data in kept.items())
    for arm in map(str, declared.plan.arms()):
        assert states(directory / "arms" / arm) == states(finished / "arms" / arm), arm
    write_estimates(directory, SIGNER)
    ours, theirs = estimates_of(directory), estimates_of(finished)
    assert ours.estimates == theirs.estimates
    assert ours.study_log.started > theirs.study_log.started


@pytest.mark.slow
def test_arms_that_fail_leave_their_seed_out(tmp_path: Path) -> None:
    declared = declare(
        tmp_path / "declared", ('half = "scale:optimizer.momentum:0.5"', 'half = "reset:optimizer.nothing"')
    )
    outcome = run(declared, tmp_path / "study")
    assert {name.partition(".")[0] for name in outcome.failed} == {"half", "both"}
    assert all("optimizer.nothing" in reason for reason in outcome.failed.values())
    document = write_estimates(tmp_path / "study", SIGNER)
    lost = [arm for arm in document.arms if arm.outcome == "failed"]
    assert {arm.id for arm in lost} == set(outcome.failed)
    found = pick(document, "half", "pathwise", "total-variation", 1)
    assert found.units == 0
    assert found.verdict == "undecided" or found.verdict == "descriptive"
    assert pick(document, "reset", "pathwise", "total-variation", 1).units == 2


@pytest.mark.slow
def test_a_program_with_another_probe_runs_no_arm(declared: Declared, tmp_path: Path) -> None:
    other = declare(tmp_path / "declared")
    source = other.directory / "program.py"
    plan = other.plan
    source.write_text(source.read_text().replace("torch.linspace(-1, 1, 30)", "torch.linspace(-1, 2, 30)"))
    sys.modules.pop("program", None)  # a worker is a process of its own
    outcome = run(Declared(plan, other.directory), tmp_path / "study")
    assert not outcome.finished
    assert all("not that of the plan" in reason for reason in outcome.failed.values())


@pytest.mark.slow
def test_estimate_and_verify_by_the_command_line(copied: Path, tmp_path: Path) -> None:
    done = audit("study", "estimate", copied, "--key", _key_file(tmp_path), cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    assert "0 are unpaired" in done.stdout
    checked = audit("verify", copied / "estimates.json", "--allow-untrusted", cwd=tmp_path, home=tmp_path / "home")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "come out again" in checked.stdout
    shown = audit("verify", copied / "estimates.json", "--format", "json", cwd=tmp_path, home=tmp_path / "other")
    assert shown.returncode == 1
    assert json.loads(shown.stdout)["numbers"] == "recomputed"
    assert read_study_log(copied / "study.jsonl").summary.end is not None


@pytest.mark.slow
def test_estimates_need_no_torch(copied: Path, tmp_path: Path) -> None:
    """Computed and checked again where importing torch fails, to the same bytes."""
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "torch.py").write_text("raise ImportError('no torch here')\n")
    env = {"PYTHONPATH": str(tmp_path / "without")}
    before = estimates_of(copied)
    (copied / "estimates.json").unlink()
    done = audit("study", "estimate", copied, cwd=tmp_path, home=tmp_path / "home", env=env)
    assert done.returncode == 0, done.stderr
    assert estimates_of(copied) == before
    checked = audit("verify", copied / "estimates.json", cwd=tmp_path, home=tmp_path / "home", env=env)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def _key_file(directory: Path) -> Path:
    path = directory / "key"
    done = audit("keygen", path, cwd=directory, home=directory / "home")
    assert done.returncode == 0, done.stderr
    return path
