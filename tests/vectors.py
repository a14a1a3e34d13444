"""Makes `schema/draft/vectors/`: documents and whole runs, each valid or with one fault, for every implementation.

`python -m tests.vectors` writes them, from a fixed key and fixed numbers, so the same bytes each time. What is expected
of each is written down here by hand and lands in `index.json`; `tests/test_vectors.py` holds it against this
implementation, and the files against this script.

To add the vectors of a schema: a function that gives its cases, and a line in `DOCUMENTS`.
"""

from __future__ import annotations

import base64
import copy
import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

from tests import builders
from trainmem_audit.canonical import (
    CHAIN_START,
    canonical_bytes,
    chain_digest,
    component_digest,
    content_digest,
    float_text,
    sha256_hex,
    value_digest,
)
from trainmem_audit.documents.backflow import REGIMES
from trainmem_audit.documents.common import SCHEMA_VERSION
from trainmem_audit.documents.declared import parse_contract
from trainmem_audit.documents.manifest import PAYLOAD_TYPE, PREDICATE_TYPE, STATEMENT_TYPE
from trainmem_audit.documents.steplog import LOG_FORMAT, Stream
from trainmem_audit.documents.studies import ESTIMATES_PREDICATE_TYPE, STUDY_LOG_FORMAT, STUDY_PREDICATE_TYPE
from trainmem_audit.envelope import seal
from trainmem_audit.interventions import parse
from trainmem_audit.keys import Signer
from trainmem_audit.merkle import MerkleTree
from trainmem_audit.observations import observation_bytes, observation_name
from trainmem_audit.snapshots import Entry, header_bytes, snapshot_name, values_bytes, values_name
from trainmem_audit.studylog import StudyLogBuilder, StudyLogReader

__all__ = [
    "DOCUMENTS",
    "FOLDER",
    "INTERVENTIONS",
    "RUNS",
    "SEED",
    "Case",
    "RunCase",
    "TinyRun",
    "WorkedExample",
    "generated",
    "write",
]

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "schema" / "draft" / "vectors"
RULES = "rules"
CONTRACTS = Path(__file__).parent / "contracts" / "valid"
SEED = bytes(range(32))
"""The private key of every vector (RFC 8032 § 5.1.5). It is published: it proves nothing."""
MEND = "make generated"

