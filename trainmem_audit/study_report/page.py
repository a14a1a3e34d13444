"""From the documents of a study to what its report shows (`views`): which numbers, in which order, how many.

Every number that stands in a picture is there too, and in the table below the picture. Not here: sentences (`words`),
what was not shown (`limits`), pictures (`pictures`), markup (`render`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from trainmem_audit.documents.estimates import BackFlow, Curve, Estimate, Pair, SeedTable
from trainmem_audit.documents.interventions import ORDER_PRIMITIVES
from trainmem_audit.documents.plan import Contrast, Plan
from trainmem_audit.figures import number
from trainmem_audit.interventions import text_of
from trainmem_audit.study.estimating import CheckedEstimates
from trainmem_audit.study_report import words
from trainmem_audit.study_report.index import Study, bar_of, claim_of, verdict_of
from trainmem_audit.study_report.pictures import (
    Attributed,
    Bar,
    Flow,
    ForestRow,
    HorizonCurve,
    SeedPair,
    Segment,
    Strip,
    TimeRow,
)
from trainmem_audit.study_report.views import (
    ArmProblem,
    AttributionPlot,
    Certified,
    Claim,
    CurvePlot,
    FlowTable,
    Forest,
    Memory,
    Page,
    SeedPlot,
    StripPlot,
    Verdict,
)
from trainmem_audit.study_report.words import value_of

__all__ = ["FOREST_ROWS", "page_of"]

MOST_CLAIMS: Final = 60
MOST_OTHERS: Final = 300
MOST_FIGURES: Final = 6
MOST_FACTORIALS: Final = 4
MOST_ROWS: Final = 200
MOST_SEED_ROWS: Final = 200
FOREST_ROWS: Final = 26
"""How many contrasts fit into one picture that fits on a printed page."""
_LAW: Final = ("law-effect", "separation")
_FAMILIES: Final = ("confirmatory", "exploratory", "null-player")


# --- the whole page -----------------------------------------------------------------------------------------------


def page_of(plan: Plan, checked: CheckedEstimates, not_shown: Iterable[str] = ()) -> Page:
    """Return what the report of a study shows.

    Parameters
    ----------
    checked:
        The estimates, with what was found about their signature, their study and their numbers.
    not_shown:
        The sentences of the last section (`limits.not_shown`).

    Raises
    ------
    ValueError
        If there is no document to report on.
    """
    if checked.document is None:
        raise ValueError("no estimates to report on")
    study = Study(plan, checked.document)
    claims = [claim_of(study, item) for item in _claims(study)]
    others = [claim_of(study, item) for item in _others(study, claims)]
    curves = _curves(study)
    attributions = list(_attributions(study))
    problems = [ArmProblem(arm.id, arm.outcome, arm.reason or "") for arm in study.document.arms if arm.reason]
    contrast = plan.primary.contrast
    found = study.primary
    verdict = "not estimated" if found is None else verdict_of(found)
    return Page(
        name=plan.name,
        question=plan.question or "",
        plan=study.document.plan,
        log=study.document.study_log.chain_head,
        facts=tuple(_facts(study, checked)),
        verdicts=tuple(_verdicts(study, checked)),
        doubts=tuple(_doubts(checked)),
        headline=headline(study, contrast),
        headline_verdict=verdict,
        headline_tone=words.VERDICT_TONES[verdict],
        primary=_primary_text(plan),
        quotable=tuple(headline(study, item.contrast) for item in study.at_primary("confirmatory")
                       if item.contrast != contrast)[:12],
        margin=study.margin,
        alpha=study.alpha,
        claims=tuple(claims[:MOST_CLAIMS]),
        claims_left=max(0, len(claims) - MOST_CLAIMS),
        signed=tuple(claim_of(study, item) for item in _signed(study))[:MOST_CLAIMS],
        others=tuple(others[:MOST_OTHERS]),
        others_left=max(0, len(others) - MOST_OTHERS),
        seeds=tuple(_seed_plots(study))[:MOST_FIGURES],
        curves=tuple(curves[:MOST_FIGURES]),
        curves_left=max(0, len(curves) - MOST_FIGURES),
        memory=tuple(_memory(study)),
        forests=tuple(_forests(study)),
        flows=tuple(_flows(study)),
        attributions=tuple(attributions[:MOST_FACTORIALS]),
        attributions_left=max(0, len(attributions) - MOST_FACTORIALS),
        certificates=tuple(_certified(study, item) for item in plan.contrasts),
        strips=tuple(_strips(study))[:MOST_FIGURES],
        interventions=tuple((name, text_of(item)) for name, item in sorted(plan.interventions.items())),
        contrasts=tuple((item.name, item.treated, item.control, item.family) for item in plan.contrasts),
        arm_problems=tuple(problems[:MOST_ROWS]),
        arm_problems_left=max(0, len(problems) - MOST_ROWS),
        not_shown=tuple(not_shown),
        methods=tuple(_methods(study)),
        definitions=tuple(sorted(study.document.method.definitions.items())),
    )  # fmt: skip


def headline(study: Study, contrast: str) -> str:
    """Return what the study says of a contrast at the primary place, in one sentence."""
    found = study.index.get((contrast, study.plan.primary.estimand, study.place))
    known = study.contrasts[contrast]
    verdict = "descriptive" if found is None else verdict_of(found)
    return words.sentence(study.plan, known, found, verdict, study.unpaired(contrast), _later(study, found))


def _later(study: Study, found: Estimate | None) -> str:
    """Return from which later horizon on the law effect is within the margin, where that was shown."""
    if found is None or found.estimand not in _LAW:
        return ""
    later = [
        (horizon, study.index.get((found.contrast, found.estimand, (found.observable, found.branch_step, horizon))))
        for horizon in sorted(set(study.plan.horizons))
        if horizon > found.horizon
    ]
    known = [(horizon, item) for horizon, item in later if item is not None]
    start = None
    for horizon, item in reversed(known):
        if item.verdict != "equivalent":
            break
        start = horizon
    if start is None:
        return ""
    until = known[-1][0]
    when = f"at {until} steps" if start == until else f"from {start} to {until} steps"
    return f", and {when} it is within the declared margin of ±{number(study.margin)}"


def _primary_text(plan: Plan) -> str:
    item = plan.primary
    return (
        f"{item.contrast}: {words.ESTIMANDS[item.estimand]} in {item.observable}, branch at step {item.branch_step}, "
        f"horizon {item.horizon}"
    )


# --- head ---------------------------------------------------------------------------------------------------------


def _facts(study: Study, checked: CheckedEstimates) -> Iterator[tuple[str, str]]:
    plan, method = study.plan, study.document.method
    program = f"{plan.program.kind} {plan.program.entry}"
    yield "program", program
    yield "seeds (S)", f"{len(plan.seeds)}: {_some(plan.seeds)}"
    fewer = plan.fewer_streams
    streams = str(plan.noise_streams)
    if fewer is not None:
        streams += f" up to horizon {fewer.after}, {min(fewer.streams, plan.noise_streams)} beyond"
    yield "noise streams (R)", streams
    yield "branch steps", _some(plan.branch_steps)
    yield "horizons", _some(plan.horizons)
    probe = plan.probe
    disjoint = f"; {probe.disjoint}" if probe.disjoint else ""
    yield "probe", f"{probe.size} inputs, predictions of {probe.head}{disjoint}"
    kinds = (f"{name} ({words.OBSERVABLES[item.kind]})" for name, item in sorted(plan.observables.items()))
    yield "observables", ", ".join(kinds)
    yield "primary", _primary_text(plan)
    yield "alpha", f"{number(study.alpha)}; equivalence margin ±{number(study.margin)}"
    yield (
        "estimated by",
        f"{study.document.producer.name} {study.document.producer.version}, "
        + ", ".join(f"{name} {version}" for name, version in sorted(method.software.items())),
    )


def _some(items: Sequence[object], most: int = 16) -> str:
    shown = ", ".join(str(item) for item in items[:most])
    return shown if len(items) <= most else f"{shown} … ({len(items)} in all)"


_SIGNATURES: Final = {
    "trusted": ("ok", "trusted", "Signed by {who}, on the trust list of whoever made this report."),
    "self": ("note", "own key", "Signed with a key of the machine that made this report: integrity, no identity."),
    "unknown-signer": ("warn", "valid, unknown signer", "The signature is valid; nothing here says whose key it is."),
    "not-checkable": ("off", "not checkable", "No key was at hand to check the signature with."),
    "revoked": ("bad", "revoked key", "The signature is by a key that was revoked: its holder may be anybody."),
    "invalid": ("bad", "invalid", "The signature does not fit: nobody vouches for what follows."),
}


def _verdicts(study: Study, checked: CheckedEstimates) -> Iterator[Verdict]:
    tone, word, sentence = _SIGNATURES[checked.signature.state]
    who = checked.signature.principal or "a key"
    yield Verdict("Signature", tone, word, f"{sentence.format(who=who)} {checked.signature.keyid}".strip())
    yield _numbers_verdict(checked)
    yield _arms_verdict(study)
    yield _pairs_verdict(study)


def _doubts(checked: CheckedEstimates) -> Iterator[str]:
    if checked.signature.state in ("invalid", "not-checkable", "revoked"):
        yield f"signature: {checked.signature.state}"
    yield from checked.problems
    yield from (f"does not come out again: {place}" for place in checked.differing)


def _numbers_verdict(checked: CheckedEstimates) -> Verdict:
    if checked.differing:
        text = f"Not all comes out again from the records ({len(checked.differing)} places at least); see below."
        return Verdict("Numbers", "bad", "differ", text)
    if checked.problems:
        return Verdict("Numbers", "bad", "records not as signed", "The study is not what was signed; see below.")
    if not checked.recomputed:
        return Verdict("Numbers", "off", "not recomputed", "The numbers were not computed again from the records.")
    return Verdict("Numbers", "ok", "recomputed", "Every number came out again, bit for bit, from the signed records.")


def _arms_verdict(study: Study) -> Verdict:
    outcomes = Counter(arm.outcome for arm in study.document.arms)
    log, arms = study.document.study_log, len(study.document.arms)
    text = (
        f"{log.started} attempts started at {arms} arms: {log.reported} reported, {outcomes['failed']} failed, "
        f"{outcomes['excluded']} excluded."
    )
    whole = log.reported == arms
    missing = "All arms are in the numbers." if whole else f"Not in the numbers: {arms - log.reported}."
    return Verdict("Arms", "ok" if whole else "warn", f"{log.reported} of {arms}", f"{text} {missing}")


def _pairs_verdict(study: Study) -> Verdict:
    labels = Counter(pair.label for pair in study.document.pairs)
    total = len(study.document.pairs)
    if not total:
        return Verdict("Pairs", "off", "none", "No two arms could be compared.")
    good = total - labels["unpaired"]
    text = f"{labels['paired']} paired, {labels['no-op']} without any change, {labels['unpaired']} unpaired."
    tone = "ok" if good == total else "bad" if not good else "warn"
    return Verdict("Pairs", tone, f"{good} of {total} certified", text)


# --- tables of estimates --------------------------------------------------------------------------------------------


def _claims(study: Study) -> Iterator[Estimate]:
    """Yield the confirmatory contrasts at the primary estimand, observable and branch: the primary horizon first."""
    yield from study.at_primary("confirmatory")
    primary = study.plan.primary
    for name in study.contrasts:
        if study.family(name) != "confirmatory":
            continue
        for branch in study.plan.branch_steps:
            for horizon in sorted(set(study.plan.horizons)):
                place = (primary.observable, branch, horizon)
                found = study.index.get((name, primary.estimand, place))
                if found is not None and place != study.place:
                    yield found


def _signed(study: Study) -> Iterator[Estimate]:
    """Yield what says whether a memory helps or harms, at the primary branch and horizon."""
    _, branch, horizon = study.place
    for observable in sorted(study.plan.observables):
        for name in study.contrasts:
            found = study.index.get((name, "signed", (observable, branch, horizon)))
            if found is not None:
                yield found


def _others(study: Study, claims: Sequence[Claim]) -> list[Estimate]:
    """Return all other estimates: those that claim something first, then by how near the primary place they are."""
    shown = {(item.contrast, item.estimand, item.observable, item.branch, item.horizon) for item in claims}
    rest = [
        item
        for item in study.document.estimates
        if (item.contrast, item.estimand, item.observable, item.branch_step, item.horizon) not in shown
    ]

    def rank(item: Estimate) -> tuple[bool, int, bool, bool, bool]:
        far = (item.observable != study.place[0], item.branch_step != study.place[1], item.horizon != study.place[2])
        return (item.verdict == "descriptive", _FAMILIES.index(study.family(item.contrast)), *far)

    return sorted(rest, key=rank)


# --- seeds ----------------------------------------------------------------------------------------------------------


def _seed_plots(study: Study) -> Iterator[SeedPlot]:
    """Yield the primary contrast, then the other confirmatory ones, at the primary place."""
    found = study.at_primary("confirmatory")
    primary = study.primary
    ordered = [*([primary] if primary is not None else []), *(item for item in found if item is not primary)]
    for item in ordered:
        if item.per_unit is not None:
            yield _seed_plot(study, item)


def _seed_plot(study: Study, found: Estimate) -> SeedPlot:
    table = study.tables.get((found.contrast, (found.observable, found.branch_step, found.horizon)))
    before, after, names = _sides(found, table)
    nothing = [math.nan] * len(study.plan.seeds)
    effects = [value_of(text) for text in found.per_unit or ()]
    floor = study.index.get((_floor_owner(study, found.contrast), "fork-floor", (found.observable, *_where(found))))
    rows = zip(study.plan.seeds, before or nothing, after or nothing, effects, strict=False)
    return SeedPlot(
        claim=claim_of(study, found),
        pairs=tuple(SeedPair(*row) for row in rows),
        floor=bar_of(floor) if floor is not None and found.estimand in (*_LAW, "pathwise") else None,
        before=names[0],
        after=names[1],
        quantity=names[2],
        dropped=tuple((item.seed, item.reason) for item in (table.dropped or ()) if table) if table else (),
    )


def _where(found: Estimate) -> tuple[int, int]:
    return found.branch_step, found.horizon


def _floor_owner(study: Study, contrast: str) -> str:
    """Return the contrast under which the floor of this one's control stands: the first with the same control."""
    known = study.contrasts.get(contrast)
    if known is None:
        return contrast
    return next(item.name for item in study.plan.contrasts if item.control == known.control)


