"""The checklist: what an item is, what a rule gives, and the runner that holds rules to their items.

An item (`schema/draft/checklist.json`) is data: id, severities, selector, least evidence. A rule is a function over
a `documents.record.Record`, bound to the item by its id in the `RULES` of a file in `validators/`. The runner evaluates
all rules of a profile, none of which can end the others, and does what no rule may do for itself:

(1) an item whose part of the record (`needs`) is not there is *inconclusive*;
(2) a pass with less evidence than the item demands is *inconclusive*, and *declared* where it rests on a declaration;
(3) nothing passes in a record whose bytes, signature or log do not hold.

Rule files are loaded by path from our own data, never from a run or the working directory. Pure: no torch, no file of a
run. Not here: what makes a record (`gathering`), waivers and exit codes (`checking`).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, get_args

from trainmem_audit.documents.checklist import Checklist, Codes, Evidence, Item
from trainmem_audit.documents.record import Facts, Record
from trainmem_audit.errors import FormatError, UsageError
from trainmem_audit.resources import data_file, data_root

__all__ = [
    "DRAFT",
    "EVIDENCE",
    "Evidence",
    "Outcome",
    "Rule",
    "State",
    "declared",
    "evaluate",
    "failed",
    "followed",
    "hyper_groups",
    "inconclusive",
    "items_of",
    "load_checklist",
    "load_codes",
    "load_rules",
    "not_applicable",
    "parts_of",
    "passed",
]

DRAFT: Final = "draft"
"""The folder of `schema/` that holds the version of the standard that is in the making."""
State = Literal["pass", "fail", "not-applicable", "inconclusive", "declared"]
EVIDENCE: Final[tuple[Evidence, ...]] = get_args(Evidence)
"""The evidence ladder, from the author's word up."""


@dataclass(frozen=True)
class Outcome:
    """What a rule says of a record; made by `passed`, `failed`, `not_applicable`, `inconclusive`, `declared`.

    `evidence` is what a verdict rests on; `where`, `expected` and `got` are for a person who looks it up or mends it.
    """

    state: State
    message: str
    evidence: Evidence | None = None
    where: str = ""
    expected: str = ""
    got: str = ""


Rule = Callable[[Record], Outcome]


def passed(evidence: Evidence, message: str, *, where: str = "", got: str = "") -> Outcome:
    """Return that the item is met, as far as `evidence` shows it."""
    return Outcome("pass", message, evidence, where, "", got)


def failed(evidence: Evidence, message: str, *, where: str, expected: str, got: str) -> Outcome:
    """Return that the record shows that the item is not met."""
    return Outcome("fail", message, evidence, where, expected, got)


def not_applicable(message: str) -> Outcome:
    """Return that the selector is false; `message` names the recorded fact that shows it."""
    return Outcome("not-applicable", message, "recorded")


def inconclusive(message: str, *, where: str = "", expected: str = "", got: str = "") -> Outcome:
    """Return that the record cannot decide it, and why."""
    return Outcome("inconclusive", message, None, where, expected, got)


def declared(message: str, *, where: str = "", got: str = "") -> Outcome:
    """Return that only the author says so."""
    return Outcome("declared", message, "declared", where, "", got)