Members = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A document: its name, its bytes, what it shows, and the JSON pointer of its fault (`None` for a valid one)."""

    name: str
    data: bytes
    about: str
    where: str | None = None


def _pretty(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


class Faults:
    """Cases that differ from one valid document in one thing each."""

    def __init__(self, base: Members) -> None:
        self._base = base

    def valid(self, name: str, about: str, change: Callable[[Members], object] = lambda _: None) -> Case:
        """Return a variation that is valid."""
        document = copy.deepcopy(self._base)
        change(document)
        return Case(name, _pretty(document), about)

    def invalid(self, name: str, about: str, where: str, change: Callable[[Members], object]) -> Case:
        """Return a variation with a fault at `where`."""
        document = copy.deepcopy(self._base)
        change(document)
        return Case(name, _pretty(document), about, where)


def statement_cases() -> Iterator[Case]:
    """Give the cases of the statement."""
    make = Faults(small_statement())
    yield make.valid("finished", "a run that ended by itself")
    yield make.valid("killed", "a run that was killed has neither `finished` nor `exitCode`", _killed)
    yield make.valid("extensions", "additions of another program", lambda s: s["predicate"].update(extensions=_BAG))
    yield make.valid("in-toto-is-open", "unknown members outside of the predicate are ignored", _opened)
    yield make.valid("migrated", "made from an older document", lambda s: s["predicate"].update(derivedFrom=_DERIVED))
    yield make.invalid(
        "unknown-member", "the predicate is closed", "/predicate/verdict", lambda s: s["predicate"].update(verdict="ok")
    )
    yield make.invalid(
        "snake-case-member", "names are camelCase", "/predicate/run/exit_code", lambda s: _rename(s, "exit_code")
    )
    yield make.invalid(
        "null-member", "what has no value is left out", "/predicate/run/finished", lambda s: _run(s, finished=None)
    )
    yield make.invalid("missing-member", "`run` is required", "/predicate/run", lambda s: s["predicate"].pop("run"))
    yield make.invalid(
        "unknown-outcome", "an enumeration is closed", "/predicate/run/outcome", lambda s: _run(s, outcome="glorious")
    )
    yield make.invalid(
        "no-such-day", "a time must be one", "/predicate/run/started", lambda s: _run(s, started="2026-02-30T00:00:00Z")
    )
    yield make.invalid(
        "time-without-z",
        "times are in UTC",
        "/predicate/run/started",
        lambda s: _run(s, started="2026-11-24T10:00:00+01:00"),
    )
    yield make.invalid(
        "digits-of-another-script",
        "a pattern means ASCII digits",
        "/predicate/run/started",
        lambda s: _run(s, started="٢٠٢٦-11-24T10:00:00Z"),
    )
    yield make.invalid(
        "line-feed-after-a-digest", "`$` is the very end", "/predicate/run/id", lambda s: _run(s, id="0" * 32 + "\n")
    )
    yield make.invalid(
        "upper-case-digest",
        "hex is lower-case",
        "/predicate/stepLogs/0/chainHead",
        lambda s: _log(s, chainHead="A" * 64),
    )
    yield make.invalid(
        "no-step-log", "at least one", "/predicate/stepLogs", lambda s: s["predicate"].update(stepLogs=[])
    )
    yield make.invalid(
        "true-for-a-count", "true is no integer", "/predicate/stepLogs/0/rank", lambda s: _log(s, rank=True)
    )
    yield make.invalid(
        "no-sha256-of-a-subject",
        "SHA-256 is required",
        "/subject/0/digest/sha256",
        lambda s: s["subject"][0].update(digest={"md5": "0" * 32}),
    )
    yield make.invalid(
        "look-alike-type", "the type of a statement is exact", "/_type", lambda s: s.update(_type=STATEMENT_TYPE + "/")
    )
    yield make.invalid(
        "another-predicate-type",
        "the predicate's type is exact",
        "/predicateType",
        lambda s: s.update(predicateType=PREDICATE_TYPE.replace("v1", "v2")),
    )
    yield make.invalid(
        "argument-of-two-forms",
        "exactly one of text, path, redacted",
        "/predicate/command/arguments/0",
        lambda s: s["predicate"]["command"].update(arguments=[{"text": "a", "path": "b"}]),
    )
    yield make.invalid(
        "extension-without-a-domain",
        "a name in the bag begins with a domain",
        "/predicate/extensions",
        lambda s: s["predicate"].update(extensions={"verdict": True}),
    )


_BAG: Members = {"org.example.jax/keys": {"root": "0", "split": [1, 2, None]}, "com.example": True}
_SAVED: Members = {
    "kind": "state",
    "file": "{cwd}/checkpoint.pt",
    "sha256": sha256_hex(b"a checkpoint"),
    "bytes": 12,
    "components": {"model.params": {"verdict": "part", "missing": ["w"], "missingCount": 1}},
    "streams": {"numpy": "absent"},
    "order": "maybe",
}
_ODD: Members = {**_SAVED, "kind": "everything"}
_PARENT: Members = {"run": "0" * 32, "chain": "0" * 64, "steps": 3, "sha256": sha256_hex(b"a checkpoint")}
_DERIVED: Members = {"schemaVersion": "0.0.1", "sha256": sha256_hex(b"an older statement")}


def _killed(statement: Members) -> None:
    run = statement["predicate"]["run"]
    del run["finished"], run["exitCode"]
    run["outcome"] = "killed"


def _opened(statement: Members) -> None:
    statement["later"] = {"anything": 1}
    statement["subject"][0]["mediaType"] = "application/jsonl"
    statement["subject"][0]["digest"]["sha512"] = "0" * 128


def _run(statement: Members, **members: Any) -> None:
    statement["predicate"]["run"].update(members)


def _log(statement: Members, **members: Any) -> None:
    statement["predicate"]["stepLogs"][0].update(members)


def _rename(statement: Members, name: str) -> None:
    run = statement["predicate"]["run"]
    run[name] = run.pop("exitCode")


def line_cases() -> Iterator[Case]:
    """Give the cases of single lines: the form only, their chains are those of their run."""
    lines = {json.loads(line)["t"]: json.loads(line) for line in TinyRun().log().splitlines()}
    for kind, members in lines.items():
        yield Faults(members).valid(kind, f"a line of type `{kind}`")
    step, begin = Faults(lines["step"]), Faults(lines["begin"])
    inventory = Faults(lines["inventory"])
    yield inventory.valid("checkpoint", "what the script saved", lambda s: s.update(checkpoints=[_SAVED]))
    yield inventory.valid("parent", "a run that goes on from another", lambda s: s.update(parent=_PARENT))
    yield inventory.invalid(
        "checkpoint-of-no-kind", "`kind` is closed", "/checkpoints/0/kind", lambda s: s.update(checkpoints=[_ODD])
    )
    yield from _intervened_cases()
    yield step.valid("step-skipped", "a scaler did not let it through", lambda s: s.update(skipped=True))
    yield step.valid("step-of-nothing", "no component and no stream exists", lambda s: s.update(state={}, rng={}))
    yield step.valid("step-with-extensions", "additions to a step", lambda s: s.update(extensions=_BAG))
    yield step.invalid("unknown-type", "`t` is closed", "/t", lambda s: s.update(t="stap"))
    yield step.invalid("no-type", "`t` is required", "/t", lambda s: s.pop("t"))
    yield step.invalid("no-chain", "`chain` is required", "/chain", lambda s: s.pop("chain"))
    yield step.invalid("unknown-member", "a line is closed", "/loss", lambda s: s.update(loss=[]))
    yield step.invalid("member-of-another-type", "`nonce` is of `begin`", "/nonce", lambda s: s.update(nonce="0" * 32))
    yield step.invalid("skipped-false", "it is true, or absent", "/skipped", lambda s: s.update(skipped=False))
    yield step.invalid("skipped-one", "1 is not true", "/skipped", lambda s: s.update(skipped=1))
    yield step.invalid("negative-step", "steps count from 0", "/i", lambda s: s.update(i=-1))
    yield step.invalid("step-as-text", "a count is an integer", "/i", lambda s: s.update(i="0"))
    yield step.invalid(
        "decimal-float", "a float is C99 hex", "/scalars/loss/0", lambda s: s.update(scalars={"loss": ["0.5"]})
    )
    yield step.invalid("state-of-no-name", "a name is not empty", "/state", lambda s: s["state"].update({"": "0" * 64}))
    yield begin.invalid("another-format", "the format is exact", "/format", lambda s: s.update(format="step-log/v2"))
    yield begin.invalid("short-nonce", "128 bits", "/nonce", lambda s: s.update(nonce="0" * 31))
    yield Faults(lines["end"]).invalid(
        "outcome-killed", "a killed run has no `end`", "/outcome", lambda s: s.update(outcome="killed")
    )
    yield Faults(lines["snapshot"]).invalid(
        "snapshot-before-a-step", "there is no state before step 0", "/i", lambda s: s.update(i=0)
    )
    yield Faults(lines["inventory"]).invalid(
        "tensor-without-a-shape",
        "[name, dtype, shape]",
        "/components/optimizer.momentum/tensors/0",
        lambda s: s["components"]["optimizer.momentum"].update(tensors=[["w", "float32"]]),
    )


def _intervened_cases() -> Iterator[Case]:
    lines = {json.loads(line)["t"]: json.loads(line) for line in Intervened().log().splitlines()}
    yield Faults(lines["begin"]).valid("begin-of-an-arm", "what it is within a study")
    act, seen = Faults(lines["intervention"]), Faults(lines["observe"])
    yield act.valid("intervention", "a line of type `intervention`")
    yield act.valid("intervention-of-nothing", "a no-op says why", lambda s: s.update(changed=[], note="it was so"))
    yield act.invalid("intervention-without-changed", "it is required", "/changed", lambda s: s.pop("changed"))
    yield act.invalid("intervention-on-one-side", "before and after", "/state/after", lambda s: s["state"].pop("after"))
    yield act.invalid(
        "intervention-with-a-parameter-too-many",
        "parameters follow from the primitive",
        "/intervention/primitive",
        lambda s: s["intervention"].update(decay=float_text(0.5)),
    )
    yield seen.valid("observe", "a line of type `observe`")
    yield seen.invalid("observe-of-no-size", "the length is required", "/size", lambda s: s.pop("size"))


def verification_cases() -> Iterator[Case]:
    """Give the cases of what verification says."""
    make = Faults(builders.verification().to_json())
    yield make.valid("passed", "a record that holds and replays")
    yield Faults(builders.mismatch().to_json()).valid("mismatch", "a replay that came out differently")
    drawn = Faults(builders.segments().to_json())
    yield drawn.valid("segments", "segments that were drawn and come out again")
    yield drawn.invalid(
        "short-nonce",
        "a nonce has 16 bytes",
        "/replay/segments/nonce",
        lambda v: v["replay"]["segments"].update(nonce="00"),
    )
    gone_on = Faults(builders.resumed().to_json())
    yield gone_on.valid("parent", "a resumed run whose parent was at hand")
    yield gone_on.invalid(
        "parent-of-no-run", "a run has an id of 32 digits", "/parent/run", lambda v: v["parent"].update(run="5")
    )
    yield gone_on.invalid(
        "parent-of-unknown-state", "states are closed", "/parent/state", lambda v: v["parent"].update(state="fine")
    )
    yield Faults(builders.broken().to_json()).valid("broken", "files that are not what was signed")
    yield make.invalid(
        "a-verdict-of-everything", "verdicts are not merged", "/verdict", lambda v: v.update(verdict="ok")
    )
    yield make.invalid("unknown-state", "states are closed", "/bytes", lambda v: v.update(bytes="fine"))
    yield make.invalid("no-version", "the version is required", "/schemaVersion", lambda v: v.pop("schemaVersion"))
    yield make.invalid(
        "difference-null",
        "left out where nothing differs",
        "/replay/difference",
        lambda v: v["replay"].update(difference=None),
    )


def disclosures_cases() -> Iterator[Case]:
    """Give the cases of the openings of commitments."""
    opening = {"name": "git.commit", "salt": "AAECAwQFBgcICQoLDA0ODw", "value": "4" * 40}
    make = Faults({"schemaVersion": SCHEMA_VERSION, "disclosures": [opening]})

    def first(**members: Any) -> Callable[[Members], object]:
        return lambda d: d["disclosures"][0].update(members)

    yield make.valid("one", "one opening")
    yield make.valid("none", "whoever publishes the file may take openings out", lambda d: d.update(disclosures=[]))
    yield make.valid("nothing-known", "`null` is a value: nothing was known", first(value=None))
    yield make.valid("pairs", "places of inputs", first(name="inputs", value=[["data.csv", "/home/a/data.csv"]]))
    yield make.invalid("short-salt", "128 bits at least", "/disclosures/0/salt", first(salt="AAECAw"))
    yield make.invalid("a-number", "no numbers are committed to", "/disclosures/0/value", first(value=7))
    yield make.invalid("unknown-member", "an opening is closed", "/disclosures/0/digest", first(digest="0" * 64))


def checklist_cases() -> Iterator[Case]:
    """Give the cases of the checklist: ours with two items, so that it stays short."""
    whole = json.loads((FOLDER.parent / "checklist.json").read_text(encoding="utf-8"))
    make = Faults(whole | {"items": whole["items"][:2]})
    yield make.valid("two-items", "two items of the checklist")
    yield make.valid("extensions", "additions of another program", lambda c: c.update(extensions=_BAG))
    yield make.invalid("no-items", "at least one item", "/items", lambda c: c.update(items=[]))
    yield make.invalid(
        "unknown-member", "an item is closed", "/items/0/weight", lambda c: c["items"][0].update(weight=3)
    )
    yield make.invalid("a-number-as-id", "ids have one form", "/items/0/id", lambda c: c["items"][0].update(id="TM-1"))
    yield make.invalid(
        "unknown-evidence", "the ladder is closed", "/items/0/evidence", lambda c: c["items"][0].update(evidence="seen")
    )
    yield make.invalid(
        "unknown-severity",
        "severities are closed",
        "/items/0/severity/core",
        lambda c: c["items"][0].update(severity={"core": "shall"}),
    )


def findings_cases() -> Iterator[Case]:
    """Give the cases of the codes of findings and errors."""
    whole = json.loads((FOLDER.parent / "findings.json").read_text(encoding="utf-8"))
    make = Faults(whole | {part: whole[part][:1] for part in ("steps", "findings", "errors")})
    yield make.valid("one-of-each", "a step, a finding, an error")
    yield make.invalid(
        "unknown-member", "an entry is closed", "/errors/0/code2", lambda c: c["errors"][0].update(code2="x")
    )
    yield make.invalid(
        "no-remedy", "each says what to do", "/findings/0/remedy", lambda c: c["findings"][0].pop("remedy")
    )


def compliance_cases() -> Iterator[Case]:
    """Give the cases of what `check` writes."""
    item = {
        "id": "TM-ORD-003", "title": "Epochs have different orders", "severity": "must", "state": "fail",
        "evidence": "cross-checked", "leastEvidence": "cross-checked", "counts": True,
        "message": "two epochs have one order", "where": "steps.jsonl:14", "expected": "another order",
        "got": "the order of epoch 0", "remedy": "call sampler.set_epoch(epoch)",
    }  # fmt: skip
    waiver = {"id": "TM-ORD-003", "reason": "one epoch on purpose", "who": "the chair"}
    make = Faults(
        {
            "schemaVersion": SCHEMA_VERSION,
            "name": "run",
            "profile": "core",
            "checklistVersion": SCHEMA_VERSION,
            "failOn": "must",
            "items": [item],
            "unusedWaivers": [],
            "verification": builders.verification().to_json(),
            "exitCode": 1,
        }
    )
    yield make.valid("failed", "an item that fails")
    yield make.valid(
        "waived",
        "an item that somebody lets pass",
        lambda c: c["items"][0].update(state="waived", waived="fail", waiver=waiver, counts=False),
    )
    yield make.invalid(
        "unknown-member", "an item is closed", "/items/0/weight", lambda c: c["items"][0].update(weight=3)
    )
    yield make.invalid(
        "unknown-state", "states are closed", "/items/0/state", lambda c: c["items"][0].update(state="green")
    )
    yield make.invalid(
        "no-verification", "it stands on a verification", "/verification", lambda c: c.pop("verification")
    )
    yield make.invalid("exit-code-as-text", "a number", "/exitCode", lambda c: c.update(exitCode="1"))


def contract_cases() -> Iterator[Case]:
    """Give the cases of the RNG contract."""
    declared = parse_contract((CONTRACTS / "everything.toml").read_bytes(), "everything.toml").to_json()
    consumed = {"beforeTraining": True, "steps": 6, "inside": 4, "first": 0, "last": 5, "epochs": 1, "workers": 0}
    recorded = {
        "purpose": ["init", "order"], "scope": "process", "seeds": ["7"], "consumed": consumed, "pairing": "shared",
        "stability": "release",
    }  # fmt: skip
    least = {
        "contractVersion": SCHEMA_VERSION, "streams": BEGIN["streams"], "canary": {"draw": blake3(b"draw").hexdigest()}
    }  # fmt: skip
    make = Faults(least)
    yield make.valid("least", "the start states and the canary are all that a writer must give")
    yield make.valid("recorded", "what moved a stream, and when", lambda c: c["streams"]["numpy"].update(recorded))
    yield make.valid("declared", "everything that an author may declare", lambda c: c.update(declared=declared))
    yield make.invalid("unknown-member", "the contract is closed", "/verdict", lambda c: c.update(verdict="ok"))
    yield make.invalid("no-canary", "the canary is required", "/canary", lambda c: c.pop("canary"))
    yield make.invalid(
        "another-version", "its version is exact", "/contractVersion", lambda c: c.update(contractVersion="9.0.0")
    )
    yield make.invalid(
        "unknown-purpose",
        "purposes are closed; what is not known is `unknown`",
        "/streams/numpy/purpose/0",
        lambda c: c["streams"]["numpy"].update(purpose=["weather"]),
    )
    yield make.invalid(
        "seed-as-number",
        "seeds are text: they may exceed 2^53",
        "/declared/streams/numpy/seed",
        lambda c: c.update(declared={"contractVersion": SCHEMA_VERSION, "streams": {"numpy": {"seed": 7}}}),
    )
    yield make.invalid(
        "declared-without-version",
        "what is declared has a version of its own",
        "/declared/contractVersion",
        lambda c: c.update(declared={"order": {"scheme": "fixed"}}),
    )
    yield make.invalid(
        "unknown-scheme",
        "schemes are closed",
        "/declared/order/scheme",
        lambda c: c.update(declared={"contractVersion": SCHEMA_VERSION, "order": {"scheme": "sorted"}}),
    )


def json_cases() -> Iterator[Case]:
    """Give texts that are, or are not, JSON as our documents are: RFC 8785 can write them, and they hold no float."""
    yield Case("plain", b'{"a":[1,-1,true,null,"\xc3\xa9"]}', "what all documents are made of")
    yield Case("largest-integer", b"[9007199254740991,-9007199254740991]", "as far as an integer goes")
    bad = {
        "duplicate-member": (b'{"a":1,"a":2}', "a name occurs twice"),
        "duplicate-member-escaped": (b'{"a":1,"\\u0061":2}', "a name occurs twice, once in another spelling"),
        "float": (b"[0.5]", "a float is text"),
        "integer-written-as-float": (b"[1.0]", "so it is here"),
        "exponent": (b"[1e3]", "and here"),
        "nan": (b"[NaN]", "no JSON"),
        "integer-too-large": (b"[9007199254740992]", "2^53: text"),
        "byte-order-mark": (b"\xef\xbb\xbf{}", "UTF-8 without a mark"),
        "not-utf-8": (b'["\xff"]', "no UTF-8"),
        "lone-surrogate": (b'["\\ud800"]', "no Unicode text"),
        "two-documents": (b"{}{}", "one document"),
        "trailing-comma": (b"[1,]", "no JSON"),
        "comment": (b"{}//", "no JSON"),
        "too-deep": (b"[" * 2000 + b"]" * 2000, "a reader bounds depth before its stack does"),
    }
    for name, (data, about) in bad.items():
        yield Case(name, data, about, "")


def plan_cases() -> Iterator[Case]:
    """Give the cases of a study's plan."""
    make = Faults(_PLAN)
    yield make.valid("momentum-reset", "resetting momentum on digits")
    yield make.valid("whole", "every member that a plan may have", lambda p: p.update(_WHOLE_PLAN))
    yield make.invalid("seed-as-integer", "64-bit integers are text", "/seeds/0", lambda p: p.update(seeds=[1]))
    yield make.invalid("no-primary", "the primary contrast is declared", "/primary", lambda p: p.pop("primary"))
    yield make.invalid(
        "scale-without-a-factor",
        "parameters follow from the primitive",
        "/interventions/half/factor",
        lambda p: p["interventions"]["half"].pop("factor"),
    )
    yield make.invalid(
        "reset-with-a-factor",
        "and no others are there",
        "/interventions/reset/primitive",
        lambda p: p["interventions"]["reset"].update(factor=float_text(0.5)),
    )
    yield make.valid("every-primitive", "each with its parameters", lambda p: p["interventions"].update(INTERVENTIONS))
    yield make.invalid(
        "component-of-a-fork",
        "a fork acts on all streams",
        "/interventions/fork/primitive",
        lambda p: p["interventions"].update(fork={"primitive": "fork", "seed": "1", "component": "order"}),
    )
    yield make.invalid(
        "kick-without-a-seed",
        "it draws from a generator of its own",
        "/interventions/kick/seed",
        lambda p: p["interventions"]["kick"].pop("seed"),
    )
    yield make.invalid(
        "swap-of-one-window",
        "two windows are exchanged",
        "/interventions/swapped/windows",
        lambda p: p["interventions"]["swapped"]["windows"].pop(),
    )
    yield make.invalid(
        "permutation-of-two-windows",
        "one window is permuted",
        "/interventions/swapped/windows",
        lambda p: p["interventions"]["swapped"].update(primitive="permute-window", seed="1"),
    )
    yield make.invalid(
        "scale-by-infinity",
        "a factor is finite",
        "/interventions/half/factor",
        lambda p: p["interventions"]["half"].update(factor="inf"),
    )
    yield make.invalid(
        "unknown-primitive",
        "primitives are closed",
        "/interventions/reset/primitive",
        lambda p: p["interventions"]["reset"].update(primitive="wish"),
    )
    yield make.invalid(
        "combination-of-one",
        "one intervention alone is no combination",
        "/combinations/both",
        lambda p: p.update(combinations={"both": ["reset"]}),
    )
    yield make.invalid(
        "no-stream-at-all",
        "one stream at least reaches every horizon",
        "/fewerStreams/streams",
        lambda p: p.update(fewerStreams={"after": 3, "streams": 0}),
    )
    part: Members = _WHOLE_PLAN["backFlow"]
    yield make.invalid(
        "regime-without-steps",
        "an instrument takes a step at least",
        "/backFlow/regimes/standard/steps",
        lambda p: p.update(backFlow={**part, "regimes": {"standard": {**part["regimes"]["standard"], "steps": 0}}}),
    )
    yield make.invalid(
        "regime-with-a-space",
        "its name is that of a folder",
        "/backFlow/regimes",
        lambda p: p.update(backFlow={**part, "regimes": {"resonant strong": part["regimes"]["resonant-strong"]}}),
    )
    yield make.invalid(
        "frozen-in-no-sense",
        "what frozen BatchNorm means is said",
        "/backFlow/batchNorm",
        lambda p: p.update(backFlow={**part, "batchNorm": []}),
    )
    yield make.invalid(
        "alpha-as-float-text", "C99 hex", "/analysis/alpha", lambda p: p["analysis"].update(alpha="0.05")
    )