def _sides(found: Estimate, table: SeedTable | None) -> tuple[list[float], list[float], tuple[str, str, str]]:
    """Return what is compared for each seed, and what it is called."""
    quantity = f"distance ({found.observable})"
    if table is None:
        return [], [], ("", "", "")
    if found.estimand in _LAW and table.within and table.between:
        return _floats(table.within), _floats(table.between), ("within arms, W", "between arms, B", quantity)
    if found.estimand == "signed" and table.control and table.treated:
        return _floats(table.control), _floats(table.treated), ("control", "treated", found.observable)
    if found.estimand == "pathwise" and table.fork_floor and table.pathwise:
        return _floats(table.fork_floor), _floats(table.pathwise), ("fork floor, F", "pathwise, P", quantity)
    return [], [], ("", "", "")


def _floats(texts: Iterable[str] | None) -> list[float]:
    return [value_of(text) for text in texts or ()]


# --- horizons, memory times -----------------------------------------------------------------------------------------


def _curves(study: Study) -> list[CurvePlot]:
    """Return the curves of the primary observable: confirmatory contrasts and the primary branch first."""
    contrast, (observable, branch, _) = study.plan.primary.contrast, study.place

    def rank(item: Curve) -> tuple[bool, int, bool]:
        return (item.branch_step != branch, _FAMILIES.index(study.family(item.contrast)), item.contrast != contrast)

    chosen = [item for item in study.document.curves or () if item.observable == observable]
    chosen = [item for item in chosen if study.family(item.contrast) != "null-player"]
    return [_curve(item) for item in sorted(chosen, key=rank)]


