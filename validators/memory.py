"""BUF, EXT, MET, VIS: running statistics, external memory, teachers and averages, and the labels of the inventory."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainmem_audit.checks import (
    Outcome,
    Rule,
    declared,
    failed,
    followed,
    hyper_groups,
    inconclusive,
    not_applicable,
    parts_of,
    passed,
)
from trainmem_audit.documents.record import Record
from trainmem_audit.documents.steplog import Component

__all__ = ["RULES"]

_RUNNING = ("running_mean", "running_var")
_QUEUE = re.compile(r"queue|bank|replay", re.IGNORECASE)
_POINTER = re.compile(r"ptr|pointer|fill|cursor|position|count|size|length", re.IGNORECASE)
_CARRIED = re.compile(r"(optimizer|scheduler|scaler)[0-9]*(\..*)?")
_TORCH = frozenset(
    {
        *("ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS"),
        *("Muon", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam"),
    }
)


def _tensor_names(component: Component) -> list[str]:
    return [name for name, _, _ in component.tensors or ()]


def _has_running(component: Component) -> bool:
    return any(name.rpartition(".")[2] in _RUNNING for name in _tensor_names(component))


def _running(record: Record) -> list[str]:
    """Return the components with running statistics."""
    return sorted(name for name, item in record.manifest.sources.items() if _has_running(item))


def _gap(record: Record, names: list[str]) -> Outcome | None:
    """Return a failure for the first of `names` that is not recorded at every step."""
    for name in names:
        beside = f"{name.rpartition('.')[0]}.params"
        if not followed(record.log, name, beside, from_the_start=True):
            message, expected = f"{name} is not recorded at every step", "a digest in every `step` line"
            facts = record.log.components.get(name)
            got = f"{0 if facts is None else facts.steps} of {record.log.steps.count} steps"
            return failed("recorded", message, where="steps.jsonl", expected=expected, got=got)
    return None


def _batchnorm_digests(record: Record) -> Outcome:
    """TM-BUF-001: running statistics at every step."""
    names = _running(record)
    if not names:
        return not_applicable("no recorded module keeps running statistics")
    if record.log.steps.count == 0:
        return inconclusive("there was no step", where="steps.jsonl")
    return _gap(record, names) or passed("recorded", f"at every step: {', '.join(names)[:300]}")


def _batchnorm_mode(record: Record) -> Outcome:
    """TM-BUF-002: when the running statistics moved, read off their digests."""
    names = _running(record)
    if not names:
        return not_applicable("no recorded module keeps running statistics")
    if record.log.steps.count == 0:
        return inconclusive("there was no step", where="steps.jsonl")
    return _gap(record, names) or passed("recorded", "; ".join(_moved(record, name) for name in names)[:500])


def _moved(record: Record, name: str) -> str:
    facts = record.log.components[name]
    most = facts.last - facts.first
    if facts.changes == most:
        how = "moved at every step (training mode)"
    elif facts.changes == 0:
        how = "never moved (frozen)"
    else:
        how = f"moved at {facts.changes} of {most} steps"
    after = {True: ", and after the last one", False: "", None: "; the state after the last step is not known"}
    return f"{name} {how}{after[facts.changed_at_end]}"


def _external_memory(record: Record) -> Outcome:
    """TM-EXT-001: capacity, fill, pointer and digest of external memory."""
    found = {
        name: component
        for name, component in sorted(record.manifest.sources.items())
        if component.source == "S4" and (facts := record.log.components.get(name)) is not None and facts.changes
    }
    if not found:
        return not_applicable("no component of class S4 changes")
    if (gap := _gap(record, list(found))) is not None:
        return gap
    for name, component in found.items():
        tensors = _tensor_names(component)
        queues = [tensor for tensor in tensors if _QUEUE.search(tensor) and not _POINTER.search(tensor)]
        if queues and not any(_POINTER.search(tensor) for tensor in tensors):
            message = f"{queues[0]} looks like a queue, and no pointer or fill is recorded with it"
            return inconclusive(message, where=f"statement: predicate.sources.{name}")
    sizes = [f"{name} ({_capacity(component)})" for name, component in found.items()]
    return passed("recorded", f"capacity and digest at every step: {', '.join(sizes)[:300]}")


def _capacity(component: Component) -> str:
    shapes = [f"{name} {'×'.join(map(str, shape)) or 'scalar'}" for name, _, shape in (component.tensors or ())[:4]]
    return ", ".join(shapes) or "values"


def _teachers(record: Record) -> Outcome:
    """TM-MET-001: teachers and averages: digest, update steps, decay."""
    found = {name: item for name, item in sorted(record.manifest.sources.items()) if item.source == "S5"}
    if not found:
        return not_applicable("no component of class S5 is in the record")
    for name in found:
        if not followed(record.log, name, name):  # the script may drop it, or begin to train it
            message, expected = (
                f"{name} is not recorded at every step",
                "a digest in every `step` line from its first on",
            )
            return failed("recorded", message, where="steps.jsonl", expected=expected, got="gaps")
    said = {name: _decay_text(record, name, component) for name, component in found.items()}
    for name in (name for name, text in said.items() if not text):
        where = f"statement: predicate.sources.{name}"
        if (decay := record.manifest.declared.get(f"{name}.decay")) is not None:
            return declared(f"the decay of {name} is what the author says", where=where, got=decay)
        return inconclusive(f"the decay of {name} is not recorded", where=where)
    return passed("recorded", "; ".join(f"{name}: {text}" for name, text in said.items())[:500])


def _decay_text(record: Record, name: str, component: Component) -> str:
    """Return what the record shows of a component's updates; nothing if its decay is not known."""
    facts = record.log.components[name]
    updates = f"{facts.changes} updates"
    if component.lifetime_steps is not None:
        return f"{updates}, decay recorded"
    if component.lifetime == "macro":
        return f"{updates}, an equal average over the run"
    if facts.changes == facts.copies:
        return f"{updates}, each a copy (decay 0)" if facts.changes else "no update"
    return ""


