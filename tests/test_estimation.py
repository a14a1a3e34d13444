"""From arms to numbers, on a training that is small enough to be run here: softmax regression with momentum, in NumPy.

Prefix, branch, noise streams with common random numbers, interventions: all real, so that what the estimates say can
be held against what is known of momentum, and against the definitions written out.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trainmem_audit.canonical import canonical_bytes, float_text, parse_float_text, sha256_hex
from trainmem_audit.conformance import our_schemas
from trainmem_audit.distances import distance, functional
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.documents.estimates import BoundStudyLog, Estimate, Estimates
from trainmem_audit.documents.steplog import Producer
from trainmem_audit.errors import FormatError
from trainmem_audit.estimands import BackFlow
from trainmem_audit.estimation import Results, back_flow_estimate, differences, estimate
from trainmem_audit.seedtables import ArmKey, Pairing, Repeat, witness

Array = NDArray[Any]
RNG = np.random.default_rng(20)
TRAIN, PROBE = RNG.normal(size=(96, 6)), RNG.normal(size=(30, 6))
TRUE = RNG.normal(size=(6, 3))
LABELS = (TRAIN @ TRUE + RNG.gumbel(size=(96, 3))).argmax(1)
TARGETS = (PROBE @ TRUE).argmax(1)
HORIZONS = (1, 3, 10, 30)
BRANCH = 40


def gradient(w: Array, batch: Array) -> Array:
    z = TRAIN[batch] @ w
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    p[np.arange(len(batch)), LABELS[batch]] -= 1
    found: Array = TRAIN[batch].T @ p / len(batch)
    return found


def act(name: str, w: Array, m: Array, order: list[Array]) -> None:
    """Do one intervention in place."""
    match name.split("-"):
        case ["reset"]:
            m *= 0
        case ["half"]:
            m *= 0.5
        case ["kick", *large]:
            noise = np.random.default_rng(7).normal(size=w.shape)
            w += (1e-2 if large else 1e-3) * np.linalg.norm(w) * noise / np.linalg.norm(noise)
        case ["butterfly"]:
            w[0, 0] = np.nextafter(w[0, 0], 9)
        case ["permute", seed]:
            window = [order[i] for i in np.random.default_rng(int(seed)).permutation(5)]
            order[:5] = window


PARTS = {"both": ("reset", "kick"), "null": ("reset", "placebo")}


@cache
def trained(beta: float, arm: ArmKey) -> dict[int, Array]:
    rng = np.random.default_rng([arm.seed, 99])
    w, m = rng.normal(size=(6, 3)), np.zeros((6, 3))
    for _ in range(BRANCH):
        m = beta * m + gradient(w, rng.integers(0, 96, 4))
        w = w - 0.05 * m
    rng = np.random.default_rng([arm.seed, arm.stream, 5])
    order = [rng.integers(0, 96, 4) for _ in range(max(HORIZONS))]
    for name in PARTS.get(arm.intervention, (arm.intervention,)):
        act(name, w, m, order)
    found = {}
    for step, batch in enumerate(order, 1):
        m = beta * m + gradient(w, batch)
        w = w - 0.05 * m
        if step in HORIZONS:
            found[step] = (PROBE @ w).astype(np.float32)
    return found


@dataclass
class World:
    """All arms of a study, in memory; the fields break it."""

    beta: float = 0.9
    streams: int = 4
    targets: Array | None = field(default_factory=lambda: TARGETS)
    problems: dict[str, str] = field(default_factory=dict)
    unpaired: str = ""
    change: Callable[[ArmKey, Array], Array | None] = lambda _, found: found

    def problem(self, arm: ArmKey) -> str:
        return self.problems.get(str(arm), "")

    def pairing(self, treated: ArmKey, control: ArmKey) -> Pairing:
        assert treated[:3] == control[:3]
        return "unpaired" if treated.intervention == self.unpaired else "paired"

    def predictions(self, arm: ArmKey, horizon: int, head: str) -> Array | None:
        assert head == "model"
        return self.change(arm, trained(self.beta, arm)[horizon].copy())


def plan(seeds: int = 8, streams: int = 4, **rest: Any) -> dict[str, Any]:
    momentum = {"component": "optimizer.momentum"}
    families = {"reset": "confirmatory", "half": "confirmatory"}
    families |= dict.fromkeys(("kick", "butterfly", "placebo"), "null-player")
    names = ("reset", "half", "kick", "butterfly", "placebo", "both", "null", "permute-1", "permute-2", "permute-3")
    window = {"primitive": "permute-window", "windows": [{"from": 0, "to": 5}]}
    return {
        "schemaVersion": SCHEMA_VERSION,
        "name": "momentum",
        "program": {"kind": "factory", "entry": "world:make"},
        "seeds": [str(seed) for seed in range(seeds)],
        "noiseStreams": streams,
        "branchSteps": [BRANCH],
        "horizons": list(HORIZONS),
        "interventions": {
            "carry": {"primitive": "carry"},
            "reset": {"primitive": "reset", **momentum},
            "half": {"primitive": "scale", **momentum, "factor": float_text(0.5)},
            "kick": {"primitive": "kick", "sigma": float_text(1e-3), "seed": "7"},
            "butterfly": {"primitive": "butterfly", "seed": "7"},
            "placebo": {"primitive": "placebo"},
            **{f"permute-{seed}": {**window, "seed": str(seed)} for seed in (1, 2, 3)},
        },
        "combinations": {name: list(parts) for name, parts in PARTS.items()},
        "contrasts": [
            {"name": name, "treated": name, "control": "carry", "family": families.get(name, "exploratory")}
            for name in names
        ],
        "primary": {
            "contrast": "reset",
            "estimand": "law-effect",
            "observable": "tv",
            "branchStep": BRANCH,
            "horizon": 3,
        },
        "probe": {"sha256": sha256_hex(b"probe"), "size": 30, "head": "model"},
        "observables": {
            "tv": {"kind": "total-variation", "task": "classification"},
            "loss": {"kind": "loss", "task": "classification"},
        },
        "analysis": {"alpha": float_text(0.05), "equivalenceMargin": float_text(0.02), "adjustment": "max-t"},
        **rest,
    }


def small_plan(seeds: int = 8, **rest: Any) -> dict[str, Any]:
    """Return a plan with two contrasts and one factorial only."""
    whole = plan(seeds, **rest)
    kept = ("reset", "half", "kick", "both")
    return whole | {"contrasts": [c for c in whole["contrasts"] if c["name"] in kept]}


@cache
def usual() -> Results:
    return estimate(plan(), World())


def find(results: Results, contrast: str, estimand: str, horizon: int, observable: str = "tv") -> Estimate:
    wanted = (contrast, estimand, horizon, observable)
    (found,) = [e for e in results.estimates if (e.contrast, e.estimand, e.horizon, e.observable) == wanted]
    return found


def value(text: str) -> float:
    return parse_float_text(text)


def document(results: Results) -> Estimates:
    return Estimates(
        schema_version=SCHEMA_VERSION,
        producer=Producer(name="trainmem-audit", version="0"),
        plan=sha256_hex(canonical_bytes(plan())),
        study_log=BoundStudyLog(chain_head=sha256_hex(b""), started=0, reported=0),
        arms=(),
        pairs=(),
        **results.members(),
    )


def test_the_document_is_valid_and_reads_back() -> None:
    found = document(usual())
    assert not our_schemas().findings(found.to_json(), "estimates")
    data = canonical_bytes(found.to_json())
    assert Estimates.parse(data, "estimates.json") == found
    assert not differences(Estimates.parse(data, "estimates.json"), usual())


def test_the_same_arms_give_the_same_bits() -> None:
    again = document(estimate(plan(), World()))
    assert canonical_bytes(again.to_json()) == canonical_bytes(document(usual()).to_json())


def test_the_law_effect_is_its_definition() -> None:
    arms = {
        (name, s, r): trained(0.9, ArmKey(s, BRANCH, r, name))[3]
        for name in ("carry", "reset") for s in range(8) for r in range(4)
    }  # fmt: skip

    def far(a: Array, b: Array) -> float:
        return distance("total-variation", "classification", a, b)

    effects, floors = [], []
    for s in range(8):
        pairs = [(r, q) for r in range(4) for q in range(4) if r != q]
        floors.append(np.mean([far(arms["carry", s, r], arms["carry", s, q]) for r, q in pairs]))
        own = np.mean([far(arms["reset", s, r], arms["reset", s, q]) for r, q in pairs])
        between = np.mean([far(arms["reset", s, r], arms["carry", s, q]) for r, q in pairs])
        effects.append(between - (floors[-1] + own) / 2)
    found = find(usual(), "reset", "law-effect", 3)
    assert value(found.value) == pytest.approx(sum(effects) / sum(floors), rel=1e-9)
    assert found.floor and value(found.floor) == pytest.approx(np.mean(floors), rel=1e-9)
    ratios = np.divide(effects, floors).tolist()
    assert found.per_unit and [*map(value, found.per_unit)] == pytest.approx(ratios)


def test_resetting_momentum_is_found_and_does_not_last() -> None:
    first = find(usual(), "reset", "law-effect", 3)
    assert first.verdict == "effect"
    assert first.test and first.test.method == "swap-sampled"
    assert first.test.adjustment == "max-t"
    assert first.interval and first.interval.coverage
    assert value(first.interval.low) > 0
    late = find(usual(), "reset", "law-effect", 30)
    assert value(late.value) < 0.05 * value(first.value)
    assert value(find(usual(), "half", "law-effect", 3).value) < value(first.value)


def test_memory_time_grows_with_the_momentum() -> None:
    taus = []
    for beta in (0.5, 0.9):
        results = usual() if beta == 0.9 else estimate(small_plan(), World(beta=beta))
        (time,) = [t for t in results.memory_times if t.contrast == "reset"]
        assert time.tau.interval
        assert value(time.tau.interval.low) <= value(time.tau.value) <= value(time.tau.interval.high)
        assert len(time.states) == 8
        taus.append(value(time.tau.value))
    assert taus[0] < taus[1] < 30
    (time,) = [t for t in usual().memory_times if t.contrast == "reset"]
    assert time.last_significant and time.last_significant >= 3
    assert time.area and value(time.area.value) > 0


def test_a_placebo_is_equal_bit_for_bit() -> None:
    for found in usual().estimates:
        if found.contrast == "placebo" and found.estimand not in ("fork-floor", "seed-floor", "shapley"):
            assert found.bitwise_equal, found
            assert (value(found.value), found.verdict) == (0, "equivalent")
            assert found.test is None
            assert any("bit for bit" in text for text in found.warnings or ())
            assert found.per_unit and set(map(value, found.per_unit)) == {0}


@pytest.mark.parametrize("player", ["kick", "butterfly"])
def test_a_null_player_moves_the_path_and_not_the_law(player: str) -> None:
    for horizon in HORIZONS:
        found = find(usual(), player, "law-effect", horizon)
        assert found.verdict != "effect"
        assert found.bitwise_equal or (found.test and found.test.adjustment == "none")
        assert abs(value(found.value)) < 0.01
    assert value(find(usual(), player, "pathwise", 30).value) > 0 or player == "butterfly"
    assert find(usual(), "kick", "pathwise", 3).verdict == "descriptive"


def test_of_several_kicks_the_declared_one_counts() -> None:
    whole = small_plan()
    large = {"primitive": "kick", "sigma": float_text(1e-2), "seed": "7"}
    whole["interventions"] = {"kick-large": large, **whole["interventions"]}
    contrast = {"name": "a", "treated": "kick-large", "control": "carry", "family": "null-player"}
    whole["contrasts"] = [contrast, *whole["contrasts"]]
    found = {}
    for sigma in (1e-2, 1e-3):
        whole["analysis"] = whole["analysis"] | {"kick": float_text(sigma)}
        found[sigma] = value(find(estimate(whole, World()), "reset", "specific", 3).value)
    assert found[1e-3] - found[1e-2] == pytest.approx(math.log(10), abs=0.1)
    assert found[1e-3] == value(find(usual(), "reset", "specific", 3).value)


def test_specific_dose_and_floors() -> None:
    specific = find(usual(), "reset", "specific", 3)
    assert value(specific.value) > 1
    assert specific.verdict == "effect"
    dose = find(usual(), "reset", "dose-response", 1)
    assert value(dose.value) == pytest.approx(1, abs=0.2)
    assert dose.verdict == "descriptive"
    fork, seed = find(usual(), "reset", "fork-floor", 30), find(usual(), "reset", "seed-floor", 30)
    assert 0 < value(fork.value) < value(seed.value)
    assert not [e for e in usual().estimates if e.contrast == "half" and e.estimand in ("fork-floor", "seed-floor")]


def test_the_signed_effect_is_the_change_of_the_loss() -> None:
    def loss(name: str, s: int, r: int) -> float:
        return functional("loss", "classification", trained(0.9, ArmKey(s, BRANCH, r, name))[3], TARGETS)

    changes = [np.mean([loss("reset", s, r) - loss("carry", s, r) for r in range(4)]) for s in range(8)]
    found = find(usual(), "reset", "signed", 3, "loss")
    assert value(found.value) == pytest.approx(np.mean(changes))
    assert found.test and found.test.method == "sign-flip-exact"
    assert found.test.smallest_p and value(found.test.smallest_p) == 2**-7
    assert found.equivalence is None  # the margin is in units of another estimand


def test_the_margin_belongs_to_the_primary_estimand() -> None:
    assert find(usual(), "reset", "separation", 3).equivalence
    primary = {**plan()["primary"], "estimand": "signed", "observable": "loss"}
    results = estimate(small_plan(primary=primary), World())
    assert find(results, "reset", "signed", 3, "loss").equivalence
    assert find(results, "reset", "law-effect", 3).equivalence is None
    test = find(results, "reset", "signed", 3, "loss").test
    assert test and test.adjustment == "max-t"


def test_a_factorial_sums_to_its_total_and_a_null_player_earns_nothing() -> None:
    found = [a for a in usual().attributions if a.horizon == 3]
    assert {a.sources for a in found} == {("kick", "reset"), ("placebo", "reset")}
    for attribution in found:
        shapley = {e.sources[0]: value(e.effect.value) for e in attribution.effects if e.kind == "shapley"}
        assert sum(shapley.values()) == pytest.approx(value(attribution.total.value), abs=1e-12)
        if "placebo" in shapley:
            assert attribution.null_players == ("placebo",)
            assert shapley["placebo"] == 0
            assert [value(e.effect.value) for e in attribution.effects if e.kind == "interaction"] == [0]
    assert find(usual(), "kick", "shapley", 3, "loss").test is not None


def test_the_variance_over_orders() -> None:
    found = find(usual(), "permute-1", "order-sensitivity", 10)
    assert value(found.value) > 0
    assert any("permute-1, permute-2, permute-3" in text for text in found.warnings or ())


def test_the_curves_hold_the_null_players_beside_the_effect() -> None:
    (curve,) = [c for c in usual().curves if c.contrast == "reset"]
    assert curve.horizons == HORIZONS
    for name in ("pathwise", "kick", "butterfly", "fork_floor", "law_effect", "law_low", "law_high"):
        assert len(getattr(curve, name)) == len(HORIZONS)
    assert curve.law_effect and curve.law_effect[1] == find(usual(), "reset", "law-effect", 3).value


def test_a_missing_arm_leaves_its_seed_out_and_says_so() -> None:
    results = estimate(small_plan(), World(problems={"reset.s2.b40.r1": "failed: out of memory"}))
    found = find(results, "reset", "law-effect", 3)
    assert found.units == 7
    assert found.per_unit and math.isnan(value(found.per_unit[2]))
    assert any("seed 2 is left out: reset.s2.b40.r1 failed: out of memory" in text for text in found.warnings or ())
    table = next(t for t in results.per_seed if t.contrast == "reset")
    assert table.dropped and (table.dropped[0].seed, table.dropped[0].reason[:5]) == ("2", "reset")
    assert find(results, "half", "law-effect", 3).units == 8
    for attribution in results.attributions:
        assert attribution.total.units == 7
    control = estimate(small_plan(), World(problems={"carry.s0.b40.r0": "was not run"}))
    assert {e.units for e in control.estimates if e.estimand == "law-effect"} == {7}


def test_a_failed_certificate_makes_no_effect() -> None:
    results = estimate(small_plan(), World(unpaired="reset"))
    for found in results.estimates:
        if found.contrast == "reset" and found.estimand not in ("fork-floor", "seed-floor"):
            assert found.verdict == "unpaired"
        elif found.contrast == "half":
            assert found.verdict != "unpaired"


def test_long_horizons_with_fewer_streams() -> None:
    results = estimate(small_plan(fewerStreams={"after": 10, "streams": 1}), World())
    assert find(results, "reset", "pathwise", 30).streams == 1
    assert find(results, "reset", "law-effect", 10).streams == 4
    assert not [e for e in results.estimates if e.horizon == 30 and e.estimand == "law-effect"]
    assert not our_schemas().findings(document(results).to_json(), "estimates")
    two = estimate(small_plan(fewerStreams={"after": 3, "streams": 2}), World())
    assert find(two, "reset", "law-effect", 30).streams == 2
    assert [t for t in two.memory_times if t.contrast == "reset"]


@pytest.mark.parametrize(("seeds", "streams"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2)])
def test_few_seeds_give_words_and_no_crash(seeds: int, streams: int) -> None:
    results = estimate(plan(seeds, streams), World())
    assert not our_schemas().findings(document(results).to_json(), "estimates")
    for found in results.estimates:
        if found.test and value(found.test.smallest_p or "nan") > 0.05:
            assert found.verdict != "effect"
            assert any("cannot give a smaller p" in text for text in found.warnings or ())
        if found.units < 2:
            assert found.interval is None
    assert (streams > 1) == any(e.estimand == "law-effect" for e in results.estimates)


def test_a_run_that_diverged_is_left_out_with_its_reason() -> None:
    def diverge(arm: ArmKey, found: Array) -> Array:
        return found * np.float32(np.nan) if arm.seed == 1 and arm.intervention == "reset" else found

    results = estimate(plan(4), World(change=diverge))
    found = find(results, "reset", "law-effect", 3)
    assert found.units == 3
    assert any("predicts NaN" in text for text in found.warnings or ())
    everything = estimate(plan(3), World(change=lambda arm, x: x * np.float32(np.nan)))
    assert {e.units for e in everything.estimates} == {0}
    assert {e.verdict for e in everything.estimates} <= {"undecided", "descriptive"}
    assert not our_schemas().findings(document(everything).to_json(), "estimates")


def test_predictions_that_were_not_recorded() -> None:
    results = estimate(plan(3), World(change=lambda arm, x: None if arm.stream == 2 else x))
    found = find(results, "reset", "pathwise", 1)
    assert found.units == 0
    assert any("no predictions of model after 1 steps" in text for text in found.warnings or ())


def test_few_predictions_are_held_at_once() -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    def hold(_: ArmKey, found: Array) -> Array:
        nonlocal most
        alive[:] = [*(one for one in alive if one() is not None), weakref.ref(found)]
        most = max(most, len(alive))
        return found

    estimate(plan(2), World(change=hold))
    small, most = most, 0
    estimate(plan(5), World(change=hold))
    assert small == most <= 2 * 4 + 2


def test_no_noise_at_all_is_no_division_by_zero() -> None:
    def still(arm: ArmKey, _: Array) -> Array:
        return trained(0.9, replace_stream(arm))[3]

    results = estimate(plan(3), World(change=still))
    law = find(results, "placebo", "law-effect", 3)
    assert (value(law.value), law.bitwise_equal, law.verdict) == (0, True, "equivalent")
    reset = find(results, "reset", "law-effect", 3)
    assert math.isnan(value(reset.value))
    assert reset.interval is None


def replace_stream(arm: ArmKey) -> ArmKey:
    return arm._replace(stream=0)


def test_a_changed_digit_is_found_and_other_software_is_not() -> None:
    found = document(usual())
    forged = list(found.estimates)
    place = next(i for i, e in enumerate(forged) if e.estimand == "law-effect")
    forged[place] = forged[place].model_copy(update={"value": float_text(9.0)})
    changed = found.model_copy(update={"estimates": tuple(forged)})
    assert differences(changed, usual()) == [f"estimates[{place}].value"]
    fewer = found.model_copy(update={"estimates": found.estimates[1:], "curves": None})
    assert differences(fewer, usual()) == ["estimates", "curves"]
    method = found.method.model_copy(update={"software": {"numpy": "1"}})
    assert not differences(found.model_copy(update={"method": method}), usual())
    method = found.method.model_copy(update={"sampled": 5})
    assert differences(found.model_copy(update={"method": method}), usual()) == ["method.sampled"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": [str(i) for i in range(10_000)], "horizons": list(range(1000))}, "too many numbers"),
        ({"noiseStreams": 1000}, "too many numbers"),
        ({"observables": {"x": {"kind": "accuracy", "task": "regression"}}}, "without a meaning"),
        ({"analysis": {"alpha": float_text(2.0), "equivalenceMargin": float_text(0.1)}}, "a probability"),
    ],
)
def test_plans_that_cannot_be_computed_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(FormatError, match=words):
        estimate(plan() | change, World())


def test_a_functional_needs_targets() -> None:
    with pytest.raises(FormatError, match="needs the probe's targets"):
        estimate(plan(), World(targets=None))


def test_predictions_of_another_shape_are_refused() -> None:
    with pytest.raises(FormatError, match="one shape"):
        estimate(plan(2), World(change=lambda arm, x: x[:-1] if arm.intervention == "reset" else x))


def test_holm_and_none_for_the_confirmatory_family() -> None:
    for how in ("holm", "none"):
        results = estimate(small_plan(analysis={**plan()["analysis"], "adjustment": how}), World())
        test = find(results, "reset", "law-effect", 3).test
        assert test and test.adjustment == how
        assert test.adjusted_p and value(test.adjusted_p) >= value(test.p)


def test_back_flow_over_seeds() -> None:
    rng = np.random.default_rng(4)
    seeds = [BackFlow(1 + 0.1 * x, 2 + 0.1 * x, 1.5, 1.2 + 0.01 * x, 0.8 + 0.05 * x) for x in rng.normal(size=6)]
    found = back_flow_estimate("standard", "tv", seeds, rng, diagnostics={"cosine": [0.1] * 6})
    assert found.delta.test and value(found.delta.test.p) == 2**-5
    assert value(found.delta.value) == pytest.approx(1)
    assert found.twin and found.twin_ratio and found.twin_ratio.interval
    assert value(found.twin_ratio.value) == pytest.approx(sum(s.twin for s in seeds) / sum(s.first for s in seeds))
    assert found.against_common and found.against_break
    assert value(found.against_break.value) == pytest.approx(np.mean([s.second - 1.5 for s in seeds]))
    whole = document(replace(usual())).model_copy(update={"back_flows": (found,)})
    assert not our_schemas().findings(whole.to_json(), "estimates")
    equal = back_flow_estimate("negative", "tv", [BackFlow(0, 0, 0, 0, 0)] * 6, rng, bitwise_equal=True)
    assert equal.bitwise_equal
    assert equal.delta.test is None
    assert value(equal.delta.value) == 0
    alone = back_flow_estimate("only", "tv", [BackFlow(1, 2)], rng)
    assert alone.twin is None
    assert alone.delta.interval is None
    assert back_flow_estimate("nothing", "tv", [BackFlow(math.nan, math.nan)], rng).delta.units == 0


def two_instruments(seed: int, beta: float, same: bool) -> Repeat:
    """Run A or A′, then B, on the small regression, with every kind of momentum between them."""

    def run(w: Array, m: Array, draws: int) -> tuple[Array, Array]:
        rng = np.random.default_rng([seed, draws])
        for _ in range(3):
            m = beta * m + gradient(w, rng.integers(0, 96, 4))
            w = w - 0.05 * m
        return w, m

    def out(w: Array) -> Array:
        return (PROBE @ w).astype(np.float32)

    base, none = np.random.default_rng([seed, 3]).normal(size=(6, 3)), np.zeros((6, 3))
    (w1, m1), (w2, m2) = run(base, none, 1), run(base, none, 1 if same else 2)

    def both(first: Array, second: Array) -> tuple[Array, Array]:
        return out(run(w1, first, 9)[0]), out(run(w2, second, 9)[0])

    half = (m1 + m2) / 2
    return Repeat((out(w1), out(w2)), both(m1, m2), both(none, none), both(half, half), both(m2, m1))


def test_the_witness_sees_momentum_and_nothing_else() -> None:
    def seeds(beta: float, same: bool) -> tuple[list[BackFlow], bool]:
        found = [
            witness("total-variation", "classification", (two_instruments(10 * s + r, beta, same) for r in range(3)))
            for s in range(6)
        ]
        return [one for one, _ in found], all(equal for _, equal in found)

    carried, equal = seeds(0.9, same=False)
    assert not equal
    assert min(one.twin for one in carried) > 0
    repeats = [two_instruments(r, 0.9, False) for r in range(3)]

    def far(pairs: list[tuple[Array, Array]]) -> float:
        return float(np.mean([distance("total-variation", "classification", *pair) for pair in pairs]))

    assert carried[0].first == pytest.approx(far([one.first for one in repeats]))
    assert carried[0].after_common == pytest.approx(far([one.common for one in repeats if one.common]))
    twins = [(one.second[i], one.twins[i]) for one in repeats for i in (0, 1) if one.twins]
    assert carried[0].twin == pytest.approx(far(twins))
    memoryless, _ = seeds(0.0, same=False)
    assert {(one.twin, one.against_break, one.against_common) for one in memoryless} == {(0, 0, 0)}
    nothing, equal = seeds(0.9, same=True)
    assert equal
    assert {(one.delta, one.twin, one.first) for one in nothing} == {(0, 0, 0)}
