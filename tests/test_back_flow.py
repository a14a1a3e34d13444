"""The back-flow experiment: exact where it can be, its records prove what was compared, its numbers come out again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.studying import STUDIES, study_directory
from tests.tools import audit, verify
from trainmem_audit.backflows import Cell, acting, base_id, draw_samples, stretches
from trainmem_audit.canonical import canonical_bytes, float_text, loads_strict
from trainmem_audit.documents.backflow import REGIMES, SENSES, BackFlowPlan, Regime
from trainmem_audit.documents.estimates import Estimates
from trainmem_audit.documents.manifest import PAYLOAD_TYPE
from trainmem_audit.documents.plan import Plan
from trainmem_audit.documents.steplog import InterventionLine, Inventory, Line, Observe, Step
from trainmem_audit.envelope import parse_envelope, seal
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.keys import Signer
from trainmem_audit.programs.backflow import BackFlowBlock, InstrumentOrder, linear_cka, run_back_flow
from trainmem_audit.programs.program import find_factory
from trainmem_audit.rundir import DirectoryReader
from trainmem_audit.runs import observe_at, read_lines
from trainmem_audit.study.arms import ArmRecord, require_intact
from trainmem_audit.study.backflows import BackFlowWork
from trainmem_audit.study.estimating import check_estimates
from trainmem_audit.study.plan import read_study
from trainmem_audit.study.runner import Unit
from trainmem_audit.study.witnessing import back_flow_estimates, summary_line
from trainmem_audit.trust import Trust
from trainmem_audit.verify import Policy
from trainmem_audit.witnesses import Witness, cell_witness, estimates, kinds_of, picture, read_log

PROGRAMS = Path(__file__).parent / "programs"
SEED = "7"
Array = NDArray[Any]


def regime(**changes: Any) -> Regime:
    members = {
        "steps": 3,
        "lr": float_text(0.1),
        "momentum": float_text(0.9),
        "first": "half",
        "other": "shifted",
        "second": "noisy",
        "overlap": float_text(0.5),
        "same_classes": False,
    }
    return Regime(**{**members, **changes})


def plan_of(subject: str, regimes: Mapping[str, Regime], **changes: Any) -> BackFlowPlan:
    members: dict[str, Any] = {
        "entry": f"instruments.py:{subject}",
        "base_steps": 4,
        "regimes": dict(regimes),
        "repeats": 2,
        "batch": 5,
        "batch_norm": ("batch-statistics",),
        "weight_decay": float_text(1e-4),
        "clip": float_text(1.0),
        "diagnostic_repeats": 1,
    }
    return BackFlowPlan(**{**members, **changes})


_USUAL = regime(steps=2, overlap=float_text(0.6), same_classes=True)


class Ran:
    """The runs of one seed of a plan, in a directory."""

    def __init__(self, directory: Path, plan: BackFlowPlan) -> None:
        self.directory, self.plan = directory, plan
        self.cells = {(name, sense): Cell(plan, name, sense) for name, sense in plan.cells()}
        block = BackFlowBlock(plan, 0, SEED, directory, "0" * 64, tuple(self.cells.values()), PROGRAMS)
        self.ended = list(run_back_flow(block, Signer.from_seed(b"back-flow".ljust(32, b"."))))
        assert [item.problem for item in self.ended] == [""] * (1 + len(self.cells))

    def cell(self, name: str) -> Cell:
        (found,) = (cell for cell in self.cells.values() if cell.name == name)
        return found

    def path(self, cell: Cell) -> Path:
        return self.directory / cell.run_id(0)

    def lines(self, cell: Cell) -> list[Line]:
        with DirectoryReader(self.path(cell)) as reader:
            return list(read_lines(reader))

    def heads(self, cell: Cell) -> list[Mapping[str, Array]]:
        with DirectoryReader(self.path(cell)) as reader:
            return [observe_at(reader, line) for line in self.lines(cell) if isinstance(line, Observe)]

    def witness(self, cell: Cell, task: str) -> Witness:
        heads = self.heads(cell)
        return cell_witness(cell, task, lambda repeat: heads[repeat])


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    regimes = {"usual": regime(overlap=float_text(0.4))}
    return Ran(tmp_path_factory.mktemp("linear"), plan_of("linear", regimes))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    regimes = {"usual": _USUAL, "same": regime(steps=2, other="half")}
    return Ran(tmp_path_factory.mktemp("classifier"), plan_of("classifier", regimes))


@pytest.fixture(scope="module")
def in_eval_mode(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    regimes = {"usual": _USUAL, "memoryless": regime(steps=2, momentum=float_text(0.0))}
    return Ran(tmp_path_factory.mktemp("eval"), plan_of("classifier", regimes, batch_norm=("eval-mode",)))


# --- exact ---------------------------------------------------------------------------------------------------------


class ByHand:
    """The experiment on the linear regression as a NumPy recursion, on the samples of the recipe."""

    def __init__(self, cell: Cell) -> None:
        factory, _ = find_factory("instruments.py:linear", PROGRAMS)
        subject: Any = factory(seed=int(SEED))
        self.cell, self.subject = cell, subject
        program = subject.program
        for _ in range(cell.plan.base_steps):
            program.step(next(program.order))
        self.base = program.model.weight.detach().numpy()[0].copy()
        self.probe = program.probe.inputs.numpy()
        order = InstrumentOrder(cell, SEED, subject)
        self.batches = {}
        for placed in cell.placed():
            batches = [next(order).data for _ in range(placed.stretch.steps)]
            name = placed.repeat, placed.stretch.name
            self.batches[name] = [(x.numpy(), y.numpy()[:, 0]) for x, y in batches]

    def go(self, repeat: int, name: str, weights: Array, momentum: Array | None) -> tuple[Array, Array]:
        """Take the steps of a stretch: clip the gradient, add the decay, let the momentum have it (torch's SGD)."""
        found = self.cell.regime
        lr, beta = float.fromhex(found.lr), float.fromhex(found.momentum)
        for x, y in self.batches[repeat, name]:
            gradient = 2 * x.T @ (x @ weights - y) / len(y)
            gradient = gradient * min(1.0, 1.0 / (np.linalg.norm(gradient) + 1e-6)) + 1e-4 * weights
            momentum = gradient if momentum is None else beta * momentum + gradient
            weights = weights - lr * momentum
        assert momentum is not None
        return weights, momentum

    def heads(self, repeat: int) -> dict[str, Array]:
        a, m = self.go(repeat, "A", self.base, None)
        b, n = self.go(repeat, "A2", self.base, None)
        starts = {
            "AB": (a, m),
            "A2B": (b, n),
            "AB.twin": (a, n),
            "A2B.twin": (b, m),
            "AB.common": (a, (m + n) / 2),
            "A2B.common": (b, (m + n) / 2),
            "AB.break": (a, None),
            "A2B.break": (b, None),
        }
        ends = {name: self.go(repeat, name, *start)[0] for name, start in starts.items()}
        return {name: self.probe @ weights for name, weights in {"A": a, "A2": b, **ends}.items()}


def test_all_predictions_are_those_of_a_recursion_by_hand(linear: Ran) -> None:
    cell = linear.cell("usual")
    hand = ByHand(cell)
    twins = []
    for repeat, heads in enumerate(linear.heads(cell)):
        expected = hand.heads(repeat)
        for head, values in expected.items():
            np.testing.assert_allclose(heads[head][:, 0], values, rtol=0, atol=1e-10, err_msg=head)
        pairs = (("AB", "AB.twin"), ("A2B", "A2B.twin"))
        twins += [np.sqrt(np.mean((expected[one] - expected[other]) ** 2)) for one, other in pairs]
    found = linear.witness(cell, "regression").values["logit-l2"]
    assert found.twin == pytest.approx(np.mean(twins), abs=1e-10)
    assert found.twin > 1e-3


def test_equal_instruments_lead_to_the_same_bits(classifier: Ran) -> None:
    cell = classifier.cell("same")
    found = classifier.witness(cell, "classification")
    assert found.equal
    for value in found.values.values():
        assert (value.first, value.second, value.delta, value.twin) == (0, 0, 0, 0)
        assert (value.against_common, value.against_break) == (0, 0)
    for heads in classifier.heads(cell):
        assert heads["A"].tobytes() == heads["A2"].tobytes() != heads["AB"].tobytes()
        assert heads["AB"].tobytes() == heads["A2B"].tobytes() == heads["AB.twin"].tobytes()


def test_without_momentum_carry_and_break_are_the_same_run(in_eval_mode: Ran) -> None:
    cell = in_eval_mode.cell("memoryless")
    for heads in in_eval_mode.heads(cell):
        assert heads["A"].tobytes() != heads["A2"].tobytes()
        for start in ("AB", "A2B"):
            ways = {heads[f"{start}{how}"].tobytes() for how in ("", ".break", ".common", ".twin")}
            assert len(ways) == 1
    found = in_eval_mode.witness(cell, "classification")
    assert not found.equal
    value = found.values["total-variation"]
    assert (value.twin, value.against_break, value.against_common) == (0, 0, 0)
    assert value.first > 0
    assert "cosine of momentum and B's first gradient" not in found.diagnostics


def test_momentum_is_seen_and_both_senses_of_frozen_differ(classifier: Ran, in_eval_mode: Ran) -> None:
    found = [ran.witness(ran.cell("usual"), "classification") for ran in (classifier, in_eval_mode)]
    for one in found:
        assert min(value.twin for value in one.values.values()) > 0
        assert -1 <= one.diagnostics["cosine of momentum and B's first gradient"] <= 1
        assert 0 < one.diagnostics["CKA after A and A2"] <= 1 + 1e-12
    assert found[0].values["total-variation"].first != found[1].values["total-variation"].first


def test_running_statistics_stay_where_they_are(classifier: Ran, in_eval_mode: Ran) -> None:
    for ran in (classifier, in_eval_mode):
        lines = ran.lines(ran.cell("usual"))
        states = [line.state for line in lines if isinstance(line, Step) and line.state]
        first = next(line.state for line in lines if isinstance(line, Inventory) and line.state)
        assert {state["model.batchnorm"] for state in states} == {first["model.batchnorm"]}
        assert len({state["model.params"] for state in states}) > 2


# --- records -------------------------------------------------------------------------------------------------------


def test_every_run_verifies_and_proves_its_recipe(
    linear: Ran, classifier: Ran, in_eval_mode: Ran, tmp_path: Path
) -> None:
    for ran in (linear, classifier, in_eval_mode):
        for cell in ran.cells.values():
            assert read_log(ran.lines(cell), cell, SEED).problems == []
    for path in (linear.directory / base_id(0), classifier.path(classifier.cell("usual"))):
        found = verify(path, "--allow-untrusted", home=tmp_path)
        assert found.code == 0, found.stderr
        assert found.findings == []


@pytest.mark.slow
def test_a_base_that_is_there_stays_and_is_named(linear: Ran) -> None:
    before = (linear.directory / base_id(0) / "run.json").read_bytes()
    cell = linear.cell("usual")
    ends = [line.chain for line in linear.lines(cell)][-1]
    again = BackFlowBlock(linear.plan, 0, SEED, linear.directory, "0" * 64, (cell,), PROGRAMS)
    assert [item.problem for item in run_back_flow(again, Signer.from_seed(b"x" * 32))] == ["", ""]
    assert (linear.directory / base_id(0) / "run.json").read_bytes() == before
    assert not (linear.directory / f"{base_id(0)}.again").exists()
    assert linear.lines(cell)[-1].chain != ends  # another run, with the same states
    assert read_log(linear.lines(cell), cell, SEED).problems == []


Change = Callable[[list[Line], Cell], list[Line]]


def _acting_at(lines: list[Line], cell: Cell, name: str, place: int = -1) -> int:
    """Return where the line of what acts before a stretch of the first repeat is: the last, or another."""
    placed = next(item for item in cell.placed() if item.stretch.name == name)
    found = [i for i, line in enumerate(lines) if isinstance(line, InterventionLine) and line.i == placed.begin]
    return found[place]


def _step_of(lines: list[Line], cell: Cell, name: str) -> int:
    placed = next(item for item in cell.placed() if item.stretch.name == name)
    return next(i for i, line in enumerate(lines) if isinstance(line, Step) and line.i == placed.end - 1)


def changed(lines: list[Line], at: int, **members: Any) -> list[Line]:
    return [*lines[:at], lines[at].model_copy(update=members), *lines[at + 1 :]]


def another_state(stretch: str, component: str) -> Change:
    def change(lines: list[Line], cell: Cell) -> list[Line]:
        at = _acting_at(lines, cell, stretch)
        line = lines[at]
        assert isinstance(line, InterventionLine)
        after = {**line.state.after, component: "0" * 64}
        return changed(lines, at, state=line.state.model_copy(update={"after": after}))

    return change


def another_stream(lines: list[Line], cell: Cell) -> list[Line]:
    at = _acting_at(lines, cell, "A2")
    line = lines[at]
    assert isinstance(line, InterventionLine)
    after = {**line.rng.after, "torch.cpu": "0" * 64}
    return changed(lines, at, rng=line.rng.model_copy(update={"after": after}))


def an_extra_draw(lines: list[Line], cell: Cell) -> list[Line]:
    at = _step_of(lines, cell, "A2B.twin")
    line = lines[at]
    assert isinstance(line, Step)
    return changed(lines, at, rng={**line.rng, "torch.cpu": "0" * 64})


def another_batch(lines: list[Line], cell: Cell) -> list[Line]:
    at = _step_of(lines, cell, "AB.break")
    line = lines[at]
    assert isinstance(line, Step)
    assert line.order is not None
    return changed(lines, at, order=line.order.model_copy(update={"index": "0" * 64}))


def another_augmentation(lines: list[Line], cell: Cell) -> list[Line]:
    at = _step_of(lines, cell, "A2B")
    line = lines[at]
    assert isinstance(line, Step)
    assert line.order is not None
    return changed(lines, at, order=line.order.model_copy(update={"content": "0" * 64}))


def moved_statistics(lines: list[Line], cell: Cell) -> list[Line]:
    at = _step_of(lines, cell, "A2")
    line = lines[at]
    assert isinstance(line, Step)
    return changed(lines, at, state={**line.state, "model.batchnorm": "0" * 64})


def no_break(lines: list[Line], cell: Cell) -> list[Line]:
    at = _acting_at(lines, cell, "AB.break", 2)
    return [*lines[:at], *lines[at + 1 :]]


def kept_in_the_break(lines: list[Line], cell: Cell) -> list[Line]:
    return another_state("A2B.break", "optimizer.momentum")(lines, cell)


def an_act_within(lines: list[Line], cell: Cell) -> list[Line]:
    at = _step_of(lines, cell, "B")
    line = lines[_acting_at(lines, cell, "A")]
    assert isinstance(line, InterventionLine)
    first = lines[at]
    assert isinstance(first, Step)
    return [*lines[:at], line.model_copy(update={"i": first.i}), *lines[at:]]


def half_a_run(lines: list[Line], cell: Cell) -> list[Line]:
    return lines[: len(lines) // 2]


SABOTAGES: dict[str, tuple[str, Change]] = {
    "other weights for A2": ("base", another_state("A2", "model.params")),
    "other weights for B": ("carry", another_state("A2B", "model.params")),
    "a momentum from nowhere": ("carry", another_state("AB", "optimizer.momentum")),
    "another learning rate": ("carry", another_state("AB", "optimizer.hyper")),
    "twins with other weights": ("twins", another_state("AB.twin", "model.params")),
    "twins with their own momentum": ("twins", another_state("A2B.twin", "optimizer.momentum")),
    "not the mean in one branch": ("common", another_state("A2B.common", "optimizer.momentum")),
    "momentum kept in the break": ("break", kept_in_the_break),
    "the break left out": ("interventions", no_break),
    "something acts within a stretch": ("interventions", an_act_within),
    "other random numbers": ("streams", another_stream),
    "an extra draw": ("streams", an_extra_draw),
    "another batch": ("samples", another_batch),
    "another augmentation of B": ("samples", another_augmentation),
    "statistics that move": ("BatchNorm", moved_statistics),
    "half a run": ("interventions", half_a_run),
}


@pytest.mark.parametrize("name", SABOTAGES)
def test_the_log_refutes(classifier: Ran, name: str) -> None:
    clause, change = SABOTAGES[name]
    cell = classifier.cell("usual")
    lines = classifier.lines(cell)
    problems = read_log(change(lines, cell), cell, SEED).problems
    assert problems
    assert problems[0].startswith(f"{clause}: ")


def test_the_log_of_another_seed_is_refuted(classifier: Ran) -> None:
    cell = classifier.cell("usual")
    assert read_log(classifier.lines(cell), cell, "8").problems[0].startswith("interventions: ")


# --- the recipe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REGIMES)
def test_samples_are_as_the_regime_says(name: str) -> None:
    chosen = REGIMES[name]
    cell = Cell(plan_of("linear", {name: chosen}, batch=20), name, "eval-mode")
    classes = np.arange(500) % 7
    seen = []
    for repeat in range(3):
        found = draw_samples(cell, SEED, repeat, 500, classes)
        a, b = found["A"], found["B"]
        assert a.shape == b.shape == (chosen.steps, 20)
        assert len(set(a.flat)) == len(set(b.flat)) == a.size
        assert len(set(a.flat) & set(b.flat)) == round(chosen.shared * a.size)
        if chosen.same_classes:
            assert (np.bincount(classes[a.ravel()]) == np.bincount(classes[b.ravel()])).all()
        assert found["A2"] is a
        again = draw_samples(cell, SEED, repeat, 500, classes)
        assert (again["A"] == a).all() and (again["B"] == b).all()
        seen.append(tuple(a.flat))
    assert len(set(seen)) == 3


@pytest.mark.parametrize(
    ("changes", "samples", "classes", "message"),
    [
        ({}, 9, None, "60 samples"),
        ({"overlap": float_text(0.0)}, 100, None, "60 samples that A does not use"),
        ({"same_classes": True}, 500, None, "a class for each sample"),
        ({"same_classes": True}, 500, np.linspace(0, 1, 500), "a class for each sample"),
        ({"same_classes": True, "overlap": float_text(0.0)}, 60, np.zeros(60, int), "of class 0"),
    ],
)
def test_too_few_samples_are_said(changes: Any, samples: int, classes: Any, message: str) -> None:
    cell = Cell(plan_of("linear", {"few": regime(**changes)}, batch=20), "few", "eval-mode")
    with pytest.raises(UsageError) as caught:
        draw_samples(cell, SEED, 0, samples, classes)
    assert message in caught.value.expected


def test_what_acts_follows_from_the_seed_alone() -> None:
    cell = Cell(plan_of("linear", {"usual": regime()}), "usual", "eval-mode")
    placed = {item.stretch.name: item for item in cell.placed() if item.repeat == 0}
    fork = {name: acting(cell, SEED, item)[-1].seed for name, item in placed.items()}
    assert len(set(fork.values())) == 2
    assert fork["A"] == fork["A2"] != fork["B"] == fork["AB.break"]
    other = Cell(plan_of("linear", {"usual": regime()}, batch_norm=SENSES), "usual", "batch-statistics")
    assert acting(other, SEED, placed["AB"]) == acting(cell, SEED, placed["AB"]) != acting(cell, "8", placed["AB"])
    assert [one.primitive for one in acting(cell, SEED, placed["A2B.common"])][2:] == ["equalise", "fork"]
    assert [item.steps for item in stretches(3, diagnostics=False)] == [3] * 10


def test_a_program_alone_is_no_subject(tmp_path: Path) -> None:
    plan = plan_of("linear", {"usual": regime()}).model_copy(update={"entry": "noisy.py:program"})
    block = BackFlowBlock(plan, 0, SEED, tmp_path, "0" * 64, (), PROGRAMS)
    with pytest.raises(UsageError, match="not a subject"):
        list(run_back_flow(block, Signer.from_seed(b"x" * 32)))


def test_an_augmentation_that_is_not_there_is_said(tmp_path: Path) -> None:
    factory, _ = find_factory("instruments.py:linear", PROGRAMS)
    subject: Any = factory(seed=0)
    plan = plan_of("linear", {"usual": regime(first="mirrored")})
    with pytest.raises(UsageError) as caught:
        InstrumentOrder(Cell(plan, "usual", "eval-mode"), SEED, subject)
    assert caught.value.expected == "half, noisy, none, shifted"


@pytest.mark.slow
def test_a_regime_that_fails_does_not_take_the_others_with_it(tmp_path: Path) -> None:
    plan = plan_of("linear", {"long": regime(steps=9), "usual": regime()})
    cells = tuple(Cell(plan, name, sense) for name, sense in plan.cells())
    block = BackFlowBlock(plan, 0, SEED, tmp_path, "0" * 64, cells, PROGRAMS)
    ended = list(run_back_flow(block, Signer.from_seed(b"x" * 32)))
    assert [("too few samples" in item.problem, bool(item.problem)) for item in ended] == [
        (False, False),
        (True, True),
        (False, False),
    ]


# --- numbers -------------------------------------------------------------------------------------------------------


def test_numbers_over_seeds(classifier: Ran) -> None:
    cell = classifier.cell("usual")
    witness = classifier.witness(cell, "classification")
    seeds = ["7", "8", "9"]
    found = list(estimates(cell, seeds, [witness, "unpaired: twins", witness], "classification", 0.05, "a" * 64))
    assert [item.observable for item in found] == list(kinds_of("classification"))
    primary = found[0]
    assert primary.name == "usual"
    assert primary.dropped is not None
    assert [(item.seed, item.reason) for item in primary.dropped] == [("8", "unpaired: twins")]
    assert primary.twin is not None
    assert primary.twin.units == 2
    assert float.fromhex(primary.twin.value) == pytest.approx(witness.values["total-variation"].twin)
    gaps = [name for name in primary.diagnostics or {} if name.startswith("distance AB to BA")]
    assert gaps == ["distance AB to BA, k = 1", "distance AB to BA, k = 2"]
    places = picture(primary)
    for one, other, text in (("A", "A2", primary.first.value), ("AB", "A2B", primary.second.value)):
        assert np.hypot(*np.subtract(places[one], places[other])) <= float.fromhex(text) * (1 + 1e-9) + 1e-9
    assert places["A"][0] <= places["AB"][0]


def test_equal_instruments_leave_nothing_to_test(classifier: Ran) -> None:
    cell = classifier.cell("same")
    witness = classifier.witness(cell, "classification")
    for item in estimates(cell, ["1", "2", "3"], [witness] * 3, "classification", 0.05, "a" * 64):
        assert item.bitwise_equal
        assert item.delta.value == float_text(0.0)
        assert item.delta.test is None
        assert item.equivalence is None


def test_linear_cka() -> None:
    one, other = (torch.randn(30, 5, generator=torch.Generator().manual_seed(s), dtype=torch.float64) for s in (1, 2))
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    assert float(linear_cka(one, 3 * one @ turn + 1)) == pytest.approx(1)
    gram = [features @ features.T for features in (one - one.mean(0), other - other.mean(0))]
    expected = (gram[0] * gram[1]).sum() / (gram[0].norm() * gram[1].norm())
    assert float(linear_cka(one, other)) == pytest.approx(float(expected))
    assert float(linear_cka(one, torch.ones_like(one))) != float(linear_cka(one, torch.ones_like(one)))


# --- in a study ----------------------------------------------------------------------------------------------------


class NoArms:
    """The work of a study without arms."""

    def arms(self) -> tuple[str, ...]:
        return ("arm",)

    def units(self, missing: Sequence[str], threads: int) -> Iterator[Unit]:
        yield from ()

    def unusable(self, missing: Sequence[str]) -> Mapping[str, str]:
        return {"arm": "its prefix"} if "prefix" in missing else {}


def study_of(directory: Path, part: BackFlowPlan) -> Plan:
    path = study_directory(directory, STUDIES / "valid" / "back_flow.toml")
    plan = read_study(path).plan
    return plan.model_copy(update={"back_flow": part, "seeds": (SEED, "8")})


def test_what_is_missing_is_run_again_seed_by_seed(tmp_path: Path) -> None:
    plan = study_of(tmp_path, plan_of("linear", {"usual": regime(), "tight": regime()}))
    work = BackFlowWork(NoArms(), plan, tmp_path, tmp_path, Signer.from_seed(b"x" * 32))
    names = work.arms()
    assert names == (
        "arm",
        *(f"back-flow.{name}.s{seed}" for seed in (0, 1) for name in (
            "base", "tight.batch-statistics", "usual.batch-statistics"
        )),
    )  # fmt: skip
    assert [unit.arms for unit in work.units(names, 1)] == [names[1:4], names[4:]]
    assert [unit.arms for unit in work.units(names[5:6], 1)] == [names[5:6]]
    (unit,) = work.units(names[5:6], 1)
    assert unit.job.argument.has_base
    assert work.unusable((names[1], "prefix")).keys() == {"arm", *names[2:4]}
    assert not work.unusable(names[2:4])


def recorded(directory: Path) -> Callable[[str], ArmRecord | str]:
    def record(name: str) -> ArmRecord | str:
        folder = directory / "arms" / name
        return require_intact(folder, name, "0" * 64) if folder.exists() else "was not run"

    return record


def test_numbers_of_a_study_are_made_of_its_records(classifier: Ran, tmp_path: Path) -> None:
    shutil.copytree(classifier.directory, tmp_path / "arms")
    plan = study_of(tmp_path, classifier.plan)
    same, usual = back_flow_estimates(plan, tmp_path, recorded(tmp_path))[::3]
    assert (same.name, same.bitwise_equal, usual.name, usual.bitwise_equal) == ("same", True, "usual", None)
    for item in (same, usual):
        assert item.dropped is not None
        assert [(one.seed, one.reason) for one in item.dropped] == [("8", "back-flow.base.s1: was not run")]
        assert item.delta.units == 1
    assert summary_line(same) == "same: bitwise equal, before B and after it (1 seeds, 1 left out)"
    assert summary_line(usual).startswith("usual: D1 ")
    assert " (1 seeds, 1 left out)" in summary_line(usual)
    assert usual.twin is not None
    witness = classifier.witness(classifier.cell("usual"), "classification")
    assert float.fromhex(usual.twin.value) == pytest.approx(witness.values["total-variation"].twin)
    cell = classifier.cell("usual")
    found = next((tmp_path / "arms" / cell.run_id(0) / "observations").iterdir())
    found.write_bytes(found.read_bytes()[:-1] + bytes([found.read_bytes()[-1] ^ 1]))
    with pytest.raises(FormatError, match="not the file that was signed"):
        back_flow_estimates(plan, tmp_path, recorded(tmp_path))


def test_a_run_from_another_base_is_left_out(classifier: Ran, in_eval_mode: Ran, tmp_path: Path) -> None:
    """Of the same weights, but not of the run that lies there."""
    shutil.copytree(classifier.directory, tmp_path / "arms")
    shutil.rmtree(tmp_path / "arms" / base_id(0))
    shutil.copytree(in_eval_mode.directory / base_id(0), tmp_path / "arms" / base_id(0))
    plan = study_of(tmp_path, classifier.plan)
    for item in back_flow_estimates(plan, tmp_path, recorded(tmp_path)):
        assert item.dropped is not None
        assert item.dropped[0].reason == "unpaired: base: the run names another step as that which it starts from"
        assert item.delta.units == 0


@pytest.mark.slow
def test_a_study_runs_its_back_flow_part_and_its_numbers_come_out_again(tmp_path: Path) -> None:
    shutil.copyfile(PROGRAMS / "instruments.py", tmp_path / "instruments.py")
    study = study_directory(tmp_path, STUDIES / "valid" / "back_flow.toml")
    text = study.read_text().replace("program.py:program", "instruments.py:trained").replace("noise_streams = 2", "")
    text = text.replace("program.py:subject", "instruments.py:classifier").replace('"dropout=0.1"', "")
    text = text.replace('"weak"', '"noisy"').replace('"strong"', '"half"').replace("seeds = 3", "seeds = 2")
    text = text.replace("horizon = 1", 'horizon = 1\nestimand = "pathwise"')
    study.write_text(text)
    (tmp_path / "probe.safetensors").unlink()  # that of another program: this one writes its own
    assert audit("study", "run", study, "--workers", "1", "-q", cwd=tmp_path, home=tmp_path / "home").returncode == 0
    shutil.rmtree(tmp_path / "study" / "arms" / "back-flow.short.eval-mode.s1")
    (tmp_path / "study" / "study.json").unlink()
    done = audit("study", "run", study, "--workers", "1", cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    done = audit("study", "estimate", tmp_path / "study", cwd=tmp_path, home=tmp_path / "home")
    assert done.returncode == 0, done.stderr
    estimates_file = tmp_path / "study" / "estimates.json"
    members = loads_strict(parse_envelope(estimates_file.read_bytes(), "x").payload, "x")
    assert isinstance(members, dict)
    document: Estimates = Estimates.parse(canonical_bytes(members["predicate"]), "estimates")
    assert document.back_flows is not None
    assert {item.name for item in document.back_flows} == {"short, eval-mode", "short, batch-statistics"}
    for item in document.back_flows:
        assert item.dropped is None
        assert item.twin is not None
        assert item.twin.units == 2
    arms = {arm.id for arm in document.arms}
    assert {"back-flow.base.s0", "back-flow.short.eval-mode.s1", "prefix.s1"} <= arms
    checked = check_estimates(estimates_file, Policy(trust=Trust(()), allow_untrusted=True))
    assert (checked.recomputed, checked.problems, checked.differing) == (True, [], [])
    members["predicate"]["backFlows"][2]["delta"]["value"] = float_text(1.0)
    estimates_file.write_bytes(seal(canonical_bytes(members), PAYLOAD_TYPE, Signer.from_seed(b"x" * 32)))
    checked = check_estimates(estimates_file, Policy(trust=Trust(()), allow_untrusted=True))
    assert checked.differing == ["back_flows[2]"]
