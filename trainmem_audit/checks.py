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
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Final, Literal, get_args

from trainmem_audit.documents.record import Record
from trainmem_audit.errors import FormatError
from trainmem_audit.resources import data_root

__all__ = [
    "EVIDENCE",
    "Evidence",
    "Outcome",
    "Rule",
    "State",
    "declared",
    "failed",
    "inconclusive",
    "load_rules",
    "not_applicable",
    "passed",
]

Evidence = Literal["declared", "recorded", "cross-checked", "replayed"]
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