def _learned_optimizer(record: Record) -> Outcome:
    """TM-MET-002: the state of optimizers that are none of torch's."""
    sources = record.manifest.sources
    found = {
        name.removesuffix(".hyper"): str((component.values or {}).get("class"))
        for name, component in sources.items()
        if name.endswith(".hyper") and hyper_groups(component.values or {}) is not None
    }
    others = {name: kind for name, kind in found.items() if kind not in _TORCH}
    if not others:
        return not_applicable("all optimizers are of torch's classes")
    parts = parts_of(sources, others)
    for name, kind in sorted(others.items()):
        slots = [f"{name}.{part}" for part in parts[name] if part != "hyper"]
        if not slots:
            return inconclusive(f"no state of {kind} is recorded", where="statement: predicate.sources")
        for slot in slots:
            if not followed(record.log, slot, f"{name}.hyper"):
                message, expected = f"{slot} is not recorded at every step", "a digest in every `step` line"
                return failed("recorded", message, where="steps.jsonl", expected=expected, got="gaps")
    return passed("recorded", ", ".join(f"{name}: {kind}" for name, kind in sorted(others.items()))[:300])


def _labelled(record: Record) -> Outcome:
    """TM-VIS-001: source, lifetime and visibility of everything, in agreement with what it is."""
    sources = record.manifest.sources
    for name, component in sorted(sources.items()):
        allowed = _allowed(name, component)
        if allowed and component.source not in allowed:
            where, expected = f"statement: predicate.sources.{name}", " or ".join(allowed)
            message = "a label contradicts what the component is"
            return failed("cross-checked", message, where=where, expected=expected, got=component.source)
    unnamed = sorted(record.log.components.keys() - sources.keys())
    if unnamed:
        message = "a component of the log has no labels"
        where, got = "statement: predicate.sources", unnamed[0]
        return failed("cross-checked", message, where=where, expected="labels", got=got)
    if unknown := [name for name, component in sorted(sources.items()) if component.visibility == "unknown"]:
        message = f"nobody saw whether the script saves {', '.join(unknown)[:200]}"
        return inconclusive(message, where=f"statement: predicate.sources.{unknown[0]}")
    if not sources:
        return inconclusive("no component is recorded", where="statement: predicate.sources")
    measured = [saved.steps for saved in record.manifest.checkpoints or () if saved.kind == "state"]
    seen = f"; visibility measured by what was saved after {measured[0]} steps" if measured else ""
    return passed("cross-checked", ", ".join(_counted(sources)) + seen)


def _allowed(name: str, component: Component) -> tuple[str, ...]:
    """Return the source classes that a component can have; nothing if anything goes."""
    last = name.rpartition(".")[2]
    if last == "params":
        return ("S3", "S5")
    if _has_running(component):
        return ("S2",)
    return ("S1",) if _CARRIED.fullmatch(name) else ()


def _counted(sources: dict[str, Component]) -> Iterator[str]:
    for source in ("S1", "S2", "S3", "S4", "S5"):
        count = sum(component.source == source for component in sources.values())
        if count:
            yield f"{count} of {source}"


RULES: dict[str, Rule] = {
    "TM-BUF-001": _batchnorm_digests,
    "TM-BUF-002": _batchnorm_mode,
    "TM-EXT-001": _external_memory,
    "TM-MET-001": _teachers,
    "TM-MET-002": _learned_optimizer,
    "TM-VIS-001": _labelled,
}
