"""Reads `study.toml`: the friendly form of a plan, completed, checked as a whole, made canonical.

People write interventions in their text form, floats in decimal, seeds as a number of them; what is left out gets the
default that is said aloud (`Declared.notes`). Member names may be written `branch-steps`, `branch_steps` or
`branchSteps`. What is wrong is an error that says where, what was expected, what was got and how to mend it.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, get_args

from pydantic import ValidationError

from trainmem_audit.arrays import ArrayFile
from trainmem_audit.canonical import float_text, parse_float_text
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.plan import FUNCTIONALS, Estimand, ObservableKind, Plan, Task
from trainmem_audit.errors import FormatError, TrainmemAuditError, UsageError
from trainmem_audit.interventions import parse
from trainmem_audit.privacy import redact_argv
from trainmem_audit.study.regimes import back_flow_members, back_flow_problems

__all__ = [
    "DEFAULT_KICK",
    "DEFAULT_PROBE",
    "Declared",
    "WantedProbe",
    "declare",
    "probe_to_write",
    "read_plan",
    "read_study",
    "wanted_probe",
]

DEFAULT_PROBE = "probe.safetensors"
"""Where the probe of a program lies, where the study names no other file."""
DEFAULT_KICK = 1e-3
"""Relative size of the kick that every study runs, where the plan says no other."""
_MOST_BYTES = 2**20
_NULL_PLAYERS = ("kick", "butterfly", "placebo")
_PLACEHOLDER = "{seed}"
_MEMBERS = {
    "": "analysis backFlow branchSteps combinations contrasts exclusions fewerStreams horizons interventions name "
    "noiseStreams nullPlayers observables primary probe program question seedBase seeds stateDigests task",
    "program": "arguments entry kind sha256",
    "primary": "branchStep contrast estimand horizon observable",
    "probe": "disjoint file head sha256 size",
    "analysis": "adjustment alpha equivalenceMargin kick",
    "fewerStreams": "after streams",
    "contrast": "control family treated",
    "observable": "kind task",
    "backFlow": "arguments baseSteps batch batchNorm clip diagnosticRepeats entry regimes repeats weightDecay",
    "regime": "first lr momentum other overlap sameClasses second steps",
}
_DISTANCE_ESTIMANDS = frozenset(
    {"pathwise", "law-effect", "separation", "specific", "memory-time", "dose-response", "seed-floor", "fork-floor"}
)
_NEEDS_STREAMS = frozenset({"law-effect", "separation", "memory-time", "fork-floor"})


@dataclass(frozen=True)
class Declared:
    """A plan as it was declared.

    Parameters
    ----------
    plan:
        In canonical content.
    directory:
        Where it was declared: paths in it are relative to there.
    notes:
        What was filled in for its author, a sentence each.
    """

    plan: Plan
    directory: Path
    notes: tuple[str, ...] = ()


def read_study(path: Path) -> Declared:
    """Return the plan that a `study.toml` declares.

    Raises
    ------
    UsageError
        Naming the first member that is wrong, or cannot be read.
    """
    return declare(_members(path), path.absolute().parent, path.name)


def _members(path: Path) -> dict[str, Any]:
    data = _read(path, "the study cannot be read")
    try:
        return tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # no TOML, no UTF-8
        raise UsageError("not a study", where=path.name, expected="TOML", got=str(error)[:200]) from None


def read_plan(path: Path) -> Plan:
    """Return the plan that a `plan.json` holds, in its canonical form.

    Raises
    ------
    FormatError
        If it is no plan, or not its own canonical form.
    """
    data = _read(path, "the plan cannot be read")
    plan: Plan = Plan.parse(data, path.name)
    if plan.canonical() != data:
        raise FormatError("a plan that is not in its canonical form", where=path.name)
    return plan


@dataclass(frozen=True)
class WantedProbe:
    """The program whose probe is to be written, and where."""

    entry: str
    arguments: tuple[str, ...]
    seed: str
    directory: Path
    file: str


def wanted_probe(path: Path) -> WantedProbe:
    """Return what a `study.toml` says of the probe of its program, whether that is there or not.

    Raises
    ------
    UsageError
        If its program is no factory, or it names no file for the probe.
    """
    table = _Table(_members(path), path.name, _MEMBERS[""].split())
    draft = _Draft(table, path.absolute().parent)
    program = draft.program()
    probe = table.table("probe", "probe")
    file = probe.get("file", str, "where to write it", DEFAULT_PROBE)
    _relative(probe, "file", file)
    if program["kind"] != "factory":
        table.no("program", "a program: the probe of a script is made by hand", program["entry"])
    return WantedProbe(program["entry"], tuple(program["arguments"]), draft.seeds()[0], path.absolute().parent, file)


def probe_to_write(path: Path) -> WantedProbe | None:
    """Return what `wanted_probe` does, if it is the probe of a program and not there yet."""
    table = _Table(_members(path), path.name, _MEMBERS[""].split())
    probe = table.table("probe", "probe")
    if _Draft(table, path.absolute().parent).program()["kind"] != "factory" or "sha256" in probe:
        return None
    wanted = wanted_probe(path)
    return None if (wanted.directory / wanted.file).exists() else wanted


def _read(path: Path, problem: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise UsageError(problem, where=str(path), got=error.strerror or "") from None
    if len(data) > _MOST_BYTES:
        raise UsageError(problem, where=str(path), expected=f"at most {_MOST_BYTES} bytes")
    return data


def declare(members: Mapping[str, Any], directory: Path, where: str = "study.toml") -> Declared:
    """Return the plan that the parsed TOML `members` declare; `where` is what messages call it.

    Raises
    ------
    UsageError
        Naming the first member that is wrong.
    """
    draft = _Draft(_Table(members, where, _MEMBERS[""].split()), directory)
    document = draft.document()
    try:
        plan = Plan.model_validate(_tuples(document))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise UsageError("not a plan", where=f"{where}: {place}", got=first["msg"]) from None
    _Check(plan, where).whole()
    return Declared(plan, directory, tuple(draft.notes))


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(member) for name, member in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


class _Table:
    """A table of the file, its member names in camelCase, with messages that say where."""

    def __init__(self, members: Any, where: str, known: Iterable[str] = ()) -> None:
        self.where = where
        if not isinstance(members, Mapping):
            self.no("", "a table", members)
        self._members: dict[str, Any] = {}
        names = list(known)
        for name, value in members.items():
            camel = _camel(name) if names else name
            if names and camel not in names:
                close = difflib.get_close_matches(camel, names, 1)
                remedy = f"did you mean {close[0]}?" if close else ""
                raise UsageError(
                    "an unknown member", where=self.place(name), expected=" ".join(sorted(names)), remedy=remedy
                )
            if camel in self._members:
                raise UsageError("written twice", where=self.place(name), remedy="keep one of its spellings")
            self._members[camel] = value

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def items(self) -> Iterable[tuple[str, Any]]:
        """Return all members."""
        return self._members.items()

    def place(self, name: str) -> str:
        """Return what messages call a member."""
        return f"{self.where}: {name}" if ": " not in self.where else f"{self.where}.{name}"

    def no(self, name: str, expected: str, got: Any, remedy: str = "") -> NoReturn:
        """Say that a member is not what it must be."""
        where = self.place(name) if name else self.where
        shown = "nothing" if got is None else repr(got)[:80]
        raise UsageError("not as expected", where=where, expected=expected, got=shown, remedy=remedy)

    def get(self, name: str, kind: type | tuple[type, ...], expected: str, default: Any = None) -> Any:
        """Return a member of a type; without a default it must be there."""
        value = self._members.get(name, default)
        wrong_bool = isinstance(value, bool) and kind is not bool
        if value is None or wrong_bool or not isinstance(value, kind):
            self.no(name, expected, value)
        return value

    def optional(self, name: str, kind: type | tuple[type, ...], expected: str) -> Any:
        """Return a member of a type, or `None` where it is not there."""
        return self.get(name, kind, expected) if name in self else None

    def table(self, name: str, kind: str = "") -> _Table:
        """Return a member that is a table, empty where it is not there; `kind` says which members it may have."""
        known = _MEMBERS[kind].split() if kind else ()
        return _Table(self._members.get(name, {}), self.place(name), known)

    def real(self, name: str, low: float, high: float, default: float | None = None) -> str:
        """Return a number between two bounds, exclusive, as float text."""
        expected = f"a number between {low:g} and {high:g}"
        value = self.get(name, (int, float), expected, default)
        if not (math.isfinite(value) and low < value < high):
            self.no(name, expected, value)
        return float_text(float(value))

    def count(self, name: str, low: int, high: int, default: int | None = None) -> int:
        """Return an integer between two bounds, inclusive."""
        expected = f"an integer from {low} to {high}"
        value: int = self.get(name, int, expected, default)
        if not low <= value <= high:
            self.no(name, expected, value)
        return value

    def counts(self, name: str) -> list[int]:
        """Return a list of different step numbers, in order; one number alone will do."""
        value = self.get(name, (int, list), "a list of steps")
        numbers = [value] if isinstance(value, int) else value
        good = all(type(number) is int and 0 <= number < 2**53 for number in numbers)
        if not numbers or not good or len(set(numbers)) != len(numbers):
            self.no(name, "a list of different steps, 0 or more", value)
        return sorted(numbers)

    def choice(self, name: str, choices: Iterable[str], default: str | None = None) -> str:
        """Return a member that is one of some words."""
        known = list(choices)
        value: str = self.get(name, str, " or ".join(known), default)
        if value not in known:
            close = difflib.get_close_matches(value, known, 1)
            self.no(name, " or ".join(known), value, f"did you mean {close[0]}?" if close else "")
        return value


class _Draft:
    """Makes the members of a plan out of those of the file, and notes what it fills in."""

    def __init__(self, table: _Table, directory: Path) -> None:
        self._table = table
        self._directory = directory
        self.notes: list[str] = []

    def document(self) -> dict[str, Any]:
        """Return the members of `Plan`."""
        table = self._table
        program = self.program()
        observables = self._observables()
        interventions = self._interventions(program["kind"])
        combinations = self._combinations()
        document: dict[str, Any] = {
            "schemaVersion": SCHEMA_VERSION,
            "name": table.get("name", str, "what the study is called"),
            "program": program,
            "seeds": self.seeds(),
            "noiseStreams": table.count("noiseStreams", 1, 1000, 1),
            "branchSteps": table.counts("branchSteps"),
            "horizons": table.counts("horizons"),
            "interventions": interventions,
            "observables": observables,
            "probe": self._probe(program["kind"]),
            "analysis": self._analysis(interventions),
        }
        document |= {"combinations": combinations} if combinations else {}
        document |= {
            name: value
            for name, value in (
                ("question", table.optional("question", str, "a text")),
                ("exclusions", table.optional("exclusions", list, "a list of sentences")),
            )
            if value is not None
        }
        if "fewerStreams" in table:
            fewer = table.table("fewerStreams", "fewerStreams")
            document["fewerStreams"] = {
                "after": fewer.count("after", 0, 2**53 - 1),
                "streams": fewer.count("streams", 1, 1000),
            }
        if "stateDigests" in table:
            document["stateDigests"] = table.choice("stateDigests", ("every-step", "branch-and-horizons"))
        if "backFlow" in table:
            document["backFlow"] = self._back_flow()
        primary = self._primary(document)
        document["contrasts"] = self._contrasts(document, primary)
        document["primary"] = primary
        return document

    # Members -------------------------------------------------------------------------------------------------------

    def program(self) -> dict[str, Any]:
        """Return what every arm runs."""
        table = self._table.table("program", "program")
        entry = table.get("entry", str, "FILE.py:FUNCTION, a script, or a module")
        kind = table.choice("kind", ("factory", "script", "module"), _kind_of(entry))
        arguments = table.get("arguments", list, "a list of texts", [])
        if not all(isinstance(text, str) for text in arguments):
            table.no("arguments", "a list of texts", arguments)
        if any(argument.redacted for argument in redact_argv(arguments, self._directory)):
            remedy = "a variable, or a file that the program reads: a plan is published, and nothing can be taken out"
            table.no("arguments", "no secret, and no name of a person or machine", "one of them", remedy)
        _relative(table, "entry", entry.rpartition(":")[0] if kind == "factory" else entry)
        found: dict[str, Any] = {"kind": kind, "entry": entry, "arguments": arguments}
        file = self._entry_file(kind, entry)
        if file is not None and not file.is_file():
            raise UsageError("no such file", where=table.place("entry"), got=str(entry), remedy="see [program] entry")
        if "sha256" in table:
            found["sha256"] = table.get("sha256", str, "64 hex digits")
        elif file is not None:
            found["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        if kind != "factory" and not any(_PLACEHOLDER in text for text in arguments):
            table.no(
                "arguments",
                f"{_PLACEHOLDER} in one of them: a script has no other way to learn its seed",
                arguments,
                f'arguments = ["--seed", "{_PLACEHOLDER}"]',
            )
        return found

    def _back_flow(self) -> dict[str, Any]:
        table = self._table.table("backFlow", "backFlow")
        found = back_flow_members(table, self.notes.append)
        name = found["entry"].rpartition(":")[0]
        _relative(table, "entry", name)
        file = self._entry_file("factory", found["entry"])
        if file is not None and not file.is_file():
            raise UsageError("no such file", where=table.place("entry"), got=found["entry"])
        return found if file is None else found | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}

    def _entry_file(self, kind: str, entry: str) -> Path | None:
        name = entry.rpartition(":")[0] if kind == "factory" else entry
        return self._directory / name if name.endswith(".py") and kind != "module" else None

    def seeds(self) -> list[str]:
        """Return the seeds, drawn where only their number is said."""
        table = self._table
        value = table.get("seeds", (int, list), "a number of seeds, or a list of them")
        if isinstance(value, list):
            seeds = [str(seed) if type(seed) is int else seed for seed in value]
            if not seeds or not all(isinstance(seed, str) and _SEED.fullmatch(seed) for seed in seeds):
                table.no("seeds", "integers, in text where they exceed 2^63", value)
            if len(set(seeds)) != len(seeds):
                table.no("seeds", "different seeds", value)
            return seeds
        number = table.count("seeds", 1, 10_000)
        base = table.count("seedBase", 0, 2**53 - 1, 0)
        self.notes.append(f"{number} seeds, each of 32 bits, drawn from numpy.random.SeedSequence({base})")
        return _drawn_seeds(base, number)

    def _interventions(self, kind: str) -> dict[str, Any]:
        table = self._table.table("interventions")
        found = {name: self._intervention(table, name, value) for name, value in table.items()}
        wanted = self._table.get("nullPlayers", bool, "true or false", True)
        if not wanted and kind == "factory":
            self._table.no(
                "nullPlayers", "true for a program: its null players cost little", False, "leave nullPlayers out"
            )
        if not any(item.primitive == "carry" for item in found.values()):
            self._add(found, table, "carry", {"primitive": "carry"}, "the control")
        for name in _NULL_PLAYERS if wanted else ():
            if not any(item.primitive == name for item in found.values()):
                self._add(found, table, name, self._null_player(name), "a null player")
        return {name: item.to_json() for name, item in found.items()}

    def _null_player(self, name: str) -> dict[str, Any]:
        if name == "kick":
            kick = self._table.table("analysis", "analysis").real("kick", 0, 1, DEFAULT_KICK)
            return {"primitive": "kick", "sigma": kick, "seed": "0"}
        return {"primitive": name, "seed": "0"} if name == "butterfly" else {"primitive": name}

    def _add(self, found: dict[str, Intervention], table: _Table, name: str, members: Any, why: str) -> None:
        if name in found:
            table.no(name, f"an intervention of that kind, or another name for it: `{name}` is {why}", name)
        found[name] = Intervention.model_validate(members)
        self.notes.append(f"added {why}: {name}")

    def _intervention(self, table: _Table, name: str, value: Any) -> Intervention:
        if not isinstance(value, str):
            table.no(name, "the text form of an intervention", value, 'reset = "reset:optimizer.momentum"')
        try:
            intervention, step = parse(value)
        except TrainmemAuditError as error:
            raise UsageError(
                error.message,
                where=f"{table.place(name)}: {error.where}" if error.where else table.place(name),
                expected=error.expected,
                got=error.got,
                remedy=error.remedy,
            ) from None
        if step is not None:
            table.no(name, "no step: `branch_steps` says where it acts", value, value.rpartition("@")[0])
        if intervention.primitive == "fork":
            table.no(name, "anything but a fork: the study forks its noise streams by itself", value)
        return intervention

    def _combinations(self) -> dict[str, list[str]]:
        table = self._table.table("combinations")
        for name, value in table.items():
            if not isinstance(value, list) or len(value) < 2 or not all(isinstance(part, str) for part in value):
                table.no(name, "a list of two names of interventions or more", value)
        return dict(table.items())

    def _observables(self) -> dict[str, dict[str, str]]:
        table = self._table
        kinds: tuple[str, ...] = get_args(ObservableKind)
        tasks: tuple[str, ...] = get_args(Task)
        value = table.get("observables", (list, dict), "a list of observables, or a table of them by name", [])
        if isinstance(value, list):
            unknown = next((item for item in value if not isinstance(item, str) or item not in kinds), None)
            if unknown is not None:
                table.no("observables", " ".join(kinds), unknown)
            task = table.choice("task", tasks)
            chosen = value or _usual(task)
            if not value:
                self.notes.append(f"observables: {', '.join(chosen)}")
            return {kind: {"kind": kind, "task": task} for kind in chosen}
        found = {}
        named = table.table("observables")
        for name, item in named.items():
            inner = _Table({"kind": item} if isinstance(item, str) else item, named.place(name), ("kind", "task"))
            task = inner.choice("task", tasks) if "task" in inner else table.choice("task", tasks)
            found[name] = {"kind": inner.choice("kind", kinds), "task": task}
        return found

    def _probe(self, kind: str) -> dict[str, Any]:
        table = self._table.table("probe", "probe")
        head = table.get("head", str, "whose predictions are taken", "model")
        found: dict[str, Any] = {"head": head}
        if "disjoint" in table:
            found["disjoint"] = table.get("disjoint", str, "how it is known")
        file = table.optional("file", str, "a safetensors file")
        if file is None and kind == "factory" and "sha256" not in table:
            file = DEFAULT_PROBE
        if file is None:
            return found | {
                "sha256": table.get("sha256", str, "the probe's `file`, or its `sha256` and `size`"),
                "size": table.count("size", 1, 2**53 - 1),
            }
        _relative(table, "file", file)
        sha256, size = _probe_of(self._directory / file, table.place("file"), kind)
        for member, known in (("sha256", sha256), ("size", size)):
            if member in table and table.get(member, (str, int), str(known)) != known:
                table.no(member, f"that of the file: {known}", table.get(member, (str, int), ""))
        return found | {"file": file, "sha256": sha256, "size": size}

    def _analysis(self, interventions: dict[str, Any]) -> dict[str, Any]:
        table = self._table.table("analysis", "analysis")
        sigma = next((item["sigma"] for item in interventions.values() if item["primitive"] == "kick"), None)
        return {
            "alpha": table.real("alpha", 0, 1, 0.05),
            "equivalenceMargin": table.real("equivalenceMargin", 0, math.inf),
            "kick": table.real("kick", 0, 1, DEFAULT_KICK if sigma is None else parse_float_text(sigma)),
            "adjustment": table.choice("adjustment", ("max-t", "holm", "none"), "max-t"),
        }

    def _primary(self, document: dict[str, Any]) -> dict[str, Any]:
        table = self._table.table("primary", "primary")
        observables = document["observables"]
        distances = [name for name, item in observables.items() if item["kind"] not in FUNCTIONALS]
        estimand = table.choice("estimand", get_args(Estimand), "law-effect")
        functionals = [name for name in observables if name not in distances]
        usual = (functionals if estimand == "signed" else distances) or list(observables)
        return {
            "contrast": table.get("contrast", str, "the name of a contrast", self._only_contrast(document)),
            "estimand": estimand,
            "observable": table.get("observable", str, "the name of an observable", usual[0]),
            "branchStep": table.count("branchStep", 0, 2**53 - 1, _only(document["branchSteps"])),
            "horizon": table.count("horizon", 0, 2**53 - 1, _only(document["horizons"])),
        }

    def _only_contrast(self, document: dict[str, Any]) -> str | None:
        if "contrasts" in self._table:
            named = [name for name, _ in self._table.table("contrasts").items()]
        else:
            named = [name for name, item in document["interventions"].items() if not _is_bystander(item)]
        return named[0] if len(named) == 1 else None

    def _contrasts(self, document: dict[str, Any], primary: dict[str, Any]) -> list[dict[str, str]]:
        interventions = document["interventions"]
        control = next(name for name, item in interventions.items() if item["primitive"] == "carry")
        acting = {**interventions, **{name: {"primitive": ""} for name in document.get("combinations", {})}}
        found: dict[str, dict[str, str]] = {}
        table = self._table.table("contrasts")
        for name, value in table.items():
            members = {"control": value} if isinstance(value, str) else value
            inner = _Table(members, table.place(name), _MEMBERS["contrast"].split())
            treated = inner.get("treated", str, "the name of an intervention", name)
            family = inner.choice(
                "family",
                ("confirmatory", "exploratory", "null-player"),
                _family(acting.get(treated, {}), name, primary),
            )
            found[name] = {
                "name": name,
                "treated": treated,
                "control": inner.get("control", str, "the name of an intervention", control),
                "family": family,
            }
        covered = {item["treated"] for item in found.values()} | {item["control"] for item in found.values()}
        for name, item in acting.items():
            is_player = item["primitive"] in _NULL_PLAYERS
            if name == control or name in covered or name in found or ("contrasts" in self._table and not is_player):
                continue
            family = _family(item, name, primary)
            found[name] = {"name": name, "treated": name, "control": control, "family": family}
            if "contrasts" in self._table or not is_player:
                self.notes.append(f"added a contrast: {name} against {control}, {family}")
        return list(found.values())


_SEED = re.compile(r"0|-?[1-9][0-9]{0,399}")


def _kind_of(entry: str) -> str:
    if ":" in entry:
        return "factory"
    return "script" if entry.endswith(".py") else "module"


def _is_bystander(item: Mapping[str, Any]) -> bool:
    return item["primitive"] in ("carry", *_NULL_PLAYERS)


def _family(item: Mapping[str, Any], name: str, primary: Mapping[str, Any]) -> str:
    if item.get("primitive") in _NULL_PLAYERS:
        return "null-player"
    return "confirmatory" if name == primary["contrast"] else "exploratory"


def _only(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else None


def _usual(task: str) -> list[str]:
    if task == "regression":
        return ["logit-l2", "loss"]
    usual = ["total-variation", "jensen-shannon", "loss"]
    return usual if task == "language-model" else [*usual, "disagreement", "accuracy"]


def _relative(table: _Table, name: str, text: str) -> None:
    path = PurePosixPath(text)
    if path.is_absolute() or ".." in path.parts or not text or "\\" in text:
        remedy = "put study.toml into the directory that holds it all"
        table.no(name, "a path below the directory of the study, with forward slashes", text, remedy)


def _probe_of(path: Path, where: str, kind: str) -> tuple[str, int]:
    """Return the SHA-256 of a probe's file and how many examples it has."""
    if kind == "factory" and not path.exists():
        remedy = "trainmem-audit study probe writes it; so does study run"
        raise UsageError("the probe of the program is not there yet", where=where, got=path.name, remedy=remedy)
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            entries = ArrayFile(file, path.stat().st_size, path.name).entries
    except OSError as error:
        raise UsageError("the probe cannot be read", where=where, got=error.strerror or "") from None
    inputs, targets = entries.get("x"), entries.get("y")
    if inputs is None or not inputs.shape or inputs.shape[0] == 0:
        raise UsageError("not a probe", where=where, expected="an array `x` of inputs, the first axis over examples")
    if targets is not None and targets.shape[:1] != inputs.shape[:1]:
        raise UsageError("not a probe", where=where, expected="as many targets `y` as inputs `x`")
    return sha256, inputs.shape[0]


