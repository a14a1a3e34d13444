"""Where two runs part: the first step, all that differs there in the order of cause, the blame, tensors, sizes."""

from __future__ import annotations

import base64
import itertools
from typing import Any

import pytest
from blake3 import blake3

from tests.logs import FakeRun, MemoryReader, stream, written
from trainmem_audit.divergence import GRADIENT_PATH, Comparison, _usual_cause, groups
from trainmem_audit.documents.findings import ComponentDifference, Difference, TensorDifference
from trainmem_audit.errors import FormatError
from trainmem_audit.rundir import RunReader
from trainmem_audit.runs import compare, read_lines

CAUSES = (
    "order.index", "order.content", "inputs", "rng.torch.cpu", "teacher.params", "optimizer.hyper", "loss",
    "model.batchnorm", "optimizer.momentum", "model.params",
)  # fmt: skip
"""The order of cause of DESIGN § 5; the loss comes where the step begins to compute."""

ENTERS = CAUSES[: CAUSES.index("loss")]
NAMED = (*ENTERS, "model.batchnorm")
"""What is blamed by name where nothing else differs: statistics alone are no matter of gradients."""


def difference(expected: FakeRun, got: FakeRun) -> Difference:
    """Return the difference, which must be there."""
    found, _ = compare(expected.reader(), got.reader())
    assert found is not None
    return found


def changed(step: int, *causes: str) -> FakeRun:
    """Return a run that differs from `FakeRun()` in these from `step` on."""
    run = FakeRun()
    if "optimizer.hyper" in causes:
        run.lr[max(step, 0) :] = [0.2] * (run.steps - max(step, 0))
    return run.change(step, *(cause.removeprefix("order.") for cause in causes if cause != "optimizer.hyper"))


def names(found: Difference) -> list[str]:
    return [component.component for component in found.components]


def test_equal_runs_have_no_difference() -> None:
    assert compare(FakeRun().reader(), FakeRun().reader()) == (None, 4)


# The order of cause -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize("cause", CAUSES)
def test_the_first_step_and_the_component_are_named(cause: str, step: int) -> None:
    found = difference(FakeRun(), changed(step, cause))
    assert (found.step, found.stage, names(found)) == (step, "step", [cause])
    assert found.blame == (cause if cause in NAMED else GRADIENT_PATH)


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(CAUSES, 2)))
def test_what_causes_comes_before_what_is_caused(first: str, second: str) -> None:
    found = difference(FakeRun(), changed(2, second, first))
    assert names(found) == [first, second]
    assert found.blame == (first if first in ENTERS else GRADIENT_PATH)


def test_all_that_differs_is_listed() -> None:
    found = difference(FakeRun(), changed(2, *CAUSES))
    assert names(found) == list(CAUSES)
    assert [item.cause for item in found.components] == sorted(item.cause for item in found.components)


def test_the_earlier_step_wins_over_the_earlier_cause() -> None:
    found = difference(FakeRun(), changed(1, "model.params").change(2, "index"))
    assert (found.step, names(found)) == (1, ["model.params"])


@pytest.mark.parametrize("cause", ENTERS)
def test_the_explanation_of_each_cause_is_its_own(cause: str) -> None:
    others = {difference(FakeRun(), changed(2, name)).explanation for name in ENTERS if name != cause}
    assert difference(FakeRun(), changed(2, cause)).explanation not in others


# Before the first update ------------------------------------------------------------------------------------------


def test_other_initial_weights_are_there_before_the_first_update() -> None:
    found = difference(FakeRun(), changed(-1, "model.params", "optimizer.momentum"))
    assert (found.step, found.stage, found.blame) == (0, "start", "model.params")
    assert "initial weights" in found.explanation


def test_the_start_comes_before_the_step_whatever_the_cause() -> None:
    found = difference(FakeRun(), changed(0, "optimizer.hyper", "index", "content", "inputs"))
    assert names(found) == ["optimizer.hyper", "order.index", "order.content", "inputs"]
    assert (found.stage, found.blame) == ("start", "optimizer.hyper")


