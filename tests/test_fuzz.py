"""The targets of the fuzzer without the fuzzer: over their seeds, over what it found once, over hypothesis examples.

`make fuzz` looks further, with coverage feedback; what it finds becomes a file in `fuzz/cases/TARGET/`.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz import strategies
from tests.fuzz.material import Material, load, make_runs
from tests.fuzz.mutations import OPERATIONS, mutated
from tests.fuzz.targets import TARGETS, FalseAcceptError, UnsafeTextError, must_fail, printed

CASES = Path(__file__).parent / "fuzz" / "cases"
FOUND = sorted(path for path in CASES.glob("*/*") if path.is_file())
EXAMPLES = {"statement": 40, "log": 60, "recovery": 40}
"""Fewer where one takes long; a hundred else."""


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return load(*make_runs(tmp_path_factory.mktemp("fuzz"), "tiny"))


@pytest.mark.parametrize("name", TARGETS)
def test_the_seeds_are_no_finds(name: str, material: Material) -> None:
    seeds = list(TARGETS[name].seeds(material))
    assert seeds
    for data in seeds:
        TARGETS[name].run(material, data)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once_is_found_no_more(path: Path, material: Material) -> None:
    TARGETS[path.parent.name].run(material, path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_examples_are_no_finds(name: str, material: Material) -> None:
    target = TARGETS[name]

    @seed(20261125)
    @settings(
        max_examples=EXAMPLES.get(name, 100),
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategies.inputs(target, material))
    def examine(data: bytes) -> None:
        target.run(material, data)

    examine()


def test_cases_belong_to_targets() -> None:
    assert {path.parent.name for path in FOUND} <= TARGETS.keys()


def test_a_false_accept_and_unsafe_text_are_seen(material: Material) -> None:
    """The targets can fail: a run that passes is no failure, an escape sequence is no text."""
    with pytest.raises(FalseAcceptError):
        must_fail(material.first, "it passes")
    for text in ("\x1b[2J", "\u202e", "\x9b", "\x7f", "\r"):
        with pytest.raises(UnsafeTextError):
            printed(text)


@given(st.binary(max_size=60))
@settings(database=None)
def test_a_program_of_changes_is_one_whatever_its_bytes(program: bytes) -> None:
    files = {"a": b"x\ny\n", "run.json": b"{}"}
    other = {"a": b"p\nq\n", "run.json": b"[]", "signer.pub": b"k"}
    before = dict(files)
    assert all(isinstance(data, bytes) for data in mutated(files, other, program).values())
    assert files == before


def test_every_operation_changes_something(material: Material) -> None:
    """Over some choices each operation makes a file another one."""
    for number, operation in enumerate(OPERATIONS):
        programs = [bytes([name, number, 7, 0, 3, 1, 2]) for name in range(6)]
        changed = [mutated(material.runs[0], material.runs[1], program) for program in programs]
        assert any(files != material.runs[0] for files in changed), operation.__name__