def hyper_groups(values: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Return the hyper-parameters of each group of an optimizer, or `None` if that is none.

    They are the members of `groups`; where there is a single group they may stand in the values themselves.
    """
    groups = values.get("groups")
    if isinstance(groups, list):
        return [group for group in groups if isinstance(group, dict)]
    return [dict(values)] if "lr" in values else None


def parts_of(names: Iterable[str], owners: Container[str]) -> dict[str, list[str]]:
    """Return, for each owner, what stands after `OWNER.` in the names that begin so, in one pass over the names."""
    found: dict[str, list[str]] = {}
    for name in names:
        for at, char in enumerate(name):
            if char == "." and name[:at] in owners:
                found.setdefault(name[:at], []).append(name[at + 1 :])
    return found


def followed(facts: Facts, name: str, beside: str = "", from_the_start: bool = False) -> bool:
    """Tell whether a component has a digest at every step from its first on.

    Parameters
    ----------
    beside:
        A component that is there as long as this one should be (the parameters of the same module, say, which the
        script may drop); where the log has none of that name, the end of the log counts.
    from_the_start:
        Whether it should be there as early as `beside`, too.
    """
    own, other = facts.components.get(name), facts.components.get(beside)
    if own is None or own.steps != own.last - own.first + 1:
        return False
    first, last = (0, facts.steps.count - 1) if other is None else (other.first, other.last)
    return own.last >= last and (own.first <= first or not from_the_start)


@cache
def load_checklist() -> Checklist:
    """Return our checklist."""
    checklist: Checklist = Checklist.parse(_draft("checklist.json"), "checklist.json")
    return checklist


@cache
def load_codes() -> Codes:
    """Return the codes of findings and errors."""
    codes: Codes = Codes.parse(_draft("findings.json"), "findings.json")
    return codes


def _draft(name: str) -> bytes:
    return data_file("schema", f"{DRAFT}/{name}").read_bytes()


def items_of(profile: str) -> tuple[Item, ...]:
    """Return the items of a profile, in the order of the checklist.

    Raises
    ------
    UsageError
        If there is no such profile.
    """
    checklist = load_checklist()
    if profile not in checklist.profiles:
        raise UsageError(
            "unknown profile", where="--profile", expected=" or ".join(sorted(checklist.profiles)), got=profile[:40]
        )
    return tuple(item for item in checklist.items if profile in item.severity)


def evaluate(item: Item, record: Record) -> Outcome:
    """Return what the rule of an item says of a record, within what the runner allows (above, 1 to 3)."""
    missing = _missing(item, record)
    if missing:  # (1)
        return inconclusive(missing)
    rule = load_rules().get(item.id)
    if rule is None:
        return inconclusive("this checker has no rule for it")
    outcome = rule(record)
    if outcome.state != "pass":
        return outcome
    assert outcome.evidence is not None
    if EVIDENCE.index(outcome.evidence) < EVIDENCE.index(item.evidence):  # (2)
        state: State = "declared" if outcome.evidence == "declared" else "inconclusive"
        message = f"{outcome.message} ({outcome.evidence}; the item asks for: {item.evidence})"
        return replace(outcome, state=state, message=message)
    if broken := _broken(item, record):  # (3)
        return replace(outcome, state="inconclusive", evidence=None, message=broken)
    return outcome


def _missing(item: Item, record: Record) -> str:
    if record.study is not None and item.scope == "study":
        return ""
    if item.needs == "study":
        return f"it takes a study: one run shows no contrast (the record of {record.verification.name})"
    if item.needs != "verification" and record.statement is None:
        return "the statement could not be read"
    if item.needs == "log" and record.facts is None:
        return "the step log could not be read"
    return ""


def _broken(item: Item, record: Record) -> str:
    verification = record.verification
    if verification.signature.state == "invalid" or verification.bytes == "broken":
        return "it would pass, but the record is not what was signed"
    if verification.record == "inconsistent" and item.needs != "verification":
        return "it would pass, but the record contradicts itself"
    if verification.bytes == "not-checked" or verification.signature.state == "not-checkable":
        return "it would pass, but nobody could check the signature"
    return ""


@cache
def load_rules() -> Mapping[str, Rule]:
    """Return every rule of our `validators/` by its id.

    Raises
    ------
    FormatError
        If two files bind the same id.
    """
    rules: dict[str, Rule] = {}
    for path in sorted(data_root("validators").glob("*.py")):
        found: dict[str, Rule] = _load(path).RULES
        if twice := sorted(found.keys() & rules.keys()):
            raise FormatError("a rule is bound twice", where=path.name, got=", ".join(twice))
        rules |= found
    return dict(sorted(rules.items()))


def _load(path: Path) -> ModuleType:
    name = f"_trainmem_audit_rules_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module