def estimates_cases() -> Iterator[Case]:
    """Give the cases of a study's estimates."""
    make = Faults(_ESTIMATES)
    yield make.valid("law-effect", "one effect with its interval")
    yield make.valid("all-kinds", "a table of seeds, a curve, a memory time, a factorial, a back-flow", _all_kinds)
    yield make.invalid("no-method", "how it was computed is said", "/method", lambda e: e.pop("method"))
    yield make.invalid(
        "t-test",
        "tests are randomisation tests",
        "/estimates/0/test/method",
        lambda e: e["estimates"][0]["test"].update(method="t"),
    )
    yield make.invalid(
        "value-as-number", "floats are text", "/estimates/0/value", lambda e: e["estimates"][0].update(value=1)
    )
    yield make.invalid(
        "no-certificate", "a pair has one", "/pairs/0/certificate", lambda e: e["pairs"][0].pop("certificate")
    )
    yield make.invalid(
        "excluded-without-a-reason", "why it is left out", "/arms/2/reason", lambda e: e["arms"][2].pop("reason")
    )
    yield make.invalid(
        "no-effect", "`equivalent` says so, by a test", "/estimates/0/verdict", lambda e: _claim(e, "no effect")
    )
    yield make.invalid(
        "no-units", "a number stands on seeds", "/estimates/0/units", lambda e: e["estimates"][0].pop("units")
    )


