"""Training scripts that break the RNG contract or their order, each found by exactly its rule; repaired, by none."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.faults import FAULTS, PAGE, Fault, page
from tests.trainings import bare, recorded
from trainmem_audit.checks import Outcome, evaluate, items_of, load_checklist, load_rules
from trainmem_audit.compliance import record_of
from trainmem_audit.documents.record import Record
from trainmem_audit.gathering import Gatherer
from trainmem_audit.rundir import open_run
from trainmem_audit.trust import Trust
from trainmem_audit.verify import Policy, examine

ROOT = Path(__file__).resolve().parent.parent
ITEMS = {item.id: item for item in load_checklist().items}


def examined(run: Path) -> Record:
    """Return the record of a run as a stranger's machine sees it."""
    gatherer = Gatherer()
    policy = Policy(trust=Trust(()), allow_untrusted=True)
    with open_run(run) as reader:
        found = examine(reader, policy, watch=gatherer.take, indices=gatherer.indices)
    assert not found.findings
    return record_of(found, gatherer)


def failures(record: Record) -> dict[str, Outcome]:
    """Return what fails of the profile `core`, and of the rules of RNG and ORD, with all that says why."""
    names = {item.id for item in items_of("core") if item.severity["core"] in ("must", "should")}
    names |= {name for name in load_rules() if name[3:6] in ("RNG", "ORD")}
    outcomes = {name: evaluate(ITEMS[name], record) for name in sorted(names)}
    return {name: outcome for name, outcome in outcomes.items() if outcome.state == "fail"}


@pytest.mark.parametrize("repaired", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["broken", "repaired"])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found_by_its_rule_alone(fault: Fault, repaired: bool, tmp_path: Path) -> None:
    there = fault.lay_out(tmp_path / "author", repaired)
    if fault.before:
        done = bare(there, "train.py", home=tmp_path / "home")
        assert done.returncode == 0, done.stderr
    done = recorded(there, "train.py", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    found = failures(examined(there / "run"))
    assert set(found) == (set() if repaired else {fault.rule}), found
    for outcome in found.values():
        assert outcome.where
        assert outcome.expected != outcome.got


@pytest.mark.parametrize("name", ["numpy_seed_in_workers", "generator_copied_into_workers"])
def test_looking_at_workers_changes_nothing(name: str, tmp_path: Path) -> None:
    (fault,) = (fault for fault in FAULTS if fault.name == name)
    there = fault.lay_out(tmp_path / "author", repaired=False)
    alone = bare(there, "train.py", home=tmp_path / "home")
    done = recorded(there, "train.py", home=tmp_path / "home")
    assert (done.returncode, done.stdout) == (0, alone.stdout)
    assert b"loss" in done.stdout


ACROSS = """
import torch
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
first = DataLoader(TensorDataset(torch.randn(20, 2)), batch_size=8, shuffle=True)
second = DataLoader(TensorDataset(torch.randn(24, 2)), batch_size=8, shuffle=True)
model = torch.nn.Linear(2, 1)
optimizer = torch.optim.Adam(model.parameters())
seen = 0
for epoch in range(2):
    for (x,) in first:  # three batches an epoch, two of them in a step
        model(x).sum().backward()
        seen += 1
        if seen % 2 == 0:
            optimizer.step()
optimizer.load_state_dict(optimizer.state_dict())
for (x,), (y,) in zip(first, second):
    model(torch.cat([x, y])).sum().backward()
    optimizer.step()
"""


def test_samples_are_attributed_to_their_epochs(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(ACROSS)
    done = recorded(tmp_path, "train.py", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    record = examined(tmp_path / "run")
    order = record.log.order
    assert [(epoch.loader, epoch.epoch, epoch.first, epoch.samples, epoch.distinct) for epoch in order.epochs] == [
        ("loader", 0, 0, 20, 20),
        ("loader", 1, 1, 20, 20),
        ("loader", 2, 3, 20, 20),
        ("loader2", 0, 3, 24, 24),
    ]
    assert [(resume.at, resume.optimizer, resume.steps) for resume in order.resumes] == [(3, "Adam", 3)]
    assert [epoch.segment for epoch in order.epochs] == [0, 0, 1, 1]
    assert failures(record) == {}


def test_the_digits_example_breaks_no_rule(tmp_path: Path) -> None:
    there = tmp_path / "author"
    there.mkdir()
    shutil.copyfile(ROOT / "examples" / "digits" / "train.py", there / "train.py")
    done = recorded(there, "train.py", "--epochs", "2", home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    record = examined(there / "run")
    assert failures(record) == {}
    states = {name: evaluate(ITEMS[name], record).state for name in load_rules() if name[3:6] in ("RNG", "ORD")}
    assert states == {
        "TM-RNG-001": "pass",
        "TM-RNG-002": "pass",
        "TM-RNG-003": "inconclusive",
        "TM-RNG-004": "inconclusive",
        "TM-RNG-005": "not-applicable",
        "TM-ORD-001": "pass",
        "TM-ORD-002": "pass",
        "TM-ORD-003": "pass",
        "TM-ORD-004": "not-applicable",
        "TM-ORD-005": "not-applicable",
        "TM-ORD-006": "pass",
        "TM-ORD-007": "pass",
    }


def test_every_rule_of_one_run_has_a_script_that_breaks_it() -> None:
    broken = {fault.rule for fault in FAULTS}
    one_run = {name for name, item in ITEMS.items() if name[3:6] in ("RNG", "ORD") and item.scope == "run"}
    assert one_run - broken == {"TM-ORD-001"}, "only a recorder can leave out digests"


def test_the_page_has_the_table_of_these_faults() -> None:
    assert PAGE.read_text("utf-8") == page(), "regenerate it: python -m tests.faults"
