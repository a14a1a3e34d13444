"""What a study found (`estimates.json`): every arm, the certificate of every pair, every number with its uncertainty.

One closed document; its envelope is signed like any other. Floats are `FloatText`; a list per seed has an entry for
every seed of the plan, `nan` where it has no value. Not here: how the numbers are made (`estimation`) and what reads
the arms (`study`).
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from trainmem_audit.documents.common import Count, Digest, Document, Extensions, Flag, FloatText, IntegerText, Name
from trainmem_audit.documents.common import Sequence as Items
from trainmem_audit.documents.manifest import DerivedFrom
from trainmem_audit.documents.pairing import Clause, Label
from trainmem_audit.documents.plan import Estimand
from trainmem_audit.documents.steplog import Producer

__all__ = [
    "Arm",
    "Attribution",
    "BackFlow",
    "BoundStudyLog",
    "Clause",
    "Curve",
    "DroppedSeed",
    "Equivalence",
    "Estimate",
    "Estimates",
    "Interval",
    "Measured",
    "MemoryTime",
    "Method",
    "Pair",
    "SeedTable",
    "SourceEffect",
    "Test",
]

Adjustment = Literal["max-t", "holm", "benjamini-hochberg", "none"]
Nonce = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
Text = Annotated[str, Field(max_length=10_000)]
Units = Annotated[int, Field(ge=0, le=10_000)]
Streams = Annotated[int, Field(ge=1, le=1000)]
Floats = Annotated[Items[FloatText], Field(max_length=10_000)]
Warnings = Annotated[Items[str], Field(max_length=100)]
Horizons = Annotated[Items[Count], Field(max_length=1000)]


class BoundStudyLog(Document):
    """What binds the study log: its last link, how often an arm was started, how many arms the estimates use."""

    chain_head: Digest
    started: Count
    reported: Count


class Arm(Document):
    """One recorded run; one that failed or was left out says why, and a prefix that arms share has no intervention."""

    id: Name
    seed: IntegerText
    stream: Count | None = None
    branch_step: Count | None = None
    intervention: Name | None = None
    run: Nonce | None = None
    statement: Digest | None = None
    prefix: Digest | None = None
    outcome: Literal["completed", "failed", "excluded"]
    reason: Text | None = None

    @model_validator(mode="after")
    def _has_what_its_outcome_needs(self) -> Self:
        needed = ("run", "statement") if self.outcome == "completed" else ("reason",)
        missing = [name for name in needed if getattr(self, name) is None]
        if missing:
            raise ValueError(f"an arm that is {self.outcome} has {missing[0]}")
        return self


class Pair(Document):
    """Two arms with the same seed and noise stream, and what their logs prove."""

    treated: Name
    control: Name
    certificate: Annotated[Items[Clause], Field(min_length=1, max_length=4)]
    label: Label


class Interval(Document):
    """A confidence interval over seeds, with the coverage simulated for so many of them and such a skewness."""

    low: FloatText
    high: FloatText
    level: FloatText
    method: Literal["t", "log-t", "jackknife-t"]
    coverage: FloatText | None = None
    skewness: FloatText | None = None


class Test(Document):
    """A randomisation test of no effect."""

    __test__ = False

    method: Literal["sign-flip-exact", "sign-flip-sampled", "swap-exact", "swap-sampled"]
    p: FloatText
    smallest_p: FloatText | None = None
    adjusted_p: FloatText | None = None
    adjustment: Adjustment | None = None


class Equivalence(Document):
    """Two one-sided tests at the margin."""

    margin: FloatText
    p: FloatText


class Estimate(Document):
    """One number: an estimand of a contrast at a horizon."""

    contrast: Name
    estimand: Estimand
    observable: Name
    branch_step: Count
    horizon: Count
    value: FloatText
    floor: FloatText | None = None
    units: Units
    streams: Streams | None = None
    per_unit: Floats | None = None
    interval: Interval | None = None
    test: Test | None = None
    equivalence: Equivalence | None = None
    bitwise_equal: Flag | None = None
    verdict: Literal["effect", "equivalent", "undecided", "unpaired", "descriptive"]
    warnings: Warnings | None = None


class Method(Document):
    """How the numbers were computed; `software` is no part of what must recompute."""

    alpha: FloatText
    level: FloatText
    equivalence_margin: FloatText
    confirmatory: Literal["max-t", "holm", "none"]
    exploratory: Literal["benjamini-hochberg"]
    exact_up_to: Count
    sampled: Count
    calibration_bins: Count
    coverage_table: Digest
    definitions: Annotated[dict[Name, Text], Field(max_length=100)]
    software: Annotated[dict[Name, Name], Field(max_length=100)]


class DroppedSeed(Document):
    """A seed that is left out of a contrast, and why."""

    seed: IntegerText
    reason: Text


class SeedTable(Document):
    """The values of each seed: distances P, F, the floor of the treated, B, W, E, or a functional of both arms."""

    contrast: Name
    observable: Name
    branch_step: Count
    horizon: Count
    streams: Count
    pathwise: Floats | None = None
    fork_floor: Floats | None = None
    treated_floor: Floats | None = None
    between: Floats | None = None
    within: Floats | None = None
    law_effect: Floats | None = None
    control: Floats | None = None
    treated: Floats | None = None
    dropped: Annotated[Items[DroppedSeed], Field(max_length=10_000)] | None = None


class Curve(Document):
    """One contrast over the horizons, beside the null players."""

    contrast: Name
    observable: Name
    branch_step: Count
    horizons: Horizons
    pathwise: Floats
    kick: Floats | None = None
    butterfly: Floats | None = None
    fork_floor: Floats | None = None
    law_effect: Floats | None = None
    law_low: Floats | None = None
    law_high: Floats | None = None


class Measured(Document):
    """A number with its uncertainty over seeds."""

    value: FloatText
    units: Units
    per_unit: Floats | None = None
    interval: Interval | None = None
    test: Test | None = None
    warnings: Warnings | None = None


class MemoryTime(Document):
    """How long the law effect lasts; `from` and `to` are the first and the last horizon of the fit."""

    contrast: Name
    observable: Name
    branch_step: Count
    first: Annotated[Count, Field(alias="from")]
    to: Count
    tau: Measured
    states: Annotated[Items[Literal["fitted", "longer", "shorter", "none"]], Field(max_length=10_000)]
    last_significant: Count | None = None
    washout: Count | None = None
    area: Measured | None = None


class SourceEffect(Document):
    """What one source, or two together, contribute."""

    kind: Literal["main", "interaction", "shapley"]
    sources: Annotated[Items[Name], Field(min_length=1, max_length=2)]
    effect: Measured
    share: FloatText | None = None


class Attribution(Document):
    """A factorial over interventions, in a signed functional."""

    control: Name
    sources: Annotated[Items[Name], Field(min_length=1, max_length=10)]
    null_players: Annotated[Items[Name], Field(max_length=10)] | None = None
    observable: Name
    branch_step: Count
    horizon: Count
    total: Measured
    effects: Annotated[Items[SourceEffect], Field(max_length=1000)]


class BackFlow(Document):
    """The two-instrument witness for one setting; what was not run is left out."""

    name: Name
    observable: Name
    first: Measured
    second: Measured
    delta: Measured
    twin: Measured | None = None
    twin_ratio: Measured | None = None
    against_common: Measured | None = None
    against_break: Measured | None = None
    equivalence: Equivalence | None = None
    bitwise_equal: Flag | None = None
    dropped: Annotated[Items[DroppedSeed], Field(max_length=10_000)] | None = None
    diagnostics: Annotated[dict[Name, Floats], Field(max_length=100)] | None = None


class Estimates(Document):
    """The whole document."""

    schema_version: Name
    producer: Producer
    plan: Digest
    study_log: BoundStudyLog
    method: Method
    arms: Annotated[Items[Arm], Field(max_length=100_000)]
    pairs: Annotated[Items[Pair], Field(max_length=1_000_000)]
    estimates: Annotated[Items[Estimate], Field(max_length=100_000)]
    per_seed: Annotated[Items[SeedTable], Field(max_length=100_000)] | None = None
    curves: Annotated[Items[Curve], Field(max_length=100_000)] | None = None
    memory_times: Annotated[Items[MemoryTime], Field(max_length=100_000)] | None = None
    attributions: Annotated[Items[Attribution], Field(max_length=10_000)] | None = None
    back_flows: Annotated[Items[BackFlow], Field(max_length=10_000)] | None = None
    derived_from: DerivedFrom | None = None
    extensions: Extensions | None = None