def _curve(item: Curve) -> CurvePlot:
    count = len(item.horizons)

    def whole(texts: Iterable[str] | None) -> tuple[float, ...]:
        found = _floats(texts)[:count]
        return (*found, *[math.nan] * (count - len(found)))

    law = zip(whole(item.law_effect), whole(item.law_low), whole(item.law_high), strict=True)
    curve = HorizonCurve(
        horizons=item.horizons,
        pathwise=whole(item.pathwise),
        kick=whole(item.kick),
        butterfly=whole(item.butterfly),
        floor=whole(item.fork_floor),
        law=tuple(_bounded(Bar(*row)) for row in law),
    )
    return CurvePlot(item.contrast, item.observable, item.branch_step, curve)


def _bounded(bar: Bar) -> Bar:
    """Return an interval without ends where it has none: one seed shows no spread."""
    return bar if math.isfinite(bar.low) or math.isfinite(bar.high) else Bar(bar.value)


def _memory(study: Study) -> Iterator[Memory]:
    """Yield the memory times in the primary observable, branch by branch."""
    items = [item for item in study.document.memory_times or () if item.observable == study.place[0]][:MOST_ROWS]
    for branch in dict.fromkeys(item.branch_step for item in items):
        own = [item for item in items if item.branch_step == branch]
        yield Memory(
            branch=branch,
            observable=study.place[0],
            rows=tuple(
                TimeRow(item.contrast, bar_of(item.tau), item.to, item.last_significant, item.washout) for item in own
            ),
            areas=tuple(bar_of(item.area) for item in own),
            warnings=tuple(item.tau.warnings or () for item in own),
        )


