"""The pairing certificate, from logs without training: each clause holds where it should, and names what breaks it."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from tests.arms import AT, FakeArm, carry, kicked, reset
from tests.logs import component
from trainmem_audit.canonical import canonical_bytes, component_digest, float_text
from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.pairing import Certificate
from trainmem_audit.documents.steplog import Component, Inventory
from trainmem_audit.errors import FormatError
from trainmem_audit.pairing import certify
from trainmem_audit.pairing.values import value_of

CLAUSES = ("prefix", "intervention", "order", "streams")
Broken = dict[str, tuple[str, int | None, str | None]]


def pair(treated: FakeArm, control: FakeArm, *, indices: bool = True) -> Certificate:
    return certify(treated.arm(indices=indices), control.arm(indices=indices))


def broken(certificate: Certificate) -> Broken:
    """Return what does not hold: clause → (state, step, name)."""
    assert [clause.clause for clause in certificate.certificate] == list(CLAUSES)
    return {
        clause.clause: (clause.state, clause.step, clause.name)
        for clause in certificate.certificate
        if clause.state != "holds"
    }


def said(certificate: Certificate, clause: str) -> str:
    return next(item.detail or "" for item in certificate.certificate if item.clause == clause)


# What holds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "component", ["optimizer.momentum", "model.batchnorm", "teacher.params", "model.params", "optimizer"]
)
def test_a_reset_makes_a_pair(component: str) -> None:
    touched = "optimizer.momentum" if component == "optimizer" else component
    arm = FakeArm().intervene({"primitive": "reset", "component": component}, touched)
    certificate = pair(arm, carry(FakeArm()))
    assert broken(certificate) == {}
    assert certificate.label == "paired"


def test_whole_runs_and_thinned_digests_make_a_pair() -> None:
    arms = [reset(FakeArm()), carry(FakeArm())]
    for arm in arms:
        arm.thinned = {0, 4, 6}
    assert pair(*arms).label == "paired"


def test_a_control_needs_no_line_of_its_own() -> None:
    assert pair(reset(FakeArm()), FakeArm()).label == "paired"


def test_a_slot_that_a_reset_removes_differs_from_a_control_without_a_line() -> None:
    treated = reset(FakeArm())
    del treated.lines_before[AT][0]["state"]["after"]["optimizer.momentum"]
    for control in (FakeArm(), carry(FakeArm())):
        certificate = pair(treated, control)
        assert (broken(certificate), certificate.label) == ({}, "paired")


def test_without_digests_at_the_branch_nothing_is_proven() -> None:
    control = FakeArm()
    control.thinned = {AT - 1}
    assert broken(pair(reset(FakeArm()), control)) == {"intervention": ("inconclusive", AT, "state")}


def test_a_kick_names_the_weights() -> None:
    assert pair(kicked(FakeArm()), carry(FakeArm())).label == "paired"


def test_two_treatments_can_be_compared() -> None:
    assert pair(reset(FakeArm()), reset(FakeArm(), "model.batchnorm")).label == "paired"


@pytest.mark.parametrize("primitive", ["placebo", "carry"])
def test_a_placebo_is_a_no_op(primitive: str) -> None:
    certificate = pair(FakeArm().intervene({"primitive": primitive}), carry(FakeArm()))
    assert (broken(certificate), certificate.label) == ({}, "no-op")
    assert "exactly 0" in said(certificate, "intervention")


def test_a_reset_of_what_is_reset_is_a_no_op() -> None:
    arm = FakeArm().intervene({"primitive": "reset", "component": "optimizer.momentum"})
    assert pair(arm, carry(FakeArm())).label == "no-op"


def test_two_plain_runs_are_a_no_op_or_differ_in_the_prefix() -> None:
    assert pair(FakeArm(), FakeArm()).label == "no-op"
    certificate = pair(FakeArm(), FakeArm().change(5, "model.params"))
    assert broken(certificate)["prefix"] == ("fails", 5, "model.params")


def test_storage_that_is_shared_is_seen_twice_and_touched_once() -> None:
    arm = FakeArm().intervene(
        {"primitive": "reset", "component": "optimizer.momentum"}, "optimizer.momentum", aliases=("teacher.params",)
    )
    certificate = pair(arm, carry(FakeArm()))
    assert certificate.label == "paired"
    assert "shared storage too: teacher.params" in said(certificate, "intervention")


# Sabotage: broken for the right reason ------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, AT - 1, AT, 6])
@pytest.mark.parametrize(
    ("what", "name", "clause"),
    [
        ("rng.torch.cpu", "rng.torch.cpu", "streams"),
        ("index", "order.index", "order"),
        ("content", "order.content", "order"),
    ],
)
def test_noise_that_is_not_shared_breaks_the_pair(what: str, name: str, clause: str, at: int) -> None:
    certificate = pair(reset(FakeArm().change(at, what)), carry(FakeArm()))
    found = broken(certificate)
    assert found["prefix" if at < AT else clause] == ("fails", at, name)
    assert certificate.label == "unpaired"
    if at >= AT:
        assert found.keys() == {clause}


@pytest.mark.parametrize("name", ["model.params", "optimizer.momentum", "model.batchnorm", "inputs"])
def test_what_differs_before_the_branch_breaks_the_prefix(name: str) -> None:
    certificate = pair(reset(FakeArm().change(1, name)), carry(FakeArm()))
    assert broken(certificate)["prefix"] == ("fails", 1, name)


def test_other_weights_at_the_branch_break_the_prefix() -> None:
    treated = reset(FakeArm())
    for state in treated.lines_before[AT][0]["state"].values():
        state["model.params"] = "0" * 64
    assert broken(pair(treated, carry(FakeArm()))) == {"prefix": ("fails", AT, "model.params")}


def test_a_second_component_breaks_the_intervention() -> None:
    certificate = pair(reset(FakeArm(), "optimizer.momentum", "model.batchnorm"), carry(FakeArm()))
    assert broken(certificate) == {"intervention": ("fails", AT, "model.batchnorm")}
    assert "names optimizer.momentum" in said(certificate, "intervention")


def test_a_stream_that_the_intervention_moves_breaks_it() -> None:
    document = {"primitive": "flush", "component": "queue.keys"}
    arm = FakeArm().intervene(document, streams=("torch.cpu",)).change(AT, "rng.torch.cpu")
    assert broken(pair(arm, carry(FakeArm()))) == {
        "intervention": ("fails", AT, "rng.torch.cpu"),
        "streams": ("fails", AT, "rng.torch.cpu"),
    }


@pytest.mark.parametrize("step", [AT, 5])
def test_a_dropped_step_breaks_the_order(step: int) -> None:
    treated = reset(FakeArm())
    treated.dropped = {step}
    certificate = pair(treated, carry(FakeArm()))
    assert broken(certificate)["order"] == ("fails", step, "order.index")
    assert "step behind" in said(certificate, "order")
    assert "dropped or skipped" in said(certificate, "order")


def test_another_number_of_steps_breaks_the_order() -> None:
    certificate = pair(reset(FakeArm(7)), carry(FakeArm(8)))
    assert broken(certificate) == {"order": ("fails", 7, "steps")}


def test_a_log_that_just_stops_leaves_it_open() -> None:
    certificate = pair(reset(FakeArm(7, ended=False)), carry(FakeArm(8)))
    assert broken(certificate) == {"order": ("inconclusive", 7, "steps")}


def test_differences_out_of_nothing_break_the_intervention() -> None:
    arm = FakeArm().intervene({"primitive": "placebo"}).change(6, "teacher.params")
    certificate = pair(arm, carry(FakeArm()))
    assert broken(certificate) == {"intervention": ("fails", 6, "teacher.params")}


def test_a_change_between_two_interventions_is_found() -> None:
    arm = reset(carry(FakeArm()))
    for line in arm.lines_before[AT][1:]:
        line["state"] = {when: state | {"model.params": "0" * 64} for when, state in line["state"].items()}
    assert broken(pair(arm, carry(FakeArm())))["intervention"] == ("fails", AT, "model.params")


# What shows later ---------------------------------------------------------------------------------------------------


def test_freezing_shows_later_and_in_what_it_names() -> None:
    document = {"primitive": "freeze", "component": "model.batchnorm"}
    certificate = pair(FakeArm().intervene(document).change(AT, "model.batchnorm"), carry(FakeArm()))
    assert (broken(certificate), certificate.label) == ({}, "paired")
    assert f"from step {AT} on, in model.batchnorm" in said(certificate, "intervention")
    certificate = pair(FakeArm().intervene(document).change(AT, "model.params"), carry(FakeArm()))
    assert broken(certificate) == {"intervention": ("fails", AT, "model.params")}
    assert pair(FakeArm().intervene(document), carry(FakeArm())).label == "no-op"


# Order primitives ---------------------------------------------------------------------------------------------------

SWAP: dict[str, Any] = {"primitive": "swap-windows", "windows": [{"from": 0, "to": 2}, {"from": 2, "to": 4}]}


def swapped(plan: list[int], at: int = AT, document: dict[str, Any] = SWAP) -> FakeArm:
    arm = FakeArm(10).intervene(document, at=at).change(at, "model.params")
    arm.plan = plan
    return arm


@pytest.mark.parametrize("indices", [True, False])
def test_a_swap_keeps_the_multiset(indices: bool) -> None:
    arm = swapped([0, 1, 2, 5, 6, 3, 4, 7, 8, 9])
    certificate = pair(arm, carry(FakeArm(10)), indices=indices)
    # the same samples at another place have another content, which is not looked at inside of the windows
    assert (broken(certificate), certificate.label) == ({}, "paired")
    assert "same batches inside (2 windows, steps 3 to 6)" in said(certificate, "order")


def test_a_swap_without_effect_on_the_state_is_no_no_op() -> None:
    arm = FakeArm(10).intervene(SWAP)
    arm.plan = [0, 1, 2, 5, 6, 3, 4, 7, 8, 9]
    assert pair(arm, carry(FakeArm(10))).label == "paired"


def test_a_swap_that_reaches_beyond_its_windows_breaks_the_order() -> None:
    certificate = pair(swapped([0, 1, 2, 5, 6, 3, 4, 8, 7, 9]), carry(FakeArm(10)))
    assert broken(certificate) == {"order": ("fails", 7, "order.index")}


def test_a_swap_that_loses_samples_breaks_the_order() -> None:
    arm = swapped([0, 1, 2, 5, 6, 3, 3, 7, 8, 9])
    certificate = pair(arm, carry(FakeArm(10)))
    assert broken(certificate) == {"order": ("fails", AT, "order.index")}
    assert "sample 9 is seen more often in the treated arm" in said(certificate, "order")
    found = broken(pair(arm, carry(FakeArm(10)), indices=False))
    assert found == {"order": ("inconclusive", AT, "order.index")}


def test_indices_that_are_not_those_of_the_log_decide_nothing() -> None:
    treated = swapped([0, 1, 2, 5, 6, 3, 3, 7, 8, 9]).arm()
    assert treated.indices is not None
    treated.indices.seek(8 * 3 * AT)
    treated.indices.write(b"\1")
    treated.indices.seek(0)
    certificate = certify(treated, carry(FakeArm(10)).arm())
    assert broken(certificate) == {"order": ("inconclusive", AT, "order.index")}
    assert "do not have the digest" in said(certificate, "order")


def test_windows_are_counted_from_the_intervention() -> None:
    arm = swapped([2, 3, 0, 1, 4, 5, 6, 7, 8, 9], at=0)
    assert pair(arm, carry(FakeArm(10), at=0)).label == "paired"


def test_a_policy_leaves_the_order_free_and_the_sizes_equal() -> None:
    document = {"primitive": "policy", "policy": "with-replacement", "seed": "1"}
    arm = FakeArm().intervene(document).change(AT, "index", "content", "model.params")
    certificate = pair(arm, carry(FakeArm()))
    assert (broken(certificate), certificate.label) == ({}, "paired")
    assert "policy form" in said(certificate, "order")


# Streams ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pairing", "at", "holds"),
    [
        ("independent", 0, True),
        ("independent", AT, True),
        ("shared-until-branch", 0, False),
        ("shared-until-branch", AT, True),
        ("shared", AT, False),
        ("sample-keyed", AT, False),
    ],
)
def test_streams_that_need_not_be_shared(pairing: str, at: int, holds: bool) -> None:
    treated = reset(FakeArm().declare(torch_cpu=pairing).change(at, "rng.torch.cpu"))
    certificate = pair(treated, carry(FakeArm().declare(torch_cpu=pairing)))
    assert (certificate.label == "paired") == holds


def test_one_arm_alone_cannot_declare_a_stream_independent() -> None:
    treated = reset(FakeArm().declare(torch_cpu="independent").change(AT, "rng.torch.cpu"))
    assert broken(pair(treated, carry(FakeArm()))) == {"streams": ("fails", AT, "rng.torch.cpu")}


def test_an_uncontrolled_stream_caps_the_label() -> None:
    certificate = pair(reset(FakeArm().declare(torch_cpu="uncontrolled")), carry(FakeArm()))
    assert broken(certificate) == {"streams": ("inconclusive", None, "rng.torch.cpu")}
    assert certificate.label == "unpaired"


def test_streams_that_are_keyed_by_the_batch_follow_it_inside_of_windows() -> None:
    plan = [0, 1, 2, 5, 6, 3, 4, 7, 8, 9]
    treated, control = swapped(plan), carry(FakeArm(10))
    for arm in (treated, control):
        arm.keyed = {"torch.cpu"}
    assert broken(pair(treated, control)) == {"streams": ("fails", AT, "rng.torch.cpu")}
    for arm in (treated, control):
        arm.declare(torch_cpu="sample-keyed")
    assert pair(treated, control).label == "paired"


def test_a_stream_that_nobody_draws_from_may_differ_from_the_start() -> None:
    treated, control = reset(FakeArm()), carry(FakeArm())
    for arm, state in ((treated, "AAAB"), (control, "AAAC")):
        arm.unused = {"numpy": state}
    assert pair(treated, control).label == "paired"
    treated.change(5, "rng.numpy")
    assert broken(pair(treated, control)) == {"streams": ("fails", 5, "rng.numpy")}


def test_a_fork_is_the_same_in_both_arms() -> None:
    def forked(seed: str, arm: FakeArm) -> FakeArm:
        return arm.intervene({"primitive": "fork", "seed": seed}, streams=("python", "torch.cpu"))

    assert pair(reset(forked("1", FakeArm())), carry(forked("1", FakeArm()))).label == "paired"
    for treated in (reset(forked("2", FakeArm())), reset(FakeArm())):
        found = broken(pair(treated, carry(forked("1", FakeArm()))))
        assert found["intervention"] == ("fails", AT, "fork")


# Arms that continue a prefix ----------------------------------------------------------------------------------------


def branched(prefix: FakeArm, at: int = 4) -> FakeArm:
    """Return an arm that goes on from the state that a prefix ended with."""
    arm = FakeArm()
    line = next(line for line in prefix.parsed() if getattr(line, "i", -1) == at - 1 and line.t == "step")
    arm.branch = {"run": prefix.nonce, "chainHead": line.chain, "step": at}
    arm.begin_state = prefix.state(prefix.steps)
    return arm


def test_arms_that_share_a_prefix_name_it_by_its_chain_head() -> None:
    prefix = FakeArm(4)
    treated, control = reset(branched(prefix), at=0), carry(branched(prefix), at=0)
    assert certify(treated.arm(), control.arm()).label == "paired"
    assert certify(treated.arm(prefix), control.arm(prefix)).label == "paired"
    assert "step 4 of run 00000000" in said(certify(treated.arm(), control.arm()), "prefix")


def test_another_prefix_is_found() -> None:
    prefix, other = FakeArm(4), FakeArm(4).change(2, "loss")
    treated, control = reset(branched(prefix), at=0), carry(branched(other), at=0)
    assert broken(certify(treated.arm(), control.arm())) == {"prefix": ("fails", None, "branch")}
    found = certify(treated.arm(other), reset(branched(prefix), at=0).arm(other))
    assert broken(found) == {"prefix": ("fails", None, "branch")}
    assert "its chain before step 4" in said(found, "prefix")
    short = certify(treated.arm(FakeArm(3)), carry(branched(prefix), at=0).arm())
    assert "no step 3" in said(short, "prefix")


def test_a_branch_before_the_first_step() -> None:
    prefix = FakeArm(4)
    head = next(line for line in prefix.parsed() if isinstance(line, Inventory) and line.state is not None)
    arms = [reset(FakeArm(), "model.params", at=0), carry(FakeArm(), at=0)]
    for arm in arms:
        arm.branch = {"run": prefix.nonce, "chainHead": head.chain, "step": 0}
    assert certify(arms[0].arm(prefix), arms[1].arm(prefix)).label == "paired"
    arms[0].branch = arms[1].branch = {"run": prefix.nonce, "chainHead": "0" * 64, "step": 0}
    assert broken(certify(arms[0].arm(prefix), arms[1].arm(prefix))) == {"prefix": ("fails", None, "branch")}


def test_an_arm_that_begins_with_another_state_than_its_prefix_ended_with() -> None:
    prefix = FakeArm(4)
    arms = [reset(branched(prefix), at=0), carry(branched(prefix), at=0)]
    for arm in arms:
        for state in arm.lines_before[0][0]["state"].values():
            state["teacher.params"] = "0" * 64
    found = certify(arms[0].arm(prefix), arms[1].arm(prefix))
    assert broken(found) == {"prefix": ("fails", 0, "teacher.params")}


# Values -------------------------------------------------------------------------------------------------------------


def header(*tensors: tuple[str, str, list[int]]) -> Component:
    members = component(tensors=[list(tensor) for tensor in tensors])
    parsed: Component = Component.parse(json.dumps(members).encode(), "header")
    return parsed


def digest_of(of: Component, *tensors: bytes) -> str:
    return component_digest(canonical_bytes(of.tensors), [blake3(data).digest() for data in tensors]).hex()


HEADERS = {
    "optimizer.momentum": header(("w", "float32", [2, 3])),
    "model.params": header(("w", "float32", [2, 3])),
    "teacher.params": header(("w", "float32", [2, 3])),
    "model.batchnorm": header(
        ("bn.running_mean", "float32", [2]),
        ("bn.running_var", "float32", [2]),
        ("bn.num_batches_tracked", "int64", []),
    ),
}
FRESH = {
    "optimizer.momentum": digest_of(HEADERS["optimizer.momentum"], bytes(24)),
    "model.params": digest_of(HEADERS["model.params"], bytes(range(24))),
    "teacher.params": digest_of(HEADERS["teacher.params"], bytes(range(24))),
    "model.batchnorm": digest_of(HEADERS["model.batchnorm"], bytes(8), struct.pack("<2f", 1, 1), bytes(8)),
}


@pytest.mark.parametrize("name", ["optimizer.momentum", "teacher.params", "model.batchnorm"])
def test_what_a_reset_gives_is_known_by_its_digest(name: str) -> None:
    intervention = Intervention(primitive="reset", component=name)
    assert value_of(intervention, FRESH, HEADERS, name) == "as-said"
    other = FRESH | {name: digest_of(HEADERS[name], *(b"\1" for _ in HEADERS[name].tensors or ()))}
    assert value_of(intervention, other, HEADERS, name) == "other"


def test_a_slot_that_is_gone_was_reset_and_not_zeroed() -> None:
    name = "optimizer.momentum"
    after = {key: text for key, text in FRESH.items() if key != name}
    assert value_of(Intervention(primitive="reset", component=name), after, HEADERS, name) == "as-said"
    assert value_of(Intervention(primitive="zero", component=name), after, HEADERS, name) == "unknown"
    assert value_of(Intervention(primitive="zero", component=name), FRESH, HEADERS, name) == "as-said"


def test_what_depends_on_values_or_is_too_long_is_not_known() -> None:
    half = Intervention(primitive="scale", component="optimizer.momentum", factor=float_text(0.5))
    assert value_of(half, FRESH, HEADERS, "optimizer.momentum") == "unknown"
    reset_of = Intervention(primitive="reset", component="optimizer.momentum")
    for odd in (header(("w", "float32", [2**40, 2**40])), header(("w", "float8", [1]))):
        assert value_of(reset_of, FRESH, {"optimizer.momentum": odd}, "optimizer.momentum") == "unknown"


# Laws ---------------------------------------------------------------------------------------------------------------

SABOTAGE = st.sets(
    st.tuples(
        st.integers(0, 7),
        st.sampled_from(["rng.torch.cpu", "index", "content", "inputs", "model.params", "teacher.params"]),
    ),
    max_size=3,
)
PRIMITIVES = st.sampled_from(["carry", "reset", "kick", "second", "none", "drop"])


def arm_of(kind: str, sabotage: set[tuple[int, str]]) -> FakeArm:
    arm = FakeArm()
    for step, what in sorted(sabotage, reverse=True):
        arm.change(step, what)
    match kind:
        case "carry":
            return carry(arm)
        case "reset":
            return reset(arm)
        case "kick":
            return kicked(arm)
        case "second":
            return reset(arm, "optimizer.momentum", "model.batchnorm")
        case "drop":
            arm.dropped = {5}
    return arm


@given(PRIMITIVES, SABOTAGE)
def test_a_log_is_a_no_op_of_itself(kind: str, sabotage: set[tuple[int, str]]) -> None:
    kind = "reset" if kind == "second" else kind
    certificate = pair(arm_of(kind, sabotage), arm_of(kind, sabotage))
    assert (broken(certificate), certificate.label) == ({}, "no-op")


@given(PRIMITIVES, SABOTAGE, PRIMITIVES, SABOTAGE)
def test_it_does_not_matter_which_arm_comes_first(
    kind: str, sabotage: set[tuple[int, str]], other: str, more: set[tuple[int, str]]
) -> None:
    one, two = arm_of(kind, sabotage), arm_of(other, more)
    there, back = pair(one, two), pair(two, one)
    assert there.label == back.label
    assert [(c.clause, c.state, c.step) for c in there.certificate] == [
        (c.clause, c.state, c.step) for c in back.certificate
    ]


# Hostile logs -------------------------------------------------------------------------------------------------------


def test_the_interventions_at_one_step_are_bounded() -> None:
    arm = FakeArm()
    for _ in range(65):
        carry(arm)
    with pytest.raises(FormatError, match="too many interventions"):
        pair(arm, carry(FakeArm()))
