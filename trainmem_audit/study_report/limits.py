"""What a study did not show, in sentences: so that nobody reads more out of a report than stands in it.

Made from the plan and the estimates alone. Not here: what was shown (`page`, `words`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from trainmem_audit.documents.estimates import Estimate
from trainmem_audit.figures import number
from trainmem_audit.study_report.index import Study, verdict_of
from trainmem_audit.study_report.words import p_text, value_of

__all__ = ["PROMISES", "not_shown"]

PROMISES = (
    "A signature proves which key signed, not that the author is honest or the study sensible.",
    "Nothing here shows that the seeds were not chosen among many: a plan whose digest was published before the runs, "
    "and the log of all arms ever started, speak against it.",
    "Bits agree on one kind of device and software; another one may give other paths of the same law.",
    "An effect is that of this program on this data, from the branch steps and over the horizons that were looked at.",
)
"""What no study shows (DESIGN § 10)."""
_NAMES = 12
_TOLD_APART = 0.5


def not_shown(study: Study) -> list[str]:
    """Return what is not shown, the most important first."""
    return [
        *_undecided(study),
        *_unpaired(study),
        *_missing(study),
        *_arms(study),
        *_few(study),
        *_null_players(study),
        *_pathwise(study),
        *_absent(study),
    ]


def _undecided(study: Study) -> Iterator[str]:
    items = [item for item in study.at_primary() if item.verdict == "undecided" and item.units]
    items = [item for item in items if study.family(item.contrast) != "null-player"]
    if items:
        yield (
            f"Undecided, which is neither an effect nor the absence of one: {_names([i.contrast for i in items])}. "
            "Their intervals say how large an effect may still be."
        )
    for item in study.at_primary("null-player"):
        if item.verdict == "effect":
            yield (
                f"{item.contrast} is a null player and shows an effect ({_value(item)}): something other than memory "
                "moves the numbers, so no effect of this size should be believed."
            )


def _unpaired(study: Study) -> Iterator[str]:
    names = [name for name, pairs in study.pairs.items() if any(pair.label == "unpaired" for pair in pairs)]
    if names:
        yield (
            f"No effect, whatever its size: {_names(names)}. At least one certificate of a pair fails, so the arms "
            "may differ in more than the intervention."
        )


def _missing(study: Study) -> Iterator[str]:
    estimand = study.plan.primary.estimand
    lost = [name for name in study.contrasts if (name, estimand, study.place) not in study.index]
    if lost:
        yield f"Not estimated at the primary place: {_names(lost)}."
    empty = [item.contrast for item in study.at_primary() if not item.units]
    if empty:
        yield f"Without a single seed that has all its arms: {_names(empty)}."
    factorials = sum(not item.total.units for item in study.document.attributions or ())
    if factorials:
        yield f"{_count(factorials, 'attribution')} for which no seed has all arms of the factorial."
    fewer = {item.contrast: item.units for item in study.at_primary() if 0 < item.units < len(study.plan.seeds)}
    if fewer:
        said = [f"{name} ({units} of {len(study.plan.seeds)} seeds)" for name, units in fewer.items()]
        yield f"Estimated on fewer seeds than planned, which may select among them: {_names(said)}."


def _arms(study: Study) -> Iterator[str]:
    for outcome in ("failed", "excluded"):
        count = sum(arm.outcome == outcome for arm in study.document.arms)
        if count:
            yield f"{_count(count, 'arm')} {outcome}; the table below gives the reasons."
    log = study.document.study_log
    repeated = log.started - len(study.document.arms)
    if repeated > 0:
        yield f"{_count(repeated, 'attempt')} at arms came to nothing and had to be made again; the study log says why."


def _few(study: Study) -> Iterator[str]:
    plan = study.plan
    if len(plan.seeds) == 1:
        yield "One seed shows no spread, so there is no interval and no test: nothing here goes beyond this seed."
    else:
        smallest = [value_of(item.test.smallest_p) for item in study.at_primary() if item.test is not None]
        least = min((p for p in smallest if not math.isnan(p)), default=math.nan)
        if least > study.alpha:
            yield (
                f"{len(plan.seeds)} seeds cannot give a p below {p_text(least)}, which is above α = "
                f"{number(study.alpha)}: no effect could have been found."
            )
    if plan.noise_streams < 2:
        yield (
            "One noise stream (R = 1) gives no fork floor and no law effect: what was measured holds for these paths "
            "of noise, and any perturbation would have moved them."
        )
    elif plan.fewer_streams is not None and plan.fewer_streams.streams < 2:
        yield (
            f"Beyond horizon {plan.fewer_streams.after} there is one noise stream: no law effect there, only paths, "
            "which say nothing of memory by themselves."
        )


def _null_players(study: Study) -> Iterator[str]:
    plan = study.plan
    players = {item.primitive for name in plan.treatments for item in plan.acting(name)}
    lacking = [name for name in ("kick", "butterfly", "placebo") if name not in players]
    if lacking:
        yield (
            f"Without the null player{'s' if len(lacking) > 1 else ''} {' and '.join(lacking)}: pathwise distances "
            "lack what they have to be compared with."
        )


def _pathwise(study: Study) -> Iterator[str]:
    """Say up to which horizon pathwise distances tell doses apart."""
    observable, branch, _ = study.place
    by_contrast: dict[str, list[Estimate]] = {}
    for (contrast, estimand, place), item in study.index.items():
        if estimand == "dose-response" and place[:2] == (observable, branch) and item.units:
            by_contrast.setdefault(contrast, []).append(item)
    for contrast, items in by_contrast.items():
        ordered = sorted(items, key=lambda item: item.horizon)
        lost = next((item for item in ordered if value_of(item.value) < _TOLD_APART), None)
        if lost is not None:
            yield (
                f"From horizon {lost.horizon} on pathwise distances of {contrast} no longer tell a whole dose from "
                f"half of one (log₂ ratio {number(value_of(lost.value), 2)}, where 1 is in proportion to the dose): "
                "they measure how far any perturbation has grown."
            )


def _absent(study: Study) -> Iterator[str]:
    document = study.document
    planned = {item.primitive for name in study.plan.treatments for item in study.plan.acting(name)}
    parts = (
        ("memory times", bool(document.memory_times)),
        ("an attribution over several sources", bool(document.attributions)),
        ("the sensitivity to order", "permute-window" in planned or "swap-windows" in planned),
        ("the back-flow witness", bool(document.back_flows)),
        ("whether a memory helps or harms", any(item.estimand == "signed" for item in document.estimates)),
    )
    absent = [name for name, present in parts if not present]
    if absent:
        yield f"No part of this study: {_names(absent)}."


def _value(item: Estimate) -> str:
    return f"{item.estimand} {number(value_of(item.value))}, {verdict_of(item)}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES])
    return shown if len(names) <= _NAMES else f"{shown} and {len(names) - _NAMES} more"


def _count(number_of: int, word: str) -> str:
    return f"{number_of} {word}{'' if number_of == 1 else 's'}"