def test_another_seed_shows_in_the_streams_at_the_start_of_the_epoch() -> None:
    found = difference(FakeRun(), changed(0, "index", "rng.torch.cpu").change(0, "epoch"))
    assert names(found)[:2] == ["rng.torch.cpu", "rng.python"]
    assert (found.stage, found.blame) == ("start", "rng.torch.cpu")
    assert "seed" in found.explanation


def test_another_loader_is_named_with_its_settings() -> None:
    other = changed(0, "index")
    other.loader = {"batchSize": 6, "shuffle": False}
    found = difference(FakeRun(), other)
    assert (found.blame, found.stage) == ("order", "start")
    detail = found.components[0].detail
    assert (
        detail == "loader: batchSize: expected 3, got 6 (difference 3, relative 1); shuffle: expected True, got False"
    )


def test_another_architecture_is_named_before_its_weights_and_before_the_seed() -> None:
    other = changed(0, "epoch", "index")
    other.tensors["model.params"] = [["fc.weight", "float32", [8, 2]], ["fc.bias", "float32", [8]]]
    found = difference(FakeRun(), other)
    assert (found.blame, found.stage) == ("model.params", "start")
    assert found.components[0].detail == "fc.weight: expected float32[4, 2], got float32[8, 2]"
    assert "architecture" in found.explanation


@pytest.mark.parametrize(
    ("tensors", "detail"),
    [
        ([["fc.weight", "float32", [4, 2]]], "fc.bias: expected float32[4], got no such tensor"),
        ([["fc.bias", "float32", [4]], ["fc.weight", "float32", [4, 2]]], "the tensors come in another order"),
        (
            [["fc.weight", "float32", [4, 2]], ["fc.bias", "float64", [4]]],
            "fc.bias: expected float32[4], got float64[4]",
        ),
    ],
)
def test_a_difference_of_structure_is_said_in_words(tensors: list[Any], detail: str) -> None:
    other = FakeRun()
    other.tensors["model.params"] = tensors
    assert difference(FakeRun(), other).components[0].detail == detail


def test_a_component_of_one_side_only_is_a_difference() -> None:
    other = FakeRun()
    other.tensors["optimizer.exp_avg"] = other.tensors.pop("optimizer.momentum")
    found = difference(FakeRun(), other)
    assert {"optimizer.exp_avg", "optimizer.momentum"} <= set(names(found))
    assert {item.detail for item in found.components} == {"the component exists on one side only"}


# The end ----------------------------------------------------------------------------------------------------------


def test_a_difference_after_the_last_step_is_said_to_be_there() -> None:
    found = difference(FakeRun(), changed(4, "model.params"))
    assert (found.step, found.stage, found.blame) == (4, "end", "model.params")
    assert "end differently" in found.explanation


def test_another_outcome_is_a_difference() -> None:
    other = FakeRun()
    other.outcome = ("raised", 1)
    found = difference(FakeRun(), other)
    assert (found.stage, names(found)) == ("end", ["outcome"])
    item = found.components[0]
    assert (item.expected, item.got) == ("finished (exit code 0)", "raised (exit code 1)")


@pytest.mark.parametrize(
    ("left", "right", "step", "said"),
    [
        (FakeRun(4), FakeRun(2), 2, ("step 2", "the run ended (finished)")),
        (FakeRun(2), FakeRun(4), 2, ("the run ended (finished)", "step 2")),
        (FakeRun(4), FakeRun(2, ended=False), 2, ("step 2", "the log stops")),
        (FakeRun(2, ended=False), FakeRun(4), 2, ("the log stops", "step 2")),
        (FakeRun(2, ended=False), FakeRun(2), 2, ("the log stops", "the run ended (finished)")),
        (FakeRun(2), FakeRun(2, ended=False), 2, ("the run ended (finished)", "the log stops")),
    ],
)
def test_missing_steps_are_a_difference(left: FakeRun, right: FakeRun, step: int, said: tuple[str, str]) -> None:
    for run in (left, right):
        run.lr = [0.1] * run.steps
    found = difference(left, right)
    assert (found.step, found.blame, names(found)) == (step, "steps", ["steps"])
    assert (found.components[0].expected, found.components[0].got) == said


