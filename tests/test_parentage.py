"""The link of a resumed run to its parent, checked against the parent's record: `verify --parent`."""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_checkpoints import SAVED, STEPS, resume
from tests.tools import audit, verify
from tests.trainings import recorded
from trainmem_audit.documents.findings import ParentLink
from trainmem_audit.errors import UsageError
from trainmem_audit.parentage import Beginning, check_parent, repeated
from trainmem_audit.rundir import DirectoryReader, open_run
from trainmem_audit.trust import Trust
from trainmem_audit.verify import Examination, Policy, examine

POLICY = Policy(trust=Trust(()), allow_untrusted=True)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `full`, and `resumed` from its checkpoint within an epoch, which loses nothing."""
    here = tmp_path_factory.mktemp("parentage")
    return resume(here / "runs", here / "home", "none").folder


def linked(
    child: Path, parent: Path, edit: Callable[[Examination, Beginning], None] = lambda *_: None
) -> tuple[ParentLink, Examination]:
    """Verify `child` and its link to `parent` in this process, after an edit of what was found."""
    beginning = Beginning()
    with DirectoryReader(child) as reader, open_run(parent) as other:
        found = examine(reader, POLICY, watch=beginning.take, indices=beginning.indices)
        edit(found, beginning)
        check_parent(found, beginning, other, POLICY)
    assert found.parent is not None
    return found.parent, found


def codes(found: Examination) -> list[str]:
    return [finding.code for finding in found.findings]


def claimed(found: Examination, **members: Any) -> None:
    """Let the statement name another parent."""
    statement = found.statement
    assert statement is not None and statement.predicate.run.parent is not None
    run = statement.predicate.run
    parent = statement.predicate.run.parent.model_copy(update=members)
    predicate = statement.predicate.model_copy(update={"run": run.model_copy(update={"parent": parent})})
    found.statement = statement.model_copy(update={"predicate": predicate})


# What holds ---------------------------------------------------------------------------------------------------------


def test_a_resumed_run_holds_beside_its_parent(pair: Path) -> None:
    home = pair.parent / "home"
    found = verify(pair / "resumed", "--parent", str(pair / "full"), home=home)
    link = found.document["parent"]
    assert (found.code, found.findings, link["state"], link["signature"]) == (0, [], "holds", "self")
    assert link["steps"] == SAVED
    assert {"model.params", "optimizer.exp_avg", "optimizer.exp_avg_sq", "optimizer.step"} <= {*link["compared"]}
    assert link["order"] == {"same": STEPS - SAVED, "underWay": (SAVED - 8) * 8, "repeated": 0}
    done = audit("check", pair / "resumed", "--parent", pair / "full", cwd=pair, home=home)
    lines = {line.split()[1]: line.split()[0] for line in done.stdout.splitlines() if " TM-" in line[:12]}
    assert (lines["TM-ORD-005"], lines["TM-ART-004"]) == ("ok", "ok"), done.stdout
    assert "parent:    run" in done.stdout


def test_without_the_record_of_the_parent_nothing_is_decided(pair: Path) -> None:
    done = audit("check", pair / "resumed", cwd=pair, home=pair.parent / "home")
    assert done.returncode == 3
    assert "undecided: TM-ART-004" in done.stdout


# What does not ------------------------------------------------------------------------------------------------------


def test_another_run_is_no_parent(pair: Path) -> None:
    link, found = linked(pair / "resumed", pair / "resumed")
    assert (link.state, codes(found), found.verification.exit_code) == ("broken", ["PARENT-OTHER"], 1)


def test_a_parent_that_was_changed_vouches_for_nothing(pair: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(pair / "full", tmp_path / "full")
    data = bytearray((changed / "tensors.b3").read_bytes())
    data[-1] ^= 1
    (changed / "tensors.b3").write_bytes(data)
    link, found = linked(pair / "resumed", changed)
    assert (link.state, codes(found), found.verification.exit_code) == ("broken", ["PARENT-BROKEN"], 1)


@pytest.mark.parametrize("claim", [{"chain": "0" * 64}, {"steps": SAVED + 1}, {"sha256": "0" * 64}], ids=str)
def test_a_checkpoint_that_the_parent_did_not_save_is_named(pair: Path, claim: dict[str, Any]) -> None:
    link, found = linked(pair / "resumed", pair / "full", lambda found, _: claimed(found, **claim))
    assert (link.state, codes(found), found.verification.exit_code) == ("broken", ["PARENT-LINK"], 1)


def test_another_state_is_a_warning_and_decides_nothing(pair: Path) -> None:
    def other(_: Examination, beginning: Beginning) -> None:
        beginning.state["model.params"] = "0" * 64

    link, found = linked(pair / "resumed", pair / "full", other)
    assert (link.state, codes(found), found.verification.exit_code) == ("undecided", ["PARENT-STATE"], 3)
    assert "model.params" in link.detail and "model.params" not in link.compared


def test_a_parent_that_was_never_signed_decides_nothing(pair: Path, tmp_path: Path) -> None:
    killed = shutil.copytree(pair / "full", tmp_path / "full")
    (killed / "run.json").unlink()
    lines = (killed / "steps.jsonl").read_bytes().splitlines(keepends=True)
    (killed / "steps.jsonl").write_bytes(b"".join(lines[:-1]))
    link, found = linked(pair / "resumed", killed)
    assert (link.state, link.signature, codes(found)) == ("undecided", "unsigned", [])
    assert found.verification.exit_code == 3
    (killed / "steps.jsonl").write_bytes(b"".join(lines[:3]) + b"{}\n")
    link, found = linked(pair / "resumed", killed)
    assert (link.state, codes(found)) == ("broken", ["PARENT-BROKEN"])


def test_a_run_that_names_no_parent_has_none(pair: Path) -> None:
    with pytest.raises(UsageError, match="names no parent"):
        linked(pair / "full", pair / "resumed")
    done = audit("verify", pair / "full", "--parent", pair / "resumed", cwd=pair, home=pair.parent / "home")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    done = audit("verify", pair / "resumed", "--parent", pair / "none", cwd=pair, home=pair.parent / "home")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)


# The order ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lost_position_shows_beside_the_parent(tmp_path: Path) -> None:
    runs = resume(tmp_path / "runs", tmp_path / "home", "sampler")
    link, _ = linked(runs.folder / "resumed", runs.folder / "full")
    assert link.order is not None and link.state == "holds", link.detail
    assert (link.order.differs, link.order.under_way, link.order.repeated) == (0, 24, 24)


@pytest.mark.slow
def test_batches_that_are_taken_off_the_loader_are_no_repetition(tmp_path: Path) -> None:
    """The usual way to go on within an epoch; with another seed the same number of other samples is skipped."""
    here = tmp_path / "runs"
    here.mkdir()
    shutil.copyfile(Path(__file__).parent / "resume" / "skip.py", here / "train.py")
    for name, env in (("full", {}), ("good", {"RESUME": "checkpoint.pt"})):
        assert recorded(here, "train.py", home=tmp_path, env=env, options=("-d", name)).returncode == 0
    env = {"RESUME": "checkpoint.pt", "SHIFT": "5"}
    assert recorded(here, "train.py", home=tmp_path, env=env, options=("-d", "other")).returncode == 0
    link, _ = linked(here / "good", here / "full")
    assert link.order is not None
    assert (link.state, link.order.under_way, link.order.repeated) == ("holds", 24, 0)
    done = audit("diff", "full", "good", "--format", "json", cwd=here, home=tmp_path)
    assert (json.loads(done.stdout)["equal"], json.loads(done.stdout)["stepsEqual"]) == (True, 13)
    link, _ = linked(here / "other", here / "full")
    assert link.order is not None and link.order.repeated
    done = audit("diff", "full", "other", "--format", "json", cwd=here, home=tmp_path)
    found = json.loads(done.stdout)["difference"]
    assert (found["step"], found["components"][0]["component"]) == (11, "order.index")


@pytest.mark.parametrize(
    ("consumed", "first", "expected"),
    [
        ([], [3, 1, 2], 0),
        ([3, 1], [2, 0], 0),
        ([3, 1], [1, 2, 0], 1),
        ([3, 1], [3, 1, 2, 0], 0),  # batches that are taken off the loader to get where it was
        ([3, 1], [1, 3, 2, 0], 2),
    ],
    ids=["nothing under way", "the rest", "one again", "skipped", "another permutation"],
)
def test_samples_that_come_again_are_counted(consumed: list[int], first: list[int], expected: int) -> None:
    assert repeated(array("q", consumed).tobytes(), array("q", first).tobytes()) == expected
