"""Programs: a branch is bit-equal to a run from the start, and their records are replayed, whole and in segments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.tools import audit, verify
from trainmem_audit.errors import ReplayError, UsageError
from trainmem_audit.interventions import parse
from trainmem_audit.keys import Signer
from trainmem_audit.programs.armlog import ArmLog, Setting
from trainmem_audit.programs.block import Arm, Block, Ended, run_block
from trainmem_audit.programs.live import Live, start_streams
from trainmem_audit.programs.program import find_factory, parse_arguments
from trainmem_audit.rundir import open_run
from trainmem_audit.runs import read_lines

PROGRAMS = Path(__file__).parent / "programs"
PLAN = "0" * 64


def start(**arguments: Any) -> Live:
    start_streams("5")
    factory, _ = find_factory("noisy.py:program", PROGRAMS)
    return Live(lambda: factory(seed=5, **arguments))


@pytest.fixture
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    found = start(**getattr(request, "param", {}))
    yield found
    found.close()


def everything(live: Live) -> dict[str, Any]:
    state = live.copy()
    tensors = {
        f"{name}/{key}": value for name, kept in state.components.items() for key, value in (kept.tensors or {}).items()
    }
    values = {name: kept.values for name, kept in state.components.items() if kept.values is not None}
    return {**tensors, **values, "rng": live.streams.digests(), "place": live.program.order.place, **live.observe()}


def same(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Name what differs."""

    def equal(a: Any, b: Any) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(a == b)

    assert one.keys() == other.keys()
    return [name for name in one if not equal(one[name], other[name])]


def go(live: Live, steps: int) -> dict[str, Any]:
    for _ in range(steps):
        live.step()
    return everything(live)


@pytest.mark.parametrize(
    "live", [{}, {"order": "keyed"}, {"optimizer": "adam"}, {"momentum": 0.0}], indirect=True, ids=str
)
@pytest.mark.parametrize("branch", [0, 7])
def test_a_branch_is_bit_equal_to_a_run_from_the_start(live: Live, branch: int) -> None:
    """Dropout, augmentation, place in the order, average, queue, schedule: all of it goes on as it would have."""
    if branch:
        go(live, branch)
    state = live.copy()
    straight = go(live, 9)
    live.put_back(state)
    assert same(straight, go(live, 9)) == []
    live.put_back(state)
    live.step()
    assert same(straight, go(live, 8)) == []


def test_memory_that_is_not_named_shows_in_a_placebo() -> None:
    live = start(forgets=True)
    go(live, 3)
    state = live.copy()
    straight = go(live, 3)
    live.put_back(state)
    assert "model" in same(straight, go(live, 3))
    live.close()


def test_observing_leaves_no_trace(live: Live) -> None:
    go(live, 2)
    before = everything(live)
    live.program.model.train()
    live.observe()
    assert live.program.model.training
    assert same(before, everything(live)) == []