# --- forests --------------------------------------------------------------------------------------------------------


def _forests(study: Study) -> Iterator[Forest]:
    """Yield all contrasts at the primary place, and the signed effects there."""
    estimand = study.plan.primary.estimand
    rows = [_forest_row(study, item) for item in study.at_primary()]
    _, branch, horizon = study.place
    where = f"branch at step {branch}, horizon {horizon}"
    if rows:
        title = f"All contrasts: {words.ESTIMANDS[estimand]} in {study.place[0]}, {where}"
        judged = any(item.equivalence is not None for item in study.at_primary())
        axis = words.ESTIMANDS[estimand] + (f"; shaded: ±{number(study.margin)}" if judged else "")
        yield Forest(title, axis, study.margin if judged else math.nan, tuple(rows))
    by_observable: dict[str, list[Estimate]] = {}
    for item in _signed(study):
        by_observable.setdefault(item.observable, []).append(item)
    for observable, items in by_observable.items():
        if (estimand, observable) != ("signed", study.place[0]):
            title = f"Does it help or harm: change of {observable}, {where}"
            signed = tuple(_forest_row(study, item) for item in items)
            yield Forest(title, f"{observable} of the treated minus that of the control", math.nan, signed)


def _forest_row(study: Study, found: Estimate) -> ForestRow:
    seeds = tuple(_floats(found.per_unit))
    family = words.FAMILIES[study.family(found.contrast)]
    return ForestRow(found.contrast, family, bar_of(found), seeds, verdict_of(found))


