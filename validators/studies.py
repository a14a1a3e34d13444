"""PTH-002, PRB, EST and UNC: whether a study did what its plan says, and what its estimates stand on.

Numbers were computed anew from the stored predictions before a rule sees them; what the author states is beside them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from trainmem_audit.canonical import parse_float_text
from trainmem_audit.checks import Outcome, Rule, failed, inconclusive, not_applicable, passed
from trainmem_audit.documents.estimates import Estimate, Estimates
from trainmem_audit.documents.interventions import Arm
from trainmem_audit.documents.record import Record
from trainmem_audit.documents.record_study import ArmFacts, EstimatesFacts, StudyFacts

__all__ = ["RULES"]

_EFFECTS = ("pathwise", "law-effect", "separation", "specific")
_INTERVALS = ("t", "log-t", "jackknife-t")


def _study(record: Record) -> StudyFacts:
    assert record.study is not None, "an item that needs a study must say so in the checklist"
    return record.study


# Arms -------------------------------------------------------------------------------------------------------------


def _planned(study: StudyFacts) -> dict[str, ArmFacts]:
    """Return the arms that the plan has, and the prefixes that they share."""
    plan = study.plan
    seeds, branches, treatments = set(plan.seeds), set(plan.branch_steps), set(plan.treatments)

    def has(name: Arm | None) -> bool:
        if name is None or name.seed not in seeds:
            return False
        if name.stream is None:
            return name.intervention is None
        return name.stream < plan.noise_streams and name.branch_step in branches and name.intervention in treatments

    return {key: arm for key, arm in study.arms.items() if has(arm.name)}


def _horizons_are_reached(record: Record) -> Outcome:
    """TM-PTH-002: the plan states the horizons, and every arm was observed at each that its stream reaches."""
    study = _study(record)
    arms = [arm for arm in _planned(study).values() if arm.outcome == "completed"]
    observed = 0
    for arm in arms:
        if arm.name is None or arm.name.stream is None or arm.name.branch_step is None:
            continue
        observed += 1
        start = 0 if arm.branch is not None else arm.name.branch_step
        wanted = [start + horizon for horizon in study.plan.horizons_of(arm.name.stream)]
        missing = [step for step in wanted if step not in set(arm.observed)]
        if missing or arm.steps < max(wanted, default=0):
            return failed(
                "recorded",
                "an arm was not observed at every horizon of the plan",
                where=f"{arm.id}, after step {missing[0] if missing else arm.steps}",
                expected=f"predictions after {_listed(wanted)} steps",
                got=f"{arm.steps} steps, predictions after {_listed(arm.observed)}",
            )
    if not observed:
        return inconclusive("no arm of the plan is there")
    return passed("recorded", f"{observed} arms were observed at {len(study.plan.horizons)} horizons")


def _probe_is_disjoint(record: Record) -> Outcome:
    """TM-PRB-001: the probe is the planned one, and no arm was trained on a sample of it."""
    study = _study(record)
    plan, probe = study.plan.probe, study.probe
    for name, expected, got in (("sha256", plan.sha256, probe.sha256), ("size", plan.size, probe.size)):
        if got is not None and got != expected:
            where = f"plan.json: probe.{name}"
            message = "the probe is not the one that was planned"
            return failed("cross-checked", message, where=where, expected=str(expected), got=str(got))
    trained = next((arm for arm in study.arms.values() if arm.on_probe), None)
    if trained is not None:
        return failed(
            "cross-checked",
            "samples of the probe were trained on",
            where=trained.id,
            expected="no sample of the probe among the indices",
            got=f"{trained.on_probe} of {plan.size}",
        )
    if probe.sha256 is None:
        return inconclusive("the file of the probe is not at hand", where="plan.json: probe", expected=plan.sha256)
    completed = (arm for arm in study.arms.values() if arm.outcome == "completed")
    unknown = next((arm.id for arm in completed if arm.on_probe is None), None)
    if unknown is not None or not study.arms:
        said = plan.disjoint or "nothing"
        message = "which samples the probe holds cannot be compared with those that were trained on"
        return inconclusive(
            message, where=unknown or "arms", expected="sample indices of both", got=f"declared: {said}"
        )
    return passed("cross-checked", f"{plan.size} examples, none of which any of {len(study.arms)} arms was trained on")


def _listed(values: Iterable[object]) -> str:
    texts = [str(value) for value in values]
    return ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "") or "none"


# Estimates --------------------------------------------------------------------------------------------------------


def _about(record: Record, rule: Callable[[StudyFacts, EstimatesFacts], Outcome]) -> Outcome:
    """Ask about the estimates, where there are any; nothing that they say counts unless they are of this plan."""
    study = _study(record)
    facts = study.estimates
    if facts is None:
        return inconclusive("there are no estimates yet", where="estimates.json")
    if facts.stated.plan != study.plan_digest:
        message = "the estimates are of another plan"
        where = "estimates.json: plan"
        return failed("cross-checked", message, where=where, expected=study.plan_digest, got=facts.stated.plan)
    outcome = rule(study, facts)
    if outcome.state == "pass" and not facts.signed:
        return inconclusive("it would pass, but no signature of the estimates holds", where="estimates.json")
    return outcome


def _estimand_is_declared(record: Record) -> Outcome:
    """TM-EST-001: intervention, contrast, horizon, population and unit are in the plan, and each arm names the plan."""
    study = _study(record)
    plan = study.plan
    for arm in study.arms.values():
        if arm.plan is not None and arm.plan != study.plan_digest:
            message = "an arm names another plan"
            return failed("declared", message, where=arm.id, expected=study.plan_digest, got=arm.plan)
    primary = plan.primary
    contrast = next((item for item in plan.contrasts if item.name == primary.contrast), None)
    known = plan.interventions.keys() | (plan.combinations or {}).keys()
    parts = {
        "contrast": contrast is not None,
        "intervention": contrast is not None and {contrast.treated, contrast.control} <= known,
        "horizon": primary.horizon in plan.horizons,
        "branchStep": primary.branch_step in plan.branch_steps,
        "observable": primary.observable in plan.observables,
    }
    missing = sorted(name for name, there in parts.items() if not there)
    if missing:
        return failed(
            "declared",
            "the primary estimand is not declared in full",
            where=f"plan.json: primary.{missing[0]}",
            expected="something that the plan has",
            got=f"{primary.contrast}, {primary.observable}, horizon {primary.horizon}",
        )
    seeds = f"{len(plan.seeds)} seeds of {plan.program.entry}"
    claimed = f"{primary.estimand} of {primary.contrast} at horizon {primary.horizon}"
    return passed("declared", f"{claimed}, over {seeds}; the seed is the unit")


def _numbers_recompute(record: Record) -> Outcome:
    """TM-EST-002: every number of the estimates comes out again, and every certificate has the label it states."""

    def rule(study: StudyFacts, facts: EstimatesFacts) -> Outcome:
        for pair in study.pairs.values():
            if pair.stated is not None and pair.stated != pair.certificate.label:
                return failed(
                    "cross-checked",
                    "a pair has another label than its logs give it",
                    where=f"estimates.json: {pair.treated} against {pair.control}",
                    expected=pair.certificate.label,
                    got=pair.stated,
                )
        return _recomputed("number", facts, facts.different)

    return _about(record, rule)


def _distances_recompute(record: Record) -> Outcome:
    """TM-PRB-002: every distance comes out again from the stored predictions."""

    def rule(_: StudyFacts, facts: EstimatesFacts) -> Outcome:
        tables = tuple(place for place in facts.different if place.startswith("perSeed"))
        return _recomputed("distance", facts, tables)

    return _about(record, rule)


def _recomputed(what: str, facts: EstimatesFacts, different: tuple[str, ...]) -> Outcome:
    if different:
        return failed(
            "cross-checked",
            f"a {what} does not recompute",
            where=f"estimates.json: {different[0]}"[:1000],
            expected="the value that the stored predictions give",
            got=f"{len(different)} other places" if len(different) > 1 else "another one",
        )
    if not facts.recomputed:
        return inconclusive(f"nobody could recompute a {what}", where="estimates.json")
    tables = len(facts.stated.per_seed or ())
    told = f"{len(facts.stated.estimates)} estimates and {tables} tables of distances per seed"
    return passed("cross-checked", f"{told} come out again, bit for bit, from the stored predictions")


def _floors_stand_beside_effects(record: Record) -> Outcome:
    """TM-EST-003: for every effect the fork floor and the seed floor are estimated at the same place."""

    def place(item: Estimate) -> tuple[str, int, int]:
        return item.observable, item.branch_step, item.horizon

    def rule(_: StudyFacts, facts: EstimatesFacts) -> Outcome:
        floors = {
            kind: {place(item) for item in facts.stated.estimates if item.estimand == kind}
            for kind in ("fork-floor", "seed-floor")
        }
        effects = [item for item in facts.stated.estimates if item.estimand in _EFFECTS]
        for item in effects:
            missing = next((kind for kind, places in floors.items() if place(item) not in places), None)
            if missing is not None and not item.bitwise_equal:
                where = f"{item.estimand} of {item.contrast}, {item.observable}, horizon {item.horizon}"
                message = f"an effect stands without its {missing.replace('-', ' ')}"
                got = "none at this branch and horizon"
                return failed("cross-checked", message, where=where, expected=missing, got=got)
        if not effects:
            return not_applicable("no effect is reported")
        return passed("cross-checked", f"{len(effects)} effects stand beside their fork and seed floors")

    return _about(record, rule)


def _unit_is_the_seed(record: Record) -> Outcome:
    """TM-UNC-001: units are seeds, and every arm that was ever started is named, with a reason if it is left out."""
    return _about(record, lambda study, facts: _accounted(study, facts.stated) or _units(study, facts.stated))


def _accounted(study: StudyFacts, stated: Estimates) -> Outcome | None:
    log = study.log
    if log is None:
        return inconclusive("the study log is not at hand", where="study.jsonl")
    if stated.study_log.chain_head != log.chain_head:
        message = "the estimates are bound to another study log"
        got = stated.study_log.chain_head
        return failed("cross-checked", message, where="estimates.json: studyLog", expected=log.chain_head, got=got)
    listed = {arm.id: arm for arm in stated.arms}
    for arm in study.arms.values():
        said = listed.get(arm.id)
        if said is None and arm.name is not None and arm.name.stream is None:
            continue  # a prefix that arms share is no arm
        if said is None or (said.outcome == "completed" and arm.outcome != "completed"):
            return failed(
                "cross-checked",
                "an arm that was started is not accounted for",
                where=f"estimates.json: arms, {arm.id}",
                expected=f"{arm.outcome}: {arm.reason}" if arm.reason else arm.outcome,
                got="not listed" if said is None else said.outcome,
            )
    return None


def _units(study: StudyFacts, stated: Estimates) -> Outcome:
    seeds = len(study.plan.seeds)
    for item in stated.estimates:
        per_unit = len(item.per_unit) if item.per_unit is not None else None
        if item.units > seeds or (per_unit is not None and per_unit > seeds):
            return failed(
                "cross-checked",
                "more units than seeds: repeats, probes or steps were counted",
                where=f"estimates.json: {item.estimand} of {item.contrast}, horizon {item.horizon}",
                expected=f"at most {seeds}",
                got=str(max(item.units, per_unit or 0)),
            )
    left_out = sum(arm.outcome != "completed" for arm in stated.arms)
    text = f"{len(stated.estimates)} numbers over at most {seeds} seeds; {left_out} of {len(stated.arms)} arms left out"
    return passed("cross-checked", f"{text}, each with its reason")


def _tested(item: Estimate) -> bool:
    return item.verdict in ("effect", "equivalent", "undecided") and not item.bitwise_equal


def _place(item: Estimate) -> str:
    return f"estimates.json: {item.estimand} of {item.contrast}, {item.observable}, horizon {item.horizon}"


def _intervals_are_valid(record: Record) -> Outcome:
    """TM-UNC-002: a t interval over seeds stands behind every verdict, with its coverage simulated for so few."""

    def rule(_: StudyFacts, facts: EstimatesFacts) -> Outcome:
        items = [item for item in facts.stated.estimates if _tested(item) and item.units > 1]
        for item in items:
            got = "no interval" if item.interval is None else f"a {item.interval.method} interval without its coverage"
            if item.interval is None or item.interval.coverage is None:
                message = "a verdict stands on no interval of known coverage"
                expected = f"one of {', '.join(_INTERVALS)}, with the coverage simulated for {item.units} seeds"
                return failed("cross-checked", message, where=_place(item), expected=expected, got=got)
        if not items:
            return not_applicable("no verdict of the study needs an interval")
        return passed("cross-checked", f"{len(items)} intervals over seeds, each with its simulated coverage")

    return _about(record, rule)


def _families_are_adjusted(record: Record) -> Outcome:
    """TM-UNC-003: confirmatory contrasts are adjusted as planned, exploratory ones by Benjamini-Hochberg."""

    def rule(study: StudyFacts, facts: EstimatesFacts) -> Outcome:
        families = {item.name: item.family for item in study.plan.contrasts}
        planned = study.plan.analysis.adjustment or "max-t"
        wanted = {"confirmatory": planned, "exploratory": "benjamini-hochberg"}
        size = Counter(families.values())
        tests = [(item, item.test) for item in facts.stated.estimates if item.test is not None]
        for item, test in tests:
            family = families.get(item.contrast)
            expected = wanted.get(family or "", "")
            if family is None:
                message, got = "a test of a contrast that the plan does not have", item.contrast
                return failed("cross-checked", message, where=_place(item), expected=_listed(families), got=got)
            if family == "null-player" or (family == "confirmatory" and size[family] < 2):
                continue
            if expected == "none" or (test.adjustment or "none") != expected:
                message = f"{size[family]} {family} contrasts are tested, and not adjusted as a family"
                expected = "max-t or holm" if expected == "none" else expected
                got = test.adjustment or "no adjustment"
                return failed("cross-checked", message, where=_place(item), expected=expected, got=got)
        if not tests:
            return not_applicable("nothing is tested")
        return passed("cross-checked", f"{len(tests)} tests, each adjusted within its family")

    return _about(record, rule)


def _no_effect_by_tost(record: Record) -> Outcome:
    """TM-UNC-004: whoever says equivalent has bitwise equality, or a TOST at the margin of the plan."""

    def rule(study: StudyFacts, facts: EstimatesFacts) -> Outcome:
        analysis = study.plan.analysis
        claims = [item for item in facts.stated.estimates if item.verdict == "equivalent"]
        for item in claims:
            if item.bitwise_equal:
                continue
            tost = item.equivalence
            expected = f"p below {parse_float_text(analysis.alpha):g} at the margin of the plan"
            if tost is None:
                message = "equivalence is claimed without an equivalence test"
                return failed("cross-checked", message, where=_place(item), expected=expected, got="none")
            if tost.margin != analysis.equivalence_margin or not (
                parse_float_text(tost.p) < parse_float_text(analysis.alpha)
            ):
                margin, p = (parse_float_text(text) for text in (tost.margin, tost.p))
                message = "equivalence is claimed, and the test does not show it"
                got = f"p = {p:g} at margin {margin:g}"
                return failed("cross-checked", message, where=_place(item), expected=expected, got=got)
        if not claims:
            return not_applicable("nobody claims that there is no effect")
        return passed("cross-checked", f"{len(claims)} claims of no effect, by TOST or bitwise equality")

    return _about(record, rule)


def _seeds_are_those_of_the_plan(record: Record) -> Outcome:
    """TM-UNC-005: the study has the seeds of its plan, no more and no fewer."""
    study = _study(record)
    planned = set(study.plan.seeds)
    arms = _planned(study)
    used = {arm.name.seed for arm in arms.values() if arm.name is not None}
    strange = next((arm for key, arm in study.arms.items() if arm.name is not None and key not in arms), None)
    if strange is not None:
        seed = "" if strange.name is None else f", seed {strange.name.seed}"
        message = "an arm that the plan does not have"
        expected = f"{len(planned)} seeds: {_listed(sorted(planned))}"
        return failed("cross-checked", message, where=f"arms/{strange.id}", expected=expected, got=strange.id + seed)
    if missing := sorted(planned - used):
        message = "fewer seeds than in the plan"
        got = f"{len(used)}, without {_listed(missing)}"
        if any(arm.outcome == "running" for arm in study.arms.values()) or (
            study.log is not None and not study.log.ended
        ):
            return inconclusive("the study is not finished", where="arms", expected=f"{len(planned)} seeds", got=got)
        return failed("cross-checked", message, where="arms", expected=f"{len(planned)} seeds", got=got)
    return passed("cross-checked", f"{len(planned)} seeds, those of the plan")


RULES: dict[str, Rule] = {
    "TM-PTH-002": _horizons_are_reached,
    "TM-PRB-001": _probe_is_disjoint,
    "TM-PRB-002": _distances_recompute,
    "TM-EST-001": _estimand_is_declared,
    "TM-EST-002": _numbers_recompute,
    "TM-EST-003": _floors_stand_beside_effects,
    "TM-UNC-001": _unit_is_the_seed,
    "TM-UNC-002": _intervals_are_valid,
    "TM-UNC-003": _families_are_adjusted,
    "TM-UNC-004": _no_effect_by_tost,
    "TM-UNC-005": _seeds_are_those_of_the_plan,
}
