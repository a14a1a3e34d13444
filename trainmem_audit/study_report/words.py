"""What a study's numbers say, in sentences that a researcher would quote; made from the numbers alone.

Not here: which numbers are shown (`page`), and what was not shown (`limits`).
"""

from __future__ import annotations

import math
from typing import Final

from trainmem_audit.canonical import parse_float_text
from trainmem_audit.documents.estimates import Estimate
from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.plan import Contrast, Observable, Plan
from trainmem_audit.figures import number

__all__ = ["ESTIMANDS", "FAMILIES", "OBSERVABLES", "VERDICT_TONES", "acting", "doing", "p_text", "sentence", "value_of"]

ESTIMANDS: Final = {
    "pathwise": "pathwise distance P",
    "law-effect": "law effect E / F",
    "separation": "separation Λ",
    "specific": "specific excess log(P / K)",
    "signed": "signed effect Δφ",
    "memory-time": "memory time τ",
    "dose-response": "dose response log₂ ratio",
    "seed-floor": "seed floor",
    "fork-floor": "fork floor F",
    "interaction": "interaction",
    "shapley": "Shapley value",
    "order-sensitivity": "order sensitivity",
    "back-flow": "back-flow Δ",
    "twin-witness": "twin witness W",
}
OBSERVABLES: Final = {
    "total-variation": "total variation",
    "jensen-shannon": "Jensen–Shannon divergence, bits",
    "hellinger": "Hellinger distance",
    "logit-l2": "L2 distance of logits",
    "disagreement": "disagreement",
    "loss": "loss",
    "accuracy": "accuracy",
    "calibration-error": "calibration error",
}
FAMILIES: Final = {"confirmatory": "Confirmatory", "exploratory": "Exploratory", "null-player": "Null players"}
VERDICT_TONES: Final = {
    "effect": "note",
    "equivalent": "ok",
    "bitwise equal": "ok",
    "undecided": "warn",
    "unpaired": "bad",
    "descriptive": "off",
    "not estimated": "off",
}


def value_of(text: str | None) -> float:
    """Return a float of a document; NaN where there is none."""
    return math.nan if text is None else parse_float_text(text)


def p_text(p: float) -> str:
    """Return a p-value for people: `0.031`, `0.0001`."""
    return f"{p:.2g}" if 1e-4 <= p < 1e-3 else number(p, 2)


# --- what an intervention does ------------------------------------------------------------------------------------


def acting(plan: Plan, name: str) -> str:
    """Return what the arms of that name do at the branch, as the subject of a sentence."""
    parts = [doing(item) for item in plan.acting(name)]
    first, *rest = parts
    return " and ".join([first, *(text[:1].lower() + text[1:] for text in rest)])


def doing(item: Intervention) -> str:
    """Return an intervention as the subject of a sentence: `Resetting optimizer.momentum`."""
    windows = " and ".join(f"[{window.first}, {window.to})" for window in item.windows or ())
    counter = {"keep": ", its step counter kept,", "reset": " with its step counter"}.get(item.step_counter or "", "")
    amounts = {name: number(value_of(getattr(item, name))) for name in ("factor", "sigma", "decay")}
    return _DOING[item.primitive].format(
        c=item.component or "the state",
        other=item.other or "",
        steps=item.steps,
        windows=windows,
        policy=item.policy or "",
        counter=counter,
        source=f"step {item.source.step} of {item.source.run or 'this run'}" if item.source else "",
        **amounts,
    )


_DOING: Final = {
    "carry": "Changing nothing",
    "placebo": "Going through an intervention that changes nothing",
    "reset": "Resetting {c}{counter}",
    "zero": "Setting {c} to zero",
    "scale": "Scaling {c} by {factor}",
    "noise": "Adding noise of relative size {sigma} to {c}",
    "transplant": "Transplanting {c} from {source}",
    "recalibrate": "Recalibrating {c} over {steps} batches",
    "freeze": "Freezing {c}",
    "swap-windows": "Swapping the batches {windows}",
    "permute-window": "Permuting the batches {windows}",
    "policy": "Drawing the order by the policy {policy}",
    "flush": "Flushing {c}",
    "shuffle": "Shuffling {c}",
    "truncate": "Truncating {c} to {steps} entries",
    "age": "Ageing {c} by {steps} steps",
    "decay": "Setting the decay of {c} to {decay}",
    "lag": "Delaying {c} by {steps} steps",
    "swap": "Swapping {c} and {other}",
    "equalise": "Equalising {c} with the arm {other}",
    "fork": "Redrawing the noise",
    "kick": "Kicking the weights by {sigma} of their size",
    "butterfly": "Flipping one bit of one weight",
}