# --- back-flow, attribution -----------------------------------------------------------------------------------------


def _flows(study: Study) -> Iterator[FlowTable]:
    items = (study.document.back_flows or ())[:MOST_ROWS]
    for observable in dict.fromkeys(item.observable for item in items):
        own = [item for item in items if item.observable == observable]
        yield FlowTable(
            observable=observable,
            rows=tuple(
                Flow(
                    item.name,
                    bar_of(item.first),
                    bar_of(item.second),
                    bar_of(item.twin) if item.twin else None,
                    bool(item.bitwise_equal),
                )
                for item in own
            ),
            contrasts=tuple(
                tuple(
                    (name, bar_of(found), value_of(found.test.p if found.test else None))
                    for name, found in (
                        ("twin witness W", item.twin),
                        ("W / D1", item.twin_ratio),
                        ("Δ against common momentum", item.against_common),
                        ("Δ against a causal break", item.against_break),
                        ("Δ = D2 − D1, descriptive", item.delta),
                    )
                    if found is not None
                )
                for item in own
            ),
            diagnostics=tuple(
                tuple((name, _mean(_floats(texts))) for name, texts in sorted((item.diagnostics or {}).items()))
                for item in own
            ),
            notes=tuple(tuple(_flow_notes(item)) for item in own),
        )