def test_two_runs_killed_at_the_same_step_are_equal() -> None:
    assert compare(FakeRun(2, ended=False).reader(), FakeRun(2, ended=False).reader()) == (None, 2)


def test_two_runs_killed_before_their_first_step_are_equal() -> None:
    lines = b"".join(line + b"\n" for line in FakeRun().lines()[:6])
    assert compare(MemoryReader({"steps.jsonl": lines}), MemoryReader({"steps.jsonl": lines})) == (None, 0)


def test_an_empty_log_is_no_run_to_compare() -> None:
    empty: RunReader = MemoryReader({"steps.jsonl": b""})
    with pytest.raises(FormatError, match="empty"):
        compare(empty, FakeRun().reader())
    with pytest.raises(FormatError, match="empty"):
        compare(empty, empty)


# Tensors and sizes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.params", "optimizer.momentum"])
@pytest.mark.parametrize("tensor", ["fc.weight", "fc.bias"])
def test_the_tensor_is_named_from_the_frames(name: str, tensor: str) -> None:
    found = difference(FakeRun(), FakeRun().change(2, f"{name}:{tensor}"))
    (item,) = found.components
    assert (found.step, item.component, item.tensors_known) == (2, name, True)
    (named,) = item.tensors
    assert (named.name, named.dtype, named.shape[0]) == (tensor, "float32", 4)
    assert named.expected != named.got
    assert item.detail == "1 of 2 tensors differ"


@pytest.mark.parametrize("side", [0, 1])
def test_where_the_frame_was_thinned_out_no_tensor_is_named(side: int) -> None:
    runs = (FakeRun(), FakeRun().change(2, "model.params"))
    runs[side].kept = {0}
    (item,) = difference(*runs).components
    assert (item.tensors, item.tensors_known) == ((), False)
    assert "not known" in item.detail


def test_a_changed_learning_rate_is_given_with_values_and_size() -> None:
    found = difference(FakeRun(), changed(2, "optimizer.hyper"))
    (item,) = found.components
    assert item.detail == "groups.0.lr: expected 0.1, got 0.2 (difference 0.1, relative 1)"


def test_a_changed_loss_is_given_with_values_and_size() -> None:
    (item,) = difference(FakeRun(), changed(2, "loss")).components
    assert item.detail == "expected 1, got 1.5 (difference 0.5, relative 0.5)"


@pytest.mark.parametrize(
    ("values", "detail"),
    [
        ({"a": True}, "a: expected False, got True"),
        ({"a": 3}, "a: expected False, got 3"),
        ({"a": "nan"}, "a: expected False, got nan"),
        ({}, "a: expected False, got absent"),
        ({"a": False, "b": [1, {"c": "x"}]}, "b.0: expected absent, got 1; b.1.c: expected absent, got x"),
        ({"a": [False]}, "a: expected False, got absent; a.0: expected absent, got False"),
    ],
)
def test_any_difference_of_values_is_said_in_words(values: dict[str, Any], detail: str) -> None:
    runs = FakeRun(), FakeRun()
    runs[0].hyper = lambda step: {"a": False}  # type: ignore[method-assign]
    runs[1].hyper = lambda step: values  # type: ignore[method-assign]
    assert difference(*runs).components[0].detail == detail


def test_a_size_that_is_no_number_is_survived() -> None:
    for a, b in itertools.permutations([0.0, -0.0, 1.0, float("nan"), float("inf"), -float("inf"), 5e-324, 1e308], 2):
        runs = FakeRun(), FakeRun()
        runs[0].lr, runs[1].lr = [a] * 4, [b] * 4
        assert difference(*runs).components[0].component == "optimizer.hyper"