def test_a_step_that_is_two_is_refused(tmp_path: Path, live: Live) -> None:
    real = live.program.step
    live.program.step = lambda batch: (real(batch), real(batch))
    results = []
    with pytest.raises(UsageError, match="not one step"):
        setting = Setting(tmp_path, PROGRAMS, None, {"kind": "program", "entry": "a:b", "hashSeed": "0"})
        log = ArmLog(live, setting, tmp_path / "run", {})
        results.append(log)
        log.step()
    results[0].abandon()


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("noisy.py", "not a program"),
        ("nothing.py:program", "no such file"),
        ("noisy.py:nothing", "no such function"),
        ("no.such.module:program", "no such module"),
    ],
)
def test_a_program_that_is_not_there(entry: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        find_factory(entry, PROGRAMS)


def test_arguments_are_literals_or_text() -> None:
    assert parse_arguments(["a=1", "b=0.5", "c=sgd", "d=True", "e=x=y"]) == {
        "a": 1,
        "b": 0.5,
        "c": "sgd",
        "d": True,
        "e": "x=y",
    }
    with pytest.raises(UsageError, match="NAME=VALUE"):
        parse_arguments(["a"])


# Records of programs ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    (folder / "noisy.py").write_text((PROGRAMS / "noisy.py").read_text())
    done = audit(
        *("record", "-q", "--program", "--steps", "14", "--seed", "3", "--snapshots", "4", "noisy.py:program"),
        cwd=folder,
        home=folder / "home",
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("mode", ["full", pytest.param("segments:2", marks=pytest.mark.slow)])
def test_the_record_of_a_program_is_replayed(recorded: Path, mode: str) -> None:
    done = verify(recorded / "run", "--replay", mode, "--yes", home=recorded / "home")
    assert done.document["replay"]["outcome"] == "match", done.document["replay"]
    assert done.code == 0


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["late=True", "forgets=True"])
def test_a_segment_of_a_program_that_keeps_more_decides_nothing(tmp_path: Path, argument: str) -> None:
    """What a step computes before its optimizer and keeps after it, and what no component names, is in no snapshot."""
    (tmp_path / "noisy.py").write_text((PROGRAMS / "noisy.py").read_text())
    options = ("-q", "--program", "--steps", "20", "--snapshots", "3", "noisy.py:program", argument)
    done = audit("record", *options, cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    said = verify(tmp_path / "run", "--replay", "segments:1", "--yes", home=tmp_path / "home").document["replay"]
    assert said["outcome"] == "inconclusive" and "--replay prefix:" in said["reason"]
    said = verify(tmp_path / "run", "--replay", "full", "--yes", home=tmp_path / "home").document["replay"]
    assert said["outcome"] == "match"


def test_another_program_is_blamed(recorded: Path) -> None:
    source = recorded / "edited"
    source.mkdir()
    (source / "noisy.py").write_text((PROGRAMS / "noisy.py").read_text().replace("lr=0.1", "lr=0.2"))
    options = ("--replay", "prefix:3", "--yes", "--no-sizes", "--source", "edited", "--allow-changed-source")
    verdict = verify(recorded / "run", *options, home=recorded / "home").document["replay"]
    assert (verdict["outcome"], verdict["difference"]["blame"]) == ("mismatch", "optimizer.hyper")


# Blocks: a prefix and its arms ------------------------------------------------------------------------------------


def arm(text: str, branch: int = 5, stream: int = 0, horizons: tuple[int, ...] = (1, 4)) -> Arm:
    name = text.split(":", 1)[0]
    return Arm(f"{name}.b{branch}.r{stream}", name, branch, stream, (parse(text)[0],), horizons)


def block(folder: Path, *arms: Arm, thin: bool = True, **arguments: Any) -> Block:
    texts = tuple(f"{name}={value}" for name, value in arguments.items())
    named = {"swapped": (parse("swap_windows:order:1-2:3-4")[0],)}
    return Block("noisy.py:program", texts, "5", folder, PLAN, "prefix", arms, PROGRAMS, named, thin)


def steps(run: Path) -> list[dict[str, Any]]:
    """Return what each step of a run says, without what is its own."""
    with open_run(run) as reader:
        lines = [line.to_json() for line in read_lines(reader) if line.t == "step"]
    return [
        {name: line[name] for name in ("order", "state", "rng", "scalars", "values") if name in line} for line in lines
    ]


def run(work: Block) -> dict[str, Ended]:
    return {ended.id: ended for ended in run_block(work, SIGNER)}


SIGNER = Signer.from_seed(bytes(range(32)))


def test_an_arm_is_the_run_that_goes_on(tmp_path: Path) -> None:
    """Prefix and carried arm together are one run from the start, line for line."""
    done = run(block(tmp_path / "a", arm("carry"), thin=False))
    assert {item.problem for item in done.values()} == {""}
    done = run(block(tmp_path / "b", arm("carry", branch=9, horizons=(1,)), thin=False))
    assert {item.problem for item in done.values()} == {""}
    straight = steps(tmp_path / "b" / "prefix")
    assert steps(tmp_path / "a" / "prefix") == straight[:5]
    went_on = steps(tmp_path / "a" / "carry.b5.r0")
    assert [line["state"] for line in went_on] == [line["state"] for line in straight[5:]]
    assert [line["rng"] for line in went_on] == [line["rng"] for line in straight[5:]]
    assert [line["order"] for line in went_on] == [line["order"] for line in straight[5:]]


def test_every_arm_is_a_run_that_verify_accepts(tmp_path: Path) -> None:
    arms = [arm("carry"), arm("reset:optimizer.momentum"), arm("fork:3"), arm("kick:0.01:7", stream=1)]
    done = run(block(tmp_path, *arms))
    assert {item.problem for item in done.values()} == {""}
    for item in done.values():
        verified = verify(tmp_path / item.id, "--allow-untrusted", home=tmp_path / "home")
        assert verified.code == 0, verified.stdout


def test_the_same_noise_stream_is_the_same_in_every_arm(tmp_path: Path) -> None:
    run(block(tmp_path, arm("carry", stream=1), arm("placebo", stream=1), arm("carry"), thin=False))
    control, placebo, native = (steps(tmp_path / name) for name in ("carry.b5.r1", "placebo.b5.r1", "carry.b5.r0"))
    assert control == placebo
    assert [line["rng"] for line in control] != [line["rng"] for line in native]
    assert control[0]["order"] != native[0]["order"]


def test_an_arm_that_cannot_be_is_told_and_the_others_run(tmp_path: Path) -> None:
    done = run(block(tmp_path, arm("reset:optimizer.nothing"), arm("carry")))
    assert "no such component" in done["reset.b5.r0"].problem or "optimizer.nothing" in done["reset.b5.r0"].problem
    assert done["carry.b5.r0"].problem == ""
    assert not (tmp_path / "reset.b5.r0" / "run.json").exists()


def test_a_block_goes_on_from_the_prefix_that_is_there(tmp_path: Path) -> None:
    run(block(tmp_path, arm("carry")))
    before = (tmp_path / "prefix" / "run.json").read_bytes()
    done = run(block(tmp_path, arm("reset:optimizer.momentum")))
    assert {item.problem for item in done.values()} == {""}
    assert (tmp_path / "prefix" / "run.json").read_bytes() == before
    assert not (tmp_path / "prefix.again").exists()


def test_a_prefix_that_comes_out_differently_is_refused(tmp_path: Path) -> None:
    run(block(tmp_path, arm("carry")))
    with pytest.raises(ReplayError, match="does not follow from its seed"):
        run(block(tmp_path, arm("placebo"), momentum=0.5))


INTERVENTIONS = (
    "lag:teacher.params:2",
    "recalibrate:model.batchnorm:3",
    "equalise:optimizer.momentum:swapped",
    "swap_windows:order:1-2:3-4",
    "policy:order:with-replacement:1",
    "reset:model.batchnorm",
    "reset:teacher",
    "flush:bank.queue",
    "freeze:teacher.params",
)


def test_interventions_on_programs(tmp_path: Path) -> None:
    """Each moves no random stream, and changes what follows."""
    arms = [replace(arm(text), id=f"arm{number}") for number, text in enumerate(INTERVENTIONS)]
    done = run(block(tmp_path, *arms, arm("carry")))
    assert {ended.id: ended.problem for ended in done.values() if ended.problem} == {}
    control = steps(tmp_path / "carry.b5.r0")
    unchanged = []
    for number, text in enumerate(INTERVENTIONS):
        changed = steps(tmp_path / f"arm{number}")
        assert [line["rng"] for line in changed] == [line["rng"] for line in control], text
        if changed == control:
            unchanged.append(text)
    assert unchanged == ["equalise:optimizer.momentum:swapped"]  # the other arm holds the same momentum
