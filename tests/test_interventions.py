"""The text form of interventions, and what a comparison says of two runs that were intervened on differently."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.vectors import INTERVENTIONS, Intervened, TinyRun
from trainmem_audit.canonical import float_text
from trainmem_audit.divergence import Comparison, groups
from trainmem_audit.documents.interventions import ORDER_PRIMITIVES, PARAMETERS, PRIMITIVES, Intervention
from trainmem_audit.errors import UsageError
from trainmem_audit.interventions import FORMS, parse, parse_at_step, text_of
from trainmem_audit.steplog import LogReader

COUNTS = st.integers(0, 2**53 - 1)
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
FLOATS = st.floats(allow_nan=False, allow_infinity=False).map(float_text)
SEEDS = st.integers(-(10**30), 10**30).map(str)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "component": NAMES,
    "factor": FLOATS,
    "sigma": FLOATS,
    "decay": FLOATS,
    "steps": COUNTS,
    "step_counter": st.sampled_from(["keep", "reset"]),
    "source": st.fixed_dictionaries({"step": COUNTS}, optional={"run": NAMES}),
    "other": NAMES,
    "policy": st.sampled_from(["reshuffle", "with-replacement", "fixed"]),
    "seed": SEEDS,
    "kept": st.lists(NAMES, min_size=1, max_size=3).map(tuple),
}


@st.composite
def interventions(draw: st.DrawFn) -> Intervention:
    primitive = draw(st.sampled_from(PRIMITIVES))
    rule = PARAMETERS[primitive]
    given_too = draw(st.sets(st.sampled_from(sorted(rule.allowed)))) if rule.allowed else set()
    names = sorted((rule.needed | given_too) - {"windows"})
    members = {name: draw(VALUES[name]) for name in names}
    if "windows" in rule.needed:
        length, start, gap = (draw(st.integers(1, 2**40)) for _ in range(3))
        windows = [{"from": start, "to": start + length}]
        if primitive == "swap-windows":
            windows.append({"from": start + length + gap, "to": start + 2 * length + gap})
        members["windows"] = tuple(draw(st.permutations(windows)))
    return Intervention.model_validate({"primitive": primitive, **members})


@given(interventions(), st.none() | COUNTS)
def test_the_text_form_and_the_document_are_inverse(intervention: Intervention, step: int | None) -> None:
    assert parse(text_of(intervention, step)) == (intervention, step)


@given(st.text(max_size=60))
def test_any_text_is_an_intervention_or_a_usage_error(text: str) -> None:
    try:
        found, step = parse(text)
    except UsageError:
        return
    assert parse(text_of(found, step)) == (found, step)


@given(st.sampled_from(PRIMITIVES), st.text("0123456789:@#-.,%aore", max_size=30))
def test_what_follows_a_primitive_is_read_or_refused(primitive: str, rest: str) -> None:
    try:
        found, step = parse(f"{primitive}:{rest}")
    except UsageError:
        return
    assert parse(text_of(found, step)) == (found, step)


@pytest.mark.parametrize(
    ("text", "members"),
    [
        ("RESET:optimizer.momentum@200", {"primitive": "reset", "component": "optimizer.momentum"}),
        (
            "reset:optimizer.exp_avg:keep@200",
            {"primitive": "reset", "component": "optimizer.exp_avg", "stepCounter": "keep"},
        ),
        (
            "swap-windows:order:0-20:40-60@200",
            {"primitive": "swap-windows", "windows": [{"from": 0, "to": 20}, {"from": 40, "to": 60}]},
        ),
        (
            "noise:bank.a%3Ab:1e-2:18446744073709551616@200",
            {"primitive": "noise", "component": "bank.a:b", "sigma": float_text(0.01), "seed": "18446744073709551616"},
        ),
        (
            "transplant:optimizer.momentum:runs/a#99@200",
            {"primitive": "transplant", "component": "optimizer.momentum", "from": {"run": "runs/a", "step": 99}},
        ),
        ("policy:order:with_replacement:3@200", {"primitive": "policy", "policy": "with-replacement", "seed": "3"}),
        ("fork:1:order,torch.cpu@200", {"primitive": "fork", "seed": "1", "kept": ["order", "torch.cpu"]}),
    ],
)
def test_a_text_says_what_it_looks_like(text: str, members: dict[str, Any]) -> None:
    found, step = parse_at_step(text)
    assert (found.to_json(), step) == (members, 200)


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_the_form_of_a_primitive_is_shown_when_it_is_not_met(primitive: str) -> None:
    assert FORMS[primitive].startswith(primitive.replace("-", "_"))
    with pytest.raises(UsageError) as error:
        parse(f"{text_of(parse_document(primitive))}:1:x:1:x@1")
    assert error.value.expected.startswith(FORMS[primitive]) or (
        primitive == "transplant" and error.value.message == "the step after `#` is none"
    )


def test_only_what_acts_on_the_order_may_leave_its_step_out() -> None:
    for primitive in ORDER_PRIMITIVES:
        text = {"policy": "policy:order:fixed", "swap-windows": "swap_windows:order:0-1:1-2"}.get(primitive)
        assert parse_at_step(text or "permute_window:order:0-2:1")[1] == 0
    with pytest.raises(UsageError, match="without a step") as error:
        parse_at_step("reset:optimizer.momentum")
    assert "@200" in error.value.remedy


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("reset", "not an intervention"),
        ("reset:@1", "a name is empty"),
        ("reset:c:later@1", "not an intervention"),
        ("scale:c:nan@1", "not a finite number"),
        ("scale:c:inf@1", "not a finite number"),
        ("kick:1e-3@1", "not an intervention"),
        ("kick:1e-3:x@1", "not a seed"),
        ("kick:1e-3:1:2@1", "not an intervention"),
        ("wish:c@1", "no such intervention"),
        ("carry@-1", "none"),
        ("carry@1@2", "none"),
        ("carry@9007199254740992", "none"),
        ("swap_windows:order:0-3:2-5", "overlap"),
        ("swap_windows:order:0-3:3-5", "different lengths"),
        ("swap_windows:order:0-0:1-1", "empty window"),
        ("swap_windows:order:0-3", "not an intervention"),
        ("swap_windows:model.params:0-3:3-6", "not an intervention"),
        ("permute_window:order:x:1", "not a window"),
        ("transplant:c:runs/a@1", "not the state of a run"),
        ("truncate:c:-1@1", "none"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        parse(text)
    assert error.value.where or error.value.expected


@pytest.mark.parametrize("primitive", PRIMITIVES)
def test_a_document_has_the_parameters_of_its_primitive_and_no_other(primitive: str) -> None:
    rule = PARAMETERS[primitive]
    for name in {*Intervention.model_fields} - {"primitive"} - rule.needed - rule.allowed:
        odd = {"windows": [{"from": 0, "to": 1}], "source": {"step": 0}, "kept": ["order"], "steps": 1}
        value = odd.get(name, {"step_counter": "keep", "policy": "fixed", "seed": "1"}.get(name, float_text(1.0)))
        alias = Intervention.model_fields[name].alias or name
        document = INTERVENTIONS[primitive] | {alias: value}
        with pytest.raises(ValidationError, match=f"{primitive} has no {alias}"):
            Intervention.model_validate_json(json.dumps(document), by_alias=True)
    for name in rule.needed:
        alias = Intervention.model_fields[name].alias or name
        document = {key: value for key, value in INTERVENTIONS[primitive].items() if key != alias}
        with pytest.raises(ValidationError, match=f"{primitive} needs {alias}"):
            Intervention.model_validate_json(json.dumps(document), by_alias=True)


def parse_document(primitive: str) -> Intervention:
    return Intervention.model_validate_json(json.dumps(INTERVENTIONS[primitive]), by_alias=True)


def lines(run: TinyRun) -> list[Any]:
    reader = LogReader()
    return [reader.read(line) for line in run.log().splitlines()]


def difference(a: TinyRun, b: TinyRun) -> Any:
    comparison = Comparison()
    found = (comparison.feed(x, y) for x, y in zip(groups(lines(a)), groups(lines(b)), strict=True))
    return next((item for item in found if item is not None), None)


def changed(**members: Any) -> Intervened:
    return Intervened(members=lambda ls: [line | members if line["t"] == "intervention" else line for line in ls])


def test_two_runs_with_the_same_intervention_do_not_differ() -> None:
    assert difference(Intervened(), Intervened()) is None


def test_an_intervention_on_one_side_only_is_blamed_before_what_came_of_it() -> None:
    found = difference(Intervened(), TinyRun())
    assert (found.step, found.stage, found.blame) == (1, "start", "intervention")
    assert found.components[0].expected == "scale:optimizer.momentum:0.5@1"
    assert found.components[0].got == "none"


def test_another_intervention_is_blamed_even_if_nothing_else_differs() -> None:
    found = difference(Intervened(), changed(intervention={"primitive": "zero", "component": "optimizer.momentum"}))
    assert (found.blame, [item.component for item in found.components]) == ("intervention", ["intervention"])


def test_the_same_intervention_with_another_result_names_the_component() -> None:
    state = Intervened().intervention()["state"]
    other = {"before": state["before"], "after": state["after"] | {"optimizer.momentum": "0" * 64}}
    found = difference(Intervened(), changed(state=other))
    assert (found.step, found.stage, found.blame) == (1, "start", "optimizer.momentum")
    assert "right after the intervention scale:optimizer.momentum:0.5@1" in found.components[0].detail
