"""PTH-001 and 003, RNG-003, and the interventions of OPT and EXT: what the certificates of pairs prove.

The certificates were computed from the logs before a rule sees them. An arm that is missing is no fault of its pairs:
TM-UNC-001 asks for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from trainmem_audit.checks import Outcome, Rule, failed, inconclusive, not_applicable, passed
from trainmem_audit.documents.interventions import ORDER_PRIMITIVES, Intervention
from trainmem_audit.documents.pairing import ClauseName
from trainmem_audit.documents.plan import Plan
from trainmem_audit.documents.record import Record
from trainmem_audit.documents.record_study import InterventionFacts, PairFacts, StudyFacts

__all__ = ["RULES"]

_WINDOWS = ORDER_PRIMITIVES - {"policy"}
_PROMISES: dict[ClauseName, str] = {
    "prefix": "equal state, order and random streams up to the branch",
    "intervention": "right after the branch nothing differs but what the intervention names",
    "order": "the same samples at equal steps, or the same multiset inside the windows",
    "streams": "equal digests of every shared stream at equal steps",
}


def _study(record: Record) -> StudyFacts:
    assert record.study is not None, "an item that needs a study must say so in the checklist"
    return record.study


def _clause(clauses: tuple[ClauseName, ...], pairs: Iterable[tuple[PairFacts, tuple[ClauseName, ...]]]) -> Outcome:
    """Return what the clauses of all pairs come to: the first failure, else the first doubt."""
    doubt: Outcome | None = None
    count = 0
    for pair, wanted in pairs:
        count += 1
        names = f"{pair.treated} against {pair.control}"
        found = {clause.clause: clause for clause in pair.certificate.certificate}
        if lacking := [name for name in wanted if name not in found]:
            doubt = doubt or inconclusive(f"a certificate without the clause `{lacking[0]}`", where=names)
        for clause in (found[name] for name in wanted if name in found):
            place = [f"step {clause.step}"] if clause.step is not None else []
            where = ", ".join([names, *place, *([clause.name] if clause.name else [])])
            got = clause.detail or clause.state
            if clause.state == "fails":
                message = f"the clause `{clause.clause}` of a pairing certificate fails"
                expected = _PROMISES[clause.clause]
                return failed("cross-checked", message, where=where, expected=expected, got=got)
            if clause.state == "inconclusive":
                message = f"the clause `{clause.clause}` of a pairing certificate cannot be decided"
                doubt = doubt or inconclusive(message, where=where, expected=_PROMISES[clause.clause], got=got)
    if not count:
        return not_applicable("no pair of the study is of this kind")
    text = " and ".join(f"`{name}`" for name in clauses)
    return doubt or passed("cross-checked", f"{text} holds in {count} pairs, by their logs")


def _interventions(study: StudyFacts, pair: PairFacts) -> tuple[Intervention, ...]:
    """Return what acts in the two arms of a pair, by the plan."""
    contrast = next((item for item in study.plan.contrasts if item.name == pair.contrast), None)
    names = () if contrast is None else (contrast.treated, contrast.control)
    known = study.plan.interventions.keys() | (study.plan.combinations or {}).keys()
    return tuple(item for name in names if name in known for item in _acting(study.plan, name))


def _acting(plan: Plan, name: str) -> Iterator[Intervention]:
    parts = (plan.combinations or {}).get(name, (name,))
    yield from (plan.interventions[part] for part in parts if part in plan.interventions)


def _moves_windows(study: StudyFacts, pair: PairFacts) -> bool:
    return any(item.primitive in _WINDOWS for item in _interventions(study, pair))


def _shared_streams_are_equal(record: Record) -> Outcome:
    """TM-RNG-003: streams that two arms share have equal digests at equal steps, and so has the order."""
    study = _study(record)

    def wanted(pair: PairFacts) -> tuple[ClauseName, ...]:
        return ("streams",) if _moves_windows(study, pair) else ("streams", "order")

    return _clause(("streams", "order"), ((pair, wanted(pair)) for pair in study.pairs.values()))


def _common_branch(record: Record) -> Outcome:
    """TM-PTH-001: the arms of a pair are equal up to the branch."""
    return _clause(("prefix",), ((pair, ("prefix",)) for pair in _study(record).pairs.values()))


def _windows_keep_the_multiset(record: Record) -> Outcome:
    """TM-PTH-003: a swap or permutation of windows keeps the multiset of samples."""
    study = _study(record)
    return _clause(("order",), ((pair, ("order",)) for pair in study.pairs.values() if _moves_windows(study, pair)))


def _proven(record: Record, concerns: Callable[[InterventionFacts], bool]) -> Outcome:
    """Return whether the interventions of some kind are proven by digests, in the arms and between them."""
    study = record.study
    if study is None:
        facts = record.log.interventions
        wrong = next((found for item in facts if concerns(item) if (found := _wrong("the run", item))), None)
        if wrong is not None or any(map(concerns, facts)):
            return wrong or inconclusive("what an intervention leaves alone shows only beside the control")
        return not_applicable("no intervention of this run names such a component")
    concerned = {name: [*filter(concerns, arm.interventions)] for name, arm in sorted(study.arms.items())}
    concerned = {name: items for name, items in concerned.items() if items}
    for name, items in concerned.items():
        for item in items:
            if found := _wrong(name, item):
                return found
    pairs = [pair for pair in study.pairs.values() if {pair.treated, pair.control} & concerned.keys()]
    outcome = _clause(("intervention",), ((pair, ("intervention",)) for pair in pairs))
    if outcome.state != "pass":
        return outcome
    values = Counter(value for items in concerned.values() for item in items for value in item.values.values())
    told = f"{values['as-said']} values are proven by their digests, {values['unknown']} have none to compute"
    return passed("cross-checked", f"{outcome.message}; {told}")


def _wrong(arm: str, item: InterventionFacts) -> Outcome | None:
    """Return what one line shows to be wrong by itself."""
    kind = item.intervention.primitive
    where, name = f"{arm}, step {item.step}", item.intervention.component or "what it names"
    odd = next((component for component, value in item.values.items() if value == "other"), None)
    if odd is not None:
        got = f"another digest of {odd}"
        return failed("cross-checked", f"{kind} gave another value", where=where, expected=f"{kind} of {odd}", got=got)
    if item.not_named or item.moved:
        got = ", ".join([*item.not_named, *(f"rng.{stream}" for stream in item.moved)][:8])
        message = f"{kind} touched what it does not name"
        return failed("cross-checked", message, where=where, expected=f"{name} alone changes", got=got)
    return None


def _optimizer_intervention(record: Record) -> Outcome:
    """TM-OPT-003: an intervention on the optimizer is proven by digests."""
    return _proven(record, lambda item: (item.intervention.component or "").startswith("optimizer"))


def _external_intervention(record: Record) -> Outcome:
    """TM-EXT-002: an intervention on external memory is proven by digests."""
    return _proven(record, lambda item: item.intervention.component is not None and "S4" in item.sources.values())


RULES: dict[str, Rule] = {
    "TM-RNG-003": _shared_streams_are_equal,
    "TM-OPT-003": _optimizer_intervention,
    "TM-PTH-001": _common_branch,
    "TM-PTH-003": _windows_keep_the_multiset,
    "TM-EXT-002": _external_intervention,
}
