"""Arms that a program branched in memory: every primitive makes a pair, and changed records are found."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_programs import PLAN, PROGRAMS, SIGNER
from tests.tools import audit
from tests.vectors import FOLDER as VECTORS
from trainmem_audit.conformance import our_schemas
from trainmem_audit.documents.pairing import Certificate
from trainmem_audit.interventions import parse
from trainmem_audit.programs.block import Arm, Block, run_block
from trainmem_audit.rundir import open_run
from trainmem_audit.runs import certify_runs

PAIRED = (
    "reset:optimizer.momentum",
    "zero:optimizer.momentum",
    "scale:optimizer.momentum:0.5",
    "noise:optimizer.momentum:0.1:3",
    "reset:model.batchnorm",
    "recalibrate:model.batchnorm:2",
    "reset:teacher.params",
    "decay:teacher.params:0.5",
    "lag:teacher.params:2",
    "swap:teacher.params:model.params",
    "flush:bank.queue",
    "shuffle:bank.queue:3",
    "kick:0.001:7",
    "butterfly:7",
    "swap_windows:order:0-2:2-4",
    "permute_window:order:0-4:5",
    "policy:order:with-replacement:5",
)
NO_OPS = ("placebo", "carry")
BRANCH = 7
"""After the first batch of the second epoch: the windows lie within it."""


def identity(text: str, stream: int = 0) -> str:
    return f"{text.replace(':', '-').replace('.', '-')}.r{stream}"


def arm(text: str, stream: int = 0) -> Arm:
    return Arm(identity(text, stream), text, BRANCH, stream, (parse(text)[0],), (1, 5))


@pytest.fixture(scope="module")
def arms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("arms")
    wanted = [*map(arm, (*NO_OPS, *PAIRED)), arm("carry", 1), arm(PAIRED[0], 1)]
    block = Block("noisy.py:program", (), "5", folder, PLAN, "prefix", tuple(wanted), PROGRAMS)
    problems = {ended.id: ended.problem for ended in run_block(block, SIGNER)}
    assert set(problems.values()) == {""}, problems
    yield folder


def certificate(arms: Path, treated: str, control: str) -> Certificate:
    with open_run(arms / treated) as left, open_run(arms / control) as right, open_run(arms / "prefix") as prefix:
        return certify_runs(left, right, prefix)


@pytest.mark.parametrize("text", PAIRED)
def test_every_primitive_makes_a_pair(arms: Path, text: str) -> None:
    found = certificate(arms, identity(text), identity("carry"))
    assert [(c.clause, c.state, c.name, c.detail) for c in found.certificate if c.state != "holds"] == []
    assert found.label == "paired"


@pytest.mark.parametrize("text", NO_OPS)
def test_what_changes_nothing_is_a_no_op(arms: Path, text: str) -> None:
    assert certificate(arms, identity(text), identity("carry")).label == "no-op"


def test_arms_of_one_noise_stream_are_a_pair_and_of_two_are_none(arms: Path) -> None:
    reset = PAIRED[0]
    assert certificate(arms, identity(reset, 1), identity("carry", 1)).label == "paired"
    found = certificate(arms, identity(reset, 1), identity("carry", 0))
    assert found.label == "unpaired"
    assert (found.clause("intervention").state, found.clause("intervention").name) == ("fails", "fork")
    assert found.clause("streams").state == found.clause("order").state == "fails"


def test_diff_prints_the_certificate(arms: Path) -> None:
    def diff(*runs: str, form: str) -> tuple[int, str]:
        told = audit("diff", *runs, "--paired", "--prefix", "prefix", "--format", form, cwd=arms, home=arms / "home")
        assert told.stderr == ""
        return told.returncode, told.stdout

    code, text = diff(identity(PAIRED[0]), identity("carry"), form="text")
    assert code == 0
    assert [line[:23].split()[:3] for line in text.splitlines()[1:-1]] == [
        ["1", "prefix", "ok"],
        ["2", "intervention", "ok"],
        ["3", "order", "ok"],
        ["4", "streams", "ok"],
    ]
    assert text.splitlines()[-1] == "result: paired: the arms differ in nothing but the intervention"
    code, text = diff(identity(PAIRED[0], 1), identity("carry"), form="json")
    said = json.loads(text)
    assert (code, said["label"], said["control"]) == (1, "unpaired", identity("carry"))
    estimates = json.loads((VECTORS / "estimates" / "valid" / "law-effect.json").read_bytes())
    assert not our_schemas().findings(estimates | {"pairs": [said]}, "estimates")