# --- what a number says ------------------------------------------------------------------------------------------


def sentence(plan: Plan, contrast: Contrast, found: Estimate | None, verdict: str, unpaired: str, later: str) -> str:
    """Return the verdict on one estimate as a sentence.

    Parameters
    ----------
    found:
        The estimate; `None` where the document has none.
    unpaired:
        Which certificates fail, as `3 of 16 pairs`.
    later:
        What follows it, such as from when on the effect is within the margin.
    """
    subject = acting(plan, contrast.treated)
    if plan.acting(contrast.control)[0].primitive != "carry" or len(plan.acting(contrast.control)) > 1:
        subject += f" ({contrast.treated}) rather than {contrast.control}"
    if found is None or not found.units:
        return f"{subject}: no effect could be estimated, since no seed has all the arms that it takes."
    subject += f" at step {found.branch_step}"
    after = f"after {_count(found.horizon, 'step')}"
    value, margin = value_of(found.value), value_of(found.equivalence.margin if found.equivalence else None)
    facts = f" ({_facts(plan, found)})"
    match verdict:
        case "bitwise equal":
            return f"{subject} changes no bit of the predictions {after}: every pair is equal, the effect exactly 0."
        case "unpaired":
            return (
                f"{subject} cannot be judged {after}: the certificate fails in {unpaired}, so what was measured "
                f"({_measure(found, value)}) is no effect of the intervention."
            )
        case "effect":
            return f"{subject} {_effect(plan, found, value)} {after}{facts}{later}."
        case "equivalent":
            limits = f"within the declared margin of ±{number(margin)}"
            return f"{subject} has no effect beyond the margin {after}: {_measure(found, value)} is {limits}{facts}."
        case "undecided":
            told = "neither told from 0 nor shown to be within the margin" if found.equivalence else "not told from 0"
            subject = subject[:1].lower() + subject[1:]
            return f"What {subject} does {after} is undecided: {_measure(found, value)} is {told}{facts}."
    return f"{subject} gives {_measure(found, value)} {after}{facts}; this describes, and claims nothing by itself."


def _effect(plan: Plan, found: Estimate, value: float) -> str:
    size = number(abs(value))
    match found.estimand:
        case "law-effect" if value > 0:
            return f"shifts the law of the predictions by {size} of the fork floor"
        case "separation" if value > 0:
            return f"separates the laws of the predictions by Λ = {size}"
        case "signed":
            return f"{'raises' if value > 0 else 'lowers'} the {_observable(plan, found.observable)} by {size}"
        case "specific":
            return f"moves the predictions {number(_exp(value), 2)} times as far as the kick does"
    return f"has an effect: {_measure(found, value)}"


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _measure(found: Estimate, value: float) -> str:
    symbols = {"law-effect": "E / F", "separation": "Λ", "signed": "Δφ", "pathwise": "P", "memory-time": "τ"}
    return f"{symbols.get(found.estimand, found.estimand)} = {number(value)}"


def _facts(plan: Plan, found: Estimate) -> str:
    kind = plan.observables.get(found.observable)
    facts = [] if kind is None or found.estimand == "signed" else [OBSERVABLES[kind.kind]]
    if found.interval is not None:
        low, high, level = map(value_of, (found.interval.low, found.interval.high, found.interval.level))
        facts.append(f"{number(100 * level)} % interval {number(low)} to {number(high)}")
    facts.append(f"S = {_count(found.units, 'seed')}")
    if found.streams is not None:
        facts.append(f"R = {_count(found.streams, 'noise stream')}")
    if found.test is not None:
        adjusted = found.test.adjustment not in (None, "none")
        p = value_of(found.test.adjusted_p if adjusted else found.test.p)
        facts.append(f"{'adjusted ' if adjusted else ''}p = {p_text(p)}")
    if found.equivalence is not None and found.verdict == "equivalent":
        facts.append(f"TOST p = {p_text(value_of(found.equivalence.p))}")
    return "; ".join(facts)


def _observable(plan: Plan, name: str) -> str:
    known: Observable | None = plan.observables.get(name)
    return OBSERVABLES[known.kind] if known is not None else name


def _count(number_of: int, word: str) -> str:
    return f"{number_of} {word}{'' if number_of == 1 else 's'}"