def _all_kinds(estimates: Members) -> None:
    half, none = float_text(0.5), float_text(math.nan)
    place: Members = {"observable": "tv", "branchStep": 200}
    measured: Members = {"value": half, "units": 2, "perUnit": [half, half]}
    measured["interval"] = {"low": none, "high": none, "level": float_text(0.95), "method": "t"}
    measured["test"] = {
        "method": "sign-flip-exact", "p": half, "smallestP": half, "adjustedP": half, "adjustment": "holm",
    }  # fmt: skip
    lists = ("pathwise", "forkFloor", "treatedFloor", "between", "within", "lawEffect", "control", "treated")
    table = {"contrast": "reset", **place, "horizon": 3, "streams": 2, **{name: [half, none] for name in lists}}
    table["dropped"] = [{"seed": "18446744073709551615", "reason": "c0 failed"}]
    curves = ("pathwise", "kick", "butterfly", "forkFloor", "lawEffect", "lawLow", "lawHigh")
    time = {"contrast": "reset", **place, "from": 1, "to": 30, "tau": measured, "states": ["fitted", "longer"]}
    effects = [
        {"kind": "main", "sources": ["reset"], "effect": measured},
        {"kind": "interaction", "sources": ["reset", "kick"], "effect": measured},
        {"kind": "shapley", "sources": ["reset"], "effect": measured, "share": half},
    ]
    witness = ("first", "second", "delta", "twin", "twinRatio", "againstCommon", "againstBreak")
    estimates |= {
        "perSeed": [table],
        "curves": [
            {"contrast": "reset", **place, "horizons": [1, 3], **{name: [half, half] for name in curves}}
        ],
        "memoryTimes": [{**time, "lastSignificant": 3, "washout": 10, "area": measured}],
        "attributions": [
            {"control": "control", "sources": ["reset", "kick"], "nullPlayers": ["kick"], "observable": "loss",
             "branchStep": 200, "horizon": 3, "total": measured, "effects": effects}
        ],
        "backFlows": [
            {"name": "standard", "observable": "tv", **dict.fromkeys(witness, measured), "bitwiseEqual": True,
             "equivalence": {"margin": half, "p": half}, "dropped": table["dropped"],
             "diagnostics": {"commutator": [half, half]}}
        ],
    }  # fmt: skip


def _claim(estimates: Members, verdict: str) -> None:
    estimates["estimates"][0]["verdict"] = verdict


def _acts(text: str) -> Members:
    return parse(text)[0].to_json()


INTERVENTIONS: Members = {
    text.partition(":")[0].replace("_", "-"): _acts(text)
    for text in (
        *("carry", "placebo:optimizer.momentum", "zero:optimizer.momentum", "scale:optimizer.momentum:0.5"),
        *("reset:optimizer.exp_avg:keep", "noise:optimizer.momentum:0.01:1", "transplant:optimizer.momentum:other#9"),
        *("recalibrate:model.batchnorm:10", "freeze:model.batchnorm", "swap_windows:order:0-4:4-8"),
        *("permute_window:order:0-4:1", "policy:order:with-replacement:1", "flush:bank.queue", "shuffle:bank.queue:1"),
        *("truncate:bank.queue:16", "age:bank.queue:8", "decay:teacher.params:0.9", "lag:teacher.params:5"),
        *("swap:teacher.params:model.params", "equalise:optimizer.momentum:carry", "fork:1:order", "kick:0.001:1"),
        "butterfly:18446744073709551616",
    )
}


_PLAN: Members = {
    "schemaVersion": SCHEMA_VERSION,
    "name": "momentum on digits",
    "question": "For how many steps does momentum shift the law of the function?",
    "program": {"kind": "factory", "entry": "digits:program", "arguments": ["--seed", "{seed}"]},
    "seeds": ["1804289383", "18446744073709551615"],
    "noiseStreams": 2,
    "branchSteps": [200],
    "horizons": [1, 3, 10, 30],
    "interventions": {
        "control": {"primitive": "carry"},
        "reset": {"primitive": "reset", "component": "optimizer.momentum"},
        "half": {"primitive": "scale", "component": "optimizer.momentum", "factor": float_text(0.5)},
        "kick": {"primitive": "kick", "sigma": float_text(1e-3), "seed": "7"},
        "swapped": {"primitive": "swap-windows", "windows": [{"from": 0, "to": 4}, {"from": 4, "to": 8}]},
    },
    "contrasts": [
        {"name": "reset", "treated": "reset", "control": "control", "family": "confirmatory"},
        {"name": "kick", "treated": "kick", "control": "control", "family": "null-player"},
    ],
    "primary": {
        "contrast": "reset", "estimand": "law-effect", "observable": "tv", "branchStep": 200, "horizon": 3,
    },
    "probe": {"sha256": sha256_hex(b"probe"), "size": 360, "head": "model", "disjoint": "the last 360 rows"},
    "observables": {
        "tv": {"kind": "total-variation", "task": "classification"},
        "loss": {"kind": "loss", "task": "classification"},
    },
    "analysis": {"alpha": float_text(0.05), "equivalenceMargin": float_text(0.02), "adjustment": "max-t"},
}  # fmt: skip


_WHOLE_PLAN: Members = {
    "combinations": {"both": ["reset", "swapped"]},
    "fewerStreams": {"after": 10, "streams": 1},
    "stateDigests": "branch-and-horizons",
    "backFlow": {
        "entry": "digits:subject",
        "arguments": ["seed={seed}"],
        "sha256": sha256_hex(b"the subject"),
        "baseSteps": 100,
        "regimes": {name: regime.to_json() for name, regime in REGIMES.items()},
        "repeats": 16,
        "batch": 64,
        "batchNorm": ["batch-statistics", "eval-mode"],
        "weightDecay": float_text(1e-4),
        "clip": float_text(1.0),
        "diagnosticRepeats": 4,
    },
    "exclusions": ["an arm whose loss is not finite"],
    "derivedFrom": _DERIVED,
    "extensions": _BAG,
    "probe": {**_PLAN["probe"], "file": "probe.safetensors"},
    "program": {**_PLAN["program"], "sha256": sha256_hex(b"the program")},
}


def _arm(name: str, intervention: str, **rest: Any) -> Members:
    record = {"run": sha256_hex(name.encode())[:32], "statement": sha256_hex(name.encode()), "outcome": "completed"}
    return {"id": name, "seed": "1804289383", "stream": 0, "branchStep": 200, "intervention": intervention} | (
        rest or record
    )


_ESTIMATES: Members = {
    "schemaVersion": SCHEMA_VERSION,
    "producer": {"name": "trainmem-audit", "version": "0"},
    "plan": sha256_hex(canonical_bytes(_PLAN)),
    "studyLog": {"chainHead": sha256_hex(b"study log"), "started": 3, "reported": 2},
    "method": {
        "alpha": float_text(0.05), "level": float_text(0.95), "equivalenceMargin": float_text(0.02),
        "confirmatory": "max-t", "exploratory": "benjamini-hochberg", "exactUpTo": 16384, "sampled": 9999,
        "calibrationBins": 15, "coverageTable": sha256_hex(b"coverage"),
        "definitions": {"law-effect": "E over F, the ratio of the means over seeds"}, "software": {"numpy": "2.4.6"},
    },
    "arms": [
        _arm("c0", "control"),
        _arm("r0", "reset"),
        _arm("r1", "reset", outcome="excluded", reason="its loss was not finite"),
    ],
    "pairs": [
        {
            "treated": "r0", "control": "c0", "label": "paired",
            "certificate": [{"clause": c, "state": "holds"} for c in ("prefix", "intervention", "order", "streams")],
        }
    ],
    "estimates": [
        {
            "contrast": "reset", "estimand": "law-effect", "observable": "tv", "branchStep": 200, "horizon": 3,
            "value": float_text(0.47), "floor": float_text(0.031), "units": 2,
            "perUnit": [float_text(0.5), float_text(0.44)],
            "interval": {
                "low": float_text(0.1), "high": float_text(0.84), "level": float_text(0.95), "method": "jackknife-t",
                "coverage": float_text(0.93), "skewness": float_text(0.0),
            },
            "streams": 2, "test": {"method": "swap-exact", "p": float_text(0.5), "smallestP": float_text(0.5)},
            "verdict": "undecided", "warnings": ["two seeds cannot give a smaller p than 0.5"],
        }
    ],
}  # fmt: skip