def _drawn_seeds(base: int, number: int) -> list[str]:
    """Return seeds of 32 bits (NumPy takes no longer ones), all different, each a hash of `base` and its place."""
    from numpy.random import SeedSequence

    seeds: list[str] = []
    place = 0
    while len(seeds) < number:
        seed = str(int(SeedSequence(base, spawn_key=(place,)).generate_state(1)[0]))
        place += 1
        if seed not in seeds:
            seeds.append(seed)
    return seeds


def _camel(name: str) -> str:
    first, *rest = re.split(r"[-_]", name)
    return first + "".join(part[:1].upper() + part[1:] for part in rest)


class _Check:
    """What a plan must be as a whole, beyond the form of its members."""

    def __init__(self, plan: Plan, where: str) -> None:
        self._plan = plan
        self._where = where

    def whole(self) -> None:
        """Raise at the first thing that is wrong."""
        self._names()
        for check in (self._contrasts, self._primary, self._streams, self._kind):
            check()
        for problem in () if self._plan.back_flow is None else back_flow_problems(self._plan.back_flow):
            self._no(*problem)

    def _no(self, place: str, expected: str, got: str, remedy: str = "") -> NoReturn:
        raise UsageError("not as expected", where=f"{self._where}: {place}", expected=expected, got=got, remedy=remedy)

    def _names(self) -> None:
        plan = self._plan
        for name in (*plan.interventions, *(plan.combinations or {})):
            if not _ARM_PART.fullmatch(name) or name == "prefix":
                self._no(
                    f"interventions.{name}", "letters, digits, - and _ (arms are folders), and not `prefix`", repr(name)
                )
        folded = [name.casefold() for name in (*plan.interventions, *(plan.combinations or {}))]
        twice = next((name for name in folded if folded.count(name) > 1), None)
        if twice is not None:
            self._no(f"interventions.{twice}", "names that differ in more than case", "the same name twice")
        for name, parts in (plan.combinations or {}).items():
            for part in parts:
                self._known(f"combinations.{name}", part, plan.interventions, "an intervention")

    def _known(self, place: str, name: str, known: Iterable[str], what: str) -> None:
        names = sorted(known)
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            self._no(place, f"{what}: {' '.join(names)}", name, f"did you mean {close[0]}?" if close else "")

    def _contrasts(self) -> None:
        plan = self._plan
        known = [*plan.interventions, *(plan.combinations or {})]
        for item in plan.contrasts:
            self._known(f"contrasts.{item.name}.treated", item.treated, known, "an intervention")
            self._known(f"contrasts.{item.name}.control", item.control, known, "an intervention")
            if item.treated == item.control:
                self._no(f"contrasts.{item.name}", "two different arms", item.treated)

    def _primary(self) -> None:
        plan, primary = self._plan, self._plan.primary
        self._known("primary.contrast", primary.contrast, (item.name for item in plan.contrasts), "a contrast")
        self._known("primary.observable", primary.observable, plan.observables, "an observable")
        for name, value, known in (
            ("branch_step", primary.branch_step, plan.branch_steps),
            ("horizon", primary.horizon, plan.horizons),
        ):
            if value not in known:
                self._no(f"primary.{name}", f"one of {', '.join(map(str, known))}", str(value))
        functional = plan.observables[primary.observable].kind in FUNCTIONALS
        if functional and primary.estimand in _DISTANCE_ESTIMANDS:
            self._no("primary.observable", f"a distance: {primary.estimand} is of one", primary.observable)
        if not functional and primary.estimand == "signed":
            self._no("primary.observable", "a functional (loss, accuracy …): `signed` is of one", primary.observable)
        streams = sum(primary.horizon in plan.horizons_of(stream) for stream in range(plan.noise_streams))
        if primary.estimand in _NEEDS_STREAMS and streams < 2:
            self._no(
                "primary.estimand",
                "two noise streams at least at its horizon: a law effect is compared with the fork floor",
                f"{primary.estimand}, with noise_streams = {streams}",
                'noise_streams = 2, or estimand = "pathwise"',
            )

    def _streams(self) -> None:
        fewer = self._plan.fewer_streams
        if fewer is None:
            return
        if fewer.streams >= self._plan.noise_streams:
            self._no("fewer_streams.streams", f"less than noise_streams = {self._plan.noise_streams}", "as many")
        if fewer.after not in self._plan.horizons:
            self._no("fewer_streams.after", "one of the horizons", str(fewer.after))

    def _kind(self) -> None:
        plan = self._plan
        if plan.program.kind == "factory":
            return
        for name, item in plan.interventions.items():
            if item.primitive == "equalise":
                self._no(
                    f"interventions.{name}",
                    "anything but equalise: the arms of a script are reruns, so none knows the state of another",
                    "equalise",
                    'write the training as a program (entry = "FILE.py:FUNCTION")',
                )
        if plan.probe.file is None:
            self._no("probe.file", "a file: a script's model is run on it", "nothing")


_ARM_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