def _flow_notes(item: BackFlow) -> Iterator[str]:
    if item.equivalence is not None:
        margin, p = value_of(item.equivalence.margin), value_of(item.equivalence.p)
        yield f"Δ within ±{number(margin)}: TOST p = {words.p_text(p)}"
    for left_out in (item.dropped or ())[:8]:
        yield f"seed {left_out.seed} is left out: {left_out.reason}"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return math.fsum(value / len(known) for value in known) if known else math.nan


def _attributions(study: Study) -> Iterator[AttributionPlot]:
    """Yield the factorials, those at the primary branch and horizon first."""
    _, branch, horizon = study.place
    known = [item for item in study.document.attributions or () if item.total.units]
    items = sorted(known, key=lambda item: (item.branch_step != branch, item.horizon != horizon))
    for item in items:
        nulls = set(item.null_players or ())
        effects = [found for kind in ("shapley", "main", "interaction") for found in item.effects if found.kind == kind]
        effects = effects[: MOST_ROWS // 4]
        rows = [Attributed("all together", "total", bar_of(item.total), null=False)]
        for found in effects:
            label = f"{' × '.join(found.sources)}{'' if found.kind == 'shapley' else f', {found.kind}'}"
            is_null = found.kind != "interaction" and set(found.sources) <= nulls
            rows.append(Attributed(label, found.kind, bar_of(found.effect), is_null))
        yield AttributionPlot(
            control=item.control,
            observable=item.observable,
            branch=item.branch_step,
            horizon=item.horizon,
            total=bar_of(item.total),
            rows=tuple(rows),
            shares=(math.nan, *(value_of(found.share) for found in effects)),
            seeds=item.total.units,
        )


# --- certificates ---------------------------------------------------------------------------------------------------


def _certified(study: Study, contrast: Contrast) -> Certified:
    pairs = study.pairs[contrast.name]
    labels = Counter(pair.label for pair in pairs)
    broken = Counter(_broken(pair) for pair in pairs if pair.label == "unpaired")
    texts = [text if count == 1 else f"{text} (and {count - 1} more)" for text, count in broken.most_common(4)]
    if len(broken) > len(texts):
        texts.append(f"and {len(broken) - len(texts)} other reasons")
    return Certified(contrast.name, labels["paired"], labels["no-op"], labels["unpaired"], tuple(texts))


def _broken(pair: Pair) -> str:
    """Return the first clause that does not hold: `streams fails at step 12, rng.torch.cpu: …`."""
    clause = next((item for item in pair.certificate if item.state == "fails"), None)
    clause = clause or next((item for item in pair.certificate if item.state == "inconclusive"), None)
    if clause is None:
        return "a clause is missing"
    step = "" if clause.step is None else f" at step {clause.step}"
    named = ": ".join(text for text in (clause.name, clause.detail) if text)
    return f"{clause.clause} {clause.state}{step}{f', {named}' if named else ''}"


def _strips(study: Study) -> Iterator[StripPlot]:
    """Yield a pair of the primary contrast, and the first unpaired one of every contrast that has one."""
    primary = study.plan.primary.contrast
    ordered = [primary, *(name for name in study.contrasts if name != primary)]
    for name in ordered:
        pairs = study.pairs[name]
        bad = next((pair for pair in pairs if pair.label == "unpaired"), None)
        good = next((pair for pair in pairs if pair.label != "unpaired"), None)
        chosen = [good, bad] if name == primary else [bad]
        for pair in chosen:
            if pair is not None:
                yield StripPlot(name, _strip(study, name, pair))


def _strip(study: Study, contrast: str, pair: Pair) -> Strip:
    arm = next((item for item in study.document.arms if item.id == pair.treated), None)
    branch = (arm.branch_step if arm else None) or 0
    stream = (arm.stream if arm else None) or 0
    last = branch + max(study.plan.horizons_of(stream), default=1)
    own = 0 if study.plan.program.kind != "factory" else branch  # steps of a program's arm are counted from its branch
    clauses = {item.clause: item for item in pair.certificate}
    absent = "inconclusive"

    def state(name: str) -> str:
        return clauses[name].state if name in clauses else absent

    def at(name: str, shift: int) -> int | None:
        step = clauses[name].step if name in clauses else None
        return None if step is None else min(step + shift, last)

    effect = Segment(branch, last, "fails" if state("intervention") == "fails" else "apart", branch)
    if pair.label == "no-op":
        effect = Segment(branch, last, "holds")
    known = study.contrasts[contrast]
    actions = study.plan.acting(known.treated)
    windows = tuple(
        (branch + window.first, min(branch + window.to, last))
        for item in actions
        if item.primitive in ORDER_PRIMITIVES
        for window in item.windows or ()
    )
    prefix = clauses.get("prefix")

    def before(row: str) -> tuple[Segment, ...]:
        """(1) up to the branch; what the clause says of its other rows after it failed is not known."""
        first = at("prefix", 0)
        if not branch or prefix is None or prefix.state != "fails" or first is None:
            return (Segment(0, branch, state("prefix")),) if branch else ()
        if _row_of(prefix.name or "") == row:
            return (Segment(0, branch, "fails", first),)
        return (Segment(0, first, "holds"), Segment(first, branch, "inconclusive"))

    return Strip(
        treated=pair.treated,
        control=pair.control,
        label=pair.label,
        branch=branch,
        last=last,
        components=(*before("components"), effect),
        order=(*before("order"), Segment(branch, last, state("order"), at("order", own))),
        streams=(*before("streams"), Segment(branch, last, state("streams"), at("streams", own))),
        named=words.acting(study.plan, known.treated),
        windows=windows,
        comment=_broken(pair) if pair.label == "unpaired" else "",
    )


def _row_of(name: str) -> str:
    """Return the row to which what a clause names belongs."""
    if name.startswith("rng."):
        return "streams"
    return "order" if name.partition(".")[0] in ("order", "inputs", "steps") else "components"


# --- methods --------------------------------------------------------------------------------------------------------


def _methods(study: Study) -> Iterator[tuple[str, str]]:
    method = study.document.method
    level = number(100 * value_of(method.level))
    yield (
        "unit",
        "The seed. Probe inputs, batches, noise streams and horizons are averaged over, and are no units.",
    )
    yield (
        "intervals",
        f"Nominal {level} %: Student’s t on seed means, the same on the logarithm for positive quantities (log-t), "
        "jackknife-t over seeds for ratios of means. Bootstraps cover too little at so few seeds. Beside each "
        "interval stands the coverage that a nominal 95 % interval of its kind had in simulations with so many seeds "
        f"and such a skewness (table {method.coverage_table[:12]}).",
    )
    yield (
        "tests",
        "Exact randomisation tests: signs of seeds are flipped, for law effects treated and control exchanged in "
        f"single noise streams; all {method.exact_up_to} ways at most, a sample of {method.sampled} beyond. The "
        "smallest p that so many seeds can give stands beside each p.",
    )
    how = {"max-t": "max-T with shared signs", "holm": "Holm’s method", "none": "no adjustment"}[method.confirmatory]
    yield (
        "adjustment",
        f"{how} over the confirmatory contrasts at the primary estimand, observable, branch and horizon; Benjamini and "
        "Hochberg over all others; none for null players, which must show nothing.",
    )
    yield (
        "verdicts",
        f"effect: adjusted p ≤ {number(value_of(method.alpha))}. equivalent: two one-sided tests at the declared "
        f"margin of ±{number(value_of(method.equivalence_margin))}, whether or not it can be told from 0. "
        "undecided: neither. unpaired: a certificate failed. bitwise equal: every pair is, nothing to test. "
        "descriptive: claims nothing.",
    )
    yield (
        "pairing",
        "Read off the signed step logs alone: equal digests up to the branch; right after it exactly the named "
        "components differ; equal order after it; equal random streams after it.",
    )