_TIMES = tuple(f"2026-11-24T10:00:0{second}Z" for second in range(8))
_PRODUCER: Members = {"name": "trainmem-audit", "version": "0"}
_STUDY_LINES: tuple[Members, ...] = (
    {
        "t": "begin", "format": STUDY_LOG_FORMAT, "nonce": "000102030405060708090a0b0c0d0e0f", "time": _TIMES[0],
        "producer": _PRODUCER, "plan": sha256_hex(canonical_bytes(_PLAN)), "workers": 2, "threads": 1,
    },
    {"t": "start", "id": "control.s0.b200.r0", "number": 1, "time": _TIMES[1]},
    {
        "t": "finish", "id": "control.s0.b200.r0", "number": 1, "time": _TIMES[2], "run": sha256_hex(b"run")[:32],
        "statement": sha256_hex(b"statement"), "steps": 230,
    },
    {"t": "start", "id": "reset.s0.b200.r0", "number": 1, "time": _TIMES[3]},
    {"t": "resume", "time": _TIMES[4], "workers": 1},
    {
        "t": "fail", "id": "reset.s0.b200.r0", "number": 1, "time": _TIMES[5], "reason": "the study was interrupted",
        "retry": True, "kept": "failed/reset.s0.b200.r0.1",
    },
    {"t": "end", "time": _TIMES[6], "finished": 1, "failed": 1},
)  # fmt: skip


def study_lines() -> list[bytes]:
    """Return the lines of a small study log, without their line feeds."""
    builder = StudyLogBuilder()
    return [builder.line(dict(members)) for members in _STUDY_LINES]


def study_log_cases() -> Iterator[Case]:
    """Give the cases of single lines of a study log: the form only."""
    lines = {json.loads(line)["t"]: json.loads(line) for line in study_lines()}
    for kind, members in lines.items():
        yield Faults(members).valid(kind, f"a line of type `{kind}`")
    start, fail = Faults(lines["start"]), Faults(lines["fail"])
    yield fail.valid("fail-of-nothing", "there was nothing to be kept", lambda s: s.pop("kept"))
    yield fail.invalid("retry-false", "it is true, or absent", "/retry", lambda s: s.update(retry=False))
    yield fail.invalid("fail-for-no-reason", "why is said", "/reason", lambda s: s.update(reason=""))
    yield start.invalid("attempt-zero", "attempts count from 1", "/number", lambda s: s.update(number=0))
    yield start.invalid("unknown-type", "`t` is closed", "/t", lambda s: s.update(t="stop"))
    yield start.invalid("unknown-member", "a line is closed", "/seed", lambda s: s.update(seed=1))
    yield Faults(lines["begin"]).invalid("no-plan", "a study has a plan", "/plan", lambda s: s.pop("plan"))
    yield Faults(lines["finish"]).invalid("no-statement", "it is signed", "/statement", lambda s: s.pop("statement"))


def study_cases() -> Iterator[Case]:
    """Give the cases of the statement of a study."""
    reader = StudyLogReader()
    for line in study_lines():
        reader.read(line)
    log = reader.finish()
    make = Faults(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": "study.jsonl", "digest": {"sha256": sha256_hex(b"\n".join([*study_lines(), b""]))}}],
            "predicateType": STUDY_PREDICATE_TYPE,
            "predicate": {
                "schemaVersion": SCHEMA_VERSION,
                "producer": _PRODUCER,
                "id": _STUDY_LINES[0]["nonce"],
                "plan": _STUDY_LINES[0]["plan"],
                "began": _TIMES[0],
                "ended": _TIMES[6],
                "log": {
                    "file": "study.jsonl",
                    "count": log.lines,
                    "chainHead": log.chain_head,
                    "merkleRoot": log.merkle_root,
                },
                "started": 2,
                "finished": 1,
                "failed": {"reset.s0.b200.r0": "the study was interrupted"},
            },
        }
    )
    yield make.valid("one-failed", "one arm is there, one is not")
    yield make.invalid(
        "failed-for-no-reason",
        "why is said",
        "/predicate/failed/reset.s0.b200.r0",
        lambda s: s["predicate"].update(failed={"reset.s0.b200.r0": ""}),
    )
    yield make.invalid(
        "predicate-of-a-run",
        "the predicate's type is exact",
        "/predicateType",
        lambda s: s.update(predicateType=PREDICATE_TYPE),
    )
    yield make.invalid("no-log", "the log is bound", "/predicate/log", lambda s: s["predicate"].pop("log"))


def study_estimates_cases() -> Iterator[Case]:
    """Give the cases of the statement of a study's estimates."""
    make = Faults(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": "plan.json", "digest": {"sha256": sha256_hex(canonical_bytes(_PLAN))}}],
            "predicateType": ESTIMATES_PREDICATE_TYPE,
            "predicate": _ESTIMATES,
        }
    )
    yield make.valid("law-effect", "one effect, signed with what it was computed from")
    yield make.invalid(
        "predicate-of-a-study",
        "the predicate's type is exact",
        "/predicateType",
        lambda s: s.update(predicateType=STUDY_PREDICATE_TYPE),
    )
    yield make.invalid("no-pairs", "certificates are there", "/predicate/pairs", lambda s: s["predicate"].pop("pairs"))


DOCUMENTS: dict[str, Callable[[], Iterator[Case]]] = {
    "json": json_cases,
    "statement": statement_cases,
    "step-log": line_cases,
    "verification": verification_cases,
    "rng-contract": contract_cases,
    "disclosures": disclosures_cases,
    "checklist": checklist_cases,
    "findings": findings_cases,
    "compliance": compliance_cases,
    "plan": plan_cases,
    "study": study_cases,
    "study-estimates": study_estimates_cases,
    "study-log": study_log_cases,
    "estimates": estimates_cases,
}
"""The cases of each schema by its name; `json` is what all of them are made of."""


def small_statement() -> Members:
    """Return the statement of the tiny run."""
    run = TinyRun()
    statement: Members = json.loads(run.payload())
    return statement


