"""The facts that rules see: counted over a log in one pass, as far as it goes, in memory that does not grow with it."""

from __future__ import annotations

import io
import tracemalloc
from collections.abc import Iterable
from typing import Any

from tests.logs import FakeRun, component, digest, written
from trainmem_audit.canonical import float_text
from trainmem_audit.documents.record import Facts
from trainmem_audit.documents.steplog import Line, Step
from trainmem_audit.gathering import Gatherer
from trainmem_audit.sidefiles import OrderFile
from trainmem_audit.steplog import LogReader


def gathered(lines: Iterable[Line], whole: bool = True) -> Facts:
    gatherer = Gatherer()
    for line in lines:
        gatherer.take(line)
    facts = gatherer.finish(whole)
    assert facts is not None
    return facts


def parsed(members: list[dict[str, Any]]) -> list[Line]:
    reader = LogReader()
    return [reader.read(line) for line in written(members)]


def beginning() -> list[dict[str, Any]]:
    """Return the members of the lines before the first step."""
    return [line for line in FakeRun(ended=False).members() if line["t"] != "step"]


def test_steps_are_counted() -> None:
    facts = gathered(FakeRun(steps=5).parsed())
    assert (facts.whole, facts.ended) == (True, True)
    steps = facts.steps
    assert (steps.count, steps.with_order, steps.with_index, steps.with_inputs, steps.skipped) == (5, 5, 5, 5, 0)
    assert steps.batches == {"1": 5}
    assert steps.lr_differs is None


def test_a_component_is_followed_from_its_first_step_to_its_last() -> None:
    facts = gathered(FakeRun(steps=5).parsed()).components
    momentum = facts["optimizer.momentum"]
    assert (momentum.first, momentum.last, momentum.steps, momentum.changes) == (0, 4, 5, 4)
    assert momentum.changed_at_end is True
    hyper = facts["optimizer.hyper"]
    assert (hyper.changes, hyper.changed_at_end) == (0, False)


def test_a_log_that_breaks_off_gives_the_facts_before_it() -> None:
    lines = FakeRun(steps=5, ended=False).parsed()
    facts = gathered(lines[:-2], whole=False)
    assert (facts.whole, facts.ended, facts.steps.count) == (False, False, 3)
    assert all(item.changed_at_end is None for item in facts.components.values())


def test_no_line_gives_no_facts() -> None:
    assert Gatherer().finish(whole=True) is None


def test_a_step_with_another_learning_rate_than_its_optimizer_says_is_named() -> None:
    members = list(FakeRun(steps=4).members())
    (step,) = [line for line in members if line["t"] == "step" and line["i"] == 2]
    step["scalars"]["lr"] = [float_text(0.2)]
    assert gathered(parsed(members)).steps.lr_differs == 2


def test_a_change_of_the_learning_rate_that_is_recorded_is_no_difference() -> None:
    run = FakeRun(steps=4)
    run.lr = [0.1, 0.1, 0.05, 0.05]
    assert gathered(run.parsed()).steps.lr_differs is None


def test_a_copy_is_a_digest_that_another_component_had_one_step_before() -> None:
    """A target network takes over the model's parameters at step 2, and drifts at step 3."""
    members = beginning()
    header = [["fc.weight", "float32", [2]]]
    members.append({"t": "inventory", "i": 0, "components": {"target.params": component("S5", tensors=header)}})
    model = [digest("model", step) for step in range(4)]
    target = [digest("old"), digest("old"), model[1], digest("drift")]
    for i in range(4):
        state = {"model.params": model[i], "target.params": target[i]}
        members.append({"t": "step", "i": i, "state": state, "rng": {}})
    facts = gathered(parsed(members)).components["target.params"]
    assert (facts.changes, facts.copies) == (2, 1)


def test_numbers_of_batches_are_kept_for_a_few_and_counted_for_the_rest() -> None:
    members = beginning()
    for i in range(20):
        order = {"content": digest(i), "n": 1, "batches": i + 1}
        members.append({"t": "step", "i": i, "order": order, "state": {}, "rng": {}})
    batches = gathered(parsed(members)).steps.batches
    assert (len(batches), batches["more"], sum(batches.values())) == (17, 4, 20)


def test_memory_does_not_grow_with_the_steps() -> None:
    lines = FakeRun(steps=2, ended=False).parsed()
    last = lines[-1]

    def peak(steps: int) -> int:
        gatherer = Gatherer()
        for line in lines:
            gatherer.take(line)
        tracemalloc.start()
        for i in range(steps):
            gatherer.take(last.model_copy(update={"i": i + 2}))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(2000) < 2 * peak(200)


def test_indices_come_in_pieces_of_their_step_and_only_where_there_are_any() -> None:
    run = FakeRun(steps=3)
    file = OrderFile(io.BytesIO(run.order()))
    seen = []
    for line in run.parsed():
        if isinstance(line, Step):
            file.check(line, lambda piece, step=line.i: seen.append((step, piece)))  # type: ignore[misc]
    assert seen == [(step, run.indices(step)) for step in range(3)]