# Streams ----------------------------------------------------------------------------------------------------------


def with_numpy(start: bytes, later: bytes) -> RunReader:
    """Return a run that also has the stream `numpy`: its start state, and its state at every later line."""
    lines = list(FakeRun().members())
    lines[1]["streams"]["numpy"] = stream("numpy", base64.b64encode(start).decode())
    for line in lines[7:]:
        line["rng"]["numpy"] = blake3(later).hexdigest()
    return MemoryReader({"steps.jsonl": b"".join(line + b"\n" for line in written(lines))})


def test_a_stream_of_one_side_only_is_no_difference_and_is_remembered() -> None:
    comparison = Comparison()
    sides = groups(read_lines(FakeRun().reader())), groups(read_lines(with_numpy(b"a", b"b")))
    assert [comparison.feed(left, right) for left, right in zip(*sides, strict=True)] == [None] * 5
    assert comparison.uncompared == {"rng.numpy": 4}


def test_other_start_states_of_a_stream_that_is_never_drawn_from_are_no_difference() -> None:
    assert compare(with_numpy(b"a", b"a"), with_numpy(b"b", b"b")) == (None, 4)


@pytest.mark.parametrize("other", [(b"a", b"b"), (b"b", b"c")])
def test_a_stream_that_was_drawn_from_on_one_side_is_a_difference(other: tuple[bytes, bytes]) -> None:
    found, _ = compare(with_numpy(b"a", b"a"), with_numpy(*other))
    assert found is not None
    assert found.blame == "rng.numpy"


def test_groups_end_with_their_step() -> None:
    found = list(groups(read_lines(FakeRun().reader())))
    assert [getattr(group.last, "i", None) for group in found] == [0, 1, 2, 3, 4]
    assert (len(found[0].components), len(found[0].loaders), len(found[0].state)) == (5, 1, 4)
    assert len(found[0].epochs) == 1


# What usually causes a pattern ------------------------------------------------------------------------------------

SHAPES = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "head.weight": (2, 8), "head.bias": (2,)}


def pattern(*tensors: str, loss: bool = False) -> str:
    """Return what is said of a difference in these parameters of a network with four."""
    members = {"cause": 12, "stage": "step", "expected": "a", "got": "b"}
    differ = tuple(
        TensorDifference(name=name, dtype="float32", shape=SHAPES[name], expected="a", got="b") for name in tensors
    )
    params = ComponentDifference.model_validate(
        {
            **members,
            "component": "model.params",
            "detail": f"{len(tensors)} of {len(SHAPES)} tensors differ",
            "tensors": differ,
            "tensors_known": True,
        }
    )
    other = ComponentDifference.model_validate({**members, "component": "loss", "cause": 9})
    components = (other, params) if loss else (params,)
    found = Difference(step=1, stage="step", blame=GRADIENT_PATH, explanation="", components=components)
    return _usual_cause(found, epoch_begins=False)


def test_a_loss_that_differs_is_the_forward_pass() -> None:
    assert "dropout" in pattern(*SHAPES, loss=True)
    assert "backward pass" in pattern(*SHAPES)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (("conv.weight",), "convolutions"),
        (("conv.bias", "head.bias"), "biases and norms"),
        (("head.weight", "head.bias"), "`head`"),
        (("conv.bias", "head.weight"), ""),
        (tuple(SHAPES), ""),
    ],
)
def test_tensors_of_one_kind_are_named(tensors: tuple[str, ...], said: str) -> None:
    text = pattern(*tensors)
    assert ("Only" in text) == bool(said)
    assert said in text


def test_an_order_that_differs_says_whether_an_epoch_begins() -> None:
    assert "within an epoch" in difference(FakeRun(), changed(1, "order.index")).explanation
    first = difference(FakeRun(), changed(0, "order.index")).explanation
    assert "begins with an epoch" in first
    assert "seed of the sampler" in first