@dataclass
class TinyRun:
    """A real run that fits on a page: two weights, the loss ½·|w|², heavy-ball momentum ½, learning rate ½.

    The gradient is w itself: v ← ½·v + w, w ← w − ½·v, all exact in float32. The fields break it: `members` changes
    lines before they are linked, `lines` after, `side` the other files before they are listed, `statement` and
    `payload_bytes` what is signed, `files_at_last` what is there in the end.
    """

    steps: int = 2
    ended: bool = True
    members: Callable[[list[Members]], list[Members]] = lambda lines: lines
    lines: Callable[[list[bytes]], list[bytes]] = lambda lines: lines
    side: Callable[[dict[str, bytes]], object] = lambda files: None
    statement: Callable[[Members], object] = lambda statement: None
    payload_bytes: Callable[[bytes], bytes] = lambda payload: payload
    files_at_last: Callable[[dict[str, bytes]], object] = lambda files: None
    signer: Signer = field(default_factory=lambda: Signer.from_seed(SEED))
    nonce: str = "000102030405060708090a0b0c0d0e0f"

    def state(self, step: int) -> tuple[list[float], list[float]]:
        """Return weights and momentum after a step (-1: at the start)."""
        w, v = [1.0, -2.0], [0.0, 0.0]
        for _ in range(step + 1):
            v = [0.5 * old + grad for old, grad in zip(v, w, strict=True)]
            w = [old - 0.5 * push for old, push in zip(w, v, strict=True)]
        return w, v

    def tensors(self, step: int) -> dict[str, bytes]:
        """Return the bytes of the one tensor of each component that exists after a step."""
        w, v = self.state(step)
        model = {"model.params": struct.pack("<2f", *w)}
        return model if step < 0 else model | {"optimizer.momentum": struct.pack("<2f", *v)}

    def digests(self, step: int) -> dict[str, str]:
        """Return the component digests after a step."""
        return {
            name: component_digest(canonical_bytes(HEADER), [blake3(data).digest()]).hex()
            for name, data in self.tensors(step).items()
        } | {"optimizer.hyper": value_digest(HYPER).hex()}

    def log_members(self) -> Iterator[Members]:
        """Give the members of every line, without `chain`."""
        yield BEGIN | {"nonce": self.nonce}
        yield {
            "t": "inventory", "i": 0, "profile": {"threads": 1}, "rngCanary": {"draw": blake3(b"draw").hexdigest()},
            "components": {"model.params": _component("S3", "macro"), "optimizer.hyper": _HYPER_COMPONENT},
            "loaders": {"loader": LOADER}, "files": [ENTRY],
        }  # fmt: skip
        yield {"t": "inventory", "i": 0, "state": self.digests(-1)}
        yield {"t": "epoch", "i": 0, "epoch": 0, "loader": "loader", "rng": RNG}
        yield {"t": "inventory", "i": 0, "components": {"optimizer.momentum": _component("S1", "micro")}}
        for step in range(self.steps):
            yield self.step(step)
            if step == 0:
                yield {"t": "snapshot", "i": 1, **self.kept()}
        if self.ended:
            yield {
                "t": "end", "i": self.steps, "finished": "2026-11-24T10:00:01Z", "outcome": "finished", "exitCode": 0,
                "state": self.digests(self.steps - 1), "rng": RNG, "profile": {"threads": 1}, "notRecorded": [],
            }  # fmt: skip

    def step(self, i: int) -> Members:
        """Return the members of a `step` line."""
        w, _ = self.state(i - 1)
        order = {
            "index": blake3(_indices(i)).hexdigest(),
            "content": content_digest([b"tensor float32 [2];", blake3(struct.pack("<2f", *w)).digest()]).hex(),
            "n": 2,
            "batches": 1,
        }
        loss = float_text(0.5 * sum(x * x for x in w))
        return {
            "t": "step", "i": i, "order": order, "state": self.digests(i), "rng": RNG,
            "scalars": {"loss": [loss], "lr": [float_text(0.5)]}, "values": {"optimizer.hyper": HYPER},
        }  # fmt: skip

    def snapshot(self) -> bytes:
        """Return the snapshot of the state after step 0."""
        tensors = self.tensors(0)
        entries = [Entry(name, "w", "float32", (2,), 8) for name in tensors]
        return header_bytes(entries, 0) + b"".join(tensors.values())

    def rest(self) -> bytes:
        """Return what is no tensor in that snapshot."""
        return values_bytes(0, {"optimizer.hyper": HYPER}, {"numpy": Stream.model_validate(BEGIN["streams"]["numpy"])})

    def kept(self) -> Members:
        """Return what log and statement say of the snapshot."""
        values = {"file": values_name(0), "size": len(self.rest())}
        return {"file": snapshot_name(0), "size": len(self.snapshot()), "values": values}

    def log(self) -> bytes:
        """Return `steps.jsonl`."""
        linked, head = [], CHAIN_START
        for members in self.members(list(self.log_members())):
            body = canonical_bytes(members)
            head = chain_digest(head, body)
            linked.append(_line(head, body))
        return b"".join(self.lines(linked))

    def signed_files(self) -> dict[str, bytes]:
        """Return the files that the statement lists."""
        files = {
            "steps.jsonl": self.log(),
            "tensors.b3": b"".join(self.frame(step) for step in range(self.steps)),
            "order/rank-0.i64": b"".join(map(_indices, range(self.steps))),
            "source/train.py": CODE,
            snapshot_name(0): self.snapshot(),
            values_name(0): self.rest(),
        }
        self.side(files)
        return files

    def frame(self, step: int) -> bytes:
        """Return the frame of a step in `tensors.b3`."""
        tensors = [blake3(data).digest() for _, data in sorted(self.tensors(step).items())]
        return struct.pack("<QI", step, len(tensors)) + b"".join(tensors)

    def payload(self) -> bytes:
        """Return the canonical statement."""
        files = self.signed_files()
        statement = {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": sha256_hex(data)}} for name, data in sorted(files.items())],
            "predicateType": PREDICATE_TYPE,
            "predicate": self.predicate(files["steps.jsonl"].splitlines()),
        }
        self.statement(statement)
        return self.payload_bytes(canonical_bytes(statement))

    def predicate(self, lines: list[bytes]) -> Members:
        """Return the manifest of a log."""
        tree = MerkleTree()
        for line in lines:
            tree.append(line)
        run: Members = {"id": self.nonce, "started": BEGIN["started"], "outcome": "killed"}
        if self.ended:
            run |= {"outcome": "finished", "finished": "2026-11-24T10:00:01Z", "exitCode": 0}
        sources = {"model.params": _component("S3", "macro"), "optimizer.hyper": _HYPER_COMPONENT}
        return {
            "schemaVersion": SCHEMA_VERSION,
            "checklistVersion": SCHEMA_VERSION,
            "producer": BEGIN["producer"],
            "run": run,
            "command": BEGIN["command"] | {"arguments": [], "interpreterOptions": []},
            "environment": BEGIN["environment"],
            "numericProfile": {"import": {"threads": 1}} | ({"end": {"threads": 1}} if self.ended else {}),
            "rngContract": {
                "contractVersion": "0.1.0-draft", "streams": BEGIN["streams"],
                "canary": {"draw": blake3(b"draw").hexdigest()},
            },
            "seeds": [],
            "canary": {"draw": blake3(b"draw").hexdigest()},
            "sources": sources | {"optimizer.momentum": _component("S1", "micro")},
            "order": {"loader": LOADER},
            "inputs": [],
            "files": [ENTRY],
            "folders": [],
            "stepLogs": [
                {
                    "file": "steps.jsonl", "rank": 0, "count": len(lines), "steps": self.steps,
                    "chainHead": json.loads(lines[-1])["chain"] if lines[-1].endswith(b"}") else "0" * 64,
                    "merkleRoot": tree.root().hex(), "complete": self.ended,
                }
            ],
            "snapshots": [{"step": 0, **self.kept()}],
            "declared": {},
            "notRecorded": [],
        }  # fmt: skip

    def files(self) -> dict[str, bytes]:
        """Return every file of the run."""
        files = self.signed_files() | {
            "run.json": seal(self.payload(), PAYLOAD_TYPE, self.signer),
            "signer.pub": self.signer.public.openssh_line(),
        }
        self.files_at_last(files)
        return files


class WorkedExample(TinyRun):
    """The run of `schema/README.md` § A worked example: one component, one step, nothing beside the log."""

    def __init__(self) -> None:
        super().__init__(steps=1)

    def log_members(self) -> Iterator[Members]:
        """Give the members of its four lines."""
        state = {"model.params": self.digests(0)["model.params"]}
        yield BEGIN | {"nonce": self.nonce}
        yield {"t": "inventory", "i": 0, "components": {"model.params": _component("S3", "macro")}}
        yield {"t": "step", "i": 0, "state": state, "rng": RNG, "scalars": {"lr": [float_text(0.5)]}}
        yield {
            "t": "end", "i": 1, "finished": "2026-11-24T10:00:01Z", "outcome": "finished", "exitCode": 0,
            "state": state, "rng": RNG,
        }  # fmt: skip

    def signed_files(self) -> dict[str, bytes]:
        """Return the log."""
        return {"steps.jsonl": self.log()}

    def predicate(self, lines: list[bytes]) -> Members:
        """Return what follows from so little."""
        less: Members = {
            "numericProfile": {"end": {}}, "canary": {}, "order": {}, "files": [],
            "rngContract": super().predicate(lines)["rngContract"] | {"canary": {}},
            "sources": {"model.params": _component("S3", "macro")},
        }  # fmt: skip
        optional = {"seeds", "folders", "snapshots", "declared", "notRecorded"}
        full = super().predicate(lines) | less
        command = {name: value for name, value in full["command"].items() if value != []}
        return {name: value for name, value in full.items() if name not in optional} | {"command": command}


class Intervened(TinyRun):
    """An arm of a study: it branched from another run, its momentum was halved after step 0, and it was observed."""

    def state(self, step: int) -> tuple[list[float], list[float]]:
        """Return weights and momentum after a step."""
        w, v = [1.0, -2.0], [0.0, 0.0]
        for i in range(step + 1):
            v = [0.5 * (old * 0.5 if i == 1 else old) + grad for old, grad in zip(v, w, strict=True)]
            w = [old - 0.5 * push for old, push in zip(w, v, strict=True)]
        return w, v

    def log_members(self) -> Iterator[Members]:
        """Give the members of every line."""
        for line in super().log_members():
            if line["t"] == "begin":
                line |= {"study": {"plan": sha256_hex(canonical_bytes(_PLAN)), "arm": _ARM, "branch": _BRANCH}}
            if line["t"] == "step" and line["i"] == 1:
                yield self.intervention()
            if line["t"] == "end":
                yield {"t": "observe", "i": self.steps, "file": _SEEN, "size": len(self.observation())}
            yield line

    def intervention(self) -> Members:
        """Return the members of the `intervention` line."""
        _, v = self.state(0)
        halved = component_digest(canonical_bytes(HEADER), [blake3(struct.pack("<2f", *(x / 2 for x in v))).digest()])
        before = self.digests(0)
        return {
            "t": "intervention", "i": 1, "intervention": _acts("scale:optimizer.momentum:0.5"),
            "state": {"before": before, "after": before | {"optimizer.momentum": halved.hex()}},
            "rng": {"before": RNG, "after": RNG}, "changed": ["optimizer.momentum"],
        }  # fmt: skip

    def observation(self) -> bytes:
        """Return the predictions after the last step: the weights themselves."""
        return observation_bytes({"model": np.array([self.state(self.steps - 1)[0]], dtype="<f4")})

    def signed_files(self) -> dict[str, bytes]:
        """Return the files that the statement lists."""
        return super().signed_files() | {_SEEN: self.observation()}

    def predicate(self, lines: list[bytes]) -> Members:
        """Return the manifest of a log."""
        full = super().predicate(lines)
        full["run"] |= {"branch": _BRANCH}
        acted = {"step": 1, "intervention": _acts("scale:optimizer.momentum:0.5"), "changed": ["optimizer.momentum"]}
        return full | {"plan": sha256_hex(canonical_bytes(_PLAN)), "arm": _ARM, "interventions": [acted]}


