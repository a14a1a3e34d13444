"""Interventions: what is done to a component of training memory, or to the order, at one cut (STANDARD § 2).

The same document stands in a plan and in the step log. Which parameters there are follows from the primitive, one row
of `PARAMETERS` for each. Not here: the text form (`interventions`), doing it (`intervening`).
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Final, Literal, Self, get_args

from pydantic import Field, model_validator

from trainmem_audit.documents.common import Count, Digest, Document, IntegerText, Name, RelPath, Sequence

__all__ = [
    "ORDER_PRIMITIVES",
    "PARAMETERS",
    "PRIMITIVES",
    "Arm",
    "Branch",
    "FiniteText",
    "Intervention",
    "Moment",
    "Parameters",
    "Policy",
    "Primitive",
    "Window",
]

Primitive = Literal[
    "carry",
    "placebo",
    "reset",
    "zero",
    "scale",
    "noise",
    "transplant",
    "recalibrate",
    "freeze",
    "swap-windows",
    "permute-window",
    "policy",
    "flush",
    "shuffle",
    "truncate",
    "age",
    "decay",
    "lag",
    "swap",
    "equalise",
    "fork",
    "kick",
    "butterfly",
]
Policy = Literal["reshuffle", "with-replacement", "fixed"]
PRIMITIVES: Final[tuple[str, ...]] = get_args(Primitive)
ORDER_PRIMITIVES: Final = frozenset({"swap-windows", "permute-window", "policy"})
FiniteText = Annotated[str, Field(max_length=24, pattern=r"^(-?0x0\.0p\+0|-?0x[01]\.[0-9a-f]{13}p[+-][0-9]{1,4})$")]
"""A finite float as `canonical.float_text` writes it."""


class Window(Document):
    """The batches [first, to) counted from the cut at which the intervention acts."""

    first: Annotated[Count, Field(alias="from")]
    to: Count


class Moment(Document):
    """The state after `step` of a run: its id, in a plan or on a command line its directory; absent: of this run."""

    run: RelPath | None = None
    step: Count


@dataclass(frozen=True)
class Parameters:
    """The members that a primitive must have beside its name, and those that it may have."""

    needed: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()


def _of(needed: str = "", allowed: str = "") -> Parameters:
    return Parameters(frozenset(needed.split()), frozenset(allowed.split()))


PARAMETERS: Final = MappingProxyType(
    {
        "carry": _of(allowed="component"),
        "placebo": _of(allowed="component"),
        "reset": _of("component", "step_counter"),
        "zero": _of("component"),
        "scale": _of("component factor"),
        "noise": _of("component sigma seed"),
        "transplant": _of("component source"),
        "recalibrate": _of("component steps"),
        "freeze": _of("component"),
        "swap-windows": _of("windows"),
        "permute-window": _of("windows seed"),
        "policy": _of("policy", "seed"),
        "flush": _of("component", "seed"),
        "shuffle": _of("component seed"),
        "truncate": _of("component steps"),
        "age": _of("component steps"),
        "decay": _of("component decay"),
        "lag": _of("component steps"),
        "swap": _of("component other"),
        "equalise": _of("component other"),
        "fork": _of("seed", "kept"),
        "kick": _of("sigma seed"),
        "butterfly": _of("seed"),
    }
)
"""For each primitive its parameters, by the names of the members of `Intervention`."""
_WINDOWS: Final = MappingProxyType({"swap-windows": 2, "permute-window": 1})


class Intervention(Document):
    """One primitive with its parameters."""

    primitive: Primitive
    component: Name | None = None
    factor: FiniteText | None = None
    sigma: FiniteText | None = None
    decay: FiniteText | None = None
    steps: Count | None = None
    step_counter: Literal["keep", "reset"] | None = None
    source: Annotated[Moment | None, Field(alias="from")] = None
    other: Annotated[Name | None, Field(alias="with")] = None
    windows: Annotated[Sequence[Window], Field(min_length=1, max_length=2)] | None = None
    policy: Policy | None = None
    seed: IntegerText | None = None
    kept: Annotated[Sequence[Name], Field(min_length=1, max_length=1000)] | None = None

    @model_validator(mode="after")
    def _parameters_of_the_primitive(self) -> Self:
        rule = PARAMETERS[self.primitive]
        given = {name for name in type(self).model_fields if getattr(self, name) is not None} - {"primitive"}
        if missing := sorted(rule.needed - given):
            raise ValueError(f"{self.primitive} needs {' and '.join(map(_spelt, missing))}")
        if odd := sorted(given - rule.needed - rule.allowed):
            raise ValueError(f"{self.primitive} has no {' and no '.join(map(_spelt, odd))}")
        if self.primitive in _WINDOWS and len(self.windows or ()) != _WINDOWS[self.primitive]:
            raise ValueError(f"{self.primitive} has {_WINDOWS[self.primitive]} windows")
        return self


def _spelt(name: str) -> str:
    return Intervention.model_fields[name].alias or name


class Branch(Document):
    """Where an arm left the run that it shares with others: that run, the link of its line for the last step before."""

    run: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    chain_head: Digest
    step: Count


class Arm(Document):
    """Which arm of a study a run is; a prefix that arms share has no stream, no branch and no intervention."""

    id: Name
    seed: IntegerText
    stream: Count | None = None
    branch_step: Count | None = None
    intervention: Name | None = None
