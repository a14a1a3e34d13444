"""OPT (S1): configuration, state, lifetimes, gradient scaling and accumulation."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from trainmem_audit.canonical import parse_float_text
from trainmem_audit.checks import (
    Outcome,
    Rule,
    failed,
    followed,
    hyper_groups,
    inconclusive,
    not_applicable,
    parts_of,
    passed,
)
from trainmem_audit.documents.record import Record
from trainmem_audit.errors import FormatError

__all__ = ["RULES"]

_HYPER = ".hyper"
_SCALER = re.compile(r"scaler[0-9]*")
_NO_SLOTS = ("hyper", "params")
_SLOTS: dict[str, tuple[str, ...]] = {
    "ASGD": ("ax",),
    "Adadelta": ("square_avg", "acc_delta"),
    "Adafactor": (),
    "Adagrad": ("sum",),
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "Adamax": ("exp_avg", "exp_inf"),
    "LBFGS": (),
    "Muon": ("momentum",),
    "NAdam": ("exp_avg", "exp_avg_sq"),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "RMSprop": ("square_avg",),
    "Rprop": ("prev", "step_size"),
    "SGD": ("momentum",),
    "SparseAdam": ("exp_avg", "exp_avg_sq"),
}
"""The slots that each class of torch keeps; where the list is empty, some."""
_DECAYS: dict[str, tuple[str, int | None]] = {
    "momentum": ("momentum", None),
    "exp_avg": ("betas", 0),
    "exp_avg_sq": ("betas", 1),
    "exp_inf": ("betas", 1),
    "square_avg": ("alpha", None),
    "acc_delta": ("rho", None),
}
"""The hyper-parameter that is the decay of a slot, and its index where it is a list."""


class _Optimizer(NamedTuple):
    name: str
    kind: str
    groups: list[dict[str, Any]]
    slots: list[str]

    @property
    def stateless(self) -> bool:
        """Whether its class and hyper-parameters say that it keeps nothing: SGD without momentum."""
        return self.kind == "SGD" and all(_number(group.get("momentum", 0)) == 0 for group in self.groups)


def _optimizers(record: Record) -> Iterator[_Optimizer]:
    """Yield what the inventory says of every optimizer: a component NAME.hyper that has groups or a learning rate."""
    sources = record.manifest.sources
    configured = {
        full.removesuffix(_HYPER): component.values
        for full, component in sources.items()
        if full.endswith(_HYPER) and component.values is not None and hyper_groups(component.values) is not None
    }
    parts = parts_of(sources, configured)
    for name, values in configured.items():
        slots = [part for part in parts[name] if part not in _NO_SLOTS]
        yield _Optimizer(name, str(values.get("class", "")), hyper_groups(values) or [], slots)


def _number(value: Any) -> float | None:
    """Return a number of the record: an integer, or a float text."""
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    try:
        return parse_float_text(value) if isinstance(value, str) else None
    except FormatError:
        return None


def _configuration(record: Record) -> Outcome:
    """TM-OPT-001: class and hyper-parameters of every optimizer, and the learning rates that the steps used."""
    steps = record.log.steps
    if steps.count == 0:
        return inconclusive("there was no step", where="steps.jsonl")
    found = list(_optimizers(record))
    where = "statement: predicate.sources"
    if not found:
        expected = "NAME.hyper with `class`, and `groups` or `lr`"
        return failed("recorded", "no optimizer is configured", where=where, expected=expected, got="none")
    for optimizer in found:
        if not optimizer.kind or not optimizer.groups:
            got = f"{optimizer.name}: class {optimizer.kind or 'absent'}, {len(optimizer.groups)} groups"
            expected = "`class`, and hyper-parameters of each group"
            return failed("recorded", "an optimizer is not configured", where=where, expected=expected, got=got)
    if steps.lr_differs is not None:
        message = "a step used a learning rate that the hyper-parameters do not say"
        where, expected = f"steps.jsonl: step {steps.lr_differs}", "the learning rates of its groups"
        return failed("cross-checked", message, where=where, expected=expected, got="others")
    return passed("recorded", ", ".join(f"{item.name}: {item.kind}, {len(item.groups)} groups" for item in found))


def _state(record: Record) -> Outcome:
    """TM-OPT-002: every slot of every optimizer at every step."""
    found = list(_optimizers(record))
    where = "statement: predicate.sources"
    if not found:
        return inconclusive("no optimizer is configured, so that nobody knows what it keeps", where=where)
    keeping = [item for item in found if item.slots or not item.stateless]
    if not keeping:
        return not_applicable("no optimizer keeps state: SGD without momentum")
    unknown = [item for item in keeping if not item.slots and item.kind not in _SLOTS]
    for item in keeping:
        expected = () if item.stateless or item in unknown else _SLOTS.get(item.kind, ())
        missing = [slot for slot in expected if slot not in item.slots]
        if missing or (not item.slots and item not in unknown):
            message = f"{item.kind} keeps state that is not recorded"
            wanted = ", ".join(f"{item.name}.{slot}" for slot in missing) or f"slots of {item.name}"
            return failed("recorded", message, where=where, expected=wanted, got="absent")
        for slot in item.slots:
            name = f"{item.name}.{slot}"
            if not followed(record.log, name, item.name + _HYPER):
                message = "a slot is not recorded at every step"
                wanted = f"{name} at every step from its first on"
                return failed("recorded", message, where="steps.jsonl", expected=wanted, got="gaps")
    if unknown:
        item = unknown[0]
        return inconclusive(f"{item.kind} is no class of torch, and no state of it was recorded", where=where)
    slots = [f"{item.name}.{slot}" for item in keeping for slot in sorted(item.slots)]
    return passed("recorded", f"at every step: {', '.join(slots)[:300]}")


def _lifetime(record: Record) -> Outcome:
    """TM-OPT-004: 1/(1-β) of every average, recomputed from the hyper-parameters."""
    stated: list[str] = []
    undecided = ""
    for item in _optimizers(record):
        for slot in sorted(_DECAYS.keys() & set(item.slots)):
            name = f"{item.name}.{slot}"
            beta = _decay(item, slot)
            if beta is None or not 0 <= beta < 1:
                undecided = undecided or name
                continue
            lifetime = record.manifest.sources[name].lifetime_steps
            got = None if lifetime is None else parse_float_text(lifetime)
            if got is None or not math.isclose(got, 1 / (1 - beta), rel_tol=1e-9):
                message = "the lifetime of an average is not what its decay gives"
                where = f"statement: predicate.sources.{name}"
                expected, given = f"{1 / (1 - beta):.6g} steps", "none" if got is None else f"{got:.6g} steps"
                return failed("cross-checked", message, where=where, expected=expected, got=given)
            stated.append(f"{name} {got:.6g} steps")
    if undecided:
        where = f"statement: predicate.sources.{undecided}"
        return inconclusive("the decay that a lifetime follows from is not recorded", where=where)
    if not stated:
        return not_applicable("no optimizer keeps an exponential average")
    return passed("cross-checked", ", ".join(stated)[:300])


def _decay(item: _Optimizer, slot: str) -> float | None:
    """Return the decay of a slot, of the first group."""
    name, index = _DECAYS[slot]
    group = item.groups[0] if item.groups else {}
    value = group.get(name, group.get("rho") if name == "alpha" else None)
    if index is not None:
        value = value[index] if isinstance(value, list) and len(value) > index else None
    return _number(value)


def _scaler_and_accumulation(record: Record) -> Outcome:
    """TM-OPT-005: gradient scaling, skipped steps, batches per step."""
    log, sources = record.log, record.manifest.sources
    scalers = [name for name in sources if _SCALER.fullmatch(name.removesuffix(_HYPER))]
    names = sorted({name.removesuffix(_HYPER) for name in scalers})
    steps = log.steps
    if steps.skipped and not names:
        message, expected = f"{steps.skipped} steps were skipped, and no scaler is recorded", "a component `scaler`"
        return failed("recorded", message, where="statement: predicate.sources", expected=expected, got="none")
    for name in names:
        missing = [part for part in (name, name + _HYPER) if part not in sources or not followed(log, part)]
        if missing:
            message, expected = "a scaler is not recorded at every step", ", ".join(missing)
            return failed("recorded", message, where="steps.jsonl", expected=expected, got="absent, or with gaps")
    several = {count: number for count, number in steps.batches.items() if count != "1"}
    if not names and not several:
        if steps.with_order < steps.count or steps.count == 0:
            return inconclusive("batches came from no loader, so that nobody knows how many a step consumed")
        return not_applicable("no scaler, no skipped step, one batch in every step")
    parts = [f"{', '.join(names)} at every step, {steps.skipped} steps skipped"] if names else []
    parts += [f"{count} batches in {number} steps" for count, number in sorted(several.items())]
    return passed("recorded", "; ".join(parts))


RULES: dict[str, Rule] = {
    "TM-OPT-001": _configuration,
    "TM-OPT-002": _state,
    "TM-OPT-004": _lifetime,
    "TM-OPT-005": _scaler_and_accumulation,
}
