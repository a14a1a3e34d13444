"""The plan of a study: what is declared before anything runs. Its digest stands in the statement of every arm.

Here too, since everyone who reads an arm needs them: what arms a plan has, and what they are called. Not here: the
friendly form in which people write plans (`study.plan`), and whether a plan makes sense as a whole (there too).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from trainmem_audit.canonical import canonical_bytes, sha256_hex
from trainmem_audit.documents.backflow import BackFlowPlan
from trainmem_audit.documents.common import Count, Digest, Document, Extensions, FloatText, IntegerText, Name, RelPath
from trainmem_audit.documents.common import Sequence as Items
from trainmem_audit.documents.interventions import Intervention
from trainmem_audit.documents.manifest import DerivedFrom
from trainmem_audit.documents.steplog import CommandText

__all__ = [
    "FUNCTIONALS",
    "Analysis",
    "ArmName",
    "Contrast",
    "Estimand",
    "FewerStreams",
    "Observable",
    "Plan",
    "PlannedProgram",
    "Primary",
    "Probe",
]

Kind = Literal["factory", "script", "module"]
Family = Literal["confirmatory", "exploratory", "null-player"]
Estimand = Literal[
    "pathwise",
    "law-effect",
    "separation",
    "specific",
    "signed",
    "memory-time",
    "dose-response",
    "seed-floor",
    "fork-floor",
    "interaction",
    "shapley",
    "order-sensitivity",
    "back-flow",
    "twin-witness",
]
ObservableKind = Literal[
    "total-variation",
    "jensen-shannon",
    "hellinger",
    "logit-l2",
    "disagreement",
    "loss",
    "accuracy",
    "calibration-error",
]
Task = Literal["classification", "regression", "language-model"]
Streams = Annotated[int, Field(ge=1, le=1000)]
_MOST = 1000
_LONG_TEXT = 10_000
FUNCTIONALS: frozenset[ObservableKind] = frozenset({"loss", "accuracy", "calibration-error"})
"""The observables that are of one function; the others are distances between two."""


class PlannedProgram(Document):
    """What every arm runs; `{seed}` in an argument stands for the seed."""

    kind: Kind
    entry: RelPath
    arguments: Annotated[Items[CommandText], Field(max_length=_MOST)] = ()
    sha256: Digest | None = None


class FewerStreams(Document):
    """Horizons after `after` are reached by the first `streams` noise streams only."""

    after: Count
    streams: Streams


class Contrast(Document):
    """An intervention (or a combination of some) against its control, by their names."""

    name: Name
    treated: Name
    control: Name
    family: Family


class Primary(Document):
    """The comparison that decides: one estimand of one contrast at one horizon."""

    contrast: Name
    estimand: Estimand
    observable: Name
    branch_step: Count
    horizon: Count


class Probe(Document):
    """The inputs on which functions are compared: the digest of their file, how many, and whose predictions count."""

    file: RelPath | None = None
    sha256: Digest
    size: Count
    head: Name
    disjoint: Annotated[str, Field(max_length=_LONG_TEXT)] | None = None


class Observable(Document):
    """Something computed on the probe."""

    kind: ObservableKind
    task: Task


class Analysis(Document):
    """How the numbers are judged, fixed before any is seen."""

    alpha: FloatText
    equivalence_margin: FloatText
    kick: FloatText | None = None
    adjustment: Literal["max-t", "holm", "none"] | None = None


@dataclass(frozen=True, order=True)
class ArmName:
    """One arm of a plan: `seed` is the place of its seed among the plan's, `stream` its noise stream."""

    seed: int
    branch: int
    stream: int
    intervention: str

    def __str__(self) -> str:
        return f"{self.intervention}.s{self.seed}.b{self.branch}.r{self.stream}"


class Plan(Document):
    """The whole plan."""

    schema_version: Name
    name: Name
    question: Annotated[str, Field(max_length=_LONG_TEXT)] | None = None
    program: PlannedProgram
    seeds: Annotated[Items[IntegerText], Field(min_length=1, max_length=10_000)]
    noise_streams: Streams
    fewer_streams: FewerStreams | None = None
    branch_steps: Annotated[Items[Count], Field(min_length=1, max_length=_MOST)]
    horizons: Annotated[Items[Count], Field(min_length=1, max_length=_MOST)]
    interventions: Annotated[dict[Name, Intervention], Field(min_length=1, max_length=_MOST)]
    combinations: (
        Annotated[dict[Name, Annotated[Items[Name], Field(min_length=2, max_length=64)]], Field(max_length=_MOST)]
        | None
    ) = None
    contrasts: Annotated[Items[Contrast], Field(min_length=1, max_length=_MOST)]
    primary: Primary
    probe: Probe
    observables: Annotated[dict[Name, Observable], Field(min_length=1, max_length=100)]
    analysis: Analysis
    state_digests: Literal["every-step", "branch-and-horizons"] | None = None
    back_flow: BackFlowPlan | None = None
    exclusions: Annotated[Items[str], Field(max_length=100)] | None = None
    derived_from: DerivedFrom | None = None
    extensions: Extensions | None = None

    def canonical(self) -> bytes:
        """Return the canonical form, which `plan.json` holds."""
        return canonical_bytes(self.to_json())

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical form."""
        return sha256_hex(self.canonical())

    def acting(self, name: str) -> tuple[Intervention, ...]:
        """Return what acts at the branch in the arms called `name`, in order."""
        parts = (self.combinations or {}).get(name)
        return (self.interventions[name],) if parts is None else tuple(self.interventions[part] for part in parts)

    @property
    def treatments(self) -> tuple[str, ...]:
        """The names of the interventions and combinations that some contrast needs an arm of, sorted."""
        return tuple(sorted({name for item in self.contrasts for name in (item.treated, item.control)}))

    def horizons_of(self, stream: int) -> tuple[int, ...]:
        """Return the horizons that a noise stream reaches."""
        fewer = self.fewer_streams
        if fewer is None or stream < fewer.streams:
            return self.horizons
        return tuple(horizon for horizon in self.horizons if horizon <= fewer.after)

    def arms(self) -> Iterator[ArmName]:
        """Yield every arm, seed by seed, branch by branch, stream by stream."""
        for seed in range(len(self.seeds)):
            for branch in self.branch_steps:
                for stream in range(self.noise_streams):
                    for name in self.treatments:
                        yield ArmName(seed, branch, stream, name)

    def prefix_id(self, seed: int) -> str:
        """Return what the run is called that the arms of a seed leave."""
        return f"prefix.s{seed}"
