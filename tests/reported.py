"""Studies to report on: their numbers come out of a small real training (`tests.test_estimation`), not out of the air.

`everything` has each part that a report can show, `minimal` next to nothing, `troubled` failures, broken pairs and
undecided contrasts, `extreme` values and names that no study should have.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from tests import builders
from tests import test_estimation as world
from trainmem_audit.canonical import canonical_bytes, float_text, sha256_hex
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.documents.estimates import (
    Arm,
    Attribution,
    BoundStudyLog,
    Curve,
    DroppedSeed,
    Equivalence,
    Estimate,
    Estimates,
    MemoryTime,
    Pair,
)
from trainmem_audit.documents.findings import Signature
from trainmem_audit.documents.pairing import Clause, ClauseName
from trainmem_audit.documents.plan import Plan
from trainmem_audit.documents.steplog import Producer
from trainmem_audit.estimands import BackFlow
from trainmem_audit.estimation import Results, back_flow_estimate, estimate
from trainmem_audit.study.estimating import CheckedEstimates

HOSTILE = "<script>alert(1)</script>|`a`\n# h\n\x1b[31m\u202ecod.exe [l](http://evil) $x$ {{ 1 }} ]]>&quot;"
CLAUSES: tuple[ClauseName, ...] = ("prefix", "intervention", "order", "streams")
FAMILIES = ("confirmatory", "exploratory", "null-player")
HOLDING = {name: Clause(clause=name, state="holds") for name in CLAUSES}
BROKEN = {"half": "streams", "both": "prefix", "permute-1": "order", "permute-2": "intervention"}
FAILING = {
    "prefix": Clause(clause="prefix", state="fails", step=12, name="model.params", detail="before the branch: differ"),
    "intervention": Clause(clause="intervention", state="fails", step=40, name="teacher.params", detail="touched too"),
    "order": Clause(clause="order", state="inconclusive", detail="nothing says which batches were consumed"),
    "streams": Clause(clause="streams", state="fails", step=7, name="rng.torch.cpu", detail="other states"),
}


class Reported(NamedTuple):
    """A plan and what was found about its estimates."""

    plan: Plan
    checked: CheckedEstimates

    @property
    def document(self) -> Estimates:
        """The estimates, which are there."""
        assert self.checked.document is not None
        return self.checked.document


def planned(**changes: Any) -> dict[str, Any]:
    """Return the JSON value of a plan of the small training, its null players a family of their own."""
    whole = world.plan() | {"question": "For how many steps does resetting momentum matter?"}
    return whole | changes


def reported(
    plan: dict[str, Any],
    results: Results,
    *,
    problems: dict[str, str] | None = None,
    failing: dict[str, Clause] | None = None,
    no_ops: tuple[str, ...] = ("placebo",),
    signature: str = "self",
    members: dict[str, Any] | None = None,
    doubts: list[str] | None = None,
    differing: list[str] | None = None,
    repeated: int = 0,
) -> Reported:
    """Return a study of these results: all its arms and pairs, but for those with problems."""
    model: Plan = Plan.parse(canonical_bytes(plan), "plan.json")
    arms = [
        Arm(
            id=str(name),
            seed=model.seeds[name.seed],
            stream=name.stream,
            branch_step=name.branch,
            intervention=name.intervention,
            **_became(str(name), problems or {}),
        )
        for name in model.arms()
    ]
    completed = {arm.id for arm in arms if arm.outcome == "completed"}
    pairs = [pair for pair in _pairs(model, failing or {}, no_ops) if {pair.treated, pair.control} <= completed]
    document = Estimates(
        schema_version=SCHEMA_VERSION,
        producer=Producer(name="trainmem-audit", version="0.1.0"),
        plan=model.digest,
        study_log=BoundStudyLog(chain_head=sha256_hex(b"log"), started=len(arms) + repeated, reported=len(completed)),
        arms=tuple(arms),
        pairs=tuple(pairs),
        **{**results.members(), **(members or {})},
    )
    judged: Any = {"state": signature, "keyid": builders.KEYID, "detail": ""}
    checked = CheckedEstimates(
        name="estimates.json",
        signature=Signature(**judged),
        document=document,
        problems=doubts or [],
        differing=differing or [],
        recomputed=True,
    )
    return Reported(model, checked)


def _became(name: str, problems: dict[str, str]) -> dict[str, Any]:
    if name in problems:
        outcome, _, reason = problems[name].partition(": ")
        return {"outcome": outcome, "reason": reason}
    return {"outcome": "completed", "run": sha256_hex(name.encode())[:32], "statement": sha256_hex(name.encode())}


def _pairs(plan: Plan, failing: dict[str, Clause], no_ops: tuple[str, ...]) -> Iterator[Pair]:
    for contrast in plan.contrasts:
        broken = failing.get(contrast.name)
        clauses = tuple(broken if broken and broken.clause == name else HOLDING[name] for name in HOLDING)
        label: Any = "unpaired" if broken else "no-op" if contrast.name in no_ops else "paired"
        for arm in plan.arms():
            if arm.intervention == contrast.treated:
                control = str(replace(arm, intervention=contrast.control))
                yield Pair(treated=str(arm), control=control, certificate=clauses, label=label)


def _flows() -> tuple[Any, ...]:
    rng = np.random.default_rng(4)

    def seeds(twin: float, expansion: float) -> list[BackFlow]:
        noise = rng.normal(size=(8, 5)) * 0.002
        rows = np.array([0.02, 0.02 + expansion, 0.02 + expansion / 2, 0.02 + expansion / 3, twin]) + noise
        return [BackFlow(*map(float, row)) for row in np.abs(rows)]

    standard = back_flow_estimate("standard", "tv", seeds(0.012, 0.004), rng, diagnostics={"cosine": [0.1] * 8})
    equivalence = Equivalence(margin=float_text(1e-3), p=float_text(0.9))
    dropped = (DroppedSeed(seed="3", reason="failed"),)
    return (
        standard.model_copy(update={"equivalence": equivalence, "dropped": dropped}),
        back_flow_estimate("resonant-strong", "tv", seeds(0.021, 0.03), rng),
        back_flow_estimate("orthogonal", "tv", seeds(0.016, -0.006), rng),
        back_flow_estimate("negative", "tv", [BackFlow(0, 0, 0, 0, 0)] * 8, rng, bitwise_equal=True),
    )


@cache
def everything() -> Reported:
    """Return a study with every part."""
    plan = planned()
    return reported(plan, estimate(plan, world.World()), members={"back_flows": _flows()})


@cache
def minimal() -> Reported:
    """Return a study of one contrast, two seeds and one noise stream."""
    plan = planned(seeds=["0", "1"], noiseStreams=1, horizons=[3])
    plan["contrasts"] = plan["contrasts"][:1]
    plan["primary"] = plan["primary"] | {"estimand": "pathwise"}
    del plan["combinations"], plan["question"]
    return reported(plan, estimate(plan, world.World()), signature="unknown-signer")


@cache
def troubled() -> Reported:
    """Return a study with failed arms, broken pairs, a primary contrast among them, and numbers that differ."""
    plan = planned(seeds=["0", "1", "2", "3"], fewerStreams={"after": 10, "streams": 1})
    plan["primary"] = plan["primary"] | {"contrast": "half"}
    problems = {
        "half.s1.b40.r0": "failed: out of memory",
        "reset.s2.b40.r1": "excluded: its loss is not finite",
        **{f"kick.s{seed}.b40.r0": "failed: killed" for seed in range(4)},
    }
    results = estimate(plan, world.World(problems=problems, unpaired="half"))
    failing = {name: FAILING[clause] for name, clause in BROKEN.items()}
    return reported(
        plan,
        results,
        problems=problems,
        failing=failing,
        signature="invalid",
        repeated=2,
        doubts=["arms/carry.s0.b40.r0: steps.jsonl is not the file that was signed"],
        differing=["estimates[3].value"],
    )


@cache
def equal() -> Reported:
    """Return a study whose primary contrast changes no bit."""
    plan = planned(seeds=["0", "1", "2"])
    plan["primary"] = plan["primary"] | {"contrast": "placebo"}
    return reported(plan, estimate(plan, world.World()))


@cache
def undecided() -> Reported:
    """Return a study of so few seeds that it decides nothing."""
    plan = planned(seeds=["0", "1"], noiseStreams=2, horizons=[30])
    plan["primary"] = plan["primary"] | {"horizon": 30}
    plan["analysis"] = plan["analysis"] | {"equivalenceMargin": float_text(1e-9)}
    return reported(plan, estimate(plan, world.World(streams=2)), signature="trusted")


@cache
def extreme() -> Reported:
    """Return a study of 60 contrasts with names and values that no study should have."""
    base = planned()  # whose numbers are taken, and changed
    names = [f"{HOSTILE[: 60 + i]} {i}" for i in range(30)] + [f"a-long-name-of-a-contrast-{i}" * 4 for i in range(30)]
    plan = base | {
        "name": HOSTILE,
        "question": HOSTILE,
        "exclusions": [HOSTILE],
        "contrasts": [
            {"name": name, "treated": "reset", "control": "carry", "family": FAMILIES[i % 3]}
            for i, name in enumerate(names)
        ],
    }
    plan["interventions"] = base["interventions"] | {"reset": {"primitive": "reset", "component": HOSTILE}}
    plan["primary"] = plan["primary"] | {"contrast": names[0]}
    results = estimate(base | {"contrasts": base["contrasts"][:6]}, world.World())
    members: dict[str, Any] = {
        "estimates": tuple(_extreme_estimates(results, names)),
        "curves": tuple(_extreme_curves(results, names)),
        "memory_times": tuple(_extreme_times(results, names)),
        "attributions": tuple(_extreme_attributions(results)),
        "back_flows": tuple(item.model_copy(update={"name": HOSTILE[:190]}) for item in _flows()),
        "per_seed": None,
    }
    failing = {names[3]: FAILING["streams"].model_copy(update={"detail": HOSTILE, "name": HOSTILE[:100]})}
    problems = {"reset.s0.b40.r0": f"failed: {HOSTILE}"}
    return reported(plan, results, members=members, failing=failing, problems=problems, doubts=[HOSTILE])


VALUES = (0.47, math.inf, 0.0, -0.3, 1e-9, math.nan, 1e300, -1e-300, 3.0, 12345.678)


def _extreme_estimates(results: Results, names: list[str]) -> Iterator[Estimate]:
    found = next(item for item in results.estimates if item.estimand == "law-effect" and item.horizon == 3)
    signed = next(item for item in results.estimates if item.estimand == "signed" and item.horizon == 3)
    assert found.interval is not None
    for i, name in enumerate(names):
        value = VALUES[i % len(VALUES)]
        interval = found.interval.model_copy(
            update={"low": float_text(-math.inf if i % 7 == 0 else value), "high": float_text(value * (1 + i % 3))}
        )
        verdict = ("effect", "equivalent", "undecided", "unpaired")[i % 4]
        changed = {"contrast": name, "value": float_text(value), "interval": interval, "verdict": verdict}
        changed["warnings"] = (HOSTILE, f"skewness {i}")
        changed["per_unit"] = tuple(float_text(VALUES[(i + k) % len(VALUES)]) for k in range(8))
        yield found.model_copy(update=changed)
        yield signed.model_copy(update=changed)


def _extreme_curves(results: Results, names: list[str]) -> Iterator[Curve]:
    for i, name in enumerate(names):
        texts = tuple(float_text(VALUES[(i + k) % len(VALUES)]) for k in range(6))
        yield results.curves[0].model_copy(
            update={
                "contrast": name,
                "horizons": (0, 1, 3, 10**6, 10**12, 2**52),
                **dict.fromkeys(("pathwise", "kick", "butterfly", "fork_floor"), texts),
                **dict.fromkeys(("law_effect", "law_low", "law_high"), texts),
            }
        )


def _extreme_times(results: Results, names: list[str]) -> Iterator[MemoryTime]:
    found = results.memory_times[0]
    for i, name in enumerate(names):
        interval = found.tau.interval and found.tau.interval.model_copy(update={"high": float_text(math.inf)})
        tau = found.tau.model_copy(update={"value": float_text(VALUES[i % len(VALUES)]), "interval": interval})
        yield found.model_copy(update={"contrast": name, "tau": tau, "washout": 10 if i % 2 else None})


def _extreme_attributions(results: Results) -> Iterator[Attribution]:
    for i, found in enumerate(results.attributions):
        total = found.total.model_copy(update={"value": float_text(VALUES[i % len(VALUES)])})
        yield found.model_copy(update={"total": total, "observable": HOSTILE[:100]})


CASES = {
    "everything": everything,
    "minimal": minimal,
    "troubled": troubled,
    "equal": equal,
    "undecided": undecided,
    "extreme": extreme,
}