_ARM: Members = {"id": "half.s0.b200.r1", "seed": "1804289383", "stream": 1, "branchStep": 200, "intervention": "half"}
_BRANCH: Members = {"run": "0" * 32, "chainHead": sha256_hex(b"prefix"), "step": 200}
_SEEN = observation_name(2)
CODE = b"w, v = [1.0, -2.0], [0.0, 0.0]\nfor _ in range(2):\n    v = [v / 2 + w for v, w in zip(v, w)]\n"
CODE += b"    w = [w - v / 2 for v, w in zip(v, w)]\n"
ENTRY = {"path": "{cwd}/train.py", "role": "entry", "sha256": sha256_hex(CODE), "file": "source/train.py"}
HEADER = [["w", "float32", [2]]]
HYPER: Members = {"lr": float_text(0.5), "momentum": float_text(0.5)}
LOADER: Members = {"kind": "Loader", "dataset": "Pairs", "sampler": "Sequential", "settings": {"batch_size": 2}}
RNG = {"numpy": blake3(bytes(3)).hexdigest()}
BEGIN: Members = {
    "t": "begin",
    "format": LOG_FORMAT,
    "rank": 0,
    "world": 1,
    "started": "2026-11-24T10:00:00Z",
    "producer": {"name": "vectors", "version": "1"},
    "command": {"kind": "script", "entry": "{cwd}/train.py", "hashSeed": "0"},
    "environment": {
        "python": "3.11.9", "implementation": "CPython", "system": "Linux 6.1", "machine": "x86_64", "cpu": "a CPU",
        "cpuCount": 1, "packages": {"numpy": "2.3.1"}, "variables": {},
    },
    "streams": {"numpy": {"library": "numpy", "algorithm": "pcg64", "device": "cpu", "state": "AAAA"}},
    "tensorBudget": 1048576,
}  # fmt: skip


def _component(source: str, lifetime: str) -> Members:
    return {"source": source, "lifetime": lifetime, "visibility": "in-process", "tensors": HEADER, "bytes": 8}


_HYPER_COMPONENT: Members = {
    "source": "S1", "lifetime": "macro", "visibility": "in-process", "values": HYPER, "bytes": 16,
}  # fmt: skip


def _indices(step: int) -> bytes:
    return struct.pack("<2q", 2 * step, 2 * step + 1)


def _line(head: bytes, body: bytes) -> bytes:
    return b'{"chain":"' + head.hex().encode() + b'",' + body[1:] + b"\n"


def _relinked(lines: list[bytes]) -> list[bytes]:
    """Link lines anew whose bodies were respelt."""
    linked, head = [], CHAIN_START
    for line in lines:
        body = b"{" + line[len(b'{"chain":"",') + 64 : -1]
        head = chain_digest(head, body)
        linked.append(_line(head, body))
    return linked


@dataclass(frozen=True)
class RunCase:
    """A whole run and what a verifier without a trust file says of it; `codes` are those of all findings."""

    name: str
    about: str
    run: TinyRun
    codes: tuple[str, ...] = ()
    bytes: str = "intact"
    record: str = "consistent"
    signature: str = "unknown-signer"
    error: str = ""

    @property
    def is_valid(self) -> bool:
        """Whether nothing is wrong with it."""
        return not self.codes and not self.error

    @property
    def path(self) -> str:
        """Return its folder."""
        return f"runs/{'valid' if self.is_valid else 'invalid'}/{self.name}"


def _replace(number: int, old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """Replace text in one line without linking it anew."""

    def change(lines: list[bytes]) -> list[bytes]:
        assert old in lines[number]
        return [*lines[:number], lines[number].replace(old, new, 1), *lines[number + 1 :]]

    return change


def _respelt(number: int, old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    """Replace text in one line and link all lines anew."""
    return lambda lines: _relinked(_replace(number, old, new)(lines))


def _edited(name: str, change: Callable[[bytes], bytes]) -> Callable[[dict[str, bytes]], object]:
    return lambda files: files.update({name: change(files[name])})


def _flip_last(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def _envelope(change: Callable[[Members], object]) -> Callable[[dict[str, bytes]], object]:
    def edit(files: dict[str, bytes]) -> None:
        envelope = json.loads(files["run.json"])
        change(envelope)
        files["run.json"] = canonical_bytes(envelope) + b"\n"

    return edit


def _other_signature(envelope: Members) -> None:
    sig = base64.b64decode(envelope["signatures"][0]["sig"])
    envelope["signatures"][0]["sig"] = base64.b64encode(bytes([sig[0] ^ 1]) + sig[1:]).decode()


def _with_extensions(lines: list[Members]) -> list[Members]:
    return [line | {"extensions": _BAG} for line in lines]


def _unended(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1][:-20]]


def _other_key() -> Signer:
    return Signer.from_seed(bytes(32))


_STEP = 5
_SNAPSHOT = 6
"""Which lines of the tiny run are its first step and the snapshot of it, from 0."""
BROKEN: Members = {"bytes": "broken", "record": "not-checked"}
INCONSISTENT: Members = {"record": "inconsistent"}


def _run_cases() -> Iterator[RunCase]:
    yield RunCase("complete", "begin, inventory, epoch, steps, snapshot, end", TinyRun())
    yield RunCase("killed", "no `end`: a valid prefix of a run", TinyRun(ended=False), record="incomplete")
    bag = TinyRun(members=_with_extensions, statement=lambda s: s["predicate"].update(extensions=_BAG))
    yield RunCase("extensions", "a bag in every line and in the predicate", bag)
    yield RunCase("worked-example", "the run of the format description", WorkedExample())
    yield RunCase("intervened", "an arm of a study, intervened on and observed", Intervened())
    opened = TinyRun(statement=_opened)
    yield RunCase("in-toto-is-open", "unknown members outside of the predicate", opened)

    def log(name: str, about: str, run: TinyRun, *codes: str) -> RunCase:
        return RunCase(name, about, run, codes or ("LOG",), record=INCONSISTENT["record"])

    yield log(
        "chain-broken",
        "a line was changed, its link and all after it were not",
        TinyRun(lines=_replace(_STEP, b'"n":2', b'"n":3')),
    )
    yield log("link-of-the-last-line", "the link of the last line is another", TinyRun(lines=_other_link))
    yield log("line-twice", "a line is repeated", TinyRun(lines=lambda ls: [*ls[:6], ls[5], *ls[6:]]))
    yield log("lines-swapped", "two lines changed places", TinyRun(lines=lambda ls: [*ls[:1], ls[2], ls[1], *ls[3:]]))
    yield log("torn-line", "the last line ends within", TinyRun(lines=_unended))
    yield log(
        "duplicate-member",
        "a member occurs twice in a line",
        TinyRun(lines=_respelt(_STEP, b'"i":0,', b'"i":0,"i":0,')),
    )
    yield log(
        "space-in-a-line", "a line is not its own canonical form", TinyRun(lines=_respelt(_STEP, b'"i":0', b'"i": 0'))
    )
    yield log(
        "members-out-of-order",
        "names are sorted",
        TinyRun(
            lines=_respelt(
                -1,
                b'"exitCode":0,"finished":"2026-11-24T10:00:01Z",',
                b'"finished":"2026-11-24T10:00:01Z","exitCode":0,',
            )
        ),
    )
    yield log(
        "escape-in-a-line", "a text in another spelling", TinyRun(lines=_respelt(0, b'"a CPU"', b'"\\u0061 CPU"'))
    )
    yield log("float-in-a-line", "an integer written as a float", TinyRun(lines=_respelt(_STEP, b'"n":2', b'"n":2.0')))
    yield log("unknown-member-in-a-line", "a line is closed", TinyRun(members=_changed(_STEP, verdict="ok")))
    yield log("step-missing", "steps are contiguous", TinyRun(members=_changed(_STEP, i=1)))
    yield log("two-beginnings", "one `begin`", TinyRun(members=lambda ls: [ls[0], *ls]))
    yield log("after-the-end", "nothing follows `end`", TinyRun(members=lambda ls: [*ls, ls[3] | {"i": 2}]))
    yield log(
        "component-never-introduced",
        "a name in `state` has an inventory",
        TinyRun(members=lambda ls: [*ls[:4], *ls[5:]]),
    )
    yield log(
        "values-of-another-digest",
        "values have the digest that `state` gives",
        TinyRun(members=_changed(_STEP, values={"optimizer.hyper": {"lr": float_text(0.25)}})),
    )
    yield log(
        "merkle-root",
        "the statement gives another root",
        TinyRun(statement=lambda s: _log(s, merkleRoot="0" * 64)),
        "LOG-STATEMENT",
    )
    yield log(
        "chain-head",
        "the statement gives another chain head",
        TinyRun(statement=lambda s: _log(s, chainHead="0" * 64)),
        "LOG-STATEMENT",
    )
    yield log(
        "outcome-embellished",
        "the statement says that the run ended",
        TinyRun(ended=False, statement=lambda s: _run(s, outcome="finished")),
        "LOG-STATEMENT",
    )
    yield log(
        "tensor-digest",
        "a tensor digest does not give the component's",
        TinyRun(side=_edited("tensors.b3", _flip_last)),
        "SIDE",
    )
    yield log(
        "sample-index",
        "an index does not give the order's digest",
        TinyRun(side=_edited("order/rank-0.i64", _flip_last)),
        "SIDE",
    )
    yield log(
        "snapshot-value",
        "a value in a snapshot does not give the state",
        TinyRun(side=_edited(snapshot_name(0), _flip_last)),
        "SIDE",
    )
    yield log(
        "snapshot-rate",
        "a value beside a snapshot does not give the state",
        TinyRun(side=_edited(values_name(0), lambda data: data.replace(b'"lr":"0x1.0', b'"lr":"0x1.8', 1))),
        "SIDE",
    )
    yield log(
        "snapshot-stream",
        "a random state beside a snapshot is not that of the step",
        TinyRun(side=_edited(values_name(0), lambda data: data.replace(b'"state":"AAAA"', b'"state":"AAAB"', 1))),
        "SIDE",
    )
    yield log(
        "intervention-that-hides-a-change",
        "a component differs around it and `changed` is empty",
        Intervened(members=lambda ls: [line | {"changed": []} if "changed" in line else line for line in ls]),
    )
    yield log(
        "intervention-that-claims-a-change",
        "a component in `changed` has the same digest around it",
        Intervened(
            members=lambda ls: [line | {"changed": ["model.params"]} if "changed" in line else line for line in ls]
        ),
    )
    yield log(
        "intervention-before-its-step",
        "`i` is the number of steps before it",
        Intervened(members=lambda ls: [line | {"i": 2} if "changed" in line else line for line in ls]),
    )
    yield log(
        "intervention-left-out-of-the-statement",
        "the statement tells of no intervention",
        Intervened(statement=lambda s: s["predicate"].pop("interventions")),
        "LOG-STATEMENT",
    )
    yield log(
        "branch-of-another-run",
        "the statement names another run than the log",
        Intervened(statement=lambda s: s["predicate"]["run"]["branch"].update(run="1" * 32)),
        "LOG-STATEMENT",
    )
    yield log(
        "observation-of-another-step",
        "the file of an observation has the number of steps in its name",
        Intervened(
            members=lambda ls: [line | {"file": observation_name(1)} if line["t"] == "observe" else line for line in ls]
        ),
    )
    yield log(
        "observation-too-long",
        "the log gives another length",
        Intervened(members=lambda ls: [line | {"size": 9} if line["t"] == "observe" else line for line in ls]),
        "SIDE",
    )
    yield log(
        "snapshot-refers-to-none",
        "no earlier snapshot holds what is called unchanged",
        TinyRun(members=_changed(_SNAPSHOT, unchanged={"model.params": 0})),
    )

    def statement(name: str, about: str, run: TinyRun, *codes: str, **more: Any) -> RunCase:
        return RunCase(name, about, run, codes or ("STATEMENT",), **(BROKEN | more))

    yield statement(
        "predicate-not-closed",
        "an unknown member of the predicate",
        TinyRun(statement=lambda s: s["predicate"].update(verdict="ok")),
    )
    yield statement(
        "payload-not-canonical", "the payload has a space", TinyRun(payload_bytes=lambda p: p.replace(b'":', b'": ', 1))
    )
    yield statement(
        "payload-member-twice",
        "the payload has a member twice",
        TinyRun(payload_bytes=lambda p: p[:-1] + b',"subject":[]}'),
    )
    yield statement(
        "another-predicate",
        "a statement of another kind",
        TinyRun(statement=lambda s: s.update(predicateType="https://slsa.dev/provenance/v1")),
    )
    major = TinyRun(statement=lambda s: s["predicate"].update(schemaVersion="9.0.0"))
    yield RunCase("unknown-major-version", "no fall-back: the reader stops", major, error="version")

    def files(name: str, about: str, change: Callable[[dict[str, bytes]], object], code: str) -> RunCase:
        return RunCase(name, about, TinyRun(files_at_last=change), (code,), bytes="broken")

    yield files(
        "file-changed", "a copy of the code was edited", _edited("source/train.py", lambda d: d + b"\n"), "FILE-CHANGED"
    )
    yield files("file-missing", "a listed file is gone", lambda fs: fs.pop("source/train.py"), "FILE-MISSING")
    yield files(
        "file-unlisted", "a file that nobody signed", lambda fs: fs.update({"notes.txt": b"?\n"}), "FILE-UNLISTED"
    )

    invalid = {"bytes": "broken", "signature": "invalid"}
    yield RunCase(
        "signature-wrong",
        "one bit of the signature",
        TinyRun(files_at_last=_envelope(_other_signature)),
        ("ENV-SIGNATURE", "ENV-SIGNER", "SIG-INVALID"),
        **invalid,
    )
    yield RunCase(
        "payload-changed",
        "another payload under the same signature",
        TinyRun(files_at_last=_envelope(_other_payload)),
        ("ENV-SIGNATURE", "ENV-SIGNER", "SIG-INVALID"),
        **invalid,
    )
    yield RunCase(
        "signatures-empty",
        "nobody signed",
        TinyRun(files_at_last=_envelope(lambda e: e.update(signatures=[]))),
        ("ENV-UNREADABLE",),
        bytes="broken",
        record="not-checked",
        signature="invalid",
    )
    yield RunCase(
        "keyid-of-another-key",
        "the key id is no fingerprint of the key that verifies",
        TinyRun(files_at_last=_envelope(lambda e: e["signatures"][0].update(keyid=_other_key().public.keyid))),
        ("ENV-KEYID",),
        bytes="broken",
    )
    yield RunCase(
        "envelope-not-exact",
        "a member more in the envelope",
        TinyRun(files_at_last=_envelope(lambda e: e.update(verdict="ok"))),
        ("ENV-FORM",),
        bytes="broken",
    )
    yield RunCase(
        "signer-exchanged",
        "signer.pub holds another key",
        TinyRun(files_at_last=lambda fs: fs.update({"signer.pub": _other_key().public.openssh_line()})),
        ("ENV-SIGNER", "ENV-UNCHECKED", "SIG-INVALID"),
        bytes="broken",
        signature="invalid",
    )


def _other_link(lines: list[bytes]) -> list[bytes]:
    at = len(b'{"chain":"')
    return [*lines[:-1], lines[-1][:at] + (b"0" if lines[-1][at : at + 1] != b"0" else b"1") + lines[-1][at + 1 :]]


def _other_payload(envelope: Members) -> None:
    payload = base64.b64decode(envelope["payload"]).replace(b'"vectors"', b'"someone"', 1)
    envelope["payload"] = base64.b64encode(payload).decode()


def _changed(number: int, **members: Any) -> Callable[[list[Members]], list[Members]]:
    return lambda lines: [*lines[:number], lines[number] | members, *lines[number + 1 :]]


RUNS = tuple(_run_cases())


DRAWS: dict[str, tuple[bytes, bytes, int, list[int]]] = {
    "three-of-ten": (bytes(range(32)), bytes(range(16)), 10, [0, 3, 7]),
    "all-of-ten": (bytes(range(32)), bytes(range(16)), 10, [0, 3, 7, 5, 4, 1, 6, 9, 8, 2]),
    "another-run": (bytes(32), bytes(16), 10, [9, 7, 1]),
    "another-nonce": (bytes(range(32)), bytes(16), 3, [1, 2, 0]),
    "none": (bytes(range(32)), bytes(range(16)), 10, []),
    "five-of-many": (bytes(range(32)), bytes(range(16)), 65536, [28676, 59697, 56445, 48449, 42994]),
}
"""Draws of segments: chain head, nonce, of how many, and what is drawn, in this order."""


def draws() -> dict[str, bytes]:
    """Return the vectors of the draw by their paths."""
    return {
        f"draws/{name}.json": _pretty({"chainHead": head.hex(), "nonce": nonce.hex(), "total": total, "drawn": drawn})
        for name, (head, nonce, total, drawn) in DRAWS.items()
    }


def generated() -> dict[str, bytes]:
    """Return every file of the folder by its path."""
    files: dict[str, bytes] = {}
    index: dict[str, Any] = {
        "schemaVersion": SCHEMA_VERSION,
        "key": {"seed": SEED.hex(), "publicKey": Signer.from_seed(SEED).public.openssh_text()},
        "documents": [],
        "runs": [],
    }
    for name, cases in DOCUMENTS.items():
        for case in cases():
            path = f"{name}/{'valid' if case.where is None else 'invalid'}/{case.name}.json"
            entry = {"file": path, "schema": name, "valid": case.where is None, "about": case.about}
            index["documents"].append(entry if case.where is None else entry | {"where": case.where})
            files[path] = case.data
    for run in RUNS:
        expected: dict[str, Any] = {"bytes": run.bytes, "record": run.record, "signature": run.signature}
        if run.error:
            expected = {"error": run.error}
        index["runs"].append({"path": run.path, "about": run.about, **expected, "findings": sorted(run.codes)})
        files |= {f"{run.path}/{name}": data for name, data in run.run.files().items()}
    index["draws"] = sorted(draws())
    return files | draws() | {"index.json": _pretty(index)}


def write(folder: Path = FOLDER) -> int:
    """Write the folder anew, but for the vectors of rules (made by hand); return how many files there are."""
    for path in folder.iterdir() if folder.exists() else ():
        if path.is_dir() and path.name != RULES:
            shutil.rmtree(path)
    files = generated()
    for name, data in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return len(files)


if __name__ == "__main__":
    print(f"{FOLDER}: {write()} files")
